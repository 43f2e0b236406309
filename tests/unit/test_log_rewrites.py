"""Rows of the log that are written again: a view of another age must not cost them a column."""

from __future__ import annotations

from decimal import Decimal as D
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.sources import ALWAYS, instants, table_of, view_of, write

from featurestore.engine.duck.engine import DuckEngine
from featurestore.types import Int32, Int64, String
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

MORE = pa.list_(pa.decimal128(10, 2))


def log_table(start: int, **features: pa.Array) -> pa.Table:
    """Return two rows of a log: key, event time and sequence count on."""
    return pa.table(
        {
            "k": pa.array([start + 1, start + 2]),
            EVENT: instants(start + 1, start + 2),
            CREATED: instants(None, None),
            SEQUENCE: pa.array([start, start + 1]),
            ORIGIN: ["batch"] * 2,
            **features,
        }
    )


@pytest.mark.parametrize("how", ["compact", "withdraw"])
def test_a_feature_that_the_view_does_not_know_is_kept(tmp_path: Path, how: str) -> None:
    v = pa.array([1, 2], pa.int32())
    files = [
        write(tmp_path / "log" / "1.parquet", log_table(0, v=v)),
        write(tmp_path / "log" / "2.parquet", log_table(2, v=v, more=pa.array([[D("1.50"), None], None], MORE))),
    ]
    names = [str(file) for file in files]
    # The source no longer holds the fourth row.
    source = table_of(k=pa.array([1, 2, 3]), at=instants(1, 2, 3), v=pa.array([1, 2, 3]), new=pa.nulls(3, pa.string()))
    write(tmp_path / "data.parquet", source)
    view, engine = view_of(features={"v": Int64, "new": String}), DuckEngine(tmp_path)
    made = tmp_path / "made.parquet"
    if how == "compact":
        engine.compact(view, names, made)
    else:
        (made,) = engine.withdraw(view, names, ALWAYS, folder=tmp_path).written
    found = pq.ParquetFile(made).read()
    assert found["v"].type == pa.int64()  # the view's, where that is wider
    assert found["more"].type.value_type == MORE.value_type
    rows = [(row["k"], row[SEQUENCE], row["v"], row["more"]) for row in found.to_pylist()]
    assert rows == ([(1, 0, 1, None), (2, 1, 2, None)] if how == "compact" else []) + [
        (3, 2, 1, [D("1.50"), None]),
        *([(4, 3, 2, None)] if how == "compact" else []),
    ]


def test_a_type_that_the_view_knows_narrower_stays_wide(tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", log_table(0, v=pa.array([2**40, None])))
    DuckEngine(tmp_path).compact(view_of(features={"v": Int32}), [str(file)], tmp_path / "made.parquet")
    assert pq.ParquetFile(tmp_path / "made.parquet").read()["v"].to_pylist() == [2**40, None]
