"""Statistics of one column, from totals over all rows and the values of a sample."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import localcontext
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import QUANTILES, BinsDocument, ColumnStatistics

from featurestore.definitions import FeatureView, Field
from featurestore.engine.profiles import ColumnTotals, is_number, middle_of
from featurestore.statistics.bins import SHOWN_VALUES, BinCounts
from featurestore.statistics.counting import Counted, plain
from featurestore.types import Bool, Bytes, String, ValueType

TOP = 10
"""The most frequent values that are kept."""
FLOAT_DIGITS = 15
"""How many digits of a decimal a float holds."""
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
    totals: ColumnTotals | None,
    bins: BinsDocument | None = None,
    counts: BinCounts | None = None,
) -> ColumnStatistics:
    """Return a column's statistics; without ``totals`` the sample is all rows."""
    if totals is None:
        assert counted is not None
        totals = totals_of(counted)
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


def _scalar(kind: ValueType, value: Any) -> Any:
    return None if value is None else plain(kind, value)


def _distinct(totals: ColumnTotals, counted: Counted | None, rows: int) -> int | None:
    """Return how many different values there are, from the sample where it tells them better than the totals do."""
    least, most = totals.distinct_within or (0, rows - totals.nulls - totals.not_finite)
    if counted is None or not counted.held or counted.kind.item is not None:
        return totals.distinct if totals.distinct_within is None else least
    seen = len(counted.counts)
    once, twice, thrice = (int((counted.counts == times).sum()) for times in (1, 2, 3))
    found = totals.distinct or 0
    if not once or counted.rows >= rows:
        found = seen
    elif totals.distinct is None or (once < seen / 10 and twice):  # nearly all were seen: Chao's estimate of the others
        found = seen + once * (once - 1) // (2 * (twice + 1))
    else:
        share = counted.held / most
        if thrice <= 1 and twice < (share * share * most / 100) ** 2:  # hardly one is there thrice: Goodman's, to 1 %
            found = round(once / share - twice * (1 - 2 * share) / share**2) + seen - once - twice
    return min(max(found, seen, least), most)


def _top(counted: Counted) -> tuple[tuple[Any, int], ...]:
    return tuple((counted.scalar(place), int(counted.counts[place])) for place in counted.most_frequent(TOP))


def totals_of(counted: Counted) -> ColumnTotals:
    """Return the totals of rows that were all counted; extremes as the documents have them."""
    held, kind = counted.held, counted.kind
    totals = ColumnTotals(counted.nulls, counted.not_finite, None if kind.item is not None else len(counted.counts))
    if not held or kind.item is not None or kind == Bytes:
        return totals
    least, greatest = _extremes(counted)
    totals = replace(totals, minimum=least, maximum=greatest)
    if not is_number(kind):
        return totals
    middle, near = _distances(counted)
    width = float(np.max(np.abs(near))) or 1.0
    scaled = near / width
    offset = float(np.dot(scaled, counted.counts)) / held
    squares = float(np.dot(scaled * scaled, counted.counts)) / held
    deviation = max(squares - offset * offset, 0.0) ** 0.5 * width
    return replace(totals, mean=float(middle) + offset * width, deviation=deviation)


def _distances(counted: Counted) -> tuple[Any, npt.NDArray[np.float64]]:
    """Return the middle of the values, and how far each is from it."""
    keys, kind = counted.keys, counted.kind
    assert keys is not None
    if kind.precision is not None and kind.precision > FLOAT_DIGITS:
        values = counted.values.to_pylist()
        middle = middle_of(kind, values[0], values[-1])
        with localcontext(prec=100):
            return middle, np.array([float(value - middle) for value in values])
    if np.issubdtype(keys.dtype, np.integer):
        middle = middle_of(kind, int(keys[0]), int(keys[-1]))
        return middle, (keys.astype(np.int64) - middle).astype(np.float64)
    middle = float(keys[0] / 2 + keys[-1] / 2)
    return middle, keys - middle


def _extremes(counted: Counted) -> tuple[Any, Any]:
    if counted.kind in (String, Bool):
        import pyarrow.compute as pc

        found = pc.min_max(counted.values)
        return found["min"].as_py(), found["max"].as_py()
    with suppress(ValueError, OverflowError):  # an instant outside the years 1 to 9999
        return counted.values[0].as_py(), counted.values[-1].as_py()
    return None, None
