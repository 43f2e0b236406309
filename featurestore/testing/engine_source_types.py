"""How every engine must read files of one source from different writers: nulls, old times, floats.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal as PythonDecimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.errors import SourceError, SourceSchemaError
from featurestore.testing.engine_project import (
    INSTANT,
    EngineProject,
    EngineSuite,
    instants,
    source_at,
    table_of,
    view_of,
)
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
    (Decimal(10, 2), PythonDecimal("1.50"), pa.decimal128(10, 2)),
    (Array(String), ["x"], pa.list_(pa.string())),
]

EMPTY = {
    "columns alone": pd.DataFrame(columns=["k", "at", "v"]),
    "objects": pd.DataFrame({"k": [1], "at": pd.to_datetime(["2024-01-01"]), "v": ["a"]}, dtype=object).iloc[:0],
    "floats": pd.DataFrame({"k": [1.5], "at": [1.5], "v": [1.5]}).iloc[:0],
    "texts": pd.DataFrame({"k": ["a"], "at": ["a"], "v": ["a"]}).iloc[:0],
}

SENTINELS = [datetime(9999, 12, 31), datetime(1, 1, 1), datetime(1677, 9, 21), datetime(2262, 4, 12)]


def write_int96(project: EngineProject, path: str, *moments: datetime | None) -> None:
    """Write instants in the form of old writers, as the column ``seen``."""
    count = len(moments)
    column = pa.array(moments, pa.timestamp("us"))
    table = pa.table(
        {"k": range(count), "at": pa.array([datetime(2024, 1, 2)] * count), "seen": column, "v": [1.5] * count}
    )
    project.write(path, table, use_deprecated_int96_timestamps=True)


class EngineSourceTypesConformance(EngineSuite):
    """The suite."""

    @pytest.mark.parametrize("first", ["a", "z"], ids=["before", "after"])
    @pytest.mark.parametrize(("declared", "value", "kind"), TYPES, ids=lambda given: str(given)[:12])
    def test_a_column_without_a_value_in_a_file_has_no_type_there(
        self, project: EngineProject, declared: ValueType, value: Any, kind: pa.DataType, first: str
    ) -> None:
        project.write("data/m.parquet", table_of(k=pa.array([100]), v=pa.array([value], kind)))
        for number, nulls in enumerate(NULLS.values()):
            keys = pa.array([2 * number, 2 * number + 1])
            project.write(f"data/{first}{number}.parquet", table_of(k=keys, v=nulls))
        for sql in (None, SQL):
            view = view_of("data", features={"v": declared}, sql=sql)
            found = {row["k"]: row["v"] for row in project.rows(view)}
            nothing = dict.fromkeys(range(2 * len(NULLS)))
            if declared == Float64:  # here NaN is a value, and so it is in the file of 16 bits
                assert all(math.isnan(found.pop(key)) for key in (4, 6, 7))
                nothing = {key: None for key in nothing if key not in (4, 6, 7)}
            assert found == {100: value, **nothing}
        assert project.value_types(view_of("data", features={"v": declared}))["v"] == declared

    @pytest.mark.parametrize("declared", [String, Bool, Array(Int64), Date, Int64], ids=str)
    @pytest.mark.parametrize("case", NULLS)
    def test_a_source_without_a_value_yet_fits_what_is_declared(
        self, project: EngineProject, case: str, declared: ValueType
    ) -> None:
        project.write("data.parquet", table_of(k=pa.array([1, 2]), v=NULLS[case]))
        assert [row["v"] for row in project.rows(view_of(features={"v": declared}))] == [None, None]

    @pytest.mark.parametrize(
        "one", [pa.array([math.nan, 1.0]), pa.array([None, 1]), pa.array([[], None], pa.list_(pa.null()))]
    )
    def test_one_value_is_enough_for_a_contradiction(self, project: EngineProject, one: pa.Array) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1, 2]), v=one))
        with pytest.raises(SourceSchemaError, match="feature 'v' is declared String"):
            project.stage(view_of("data", features={"v": String}))
        project.write("data/b.parquet", table_of(v=pa.array(["x"] * 3)))
        for sql in (None, SQL):
            with pytest.raises(SourceSchemaError, match=r"its files disagree:\n  - column 'v' is string in b\.parquet"):
                project.stage(view_of("data", features={"v": String}, sql=sql))

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
        self, project: EngineProject, nulls: pa.DataType, declared: ValueType, kind: pa.DataType, full: list[Any]
    ) -> None:
        empty = table_of(k=pa.array([1, 2, 3]), v=pa.array([[], None, [None]], nulls))
        project.write("one.parquet", empty)
        project.write("data/a.parquet", empty)
        project.write("data/b.parquet", table_of(k=pa.array([4]), v=pa.array([full], kind)))
        for sql in (None, SQL):
            for path, more in (("one.parquet", {}), ("data", {4: full})):
                rows = project.rows(view_of(path, features={"v": declared}, sql=sql))
                assert {row["k"]: row["v"] for row in rows} == {1: [], 2: None, 3: [None], **more}

    def test_deeper_lists_of_nulls(self, project: EngineProject) -> None:
        deep = pa.array([[[]], [None, [None]], None], pa.list_(pa.list_(pa.null())))
        project.write("data/a.parquet", table_of(v=deep))
        project.write("data/b.parquet", table_of(k=pa.array([7]), v=pa.array([[[1]]])))
        project.write("data/c.parquet", table_of(k=pa.array([8]), v=pa.array([[]], pa.list_(pa.null()))))
        for sql in (None, SQL):
            rows = project.rows(view_of("data", features={"v": Array(Array(Int64))}, sql=sql))
            assert [row["v"] for row in sorted(rows, key=lambda row: row["k"])] == [
                [[]],
                [None, [None]],
                None,
                [[1]],
                [],
            ]
        project.write("data/c.parquet", table_of(k=pa.array([8]), v=pa.array([[1]])))
        with pytest.raises(SourceSchemaError, match="its files disagree"):
            project.columns(source_at("data"))

    def test_columns_that_no_feature_can_have_may_be_null_elsewhere(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of(note=pa.array([{"a": 1}] * 3)))
        project.write("data/b.parquet", table_of(k=pa.array([7]), note=pa.nulls(1)))
        project.write("data/c.parquet", table_of(k=pa.array([8])))
        sql = 'SELECT k, "at", note.a AS v FROM flights'
        found = {row["k"]: row["v"] for row in project.rows(view_of("data", features={"v": Int64}, sql=sql))}
        assert found == {0: 1, 1: 1, 2: 1, 7: None, 8: None}
        project.write("data/a.parquet", table_of(note=pa.nulls(3)))
        sql = 'SELECT k, "at", note::VARCHAR AS v FROM flights'
        assert {row["v"] for row in project.rows(view_of("data", features={"v": String}, sql=sql))} == {None}

    @pytest.mark.parametrize("case", EMPTY)
    def test_the_file_of_an_empty_frame(self, project: EngineProject, case: str) -> None:
        (project.root / "data").mkdir()
        EMPTY[case].to_parquet(project.root / "data" / "a.parquet")
        for features in ({"v": String}, {"v": Float64}):
            assert project.rows(view_of("data", features=features)) == []
        project.write("data/b.parquet", table_of())
        for sql in (None, SQL):
            assert len(project.rows(view_of("data", sql=sql))) == 3

    @pytest.mark.parametrize("gone", ["k", "at", "known"])
    def test_a_file_without_key_or_time_is_named(self, project: EngineProject, gone: str) -> None:
        table = table_of(known=instants(1, 2, 3))
        project.write("data/a.parquet", table)
        project.write("data/b.parquet", table.drop_columns([gone]))
        view = view_of("data", created="known")
        for call in (project.columns, project.first_event_us, lambda view: project.stage(view)):
            with pytest.raises(
                SourceSchemaError, match=rf"b\.parquet has no (join key|time column) '{gone}'"
            ) as caught:
                call(view)
            assert len(caught.value.details["problems"]) == 1
        plain = view_of("data", created="known", sql="SELECT * FROM flights")
        with pytest.raises(SourceSchemaError, match=rf"b\.parquet has no (join key|time column) '{gone}'"):
            project.stage(plain)
        sql = view_of("data", sql='SELECT coalesce(k, -1) AS k, coalesce("at", now()) AS "at", v FROM flights')
        assert len(project.stage(sql).paths) == 1

    @pytest.mark.parametrize("sql", [None, "SELECT * FROM flights"])
    def test_a_file_without_rows_lacks_nothing(self, project: EngineProject, sql: str | None) -> None:
        project.write("data/a.parquet", table_of())
        pd.DataFrame().to_parquet(project.root / "data" / "b.parquet")
        assert len(project.rows(view_of("data", sql=sql))) == 3

    @pytest.mark.parametrize("sentinel", SENTINELS, ids=str)
    def test_old_timestamps_may_hold_any_day(self, project: EngineProject, sentinel: datetime) -> None:
        moments = [datetime(2024, 1, 2, 3, 4, 5, 678901), sentinel, None]
        write_int96(project, "data.parquet", *moments)
        view = view_of(features={"seen": Timestamp}, created="seen")
        wanted = [None if moment is None else moment.replace(tzinfo=UTC) for moment in moments]
        for sql in (None, 'SELECT k, "at", seen FROM flights'):
            view = view_of(features={"seen": Timestamp}, sql=sql)
            assert [row["seen"] for row in sorted(project.rows(view), key=lambda row: row["k"])] == wanted
        view = view_of(created="seen")
        assert {row["k"]: row["created_ts"] for row in project.rows(view)} == dict(enumerate(wanted))

    def test_digits_below_microseconds_beside_a_sentinel_are_still_found(self, project: EngineProject) -> None:
        ns = pa.array([1_704_164_645_678_901_001], pa.timestamp("ns"))
        at = pa.array([datetime(2024, 1, 2)])
        table = pa.table({"k": [1], "at": at, "seen": ns, "v": [1.5]})
        project.write("data/a.parquet", table, use_deprecated_int96_timestamps=True)
        write_int96(project, "data/b.parquet", datetime(9999, 12, 31))
        with pytest.raises(SourceSchemaError, match=r"'seen' of .*a\.parquet .* digits below microseconds"):
            project.stage(view_of("data", created="seen"))

    def test_units_and_forms_may_differ_between_files(self, project: EngineProject) -> None:
        for number, unit in enumerate(["s", "ms", "us", "ns"]):
            for zone in (None, "UTC"):
                times = (
                    pa.array([1_700_000_000 + number], pa.int64())
                    .cast(pa.timestamp("s"))
                    .cast(pa.timestamp(unit, zone))
                )
                text = pa.array(
                    ["x"],
                    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())][number],
                )
                table = pa.table(
                    {
                        "k": pa.array([number], [pa.int8(), pa.int16(), pa.uint16(), pa.uint32()][number]),
                        "at": times,
                        "v": text,
                    }
                )
                project.write(f"data/{unit}{zone}.parquet", table)
        for sql in (None, SQL):
            rows = project.rows(view_of("data", features={"v": String}, sql=sql))
            assert sorted((row["k"], row["v"], int(row["event_ts"].timestamp()) - 1_700_000_000) for row in rows) == [
                (number, "x", number) for number in range(4)
            ]  # fmt: skip

    @pytest.mark.parametrize(
        "name", ["filename", "rowid", "index", "file", "row", "l", "f", "select", "a.b", "fs_path", "k "]
    )
    def test_columns_that_engines_use_themselves_are_the_users(self, project: EngineProject, name: str) -> None:
        values = pa.array(["x", "y", "z"])
        project.write("data/day=1/a.parquet", table_of().append_column(name, values))
        sql = f'SELECT k, "at", "{name}" AS v FROM flights'
        found = [row["v"] for row in project.rows(view_of("data", features={"v": String}, sql=sql))]
        assert sorted(found) == ["x", "y", "z"]
        if name in ("filename", "rowid", "index", "file", "row", "l", "f", "select"):
            rows = project.rows(view_of("data", features={name: String}))
            assert [row[name] for row in rows] == ["x", "y", "z"]

    @pytest.mark.parametrize(
        ("floats", "limit"),
        [(np.float64, 2**53), (np.float32, 2**24), (np.float16, 2**11)],
    )
    @pytest.mark.parametrize("declared", [Int64, Int32], ids=str)
    def test_whole_floats_are_the_integers_that_pandas_made_them_of(
        self, project: EngineProject, floats: Any, limit: int, declared: ValueType
    ) -> None:
        largest = min(limit, 2**31) - 1 if floats is np.float64 else limit - 1
        least = -(2**31) if floats is np.float64 and declared == Int32 else -largest
        whole = [0.0, -7.0, float(largest), float(least), math.nan]
        kind = pa.int64() if declared == Int64 else pa.int32()
        most = 2**62 + 1 if declared == Int64 else 2**30 + 1
        project.write("data/a.parquet", table_of(k=pa.array([100]), v=pa.array([most], kind)))
        project.write("data/b.parquet", table_of(k=pa.array(np.arange(5.0)), v=pa.array(np.array(whole, floats))))
        view = view_of("data", features={"v": declared})
        found = {row["k"]: row["v"] for row in project.rows(view)}
        assert found == {100: most, **dict(enumerate([*map(int, whole[:-1]), None]))}
        beyond = [2.0**31, -(2.0**31) - 1, 2.0**40] if floats is np.float64 and declared == Int32 else []
        for wrong in (1.5, math.inf, float(limit), *beyond):
            project.write("data/b.parquet", table_of(k=pa.array([1]), v=pa.array(np.array([wrong], floats))))
            with pytest.raises(
                SourceError,
                match=r"Column 'v' of .*b\.parquet holds -?[\w.]+, which is not a whole number below 2\^\d+",
            ):
                project.stage(view)

    def test_a_key_of_floats_names_whole_numbers_alone(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(k=pa.array([1.0, None, 3.0])))
        assert [row["k"] for row in project.rows(view_of())] == [1, 3]
        project.write("data.parquet", table_of(k=pa.array([1.0, 2.5, 3.0])))
        with pytest.raises(SourceError, match=r"Column 'k' of .* holds 2\.5"):
            project.stage(view_of())

    def test_a_day_with_a_missing_integer_is_read_by_sql_and_pinned_as_integers(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1]), v=pa.array([2**62 + 1])))
        pd.DataFrame({"k": [2, 3], "at": pd.to_datetime([1, 2], utc=True), "v": [5, None]}).to_parquet(
            project.root / "data" / "b.parquet"
        )
        assert project.value_types(source_at("data"))["v"] == Int64
        for sql in (None, SQL):
            view = view_of("data", features={"v": Int64}, sql=sql)
            assert {row["k"]: row["v"] for row in project.rows(view)} == {1: 2**62 + 1, 2: 5, 3: None}

    def test_a_day_of_whole_numbers_is_read_as_the_floats_that_are_declared(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1, 2]), v=pa.array([2**53 - 1, None])))
        project.write("data/b.parquet", table_of(k=pa.array([3, 4]), v=pa.array([0.5, math.inf])))
        found = {row["k"]: row["v"] for row in project.rows(view_of("data"))}
        assert found == {1: 2.0**53 - 1, 2: None, 3: 0.5, 4: math.inf}
        project.write("data/a.parquet", table_of(k=pa.array([1]), v=pa.array([2**53])))
        with pytest.raises(
            SourceError, match=r"Column 'v' of .*a\.parquet holds 9007199254740992, which is not a whole number"
        ):
            project.stage(view_of("data"))

    def test_integers_beside_fractions_are_floats_unless_integers_are_declared(self, project: EngineProject) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1, 2]), v=pa.array([7, None])))
        project.write("data/b.parquet", table_of(k=pa.array([3]), v=pa.array([0.5])))
        assert project.value_types(source_at("data"))["v"] == Float64
        for sql in (None, SQL, 'SELECT k, "at", v::DOUBLE AS v FROM flights'):
            assert {row["k"]: row["v"] for row in project.rows(view_of("data", sql=sql))} == {
                1: 7.0,
                2: None,
                3: 0.5,
            }
        with pytest.raises(SourceError, match=r"Column 'v' of .*b\.parquet holds 0\.5"):
            project.stage(view_of("data", features={"v": Int64}))

    def test_sql_of_floats_may_find_whole_numbers_another_day(self, project: EngineProject) -> None:
        floats = pa.array([1.0, None])
        for sql in (SQL, 'SELECT k, "at", sum(v) AS v FROM flights GROUP BY ALL'):
            project.write("data/a.parquet", table_of(k=pa.array([1, 2]), v=floats))
            view = view_of("data", sql=sql)
            assert {row["k"]: row["v"] for row in project.rows(view)} == {1: 1.0, 2: None}
            project.write("data/b.parquet", table_of(k=pa.array([3]), v=pa.array([2**53 - 1])))
            assert {row["k"]: row["v"] for row in project.rows(view)} == {1: 1.0, 2: None, 3: 2.0**53 - 1}
            project.write("data/b.parquet", table_of(k=pa.array([3]), v=pa.array([2**53])))
            with pytest.raises(SourceError, match="Column 'v' holds 9007199254740992, which is not a whole number"):
                project.rows(view)
            (project.root / "data" / "b.parquet").unlink()

    @pytest.mark.parametrize(("width", "limit"), [(np.float32, 2**24), (np.float16, 2**11)])
    def test_narrow_floats_that_may_be_several_integers_are_no_integers(
        self, project: EngineProject, width: Any, limit: int
    ) -> None:
        project.write("data/a.parquet", table_of(k=pa.array([1]), v=pa.array([5])))
        for number, wanted in ((limit - 1, Int64), (limit, Float64)):
            project.write("data/b.parquet", table_of(k=pa.array([2]), v=pa.array(np.array([number], width))))
            assert project.value_types(source_at("data"))["v"] == wanted
            view = view_of("data", features={"v": wanted})
            assert {row["k"]: row["v"] for row in project.rows(view)} == {1: 5, 2: number}

    def test_a_float_that_sql_computes_is_no_integer_by_declaration(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of())
        with pytest.raises(SourceSchemaError, match=r"(?i)'v' is declared Int64, found double"):
            project.stage(view_of(features={"v": Int64}, sql=SQL))
