"""What every engine must do with rows that fail: split files as plain loops do, and name rows as the contract says.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal as PythonDecimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import Between, FeatureView, Field, Matches, NotNull, OneOf
from featurestore.definitions.expectations import FieldRule
from featurestore.engine.checks import FAILED, ROW_ID, SplitRows, rules_of_single_rows
from featurestore.errors import DamagedFileError
from featurestore.testing.engine_checks import fails
from featurestore.testing.engine_project import (
    EngineProject,
    EngineSuite,
    damage,
    in_order,
    is_in_order,
    log_view,
    read_file,
    read_log,
    write_log,
)
from featurestore.training.reference import ReferenceRow
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
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import to_datetime, to_instant


def text_of(kind: ValueType, value: Any) -> str:
    """Return a value as the text that ids are made of."""
    if kind.item is not None:
        return "".join("-" if each is None else counted(text_of(kind.item, each)) for each in value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else f"{value:.16e}"
    if isinstance(value, datetime):
        return str(to_instant(value))
    if isinstance(value, date):
        return str(value.toordinal() - date(1970, 1, 1).toordinal())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, PythonDecimal) and kind.scale:
        return f"{value:.{kind.scale}f}".rstrip("0").rstrip(".")
    return str(value).lower() if isinstance(value, bool) else str(value)


def counted(value: str) -> str:
    """Return a text with its length before it."""
    return f"{len(value.encode())}:{value}"


def id_of(view: FeatureView, row: ReferenceRow) -> str:
    """Return the id of a row that has no equal one."""
    created = None if row.created_us is None else to_datetime(row.created_us)
    named: list[tuple[str, ValueType | None, Any]] = [
        *zip(view.join_keys, view.join_keys.values(), row.keys, strict=True),
        (EVENT, None, to_datetime(row.event_us)),
        (CREATED, None, created),
        *sorted((field.name, field.type, row.values[field.name]) for field in view.stored),
    ]
    texts = [counted(name) + counted(text_of(kind or Int64, value)) for name, kind, value in named if value is not None]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:32]


def known_of(rows: Iterable[tuple[str, int]] = ()) -> pa.Table:
    """Return known rows as `Checks.split` takes them."""
    ids, at = zip(*rows, strict=True) if (rows := list(rows)) else ((), ())
    return pa.table({ROW_ID: pa.array(ids, pa.string()), EVENT: pa.array(at, pa.timestamp("us", "UTC"))})


def split(project: EngineProject, view: FeatureView, files: Sequence[Path], known: pa.Table | None = None) -> SplitRows:
    """Split files by the view's rules."""
    folder = project.root / "split"
    folder.mkdir(exist_ok=True)
    paths = list(map(str, files))
    return project.engine.checks.split(view, paths, rules_of_single_rows(view), known or known_of(), folder)


NOON = datetime(2024, 2, 28, 12, tzinfo=UTC)
COLUMNS: dict[str, tuple[ValueType, list[Any], list[FieldRule]]] = {
    "small": (Int32, [1, None, -5, 7, 6, 0], [Between(0, 6), NotNull()]),
    "large": (Int64, [2**62 + 1, 2**62, None, -(2**62), 3, 3], [Between(None, 2**62)]),
    "wide": (Float64, [0.5, math.inf, -0.0, None, 0.1, math.nan], [Between(0.0, 9.0), NotNull(0.5)]),
    "narrow": (Float32, [0.5, 0.125, math.nan, None, -0.25, 2.0**100], [Between(-0.25, 0.5)]),
    "flag": (Bool, [True, None, False, True, True, True], [OneOf([True])]),
    "word": (
        String,
        ["é", "ab", None, "abc", "a\nb", "'; DROP--"],
        [Matches("(?s).{1,3}|'.*"), OneOf(["é", "ab", "a\nb"])],
    ),
    "at": (Timestamp, [NOON, None, NOON.replace(year=1969), NOON, NOON, NOON], [Between(NOON, None)]),
    "day": (Date, [date(1, 1, 1), date(9999, 12, 31), None, NOON.date(), NOON.date(), None], [Between(NOON.date())]),
    "price": (Decimal(20, 4), [PythonDecimal("0.0100"), None, *map(PythonDecimal, (5, 6, 7, 80))], [Between(1, 80)]),
    "Raw": (Bytes, [b"", b"\xff\x00", None, b"a", b"b", b"c"], [NotNull()]),
    "items": (Array(Float64), [[1.5, None, math.nan], [], None, [-0.0], [0.1], [1e300]], []),
    "nested": (Array(Array(String)), [[["a", None], None], [["", "b:1"]], None, [[]], [], [["a\x00"]]], []),
}
SOUND: dict[str, Any] = {
    **dict.fromkeys(COLUMNS),
    "small": 6,
    "narrow": 0.5,
    "price": PythonDecimal(1),
    "Raw": b"",
    "nested": [],
}
"""What no rule is against."""


