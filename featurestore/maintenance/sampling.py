"""Comparing some entities online with the newest rows of the offline table."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from zlib import crc32

from featurestore.engine.interface import Log
from featurestore.following.rows import EventEncoder
from featurestore.offline.interface import TableVersion
from featurestore.online.interface import Write
from featurestore.online.records.codec import is_record, record_version
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.windowed import is_windowed, last_sequence
from featurestore.online.records.windows_read import WindowRecords
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.arrow import arrow_schema
from featurestore.windows.layout import layout_of
from featurestore.workspace import Readers

ENTITIES = 1_000
"""At most this many entities are compared."""
_SEED = 0x5EED
_BATCH_ROWS = 50_000
_AT_ONCE = 200
"""How many keys one read of the store asks for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the comparison found, in entities."""

    compared: int = 0
    missing: int = 0
    """Entities with an unexpired row in the table and nothing in the store."""
    older: int = 0
    different: int = 0
    """Both are of the same version but hold other values."""
    newer: int = 0
    """Entities with a newer record online than in the table: pushed online only, or lost by the table. Those that the
    table does not hold at all are never chosen."""


def compare_sample(workspace: Readers, registered: RegisteredView, version: TableVersion) -> Sample:
    """Compare up to `ENTITIES` entities, chosen by a seeded hash of their keys, with a published version's rows.

    Raises EngineError, DamagedFileError and OnlineStoreUnavailableError.
    """
    if registered.view.aggregations:
        return _compare_events(workspace, registered, version)
    encoder = RecordEncoder(registered.layout)
    now_us = workspace.clock()
    chosen = _chosen(workspace.engine.log, registered, version, encoder, now_us)
    live = {key: write for key, write in chosen.items() if not _is_expired(write, now_us)}
    keys = list(live)
    online: dict[bytes, bytes | None] = {}
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        online.update(zip(part, workspace.online.get(part), strict=True))
    states = [_state(encoder, live[key].record, online[key]) for key in keys]
    counts = {name: states.count(name) for name in ("missing", "older", "different", "newer")}
    return Sample(compared=len(keys), **counts)


def _compare_events(workspace: Readers, registered: RegisteredView, version: TableVersion) -> Sample:
    """Compare the values of windows now: those of the online records with those of records made from the log."""
    import pyarrow as pa

    view, log, now_us = registered.view, workspace.engine.log, workspace.clock()
    encoder, files = EventEncoder(registered), [file.path for file in version.files]
    batches = log.latest(view, files, until_us=now_us, batch_rows=_BATCH_ROWS)
    entities = [
        (crc32(key, _SEED), key, row)
        for batch in batches
        for key, row in zip(encoder.keys(batch), batch.select(list(view.join_keys)).to_pylist(), strict=True)
    ]
    chosen = [row for _, _, row in heapq.nsmallest(ENTITIES, entities, lambda item: item[:2])]
    if not chosen:
        return Sample()
    of = pa.Table.from_pylist(chosen, arrow_schema(view.join_keys))
    events = log.events(view, files, by_entity=True, of=of, batch_rows=_BATCH_ROWS)
    wanted = {placed.key: placed for placed in encoder.placed(events, version.next_sequence - 1, now_us)}
    live = [
        key for key, placed in wanted.items() if placed.expire_at_ms is None or placed.expire_at_ms > now_us // 1000
    ]
    layout, places = layout_of(view)
    reader = WindowRecords(registered.layout, layout, list(places.values()))
    states = []
    for start in range(0, len(live), _AT_ONCE):
        keys = live[start : start + _AT_ONCE]
        for key, record in zip(keys, workspace.online.get(keys), strict=True):
            states.append(_events_state(reader, key, wanted[key].record, record, now_us))
    counts = {name: states.count(name) for name in ("missing", "older", "different", "newer")}
    return Sample(compared=len(live), **counts)


def _events_state(reader: WindowRecords, key: bytes, wanted: bytes, found: bytes | None, now_us: int) -> str:
    if found is None or not is_windowed(found):
        return "missing"
    expected = reader.fresh([wanted], now_us)
    if repr(reader.fresh([found], now_us)) == repr(expected):  # NaN is equal to itself so
        return "equal"
    return "older" if last_sequence(found) < last_sequence(wanted) else "different"


def _chosen(
    log: Log, registered: RegisteredView, version: TableVersion, encoder: RecordEncoder, now_us: int
) -> Mapping[bytes, Write]:
    files = [file.path for file in version.files]
    batches = log.latest(registered.view, files, until_us=now_us, batch_rows=_BATCH_ROWS)
    writes = (write for batch in batches for write in encoder.encode_table(batch))
    return {write.key: write for write in heapq.nsmallest(ENTITIES, writes, lambda write: crc32(write.key, _SEED))}


def _is_expired(write: Write, now_us: int) -> bool:
    return write.expire_at_ms is not None and write.expire_at_ms <= now_us // 1000


def _state(encoder: RecordEncoder, expected: bytes, found: bytes | None) -> str:
    if found is None or not is_record(found):
        return "missing"
    wanted, stored = record_version(expected), record_version(found)
    if stored != wanted:
        return "newer" if stored > wanted else "older"
    # A record of an earlier schema is read by field name: its bytes differ for that reason alone.
    return "different" if encoder.is_own(found) and found != expected else "equal"
