"""Pushed rows on their way into the offline table: what is push's own in a group commit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.consistency.belonging import compare_part, compare_table, markers_of, refuse
from featurestore.errors import RegistryUnavailableError, RevisionConflictError
from featurestore.ledger.commits import bind_tables, facts_of, held_of
from featurestore.offline.groups import GroupCommitter
from featurestore.offline.interface import TableVersion
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

STAGED = crash_point("push.staged", "pushed rows are in a file of their own, in no version")
COMMITTED = crash_point("push.committed", "pushed rows are committed, no caller knows and none is online")

NOTE_PAUSE_SECONDS, NOTE_LONGEST_SECONDS = 0.5, 30.0
"""How long nothing is noted in an online store that could not be reached: first the one, then twice as long each time
up to the other. Otherwise each commit would wait for it."""
PUSH = "push"


def commit_rows(given: Pushed, rows: pa.Table, writer: Callable[[], PushWriter] | None = None) -> Future[int]:
    """Append rows to a view's offline table: join keys, event_ts, created_ts, features, in the table's order.

    The future is as `GroupCommitter.add` returns it. ``writer`` makes the table's writer, if it is not a `PushWriter`.
    """
    workspace, table = given.workspace, given.registered.table
    key = os.getpid(), table
    with workspace.lock:
        if key not in workspace.committers:
            made = PushWriter() if writer is None else writer()
            workspace.committers[key] = GroupCommitter(workspace.offline, table, made)
        committer = workspace.committers[key]
    return committer.add(rows, given.registered.table_schema, given)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Whose rows they are."""

    workspace: Workspace
    registered: RegisteredView


class PushWriter:
    """Compares tables with the registry before a commit, and notes it in the online store after.

    No push is acknowledged in a generation that an apply has given up: its rows would be in no later training set.
    """

    def __init__(self) -> None:
        self._note_from_s = 0.0
        self._note_pause_s = NOTE_PAUSE_SECONDS

    def begin(self, given: Sequence[Pushed]) -> None:
        """Raise MismatchError where the table is not as the registry left it, RevisionConflictError where it is old.

        A registry that is down is skipped.
        """
        workspace, registered = given[0].workspace, given[0].registered
        with suppress(RegistryUnavailableError):
            _check_generation(given[0])
            refuse(compare_table(workspace, registered))
        bind_tables(workspace.offline, registered)

    def gathered(
        self, given: Sequence[Pushed], parts: Sequence[pa.Table], version: TableVersion | None
    ) -> pa.Table | None:
        """Return all rows."""
        import pyarrow as pa

        return self.numbered(pa.concat_tables(parts), 0 if version is None else version.next_sequence)

    def numbered(self, rows: pa.Table, first_sequence: int) -> pa.Table:
        """Return rows as the engine writes those of a source, numbered from ``first_sequence`` on."""
        import pyarrow as pa

        place = rows.column_names.index(CREATED) + 1
        sequence = pa.array(range(first_sequence, first_sequence + len(rows)), pa.int64())
        rows = rows.add_column(place, SEQUENCE, sequence)
        rows = rows.add_column(place + 1, ORIGIN, pa.repeat(PUSH, len(rows)))
        return rows.sort_by([(name, "ascending") for name in (EVENT, CREATED, SEQUENCE)])

    def facts(self, given: Sequence[Pushed], base: TableVersion | None) -> Mapping[str, Any]:
        """Return the project, and what the table holds from its source: a push adds nothing to that."""
        reached(STAGED)
        workspace, registered, held = given[0].workspace, given[0].registered, None
        if base is not None:
            offline = workspace.offline
            held = held_of(offline, registered.table, offline.find_commit(registered.table, base.number))
        return facts_of(registered, held, "push")

    def committed(self, given: Sequence[Pushed], version: TableVersion) -> None:
        """Note the commit in the online store, so that an offline table without it is recognised as older.

        Raises RevisionConflictError where an apply gave the table up meanwhile. Leaves alone a part that is not this
        registry's, and a noted commit that the table does not have: nothing else shows that rows which are online were
        lost offline. Where it cannot be noted no push fails; a later commit tries again.
        """
        reached(COMMITTED)
        workspace, registered = given[0].workspace, given[0].registered
        with suppress(RegistryUnavailableError):
            _check_generation(given[0])
        if not registered.view.online or time.monotonic() < self._note_from_s:
            return
        try:
            found = compare_part(workspace, registered, at_once=True).mismatch
            if found is None or found.heals:
                markers_of(workspace.online, registered).note_pushed(version.number, version.identity)
            self._note_pause_s = NOTE_PAUSE_SECONDS
        except Exception as error:
            logger.debug("the commit of pushed rows could not be noted online: %s", error)
            self._note_from_s = time.monotonic() + self._note_pause_s
            self._note_pause_s = min(2 * self._note_pause_s, NOTE_LONGEST_SECONDS)


def _check_generation(given: Pushed) -> None:
    """Raise RevisionConflictError where the view has another generation now than when the rows were checked."""
    workspace, registered = given.workspace, given.registered
    if workspace.registry.definitions.chain(workspace.project) == registered.chain:
        return
    snapshot = workspace.snapshot()
    found = snapshot.views.get(registered.view.name)
    if snapshot.revision and (found is None or found.generation != registered.generation):
        now = "is gone" if found is None else f"has begun generation {found.generation}"
        raise RevisionConflictError(
            f"Feature view {registered.view.name!r} {now} since the rows were checked: revision {snapshot.revision} "
            f"was applied.",
            hint="Push them again.",
            view=registered.view.name,
        )
