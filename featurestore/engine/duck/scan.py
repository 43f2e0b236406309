"""The rows of a view's sources: opened in one connection, checked against the view, cast to its types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.definitions.sql import depends_on_order
from featurestore.engine.duck.convert import converted, describe, instant_us
from featurestore.engine.duck.identity import CREATED_US, EVENT_US, SOURCE_KNOWN, SOURCE_TIMES, identity
from featurestore.engine.duck.session import Session, quote, translated
from featurestore.engine.duck.tables import Reader, SourceTable, open_source
from featurestore.engine.interface import SourceColumn, Span
from featurestore.engine.schema import check_columns, check_files, declared
from featurestore.types import ValueType

if TYPE_CHECKING:
    import duckdb

BATCH = "batch"


@dataclass(frozen=True, slots=True)
class Scanned:
    """A view's sources, open in one connection; the view has been checked against them."""

    view: FeatureView
    connection: duckdb.DuckDBPyConnection
    tables: tuple[SourceTable, ...]
    columns: tuple[SourceColumn, ...]
    readers: tuple[Reader, ...]

    @property
    def content_order(self) -> str:
        """The order that numbers a query's rows: they have none of their own, but ordering by content repeats."""
        return ", ".join([EVENT_US, SOURCE_KNOWN, *map(quote, self.view.stored_types)])

    def rows(
        self,
        values: Mapping[str, ValueType],
        *,
        only: frozenset[str] | None = None,
        between_us: tuple[int, int] | None = None,
    ) -> str:
        """Return a SELECT of ``values`` and instants, and for a view without SQL of what `Reader.rows` adds."""
        event, created = self.view.timestamp_field, self.view.created_timestamp_field
        if self.view.sql is None:
            return self.readers[0].rows(values, event, created, only=only, between_us=between_us)
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
        """Translate errors of reading the sources."""
        paths = [path for table in self.tables for path in table.paths]
        sql_of = self.view.name if self.view.sql is not None else None
        with translated(doing, source_files=paths, table_files=table_files, sql_of=sql_of):
            yield


@contextmanager
def opened(
    session: Session, view: FeatureView, *, reads: Sequence[str] = (), writes: Path | None = None, fits: bool = True
) -> Iterator[Scanned]:
    """Open a view's sources and check that the view ``fits`` them; ``reads`` are further files."""
    tables = open_sources(session, view)
    paths = [path for table in tables for path in table.paths]
    with _connected(session, view, [*paths, *reads], writes) as connection:
        readers = tuple(Reader(connection, table) for table in tables)
        found: tuple[SourceColumn, ...] = tables[0].columns
        if view.sql is not None:
            for source, reader in zip(view.sources, readers, strict=True):
                connection.execute(f"CREATE TEMP VIEW {quote(source.name)} AS {reader.presented()}")
            with translated("read the view's SQL", source_files=paths, sql_of=view.name):
                found = tuple(describe(connection, view.sql))
        if fits:
            check_columns(view, found)
        yield Scanned(view, connection, tables, found, readers)


def _connected(
    session: Session, view: FeatureView, files: Sequence[str], writes: Path | None
) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    if view.sql is None and not any(each.where for each in view.aggregations):
        return session.reading(files, writes=writes)
    in_order = view.sql is not None and depends_on_order(view.sql)
    return session.open(reads=files, writes=writes, in_order=in_order)


def open_sources(session: Session, view: FeatureView) -> tuple[SourceTable, ...]:
    """Read the footers of a view's sources, as `open_source`; raises SourceSchemaError as `check_files`, too."""
    kinds = {name: kind for _, name, kind in declared(view)} if view.sql is None else {}
    tables = tuple(open_source(session, source, kinds) for source in view.batch_sources)
    for table in tables:
        # Only of files with rows: pandas writes an empty frame without columns.
        check_files(view, table.source, {footer.path: footer.columns for footer in table.footers if footer.rows})
    return tables


def source_identities(scanned: Scanned, span: Span) -> str:
    """Return a SELECT of the keys and instants of the source's rows with an event time in [start, end)."""
    rows = scanned.rows(scanned.view.join_keys)
    within = f"{EVENT_US} >= {span.start_us} AND {EVENT_US} < {span.end_us}"
    return f"SELECT DISTINCT {identity(scanned.view)} FROM (SELECT *, {SOURCE_TIMES} FROM ({rows}) WHERE {within})"
