"""Whether served values are those that are expected, and how far numbers are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.types.values import ValueType

if TYPE_CHECKING:
    import pyarrow as pa

Bools = npt.NDArray[np.bool_]


def same(one: pa.Array, other: pa.Array, kind: ValueType) -> Bools:
    """Return where two arrays hold the same values: nulls are, NaNs are."""
    import pyarrow.compute as pc

    if kind.item is not None:
        pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
        return np.array([are_same(a, b, kind) for a, b in pairs], bool)
    same = pc.fill_null(pc.equal(one, other), False)
    both = pc.and_(one.is_null(), other.is_null())
    same = pc.or_(same, both)
    if kind.name in ("Float32", "Float64"):
        nans = pc.and_(pc.fill_null(pc.is_nan(one), False), pc.fill_null(pc.is_nan(other), False))
        same = pc.or_(same, nans)
    return np.asarray(same.to_numpy(zero_copy_only=False), bool)


def are_same(one: Any, other: Any, kind: ValueType) -> bool:
    """Tell whether two canonical values are the same: NaNs are."""
    if isinstance(one, list) and isinstance(other, list):
        assert kind.item is not None
        item = kind.item
        return len(one) == len(other) and all(are_same(a, b, item) for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return bool(one == other)


def errors(one: pa.Array, other: pa.Array, kind: ValueType, compared: Bools) -> tuple[float, float] | None:
    """Return the mean and the greatest absolute difference of numbers that both have; None where there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind.name not in ("Int32", "Int64", "Float32", "Float64") and kind.precision is None:
        return None
    both = [each.cast(pa.float64(), safe=False) for each in (one, other)]  # long integers, too
    apart = pc.abs(pc.subtract(*both))
    if not compared.all():
        apart = apart.filter(pa.array(compared))
    numbers: npt.NDArray[np.float64] = apart.drop_null().to_numpy(zero_copy_only=False)
    numbers = numbers[np.isfinite(numbers)]
    return (float(numbers.mean()), float(numbers.max())) if len(numbers) else None
