"""What a change comes with: each cause is a figure, how much of the change goes away without it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from featurestore_registry.findings import DriftCause

from featurestore.engine.profiles import is_number
from featurestore.quality.counts import Counts, Floats, counts_of
from featurestore.quality.drift import population_stability
from featurestore.quality.observed import Bools, Int64s, Observed, ObservedFeature
from featurestore.statistics.counting import count
from featurestore.types import Float64

TOLD = 0.5
"""A cause is told if so much of the change goes away without it."""
MOST_TOLD = 3
AHEAD = 0.1
"""A cause of its own goes before parts of the rows that explain so much more: they may be another effect of it."""
_OF_ROWS = ("mix", "segment")
_OF_ROWS_ALONE = {"nulls", "not_finite", "statuses"}
STEADY = 0.2
"""A feature that nothing judged parts rows where its own index is smaller."""
SEGMENTS = 20
"""So many values of another column are looked at one by one."""
WHOLE = 0.5
"""A segment with more of the rows is no part of them."""
LEAST_ROWS = 100
"""So many rows have to be left on each side."""
MOVED = 0.05
"""Rows of a kind are more or fewer from such a share of all on."""
GREW = 1.5
"""A segment's share of the rows is another one from this factor on."""
UNITS: tuple[tuple[float, str, tuple[tuple[str, str], ...]], ...] = (
    (60.0, "60", (("minutes", "seconds"), ("hours", "minutes"))),
    (3_600.0, "3,600", (("hours", "seconds"),)),
    (24.0, "24", (("days", "hours"),)),
    (7.0, "7", (("weeks", "days"),)),
    (12.0, "12", (("years", "months"), ("feet", "inches"))),
    (10.0, "10", ()),
    (100.0, "100", (("shares", "percent"), ("metres", "centimetres"))),
    (1_000.0, "1,000", (("kilometres", "metres"), ("seconds", "milliseconds"))),
    (1_000_000.0, "1,000,000", ()),
    (2.54, "2.54", (("inches", "centimetres"),)),
    (25.4, "25.4", (("inches", "millimetres"),)),
    (1.609344, "1.609", (("miles", "kilometres"),)),
    (1.852, "1.852", (("nautical miles", "kilometres"),)),
    (1 / 0.3048, "3.281", (("metres", "feet"),)),
    (1 / 0.45359237, "2.205", (("kilograms", "pounds"),)),
    (4.54609, "4.546", (("gallons", "litres"),)),
    (3.785411784, "3.785", (("US gallons", "litres"),)),
)
"""Factors that units have, how they are told, and from what to what values go that are multiplied by them."""
_ROUNDED = 1e-6
_SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@dataclass(frozen=True)
class Change:
    """A change of one feature: in which label each row lies, on either side; -1 in none."""

    feature: ObservedFeature
    before: Int64s
    after: Int64s
    labels: int
    pair: Counts | None
    """Where values changed, and not only shares of nulls or statuses."""
    is_of_nulls: bool = False

    @cached_property
    def size(self) -> float:
        """The population stability index of the change; of nulls by how much their share is another one."""
        return self.apart(*(np.bincount(c[c >= 0], minlength=self.labels).astype(float) for c in self.codes))

    def apart(self, before: Floats, after: Floats) -> float:
        """Return how large a change between counts for each label is."""
        if not self.is_of_nulls:
            return population_stability(before, after)
        return abs(float(after[1] / after.sum() - before[1] / before.sum()))

    @property
    def codes(self) -> tuple[Int64s, Int64s]:
        """Both sides."""
        return self.before, self.after

    def without(self, before: Bools, after: Bools) -> float:
        """Return how large the change is without some rows of each side."""
        kept = self.before[~before & (self.before >= 0)], self.after[~after & (self.after >= 0)]
        if min(map(len, kept)) < LEAST_ROWS:
            return math.inf
        return self.apart(*(np.bincount(codes, minlength=self.labels).astype(float) for codes in kept))

    def explained(self, left: float) -> float:
        """Return which share of the change is gone where so much is left."""
        size = self.size
        return 0.0 if not size or math.isinf(left) else min(max(1 - left / size, 0.0), 1.0)


