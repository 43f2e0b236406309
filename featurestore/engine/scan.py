"""From source rows to the rows that a view's log does not hold yet."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.engine.convert import converted, describe, instant_us
from featurestore.engine.interface import SourceColumn, SourceFile, Span, StagedRows, StageRequest
from featurestore.engine.log import KNOWN_US as LOG_KNOWN_US
from featurestore.engine.log import instants, log_columns, read_log
from featurestore.engine.schema import check_columns
from featurestore.engine.session import Session, quote, text, translated
from featurestore.engine.sources import (
    CREATED_US,
    EVENT_US,
    FILE,
    POSITION,
    Reader,
    SourceTable,
    check_unchanged,
    find_files,
    open_source,
)
from featurestore.types import ValueType
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import duckdb

KNOWN_US = f"coalesce({CREATED_US}, {EVENT_US})"
"""A null created time counts as the event time."""
BATCH = "batch"


def files(session: Session, source: ParquetSource) -> tuple[SourceFile, ...]:
    """See `Engine.files`."""
    return find_files(session.root, source)


def columns(session: Session, source: FeatureView | ParquetSource) -> tuple[SourceColumn, ...]:
    """See `Engine.columns`."""
    if isinstance(source, ParquetSource):
        return open_source(session, source).columns
    if source.sql is None:
        return open_source(session, source.batch_sources[0]).columns
    with _opened(session, source) as scanned:
        return scanned.columns


def first_event_us(session: Session, view: FeatureView) -> int | None:
    """See `Engine.first_event_us`."""
    with _opened(session, view) as scanned, scanned.translated("find the first event"):
        row = scanned.connection.execute(f"SELECT min({EVENT_US}) FROM ({scanned.rows({})})").fetchone()
    assert row is not None
    return None if row[0] is None else int(row[0])


@dataclass(frozen=True, slots=True)
class Scanned:
    """A view's sources, open in one connection; the view has been checked against them."""

    view: FeatureView
    connection: duckdb.DuckDBPyConnection
    tables: tuple[SourceTable, ...]
    columns: tuple[SourceColumn, ...]
    readers: tuple[Reader, ...]

    @property
    def values(self) -> dict[str, ValueType]:
        """Join keys and features with their declared types."""
        return {**self.view.join_keys, **{field.name: field.type for field in self.view.features}}

    def rows(self, values: dict[str, ValueType], *, only: frozenset[str] | None = None) -> str:
        """Return a SELECT of ``values``, instants, and for a view without SQL position and file."""
        event, created = self.view.timestamp_field, self.view.created_timestamp_field
        if self.view.sql is None:
            return self.readers[0].rows(values, event, created, only=only)
        found = describe(self.connection, self.view.sql)
        by_name = {column.name.lower(): column for column in found}
        selected = [
            f"{converted(by_name[name.lower()], quote(name), value_type)} AS {quote(name)}"
            for name, value_type in values.items()
        ]
        selected.append(f"{instant_us(by_name[event.lower()], quote(event), 'ceil')} AS {EVENT_US}")
        created_us = instant_us(by_name[created.lower()], quote(created), "ceil") if created else "NULL::BIGINT"
        selected.append(f"{created_us} AS {CREATED_US}")
        return f"SELECT {', '.join(selected)} FROM ({self.view.sql}\n)"

    @contextmanager
    def translated(self, doing: str, *, table_files: Sequence[str] = ()) -> Iterator[None]:
        """Translate errors of what reads the sources."""
        paths = [path for table in self.tables for path in table.paths]
        sql_of = self.view.name if self.view.sql is not None else None
        with translated(doing, source_files=paths, table_files=table_files, sql_of=sql_of):
            yield


@contextmanager
def opened(
    session: Session, view: FeatureView, *, reads: Sequence[str] = (), writes: Path | None = None
) -> Iterator[Scanned]:
    """Open a view's sources and check the view against them; ``reads`` are further files."""
    with _opened(session, view, reads=reads, writes=writes) as scanned:
        check_columns(view, scanned.columns)
        yield scanned


