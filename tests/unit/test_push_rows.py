"""Pushed rows of every form and type, few and many: Arrow columns, records and errors, beside a loop over values."""

from __future__ import annotations

import datetime as dt
import math
import struct
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.errors import InputError, ValueTypeError
from featurestore.ingest.rows import FEW, PushedRows, read_rows
from featurestore.online.interface import ViewLayout
from featurestore.online.records.encoder import RecordEncoder
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
from featurestore.types.arrow import arrow_type
from featurestore.types.times import to_instant
from featurestore.types.values import coerce, from_json, to_json

NOW = to_instant("2024-01-31T00:00:00Z")
UNTIL = NOW + 5_000_000
EARLY = "2024-01-02T03:04:05.678901Z"

VALUES: dict[ValueType, list[Any]] = {
    Int32: [-(2**31), 2**31 - 1, None, 0],
    Int64: [-(2**63), 2**63 - 1, None, 2**53 + 1],
    Float32: [0.1, -0.0, None, struct.unpack("<f", struct.pack("<f", 1e-45))[0]],
    Float64: [0.1, -0.0, None, math.inf, 5e-324],
    Bool: [True, False, None],
    String: ["", "é🛬\x00", None],
    Bytes: [b"", b"\x00\xff", None],
    Timestamp: [dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=dt.UTC), None],
    Date: [dt.date(1, 1, 1), dt.date(9999, 12, 31), None],
    Decimal(38, 10): [D("1234567890123456789012345678.0123456789"), D(-1), None],
    Array(Int64): [[], [1, None, 2**60], None],
    Array(Array(String)): [[["a"], None, []], None],
    Array(Timestamp): [[dt.datetime(2024, 1, 1, tzinfo=dt.UTC), None]],
}
FEATURES = {f"f{number}": kind for number, kind in enumerate(VALUES)}
SIZES = [5, FEW + 5]


def view_of(features: dict[str, ValueType]) -> FeatureView:
    source = PushSource("pushed", ParquetSource("source", "source.parquet", "at", "known"))
    fields = [Field(name, kind) for name, kind in features.items()]
    return FeatureView("view", entities=[Entity("id", {"id": Int64})], source=source, schema=fields)


def lists_of(size: int) -> dict[str, list[Any]]:
    columns = {name: [VALUES[kind][row % len(VALUES[kind])] for row in range(size)] for name, kind in FEATURES.items()}
    times = [dt.datetime(2024, 1, 2, tzinfo=dt.UTC) + dt.timedelta(seconds=row) for row in range(size)]
    return {"id": list(range(size)), "at": times, **columns}


def arrow_of(lists: dict[str, list[Any]]) -> pa.Table:
    kinds = {"id": Int64, "at": Timestamp, **FEATURES}
    return pa.table({name: pa.array(values, arrow_type(kinds[name])) for name, values in lists.items()})


def json_of(lists: dict[str, list[Any]]) -> dict[str, list[Any]]:
    kinds = {"id": Int64, "at": Timestamp, **FEATURES}
    return {name: [to_json(kinds[name], value) for value in values] for name, values in lists.items()}


