"""What every engine must do to profile columns: counts against a plain loop over the same rows.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as PythonDecimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import ParquetSource
from featurestore.engine.profiles import ColumnTotals, ProfiledColumns, Sample, shortened
from featurestore.errors import DamagedFileError, SourceFileError
from featurestore.testing.engine_project import EngineProject, EngineSuite, damage
from featurestore.types import (
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
)
from featurestore.types.arrow import arrow_schema

ROWS = 700
IN_PARTS, WHOLE = Sample(share=0.2, least=100, most=300), Sample(least=ROWS)
DAY = datetime(2024, 2, 28, 12, tzinfo=UTC)
KINDS: dict[str, ValueType] = {
    "row": Int64,
    "large": Int64,
    "small": Int32,
    "wide": Float64,
    "odd": Float64,
    "holes": Float64,
    "narrow": Float32,
    "nothing": Float64,
    "one": Float64,
    "flag": Bool,
    "word": String,
    "long": String,
    "raw": Bytes,
    "at": Timestamp,
    "day": Date,
    "price": Decimal(12, 2),
    "exact": Decimal(38, 10),
    "items": Array(Int64),
}


def column_of(name: str, row: int) -> Any:
    """Return the value of a column in a row: nulls, numbers that no float holds, NaN, infinities and long texts."""
    values: dict[str, Callable[[], Any]] = {
        "row": lambda: row,
        "large": lambda: 9_223_372_036_854_775_807 - row * 3,
        "small": lambda: None if row % 7 == 0 else -(row % 5),
        "wide": lambda: (-1.7e308, 1.7e308, 0.25)[row % 3],
        "odd": lambda: {1: math.nan, 2: math.inf, 3: -math.inf, 4: -0.0, 5: None}.get(row % 11, row / 8),
        "holes": lambda: math.nan if row % 13 == 0 else float(row % 9),
        "narrow": lambda: (row % 64) / 4,
        "nothing": lambda: None,
        "one": lambda: 1e9 + 0.5,
        "flag": lambda: None if row % 3 == 0 else row % 3 == 1,
        "word": lambda: ("", "é\u2028", "a'b", "0")[row % 4],
        "long": lambda: (f"{row % 6}é" * 90)[: (2, 109, 110, 180)[row % 4]],
        "raw": lambda: (bytes([row % 5, 255]) * 60)[: (2, 81, 82, 120)[row % 4]],
        "at": lambda: DAY + timedelta(microseconds=row * 1_000_003),
        "day": lambda: date(1969, 12, 30) + timedelta(days=row % 9),
        "price": lambda: PythonDecimal(row % 100).scaleb(-2),
        "exact": lambda: PythonDecimal(f"{1234567890123456789012345678 + row % 3}.0000000001"),
        "items": lambda: None if row % 10 == 0 else [row, None],
    }
    return values[name]()


def table_of_all(rows: int = ROWS) -> pa.Table:
    """Return a table with a column of every kind."""
    schema = arrow_schema(KINDS)
    return pa.table([[column_of(name, row) for row in range(rows)] for name in KINDS], schema=schema)


def totals_by_hand(name: str, values: Sequence[Any]) -> ColumnTotals:
    """Return what a loop counts of a column."""
    there = [value for value in values if value is not None]
    finite = [value for value in there if not isinstance(value, float) or math.isfinite(value)]
    counts: dict[str, Any] = {"nulls": len(values) - len(there), "not_finite": len(there) - len(finite)}
    if name == "items":
        return ColumnTotals(**counts)
    counts["distinct"] = len(set(finite))
    if not finite or name == "raw":
        return ColumnTotals(**counts)
    least, greatest = min(finite), max(finite)
    if name in ("word", "long"):
        least, greatest = shortened(least), shortened(greatest)
    counts |= {"minimum": least, "maximum": greatest}
    if KINDS[name].name in ("Int32", "Int64", "Float32", "Float64", "Decimal"):
        exact = [Fraction(value) for value in finite]
        mean = sum(exact, Fraction()) / len(exact)
        scale = max(abs(value - mean) for value in exact) or Fraction(1)  # no float holds the squares of all
        squares = sum(((value - mean) / scale) ** 2 for value in exact) / len(exact)
        counts |= {"mean": float(mean), "deviation": math.sqrt(squares) * float(scale)}
    return ColumnTotals(**counts)


def in_sample(name: str, value: Any) -> Any:
    """Return a value as a sample has it."""
    if isinstance(value, bytes):
        return shortened(base64.b64encode(value).decode(), value)
    return shortened(value) if isinstance(value, str) else value


def close(found: float | None, wanted: float | None, spread: float) -> bool:
    """Tell whether two figures of a column agree, as far as floats go."""
    if found is None or wanted is None:
        return found is wanted
    return math.isclose(found, wanted, rel_tol=1e-9, abs_tol=1e-12 * spread)


class EngineProfilesConformance(EngineSuite):
    """Totals and samples."""

    def profiled(
        self, project: EngineProject, form: str, sample: Sample, *, hidden: Sequence[str] = ()
    ) -> list[ProfiledColumns]:
        """Return the profile of the same rows as files of a log, as a source, or as a table."""
        table = table_of_all()
        rows: Any = table
        if form == "files":
            parts = [table.slice(0, 300), table.slice(300)]
            rows = [str(project.write(f"log/{n}.parquet", part, row_group_size=128)) for n, part in enumerate(parts)]
        elif form == "file":
            rows = [str(project.write("one.parquet", table, row_group_size=256))]
        elif form == "source":
            project.write("source/s.parquet", table)
            rows = ParquetSource("source", "source", "at")
        return list(project.engine.profiles.profile(rows, KINDS, hidden=hidden, sample=sample))

    @pytest.mark.parametrize("form", ["file", "files", "source", "table"])
    def test_totals_are_those_of_a_loop(self, project: EngineProject, form: str) -> None:
        parts = self.profiled(project, form, IN_PARTS)
        found = {name: totals for part in parts for name, totals in (part.totals or {}).items()}
        assert list(found) == list(KINDS)
        for name, totals in found.items():
            values = [column_of(name, row) for row in range(ROWS)]
            wanted = totals_by_hand(name, values)
            exact = ("nulls", "not_finite", "minimum", "maximum")
            assert {key: getattr(totals, key) for key in exact} == {key: getattr(wanted, key) for key in exact}, name
            spread = 0.0 if wanted.deviation is None else float(wanted.maximum) / 2 - float(wanted.minimum) / 2
            assert close(totals.mean, wanted.mean, abs(wanted.mean or 0.0)), name
            assert close(totals.deviation, wanted.deviation, spread), name
            if wanted.distinct is None or totals.distinct_within is not None:
                assert totals.distinct is None
                within = totals.distinct_within or (0, 0)
                assert within[0] <= (wanted.distinct or 0) <= within[1]
            else:
                assert totals.distinct is not None
                assert abs(totals.distinct - wanted.distinct) <= 0.12 * wanted.distinct, name

    @pytest.mark.parametrize("form", ["file", "files", "source", "table"])
    def test_a_sample_is_whole_rows_and_always_the_same(self, project: EngineProject, form: str) -> None:
        first, again = ([part.sample for part in self.profiled(project, form, IN_PARTS)] for _ in range(2))
        columns = {name: table.column(name).to_pylist() for table in first for name in table.column_names}
        assert list(columns) == [name for name in KINDS if name != "items"]
        rows = columns["row"]
        assert sorted(rows) == sorted(again[0]["row"].to_pylist())
        assert len(set(rows)) == len(rows)
        assert 100 <= len(rows) <= 200  # 140 of 700 are wanted
        assert len(rows) / 3 < sum(row < ROWS / 2 for row in rows) < len(rows) * 2 / 3
        for name, values in columns.items():
            wanted = [in_sample(name, column_of(name, row)) for row in rows]
            assert sorted(map(str, values)) == sorted(map(str, wanted)), name
        for table in first:  # values of one row stay together
            if {"row", "large"} <= {*table.column_names}:
                assert all(row["large"] == column_of("large", row["row"]) for row in table.to_pylist())

    @pytest.mark.parametrize("form", ["file", "files", "table"])
    def test_few_rows_are_taken_whole(self, project: EngineProject, form: str) -> None:
        (part,) = self.profiled(project, form, WHOLE)
        assert part.rows == part.sample.num_rows == ROWS
        if part.totals is None:
            assert part.sample.column("row").to_pylist() == list(range(ROWS))

    def test_hidden_columns_show_no_value(self, project: EngineProject) -> None:
        parts = self.profiled(project, "file", IN_PARTS, hidden=["large", "word"])
        found = {name: totals for part in parts for name, totals in (part.totals or {}).items()}
        for name, distinct in (("large", ROWS), ("word", 4)):
            assert found[name].nulls == 0
            least, most = found[name].distinct_within or (found[name].distinct or 0,) * 2
            assert least - 0.12 * distinct <= distinct <= most + 0.12 * distinct
            assert found[name].minimum is found[name].maximum is found[name].mean is None

    def test_a_column_that_files_lack_is_null_there(self, project: EngineProject) -> None:
        table = table_of_all()
        first = project.write("log/1.parquet", table.drop_columns(["wide", "word", "items"]))
        second = project.write("log/2.parquet", table)
        parts = project.engine.profiles.profile([str(first), str(second)], KINDS, sample=IN_PARTS)
        found = {name: totals for part in parts for name, totals in (part.totals or {}).items()}
        assert found["wide"].nulls == found["word"].nulls == ROWS
        assert found["items"].nulls == ROWS + ROWS // 10
        assert found["wide"].maximum == 1.7e308
        assert found["row"].nulls == 0

    @pytest.mark.parametrize("sample", [IN_PARTS, WHOLE])
    def test_no_rows_have_empty_profiles(self, project: EngineProject, sample: Sample) -> None:
        empty = project.write("empty.parquet", arrow_schema(KINDS).empty_table())
        for rows in ([], [str(empty)], ParquetSource("source", "empty.parquet", "at")):
            parts = list(project.engine.profiles.profile(rows, KINDS, sample=sample))
            assert {part.rows for part in parts} == {0}
            assert all(part.sample.num_rows == 0 for part in parts)
            for part in parts:
                assert all(totals.nulls == 0 and totals.maximum is None for totals in (part.totals or {}).values())

    def test_what_cannot_be_read_is_named(self, project: EngineProject) -> None:
        path = project.write("log/1.parquet", table_of_all())
        damage(path, 0, path.stat().st_size)
        with pytest.raises(DamagedFileError, match=r"1\.parquet"):
            list(project.engine.profiles.profile([str(path)], KINDS))
        with pytest.raises(SourceFileError, match=r"1\.parquet"):
            list(project.engine.profiles.profile(ParquetSource("source", "log", "at"), KINDS))

    def test_texts_of_megabytes_are_cut(self, project: EngineProject, tmp_path: Path) -> None:
        table = pa.table({"t": [f"{row % 2}{'x' * 3_000_000}" for row in range(60)]})
        path = project.write("log/1.parquet", table)
        (part,) = project.engine.profiles.profile([str(path)], {"t": String})
        assert sorted(set(part.sample.column("t").to_pylist())) == [
            shortened(f"{digit}{'x' * 3_000_000}") for digit in (0, 1)
        ]
        assert part.totals is not None
        assert part.totals["t"].minimum == shortened(f"0{'x' * 3_000_000}")

    def test_files_of_equal_rows_are_drawn_from_independently(self, project: EngineProject) -> None:
        files = 8
        numbers = [range(2_000 * file, 2_000 * (file + 1)) for file in range(files)]
        paths = [str(project.write(f"log/{n}.parquet", pa.table({"n": rows}))) for n, rows in enumerate(numbers)]
        profiled = project.engine.profiles.profile(paths, {"n": Int64}, sample=Sample(share=0.2, least=10))
        drawn = [number for part in profiled for number in part.sample.column("n").to_pylist()]
        rows = [{number % 2_000 for number in drawn if number // 2_000 == file} for file in range(files)]
        for first in range(files):
            for second in range(first):  # by chance 80 of some 400
                assert 40 < len(rows[first] & rows[second]) < 120

    @pytest.mark.parametrize("name", ["file_index", "File_Row_Number", "fs_position", "fs_file", "fs_profiled_row"])
    @pytest.mark.parametrize("form", ["source", "table"])
    def test_no_name_of_a_column_changes_the_sample(self, project: EngineProject, form: str, name: str) -> None:
        table = pa.table({name: [3] * 2_000, "row": range(2_000), "at": pa.array([DAY] * 2_000)})
        project.write("named.parquet", table)
        rows = ParquetSource("source", "named.parquet", "at") if form == "source" else table
        kinds = {name: Int64, "row": Int64}
        first, again = (
            [part.sample for part in project.engine.profiles.profile(rows, kinds, sample=Sample(0.2, 10))]
            for _ in range(2)
        )
        drawn = [row for part in first for row in part.column("row").to_pylist()]
        assert 300 < len(set(drawn)) == len(drawn) < 500
        assert sorted(drawn) == sorted(row for part in again for row in part.column("row").to_pylist())

    def test_a_column_may_be_called_as_the_elements_of_a_list_are(self, project: EngineProject) -> None:
        kinds = {"element": Int64, "item": Int64, "items": Array(Int64)}
        values = [range(500), range(500), [[-7, 5_000]] * 500]
        path = project.write("log/1.parquet", pa.table(values, schema=arrow_schema(kinds)))
        (part,) = project.engine.profiles.profile([str(path)], kinds, sample=Sample(0.2, 10))
        assert part.totals is not None
        for name in ("element", "item"):
            assert (part.totals[name].minimum, part.totals[name].maximum) == (0, 499)

    def test_floats_that_are_nearly_zero_have_a_deviation(self, project: EngineProject) -> None:
        path = project.write("log/1.parquet", pa.table({"x": [row * 1e-200 for row in range(500)]}))
        (part,) = project.engine.profiles.profile([str(path)], {"x": Float64}, sample=Sample(0.2, 10))
        assert part.totals is not None
        assert part.totals["x"].deviation == pytest.approx(1e-200 * math.sqrt((500**2 - 1) / 12), rel=1e-9, abs=0)
