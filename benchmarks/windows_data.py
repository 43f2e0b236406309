"""The events, entity rows and views of the benchmarks of windows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.context import Context
from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Float64, Int64, String

DAY_US = 86_400_000_000
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00Z
SPAN_DAYS = 90
EVENTS = 10_000_000
USER = Entity("user", join_keys={"user_id": Int64})
LONG = [timedelta(hours=1), timedelta(days=1), timedelta(days=30)]
FUNCTIONS = ("sum", "count", "mean", "max")
STEPS_US = {"1h": 300_000_000, "1d": 3_600_000_000, "30d": DAY_US}
"""The resolution of each of the long windows."""
LENGTHS_US = {"1h": 3_600_000_000, "1d": DAY_US, "30d": 30 * DAY_US}


def aggregations(windows: Sequence[timedelta], functions: Sequence[str] = FUNCTIONS) -> list[Aggregation]:
    """Return the functions that are measured, over some windows."""
    return [Aggregation("amount", name, windows=list(windows)) for name in functions]


def events_view(
    *,
    windows: Sequence[timedelta] = LONG,
    pushed: bool = False,
    path: str = "none.parquet",
    created: str | None = "created_ts",
    functions: Sequence[str] = FUNCTIONS,
) -> FeatureView:
    source = ParquetSource("events_file", path, timestamp_field="event_ts", created_timestamp_field=created)
    return FeatureView(
        "events",
        entities=[USER],
        source=PushSource("events_push", source) if pushed else source,
        schema=[*([Field("id", String)] if pushed else []), Field("amount", Float64)],
        event_id="id" if pushed else None,
        aggregations=aggregations(windows, functions),
    )


def event_count(context: Context) -> int:
    """Return how many events are measured."""
    return 4_000 if context.is_quick else EVENTS


def events_log(context: Context, kind: str, times: int = 1) -> Path:
    """Return a log's file of events, in the order of time; made once."""
    count = times * event_count(context)
    path = context.data / f"events_{kind}_{count}.parquet"
    if not path.exists():
        keys = 200_000 if kind == "sparse" else 2_000
        key = f"(random() * {keys})::BIGINT"
        if kind in ("hot", "late"):
            key = f"CASE WHEN random() < 0.5 THEN 0 ELSE {key} END"
        created = f"to_timestamp(at_us / 1e6 + random() * {3 * 86_400})" if kind == "late" else "NULL::TIMESTAMPTZ"
        with duckdb.connect() as con:
            con.execute("SET threads = 1")
            con.execute("SELECT setseed(0.42)")
            con.execute(
                f"COPY (SELECT user_id, make_timestamptz(at_us) AS event_ts, {created} AS created_ts, "
                f"row_number() OVER () AS fs_seq, 'batch' AS fs_origin, amount FROM (SELECT {key} AS user_id, "
                f"{START_US} + (random() * {SPAN_DAYS * DAY_US})::BIGINT AS at_us, "
                f"round(exp(random() * 4), 2) AS amount FROM range({count}) ORDER BY at_us)) "
                f"TO '{path}' (FORMAT parquet, COMPRESSION zstd)"
            )
    return path


def asked_frame(context: Context, kind: str, rows: int) -> Path:
    """Return an entity frame's file; made once."""
    path = context.data / f"asked_{kind}_{rows}_{event_count(context)}.parquet"
    if not path.exists():
        rng = np.random.default_rng(3)
        keys = rng.integers(0, 200_000 if kind == "sparse" else 2_000, rows)
        if kind == "hot":
            keys[rng.random(rows) < 0.5] = 0
        at = START_US + ((30 + 60 * rng.random(rows)) * DAY_US).astype(np.int64)
        pq.write_table(pa.table({"user_id": keys, "event_timestamp": as_instants(at)}), path)
    return path


def as_instants(values: np.ndarray) -> pa.Array:
    """Return microseconds as instants."""
    return pa.array(values.astype("datetime64[us]"), pa.timestamp("us", tz="UTC"))
