"""The point-in-time join: choose a row for every entity row, then fetch the chosen rows' features, in order.

To choose takes four thin columns (keys, times, sequence) of the entities that are asked for; see
`featurestore.engine.duck.newest`. The features are then read once, joined to the chosen rows by ``fs_seq``, and sorted
by the frame's row numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.engine.duck.identity import known
from featurestore.engine.duck.newest import Int64s, Rows, newest
from featurestore.engine.duck.session import Session, close, file_list, quote, stream, translated
from featurestore.engine.interface import ViewJoin
from featurestore.errors import EngineError
from featurestore.types.arrow import arrow_type
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS_AT_ONCE = 16_000_000
"""Rows of a view that are chosen from at once, at about 100 bytes each; of more, a share of the keys at a time."""
MOST_ROWS = 24_000_000
"""Rows in memory while some are chosen from and others read."""
DOING = "join features to entity rows"


class Choices:
    """What a join chose, for the examination that follows: it looks at what was chosen, and does not choose again."""

    def __init__(self, frame: pa.Table) -> None:
        self._frame = frame
        self._sequences: dict[tuple[Any, ...], pa.Array] = {}

    def keep(self, view: ViewJoin, sequences: pa.Array) -> None:
        """Take the ``fs_seq`` of each entity row's answer, null where it has none."""
        self._sequences[_choice(view)] = sequences

    def of(self, frame: pa.Table, view: ViewJoin) -> pa.Array | None:
        """Return what was chosen for this very frame, None where that is not known."""
        return self._sequences.get(_choice(view)) if frame is self._frame else None


def _choice(view: ViewJoin) -> tuple[Any, ...]:
    return view.name, view.files, tuple(view.key_columns.items()), view.view.ttl_us, view.as_of


class EntityRows:
    """An entity frame inside one connection: the table ``entity_rows`` and key numbers for each set of key columns.

    Columns are numbered, not named, so that no name of the frame can meet one of ours.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, frame: pa.Table, time_column: str) -> None:
        import pyarrow as pa

        self.connection = connection
        self.count = frame.num_rows
        self._columns = {name: f"k{number}" for number, name in enumerate(frame.column_names) if name != time_column}
        self._keys: dict[tuple[str, ...], str] = {}
        self._times = frame.column(time_column).cast(pa.int64()).to_numpy()
        arrays = {column: frame.column(name) for name, column in self._columns.items()}
        arrays["at_us"] = pa.array(self._times)
        arrays["row"] = pa.array(np.arange(self.count))
        connection.register("given_rows", pa.table(arrays))
        connection.execute("CREATE TABLE entity_rows AS FROM given_rows")
        connection.unregister("given_rows")
        self.first_us = int(self._times.min()) if self.count else 0
        self.last_us = int(self._times.max()) if self.count else 0

    def columns(self, view: ViewJoin) -> list[str]:
        """Return the frame's columns that hold the view's join keys, in the order of `ViewJoin.view`'s keys."""
        return [self._columns[view.key_columns[key]] for key in view.view.join_keys]

    def keys(self, view: ViewJoin) -> str:
        """Return the table with a number (``id``) for each distinct key that the frame asks the view for."""
        columns = tuple(self.columns(view))
        if columns not in self._keys:
            name = self._keys[columns] = f"entity_keys_{len(self._keys)}"
            self.connection.execute(
                f"CREATE TABLE {name} AS SELECT (row_number() OVER () - 1)::INTEGER AS id, * FROM ("
                f"SELECT DISTINCT {', '.join(columns)} FROM entity_rows "
                f"WHERE {' AND '.join(f'{column} IS NOT NULL' for column in columns)})"
            )
        return self._keys[columns]

    def on_keys(self, view: ViewJoin, left: str, right: str) -> str:
        """Return the condition that ``left``'s join keys (a log) are ``right``'s (numbered columns)."""
        pairs = zip(view.view.join_keys, self.columns(view), strict=True)
        return " AND ".join(f"{left}.{quote(key)} = {right}.{column}" for key, column in pairs)

    def asked(self, view: ViewJoin) -> tuple[Int64s, Int64s, Int64s]:
        """Return row numbers, key numbers and times of the entity rows without a null key."""
        pairs = " AND ".join(f"r.{column} = k.{column}" for column in self.columns(view))
        rows, keys = arrays(
            self.connection, f"SELECT r.row, k.id FROM entity_rows r JOIN {self.keys(view)} k ON {pairs}", "row", "id"
        )
        return rows, keys.astype(np.int64), self._times[rows]


