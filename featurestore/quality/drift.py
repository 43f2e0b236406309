"""Drift as an effect: how far values are from a baseline's, in figures that do not grow with the number of rows.

Each figure is compared with a bound, to which is added what chance alone makes of so few values. Rows that repeat the
value of their entity say nothing new: they count as Kish's effective size of a sample with such weights has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from featurestore_registry.findings import COMPARED

from featurestore.definitions import Drift
from featurestore.engine.profiles import is_number
from featurestore.errors import InputError
from featurestore.quality.counts import Bar, Counts, Floats, counts_of
from featurestore.quality.observed import ALIKE, DAY_US, KINDS, SEVERAL, Observed, ObservedFeature, distinct, weekdays
from featurestore.statistics.bins import spikes
from featurestore.statistics.counting import Counted
from featurestore.types import Bool, String, ValueType

if TYPE_CHECKING:
    import pyarrow as pa


SHOWN_NEW = 3
"""So many new values are told."""
ODDS = 3.0
"""So many standard deviations beyond what chance makes on average are still chance."""
NEW_TIMES, NEW_ODDS = 10, 4.0
"""A value is new where its share is so many times what it was, and so many standard deviations more: there are many."""
MOST_CANDIDATES = 20
FOUR_WEEKS_US, WEEK_US = 28 * DAY_US, 7 * DAY_US
STALE_SHARE = 0.05
"""The share of the baseline's records that are older than the age from which a record counts as stale."""
STATIC_SHARE = 0.5
"""Where more of the records were there before the baseline began, their age is not judged."""
_SHARES = ("nulls", "not_finite", "statuses")
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""An odd number that spreads numbers over 64 bits."""


@dataclass(frozen=True, slots=True)
class Line:
    """One figure that was compared."""

    name: str
    """One of `COMPARED`."""
    value: float
    """Of a share its change; else the distance."""
    bound: float
    """From where on it is too far, chance included."""
    told: str
    about: frozenset[str] = frozenset()
    """Of a line for many things those that are too far: values or statuses."""

    @property
    def exceeds(self) -> bool:
        """Whether it is too far."""
        return self.value > self.bound

    def goes_on(self, before: Line) -> bool:
        """Whether it is too far in the same as another window's line, and not only by the same measure."""
        is_same = self.about == before.about or not self.about.isdisjoint(before.about)
        return self.exceeds and before.exceeds and self.name == before.name and is_same


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """How one feature compares with its baseline."""

    feature: str
    rows: int
    entities: int
    baseline_rows: int
    baseline_entities: int
    lines: tuple[Line, ...] = ()
    not_judged: str = ""
    """Why nothing, or not everything, is compared."""
    bars: tuple[Bar, ...] = ()
    """For a drawing: what each stands for, its share of the baseline's values, and of those that are compared."""

    @property
    def exceeding(self) -> tuple[Line, ...]:
        """The lines that are too far."""
        return tuple(line for line in self.lines if line.exceeds)


def check_alike(baseline: Observed, now: Observed) -> None:
    """Raise InputError where rows were chosen in such different ways that they differ without any drift."""
    if frozenset({baseline.kind, now.kind}) not in ALIKE:
        raise InputError(
            f"{now.what} and {baseline.what} do not compare: {KINDS[now.kind]} and {KINDS[baseline.kind]} are chosen "
            "in different ways, so they differ without any drift.",
            hint="Compare what was served with a training set or with earlier answers, and runs with earlier runs.",
        )


def of_like_days(baseline: Observed, now: Observed) -> Observed:
    """Return the baseline's rows of the days of the week that ``now`` has, where it spans four weeks."""
    if not baseline.rows or not now.rows:
        return baseline
    spans = [int(each.at_us.max() - each.at_us.min()) for each in (baseline, now)]
    days = np.flatnonzero(np.bincount(weekdays(now.at_us)))
    if spans[0] < FOUR_WEEKS_US - DAY_US or spans[1] >= WEEK_US - DAY_US or len(days) == 7:
        return baseline
    return baseline.where(np.isin(weekdays(baseline.at_us), days))


