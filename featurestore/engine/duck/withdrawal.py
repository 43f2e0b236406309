"""Rows that the source no longer holds: taking them out of the log, and finding what their entities have instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.duck.identity import LOG_ORDER, LOG_TIMES, identity, known
from featurestore.engine.duck.latest import as_declared, find_newest
from featurestore.engine.duck.offline_sql import (
    FILE,
    instants,
    log_columns,
    read_log,
    read_whole_log,
    thin,
    until,
)
from featurestore.engine.duck.scan import BATCH, opened, source_identities, write_parquet
from featurestore.engine.duck.session import Session, quote, stream, translated
from featurestore.engine.interface import GONE_CREATED, GONE_EVENT, Span, Withdrawal
from featurestore.types import String, Timestamp
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import EVENT, ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def withdraw(
    session: Session, view: FeatureView, files: Sequence[str], span: Span, *, folder: Path | None
) -> Withdrawal:
    """See `Engine.withdraw`."""
    with (
        opened(session, view, reads=files, writes=folder) as scanned,
        scanned.translated("compare the offline store with its source", table_files=files),
    ):
        connection = scanned.connection
        connection.execute(f"CREATE TEMP TABLE held AS {source_identities(scanned, span)}")
        rows = f"SELECT *, {LOG_TIMES} FROM ({read_log({**thin(view), ORIGIN: String}, files)})"
        connection.execute(
            f"CREATE TEMP TABLE gone AS SELECT {FILE}, {SEQUENCE} FROM ({rows}) "
            f"ANTI JOIN held USING ({identity(view)}) "
            f"WHERE {ORIGIN} = '{BATCH}' AND {instants(span.start_us, span.end_us - 1)}"
        )
        found = connection.execute(f"SELECT {FILE}, count(*) FROM gone GROUP BY ALL ORDER BY ALL").fetchall()
        removed = [files[number] for number, _ in found]
        kept = [] if folder is None else [_rest(connection, view, path, folder) for path in removed]
        return Withdrawal(
            rows=sum(count for _, count in found),
            removed=tuple(removed),
            written=tuple(path for path in kept if path is not None),
        )


def _rest(connection: duckdb.DuckDBPyConnection, view: FeatureView, file: str, folder: Path) -> Path | None:
    """Write what stays of a file in the same order; returns None when nothing does."""
    rows = f"FROM ({read_whole_log(view, [file])}) ANTI JOIN gone USING ({SEQUENCE})"
    count = connection.execute(f"SELECT count(*) {rows}").fetchone()
    assert count is not None
    if not count[0]:
        return None
    query = f"SELECT * {rows} ORDER BY {', '.join(LOG_ORDER)}"
    return write_parquet(connection, query, folder)


def replacements(
    session: Session,
    view: FeatureView,
    files: Sequence[str],
    *,
    removed: Sequence[str],
    added: Sequence[str],
    until_us: int | None,
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    """See `Engine.replacements`."""
    reads = list(dict.fromkeys([*files, *removed, *added]))
    columns = log_columns(view)
    output = {name: arrow_type(kind) for name, kind in columns.items() if name not in (SEQUENCE, ORIGIN)}
    with session.open(reads=reads) as connection, translated("read the offline store", table_files=reads):
        keys = ", ".join(map(quote, view.join_keys))
        kept = f"SELECT {SEQUENCE} FROM ({read_log(thin(view), added)})"
        connection.execute(
            f"CREATE TEMP TABLE gone AS SELECT DISTINCT {keys}, {EVENT} AS {GONE_EVENT}, "
            f"{known()} AS {GONE_CREATED} "
            f"FROM ({read_log(thin(view), removed)}) ANTI JOIN ({kept}) USING ({SEQUENCE})"
        )
        chosen = find_newest(connection, view, files, f"SEMI JOIN gone USING ({keys}) WHERE {until(until_us)}")
        newest = f"SELECT {', '.join(map(quote, output))} FROM ({read_log(columns, files)}) {chosen}"
        times = {GONE_EVENT: arrow_type(Timestamp), GONE_CREATED: arrow_type(Timestamp)}
        shown = {name: output[name] for name in view.join_keys} | times | output
        wanted = ", ".join(map(quote, shown))
        query = f"SELECT {wanted} FROM gone LEFT JOIN ({newest}) USING ({keys})"
        yield from as_declared(stream(connection, query, batch_rows), shown)