def arrays(connection: duckdb.DuckDBPyConnection, sql: str, *columns: str) -> list[Int64s]:
    """Return integer columns of a query's result as arrays."""
    table = connection.sql(sql).to_arrow_table()
    taken = []
    for column in columns:
        taken.append(table.column(column).to_numpy())
        table = table.drop_columns(column)  # so that each column is held once
    return taken


def log(files: Sequence[str]) -> str:
    """Return the table function that reads a table version's files."""
    return f"read_parquet({file_list(files)}, union_by_name = true, hive_partitioning = false)"


def instant(microseconds: int) -> str:
    """Return an instant as a SQL expression that the engine folds, and so compares with a file's statistics."""
    return f"make_timestamptz({microseconds}::BIGINT)"


def join(
    session: Session,
    frame: pa.Table,
    time_column: str,
    views: Sequence[ViewJoin],
    *,
    batch_rows: int,
    choices: Choices | None = None,
) -> pa.RecordBatchReader:
    """See `Engine.join`. Rows are chosen before it returns; the features are read while the result is.

    ``choices`` takes what is chosen.
    """
    import pyarrow as pa

    kinds = [(f"{view.name}__{name}", view.view.feature(name).type) for view in views for name in view.features]
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in kinds])
    files = [file for view in views for file in view.files]
    connection = session.connect(reads=files)
    try:
        with translated(DOING, table_files=files):
            entities = EntityRows(connection, frame, time_column)
            parts = []
            for number, (view, sequences) in enumerate(zip(views, all_chosen(entities, views), strict=True)):
                if choices is not None:
                    choices.keep(view, sequences)
                keep_chosen(entities, sequences, number)
                parts.append(_gather(entities, view, number))
    except BaseException:
        close(connection)
        raise
    return pa.RecordBatchReader.from_batches(schema, _stream(entities, parts, files, schema, batch_rows))


