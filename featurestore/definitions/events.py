"""The events of a view with aggregations: which columns it keeps of them, and which features come of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurestore.definitions.aggregation import ALL_ROWS, KEEP_TEXTS, Aggregation, Window
from featurestore.definitions.base import COLUMN_NAME, Field, check_unique_columns
from featurestore.errors import DefinitionError
from featurestore.types import Bytes, Int32, Int64, String, Timestamp, ValueType

ONE_EVENT_US = 86_400_000_000
"""Events of an entity with one id that are at most so far apart are one."""
_ID_TYPES = (Int32, Int64, String, Bytes)


@dataclass(frozen=True, slots=True)
class EventColumns:
    """What a view with aggregations reads of its events. Columns are compared without case, as engines do."""

    view: str
    join_keys: Mapping[str, ValueType]
    timestamp: str
    created: str | None
    aggregations: tuple[Aggregation, ...]
    event_id: str | None

    @property
    def windows(self) -> tuple[Window, ...]:
        """The features, in their order."""
        return tuple(window for aggregation in self.aggregations for window in aggregation.features)

    @property
    def stored(self) -> tuple[str, ...]:
        """The columns to keep besides keys and times, in the order in which they are named."""
        names = [] if self.event_id is None else [self.event_id]
        for aggregation in self.aggregations:
            names += [aggregation.column, *aggregation.condition_columns]
        own = {name.lower() for name in (ALL_ROWS, *self.join_keys, *self._times)}
        first = {name.lower(): name for name in reversed(names)}
        return tuple(dict.fromkeys(first[name.lower()] for name in names if name.lower() not in own))

    @property
    def bounded(self) -> frozenset[str]:
        """The columns, in lower case, whose texts may have `MOST_BYTES` at most: the id, and those that are kept."""
        kept = {each.column.lower() for each in self.aggregations if each.function in KEEP_TEXTS}
        return frozenset(kept if self.event_id is None else {*kept, self.event_id.lower()})

    def read_by(self, aggregation: Aggregation) -> tuple[str, ...]:
        """Return the stored columns that one aggregation reads."""
        read = {name.lower() for name in (aggregation.column, *aggregation.condition_columns)}
        return tuple(name for name in self.stored if name.lower() in read)

    def types(self, fields: Sequence[Field]) -> dict[str, ValueType]:
        """Return the type of each column that aggregations and conditions may read, by its name in lower case.

        ``fields`` are the stored columns.
        """
        times = dict.fromkeys(self._times, Timestamp)
        stored = {field.name: field.type for field in fields}
        return {name.lower(): kind for name, kind in {**self.join_keys, **stored, **times}.items()}

    def features(self, fields: Sequence[Field]) -> tuple[Field, ...]:
        """Return the features; raises DefinitionError for a column whose type does not fit."""
        types = self.types(fields)
        if self.event_id is not None and types[self.event_id.lower()] not in _ID_TYPES:
            raise DefinitionError(
                f"FeatureView {self.view!r}: event_id: column {self.event_id!r} is {types[self.event_id.lower()]}.",
                hint=f"An id is {', '.join(map(str, _ID_TYPES[:-1]))} or {_ID_TYPES[-1]}; sql= can cast it.",
                object=self.view,
                field="event_id",
            )
        return tuple(
            window.aggregation.field_of(window, types.get(window.aggregation.column.lower())) for window in self.windows
        )

    def reader_of(self, column: str) -> str:
        """Return what reads a stored column, for messages."""
        return "its event_id is" if column.lower() == (self.event_id or "").lower() else "its aggregations read"

    def check(self) -> None:
        """Raise ValueError for a column that cannot be read so, and for names that clash."""
        keys, created = {key.lower() for key in self.join_keys}, (self.created or "").lower()
        for column in (aggregation.column for aggregation in self.aggregations):
            if column.lower() in keys:
                raise ValueError(f"aggregations: {column!r} is a join key, the same in all events of an entity")
            if column.lower() == created:
                raise ValueError(f"aggregations: {column!r} is the created time, which says when events count")
        if self.event_id is not None:
            if not COLUMN_NAME.fullmatch(self.event_id):
                raise ValueError(f"event_id: {self.event_id!r} is no column's name")
            if self.event_id.lower() in {*keys, *(name.lower() for name in self._times)}:
                raise ValueError(f"event_id: {self.event_id!r} is a join key or a time; it must be a column of its own")
        self._check_names()

    def check_schema(self, fields: Sequence[Field]) -> None:
        """Raise ValueError where declared columns are not those that are read, DefinitionError as `features`."""
        given = {field.name.lower() for field in fields}
        wanted = {name.lower(): name for name in self.stored}
        if missing := next((name for lower, name in wanted.items() if lower not in given), None):
            raise ValueError(f"schema: lacks {missing!r}: {self.reader_of(missing)} {missing!r}")
        if more := [field.name for field in fields if field.name.lower() not in wanted]:
            raise ValueError(f"schema: no aggregation reads {', '.join(map(repr, more))}")
        self.features(fields)

    def _check_names(self) -> None:
        seen: dict[str, Aggregation] = {}
        for window in self.windows:
            if (other := seen.get(window.name)) is not None:
                why = "give one a name"
                if other == window.aggregation:
                    why = "the same aggregation is given twice: leave one out"
                elif other.where != window.aggregation.where:
                    why = "the aggregations differ in where alone: give one a name"
                raise ValueError(f"aggregations: two features are called {window.name!r}; {why}")
            seen[window.name] = window.aggregation
        check_unique_columns([*self.join_keys, *seen])

    @property
    def _times(self) -> tuple[str, ...]:
        return (self.timestamp,) if self.created is None else (self.timestamp, self.created)
