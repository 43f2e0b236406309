"""Committed rows of plain views that are not online: a push or a run ended in between, or the online store lost them.

A part's marker says what the last run published, and pushes come after it: only the records tell whether those arrived.
Views with windows have marks that say it (`following.lag`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from featurestore.consistency.belonging import compare_part
from featurestore.ledger.watermarks import Watermark
from featurestore.offline.interface import MAX_SEQUENCE, TableChanges, TableReader
from featurestore.offline.reading import opened
from featurestore.online.interface import OnlineReader
from featurestore.online.records.arrow import time_columns
from featurestore.online.records.codec import expire_at_ms, is_record, record_version, version_of
from featurestore.online.records.keys import KeyEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MOST_ROWS = 100_000
"""About so many of the newest rows are looked at where an answer has to come at once."""
SETTLE_SECONDS = 1.0
"""A push that is under way brings some row online within this time."""
_AT_ONCE = 1_000
"""How many keys one read of the store asks for."""


def waiting_rows(
    workspace: Readers, registered: RegisteredView, watermark: Watermark, *, most_rows: int = MOST_ROWS
) -> dict[bytes, bytes]:
    """Return the entities whose newest row is committed and not online: the key, and the version of the record.

    Rows that were pushed to the offline store only are among them. None are where the part itself says that it is
    behind or does not belong (`belonging.part_mismatch`). Looks at about ``most_rows`` of the newest rows. Raises
    OnlineStoreUnavailableError and OfflineStoreError.
    """
    part, version = compare_part(workspace, registered, watermark), workspace.offline.current(registered.table)
    if version is None or part.mismatch is not None or part.version == version.number:
        return {}
    changes = workspace.offline.changes(registered.table, part.version, version.number)
    return not_online(workspace.online, _newest(workspace.offline, registered, changes, workspace.clock(), most_rows))


def settled(online: OnlineReader, waiting: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """Return those that still wait when nobody is bringing them online any more."""
    before = 0
    while waiting and len(waiting) != before:
        before = len(waiting)
        time.sleep(SETTLE_SECONDS)
        waiting = not_online(online, waiting)
    return waiting


def in_words(view: str, count: int) -> str:
    """Return what to know about rows of a view that wait."""
    rows = "1 row is" if count == 1 else f"{count:,} rows are"
    return f"{view}: {rows} committed and not online. The next `fs materialize --view {view}` publishes them."


def not_online(online: OnlineReader, versions: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the keys whose record is missing, or older than its version; not those that hold something else."""
    keys, found = list(versions), dict[bytes, bytes]()
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        for key, record in zip(part, online.get(part), strict=True):
            if record is None or (is_record(record) and record_version(record) < versions[key]):
                found[key] = versions[key]
    return found


def _newest(
    offline: TableReader, registered: RegisteredView, changes: TableChanges, now_us: int, most_rows: int
) -> dict[bytes, bytes]:
    """Return the version of each entity's newest row among the changes, of those that count now."""
    encoder, found = KeyEncoder(registered.layout), dict[bytes, bytes]()
    for batch in _changed(offline, [name for name, _ in registered.layout.join_keys], changes):
        keys = encoder.encode_columns({name: batch.column(name) for name, _ in registered.layout.join_keys})
        times = time_columns(batch.column(EVENT), batch.column(CREATED))
        for key, *at in zip(keys, times.event_us.tolist(), times.created_us.tolist(), strict=True):
            expiry_ms = expire_at_ms(at[0], registered.layout.ttl_us)
            if max(at) <= now_us and (expiry_ms is None or expiry_ms > now_us // 1000):
                found[key] = max(found.get(key, b""), version_of(*at))
        most_rows -= batch.num_rows
        if most_rows <= 0:
            break
    return found


def _changed(offline: TableReader, names: Sequence[str], changes: TableChanges) -> Iterator[pa.RecordBatch]:
    """Yield keys and times of new rows, from the newest file on. Files that were merged hold old rows, too."""
    import pyarrow.compute as pc

    for file in sorted(changes.added, key=lambda file: file.max_sequence, reverse=True):
        with opened(offline, file) as parquet:
            groups = [
                place
                for place in range(parquet.num_row_groups)
                if _greatest_sequence(parquet.metadata.row_group(place)) >= changes.first_sequence
            ]
            for batch in parquet.iter_batches(row_groups=groups, columns=[*names, EVENT, CREATED, SEQUENCE]):
                yield batch.filter(pc.greater_equal(batch.column(SEQUENCE), changes.first_sequence))


def _greatest_sequence(group: pq.RowGroupMetaData) -> int:
    columns = (group.column(place) for place in range(group.num_columns))
    found = next((column.statistics for column in columns if column.path_in_schema == SEQUENCE), None)
    return found.max if found is not None and found.has_min_max else MAX_SEQUENCE