@dataclass(frozen=True)
class Parts:
    """One column by which the rows of both sides are parted, the same for every feature that changed."""

    name: str
    labels: tuple[str, ...]
    sides: tuple[Int64s, Int64s]
    """For each row the place of its label, `SEGMENTS` where it has none."""
    is_steady: bool = True
    """False where there are other shares of nulls than before: its values part the rows, and are no mix."""

    @cached_property
    def size(self) -> float:
        """How far its own shares are apart."""
        return population_stability(*(np.bincount(each, minlength=SEGMENTS + 1).astype(float) for each in self.sides))


def causes_of(columns: Sequence[Parts], change: Change) -> list[DriftCause]:
    """Return what a feature's change comes with, by what the rows of both sides hold."""
    return [*units(change), *segments(columns, change)] if change.size > 0 else []


def strongest(causes: Iterable[DriftCause]) -> tuple[DriftCause, ...]:
    """Return the causes that explain enough to be told, the strongest first."""
    told = [each for each in causes if each.weight >= TOLD]
    # A run says where a change began and not what it is.
    told.sort(key=lambda each: (each.kind == "run", -each.weight - (0.0 if each.kind in _OF_ROWS else AHEAD)))
    return tuple(told[:MOST_TOLD])


def change_of(baseline: Observed, now: Observed, feature: str, too_far: Set[str]) -> Change | None:
    """Return the change that the lines of a feature are about: of values, else of nulls, else of statuses."""
    before, after = baseline.features[feature], now.features[feature]
    if too_far & {"psi", "shift", "jensen_shannon", "outside", "new_values"}:
        pair = counts_of(before.counted, after.counted, after)
        codes = [pair.places(each.values) for each in (before, after)]
        return Change(after, codes[0], codes[1], len(pair.labels), pair)
    if too_far & {"nulls", "not_finite"}:
        sides = [_lacks(each).astype(np.int64) for each in (before, after)]
        return Change(after, sides[0], sides[1], 2, None, is_of_nulls=True)
    if "statuses" in too_far and before.statuses is not None and after.statuses is not None:
        return Change(after, *_together([before.statuses, after.statuses]), None)
    return None


def units(change: Change) -> Iterator[DriftCause]:
    """Yield a factor by which all values seem to be multiplied or divided."""
    if change.pair is None or not is_number(change.feature.type) or change.pair.before.keys is None:
        return
    sides = [_numbers(change.pair, is_after=is_after) for is_after in (False, True)]
    if min(map(len, sides)) < LEAST_ROWS:
        return
    quantiles = [np.quantile(side, _SHARES) for side in sides]
    spread = quantiles[0][-1] - quantiles[0][0]
    near = float(np.median(np.abs(quantiles[1])) / (np.median(np.abs(quantiles[0])) or math.nan))
    best: tuple[float, str] = (0.0, "")
    for factor, told in _factors():
        if not math.isnan(near) and not factor / 2 < near < factor * 2:
            continue
        share = change.explained(_scaled(change, sides[1], factor))
        if share > best[0]:
            best = share, f"values are as if {told}"
    celsius = (
        change.explained(_moved(change, (sides[1] - 32) / 1.8)),
        change.explained(_moved(change, sides[1] * 1.8 + 32)),
    )
    for share, told in zip(celsius, ("°C to °F", "°F to °C"), strict=True):
        if share > best[0] and spread > 0:
            best = share, f"values are as if turned from {told}"
    if best[1]:
        yield DriftCause("unit", f"{best[1]}: undone, {_percent(best[0])} of the change is gone", best[0])


def _factors() -> Iterator[tuple[float, str]]:
    """Yield the factors of units, both ways, with what they stand for."""
    for factor, number, pairs in UNITS:
        ways = [[f"{one} to {other}" for one, other in pairs], [f"{other} to {one}" for one, other in pairs]]
        for what, how, named in ((factor, "multiplied by", ways[0]), (1 / factor, "divided by", ways[1])):
            yield what, f"{how} {number}{', as ' if named else ''}{' or '.join(named)}"


