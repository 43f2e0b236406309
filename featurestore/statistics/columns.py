"""Statistics of one column, from totals over all rows and the values of a sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

from featurestore_registry.documents import QUANTILES, BinsDocument, ColumnStatistics

from featurestore.definitions import FeatureView, Field
from featurestore.engine.profiles import ColumnTotals, ProfiledColumns
from featurestore.statistics.bins import SHOWN_VALUES, BinCounts
from featurestore.statistics.counting import Counted, plain
from featurestore.statistics.totals import Totals
from featurestore.types import String, ValueType

TOP = 10
"""The most frequent values that are kept."""
PERSONAL = "personal"
"""The tag of a field of which no value may show, unless it is "false"."""


@dataclass(frozen=True, slots=True)
class Column:
    """What is profiled of one column."""

    name: str
    kind: ValueType
    role: Literal["key", "feature", "input"] = "feature"
    is_hidden: bool = False
    """Whether none of its values may show."""
    shows_all: bool = False
    """Whether its most frequent values show however many there are."""


def of_field(field: Field, role: Literal["feature", "input"], shown: Collection[str] = ()) -> Column:
    """Return what is profiled of a field."""
    return Column(field.name, field.type, role, is_personal(field), field.name in shown)


def is_personal(field: Field) -> bool:
    """Tell whether a field's values are personal."""
    return field.tags.get(PERSONAL, "false").lower() != "false"


def of_view(view: FeatureView) -> tuple[Column, ...]:
    """Return what is profiled of a view's rows: join keys, then what is stored."""
    keys = [Column(name, kind, "key", is_hidden=True) for name, kind in view.join_keys.items()]
    role: Literal["feature", "input"] = "input" if view.aggregations else "feature"
    shown = () if isinstance(view.statistics, bool) else view.statistics
    fields = [of_field(field, role, shown) for field in view.stored]
    return (*keys, *(replace(each, is_hidden=True) if each.name == view.event_id else each for each in fields))


def statistics_of(
    column: Column,
    rows: int,
    counted: Counted | None,
    totals: ColumnTotals,
    bins: BinsDocument | None = None,
    counts: BinCounts | None = None,
) -> ColumnStatistics:
    """Return a column's statistics."""
    distinct = _distinct(totals, counted, rows)
    basic = ColumnStatistics(
        column.name,
        str(column.kind),
        column.role,
        rows=rows,
        nulls=totals.nulls,
        not_finite=totals.not_finite,
        distinct=distinct,
        is_hidden=column.is_hidden,
    )
    if column.is_hidden or counted is None:
        return basic
    shows_values = column.kind != String or column.shows_all or (distinct or 0) <= SHOWN_VALUES
    if shows_values:
        basic = replace(
            basic,
            minimum=_scalar(column.kind, totals.minimum),
            maximum=_scalar(column.kind, totals.maximum),
            mean=totals.mean,
            deviation=totals.deviation,
        )
    if counts is not None and bins is not None:
        basic = replace(
            basic,
            bins=bins.version,
            at_points=counts.at_points,
            in_bins=counts.in_bins,
            elsewhere=counts.elsewhere,
        )
    top = _top(counted) if column.shows_all or (distinct or 0) <= SHOWN_VALUES else ()
    return replace(basic, quantiles=counted.at_share(QUANTILES), top=top)


def without_bins(column: ColumnStatistics) -> ColumnStatistics:
    """Return statistics that are not counted in bins."""
    return replace(column, bins=None, at_points=(), in_bins=(), elsewhere=0)


def totals_in(profiled: ProfiledColumns, column: Column, counted: Counted | None) -> ColumnTotals:
    """Return a column's totals; from the sample where that is all rows."""
    if profiled.totals is not None:
        return profiled.totals[column.name]
    totals = Totals(column.kind)
    for chunk in profiled.sample.column(column.name).chunks:
        totals.see(chunk)
    return totals.found(None if counted is None or column.kind.item is not None else len(counted.counts))


def _scalar(kind: ValueType, value: Any) -> Any:
    return None if value is None else plain(kind, value)


def _distinct(totals: ColumnTotals, counted: Counted | None, rows: int) -> int | None:
    """Return how many different values there are, from the sample where it tells them better than the totals do."""
    held = rows - totals.nulls - totals.not_finite
    least, most = totals.distinct_within or (0, held)
    if counted is None or not counted.held or counted.kind.item is not None:
        return totals.distinct if totals.distinct_within is None else least
    seen = len(counted.counts)
    once, twice, thrice = (int((counted.counts == times).sum()) for times in (1, 2, 3))
    share = counted.held / held
    if not once or counted.rows >= rows:
        found = seen
    elif thrice <= 1 and _is_precise(counted.held, once, twice, share):  # hardly one is there thrice: Goodman's
        found = round(once / share - twice * (1 - 2 * share) / share**2) + seen - once - twice
    elif totals.distinct is None or (once < seen / 10 and twice):  # nearly all were seen: Chao's estimate of the others
        found = seen + once * (once - 1) // (2 * (twice + 1))
    else:
        found = totals.distinct
    return min(max(found, seen, least), most)


def _is_precise(held: int, once: int, twice: int, share: float) -> bool:
    """Tell whether Goodman's estimate is good to a few percent: so far may chance take what is there once or twice."""
    return twice < (share * held / 100) ** 2 and held - once < once * held / 1_000


def _top(counted: Counted) -> tuple[tuple[Any, int], ...]:
    return tuple((counted.scalar(place), int(counted.counts[place])) for place in counted.most_frequent(TOP))
