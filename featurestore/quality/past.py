"""What the journal says of a view's rows: when they were committed, and when they were online."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from featurestore_registry.interface import JournalReader

from featurestore.ledger.journal import PAGE, PUBLISH, PUSHED_ONLINE, JournaledCommit, commits_of
from featurestore.offline.interface import OfflineReader
from featurestore.registered.records import understood_or_left
from featurestore.registered.snapshot import RegisteredView
from featurestore.served.hashing import NO_KEY, LogKey
from featurestore.types.times import MAX_INSTANT

PUSH, RELEASE, RUN = "push", "release", "run"
PUSH_US = 5_000_000
"""How long after its commit a pushed row may be on its way online."""
CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Arrival:
    """One commit that brought rows, and its way online. Instants are UTC microseconds."""

    first_sequence: int
    version: int
    committed_us: int | None
    """None where nothing says it."""
    origin: str | None
    started_us: int | None
    """When a publish of it began; None: never so far as is known. Pushed rows go online without one, too."""
    finished_us: int | None
    """When the first complete one was over."""

    @property
    def online_us(self) -> int:
        """From when on its rows can be expected online: pushed ones from their commit on; never: `MAX_INSTANT`."""
        if self.origin == PUSH and self.committed_us is not None:
            return self.committed_us
        return MAX_INSTANT if self.finished_us is None else self.finished_us


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A rebuild that withdrew rows."""

    at_us: int
    """When it was committed."""
    start_us: int
    """The span of event times in which it withdrew rows, without the end."""
    end_us: int
    version: int = 0
    """The commit: rows that left with it are in the version before."""
    started_us: int | None = None
    finished_us: int | None = None
    """As in `Arrival`."""

    @property
    def offline_us(self) -> int:
        """From when on its rows are expected online no more; never: `MAX_INSTANT`."""
        return MAX_INSTANT if self.finished_us is None else self.finished_us


class Past:
    """The history of one generation of a view, as far as the registry's journal has it."""

    def __init__(self, arrivals: Sequence[Arrival], withdrawals: Sequence[Withdrawn], pushed: _PushedOnline) -> None:
        self.arrivals = sorted(arrivals, key=lambda each: each.first_sequence)
        self.withdrawals = tuple(sorted(withdrawals, key=lambda each: each.version))
        self.pushed = pushed
        self._firsts = np.array([each.first_sequence for each in self.arrivals], np.int64)

    def arrival(self, sequence: int) -> Arrival | None:
        """Return what brought a row; None where the journal does not reach back so far."""
        place = int(self._firsts.searchsorted(sequence, side="right")) - 1
        return self.arrivals[place] if place >= 0 else None

    def since(self) -> list[tuple[int, int]]:
        """Return from when rows were online, for `Joins.chosen`."""
        return [(each.first_sequence, each.online_us) for each in self.arrivals]


@dataclass(frozen=True, slots=True)
class _Publish:
    after: int | None
    until: int
    started_us: int
    finished_us: int | None


class _PushedOnline:
    """Checksums of the records that were pushed online only, each with the first instant at which one was."""

    def __init__(self) -> None:
        self._since: dict[int, int] = {}
        self._by_key: dict[LogKey, dict[int, int]] = {}
        self.has_gaps_since_us: int | None = None
        """From when on records are missing, because too many waited."""

    def add(self, document: dict[str, Any]) -> None:
        """Take an entry of the journal."""
        first_us, content = int(document["first_us"]), b64decode(document["crcs"])
        for at in range(0, len(content), CRC_BYTES):
            self._since.setdefault(int.from_bytes(content[at : at + CRC_BYTES]), first_us)
        if document["dropped"]:
            known = self.has_gaps_since_us
            self.has_gaps_since_us = first_us if known is None else min(known, first_us)

    def had(self, crc: int, at_us: int, key: LogKey = NO_KEY) -> bool:
        """Tell whether a record of this checksum, as a log with this key has it, had been pushed by an instant.

        A moment counts for the writing.
        """
        if key not in self._by_key:
            self._by_key[key] = {key.checksum(each): since_us for each, since_us in self._since.items()}
        since_us = self._by_key[key].get(crc)
        return since_us is not None and since_us <= at_us + PUSH_US


def read_past(journal: JournalReader, offline: OfflineReader, registered: RegisteredView) -> Past:
    """Read the history of a view's generation. Raises as the registry."""
    if not journal.exists():
        return Past([], [], _PushedOnline())
    publishes = _publishes(journal, registered)
    arrivals, withdrawals = list[Arrival](), list[Withdrawn]()
    for commit in commits_of(journal, registered):
        if commit.withdrawn and commit.rebuilt is not None and commit.at_us is not None:
            times = _on_its_way(commit.version, publishes)
            withdrawals.append(Withdrawn(commit.at_us, *commit.rebuilt, commit.version, *times))
        if commit.first_sequence is not None and commit.origin != "merge":
            arrivals.append(_arrival(commit, publishes))
    pushed = _PushedOnline()
    for entry in _entries(journal, registered.project, PUSHED_ONLINE, registered.view.name):
        with understood_or_left(entry):
            if entry.document["generation"] == registered.generation:
                pushed.add(dict(entry.document))
    return Past(arrivals, withdrawals, pushed)


def _arrival(commit: JournaledCommit, publishes: Sequence[_Publish]) -> Arrival:
    assert commit.first_sequence is not None
    times = _on_its_way(commit.version, publishes)
    return Arrival(commit.first_sequence, commit.version, commit.at_us, commit.origin, *times)


def _on_its_way(version: int, publishes: Sequence[_Publish]) -> tuple[int | None, int | None]:
    """Return when the first publish of a commit began, and when the first complete one was over."""
    covering = [each for each in publishes if each.until >= version]
    done = [each for each in covering if each.finished_us is not None]
    first = min(done, key=lambda each: each.finished_us or 0, default=None)
    started_us = min((each.started_us for each in covering), default=None)
    return started_us, None if first is None else first.finished_us


def _publishes(journal: JournalReader, registered: RegisteredView) -> list[_Publish]:
    begun: dict[str, _Publish] = {}
    for entry in _entries(journal, registered.project, PUBLISH, registered.ledger_key):
        with understood_or_left(entry):
            told = entry.document
            finished = int(told["finished_us"]) if told.get("complete") else None
            after = None if told["from"] is None else int(told["from"]["version"])
            until = int(told["to"]["version"])
            known = begun.get(str(told["publish"]))
            finished = known.finished_us if finished is None and known is not None else finished
            begun[str(told["publish"])] = _Publish(after, until, int(told["started_us"]), finished)
    return list(begun.values())


def _entries(journal: JournalReader, project: str, kind: str, key: str) -> Iterator[Any]:
    after = 0
    while page := journal.scan(project, kind, key=key, after=after, limit=PAGE):
        yield from page
        after = page[-1].cursor
