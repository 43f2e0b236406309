"""The online store: the newest record of each (project, view, entity), as bytes.

A store knows keys and records, not features: keys, codec, ttl and status are shared code without I/O in
`keys`, `codec` and `reading`. `featurestore.testing` holds the suite that every store passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import repeat
from typing import NamedTuple, overload

from featurestore.types import ValueType


@dataclass(frozen=True, slots=True)
class ViewLayout:
    """How one generation of a view lies in the online store; publisher and readers share it."""

    project: str
    view: str
    generation: int
    join_keys: tuple[tuple[str, ValueType], ...]
    """Sorted by name: the order of the values in a key."""
    fields: tuple[tuple[str, ValueType], ...]
    """What a record holds, in its order."""
    ttl_us: int | None
    has_created: bool = False
    """Whether the source declares a created time: then a row counts from the later of its two times on."""


class Write(NamedTuple):
    """One record on its way into the store."""

    key: bytes
    record: bytes
    expire_at_ms: int | None
    """Instant of physical expiry, UTC milliseconds, or None for never."""


class Writes(Sequence[Write]):
    """Writes as columns: a publish makes millions, and objects of their own would keep Python's collector busy."""

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
    """Replace exactly one version of a record, by another one or by nothing."""

    key: bytes
    version: bytes
    """The `codec.record_version` of the record that goes."""
    replacement: Write | None


class WriteResult(IntEnum):
    """What became of one write."""

    WRITTEN = 0
    STALE = 1
    """A newer record is there, and stayed."""
    EXPIRED = 2
    """Its physical expiry is past: not written, and an older record of the key was removed."""
    WRONG_TYPE = 3
    """The key holds something that is no record; it was left alone."""


@dataclass(frozen=True, slots=True)
class OnlineCounts:
    """The counts of one view's rows in the online store."""

    # In the order of `WriteResult`: results are counted in that order.
    written: int = 0
    stale: int = 0
    """The store held a newer record, which stayed."""
    expired: int = 0
    """Not written, because past their ttl and its grace."""
    wrong_type: int = 0
    """The key held something that is not a record; it was left alone."""


class AsyncReader(ABC):
    """The read path of a server: one connection pool per process and event loop."""

    deadline_seconds: float | None = None
    """How long a read may wait, where requests are to share round trips. None where they are not: in this process
    nothing is waited for, and in a cluster a node that is away would fail the requests of all others."""

    @abstractmethod
    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the record of each key, in order, None where there is none.

        Bound by the read deadline; no retry. Cancelling a call never affects another's answer. Raises
        OnlineStoreUnavailableError.
        """

    @abstractmethod
    async def check(self) -> None:
        """Return when the store answers; raises OnlineStoreUnavailableError otherwise."""

    @abstractmethod
    async def close(self) -> None:
        """Release connections; calling it twice is allowed."""


class PlainValues(ABC):
    """What lies beside the records of an online store: schemas and markers. Without expiry, never many."""

    marker_tags: Sequence[bytes] = (b"0",)
    """Hash tags that spread the copies of a marker over the store's nodes, so that each node holds one at least."""

    @abstractmethod
    def put(self, key: bytes, value: bytes, *, if_absent: bool = False) -> None:
        """Set a value; with ``if_absent`` only where the key holds nothing."""

    @abstractmethod
    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, in order, None where there is none. As patient as a write, unlike `mget`."""


class OnlineStore(PlainValues):
    """One online store. Safe to call from several threads; opened after a fork, never before.

    Driver errors never leave it: OnlineStoreUnavailableError (down, hung), OnlineStoreFullError (no room),
    DamagedRecordError (a file that is not a store of ours).
    """

    @abstractmethod
    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the record of each key, in order, None where there is none. Bound by the read deadline."""

    @abstractmethod
    def write(self, writes: Sequence[Write], *, now_us: int) -> list[WriteResult]:
        """Compare and set: per key the record of the greatest version stays, an equal one replaces.

        Atomic per key, inside the store; duplicated keys in one call are taken in order. Retried within the
        publishing deadline, which compare-and-set makes safe. Durable as far as the store is.
        """

    @abstractmethod
    def repair(self, repairs: Sequence[Repair], *, now_us: int) -> list[bool]:
        """Replace or delete each record that still is of exactly the given version; tell which were."""

    @abstractmethod
    def scan(self, prefix: bytes) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """Yield batches of (key, value) under an exact prefix; each live key at least once, in any order."""

    @abstractmethod
    def delete(self, prefix: bytes) -> int:
        """Delete every key under an exact prefix, in batches, resumable; return how many there were."""

    def check_writable(self, prefix: bytes) -> None:
        """Raise what a write under a prefix would raise, where that is cheap to find out. Changes nothing."""

    @abstractmethod
    def facts(self) -> Mapping[str, str]:
        """Return what a doctor wants to know (server, version, memory policy, size); raises when it is down."""

    def is_untouched(self) -> bool:
        """Tell whether nothing was ever written here, where that is cheap to know: the place may be mistyped."""
        return False

    @abstractmethod
    def reader(self) -> AsyncReader:
        """Return an asynchronous reader; call it inside the event loop that will use it."""

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""


READ_ONLY = "replica: only reads"
"""The ``role`` among the facts of a store that takes no writes."""

UNTOUCHED = "nothing was ever written there"
"""What to say of a store that `OnlineStore.is_untouched`."""


def eviction_of(facts: Mapping[str, str]) -> str | None:
    """Return what to say of a store that forgets records when its memory runs out; None where it never does."""
    policy = facts.get("maxmemory_policy", "noeviction")
    return None if policy == "noeviction" else f"maxmemory-policy is {policy}: evicted entities read as NOT_FOUND"
