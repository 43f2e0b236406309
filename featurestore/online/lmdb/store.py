"""The embedded online store: one LMDB file, read by many processes while one writes.

An envelope around each value does what Redis does by itself: the instant of physical expiry, 8 bytes, UTC milliseconds,
big-endian with the sign bit flipped, and the same 8 bytes inverted; then the record, byte for byte as in every other
backend. An expiry of all ones means never; all ones but the last marks a plain value (a schema), with its CRC-32 in
front. LMDB does not check the bytes that it reads, so every value is checked against its checksum here.
"""

from __future__ import annotations

import operator
import os
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import lmdb
from typing_extensions import override

from featurestore.online.interface import AsyncReader, OnlineStore, Repair, Write, WriteResult, Writes
from featurestore.online.lmdb.environment import (
    DATA_FILE,
    at_work,
    inode_of,
    open_environment,
    pad_file,
    translated,
)
from featurestore.online.records.arrow import bytes_of
from featurestore.online.records.codec import CRC_BYTES, damaged, is_intact, is_record, parts, record_version
from featurestore.online.records.keys import check_prefix
from featurestore.types.times import Clock, system_clock

Transaction = Any
"""An lmdb.Transaction: its stubs say that values may be memoryviews, which they are only with buffers=True."""

MAP_BYTES = 64 << 30
SWEPT_KEY = b"\x00swept"

