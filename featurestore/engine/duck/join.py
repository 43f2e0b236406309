"""The point-in-time join: choose a row for every entity row, then fetch the chosen rows' features, in order.

The features are read once, joined to the chosen rows by ``fs_seq``, and sorted by the frame's row numbers.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from featurestore.definitions import FeatureView
from featurestore.engine.duck.choose import EntityRows, all_chosen, feature_columns, keep_chosen, typed
from featurestore.engine.duck.examine import examine
from featurestore.engine.duck.offline_sql import log
from featurestore.engine.duck.session import Session, close, lack_of_room, reason_of, stream, translated
from featurestore.engine.duck.windowed import compute, conditions
from featurestore.engine.interface import Join, JoinFacts, Joins, ViewJoin
from featurestore.errors import EngineError
from featurestore.types.arrow import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

DOING = "join features to entity rows"
PART_ROWS = 1 << 20
"""At most so many rows of a stored frame are joined at once."""


class DuckJoins(Joins):
    """Joins in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def join(self, frame: pa.Table, time_column: str, views: Sequence[ViewJoin], *, batch_rows: int) -> Join:
        return DuckJoin(self._session, frame, time_column, views, batch_rows)

    @override
    def conditions(self, view: FeatureView, events: pa.Table) -> Mapping[str, pa.Array]:
        return conditions(self._session, view, events)

    @override
    def chosen(
        self, frame: pa.Table, time_column: str, view: ViewJoin, *, since: Sequence[tuple[int, int]]
    ) -> pa.Array:
        with self._session.open(reads=view.files) as connection, translated(DOING, table_files=view.files):
            return all_chosen(EntityRows(connection, frame, time_column), [view], since)[0]

    @override
    def join_stored(
        self, frame_files: Sequence[str], time_column: str, views: Sequence[ViewJoin], folder: Path
    ) -> tuple[Path, ...]:
        written = []
        try:
            for file in frame_files:
                written.append(folder / f"{secrets.token_hex(16)}.parquet")
                self._join_file(file, time_column, views, written[-1])
        except BaseException:
            for path in written:
                path.unlink(missing_ok=True)
            raise
        return tuple(written)

    def _join_file(self, file: str, time_column: str, views: Sequence[ViewJoin], target: Path) -> None:
        """Join the rows of one file, so many at a time that memory stays bounded."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = list(dict.fromkeys([time_column, *(name for view in views for name in view.key_columns.values())]))
        try:
            with pq.ParquetFile(file) as frame, pq.ParquetWriter(target, _schema(views), compression="zstd") as writer:
                for part in frame.iter_batches(PART_ROWS, columns=columns):
                    table = pa.Table.from_batches([part])
                    for batch in self.join(table, time_column, views, batch_rows=PART_ROWS).batches():
                        writer.write_batch(batch)
        except (OSError, pa.ArrowException) as error:
            doing = f"{DOING} of {file}"
            raise lack_of_room(error, doing) or EngineError(
                f"The engine could not {doing}: {reason_of(error)}."
            ) from None


class DuckJoin(Join):
    """A join that remembers its choice, 8 bytes per row and view, and its facts: neither is worked out again."""

    def __init__(
        self, session: Session, frame: pa.Table, time_column: str, views: Sequence[ViewJoin], batch_rows: int
    ) -> None:
        self._session = session
        self._frame, self._time_column = frame, time_column
        self._views = tuple(views)
        self._files = [file for view in views for file in view.files]
        self._batch_rows = batch_rows
        self._chosen: list[pa.Array] | None = None
        """For each view without windows the ``fs_seq`` of each entity row's answer, null where it has none."""
        self._windowed: dict[int, JoinFacts] = {}
        """The facts about the views with windows, by their numbers."""
        self._facts: tuple[JoinFacts, ...] | None = None

    @override
    def batches(self) -> pa.RecordBatchReader:
        import pyarrow as pa

        schema = _schema(self._views)
        connection = self._session.connect(reads=self._files)
        try:
            with translated(DOING, table_files=self._files):
                entities = EntityRows(connection, self._frame, self._time_column)
                windowed = self._compute(entities)
                self._chosen = all_chosen(entities, self._plain)
                chosen = iter(self._chosen)
                parts: list[str | pa.Table] = []
                for number, view in enumerate(self._views):
                    if view.view.aggregations:
                        parts.append(_numbered(windowed.pop(number)))
                    else:
                        keep_chosen(entities, next(chosen), number)
                        parts.append(_gather(entities, view, number))
        except BaseException:
            close(connection)
            raise
        batches = _stream(entities, parts, self._files, schema, self._batch_rows)
        return pa.RecordBatchReader.from_batches(schema, batches)

    @override
    def facts(self) -> tuple[JoinFacts, ...]:
        if self._facts is None:
            self._facts = self._examined()
        return self._facts

    @override
    def chosen(self) -> list[pa.Array | None]:
        if self._chosen is None:
            self._examined()
        chosen = iter(self._chosen or ())
        return [None if view.view.aggregations else next(chosen) for view in self._views]

    @override
    def windowed(self) -> tuple[JoinFacts, ...]:
        return tuple(self._windowed.values())

    def _examined(self) -> tuple[JoinFacts, ...]:
        doing = "examine a training set"
        with self._session.open(reads=self._files) as connection, translated(doing, table_files=self._files):
            entities = EntityRows(connection, self._frame, self._time_column)
            if self._chosen is None:
                self._compute(entities)
                self._chosen = all_chosen(entities, self._plain)
            chosen = iter(self._chosen)
            return tuple(
                self._windowed[number] if view.view.aggregations else examine(entities, view, number, next(chosen))
                for number, view in enumerate(self._views)
            )

    @property
    def _plain(self) -> list[ViewJoin]:
        return [view for view in self._views if not view.view.aggregations]

    def _compute(self, entities: EntityRows) -> dict[int, list[pa.Array]]:
        """Compute the features of the views with windows, and keep the facts about them."""
        columns = {}
        for number, view in enumerate(self._views):
            if view.view.aggregations:
                made = compute(entities, view, number)
                self._windowed[number], columns[number] = made.facts(view), made.columns
        return columns


