"""The value-type table: texts, Python values, JSON and Arrow agree, and nothing is guessed."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal as D
from decimal import localcontext
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featurestore.errors import DefinitionError, ValueTypeError
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
    parse_type,
)
from featurestore.types.arrow import arrow_type, cast_column, column_from_values, fits, value_type_of
from featurestore.types.times import EPOCH, MAX_INSTANT, MICROSECOND, MIN_INSTANT
from featurestore.types.values import SCALARS, coerce, duckdb_type, from_json, is_widening, to_json

VALUES = {
    Int32: st.integers(-(2**31), 2**31 - 1),
    Int64: st.integers(-(2**63), 2**63 - 1),
    Float32: st.floats(width=32),
    Float64: st.floats(),
    Bool: st.booleans(),
    String: st.text(st.characters(codec="utf-8")),
    Bytes: st.binary(),
    Timestamp: st.datetimes(timezones=st.just(UTC)),
    Date: st.dates(),
    Decimal(38, 10): st.decimals(min_value=-(10**27), max_value=10**27, places=10),
    Array(Array(Int64)): st.lists(st.one_of(st.none(), st.lists(st.integers(-5, 5)))),
}
ALL = list(VALUES)


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return math.copysign(1, one) == math.copysign(1, other) and (
            one == other or (math.isnan(one) and math.isnan(other))
        )
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_texts_are_read_back(kind):
    assert parse_type(str(kind)) == kind


@pytest.mark.parametrize(
    "text", ["Int65", "int64", "Array()", "Array(Int64", "Decimal(39,0)", "Decimal(3,4)", "", "Decimal(a,b)"]
)
def test_ill_formed_texts_are_refused(text):
    with pytest.raises(DefinitionError):
        parse_type(text)


def test_arrays_hold_types_only():
    with pytest.raises(DefinitionError, match="Int64"):
        Array("Int64")


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", ALL, ids=str)
def test_values_survive_coercion_arrow_and_json(kind):
    @given(VALUES[kind])
    def check(value):
        canonical = coerce(kind, value)
        assert same(canonical, value)
        assert same(column_from_values([canonical], kind).to_pylist()[0], canonical)
        if kind in (Float32, Float64) and not math.isfinite(value):
            assert to_json(kind, canonical) is None
        else:
            assert same(from_json(kind, to_json(kind, canonical)), canonical)

    check()


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_none_and_missing_values_are_none(kind):
    for missing in (None, pd.NA, pd.NaT):
        assert coerce(kind, missing) is None
    assert to_json(kind, None) is None
    assert from_json(kind, None) is None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Int64, "7"),
        (Int64, True),
        (Int64, 2**63),
        (Int64, 1.5),
        (Int64, float(2**53 + 2)),
        (Int64, math.nan),
        (Int32, 2**31),
        (Float64, "1.0"),
        (Float64, True),
        (Float64, 2**53 + 1),
        (Bool, 1),
        (Bool, "true"),
        (String, 1),
        (String, b"a"),
        (String, "\ud800"),
        (Bytes, "a"),
        (Timestamp, "2013-01-01"),
        (Timestamp, 0),
        (Date, datetime(2013, 1, 1)),
        (Date, "2013-01-01"),
        (Decimal(4, 2), D("1.234")),
        (Decimal(4, 2), D("100.00")),
        (Decimal(4, 2), D("NaN")),
        (Decimal(4, 2), 1.5),
        (Array(Int64), [1, "a"]),
        (Array(Int64), "ab"),
        (Array(Int64), 3),
        (Float64, 10**400),
    ],
    ids=repr,
)
def test_nothing_is_guessed(kind, value):
    with pytest.raises(ValueTypeError) as caught:
        coerce(kind, value)
    assert str(kind) in str(caught.value) or "Int64" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "given_value", "expected"),
    [
        (Int64, np.int32(7), 7),
        (Int64, 7.0, 7),
        (Int64, np.float64(7), 7),
        (Float64, 7, 7.0),
        (Float32, 0.1, float(np.float32(0.1))),
        (Bool, np.bool_(True), True),
        (String, np.str_("a"), "a"),
        (Bytes, bytearray(b"a"), b"a"),
        (Timestamp, pd.Timestamp("2013-01-01T05:00:00.000000999Z"), datetime(2013, 1, 1, 5, tzinfo=UTC)),
        (Timestamp, datetime(2013, 1, 1), datetime(2013, 1, 1, tzinfo=UTC)),
        (Decimal(4, 2), 7, D("7.00")),
        (Array(Int64), np.array([1, 2]), [1, 2]),
        (Array(Float64), (1, None), [1.0, None]),
    ],
    ids=repr,
)
def test_kindred_values_become_canonical(kind, given_value, expected):
    made = coerce(kind, given_value)
    assert type(made) is type(expected)
    assert made == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Int64, "07"),
        (Int64, "+7"),
        (Int64, "x"),
        (Int32, "7"),
        (Timestamp, "noon"),
        (Date, "2013-02-30"),
        (Decimal(4, 2), "x"),
        (Bytes, "*"),
        (Array(Date), ["x"]),
    ],
    ids=repr,
)
def test_json_values_that_do_not_fit_are_refused(kind, value):
    with pytest.raises(ValueTypeError):
        from_json(kind, value)


def test_javascript_may_send_int64_as_text():
    assert from_json(Int64, "9007199254740993") == 2**53 + 1


@pytest.mark.parametrize("kind", ALL, ids=str)
def test_arrow_types_are_recognised(kind):
    assert value_type_of(arrow_type(kind)) == kind
    assert fits(kind, value_type_of(arrow_type(kind)))
    column = column_from_values([None], kind)
    assert cast_column(column, kind, name="c") is column


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (pa.int8(), Int32),
        (pa.uint16(), Int32),
        (pa.uint32(), Int64),
        (pa.float16(), Float32),
        (pa.large_string(), String),
        (pa.string_view(), String),
        (pa.dictionary(pa.int8(), pa.string()), String),
        (pa.large_binary(), Bytes),
        (pa.binary(4), Bytes),
        (pa.timestamp("ns", tz="Asia/Tokyo"), Timestamp),
        (pa.timestamp("s"), Timestamp),
        (pa.large_list(pa.int8()), Array(Int32)),
        (pa.decimal128(5, 2), Decimal(5, 2)),
        (pa.uint64(), None),
        (pa.time64("us"), None),
        (pa.duration("s"), None),
        (pa.struct([("a", pa.int8())]), None),
        (pa.decimal256(50, 2), None),
        (pa.list_(pa.uint64()), None),
    ],
    ids=str,
)
def test_narrowest_type_of_foreign_columns(found, expected):
    assert value_type_of(found) == expected


def test_only_lossless_conversions_fit():
    allowed = {(a, b) for a in SCALARS.values() for b in SCALARS.values() if a != b and fits(b, a)}
    assert allowed == {(Int32, Int64), (Float32, Float64), (Int32, Float64)}
    assert fits(Decimal(10, 2), Decimal(8, 2))
    assert not fits(Decimal(8, 2), Decimal(8, 3))
    assert not fits(Decimal(8, 3), Decimal(8, 2))
    assert fits(Array(Int64), Array(Int32))
    assert not fits(Array(Int32), Array(Int64))
    assert not fits(Int64, None)
    assert is_widening(Int32, Int64)
    assert not is_widening(Int32, Float64)


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (pa.array([7.0, None, math.nan]), Int64, [7, None, None]),
        (pa.array([1, None], pa.uint8()), Int32, [1, None]),
        (pa.array([2**53, None]), Float64, [2.0**53, None]),
        (pa.array([5], pa.int64()), Int32, [5]),
        (pa.nulls(2), String, [None, None]),
        (pa.array(["a"]).dictionary_encode(), String, ["a"]),
        (pa.array([-1], pa.timestamp("ns")), Timestamp, [datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)]),
        (pa.array([1.5], pa.float32()), Float64, [1.5]),
        (pa.array([[1]], pa.large_list(pa.int8())), Array(Int32), [[1]]),
        (pa.array([None, None], pa.float64()), String, [None, None]),
        (pa.array([None], pa.float16()), Date, [None]),
        (pa.array([None], pa.string()), Array(Timestamp), [None]),
        (pa.array([], pa.float64()), Bytes, []),
        (pa.array([[], None, [None]], pa.list_(pa.null())), Array(Timestamp), [[], None, [None]]),
        (pa.array([[[]], []], pa.large_list(pa.list_(pa.null()))), Array(Array(String)), [[[]], []]),
        (pa.array([[]], pa.list_(pa.null())), Array(Array(Date)), [[]]),
    ],
    ids=str,
)
def test_callers_columns_are_cast_without_loss(column, kind, expected):
    made = cast_column(column, kind, name="c")
    assert made.type == arrow_type(kind)
    assert made.to_pylist() == expected


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1.5]), Int64),
        (pa.array([float(2**53 + 2)]), Int64),
        (pa.array([2**40]), Int32),
        (pa.array([2**53 + 1]), Float64),
        (pa.array([2**24 + 1]), Float32),
        (pa.array(["7"]), Int64),
        (pa.array([1]), String),
        (pa.array([True]), Int64),
        (pa.array([2**63], pa.uint64()), Int64),
        (pa.array([math.inf]), Int64),
        (pa.array([[]], pa.list_(pa.null())), String),
        (pa.array([[[]]], pa.list_(pa.list_(pa.null()))), Array(String)),
        (pa.array([math.nan]), String),
    ],
    ids=str,
)
def test_callers_columns_that_would_lose_are_refused_by_name(column, kind):
    with pytest.raises(ValueTypeError, match="'speed'"):
        cast_column(column, kind, name="speed")


@pytest.mark.parametrize(
    ("kind", "name"), [(Array(Decimal(5, 2)), "DECIMAL(5,2)[]"), (Timestamp, "TIMESTAMPTZ"), (Bytes, "BLOB")]
)
def test_duckdb_names(kind, name):
    assert duckdb_type(kind) == name


@given(st.integers(1, 38).flatmap(lambda p: st.tuples(st.just(p), st.integers(0, p))), st.decimals() | st.integers())
def test_decimals_of_too_many_digits_are_refused(size, number):
    precision, scale = size
    exact = D(number)
    is_decimal = exact.is_finite()
    if is_decimal and exact:
        with localcontext(prec=200):
            units = exact.scaleb(scale) if abs(exact.adjusted()) < 100 else D("0.5")
            is_decimal = units == units.to_integral() and abs(units) < 10**precision
    if not is_decimal:
        with pytest.raises(ValueTypeError, match="is not a value of type"):
            coerce(Decimal(precision, scale), number)
        return
    made = coerce(Decimal(precision, scale), number)
    assert made == exact
    assert made.as_tuple().exponent == -scale
    assert made.is_signed() == exact.is_signed()


@given(st.datetimes(timezones=st.just(UTC) | st.just(ZoneInfo("UTC")) | st.timezones()))
def test_instants_become_utc_from_values_and_texts(moment):
    assume(MIN_INSTANT <= (moment - EPOCH) // MICROSECOND <= MAX_INSTANT)
    for given_value in (moment, moment.replace(fold=1)):
        for made in (coerce(Timestamp, given_value), from_json(Timestamp, given_value.isoformat())):
            assert made == EPOCH + (given_value - EPOCH)
            assert made.tzinfo is UTC
            assert made.fold == 0


def test_date_is_a_value_of_its_own():
    assert to_json(Date, date(2013, 1, 2)) == "2013-01-02"
    assert to_json(Array(Decimal(4, 2)), [D("1.50"), None]) == ["1.50", None]
