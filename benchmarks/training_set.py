"""Training sets: ours beside DuckDB by hand, Parquet to Parquet."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import floors
from benchmarks.context import Context
from benchmarks.pairs import measure, peak_mib, timed
from benchmarks.projects import make_project, references, view_definition
from benchmarks.report import Row, Section, Target
from benchmarks.workload import Workload
from featurestore import FeatureStore
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.interface import AsOf, ViewJoin

BATCH_ROWS = 100_000
MOST_MIB = 4096


def run(context: Context) -> Iterator[Section]:
    """Measure workload m: the engine alone in every mode, and the whole product."""
    yield _section(context, 1)


def run_large(context: Context) -> Iterator[Section]:
    """Measure ten times the workload, with the greatest memory of both sides."""
    yield _section(context, 10)


def _section(context: Context, scale: int) -> Section:
    workload = context.workload(scale)
    section = Section(
        f"Training set, workload m{'' if scale == 1 else f', {scale} x'}",
        f"{workload.rows:,} entity rows, 30 features of two views, Parquet to Parquet; files already checked but where "
        "said. Memory is that of a new process that does it once.",
    )
    cases: list[tuple[AsOf, bool]] = [("available", True), ("available", False), ("event", True), ("event", False)]
    for as_of, with_ttl in cases[:1] if context.is_quick else cases:
        _engine_rows(section, context, workload, as_of, with_ttl)
    _product_rows(section, context, workload)
    return section


def _engine_rows(section: Section, context: Context, workload: Workload, as_of: AsOf, with_ttl: bool) -> None:
    ours_path, floor_path = context.folder / "ours.parquet", context.folder / "floor.parquet"
    ours, floor = (workload, as_of, with_ttl, ours_path), (workload, as_of, with_ttl, floor_path)
    found = measure(timed(engine_training_set, *ours), timed(floors.training_set, *floor), count=context.pairs)
    check_equal(ours_path, floor_path)
    name = f"engine, as_of={as_of}, ttl {'of days' if with_ttl else 'none'}"
    memory = peak_mib(engine_training_set, *ours), peak_mib(floors.training_set, *floor)
    note = f"peak {memory[0]:,.0f} MiB, the floor's {memory[1]:,.0f}"
    if memory[0] > MOST_MIB:
        note += f": MORE than {MOST_MIB:,} MiB"
    section.rows.append(Row(name, "s", found, Target(at_most=1.0), note=note))


def _product_rows(section: Section, context: Context, workload: Workload) -> None:
    """Measure `get_historical_features(...).write_parquet(...)`, then with the certificate and all hashing."""
    root = make_project(
        context.place(f"training_{workload.scale:g}"), workload.views, online_url="lmdb:///data/online", with_ttl=True
    )
    ours_path, floor_path = context.folder / "ours.parquet", context.folder / "floor.parquet"
    floor = timed(floors.training_set, workload, "available", True, floor_path)
    arguments = root, workload, ours_path
    product_training_set(*arguments)  # which also checks the files' hashes for the first time
    found = measure(timed(product_training_set, *arguments), floor, count=context.pairs)
    check_equal(ours_path, floor_path)
    memory = peak_mib(product_training_set, *arguments)
    note = f"peak {memory:,.0f} MiB" + (f": MORE than {MOST_MIB:,} MiB" if memory > MOST_MIB else "")
    section.rows.append(Row("get_historical_features, write_parquet", "s", found, Target(at_most=1.0), note=note))
    certified = measure(timed(product_training_set, *arguments, True), floor, count=context.pairs)
    section.rows.append(
        Row("the same with certificate, files hashed anew", "s", certified, Target(at_most=1.6)),
    )


def product_training_set(root: Path, workload: Workload, out: Path, certified: bool = False) -> None:
    """Write the training set as a user does."""
    if certified:
        for path in root.rglob("*.parquet"):
            os.utime(path)  # a file of another time is checked again
    with FeatureStore(root) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = store.get_historical_features(workload.entities, references(workload.views))
        made.write_parquet(out)
        if certified:
            assert made.certificate.rows == workload.rows


def engine_training_set(workload: Workload, as_of: AsOf, with_ttl: bool, out: Path) -> None:
    """Write the training set with the engine, the frame's columns put back beside the features."""
    frame = pq.read_table(workload.entities).combine_chunks()
    joins = [
        ViewJoin(
            view.name,
            view_definition(view, with_ttl),
            (str(view.table),),
            {view.key: view.key},
            view.features,
            as_of,
        )
        for view in workload.views
    ]
    reader = open_engine(out.parent).joins.join(frame, "event_timestamp", joins, batch_rows=BATCH_ROWS).batches()
    schema = pa.schema([*frame.schema, *reader.schema])
    texts = [field.name for field in schema if pa.types.is_string(field.type)]
    done = 0
    # Dictionaries of numbers that hardly repeat would cost more than all the rest of writing.
    with pq.ParquetWriter(out, schema, use_dictionary=texts) as writer:
        for batch in reader:
            given = frame.slice(done, batch.num_rows).to_batches()[0]
            writer.write_batch(pa.RecordBatch.from_arrays([*given.columns, *batch.columns], schema=schema))
            done += batch.num_rows


def check_equal(ours: Path, floor: Path) -> None:
    """Fail unless both files hold the same rows in the same order; a floor that answers otherwise is none."""
    columns = pq.read_schema(ours).names
    for start in range(0, len(columns), 8):
        some = columns[start : start + 8]
        left, right = pq.read_table(ours, columns=some), pq.read_table(floor)
        renamed = right.select(range(start, start + len(some))).rename_columns(some).cast(left.schema)
        assert left.equals(renamed), f"ours and the floor differ in {some}"
