"""Folders called ``name=value``: below a source they are partitions, at it and above it they mean nothing."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.materialized import INSTANT, Sale, day, online_rows, sales_view, write_sales
from support.projects import make_workspace
from support.sources import instants, staged_rows, table_of, view_of, write

from featurestore.definitions import ParquetSource
from featurestore.engine.duck.engine import DuckEngine
from featurestore.errors import SourceError, SourceSchemaError
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.training import get_historical_features
from featurestore.types import Date, Float64, Int64, String

SQL = 'SELECT k, "at", v FROM flights'
PATHS = [
    "data",
    "data/*.parquet",
    "data/f.parquet",
    "d*a/*.parquet",
    "**/f.parquet",
    "{root}/data",
    "{root}/*/*.parquet",
]


@pytest.mark.parametrize("sql", [None, SQL], ids=["columns", "sql"])
@pytest.mark.parametrize("path", PATHS)
def test_a_folder_above_a_source_is_no_partition(tmp_path: Path, path: str, sql: str | None) -> None:
    root = tmp_path / "k=9" / "v=9.5" / "at=2020-02-02" / "other=1"
    write(root / "data" / "f.parquet", table_of())
    view = view_of(path.format(root=root), sql=sql)
    assert [column.name for column in DuckEngine(root).columns(view)] == ["k", "at", "v"]
    assert DuckEngine(root).first_event_us(view) == 0
    found = [(row["k"], row["event_ts"].timestamp(), row["v"]) for row in staged_rows(root, view)]
    assert found == [(0, 0.0, 1.5), (1, 0.000001, 1.5), (2, 0.000002, 1.5)]


@pytest.mark.parametrize("path", ["k=9/v=8", "k=9/v=8/f.parquet", "k=9/v=8/*.parquet", "k=9/v=8/**/*.parquet"])
def test_a_folder_that_the_source_names_is_no_partition(tmp_path: Path, path: str) -> None:
    write(tmp_path / "k=9" / "v=8" / "f.parquet", table_of())
    assert [row["k"] for row in staged_rows(tmp_path, view_of(path))] == [0, 1, 2]
    write(tmp_path / "k=9" / "v=8" / "f.parquet", table_of().drop_columns(["k"]))
    with pytest.raises(SourceSchemaError, match="join key 'k' is missing"):
        staged_rows(tmp_path, view_of(path))


@pytest.mark.parametrize("path", ["data", "data/*/*.parquet", "data/**/f.parquet", "data/v=[xy]/f.parquet", "d*/*/*"])
def test_a_folder_below_the_fixed_part_of_a_path_is_a_partition(tmp_path: Path, path: str) -> None:
    root = tmp_path / "v=above"
    for name in ("x", "y"):
        write(root / "data" / f"v={name}" / "f.parquet", pa.table({"k": [ord(name)], "at": instants(1)}))
    for sql in (None, f"{SQL} WHERE v <> 'z'"):
        rows = staged_rows(root, view_of(path, features={"v": String}, sql=sql))
        assert {row["k"]: row["v"] for row in rows} == {120: "x", 121: "y"}


def test_files_of_one_source_may_lie_at_different_depths(tmp_path: Path) -> None:
    plain = pa.table({"k": [1], "at": instants(1)})
    for number, folder in enumerate(["", "v=1", "v=2", "deep/er/v=3", "v=4/deep", "w=1/v=5", "v=6/w=1", "=x/v=7"]):
        write(tmp_path / "data" / folder / "f.parquet", plain.set_column(0, "k", pa.array([number])))
    view = view_of("data", features={"v": String, "w": String})
    found = {row["k"]: (row["v"], row["w"]) for row in staged_rows(tmp_path, view)}
    assert found == {
        0: (None, None), 1: ("1", None), 2: ("2", None), 3: ("3", None), 4: ("4", None), 5: ("5", "1"), 6: ("6", "1"),
        7: ("7", None),
    }  # fmt: skip


@pytest.mark.parametrize("sql", [None, SQL], ids=["columns", "sql"])
@pytest.mark.parametrize(
    ("folder", "values", "wanted"),
    [
        ("v=x", ["x", "x"], "x"),
        ("v=01", pa.array([1, 1], pa.int16()), "01"),
        ("v=2020-01-02", [date(2020, 1, 2)] * 2, "2020-01-02"),
        ("v=a%2Fb", ["a/b", "a/b"], "a/b"),
        ("v=__HIVE_DEFAULT_PARTITION__", pa.array([None, None], pa.string()), None),
        ("v=0.1", pa.array([0.1, 0.1], pa.float32()), "0.1"),
        ("v=x", pa.nulls(2), "x"),
        ("v=x", ["x", "y"], SourceError),
        ("v=x", ["x", None], SourceError),
        ("v=1", [1, 2], SourceError),
        ("v=x", [1, 1], SourceError),
        ("v=__HIVE_DEFAULT_PARTITION__", ["x", "x"], SourceError),
    ],
)
def test_a_folder_and_a_column_of_the_file_must_agree(
    tmp_path: Path, folder: str, values: Any, wanted: Any, sql: str | None
) -> None:
    write(tmp_path / "data" / folder / "f.parquet", table_of(v=pa.array(values)))
    write(tmp_path / "data" / "v=other" / "g.parquet", pa.table({"k": [7], "at": instants(1)}))
    view = view_of("data", features={"v": String}, sql=sql)
    if wanted is SourceError:
        with pytest.raises(SourceError, match=r"Column 'v' of .*f\.parquet holds .*, but its folder says ") as caught:
            staged_rows(tmp_path, view)
        assert folder in caught.value.message
        assert caught.value.hint == "Rename the folder, or correct the column of the file."
        return
    found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view)}
    assert found == {0: wanted, 1: wanted, 7: "other"}


def test_a_contradiction_in_a_column_that_no_view_reads_harms_nobody(tmp_path: Path) -> None:
    write(tmp_path / "data" / "note=x" / "f.parquet", table_of().append_column("note", pa.array(["y"] * 3)))
    assert [row["v"] for row in staged_rows(tmp_path, view_of("data"))] == [1.5] * 3
    assert [row["v"] for row in staged_rows(tmp_path, view_of("data", sql=SQL))] == [1.5] * 3


def test_a_partition_is_a_key_and_no_time(tmp_path: Path) -> None:
    for number, name in enumerate(["2020-01-01", "2020-01-02"]):
        write(tmp_path / "data" / f"k={name}" / "f.parquet", pa.table({"at": instants(number), "v": [1.5]}))
    found = [row["k"] for row in staged_rows(tmp_path, view_of("data", keys={"k": String}))]
    assert found == ["2020-01-01", "2020-01-02"]
    view = view_of("data", keys={"k": Date}, sql='SELECT k::DATE AS k, "at", v FROM flights')
    assert [row["k"] for row in staged_rows(tmp_path, view)] == [date(2020, 1, 1), date(2020, 1, 2)]
    with pytest.raises(SourceSchemaError, match="join key 'k' is declared Int64, found hive partition"):
        staged_rows(tmp_path, view_of("data"))


def test_odd_names_of_partitions_are_read_as_they_are_meant(tmp_path: Path) -> None:
    names = {"a%20b": "a b", "ü": "ü", "q'uote": "q'uote", "a[b": "a[b", "fs_x": "fs_x", "filename": "filename"}
    for spelled in names:
        write(tmp_path / "data" / f"{spelled}={spelled}" / "f.parquet", table_of(k=pa.array([len(spelled)])))
    columns = DuckEngine(tmp_path).columns(ParquetSource("flights", "data", "at"))
    assert {column.name for column in columns} == {"k", "at", "v", *names.values()}
    quoted = ", ".join(f'"{name}"' for name in names.values())
    sql = f"SELECT k, \"at\", concat_ws(',', {quoted}) AS v FROM flights"
    rows = staged_rows(tmp_path, view_of("data", features={"v": String}, sql=sql))
    assert {row["v"] for row in rows} <= set(names.values())


def test_a_files_own_column_may_be_called_like_what_the_engine_calls_files(tmp_path: Path) -> None:
    table = table_of().append_column("filename", pa.array(["mine"] * 3))
    write(tmp_path / "data" / "day=1" / "f.parquet", table)
    view = view_of("data", features={"filename": String, "day": String, "v": Float64})
    assert {(row["filename"], row["day"]) for row in staged_rows(tmp_path, view)} == {("mine", "1")}


def test_only_the_folders_that_sql_asks_for_are_read(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "data" / f"day={number}" / "f.parquet", table_of(k=pa.array([number])))
    path = tmp_path / "data" / "day=2" / "f.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # had the file been read, the error would show
    path.write_bytes(content)
    view = view_of("data", keys={"k": Int64}, sql=f"{SQL} WHERE day < '2'")
    assert [row["k"] for row in staged_rows(tmp_path, view)] == [0, 1]


def test_training_sets_and_online_rows_are_the_files_own_below_such_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "shop=us" / "amount=7" / "sold_at=2020-01-01"
    write_sales(root / "sales.parquet", [Sale("eu", day(1), day(1), 1, "a"), Sale("us", day(2), day(2), 2, "b")])
    frame = pa.table({"shop": ["eu", "us"], "event_timestamp": pa.array([day(5)] * 2, INSTANT)})
    write(root / "frame.parquet", frame)
    workspace = make_workspace(root, [sales_view()], now_us=day(10))
    succeeded(materialize_incremental(workspace))
    query = "SELECT shop, sold_at AS event_timestamp FROM sales ORDER BY shop"
    for entity_df in (frame, root / "frame.parquet", query):
        for direct in (False, True):
            made = get_historical_features(workspace, entity_df, "shop_sales:amount", direct=direct).to_arrow()
            assert (made["shop"].to_pylist(), made["amount"].to_pylist()) == (["eu", "us"], [1, 2])
    assert {shop: row[2] for shop, row in online_rows(workspace).items()} == {"eu": 1, "us": 2}
    workspace.close()
