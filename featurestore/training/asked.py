"""Which rows of a table can answer what is asked: of few entities, and at few instants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    Numbers = npt.NDArray[np.int64]

NOBODY = -1
"""The number of keys that nobody asks for."""
END = 2**62
"""Past all numbers, so that a search ends within them."""


def sorted_values(numbers: Numbers) -> Numbers:
    """Return the different numbers in order. By sorting: what np.unique does takes seconds for a million of them."""
    import numpy as np

    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


class Asked:
    """Keys, the instants at which they are asked for, and how far back from there events count."""

    def __init__(self, keys: Sequence[pa.ChunkedArray], at_us: Numbers, oldest_us: Numbers) -> None:
        """Take one column for each join key; an instant's oldest event is no older than that of an earlier one."""
        import numpy as np

        self._levels: list[tuple[pa.Array, Numbers]] = []
        """For each join key its values, and the numbers of those that occur together with the keys before it."""
        entities = np.zeros(len(at_us), dtype=np.int64)
        for column in keys:
            values = column.unique().drop_null()
            numbers = _numbered(entities, column, values)
            self._levels.append((values, np.append(sorted_values(numbers[numbers >= 0]), END)))
            entities = _found(self._levels[-1][1], numbers)
        order = np.lexsort((at_us, entities))
        self._instants = sorted_values(at_us)
        self._entities, self._oldest_us = np.append(entities[order], NOBODY), np.append(oldest_us[order], 0)
        self._codes = np.append(self._coded(entities, at_us)[order], END)

    def places(self, keys: Iterator[pa.ChunkedArray], event_us: Numbers) -> Numbers:
        """Return the places of rows that can answer: some instant at which their keys are asked for reaches them."""
        import numpy as np

        entities = np.zeros(len(event_us), dtype=np.int64)
        for column, (values, known) in zip(keys, self._levels, strict=True):
            entities = _found(known, _numbered(entities, column.cast(values.type), values))
        following = self._codes.searchsorted(self._coded(entities, event_us))
        asked = (entities != NOBODY) & (self._entities[following] == entities)
        return np.flatnonzero(asked & (self._oldest_us[following] <= event_us))

    def _coded(self, entities: Numbers, instants_us: Numbers) -> Numbers:
        """Return one number for each entity and the first instant asked for that is not before its own."""
        codes: Numbers = entities * (len(self._instants) + 1) + self._instants.searchsorted(instants_us)
        return codes


def _numbered(entities: Numbers, column: pa.ChunkedArray, values: pa.Array) -> Numbers:
    import numpy as np
    import pyarrow.compute as pc

    found = pc.fill_null(pc.index_in(column, value_set=values, skip_nulls=True), NOBODY).to_numpy()
    return np.where(found == NOBODY, NOBODY, entities * len(values) + found)  # of nobody's: below 0, too


def _found(known: Numbers, numbers: Numbers) -> Numbers:
    """Return the places of numbers among the known ones, which are in order."""
    import numpy as np

    places = known.searchsorted(numbers)
    return np.where(known[places] == numbers, places, NOBODY)
