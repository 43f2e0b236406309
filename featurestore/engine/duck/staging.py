"""Staging: the rows of a view's source that its log does not hold yet, in a file of their own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.engine.duck.files import check_unchanged
from featurestore.engine.duck.footers import NO_INSTANTS, Footer, Instants, instants_in
from featurestore.engine.duck.identity import (
    CREATED_US,
    EVENT_US,
    KNOWN_US,
    LOG_TIMES,
    SOURCE_KNOWN,
    SOURCE_TIMES,
    has_happened,
    has_keys,
    identity,
)
from featurestore.engine.duck.offline_sql import instants, log_columns, read_log
from featurestore.engine.duck.scan import BATCH, Scanned
from featurestore.engine.duck.session import quote, text
from featurestore.engine.duck.tables import FILE, POSITION
from featurestore.engine.interface import Span, StagedRows, StageRequest
from featurestore.engine.schema import find_column
from featurestore.types import ValueType
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.types.times import MAX_INSTANT, to_instant

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which rows go into the log."""

    rows: str
    """The SELECT of them."""
    appended: int
    unchanged: int
    """How many others the log has already; the rest are duplicates."""
    conflicts: int = 0
    conflicts_in_source: int = 0


class Staging:
    """One staging: decides by keys and times where each row goes, then reads the other columns of the new rows."""

    def __init__(self, root: Path, scanned: Scanned, request: StageRequest) -> None:
        self._root = root
        self._scanned = scanned
        self._request = request
        self._view = request.view
        self._connection = scanned.connection
        self._keys = ", ".join(map(quote, request.view.join_keys))
        self._only = None if self._view.sql is not None else self._files()
        wanted = [self._span_condition(span) for span in request.spans]
        if request.counts_later:
            wanted.append(f"{EVENT_US} > {request.now_us}")
        self._wanted = " OR ".join(wanted) or "false"

    def _files(self) -> frozenset[str]:
        """Return the source's files that may hold a wanted row, as far as their footers say."""
        (table,) = self._scanned.tables
        pairs = zip(table.files, table.footers, strict=True)
        return frozenset(file.path for file, footer in pairs if self._may_hold(file.path, footer))

    def _may_hold(self, name: str, footer: Footer) -> bool:
        event = _instants(footer, self._view.timestamp_field)
        created = _instants(footer, self._view.created_timestamp_field)
        if self._request.counts_later and (event is None or event.last_us > self._request.now_us):
            return True
        last_us = MAX_INSTANT if event is None or created is None else max(event.last_us, created.last_us)
        return any(
            (span.files is None or name in span.files)
            and (event is None or event.has_null or (event.first_us < span.end_us and event.last_us >= span.start_us))
            and (span.created_after_us is None or last_us > span.created_after_us)
            for span in self._request.spans
        )

    def run(self) -> StagedRows:
        """Make the tables ``found`` (rows in the spans) and what `_choose` makes, and the file."""
        self._find()
        whole, usable = has_keys(self._view), self._usable()
        is_past = has_happened(EVENT_US, SOURCE_KNOWN, self._request.now_us)
        fresh = f"{EVENT_US} IS NOT NULL AND {whole} AND {usable} AND {is_past}"
        read, null_times, null_keys, unusable, waiting, max_created_us, first_us, last_us = self._row(
            f"SELECT count(*), count(*) FILTER ({EVENT_US} IS NULL), "
            f"count(*) FILTER ({EVENT_US} IS NOT NULL AND NOT ({whole})), "
            f"count(*) FILTER ({EVENT_US} IS NOT NULL AND {whole} AND NOT ({usable})), "
            f"count(*) FILTER ({EVENT_US} IS NOT NULL AND {whole} AND {usable} AND NOT ({is_past})), "
            f"max({CREATED_US}) FILTER ({EVENT_US} IS NOT NULL AND {is_past}), "
            f"min({EVENT_US}) FILTER ({fresh}), max({EVENT_US}) FILTER ({fresh}) FROM found"
        )
        candidates = read - null_times - null_keys - unusable - waiting
        chosen = self._choose(fresh, candidates, (first_us, last_us)) if candidates else Chosen("", 0, 0)
        paths = (self._write(chosen.rows),) if chosen.appended else ()
        check_unchanged(self._root, [file for table in self._scanned.tables for file in table.files])
        return StagedRows(
            paths=paths,
            appended=chosen.appended,
            read=read,
            duplicates=candidates - chosen.appended - chosen.unchanged,
            unchanged=chosen.unchanged,
            null_keys=null_keys,
            null_times=null_times,
            waiting=waiting,
            min_event_us=_first_event_us(paths[0]) if paths else None,
            max_created_us=max_created_us,
            unusable=unusable,
            conflicts=chosen.conflicts,
            conflicts_in_source=chosen.conflicts_in_source,
        )

    def _usable(self) -> str:
        """Return the condition that a row with keys and times can be kept."""
        return "true"

    def _choose(self, fresh: str, candidates: int, bounds_us: tuple[int, int]) -> Chosen:
        """Choose among the rows that are ``fresh``, of which there are so many, with event times within bounds.

        Makes the tables ``last`` and ``unchanged`` (positions).
        """
        distinct = self._find_last(fresh)
        rows = self._rows(bounds_us, fresh, "" if distinct == candidates else "SEMI JOIN last")
        unchanged = self._find_unchanged(rows, bounds_us)
        if unchanged:
            rows = f"SELECT * FROM ({rows}) ANTI JOIN unchanged USING ({POSITION})"
        return Chosen(rows, distinct - unchanged, unchanged)

    def _find(self) -> None:
        """Make the table ``found``: keys, times and position; for a view's SQL all columns, as it runs only once."""
        scanned = self._scanned
        if self._view.sql is None:
            columns = f"{self._keys}, {EVENT_US}, {CREATED_US}, {POSITION}"
            rows = scanned.rows(self._view.join_keys, only=self._only)
            query = f"SELECT {columns} FROM ({rows}) WHERE {self._wanted}"
        else:
            rows = f"SELECT * FROM ({scanned.rows(self._view.stored_types)}) WHERE {self._wanted}"
            query = f"SELECT *, row_number() OVER (ORDER BY {scanned.content_order}) - 1 AS {POSITION} FROM ({rows})"
        self._connection.execute(f"CREATE TEMP TABLE found AS {query}")

    def _rows(self, bounds_us: tuple[int, int], fresh: str, join: str) -> str:
        """Return a SELECT of the rows that may go into the log, with all their columns."""
        using = f" {join} USING ({POSITION})" if join else ""
        rows, condition = "found", fresh
        if self._view.sql is None:
            read = self._scanned.rows(self._view.stored_types, only=self._only, between_us=bounds_us)
            rows, condition = f"({read})", f"({self._wanted}) AND {fresh}"
        return f"SELECT *, {SOURCE_TIMES} FROM {rows}{using} WHERE {condition}"

    def _find_last(self, fresh: str) -> int:
        """Make the table ``last``: the position of the last among rows with equal keys and times; returns how many."""
        self._connection.execute(
            f"CREATE TEMP TABLE last AS SELECT max({POSITION}) AS {POSITION} "
            f"FROM (SELECT *, {SOURCE_TIMES} FROM found WHERE {fresh}) GROUP BY {identity(self._view)}"
        )
        return int(self._row("SELECT count(*) FROM last")[0])

    def _find_unchanged(self, rows: str, bounds_us: tuple[int, int]) -> int:
        """Make the table ``unchanged``: positions of rows whose newest version in the log holds the same values."""
        if not self._request.log_files:
            return 0
        log = (
            f"SELECT *, {LOG_TIMES} FROM ({read_log(log_columns(self._view), self._request.log_files)}) "
            f"WHERE {instants(*bounds_us)}"
        )
        same = " AND ".join(same_value(field.name, field.type) for field in self._view.stored)
        self._connection.execute(
            f"CREATE TEMP TABLE unchanged AS SELECT f.{POSITION} FROM ({rows}) f JOIN ({log}) l "
            f"USING ({identity(self._view)}) GROUP BY f.{POSITION} HAVING arg_max({same}, l.{SEQUENCE})"
        )
        return int(self._row("SELECT count(*) FROM unchanged")[0])

    def _write(self, rows: str) -> Path:
        """Write rows in the log's order."""
        selected = [
            *map(quote, self._view.join_keys),
            f"make_timestamptz({EVENT_US}) AS {EVENT}",
            f"make_timestamptz({CREATED_US}) AS {CREATED}",
            f"{self._request.first_sequence} + {POSITION} AS {SEQUENCE}",
            f"'{BATCH}' AS {ORIGIN}",
            *(quote(field.name) for field in self._view.stored),
        ]
        query = f"SELECT {', '.join(selected)} FROM ({rows}) ORDER BY {EVENT_US}, {KNOWN_US}, {POSITION}"
        return write_parquet(self._connection, query, self._request.folder)

    def _span_condition(self, span: Span) -> str:
        """Return the condition of one span. Rows without an event time are in it, to be counted."""
        conditions = [f"({EVENT_US} IS NULL OR {EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us})"]
        if span.created_after_us is not None:
            conditions.append(f"({SOURCE_KNOWN} > {span.created_after_us})")
        if span.files is not None and self._view.sql is None:
            numbers = {file.path: number for number, file in enumerate(self._scanned.tables[0].files)}
            chosen = ", ".join(str(numbers[name]) for name in span.files if name in numbers)
            conditions.append(f"{FILE} IN ({chosen or 'NULL'})")
        return f"({' AND '.join(conditions)})"

    def _row(self, query: str) -> tuple[Any, ...]:
        (row,) = self._connection.execute(query).fetchall()
        return tuple(row)


