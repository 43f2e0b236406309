"""How every engine must bring a source's values into the log: exact, at the right instant.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime
from decimal import Decimal as PythonDecimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.engine.interface import Span
from featurestore.errors import SourceError, SourceSchemaError
from featurestore.testing.engine_project import (
    EngineProject,
    EngineSuite,
    instants,
    paths_of,
    read_log,
    table_of,
    view_of,
)
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp
from featurestore.types.arrow import arrow_type

YEAR_1, YEAR_9999 = -62_135_596_800_000_000, 253_402_300_799_999_999
EXTREMES = [
    (Int32, pa.int32(), [-(2**31), 2**31 - 1, 0, None]),
    (Int64, pa.int64(), [-(2**63), 2**63 - 1, 9_007_199_254_740_993, None]),
    (Int64, pa.uint32(), [0, 2**32 - 1, None]),
    (Float32, pa.float32(), [0.10000000149011612, -0.0, 0.0, math.nan, math.inf, -math.inf, 1e-45, None]),
    (Float64, pa.float64(), [0.1, -0.0, 0.0, math.nan, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, None]),
    (Float64, pa.float32(), [0.10000000149011612, -0.0, None]),
    (Float64, pa.int32(), [-(2**31), 2**31 - 1, None]),
    (Bool, pa.bool_(), [True, False, None]),
    (String, pa.string(), ["", "x" * 1_000_000, "a|b%{}:*\n\0\t'\"", "é✈👩‍👩‍👧 e\u0301", None]),
    (String, pa.dictionary(pa.int16(), pa.large_string()), ["a", "", None]),
    (Bytes, pa.binary(), [b"", bytes(range(256)), b"\xff" * 1_000_000, None]),
    (Bytes, pa.binary(2), [b"ab", b"\0\0", None]),
    (Date, pa.date32(), [date(1, 1, 1), date(1582, 10, 10), date(1969, 12, 31), date(9999, 12, 31), None]),
    (Decimal(38, 10), pa.decimal128(38, 10), [PythonDecimal("9" * 28 + "." + "9" * 10), PythonDecimal("-1e-10"), None]),
    (Decimal(20, 4), pa.decimal128(5, 2), [PythonDecimal("999.99"), PythonDecimal("-0.01"), None]),
    (Array(Int64), pa.list_(pa.int64()), [[], [None], [2**63 - 1, None], None]),
    (Array(Array(Float64)), pa.large_list(pa.list_(pa.float32())), [[[]], [None, [0.5, None]], [], None]),
    (Array(String), pa.list_(pa.string(), 2), [["a", ""], ["b", None], None]),
    (Array(Timestamp), pa.list_(pa.timestamp("ns", tz="UTC")), [[0, None], [-62_135_596_000], None]),
    (Array(Array(Date)), pa.list_(pa.list_(pa.date32())), [[[date(1969, 12, 31), None]], None]),
]


def bits(value: object) -> object:
    """Return a value that compares as its bits do: NaN equals NaN, -0.0 is not 0.0."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return [bits(item) for item in value] if isinstance(value, list) else value


OUTSIDE = {
    "before year 1": instants(YEAR_1 - 1),
    "after year 9999": instants(YEAR_9999 + 1),
    "infinity": instants(2**63 - 1),
    "minus infinity": instants(-(2**63) + 1),
    "seconds": instants(2**40, unit="s"),
    "naive": instants(YEAR_9999 + 1, zone=None),
    "a date": pa.array([4_000_000], pa.int32()).cast(pa.date32()),
    "an infinite date": pa.array([2**31 - 1], pa.int32()).cast(pa.date32()),
}


def stage_times(
    project: EngineProject, column: pa.Array, *, by_sql: bool = False
) -> list[tuple[int | None, int | None]]:
    """Stage a source whose event and created time are the column; returns both in microseconds, by key."""
    project.write("data.parquet", table_of(k=pa.array(range(len(column))), at=column, known=column))
    sql = 'SELECT v, "at", known, k FROM flights' if by_sql else None
    staged = project.stage(view_of(created="known", sql=sql), spans=[Span(YEAR_1, YEAR_9999 + 1)])
    table = read_log(paths_of(staged)).sort_by("k")
    event, created = (table[name].cast(pa.int64()).to_pylist() for name in ("event_ts", "created_ts"))
    return list(zip(event, created, strict=True))


IN_ZONE = """
from featurestore.types import Timestamp
sql = 'SELECT k, "at", date_trunc(\\'day\\', v::TIMESTAMPTZ) AS v FROM flights'
for query in (None, sql):
    for row in project.rows(view_of(features={"v": Timestamp}, sql=query)):
        print(row["event_ts"].isoformat(), row["v"].isoformat())
"""


