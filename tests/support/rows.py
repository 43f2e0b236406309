"""Rows put straight into the stores, as a materialization would leave them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.ledger.watermarks import merge, read_watermark, write_watermark
from featurestore.offline.interface import TableVersion
from featurestore.online.records.encoder import RecordEncoder
from featurestore.types.arrow import arrow_type
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT, to_instant
from featurestore.workspace import Workspace


def commit_rows(
    workspace: Workspace, view: str, rows: Iterable[Mapping[str, Any]], *, covers: Sequence[Any] | None = None
) -> TableVersion:
    """Commit rows of a view: mappings with its keys, features, ``event_ts`` and perhaps ``created_ts``.

    Their order is the order of arrival. ``covers`` is the committed interval, all of time without it.
    """
    registered = workspace.snapshot().views[view]
    before = workspace.offline.current(registered.table)
    first = 0 if before is None else before.next_sequence
    kinds = {**dict(registered.table_schema.join_keys), **dict(registered.table_schema.stored)}
    arrived = [{"created_ts": None, **row, "fs_seq": first + place} for place, row in enumerate(rows)]
    arrived.sort(
        key=lambda row: (instant(row["event_ts"]), instant(row["created_ts"] or row["event_ts"]), row["fs_seq"])
    )
    columns = {name: pa.array([row.get(name) for row in arrived], arrow_type(kind)) for name, kind in kinds.items()}
    times = pa.timestamp("us", tz="UTC")
    for name in ("event_ts", "created_ts"):
        columns[name] = pa.array([instant(row[name]) for row in arrived], pa.int64()).cast(times)
    columns["fs_seq"] = pa.array([row["fs_seq"] for row in arrived], pa.int64())
    columns["fs_origin"] = pa.array(["batch"] * len(arrived))
    path = workspace.offline.staging(registered.table) / f"rows{first}.parquet"
    keys = [name for name, _ in registered.table_schema.join_keys]
    order = [*keys, "event_ts", "created_ts", "fs_seq", "fs_origin", *dict(registered.table_schema.stored)]
    pq.write_table(pa.table({name: columns[name] for name in order}), path)
    version = workspace.offline.commit(
        registered.table, registered.table_schema, base=None if before is None else before.number, add=[path]
    )
    cover(workspace, view, *(covers or (MIN_INSTANT, MAX_INSTANT)))
    return version


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (instant(row["event_ts"]), instant(row["created_ts"] or row["event_ts"]), row["fs_seq"])


def cover(workspace: Workspace, view: str, start: Any, end: Any) -> None:
    """Note an interval as committed."""
    registered = workspace.snapshot().views[view]
    known = read_watermark(workspace.ledger, registered)
    interval = (to_instant(start), to_instant(end))
    write_watermark(workspace.ledger, registered, replace(known, intervals=merge([*known.intervals, interval])))


def publish(workspace: Workspace, view: str) -> None:
    """Put the newest row of each entity online."""
    registered = workspace.snapshot().views[view]
    encoder = RecordEncoder(registered.layout)
    version = workspace.offline.current(registered.table)
    assert version is not None
    now_us = workspace.clock()
    workspace.online.put(encoder.schema_key, encoder.schema_json)
    files = [file.path for file in version.files]
    for batch in workspace.engine.log.latest(registered.view, files, until_us=now_us, batch_rows=10_000):
        workspace.online.write(encoder.encode_table(batch), now_us=now_us)


def instant(value: datetime | str | int | None) -> int | None:
    return None if value is None else to_instant(value)
