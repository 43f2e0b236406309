"""The newest row of each entity, from a view's offline table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.duck.identity import LOG_ORDER
from featurestore.engine.duck.offline_sql import FILE, ROW, instants, log_columns, read_log, thin, until
from featurestore.engine.duck.session import Session, quote, stream, translated
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def latest(
    session: Session,
    view: FeatureView,
    files: Sequence[str],
    *,
    changed: Sequence[str] | None,
    first_sequence: int,
    until_us: int | None,
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    """See `Engine.latest`."""
    read = list(files if changed is None else changed)
    columns = log_columns(view)
    output = {name: arrow_type(kind) for name, kind in columns.items() if name not in (SEQUENCE, ORIGIN)}
    with session.open(reads=read) as connection, translated("read the offline store", table_files=read):
        counts = f"{SEQUENCE} >= {first_sequence} AND {until(until_us)}" if first_sequence else until(until_us)
        chosen = find_newest(connection, view, read, f"WHERE {counts}")
        wanted = ", ".join(map(quote, output))
        query = f"SELECT {wanted} FROM ({read_log(columns, read)}) {chosen}"
        yield from as_declared(stream(connection, query, batch_rows), output)


def entities(
    session: Session, view: FeatureView, files: Sequence[str], *, since_us: int, until_us: int
) -> tuple[int, int]:
    """See `Engine.entities`."""
    keys = ", ".join(map(quote, view.join_keys))
    of = f"{instants(since_us, until_us)} AND {until(until_us)}"
    with session.open(reads=files) as connection, translated("read the offline store", table_files=files):
        each = f"SELECT bool_or({of}) AS is_within FROM ({read_log(thin(view), files)}) GROUP BY {keys}"
        ((count, within),) = connection.execute(f"SELECT count(*), count_if(is_within) FROM ({each})").fetchall()
    return int(count), int(within)


def find_newest(connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], of: str) -> str:
    """Find the newest row per entity of the log's rows ``of`` a condition or join; returns the join that keeps them.

    A file's rows lie in order, so its newest row of an entity has the greatest row number: an integer maximum
    costs half of comparing times.
    """
    keys = ", ".join(map(quote, view.join_keys))
    rows = f"({read_log(thin(view), files)})"
    connection.execute(
        f"CREATE TEMP TABLE newest_of_file AS SELECT {FILE}, max({ROW}) AS {ROW} FROM {rows} {of} "
        f"GROUP BY {keys}, {FILE}"
    )
    chosen = f"SEMI JOIN newest_of_file USING ({FILE}, {ROW})"
    if len(files) < 2:
        return chosen
    connection.execute(
        f"CREATE TEMP TABLE newest AS SELECT arg_max({SEQUENCE}, ({', '.join(LOG_ORDER)})) "
        f"AS {SEQUENCE} FROM {rows} {chosen} GROUP BY {keys}"
    )
    return f"SEMI JOIN newest USING ({SEQUENCE})"


def as_declared(reader: pa.RecordBatchReader, columns: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    """Yield batches with the declared Arrow types: DuckDB names list items its own way."""
    import pyarrow as pa

    schema = pa.schema(list(columns.items()))
    for batch in reader:
        yield batch.cast(schema)
