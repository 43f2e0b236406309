"""SQL expressions that bring a column to a declared type, losing nothing, and instants to whole microseconds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from featurestore.engine.duck.session import USER_ERROR, quote, text
from featurestore.engine.interface import SourceColumn
from featurestore.engine.schema import BY_VALUE, HUGE, NULL_TYPE, null_depth
from featurestore.tables import WHOLE_FLOAT_LIMITS, float_bits
from featurestore.types import Date, Int32, Int64, Timestamp, ValueType
from featurestore.types.arrow import value_type_of
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

Rounding = Literal["floor", "ceil"]
_WITHOUT_VALUE_TYPE = (*HUGE, "BIGNUM", "VARINT", "BIT")
"""Types that DuckDB exports as Arrow types which cannot hold all of their values."""


@dataclass(frozen=True, slots=True)
class Column(SourceColumn):
    """A column of a relation, with DuckDB's type too."""

    duck_type: str


def describe(connection: duckdb.DuckDBPyConnection, sql: str) -> list[Column]:
    """Return the columns of a SELECT without running it."""
    # Only DESCRIBE gives the SELECT's own names: in a subquery a second `v` is called `v_1`.
    described = [(row[0], row[1]) for row in connection.execute(f"DESCRIBE {sql}").fetchall()]
    schema: pa.Schema = connection.sql(f"SELECT * FROM ({sql}\n) LIMIT 0").to_arrow_table().schema
    columns = []
    for field, (name, duck_type) in zip(schema, described, strict=True):
        known = duck_type.rstrip("[]") not in _WITHOUT_VALUE_TYPE
        native = NULL_TYPE if duck_type.strip('"') == "NULL" else duck_type
        value_type = value_type_of(field.type) if known else Int64 if duck_type in HUGE else None
        columns.append(Column(name, native, value_type, duck_type))
    return columns


def instant_us(column: Column, sql: str, rounding: Rounding) -> str:
    """Return the UTC microseconds of a timestamp or date expression as a BIGINT expression.

    Rounds by integer arithmetic; null stays null. An instant outside the years 1 to 9999 ends the query with a
    SourceError that names the column.
    """
    if column.native_type == NULL_TYPE:
        return "NULL::BIGINT"
    outside = f"error({text(f'{USER_ERROR}column {column.name!r} holds a time outside the years 1 to 9999')})"
    if column.duck_type == "DATE":
        within, instant = f"{sql} BETWEEN DATE '0001-01-01' AND DATE '9999-12-31'", f"epoch_us({sql})"
    elif column.duck_type.endswith("_NS"):
        # Integer division truncates toward zero, so the remainder's sign says which way to move.
        nanoseconds = f"epoch_ns({sql})"
        move = f"({nanoseconds} % 1000 > 0)::BIGINT" if rounding == "ceil" else f"-({nanoseconds} % 1000 < 0)::BIGINT"
        within, instant = f"{nanoseconds} IS NOT NULL", f"({nanoseconds} // 1000 + {move})"
    else:
        instant = f"epoch_us({sql})"
        within = f"{instant} BETWEEN {MIN_INSTANT} AND {MAX_INSTANT}"
    return f"CASE WHEN {sql} IS NULL THEN NULL WHEN {within} THEN {instant} ELSE {outside} END"


def coarse_bounds(column: Column, sql: str, first_us: int, last_us: int) -> str | None:
    """Return a condition in the column's own type that holds whenever its ceiled instant is between two others.

    None for a type without one.
    """
    # Ceiling moves an instant by less than a microsecond, and a date is the start of its day.
    makers = {
        "TIMESTAMP": "make_timestamp({})",
        "TIMESTAMP WITH TIME ZONE": "make_timestamptz({})",
        "DATE": "make_timestamp({})::DATE",
    }
    maker = makers.get(column.duck_type)
    if maker is None:
        return None
    return f"{sql} BETWEEN {maker.format(first_us)} AND {maker.format(last_us)}"


def converted(
    column: Column, sql: str, declared: ValueType, *, rounding: Rounding = "floor", path: str | None = None
) -> str:
    """Return an expression of the declared type; the caller has checked that the column fits it.

    ``path`` is the expression of the file's path, for errors.
    """
    target = duckdb_type(declared)
    if (depth := null_depth(column.native_type)) is not None:
        return _nulls(sql, declared, depth)
    if declared == Timestamp:
        return f"make_timestamptz({instant_us(column, sql, rounding)})"
    if declared == Date:
        outside = f"error({text(f'{USER_ERROR}column {column.name!r} holds a date outside the years 1 to 9999')})"
        within = f"{sql} IS NULL OR {sql} BETWEEN DATE '0001-01-01' AND DATE '9999-12-31'"
        return f"CASE WHEN {within} THEN {sql} ELSE {outside} END"
    if (declared, column.value_type) in BY_VALUE:
        return _by_value(column, sql, declared, path)
    if column.duck_type in HUGE:
        says = f"{text(f'{USER_ERROR}column {column.name!r} holds ')} || {sql}::VARCHAR || ', which is beyond Int64'"
        within = f"{sql} IS NULL OR {sql} BETWEEN {-(2**63)} AND {2**63 - 1}"
        return f"CASE WHEN {within} THEN TRY_CAST({sql} AS BIGINT) ELSE error({says}) END"
    if declared.item is not None and _holds(declared, (Timestamp, Date)):
        item = replace(column, value_type=declared.item, duck_type=column.duck_type.removesuffix("[]"))
        name = quote(f"item{column.duck_type.count('[')}")
        return f"list_transform({sql}, lambda {name}: {converted(item, name, declared.item, rounding=rounding)})"
    return sql if column.duck_type == target else f"CAST({sql} AS {target})"


def _by_value(column: Column, sql: str, declared: ValueType, path: str | None) -> str:
    """Return whole floats as integers, NaN as null, or integers as floats; an ambiguous value ends the query."""
    limit = WHOLE_FLOAT_LIMITS[float_bits(column.native_type)]
    least = -limit + 1
    if declared == Int32 and limit > 2**31:
        limit, least = 2**31, -(2**31)
    says = f", which is not a whole number below 2^{limit.bit_length() - 1}, as {declared} needs here"
    of = "" if path is None else f"' of ' || {path} || "
    fault = f"error({text(f'{USER_ERROR}column {column.name!r}')} || {of}' holds ' || {sql}::VARCHAR || {text(says)})"
    is_float = column.value_type != Int64
    null = f"{sql} IS NULL OR isnan({sql})" if is_float else f"{sql} IS NULL"
    whole = f"{sql} = trunc({sql}) AND " if is_float else ""
    # DuckDB may also cast the values of a CASE's other branches: TRY_CAST does not raise then.
    made = f"{whole}{sql} >= {least} AND {sql} < {limit} THEN TRY_CAST({sql} AS {duckdb_type(declared)})"
    return f"CASE WHEN {null} THEN NULL WHEN {made} ELSE {fault} END"


def _nulls(sql: str, declared: ValueType, depth: int) -> str:
    """Return nulls of a type, and keep the ``depth`` lists around them."""
    if depth == 0 or declared.item is None:
        return f"NULL::{duckdb_type(declared)}"
    name = quote(f"item{depth}")
    return f"list_transform({sql}, lambda {name}: {_nulls(name, declared.item, depth - 1)})"


def _holds(value_type: ValueType, wanted: tuple[ValueType, ...]) -> bool:
    return value_type in wanted or (value_type.item is not None and _holds(value_type.item, wanted))
