"""SQL over a project's sources and views by name: entity frames, and a view's rows in a span."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import duckdb
from typing_extensions import override

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.engine.duck.identity import known
from featurestore.engine.duck.offline_sql import instants, log_columns, read_log
from featurestore.engine.duck.session import Session, is_fault_of_data, quote, stream, translated
from featurestore.engine.duck.tables import Reader, open_source
from featurestore.engine.interface import Queries
from featurestore.errors import EntityFrameError
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import EVENT, LOG_COLUMNS, SEQUENCE
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    import pyarrow as pa


class DuckQueries(Queries):
    """SQL in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def query(
        self,
        sql: str,
        sources: Mapping[str, ParquetSource],
        views: Mapping[str, tuple[FeatureView, Sequence[str]]],
        *,
        what: str = "the entity frame",
    ) -> pa.Table:
        tables = {name: open_source(self._session, source) for name, source in sources.items()}
        source_files = [path for table in tables.values() for path in table.paths]
        table_files = [file for _, files in views.values() for file in files]
        with self._session.open(reads=[*source_files, *table_files]) as connection:
            with translated("open what the SQL reads", source_files=source_files, table_files=table_files):
                for name, table in tables.items():
                    connection.execute(f"CREATE TEMP VIEW {quote(name)} AS {Reader(connection, table).presented()}")
                for name, (view, files) in views.items():
                    connection.execute(f"CREATE TEMP VIEW {quote(name)} AS {_newest_versions(view, files)}")
            with translated("run the SQL", source_files=source_files, table_files=table_files):
                try:
                    return connection.sql(sql).to_arrow_table()
                except (
                    duckdb.ProgrammingError,
                    duckdb.DataError,
                    duckdb.InvalidInputException,
                    duckdb.PermissionException,
                ) as error:
                    if is_fault_of_data(error):
                        raise
                    raise _query_error(error, what) from None

    @override
    def span(
        self, view: FeatureView, files: Sequence[str], start_us: int, end_us: int, *, batch_rows: int
    ) -> pa.RecordBatchReader:
        import pyarrow as pa

        kinds = {**view.join_keys, EVENT: LOG_COLUMNS[EVENT], **{f.name: f.type for f in view.stored}}
        schema = arrow_schema(kinds)
        newest = _newest_versions(view, files, start_us, end_us - 1)
        order = ", ".join([EVENT, *map(quote, view.join_keys)])
        sql = f"SELECT {', '.join(map(quote, kinds))} FROM ({newest}) ORDER BY {order}"

        def batches() -> Iterator[pa.RecordBatch]:
            doing = f"read the rows of view {view.name!r}"
            with self._session.reading(files) as connection, translated(doing, table_files=files):
                yield from stream(connection, sql, batch_rows, schema)

        return pa.RecordBatchReader.from_batches(schema, batches())


def _query_error(error: duckdb.Error, what: str) -> EntityFrameError:
    """Return DuckDB's error as a caller's; a column that it does not find is in the details."""
    reason, _, candidates = str(error).strip().partition("\nCandidate bindings: ")
    candidates, _, where = candidates.partition("\n")
    names = re.findall(r'"((?:[^"]|"")+)"', candidates)
    missing = re.search(r'(?:Referenced column|have a column named) "((?:[^"]|"")+)"', reason)
    return EntityFrameError(
        f"The SQL of {what} fails: {reason}{where and chr(10) + where}",
        hint=f"Did you mean {' or '.join(map(repr, names))}?" if names else "Correct it.",
        **({} if missing is None else {"column": missing[1]}),
    )


def _newest_versions(
    view: FeatureView, files: Sequence[str], first_us: int = MIN_INSTANT, last_us: int = MAX_INSTANT
) -> str:
    """Select keys, event time and stored fields of each row's last correction, for events between two instants."""
    columns = log_columns(view)
    identity = ", ".join([*map(quote, view.join_keys), EVENT])
    shown = ", ".join(map(quote, [*view.join_keys, EVENT, *(field.name for field in view.stored)]))
    return (
        f"SELECT {shown} FROM ({read_log(columns, files)}) WHERE {instants(first_us, last_us)} "
        f"QUALIFY row_number() OVER (PARTITION BY {identity} ORDER BY {known()} DESC, {SEQUENCE} DESC) = 1"
    )
