"""Floors: the bare minimum by hand, with the libraries that ours is built on."""

from __future__ import annotations

from pathlib import Path

import duckdb

from benchmarks.workload import Workload, WorkloadView


def training_set(workload: Workload, as_of: str, with_ttl: bool, out: Path) -> None:
    """Write the training set of all features with DuckDB alone, Parquet to Parquet, rows in the frame's order.

    It knows what the product has to find out: one file for each view, in (event, created, sequence) order, so
    that the row number is row id and rank at once; no null keys; no name or type to take care of.
    """
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(
            "CREATE TEMP TABLE frame AS SELECT * RENAME (file_row_number AS row) "
            f"FROM read_parquet('{workload.entities}', file_row_number = true)"
        )
        for number, view in enumerate(workload.views):
            con.execute(f"CREATE TEMP TABLE chosen_{number} AS {_chosen(view, as_of)}")
        gathered = [_gathered(view, number, with_ttl) for number, view in enumerate(workload.views)]
        features = ", ".join(f"g{number}.* EXCLUDE (row)" for number in range(len(gathered)))
        joins = " ".join(f"LEFT JOIN ({part}) g{number} USING (row)" for number, part in enumerate(gathered))
        result = f"SELECT f.* EXCLUDE (row), {features} FROM frame f {joins} ORDER BY f.row"
        con.execute(f"COPY ({result}) TO '{out}' (FORMAT parquet)")


def _chosen(view: WorkloadView, as_of: str) -> str:
    """Select the row number of the newest row at each entity row's time: a thin ASOF join with ties resolved."""
    table = f"read_parquet('{view.table}', file_row_number = true)"
    if as_of == "event":
        # Of equal times the last row: a hash aggregate is quicker here than the window below.
        thin = f"SELECT {view.key}, event_ts AS since, max(file_row_number) AS best FROM {table} GROUP BY ALL"
    else:
        since = "greatest(event_ts, coalesce(created_ts, event_ts))"
        best = f"max(file_row_number) OVER (PARTITION BY {view.key} ORDER BY {since})"  # RANGE: peers included
        thin = f"SELECT {view.key}, {since} AS since, {best} AS best FROM {table}"
    return (
        f"SELECT f.row, f.event_timestamp AS at_time, b.best FROM frame f "
        f"ASOF JOIN ({thin}) b ON f.{view.key} = b.{view.key} AND f.event_timestamp >= b.since"
    )


def _gathered(view: WorkloadView, number: int, with_ttl: bool) -> str:
    fresh = f" AND l.event_ts >= c.at_time - INTERVAL '{view.ttl_us} microseconds'" if with_ttl else ""
    features = ", ".join(f"l.{feature}" for feature in view.features)
    return (
        f"SELECT c.row, {features} FROM read_parquet('{view.table}', file_row_number = true) l "
        f"JOIN chosen_{number} c ON l.file_row_number = c.best{fresh}"
    )
