"""Training sets: ours beside DuckDB by hand, Parquet to Parquet.

``python -m benchmarks.training_set [--scale 10] [--pairs 7] [--data FOLDER]``
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import floors
from benchmarks.pairs import measure, peak_mib
from benchmarks.workload import Workload, WorkloadView, make
from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.duck import DuckEngine
from featurestore.engine.interface import AsOf, ViewJoin
from featurestore.types import Int64
from featurestore.types.arrow import value_type_of

BATCH_ROWS = 100_000


def view_definition(view: WorkloadView, with_ttl: bool) -> FeatureView:
    """Return the view as a user would define it."""
    schema = pq.read_schema(view.source)
    fields = []
    for feature in view.features:
        kind = value_type_of(schema.field(feature).type)
        assert kind is not None
        fields.append(Field(feature, kind))
    return FeatureView(
        view.name,
        entities=[Entity(view.key.removesuffix("_id"), join_keys={view.key: Int64})],
        source=ParquetSource(
            f"{view.name}_source",
            path=str(view.source),
            timestamp_field="event_ts",
            created_timestamp_field="created_ts",
        ),
        schema=fields,
        ttl=timedelta(microseconds=view.ttl_us) if with_ttl else None,
    )


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
    reader = DuckEngine(out.parent).join(frame, "event_timestamp", joins, batch_rows=BATCH_ROWS)
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


def run(folder: Path, scale: int, pairs: int) -> None:
    """Print one line for each as_of and ttl, and both sides' greatest memory."""
    workload = make(folder, scale)
    ours_path, floor_path = folder / "ours.parquet", folder / "floor.parquet"
    print(f"training set, scale {scale}: {workload.rows:,} entity rows x 30 features, {pairs} pairs")
    cases: list[tuple[AsOf, bool]] = [("available", True), ("available", False), ("event", True), ("event", False)]
    for as_of, with_ttl in cases:
        ours = (workload, as_of, with_ttl, ours_path)
        floor = (workload, as_of, with_ttl, floor_path)
        found = measure(
            lambda arguments=ours: engine_training_set(*arguments),
            lambda arguments=floor: floors.training_set(*arguments),
            count=pairs,
        )
        check_equal(ours_path, floor_path)
        memory = peak_mib(engine_training_set, *ours), peak_mib(floors.training_set, *floor)
        print(
            f"  as_of={as_of:<9} ttl={'days' if with_ttl else 'none'}: ours {found.ours_s:6.2f} s, "
            f"floor {found.floor_s:6.2f} s, ratio {found.ratio:.2f} ({found.least:.2f}-{found.greatest:.2f}); "
            f"peak {memory[0]:,.0f} / {memory[1]:,.0f} MiB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--data", type=Path, help="where the workload lies or is written (default: a temporary folder)")
    arguments = parser.parse_args()
    if arguments.data is not None:
        run(arguments.data, arguments.scale, arguments.pairs)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), arguments.scale, arguments.pairs)


if __name__ == "__main__":
    main()