def same(left: Any, right: Any) -> bool:
    """Tell whether two values are the same, 0.0 and -0.0 apart, NaN equal to itself."""
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("<d", left) == struct.pack("<d", right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "form", ["lists", "tuples", "dicts", "arrow", "batch", "reader", "polars", "lazy", "parquet", "json"]
)
def test_every_type_in_every_form(form: str, size: int, tmp_path: Path) -> None:
    lists = lists_of(size)
    table = arrow_of(lists)
    if form == "json":
        rows = PushedRows(json_of(lists), json=True)
    else:
        path = tmp_path / "rows.parquet"
        pq.write_table(table, path)
        forms: dict[str, Any] = {
            "lists": lists,
            "tuples": {name: tuple(values) for name, values in lists.items()},
            "dicts": [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)],
            "arrow": table,
            "batch": table.to_batches()[0],
            "reader": table.to_reader(),
            "polars": pl.DataFrame(table),
            "lazy": pl.LazyFrame(table),
            "parquet": path,
        }
        rows = read_rows(forms[form])
    checked = rows.of_view(view_of(FEATURES), now_us=NOW, until_us=UNTIL)
    found = checked.table()
    assert found.column_names == ["id", "event_ts", "created_ts", *FEATURES]
    assert [found.schema.field(name).type for name in FEATURES] == [arrow_type(kind) for kind in FEATURES.values()]
    for name, kind in FEATURES.items():
        expected = [coerce(kind, value) for value in lists[name]]
        if form == "json":
            expected = [from_json(kind, to_json(kind, value)) for value in lists[name]]
        got = [coerce(kind, value) for value in found[name].to_pylist()]
        assert all(map(same, got, expected)), (name, kind, got, expected)
    assert found["event_ts"].to_pylist() == lists["at"]
    assert {to_instant(value) for value in found["created_ts"].to_pylist()} == {NOW}
    layout = ViewLayout("p", "view", 1, (("id", Int64),), tuple(FEATURES.items()), None)
    encoder = RecordEncoder(layout)
    written = [write for batch in checked.writes(encoder, 7) for write in batch]
    assert sorted(written) == sorted(encoder.encode_table(found))  # in any order of keys


def test_pandas_as_people_have_it() -> None:
    frame = pd.DataFrame(
        {
            "id": np.array([1, 2, 3]),
            "at": pd.to_datetime(["2024-01-02T00:00:00.000000001", "2024-01-03", "2024-01-04"], format="ISO8601"),
            "count": [1.0, np.nan, 3.0],
            "price": [1, 2, 3],
            "text": pd.Categorical(["a", None, "b"]),
            "money": [D("1.5"), None, D("2")],
            "ignored": [object(), 1, "mixed"],
        },
        index=[7, 7, 9],
    )
    features = {"count": Int64, "price": Float64, "text": String, "money": Decimal(10, 2)}
    found = read_rows(frame).of_view(view_of(features), now_us=NOW, until_us=UNTIL).table()
    assert found.drop_columns(["event_ts", "created_ts"]).to_pydict() == {
        "id": [1, 2, 3],
        "count": [1, None, 3],
        "price": [1.0, 2.0, 3.0],
        "text": ["a", None, "b"],
        "money": [D("1.50"), None, D("2.00")],
    }
    assert to_instant(found["event_ts"][0].as_py()) == to_instant("2024-01-02T00:00:00.000001Z")


