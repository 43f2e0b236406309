"""One column over several runs: figures that add up are added, and of the others it is said what they are of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from itertools import pairwise

from featurestore_registry.catalog.drawing import TIMES, place_of
from featurestore_registry.catalog.words import instant
from featurestore_registry.documents import QUANTILES, BinsDocument, ColumnStatistics, Scalar, StatisticsDocument

TOP = 10
LARGE_SHARE = 0.2
"""A value with more of the rows is named beside a column's figures."""


@dataclass(frozen=True, slots=True)
class Sum:
    """A column over the runs that counted it."""

    column: ColumnStatistics
    """Counts are sums, in rows: those of a sample stand for all rows of their run. ``distinct`` is the greatest of a
    run, as different runs may have counted the same values."""
    last: ColumnStatistics
    """Of the newest run."""
    runs: int
    binned: int
    """Rows whose bins were added: those counted in the bins of today."""
    counted: float
    """Of so many rows ``column.top`` tells shares."""
    frequent: tuple[tuple[Scalar, float], ...] = ()
    """The most frequent values that are known, with their share of the rows."""
    quantiles_of: str = ""
    """What the quantiles were taken from, where it is not one run."""

    @property
    def most(self) -> tuple[Scalar, float] | None:
        """The value that has over a fifth of the rows, and its share."""
        return self.frequent[0] if self.frequent and self.frequent[0][1] > LARGE_SHARE else None


Counted = tuple[StatisticsDocument, ColumnStatistics]


def sum_of(counted: Sequence[Counted], bins: BinsDocument | None) -> Sum | None:
    """Return a column over runs, the newest first; ``bins`` are those of the newest. None without runs."""
    if not counted:
        return None
    last = counted[0][1]
    same = [each for each in counted if each[1].type == last.type and (each[1].rows or each is counted[0])]
    if len(same) == 1:
        document, rows = same[0][0], same[0][1].rows
        made = Sum(last, last, 1, rows, document.sampled)
        return replace(made, frequent=_frequent(last, bins, document.sampled, document.sampled))
    total = sum(column.rows for _, column in same)
    basic = replace(
        last,
        rows=total,
        nulls=sum(column.nulls for _, column in same),
        not_finite=sum(column.not_finite for _, column in same),
        distinct=distinct_of([column for _, column in same]),
    )
    if last.is_hidden:
        return Sum(basic, last, len(same), 0, 0)
    shown = [each for each in same if not each[1].is_hidden]
    in_bins = [each for each in shown if _fits(each[1], bins)] if last.bins is not None else []
    column = _in_bins(_values(basic, shown), in_bins)
    # Of one run the ledger has them more exactly than bins tell them.
    found = quantiles(column, bins) if len(in_bins) > 1 else ()
    column = replace(column, quantiles=found or last.quantiles)
    binned = sum(each.rows for _, each in in_bins)
    frequent = _frequent(column, bins, total, binned)
    told = "the last run" if not found else f"the bins of {_of_runs(len(in_bins), len(same))}"
    return Sum(column, last, len(same), binned, total, frequent, told if column.quantiles else "")


def _of_runs(some: int, all_of_them: int) -> str:
    return "all counted runs" if some == all_of_them else f"{some} of {all_of_them} runs"


def _values(basic: ColumnStatistics, shown: Sequence[Counted]) -> ColumnStatistics:
    """Return a column with the least, greatest, mean and most frequent values of several runs."""
    mean, deviation = pooled([column for _, column in shown])
    tops: Counter[Scalar] = Counter()
    for document, column in shown:
        for value, count in column.top:
            tops[value] += round(count * _weight(document, column))
    held = [column for _, column in shown if column.rows > column.nulls + column.not_finite]
    # A run that has values and does not say between which lie, as of texts with too many, leaves the ends unknown.
    ends = held if all(each.minimum is not None and each.maximum is not None for each in held) else []
    return replace(
        basic,
        minimum=min((each.minimum for each in ends), key=lambda value: _order(value, basic.type), default=None),
        maximum=max((each.maximum for each in ends), key=lambda value: _order(value, basic.type), default=None),
        mean=mean,
        deviation=deviation,
        top=tuple(tops.most_common(TOP)) if basic.top else (),
    )


def _in_bins(column: ColumnStatistics, counted: Sequence[Counted]) -> ColumnStatistics:
    """Return a column with the sums of the bins of several runs."""
    return replace(
        column,
        at_points=_added([(document, each, each.at_points) for document, each in counted]),
        in_bins=_added([(document, each, each.in_bins) for document, each in counted]),
        elsewhere=round(sum(each.elsewhere * _weight(document, each) for document, each in counted)),
    )


def distinct_of(columns: Sequence[ColumnStatistics]) -> int | None:
    """Return how many different values there are at least: the greatest of some runs."""
    known = [column.distinct for column in columns if column.distinct is not None]
    named = {value for column in columns for value, _ in column.top} if len(columns) > 1 else ()
    return max(*known, len(named), 0) if known else None


