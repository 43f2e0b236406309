"""The online store: the newest record of each (project, view, entity), as bytes.

A store knows keys and records, not features: keys, codec, ttl and status are shared code without I/O in `records`.
`featurestore.testing` holds the suite that every store passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import repeat
from typing import Generic, NamedTuple, TypeVar, overload

from featurestore_registry.documents import WrittenDocument

from featurestore.types import ValueType


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """The layout of one generation of a view in the online store; publisher and readers share it."""

    project: str
    view: str
    generation: int
    join_keys: tuple[tuple[str, ValueType], ...]
    """Sorted by name: the order of the values in a key."""
    fields: tuple[tuple[str, ValueType], ...]
    """The fields of a record, in its order."""
    ttl_us: int | None
    has_created: bool = False
    """Whether the source declares a created time; if so, a row counts from the later of its two times on."""
    has_buckets: bool = False
    """Whether keys begin with a bucket (`keys.BUCKETS`): those of windowed records do."""


class Write(NamedTuple):
    """One record on its way into the store."""

    key: bytes
    record: bytes
    expire_at_ms: int | None
    """Instant of physical expiry, UTC milliseconds, or None for never."""


class Writes(Sequence[Write]):
    """Writes as columns: a publish makes millions, and single objects would keep Python's garbage collector busy."""

    def __init__(self, keys: list[bytes], records: list[bytes], expiries_ms: list[int | None]) -> None:
        self.keys = keys
        self.records = records
        self.expiries_ms = expiries_ms

    @classmethod
    def of(cls, writes: Sequence[Write]) -> Writes:
        """Return any writes as columns."""
        return writes if isinstance(writes, Writes) else cls(*map(list, zip(*writes, strict=True)))

    def extend(self, more: Writes) -> None:
        """Append other writes."""
        self.keys += more.keys
        self.records += more.records
        self.expiries_ms += more.expiries_ms

    def at(self, places: Sequence[int]) -> Writes:
        """Return the writes at some places, in their order."""
        return Writes(
            list(map(self.keys.__getitem__, places)),
            list(map(self.records.__getitem__, places)),
            list(map(self.expiries_ms.__getitem__, places)),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Write]:
        columns = zip(self.keys, self.records, self.expiries_ms, strict=True)
        return map(tuple.__new__, repeat(Write), columns)

    @overload
    def __getitem__(self, place: int) -> Write: ...
    @overload
    def __getitem__(self, place: slice) -> Writes: ...
    def __getitem__(self, place: int | slice) -> Write | Writes:
        if isinstance(place, slice):
            return Writes(self.keys[place], self.records[place], self.expiries_ms[place])
        return Write(self.keys[place], self.records[place], self.expiries_ms[place])


@dataclass(frozen=True, slots=True)
class Repair:
    """Replace exactly one version of a record by another one, or delete it."""

    key: bytes
    version: bytes
    """The `codec.record_version` of the record to replace."""
    replacement: Write | None


class Append(NamedTuple):
    """Events of one entity on their way to the newest events of its windowed record."""

    key: bytes
    sequence: int
    """The ``fs_seq`` of the first: a record that has taken an event does not take it again."""
    events: bytes
    """In the order of ``fs_seq``, one after the other as `windowed.encode_event` makes them."""
    record: bytes
    """The record without events, for an entity that has none."""
    expire_at_ms: int | None
    """As in `Write`, by the newest of them; an expiry is only ever moved to later."""


class Fold(NamedTuple):
    """Replace what a windowed record begins with; what was appended since stays."""

    key: bytes
    old: bytes
    """The bytes that it must begin with."""
    new: bytes
    expire_at_ms: int | None


class Placed(NamedTuple):
    """A windowed record made of the log up to a number; newer events that the store's record has stay beside it."""

    key: bytes
    record: bytes
    sequence: int
    """Every event with this ``fs_seq`` or a smaller one is in it."""
    expire_at_ms: int | None
    damaged: bytes = b""
    """What a damaged record was found to be: if the store's still begins with it, nothing that these bytes say counts;
    events that were appended behind them do."""


DAMAGED = b""
"""Stands for a plain value that is damaged."""


class Move(NamedTuple):
    """A plain value that goes from one state to another."""

    key: bytes
    before: bytes | None
    """None: it is missing; `DAMAGED`: reading it raises DamagedRecordError."""
    after: bytes


Kept = TypeVar("Kept")


class Slice(NamedTuple, Generic[Kept]):
    """Events or records of one bucket, and the plain values that move with them: all or nothing.

    All keys have one hash tag, because a cluster keeps only such keys together. Slices of one call have different ones.
    """

    moves: Sequence[Move]
    items: Sequence[Kept]


class Advanced(IntEnum):
    """The outcome of a slice."""

    DONE = 0
    MOVED = 1
    """A plain value is not as it was; nothing was written."""
    OTHER_LAYOUT = 2
    """A record has another layout; nothing was written."""


FOREIGN = -1
"""What `OnlineStore.advance` returns instead of a size for a key that holds something else."""


class WriteResult(IntEnum):
    """The outcome of one write."""

    WRITTEN = 0
    STALE = 1
    """The store holds a newer record, which stayed."""
    EXPIRED = 2
    """Not written, because its physical expiry is past; an older record of the key was removed."""
    WRONG_TYPE = 3
    """The key holds something that is not a record; it was left alone."""


@dataclass(frozen=True, slots=True)
class OnlineCounts(WrittenDocument):
    """The counts of one view's rows in the online store."""


