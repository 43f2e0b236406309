"""How far a view's online part is behind its log."""

from __future__ import annotations

from dataclasses import dataclass

from featurestore.consistency.belonging import has_other
from featurestore.engine.interface import KNOWN_AT
from featurestore.following.mark import Mark, known_marks, mark_from, read_marks
from featurestore.offline.interface import TableVersion
from featurestore.registered.snapshot import RegisteredView
from featurestore.workspace import Readers

_BATCH_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Lag:
    """What is online of a view with windows."""

    version: int | None
    """The version of the log up to which events are online; None where the online store does not say it, or says one
    that the log does not know: the next publish makes every record again."""
    covered_us: int | None
    """Until when it is known what happened: the end of what was read from the source, or the last push."""
    events: int
    """Events of the log that are not online yet; none where the log is older than what is online."""
    since_us: int | None
    """Since when the first of them is known; None where none waits, or all do."""


def lag_of(workspace: Readers, registered: RegisteredView) -> Lag:
    """Return how far a view is behind. Raises OnlineStoreUnavailableError, OfflineStoreError and EngineError."""
    version = workspace.offline.current(registered.table)
    mark = None if version is None else least_mark(workspace, registered, version)
    if version is None or mark is None:
        return Lag(None, None, 0 if version is None else at_most_waiting(workspace, registered, version, None), None)
    files = [file.path for file in version.files if file.max_sequence > mark.sequence]
    count, since_us = 0, None
    if files and mark.sequence < version.next_sequence - 1:
        found = workspace.engine.log.events(
            registered.view, files, after_sequence=mark.sequence, batch_rows=_BATCH_ROWS
        )
        for batch in found:
            known = min(batch.column(KNOWN_AT).to_pylist())
            count, since_us = count + batch.num_rows, known if since_us is None else min(since_us, known)
    return Lag(mark.version, mark.covered_us, count, since_us)


def at_most_waiting(workspace: Readers, registered: RegisteredView, version: TableVersion, mark: Mark | None) -> int:
    """Return how many events of a version wait to go online after the `least_mark`; files that were merged count whole.

    None do where a mark names a commit that the log never had: all are online, and more.
    """
    if mark is None:
        marks = map(mark_from, read_marks(workspace, registered).values())
        is_older = any(has_other(workspace.offline, registered, each.version, each.commit) for each in marks if each)
        return 0 if is_older else version.rows
    if mark.sequence >= version.next_sequence - 1:
        return 0
    return sum(file.rows for file in version.files if file.max_sequence > mark.sequence)


def least_mark(workspace: Readers, registered: RegisteredView, version: TableVersion) -> Mark | None:
    """Return the mark that is furthest behind, None where the log does not know one."""
    marks = known_marks(workspace, registered, version, read_marks(workspace, registered))
    return None if marks is None else min(marks.values(), key=lambda mark: mark.sequence)