@pytest.mark.parametrize(
    ("given", "ceiled"),
    [
        ("2024-01-02T03:04:05.678901Z", EARLY),
        ("2024-01-02T03:04:05.6789001Z", EARLY),
        ("2024-01-02T03:04:05.678901000Z", EARLY),
        ("2024-01-02T04:04:05,678900999999+01:00", EARLY),
        ("1969-12-31T23:59:59.9999991Z", "1970-01-01T00:00:00Z"),
        ("2024-01-02", "2024-01-02T00:00:00Z"),
        (dt.datetime(2024, 1, 2), "2024-01-02T00:00:00Z"),
        (pd.Timestamp("2024-01-02T03:04:05.678900001Z"), EARLY),
        (pd.Timestamp("1969-12-31T23:59:59.999999001Z"), "1970-01-01T00:00:00Z"),
        (np.datetime64("2024-01-02T03:04:05.678901", "us"), EARLY),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_times_are_ceiled(given: Any, ceiled: str, size: int) -> None:
    for columns in ({"at": [given] * size}, {"at": [EARLY] * size, "known": [None, *[given] * (size - 1)]}):
        rows = read_rows({"id": list(range(size)), "x": [1] * size, **columns})
        found = rows.of_view(view_of({"x": Int64}), now_us=NOW, until_us=UNTIL).table()
        name = "event_ts" if "known" not in columns else "created_ts"
        instants = [to_instant(value) for value in found[name].to_pylist()]
        assert instants[1:] == [to_instant(ceiled)] * (size - 1)
        assert instants[0] == (to_instant(ceiled) if name == "event_ts" else NOW)


@given(st.integers(-(10**18), 10**18), st.sampled_from(["ns", "us", "ms", "s"]))
def test_typed_times_are_ceiled(ticks: int, unit: str) -> None:
    per_us = {"ns": (1, 1000), "us": (1, 1), "ms": (1000, 1), "s": (10**6, 1)}[unit]
    expected = -(-ticks * per_us[0] // per_us[1])
    column = pa.array([ticks], pa.int64()).cast(pa.timestamp(unit, "Asia/Kolkata"))
    rows = read_rows(pa.table({"id": [1], "at": column, "x": [1]}))
    if not to_instant("0001-01-01T00:00:00Z") <= expected <= UNTIL:
        with pytest.raises(ValueTypeError, match="'at'"):
            rows.of_view(view_of({"x": Int64}), now_us=NOW, until_us=UNTIL)
        return
    found = rows.of_view(view_of({"x": Int64}), now_us=NOW, until_us=UNTIL)
    assert found.table()["event_ts"].cast(pa.int64()).to_pylist() == [expected]


WRONG: list[tuple[ValueType, Any]] = [
    (Int32, 2**31),
    (Int64, 1.5),
    (Int64, "1"),
    (Int64, True),
    (Float32, 1e300),
    (Float64, 2**53 + 1),
    (Float64, "nan"),
    (Bool, 1),
    (String, 1),
    (String, "\ud800"),
    (Bytes, "text"),
    (Date, dt.datetime(2024, 1, 1)),
    (Timestamp, 1),
    (Timestamp, dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))),
    (Decimal(4, 1), D("0.25")),
    (Decimal(4, 1), D(1000)),
    (Array(Int64), [1, "2"]),
    (Array(Int64), 1),
]


@pytest.mark.uncounted
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("kind", "wrong"), WRONG, ids=lambda value: str(value)[:20])
def test_a_value_that_does_not_fit_is_named_with_its_row(kind: ValueType, wrong: Any, size: int) -> None:
    values = [*[VALUES.get(kind, [None])[0]] * (size - 2), wrong, None]
    rows = read_rows({"id": list(range(size)), "at": [EARLY] * size, "x": values})
    with pytest.raises(ValueTypeError, match=rf"column 'x', row {size - 2}: ") as caught:
        rows.of_view(view_of({"x": kind}), now_us=NOW, until_us=UNTIL)
    assert caught.value.details["row"] == size - 2


class Text(str):
    """No text to Arrow's quick way, and one to ours."""


