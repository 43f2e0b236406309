"""Windows over events in plain loops: slow, obvious, and sharing nothing with the engine.

Certificates recompute a sample of rows with it, and the tests hold the engine and the online stores against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple


class ReferenceEvent(NamedTuple):
    """One event of a view with aggregations."""

    event_us: int
    known_us: int
    """When it became known: the created time, or the event time if there is none."""
    sequence: int
    values: Mapping[str, Any]
    true: frozenset[str]
    """The conditions that are true of it."""


def reference_window(
    events: Sequence[ReferenceEvent],
    at_us: int,
    function: str,
    *,
    column: str | None,
    is_float: bool,
    condition: str | None,
    length_us: int | None,
    resolution_us: int,
    n: int,
    as_of: Literal["event", "available"],
) -> Any:
    """Return a function of one entity's events in a window that ends at an instant.

    ``events`` are in their order; ``column`` None counts events. Follows `docs/explanation/windows.md` word by word.
    """
    values: list[Any] = []
    for event in events:
        available = max(event.event_us, event.known_us) if as_of == "available" else event.event_us
        if available > at_us:
            continue
        if length_us is not None:
            tile_end = -(-event.event_us // resolution_us) * resolution_us
            if at_us >= tile_end + length_us:
                continue
        if condition is not None and condition not in event.true:
            continue
        value = True if column is None else event.values[column]
        if value is not None:
            values.append(value)
    return _REFERENCES[function](values, n, is_float)


def _distinct(values: list[Any], n: int, is_float: bool) -> int:
    del is_float
    seen = {"NaN" if value != value else value + 0.0 if isinstance(value, float) else value for value in values}
    return min(len(seen), n)


def _extreme(pick: Callable[[list[Any]], Any]) -> _Reference:
    def extreme(values: list[Any], n: int, is_float: bool) -> Any:
        del n
        if not values:
            return None
        if any(value != value for value in values):
            return math.nan
        return pick(values) + 0.0 if is_float else pick(values)

    return extreme


def _special(values: list[Any]) -> float | None:
    """Return the NaN or infinity that a sum is because of its values, None for finite ones."""
    infinite = {value for value in values if isinstance(value, float) and math.isinf(value)}
    if any(value != value for value in values) or len(infinite) > 1:
        return math.nan
    return infinite.pop() if infinite else None


def _double(numerator: int, denominator: int) -> float:
    try:
        return numerator / denominator  # of integers: rounded once
    except OverflowError:
        return math.inf if numerator > 0 else -math.inf


_SCALE = 1074
"""Every finite double is a whole number of units of 2**-1074."""


def _whole(value: Any) -> int:
    numerator, denominator = float(value).as_integer_ratio() if isinstance(value, float) else (int(value), 1)
    return (numerator << _SCALE) // denominator


def _sum(values: list[Any], n: int, is_float: bool) -> Any:
    del n
    if not values:
        return None
    if not is_float:
        total = sum(int(value) for value in values)
        return total if -(2**63) <= total < 2**63 else None
    special = _special(values)
    return _double(sum(map(_whole, values)), 1 << _SCALE) if special is None else special


def _mean(values: list[Any], n: int, is_float: bool) -> Any:
    total = _sum([float(value) for value in values], n, True) if is_float else _integers(values)
    return None if total is None else total / len(values)


def _integers(values: list[Any]) -> float | None:
    return _double(sum(int(value) for value in values), 1) if values else None


def _variance(values: list[Any], n: int, is_float: bool) -> Any:
    del n, is_float
    count = len(values)
    if count < 2:
        return None
    if _special(values) is not None:
        return math.nan
    whole = [*map(_whole, values)]
    upper = count * sum(value * value for value in whole) - sum(whole) ** 2
    return _double(upper, (count * (count - 1)) << (2 * _SCALE))


def _deviation(values: list[Any], n: int, is_float: bool) -> Any:
    variance = _variance(values, n, is_float)
    return None if variance is None else math.sqrt(variance)


_Reference = Callable[[list[Any], int, bool], Any]
_REFERENCES: dict[str, _Reference] = {
    "count": lambda values, n, is_float: len(values),
    "sum": _sum,
    "mean": _mean,
    "min": _extreme(min),
    "max": _extreme(max),
    "var": _variance,
    "std": _deviation,
    "first": lambda values, n, is_float: values[0] if values else None,
    "last": lambda values, n, is_float: values[-1] if values else None,
    "last_n": lambda values, n, is_float: values[::-1][:n] or None,
    "count_distinct": _distinct,
}
