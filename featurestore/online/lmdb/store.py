"""The embedded online store: one LMDB file, read by many processes while one writes.

An envelope around each value does what Redis does by itself: the instant of physical expiry, 8 bytes, UTC milliseconds,
big-endian with the sign bit flipped, and the same 8 bytes inverted; then the record, byte for byte as in every other
backend. An expiry of all ones means never; all ones but the last marks a plain value (a schema), with its CRC-32 in
front. LMDB does not check the bytes that it reads, so every value is checked against its checksum here.
"""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import lmdb
from typing_extensions import override

from featurestore.online.interface import (
    Advanced,
    Append,
    AsyncReader,
    Fold,
    OnlineStore,
    Placed,
    Repair,
    Slice,
    Write,
    WriteResult,
    Writes,
)
from featurestore.online.lmdb.environment import (
    DATA_FILE,
    at_work,
    inode_of,
    open_environment,
    pad_file,
    translated,
)
from featurestore.online.lmdb.events import NotAppended, append_all, are_as_before, folded, have_moved, move, place_one
from featurestore.online.lmdb.values import (
    ENVELOPE_BYTES,
    IS_PLAIN,
    NEVER,
    PLAIN,
    RECORD,
    SIGN,
    VERSION,
    are_whole_and_live,
    content,
    envelope,
    envelopes,
    is_expiry_whole,
    is_plain_or_other,
    opened_value,
    plain_checksum,
    stored_instant,
)
from featurestore.online.records.codec import is_record, parts, record_version
from featurestore.online.records.keys import check_prefix
from featurestore.online.records.whole import is_intact
from featurestore.online.records.windowed import is_windowed
from featurestore.types.times import Clock, system_clock

Transaction = Any
"""An lmdb.Transaction: its stubs say that values may be memoryviews, which they are only with buffers=True."""

MAP_BYTES = 64 << 30
SWEPT_KEY = b"\x00swept"
AHEAD_MS = 7 * 86_400_000
"""Windowed records are swept so long after they expired: a clock that is ahead for a moment must remove none that
events still feed, since pushes and runs would not bring them back."""

_RECHECK_SECONDS = 1.0

# 16,000 records of usual size take about 30 ms to compare and put: another writer waits no longer.
_BATCH_RECORDS = 16_000
_BATCH_BYTES = 8 << 20
_SCAN_RECORDS = 1_000
_SWEEP_RECORDS = 2_000


