"""The nearest earlier event that is available at an instant, where availability does not follow the order of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]


class NearestBefore:
    """Finds the last position before another whose value is at most a limit, for many at once.

    The least values of blocks of 1, 2, 4, ... make a tree. A search climbs until a block to its left holds such a
    value, and descends into it.
    """

    def __init__(self, values: Int64s) -> None:
        self._least = [values]
        while len(self._least[-1]) > 1:
            level = self._least[-1]
            even = len(level) // 2 * 2
            pairs = np.minimum(level[0:even:2], level[1:even:2])
            self._least.append(np.append(pairs, level[even:]))

    def of(self, ends: Int64s, limits: Int64s) -> Int64s:
        """Return the greatest position before each of ``ends`` with a value of at most its limit; -1 for none."""
        found = np.full(len(ends), -1, np.int64)
        rows, places = np.flatnonzero(ends > 0), ends[ends > 0]
        for level, least in enumerate(self._least):
            odd = places & 1 == 1
            # The block to the left of an odd place belongs to the same pair: it is not part of the next level's search.
            hit = np.zeros(len(rows), np.bool_)
            hit[odd] = least[places[odd] - 1] <= limits[rows[odd]]
            found[rows[hit]] = self._descend(level, places[hit] - 1, limits[rows[hit]])
            rows, places = rows[~hit], places[~hit] >> 1
            rows, places = rows[places > 0], places[places > 0]
            if not len(rows):
                break
        return found

    def _descend(self, level: int, places: Int64s, limits: Int64s) -> Int64s:
        """Return the last position with a value of at most the limit in each block."""
        for least in reversed(self._least[:level]):
            places = 2 * places + 1
            np.minimum(places, len(least) - 1, out=places)  # the last block of a level may have one half only
            places -= (places & 1 == 1) & (least[places] > limits)
        return places
