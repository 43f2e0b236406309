"""How far each view's rows have come: committed, published, and the counts of the last run's publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurestore_registry.documents import QUARANTINE, RUN, WATERMARK
from featurestore_registry.interface import LedgerReader

from featurestore.ledger.runs import COUNTS, run_from
from featurestore.ledger.watermarks import watermark_from
from featurestore.registered.snapshot import Snapshot
from featurestore.types.times import to_instant


@dataclass(frozen=True, slots=True)
class Progress:
    """One online view's progress."""

    generation: int
    committed_until_us: int | None
    """The end of its last committed interval."""
    unpublished_since_us: int | None
    """Since when committed rows have been waiting to go online; None when none wait."""
    published_version: int | None
    """The table version that was published last; None when none ever was."""
    published: Mapping[str, int]
    """The counts of the records that its last run sent online."""
    held: int = 0
    """Rows that are set aside and that nobody has released or dropped."""


def read_progress(ledger: LedgerReader, snapshot: Snapshot) -> dict[str, Progress]:
    """Return the progress of every online view that was ever materialized, by three queries for any number of views."""
    marks = {entry.key: entry for entry in ledger.scan(snapshot.project, WATERMARK)}
    last = {entry.key: run_from(entry.document).published for entry in ledger.scan(snapshot.project, RUN)}
    held = {entry.key: entry.document.get("held", 0) for entry in ledger.scan(snapshot.project, QUARANTINE)}
    found = {}
    for name, registered in snapshot.views.items():
        entry = marks.get(registered.ledger_key)
        if entry is None or not registered.view.online:
            continue
        mark = watermark_from(entry)
        waits = mark.table_version != mark.published_version
        found[name] = Progress(
            generation=registered.generation,
            committed_until_us=mark.end_us,
            unpublished_since_us=to_instant(entry.written_at) if waits else None,
            published_version=mark.published_version,
            published={count: getattr(last[name], count) for count in COUNTS} if name in last else {},
            held=held.get(registered.ledger_key, 0),
        )
    return found
