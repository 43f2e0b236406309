"""A view's offline table: rows written into it, taken out of it, and the newest row of each entity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from featurestore.definitions import FeatureView
from featurestore.engine.duck.event_staging import EventStaging, gone_events, judged, repeats_sql
from featurestore.engine.duck.identity import LOG_ORDER, LOG_TIMES, identity, known
from featurestore.engine.duck.offline_sql import (
    FILE,
    ROW,
    instants,
    log_columns,
    read_log,
    read_whole_log,
    thin,
    until,
)
from featurestore.engine.duck.scan import BATCH, opened, source_identities
from featurestore.engine.duck.session import Session, quote, stream, translated
from featurestore.engine.duck.staging import Staging, write_parquet
from featurestore.engine.duck.windowed import events_sql
from featurestore.engine.interface import (
    GONE_CREATED,
    GONE_EVENT,
    JudgedEvents,
    Log,
    Span,
    StagedRows,
    StageRequest,
    Withdrawal,
)
from featurestore.types import String, Timestamp, ValueType
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import EVENT, ORIGIN, SEQUENCE
from featurestore.types.times import MIN_INSTANT

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

READING = "read the offline store"


class DuckLog(Log):
    """Offline tables as Parquet files on this machine."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def stage(self, request: StageRequest) -> StagedRows:
        with (
            opened(self._session, request.view, reads=request.log_files, writes=request.folder) as scanned,
            scanned.translated("read the source", table_files=request.log_files),
        ):
            staging = EventStaging if request.view.aggregations else Staging
            return staging(self._session.root, scanned, request).run()

    @override
    def latest(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        first_sequence: int = 0,
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        with self._session.reading(files) as connection, translated(READING, table_files=files):
            counts = f"{SEQUENCE} >= {first_sequence} AND {until(until_us)}" if first_sequence else until(until_us)
            newest = _find_newest(connection, view, files, f"WHERE {counts}")
            yield from stream(connection, newest, batch_rows, arrow_schema(_shown(view)))

    @override
    def entities(self, view: FeatureView, files: Sequence[str], *, since_us: int, until_us: int) -> tuple[int, int]:
        if not files:
            return 0, 0
        keys = ", ".join(map(quote, view.join_keys))
        of = f"{instants(since_us, until_us)} AND {until(until_us)}"
        with self._session.reading(files) as connection, translated(READING, table_files=files):
            each = f"SELECT bool_or({of}) AS is_within FROM ({read_log(thin(view), files)}) GROUP BY {keys}"
            ((count, within),) = connection.execute(f"SELECT count(*), count_if(is_within) FROM ({each})").fetchall()
        return int(count), int(within)

    @override
    def events(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        after_sequence: int = -1,
        since_us: int | None = None,
        until_us: int | None = None,
        by_entity: bool = False,
        of: pa.Table | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        if not files:
            return
        with self._session.open(reads=files) as connection, translated(READING, table_files=files):
            within = [f"{SEQUENCE} > {after_sequence}", until(until_us)]
            if since_us is not None and since_us >= MIN_INSTANT:
                within.append(f"{EVENT} > make_timestamptz({since_us})")  # whole row groups are skipped
            if of is not None:
                connection.register("asked", of)
                keys = ", ".join(map(quote, view.join_keys))
                within.append(f"({keys}) IN (SELECT ({keys}) FROM asked)")
            query = events_sql(connection, view, files, within, by_entity=by_entity)
            yield from stream(connection, query, batch_rows)

    @override
    def pushed(self, files: Sequence[str]) -> int:
        if not files:
            return 0
        with self._session.reading(files) as connection, translated(READING, table_files=files):
            query = f"SELECT count(*) FROM ({read_log({ORIGIN: String}, files)}) WHERE {ORIGIN} <> '{BATCH}'"
            ((found,),) = connection.execute(query).fetchall()
        return int(found)

    @override
    def judge(self, view: FeatureView, files: Sequence[str], events: pa.Table) -> JudgedEvents:
        with self._session.reading(files) as connection, translated(READING, table_files=files):
            return judged(connection, view, files, events)

    @override
    def repeats(self, view: FeatureView, files: Sequence[str], others: Sequence[str]) -> bool:
        reads = [*files, *others]
        with self._session.reading(reads) as connection, translated(READING, table_files=reads):
            ((found,),) = connection.execute(repeats_sql(view, files, others)).fetchall()
        return bool(found)

    @override
    def withdraw(
        self, view: FeatureView, files: Sequence[str], span: Span, *, now_us: int, folder: Path | None
    ) -> Withdrawal:
        with (
            opened(self._session, view, reads=files, writes=folder) as scanned,
            scanned.translated("compare the offline store with its source", table_files=files),
        ):
            connection = scanned.connection
            if view.aggregations:
                gone = gone_events(scanned, span, files, now_us)
            else:
                connection.execute(f"CREATE TEMP TABLE held AS {source_identities(scanned, span)}")
                rows = f"SELECT *, {LOG_TIMES} FROM ({read_log({**thin(view), ORIGIN: String}, files)})"
                gone = (
                    f"SELECT {FILE}, {SEQUENCE} FROM ({rows}) ANTI JOIN held USING ({identity(view)}) "
                    f"WHERE {ORIGIN} = '{BATCH}' AND {instants(span.start_us, span.end_us - 1)}"
                )
            connection.execute(f"CREATE TEMP TABLE gone AS {gone}")
            found = connection.execute(f"SELECT {FILE}, count(*) FROM gone GROUP BY ALL ORDER BY ALL").fetchall()
            removed = [files[number] for number, _ in found]
            kept = [] if folder is None else [_rest(connection, view, path, folder) for path in removed]
            return Withdrawal(
                rows=sum(count for _, count in found),
                removed=tuple(removed),
                written=tuple(path for path in kept if path is not None),
            )

    @override
    def replacements(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        removed: Sequence[str],
        added: Sequence[str],
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        reads = list(dict.fromkeys([*files, *removed, *added]))
        with self._session.reading(reads) as connection, translated(READING, table_files=reads):
            keys = ", ".join(map(quote, view.join_keys))
            kept = f"SELECT {SEQUENCE} FROM ({read_log(thin(view), added)})"
            connection.execute(
                f"CREATE TEMP TABLE gone AS SELECT DISTINCT {keys}, {EVENT} AS {GONE_EVENT}, "
                f"{known()} AS {GONE_CREATED} "
                f"FROM ({read_log(thin(view), removed)}) ANTI JOIN ({kept}) USING ({SEQUENCE})"
            )
            newest = _find_newest(connection, view, files, f"SEMI JOIN gone USING ({keys}) WHERE {until(until_us)}")
            shown = {**view.join_keys, GONE_EVENT: Timestamp, GONE_CREATED: Timestamp, **_shown(view)}
            query = f"SELECT {', '.join(map(quote, shown))} FROM gone LEFT JOIN ({newest}) USING ({keys})"
            yield from stream(connection, query, batch_rows, arrow_schema(shown))

    @override
    def compact(self, view: FeatureView, files: Sequence[str], folder: Path) -> tuple[Path, ...]:
        doing = f"compact the table of view {view.name!r}"
        with self._session.reading(files, writes=folder) as connection, translated(doing, table_files=files):
            query = f"{read_whole_log(view, files)} ORDER BY {', '.join(LOG_ORDER)}"
            return (write_parquet(connection, query, folder),)


def _shown(view: FeatureView) -> dict[str, ValueType]:
    """Return the columns of the newest rows: keys, times and features."""
    return {name: kind for name, kind in log_columns(view).items() if name not in (SEQUENCE, ORIGIN)}


def _rest(connection: duckdb.DuckDBPyConnection, view: FeatureView, file: str, folder: Path) -> Path | None:
    """Write the rows of a file that stay, in the same order; returns None when none do."""
    rows = f"FROM ({read_whole_log(view, [file])}) ANTI JOIN gone USING ({SEQUENCE})"
    ((count,),) = connection.execute(f"SELECT count(*) {rows}").fetchall()
    query = f"SELECT * {rows} ORDER BY {', '.join(LOG_ORDER)}"
    return write_parquet(connection, query, folder) if count else None


def _find_newest(connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], of: str) -> str:
    """Find the newest row per entity of the log's rows ``of`` a condition or join; returns the SELECT that reads them.

    A file's rows are in order, so its newest row of an entity has the greatest row number: an integer maximum
    costs half as much as comparing times.
    """
    keys = ", ".join(map(quote, view.join_keys))
    rows = f"({read_log(thin(view), files)})"
    connection.execute(
        f"CREATE TEMP TABLE newest_of_file AS SELECT {FILE}, max({ROW}) AS {ROW} FROM {rows} {of} "
        f"GROUP BY {keys}, {FILE}"
    )
    chosen = f"SEMI JOIN newest_of_file USING ({FILE}, {ROW})"
    shown = f"SELECT {', '.join(map(quote, _shown(view)))} FROM ({read_log(log_columns(view), files)})"
    if len(files) < 2:
        return f"{shown} {chosen}"
    connection.execute(
        f"CREATE TEMP TABLE newest AS SELECT arg_max({SEQUENCE}, ({', '.join(LOG_ORDER)})) "
        f"AS {SEQUENCE} FROM {rows} {chosen} GROUP BY {keys}"
    )
    return f"{shown} SEMI JOIN newest USING ({SEQUENCE})"