@contextmanager
def _opened(
    session: Session, view: FeatureView, *, reads: Sequence[str] = (), writes: Path | None = None
) -> Iterator[Scanned]:
    tables = tuple(open_source(session, source) for source in view.batch_sources)
    paths = [path for table in tables for path in table.paths]
    with session.open(reads=[*paths, *reads], writes=writes) as connection:
        readers = tuple(Reader(connection, table) for table in tables)
        found = tables[0].columns
        if view.sql is not None:
            for source, reader in zip(view.sources, readers, strict=True):
                connection.execute(f"CREATE TEMP VIEW {quote(source.name)} AS {reader.presented()}")
            with translated("read the view's SQL", source_files=paths, sql_of=view.name):
                found = tuple(column.described for column in describe(connection, view.sql))
        yield Scanned(view, connection, tables, found, readers)


def stage(session: Session, request: StageRequest) -> StagedRows:
    """See `Engine.stage`."""
    with (
        opened(session, request.view, reads=request.log_files, writes=request.folder) as scanned,
        scanned.translated("read the source", table_files=request.log_files),
    ):
        _read(scanned, request)
        check_unchanged(session.root, scanned.tables)
        return _write(scanned, request)


def source_identities(scanned: Scanned, span: Span) -> str:
    """Return a SELECT of the keys and instants of the source's rows with an event time in [start, end)."""
    keys = ", ".join(map(quote, scanned.view.join_keys))
    rows = scanned.rows(scanned.view.join_keys)
    within = f"{EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us}"
    return f"SELECT DISTINCT {keys}, {EVENT_US}, {KNOWN_US} AS fs_known_us FROM ({rows}) WHERE {within}"


def _read(scanned: Scanned, request: StageRequest) -> None:
    """Make the table ``read`` of all source rows in the spans, and ``fresh`` of those that may go into the log."""
    view, connection = request.view, scanned.connection
    named = [span.files for span in request.spans if view.sql is None]
    only = None
    if all(names is not None for names in named) and named:
        only = frozenset(name for names in named if names is not None for name in names)
    numbers = {file.path: number for number, file in enumerate(scanned.tables[0].files)} if view.sql is None else None
    wanted = " OR ".join(_span_condition(span, numbers) for span in request.spans) or "false"
    rows = f"SELECT * FROM ({scanned.rows(scanned.values, only=only)}) WHERE {wanted}"
    if view.sql is not None:
        # The rows of a query have no order of their own; their content gives one that every run repeats.
        order = ", ".join([EVENT_US, KNOWN_US, *map(quote, scanned.values)])
        rows = f"SELECT *, row_number() OVER (ORDER BY {order}) - 1 AS {POSITION} FROM ({rows})"
    connection.execute(f"CREATE TEMP TABLE read AS {rows}")
    connection.execute(
        f"CREATE TEMP VIEW fresh AS SELECT *, {KNOWN_US} AS fs_known_us FROM read "
        f"WHERE {EVENT_US} IS NOT NULL AND {_has_keys(view)} AND {_is_past(request.now_us)}"
    )


def _span_condition(span: Span, numbers: dict[str, int] | None) -> str:
    """Return the condition of one span. Rows without an event time are in it, to be counted."""
    conditions = [f"({EVENT_US} IS NULL OR {EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us})"]
    if span.created_after_us is not None:
        conditions.append(f"({KNOWN_US} > {span.created_after_us})")
    if span.files is not None and numbers is not None:
        chosen = ", ".join(str(numbers[name]) for name in span.files if name in numbers)
        conditions.append(f"{FILE} IN ({chosen or 'NULL'})")
    return f"({' AND '.join(conditions)})"


def _has_keys(view: FeatureView) -> str:
    return " AND ".join(f"{quote(key)} IS NOT NULL" for key in view.join_keys)


def _is_past(now_us: int) -> str:
    return f"{EVENT_US} <= {now_us} AND {KNOWN_US} <= {now_us}"