class EngineValuesConformance(EngineSuite):
    """The suite."""

    @pytest.mark.parametrize(("declared", "kind", "values"), EXTREMES, ids=[f"{d} from {k}" for d, k, _ in EXTREMES])
    @pytest.mark.parametrize("by_sql", [False, True], ids=["plain", "sql"])
    def test_values_survive_exactly(
        self, project: EngineProject, declared: Any, kind: Any, values: Any, by_sql: Any
    ) -> None:
        # Older pyarrow makes no dictionary of large strings at once.
        column = (
            pa.array(values).dictionary_encode().cast(kind) if "dictionary" in str(kind) else pa.array(values, kind)
        )
        project.write("data.parquet", table_of(k=pa.array(range(len(values))), v=column))
        sql = 'SELECT k, "at", v FROM flights' if by_sql else None
        view = view_of(features={"v": declared}, sql=sql)
        staged = project.stage(view)
        written = read_log(paths_of(staged))
        expected = column.cast(arrow_type(declared)).to_pylist()
        assert bits(written["v"].to_pylist()) == bits(expected)
        # And back out again, in the declared Arrow type; and a rerun finds nothing new.
        batch = project.latest(view, paths_of(staged))
        assert batch.schema.field("v").type == arrow_type(declared)
        by_key = dict(zip(batch["k"].to_pylist(), batch["v"].to_pylist(), strict=True))
        assert bits([by_key[number] for number in range(len(values))]) == bits(expected)
        again = project.stage(view, log=paths_of(staged))
        assert (again.appended, again.unchanged) == (0, len(values))

    @pytest.mark.parametrize(
        ("declared", "values"),
        [
            (Int32, [-(2**31), 2**31 - 1]),
            (Int64, [-(2**63), 2**63 - 1]),
            (String, ["", " ", "a|b", "%", "{x}", "é", "e\u0301", "x" * 300, "\n", "*", ":"]),
            (Bytes, [b"", b"\0", b"\xff" * 300]),
            (Bool, [True, False]),
            (Date, [date(1, 1, 1), date(9999, 12, 31)]),
        ],
        ids=lambda value: str(value) if not isinstance(value, list) else "",
    )
    def test_keys_of_every_type(self, project: EngineProject, declared: Any, values: Any) -> None:
        project.write("data.parquet", table_of(k=pa.array(values, arrow_type(declared))))
        view = view_of(keys={"k": declared})
        staged = project.stage(view)
        assert [row["k"] for row in read_log(paths_of(staged)).to_pylist()] == values
        assert sorted(project.latest(view, paths_of(staged))["k"].to_pylist()) == sorted(values)
        assert project.stage(view, log=paths_of(staged)).unchanged == len(values)

    @pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
    @pytest.mark.parametrize(
        ("unit", "values", "expected"),
        [
            (
                "s",
                [-2, 0, 3, YEAR_1 // 10**6, YEAR_9999 // 10**6],
                [-2 * 10**6, 0, 3 * 10**6, YEAR_1, YEAR_9999 - 999_999],
            ),
            ("ms", [-1, 1, None], [-1_000, 1_000, None]),
            ("us", [-1, 1, YEAR_1, YEAR_9999, None], [-1, 1, YEAR_1, YEAR_9999, None]),
            ("ns", [-1_001, -1_000, -999, -1, 0, 1, 999, 1_000, 1_001], [-1, -1, 0, 0, 0, 1, 1, 1, 2]),
            ("ns", [-(2**63) + 10, 2**63 - 10], [-9_223_372_036_854_775, 9_223_372_036_854_776]),
        ],
    )
    def test_instants_are_ceiled_to_microseconds(
        self, project: EngineProject, unit: Any, zone: Any, values: Any, expected: Any
    ) -> None:
        column = instants(*values, unit=unit, zone=zone)
        assert stage_times(project, column) == [(at, at) for at in expected if at is not None]
        assert stage_times(project, column, by_sql=True) == [(at, at) for at in expected if at is not None]

    def test_dates_are_the_start_of_their_day(self, project: EngineProject) -> None:
        days = [date(1, 1, 1), date(1969, 12, 31), date(1970, 1, 1), date(9999, 12, 31)]
        expected = [(day.toordinal() - 719_163) * 86_400_000_000 for day in days]
        assert stage_times(project, pa.array(days)) == [(at, at) for at in expected]
        assert stage_times(project, pa.array(days), by_sql=True) == [(at, at) for at in expected]

    def test_a_whole_int96_instant_is_read_and_a_finer_one_refused(self, project: EngineProject) -> None:
        """Some engines drop their nanoseconds while reading, and rounding down would let a row be known too early."""
        for values, fine in (([-1_000, 1_000, None], False), ([1_001, 0], True)):
            column = instants(*values, unit="ns", zone=None)
            project.write("data.parquet", table_of(at=column), use_deprecated_int96_timestamps=True)
            if fine:
                with pytest.raises(SourceSchemaError, match=r"'at' of .*data\.parquet is timestamp\[ns\] \(INT96\)"):
                    project.stage(view_of())
            else:
                assert [row["event_ts"].microsecond for row in project.rows(view_of())] == [999_999, 1]

    def test_files_with_times_in_different_units_agree(self, project: EngineProject) -> None:
        columns = {
            "a": instants(1_001, unit="ns", zone=None),
            "b": instants(2, unit="us"),
            "c": instants(1, unit="ms", zone="Asia/Tokyo"),
            "d": pa.array([date(1970, 1, 2)]),
        }
        for number, (name, column) in enumerate(columns.items()):
            if name != "d":
                project.write(f"data/{name}.parquet", table_of(k=pa.array([number]), at=column, copy=column))
        view = view_of("data", features={"copy": Timestamp})
        rows = project.rows(view)
        assert [row["event_ts"].microsecond for row in rows] == [2, 2, 1_000]
        # A feature is floored: it is a value and not a time at which something becomes known.
        assert [row["copy"].microsecond for row in rows] == [1, 2, 1_000]
        by_sql = view_of("data", features={"copy": Timestamp}, sql='SELECT k, "at", copy FROM flights')
        assert [row["copy"].microsecond for row in project.rows(by_sql)] == [1, 2, 1_000]
        project.write("data/d.parquet", table_of(k=pa.array([4]), at=columns["d"], copy=columns["b"]))
        with pytest.raises(SourceSchemaError, match="'at' is date32"):
            project.stage(view)

    @pytest.mark.parametrize("name", OUTSIDE)
    @pytest.mark.parametrize("role", ["at", "known", "v"])
    @pytest.mark.parametrize("by_sql", [False, True], ids=["plain", "sql"])
    def test_times_outside_the_calendar_are_told(
        self, project: EngineProject, name: Any, role: Any, by_sql: Any
    ) -> None:
        column = OUTSIDE[name]
        table = table_of(k=pa.array([1]), at=instants(1), known=instants(1), v=column)
        table = table.set_column(table.schema.names.index(role), role, column)
        project.write("data.parquet", table)
        kind = Date if pa.types.is_date(column.type) else Timestamp
        if role != "v":
            kind, table = Float64, table.set_column(table.schema.names.index("v"), "v", pa.array([1.5]))
            project.write("data.parquet", table)
        sql = 'SELECT k, "at", known, v FROM flights' if by_sql else None
        view = view_of(created="known", features={"v": kind}, sql=sql)
        with pytest.raises(
            SourceError, match=rf"(?i)'{role}' holds a (time|date) outside the years|out of range|convert"
        ):
            project.stage(view)

    def test_the_process_time_zone_does_not_matter(self, project: EngineProject) -> None:
        column = pa.array([datetime(2013, 11, 3, 1, 30), datetime(2013, 3, 10, 2, 30)], pa.timestamp("us"))
        project.write("data.parquet", table_of(at=column, v=column))
        output, *others = project.run_in_zones(IN_ZONE)
        assert others == [output] * 2
        assert output[1] == "2013-11-03T01:30:00+00:00 2013-11-03T01:30:00+00:00"
        assert output[3] == "2013-11-03T01:30:00+00:00 2013-11-03T00:00:00+00:00"

    def test_a_feature_may_be_a_time_or_a_key(self, project: EngineProject) -> None:
        project.write("data.parquet", table_of(at=instants(1_001, unit="ns", zone=None), k=pa.array([7])))
        (row,) = project.rows(view_of(features={"at": Timestamp}))
        assert (row["event_ts"].microsecond, row["at"].microsecond) == (2, 1)

    def test_dates_of_the_calendar_change_are_not_shifted(self, project: EngineProject) -> None:
        """A calendar library that knows of 1582 would move what lies before by ten days."""
        moment = datetime(1500, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
        project.write("data.parquet", table_of(at=pa.array([moment], pa.timestamp("us", tz="UTC")), k=pa.array([1])))
        (row,) = project.rows(view_of())
        assert row["event_ts"] == moment
