"""Group commit: rows pushed to a view within a second go into its offline table as one file in one commit."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING

from featurestore.consistency.belonging import compare_part, compare_table, markers_of
from featurestore.errors import ConcurrentCommitError, OfflineStoreError, RegistryUnavailableError
from featurestore.forks import ForkLock
from featurestore.ledger.commits import bind_tables, facts_of, held_of
from featurestore.offline.interface import TableId, TableVersion
from featurestore.offline.merge import due, merge_quietly, write_in_memory
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

STAGED = crash_point("push.staged", "pushed rows are in a file of their own, in no version")
COMMITTED = crash_point("push.committed", "pushed rows are committed, no caller knows and none is online")

PAUSE_SECONDS = 1.0
"""Seconds between the starts of two commits, for each process and view."""
RETRY_SECONDS, PATIENCE_SECONDS = 0.02, 15.0
"""The first pause between tries; how long a commit gives way to other writers before it fails."""
NOTE_PAUSE_SECONDS, NOTE_LONGEST_SECONDS = 0.5, 30.0
"""How long nothing is noted in an online store that could not be reached: first the one, then twice as long each time
up to the other. Otherwise each commit would wait for it."""
PUSH = "push"
MERGED_BYTES, MERGED_ROWS = 8 << 20, 1 << 20
"""At most so much is merged in memory between two commits; larger files wait for a run."""
_jitter = SystemRandom()


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting:
    """The rows of one caller: join keys, event_ts, created_ts, features, in the table's order."""

    rows: pa.Table
    registered: RegisteredView
    workspace: Workspace
    done: Future[int] = field(default_factory=Future)


def commit_rows(workspace: Workspace, registered: RegisteredView, rows: pa.Table) -> Future[int]:
    """Append rows to a view's offline table; the future gives the version once it is there to stay.

    Safe to call from any thread. The first push after a quiet second is committed at once; pushes that come meanwhile
    go into the next commit. A commit that fails, fails exactly the pushes in it; a future that is cancelled before its
    commit began is left out.
    """
    key = os.getpid(), workspace.root, workspace.settings.offline_store.url, registered.table
    with _lock:
        committer = _committers.setdefault(key, _Committer())
    return committer.add(_Waiting(rows, registered, workspace))


