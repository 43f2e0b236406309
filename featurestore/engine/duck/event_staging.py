"""Staging of events: which rows of the source are new events, by their ids or, without ids, by their number.

With ids, events of an entity with one id, at most a day apart, are one: the first that was committed. Without ids every
row is an event: as many equal ones go into the log as it lacks of those that the source holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from featurestore.definitions.aggregation import MOST_BYTES
from featurestore.engine.duck.choose import arrays
from featurestore.engine.duck.identity import CREATED_US, EVENT_US, KNOWN_US, LOG_TIMES, SOURCE_TIMES
from featurestore.engine.duck.offline_sql import FILE, instants, log_columns, read_log
from featurestore.engine.duck.scan import BATCH, Scanned
from featurestore.engine.duck.session import quote
from featurestore.engine.duck.staging import Chosen, Staging, same_value
from featurestore.engine.duck.tables import POSITION
from featurestore.types import Bytes, String
from featurestore.types.columns import CREATED, ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import numpy.typing as npt

    from featurestore.definitions import FeatureView
    from featurestore.engine.interface import Span

DAY_US = 86_400_000_000
"""Events with one id that are further apart are two."""
_KEPT_TEXTS = ("first", "last", "last_n", "count_distinct")


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
        conditions = ["true"] if self._view.event_id is None else [f"{quote(self._view.event_id)} IS NOT NULL"]
        conditions += [f"coalesce({length} <= {MOST_BYTES}, true)" for length in _lengths(self._view)]
        return " AND ".join(conditions)

    @override
    def _choose(self, fresh: str, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        self._connection.execute(f"CREATE TEMP TABLE fresh AS SELECT *, {SOURCE_TIMES} FROM found WHERE {fresh}")
        if self._view.event_id is None:
            return self._by_number(candidates, bounds_us)
        return self._by_id(candidates, bounds_us)

    def _by_id(self, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        """Make the tables ``known`` (positions of events that the log has) and ``repeated`` (by another fresh one)."""
        event = self._event()
        known, conflicts = self._find_known(event, bounds_us)
        twins = (
            f"SELECT {POSITION}, {EVENT_US}, {KNOWN_US}, event FROM (SELECT * FROM fresh ANTI JOIN known "
            f"USING ({POSITION})) JOIN (SELECT {event}, row_number() OVER () AS event FROM fresh ANTI JOIN known "
            f"USING ({POSITION}) GROUP BY {event} HAVING count(*) > 1) USING ({event})"
        )
        numbers, events, knowns, ids = arrays(self._connection, twins, POSITION, EVENT_US, KNOWN_US, "event")
        order = np.lexsort((numbers, knowns, events, ids))
        numbers = numbers[order]
        first = first_kept(ids[order], events[order])
        repeated = np.flatnonzero(first != np.arange(len(first)))
        conflicts += self._find_repeated(numbers[repeated], numbers[first[repeated]])
        rows = f"SELECT * FROM fresh ANTI JOIN known USING ({POSITION}) ANTI JOIN repeated USING ({POSITION})"
        return Chosen(rows, candidates - known - len(repeated), known, conflicts)

    def _event(self) -> str:
        assert self._view.event_id is not None
        return f"{self._keys}, {quote(self._view.event_id)}"

    def _find_known(self, event: str, bounds_us: tuple[int, int]) -> tuple[int, int]:
        """Make the table ``known``; return how many events it has, and how many have other values."""
        log = f"SELECT *, {LOG_TIMES} FROM ({read_log(log_columns(self._view), self._request.log_files)})"
        near = instants(bounds_us[0] - DAY_US, bounds_us[1] + DAY_US)
        self._connection.execute(
            f"CREATE TEMP TABLE known AS SELECT f.{POSITION}, bool_or({self._same()}) AS is_same FROM fresh f "
            f"JOIN ({log} WHERE {near}) l USING ({event}) WHERE abs(f.{EVENT_US} - l.{EVENT_US}) <= {DAY_US} "
            f"GROUP BY f.{POSITION}"
        )
        known, same = self._row("SELECT count(*), count(*) FILTER (is_same) FROM known")
        return int(known), int(known - same)

    def _find_repeated(self, repeated: npt.NDArray[np.int64], first: npt.NDArray[np.int64]) -> int:
        """Make the table ``repeated``; return how many of its events differ from those that are kept."""
        import pyarrow as pa

        self._connection.register("given", pa.table({POSITION: repeated, "fs_first": first}))
        self._connection.execute("CREATE TEMP TABLE repeated AS FROM given")
        self._connection.unregister("given")
        differ = (
            f"SELECT count(*) FROM repeated r JOIN fresh f USING ({POSITION}) "
            f"JOIN fresh l ON l.{POSITION} = r.fs_first WHERE NOT ({self._same()})"
        )
        return int(self._row(differ)[0])

    def _same(self) -> str:
        """Return the condition that two events of one id are the same; when they were created does not matter."""
        same = [same_value(field.name, field.type) for field in self._view.stored]
        return " AND ".join([f"f.{EVENT_US} = l.{EVENT_US}", *same])

    def _by_number(self, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        """Make the table ``lacking``: of which equal rows the log lacks how many."""
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


def gone_events(scanned: Scanned, span: Span, files: Sequence[str]) -> str:
    """Return the SELECT of file and number of batch events in [start, end) that the source no longer holds.

    It holds an event only with the same values: a correction is another event, which counts from a rebuild on.
    """
    view = scanned.view
    content, within = event_content(view), f"{EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us}"
    held = (
        f"SELECT {content}, count(*) AS fs_held FROM (SELECT *, {SOURCE_TIMES} FROM "
        f"({scanned.rows(view.stored_types)}) WHERE {within}) GROUP BY ALL"
    )
    log = (
        f"SELECT *, {LOG_TIMES}, {log_created()} FROM ({read_log(log_columns(view), files)}) "
        f"WHERE {ORIGIN} = '{BATCH}' AND {instants(span.start_us, span.end_us - 1)}"
    )
    numbered = f"SELECT *, row_number() OVER (PARTITION BY {content} ORDER BY {SEQUENCE}) AS fs_number FROM ({log})"
    pairs = " AND ".join(f"l.{name} IS NOT DISTINCT FROM h.{name}" for name in content.split(", "))
    return (
        f"SELECT l.{FILE}, l.{SEQUENCE} FROM ({numbered}) l LEFT JOIN ({held}) h ON {pairs} "
        "WHERE coalesce(l.fs_number > h.fs_held, true)"
    )


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
        near = event_us[rest] - event_us[kept] <= DAY_US
        first[rest[near]] = kept[near]
        rest = rest[~near]
    return first


def _lengths(view: FeatureView) -> list[str]:
    """Return the lengths in bytes of the texts that are kept."""
    assert view.events is not None
    types = view.events.types(view.stored)
    names = [each.column for each in view.aggregations if each.function in _KEPT_TEXTS]
    names += [] if view.event_id is None else [view.event_id]
    kinds = {name: types.get(name.lower()) for name in names}
    functions = {String: "strlen", Bytes: "octet_length"}
    return [f"{functions[kind]}({quote(name)})" for name, kind in kinds.items() if kind in (String, Bytes)]