class AsyncReader(ABC):
    """A server's read path: one connection pool per process and event loop."""

    deadline_seconds: float | None = None
    """How long a read may wait, if requests share round trips. None if they do not: an embedded store never waits, and
    in a cluster one node that is down would fail the requests for all others."""

    @abstractmethod
    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the record of each key, in order, None for a missing one.

        Bound by the read deadline; no retry. Cancelling a call never affects another's answer. Raises
        OnlineStoreUnavailableError.
        """

    @abstractmethod
    async def check(self) -> None:
        """Return when the store answers; raises OnlineStoreUnavailableError otherwise."""

    @abstractmethod
    async def close(self) -> None:
        """Release connections; calling it twice is allowed."""


class OnlineReader(ABC):
    """What an online store holds. Raises as `OnlineStore`.

    Besides records there are plain values, schemas and markers: they never expire, and are few.
    """

    marker_tags: Sequence[bytes] = (b"0",)
    """Hash tags that spread the copies of a marker over the store's nodes, so that each node holds at least one."""
    mark_buckets: Sequence[bytes] = (b"00",)
    """The buckets of windowed records (`keys.BUCKETS`) that have marks of their own: all of them where one can lose
    writes and another not; otherwise the first, whose mark is that of all records."""

    @abstractmethod
    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the record of each key, in order, None for a missing one. Bound by the read deadline."""

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, in order, None for a missing one. Waits as long as a write, unlike `mget`."""

    @abstractmethod
    def scan(self, prefix: bytes) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """Yield batches of (key, value) under an exact prefix; each live key at least once, in any order."""

    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """Return facts for `fs doctor` (server, version, memory policy, size); raises when the store is down."""

    def is_untouched(self) -> bool:
        """Tell whether nothing was ever written here, if that is cheap to know: the URL may be mistyped."""
        return False

    @abstractmethod
    def reader(self) -> AsyncReader:
        """Return an asynchronous reader; call it inside the event loop that will use it."""


class OnlineStore(OnlineReader):
    """One online store. Safe to call from several threads; opened after a fork, never before.

    Driver errors never leave it: OnlineStoreUnavailableError (down, hung), OnlineStoreFullError (no room),
    DamagedRecordError (a file that is not a store of ours).
    """

    write_deadline_seconds: float | None = None
    """How long a write may wait for an answer; None: an embedded store never waits."""

    @abstractmethod
    def write(self, writes: Sequence[Write], *, now_us: int) -> list[WriteResult]:
        """Compare and set: for each key the record with the greatest version stays; an equal one replaces it.

        Atomic per key, inside the store; applies duplicated keys of one call in order. Retries within the publishing
        deadline, which compare-and-set makes safe. As durable as the store is.
        """

    @abstractmethod
    def put(self, key: bytes, value: bytes, *, if_absent: bool = False) -> None:
        """Set a value; with ``if_absent`` only where the key holds nothing."""

    @abstractmethod
    def repair(self, repairs: Sequence[Repair], *, now_us: int) -> list[bool]:
        """Replace or delete each record that still has exactly the given version; returns which had."""

    @abstractmethod
    def delete(self, prefix: bytes) -> int:
        """Delete every key under an exact prefix, in batches, resumable; return how many there were."""

    keeps_events: bool = False
    """Whether `advance`, `fold` and `place` work: they keep windowed records.

    None of them removes a record because the caller's clock says that it has expired: one that is ahead for a moment
    would take events that everybody else still reads. A record goes by the store's own clock.
    """
    records_at_once: int = 1_000
    """How many records `place` takes well, of all buckets together."""
    events_at_once: int = 250
    """How many events `advance` takes well: more would hold up other clients."""

    def advance(self, slices: Sequence[Slice[Append]]) -> list[tuple[Advanced, list[int]]]:
        """Append events and move marks, slice by slice.

        Returns for each slice its outcome, and for each of its items how many bytes of newest events the record has
        then; 0 where it had taken all of them before, `FOREIGN` where the key holds something that is no windowed
        record: it is left alone, and the others are appended all the same.
        """
        raise NotImplementedError

    def fold(self, folds: Sequence[Fold]) -> list[bool]:
        """Replace the beginnings of records that still have them; returns which had."""
        raise NotImplementedError

    def place(self, slices: Sequence[Slice[Placed]]) -> list[tuple[Advanced, list[WriteResult]]]:
        """Set records and move tokens, slice by slice; each record unless the store's has taken a later event (STALE).

        Newest events of the store's record that come after ``sequence`` are appended to the new one; those of another
        layout cannot be (STALE, too). EXPIRED: it has expired already. WRONG_TYPE as in `write`, also
        for a record of another format. A slice whose values have moved already is placed again.
        """
        raise NotImplementedError

    def check_writable(self, prefix: bytes) -> None:
        """Raise what a write under a prefix would raise, if that is cheap to find out. Changes nothing."""

    def sweep(self, *, now_us: int) -> int:
        """Delete the records past their physical expiry, and return how many; 0 of a store that does so by itself.

        Windowed records stay for a while longer: the clock may be ahead.
        """
        return 0

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""


READ_ONLY = "replica: only reads"
"""The ``role`` among the facts of a store that takes no writes."""

UNTOUCHED = "nothing was ever written there"
"""The message about a store that `OnlineStore.is_untouched`."""


def eviction_of(facts: Mapping[str, str]) -> str | None:
    """Return a warning about a store that evicts records when its memory runs out; None if it never does."""
    policy = facts.get("maxmemory_policy", "noeviction")
    return None if policy == "noeviction" else f"maxmemory-policy is {policy}: evicted entities read as NOT_FOUND"
