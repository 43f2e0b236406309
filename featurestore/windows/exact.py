"""Exact sums over parts of a column: each value as a sum of integers, which add in any order without error.

A column becomes a few *levels*: arrays of 64-bit integers, each with an exponent, so that a value is the sum over the
levels of ``integer * 2**exponent`` without a rest. Sums of integers are exact, so the sum over a window is a difference
of two prefix sums a level, and floats are rounded once, when the levels are put together. That is why no sum depends
on the order of rows, on tiles, on threads or on the store that answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Float64s = npt.NDArray[np.float64]

Terms = Sequence[tuple[int, int]]
"""Pairs of exponent and integer, whose sum of ``integer * 2**exponent`` is a value."""

LEAST_EXPONENT = -1074
"""Every finite double is a multiple of 2 to this power."""
_UNIT = 2.0**-53
"""The greatest relative error of rounding to a double."""
_SPLITTER = 2.0**27 + 1
_CLASS_BITS = 400
"""Products of values whose exponents differ by less neither overflow nor lose bits."""
_HALF = 31
_HALF_MASK = (1 << _HALF) - 1
_SAFE = 2.0**-800
_MOST_COUNT = 1 << 26
_SUM_BITS = 62
"""Sums over any part of a level stay below 2 to this power."""


@dataclass(frozen=True, slots=True)
class Level:
    """Integers in units of ``2**exponent``."""

    exponent: int
    integers: Int64s


def float_levels(*parts: Float64s, most: int) -> list[Level]:
    """Return the levels of finite values, or of the sums of some, of which a sum takes at most so many; none if all are

    zero.
    """
    bits = _SUM_BITS - (most * len(parts)).bit_length()
    levels: list[Level] = []
    rests, sizes = list(parts), list(map(_greatest, parts))
    while (greatest := max(sizes)) > 0.0:
        exponent = max(int(np.frexp(greatest)[1]) - bits, LEAST_EXPONENT)
        integers: Int64s | None = None
        for place, rest in enumerate(rests):
            if sizes[place] < 2.0**exponent:
                continue
            # Towards zero: rounded up, the greatest double would be beyond the doubles.
            whole = np.trunc(_scaled(rest, -exponent))
            own = whole.astype(np.int64)
            integers = own if integers is None else integers + own
            # Without error: the difference is a multiple of the rest's last bit and smaller than the rest.
            rests[place] = rest - _scaled(whole, exponent)
            sizes[place] = _greatest(rests[place])
        assert integers is not None
        levels.append(Level(exponent, integers))
    return levels


def square_levels(values: Float64s, *, most: int) -> list[Level]:
    """Return the levels of the squares of finite values."""
    sizes = np.abs(values)
    ends = [float(sizes.min(where=sizes > 0.0, initial=np.inf)), float(sizes.max(initial=0.0))]
    if not ends[1]:
        return []
    numbers, classes = sorted({*_classes(np.array(ends)).tolist()}), None
    if len(numbers) > 1:
        classes = _classes(values)
        numbers = np.unique(classes).tolist()
    levels: list[Level] = []
    for number in numbers:
        mine = values if classes is None else np.where(classes == number, values, 0.0)
        scaled = _scaled(mine, -number * _CLASS_BITS)
        levels += _shifted(float_levels(*_product(scaled, scaled), most=most), 2 * number * _CLASS_BITS)
    return levels


def _greatest(values: Float64s) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _classes(values: Float64s) -> Int64s:
    """Return numbers that are equal where exponents are close."""
    found: Int64s = np.where(values == 0.0, 0, (np.frexp(values)[1] + _CLASS_BITS // 2) // _CLASS_BITS)
    return found


def integer_levels(values: Int64s, *, most: int) -> list[Level]:
    """Return the levels of 64-bit integers, of which a sum takes at most so many: one if none needs more bits, else

    two.
    """
    greatest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    if greatest * most < 1 << _SUM_BITS:
        return [Level(0, values)]
    return [Level(_HALF, values >> _HALF), Level(0, values & _HALF_MASK)]


def integer_square_levels(values: Int64s, *, most: int) -> list[Level]:
    """Return the levels of the squares of 64-bit integers."""
    greatest = max(int(values.max(initial=0)), -int(values.min(initial=0)))
    if greatest * greatest * most < 1 << _SUM_BITS:
        return [Level(0, values * values)]
    upper, lower = values >> 32, (values & 0xFFFFFFFF).view(np.uint64)
    low = lower * lower
    return [
        *_shifted(integer_levels(upper * upper, most=most), 64),
        *_shifted(integer_levels(upper * lower.view(np.int64), most=most), 33),
        Level(32, (low >> np.uint64(32)).view(np.int64)),
        Level(0, (low & np.uint64(0xFFFFFFFF)).view(np.int64)),
    ]


def _shifted(levels: Sequence[Level], by: int) -> list[Level]:
    return [Level(level.exponent + by, level.integers) for level in levels]


def _scaled(values: Float64s, exponent: int) -> Float64s:
    """Return values times ``2**exponent``, in two steps where no double is that factor."""
    if not exponent:
        return values
    if -1022 <= exponent <= 1023:
        return values * 2.0**exponent
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


def rounded(sums: Sequence[Level]) -> Float64s:
    """Return the sum over the levels, rounded once: infinite beyond the range of doubles, never -0.0."""
    if len(sums) == 1:
        with np.errstate(over="ignore"):
            return _scaled(sums[0].integers.astype(np.float64), sums[0].exponent) + 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        total, rest, bound = _added(sums)
        result, uncertain = _certain(total, rest, bound)
    for row in uncertain:
        result[row] = exact(terms_at(sums, row))
    return result + 0.0


def variances(sums: Sequence[Level], squares: Sequence[Level], counts: Int64s) -> Float64s:
    """Return the variance of each sample, rounded once, from its sum, its sum of squares and its count (at least 2)."""
    n = counts.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # (n * squares - sum**2) / (n * (n - 1)), each number as a pair of doubles, with a bound of the error.
        square, square_rest, square_bound = _added(squares)
        total, total_rest, total_bound = _added(sums)
        (left, left_rest), (right, right_rest) = _product(square, n), _product(total, total)
        upper, upper_rest = _two_sum(left, -right)
        upper_rest = upper_rest + (left_rest + square_rest * n) - (right_rest + 2.0 * total * total_rest)
        size = np.abs(left) + np.abs(right)
        bound = square_bound * n + 3.0 * np.abs(total) * total_bound + total_rest * total_rest + 16 * _UNIT**2 * size
        over = n * (n - 1.0)
        quotient = upper / over
        back, back_rest = _product(quotient, over)
        rest = ((upper - back) - back_rest + upper_rest) / over
        bound = bound / over + 8 * _UNIT**2 * np.abs(quotient)
        result, uncertain = _certain(*_two_sum(quotient, rest), bound)
        # Products of small numbers lose bits, and so does a product of counts that needs more than a double has.
        unsafe = ((size < _SAFE) & (size > 0.0)) | (counts >= _MOST_COUNT)
    for row in {*uncertain, *np.flatnonzero(unsafe).tolist()}:
        result[row] = variance(terms_at(sums, row), terms_at(squares, row), int(counts[row]))
    return result


def terms_at(levels: Sequence[Level], row: int) -> list[tuple[int, int]]:
    """Return the terms of one row."""
    return [(level.exponent, int(level.integers[row])) for level in levels]


def _added(sums: Sequence[Level]) -> tuple[Float64s, Float64s, Float64s]:
    """Return the sum over the levels as a double, what is left of it, and a bound of that rest's error."""
    terms = []
    for level in sums:
        high = level.integers.astype(np.float64)
        terms.append(_scaled(high, level.exponent))
        low = level.integers - high.astype(np.int64)
        if low.any():
            terms.append(_scaled(low.astype(np.float64), level.exponent))
    total, rest, size = terms[0], np.zeros_like(terms[0]), np.abs(terms[0])
    is_inexact = np.zeros(len(total), np.bool_)
    for term in terms[1:]:
        total, error = _two_sum(total, term)
        rest, lost = _two_sum(rest, error)
        is_inexact |= lost != 0.0
        size = size + np.abs(term)
    return total, rest, np.where(is_inexact, size * (2 * len(terms) * _UNIT * _UNIT), 0.0)


