"""Windowed features of entity rows: the events that they can see, read once, and the windows over them as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.definitions import FeatureView
from featurestore.definitions.aggregation import ALL_ROWS, Window
from featurestore.engine.duck.choose import EntityRows, arrays, instant
from featurestore.engine.duck.identity import known
from featurestore.engine.duck.offline_sql import log
from featurestore.engine.duck.session import Session, file_list, quote, translated
from featurestore.engine.interface import EVENT_AT, KNOWN_AT, NUMBER, JoinFacts, ViewJoin
from featurestore.types import Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import MIN_INSTANT
from featurestore.types.values import duckdb_type
from featurestore.windows.evaluate import Answer, evaluate
from featurestore.windows.layout import layout_of
from featurestore.windows.moves import Column, Events, Question, Remarks
from featurestore.windows.timeline import order_of, shares

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

WORTH_A_THREAD = 100_000
"""With so many events two threads are faster than one."""
EVENTS_AT_ONCE = 16_000_000
"""At most so many events at once; of a larger log a share of the keys at a time, a quarter at once: its arrays stand
beside the table in which the database holds the events."""
_AS_INTEGER = {Date: "{} - DATE '1970-01-01'", Timestamp: "epoch_us({})"}
_NUMBERS = (Int32, Int64, Float32, Float64, Bool, Date, Timestamp)


@dataclass(slots=True)
class WindowedColumns:
    """The windowed features of a view for every entity row, in the frame's order, and facts about them."""

    columns: list[pa.Array]
    null_keys: int
    own_events: int = 0
    held_back: int = 0
    overflowed: dict[str, int] = field(default_factory=dict)

    def facts(self, view: ViewJoin) -> JoinFacts:
        """Return what a certificate states."""
        return JoinFacts(
            view.name,
            {"null_key": self.null_keys},
            greatest_age_us=None,
            from_future=None,
            own_events=self.own_events,
            overflowed=self.overflowed,
            held_back=self.held_back,
        )


def conditions(session: Session, view: FeatureView, events: pa.Table) -> dict[str, pa.Array]:
    """Tell for each event whether each condition of the view's aggregations is true of it."""
    texts = list(dict.fromkeys(each.where for each in view.aggregations if each.where is not None))
    if not texts:
        return {}
    named = ", ".join(_named_columns(view, {field.name: quote(field.name) for field in view.stored}))
    marks = ", ".join(f"{condition_sql(text)} AS c{place}" for place, text in enumerate(texts))
    with session.open(in_order=True) as connection, translated("check conditions of events"):
        connection.register("given_events", events)
        found = connection.sql(f"SELECT {marks} FROM (SELECT {named} FROM given_events)").to_arrow_table()
    return {text: found.column(place).combine_chunks() for place, text in enumerate(texts)}


def condition_sql(text: str) -> str:
    """Return whether a condition is true of an event, which it is not where it cannot be computed."""
    return f"TRY(({text}\n)) IS TRUE"


def _named_columns(view: FeatureView, stored: Mapping[str, str]) -> list[str]:
    """Return a SELECT's columns by the names that conditions use: keys, stored columns as given, times.

    What statistics say of a column that a condition reads stays hidden: where they settle a part of the condition, the
    rest would not be computed, and whether it can be would depend on the file in which the event lies.
    """
    columns = {**{name: quote(name) for name in view.join_keys}, **stored, view.timestamp_field: EVENT}
    if view.created_timestamp_field is not None:
        columns[view.created_timestamp_field] = CREATED
    read = {name.lower() for each in view.aggregations for name in each.condition_columns}
    return [
        f"{f'TRY({column})' if name.lower() in read else column} AS {quote(name)}" for name, column in columns.items()
    ]


