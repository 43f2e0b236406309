"""Workload "m" of the speed table, and "10 x" with ten times the keys and entity rows.

Two views over 90 days: ten mixed features of 10,000 drivers x 100 events (ttl 2 days), and twenty floats of
20,000 customers x 50 events (ttl 7 days). Every row is recorded up to a minute after its event; 3 % are late by
up to three days, 2 % share key and event time with another row (half of these the recorded time as well).
100,000 entity rows ask for both. The same scale always makes the same rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
START_US = 1_577_836_800 * SECOND_US  # 2020-01-01T00:00Z
SPAN_US = 90 * DAY_US
CHUNK_ROWS = 500_000

Column = Callable[[np.random.Generator, int], pa.Array]


@dataclass(frozen=True)
class WorkloadView:
    """One view: its table file, and the same rows as a source in the order in which they were recorded."""

    name: str
    key: str
    ttl_us: int
    features: tuple[str, ...]
    table: Path
    source: Path


@dataclass(frozen=True)
class Workload:
    scale: float
    entities: Path
    """Columns driver_id, customer_id, event_timestamp."""
    rows: int
    views: tuple[WorkloadView, ...]


def _instants(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype("datetime64[us]"), pa.timestamp("us", tz="UTC"))


def _floats(rng: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.01)


def _large_integers(rng: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(rng.integers(10**18, 9 * 10**18, rows), mask=rng.random(rows) < 0.05)


def _labels(rng: np.random.Generator, rows: int) -> pa.Array:
    labels = pa.array([f"segment {number}" for number in range(50)])
    return pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, 50, rows), pa.int32()), labels).cast(pa.string())


def _decimals(rng: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(rng.integers(0, 10**6, rows)).cast(pa.decimal128(19, 0)).cast(pa.decimal128(21, 2))


MIXED: dict[str, Column] = {
    "rating": _floats,
    "acceptance": _floats,
    "distance_km": lambda rng, rows: pa.array(rng.normal(size=rows).astype(np.float32)),
    "last_trip_id": _large_integers,
    "trips": lambda rng, rows: pa.array(rng.integers(0, 10_000, rows)),
    "cancelled": lambda rng, rows: pa.array(rng.integers(0, 100, rows), pa.int32()),
    "on_shift": lambda rng, rows: pa.array(rng.random(rows) < 0.5),
    "segment": _labels,
    "last_trip_at": lambda rng, rows: _instants(START_US + rng.integers(0, SPAN_US, rows)),
    "earnings": _decimals,
}
FLOATS: dict[str, Column] = {f"spend_{number:02d}": _floats for number in range(20)}


def _log(rng: np.random.Generator, keys: int, events: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, event and created times of a view's rows, in the order in which they were recorded."""
    rows = keys * events
    key = np.repeat(np.arange(keys, dtype=np.int64), events)
    event = START_US + rng.integers(0, SPAN_US, rows)
    created = event + rng.integers(0, 60 * SECOND_US, rows)
    late = rng.random(rows) < 0.03
    created[late] += rng.integers(0, 3 * DAY_US, int(late.sum()))
    tied = rng.random(rows) < 0.02
    tied[0] = False
    key[tied], event[tied], created[tied] = (column[np.flatnonzero(tied) - 1] for column in (key, event, created))
    created[tied] += rng.integers(0, 2, int(tied.sum())) * rng.integers(1, 3600 * SECOND_US, int(tied.sum()))
    recorded = np.argsort(created, kind="stable")
    return key[recorded], event[recorded], created[recorded]


def write_view(made: WorkloadView, columns: dict[str, Column], keys: int, events: int, seed: int) -> None:
    """Write a view's source and table."""
    key, event, created = _log(np.random.default_rng(seed), keys, events)

    def batch(start: int) -> pa.RecordBatch:
        part, rng = slice(start, start + CHUNK_ROWS), np.random.default_rng((seed, start))
        arrays = {
            made.key: pa.array(key[part]),
            "event_ts": _instants(event[part]),
            "created_ts": _instants(created[part]),
        }
        arrays |= {feature: values(rng, len(key[part])) for feature, values in columns.items()}
        return pa.RecordBatch.from_pydict(arrays)

    first = batch(0)
    batches = itertools.chain([first], map(batch, range(CHUNK_ROWS, len(key), CHUNK_ROWS)))
    with duckdb.connect() as con:
        con.register("recorded", pa.RecordBatchReader.from_batches(first.schema, batches))
        con.execute(f"COPY (FROM recorded) TO '{made.source}' (FORMAT parquet)")
        features = ", ".join(made.features)
        con.execute(
            f"COPY (SELECT {made.key}, event_ts, created_ts, file_row_number AS fs_seq, 'batch' AS fs_origin, "
            f"{features} FROM read_parquet('{made.source}') ORDER BY event_ts, created_ts, file_row_number) "
            f"TO '{made.table}' (FORMAT parquet)"
        )


def make(folder: Path, scale: float = 1) -> Workload:
    """Write the workload into ``folder`` (once: files that are there are taken) and return where it lies."""
    folder = folder / f"scale_{scale:g}"
    folder.mkdir(parents=True, exist_ok=True)
    entities, done = folder / "entities.parquet", folder / "complete"
    drivers, customers, rows = (round(count * scale) for count in (10_000, 20_000, 100_000))
    views = []
    for name, key, ttl_us, columns, keys, events, seed in (
        ("driver_stats", "driver_id", 2 * DAY_US, MIXED, drivers, 100, 1),
        ("customer_spend", "customer_id", 7 * DAY_US, FLOATS, customers, 50, 2),
    ):
        paths = folder / f"{name}.table.parquet", folder / f"{name}.source.parquet"
        views.append(WorkloadView(name, key, ttl_us, tuple(columns), *paths))
        if not done.exists():
            write_view(views[-1], columns, keys, events, seed)
    if not done.exists():
        rng = np.random.default_rng(3)
        frame = {
            "driver_id": rng.integers(0, drivers, rows),
            "customer_id": rng.integers(0, customers, rows),
            "event_timestamp": _instants(START_US + rng.integers(0, SPAN_US, rows)),
        }
        pq.write_table(pa.table(frame), entities)
        done.touch()
    return Workload(scale, entities, rows, tuple(views))
