"""The least or greatest value of many ranges at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Array = npt.NDArray[Any]

_BLOCK_BITS = 6
_BLOCK = 1 << _BLOCK_BITS


class RangeExtremes:
    """The extreme of any range of positions: by tables over blocks of 64, and looked up within a block."""

    def __init__(self, values: Array, pick: np.ufunc) -> None:
        """``pick`` is ``np.minimum`` or ``np.maximum``."""
        self._values, self._pick = values, pick
        count = -(-len(values) // _BLOCK)
        padded = np.empty(count * _BLOCK, values.dtype)
        padded[: len(values)] = values
        padded[len(values) :] = values[-1:]
        blocks = padded.reshape(count, _BLOCK)
        self._to_end = pick.accumulate(blocks[:, ::-1], axis=1)[:, ::-1].reshape(-1)
        self._from_begin = pick.accumulate(blocks, axis=1).reshape(-1)
        # The extremes of 1, 2, 4, ... neighbouring blocks.
        self._tables = [self._from_begin[_BLOCK - 1 :: _BLOCK]]
        while 2 ** len(self._tables) <= count:
            last, reach = self._tables[-1], 1 << (len(self._tables) - 1)
            self._tables.append(pick(last[:-reach], last[reach:]))

    def of(self, begins: Int64s, ends: Int64s) -> Array:
        """Return the extreme of each range [begin, end); none may be empty."""
        lasts = ends - 1
        first_blocks, last_blocks = begins >> _BLOCK_BITS, lasts >> _BLOCK_BITS
        found: Array = self._pick(self._to_end[begins], self._from_begin[lasts])
        inside = np.flatnonzero(first_blocks == last_blocks)
        if len(inside):
            found[inside] = self._within(begins[inside], ends[inside])
        apart = np.flatnonzero(last_blocks - first_blocks > 1)
        if len(apart):
            lows, highs = first_blocks[apart] + 1, last_blocks[apart]
            sizes = np.frexp((highs - lows).astype(np.float64))[1] - 1
            for size in np.unique(sizes):
                mine = sizes == size
                table = self._tables[size]
                best = self._pick(table[lows[mine]], table[highs[mine] - (1 << size)])
                found[apart[mine]] = self._pick(found[apart[mine]], best)
        return found

    def _within(self, begins: Int64s, ends: Int64s) -> Array:
        """Return the extremes of ranges that lie in one block each, from their values."""
        lengths = ends - begins
        offsets = np.concatenate([[0], np.cumsum(lengths[:-1])])
        places = np.repeat(begins - offsets, lengths) + np.arange(lengths.sum())
        found: Array = self._pick.reduceat(self._values[places], offsets)
        return found


def covering_extremes(values: Array, begins: Int64s, ends: Int64s, count: int, pick: np.ufunc, empty: Any) -> Array:
    """Return for each of ``count`` places the extreme of the values whose range [begin, end) covers it.

    The other way round than `RangeExtremes`: here each value has a range. ``empty`` is the answer where none covers.
    A range is two overlapping ones of the same power of two; those are halved from the longest down.
    """
    some = np.flatnonzero(begins < ends)
    sizes = np.frexp((ends[some] - begins[some]).astype(np.float64))[1] - 1
    order = np.argsort(sizes, kind="stable")
    some, sizes = some[order], sizes[order]
    found = np.full(count, empty, values.dtype)
    for size in range(int(sizes[-1]) if len(sizes) else 0, -1, -1):
        reach = 1 << size
        if reach < count:  # each range of twice this length becomes two of this length
            found = np.concatenate([found[:reach], pick(found[reach:], found[: count - reach])])
        mine = some[slice(*np.searchsorted(sizes, [size, size + 1]))]
        with np.errstate(invalid="ignore"):  # a NaN, which is the answer where it is covered
            pick.at(found, begins[mine], values[mine])
            pick.at(found, ends[mine] - reach, values[mine])
    return found