class _Committer:
    """Commits all pushes to one table in this process. Its thread lives while there is something to do.

    The thread is not a daemon: a process that ends finishes the pushes that it took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._is_running = False
        self._next_s = 0.0
        self._note_from_s = 0.0
        self._note_pause_s = NOTE_PAUSE_SECONDS

    def add(self, push: _Waiting) -> Future[int]:
        with self._lock:
            self._waiting.append(push)
            if not self._is_running:
                threading.Thread(target=self._run, name=f"push {push.registered.view.name}").start()
                self._is_running = True
        return push.done

    def _run(self) -> None:
        while self._is_needed():
            time.sleep(max(0.0, self._next_s - time.monotonic()))
            with self._lock:
                # Pushes by another revision of the view have other columns: they go into the next commit.
                schema = self._waiting[0].registered.table_schema
                group = [push for push in self._waiting if push.registered.table_schema == schema]
                self._waiting = [push for push in self._waiting if push not in group]
            self._next_s = time.monotonic() + PAUSE_SECONDS
            self._commit([push for push in group if push.done.set_running_or_notify_cancel()])
            _merge(group[0])

    def _is_needed(self) -> bool:
        with self._lock:
            self._is_running = bool(self._waiting)
            return self._is_running

    def _commit(self, group: list[_Waiting]) -> None:
        if not group:
            return
        try:
            version = _append(group[0], [push.rows for push in group])
        except BaseException as error:
            for push in group:
                push.done.set_exception(error)
        else:
            self._note_online(group[0], version)
            for push in group:
                push.done.set_result(version.number)

    def _note_online(self, push: _Waiting, version: TableVersion) -> None:
        """Note the commit in the online store, so that an offline table without it is recognised as older.

        Done before the callers continue, because they may then close the store. Leaves alone a part that is not this
        registry's, and a noted commit that the table does not have: nothing else shows that rows which are online were
        lost offline. A failure here fails no push; a later commit tries again.
        """
        workspace, registered = push.workspace, push.registered
        if not registered.view.online or time.monotonic() < self._note_from_s:
            return
        try:
            found = compare_part(
                workspace.registry, workspace.online, workspace.offline, registered, at_once=True
            ).mismatch
            if found is None or found.heals:
                markers_of(workspace.online, registered).note_pushed(version.number, version.identity)
            self._note_pause_s = NOTE_PAUSE_SECONDS
        except Exception as error:
            logger.debug("the commit of pushed rows could not be noted online: %s", error)
            self._note_from_s = time.monotonic() + self._note_pause_s
            self._note_pause_s = min(2 * self._note_pause_s, NOTE_LONGEST_SECONDS)


_Key = tuple[int, Path, str, TableId]
_committers: dict[_Key, _Committer] = {}
_lock = ForkLock()


def _merge(push: _Waiting) -> None:
    """Merge the small files of many commits, now that nobody waits for this one."""
    offline, table = push.workspace.offline, push.registered.table
    try:
        version = offline.current(table)
        files = () if version is None else due(version.files, most_bytes=MERGED_BYTES, most_rows=MERGED_ROWS)
        if version is not None and files:
            merge_quietly(offline, version, files, partial(write_in_memory, offline, table))
    except OfflineStoreError as error:
        logger.warning("files of %s are not merged: %s", table, error)
    except Exception:  # the thread must go on in any case: callers wait for their commits
        logger.exception("files of %s are not merged", table)


def _compare(workspace: Workspace, registered: RegisteredView) -> None:
    """Raise MismatchError where the table is not as the registry left it; a registry that is down is skipped."""
    with suppress(RegistryUnavailableError):
        found = compare_table(workspace.registry, workspace.offline, registered)
        if found is not None and not found.heals:
            raise found.error


def _append(push: _Waiting, groups: list[pa.Table]) -> TableVersion:
    """Commit tables as one file, their rows in the order given, and return the version."""
    import pyarrow as pa

    offline, registered = push.workspace.offline, push.registered
    _compare(push.workspace, registered)
    bind_tables(offline, registered)
    rows = pa.concat_tables(groups)
    give_up_s = time.monotonic() + PATIENCE_SECONDS
    for tries in count(1):
        version = offline.current(registered.table)
        path = offline.write(registered.table, _numbered(rows, 0 if version is None else version.next_sequence))
        try:
            reached(STAGED)
            base = None if version is None else version.number
            held = held_of(offline, offline.find_commit(registered.table, base), registered) if version else None
            facts = facts_of(registered, held)
            committed = offline.commit(registered.table, registered.table_schema, base=base, add=[path], facts=facts)
        except ConcurrentCommitError:
            if time.monotonic() >= give_up_s:
                raise
        else:
            reached(COMMITTED)
            return committed
        finally:
            path.unlink(missing_ok=True)
        # Writers that lost together would collide again: each waits for a random time, longer with each try.
        time.sleep(_jitter.uniform(0, min(RETRY_SECONDS * 2**tries, PAUSE_SECONDS)))
    raise AssertionError("tries do not end")


def _numbered(rows: pa.Table, first_sequence: int) -> pa.Table:
    """Return rows as the engine writes those of a source, numbered from ``first_sequence`` on."""
    import pyarrow as pa

    place = rows.column_names.index(CREATED) + 1
    sequence = pa.array(range(first_sequence, first_sequence + len(rows)), pa.int64())
    rows = rows.add_column(place, SEQUENCE, sequence)
    rows = rows.add_column(place + 1, ORIGIN, pa.repeat(PUSH, len(rows)))
    return rows.sort_by([(name, "ascending") for name in (EVENT, CREATED, SEQUENCE)])