def _certain(total: Float64s, rest: Float64s, bound: Float64s) -> tuple[Float64s, list[int]]:
    """Return the rounded sums, and the rows in which the bound of the error leaves the last bit open (Ziv's test)."""
    result = total + (rest + bound)
    rows: list[int] = np.flatnonzero(~(result == total + (rest - bound)) | ~np.isfinite(result)).tolist()
    return result, rows


def _two_sum(left: Float64s, right: Float64s) -> tuple[Float64s, Float64s]:
    """Return the rounded sums of two arrays and what rounding took away (Knuth)."""
    total = left + right
    virtual = total - left
    return total, (left - (total - virtual)) + (right - virtual)


def _product(left: Float64s, right: Float64s) -> tuple[Float64s, Float64s]:
    """Return the rounded products of two arrays and what rounding took away (Dekker)."""
    product = left * right
    left_high, left_low = _split(left)
    right_high, right_low = (left_high, left_low) if right is left else _split(right)
    rest = ((left_high * right_high - product) + left_high * right_low + left_low * right_high) + left_low * right_low
    return product, rest


def _split(values: Float64s) -> tuple[Float64s, Float64s]:
    upper = values * _SPLITTER
    upper = upper - (upper - values)
    return upper, values - upper


def exact(terms: Terms, over: int = 1) -> float:
    """Return the sum of some terms, divided by a positive integer, rounded once."""
    least = min((exponent for exponent, _ in terms), default=0)
    whole = sum(integer << (exponent - least) for exponent, integer in terms)
    upper, lower = (whole << least, over) if least > 0 else (whole, over << -least)
    try:
        return upper / lower  # of integers: correctly rounded, also near the least doubles
    except OverflowError:
        return float("inf") if whole > 0 else float("-inf")


def variance(sums: Terms, squares: Terms, count: int) -> float:
    """Return the variance of a sample, rounded once, from its sum, its sum of squares and its count (at least 2)."""
    least = min([0, *(exponent for exponent, _ in sums), *(exponent // 2 for exponent, _ in squares)])
    total = sum(integer << (exponent - least) for exponent, integer in sums)
    upper = count * sum(integer << (exponent - 2 * least) for exponent, integer in squares) - total * total
    return exact([(2 * least, upper)], over=count * (count - 1))