def _numbered(columns: Sequence[pa.Array]) -> pa.Table:
    """Return columns with their rows' numbers before them."""
    import pyarrow as pa

    return pa.table({"row": np.arange(len(columns[0])), **{f"c{place}": each for place, each in enumerate(columns)}})


def _schema(views: Sequence[ViewJoin]) -> pa.Schema:
    asked = [(view, name) for view in views for name in view.features]
    return arrow_schema({f"{view.name}__{name}": view.view.feature(name).type for view, name in asked})


def _gather(entities: EntityRows, view: ViewJoin, number: int) -> str:
    """Select row number and features of every entity row, in the frame's order, under numbered names."""
    if not view.files:
        nulls = ", ".join(typed("NULL", view, name) for name in view.features)
        return f"SELECT row, {nulls} FROM chosen_{number} ORDER BY row"
    columns = ", ".join(feature_columns(entities, view).values())
    return (
        f"SELECT c.row, {columns} FROM chosen_{number} c LEFT JOIN {log(view.files)} l ON l.fs_seq = c.seq "
        f"ORDER BY c.row"
    )


def _stream(
    entities: EntityRows, parts: Sequence[str | pa.Table], files: Sequence[str], schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the views' columns side by side, after a check that no row is missing or out of order."""
    import pyarrow as pa

    done = 0
    try:
        with translated(DOING, table_files=files):
            # The views are sorted separately and put side by side here, so they need no join with one another.
            readers = [
                stream(entities.connection.cursor(), part, batch_rows)
                if isinstance(part, str)
                else part.to_reader(batch_rows)
                for part in parts
            ]
            batches = [_next(reader, done) for reader in readers]
            while size := min(batch.num_rows for batch in batches):
                columns = [column for batch in batches for column in batch.slice(0, size).columns[1:]]
                cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
                yield pa.RecordBatch.from_arrays(cast, schema=schema)
                done += size
                rest = [batch.slice(size) for batch in batches]
                batches = [
                    batch if batch.num_rows else _next(reader, done)
                    for batch, reader in zip(rest, readers, strict=True)
                ]
        if done != entities.count or any(batch.num_rows for batch in batches):
            raise _out_of_step(done)
    finally:
        close(entities.connection)


def _next(reader: pa.RecordBatchReader, first: int) -> pa.RecordBatch:
    """Return the next batch, whose row numbers must count up from ``first``; an empty one at the end."""
    import pyarrow as pa

    batch = next(reader, pa.RecordBatch.from_pylist([], schema=reader.schema))
    if not np.array_equal(batch.column(0).to_numpy(), np.arange(first, first + batch.num_rows)):
        raise _out_of_step(first)
    return batch


def _out_of_step(row: int) -> EngineError:
    return EngineError(
        f"The join returned other rows than the frame has, at or after row {row}.",
        hint="An offline table holds an fs_seq twice: run `fs verify`.",
    )