def compared(baseline: Observed, now: Observed, feature: str, bounds: Drift) -> FeatureDrift:
    """Compare one feature. The baseline's rows are those of like days already, if they should be."""
    after = now.features[feature]
    before = baseline.features.get(feature)
    if before is None:
        return FeatureDrift(feature, now.rows, 0, 0, 0, (), f"{baseline.what} does not have it")
    owners = baseline.entities[before.owner], now.entities[after.owner]
    sizes = [(len(numbers), distinct(numbers)) for numbers in owners]
    (rows_before, entities_before), (rows, entities) = sizes
    figures = FeatureDrift(feature, rows, entities, rows_before, entities_before)
    sides = zip((baseline.what, now.what), sizes, strict=True)
    what, (least_rows, least_entities) = min(sides, key=lambda side: (side[1][0] >= bounds.rows, side[1][1]))
    if least_rows < bounds.rows or least_entities < bounds.entities:
        return _with(figures, (), _too_few(feature, what, least_rows, least_entities, bounds))
    if SEVERAL in (before.made_by, after.made_by):
        which = now if after.made_by == SEVERAL else baseline
        return _with(figures, (), f"its definition changed within {which.what}")
    if before.made_by != after.made_by or before.type != after.type:
        told = f"its definition changed since {baseline.what}: compare with rows of the new one"
        return _with(figures, (), told)
    apart = sum(1 / _independent(each, feature) for each in (baseline, now))
    lines = [*_of_shares(before, after, bounds, apart)]
    told, bars = "", tuple[Bar, ...]()
    if is_number(after.type) or after.type in (String, Bool):
        counted = [before.counted, after.counted]
        few = min(each.held for each in counted)
        if few < bounds.rows:
            told = f"only {few:,} rows have a value" if few else "one side has no value"
        else:
            pair = counts_of(counted[0], counted[1], after)
            lines += _of_values(pair, after, owners[1], bounds, apart)
            bars = pair.bars()
    lines.sort(key=lambda line: list(COMPARED).index(line.name))
    far = [line.name for line in lines if line.exceeds]
    if far and {*far} <= {*_SHARES}:  # the values are as they were
        bars = _share_bars(before, after, far[0])
    return replace(_with(figures, tuple(lines), told), bars=bars)


def compared_ages(baseline: Observed, now: Observed, view: str, bounds: Drift) -> FeatureDrift | None:
    """Compare how old the records of a view were; None where one side does not say it, or that is not asked for."""
    if view not in baseline.ages_us or view not in now.ages_us or bounds.stale is None:
        return None
    known = [~np.isnan(each.ages_us[view]) for each in (baseline, now)]
    before, after = (each.ages_us[view][some] for each, some in zip((baseline, now), known, strict=True))
    figures = FeatureDrift(view, len(after), 0, len(before), 0)
    if told := _few_records(baseline, now, before, after, bounds):
        return _with(figures, (), told)
    # A record that was there before the baseline began and that nobody renewed since says nothing of a source: it only
    # grows older, as all of a table that never changes.
    events = [each.at_us[some] - ages for each, some, ages in zip((baseline, now), known, (before, after), strict=True)]
    old = events[1] < baseline.at_us.min()
    if old.mean() > STATIC_SHARE:
        told = f"{_percent(float(old.mean()))} of its records are older than {baseline.what}: nobody renews them"
        return _with(figures, (), told)
    before, after = before[~np.isin(events[0], events[1][old])], after[~old]
    if told := _few_records(baseline, now, before, after, bounds):
        return _with(figures, (), f"{told}, besides those that nobody renews")
    limit_us = float(np.quantile(before, 1 - STALE_SHARE, method="higher"))
    share, was = float((after > limit_us).mean()), float((before > limit_us).mean())
    told = f"{_percent(share)} of the records are older than {_age(limit_us)}, before {_percent(was)}"
    return _with(figures, (Line("stale", share, bounds.stale, told),), "")


def _few_records(baseline: Observed, now: Observed, before: Floats, after: Floats, bounds: Drift) -> str:
    for what, ages in ((baseline.what, before), (now.what, after)):
        if len(ages) < bounds.rows:
            return f"{what} has {len(ages):,} records, and {bounds.rows:,} are needed"
    return ""


