"""Offline tables written by hand, as Parquet files, from the rows that the plain-loop reference takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.training.reference import ReferenceRow
from featurestore.types import ValueType
from featurestore.types.arrow import arrow_type

INSTANT = pa.timestamp("us", tz="UTC")


def make_view(
    name: str, keys: Mapping[str, ValueType], features: Mapping[str, ValueType], ttl_us: int | None = None
) -> FeatureView:
    """Return a view whose source is never read."""
    return FeatureView(
        name,
        entities=[Entity(f"{name}_entity", join_keys=dict(keys))],
        source=ParquetSource(
            f"{name}_source", path="unread.parquet", timestamp_field="at", created_timestamp_field="known_at"
        ),
        schema=[Field(feature, kind) for feature, kind in features.items()],
        ttl=None if ttl_us is None else timedelta(microseconds=ttl_us),
    )


def instants(values: Iterable[int | None]) -> pa.Array:
    """Return UTC microseconds as a column of instants."""
    return pa.array(list(values), pa.int64()).cast(INSTANT)


def write_log(
    path: Path,
    view: FeatureView,
    rows: Sequence[ReferenceRow],
    *,
    types: Mapping[str, pa.DataType] | None = None,
    without: Iterable[str] = (),
    row_group_size: int | None = None,
) -> str:
    """Write rows as they come into one file; ``types`` narrows features, ``without`` leaves some out."""
    columns: dict[str, Any] = {
        key: pa.array([row.keys[place] for row in rows], arrow_type(kind))
        for place, (key, kind) in enumerate(view.join_keys.items())
    }
    columns["event_ts"] = instants(row.event_us for row in rows)
    columns["created_ts"] = instants(row.created_us for row in rows)
    columns["fs_seq"] = pa.array([row.sequence for row in rows], pa.int64())
    columns["fs_origin"] = pa.array(["batch"] * len(rows), pa.string())
    for field in view.features:
        if field.name not in without:
            kind = (types or {}).get(field.name, arrow_type(field.type))
            columns[field.name] = pa.array([row.values.get(field.name) for row in rows], kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return str(path)
