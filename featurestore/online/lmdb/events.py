"""Windowed records in LMDB: events appended in one transaction with the marker, and the beginnings of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featurestore.online.interface import DAMAGED, FOREIGN, Append, Fold, Move, Placed, WriteResult
from featurestore.online.lmdb.values import ENVELOPE_BYTES, PLAIN, content, plain_checksum
from featurestore.online.records.codec import CRC_BYTES
from featurestore.online.records.windowed import HEADER, SCHEMA_AT, events_after, is_windowed

Transaction = Any
Stored = tuple[bytes, int | None]
"""The content of a value, and when it expires (UTC milliseconds, None: never)."""
Get = Callable[[Transaction, bytes], Stored | None]
Put = Callable[[Transaction, bytes, bytes, int | None], None]


class NotAppended(Exception):
    """Ends a transaction that must change nothing."""


def are_as_before(transaction: Transaction, moves: Sequence[Move]) -> bool:
    """Tell whether plain values are as they were."""
    return all(_plain(transaction, move.key) == move.before for move in moves)


def have_moved(transaction: Transaction, moves: Sequence[Move]) -> bool:
    """Tell whether plain values are what they become."""
    return all(_plain(transaction, move.key) == move.after for move in moves)


def move(transaction: Transaction, moves: Sequence[Move]) -> None:
    """Put plain values."""
    for key, _, after in moves:
        transaction.put(key, PLAIN + plain_checksum(key, after) + after)


def _plain(transaction: Transaction, key: bytes) -> bytes | None:
    found = transaction.get(key)
    if found is None:
        return None
    value = content(found)
    return value if found[: ENVELOPE_BYTES + CRC_BYTES] == PLAIN + plain_checksum(key, value) else DAMAGED


def append_all(transaction: Transaction, appends: Sequence[Append], get: Get, put: Put) -> list[int]:
    """Append events and return the sizes; raises NotAppended, with nothing put, for a record of another layout."""
    grown: dict[bytes, Stored] = {}
    sizes = [0] * len(appends)
    for place in sorted(range(len(appends)), key=[append.key for append in appends].__getitem__):  # page by page
        key, sequence, events, empty, expire_at_ms = appends[place]
        found = grown.get(key) or get(transaction, key)
        if found is None:
            grown[key], sizes[place] = (empty + events, expire_at_ms), len(events)
            continue
        record, expiry = found
        if not is_windowed(record):
            sizes[place] = FOREIGN
            continue
        if layout_of(record) != layout_of(empty):
            raise NotAppended
        _, end, base, _, _ = HEADER.unpack_from(record)
        if sequence <= base:
            events = events_after(events, base)
        if events:
            grown[key] = record + events, later(expiry, expire_at_ms)
            sizes[place] = len(record) - end + len(events)
    for key, (record, expiry) in grown.items():
        put(transaction, key, record, expiry)
    return sizes


def layout_of(record: bytes) -> bytes:
    """Return the id of a record's layout."""
    return record[SCHEMA_AT : SCHEMA_AT + 8]


def folded(transaction: Transaction, fold: Fold, get: Get, put: Put) -> bool:
    """Replace what a record begins with, if it still does."""
    found = get(transaction, fold.key)
    if found is None or not found[0].startswith(fold.old):
        return False
    record, expiry = found
    put(transaction, fold.key, fold.new + record[len(fold.old) :], later(expiry, fold.expire_at_ms))
    return True


def place_one(transaction: Transaction, placed: Placed, get: Get, put: Put, now_ms: int) -> WriteResult:
    """Set a record unless the store's is ahead."""
    found = get(transaction, placed.key)
    more, expiry = b"", placed.expire_at_ms
    if found is not None:
        record, end = found[0], len(placed.damaged)
        if not end or not record.startswith(placed.damaged):
            if not is_windowed(record):
                return WriteResult.WRONG_TYPE
            _, end, base, _, _ = HEADER.unpack_from(record)
            if base > placed.sequence:
                return WriteResult.STALE
        more = events_after(record, placed.sequence, end) if end < len(record) else b""
        if more and layout_of(record) != layout_of(placed.record):
            return WriteResult.STALE
        expiry = later(found[1], expiry) if more else expiry
    put(transaction, placed.key, placed.record + more, expiry)
    return WriteResult.EXPIRED if expiry is not None and expiry <= now_ms else WriteResult.WRITTEN


def later(one_ms: int | None, other_ms: int | None) -> int | None:
    """Return the later of two expiries; None is never."""
    return None if one_ms is None or other_ms is None else max(one_ms, other_ms)