def rows_of(number: int) -> list[ReferenceRow]:
    """Return so many rows with every value of `COLUMNS` in turn, each in a sound row: one value of one column fails."""
    rows = []
    for place in range(number):
        column = list(COLUMNS)[place % len(COLUMNS)]
        values = {**SOUND, column: COLUMNS[column][1][place // len(COLUMNS) % 6]}
        created = None if place % 2 else 5_000 + place
        rows.append(ReferenceRow((place, "Köln"), -place // 5, created, place, values))
    return rows


def all_at_once() -> list[ReferenceRow]:
    """Return six rows in which many columns fail at once."""
    values = [{name: held[row] for name, (_, held, _) in COLUMNS.items()} for row in range(6)]
    return [ReferenceRow((1_000 + row, ""), row, None, 10_000 + row, each) for row, each in enumerate(values)]


class EngineSplitsConformance(EngineSuite):
    """The suite."""

    def _view(self) -> FeatureView:
        kinds = {name: kind for name, (kind, _, _) in COLUMNS.items()}
        view = log_view("split", {"k": Int64, "town": String}, kinds)
        return view.replaced(fields=tuple(Field(n, kind, expect=rules) for n, (kind, _, rules) in COLUMNS.items()))

    def test_rows_of_every_type_are_split_and_named_as_plain_loops_do(self, project: EngineProject) -> None:
        view, log = self._view(), rows_of(6 * len(COLUMNS)) + all_at_once()
        ordered = sorted(log, key=lambda row: (row.event_us, row.created_or_event_us, row.sequence))
        files = [write_log(project.root / f"{part}.parquet", view, ordered[part::2]) for part in (0, 1)]
        expected = {}
        for row in log:
            told = [f"{name}: {rule}" for name, rule in rules_of_single_rows(view) if fails(rule, row.values[name])]
            if told:
                expected[id_of(view, row)] = told
        done = split(project, view, files)
        assert done.failing is not None
        aside = read_file(done.failing)
        found = dict(zip(aside[ROW_ID].to_pylist(), aside[FAILED].to_pylist(), strict=True))
        for row in log:
            assert found.get(id_of(view, row)) == expected.get(id_of(view, row)), row
        assert found == expected
        assert 10 < len(expected) == done.failed < len(log)
        assert (done.known, done.rows) == (0, len(log) - len(expected))
        assert aside.column_names == [ROW_ID, FAILED, "k", "town", EVENT, CREATED, *COLUMNS]
        rest = [read_file(path) for path in done.paths]
        assert all(map(is_in_order, rest))
        gone = {row.sequence for row in log if id_of(view, row) in expected}
        whole = [row for path in files for row in read_file(path).to_pylist() if row[SEQUENCE] not in gone]
        assert repr(in_order([row for part in rest for row in part.to_pylist()])) == repr(in_order(whole))
        parts = [*rest, aside]
        assert repr(sorted(map(repr, (row["nested"] for part in parts for row in part.to_pylist())))) == repr(
            sorted(repr(row.values["nested"]) for row in log)
        )

    def test_rows_that_are_known_go_and_no_others(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        view = view.replaced(fields=(Field("v", Int64, expect=[Between(0, 9)]),))
        log = [ReferenceRow((k,), 5, 7, k, {"v": v}) for k, v in enumerate([1, 2, 30, 40])]
        files = [write_log(project.root / "a.parquet", view, log)]
        known = [(id_of(view, log[1]), 5), (id_of(view, log[2]), 5), ("0" * 32, 5)]
        done = split(project, view, files, known_of(known))
        assert (done.known, done.failed, done.rows) == (2, 1, 1)
        assert done.failing is not None
        assert read_file(done.failing)["k"].to_pylist() == [3]
        assert read_log(done.paths)["k"].to_pylist() == [0]

    def test_files_of_which_nothing_goes_stay_as_they_are(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        files = [write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, 7, 0, {"v": 1})])]
        done = split(project, view, files, known_of([("0" * 32, 5)]))
        assert done == SplitRows(tuple(files), 1, 0, 0, None)
        assert list((project.root / "split").iterdir()) == []

    def test_all_rows_may_go(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        view = view.replaced(fields=(Field("v", Int64, expect=[NotNull(), Between(0, 9)]),))
        files = [write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, 7, 0, {"v": None})])]
        done = split(project, view, files)
        assert (done.paths, done.rows, done.failed) == ((), 0, 1)
        assert done.failing is not None
        assert read_file(done.failing)[FAILED].to_pylist() == [["v: NotNull()"]]

    def test_equal_rows_are_told_apart_by_their_number(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        view = view.replaced(fields=(Field("v", Int64, expect=[NotNull()]),))
        log = [ReferenceRow((1,), 5, 7, number, {"v": None}) for number in range(4)]
        files = [write_log(project.root / f"{n}.parquet", view, part) for n, part in enumerate((log[:1], log[1:]))]
        one = id_of(view, log[0])
        first = split(project, view, files[:1])
        assert first.failing is not None
        assert read_file(first.failing)[ROW_ID].to_pylist() == [one]
        again = split(project, view, files, known_of([(one, 5), (one, 5), (f"{one}-2", 5)]))
        assert (again.known, again.failed, again.rows) == (2, 2, 0)
        assert again.failing is not None
        assert read_file(again.failing)[ROW_ID].to_pylist() == [f"{one}-3", f"{one}-4"]

    def test_a_field_that_was_added_as_null_changes_no_id(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        view = view.replaced(fields=(Field("v", Int64, expect=[Between(0, 9)]),))
        row = ReferenceRow((1,), 5, 7, 0, {"v": 50})
        files = [write_log(project.root / "a.parquet", view, [row])]
        grown = view.replaced(fields=(Field("late", String), *view.stored))
        done = split(project, grown, files, known_of([(id_of(view, row), 5)]))
        assert (done.known, done.failed) == (1, 0)

    def test_a_damaged_file_is_named(self, project: EngineProject) -> None:
        view = log_view("split", {"k": Int64}, {"v": Int64})
        path = write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, 7, 0, {"v": 1})])
        damage(path, 4, path.stat().st_size - 8)
        with pytest.raises(DamagedFileError, match=r"a\.parquet"):
            split(project, view, [path])
