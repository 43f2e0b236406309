"""Drift: figures beside plain loops, what must be found, and what must not be called drift."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Drift
from featurestore.errors import InputError
from featurestore.quality import monitoring
from featurestore.quality.drift import (
    FeatureDrift,
    check_alike,
    compared,
    compared_ages,
    jensen_shannon,
    of_like_days,
    population_stability,
)
from featurestore.quality.monitoring import is_below
from featurestore.quality.observed import DAY_US, Kind, Observed, ObservedFeature, numbered
from featurestore.types import Bool, Float64, Int64, String, Timestamp, ValueType
from featurestore.types.arrow import arrow_type

HOUR_US = 3_600_000_000


def observed(
    values: Iterable[Any],
    kind: ValueType = Float64,
    *,
    entities: Sequence[int] | None = None,
    at_us: Any = None,
    of: Kind = "served",
    statuses: Sequence[str] | None = None,
    made_by: str = "stats.1",
) -> Observed:
    array = pa.array(list(values), arrow_type(kind))
    owners = np.arange(len(array)) if entities is None else np.asarray(entities, np.int64)
    told = None if statuses is None else pa.array(statuses).dictionary_encode()
    feature = ObservedFeature("x", kind, array, "driver_id", made_by, told)
    times = np.zeros(len(array), np.int64) if at_us is None else np.asarray(at_us, np.int64)
    return Observed(of, f"{of} rows", times, {"x": feature}, {"driver_id": owners})


def lines(drift: FeatureDrift) -> dict[str, float]:
    assert {type(number) for line in drift.lines for number in (line.value, line.bound)} <= {float}, "not as JSON"
    return {line.name: line.value for line in drift.lines}


def exceeding(drift: FeatureDrift) -> set[str]:
    return {line.name for line in drift.exceeding}


def normal(rows: int, seed: int, mean: float = 0.0, deviation: float = 1.0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, deviation, rows))


def test_the_index_is_that_of_plain_loops() -> None:
    before, after = [120, 0, 30, 0, 850], [100, 20, 5, 0, 900]
    expected, used = 0.0, [n for n in range(5) if before[n] + after[n]]
    sums = [sum(counts) + 0.5 * len(used) for counts in (before, after)]
    for n in used:
        p, q = (before[n] + 0.5) / sums[0], (after[n] + 0.5) / sums[1]
        expected += (q - p) * math.log(q / p)
    assert population_stability(np.array(before, float), np.array(after, float)) == pytest.approx(expected, rel=1e-12)


def test_the_distance_of_categories_is_that_of_plain_loops() -> None:
    before, after = [10, 0, 90], [50, 25, 25]
    expected = 0.0
    for n in range(3):
        p, q = before[n] / 100, after[n] / 100
        middle = (p + q) / 2
        expected += sum(share * math.log2(share / middle) / 2 for share in (p, q) if share)
    found = jensen_shannon(np.array(before, float), np.array(after, float))
    assert found == pytest.approx(math.sqrt(expected), rel=1e-12)
    assert jensen_shannon(np.array([5.0, 0.0]), np.array([0.0, 7.0])) == pytest.approx(1.0)


def test_the_shift_is_in_deviations_of_the_baseline() -> None:
    before, after = normal(2_000, 1, 10.0, 2.0), normal(2_000, 2, 13.0, 2.0)
    mean = sum(before) / len(before)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in before) / len(before))
    expected = (sum(after) / len(after) - mean) / deviation
    drift = compared(observed(before), observed(after), "x", Drift())
    assert lines(drift)["shift"] == pytest.approx(expected, rel=1e-9)
    assert exceeding(drift) >= {"psi", "shift"}


@pytest.mark.parametrize(("rows", "entities"), [(499, 499), (1_000, 20), (1_000, 199)])
def test_few_rows_or_entities_are_not_judged(rows: int, entities: int) -> None:
    owners = np.arange(rows) % entities
    few = observed(normal(rows, 1), entities=owners)
    many = observed(normal(5_000, 2, 5.0))
    for baseline, now in ((few, many), (many, few)):
        drift = compared(baseline, now, "x", Drift())
        assert not drift.lines
        assert f"{rows:,} rows of {entities:,} entities in" in drift.not_judged
        advice = re.search(r'Drift\("x", entities=(\d+)\) judges it', drift.not_judged)
        if rows < 500:
            assert (advice, drift.not_judged.endswith("fewer than Drift(rows=500)")) == (None, True)
        else:
            assert advice is not None
            assert compared(baseline, now, "x", Drift("x", entities=int(advice[1]))).lines
    assert compared(few, many, "x", Drift(rows=100, entities=10)).lines


@pytest.mark.uncounted
@pytest.mark.parametrize("each_has_its_own", [True, False])
def test_two_hundred_features_without_drift_exceed_nothing(each_has_its_own: bool) -> None:
    """At the least size that is judged; values that stay with their entity are as few as entities."""
    random = np.random.default_rng(7)
    strange = Counter[str]()
    for _ in range(200):
        sides = []
        for _ in range(2):
            owners = np.concatenate((np.arange(200), random.integers(0, 200, 400)))
            own = random.lognormal(0, 1, 200)
            values = own[owners] if each_has_its_own else random.lognormal(0, 1, 600)
            sides.append(observed(values, entities=owners))
        strange.update(exceeding(compared(sides[0], sides[1], "x", Drift())))
    assert not strange


def test_a_hundred_categories_without_drift_exceed_nothing() -> None:
    random = np.random.default_rng(8)
    strange = Counter[str]()
    for _ in range(100):
        sides = [observed(map(str, random.zipf(1.5, 600) % 100), String) for _ in range(2)]
        strange.update(exceeding(compared(sides[0], sides[1], "x", Drift())))
    assert not strange


def test_a_shift_of_no_size_is_no_drift_however_many_rows_there_are() -> None:
    drift = compared(observed(normal(1_000_000, 1)), observed(normal(1_000_000, 2, 0.01)), "x", Drift())
    assert lines(drift)["psi"] < 0.001
    assert not exceeding(drift)


def test_a_sentinel_in_a_few_rows_is_a_new_value_and_hardly_an_index() -> None:
    values = normal(10_000, 2, 50.0, 10.0)
    values[::33] = [-999.0] * len(values[::33])
    drift = compared(observed(normal(10_000, 1, 50.0, 10.0)), observed(values), "x", Drift(outside=None, shift=None))
    assert lines(drift)["psi"] < 0.1
    assert exceeding(drift) == {"new_values"}
    assert "-999: 3.0 %, before 0.0 %" in [line.told for line in drift.lines][-1]


def test_numbers_that_all_changed_are_no_new_values() -> None:
    """Minutes that became hours: each is one that was not there, and none is told apart from those next to it."""
    minutes = np.random.default_rng(4).integers(30, 90, 10_000).astype(float)
    drift = compared(observed(minutes), observed(minutes[::-1] / 60), "x", Drift())
    assert exceeding(drift) >= {"psi", "shift"}
    assert "new_values" not in exceeding(drift)
    changed = np.asarray(normal(10_000, 1))
    changed[::20] = 1000 / 3
    drift = compared(observed(normal(10_000, 2)), observed(changed), "x", Drift())
    (line,) = [each for each in drift.lines if each.name == "new_values"]
    assert line.told == "333.333: 5.0 %, before 0.0 %"


def test_what_is_drawn_is_what_is_too_far() -> None:
    random = np.random.default_rng(5)
    before = list(random.choice(["a", "b", "c"], 4_000, p=[0.6, 0.39, 0.01]))
    after = ["new" if n % 10 == 0 else value for n, value in enumerate(random.permutation(before))]
    drift = compared(observed(before, String), observed(after, String), "x", Drift())
    assert "new_values" in exceeding(drift)
    expected = {name: (before.count(name) / 4_000, after.count(name) / 4_000) for name in ("a", "b", "c", "new")}
    assert {name: shares for name, *shares in drift.bars} == {
        name: pytest.approx(two) for name, two in expected.items()
    }
    both = compared(observed(before, String), observed([*after, *[None] * 400], String), "x", Drift())
    assert (exceeding(both) >= {"nulls", "new_values"}, "new" in {name for name, *_ in both.bars}) == (True, True)
    values = normal(4_000, 6)
    nulls: list[float | None] = [None if n % 4 == 0 else value for n, value in enumerate(values)]
    drift = compared(observed(values), observed(nulls), "x", Drift())
    assert exceeding(drift) == {"nulls"}
    assert drift.bars == (("null", 0.0, 0.25), ("a value", 1.0, 0.75))
    strange = [math.nan if n % 4 == 0 else value for n, value in enumerate([*nulls[1:], None])]
    drift = compared(observed(nulls), observed(strange), "x", Drift())
    assert exceeding(drift) == {"not_finite"}
    assert drift.bars == (("null", 0.25, 0.25), ("NaN or infinite", 0.0, 0.25), ("a value", 0.75, 0.5))
    fine = compared(observed(values), observed(normal(4_000, 7)), "x", Drift())
    assert len(fine.bars) > 10


def test_one_entity_with_much_traffic_brings_no_new_value() -> None:
    owners = np.concatenate((np.arange(1_000), np.zeros(100, np.int64)))
    own = np.asarray(normal(1_000, 3))
    assert not exceeding(compared(observed(normal(5_000, 1)), observed(own[owners], entities=owners), "x", Drift()))


def test_nulls_nan_and_values_outside_have_lines_of_their_own() -> None:
    base = normal(5_000, 1)
    nulls: list[float | None] = [None if n % 10 == 0 else value for n, value in enumerate(normal(5_000, 2))]
    assert exceeding(compared(observed(base), observed(nulls), "x", Drift())) == {"nulls"}
    strange = [math.nan if n % 10 == 0 else value for n, value in enumerate(normal(5_000, 2))]
    assert exceeding(compared(observed(base), observed(strange), "x", Drift())) == {"not_finite"}
    outside = [value * 30 if n % 8 == 0 else value for n, value in enumerate(normal(5_000, 2))]
    assert "outside" in exceeding(compared(observed(base), observed(outside), "x", Drift(shift=None)))


def test_shares_of_statuses_are_compared() -> None:
    base = observed(normal(1_000, 1), statuses=["PRESENT"] * 1_000)
    now = observed(normal(1_000, 2), statuses=["OUTSIDE_MAX_AGE" if n % 5 == 0 else "PRESENT" for n in range(1_000)])
    drift = compared(base, now, "x", Drift())
    assert exceeding(drift) == {"statuses"}
    assert drift.bars == (("OUTSIDE_MAX_AGE", 0.0, 0.2), ("PRESENT", 1.0, 0.8))
    assert "20.0 % OUTSIDE_MAX_AGE, before 0.0 %" in " ".join(line.told for line in drift.lines)


@pytest.mark.parametrize("measure", ["statuses", "new_values"])
def test_two_windows_in_a_row_are_too_far_in_the_same(measure: str) -> None:
    def window(*others: str) -> FeatureDrift:
        usual = ["PRESENT", "JFK"][measure == "new_values"]
        told = [others[n % 5] if n % 5 < len(others) else usual for n in range(2_000)]
        if measure == "statuses":
            return compared(observed(values, statuses=["PRESENT"] * 2_000), observed(values, statuses=told), "x", only)
        return compared(observed(["JFK"] * 2_000, String), observed(told, String), "x", only)

    values = normal(2_000, 1)
    only = Drift(jensen_shannon=None, psi=None, shift=None, outside=None)
    states = {
        (now, before): monitoring._judged("x", window(*now), window(*before)).state
        for now in (("a",), ("a", "b"))
        for before in ((), ("a",), ("b",), ("c",), ("b", "a"))
    }
    assert states == {
        (now, before): "alarm" if {*now} & {*before} else "watch" for now, before in states
    }  # fmt: skip


def test_a_new_category_is_named() -> None:
    base = [("JFK", "LGA", "EWR")[n % 3] for n in range(3_000)]
    now = ["<b>BOS</b>" if n % 20 == 0 else airport for n, airport in enumerate(base)]
    drift = compared(observed(base, String), observed(now, String), "x", Drift())
    assert exceeding(drift) == {"new_values"}
    assert "<b>BOS</b>: 5.0 %, before 0.0 %" in drift.lines[-1].told
    mixed = compared(observed(base, String), observed(["JFK"] * 3_000, String), "x", Drift())
    assert exceeding(mixed) == {"jensen_shannon"}


def test_bools_are_categories() -> None:
    base = observed([n % 2 == 0 for n in range(1_000)], Bool)
    assert not exceeding(compared(base, base, "x", Drift()))
    assert exceeding(compared(base, observed([n % 20 == 0 for n in range(1_000)], Bool), "x", Drift())) == {
        "jensen_shannon"
    }


@pytest.mark.parametrize("values", [[], [1.0], [None] * 1_000, [math.nan] * 1_000, [math.inf, -math.inf] * 500])
def test_baselines_without_values_judge_nothing_and_break_nothing(values: list[float | None]) -> None:
    now = observed(normal(1_000, 1))
    for one, other in ((observed(values), now), (now, observed(values))):
        drift = compared(one, other, "x", Drift())
        assert drift.not_judged
        assert {"psi", "shift"}.isdisjoint(lines(drift))


def test_a_constant_has_no_shift_and_another_constant_is_drift() -> None:
    base = observed([7] * 1_000, Int64)
    assert not exceeding(compared(base, observed([7] * 1_000, Int64), "x", Drift()))
    drift = compared(base, observed([8] * 1_000, Int64), "x", Drift())
    assert exceeding(drift) == {"psi", "new_values"}


def test_mostly_zeros_without_drift_exceed_nothing() -> None:
    random = np.random.default_rng(5)
    sides = [observed(random.lognormal(3, 2, 2_000) * (random.random(2_000) > 0.92)) for _ in range(2)]
    assert not exceeding(compared(sides[0], sides[1], "x", Drift()))


def test_huge_and_tiny_numbers_do_not_overflow() -> None:
    for scale in (1e300, 1e-300):
        base, now = observed(np.asarray(normal(1_000, 1)) * scale), observed(np.asarray(normal(1_000, 2, 3.0)) * scale)
        assert exceeding(compared(base, now, "x", Drift())) >= {"psi", "shift"}


def test_times_are_compared_by_nulls_alone() -> None:
    base = observed([DAY_US * n for n in range(1_000)], Timestamp)
    later = observed([DAY_US * (n + 2_000) for n in range(1_000)], Timestamp)
    assert set(lines(compared(base, later, "x", Drift()))) == {"nulls"}


def test_another_definition_or_type_is_not_compared() -> None:
    now = observed(normal(1_000, 1))
    for base in (observed(normal(1_000, 2), made_by="stats.2"), observed([1] * 1_000, Int64)):
        drift = compared(base, now, "x", Drift())
        assert not drift.lines
        assert "definition changed" in drift.not_judged


@pytest.mark.parametrize(("baseline", "now"), [("training", "batch"), ("batch", "served"), ("served", "batch")])
def test_rows_that_are_chosen_in_other_ways_are_refused(baseline: Kind, now: Kind) -> None:
    with pytest.raises(InputError, match="differ without any drift"):
        check_alike(observed([], of=baseline), observed([], of=now))
    check_alike(observed([], of="training"), observed([], of="served"))


def test_the_same_days_of_the_week_are_compared_where_the_baseline_has_four_weeks() -> None:
    random = np.random.default_rng(6)

    def week_of(days: range, rows: int) -> Observed:
        at_us = np.concatenate([day * DAY_US + random.integers(0, DAY_US, rows) for day in days])
        is_weekend = (at_us // DAY_US + 3) % 7 >= 5
        return observed(random.normal(np.where(is_weekend, 3.0, 0.0), 1.0), at_us=at_us)

    baseline = week_of(range(0, 28), 600)  # from a Thursday on
    saturday, friday = week_of(range(30, 31), 2_000), week_of(range(29, 30), 2_000)
    assert "psi" in exceeding(compared(baseline, saturday, "x", Drift()))
    for now in (saturday, friday):
        assert not exceeding(compared(of_like_days(baseline, now), now, "x", Drift()))
    week = week_of(range(28, 35), 600)
    for days in (14, 25):
        short = baseline.between(0, days * DAY_US)
        assert of_like_days(short, saturday) is short
    assert of_like_days(baseline, week) is baseline


def test_records_that_are_older_than_nearly_all_were_are_stale() -> None:
    random = np.random.default_rng(9)

    base = aged(0, random.uniform(0, 24 * HOUR_US, 1_000))
    fine = compared_ages(base, aged(7, random.uniform(0, 24 * HOUR_US, 1_000)), "stats", Drift())
    late = compared_ages(base, aged(7, random.uniform(24 * HOUR_US, 48 * HOUR_US, 1_000)), "stats", Drift())
    assert fine is not None
    assert not fine.exceeding
    assert late is not None
    assert [line.name for line in late.exceeding] == ["stale"]
    assert re.search(r"100.0 % of the records are older than \d\d:\d\d:\d\d, before", late.lines[0].told)
    usual = aged(0, [HOUR_US] * 950 + [20 * HOUR_US] * 50)  # one in twenty was as old as that
    rare = compared_ages(usual, aged(7, [10 * HOUR_US] * 1_000), "stats", Drift())
    assert rare is not None
    assert not rare.exceeding
    assert compared_ages(base, observed([]), "stats", Drift()) is None
    few = compared_ages(base, aged(7, random.uniform(0, HOUR_US, 10)), "stats", Drift())
    assert few is not None
    assert few.not_judged == "rows has 10 records, and 500 are needed"


def aged(day: int, ages_us: Any) -> Observed:
    """Return rows of seven days, or of one from day 7 on, with records so old."""
    days = 7 if day == 0 else 1
    at_us = (day + np.linspace(0, days, len(ages_us), endpoint=False)) * DAY_US
    made = observed(normal(len(ages_us), 1), at_us=at_us)
    ages = np.asarray(ages_us, float).round()
    return Observed("served", "rows", made.at_us, made.features, made.entities, {"stats": ages})


def test_a_table_that_never_changes_is_not_stale_and_a_source_that_stopped_is() -> None:
    """Rows are served all the time; records of drivers are renewed each hour until the source stops on day 7."""

    def ages(day: int, *, stopped: bool, still: float) -> Any:
        rows = 4_000
        at_us = aged(day, np.zeros(rows)).at_us
        newest = at_us // HOUR_US * HOUR_US
        renewed = at_us - (np.minimum(newest, 7 * DAY_US) if stopped else newest)
        age = at_us + 300 * DAY_US  # of a record of long ago
        return np.where(np.arange(rows) % 100 < still * 100, age, renewed)

    for still in (0.0, 0.3, 0.45, 0.6, 1.0):
        for stopped in (False, True):
            base = aged(0, ages(0, stopped=False, still=still))
            now = aged(8, ages(8, stopped=stopped, still=still))
            found = compared_ages(base, now, "stats", Drift())
            assert found is not None
            if still > 0.5:
                assert not found.lines
                assert f"{still:.1%}".replace("%", " %") + " of its records are older than rows" in found.not_judged
            else:
                assert bool(found.exceeding) == stopped, (still, stopped, found)
    # Between two runs that are further apart than the baseline is long nothing can be said.
    monthly = compared_ages(
        aged(0, np.linspace(1, 8, 1_000) * DAY_US), aged(7, np.full(1_000, 9 * DAY_US)), "stats", Drift()
    )
    assert monthly is not None
    assert not monthly.lines


def test_bars_of_numbers_are_in_their_order() -> None:
    values = [0.0] * 1_500 + normal(1_500, 1, 5.0)
    drift = compared(observed(values), observed(values), "x", Drift())
    begins = [float(label.split(" to ")[0]) for label, _, _ in drift.bars]
    assert begins == sorted(begins)
    assert sum(share for _, share, _ in drift.bars) == pytest.approx(1.0)


def test_lines_are_turned_off_by_none() -> None:
    base, now = observed(normal(1_000, 1)), observed(normal(1_000, 2, 9.0))
    only = compared(base, now, "x", Drift(psi=None, shift=None, outside=None, new_values=None, statuses=None))
    assert set(lines(only)) == {"nulls", "not_finite"}


def test_entities_of_several_keys_are_numbered_together() -> None:
    one, two = pa.array(["a", "a", "b", None, "a"]), pa.array([1, 2, 1, 1, 1])
    numbers = numbered([one, two])
    pairs = list(zip(one.to_pylist(), two.to_pylist(), strict=True))
    for i, left in enumerate(pairs):
        for j, right in enumerate(pairs):
            assert (numbers[i] == numbers[j]) == (left == right)


@pytest.mark.parametrize("share", ["0.9", "0.8", "0.95", "0.99", "0.7", "0.999", "1.0"])
def test_a_share_is_compared_as_it_is_written(share: str) -> None:
    for whole in (10, 20, 100, 1_000, 999):
        for part in range(whole + 1):
            assert is_below(part, whole, float(share)) is (Decimal(part) < Decimal(share) * whole)
