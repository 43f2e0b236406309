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


class Totals:
    """What is counted of a column so far."""

    def __init__(self, kind: ValueType) -> None:
        self._kind = kind
        self._rows = self._nulls = self._not_finite = 0
        self._least: Any = None
        self._greatest: Any = None
        self._held, self._mean, self._squares = 0, 0.0, _Wide(0)
        """How many numbers, their mean, and the sum of squares of their distances from it."""

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
                self._sum_up(finite, 0)
            return
        if len(array):
            self._see_exactly(array)

    def _see_exactly(self, array: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.min_max(array)
        with suppress(ValueError, OverflowError):  # an instant that Python does not have
            self._bound(found["min"].as_py(), found["max"].as_py())
        if not is_number(self._kind):
            return
        if self._kind.precision is not None:
            self._sum_up(np.asarray(array.cast(pa.float64())), 0)
            return
        integers = np.asarray(array).astype(np.int64)
        middle = int(integers[0])  # floats would lose the digits in which large ones differ
        is_near = max(middle - int(integers.min()), int(integers.max()) - middle) < 2**63
        self._sum_up((integers - middle if is_near else integers).astype(np.float64), middle if is_near else 0)

    def _bound(self, least: Any, greatest: Any) -> None:
        self._least = least if self._least is None else min(self._least, least)
        self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)

    def _sum_up(self, numbers: npt.NDArray[np.float64], offset: int) -> None:
        """Take numbers less an offset: their mean and squares join those of the others (Chan, Golub, LeVeque)."""
        scale = float(np.abs(numbers).max()) or 1.0
        scaled = numbers / scale
        middle = float(scaled.mean())
        squares = _Wide(np.square(scaled - middle).sum()) * scale * scale
        count, mean = len(numbers), offset + middle * scale
        total, apart = self._held + count, _Wide(mean) - self._mean
        self._squares += squares + apart * apart * self._held * count / total
        self._mean = float(self._mean + apart * count / total)
        self._held = total

    def found(self, distinct: int | None) -> ColumnTotals:
        """Return the totals; how many different values there are is counted elsewhere."""
        totals = ColumnTotals(self._nulls, self._not_finite, distinct, minimum=self._least, maximum=self._greatest)
        if not self._held:
            return totals
        return replace(totals, mean=self._mean, deviation=float(np.sqrt(self._squares / self._held)))
