"""The newest row of each entity, from a view's offline table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.log import KNOWN_US, log_columns, read_log
from featurestore.engine.session import Session, quote, translated
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa


def latest(
    session: Session,
    view: FeatureView,
    files: Sequence[str],
    *,
    changed: Sequence[str] | None,
    until_us: int | None,
    batch_rows: int,
) -> Iterator[pa.RecordBatch]:
    """See `Engine.latest`."""
    read = list(files if changed is None else changed)
    columns = log_columns(view)
    output = [name for name in columns if name not in (SEQUENCE, ORIGIN)]
    with session.open(reads=read) as connection, translated("read the offline store", table_files=read):
        _find_newest(connection, view, read, until_us)
        wanted = ", ".join(map(quote, output))
        query = f"SELECT {wanted} FROM ({read_log(columns, read)}) SEMI JOIN newest USING ({SEQUENCE})"
        reader = connection.sql(query).to_arrow_reader(batch_rows)
        yield from as_declared(reader, view, output)


def _find_newest(
    connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], until_us: int | None
) -> None:
    """Make the table ``newest``: ``fs_seq`` of the newest row per entity; it is unique, so it finds the row."""
    keys = ", ".join(map(quote, view.join_keys))
    thin = read_log(
        {name: kind for name, kind in log_columns(view).items() if name in (*view.join_keys, EVENT, CREATED, SEQUENCE)},
        files,
    )
    past = "" if until_us is None else f" WHERE epoch_us({EVENT}) <= {until_us} AND {KNOWN_US} <= {until_us}"
    connection.execute(
        f"CREATE TEMP TABLE newest AS SELECT arg_max({SEQUENCE}, (epoch_us({EVENT}), {KNOWN_US}, {SEQUENCE})) "
        f"AS {SEQUENCE} FROM ({thin}){past} GROUP BY {keys}"
    )


def as_declared(reader: pa.RecordBatchReader, view: FeatureView, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield batches with the declared Arrow types: DuckDB names list items and buffers its own way."""
    import pyarrow as pa

    columns = log_columns(view)
    schema = pa.schema([(name, arrow_type(columns[name])) for name in names])
    for batch in reader:
        yield batch.cast(schema)
