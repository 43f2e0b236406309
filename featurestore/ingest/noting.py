"""What pushes leave for the registry's journal. A thread of its own writes it, now and then: no push waits for it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy as np
from featurestore_registry.forks import ForkLock

from featurestore.errors import FeatureStoreError
from featurestore.ledger.journal import PUSHED_ONLINE, catch_up_quietly, is_kept
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
    """The records of one view that were written online only and are not in the journal yet."""

    first_us: int
    last_us: int
    crcs: bytearray = field(default_factory=bytearray)
    dropped: int = 0


class PushNotes:
    """What one process's pushes still have to tell the journal."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._lock = ForkLock()
        self._committed = set[TableId]()
        self._online: dict[TableId, _Written] = {}
        self._sent: list[_Written] = []
        """What is being written just now."""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._pid = os.getpid()

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
            waiting = sum(len(each.crcs) for each in (*self._online.values(), *self._sent)) // CRC_BYTES
            written = self._online.setdefault(table, _Written(now_us, now_us))
            taken = records[: max(0, MOST_WAITING - waiting)]
            written.crcs += b"".join(record[-CRC_BYTES:] for record in taken)
            written.last_us = now_us
            written.dropped += len(records) - len(taken)

    def close(self) -> None:
        """Write what waits, for a moment at most; what is not written then is lost, but for commits."""
        self._stop.set()
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(CLOSE_SECONDS)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        with self._lock:
            if self._pid != os.getpid():  # what a parent has to tell is not the child's
                self._committed, self._online, self._sent, self._thread = set(), {}, [], None
                self._pid, self._stop = os.getpid(), threading.Event()
            yield
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
                with suppress(RuntimeError):  # the interpreter ends
                    self._thread.start()

    def _run(self) -> None:
        wait_s = PAUSE_SECONDS
        self._stop.wait(FIRST_SECONDS)
        while True:
            is_last = self._stop.is_set()
            wait_s = PAUSE_SECONDS if self._write() else min(2 * wait_s, LONGEST_SECONDS)
            if not is_last:
                self._stop.wait(wait_s)
            with self._lock:
                if is_last or not (self._committed or self._online):
                    self._thread = None
                    return

    def _write(self) -> bool:
        """Write what waits; where that cannot be done it waits on. Returns whether it was done."""
        with self._lock:
            online, committed = dict(self._online), set(self._committed)
            self._sent = list(online.values())
            self._online.clear()
            self._committed.clear()
        try:
            journal = self._workspace.registry.journal
            if online and is_kept(journal):
                entries = [each for table, written in online.items() for each in _entries(table, written)]
                journal.append(self._workspace.project, PUSHED_ONLINE, entries)
                if dropped := sum(written.dropped for written in online.values()):
                    logger.warning("%d records pushed online only are not in the journal: too many waited", dropped)
            online.clear()
            is_done = not committed or catch_up_quietly(self._workspace, sorted(committed, key=str))
        except FeatureStoreError as error:
            logger.debug("what was pushed online only is not in the journal yet: %s", error)
            is_done = False
        except Exception:
            logger.exception("pushes are not in the journal")
            online.clear()
            is_done = True  # another try would end alike
        with self._lock:
            self._sent = []
            self._committed |= set() if is_done else committed
            for table, written in online.items():
                later = self._online.setdefault(table, written)
                if later is not written:
                    later.first_us, later.crcs = written.first_us, written.crcs + later.crcs
                    later.dropped += written.dropped
        return is_done


def _entries(table: TableId, written: _Written) -> list[tuple[str, Mapping[str, Any]]]:
    size, dropped = PER_ENTRY * CRC_BYTES, written.dropped
    span = {"generation": table.generation, "first_us": written.first_us, "last_us": written.last_us}
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for at in range(0, max(1, len(written.crcs)), size):
        part = bytes(written.crcs[at : at + size])
        told = {"rows": len(part) // CRC_BYTES, "dropped": dropped, "crcs": b64encode(part).decode()}
        entries.append((table.view, {**span, **told}))
        dropped = 0
    return entries


def crcs_in(document: Mapping[str, Any]) -> set[int]:
    """Return the checksums of the records in an entry, as each record ends with its own."""
    return set(np.frombuffer(b64decode(document["crcs"]), ">u4").tolist())


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
