"""Metrics for Prometheus. With several workers each writes its numbers to its own files, and any of them adds all up.

The library decides whether to use files when it is first imported, by ``PROMETHEUS_MULTIPROC_DIR``: `run` sets it for
its workers.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from featurestore.ledger.progress import Progress
from featurestore.server.read.templates import Pattern, Template
from featurestore.serving.compiled import Answer
from featurestore.statuses import Status

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SAMPLE_EVERY = 16
"""One request in so many is measured closely: timing every stage of all would cost a tenth of the throughput."""

FLUSH_SECONDS = 1.0
"""How long a worker's counts of values may be missing from another worker's answer."""

STAGES = ("parse", "store", "decode", "transform", "encode")
_AGE_BUCKETS = (1.0, 10.0, 60.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)
_EVENT_BUCKETS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One app's metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        histogram = partial(Histogram, registry=self._registry, buckets=_BUCKETS)
        gauge = partial(Gauge, registry=self._registry, multiprocess_mode="livemax")
        self.routes: frozenset[str] = frozenset()
        self._requests = counter("featurestore_requests", "Requests by route and status.", ["route", "status"])
        self._seconds = histogram(
            "featurestore_request_seconds",
            "From the first byte's arrival in the app to the end of the answer.",
            ["route"],
        )
        stages = histogram(
            "featurestore_stage_seconds",
            f"Where the time of online reads goes, of every {SAMPLE_EVERY}th request.",
            ["stage"],
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._ages = histogram(
            "featurestore_feature_age_seconds",
            f"From the event of a record to its being served, of one record in every {SAMPLE_EVERY}th request.",
            ["view"],
            buckets=_AGE_BUCKETS,
        )
        self._values = counter("featurestore_values", "Feature values answered, by status.", ["view", "status"])
        self._rows = counter("featurestore_online_rows", "Entity rows answered.")
        self.functions_busy = counter(
            "featurestore_on_demand_busy", "Online reads refused as on-demand functions kept all their threads busy."
        )
        self.store_seconds = histogram("featurestore_online_store_seconds", "Round trips to the online store.")
        self.store_errors = counter("featurestore_online_store_errors", "Reads and pushes that failed there.")
        self._breaker_open = gauge(
            "featurestore_breaker_open", "1 while the online store is left alone and probed, in any worker."
        )
        self._breaker_openings = counter(
            "featurestore_breaker_openings", "How often the online store stopped answering."
        )
        self.refreshes = counter(
            "featurestore_registry_refreshes",
            "Refreshes from the registry by outcome: same, changed, failed, refused (its token).",
            ["outcome"],
        )
        self._add_kept(counter)
        self._add_progress(gauge)
        self._add_windows(gauge)
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._counted_requests: defaultdict[Counter, int] = defaultdict(int)
        self._answered = self._counted_rows = 0
        self._counted_fresh: defaultdict[Template, int] = defaultdict(int)
        self._counted_values: defaultdict[tuple[str, Status], int] = defaultdict(int)

    def _add_kept(self, counter: Callable[..., Counter]) -> None:
        """Add what becomes of rows that are kept: pushed ones, and answers."""
        self.push_rows = counter("featurestore_push_rows", "Rows pushed, by outcome.", ["view", "result"])
        self.served_rows = counter(
            "featurestore_served_rows", "Entity rows of answers that were written to the served log.", ["service"]
        )
        self.served_dropped = counter(
            "featurestore_served_dropped",
            "Entity rows of answers that the served log should have and lacks, by reason: full (its queue),"
            " failed, secret (none in the settings), stopped.",
            ["service", "reason"],
        )
        self.predicted_rows = counter(
            "featurestore_predicted_rows", "Rows of predictions that were written to their log.", ["service"]
        )
        self.predicted_dropped = counter(
            "featurestore_predicted_dropped",
            "Rows of predictions that were sent and are not in their log, by reason: full (its queue), many (names or"
            " models), failed, stopped.",
            ["service", "reason"],
        )

    def _add_progress(self, gauge: Callable[..., Gauge]) -> None:
        """Add what is measured when someone asks, not counted as it happens."""
        self.revision = gauge(
            "featurestore_snapshot_revision",
            "Revision of the definitions being served; the least of all workers.",
            multiprocess_mode="livemin",
        )
        self.registry_age_seconds = gauge(
            "featurestore_registry_age_seconds",
            "Since the registry last confirmed the definitions being served; the greatest of all workers.",
        )
        self.clock_ahead = gauge(
            "featurestore_clock_ahead_seconds",
            "How far the clock of the online store, or of the registry's newest writer, is ahead of this host's;"
            " negative where the online store's is behind.",
            ["piece"],
        )
        self.part_mismatch = gauge(
            "featurestore_online_part_mismatch",
            "1 while the online records of a view do not fit the registry or the offline table, or are behind what was"
            " published.",
            ["view"],
        )
        self.waiting_since_us: dict[str, int | None] = {}
        """Since when rows of a view are seen to be committed and not online; None where none are by now."""
        self.evicted_keys = gauge(
            "featurestore_online_store_evicted_keys",
            "Keys that Redis evicted since it started: records among them read as NOT_FOUND.",
        )
        self._publish_rows = gauge(
            "featurestore_publish_rows", "Records that a view's last run sent online, by outcome.", ["view", "result"]
        )
        self._publish_lag = gauge(
            "featurestore_publish_lag_seconds",
            "How long committed rows of a view have waited to go online, pushed ones as far as this server saw it;"
            " 0 for none.",
            ["view"],
        )
        self._committed_age = gauge(
            "featurestore_committed_age_seconds", "Since the end of the last committed interval of a view.", ["view"]
        )

        self._held_rows = gauge(
            "featurestore_quarantine_rows",
            "Rows of a view that runs set aside because they fail rules, and that nobody released or dropped.",
            ["view"],
        )

    def _add_windows(self, gauge: Callable[..., Gauge]) -> None:
        """Add what is measured of views with windows."""
        self._newest_events = Histogram(
            "featurestore_window_newest_events",
            f"Newest events beside the tiles of a record that is read, of one in every {SAMPLE_EVERY}th request.",
            ["view"],
            registry=self._registry,
            buckets=_EVENT_BUCKETS,
        )
        self.folds = Counter(
            "featurestore_window_folds",
            "Records whose newest events a push here put into their tiles.",
            ["view"],
            registry=self._registry,
        )
        self.window_lag = gauge(
            "featurestore_window_lag_events",
            "Events of a view's log that are not online yet; files that were merged count whole.",
            ["view"],
        )
        self.window_age = gauge(
            "featurestore_window_covered_age_seconds",
            "Since the instant until when a view's windows are covered: the last push, or what the last run read;"
            " negative where its clock was ahead.",
            ["view"],
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request; unknown paths share one label, so that nobody can fill the memory."""
        key = (path if path in self.routes else "other", status)
        if key not in self._known:
            route = key[0]
            self._known[key] = (self._requests.labels(route, str(status)), self._seconds.labels(route))
        counter, histogram = self._known[key]
        self._counted_requests[counter] += 1
        histogram.observe(seconds)

    def answered(self, template: Template, answer: Answer) -> None:
        """Count one online read: entity rows, and what each view answered."""
        self._counted_rows += answer.row_count
        for view, found in zip(template.views, answer.views, strict=True):
            for status, count in found.counts().items():
                self._counted_values[view, status] += count

    def answered_fresh(self, template: Template, rows: int, with_nulls: Sequence[Pattern]) -> None:
        """Count one online read whose values are all PRESENT or null; ``with_nulls`` are the rows with nulls."""
        self._counted_fresh[template] += rows
        nulls = zip(*[pattern.nulls for pattern in with_nulls], strict=True)
        for view, missing in zip(template.views, map(sum, nulls), strict=False):  # none where no row has any
            self._counted_values[view, Status.PRESENT] -= missing
            self._counted_values[view, Status.NULL_VALUE] += missing

    def is_sample(self) -> bool:
        """Tell whether to measure this online read closely."""
        self._answered += 1
        return self._answered % SAMPLE_EVERY == 1

    def sample(
        self, seconds: Sequence[float], ages: Iterable[tuple[str, float]], newest_events: Iterable[tuple[str, int]]
    ) -> None:
        """Note where the time of one online read went, by `STAGES`, how old its records were, and what waits there."""
        for stage, spent in zip(STAGES, seconds, strict=True):
            self._stages[stage].observe(spent)
        for view, age_s in ages:
            self._ages.labels(view).observe(age_s)
        for view, count in newest_events:
            self._newest_events.labels(view).observe(count)

    def breaker(self, is_open: bool) -> None:
        """Set whether the online store is left alone."""
        self._breaker_open.set(is_open)
        if is_open:
            self._breaker_openings.inc()

    def progress(self, found: Mapping[str, Progress], now_us: int) -> None:
        """Set how far each view's rows have come."""
        for view in found.keys() | self.waiting_since_us.keys():
            of_run_us = found[view].unpublished_since_us if view in found else None
            since_us = min(filter(None, (of_run_us, self.waiting_since_us.get(view))), default=now_us)
            self._publish_lag.labels(view).set(max(0, now_us - since_us) / 1_000_000)
        for view, each in found.items():
            if each.committed_until_us is not None:
                self._committed_age.labels(view).set((now_us - each.committed_until_us) / 1_000_000)
            self._held_rows.labels(view).set(each.held)
            for result, count in each.published.items():
                self._publish_rows.labels(view, result).set(count)

    def flush(self) -> None:
        """Hand the counts since the last call to the library: counting here is much cheaper than counting there."""
        requests, self._counted_requests = self._counted_requests, defaultdict(int)
        fresh, self._counted_fresh = self._counted_fresh, defaultdict(int)
        values, self._counted_values = self._counted_values, defaultdict(int)
        rows, self._counted_rows = self._counted_rows + sum(fresh.values()), 0
        for counter, count in requests.items():
            counter.inc(count)
        for template, count in fresh.items():
            for view, part in zip(template.views, template.slices, strict=True):
                values[view, Status.PRESENT] += count * (part.stop - part.start)
        self._rows.inc(rows)
        for (view, status), count in values.items():
            self._values.labels(view, status.name).inc(count)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format, added up over the workers."""
        self.flush()
        directory = os.environ.get(DIRECTORY_VARIABLE)
        if directory is None:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(directory))
        added_up = CollectorRegistry()
        MultiProcessCollector(added_up)  # type: ignore[no-untyped-call]  # the library has no types here
        return generate_latest(added_up)


def _forget_dead_workers(directory: Path) -> None:
    """Drop the gauges of workers that died; their counts stay."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # nor here
