"""What the ledger says about a project's views: how fresh each is, and how its last run went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from featurestore_registry.catalog.project import VIEW, Project
from featurestore_registry.catalog.reading import read, read_all
from featurestore_registry.catalog.words import age, ago, duration
from featurestore_registry.documents import RUN, RUN_START, WATERMARK, RunDocument, WatermarkDocument
from featurestore_registry.interface import LedgerReader
from featurestore_registry.records import Document

LEASE = "lease"
_LEASE_LEEWAY_US = 10_000_000

State = Literal["failed", "stale", "empty", "running", "fresh", "offline"]
"""The worst first: a list that is sorted by it begins with what wants attention."""
STATES: tuple[State, ...] = ("failed", "stale", "empty", "running", "fresh", "offline")
LABELS: Mapping[State, str] = {
    "failed": "failed",
    "stale": "stale",
    "empty": "no data",
    "running": "running",
    "fresh": "fresh",
    "offline": "has data",
}


@dataclass(frozen=True, slots=True)
class ViewActivity:
    """One view's data at a moment, from its newest entries."""

    view: str
    generation: int
    ttl_us: int | None
    watermark: WatermarkDocument | None = None
    last: RunDocument | None = None
    """The newest run that ended, of the served generation."""
    begun: RunDocument | None = None
    """A run that began after it and has not ended."""
    alive_until_us: int | None = None
    """Until when that run seems to be under way, if it writes no more: it holds the view's lease. None: it does not."""

    @property
    def newest_us(self) -> int | None:
        """The greatest event time that is committed."""
        return None if self.watermark is None else self.watermark.greatest_event_us

    @property
    def rows(self) -> int:
        """Rows in the offline table."""
        return 0 if self.watermark is None else self.watermark.offline_rows

    def is_alive(self, now_us: int) -> bool:
        """Tell whether a run seems to be under way."""
        return self.alive_until_us is not None and now_us < self.alive_until_us

    def is_stale(self, now_us: int) -> bool:
        """Tell whether its newest event is older than its values last, whatever its last run did."""
        return self.newest_us is not None and self.ttl_us is not None and now_us - self.newest_us > self.ttl_us

    def states(self, now_us: int) -> tuple[State, ...]:
        """Return how the view is: a view that failed may be stale, too."""
        state = self.state(now_us)
        return (state, "stale") if state == "failed" and self.is_stale(now_us) else (state,)

    def state(self, now_us: int) -> State:
        """Tell how the view is, at an instant: a failure first, then what is stale."""
        if (self.last is not None and self.last.state in ("failed", "killed")) or (
            self.begun is not None and not self.is_alive(now_us)
        ):
            return "failed"
        if self.newest_us is None:
            return "running" if self.is_alive(now_us) else "empty"
        if self.is_stale(now_us):
            return "stale"
        if self.is_alive(now_us):
            return "running"
        return "offline" if self.ttl_us is None else "fresh"

    def says(self, now_us: int) -> str:
        """Return its states as a sentence."""
        return "; ".join(self._says(state, now_us) for state in self.states(now_us))

    def _says(self, state: State, now_us: int) -> str:
        if state == "failed":
            if self.begun is not None and not self.is_alive(now_us):
                return f"a run began {ago(self.begun.started_us, now_us)} and never ended: its process was killed"
            assert self.last is not None
            return f"the last run failed: {self.last.error or 'it says no reason'}"
        if state == "empty":
            return "nothing was materialized yet"
        if state == "stale":
            assert self.newest_us is not None
            return (
                f"its newest event is {age(now_us - self.newest_us)} old; values expire after {duration(self.ttl_us)}"
            )
        if state == "running":
            return "a run is under way"
        return f"newest event {ago(self.newest_us, now_us)}"


def activity_of(ledger: LedgerReader, project: Project) -> dict[str, ViewActivity]:
    """Return how each view is, by name: four reads of the ledger, whatever the number of views."""
    name = project.name
    watermarks = read_all(ledger.scan(name, WATERMARK), WatermarkDocument)
    runs = read_all(ledger.scan(name, RUN), RunDocument)
    starts = read_all(ledger.scan(name, RUN_START), RunDocument)
    leases = {entry.key: entry.document for entry in ledger.scan(name, LEASE)}
    found = {}
    for record in project.of_kind(VIEW):
        generation = generation_of(record.document)
        found[record.name] = _activity(
            record.name,
            record.document,
            watermarks.get(f"{record.name}.{generation}"),
            runs.get(record.name),
            starts.get(record.name),
            leases.get(record.name),
        )
    return found


def activity_of_view(ledger: LedgerReader, project: str, view: str, document: Document) -> ViewActivity:
    """Return how one view is, from its own entries alone."""
    key = f"{view}.{generation_of(document)}"
    lease = ledger.latest(project, LEASE, view)
    return _activity(
        view,
        document,
        read(ledger.latest(project, WATERMARK, key), WatermarkDocument),
        read(ledger.latest(project, RUN, view), RunDocument),
        read(ledger.latest(project, RUN_START, view), RunDocument),
        None if lease is None else lease.document,
    )


def runs_of_view(ledger: LedgerReader, project: str, view: str, limit: int) -> list[RunDocument]:
    """Return the newest runs that ended, newest first."""
    found = (read(entry, RunDocument) for entry in ledger.scan(project, RUN, key=view, limit=limit))
    return [run for run in found if run is not None]


def generation_of(document: Document) -> int:
    """Return a view's generation."""
    found = document.get("generation")
    return found if isinstance(found, int) else 1


def _activity(
    view: str,
    document: Document,
    watermark: WatermarkDocument | None,
    run: RunDocument | None,
    start: RunDocument | None,
    lease: Document | None,
) -> ViewActivity:
    generation, ttl = generation_of(document), document.get("ttl_us")
    last = run if run is not None and run.generation == generation and not run.dry_run else None
    begun = start if start is not None and start.generation == generation and not start.dry_run else None
    if begun is not None and run is not None and (run.run_id == begun.run_id or run.started_us > begun.started_us):
        begun = None
    return ViewActivity(
        view,
        generation,
        ttl if isinstance(ttl, int) else None,
        watermark,
        last,
        begun,
        None if begun is None or lease is None else _held_until(lease, begun.run_id),
    )


def _held_until(lease: Mapping[str, Any], run_id: str) -> int | None:
    """Return until when a run's lease counts; None where another run holds it, or none does."""
    expires = lease.get("expires_us")
    if not isinstance(expires, int) or lease.get("holder") != run_id or lease.get("released"):
        return None
    return expires + _LEASE_LEEWAY_US
