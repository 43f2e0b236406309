"""Choosing a row of each view for every entity row, from four thin columns: key number, event, created, sequence.

See `featurestore.engine.duck.newest` for the rule on arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from featurestore.engine.duck.identity import known
from featurestore.engine.duck.newest import Int64s, Rows, newest
from featurestore.engine.duck.offline_sql import log
from featurestore.engine.duck.session import file_list, quote
from featurestore.engine.interface import ViewJoin
from featurestore.types.times import MIN_INSTANT
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

ROWS_AT_ONCE = 16_000_000
"""At most so many rows of a view at once, at about 100 bytes each; beyond, a share of the keys at a time."""
MOST_ROWS = 24_000_000
"""At most so many rows in memory while some are chosen from and others are read."""


class EntityRows:
    """An entity frame inside one connection: the table ``entity_rows`` and key numbers for each set of key columns.

    Columns are numbered, not named, so that no name of the frame can clash with one of ours.
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
        table = table.drop_columns(column)  # so that no column is in memory twice
    return taken


def instant(microseconds: int) -> str:
    """Return an instant as a SQL expression that the engine folds, and can compare with a file's statistics."""
    return f"make_timestamptz({microseconds}::BIGINT)"


class _Choosing:
    """Chooses in a thread of its own, where numpy works without the interpreter, while the engine keeps reading."""

    def __init__(self, entities: EntityRows, aside: ThreadPoolExecutor, since: Sequence[tuple[int, int]]) -> None:
        self._entities = entities
        self._aside = aside
        self._since = since
        self._under_way: list[tuple[int, Future[tuple[Int64s, Int64s]]]] = []

    def begin(self, view: ViewJoin) -> list[Future[tuple[Int64s, Int64s]]]:
        """Read rows that can answer; each result has numbers of entity rows, and the ``fs_seq`` of their answers."""
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
            asked = rows[mine], keys[mine], times[mine]
            begun.append(self._aside.submit(_answered, view, *asked, log_rows, self._since))
            self._under_way.append((len(log_rows.keys), begun[-1]))
        return begun

    def _wait_for_room(self, rows: int) -> None:
        self._under_way = [(size, result) for size, result in self._under_way if not result.done()]
        while self._under_way and sum(size for size, _ in self._under_way) + rows > MOST_ROWS:
            self._under_way.pop(0)[1].result()


def _answered(
    view: ViewJoin, rows: Int64s, keys: Int64s, times: Int64s, log_rows: Rows, since: Sequence[tuple[int, int]]
) -> tuple[Int64s, Int64s]:
    from_us = starts(log_rows.sequences, since) if since else None
    available = view.as_of == "available"
    answers = newest(keys, times, log_rows, available=available, ttl_us=view.view.ttl_us, from_us=from_us)
    answered = answers >= 0
    return rows[answered], log_rows.sequences[answers[answered]]


def starts(sequences: Int64s, since: Sequence[tuple[int, int]]) -> Int64s:
    """Return from when rows count, by their numbers, as `Joins.chosen` says of ``since``; before all of it: always."""
    numbers, instants = (np.array(each, np.int64) for each in zip(*since, strict=True))
    places = np.searchsorted(numbers, sequences, side="right")
    return np.append(np.int64(MIN_INSTANT), instants)[places]


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


def all_chosen(
    entities: EntityRows, views: Sequence[ViewJoin], since: Sequence[tuple[int, int]] = ()
) -> list[pa.Array]:
    """Return for each view the ``fs_seq`` of each entity row's answer, null where it has none."""
    import pyarrow as pa

    with ThreadPoolExecutor(1, thread_name_prefix="choose") as aside:
        choosing = _Choosing(entities, aside, since)
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
        name: typed(f"l.{quote(stored[name.lower()])}" if name.lower() in stored else "NULL", view, name)
        for name in view.features
    }


def typed(column: str, view: ViewJoin, name: str) -> str:
    """Return an expression in the declared type of a view's feature."""
    return f"CAST({column} AS {duckdb_type(view.view.feature(name).type)})"