def compute(entities: EntityRows, view: ViewJoin, number: int) -> WindowedColumns:
    """Compute a view's windowed features; ``number`` tells its tables from those of other views."""
    reading = _Reading(entities, view, number)
    null_keys = entities.count - len(reading.rows)
    if not view.is_begun:
        nulls: list[Any] = [_nulls(kind, entities.count) for kind in reading.kinds]
        return WindowedColumns(nulls, null_keys)
    made = WindowedColumns([], null_keys, overflowed=dict.fromkeys(view.features, 0))
    parts: list[list[pa.Array]] = [[] for _ in view.features]
    with ThreadPoolExecutor(reading.threads) as pool:
        for share in reading.shares():
            for found, remarks, columns in pool.map(_Share.answered, share):
                made.own_events += int(remarks.own.sum())
                made.held_back += int(remarks.held_back.sum())
                for part, name, answer, column in zip(parts, view.features, found, columns, strict=True):
                    part.append(column)
                    if answer.overflowed is not None:
                        made.overflowed[name] += int(answer.overflowed.sum())
    made.columns = [reading.in_order(part, kind) for part, kind in zip(parts, reading.kinds, strict=True)]
    return made


def _nulls(kind: ValueType, count: int) -> pa.Array:
    import pyarrow as pa

    return pa.nulls(count, arrow_type(kind))


def named_events(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], within: Sequence[str]
) -> str:
    """Return the SELECT of a log's rows with its columns by the names that conditions use, and its times as integers.

    ``within`` are conditions on the log's own columns.
    """
    described = connection.execute(f"DESCRIBE FROM {log(files)}").fetchall()
    there = {str(name).lower() for name, *_ in described}
    stored = {
        each.name: (quote(each.name) if each.name.lower() in there else "NULL") + f"::{duckdb_type(each.type)}"
        for each in view.stored
    }
    columns = [
        f"epoch_us({EVENT}) AS {EVENT_AT}",
        f"epoch_us({known()}) AS {KNOWN_AT}",
        f"{SEQUENCE} AS {NUMBER}",
        *_named_columns(view, stored),
    ]
    return f"SELECT {', '.join(columns)} FROM {log(files)} WHERE {' AND '.join(within) or 'true'}"


def value_sql(kind: ValueType | None, name: str) -> str:
    """Return a column as windows compute with it: a double, 64 bits, or a text; of other types, and without one, a
    zero for a value.
    """
    if kind in (Float32, Float64):
        return f"{name}::DOUBLE"
    if kind in _NUMBERS:
        return f"({_AS_INTEGER.get(kind, '{}').format(name)})::BIGINT"
    return name if kind in (String, Bytes) else f"CASE WHEN {name} IS NOT NULL THEN 0::BIGINT END"


def events_sql(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    files: Sequence[str],
    within: Sequence[str],
    *,
    by_entity: bool,
) -> str:
    """Return the SELECT of `Log.events`; ``within`` are conditions on the log's own columns."""
    layout, _ = layout_of(view)
    values = []
    for place, (kept, (name, kind)) in enumerate(zip(layout.kinds, layout.columns, strict=False)):
        is_text = kept == "text" and kind == String
        value = f"encode({quote(name)})" if is_text else value_sql(kind if kept != "none" else None, quote(name))
        values.append(f"{value} AS v{place}")
    values += [f"{condition_sql(text)} AS c{place}" for place, text in enumerate(layout.conditions)]
    keys = list(map(quote, view.join_keys))
    order = [NUMBER] if not by_entity else [*keys, EVENT_AT]
    events = named_events(connection, view, files, within)
    return (
        f"SELECT {', '.join([*keys, EVENT_AT, KNOWN_AT, NUMBER, *values])} FROM ({events}) ORDER BY {', '.join(order)}"
    )


