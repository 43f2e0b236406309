"""What Prometheus reads. With several workers each writes its numbers to files of its own, and any of them adds all up.

The library chooses between the two when it is first imported, by ``PROMETHEUS_MULTIPROC_DIR``: `run` sets it for
its workers.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """One app's metrics."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.routes: frozenset[str] = frozenset()
        self._requests = Counter(
            "featurestore_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "featurestore_request_seconds",
            "From the first byte's arrival in the app to the end of the answer.",
            ["route"],
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self.store_seconds = Histogram(
            "featurestore_online_store_seconds",
            "Round trips to the online store.",
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self.store_errors = Counter(
            "featurestore_online_store_errors", "Round trips that failed.", registry=self._registry
        )
        self.rows = Counter("featurestore_online_rows", "Entity rows answered.", registry=self._registry)
        self.refreshes = Counter(
            "featurestore_registry_refreshes",
            "Looks at the registry by outcome: same, changed, failed.",
            ["outcome"],
            registry=self._registry,
        )
        self.revision = Gauge(
            "featurestore_snapshot_revision",
            "Revision of the definitions being served; the least of all workers.",
            registry=self._registry,
            multiprocess_mode="livemin",
        )
        self.registry_age_seconds = Gauge(
            "featurestore_registry_age_seconds",
            "Since the registry last confirmed the definitions being served; the greatest of all workers.",
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request; paths that are no route share one label, so that nobody can fill the memory."""
        key = (path if path in self.routes else "other", status)
        if key not in self._known:
            route = key[0]
            self._known[key] = (self._requests.labels(route, str(status)), self._seconds.labels(route))
        counter, histogram = self._known[key]
        counter.inc()
        histogram.observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format, added up over the workers."""
        directory = os.environ.get(DIRECTORY_VARIABLE)
        if directory is None:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(directory))
        added_up = CollectorRegistry()
        MultiProcessCollector(added_up)  # type: ignore[no-untyped-call]
        return generate_latest(added_up)


def _forget_dead_workers(directory: Path) -> None:
    """Drop the gauges of workers that died; what they counted stays."""
    for pid in {int(file.stem.rpartition("_")[2]) for file in directory.glob("gauge_live*_*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
