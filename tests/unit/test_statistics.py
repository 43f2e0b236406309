"""Counted values, bins, totals and numbers of different values, beside loops and the truth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as PythonDecimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from featurestore_registry.documents import QUANTILES, BinsDocument
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from featurestore.engine.duck.profile import _bounds
from featurestore.engine.profiles import ColumnTotals, shortened
from featurestore.statistics import bins as bins_module
from featurestore.statistics.bins import BINS, count_in, make_bins, must_be_made, widened
from featurestore.statistics.columns import Column, statistics_of
from featurestore.statistics.counting import Counted, count
from featurestore.statistics.sets import sampled_rows
from featurestore.statistics.totals import Totals
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
from featurestore.types.values import to_json

INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)).map(lambda at: at.replace(tzinfo=UTC))
VALUES: dict[ValueType, st.SearchStrategy[Any]] = {
    Int32: st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3),
    Int64: st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.integers(9 * 10**18, 9 * 10**18 + 5),
    Float32: st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.5]),
    Float64: st.floats() | st.sampled_from([0.0, -0.0, 1.5, 1.5, 1e300]),
    Bool: st.booleans(),
    String: st.text(max_size=3) | st.sampled_from(["a", "b", "é" * 150, "é" * 151]),
    Bytes: st.binary(max_size=3) | st.sampled_from([b"\xff" * 90, b"\xff" * 91]),
    Timestamp: INSTANTS | st.sampled_from([datetime(2024, 2, 29, tzinfo=UTC)]),
    Date: st.dates(date(1900, 1, 1)) | st.just(date(1969, 12, 31)),
    Decimal(9, 2): st.decimals(-9999999, 9999999, places=2),
    Decimal(38, 4): st.decimals(-(10**33), 10**33, places=4)
    | st.sampled_from([PythonDecimal("1.5000"), PythonDecimal("123456789012345678901234567890.1234")]),
}
SMALL: dict[ValueType, st.SearchStrategy[Any]] = {
    Int64: st.integers(0, 12),
    Float64: st.integers(0, 24).map(lambda half: half / 2),
    Date: st.integers(0, 12).map(lambda days: date(2024, 1, 1) + timedelta(days=days)),
}
"""Values that come again, so that many are edges."""
COLUMNS = st.sampled_from(list(VALUES)).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(VALUES[kind] | st.none(), max_size=40))
)
TWICE = st.sampled_from([*VALUES.items(), *SMALL.items()]).flatmap(
    lambda found: st.tuples(st.just(found[0]), *[st.lists(found[1] | st.none(), max_size=40)] * 2)
)


def counted(kind: ValueType, values: Sequence[Any]) -> Counted:
    return count(kind, pa.chunked_array([pa.array(list(values), arrow_type(kind))]))


def finite(values: Sequence[Any]) -> list[Any]:
    return [v for v in values if v is not None and not (isinstance(v, float) and not math.isfinite(v))]


def key(kind: ValueType, value: Any) -> float:
    if kind == Timestamp:
        return float((value - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
    return float((value - date(1970, 1, 1)).days * 86_400_000_000) if kind == Date else float(value)


def scalar(kind: ValueType, value: Any) -> Any:
    if kind == Bytes:
        return shortened(to_json(kind, value), value)
    return shortened(value) if kind == String else to_json(kind, value + 0.0 if isinstance(value, float) else value)


@pytest.mark.uncounted
@given(COLUMNS)
@settings(max_examples=examples(120))
def test_values_are_counted_as_by_hand(given: tuple[ValueType, list[Any]]) -> None:
    kind, values = given
    found, held = counted(kind, values), finite(values)
    assert (found.rows, found.nulls, found.held) == (len(values), values.count(None), len(held))
    wanted = Counter(scalar(kind, value) for value in held)
    scalars = [found.scalar(place) for place in range(len(found.counts))]
    assert dict(zip(scalars, map(int, found.counts), strict=True)) == wanted
    assert "-0.0" not in map(repr, scalars)
    frequent = [found.scalar(place) for place in found.most_frequent(3)]
    assert [wanted[value] for value in frequent] == sorted(wanted.values(), reverse=True)[: min(3, len(wanted))]
    if kind in (String, Bytes, Bool):
        assert found.keys is None
        assert found.at_share(QUANTILES) == ()
    else:
        ordered = sorted(held)
        ranks = [max(math.ceil(Fraction(str(share)) * len(held)), 1) - 1 for share in QUANTILES] if held else []
        assert [*found.at_share(QUANTILES)] == [scalar(kind, ordered[rank]) for rank in ranks]


@given(TWICE, st.integers(2, 5))
@settings(max_examples=examples(200))
def test_bins_hold_each_value_once(given: tuple[ValueType, list[Any], list[Any]], most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bins_module, "BINS", most)
        patch.setattr(bins_module, "POINT_SHARE", 0.3)
        check_bins(*given)


def check_bins(kind: ValueType, values: list[Any], more: list[Any]) -> None:
    found, held = counted(kind, values), finite(values)
    bins = make_bins(found, rows=len(values), made_us=7, version=3)
    assert (bins.version, bins.made_us, len(bins.edges) != 1) == (3, 7, True)
    assert [*bins.edges] == sorted(set(bins.edges))
    for others in (values, more):
        counts = count_in(counted(kind, others), bins)
        points, inside, elsewhere = by_hand(kind, bins, finite(others))
        assert ([*counts.at_points], [*counts.in_bins], counts.elsewhere) == (points, inside, elsewhere)
    counts = count_in(found, bins)
    assert bins.outside == (counts.outside / len(held) if held else 0.0)
    if kind not in (String, Bytes, Bool):
        assert counts.outside == 0
    often = [
        value for value, times in Counter(scalar(kind, value) for value in held).items() if times > 0.3 * len(held)
    ]
    assert set(often) <= set(bins.points) or kind in (String, Bytes, Bool)


def by_hand(kind: ValueType, bins: BinsDocument, values: Sequence[Any]) -> tuple[list[int], list[int], int]:
    """Count values in bins by a loop."""
    points, inside, elsewhere = [0] * len(bins.points), [0] * (len(bins.edges) + 1) if bins.edges else [], 0
    for value in values:
        if scalar(kind, value) in bins.points:
            points[bins.points.index(scalar(kind, value))] += 1
        elif not bins.edges:
            elsewhere += 1
        else:
            number = key(kind, value)
            inside[sum(edge <= number for edge in bins.edges) - (number == bins.edges[-1])] += 1
    return points, inside, elsewhere


def test_equal_shares_lie_between_edges_and_what_is_frequent_is_a_point() -> None:
    values = [*range(100_000), *[-999] * 8_000, *[0.5] * 5_000]
    bins = make_bins(counted(Float64, map(float, values)), rows=113_000, made_us=0)
    assert bins.points == (-999.0, 0.5)  # 7 %; the other has 4.4 %, where its neighbours have one row each
    counts = count_in(counted(Float64, map(float, values)), bins)
    assert (counts.at_points, len(counts.in_bins)) == ((8_000, 5_000), BINS + 2 + 2)
    below, first, *between, last, above = counts.in_bins[1:-1]  # a twentieth each; the outermost in 1 % and 4 %
    assert max(between) - min(between) <= 2
    assert [below, first, last, above] == [pytest.approx(each, abs=2) for each in (1_000, 4_000, 4_000, 1_000)]


def spikes(values: list[float]) -> list[float]:
    """Return what a loop says: 1 % of the values, and ten times as frequent as the median of five on each side."""
    often = Counter(values)
    order, found = sorted(often), []
    for place, value in enumerate(order):
        beside = sorted(often[order[at]] for at in range(place - 5, place + 6) if at != place and 0 <= at < len(order))
        half = len(beside) // 2
        median = beside[half] if len(beside) % 2 else (beside[half - 1] + beside[half]) / 2
        if often[value] * 100 >= len(values) and often[value] >= 10 * median:
            found.append(value)
    return found


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([-999.0] * 30, [-999.0]),  # below all others
        ([-999.0] * 30 + [-998.0] * 30, [-999.0, -998.0]),  # next to each other
        ([9999.0] * 12 + [500.5] * 11, [500.5, 9999.0]),
        ([-999.0] * 9, []),  # less than 1 %
        (
            [500 + tenth / 10 for tenth in range(1, 10)] * 3 + [500.5] * 24,
            [],
        ),  # nine times as frequent as its neighbours
        ([500 + tenth / 10 for tenth in range(1, 10)] * 3 + [500.5] * 27, [500.5]),  # ten times
        ([float(n % 50) / 100 for n in range(2_000)], []),  # 1.3 % each, and all alike
        ([10.0 * (n % 30) + 0.25 for n in range(1_500)], None),  # thirty of them: the most frequent are points
    ],
)
def test_a_sentinel_of_few_rows_is_a_point(extra: list[float], expected: list[float] | None) -> None:
    values = [*map(float, range(970)), *extra]
    found = counted(Float64, values)
    bins = make_bins(found, rows=len(values), made_us=0)
    assert len(bins.points) <= BINS
    if expected is None:
        assert (len(spikes(values)), len(bins.points)) == (30, BINS)
        assert set(bins.points) < set(spikes(values))
        return
    assert list(bins.points) == spikes(values) == expected
    assert count_in(found, bins).at_points == tuple(values.count(point) for point in bins.points)


def test_few_numbers_are_points_and_many_texts_are_not() -> None:
    stars = make_bins(counted(Int64, [1, 2, 3, 4, 5] * 9 + [5]), rows=46, made_us=0)
    assert (stars.points, stars.edges) == ((1, 2, 3, 4, 5), ())
    names = [f"name {n}" for n in range(101)] * 3 + ["often"] * 30
    assert make_bins(counted(String, names), rows=333, made_us=0).points == ("often",)
    shown = make_bins(counted(String, names), rows=333, made_us=0, shows_all=True)
    assert (len(shown.points), shown.points[-1]) == (BINS, "often")
    assert make_bins(counted(Bool, [True, None, True]), rows=3, made_us=0).points == (True,)
    one = make_bins(counted(Float64, [2.5] * 9), rows=9, made_us=0)
    assert (one.points, one.edges) == ((2.5,), ())
    nearly = make_bins(counted(Int64, [*[7] * 2_000, *[8] * 2_000, 9]), rows=4_001, made_us=0)
    assert (nearly.points, nearly.edges) == ((7, 8, 9), ())


def test_bins_are_made_again_when_too_much_lies_outside() -> None:
    pinned = BinsDocument(1, (), (0.0, 1.0), rows=10_000, outside=0.1)
    for values, log_rows, wanted in (
        ([0.5] * 70 + [2.0] * 30, 99_999, False),
        ([0.5] * 69 + [2.0] * 31, 10_001, True),
        ([2.0] * 49, 99_999, False),
    ):
        found = counted(Float64, values)
        assert must_be_made(pinned, count_in(found, pinned), found.held, log_rows) is wanted
    found = counted(Float64, [2.0] * 100)
    provisional = replace(pinned, rows=9_999)
    assert not must_be_made(provisional, count_in(found, provisional), 100, 19_997)
    assert must_be_made(provisional, count_in(found, provisional), 100, 19_998)
    assert must_be_made(None, None, 1, 1)
    assert widened(pinned, found).edges == (0.0, 2.0)
    sentinel = counted(Float64, [-999.0] * 30 + [0.5] * 69 + [3.0])
    assert widened(replace(pinned, points=(-999.0,)), sentinel).edges == (0.0, 3.0)
    assert widened(replace(pinned, points=(-999.0, 0.5, 3.0)), sentinel).edges == (0.0, 1.0)


@pytest.mark.uncounted
@given(COLUMNS, st.integers(0, 40))
@settings(max_examples=examples(120))
def test_totals_of_batches_are_those_of_all_rows(given: tuple[ValueType, list[Any]], cut: int) -> None:
    kind, values = given
    totals, held = Totals(kind), finite(values)
    for part in (values[:cut], values[cut:]):
        totals.see(pa.array(part, arrow_type(kind)))
    found = totals.found(5)
    nulls = values.count(None)
    assert (found.nulls, found.not_finite, found.distinct) == (nulls, len(values) - nulls - len(held), 5)
    if kind == Bytes or not held:
        assert found.minimum is found.maximum is found.mean is None
        return
    assert (found.minimum, found.maximum) == (min(held), max(held))
    if kind in (String, Bool, Timestamp, Date):
        assert found.mean is None
        return
    exact = [Fraction(value) for value in held]
    mean = sum(exact, Fraction()) / len(exact)
    size = float(max(abs(value) for value in exact))
    assert found.mean == pytest.approx(float(mean), rel=1e-9, abs=1e-12 * size)
    assert found.deviation is not None
    scale = max(abs(value - mean) for value in exact) or Fraction(1)
    wanted = math.sqrt(sum(((value - mean) / scale) ** 2 for value in exact) / len(exact)) * float(scale)
    assert found.deviation == pytest.approx(wanted, rel=1e-6, abs=1e-7 * size)


def test_lists_have_nulls_alone() -> None:
    kind = Array(Int64)
    found = counted(kind, [[1], None, []])
    totals = Totals(kind)
    totals.see(pa.array([[1], None, []], arrow_type(kind)))
    made = statistics_of(Column("v", kind), 3, found, totals.found(None))
    assert (made.nulls, made.distinct, made.minimum, made.top, made.quantiles) == (1, None, None, (), ())


RANDOM = np.random.default_rng(7)
PEOPLE = {
    "all different": np.arange(1_000_000),
    "two of each": np.arange(1_000_000) // 2,
    "one in five twice": np.where(np.arange(1_000_000) % 5 == 0, np.arange(1_000_000) + 1, np.arange(1_000_000)),
    "ten": np.arange(1_000_000) % 10,
    "ten thousand": RANDOM.integers(0, 10_000, 1_000_000),
    "half are one value": np.where(np.arange(1_000_000) % 2, -1, np.arange(1_000_000)),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("case", PEOPLE)
def test_a_sample_says_how_many_values_there_are(case: str) -> None:
    values = PEOPLE[case]
    truth = len(np.unique(values))
    places = sampled_rows(len(values), 51_500)
    found = counted(Int64, values[places])
    made = statistics_of(Column("v", Int64), len(values), found, ColumnTotals(0, 0, round(truth * 1.07)))
    assert made.distinct == pytest.approx(truth, rel=0.07 if case == "two of each" else 0.015)
    if truth <= 10:
        assert made.distinct == truth


def test_a_sample_that_does_not_say_it_leaves_it_to_the_totals() -> None:
    values = RANDOM.zipf(1.3, 1_000_000) % 10**9
    found = counted(Int64, values[sampled_rows(len(values), 51_500)])
    made = statistics_of(Column("v", Int64), len(values), found, ColumnTotals(0, 0, 123_456))
    assert made.distinct == 123_456
    within = statistics_of(Column("v", Int64), len(values), found, ColumnTotals(0, 0, None, (90_000, 90_500)))
    assert made.distinct is not None
    assert within.distinct is not None
    assert 90_000 <= within.distinct <= 90_500


def test_rows_are_sampled_evenly_and_fewer_are_among_more() -> None:
    many, few = sampled_rows(400_000, 20_000), sampled_rows(400_000, 5_000)
    assert set(few) <= set(many)
    assert len(set(many)) == 20_000
    for part in range(10):  # of a log in order of time, of every hour as much
        assert 1_850 < ((many >= part * 40_000) & (many < (part + 1) * 40_000)).sum() < 2_150


def test_ends_of_texts_in_footers_are_believed_where_no_writer_cuts_them() -> None:
    for length, is_believed in ((63, True), (64, False), (65, False)):
        told = SimpleNamespace(has_null_count=True, num_values=2, has_min_max=True, min="a", max="b" * length)
        assert (_bounds(String, told) == ("a", "b" * length)) == is_believed
