"""Newest events on their way into tiles, when they are settled: a record has few of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from featurestore.errors import DamagedRecordError
from featurestore.following.rows import SETTLED_US, EventEncoder
from featurestore.online.interface import Fold, OnlineStore, Placed
from featurestore.online.records.folding import folded_at_once
from featurestore.online.records.windowed import EVENT, MOST_WAITING, head_of, is_windowed, readable_entries
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")

_waiting: WeakKeyDictionary[OnlineStore, dict[bytes, dict[bytes, int]]] = WeakKeyDictionary()
"""By namespace the keys of records with many newest events that this process could not fold yet, and from when on it
can: their entities may never get another event."""


def fold_records(workspace: Workspace, encoder: EventEncoder, keys: Sequence[bytes]) -> int:
    """Put settled newest events of some records into their tiles; return how many records were changed.

    A record that changes meanwhile is left for the next time, and a damaged one for the next publish.
    """
    now_us, waiting = workspace.clock(), _waiting_of(workspace.online, encoder)
    for key in keys:
        waiting.pop(key, None)
    found = [
        (key, record)
        for key, record in zip(keys, _readable(workspace.online, keys), strict=True)
        if record is not None and is_windowed(record) and head_of(record).schema_id == encoder.layout.id
    ]
    folds = []
    for (key, record), new in zip(found, _folded(encoder, found, now_us), strict=True):
        if new is not None:
            folds.append(Fold(key, record, new, encoder.expire_at_ms(head_of(new).newest_us)))
        due_us = _due_us(record if new is None else new)
        if due_us is not None:
            waiting[key] = due_us
    return sum(workspace.online.fold(folds)) if folds else 0


def _folded(encoder: EventEncoder, records: Sequence[tuple[bytes, bytes]], now_us: int) -> list[bytes | None]:
    """Return what each record becomes, None where it stays as it is."""
    try:
        return folded_at_once(encoder.layout, records, now_us, settled_us=SETTLED_US, least=MOST_WAITING // 2)
    except DamagedRecordError as error:
        if len(records) > 1:
            return [new for record in records for new in _folded(encoder, [record], now_us)]
        logger.warning("no events go into tiles: %s", error)
        return [None]


def _readable(online: OnlineStore, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return the record of each key, None also for one that the store finds damaged."""
    try:
        return online.get(keys)
    except DamagedRecordError as error:
        if len(keys) > 1:
            return [record for key in keys for record in _readable(online, [key])]
        logger.warning("no events go into tiles: %s", error)
        return [None]


def fold_later(online: OnlineStore, encoder: EventEncoder, placed: Sequence[Placed]) -> None:
    """Note the records among those just made that have many newest events."""
    waiting = _waiting_of(online, encoder)
    for each in placed:
        if len(each.record) > head_of(each.record).tiles_end and (due_us := _due_us(each.record)) is not None:
            waiting[each.key] = due_us


def due_heads(workspace: Workspace, encoder: EventEncoder) -> dict[bytes, int]:
    """Return the keys of records whose newest events this process left, and which can go into tiles by now."""
    now_us = workspace.clock()
    return {key: 0 for key, due_us in list(_waiting_of(workspace.online, encoder).items()) if due_us <= now_us}


def _waiting_of(online: OnlineStore, encoder: EventEncoder) -> dict[bytes, int]:
    return _waiting.setdefault(online, {}).setdefault(encoder.namespace, {})


def _due_us(record: bytes) -> int | None:
    """Return when all newest events of a record can go into tiles; None if they are few."""
    times = [EVENT.unpack_from(entry)[2:4] for entry in readable_entries(record)]
    return max(map(max, times)) + SETTLED_US if len(times) > MOST_WAITING else None
