"""Group commit: rows that come within a second go into their table as one file in one commit; many rows sooner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import SystemRandom
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from featurestore.errors import ConcurrentCommitError, OfflineStoreError
from featurestore.offline.interface import OfflineStore, TableId, TableSchema, TableVersion
from featurestore.offline.merge import due, merge_quietly, write_in_memory

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

PAUSE_SECONDS = 1.0
"""Seconds between the starts of two commits of one committer, so that there are few files."""
FULL_ROWS = 20_000
"""So many rows are a file of their own: they do not wait, and neither does what comes after them."""
RETRY_SECONDS, PATIENCE_SECONDS = 0.02, 15.0
"""The first pause between tries; how long a commit gives way to other writers before it fails."""
MERGED_BYTES, MERGED_ROWS = 8 << 20, 1 << 20
"""At most so much is merged in memory between two commits; larger files wait for a run."""
_jitter = SystemRandom()

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class GroupWriter(Protocol[T_contra]):
    """What a writer does itself in its group commits: it checks, numbers its rows, and says their facts.

    ``given`` is what came with the rows, one for each `GroupCommitter.add` of the group. The committer's thread calls
    the methods in this order; what they raise, the callers get.
    """

    def begin(self, given: Sequence[T_contra]) -> None:
        """Check what must hold before anything is written."""

    def gathered(
        self, given: Sequence[T_contra], parts: Sequence[pa.Table], version: TableVersion | None
    ) -> pa.Table | None:
        """Return the rows as a file holds them, with ``fs_seq`` from the version's next on; again for each try.

        ``parts`` are those that came with each of ``given``. None: the version has what they say, and nothing is
        committed.
        """

    def facts(self, given: Sequence[T_contra], base: TableVersion | None) -> Mapping[str, Any]:
        """Return the facts of the commit that follows ``base``; the rows are staged. Again for each try."""

    def committed(self, given: Sequence[T_contra], version: TableVersion) -> None:
        """Do what comes before the callers continue, who may then close their stores. The rows are there to stay."""


@dataclass(frozen=True, eq=False, slots=True)
class _Waiting(Generic[T]):
    """The rows of one caller, in the table's order of columns."""

    rows: pa.Table
    schema: TableSchema
    given: T
    done: Future[int] = field(default_factory=Future)


class GroupCommitter(Generic[T]):
    """Commits all rows of one writer to one table in this process. Its thread lives while there is something to do.

    The thread is not a daemon: a process that ends finishes what it took. It does not exist in a child after a fork,
    which needs a committer of its own.
    """

    def __init__(self, offline: OfflineStore, table: TableId, writer: GroupWriter[T]) -> None:
        self._offline, self._table, self._writer = offline, table, writer
        self._lock = threading.Condition()
        self._waiting: list[_Waiting[T]] = []
        self._is_running = False
        self._next_s = 0.0

    def add(self, rows: pa.Table, schema: TableSchema, given: T) -> Future[int]:
        """Append rows to the table; the future gives the version once it is there to stay.

        Safe to call from any thread. The first rows after a quiet second are committed at once; those that come
        meanwhile go into the next commit, which begins early when they are many. A commit that fails, fails exactly
        what is in it; a future that is cancelled before its commit began is left out.
        """
        added = _Waiting(rows, schema, given)
        with self._lock:
            self._waiting.append(added)
            self._lock.notify()
            if not self._is_running:
                threading.Thread(target=self._run, name=f"commit {self._table}").start()
                self._is_running = True
        return added.done

    def _run(self) -> None:
        while self._is_needed():
            with self._lock:
                self._lock.wait_for(self._is_full, max(0.0, self._next_s - time.monotonic()))
                # Rows of another schema have other columns: they go into the next commit.
                schema = self._waiting[0].schema
                group = [added for added in self._waiting if added.schema == schema]
                self._waiting = [added for added in self._waiting if added not in group]
            self._next_s = time.monotonic() + (PAUSE_SECONDS if _rows(group) < FULL_ROWS else 0.0)
            self._commit([added for added in group if added.done.set_running_or_notify_cancel()])
            self._merge()

    def _is_full(self) -> bool:
        return _rows(self._waiting) >= FULL_ROWS

    def _is_needed(self) -> bool:
        with self._lock:
            self._is_running = bool(self._waiting)
            return self._is_running

    def _commit(self, group: list[_Waiting[T]]) -> None:
        if not group:
            return
        given = [added.given for added in group]
        try:
            version = self._append(group, given)
            self._writer.committed(given, version)
        except BaseException as error:
            for added in group:
                added.done.set_exception(error)
        else:
            for added in group:
                added.done.set_result(version.number)

    def _append(self, group: list[_Waiting[T]], given: list[T]) -> TableVersion:
        """Commit a group as one file, its rows in the order in which they came, and return the version."""
        offline, table, writer = self._offline, self._table, self._writer
        writer.begin(given)
        parts = [added.rows for added in group]
        give_up_s = time.monotonic() + PATIENCE_SECONDS
        for tries in count(1):
            version = offline.current(table)
            rows = writer.gathered(given, parts, version)
            if rows is None:
                assert version is not None
                return version
            path = offline.write(table, rows)
            try:
                facts = writer.facts(given, version)
                base = None if version is None else version.number
                return offline.commit(table, group[0].schema, base=base, add=[path], facts=facts)
            except ConcurrentCommitError:
                if time.monotonic() >= give_up_s:
                    raise
            finally:
                path.unlink(missing_ok=True)
            # Writers that lost together would collide again: each waits for a random time, longer with each try.
            time.sleep(_jitter.uniform(0, min(RETRY_SECONDS * 2**tries, PAUSE_SECONDS)))
        raise AssertionError("tries do not end")

    def _merge(self) -> None:
        """Merge the small files of many commits, now that nobody waits for this one."""
        offline, table = self._offline, self._table
        try:
            version = offline.current(table)
            files = () if version is None else due(version.files, most_bytes=MERGED_BYTES, most_rows=MERGED_ROWS)
            if version is not None and files:
                merge_quietly(offline, version, files, partial(write_in_memory, offline, table))
        except OfflineStoreError as error:
            logger.warning("files of %s are not merged: %s", table, error)
        except Exception:  # the thread must go on in any case: callers wait for their commits
            logger.exception("files of %s are not merged", table)


def _rows(waiting: Sequence[_Waiting[Any]]) -> int:
    return sum(added.rows.num_rows for added in waiting)
