"""Training sets with windows, beside DuckDB by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.pairs import measure, peak_mib, timed
from benchmarks.report import Row, Section, Target
from benchmarks.windows_data import FUNCTIONS, LENGTHS_US, STEPS_US, asked_frame, event_count, events_log, events_view
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import ViewJoin

MOST_MIB = 700


def training(context: Context) -> Section:
    """Measure training sets."""
    section = Section(
        "Windowed training sets",
        f"{event_count(context):,} events over 90 days, 3 windows (1 h, 1 d, 30 d) x sum, count, mean, max, Parquet to "
        "Parquet by the engine. S: 200,000 keys and 100,000 entity rows; M: 1 M rows; D: 2,000 keys; H: one of 2,000 "
        "keys has half of the events and of the rows. The floor is DuckDB's range join with filtered aggregates, by "
        "hand, whose sums depend on the order of its threads; for H it does not end, so H stands beside ours on D.",
    )
    sparse, dense, hot = (events_log(context, name) for name in ("sparse", "dense", "hot"))
    few, many = (1_000, 2_000) if context.is_quick else (100_000, 1_000_000)
    frames = {name: asked_frame(context, name, rows) for name, rows in (("sparse", few), ("dense", few), ("hot", few))}
    large = asked_frame(context, "sparse", many)
    out = context.folder / "windows.parquet"
    cases = [
        ("S", sparse, frames["sparse"], context.pairs, Target(at_most=1.1)),
        ("M", sparse, large, min(context.pairs, 3), Target(at_most=1.0)),
        ("D", dense, frames["dense"], 1, Target(at_most=0.2)),  # a floor of half a minute
    ]
    for name, log, frame, count, target in cases:
        check_equal(log, frame, out)
        found = measure(timed(training_set, log, frame, out), timed(range_join, log, frame, out), count=count)
        memory = peak_mib(training_set, log, frame, out)
        note = f"peak {memory:,.0f} MiB" + (f": MORE than {MOST_MIB}" if name == "S" and memory > MOST_MIB else "")
        section.rows.append(Row(f"{name}, {pq.read_metadata(frame).num_rows:,} rows", "s", found, target, note=note))
    spread = measure(
        timed(training_set, sparse, large, out, None, (*FUNCTIONS, "var", "std")),
        timed(training_set, sparse, large, out),
        count=min(context.pairs, 3),
    )
    section.rows.append(Row("M, with var and std, beside without", "s", spread))
    beside = measure(
        timed(training_set, hot, frames["hot"], out),
        timed(training_set, dense, frames["dense"], out),
        count=context.pairs,
    )
    section.rows.append(Row("H, beside ours on D", "s", beside, Target(at_most=1.2)))
    late = measure(
        timed(training_set, events_log(context, "late"), frames["hot"], out),
        timed(training_set, hot, frames["hot"], out),
        count=context.pairs,
    )
    section.rows.append(Row("H, every event known up to 3 days late, beside none late", "s", late, Target(at_most=1.6)))
    return section


def training_set(
    log: Path, frame: Path, out: Path, memory_limit: str | None = None, functions: Sequence[str] = FUNCTIONS
) -> None:
    """Write the windows of each row with the engine."""
    view = events_view(functions=functions)
    settings = EngineSettings(memory_limit=memory_limit)
    rows = pq.read_table(frame).combine_chunks()
    names = tuple(window.name for window in view.windows)
    join = ViewJoin("events", view, (str(log),), {"user_id": "user_id"}, names, "available")
    made = open_engine(out.parent, settings).joins.join(rows, "event_timestamp", [join], batch_rows=100_000).batches()
    with pq.ParquetWriter(out, made.schema, use_dictionary=False) as writer:
        for batch in made:
            writer.write_batch(batch)


def range_join(log: Path, frame: Path, out: Path) -> None:
    """Write the same with DuckDB by hand; it knows that no event is late."""
    columns = []
    for name in STEPS_US:
        own = f"FILTER (WHERE e.at_us > f.a{name})"
        columns += [f"sum(amount) {own}", f"count(amount) {own}", f"avg(amount) {own}", f"max(amount) {own}"]
    bounds = [f"(at_us - {LENGTHS_US[name]}) // {step} * {step} AS a{name}" for name, step in STEPS_US.items()]
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(
            f"COPY (SELECT f.row, {', '.join(f'{column} AS x{place}' for place, column in enumerate(columns))} FROM "
            f"(SELECT *, {', '.join(bounds)} FROM (SELECT user_id, epoch_us(event_timestamp) AS at_us, "
            f"file_row_number AS row FROM read_parquet('{frame}', file_row_number = true))) f LEFT JOIN "
            f"(SELECT user_id, epoch_us(event_ts) AS at_us, amount FROM '{log}') e "
            f"ON e.user_id = f.user_id AND e.at_us > f.a30d AND e.at_us <= f.at_us GROUP BY f.row ORDER BY f.row) "
            f"TO '{out}' (FORMAT parquet)"
        )


def check_equal(log: Path, frame: Path, out: Path) -> None:
    """Fail unless both answer the same, sums but for rounding; a floor that answers otherwise is none."""
    training_set(log, frame, out)
    ours = pq.read_table(out)
    range_join(log, frame, out)
    floor = pq.read_table(out)
    names = [window.name for window in events_view().windows]
    order = [f"amount_{function}_{window}" for window in STEPS_US for function in FUNCTIONS]
    for place, name in enumerate(order):
        left, right = ours.column(names.index(name)).to_numpy(), floor.column(1 + place).to_numpy()
        assert np.allclose(np.nan_to_num(left.astype(float)), np.nan_to_num(right.astype(float)), rtol=1e-9), name


def run_large(context: Context) -> Iterator[Section]:
    """Measure ten times the events."""
    limit = "4GB"
    section = Section(
        "Windowed training set of ten times the events",
        f"{10 * event_count(context):,} events and a memory limit of {limit}, beside ours on a tenth, both with "
        "the same entity rows. The process holds the arrays of a share of the keys beside the database.",
    )
    frame, out = (
        asked_frame(context, "sparse", 2_000 if context.is_quick else 1_000_000),
        context.folder / "large.parquet",
    )
    large, small = ((events_log(context, "sparse", times), frame, out, limit) for times in (10, 1))
    found = measure(timed(training_set, *large), timed(training_set, *small), count=1 if context.is_quick else 3)
    note = f"peak {peak_mib(training_set, *large):,.0f} MiB"
    rows = pq.read_metadata(frame).num_rows
    section.rows.append(Row(f"M x 10, {rows:,} rows", "s", found, Target(at_most=13.0), note=note))
    yield section