class LmdbStore(OnlineStore):
    """An `OnlineStore` in a folder, created by the first write: until then it reads as empty.

    Opened on first use, in the process that uses it: after a fork the child opens its own. A running process notices
    a replaced folder within a second.
    """

    def __init__(self, path: Path | str, *, clock: Clock = system_clock, map_bytes: int = MAP_BYTES) -> None:
        self._path = Path(path).absolute()
        self._clock = clock
        self._map_bytes = map_bytes
        self._environment: lmdb.Environment | None = None
        self._pid = self._inode = 0
        self._checked_at = 0.0

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's record or plain value from one snapshot, checked. Raises DamagedRecordError."""
        # No context manager here: two of them would cost more than the lookup of a key.
        try:
            environment = self._open()
            if environment is None:
                return [None] * len(keys)
            with at_work, environment.begin() as transaction:
                values: list[Any] = list(map(transaction.get, keys))
        except lmdb.Error:
            with self._transaction() as transaction:
                values = list(map(transaction.get, keys))
        now = stored_instant(self._clock() // 1000)
        if None not in values and are_whole_and_live(keys, values, now):
            return list(map(RECORD, values))
        return [
            None if value is None else opened_value(key, value, now) for key, value in zip(keys, values, strict=True)
        ]

    def write(self, writes: Sequence[Write], *, now_us: int) -> list[WriteResult]:
        """Compare and set in transactions of bounded length; durable when it returns. Sweeps some expired records."""
        if not writes:
            return []
        results = [WriteResult.WRITTEN] * len(writes)
        now_ms = now_us // 1000
        columns = Writes.of(writes)
        # In key order each page of the tree changes in only one transaction. The sort is stable, for duplicates.
        order = sorted(range(len(writes)), key=columns.keys.__getitem__)
        columns = columns.at(order)
        for part in parts(columns.records, _BATCH_RECORDS, _BATCH_BYTES):
            with self._transaction(write=True) as transaction:
                for place, result in _set_newest(transaction, columns[part], now_ms).items():
                    results[order[part.start + place]] = result
                _sweep(transaction, now_ms, min(_SWEEP_RECORDS, 2 * (part.stop - part.start) + 100))
        self._sync()
        return results

    def repair(self, repairs: Sequence[Repair], *, now_us: int) -> list[bool]:
        """Replace or delete records that still have exactly the given version."""
        done: list[bool] = []
        for start in range(0, len(repairs), _SCAN_RECORDS):
            with self._transaction(write=True) as transaction:
                batch = repairs[start : start + _SCAN_RECORDS]
                made = envelopes([repair.replacement and repair.replacement.expire_at_ms for repair in batch])
                done += map(partial(_repaired, transaction, now_us // 1000), batch, made)
        self._sync()
        return done

    keeps_events = True
    records_at_once = _BATCH_RECORDS
    events_at_once = 20_000  # readers wait for nobody, and each slice is synced

    @override
    def advance(self, slices: Sequence[Slice[Append]]) -> list[tuple[Advanced, list[int]]]:
        done: list[tuple[Advanced, list[int]]] = []
        with self._transaction(write=True) as transaction:
            for moves, appends in slices:
                if not are_as_before(transaction, moves):
                    done.append((Advanced.MOVED, []))
                    continue
                try:
                    sizes = append_all(transaction, appends, _kept, _put_record)
                except NotAppended:
                    done.append((Advanced.OTHER_LAYOUT, []))
                    continue
                move(transaction, moves)
                done.append((Advanced.DONE, sizes))
        self._sync()
        return done

    @override
    def fold(self, folds: Sequence[Fold]) -> list[bool]:
        with self._transaction(write=True) as transaction:
            done = [folded(transaction, fold, _kept, _put_record) for fold in folds]
        self._sync()
        return done

    @override
    def place(self, slices: Sequence[Slice[Placed]]) -> list[tuple[Advanced, list[WriteResult]]]:
        now_ms, done = self._clock() // 1000, list[tuple[Advanced, list[WriteResult]]]()
        with self._transaction(write=True) as transaction:
            for moves, placed in slices:
                if not (are_as_before(transaction, moves) or have_moved(transaction, moves)):
                    done.append((Advanced.MOVED, []))
                    continue
                results = [place_one(transaction, each, _kept, _put_record, now_ms) for each in placed]
                move(transaction, moves)
                done.append((Advanced.DONE, results))
            placed_count = sum(len(placed) for _, placed in slices)
            _sweep(transaction, now_ms, min(_SWEEP_RECORDS, 2 * placed_count + 100))
        self._sync()
        return done

    def put(self, key: bytes, value: bytes, *, if_absent: bool = False) -> None:
        """Set a plain value, with a checksum of its own."""
        with self._transaction(write=True) as transaction:
            transaction.put(key, PLAIN + plain_checksum(key, value) + value, overwrite=not if_absent)
        self._sync()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return plain values, checked, from one snapshot."""
        return self.mget(keys)

    def scan(self, prefix: bytes) -> Iterator[Sequence[tuple[bytes, bytes]]]:
        """Yield live pairs in key order, each batch from a snapshot of its own; records are not checked here."""
        check_prefix(prefix)
        after: bytes | None = None
        while not self.is_untouched():
            with self._transaction() as transaction:
                found = _slice(transaction, prefix, after, _SCAN_RECORDS)
            if not found:
                return
            after = found[-1][0]
            now = stored_instant(self._clock() // 1000)
            if batch := [(key, content(value)) for key, value in found if value[:8] > now]:
                yield batch

    def delete(self, prefix: bytes) -> int:
        """Delete every key under an exact prefix, expired ones too; the next call resumes a killed one."""
        check_prefix(prefix)
        deleted = 0
        while True:
            with self._transaction(write=True) as transaction:
                found = _slice(transaction, prefix, None, _SCAN_RECORDS)
                for key, _ in found:
                    transaction.delete(key)
            deleted += len(found)
            if not found:
                self._sync()
                return deleted

    @override
    def sweep(self, *, now_us: int) -> int:
        swept = 0
        after: bytes | None = None if self.is_untouched() else b""
        while after is not None:
            with self._transaction(write=True) as transaction:
                count, after = _sweep_slice(transaction, after, now_us // 1000, _SCAN_RECORDS)
            swept += count
        if not self.is_untouched():
            self._sync()
        return swept

    def facts(self) -> Mapping[str, str]:
        """Return the library's version, the file's path and size, the map's size, entries and readers."""
        found = {"server": "lmdb " + ".".join(map(str, lmdb.version())), "path": str(self._path)}
        if self.is_untouched():
            return found
        with self._transaction() as transaction:
            entries = transaction.stat()["entries"]
        environment = self._opened()
        with at_work:
            info = environment.info()
        return {
            **found,
            "file_bytes": str((self._path / DATA_FILE).stat().st_size),
            "map_bytes": str(info["map_size"]),
            "entries": str(entries),
            "readers": str(info["num_readers"]),
            "max_readers": str(info["max_readers"]),
        }

    def is_untouched(self) -> bool:
        """Tell whether there is no file yet; False for an unreadable place, where opening will report what is wrong."""
        try:
            (self._path / DATA_FILE).stat()
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def reader(self) -> AsyncReader:
        """Return a reader that calls the store directly: a lookup takes microseconds, a thread hop more."""
        return _DirectReader(self)

    def close(self) -> None:
        """Release the environment; it closes with its last user in this process."""
        with at_work:
            self._environment = None

    def _sync(self) -> None:
        """Make the commits of a call durable, and clear the slots of readers that died."""
        with translated(self._path):
            environment = self._opened()
            with at_work:
                environment.sync(True)
                environment.reader_check()

    @contextmanager
    def _transaction(self, *, write: bool = False) -> Iterator[Transaction]:
        with translated(self._path):
            environment = self._opened()
            with at_work:
                try:
                    transaction = environment.begin(write=write)
                except lmdb.ReadersFullError:
                    environment.reader_check()
                    transaction = environment.begin(write=write)
                with transaction:
                    yield transaction
                if write:
                    pad_file(self._path, environment)

    def _opened(self) -> lmdb.Environment:
        """Return the environment; makes a missing one."""
        environment = self._open(create=True)
        assert environment is not None
        return environment

    def _open(self, *, create: bool = False) -> lmdb.Environment | None:
        """Return the environment; None for a missing one, unless ``create``."""
        now = time.monotonic()
        environment = self._environment  # another thread may close the store in the meantime
        if environment is not None and self._pid == os.getpid():
            if now - self._checked_at < _RECHECK_SECONDS:
                return environment
            if inode_of(self._path) == self._inode:
                self._checked_at = now
                return environment
        # A replaced file can only be opened after nobody in this process has the old one; continuing with the old one
        # would read stale records and lose writes.
        environment = None
        with at_work:
            self._environment = None
        if not create and self.is_untouched():  # a mistyped path must not look like a store
            return None
        self._environment = environment = open_environment(self._path, self._map_bytes)
        self._pid, self._inode, self._checked_at = os.getpid(), inode_of(self._path), now
        return environment


class _DirectReader(AsyncReader):
    def __init__(self, store: LmdbStore) -> None:
        self._store = store

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._store.mget(keys)

    async def check(self) -> None:
        self._store.mget([])

    async def close(self) -> None:
        self._store.close()


def _set_newest(transaction: Transaction, writes: Writes, now_ms: int) -> dict[int, WriteResult]:
    """Compare and set writes that are in key order; return by place the outcome of those that were not written.

    Nearly every record is newer than the one it replaces, so it is put first: the put returns the old value for half
    the price of a read before it. An old value that is newer is put back in the same transaction.
    """
    now = stored_instant(now_ms)
    keys = writes.keys
    values = list(map(operator.add, envelopes(writes.expiries_ms), writes.records))
    places: Sequence[int] = range(len(keys))
    results: dict[int, WriteResult] = {}
    if apart := _one_by_one(keys, values, now):
        results = {place: _set_if_newer(transaction, keys[place], values[place], now) for place in apart}
        places = [place for place in places if place not in results]
        keys, values = [keys[place] for place in places], [values[place] for place in places]
    olds = list(map(transaction.cursor().replace, keys, values))
    for place, old in _not_older(olds, values):
        is_other = is_plain_or_other(old)
        if is_other or _is_live(keys[place], old, now):
            transaction.put(keys[place], old)
            results[places[place]] = WriteResult.WRONG_TYPE if is_other else WriteResult.STALE
    return {place: result for place, result in results.items() if result is not WriteResult.WRITTEN}


def _one_by_one(keys: Sequence[bytes], values: Sequence[bytes], now: bytes) -> Sequence[int]:
    """Return the places of writes that have expired already, or that share their key with others."""
    if not any(map(operator.eq, keys, islice(keys, 1, None))) and min(values)[:8] > now:
        return ()
    twins = {key for key, following in pairwise(keys) if key == following}
    return [place for place, key in enumerate(keys) if values[place][:8] <= now or key in twins]


def _set_if_newer(transaction: Transaction, key: bytes, value: bytes, now: bytes) -> WriteResult:
    """Compare and set one value."""
    old = transaction.get(key)
    if old is not None and is_plain_or_other(old):
        return WriteResult.WRONG_TYPE
    if old is not None and VERSION(value) < VERSION(old) and _is_live(key, old, now):
        return WriteResult.STALE
    if value[:8] > now:
        transaction.put(key, value)
        return WriteResult.WRITTEN
    if old is not None:
        transaction.delete(key)
    return WriteResult.EXPIRED


def _not_older(olds: Sequence[Any], values: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Return old values, with their places, that were not records or were newer; None stands for no old value."""
    if not any(olds):
        return []
    are_newer = all(olds) and not any(map(operator.gt, map(VERSION, olds), map(VERSION, values)))
    # Only values that never expire sort as high as a plain value.
    if are_newer and (max(olds)[:1] != b"\xff" or not any(map(IS_PLAIN, olds))):
        return []
    return [
        (place, old)
        for place, (old, value) in enumerate(zip(olds, values, strict=True))
        if old is not None and (VERSION(old) > VERSION(value) or old.startswith(PLAIN))
    ]


def _is_live(key: bytes, value: bytes, now: bytes) -> bool:
    """Tell whether a stored record may keep out an older one: it is intact and has not expired."""
    return is_intact(key, value[ENVELOPE_BYTES:]) and (value[:8] > now or not is_expiry_whole(value))


def _kept(transaction: Transaction, key: bytes) -> tuple[bytes, int | None] | None:
    """Return a value's content and expiry, also of one that has expired: the clock may be ahead.

    A damaged expiry is as good as none: the next one is later.
    """
    found = transaction.get(key)
    if found is None:
        return None
    if found.startswith(NEVER) or found.startswith(PLAIN):
        return content(found), None
    return content(found), int.from_bytes(found[:8]) - SIGN if is_expiry_whole(found) else 0


def _put_record(transaction: Transaction, key: bytes, record: bytes, expire_at_ms: int | None) -> None:
    transaction.put(key, envelope(expire_at_ms) + record)


def _repaired(transaction: Transaction, now_ms: int, repair: Repair, envelope: bytes) -> bool:
    old = transaction.get(repair.key)
    if old is None or old[:8] <= stored_instant(now_ms):
        return False
    record = content(old)
    if old.startswith(PLAIN) or not is_record(record):
        return False
    if record_version(record) != repair.version:
        return False
    new = repair.replacement
    if new is None or (new.expire_at_ms is not None and new.expire_at_ms <= now_ms):
        transaction.delete(repair.key)
    else:
        transaction.put(repair.key, envelope + new.record)
    return True


def _slice(transaction: Transaction, prefix: bytes, after: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
    """Return up to ``limit`` pairs under a prefix, after the key ``after``; fewer if values are large."""
    cursor = transaction.cursor()
    found: list[tuple[bytes, bytes]] = []
    size = 0
    if cursor.set_range(after or prefix):
        for key, value in cursor:
            if not key.startswith(prefix) or len(found) == limit or size > _BATCH_BYTES:
                break
            if key != after:
                found.append((key, value))
                size += len(value)
    return found


def _sweep(transaction: Transaction, now_ms: int, limit: int) -> None:
    """Delete the expired ones of the next ``limit`` records; each publish continues where the last one stopped."""
    _, following = _sweep_slice(transaction, transaction.get(SWEPT_KEY, b""), now_ms, limit)
    transaction.put(SWEPT_KEY, following or b"\x01")


def _sweep_slice(transaction: Transaction, after: bytes, now_ms: int, limit: int) -> tuple[int, bytes | None]:
    """Return how many of the ``limit`` records from ``after`` on were expired and deleted, and where to go on."""
    now, before = stored_instant(now_ms), stored_instant(now_ms - AHEAD_MS)
    cursor = transaction.cursor()
    if not cursor.set_range(max(after, b"\x01")):  # our own keys begin with a zero
        return 0, None
    seen = iter(cursor)
    found = [(key, value) for key, value in islice(seen, limit) if value[:8] <= now and is_expiry_whole(value)]
    expired = [key for key, value in found if value[:8] <= before or not is_windowed(value[ENVELOPE_BYTES:])]
    following, _ = next(seen, (None, b""))
    for key in expired:
        transaction.delete(key)
    return len(expired), following
