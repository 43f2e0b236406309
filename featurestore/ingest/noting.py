"""What pushes leave for the registry's journal. A thread of its own writes it, now and then: no push waits for it."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from weakref import WeakSet

from featurestore_registry.forks import ForkLock
from featurestore_registry.records import Document

from featurestore.errors import FeatureStoreError
from featurestore.ledger.journal import PUSHED_ONLINE, append_in_passing, catch_up_quietly
from featurestore.offline.interface import TableId
from featurestore.online.records.codec import CRC_BYTES
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")

FIRST_SECONDS, PAUSE_SECONDS, LONGEST_SECONDS = 1.0, 10.0, 300.0
"""How long after a push its entry is written, how long until the next one, and how long while the registry is away."""
NAME = "journal of pushes"
CLOSE_SECONDS = 2.0
"""At most so long a process that closes waits for the last entry."""
MOST_WAITING, PER_ENTRY = 200_000, 20_000
"""At most so many records wait to be noted; so many are an entry."""


@dataclass(slots=True)
class _Written:
    """The records of one view that were written online only since the last look."""

    first_us: int
    last_us: int
    crcs: bytearray = field(default_factory=bytearray)
    dropped: int = 0


class PushNotes:
    """What one process's pushes still have to tell the journal."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = ForkLock()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._is_given_up = False
        self._thread: threading.Thread | None = None
        self._committed = set[TableId]()
        self._online: dict[TableId, _Written] = {}
        self._entries: list[tuple[str, Document]] = []
        """What `_online` was at earlier looks. They keep their ids, as an append that failed may be in the journal."""
        self._room = MOST_WAITING
        """How many records more may wait."""

    def committed(self, table: TableId) -> None:
        """Note that there are commits: the table's log says which."""
        with self._noting():
            self._committed.add(table)

    def pushed_online(self, table: TableId, records: list[bytes]) -> None:
        """Note records that were written online only, by their checksums; those of too many are only counted."""
        if not records:
            return
        now_us = self._workspace.clock()
        with self._noting():
            written = self._online.setdefault(table, _Written(now_us, now_us))
            taken = records[: self._room]
            self._room -= len(taken)
            written.crcs += b"".join(record[-CRC_BYTES:] for record in taken)
            written.last_us = now_us
            written.dropped += len(records) - len(taken)

    def close(self) -> None:
        """Write what waits, for a moment at most; what is not written then is lost, but for commits."""
        self._stop.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(CLOSE_SECONDS)
            self._is_given_up = True

    @contextmanager
    def _noting(self) -> Iterator[None]:
        with self._lock:
            if self._pid != os.getpid():  # what a parent has to tell is not the child's
                self._begin()
            yield
            if self._thread is None and not self._stop.is_set():
                thread = threading.Thread(target=self._run, name=NAME, daemon=True)
                with suppress(RuntimeError):  # the interpreter ends, or there are too many: the next push tries again
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        wait_s = PAUSE_SECONDS
        self._stop.wait(FIRST_SECONDS)
        while True:
            is_last = self._stop.is_set()
            wait_s = PAUSE_SECONDS if self._write() else min(2 * wait_s, LONGEST_SECONDS)
            if not is_last:
                self._stop.wait(wait_s)
            with self._lock:
                if is_last or not (self._committed or self._online or self._entries):
                    self._thread = None
                    return

    def _write(self) -> bool:
        """Write what waits; where that cannot be done it waits on. Returns whether it was done."""
        is_done = False
        with self._lock:
            committed, self._committed = self._committed, set()
            self._entries += [each for table, written in self._online.items() for each in _entries(table, written)]
            self._online = {}
        try:
            with self._opened() as workspace:
                append_in_passing(workspace.registry.journal, workspace.project, PUSHED_ONLINE, self._entries)
                self._forget_entries()
                is_done = not committed or catch_up_quietly(workspace, sorted(committed, key=str))
        except FeatureStoreError as error:
            logger.debug("what was pushed online only is not in the journal yet: %s", error)
        except Exception:
            logger.exception("pushes are not in the journal")
            self._forget_entries()
            is_done = True  # another try would end alike
        with self._lock:
            self._committed |= set() if is_done else committed
        return is_done

    @contextmanager
    def _opened(self) -> Iterator[Workspace]:
        """Give the workspace as it is: one that closes meanwhile would open its registry again, and nobody close it."""
        self._workspace.open("registry", "offline")
        workspace = copy(self._workspace)
        try:
            yield workspace
        finally:
            if self._is_given_up:
                workspace.registry.close()

    def _forget_entries(self) -> None:
        if dropped := sum(document["dropped"] for _, document in self._entries):
            logger.warning("%d records pushed online only are not in the journal: too many waited", dropped)
        with self._lock:
            self._room += sum(document["rows"] for _, document in self._entries)
            self._entries = []


def _entries(table: TableId, written: _Written) -> Iterator[tuple[str, Document]]:
    size, dropped = PER_ENTRY * CRC_BYTES, written.dropped
    span = {"generation": table.generation, "first_us": written.first_us, "last_us": written.last_us}
    for at in range(0, max(1, len(written.crcs)), size):
        part = bytes(written.crcs[at : at + size])
        told = {"rows": len(part) // CRC_BYTES, "dropped": dropped, "crcs": b64encode(part).decode()}
        yield table.view, {"id": secrets.token_hex(8), **span, **told}
        dropped = 0


_all = WeakSet[PushNotes]()


def notes_of(workspace: Workspace) -> PushNotes:
    """Return where this workspace's pushes leave their notes."""
    with workspace.lock:
        found: PushNotes | None = workspace.closed_before.get(NAME)
        if found is None:
            found = workspace.closed_before[NAME] = PushNotes(workspace)
            _all.add(found)
    return found


@atexit.register
def _close_all() -> None:
    for notes in list(_all):
        notes.close()
