"""What a comparison is made of: features beside what they should be, and the reads that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.quality.held import Held
from featurestore.quality.past import Past
from featurestore.quality.rows import Key
from featurestore.quality.sameness import Bools
from featurestore.quality.windows import WindowEvents
from featurestore.request.features import OutputColumn, ViewRead
from featurestore.training.frames import EntityFrame, engine_column
from featurestore.training.joins import PinnedRead

if TYPE_CHECKING:
    import pyarrow as pa

Int64s = npt.NDArray[np.int64]


def _nothing() -> Int64s:
    return np.zeros(0, np.int64)


@dataclass
class Compared:
    """One feature under comparison, row by row."""

    name: str
    column: OutputColumn
    served: pa.Array
    now: pa.Array
    compared: Bools
    differs_now: Bools
    differs_then: Bools

    @property
    def differs(self) -> Bools:
        """The rows that differ from one of the two."""
        either: Bools = self.differs_now | self.differs_then
        return either


@dataclass
class Reading:
    """One read of the comparison, and which rows of its log answer."""

    pinned: PinnedRead
    past: Past
    held: Held
    now: Int64s = field(default_factory=_nothing)
    """The ``fs_seq`` of each row's answer by what is known now, `NONE` where there is none, and for windows."""
    then: Int64s = field(default_factory=_nothing)
    """The same by what was online then."""
    events: WindowEvents | None = None
    """Of rows that differ, for windows."""

    @property
    def read(self) -> ViewRead:
        """What is read."""
        return self.pinned.read

    @property
    def is_windowed(self) -> bool:
        """Whether its features are of windows."""
        return bool(self.read.view.aggregations)

    @property
    def moved(self) -> Bools:
        """The rows whose two answers are different rows of the log."""
        moved: Bools = self.now != self.then
        return moved

    def keys(self, frame: EntityFrame, rows: Int64s) -> list[pa.Array]:
        """Return the join keys of some rows, a column for each, in declared order."""
        import pyarrow as pa

        kinds, picked = self.read.view.join_keys, pa.array(rows)
        names = [engine_column(column, kinds[key]) for key, column in self.read.key_columns]
        return [frame.keys.column(name).take(picked).combine_chunks() for name in names]


def key_tuples(columns: Sequence[pa.Array]) -> list[Key]:
    """Return rows of join keys as tuples."""
    values: list[list[Any]] = [column.to_pylist() for column in columns]
    return list(zip(*values, strict=True))
