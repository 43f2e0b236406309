"""Windows over drawn events against plain loops, and exact sums against fractions."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.windows import exact
from featurestore.windows.evaluate import Answer, evaluate
from featurestore.windows.extremes import RangeExtremes, covering_extremes
from featurestore.windows.moves import Column, Events, Question
from featurestore.windows.nearest import NearestBefore
from featurestore.windows.timeline import MOST_CODES, Timeline, order_of, shares

FUNCTIONS = ("count", "sum", "mean", "var", "std", "min", "max", "first", "last", "last_n", "count_distinct")
WINDOWS = ((12, 1), (12, 4), (60, 5), (None, 0))
SHARP = (sys.float_info.max, 1e308, -1e308, 1e16, 1e-16, 5e-324, -5e-324, 0.1, 12.34, -0.0, 0.0)
FLOATS = st.one_of(
    st.sampled_from(SHARP),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-10_000, 10_000).map(lambda n: n / 100),
)
SPECIAL = st.one_of(st.sampled_from((*SHARP, math.nan, math.inf, -math.inf)), st.integers(0, 3).map(float))
INTEGERS = st.one_of(
    st.integers(-3, 3), st.sampled_from((2**63 - 1, -(2**63), 2**62)), st.integers(-(2**63), 2**63 - 1)
)
LATENESS = {
    "none": st.just(0),
    "constant": st.shared(st.sampled_from((5, 15, 70)), key="lag"),
    "jitter": st.integers(0, 6),
    "few": st.sampled_from((0, 0, 0, 60)),
    "wild": st.integers(0, 90),
}


@st.composite
def events_of(draw: st.DrawFn, values: st.SearchStrategy[Any], lateness: str) -> list[tuple[int, ReferenceEvent]]:
    """Draw events of three keys, in the order of keys and events; the condition ``c`` is true of some."""
    drawn = draw(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.integers(-40, 40), LATENESS[lateness], st.one_of(st.none(), values), st.booleans()
            ),
            min_size=draw(st.sampled_from((0, 12))),  # most of those that hypothesis draws are too few to meet
            max_size=25,
        )
    )
    made = [
        (key, ReferenceEvent(at, at + late, number, {"x": value}, frozenset("c" if holds else "")))
        for number, (key, at, late, value, holds) in enumerate(drawn)
    ]
    return sorted(made, key=lambda pair: (pair[0], pair[1].event_us, pair[1].known_us, pair[1].sequence))


def as_arrays(found: list[tuple[int, ReferenceEvent]], kind: type, *, is_late: bool) -> Events:
    keys = np.array([key for key, _ in found], np.int64)
    values = [event.values["x"] for _, event in found]
    valid = None if None not in values else np.array([value is not None for value in values], np.bool_)
    return Events(
        np.searchsorted(keys, np.arange(5)),
        np.array([event.event_us for _, event in found], np.int64),
        np.array([event.known_us for _, event in found], np.int64) if is_late else None,
        {"x": Column(np.array([0 if value is None else value for value in values], kind), valid)},
        {"c": np.array(["c" in event.true for _, event in found], np.bool_)},
    )


def value_at(answer: Answer, row: int, function: str, events: list[tuple[int, ReferenceEvent]]) -> Any:
    def of(place: int) -> Any:
        return events[place][1].values["x"]

    if function == "last_n":
        assert answer.offsets is not None
        return [of(place) for place in answer.values[answer.offsets[row] : answer.offsets[row + 1]].tolist()] or None
    if not answer.valid[row]:
        return None
    found = answer.values[row].item()
    return of(found) if function in ("first", "last") else found


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(is_same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    return type(one) is type(other) and one == other


@settings(max_examples=examples(200))
@given(st.data())
def test_every_function_at_any_instant(data: st.DataObject) -> None:
    is_float, lateness = data.draw(st.booleans()), data.draw(st.sampled_from(list(LATENESS)))
    found = data.draw(events_of(SPECIAL if is_float else INTEGERS, lateness))
    rows = sorted(data.draw(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 110)), min_size=8, max_size=12)))
    windows = data.draw(st.lists(st.sampled_from(WINDOWS), min_size=1, max_size=2, unique=True))
    questions = [
        Question(
            function,
            None if function == "count" and data.draw(st.booleans()) else "x",
            data.draw(st.sampled_from((None, "c"))),
            length,
            step,
            3,
        )
        for function in FUNCTIONS
        for length, step in windows
    ]
    events = as_arrays(found, np.float64 if is_float else np.int64, is_late=lateness != "none")
    keys, times = (np.array([row[place] for row in rows], np.int64) for place in (0, 1))
    answers, remarks = evaluate(events, keys, times, questions)
    for question, answer in zip(questions, answers, strict=True):
        for place, (key, at) in enumerate(rows):
            own = [event for owner, event in found if owner == key]
            wanted = reference_window(
                own,
                at,
                question.function,
                column=question.column,
                is_float=is_float,
                condition=question.condition,
                length_us=question.length_us,
                resolution_us=question.resolution_us,
                n=3,
                as_of="available",
            )
            assert is_same(value_at(answer, place, question.function, found), wanted), (question, key, at)
    for place, (key, at) in enumerate(rows):
        assert remarks.own[place] == any(owner == key and e.event_us == at >= e.known_us for owner, e in found)


def sums_of(levels: list[exact.Level], pairs: list[tuple[int, int]]) -> list[exact.Level]:
    low, high = (np.array([pair[place] for pair in pairs]) for place in (0, 1))
    prefixes = [(level.exponent, np.concatenate([[0], np.cumsum(level.integers)])) for level in levels]
    return [exact.Level(exponent, prefix[high] - prefix[low]) for exponent, prefix in prefixes]


def as_double(value: Fraction) -> float:
    try:
        return value.numerator / value.denominator
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def true_variance(values: list[Fraction]) -> float:
    mean = sum(values, Fraction(0)) / len(values)
    return as_double(sum(((value - mean) ** 2 for value in values), Fraction(0)) / (len(values) - 1))


@settings(max_examples=examples(200))
@given(st.one_of(st.lists(FLOATS, min_size=1, max_size=30), st.lists(INTEGERS, min_size=1, max_size=30)))
def test_sums_and_variances_are_exact(values: list[Any]) -> None:
    """Also of two values among so many that the prefixes of all need more than 64 bits."""
    count = len(values)
    pairs = [(begin, end) for begin in range(count) for end in range(begin + 1, count + 1)][:150]
    check_sums(values, pairs, most=count)
    values = [max(values, key=abs)] * 12 + values
    check_sums(values, [(begin, begin + 2) for begin in range(len(values) - 1)], most=2)


def check_sums(values: list[Any], pairs: list[tuple[int, int]], most: int) -> None:
    column = np.array(values)
    is_float = column.dtype.kind == "f"
    levels = (exact.float_levels if is_float else exact.integer_levels)(column, most=most)
    squares = (exact.square_levels if is_float else exact.integer_square_levels)(column, most=most)
    levels, squares = (
        levels or [exact.Level(0, column.astype(np.int64))],
        squares or [exact.Level(0, column.astype(np.int64))],
    )
    sums, sums_of_squares = sums_of(levels, pairs), sums_of(squares, pairs)
    true = [[Fraction(value) for value in values[begin:end]] for begin, end in pairs]
    found = exact.rounded(sums).tolist()
    assert found == [as_double(sum(part, Fraction(0))) for part in true]
    assert all(math.copysign(1, value) == 1 for value in found if value == 0)
    assert [exact.exact(exact.terms_at(sums, row)) for row in range(len(pairs))] == found
    some = [row for row, part in enumerate(true) if len(part) > 1]
    if some:
        chosen = [
            [exact.Level(each.exponent, each.integers[some]) for each in part] for part in (sums, sums_of_squares)
        ]
        counts = np.array([len(true[row]) for row in some])
        assert exact.variances(*chosen, counts).tolist() == [true_variance(true[row]) for row in some]


@settings(max_examples=examples(60))
@given(st.integers(1, 300), st.integers(0, 2**32))
def test_ranges_and_coverings_by_plain_loops(count: int, seed: int) -> None:
    dice = np.random.default_rng(seed)
    values = dice.integers(0, 50, count)
    begins = dice.integers(0, count, 80)
    ends = np.minimum(count, begins + 1 + dice.integers(0, count, 80))
    ranges = [values[begin:end].tolist() for begin, end in zip(begins, ends, strict=True)]
    assert RangeExtremes(values, np.minimum).of(begins, ends).tolist() == [min(part) for part in ranges]
    assert RangeExtremes(values, np.maximum).of(begins, ends).tolist() == [max(part) for part in ranges]
    limits = dice.integers(-1, 55, 80)
    before = NearestBefore(values).of(begins, limits).tolist()
    assert before == [
        max((place for place in range(begin) if values[place] <= limit), default=-1)
        for begin, limit in zip(begins.tolist(), limits.tolist(), strict=True)
    ]
    lasts = np.minimum(begins + dice.integers(-3, count, 80), count)
    weights = dice.integers(0, 50, 80)
    covering = covering_extremes(weights, begins, lasts, count, np.maximum, -1).tolist()
    assert covering == [
        max((w for w, b, e in zip(weights.tolist(), begins, lasts, strict=True) if b <= place < e), default=-1)
        for place in range(count)
    ]


def test_codes_compare_as_instants_do() -> None:
    dice = np.random.default_rng(5)
    keys = np.sort(dice.integers(0, 7, 60))
    times = dice.integers(-20, 20, 60)
    starts = np.searchsorted(keys, np.arange(8))
    timeline = Timeline.of(starts, times)
    asked = np.arange(-40, 40)
    for key in range(7):
        own = times[keys == key]
        codes = timeline.codes(np.full(len(own), key), own)
        others = timeline.codes(np.full(80, key), asked)
        assert ((codes[:, None] <= others) == (own[:, None] <= asked)).all()
        if key:
            assert (
                timeline.codes(np.array([key]), np.array([-(10**9)]))[0]
                >= timeline.codes(np.array([key - 1]), np.array([10**9]))[0]
            )


def test_shares_hold_so_many_events_and_codes() -> None:
    assert list(shares(np.array([3, 3, 3, 9, 1]), 10, 6)) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert list(shares(np.ones(5, np.int64), MOST_CODES // 2 - 3, 100)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(shares(np.array([7]), MOST_CODES, 3)) == [slice(0, 1)]
    assert list(shares(np.zeros(0, np.int64), 1, 3)) == []


def test_the_greatest_double_among_many_values() -> None:
    values = np.full(600, 1.5)
    values[[7, 500]] = sys.float_info.max, -sys.float_info.max
    sums = sums_of(exact.float_levels(values, most=len(values)), [(0, 7), (0, 8), (0, 501)])
    assert exact.rounded(sums).tolist() == [10.5, sys.float_info.max, 1.5 * 499]


def test_many_events_of_one_key_beside_one_of_another() -> None:
    values, counts = np.full(601, 1.5), np.array([1, 600])
    events = Events(np.array([0, 1, 601]), np.zeros(601, np.int64), None, {"a": Column(values)}, {})
    asked = [Question(function, "a", None, None, 0) for function in ("sum", "mean", "std")]
    answers, _ = evaluate(events, np.arange(2), np.zeros(2, np.int64), asked)
    assert answers[0].values.tolist() == (1.5 * counts).tolist()
    assert answers[1].values.tolist() == [1.5, 1.5]
    assert (answers[2].values[1], answers[2].valid.tolist()) == (0.0, [False, True])


def test_an_event_counts_from_when_it_is_known_until_its_tile_leaves() -> None:
    """Also where it is known just before, when, or just after it leaves; one after the other and all of one key."""
    known, asked = np.arange(25), np.arange(30)
    count = Question("count", None, None, 12, 4)  # the event of instant 1 leaves at 16
    for starts, keys in ((np.arange(26), np.repeat(known, 30)), (np.array([0, 25]), np.zeros(30, np.int64))):
        events = Events(starts, np.full(25, 1), np.maximum(known, 1), {}, {})
        times = np.tile(asked, len(keys) // 30)
        ((answer,), _) = evaluate(events, keys, times, [count])
        held = [[max(late, 1) <= at < 16 for at in range(30)] for late in range(25)]
        alone = [int(is_held) for of_one in held for is_held in of_one]
        assert answer.values.tolist() == (alone if len(starts) > 2 else [sum(at) for at in zip(*held, strict=True)])


def test_many_keys_whose_events_become_known_ages_later() -> None:
    """The instants of all keys together are more than 64 bits; what becomes known after the last row never counts."""
    keys, age_us = 40, 300_000_000_000_000_000
    event_us = np.tile([0, 1], keys)
    events = Events(np.arange(0, 2 * keys + 1, 2), event_us, np.tile([0, age_us], keys), {}, {})
    count = Question("count", None, None, 60, 5)
    rows = np.arange(keys)
    ((answer,), _) = evaluate(events, rows, np.full(keys, 30), [count])
    assert answer.values.tolist() == [1] * keys


@settings(max_examples=examples(100))
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(MOST_CODES - 3, MOST_CODES), st.integers(0, MOST_CODES))))
def test_codes_are_ordered_stably_however_large(codes: list[int]) -> None:
    assert order_of(np.array(codes, np.int64)).tolist() == sorted(range(len(codes)), key=codes.__getitem__)
