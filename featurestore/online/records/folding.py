"""Newest events of many records put into their tiles at once: what `windowed.folded` makes of each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from featurestore.online.records.bulk import Events, build
from featurestore.online.records.codec import CRC_BYTES, damaged
from featurestore.online.records.windowed import (
    MOST_UNSETTLED,
    decode,
    encode,
    event_shape,
    folded,
    head_of,
    is_intact,
)
from featurestore.online.records.windows_values import hash_of
from featurestore.windows.layout import Layout

if TYPE_CHECKING:
    import numpy.typing as npt

    Entries = npt.NDArray[Any]

FEW_EVENTS = 150
"""For fewer events arrays are slower than loops."""


class _Fold(NamedTuple):
    """One record: its settled events, the bytes of the others, and its greatest number."""

    place: int
    settled: Entries
    waiting: bytes
    last: int


def folded_at_once(
    layout: Layout, records: Sequence[tuple[bytes, bytes]], now_us: int, *, settled_us: int, least: int = 0
) -> list[bytes | None]:
    """Return what `folded` makes of each pair of key and record. Raises DamagedRecordError."""
    shape, found, folds = _shape_of(layout), list[bytes | None](), list[_Fold]()
    is_large = shape is not None and sum(map(_waiting_bytes, records)) >= FEW_EVENTS * shape.itemsize
    for place, (key, record) in enumerate(records):
        entries = _entries(shape, record) if shape is not None and is_large else None
        if entries is None:
            found.append(folded(key, layout, record, now_us, hashed=hash_of, settled_us=settled_us, least=least))
            continue
        found.append(None)
        _check(key, record, entries)
        until_us = now_us - (settled_us if len(entries) <= MOST_UNSETTLED else 0)
        is_settled = np.maximum(entries["event_us"], entries["known_us"]) <= until_us
        if is_settled.sum() >= max(least, 1):
            last = max(head_of(record).base_sequence, int(entries["number"].max()))
            folds.append(_Fold(place, entries[is_settled], entries[~is_settled].tobytes(), last))
    if folds:
        keys = [records[fold.place][0] for fold in folds]
        made = build(layout, keys, _events(layout, [fold.settled for fold in folds]), 0, now_us)
        for fold, key, new in zip(folds, keys, made, strict=True):
            tiles = decode(key, layout, records[fold.place][1])
            tiles.merge(decode(key, layout, new))
            tiles.base_sequence = fold.last
            tiles.expire(now_us)
            found[fold.place] = encode(key, tiles) + fold.waiting
    return found


@lru_cache(maxsize=64)
def _shape_of(layout: Layout) -> np.dtype[Any] | None:
    """Return an entry of an event without nulls; None where there are texts."""
    codes, marks, whole = event_shape(layout)
    if whole is None:
        return None
    fields = [("length", "<u2"), ("number", "<i8"), ("event_us", "<i8"), ("known_us", "<i8"), ("marks", "u1", (marks,))]
    values = [(f"v{place}", "<f8" if code == "d" else "<i8") for place, code in enumerate(codes)]
    return np.dtype([*fields, *values, ("checksum", ">u4")])


def _waiting_bytes(pair: tuple[bytes, bytes]) -> int:
    return len(pair[1]) - head_of(pair[1]).tiles_end


def _entries(shape: np.dtype[Any], record: bytes) -> Entries | None:
    """Return the newest events of a record if all are of one shape."""
    begin = head_of(record).tiles_end
    if begin >= len(record) or (len(record) - begin) % shape.itemsize:
        return None
    entries = np.frombuffer(record, shape, offset=begin)
    return entries if (entries["length"] == shape.itemsize).all() else None


def _check(key: bytes, record: bytes, entries: Entries) -> None:
    """Raise DamagedRecordError where a checksum is not that of its bytes."""
    begin, size, of_key = head_of(record).tiles_end, entries.dtype.itemsize, crc32(key)
    sums = [crc32(record[at : at + size - CRC_BYTES], of_key) for at in range(begin, len(record), size)]
    if not is_intact(key, record[:begin]) or (entries["checksum"] != sums).any():
        raise damaged(key, "does not match its checksums")


def _events(layout: Layout, parts: Sequence[Entries]) -> Events:
    """Return the events of some records as columns, in their order."""
    entries = np.concatenate(parts)
    entity = np.repeat(np.arange(len(parts)), list(map(len, parts)))
    order = np.lexsort((entries["number"], entries["known_us"], entries["event_us"], entity))
    entries, entity = entries[order], entity[order]
    codes, _, _ = event_shape(layout)
    is_given = np.ones(len(entries), np.bool_)
    event_us = np.ascontiguousarray(entries["event_us"])
    values = [(np.ascontiguousarray(entries[f"v{place}"]), is_given) for place in range(len(codes))]
    if layout.event_time:
        values.append((event_us, is_given))
    bits = np.unpackbits(entries["marks"], axis=1, bitorder="little").astype(np.bool_)
    conditions = [bits[:, len(codes) + place] for place in range(len(layout.conditions))]
    known_us, number = (np.ascontiguousarray(entries[name]) for name in ("known_us", "number"))
    return Events(entity, event_us, known_us, number, values, conditions)
