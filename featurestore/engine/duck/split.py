"""Rows that fail a rule of single rows, or are known already, taken out of files of a view's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureView
from featurestore.engine.checks import FAILED, ROW_ID, SplitRows
from featurestore.engine.duck.identity import LOG_ORDER
from featurestore.engine.duck.offline_sql import log, log_columns, read_log, read_whole_log
from featurestore.engine.duck.session import quote, text
from featurestore.engine.duck.staging import write_parquet
from featurestore.types import ValueType
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_HASH, _PLACE, _FAILS = "fs_hash", "fs_place", "fs_fails"
_HASH_DIGITS = 32


def split_rows(
    connection: duckdb.DuckDBPyConnection,
    view: FeatureView,
    files: Sequence[str],
    failing: Mapping[str, str],
    known: pa.Table,
    folder: Path,
) -> SplitRows:
    """Split as `Checks.split`; ``failing`` are the conditions in SQL that a row fails, by the rule in words.

    Makes the table ``taken``: the number of each row that goes, its id, and whether it fails.
    """
    connection.register("known_rows", known)
    _take(connection, view, files, list(failing.values()))
    ((known_rows, failed),) = connection.execute(
        f"SELECT count(*) FILTER (NOT {_FAILS}), count(*) FILTER ({_FAILS}) FROM taken"
    ).fetchall()
    if not known_rows and not failed:
        ((count,),) = connection.execute(f"SELECT count(*) FROM {log(files)}").fetchall()
        return SplitRows(tuple(map(Path, files)), int(count), 0, 0, None)
    order = ", ".join(LOG_ORDER)
    rest = f"FROM ({read_whole_log(view, files)}) ANTI JOIN taken USING ({SEQUENCE})"
    ((left,),) = connection.execute(f"SELECT count(*) {rest}").fetchall()
    kept = (write_parquet(connection, f"SELECT * {rest} ORDER BY {order}", folder),) if left else ()
    aside = None
    try:
        if failed:
            told = ", ".join(f"CASE WHEN {fails} THEN {text(rule)} END" for rule, fails in failing.items())
            columns = [name for name in log_columns(view) if name not in (SEQUENCE, ORIGIN)]
            shown = ", ".join(map(quote, columns))
            query = (
                f"SELECT {ROW_ID}, list_filter([{told}], lambda told: told IS NOT NULL) AS {FAILED}, {shown} "
                f"FROM ({read_log(log_columns(view), files)}) JOIN taken USING ({SEQUENCE}) WHERE {_FAILS} "
                f"ORDER BY {order}"
            )
            aside = write_parquet(connection, query, folder)
    except BaseException:
        for path in kept:
            path.unlink(missing_ok=True)
        raise
    return SplitRows(kept, int(left), int(known_rows), int(failed), aside)


def _take(connection: duckdb.DuckDBPyConnection, view: FeatureView, files: Sequence[str], failing: list[str]) -> None:
    """Make the table ``taken``. Equal rows, which are events of their own, are told apart by their number."""
    fails = f"({' OR '.join(failing)})" if failing else "false"
    rows = (
        f"SELECT *, left(sha256({_content(view)}), {_HASH_DIGITS}) AS {_HASH}, {fails} AS {_FAILS} "
        f"FROM ({read_log(log_columns(view), files)}) "
        f"WHERE {fails} OR {EVENT} IN (SELECT {EVENT} FROM known_rows)"
    )
    numbered = f"SELECT *, row_number() OVER (PARTITION BY {_HASH} ORDER BY {SEQUENCE}) AS {_PLACE} FROM ({rows})"
    known_hash = f"split_part({ROW_ID}, '-', 1)"
    times = f"SELECT {known_hash} AS {_HASH}, count(DISTINCT {ROW_ID}) AS times FROM known_rows GROUP BY ALL"
    connection.execute(
        f"CREATE TEMP TABLE taken AS SELECT {SEQUENCE}, {_HASH} || CASE WHEN {_PLACE} > 1 THEN '-' || {_PLACE} "
        f"ELSE '' END AS {ROW_ID}, {_PLACE} > coalesce(times, 0) AS {_FAILS} "
        f"FROM ({numbered}) LEFT JOIN ({times}) USING ({_HASH}) WHERE {_PLACE} <= coalesce(times, 0) OR {_FAILS}"
    )


def _content(view: FeatureView) -> str:
    """Return the text, in SQL, of which a row's id is the hash: see `Checks.split`."""
    types = log_columns(view)
    parts = [_named(name, types[name]) for name in [*view.join_keys, EVENT, CREATED]]
    parts += [_named(field.name, field.type) for field in sorted(view.stored, key=lambda field: field.name)]
    return f"concat({', '.join(parts)})"


def _named(name: str, kind: ValueType) -> str:
    value = _value(quote(name), kind)
    return f"coalesce({text(_counted(name))} || {_counted_sql(value)}, '')"


def _counted(value: str) -> str:
    return f"{len(value.encode())}:{value}"


def _counted_sql(value: str) -> str:
    return f"(strlen({value}) || ':' || {value})"


def _value(column: str, kind: ValueType, depth: int = 0) -> str:
    """Return a value as text that no release of the engine writes otherwise; null for null."""
    if kind.item is not None:
        item = f"item{depth}"
        each = _value(item, kind.item, depth + 1)
        items = f"list_transform({column}, lambda {item}: coalesce({_counted_sql(each)}, '-'))"
        return f"CASE WHEN {column} IS NOT NULL THEN coalesce(array_to_string({items}, ''), '') END"
    if kind.name in ("Float32", "Float64"):
        return f"CASE WHEN isnan({column}) THEN 'nan' ELSE printf('%.16e', {column}::DOUBLE) END"
    if kind.name == "Timestamp":
        return f"epoch_us({column})::VARCHAR"
    if kind.name == "Date":
        return f"({column} - DATE '1970-01-01')::VARCHAR"
    if kind.name == "Bytes":
        return f"lower(hex({column}))"
    if kind.scale:
        return f"rtrim(rtrim({column}::VARCHAR, '0'), '.')"
    return f"{column}::VARCHAR"
