"""Exact sums as integers in units of a power of two, and back to doubles. For single values; `exact` is for columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

NAN, ABOVE, BELOW = 1, 2, 4
"""Marks of a sum: a NaN, a positive and a negative infinity are among its values."""
_LIMB = 48
"""How far apart the exponents of the integers are that make up one which 64 bits do not hold."""
_LIMIT = 1 << 63
_FEW_BITS, _LEAST, _GREATEST = 400, 2.0**-400, 2.0**400
"""Times two to the power of so few bits a double between these two stays a normal one."""


def units_of(value: float) -> tuple[int, int]:
    """Return a finite double as an odd integer, or 0, and the exponent of its unit."""
    numerator, denominator = value.as_integer_ratio()
    if denominator > 1:
        return numerator, 1 - denominator.bit_length()
    zeros = (numerator & -numerator).bit_length() - 1 if numerator else 0
    return numerator >> zeros, zeros


def mark_of(value: float) -> int:
    """Return the mark of a value, 0 for a finite one."""
    if math.isfinite(value):
        return 0
    return NAN if value != value else ABOVE if value > 0 else BELOW


def as_double(integer: int, exponent: int) -> float:
    """Return ``integer * 2**exponent``, rounded once; infinite beyond the range of doubles."""
    try:
        return float(integer << exponent) if exponent >= 0 else integer / (1 << -exponent)
    except OverflowError:
        return math.inf if integer > 0 else -math.inf


def marked(total: float, marks: int) -> float:
    """Return a sum of finite values, or what its marks make of it."""
    if not marks:
        return total
    return math.inf if marks == ABOVE else -math.inf if marks == BELOW else math.nan


def variance_of(total: int, exponent: int, square: int, unit: int, count: int) -> float:
    """Return the variance of a sample, of its sum and its sum of squares with the exponents of their units."""
    upper, lower, apart = count * square, count * (count - 1), unit - 2 * exponent
    if apart >= 0:
        return as_double_over((upper << apart) - total * total, 2 * exponent, lower)
    return as_double_over(upper - (total * total << -apart), unit, lower)


def as_double_over(integer: int, exponent: int, over: int) -> float:
    """Return ``integer * 2**exponent / over``, rounded once."""
    try:
        if -_FEW_BITS < exponent < _FEW_BITS and _LEAST < (quotient := integer / over) < _GREATEST:
            return quotient * 2.0**exponent  # nothing is lost
        return (integer << exponent) / over if exponent >= 0 else integer / (over << -exponent)
    except OverflowError:
        return math.inf if integer > 0 else -math.inf


def limbs_of(integers: Sequence[int], exponent: int) -> tuple[list[list[int]], list[int]]:
    """Return integers as lists of 64-bit integers, and the exponent of each of these: one where they fit."""
    merged = 0
    for integer in integers:
        merged |= abs(integer)
    zeros = (merged & -merged).bit_length() - 1 if merged else 0
    width = max(0, merged.bit_length() - zeros)
    count = 1 + max(0, -(-(width - 63) // _LIMB))
    exponents = [exponent + zeros + _LIMB * place for place in range(count)]
    if count == 1:
        return [[integer >> zeros for integer in integers]], exponents
    mask = (1 << _LIMB) - 1
    shifted = [integer >> zeros for integer in integers]
    limbs = [[(each >> (_LIMB * place)) & mask for each in shifted] for place in range(count - 1)]
    limbs.append([each >> (_LIMB * (count - 1)) for each in shifted])
    return limbs, exponents


def joined(limbs: Sequence[int], exponents: Sequence[int]) -> tuple[int, int]:
    """Return the integer that limbs make up, and its exponent."""
    if len(limbs) == 1:
        return limbs[0], exponents[0]
    least = min(exponents)
    return sum(limb << (exponent - least) for limb, exponent in zip(limbs, exponents, strict=True)), least