OFFSETS = st.timedeltas(dt.timedelta(hours=-14), dt.timedelta(hours=14)).map(dt.timezone)
DATETIMES = [
    st.datetimes(),
    st.datetimes(timezones=st.just(dt.UTC)),
    st.datetimes(timezones=st.just(ZoneInfo("UTC"))),
    st.datetimes(timezones=st.just(ZoneInfo("Europe/Dublin"))),
    st.datetimes(timezones=OFFSETS),
    st.datetimes(timezones=st.shared(OFFSETS)),
    st.datetimes(timezones=st.timezones()),
]
TYPED: dict[ValueType, list[st.SearchStrategy[Any]]] = {
    Int32: [st.integers(-(2**31), 2**31 - 1), st.integers(-(2**33), 2**33)],
    Int64: [st.integers(-(2**63), 2**63 - 1), st.integers()],
    Float32: [st.floats(width=32), st.floats()],
    Float64: [st.floats()],
    Bool: [st.booleans()],
    String: [st.text()],
    Bytes: [st.binary()],
    Timestamp: DATETIMES,
    Date: [st.dates()],
    Decimal(4, 1): [st.decimals(-1000, 1000, places=1), st.decimals(-1000, 1000, places=3), st.decimals()],
    Decimal(38, 10): [st.decimals(allow_nan=False, allow_infinity=False, places=10), st.decimals()],
    Array(Float32): [st.lists(st.none() | st.floats(width=32))],
    Array(Timestamp): [st.lists(st.none() | st.one_of(DATETIMES))],
    Array(Array(Decimal(4, 1))): [st.lists(st.none() | st.lists(st.decimals(-1000, 1000, places=1)))],
}
OF_ANY_KIND = st.one_of(
    *[one for several in TYPED.values() for one in several],
    st.datetimes(dt.datetime(1678, 1, 1), dt.datetime(2262, 1, 1)).map(pd.Timestamp),
    st.integers(-(2**62), 2**62).map(lambda ns: pd.Timestamp(ns, tz="Asia/Kolkata")),
    st.integers(-(2**62), 2**62).map(lambda us: np.datetime64(us, "us")),
    st.text().map(Text),
    st.integers(-128, 127).map(np.int8),
    st.floats().map(np.float64),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.binary().map(bytearray),
    st.lists(st.floats()).map(tuple),
    st.lists(st.floats(width=32)).map(lambda numbers: np.array(numbers, np.float32)),
    st.sampled_from([pd.NaT, pd.NA, D("-0"), D("0E+50"), D("1.00000000000000000000000000000000000000000"), D("1E+2")]),
    st.datetimes(timezones=st.timezones()).map(dt.datetime.isoformat),
    st.sampled_from([EARLY, "2024-01-02T03:04:05.6789001Z", "", "2024-01-02", "noon"]),
)


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, ValueType, list[Any]]:
    """Return the name and type of a column, and values, often all of its kind."""
    name = draw(st.sampled_from(["x", "x", "at", "known"]))
    kind = draw(st.sampled_from(list(TYPED))) if name == "x" else Timestamp
    one = draw(st.sampled_from(TYPED[kind]))
    values = draw(st.sampled_from([one, st.none() | one, st.one_of(TYPED[kind]), st.none() | one | OF_ANY_KIND]))
    return name, kind, draw(st.lists(values, min_size=1, max_size=6))


def outcome(lists: dict[str, list[Any]], kind: ValueType, *, json: bool) -> pa.Table | tuple[Any, ...]:
    """Return the rows of a push, or the error that names what does not fit."""
    try:
        rows = PushedRows(lists, json=True) if json else read_rows(lists)
        return rows.of_view(view_of({"x": kind}), now_us=NOW, until_us=UNTIL).table()
    except InputError as error:
        return type(error), error.message, error.hint, error.details


DUBLIN = ZoneInfo("Europe/Dublin")
MOMENTS = [dt.datetime(2024, 1, 1, tzinfo=DUBLIN), None, dt.datetime(2023, 7, 1, tzinfo=DUBLIN)]
UNEVEN = dt.datetime(2024, 1, 1, tzinfo=dt.timezone(dt.timedelta(microseconds=-1)))


@given(column=columns(), json=st.booleans())
@example(column=("x", Timestamp, MOMENTS), json=False)
@example(column=("at", Timestamp, MOMENTS[:1]), json=False)
@example(column=("known", Timestamp, [UNEVEN]), json=False)
@example(column=("x", Timestamp, [UNEVEN, MOMENTS[0]]), json=False)
@example(column=("x", Timestamp, [dt.datetime(2024, 1, 1), UNEVEN]), json=False)
@example(column=("x", Timestamp, [dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14)))]), json=False)
@example(column=("x", Float32, [0.1, None, -0.0, math.nan, -math.inf]), json=True)
@example(column=("x", Float32, [0.1, 1e300]), json=True)
@example(column=("x", Decimal(4, 1), [D("1.50"), D("1E+2"), D("-0"), D("0.25")]), json=False)
@example(column=("x", Array(Float32), [[], None, [0.1, None], []]), json=True)
@example(column=("x", Array(Float32), [[0.1], [1e300]]), json=True)
def test_many_values_at_once_become_what_each_becomes(column: tuple[str, ValueType, list[Any]], json: bool) -> None:
    name, kind, values = column
    times = FEW // len(values) + 1
    one_by_one = {"id": [7] * len(values), "at": [EARLY] * len(values), "x": [None] * len(values), name: values}
    few = outcome(one_by_one, kind, json=json)
    many = outcome({name: given * times for name, given in one_by_one.items()}, kind, json=json)
    if isinstance(few, tuple) or isinstance(many, tuple):
        assert many == few
        return
    expected = pa.concat_tables([few] * times)
    assert many.schema == expected.schema
    for got, wanted in zip(many.columns, expected.columns, strict=True):
        assert got.null_count == wanted.null_count
        assert same(got.to_pylist(), wanted.to_pylist())


