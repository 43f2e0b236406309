"""Windows counted again for a certificate: by plain loops over the events of the files, without the engine's joins."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from featurestore.definitions.aggregation import ALL_ROWS, Window
from featurestore.engine.interface import Joins
from featurestore.offline.interface import TableReader
from featurestore.offline.reading import opened
from featurestore.training.asked import Asked
from featurestore.training.frames import TIME
from featurestore.training.joins import JoinedRows, Observed, PinnedRead
from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.values import ValueType

if TYPE_CHECKING:
    import pyarrow as pa

MOST_EVENTS = 500_000
"""At most so many events are looked at, some of them several times; a row that would need more is left out."""

Key = tuple[Any, ...]


def recounted(
    rows: JoinedRows, pinned: PinnedRead, observed: Observed, horizon_us: int | None = None
) -> tuple[int, list[tuple[int, str, Any, Any]]]:
    """Compute the sampled rows of a windowed view again; of a label only by what happened within its horizon.

    Returns how many rows that were, and each value that differs: place in the sample, feature, what the set holds, and
    what the loops give.
    """
    import numpy as np
    import pyarrow as pa

    join = pinned.view_join()
    sample = rows.frame.keys.take(pa.array(observed.rows))
    columns = [sample.column(join.key_columns[key]).cast(arrow_type(kind)) for key, kind in join.view.join_keys.items()]
    at_us = sample.column(TIME).cast(pa.int64()).to_numpy()
    oldest_us = np.array([join.view.reaches_back_to(at) for at in at_us.tolist()], dtype=np.int64)
    events = EntityEvents(rows.joins, rows.offline, pinned, Asked(columns, at_us, oldest_us))
    keys = zip(*(column.to_pylist() for column in columns), strict=True)
    asked = list(zip(keys, at_us.tolist(), strict=True))
    windows = {window.name: window for window in join.view.windows}
    joined = observed.values(pinned.read)
    seen = count = 0
    wrong: list[tuple[int, str, Any, Any]] = []
    for place, (key, at_us) in enumerate(asked):
        after_us = None if horizon_us is None else at_us - horizon_us
        near = {name: events.near(key, at_us, windows[name], after_us) for name in joined}
        looks = sum(map(len, near.values()))
        if seen + looks > MOST_EVENTS and count:
            continue
        seen, count = seen + looks, count + 1
        for name, values in joined.items():
            wanted = events.value(windows[name], key, at_us, near[name]) if join.is_begun else None
            if not are_one(values[place], wanted):
                wrong.append((place, name, values[place], wanted))
    return count, wrong


def are_one(one: Any, other: Any) -> bool:
    """Tell whether two values are the same, NaNs and the signs of zeros included."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(are_one, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    return type(one) is type(other) and bool(one == other)


_event_us = attrgetter("event_us")


class EntityEvents:
    """The events of some entities, by key and in their order."""

    def __init__(self, joins: Joins, offline: TableReader, pinned: PinnedRead, asked: Asked) -> None:
        self._view = pinned.read.view
        self._as_of = pinned.as_of
        self._asked = asked
        assert self._view.events is not None
        self._types = self._view.events.types(self._view.stored)
        self._by_key: dict[Key, list[ReferenceEvent]] = {}
        for table in self._tables(offline, pinned):
            self._take(table, joins.conditions(self._view, table))
        for events in self._by_key.values():
            events.sort(key=lambda event: (event.event_us, event.known_us, event.sequence))

    def _tables(self, offline: TableReader, pinned: PinnedRead) -> Sequence[pa.Table]:
        import pyarrow as pa

        kinds = {**self._view.join_keys, **{field.name: field.type for field in self._view.stored}}
        found = []
        for path in pinned.opens:
            with opened(offline, path) as file:
                there = [name for name in kinds if name in file.schema_arrow.names]
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=[*there, EVENT, CREATED, SEQUENCE])
                    keys = map(table.column, self._view.join_keys)
                    event_us = table.column(EVENT).cast(pa.int64()).to_numpy()
                    table = table.take(pa.array(self._asked.places(keys, event_us)))
                    for name, kind in kinds.items():
                        missing = pa.nulls(table.num_rows, arrow_type(kind))
                        column = table.column(name).cast(arrow_type(kind)) if name in there else missing
                        table = table.drop_columns(name) if name in there else table
                        table = table.append_column(name, column)
                    found.append(table)
        return found

    def _take(self, table: pa.Table, conditions: Mapping[str, pa.Array]) -> None:
        import pyarrow as pa

        keys = zip(*(table.column(key).to_pylist() for key in self._view.join_keys), strict=True)
        event, created = (table.column(name).cast(pa.int64()).to_pylist() for name in (EVENT, CREATED))
        known = [happened if at is None else at for happened, at in zip(event, created, strict=True)]
        names = {name.lower(): name for name in table.column_names}
        names[self._view.timestamp_field.lower()] = EVENT
        read = [of.column.lower() for of in self._view.aggregations if of.column != ALL_ROWS]
        columns = {name: table.column(names[name]).to_pylist() for name in dict.fromkeys(read)}
        values = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        marks = zip(*(column.to_pylist() for column in conditions.values()), strict=True)
        true = [frozenset(text for text, is_true in zip(conditions, row, strict=True) if is_true) for row in marks]
        rows = table.num_rows
        each = (event, known, table.column(SEQUENCE).to_pylist(), values or [{}] * rows, true or [frozenset()] * rows)
        for key, made in zip(keys, map(ReferenceEvent, *each), strict=True):
            self._by_key.setdefault(key, []).append(made)

    def near(self, key: Key, at_us: int, window: Window, after_us: int | None = None) -> range:
        """Return where the events of a key are that a window can see at an instant, and one step before it.

        None up to ``after_us``, where it is given.
        """
        events = self._by_key.get(key, [])
        begin = 0
        if window.length_us is not None:
            oldest_us = at_us - window.length_us - window.resolution_us
            begin = bisect_left(events, oldest_us, key=_event_us)
        if after_us is not None:
            begin = max(begin, bisect_right(events, after_us, key=_event_us))
        return range(begin, bisect_right(events, at_us, key=_event_us))

    def value(self, window: Window, key: Key, at_us: int, near: range) -> Any:
        """Return one feature's value."""
        return None if None in key else self.computed(window, at_us, self.at(key, near))

    def at(self, key: Key, near: range) -> list[ReferenceEvent]:
        """Return the events of a key at the places that `near` gives."""
        return self._by_key.get(key, [])[near.start : near.stop]

    def computed(self, window: Window, at_us: int, events: Sequence[ReferenceEvent]) -> Any:
        """Return one feature's value of some events in their order."""
        of = window.aggregation
        kind: ValueType | None = None if of.column == ALL_ROWS else self._types[of.column.lower()]
        return reference_window(
            events,
            at_us,
            of.function,
            column=None if of.column == ALL_ROWS else of.column.lower(),
            is_float=kind is not None and kind.name in ("Float32", "Float64"),
            condition=of.where,
            length_us=window.length_us,
            resolution_us=window.resolution_us,
            n=of.bound,
            as_of=self._as_of,
        )
