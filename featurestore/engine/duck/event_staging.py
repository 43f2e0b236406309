"""Staging of events: which rows of the source are new events, by their ids or, without ids, by their number.

With ids, events of an entity with one id, at most a day apart, are one: the first that was committed. Without ids every
row is an event: as many equal ones go into the log as it lacks of those that the source holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from featurestore.definitions.aggregation import MOST_BYTES
from featurestore.definitions.events import ONE_EVENT_US
from featurestore.engine.duck.choose import arrays
from featurestore.engine.duck.identity import (
    CREATED_US,
    EVENT_US,
    KNOWN_US,
    LOG_TIMES,
    SOURCE_TIMES,
    has_happened,
    has_keys,
)
from featurestore.engine.duck.offline_sql import FILE, instants, log_columns, read_log, thin
from featurestore.engine.duck.scan import BATCH, Scanned
from featurestore.engine.duck.session import quote
from featurestore.engine.duck.staging import Chosen, Staging, same_value
from featurestore.engine.duck.tables import POSITION
from featurestore.engine.interface import JudgedEvents
from featurestore.types import Bytes, String
from featurestore.types.columns import CREATED, ORIGIN, SEQUENCE
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    import duckdb
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.definitions import FeatureView
    from featurestore.engine.interface import Span


class EventStaging(Staging):
    """One staging of a view with aggregations."""

    @override
    def _find(self) -> None:
        if self._view.sql is not None:
            super()._find()
            return
        rows = self._scanned.rows(self._view.stored_types, only=self._only)
        self._connection.execute(f"CREATE TEMP TABLE found AS SELECT * FROM ({rows}) WHERE {self._wanted}")

    @override
    def _usable(self) -> str:
        return usable_event(self._view)

    @override
    def _choose(self, fresh: str, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        self._connection.execute(f"CREATE TEMP TABLE fresh AS SELECT *, {SOURCE_TIMES} FROM found WHERE {fresh}")
        if self._view.event_id is None:
            return self._by_number(candidates, bounds_us)
        return self._by_id(candidates, bounds_us)

    def _by_id(self, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        near = instants(bounds_us[0] - ONE_EVENT_US, bounds_us[1] + ONE_EVENT_US)
        ids = EventIds(self._connection, self._view)
        found = ids.find(self._request.log_files, near)
        again, in_source = ids.find_twice() if found.known else (0, 0)
        rows = f"SELECT * FROM fresh ANTI JOIN known USING ({POSITION}) ANTI JOIN repeated USING ({POSITION})"
        appended, unchanged = candidates - found.known - found.repeated, found.known - again
        return Chosen(rows, appended, unchanged, found.conflicts, found.differ + in_source)

    def _by_number(self, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        """Make the table ``lacking``: of which equal rows the log lacks how many."""
        if not self._request.log_files:
            return Chosen("SELECT * FROM fresh", candidates, 0)
        whole = event_content(self._view)
        restricted = any(span.files is not None or span.created_after_us is not None for span in self._request.spans)
        held = "fresh"
        if restricted:  # equal rows of other files, or created earlier, are events of their own
            rows = self._scanned.rows(self._view.stored_types, between_us=bounds_us)
            held = f"(SELECT *, {SOURCE_TIMES} FROM ({rows}) SEMI JOIN fresh USING ({EVENT_US}))"
        log = (
            f"SELECT *, {LOG_TIMES}, {log_created()} FROM "
            f"({read_log(log_columns(self._view), self._request.log_files)}) WHERE {instants(*bounds_us)}"
        )
        self._connection.execute(
            f"CREATE TEMP TABLE lacking AS SELECT {whole}, sum(held)::BIGINT AS fs_lacking FROM ("
            f"SELECT {whole}, 1 AS held FROM {held} UNION ALL SELECT {whole}, -1 FROM ({log})) "
            f"GROUP BY {whole} HAVING sum(held) > 0"
        )
        # Of equal rows the last ones are taken: those before them are the ones that the log has.
        numbered = (
            f"SELECT *, row_number() OVER (PARTITION BY {whole} ORDER BY {POSITION} DESC) AS fs_number FROM fresh"
        )
        pairs = " AND ".join(f"f.{name} IS NOT DISTINCT FROM l.{name}" for name in whole.split(", "))
        rows = (
            f"SELECT f.* EXCLUDE (fs_number) FROM ({numbered}) f JOIN lacking l ON {pairs} "
            "WHERE f.fs_number <= l.fs_lacking"
        )
        appended = int(self._row(f"SELECT count(*) FROM ({rows})")[0])
        return Chosen(rows, appended, candidates - appended)


@dataclass(frozen=True, slots=True)
class FoundIds:
    """How many fresh events are not new, and how many of them have other values than the event that counts."""

    known: int
    repeated: int
    conflicts: int
    differ: int
    """How many of the repeated ones are among ``conflicts``."""


class EventIds:
    """Compares the events of the table ``fresh`` with a log, and with one another."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, view: FeatureView) -> None:
        self._connection, self._view = connection, view
        self._event, self._same = event_columns(view), same_event(view)

    def find(self, log_files: Sequence[str], near: str) -> FoundIds:
        """Make the tables ``known`` and ``repeated``: positions of events that the log has, or another fresh one is.

        ``near`` is the condition on the log's rows that are at most a day from a fresh one.
        """
        log = f"SELECT *, {LOG_TIMES} FROM ({read_log(log_columns(self._view), log_files)}) WHERE {near}"
        self._connection.execute(
            f"CREATE TEMP TABLE known AS SELECT f.{POSITION}, bool_or({self._same}) AS is_same, "
            f"max(l.{SEQUENCE}) AS known_as FROM fresh f JOIN ({log}) l USING ({self._event}) "
            f"WHERE abs(f.{EVENT_US} - l.{EVENT_US}) <= {ONE_EVENT_US} GROUP BY f.{POSITION}"
        )
        known, same = self._row("SELECT count(*), count(*) FILTER (is_same) FROM known")
        repeated, differ = self._find_repeated(f"FROM fresh ANTI JOIN known USING ({POSITION})")
        return FoundIds(known, repeated, known - same + differ, differ)

    def find_twice(self) -> tuple[int, int]:
        """Return how many events that the log has repeat another one of those, after `find`.

        And how many of the log's conflicts there are because two of one id differ: a rebuild would not end them.
        """
        twice, _ = self._find_repeated(f"FROM fresh SEMI JOIN known USING ({POSITION})", "twice")
        of_both = f"SELECT unnest([{POSITION}, fs_first]) FROM twice WHERE NOT is_same"
        found, _ = self._row(f"SELECT count(*), 0 FROM known WHERE NOT is_same AND {POSITION} IN ({of_both})")
        return twice, found

    def find_repeated(self) -> None:
        """Make the table ``repeated`` alone, as if there were no log."""
        self._find_repeated("FROM fresh")

    def _find_repeated(self, rest: str, table: str = "repeated") -> tuple[int, int]:
        """Make a table; return how many events it has, and how many differ from the ones that are kept for them."""
        import pyarrow as pa

        twins = (
            f"SELECT {POSITION}, {EVENT_US}, {KNOWN_US}, event FROM (SELECT * {rest}) JOIN (SELECT {self._event}, "
            f"row_number() OVER () AS event {rest} GROUP BY {self._event} HAVING count(*) > 1) USING ({self._event})"
        )
        numbers, events, knowns, ids = arrays(self._connection, twins, POSITION, EVENT_US, KNOWN_US, "event")
        order = np.lexsort((numbers, knowns, events, ids))
        numbers = numbers[order]
        first = first_kept(ids[order], events[order])
        some = np.flatnonzero(first != np.arange(len(first)))
        self._connection.register("given", pa.table({POSITION: numbers[some], "fs_first": numbers[first[some]]}))
        self._connection.execute(
            f"CREATE TEMP TABLE {table} AS SELECT {POSITION}, fs_first, {self._same} AS is_same FROM given r "
            f"JOIN fresh f USING ({POSITION}) JOIN fresh l ON l.{POSITION} = r.fs_first"
        )
        self._connection.unregister("given")
        found, same = self._row(f"SELECT count(*), count(*) FILTER (is_same) FROM {table}")
        return found, found - same

    def _row(self, query: str) -> tuple[int, int]:
        ((one, other),) = self._connection.execute(query).fetchall()
        return int(one), int(other)


