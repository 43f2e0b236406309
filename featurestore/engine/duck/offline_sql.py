"""The SQL that reads a view's offline table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from featurestore.definitions import FeatureView
from featurestore.engine.duck.identity import LOG_ORDER, has_happened
from featurestore.engine.duck.session import file_list, quote
from featurestore.types import ValueType
from featurestore.types.columns import CREATED, EVENT, FILE_NUMBER, FILE_ROW, LOG_COLUMNS, SEQUENCE
from featurestore.types.values import duckdb_type

FILE, ROW = "fs_file", "fs_row"
"""A row's place: the number of its file among those given, and its number in the file."""


def log_columns(view: FeatureView) -> dict[str, ValueType]:
    """Return every column of a view's table and its type, in the table's order."""
    return {**view.join_keys, **LOG_COLUMNS, **{field.name: field.type for field in view.stored}}


def log(files: Sequence[str]) -> str:
    """Return the table function that reads a table version's files."""
    return f"read_parquet({file_list(files)}, union_by_name = true, hive_partitioning = false)"


def read_log(columns: Mapping[str, ValueType], files: Sequence[str]) -> str:
    """Return a SELECT of columns of the table's files, and of `FILE` and `ROW`.

    A column that a file lacks is null: the feature was added later.
    """
    return f"SELECT {', '.join(map(quote, columns))}, {FILE}, {ROW} FROM ({_read(columns, files)})"


def read_whole_log(view: FeatureView, files: Sequence[str]) -> str:
    """Return a SELECT of every column that the view or a file of its table has, in the wider type of both.

    To write rows again: a feature that ``view`` does not know yet must not be lost.
    """
    return f"SELECT * EXCLUDE ({FILE}, {ROW}) FROM ({_read(log_columns(view), files)})"


def _read(columns: Mapping[str, ValueType], files: Sequence[str]) -> str:
    empty = ", ".join(f"NULL::{duckdb_type(kind)} AS {quote(name)}" for name, kind in columns.items())
    empty = f"SELECT {empty}, NULL::BIGINT AS {FILE}, NULL::BIGINT AS {ROW} WHERE false"
    if not files:
        return empty
    read = f"SELECT *, {FILE_NUMBER}::BIGINT AS {FILE}, {FILE_ROW} AS {ROW} FROM {log(files)}"
    return f"{empty} UNION ALL BY NAME {read}"


def instants(first_us: int, last_us: int) -> str:
    """Return the condition that the event time lies between two instants, both included."""
    return f"{EVENT} BETWEEN make_timestamptz({first_us}) AND make_timestamptz({last_us})"


def until(until_us: int | None) -> str:
    """Return the condition that a row's times are not after an instant."""
    event, known, _ = LOG_ORDER
    return "true" if until_us is None else has_happened(event, known, until_us)


def thin(view: FeatureView) -> dict[str, ValueType]:
    """Return the columns that tell which row it is."""
    return {**view.join_keys, **{name: LOG_COLUMNS[name] for name in (EVENT, CREATED, SEQUENCE)}}
