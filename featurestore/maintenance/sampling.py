"""Comparing some entities online with the newest rows of the offline table."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from featurestore.engine.interface import Log
from featurestore.following.rows import EventEncoder
from featurestore.maintenance.sampling_windows import WindowComparison
from featurestore.offline.interface import TableVersion
from featurestore.online.interface import Write
from featurestore.online.records.codec import is_record, record_version
from featurestore.online.records.encoder import RecordEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.workspace import Readers

ENTITIES = 1_000
"""At most this many entities are compared."""
_SEED = 0x5EED
_BATCH_ROWS = 50_000
MOST_NAMED = 3
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
    named: tuple[str, ...] = ()
    """Some entities with windows that differ, each with what does."""


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
    return Sample(len(keys), *_counts(states))


def _compare_events(workspace: Readers, registered: RegisteredView, version: TableVersion) -> Sample:
    """Compare the records of some entities with windows with records made from the log."""
    view, log = registered.view, workspace.engine.log
    encoder, files = EventEncoder(registered), [file.path for file in version.files]
    batches = log.latest(view, files, until_us=workspace.clock(), batch_rows=_BATCH_ROWS)
    entities = (
        (crc32(key, _SEED), key, row)
        for batch in batches
        for key, row in zip(encoder.keys(batch), batch.select(list(view.join_keys)).to_pylist(), strict=True)
    )
    chosen = [row for _, _, row in heapq.nsmallest(ENTITIES, entities, key=lambda item: item[:2])]
    comparison, states, named = WindowComparison(workspace, registered, version), list[str](), list[str]()
    for start in range(0, len(chosen), _AT_ONCE):
        for state, what in comparison.compare(chosen[start : start + _AT_ONCE]):
            states.append(state)
            named += [what] * (state not in ("equal", "newer"))
    return Sample(len(states), *_counts(states), named=tuple(named[:MOST_NAMED]))


def _counts(states: Sequence[str]) -> tuple[int, int, int, int]:
    missing, older, different, newer = map(states.count, ("missing", "older", "different", "newer"))
    return missing, older, different, newer


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