def judged(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], events: pa.Table
) -> JudgedEvents:
    """Compare events on their way into the log with it, and with one another, as `Log.judge`."""
    count = events.num_rows
    connection.register("given_events", events.append_column(POSITION, [np.arange(count)]))
    connection.execute(f"CREATE TEMP TABLE fresh AS SELECT *, {LOG_TIMES} FROM given_events")
    connection.unregister("given_events")
    ((first_us, last_us),) = connection.execute(f"SELECT min({EVENT_US}), max({EVENT_US}) FROM fresh").fetchall()
    EventIds(connection, view).find(files, instants(first_us - ONE_EVENT_US, last_us + ONE_EVENT_US))
    known_as, conflicts, is_new = np.full(count, -1, np.int64), np.zeros(count, np.bool_), np.ones(count, np.bool_)
    places, numbers, same = arrays(
        connection, f"SELECT {POSITION}, known_as, is_same FROM known", POSITION, "known_as", "is_same"
    )
    known_as[places], conflicts[places], is_new[places] = numbers, ~same.astype(np.bool_), False
    places, same = arrays(connection, f"SELECT {POSITION}, is_same FROM repeated", POSITION, "is_same")
    conflicts[places], is_new[places] = ~same.astype(np.bool_), False
    return JudgedEvents(is_new, known_as, conflicts)