def test_columns_that_would_be_rounded_are_refused() -> None:
    for kind, column in ((Float32, pa.array([0.1])), (Array(Float32), pa.array([[0.1]]))):
        rows = read_rows(pa.table({"id": [1], "at": pa.array([EARLY]).cast(pa.timestamp("us", "UTC")), "x": column}))
        with pytest.raises(ValueTypeError, match="'x' is of type"):
            rows.of_view(view_of({"x": kind}), now_us=NOW, until_us=UNTIL)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_instants_of_numpy_in_a_list_are_instants(size: int, unit: str) -> None:
    """Their time is ceiled where it is finer, their features are floored; NaT is null."""
    fine = 1_500 if unit == "ns" else 0
    moment = np.datetime64("2024-01-02T03:04:05", "ns") + np.timedelta64(fine, "ns")
    moment = moment.astype(f"M8[{unit}]")
    rows = [{"id": row, "at": moment, "seen": None if row % 2 else moment} for row in range(size - 1)]
    rows.append({"id": size, "at": moment, "seen": np.datetime64("NaT")})
    table = read_rows(rows).of_view(view_of({"seen": Timestamp}), now_us=NOW, until_us=UNTIL).table()
    micros = to_instant("2024-01-02T03:04:05Z")
    assert set(table["event_ts"].cast(pa.int64()).to_pylist()) == {micros + (2 if fine else 0)}
    assert table["seen"].cast(pa.int64()).to_pylist()[:2] == [micros + (1 if fine else 0), None]
    assert table["seen"].to_pylist()[-1] is None


@pytest.mark.parametrize("rows", [[], (), {"id": [], "at": [], "x": []}, pd.DataFrame(columns=["id", "at", "x"])])
def test_no_rows_are_no_rows_in_every_form(rows: Any) -> None:
    none = read_rows(rows)
    none.require(["id", "at", "x"], "pushed")
    assert none.row_count == 0
    assert len(none.of_view(view_of({"x": Int64}), now_us=NOW, until_us=UNTIL).table()) == 0


@pytest.mark.parametrize("rows", [{}, [{}]])
def test_rows_without_columns_are_refused(rows: Any) -> None:
    with pytest.raises(InputError, match="have no column 'id'"):
        read_rows(rows).require(["id"], "pushed")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (7, "rows is int, not a table"),
        ("nowhere.parquet", "there is no such file"),
        ([{"id": 1}, {"at": EARLY}], "Row 1 of rows has no 'id'"),
        (pd.DataFrame([[1, 2]], columns=["id", "id"]), "two columns called 'id'"),
        ({"id": {1: 2}}, "'id' of rows is dict, not a list"),
        ({"id": {1, 2}}, "'id' of rows is set, not a list"),
        ({"id": frozenset([1])}, "'id' of rows is frozenset, not a list"),
        ({"id": np.array(1)}, "'id' of rows is ndarray, not a list"),
    ],
)
def test_what_is_no_rows(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_rows(rows)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("id\n1\n")
    with pytest.raises(InputError, match=r"rows\.csv cannot be read"):
        read_rows(tmp_path / "rows.csv")