def _instants(footer: Footer, name: str | None) -> Instants | None:
    """Return what a file's footer says of a column of instants, if that is anything; none of them is in no column."""
    column = None if name is None else find_column(footer.columns, name)
    return NO_INSTANTS if column is None else instants_in(footer.path, footer.state, column.name)


def write_parquet(connection: duckdb.DuckDBPyConnection, query: str, folder: Path) -> Path:
    """Write a query's rows into a new file of an offline table; leaves nothing behind when that fails."""
    path = folder / f"{secrets.token_hex(16)}.parquet"
    try:
        connection.execute(f"COPY ({query}) TO {text(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def _first_event_us(path: Path) -> int:
    """Return the least event time of a written file, from its footer."""
    import pyarrow.parquet as pq

    footer = pq.read_metadata(path)
    column = footer.schema.names.index(EVENT)
    groups = map(footer.row_group, range(footer.num_row_groups))
    return min(to_instant(group.column(column).statistics.min) for group in groups)


def same_value(name: str, value_type: ValueType) -> str:
    """Return the condition that two values are the same: nulls are, NaNs are, 0.0 and -0.0 are not."""
    column = quote(name)
    same = f"f.{column} IS NOT DISTINCT FROM l.{column}"
    if value_type.name in ("Float32", "Float64"):
        return f"{same} AND (f.{column} IS DISTINCT FROM 0 OR signbit(f.{column}) = signbit(l.{column}))"
    if "Float" in str(value_type):
        return f"{same} AND f.{column}::VARCHAR IS NOT DISTINCT FROM l.{column}::VARCHAR"  # the signs of zeros in lists
    return same