def _write(scanned: Scanned, request: StageRequest) -> StagedRows:
    """Find out where each row goes, and write those that are new."""
    view, connection = request.view, scanned.connection
    counts = connection.execute(
        f"SELECT count(*), count(*) FILTER ({EVENT_US} IS NULL), "
        f"count(*) FILTER ({EVENT_US} IS NOT NULL AND NOT ({_has_keys(view)})), "
        f"count(*) FILTER ({EVENT_US} IS NOT NULL AND {_has_keys(view)} AND NOT ({_is_past(request.now_us)})), "
        f"max({CREATED_US}) FILTER ({EVENT_US} IS NOT NULL AND {_is_past(request.now_us)}) FROM read"
    ).fetchone()
    assert counts is not None
    read, null_times, null_keys, waiting, max_created_us = counts
    fresh = read - null_times - null_keys - waiting
    identity = ", ".join([*map(quote, view.join_keys), EVENT_US, "fs_known_us"])
    connection.execute(f"CREATE TEMP TABLE last AS SELECT max({POSITION}) AS {POSITION} FROM fresh GROUP BY {identity}")
    distinct = _count(connection, "last")
    _find_unchanged(connection, request)
    unchanged = _count(connection, "unchanged")
    appended = distinct - unchanged
    path: Path | None = None
    bounds: tuple[int | None, int | None] = (None, None)
    if appended:
        path = request.folder / f"{secrets.token_hex(16)}.parquet"
        bounds = _copy(connection, request, path)
    return StagedRows(
        path=path,
        appended=appended,
        read=read,
        duplicates=fresh - distinct,
        unchanged=unchanged,
        null_keys=null_keys,
        null_times=null_times,
        waiting=waiting,
        min_event_us=bounds[0],
        max_event_us=bounds[1],
        max_created_us=max_created_us,
    )


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def _find_unchanged(connection: duckdb.DuckDBPyConnection, request: StageRequest) -> None:
    """Make the table ``unchanged``: positions of rows whose newest version in the log holds the same values."""
    view = request.view
    if not request.log_files:
        connection.execute(f"CREATE TEMP TABLE unchanged AS SELECT {POSITION} FROM last WHERE false")
        return
    bounds = connection.execute(f"SELECT min({EVENT_US}), max({EVENT_US}) FROM fresh").fetchone()
    assert bounds is not None
    if bounds[0] is None:
        bounds = (0, -1)
    log = (
        f"SELECT *, epoch_us({EVENT}) AS {EVENT_US}, {LOG_KNOWN_US} AS fs_known_us "
        f"FROM ({read_log(log_columns(view), request.log_files)}) WHERE {instants(*bounds)}"
    )
    keys = " AND ".join(f"f.{quote(key)} = l.{quote(key)}" for key in view.join_keys)
    same = " AND ".join(_same(field.name, field.type) for field in view.features)
    connection.execute(
        f"CREATE TEMP TABLE unchanged AS SELECT f.{POSITION} FROM fresh f SEMI JOIN last USING ({POSITION}) "
        f"JOIN ({log}) l ON {keys} AND f.{EVENT_US} = l.{EVENT_US} AND f.fs_known_us = l.fs_known_us "
        f"GROUP BY f.{POSITION} HAVING arg_max({same}, l.{SEQUENCE})"
    )


def _same(name: str, value_type: ValueType) -> str:
    """Return the condition that two values are the same: nulls are, NaNs are, 0.0 and -0.0 are not."""
    column = quote(name)
    same = f"f.{column} IS NOT DISTINCT FROM l.{column}"
    if value_type.name in ("Float32", "Float64"):
        return f"{same} AND (f.{column} IS DISTINCT FROM 0 OR signbit(f.{column}) = signbit(l.{column}))"
    return same


def _copy(connection: duckdb.DuckDBPyConnection, request: StageRequest, path: Path) -> tuple[int, int]:
    """Write the new rows in the log's order; returns the least and greatest event time."""
    view = request.view
    names = [quote(field.name) for field in view.features]
    new = f"fresh SEMI JOIN last USING ({POSITION}) ANTI JOIN unchanged USING ({POSITION})"
    selected = [
        *map(quote, view.join_keys),
        f"make_timestamptz({EVENT_US}) AS {EVENT}",
        f"make_timestamptz({CREATED_US}) AS {CREATED}",
        f"{request.first_sequence} + {POSITION} AS {SEQUENCE}",
        f"'{BATCH}' AS {ORIGIN}",
        *names,
    ]
    bounds = connection.execute(f"SELECT min({EVENT_US}), max({EVENT_US}) FROM {new}").fetchone()
    assert bounds is not None
    query = f"SELECT {', '.join(selected)} FROM {new} ORDER BY {EVENT_US}, fs_known_us, {POSITION}"
    try:
        connection.execute(f"COPY ({query}) TO {text(str(path))} (FORMAT parquet, COMPRESSION zstd)")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return bounds[0], bounds[1]
