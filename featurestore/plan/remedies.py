"""What has to be run after a change is applied, as commands with the dates filled in."""

from __future__ import annotations

from collections.abc import Iterable

from featurestore_registry.interface import LedgerReader

from featurestore.definitions import Definition, FeatureView
from featurestore.following.held import not_held, wait_for_records
from featurestore.ledger.unread import commands
from featurestore.ledger.watermarks import read_watermark
from featurestore.plan.classes import Difference
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.windows.layout import Layout


def commands_after(
    ledger: LedgerReader,
    snapshot: Snapshot,
    wanted: Definition,
    changes: Iterable[Difference],
    *,
    is_new: bool,
    held: tuple[Layout, ...] = (),
) -> tuple[str, ...]:
    """Return the commands that bring stored data to a changed definition; ``is_new``: the view has a new table.

    ``held`` as in `differences`.
    """
    rebuilt = {change.what for change in changes if change.needs_rebuild}
    registered = snapshot.views.get(wanted.name) if isinstance(wanted, FeatureView) else None
    if registered is not None and isinstance(wanted, FeatureView):
        if is_new:
            return _refill(ledger, registered)
        # The log has the events of every window: nothing is read from the source.
        if all(what.startswith("window ") for what in rebuilt) and _wants_republish(wanted, held):
            return (f"fs materialize --republish --view {wanted.name}",)
        if rebuilt == {"ttl"}:
            is_online = read_watermark(ledger, registered).online_rows
            return (f"fs materialize --republish --view {wanted.name}",) if is_online else ()
        has_more = any(change.what.startswith("feature ") and change.before is None for change in changes)
        if has_more and not rebuilt and read_watermark(ledger, registered).intervals:
            return _refill(ledger, registered)
    if not rebuilt:
        return ()
    readers = [found for found in snapshot.views.values() if wanted.key in read_by(found.view)]
    return tuple(
        line
        for found in readers or filter(None, [registered])
        for line in commands(found.view.name, read_watermark(ledger, found).intervals, " --rebuild")
    )


def _wants_republish(wanted: FeatureView, held: tuple[Layout, ...]) -> bool:
    """Tell whether records are to be made again: for windows that are not found, or so that pushes go on.

    A run makes all records again, a push those of a log of at most `MOST_MADE_ANEW` events.
    """
    if not held or not wanted.aggregations:
        return False
    return bool(not_held(held, wanted)) or wait_for_records(held, wanted)


def read_by(view: FeatureView) -> set[str]:
    """Return the ``kind:name`` of every source that a view reads, those behind push sources included."""
    return {source.key for source in (*view.sources, *view.batch_sources)}


def _refill(ledger: LedgerReader, registered: RegisteredView) -> tuple[str, ...]:
    """Return the command that reads the committed spans again, for a new generation or an added feature."""
    if read_watermark(ledger, registered).begun_us is not None:
        return (f"fs materialize --view {registered.view.name}",)  # reads from the source's first event on
    return commands(registered.view.name, read_watermark(ledger, registered).intervals)
