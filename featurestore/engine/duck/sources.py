"""What the files of sources hold, and which of their rows no run takes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
from typing_extensions import override

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.definitions.condition import columns_of
from featurestore.definitions.sql import depends_on_order
from featurestore.engine.duck.conditions import problem_of
from featurestore.engine.duck.event_staging import EventIds, usable_event
from featurestore.engine.duck.files import find_files, would_read
from featurestore.engine.duck.identity import CREATED_US, EVENT_US, SOURCE_TIMES, has_keys, identity
from featurestore.engine.duck.scan import Scanned, open_sources, opened
from featurestore.engine.duck.session import Session, quote, source_file_error
from featurestore.engine.duck.tables import POSITION, open_source
from featurestore.engine.interface import SourceColumn, SourceFile, Sources
from featurestore.errors import SourceError, SourceSchemaError
from featurestore.types.columns import CREATED, EVENT
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import pyarrow as pa


SOME_ROWS = 1_000
"""How many rows of a source a condition is tried on."""


def _rows_without(connection: duckdb.DuckDBPyConnection, condition: str) -> int:
    """Return how many rows of the source are in ``events``; 0 if the condition is true of one."""
    tried = f"SELECT TRY(coalesce(({condition}\n), false)) AS is_true FROM events WHERE rowid > 0"
    ((rows, is_true),) = connection.sql(f"SELECT count(*), coalesce(bool_or(is_true), false) FROM ({tried})").fetchall()
    return 0 if is_true else int(rows)


class DuckSources(Sources):
    """Parquet files on this machine."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def files(self, source: ParquetSource) -> tuple[SourceFile, ...]:
        return find_files(self._session.root, source)

    @override
    def reads(self, source: ParquetSource, path: Path) -> bool:
        return would_read(self._session.root, source, path)

    @override
    def digest(self, file: SourceFile) -> str:
        try:
            with (self._session.root / file.path).open("rb") as content:
                return hashlib.file_digest(content, "sha256").hexdigest()[:32]
        except OSError as error:
            raise source_file_error(file.path, error.strerror or str(error)) from None

    @override
    def columns(self, source: FeatureView | ParquetSource) -> tuple[SourceColumn, ...]:
        if isinstance(source, ParquetSource):
            return open_source(self._session, source).columns
        if source.sql is None:
            return open_sources(self._session, source)[0].columns
        with opened(self._session, source, fits=False) as scanned:
            return scanned.columns

    @override
    def check_conditions(self, view: FeatureView) -> Mapping[str, int]:
        conditions = dict.fromkeys(each.where for each in view.aggregations if each.where is not None)
        if view.events is None or not conditions:
            return {}
        types = view.events.types(view.stored)
        columns = [f"NULL::{duckdb_type(kind)} AS {quote(name)}" for name, kind in types.items()]
        with opened(self._session, view) as scanned:
            connection = scanned.connection
            connection.execute(f"CREATE TEMP TABLE events AS SELECT {', '.join(columns)}")
            # The first rows of a query that joins or sorts cost as much as all.
            if view.sql is None or (len(scanned.tables) == 1 and not depends_on_order(view.sql)):
                with suppress(SourceError), scanned.translated("read the source"):  # a run reports what is wrong there
                    connection.execute(f"INSERT INTO events BY NAME {_some_rows(view, scanned)}")
            for condition in conditions:
                if problem := problem_of(connection, condition):
                    read = ", ".join(f"{name} is {types.get(name.lower())}" for name in columns_of(condition))
                    raise SourceSchemaError(
                        f"Feature view {view.name!r}: the condition {condition!r} {problem}.",
                        hint=f"Here {read}. TRY_CAST gives null of a value that does not fit; a column whose name is a "
                        "word of SQL needs quotes.",
                        view=view.name,
                    )
            found = {condition: _rows_without(connection, condition) for condition in conditions}
        return {condition: rows for condition, rows in found.items() if rows}

    @override
    def first_event_us(self, view: FeatureView) -> int | None:
        with opened(self._session, view) as scanned, scanned.translated("find the first event"):
            ((first_us,),) = scanned.connection.execute(f"SELECT min({EVENT_US}) FROM ({scanned.rows({})})").fetchall()
        return None if first_us is None else int(first_us)

    @override
    def dropped(self, view: FeatureView, rows: int) -> pa.Table:
        keys = ", ".join(map(quote, view.join_keys))
        with opened(self._session, view) as scanned, scanned.translated("read the source"):
            shown = ", ".join(map(quote, view.stored_types))
            found = scanned.rows(view.stored_types)
            if view.sql is not None:  # runs order its rows by their content
                found = f"SELECT *, row_number() OVER (ORDER BY {scanned.content_order}) AS {POSITION} FROM ({found})"
            if view.aggregations:
                other = _not_kept(scanned.connection, view, found)
            else:
                last = f"max({POSITION}) OVER (PARTITION BY {identity(view)})"
                other = f"WHEN {POSITION} < {last} THEN 'duplicate'"
            query = (
                f"SELECT CASE WHEN {EVENT_US} IS NULL THEN 'no event time' WHEN NOT ({has_keys(view)}) THEN 'null key' "
                f"{other} END AS fs_dropped, {shown}, "
                f"make_timestamptz({EVENT_US}) AS {EVENT}, make_timestamptz({CREATED_US}) AS {CREATED} "
                f"FROM (SELECT *, {SOURCE_TIMES} FROM ({found}))"
            )
            # A reason with few rows is shown too: the newest row of each reason, then the second of each, and so on.
            order = f"fs_dropped, {EVENT} DESC, {keys}"
            place = f"row_number() OVER (PARTITION BY fs_dropped ORDER BY {order})"
            return scanned.connection.sql(
                f"SELECT * EXCLUDE (fs_place) FROM (SELECT *, {place} AS fs_place FROM ({query}) "
                f"WHERE fs_dropped IS NOT NULL ORDER BY fs_place, fs_dropped LIMIT {rows}) ORDER BY {order}"
            ).to_arrow_table()


def _some_rows(view: FeatureView, scanned: Scanned) -> str:
    """Return the SELECT of some rows of a view's source, by the names that conditions use."""
    values = ", ".join(map(quote, view.stored_types))
    times = f"make_timestamptz({EVENT_US}) AS {quote(view.timestamp_field)}"
    if view.created_timestamp_field is not None:
        times += f", make_timestamptz({CREATED_US}) AS {quote(view.created_timestamp_field)}"
    return f"SELECT {values}, {times} FROM ({scanned.rows(view.stored_types)}) LIMIT {SOME_ROWS}"


def _not_kept(connection: duckdb.DuckDBPyConnection, view: FeatureView, found: str) -> str:
    """Return when an event of a source is not kept: without an id or with a long text, or as a repeat of another."""
    dropped = f"WHEN NOT ({usable_event(view)}) THEN 'no id or a long text'"
    if view.event_id is None:
        return dropped
    has_happened = f"{EVENT_US} IS NOT NULL AND {has_keys(view)} AND {usable_event(view)}"
    rows = f"SELECT *, {SOURCE_TIMES} FROM ({found})"
    connection.execute(f"CREATE TEMP TABLE fresh AS SELECT * FROM ({rows}) WHERE {has_happened}")
    EventIds(connection, view).find_repeated()
    return f"{dropped} WHEN {POSITION} IN (SELECT {POSITION} FROM repeated) THEN 'duplicate'"