class _Reading:
    """The entity rows by key and time, and the SQL that reads the events which they can see."""

    def __init__(self, entities: EntityRows, view: ViewJoin, number: int) -> None:
        self._entities, self._view, self._number = entities, view, number
        rows, keys, times = entities.asked(view)
        order = np.lexsort((times, keys))
        self.rows, self.keys, self.times = rows[order], keys[order], times[order]
        by_name = {window.name: window for window in view.view.windows}
        self.windows = [by_name[name] for name in view.features]
        self.kinds = [view.view.feature(name).type for name in view.features]
        assert view.view.events is not None
        self._types = view.view.events.types(view.view.stored)
        self.columns = list(dict.fromkeys(column for window in self.windows if (column := _column(window)) is not None))
        self.conditions = list(
            dict.fromkeys(window.aggregation.where for window in self.windows if window.aggregation.where is not None)
        )
        self.questions = [_question(window) for window in self.windows]

    @cached_property
    def threads(self) -> int:
        """How many threads compute: as many as the database's."""
        ((count,),) = self._entities.connection.execute("SELECT current_setting('threads')").fetchall()
        return int(count)

    def shares(self) -> Iterator[list[_Share]]:
        """Yield shares of the keys with their events, some for threads side by side; each entity row with a key is
        in one.
        """
        if not len(self.rows):
            return
        connection = self._entities.connection
        if not self._view.files:
            yield [self._share(None, None, slice(0, int(self.keys[-1]) + 1))]
            return
        query = self._query()
        counted = f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({file_list(self._view.files)})"
        ((total,),) = connection.execute(counted).fetchall()
        keys = int(self.keys[-1]) + 1
        counts = np.ones(keys, np.int64)
        span_us, most = max(0, int(self._last_us.max() - self._oldest_us.min())), EVENTS_AT_ONCE
        if total > EVENTS_AT_ONCE or next(shares(counts, span_us, keys)).stop < keys:
            table = f"window_events_{self._number}"
            connection.execute(f"CREATE TEMP TABLE {table} AS {query}")
            query = f"FROM {table}"
            ids, found = arrays(connection, f"SELECT id, count(*) AS events {query} GROUP BY id", "id", "events")
            counts[ids], most = found, EVENTS_AT_ONCE // 4
        for share in shares(counts, span_us, most):
            whole = share == slice(0, keys)
            some = query if whole else f"SELECT * FROM ({query}) WHERE id >= {share.start} AND id < {share.stop}"
            yield self._split(connection.sql(some).to_arrow_table(), share)

    def _split(self, events: pa.Table, keys: slice) -> list[_Share]:
        """Return as many shares of some keys as there are threads, if that is worth it."""
        if self.threads == 1 or len(events) < WORTH_A_THREAD:
            return [self._share(events, None, keys)]
        ids = events.column("id").to_numpy()
        counts = np.bincount(ids - keys.start, minlength=keys.stop - keys.start)
        most = max(WORTH_A_THREAD // 2, len(events) * 51 // (50 * self.threads))
        found = [slice(each.start + keys.start, each.stop + keys.start) for each in shares(counts, 0, most)]
        return [self._share(events, np.flatnonzero((ids >= each.start) & (ids < each.stop)), each) for each in found]

    def _share(self, events: pa.Table | None, places: Any, keys: slice) -> _Share:
        rows = slice(*np.searchsorted(self.keys, [keys.start, keys.stop]))
        return _Share(self, events, places, keys, self.keys[rows] - keys.start, self.times[rows])

    @cached_property
    def _firsts(self) -> Any:
        return np.flatnonzero(np.append(True, self.keys[1:] != self.keys[:-1]))

    @cached_property
    def _last_us(self) -> Any:
        return self.times[np.append(self._firsts[1:], len(self.times)) - 1]

    @cached_property
    def _oldest_us(self) -> Any:
        """For each key the instant after which events can count in its first row."""
        first = self.times[self._firsts]
        oldest = np.full(len(first), np.iinfo(np.int64).max)
        for window in self.windows:
            if window.length_us is None:
                return np.full(len(first), self._first_us - 1)
            begins = (first - window.length_us) // window.resolution_us * window.resolution_us
            np.minimum(oldest, begins, out=oldest)
        return np.maximum(oldest, MIN_INSTANT - 1)

    @cached_property
    def _first_us(self) -> int:
        """The instant of the log's first event."""
        found = self._entities.connection.execute(f"SELECT epoch_us(min({EVENT})) FROM {log(self._view.files)}")
        ((first,),) = found.fetchall()
        return MIN_INSTANT if first is None else int(first)

    def _query(self) -> str:
        """Return the SELECT of key number, times, values and conditions of the events that any row can see."""
        import pyarrow as pa

        entities, view = self._entities, self._view
        ids = self.keys[self._firsts].astype(np.int32)
        spans = f"window_spans_{self._number}"
        entities.connection.register(
            "given_spans", pa.table({"id": ids, "oldest": self._oldest_us, "last": self._last_us})
        )
        entities.connection.execute(
            f"CREATE TEMP TABLE {spans} AS SELECT k.*, s.oldest, s.last FROM {entities.keys(view)} k "
            "JOIN given_spans s USING (id)"
        )
        entities.connection.unregister("given_spans")
        values = [f"{self._value(name)} AS fs_value{place}" for place, name in enumerate(self.columns)]
        values += [f"{condition_sql(text)} AS fs_condition{place}" for place, text in enumerate(self.conditions)]
        keys = ", ".join(map(quote, view.view.join_keys))
        events = f"SELECT {', '.join([keys, EVENT_AT, KNOWN_AT, NUMBER, *values])} FROM ({self._named_events()})"
        own = ", ".join([f"l.{EVENT_AT}", f"l.{KNOWN_AT}", f"l.{NUMBER}", *_results(self.columns, self.conditions)])
        return (
            f"SELECT k.id, {own} FROM ({events}) l JOIN {spans} k ON {entities.on_keys(view, 'l', 'k')} "
            f"AND l.{EVENT_AT} > k.oldest AND l.{EVENT_AT} <= k.last"
        )

    def _named_events(self) -> str:
        first, last = int(self._oldest_us.min()), int(self._last_us.max())
        within = [f"{EVENT} <= {instant(last)}"]
        if first >= MIN_INSTANT:
            within.append(f"{EVENT} > {instant(first)}")
        return named_events(self._entities.connection, self._view.view, self._view.files, within)

    def type_of(self, column: str) -> ValueType:
        """Return the type of a column of the events."""
        return self._types[column.lower()]

    def _value(self, column: str) -> str:
        return value_sql(self.type_of(column), quote(column))

    @property
    def counts_availability(self) -> bool:
        """Whether events count only from their created time on."""
        return self._view.as_of == "available"

    def in_order(self, parts: Sequence[pa.Array], kind: ValueType) -> pa.Array:
        """Return the values of all shares in the frame's order, null for rows with a null key."""
        import pyarrow as pa

        count = self._entities.count
        found = pa.concat_arrays([*parts, pa.nulls(count - len(self.rows), arrow_type(kind))])
        places = np.full(count, -1, np.int64)
        places[self.rows] = np.arange(len(self.rows))
        places[places < 0] = np.arange(len(self.rows), count)
        return found.take(pa.array(places))


class _Share:
    """Some keys: their entity rows and their events, which are all or some rows of a table."""

    def __init__(
        self, reading: _Reading, table: pa.Table | None, places: Any, keys: slice, asked: Any, times: Any
    ) -> None:
        self._reading, self._table, self._places, self._keys = reading, table, places, keys
        self._asked, self._times = asked, times
        self._order: Any = None
        """The table's rows in the order of the events."""

    def answered(self) -> tuple[list[Answer], Remarks, list[pa.Array]]:
        """Return the answers to all questions, and their values as columns."""
        reading = self._reading
        found, remarks = evaluate(self._events(), self._asked, self._times, reading.questions)
        columns = list(map(self._to_arrow, found, reading.windows, reading.kinds))
        return found, remarks, columns

    def _events(self) -> Events:
        reading, table, count = self._reading, self._table, self._keys.stop - self._keys.start
        if table is None:
            none = np.zeros(0, np.int64)
            columns = {name: Column(none.astype(_dtype(reading.type_of(name)))) for name in reading.columns}
            conditions = dict.fromkeys(reading.conditions, none.astype(np.bool_))
            return Events(np.zeros(count + 1, np.int64), none, None, columns, conditions)
        named = (table.column(name).to_numpy() for name in ("id", EVENT_AT, KNOWN_AT, NUMBER))
        ids, event, created, sequence = named if self._places is None else (each[self._places] for each in named)
        keys = ids.astype(np.int64) - self._keys.start
        order = _event_order(keys, event, created, sequence)
        event = event[order]
        available = np.maximum(event, created[order]) if reading.counts_availability else None
        self._order = order if self._places is None else self._places[order]
        return Events(
            np.searchsorted(keys[order], np.arange(count + 1)),
            event,
            None if available is None or np.array_equal(available, event) else available,
            {name: self._column(place, name) for place, name in enumerate(reading.columns)},
            {
                text: np.asarray(table.column(f"fs_condition{place}"))[self._order]
                for place, text in enumerate(reading.conditions)
            },
        )

    def _column(self, place: int, name: str) -> Column:
        import pyarrow as pa

        assert self._table is not None
        found = self._table.column(f"fs_value{place}").combine_chunks()
        valid = None if found.null_count == 0 else np.asarray(found.is_valid())[self._order]
        if self._reading.type_of(name) in (String, Bytes):
            found = text_hashes(found)
        elif found.null_count:
            found = found.fill_null(pa.scalar(0, found.type))
        return Column(found.to_numpy(zero_copy_only=False)[self._order], valid)

    def _to_arrow(self, answer: Answer, window: Window, kind: ValueType) -> pa.Array:
        """Return a feature's values in its declared type."""
        import pyarrow as pa

        function = window.aggregation.function
        if function not in ("first", "last", "last_n"):
            return typed(pa.array(answer.values, mask=~answer.valid), kind)
        item = kind if kind.item is None else kind.item
        if self._table is None:
            return _nulls(kind, len(answer.valid))
        column = _column(window)
        assert column is not None
        values = self._table.column(f"fs_value{self._reading.columns.index(column)}").combine_chunks()
        if function == "last_n":
            assert answer.offsets is not None
            taken = typed(values.take(pa.array(self._order[answer.values])), item)
            return pa.ListArray.from_arrays(
                pa.array(answer.offsets.astype(np.int32)), taken, type=arrow_type(kind), mask=pa.array(~answer.valid)
            )
        places = np.where(answer.valid, answer.values, 0)
        places = self._order[places] if len(self._order) else places
        return typed(values.take(pa.array(places, mask=~answer.valid)), item)


def text_hashes(values: pa.Array) -> pa.Array:
    """Return 64 bits of BLAKE2b of each text or byte string as an integer, any where it is null."""
    import pyarrow as pa

    coded = values.dictionary_encode()
    hashes = [
        int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
        for text in coded.dictionary.cast(pa.binary()).to_pylist()
    ]
    return pa.array(hashes, pa.int64()).take(coded.indices).fill_null(0)


def typed(values: pa.Array, kind: ValueType) -> pa.Array:
    """Return integers or floats, as the engine computes with them, in the declared type; texts as they are."""
    import pyarrow as pa

    if kind == Date:
        return values.cast(pa.int32()).cast(pa.date32())
    return values.cast(arrow_type(kind), safe=kind != Float32)


def _event_order(keys: Any, event: Any, created: Any, sequence: Any) -> Any:
    """Return the rows ordered by key, event time, created time and sequence number."""
    if not len(keys):
        return np.zeros(0, np.int64)
    first = int(event.min())
    span = int(event.max()) - first + 1
    composite = keys * span + (event - first)  # the shares are so small that it fits
    order = order_of(composite)
    composite = composite[order]
    tied = composite[1:] == composite[:-1]
    members = np.flatnonzero(np.append(tied, False) | np.append(False, tied))
    if len(members):
        some = order[members]
        order[members] = some[np.lexsort((sequence[some], created[some], composite[members]))]
    return order


def _column(window: Window) -> str | None:
    column = window.aggregation.column
    return None if column == ALL_ROWS else column


def _question(window: Window) -> Question:
    of = window.aggregation
    return Question(of.function, _column(window), of.where, window.length_us, window.resolution_us, of.bound)


def _results(columns: Sequence[str], conditions: Sequence[str]) -> list[str]:
    return [f"l.fs_value{place}" for place, _ in enumerate(columns)] + [
        f"l.fs_condition{place}" for place, _ in enumerate(conditions)
    ]


def _dtype(kind: ValueType) -> Any:
    return np.float64 if kind in (Float32, Float64) else np.int64
