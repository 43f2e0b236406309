"""Small Parquet sources, and views over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.duck.engine import DuckEngine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import Span, StagedRows, StageRequest
from featurestore.types import Float64, Int64, ValueType
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

ALWAYS = Span(MIN_INSTANT, MAX_INSTANT)


def view_of(
    path: str = "data.parquet",
    *,
    keys: Mapping[str, ValueType] | None = None,
    features: Mapping[str, ValueType] | None = None,
    created: str | None = None,
    sql: str | None = None,
) -> FeatureView:
    """Return a view over the source ``flights``, event time in ``at``; by default key ``k`` and feature ``v``."""
    return FeatureView(
        "profile",
        entities=[Entity("thing", join_keys=dict(keys or {"k": Int64}))],
        source=ParquetSource("flights", path, "at", created),
        schema=[Field(name, kind) for name, kind in (features or {"v": Float64}).items()],
        sql=sql,
    )


def instants(*values: int | None, unit: str = "us", zone: str | None = "UTC") -> pa.Array:
    """Return timestamps of a unit, as counted since 1970."""
    return pa.array(values, pa.timestamp(unit, tz=zone))


def table_of(**columns: Any) -> pa.Table:
    """Return a table with key ``k``, time ``at`` and value ``v`` unless given: as many rows as the first column."""
    rows = len(next(iter(columns.values()))) if columns else 3
    made = {"k": pa.array(range(rows), pa.int64()), "at": instants(*range(rows)), "v": pa.array([1.5] * rows)}
    return pa.table({**made, **columns})


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    """Write a table, creating folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def stage(
    root: Path,
    view: FeatureView,
    *,
    log: Sequence[Path] = (),
    now_us: int = MAX_INSTANT,
    spans: Sequence[Span] = (ALWAYS,),
    first_sequence: int = 0,
    settings: EngineSettings | None = None,
) -> StagedRows:
    """Stage a view's rows into ``root/staging``."""
    folder = root / "staging"
    folder.mkdir(exist_ok=True)
    request = StageRequest(view, tuple(spans), now_us, tuple(map(str, log)), first_sequence, folder)
    return DuckEngine(root, settings).stage(request)


def staged_rows(root: Path, view: FeatureView, **options: Any) -> list[dict[str, Any]]:
    """Stage and return what was written, in the file's order."""
    staged = stage(root, view, **options)
    return [] if staged.path is None else pq.ParquetFile(staged.path).read().to_pylist()