_ENVELOPE = struct.Struct(">QQ")
_ENVELOPE_BYTES = 16
_SIGN = 1 << 63
_ONES = (1 << 64) - 1
_RECORD = operator.itemgetter(slice(_ENVELOPE_BYTES, None))
_CHECKED = operator.itemgetter(slice(_ENVELOPE_BYTES, -CRC_BYTES))
_CHECKSUM = operator.itemgetter(slice(-CRC_BYTES, None))
_VERSION = operator.itemgetter(slice(_ENVELOPE_BYTES + 1, _ENVELOPE_BYTES + 17))
_NEVER = _ENVELOPE.pack(_ONES, 0)
_PLAIN = _ENVELOPE.pack(_ONES - 1, 1)
_IS_PLAIN = operator.methodcaller("startswith", _PLAIN)
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
        now = _stored_instant(self._clock() // 1000)
        if None not in values and _are_whole_and_live(keys, values, now):
            return list(map(_RECORD, values))
        return [None if value is None else _opened(key, value, now) for key, value in zip(keys, values, strict=True)]

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
                envelopes = _envelopes([repair.replacement and repair.replacement.expire_at_ms for repair in batch])
                done += map(partial(_repaired, transaction, now_us // 1000), batch, envelopes)
        self._sync()
        return done

    def put(self, key: bytes, value: bytes, *, if_absent: bool = False) -> None:
        """Set a plain value, with a checksum of its own."""
        with self._transaction(write=True) as transaction:
            transaction.put(key, _PLAIN + _plain_checksum(key, value) + value, overwrite=not if_absent)
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
            now = _stored_instant(self._clock() // 1000)
            if batch := [(key, _content(value)) for key, value in found if value[:8] > now]:
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
    now = _stored_instant(now_ms)
    keys = writes.keys
    values = list(map(operator.add, _envelopes(writes.expiries_ms), writes.records))
    places: Sequence[int] = range(len(keys))
    results: dict[int, WriteResult] = {}
    if apart := _one_by_one(keys, values, now):
        results = {place: _set_if_newer(transaction, keys[place], values[place], now) for place in apart}
        places = [place for place in places if place not in results]
        keys, values = [keys[place] for place in places], [values[place] for place in places]
    olds = list(map(transaction.cursor().replace, keys, values))
    for place, old in _not_older(olds, values):
        is_plain = old.startswith(_PLAIN)
        if is_plain or _is_live(keys[place], old, now):
            transaction.put(keys[place], old)
            results[places[place]] = WriteResult.WRONG_TYPE if is_plain else WriteResult.STALE
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
    if old is not None and old.startswith(_PLAIN):
        return WriteResult.WRONG_TYPE
    if old is not None and _VERSION(value) < _VERSION(old) and _is_live(key, old, now):
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
    are_newer = all(olds) and not any(map(operator.gt, map(_VERSION, olds), map(_VERSION, values)))
    # Only values that never expire sort as high as a plain value.
    if are_newer and (max(olds)[:1] != b"\xff" or not any(map(_IS_PLAIN, olds))):
        return []
    return [
        (place, old)
        for place, (old, value) in enumerate(zip(olds, values, strict=True))
        if old is not None and (_VERSION(old) > _VERSION(value) or old.startswith(_PLAIN))
    ]


def _is_live(key: bytes, value: bytes, now: bytes) -> bool:
    """Tell whether a stored record may keep out an older one: it is intact and has not expired."""
    return is_intact(key, value[_ENVELOPE_BYTES:]) and (value[:8] > now or not _is_expiry_whole(value))


def _repaired(transaction: Transaction, now_ms: int, repair: Repair, envelope: bytes) -> bool:
    old = transaction.get(repair.key)
    if old is None or old[:8] <= _stored_instant(now_ms):
        return False
    record = _content(old)
    if old.startswith(_PLAIN) or not is_record(record):
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
    now = _stored_instant(now_ms)
    cursor = transaction.cursor()
    if not cursor.set_range(max(after, b"\x01")):  # our own keys begin with a zero
        return 0, None
    seen = iter(cursor)
    expired = [key for key, value in islice(seen, limit) if value[:8] <= now and _is_expiry_whole(value)]
    following, _ = next(seen, (None, b""))
    for key in expired:
        transaction.delete(key)
    return len(expired), following


def _stored_instant(instant_ms: int) -> bytes:
    return (instant_ms + _SIGN).to_bytes(8)


def _envelopes(expiries_ms: Sequence[int | None]) -> list[bytes]:
    """Return the envelope of each record."""
    import numpy as np

    never_ms = _ONES - _SIGN
    instants = np.array([never_ms if expiry_ms is None else expiry_ms for expiry_ms in expiries_ms], dtype=np.int64)
    stored = instants.view(np.uint64) ^ np.uint64(_SIGN)
    return bytes_of(np.stack([stored, ~stored], axis=1).astype(">u8"))


def _is_expiry_whole(value: bytes) -> bool:
    """Tell whether the two copies of an expiry agree; the record's checksum does not cover them."""
    if len(value) < _ENVELOPE_BYTES:
        return False
    stored, inverted = _ENVELOPE.unpack_from(value)
    return bool(stored ^ inverted == _ONES)


def _plain_checksum(key: bytes, value: bytes) -> bytes:
    return crc32(value, crc32(_PLAIN, crc32(key))).to_bytes(CRC_BYTES)


def _content(value: bytes) -> bytes:
    return value[_ENVELOPE_BYTES + CRC_BYTES if value.startswith(_PLAIN) else _ENVELOPE_BYTES :]


def _are_whole_and_live(keys: Sequence[bytes], values: Sequence[bytes], now: bytes) -> bool:
    """Tell whether all values are records that match their checksums and have not expired."""
    found = list(map(crc32, map(_CHECKED, values), map(crc32, keys)))
    stored = b"".join(map(_CHECKSUM, values))
    if struct.pack(f">{len(found)}I", *found) != stored:
        return False
    return min(values, default=_NEVER)[:8] > now  # they sort by their expiry


def _opened(key: bytes, value: bytes, now: bytes) -> bytes | None:
    """Return a value's content, None if it has expired. Raises DamagedRecordError."""
    content = _content(value)
    if value.startswith(_PLAIN):
        is_whole = value[_ENVELOPE_BYTES : _ENVELOPE_BYTES + CRC_BYTES] == _plain_checksum(key, content)
    else:
        is_whole = is_intact(key, content)
    if not is_whole:
        raise damaged(key, "does not match its checksum")
    if value[:8] > now:
        return content
    if not _is_expiry_whole(value):
        raise damaged(key, "has a damaged instant of expiry")
    return None
