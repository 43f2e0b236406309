"""Files of one source that were not written by one hand: nulls of any type, old timestamps, missing columns."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import INSTANT, Sale, day, sales_view, write_sales
from support.projects import make_workspace
from support.sources import instants, stage, staged_rows, table_of, view_of, write

from featurestore import Entity, FeatureView, ParquetSource
from featurestore.definitions import Field
from featurestore.engine.duck.engine import DuckEngine
from featurestore.errors import SourceError, SourceSchemaError
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.plan.schemas import pin_schemas
from featurestore.tables import read_parquet
from featurestore.training import get_historical_features
from featurestore.training.coverage import TrainingSetWarning
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float64, Int32, Int64, String, Timestamp, ValueType

SQL = 'SELECT k, "at", v FROM flights'

NULLS = {
    "null": pa.nulls(2),
    "double": pa.array([None, None], pa.float64()),
    "NaN": pa.array([math.nan, None], pa.float64()),
    "half NaN": pa.array(np.array([np.nan, np.nan], np.float16)),
    "int": pa.array([None, None], pa.int32()),
    "text": pa.array([None, None], pa.string()),
    "dictionary": pa.array([None, None], pa.dictionary(pa.int32(), pa.string())),
    "list": pa.array([None, None], pa.list_(pa.int64())),
    "list of nulls": pa.array([None, None], pa.list_(pa.null())),
    "bool": pa.array([None, None], pa.bool_()),
    "struct": pa.array([None, None], pa.struct([("a", pa.int64())])),
}
TYPES: list[tuple[ValueType, Any, pa.DataType]] = [
    (String, "x", pa.string()),
    (Int64, 7, pa.int64()),
    (Float64, 1.5, pa.float64()),
    (Bool, True, pa.bool_()),
    (Bytes, b"x", pa.binary()),
    (Date, date(2020, 1, 2), pa.date32()),
    (Timestamp, datetime(2020, 1, 2, tzinfo=UTC), INSTANT),
    (Decimal(10, 2), D("1.50"), pa.decimal128(10, 2)),
    (Array(String), ["x"], pa.list_(pa.string())),
]


@pytest.mark.parametrize("first", ["a", "z"], ids=["before", "after"])
@pytest.mark.parametrize(("declared", "value", "kind"), TYPES, ids=lambda given: str(given)[:12])
def test_a_column_without_a_value_in_a_file_has_no_type_there(
    tmp_path: Path, declared: ValueType, value: Any, kind: pa.DataType, first: str
) -> None:
    write(tmp_path / "data" / "m.parquet", table_of(k=pa.array([100]), v=pa.array([value], kind)))
    for number, nulls in enumerate(NULLS.values()):
        keys = pa.array([2 * number, 2 * number + 1])
        write(tmp_path / "data" / f"{first}{number}.parquet", table_of(k=keys, v=nulls))
    for sql in (None, SQL):
        view = view_of("data", features={"v": declared}, sql=sql)
        found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view)}
        nothing = dict.fromkeys(range(2 * len(NULLS)))
        if declared == Float64:  # here NaN is a value, and so it is in the file of 16 bits
            assert all(math.isnan(found.pop(key)) for key in (4, 6, 7))
            nothing = {key: None for key in nothing if key not in (4, 6, 7)}
        assert found == {100: value, **nothing}
    (column,) = (c for c in DuckEngine(tmp_path).columns(view_of("data", features={"v": declared})) if c.name == "v")
    assert column.value_type == declared


@pytest.mark.parametrize("declared", [String, Bool, Array(Int64), Date, Int64], ids=str)
@pytest.mark.parametrize("case", NULLS)
def test_a_source_without_a_value_yet_fits_what_is_declared(tmp_path: Path, case: str, declared: ValueType) -> None:
    write(tmp_path / "data.parquet", table_of(k=pa.array([1, 2]), v=NULLS[case]))
    assert [row["v"] for row in staged_rows(tmp_path, view_of(features={"v": declared}))] == [None, None]


@pytest.mark.parametrize(
    "one", [pa.array([math.nan, 1.0]), pa.array([None, 1]), pa.array([[], None], pa.list_(pa.null()))]
)
def test_one_value_is_enough_for_a_contradiction(tmp_path: Path, one: pa.Array) -> None:
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([1, 2]), v=one))
    with pytest.raises(SourceSchemaError, match="feature 'v' is declared String"):
        stage(tmp_path, view_of("data", features={"v": String}))
    write(tmp_path / "data" / "b.parquet", table_of(v=pa.array(["x"] * 3)))
    for sql in (None, SQL):
        with pytest.raises(SourceSchemaError, match=r"its files disagree:\n  - column 'v' is string in b\.parquet"):
            stage(tmp_path, view_of("data", features={"v": String}, sql=sql))


@pytest.mark.parametrize(
    ("declared", "kind", "full"),
    [
        (Array(Int64), pa.list_(pa.int64()), [1, None]),
        (Array(String), pa.large_list(pa.string()), ["x"]),
        (Array(Timestamp), pa.list_(INSTANT), [datetime(2020, 1, 2, tzinfo=UTC)]),
        (Array(Array(Date)), pa.list_(pa.list_(pa.date32())), [[date(2020, 1, 2)], [], None]),
    ],
    ids=str,
)
@pytest.mark.parametrize("nulls", [pa.list_(pa.null()), pa.large_list(pa.null())], ids=str)
def test_a_day_of_empty_lists_stays_one(
    tmp_path: Path, nulls: pa.DataType, declared: ValueType, kind: pa.DataType, full: list[Any]
) -> None:
    empty = table_of(k=pa.array([1, 2, 3]), v=pa.array([[], None, [None]], nulls))
    write(tmp_path / "one.parquet", empty)
    write(tmp_path / "data" / "a.parquet", empty)
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([4]), v=pa.array([full], kind)))
    for sql in (None, SQL):
        for path, more in (("one.parquet", {}), ("data", {4: full})):
            rows = staged_rows(tmp_path, view_of(path, features={"v": declared}, sql=sql))
            assert {row["k"]: row["v"] for row in rows} == {1: [], 2: None, 3: [None], **more}


def test_deeper_lists_of_nulls(tmp_path: Path) -> None:
    deep = pa.array([[[]], [None, [None]], None], pa.list_(pa.list_(pa.null())))
    write(tmp_path / "data" / "a.parquet", table_of(v=deep))
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([7]), v=pa.array([[[1]]])))
    write(tmp_path / "data" / "c.parquet", table_of(k=pa.array([8]), v=pa.array([[]], pa.list_(pa.null()))))
    for sql in (None, SQL):
        rows = staged_rows(tmp_path, view_of("data", features={"v": Array(Array(Int64))}, sql=sql))
        assert [row["v"] for row in sorted(rows, key=lambda row: row["k"])] == [[[]], [None, [None]], None, [[1]], []]
    write(tmp_path / "data" / "c.parquet", table_of(k=pa.array([8]), v=pa.array([[1]])))
    with pytest.raises(SourceSchemaError, match="its files disagree"):
        DuckEngine(tmp_path).columns(ParquetSource("flights", "data", "at"))


def test_columns_that_no_feature_can_have_may_be_null_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", table_of(note=pa.array([{"a": 1}] * 3)))
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([7]), note=pa.nulls(1)))
    write(tmp_path / "data" / "c.parquet", table_of(k=pa.array([8])))
    sql = 'SELECT k, "at", note.a AS v FROM flights'
    found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view_of("data", features={"v": Int64}, sql=sql))}
    assert found == {0: 1, 1: 1, 2: 1, 7: None, 8: None}
    write(tmp_path / "data" / "a.parquet", table_of(note=pa.nulls(3)))
    sql = 'SELECT k, "at", note::VARCHAR AS v FROM flights'
    assert {row["v"] for row in staged_rows(tmp_path, view_of("data", features={"v": String}, sql=sql))} == {None}


EMPTY = {
    "columns alone": pd.DataFrame(columns=["k", "at", "v"]),
    "objects": pd.DataFrame({"k": [1], "at": pd.to_datetime(["2024-01-01"]), "v": ["a"]}, dtype=object).iloc[:0],
    "floats": pd.DataFrame({"k": [1.5], "at": [1.5], "v": [1.5]}).iloc[:0],
    "texts": pd.DataFrame({"k": ["a"], "at": ["a"], "v": ["a"]}).iloc[:0],
}


@pytest.mark.parametrize("case", EMPTY)
def test_the_file_of_an_empty_frame(tmp_path: Path, case: str) -> None:
    (tmp_path / "data").mkdir()
    EMPTY[case].to_parquet(tmp_path / "data" / "a.parquet")
    for features in ({"v": String}, {"v": Float64}):
        assert staged_rows(tmp_path, view_of("data", features=features)) == []
    write(tmp_path / "data" / "b.parquet", table_of())
    for sql in (None, SQL):
        assert len(staged_rows(tmp_path, view_of("data", sql=sql))) == 3


def test_a_pinned_schema_stays_when_a_file_has_no_value(tmp_path: Path) -> None:
    source = ParquetSource("flights", "data.parquet", "at")
    view = FeatureView("profile", entities=[Entity("thing", join_keys={"k": Int64})], source=source)
    write(tmp_path / "data.parquet", table_of(v=pa.array(["x"] * 3)))
    engine = DuckEngine(tmp_path)
    (pinned,), _ = pin_schemas([view], {}, engine, refresh=False)
    assert isinstance(pinned, FeatureView)
    assert pinned.features == (Field("v", String),)
    write(tmp_path / "data.parquet", table_of(v=pa.array([None] * 3, pa.float64())))
    assert pin_schemas([view], {"profile": pinned}, engine, refresh=False) == ([pinned], [])


@pytest.mark.parametrize("gone", ["k", "at", "known"])
def test_a_file_without_key_or_time_is_named(tmp_path: Path, gone: str) -> None:
    table = table_of(known=instants(1, 2, 3))
    write(tmp_path / "data" / "a.parquet", table)
    write(tmp_path / "data" / "b.parquet", table.drop_columns([gone]))
    view = view_of("data", created="known")
    for call in (DuckEngine(tmp_path).columns, DuckEngine(tmp_path).first_event_us, lambda view: stage(tmp_path, view)):
        with pytest.raises(SourceSchemaError, match=rf"b\.parquet has no (join key|time column) '{gone}'") as caught:
            call(view)
        assert len(caught.value.details["problems"]) == 1
    plain = view_of("data", created="known", sql="SELECT * FROM flights")
    with pytest.raises(SourceSchemaError, match=rf"b\.parquet has no (join key|time column) '{gone}'"):
        stage(tmp_path, plain)
    sql = view_of("data", sql='SELECT coalesce(k, -1) AS k, coalesce("at", now()) AS "at", v FROM flights')
    assert len(stage(tmp_path, sql).path.name) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("sql", [None, "SELECT * FROM flights"])
def test_a_file_without_rows_lacks_nothing(tmp_path: Path, sql: str | None) -> None:
    write(tmp_path / "data" / "a.parquet", table_of())
    pd.DataFrame().to_parquet(tmp_path / "data" / "b.parquet")
    assert len(staged_rows(tmp_path, view_of("data", sql=sql))) == 3


SENTINELS = [datetime(9999, 12, 31), datetime(1, 1, 1), datetime(1677, 9, 21), datetime(2262, 4, 12)]


def int96(path: Path, *moments: datetime | None) -> None:
    count = len(moments)
    column = pa.array(moments, pa.timestamp("us"))
    table = pa.table(
        {"k": range(count), "at": pa.array([datetime(2024, 1, 2)] * count), "seen": column, "v": [1.5] * count}
    )
    write(path, table, use_deprecated_int96_timestamps=True)


@pytest.mark.parametrize("sentinel", SENTINELS, ids=str)
def test_old_timestamps_may_hold_any_day(tmp_path: Path, sentinel: datetime) -> None:
    moments = [datetime(2024, 1, 2, 3, 4, 5, 678901), sentinel, None]
    int96(tmp_path / "data.parquet", *moments)
    view = view_of(features={"seen": Timestamp}, created="seen")
    wanted = [None if moment is None else moment.replace(tzinfo=UTC) for moment in moments]
    for sql in (None, 'SELECT k, "at", seen FROM flights'):
        view = view_of(features={"seen": Timestamp}, sql=sql)
        assert [row["seen"] for row in sorted(staged_rows(tmp_path, view), key=lambda row: row["k"])] == wanted
    view = view_of(created="seen")
    assert {row["k"]: row["created_ts"] for row in staged_rows(tmp_path, view)} == dict(enumerate(wanted))
    read = read_parquet(tmp_path / "data.parquet", "The table")
    assert read["seen"].cast(INSTANT).to_pylist() == wanted


def test_digits_below_microseconds_beside_a_sentinel_are_still_found(tmp_path: Path) -> None:
    ns = pa.array([1_704_164_645_678_901_001], pa.timestamp("ns"))
    at = pa.array([datetime(2024, 1, 2)])
    table = pa.table({"k": [1], "at": at, "seen": ns, "v": [1.5]})
    write(tmp_path / "data" / "a.parquet", table, use_deprecated_int96_timestamps=True)
    int96(tmp_path / "data" / "b.parquet", datetime(9999, 12, 31))
    with pytest.raises(SourceSchemaError, match=r"'seen' of .*a\.parquet .* digits below microseconds"):
        stage(tmp_path, view_of("data", created="seen"))


def test_an_entity_frame_with_old_timestamps_has_its_own_days(tmp_path: Path) -> None:
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(1), 7)])
    workspace = make_workspace(tmp_path, [sales_view()], now_us=day(10))
    succeeded(materialize_incremental(workspace))
    frame = pa.table({"shop": ["a", "a"], "event_timestamp": pa.array([datetime(9999, 12, 31), datetime(1, 1, 1)])})
    pq.write_table(frame, tmp_path / "frame.parquet", use_deprecated_int96_timestamps=True)
    with pytest.warns(TrainingSetWarning, match="1 of 2 entity rows"):  # one of them is far ahead
        made = get_historical_features(workspace, tmp_path / "frame.parquet", "shop_sales:amount").to_arrow()
    assert made["amount"].to_pylist() == [7, None]
    workspace.close()


def test_units_and_forms_may_differ_between_files(tmp_path: Path) -> None:
    for number, unit in enumerate(["s", "ms", "us", "ns"]):
        for zone in (None, "UTC"):
            times = (
                pa.array([1_700_000_000 + number], pa.int64()).cast(pa.timestamp("s")).cast(pa.timestamp(unit, zone))
            )
            text = pa.array(
                ["x"], [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())][number]
            )
            table = pa.table(
                {
                    "k": pa.array([number], [pa.int8(), pa.int16(), pa.uint16(), pa.uint32()][number]),
                    "at": times,
                    "v": text,
                }
            )
            write(tmp_path / "data" / f"{unit}{zone}.parquet", table)
    for sql in (None, SQL):
        rows = staged_rows(tmp_path, view_of("data", features={"v": String}, sql=sql))
        assert sorted((row["k"], row["v"], int(row["event_ts"].timestamp()) - 1_700_000_000) for row in rows) == [
            (number, "x", number) for number in range(4)
        ]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["filename", "rowid", "index", "file", "row", "l", "f", "select", "a.b", "fs_path", "k "]
)
def test_columns_that_engines_use_themselves_are_the_users(tmp_path: Path, name: str) -> None:
    values = pa.array(["x", "y", "z"])
    write(tmp_path / "data" / "day=1" / "a.parquet", table_of().append_column(name, values))
    sql = f'SELECT k, "at", "{name}" AS v FROM flights'
    found = [row["v"] for row in staged_rows(tmp_path, view_of("data", features={"v": String}, sql=sql))]
    assert sorted(found) == ["x", "y", "z"]
    if name in ("filename", "rowid", "index", "file", "row", "l", "f", "select"):
        rows = staged_rows(tmp_path, view_of("data", features={name: String}))
        assert [row[name] for row in rows] == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("floats", "limit"),
    [(np.float64, 2**53), (np.float32, 2**24), (np.float16, 2**11)],
)
@pytest.mark.parametrize("declared", [Int64, Int32], ids=str)
def test_whole_floats_are_the_integers_that_pandas_made_them_of(
    tmp_path: Path, floats: Any, limit: int, declared: ValueType
) -> None:
    largest = min(limit, 2**31) - 1 if floats is np.float64 else limit - 1
    whole = [0.0, -7.0, float(largest), -float(largest), math.nan]
    kind = pa.int64() if declared == Int64 else pa.int32()
    most = 2**62 + 1 if declared == Int64 else 2**30 + 1
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([100]), v=pa.array([most], kind)))
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array(np.arange(5.0)), v=pa.array(np.array(whole, floats))))
    view = view_of("data", features={"v": declared})
    found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view)}
    assert found == {100: most, **dict(enumerate([*map(int, whole[:-1]), None]))}
    beyond = [2.0**31, -(2.0**31) - 1, 2.0**40] if floats is np.float64 and declared == Int32 else []
    for wrong in (1.5, math.inf, float(limit), *beyond):
        write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([1]), v=pa.array(np.array([wrong], floats))))
        with pytest.raises(
            SourceError, match=r"Column 'v' of .*b\.parquet holds -?[\w.]+, which is no whole number below 2\^\d+"
        ):
            stage(tmp_path, view)


def test_a_key_of_floats_names_whole_numbers_alone(tmp_path: Path) -> None:
    write(tmp_path / "data.parquet", table_of(k=pa.array([1.0, None, 3.0])))
    assert [row["k"] for row in staged_rows(tmp_path, view_of())] == [1, 3]
    write(tmp_path / "data.parquet", table_of(k=pa.array([1.0, 2.5, 3.0])))
    with pytest.raises(SourceError, match=r"Column 'k' of .* holds 2\.5"):
        stage(tmp_path, view_of())


def test_a_day_with_a_missing_integer_is_read_by_sql_and_pinned_as_integers(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([1]), v=pa.array([2**62 + 1])))
    pd.DataFrame({"k": [2, 3], "at": pd.to_datetime([1, 2], utc=True), "v": [5, None]}).to_parquet(
        tmp_path / "data" / "b.parquet"
    )
    (column,) = (c for c in DuckEngine(tmp_path).columns(view_of("data").batch_sources[0]) if c.name == "v")
    assert column.value_type == Int64
    for sql in (None, SQL):
        view = view_of("data", features={"v": Int64}, sql=sql)
        assert {row["k"]: row["v"] for row in staged_rows(tmp_path, view)} == {1: 2**62 + 1, 2: 5, 3: None}


def test_a_day_of_whole_numbers_is_read_as_the_floats_that_are_declared(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([1, 2]), v=pa.array([2**53 - 1, None])))
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([3, 4]), v=pa.array([0.5, math.inf])))
    found = {row["k"]: row["v"] for row in staged_rows(tmp_path, view_of("data"))}
    assert found == {1: 2.0**53 - 1, 2: None, 3: 0.5, 4: math.inf}
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([1]), v=pa.array([2**53])))
    with pytest.raises(
        SourceError, match=r"Column 'v' of .*a\.parquet holds 9007199254740992, which is no whole number"
    ):
        stage(tmp_path, view_of("data"))


def test_integers_beside_fractions_are_floats_unless_integers_are_declared(tmp_path: Path) -> None:
    write(tmp_path / "data" / "a.parquet", table_of(k=pa.array([1, 2]), v=pa.array([7, None])))
    write(tmp_path / "data" / "b.parquet", table_of(k=pa.array([3]), v=pa.array([0.5])))
    (column,) = (c for c in DuckEngine(tmp_path).columns(view_of("data").batch_sources[0]) if c.name == "v")
    assert column.value_type == Float64
    for sql in (None, SQL, 'SELECT k, "at", v::DOUBLE AS v FROM flights'):
        assert {row["k"]: row["v"] for row in staged_rows(tmp_path, view_of("data", sql=sql))} == {
            1: 7.0,
            2: None,
            3: 0.5,
        }
    with pytest.raises(SourceError, match=r"Column 'v' of .*b\.parquet holds 0\.5"):
        stage(tmp_path, view_of("data", features={"v": Int64}))


def test_a_float_that_sql_computes_is_no_integer_by_declaration(tmp_path: Path) -> None:
    write(tmp_path / "data.parquet", table_of())
    with pytest.raises(SourceSchemaError, match="'v' is declared Int64, found DOUBLE"):
        stage(tmp_path, view_of(features={"v": Int64}, sql=SQL))