class _Choosing:
    """Chooses in a thread of its own, where numpy works without the interpreter, while the engine reads on."""

    def __init__(self, entities: EntityRows, aside: ThreadPoolExecutor) -> None:
        self._entities = entities
        self._aside = aside
        self._under_way: list[tuple[int, Future[tuple[Int64s, Int64s]]]] = []

    def begin(self, view: ViewJoin) -> list[Future[tuple[Int64s, Int64s]]]:
        """Read what can answer; each result has numbers of entity rows, and the ``fs_seq`` of their answers."""
        entities = self._entities
        rows, keys, times = entities.asked(view)
        counted = f"SELECT sum(num_rows)::BIGINT FROM parquet_file_metadata({file_list(view.files)})"
        ((total,),) = entities.connection.execute(counted).fetchall()
        shares = max(1, -(-total // ROWS_AT_ONCE))
        begun = []
        for share in range(shares):
            self._wait_for_room(-(-total // shares))
            log_rows = Rows(*arrays(entities.connection, _thin(entities, view, share, shares), "id", "e", "c", "s"))
            mine = slice(None) if shares == 1 else np.flatnonzero(keys % shares == share)
            begun.append(self._aside.submit(_answered, view, rows[mine], keys[mine], times[mine], log_rows))
            self._under_way.append((len(log_rows.keys), begun[-1]))
        return begun

    def _wait_for_room(self, rows: int) -> None:
        self._under_way = [(size, result) for size, result in self._under_way if not result.done()]
        while self._under_way and sum(size for size, _ in self._under_way) + rows > MOST_ROWS:
            self._under_way.pop(0)[1].result()


def _answered(view: ViewJoin, rows: Int64s, keys: Int64s, times: Int64s, log_rows: Rows) -> tuple[Int64s, Int64s]:
    answers = newest(keys, times, log_rows, available=view.as_of == "available", ttl_us=view.view.ttl_us)
    answered = answers >= 0
    return rows[answered], log_rows.sequences[answers[answered]]


def _thin(entities: EntityRows, view: ViewJoin, share: int, shares: int) -> str:
    """Select key number, event, created and sequence of the log's rows that can answer at all."""
    conditions = [f"l.event_ts <= {instant(entities.last_us)}"]
    if view.view.reach_us is not None:
        conditions.append(f"l.event_ts >= {instant(view.view.reaches_back_to(entities.first_us))}")
    if view.as_of == "available":
        conditions.append(f"(l.created_ts IS NULL OR l.created_ts <= {instant(entities.last_us)})")
    if shares > 1:
        conditions.append(f"k.id % {shares} = {share}")
    return (
        f"SELECT k.id, epoch_us(l.event_ts) AS e, epoch_us({known('l')}) AS c, l.fs_seq AS s "
        f"FROM {log(view.files)} l JOIN {entities.keys(view)} k ON {entities.on_keys(view, 'l', 'k')} "
        f"WHERE {' AND '.join(conditions)}"
    )


def all_chosen(entities: EntityRows, views: Sequence[ViewJoin]) -> list[pa.Array]:
    """Return for each view the ``fs_seq`` of each entity row's answer, null where it has none."""
    import pyarrow as pa

    with ThreadPoolExecutor(1, thread_name_prefix="choose") as aside:
        choosing = _Choosing(entities, aside)
        begun = [choosing.begin(view) if view.files else [] for view in views]
        chosen = []
        for parts in begun:
            answers, missing = np.zeros(entities.count, np.int64), np.ones(entities.count, np.bool_)
            for part in parts:
                rows, sequences = part.result()
                answers[rows], missing[rows] = sequences, False
            chosen.append(pa.array(answers, mask=missing))
    return chosen


def keep_chosen(entities: EntityRows, sequences: pa.Array, number: int) -> None:
    """Make the table ``chosen_{number}``: each entity row's number and the ``fs_seq`` of its answer, else null."""
    import pyarrow as pa

    entities.connection.register("found", pa.table({"row": np.arange(entities.count), "seq": sequences}))
    entities.connection.execute(f"CREATE TABLE chosen_{number} AS FROM found")
    entities.connection.unregister("found")


def feature_columns(entities: EntityRows, view: ViewJoin) -> dict[str, str]:
    """Return each feature's expression over the log ``l``, in its declared type; null where no file holds it yet."""
    described = entities.connection.execute(f"DESCRIBE FROM {log(view.files)}").fetchall()
    stored = {str(name).lower(): str(name) for name, *_ in described}
    return {
        name: _typed(f"l.{quote(stored[name.lower()])}" if name.lower() in stored else "NULL", view, name)
        for name in view.features
    }


def _typed(column: str, view: ViewJoin, name: str) -> str:
    return f"CAST({column} AS {duckdb_type(view.view.feature(name).type)})"


def _gather(entities: EntityRows, view: ViewJoin, number: int) -> str:
    """Select row number and features of every entity row, in the frame's order, under numbered names."""
    if not view.files:
        nulls = ", ".join(_typed("NULL", view, name) for name in view.features)
        return f"SELECT row, {nulls} FROM chosen_{number} ORDER BY row"
    columns = ", ".join(feature_columns(entities, view).values())
    return (
        f"SELECT c.row, {columns} FROM chosen_{number} c LEFT JOIN {log(view.files)} l ON l.fs_seq = c.seq "
        f"ORDER BY c.row"
    )


def _stream(
    entities: EntityRows, parts: Sequence[str], files: Sequence[str], schema: pa.Schema, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the views' columns side by side, having seen that rows are whole and in order."""
    import pyarrow as pa

    done = 0
    try:
        with translated(DOING, table_files=files):
            # Sorted apart and put side by side here, the views need no join with one another.
            readers = [stream(entities.connection.cursor(), part, batch_rows) for part in parts]
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
        f"The join gave other rows than the frame has, at or after row {row}.",
        hint="An offline table holds an fs_seq twice: run `fs verify`.",
    )
