"""Totals of a column whose rows pass in batches."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.engine.profiles import ColumnTotals, is_number
from featurestore.types import Bytes, ValueType

if TYPE_CHECKING:
    import pyarrow as pa

_Wide = np.longdouble
"""Holds the squares of all floats on most machines."""


_MOST_APART = 1e290
"""The greatest first number from which no float is infinitely far."""


class Totals:
    """What is counted of a column so far."""

    def __init__(self, kind: ValueType) -> None:
        self._kind = kind
        self._rows = self._nulls = self._not_finite = 0
        self._least: Any = None
        self._greatest: Any = None
        self._first: Any = None
        """The first number: of how far the others are from it no digit is lost, however large they are."""
        self._held, self._mean, self._squares = 0, 0.0, _Wide(0)
        """How many numbers, the mean of what they are apart from the first, and the squares of distances from it."""

    def see(self, array: pa.Array) -> None:
        """Take the next rows."""
        self._rows += len(array)
        self._nulls += array.null_count
        array = array.drop_null() if array.null_count else array
        if self._kind.item is not None or self._kind == Bytes:
            return
        if self._kind.name in ("Float32", "Float64"):
            numbers = np.asarray(array).astype(np.float64)
            finite = numbers[np.isfinite(numbers)] + 0.0  # a zero has no sign here
            self._not_finite += len(numbers) - len(finite)
            if len(finite):
                self._bound(float(finite.min()), float(finite.max()))
                if self._first is None:
                    self._first = float(finite[0]) if abs(finite[0]) < _MOST_APART else 0.0
                self._sum_up(finite - self._first)
            return
        if len(array):
            self._see_exactly(array)

    def _see_exactly(self, array: pa.Array) -> None:
        import pyarrow.compute as pc

        found = pc.min_max(array)
        with suppress(ValueError, OverflowError):  # an instant that Python does not have
            self._bound(found["min"].as_py(), found["max"].as_py())
        if is_number(self._kind):
            self._sum_up(self._apart(array))

    def _apart(self, array: pa.Array) -> npt.NDArray[np.float64]:
        """Return how far integers or decimals are from the first one."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self._first is None:
            self._first = array[0].as_py()
        if self._kind.precision is not None:
            wide = pa.decimal256(self._kind.precision + 1, self._kind.scale)
            return np.asarray(pc.subtract(array.cast(wide), pa.scalar(self._first, wide)).cast(pa.float64()))
        integers = np.asarray(array).astype(np.int64)
        first = int(self._first)
        is_near = max(first - self._least, self._greatest - first) < 2**63
        return (integers - first if is_near else integers.astype(np.float64) - first).astype(np.float64)

    def _bound(self, least: Any, greatest: Any) -> None:
        self._least = least if self._least is None else min(self._least, least)
        self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)

    def _sum_up(self, numbers: npt.NDArray[np.float64]) -> None:
        """Take numbers less the first: their mean and squares join those of the others (Chan, Golub, LeVeque)."""
        scale = float(np.abs(numbers).max()) or 1.0
        scaled = numbers / scale
        middle = float(scaled.mean())
        squares = _Wide(np.square(scaled - middle).sum()) * scale * scale
        count, mean = len(numbers), middle * scale
        total, apart = self._held + count, _Wide(mean) - self._mean
        self._squares += squares + apart * apart * self._held * count / total
        self._mean = float(self._mean + apart * count / total)
        self._held = total

    def found(self, distinct: int | None) -> ColumnTotals:
        """Return the totals; how many different values there are is counted elsewhere."""
        totals = ColumnTotals(self._nulls, self._not_finite, distinct, minimum=self._least, maximum=self._greatest)
        if not self._held:
            return totals
        mean = float(self._first) + self._mean
        return replace(totals, mean=mean, deviation=float(np.sqrt(self._squares / self._held)))