def repeats_sql(view: FeatureView, files: Sequence[str], others: Sequence[str]) -> str:
    """Return the SELECT of whether an event of some files is also one of others."""
    assert view.event_id is not None
    kinds = {
        **thin(view),
        view.event_id: view.stored_types[next(n for n in view.stored_types if n.lower() == view.event_id.lower())],
    }
    event = event_columns(view)
    one, other = (f"(SELECT *, {LOG_TIMES} FROM ({read_log(kinds, each)}))" for each in (files, others))
    return (
        f"SELECT count(*) > 0 FROM {one} f JOIN {other} l USING ({event}) "
        f"WHERE abs(f.{EVENT_US} - l.{EVENT_US}) <= {ONE_EVENT_US}"
    )


def gone_events(scanned: Scanned, span: Span, files: Sequence[str], now_us: int) -> str:
    """Return the SELECT of file and number of events in [start, end) of a log that a rebuild withdraws.

    Batch events that the source no longer holds: it holds an event only with the same values, a correction is another
    one. And pushed events of which it holds the same id with other values: those it never held are not its own.
    """
    view = scanned.view
    content, within = event_content(view), f"{EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us}"
    source = f"SELECT *, {SOURCE_TIMES} FROM ({scanned.rows(view.stored_types)}) WHERE {within}"
    held = f"SELECT {content}, count(*) AS fs_held FROM ({source}) GROUP BY ALL"
    log = (
        f"SELECT *, {LOG_TIMES}, {log_created()} FROM ({read_log(log_columns(view), files)}) "
        f"WHERE {ORIGIN} = '{BATCH}' AND {instants(span.start_us, span.end_us - 1)}"
    )
    numbered = f"SELECT *, row_number() OVER (PARTITION BY {content} ORDER BY {SEQUENCE}) AS fs_number FROM ({log})"
    pairs = " AND ".join(f"l.{name} IS NOT DISTINCT FROM h.{name}" for name in content.split(", "))
    gone = (
        f"SELECT l.{FILE}, l.{SEQUENCE} FROM ({numbered}) l LEFT JOIN ({held}) h ON {pairs} "
        "WHERE coalesce(l.fs_number > h.fs_held, true)"
    )
    if view.event_id is None:
        return gone  # it takes no pushes
    scanned.connection.execute(f"CREATE TEMP TABLE gone_batch AS {gone}")
    return f"FROM gone_batch UNION ALL {_corrected(view, source, span, files, now_us)}"