def steady(columns: Iterable[Parts], features: Collection[str], far: Mapping[str, Set[str]]) -> Iterator[Parts]:
    """Yield the columns that may carry a change of another: of features those whose values are not known to have moved.

    What changed itself parts the rows as the change does, whichever comes first. ``far`` has what is too far of each
    feature that was judged; of others `STEADY` decides.
    """
    for each in columns:
        lines = far.get(each.name, set())
        if each.name not in features or (not lines and (each.name in far or each.size < STEADY)):
            yield each
        elif lines and lines <= _OF_ROWS_ALONE:
            yield replace(each, is_steady=False)


def segments(columns: Sequence[Parts], change: Change) -> Iterator[DriftCause]:
    """Yield the part of the rows, by another column, that carries the change, or that there is more or less of."""
    best: dict[str, DriftCause] = {}
    for column in columns:
        if column.name == change.feature.name or (change.pair is None and not column.is_steady):
            continue
        for kind, cause in _segments_of(column, change):
            if kind not in best or cause.weight > best[kind].weight + 0.02:
                best[kind] = cause
    yield from best.values()


def _segments_of(column: Parts, change: Change) -> Iterator[tuple[str, DriftCause]]:
    name, labels, sides = column.name, column.labels, column.sides
    sizes = [np.bincount(side, minlength=SEGMENTS + 1) for side in sides]
    rows = [max(len(side), 1) for side in sides]
    mixed = _reweighted(change, sides) if column.is_steady else None
    moved = np.abs(sizes[1] / rows[1] - sizes[0] / rows[0])
    if mixed is not None:
        weight, place = change.explained(mixed), int(moved.argmax())
        if place < len(labels) and moved[place] > MOVED:  # else rows without a value, or with a rare one, moved most
            shares = sizes[1][place] / rows[1], sizes[0][place] / rows[0]
            how = "more" if shares[0] > shares[1] else "fewer"
            told = (
                f"there are {how} rows with {name} = {labels[place]}: {_percent(shares[0])}, before "
                f"{_percent(shares[1])}; with the shares of before, {_percent(weight)} of the change is gone"
            )
            yield "mix", DriftCause("mix", told, float(weight) * 0.98)
    for place, label in enumerate(labels):
        shares = sizes[1][place] / rows[1], sizes[0][place] / rows[0]
        if not 0 < shares[0] <= WHOLE or not shares[1] or not 1 / GREW <= shares[0] / shares[1] <= GREW:
            continue
        left = change.without(sides[0] == place, sides[1] == place)
        weight = change.explained(left)
        told = (
            f"{name} = {label}, {_percent(shares[0])} of the rows, carries it: without them {_percent(weight)} of the "
            "change is gone"
        )
        yield "segment", DriftCause("segment", told, float(weight * (1 - 0.1 * shares[0])))


def _reweighted(change: Change, sides: Sequence[Int64s]) -> float | None:
    """Return how large the change is with the segments' shares of before; None where too few of them are there now."""
    width = SEGMENTS + 1
    tables = []
    for segment, code in zip(sides, change.codes, strict=True):
        some = code >= 0
        tables.append(np.bincount(segment[some] * change.labels + code[some], minlength=width * change.labels))
    before, after = (table.reshape(width, change.labels).astype(np.float64) for table in tables)
    of_before, of_after = before.sum(1), after.sum(1)
    if of_before[of_after == 0].sum() > MOVED * of_before.sum():
        return None
    weights = np.divide(of_before, of_after, out=np.zeros(width), where=of_after > 0)
    expected = (after * weights[:, None]).sum(0)
    return change.apart(before.sum(0), expected) if min(of_after.sum(), expected.sum()) >= LEAST_ROWS else None


def columns_of(baseline: Observed, now: Observed) -> list[Parts]:
    """Return the columns by which rows are parted: features, and what else both sides have."""
    found = []
    for name, feature in now.features.items():
        before = baseline.features.get(name)
        if before is None or before.type != feature.type or before.made_by != feature.made_by:
            continue
        if feature.type.item is None and feature.type.name != "Bytes":
            found.append(_parts(name, before.values, feature.values))
    for name, values in now.more.items():
        if name in baseline.more and baseline.more[name].type == values.type:
            found.append(_parts(name, baseline.more[name], values))
    return found