def _weight(document: StatisticsDocument, column: ColumnStatistics) -> float:
    """Return how many rows a row of the sample stands for."""
    return column.rows / document.sampled if document.sampled else 0.0


def _fits(column: ColumnStatistics, bins: BinsDocument | None) -> bool:
    """Tell whether a column was counted in these bins."""
    if bins is None or column.bins != bins.version or len(column.at_points) != len(bins.points):
        return False
    return len(column.in_bins) == (len(bins.edges) + 1 if bins.edges else 0)


def _added(found: Sequence[tuple[StatisticsDocument, ColumnStatistics, Sequence[int]]]) -> tuple[int, ...]:
    sums = [0.0] * (len(found[0][2]) if found else 0)
    for document, column, counts in found:
        for at, count in enumerate(counts):
            sums[at] += count * _weight(document, column)
    return tuple(round(each) for each in sums)


def pooled(columns: Sequence[ColumnStatistics]) -> tuple[float | None, float | None]:
    """Return the mean and the deviation of the rows of several runs together."""
    known = [(each.rows - each.nulls - each.not_finite, each.mean, each.deviation or 0.0) for each in columns]
    parts = [(count, mean, deviation) for count, mean, deviation in known if count > 0 and mean is not None]
    total = sum(count for count, _, _ in parts)
    if not total:
        return None, None
    mean = math.fsum(count / total * each for count, each, _ in parts)
    spread = sum(
        count / total * (deviation * deviation + (each - mean) * (each - mean)) for count, each, deviation in parts
    )
    return mean, math.sqrt(spread)


def _order(value: Scalar, kind: str) -> tuple[int, float | Decimal, str]:
    """Return what values of a column are ordered by, however the ledger writes them."""
    if isinstance(value, int | float):
        return 0, value, ""
    if kind.startswith("Decimal"):
        try:
            found = Decimal(str(value))
            if found.is_finite():
                return 0, found, ""
        except InvalidOperation:
            pass
    place = place_of(value) if kind in TIMES else None
    return (1, 0, str(value)) if place is None else (0, place, "")


def quantiles(column: ColumnStatistics, bins: BinsDocument | None) -> tuple[Scalar, ...]:
    """Return the values at each of `QUANTILES` as the bins tell them: within a bin its rows lie evenly."""
    if bins is None or len(bins.edges) < 2 or not all(map(math.isfinite, bins.edges)):
        return ()
    low, high = place_of(column.minimum), place_of(column.maximum)
    ends = (
        bins.edges[0] if low is None else min(low, bins.edges[0]),
        *bins.edges,
        bins.edges[-1] if high is None else max(high, bins.edges[-1]),
    )
    parts = [(start, end, count) for (start, end), count in zip(pairwise(ends), column.in_bins, strict=True) if count]
    jumps: Counter[float] = Counter({start: count for start, end, count in parts if start == end})
    for value, count in zip(bins.points, column.at_points, strict=True):
        if count and (place := place_of(value)) is not None:
            jumps[place] += count
    steps = _steps([part for part in parts if part[0] < part[1]], jumps)
    total = sum(count for _, _, count in steps)
    made, seen, steps_left = list[float](), 0.0, iter(steps)
    step = next(steps_left, None)
    for share in QUANTILES:
        while step is not None and seen + step[2] < share * total:
            seen, step = seen + step[2], next(steps_left, None)
        if step is not None:
            made.append(step[0] + (step[1] - step[0]) * (share * total - seen) / step[2])
    if len(made) < len(QUANTILES):
        return ()
    return tuple(instant(int(each)) if column.type in TIMES else each for each in made)


def _steps(parts: Sequence[tuple[float, float, int]], jumps: Counter[float]) -> list[tuple[float, float, float]]:
    """Return in order how rows lie: so many from here to there, or at one place; bins are cut where points lie."""
    stops, made, at = sorted({*jumps, *(stop for part in parts for stop in part[:2])}), [], 0
    for place, (start, end) in enumerate(pairwise([*stops, math.inf])):
        if start in jumps:
            made.append((start, start, float(jumps[start])))
        while at < len(parts) and parts[at][1] <= start:
            at += 1
        if at < len(parts) and parts[at][0] <= start and place < len(stops) - 1:
            low, high, count = parts[at]
            made.append((start, end, count * (end - start) / (high - low)))
    return made


def _frequent(
    column: ColumnStatistics, bins: BinsDocument | None, counted: float, binned: float
) -> tuple[tuple[Scalar, float], ...]:
    """Return the most frequent values: those with bins of their own, and those that were kept."""
    if column.is_hidden:
        return ()
    shares = {value: count / counted for value, count in column.top} if counted else {}
    if bins is not None and binned and column.bins == bins.version and len(bins.points) == len(column.at_points):
        for value, count in zip(bins.points, column.at_points, strict=True):
            if count:
                shares[value] = max(shares.get(value, 0.0), count / binned)
    return tuple(sorted(shares.items(), key=lambda each: -each[1])[:TOP])