def population_stability(before: Floats, after: Floats) -> float:
    """Return the population stability index of counts in the same bins, each with half a row more."""
    used = before + after > 0
    shares = [(counts[used] + 0.5) / (counts.sum() + 0.5 * used.sum()) for counts in (before, after)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def jensen_shannon(before: Floats, after: Floats) -> float:
    """Return the Jensen-Shannon distance of counts, the root of the divergence in bits: 1 is nothing in common."""
    shares = [counts / counts.sum() for counts in (before, after)]
    middle = (shares[0] + shares[1]) / 2
    found = 0.0
    for share in shares:
        some = share > 0
        found += float((share[some] * np.log2(share[some] / middle[some])).sum()) / 2
    return math.sqrt(max(found, 0.0))


def _independent(rows: Observed, feature: str) -> float:
    """Return the effective size of a feature's values, computed once for rows."""
    if feature not in rows.sizes:
        found = rows.features[feature]
        rows.sizes[feature] = effective_size(found.values, rows.entities[found.owner])
    return rows.sizes[feature]


def effective_size(values: pa.Array, owners: npt.NDArray[np.int64]) -> float:
    """Return how many independent values there are about: rows with one value of one entity are one, by their weight.

    Pairs are told apart by a hash, so that it is a little less than it should be.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not len(values):
        return 0.0
    if pa.types.is_nested(values.type):
        codes = np.zeros(len(values), np.uint64)  # lists: as if each entity had one
    elif pa.types.is_floating(values.type):
        codes = pc.fill_null(values, math.nan).cast(pa.float64()).to_numpy(zero_copy_only=False).view(np.uint64)
    else:
        codes = values.dictionary_encode("encode").indices.to_numpy(zero_copy_only=False).astype(np.uint64)
    mixed = (codes * _MIX + owners.astype(np.uint64)) * _MIX
    mixed ^= mixed >> np.uint64(29)
    bits = min(len(values).bit_length() + 3, 22)
    counts = np.bincount(((mixed * _MIX) >> np.uint64(64 - bits)).astype(np.int64))
    return float(len(values) ** 2 / np.square(counts.astype(np.float64)).sum())


def _with(figures: FeatureDrift, lines: tuple[Line, ...], not_judged: str) -> FeatureDrift:
    sizes = figures.rows, figures.entities, figures.baseline_rows, figures.baseline_entities
    return FeatureDrift(figures.feature, *sizes, lines, not_judged)


def _too_few(feature: str, what: str, rows: int, entities: int, bounds: Drift) -> str:
    told = f"{rows:,} rows of {entities:,} entities in {what}: fewer than Drift("
    if rows < bounds.rows:
        return f"{told}rows={bounds.rows})"
    return f'{told}entities={bounds.entities}); Drift("{feature}", entities={entities}) judges it'


def _of_shares(before: ObservedFeature, after: ObservedFeature, bounds: Drift, apart: float) -> Iterator[Line]:
    if bounds.nulls is not None:
        shares = [_share(each.values.null_count, len(each.values)) for each in (before, after)]
        yield _changed("nulls", "null", shares[0], shares[1], bounds.nulls, apart)
        if is_float(after.type):
            shares = [_not_finite(each) for each in (before, after)]
            yield _changed("not_finite", "NaN or infinite", shares[0], shares[1], bounds.nulls, apart)
    if bounds.statuses is not None and before.statuses is not None and after.statuses is not None:
        found = [_status_shares(each) for each in (before, after)]
        lines = {
            name: _changed("statuses", name, found[0].get(name, 0.0), found[1].get(name, 0.0), bounds.statuses, apart)
            for name in sorted({*found[0], *found[1]})
        }
        if lines:
            far = frozenset(name for name, line in lines.items() if line.exceeds)
            # Whatever comes, PRESENT goes: what came tells one change from another.
            came = frozenset(name for name in far if found[1].get(name, 0.0) > found[0].get(name, 0.0))
            yield replace(max(lines.values(), key=lambda line: line.value - line.bound), about=came or far)


def _share_bars(before: ObservedFeature, after: ObservedFeature, line: str) -> tuple[Bar, ...]:
    """Return the shares of rows that a line is about."""
    if line == "statuses":
        one, two = (_status_shares(each) for each in (before, after))
        return tuple((name, one.get(name, 0.0), two.get(name, 0.0)) for name in sorted({*one, *two}))
    bars = list[Bar]()
    nulls = [_share(each.values.null_count, len(each.values)) for each in (before, after)]
    strange = [_not_finite(each) if is_float(each.type) else 0.0 for each in (before, after)]
    for name, (was, now) in (("null", nulls), ("NaN or infinite", strange)):
        bars += [(name, was, now)] if was or now else []
    return (*bars, ("a value", 1 - nulls[0] - strange[0], 1 - nulls[1] - strange[1]))


def _of_values(
    pair: Counts, feature: ObservedFeature, owners: npt.NDArray[np.int64], bounds: Drift, apart: float
) -> Iterator[Line]:
    if pair.bins is None:
        if bounds.jensen_shannon is not None:
            yield _of_categories(pair, bounds.jensen_shannon, apart)
    else:
        yield from _of_numbers(pair, bounds, apart)
    if bounds.new_values is not None and feature.type != Bool:
        yield _new_values(pair, feature, owners, bounds.new_values, apart)


def _of_numbers(pair: Counts, bounds: Drift, apart: float) -> Iterator[Line]:
    before, after, bins = pair.before, pair.after, pair.bins
    assert bins is not None
    if bounds.psi is not None:
        value, chance = population_stability(*pair.counts), by_chance(pair.used, apart)
        yield Line("psi", value, bounds.psi + chance, f"PSI {value:.2f}, of which chance may be {chance:.2f}")
    means, deviations = zip(*map(_moments, (before, after)), strict=True)
    if bounds.shift is not None and deviations[0] > 0:
        value = abs(means[1] - means[0]) / deviations[0]
        told = f"mean {means[1]:.4g}, before {means[0]:.4g}: {value:.2f} deviations"
        yield Line("shift", value, bounds.shift + ODDS * math.sqrt(apart), told)
    if bounds.outside is not None and bins.edges:
        was, share = pair.outside[0] / before.held, pair.outside[1] / after.held
        told = f"{_percent(share)} outside {bins.edges[0]:.4g} to {bins.edges[-1]:.4g}, before {_percent(was)}"
        yield Line("outside", max(share - was, 0.0), bounds.outside + _of_share((share + was) / 2, apart), told)


def _of_categories(pair: Counts, bound: float, apart: float) -> Line:
    value = jensen_shannon(*pair.counts)
    # Where shares are nearly alike the divergence is an eighth of the index, in nats.
    chance = by_chance(pair.used, apart) / (8 * math.log(2))
    return Line("jensen_shannon", value, math.sqrt(bound**2 + chance), f"Jensen-Shannon distance {value:.2f}")


def _new_values(
    pair: Counts, feature: ObservedFeature, owners: npt.NDArray[np.int64], bound: float, apart: float
) -> Line:
    """Compare values that many rows and entities have now, and hardly any row had before, such as a sentinel."""
    import pyarrow as pa
    import pyarrow.compute as pc

    before, after, bins = pair.before, pair.after, pair.bins
    everybody = distinct(owners)
    found = list[tuple[float, float, str]]()
    most = after.most_frequent(MOST_CANDIDATES)
    # Of numbers that lie between edges each is a new one when they change: only such as have many more rows than those
    # next to them are told.
    for place in np.intersect1d(most, spikes(after)) if bins is not None and bins.edges else most:
        share = float(after.counts[place]) / after.held
        if share <= bound:
            continue
        value = after.values[int(place)]
        known = pc.index_in(pa.array([value.as_py()], before.values.type), before.values)[0].as_py()
        was = 0.0 if known is None else float(before.counts[known]) / before.held
        if share < NEW_TIMES * was or share - was < NEW_ODDS / ODDS * _of_share((share + was) / 2, apart):
            continue
        has_it = pc.fill_null(pc.equal(feature.values, pa.scalar(value.as_py(), feature.values.type)), False)
        of = distinct(owners[np.asarray(has_it.to_numpy(zero_copy_only=False), bool)])
        if of > bound * everybody:  # one entity with much traffic brings no new value
            scalar = after.scalar(int(place))
            found.append((share, was, f"{scalar:.6g}" if isinstance(scalar, float) else str(scalar)))
    if not found:
        return Line("new_values", 0.0, bound + _of_share(bound, apart), "no new values")
    found.sort(key=lambda each: -each[0])
    told = ", ".join(f"{value}: {_percent(share)}, before {_percent(was)}" for share, was, value in found[:SHOWN_NEW])
    return Line("new_values", max(share for share, _, _ in found), bound, told, frozenset(value for *_, value in found))


def by_chance(bins: int, apart: float) -> float:
    """Return what the index may be by chance: on average, and `ODDS` standard deviations more (chi-squared)."""
    freedom = max(bins - 1, 0)
    return (freedom + ODDS * math.sqrt(2 * freedom)) * apart


def _of_share(share: float, apart: float) -> float:
    """Return how far a share may be from another by chance."""
    return ODDS * math.sqrt(max(share * (1 - share), 0.0) * apart)


def _changed(name: str, what: str, before: float, after: float, bound: float, apart: float) -> Line:
    value = abs(after - before)
    told = f"{_percent(after)} {what}, before {_percent(before)}"
    return Line(name, value, bound + _of_share((before + after) / 2, apart), told)


def _moments(counted: Counted) -> tuple[float, float]:
    """Return mean and standard deviation."""
    assert counted.keys is not None
    keys = counted.keys.astype(np.float64)
    scale = float(np.abs(keys).max(initial=0.0)) or 1.0  # so that squares of large numbers stay finite
    mean = float(np.average(keys / scale, weights=counted.counts))
    variance = float(np.average(np.square(keys / scale - mean), weights=counted.counts))
    return mean * scale, math.sqrt(variance) * scale


def _not_finite(feature: ObservedFeature) -> float:
    import pyarrow.compute as pc

    strange = pc.sum(pc.invert(pc.is_finite(feature.values))).as_py() or 0
    return _share(strange, len(feature.values))


def _status_shares(feature: ObservedFeature) -> Mapping[str, float]:
    assert feature.statuses is not None
    found = feature.statuses.value_counts().to_pylist()
    return {str(each["values"]): each["counts"] / len(feature.statuses) for each in found}


def is_float(kind: ValueType) -> bool:
    """Tell whether a type has NaN and infinities."""
    return kind.name in ("Float32", "Float64")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _age(age_us: float) -> str:
    from featurestore.types.times import duration_text

    return duration_text(int(age_us) // 1_000_000 * 1_000_000)
