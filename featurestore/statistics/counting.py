"""The values of a sampled column with their counts: what quantiles, frequent values and bins are read from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import Scalar

from featurestore.engine.profiles import MOST_CHARACTERS, shortened
from featurestore.errors import ValueTypeError
from featurestore.types import Bool, Bytes, Date, String, Timestamp, ValueType
from featurestore.types.arrow import arrow_type, one_array
from featurestore.types.values import from_json, to_json

if TYPE_CHECKING:
    import pyarrow as pa

DAY_US = 86_400_000_000
_FLOATS = ("Float32", "Float64")


@dataclass(frozen=True, slots=True)
class Counted:
    """The different values of a column, and how many rows have each."""

    kind: ValueType
    rows: int
    nulls: int
    not_finite: int
    values: pa.Array
    """Ascending, unless they are texts, bytes or bools; long texts as `shortened`, bytes as base64."""
    counts: npt.NDArray[np.int64]
    keys: npt.NDArray[Any] | None
    """The values as numbers, instants and dates in UTC microseconds; None where there is no useful order."""

    @property
    def held(self) -> int:
        """How many rows have a value that counts."""
        return self.rows - self.nulls - self.not_finite

    def scalar(self, place: int) -> Scalar:
        """Return one value as JSON; None for an instant outside the years 1 to 9999."""
        found = None
        with suppress(ValueError, OverflowError):
            found = self.values[int(place)].as_py()
        return found if self.kind == Bytes else plain(self.kind, found)

    def places(self, points: Sequence[Scalar]) -> npt.NDArray[np.int64]:
        """Return the place of each value among the points, or -1."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not points or not len(self.values):
            return np.full(len(self.values), -1, np.int64)
        try:
            given = list(points) if self.kind == Bytes else [from_json(self.kind, point) for point in points]
            found = pc.index_in(self.values, pa.array(given, self.values.type))
        except (pa.ArrowException, ValueTypeError):  # made when the column had another type
            return np.full(len(self.values), -1, np.int64)
        return np.asarray(found.fill_null(-1)).astype(np.int64)

    def most_frequent(self, most: int) -> npt.NDArray[np.int64]:
        """Return the places of the most frequent values, most frequent first, equal ones by value."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = pa.table({"count": self.counts, "value": self.values if self.keys is None else pa.array(self.keys)})
        if self.kind == Bool:
            table = table.set_column(1, "value", self.values.cast("int8"))
        order = [("count", "descending"), ("value", "ascending")]
        return np.asarray(pc.select_k_unstable(table, k=most, sort_keys=order)).astype(np.int64)

    def at_share(self, shares: Sequence[float]) -> tuple[Scalar, ...]:
        """Return the least value that a share of the rows is not above, for each share; none where there are none."""
        if self.keys is None or not self.held:
            return ()
        ranks = np.maximum(np.ceil(np.asarray(shares) * self.held), 1)
        return tuple(self.scalar(place) for place in np.searchsorted(np.cumsum(self.counts), ranks))


def plain(kind: ValueType, value: Any) -> Scalar:
    """Return a Python value as JSON, a long text or bytes as `shortened`."""
    if isinstance(value, bytes):
        return shortened(to_json(kind, value), value)
    if isinstance(value, str):
        return shortened(value)
    return to_json(kind, value)  # type: ignore[no-any-return]


def count(kind: ValueType, column: pa.Array | pa.ChunkedArray) -> Counted:
    """Count the values of a column of a sample; lists have only nulls."""
    import pyarrow as pa

    array = one_array(column)
    rows, nulls = len(array), array.null_count
    if kind.item is not None:
        return Counted(kind, rows, nulls, 0, pa.nulls(0), np.zeros(0, np.int64), None)
    array = array.drop_null() if nulls else array
    if kind in (String, Bytes, Bool):
        values, counts = _texts(array) if kind != Bool else _each(array)
        return Counted(kind, rows, nulls, 0, values, counts, None)
    if kind.precision is not None:
        return _decimals(kind, rows, nulls, array)
    number = {Timestamp: pa.int64(), Date: pa.int32()}.get(kind)
    stored = np.asarray(array if number is None else array.cast(number))
    found = stored
    if kind.name in _FLOATS:
        found = found[np.isfinite(found)].astype(np.float64) + 0.0  # a zero has no sign here
    different, counts = _sorted(found)
    values = pa.array(different).cast(arrow_type(kind)) if kind in (Timestamp, Date) else pa.array(different)
    keys = different.astype(np.int64) * DAY_US if kind == Date else different
    return Counted(kind, rows, nulls, len(stored) - len(found), values, counts, keys)


def _decimals(kind: ValueType, rows: int, nulls: int, array: pa.Array) -> Counted:
    """Count decimals: as 64-bit integers where they fit, which sort quickly."""
    import pyarrow as pa
    import pyarrow.compute as pc

    halves = np.frombuffer(array.buffers()[1] or b"", np.int64).reshape(-1, 2)[array.offset : array.offset + len(array)]
    low, high = halves[:, 0], halves[:, 1]
    if (low >> 63 == high).all():
        different, counts = _sorted(low)
        whole = np.column_stack((different, different >> 63))
        values = pa.Array.from_buffers(array.type, len(different), [None, pa.py_buffer(whole)])
    else:
        values, counts = _each(array)
        order = pc.sort_indices(values)
        values, counts = values.take(order), counts[np.asarray(order)]
    return Counted(kind, rows, nulls, 0, values, counts, np.asarray(values.cast(pa.float64())))


def _sorted(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return the different values, ascending, and how often each is there."""
    if not len(values):
        return values, np.zeros(0, np.int64)
    ordered = np.sort(values)
    first = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    return ordered[first], np.diff(np.append(first, len(ordered)))


def _each(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    found = array.value_counts()
    return found.field("values"), np.asarray(found.field("counts"))


def _texts(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Return the different texts; bytes, and texts that are long, as the documents hold them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values, counts = _each(array)
    if pa.types.is_binary(values.type):
        return pa.array([plain(Bytes, value) for value in values.to_pylist()], pa.string()), counts
    if len(values) and pc.max(pc.utf8_length(values)).as_py() > MOST_CHARACTERS:
        values = pa.array([shortened(value) for value in values.to_pylist()], pa.string())
    return values, counts