def _corrected(view: FeatureView, source: str, span: Span, files: Sequence[str], now_us: int) -> str:
    """Return the SELECT of file and number of pushed events in whose place staging takes one of the source.

    It takes one that can be kept, and that is at most a day from no other event of its id in the log.
    """
    around = max(span.start_us - ONE_EVENT_US, MIN_INSTANT), min(span.end_us - 1 + ONE_EVENT_US, MAX_INSTANT)
    log = f"SELECT *, {LOG_TIMES} FROM ({read_log(log_columns(view), files)}) WHERE {instants(*around)}"
    fresh = (
        f"SELECT *, row_number() OVER () AS fs_place FROM ({source}) WHERE {has_keys(view)} AND {usable_event(view)} "
        f"AND {has_happened(EVENT_US, KNOWN_US, now_us)}"
    )
    near = (
        f"SELECT l.{FILE}, l.{SEQUENCE}, l.{ORIGIN} <> '{BATCH}' AND l.{EVENT_US} >= {span.start_us} "
        f"AND l.{EVENT_US} < {span.end_us} AS is_pushed, {same_event(view)} AS is_same, "
        f"count(*) OVER (PARTITION BY f.fs_place) = 1 AS is_only "
        f"FROM ({fresh}) f JOIN (FROM ({log}) ANTI JOIN gone_batch USING ({SEQUENCE})) l "
        f"USING ({event_columns(view)}) WHERE abs(f.{EVENT_US} - l.{EVENT_US}) <= {ONE_EVENT_US}"
    )
    return (
        f"SELECT {FILE}, {SEQUENCE} FROM ({near}) GROUP BY ALL "
        "HAVING bool_and(is_pushed) AND NOT bool_or(is_same) AND bool_or(is_only)"
    )


def event_columns(view: FeatureView) -> str:
    """Return the columns in which events of one id agree."""
    assert view.event_id is not None
    return ", ".join(map(quote, [*view.join_keys, view.event_id]))


def same_event(view: FeatureView) -> str:
    """Return the condition that two events f and l of one id are the same; when they were created does not matter."""
    same = [same_value(field.name, field.type) for field in view.stored]
    return " AND ".join([f"f.{EVENT_US} = l.{EVENT_US}", *same])


def event_content(view: FeatureView) -> str:
    """Return the columns that make events without ids equal."""
    return ", ".join([*map(quote, view.join_keys), EVENT_US, CREATED_US, *(quote(field.name) for field in view.stored)])


def log_created() -> str:
    """Return what a SELECT of the log's rows adds, so that `event_content` names columns of it."""
    return f"epoch_us({CREATED}) AS {CREATED_US}"


def first_kept(ids: npt.NDArray[Any], event_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return for each event the place of the one that counts for it: itself, or one of its id at most a day earlier.

    Events are ordered by id, then time. An event is compared with those that count, not with those that do not: of
    three with one id at 0, 20 and 40 hours the first and the last count.
    """
    first = np.arange(len(ids))
    rest = first
    while len(rest):
        begins = np.flatnonzero(np.append(True, ids[rest[1:]] != ids[rest[:-1]]))
        kept = rest[np.repeat(begins, np.diff(np.append(begins, len(rest))))]
        near = event_us[rest] - event_us[kept] <= ONE_EVENT_US
        first[rest[near]] = kept[near]
        rest = rest[~near]
    return first


def usable_event(view: FeatureView) -> str:
    """Return the condition that an event with keys and times can be kept."""
    assert view.events is not None
    conditions = ["true"] if view.event_id is None else [f"{quote(view.event_id)} IS NOT NULL"]
    functions = {String: "strlen", Bytes: "octet_length"}
    kinds = {name: kind for name, kind in view.stored_types.items() if name.lower() in view.events.bounded}
    lengths = [f"{functions[kind]}({quote(name)})" for name, kind in kinds.items() if kind in functions]
    return " AND ".join([*conditions, *(f"coalesce({length} <= {MOST_BYTES}, true)" for length in lengths)])