def _parts(name: str, before: Any, after: Any) -> Parts:
    one, two = _coded([before, after])
    return Parts(name, tuple(_labels(before)), (one, two))


def _coded(sides: Sequence[Any]) -> list[Int64s]:
    """Return for each row which frequent value, or quarter of the baseline's numbers, it has; `SEGMENTS`: none."""
    import pyarrow.compute as pc

    frequent = _frequent(sides[0])
    if frequent is not None:
        codes = [pc.fill_null(pc.index_in(side, frequent), SEGMENTS) for side in sides]
        return [np.asarray(each.to_numpy(zero_copy_only=False)).astype(np.int64) for each in codes]
    edges = _quarters(sides[0])
    coded = []
    for side in sides:
        numbers = _floats(side)
        places = np.searchsorted(edges, numbers, "right")
        coded.append(np.where(np.isfinite(numbers), places, SEGMENTS).astype(np.int64))
    return coded


def _labels(before: Any) -> list[str]:
    frequent = _frequent(before)
    if frequent is not None:
        return [str(value) for value in frequent.to_pylist()]
    edges = _quarters(before)
    if not len(edges):
        return []
    spans = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
    return [f"below {edges[0]:.4g}", *spans, f"{edges[-1]:.4g} and more"]


def _frequent(values: Any) -> Any:
    """Return the frequent values of a column that has few; None for one of many numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    counted = values.drop_null().value_counts()
    if len(counted) > SEGMENTS and not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return None
    order = pc.array_sort_indices(counted.field("counts"), order="descending")
    return counted.field("values").take(order[:SEGMENTS])


def _quarters(values: Any) -> Floats:
    numbers = _floats(values)
    numbers = numbers[np.isfinite(numbers)]
    return np.unique(np.quantile(numbers, (0.25, 0.5, 0.75))) if len(numbers) else np.zeros(0)


def _floats(values: Any) -> Floats:
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = values.cast(pa.int64()) if pa.types.is_temporal(values.type) and values.type.bit_width == 64 else values
    plain = plain.cast(pa.int32()) if pa.types.is_date32(plain.type) else plain
    found: Floats = pc.fill_null(plain.cast(pa.float64(), safe=False), math.nan).to_numpy(zero_copy_only=False)
    return found


def _numbers(pair: Counts, *, is_after: bool) -> Floats:
    counted = pair.after if is_after else pair.before
    assert counted.keys is not None
    found: Floats = np.repeat(counted.keys.astype(np.float64), counted.counts)
    return found


def _scaled(change: Change, numbers: Floats, factor: float) -> float:
    return _moved(change, numbers / factor)


def _moved(change: Change, numbers: Floats) -> float:
    """Return how large the change is with other numbers in place of those of now."""
    import pyarrow as pa

    assert change.pair is not None
    before = change.pair.before
    assert before.keys is not None
    known = before.keys.astype(np.float64)
    # A value that was multiplied and divided again misses the one that it was by its last digit: it would be no point.
    places = np.searchsorted(known, numbers)
    for near in (known[np.clip(places - 1, 0, None)], known[np.clip(places, None, len(known) - 1)]):
        numbers = np.where(np.abs(numbers - near) <= _ROUNDED * np.abs(near), near, numbers)
    pair = counts_of(before, count(Float64, pa.array(numbers)), change.feature)
    return population_stability(*pair.counts)


def _lacks(feature: ObservedFeature) -> Bools:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.is_null(feature.values)
    if pa.types.is_floating(feature.values.type):
        found = pc.or_(found, pc.fill_null(pc.invert(pc.is_finite(feature.values)), True))
    return np.asarray(found.to_numpy(zero_copy_only=False), bool)


def _together(columns: Sequence[Any]) -> tuple[Int64s, Int64s, int]:
    """Return two columns of texts as numbers, and how many there are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = [column.cast(pa.string()) for column in columns]
    known = pc.unique(pa.chunked_array(texts))
    codes = [np.asarray(pc.index_in(each, known).to_numpy(zero_copy_only=False), np.int64) for each in texts]
    return codes[0], codes[1], len(known)


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")
