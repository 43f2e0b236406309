"""Windows counted again for a certificate: by plain loops over the events of the files, without the engine's joins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.definitions.aggregation import ALL_ROWS, Window
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

MOST_EVENTS = 2_000_000
"""At most so many events are looked at, some of them several times; a row that would need more is left out."""

Key = tuple[Any, ...]


def recounted(rows: JoinedRows, pinned: PinnedRead, observed: Observed) -> tuple[int, list[tuple[int, str, Any, Any]]]:
    """Compute the sampled rows of a windowed view again.

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
    events = _Events(rows, pinned, Asked(columns, at_us, oldest_us))
    keys = zip(*(column.to_pylist() for column in columns), strict=True)
    asked = list(zip(keys, at_us.tolist(), strict=True))
    windows = {window.name: window for window in join.view.windows}
    joined = observed.values(pinned.read)
    seen = count = 0
    wrong: list[tuple[int, str, Any, Any]] = []
    for place, (key, at_us) in enumerate(asked):
        near = events.near(key, at_us)
        if seen + len(near) * len(joined) > MOST_EVENTS and count:
            continue
        seen, count = seen + len(near) * len(joined), count + 1
        for name, values in joined.items():
            wanted = events.value(windows[name], key, at_us, near) if join.is_begun else None
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


class _Events:
    """The events of the sampled entities, by key and in their order."""

    def __init__(self, rows: JoinedRows, pinned: PinnedRead, asked: Asked) -> None:
        self._view = pinned.read.view
        self._as_of = pinned.as_of
        self._asked = asked
        assert self._view.events is not None
        self._types = self._view.events.types(self._view.stored)
        self._by_key: dict[Key, list[ReferenceEvent]] = {}
        for table in self._tables(rows, pinned):
            self._take(table, rows.joins.conditions(self._view, table))
        for events in self._by_key.values():
            events.sort(key=lambda event: (event.event_us, event.known_us, event.sequence))

    def _tables(self, rows: JoinedRows, pinned: PinnedRead) -> Sequence[pa.Table]:
        import pyarrow as pa

        kinds = {**self._view.join_keys, **{field.name: field.type for field in self._view.stored}}
        found = []
        for path in pinned.opens:
            with opened(rows.offline, path) as file:
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
        values = {field.name.lower(): table.column(field.name).to_pylist() for field in self._view.stored}
        values[self._view.timestamp_field.lower()] = table.column(EVENT).to_pylist()
        true = {text: marks.to_pylist() for text, marks in conditions.items()}
        for place, (key, sequence) in enumerate(zip(keys, table.column(SEQUENCE).to_pylist(), strict=True)):
            known = event[place] if created[place] is None else created[place]
            made = ReferenceEvent(
                event[place],
                known,
                sequence,
                {name: column[place] for name, column in values.items()},
                frozenset(text for text, marks in true.items() if marks[place]),
            )
            self._by_key.setdefault(key, []).append(made)

    def near(self, key: Key, at_us: int) -> Sequence[ReferenceEvent]:
        """Return the events of a key that any window can see at an instant."""
        oldest = self._view.reaches_back_to(at_us)
        return [event for event in self._by_key.get(key, ()) if oldest <= event.event_us <= at_us]

    def value(self, window: Window, key: Key, at_us: int, events: Sequence[ReferenceEvent]) -> Any:
        """Return one feature's value."""
        if None in key:
            return None
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
