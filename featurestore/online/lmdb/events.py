"""Windowed records in LMDB: events appended in one transaction with the marker, and the beginnings of records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from featurestore.online.interface import Append, Fold, Placed, WriteResult
from featurestore.online.records.windowed import FORMAT, SCHEMA_AT, events_after, head_of, is_windowed

Transaction = Any
Stored = tuple[bytes, int | None]
"""The content of a live value, and when it expires (UTC milliseconds, None: never)."""
Get = Callable[[Transaction, bytes], Stored | None]
Put = Callable[[Transaction, bytes, bytes, int | None], None]


class NotAppended(Exception):
    """Ends a transaction that must change nothing."""


def append_all(transaction: Transaction, appends: Sequence[Append], get: Get, put: Put, now_ms: int) -> list[int]:
    """Append events; raises NotAppended for a record of another layout."""
    records: dict[bytes, Stored] = {}
    sizes = []
    for append in appends:
        found = records.get(append.key) or get(transaction, append.key)
        record, expiry = (append.record, append.expire_at_ms) if found is None else found
        if record[:1] != bytes([FORMAT]) or layout_of(record) != layout_of(append.record):
            raise NotAppended
        is_over = found is None and expiry is not None and expiry <= now_ms  # every window has left it behind
        if is_over or append.sequence <= head_of(record).base_sequence:
            sizes.append(0)
            continue
        record += append.event
        records[append.key] = record, later(expiry, append.expire_at_ms)
        sizes.append(len(record) - head_of(record).tiles_end)
    for key, (record, expiry) in records.items():
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
        if not is_windowed(found[0]):
            return WriteResult.WRONG_TYPE
        if head_of(found[0]).base_sequence > placed.sequence:
            return WriteResult.STALE
        more = events_after(found[0], placed.sequence)
        if more and layout_of(found[0]) != layout_of(placed.record):
            return WriteResult.STALE
        expiry = later(found[1], expiry) if more else expiry
    if expiry is not None and expiry <= now_ms:
        if found is not None:
            transaction.delete(placed.key)
        return WriteResult.EXPIRED
    put(transaction, placed.key, placed.record + more, expiry)
    return WriteResult.WRITTEN


def later(one_ms: int | None, other_ms: int | None) -> int | None:
    """Return the later of two expiries; None is never."""
    return None if one_ms is None or other_ms is None else max(one_ms, other_ms)
