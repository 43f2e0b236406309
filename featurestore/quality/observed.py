"""Rows as drift compares them: features, whose they are, and when they were seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import BinsDocument

from featurestore.statistics.counting import Counted, count
from featurestore.statistics.sets import sampled_rows
from featurestore.types import ValueType

if TYPE_CHECKING:
    import pyarrow as pa

SEVERAL = "several"
"""In place of what made a feature where rows are of more than one definition."""
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

Kind = Literal["served", "training", "batch"]
KINDS: Mapping[Kind, str] = {"served": "served rows", "training": "a training set", "batch": "rows of runs"}
"""What rows are, in words."""
ALIKE = {frozenset({"served"}), frozenset({"batch"}), frozenset({"served", "training"}), frozenset({"training"})}
"""Rows that are chosen alike: by traffic, or one for each entity and run. Others differ without any drift."""
DAY_US = 86_400_000_000
_THURSDAY = 3
"""The day of the week of 1970-01-01, where Monday is 0."""


@dataclass(frozen=True)
class ObservedFeature:
    """The values of one feature."""

    name: str
    type: ValueType
    values: pa.Array
    owner: str
    """Whose values they are: a name in `Observed.entities`."""
    made_by: str
    """What the values come from, ``{view}.{generation}`` or the code of an on-demand view: others do not compare."""
    statuses: pa.Array | None = None
    """Texts, in a dictionary; None where rows do not have them."""
    inputs: tuple[str, ...] = ()
    """The features that an on-demand feature is made of, as far as they are among these."""
    bins: BinsDocument | None = None
    """The bins in which the feature is counted everywhere; None where nothing has made any."""

    @cached_property
    def counted(self) -> Counted:
        """The values with their counts: a baseline is compared with two windows."""
        return count(self.type, self.values)


@dataclass(frozen=True)
class Observed:
    """Rows of one kind, seen in one span."""

    kind: Kind
    what: str
    """What they are, for messages."""
    at_us: Int64s
    features: Mapping[str, ObservedFeature]
    entities: Mapping[str, Int64s]
    """For each set of join keys a number for each row: equal numbers are the same entity."""
    ages_us: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    """For each view how old the record of each row was, NaN where there was none."""
    more: Mapping[str, pa.Array] = field(default_factory=dict)
    """Other columns that may carry a change, such as request data."""
    keys: Mapping[str, pa.Array] = field(default_factory=dict)
    """Join keys by column, plain or as hashes."""
    hashes: str = ""
    """What tells hashes of keys apart from others: the id of the secret, or a salt in hex; empty of plain keys."""

    sizes: dict[str, float] = field(default_factory=dict, compare=False, repr=False)
    """What `drift.compared` found of how many independent values features have."""

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.at_us)

    def where(self, rows: Bools) -> Observed:
        """Return some of the rows."""
        import pyarrow as pa

        if rows.all():
            return self
        chosen = pa.array(np.flatnonzero(rows))

        def taken(feature: ObservedFeature) -> ObservedFeature:
            statuses = None if feature.statuses is None else feature.statuses.take(chosen)
            return replace(feature, values=feature.values.take(chosen), statuses=statuses)

        return replace(
            self,
            sizes={},
            at_us=self.at_us[rows],
            features={name: taken(each) for name, each in self.features.items()},
            entities={name: numbers[rows] for name, numbers in self.entities.items()},
            ages_us={name: ages[rows] for name, ages in self.ages_us.items()},
            more={name: values.take(chosen) for name, values in self.more.items()},
            keys={name: values.take(chosen) for name, values in self.keys.items()},
        )

    def between(self, start_us: int, end_us: int) -> Observed:
        """Return the rows of [start, end)."""
        return self.where((self.at_us >= start_us) & (self.at_us < end_us))


def some_rows(rows: Observed, most: int) -> Observed:
    """Return at most so many rows, chosen by a seeded hash."""
    chosen = np.zeros(rows.rows, bool)
    chosen[sampled_rows(rows.rows, most)] = True
    return rows.where(chosen)


def weekdays(at_us: Int64s) -> Int64s:
    """Return days of the week in UTC, Monday is 0."""
    days: Int64s = (at_us // DAY_US + _THURSDAY) % 7
    return days


def numbered(columns: Sequence[pa.Array | pa.ChunkedArray]) -> Int64s:
    """Return a number for each row, the same for rows that have the same values in all columns."""
    import pyarrow as pa

    rows = len(columns[0]) if columns else 0
    found: Int64s = np.zeros(rows, np.int64)
    for column in columns:
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        codes: Any = whole.dictionary_encode("encode")
        indices = codes.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        _, found = np.unique(found * max(len(codes.dictionary), 1) + indices, return_inverse=True)
    return found.astype(np.int64)


def distinct(numbers: Int64s) -> int:
    """Return how many different numbers there are, of `numbered` rows."""
    return int(np.count_nonzero(np.bincount(numbers)))  # np.unique takes seconds for a million
