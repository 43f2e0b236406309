"""Instants: rounding never leaks, ranges are checked, zones are honoured."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import featurestore
from featurestore.errors import ValueTypeError
from featurestore.types import times

UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


@given(
    raw=st.lists(st.one_of(st.none(), st.integers(-(2**60), 2**60)), max_size=20),
    unit=st.sampled_from(["us", "ns"]),
    zone=st.sampled_from([None, "UTC", "America/New_York"]),
    rounding=st.sampled_from(["floor", "ceil"]),
)
def test_arrow_instants_round_by_exact_arithmetic(raw, unit, zone, rounding):
    column = pa.array(raw, pa.int64()).cast(pa.timestamp(unit, tz=zone))
    exact = {"floor": floor, "ceil": ceil}[rounding]
    within = [
        r is None or times.MIN_INSTANT <= exact(Fraction(r * UNITS[unit], 1000)) <= times.MAX_INSTANT for r in raw
    ]
    if not all(within):
        with pytest.raises(ValueTypeError, match="years 1 to 9999"):
            times.instants_from_arrow(column, rounding)
        return
    made = times.instants_from_arrow(column, rounding)
    assert made.type == pa.timestamp("us", tz="UTC")
    expected = [None if r is None else exact(Fraction(r * UNITS[unit], 1000)) for r in raw]
    assert made.cast(pa.int64()).to_pylist() == expected


@pytest.mark.parametrize("unit", ["s", "ms"])
def test_coarse_units_are_multiplied(unit):
    column = pa.array([-1, 0, 1_385_000_000], pa.timestamp(unit))
    factor = UNITS[unit] // 1000
    made = times.instants_from_arrow(column, "floor").cast(pa.int64()).to_pylist()
    assert made == [-factor, 0, 1_385_000_000 * factor]


def test_coarse_units_beyond_the_years_are_refused():
    with pytest.raises(ValueTypeError):
        times.instants_from_arrow(pa.array([2**62], pa.timestamp("s")), "floor")


def test_dates_are_their_midnight():
    column = pa.array([date(1969, 12, 31), None], pa.date32())
    assert times.instants_from_arrow(column, "ceil").cast(pa.int64()).to_pylist() == [-86_400_000_000, None]


def test_other_columns_hold_no_instants():
    with pytest.raises(ValueTypeError, match="int64"):
        times.instants_from_arrow(pa.array([1]), "floor")


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.integers(-14 * 60, 14 * 60))
def test_datetimes_become_instants_and_back(naive, offset_minutes):
    zone = timezone(timedelta(minutes=offset_minutes))
    aware = naive.replace(tzinfo=zone)
    instant = times.to_instant(aware)
    assert times.to_datetime(instant) == aware
    assert times.to_instant(naive) == times.to_instant(naive.replace(tzinfo=UTC))
    assert times.to_instant(times.to_rfc3339(instant)) == instant
    assert len(times.to_rfc3339(instant)) == 27


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(0), "00:00:00"),
        (timedelta(days=1), "1 day"),
        (timedelta(days=30, hours=3, seconds=7), "30 days 03:00:07"),
        (timedelta(hours=23, minutes=59, microseconds=1), "23:59:00.000001"),
        (timedelta(days=-2, seconds=-1), "-2 days 00:00:01"),
    ],
)
def test_durations_read_well(duration, text):
    assert times.duration_text(duration // times.MICROSECOND) == text


@given(st.lists(st.none() | st.integers(times.MIN_INSTANT, times.MAX_INSTANT)))
def test_many_instants_at_once_are_what_each_is(instants):
    each = [None if instant is None else times.to_rfc3339(instant) for instant in instants]
    assert times.to_rfc3339_texts(instants) == each
    each = [None if instant is None else times.to_datetime(instant) for instant in instants]
    assert times.to_datetimes(instants) == each


def test_pandas_nanoseconds_are_floored_before_and_after_1970():
    assert times.to_instant(pd.Timestamp(1, unit="ns", tz="UTC")) == 0
    assert times.to_instant(pd.Timestamp(-1, unit="ns", tz="UTC")) == -1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (date(2024, 1, 2), "2024-01-02T00:00:00.000000Z"),
        (np.datetime64("2024-01-02"), "2024-01-02T00:00:00.000000Z"),
        (np.datetime64("2024-01-02T03:04:05"), "2024-01-02T03:04:05.000000Z"),
        (np.datetime64("2024-01-02T03:04:05.123456789"), "2024-01-02T03:04:05.123456Z"),
        (np.datetime64(-1, "ns"), "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_dates_and_numpys_moments_are_instants(value, text):
    assert times.to_rfc3339(times.to_instant(value)) == text


@pytest.mark.parametrize("number", [1_795_000_000, 1_795_000_000.5, 0, True])
def test_numbers_of_users_are_refused_with_what_to_pass(number):
    with pytest.raises(ValueTypeError, match=f"{number} is a number.*its unit") as refused:
        times.given_instant(number)
    assert "fromtimestamp" in refused.value.hint


@pytest.mark.parametrize(
    "bad",
    [
        pd.NaT,
        np.datetime64("NaT"),
        np.datetime64("300000-01-01"),
        np.datetime64(1, "ps"),
        np.int64(1),
        True,
        1.5,
        None,
        "yesterday",
        "2013-13-01",
        2**62,
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_what_is_no_instant_is_refused(bad):
    with pytest.raises(ValueTypeError):
        times.to_instant(bad)


@given(st.dates())
def test_days_count_from_1970(day):
    assert times.days_to_date(times.date_to_days(day)) == day
    assert times.date_to_days(day) == (day - date(1970, 1, 1)).days


def test_the_system_clock_counts_microseconds():
    assert abs(times.system_clock() - datetime.now(UTC).timestamp() * 1e6) < 60e6


def test_only_what_has_no_project_asks_the_machine_what_time_it_is():
    package = Path(featurestore.__file__).parent
    shipped = (path for path in package.rglob("*.py") if "testing" not in path.parts)
    asking = [path for path in shipped if "system_clock()" in path.read_text(encoding="utf-8")]
    assert asking == [package / "cli/commands/init.py"]
