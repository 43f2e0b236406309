"""Checks columns that were found against declared ones, before any row is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.definitions.base import twins
from featurestore.definitions.sql import stands_in
from featurestore.engine.interface import SourceColumn
from featurestore.errors import SourceSchemaError, did_you_mean
from featurestore.types import Date, Float32, Float64, Int32, Int64, Timestamp, ValueType
from featurestore.types.arrow import fits
from featurestore.types.columns import FILE_NUMBER, FILE_ROW
from featurestore.types.values import duckdb_type

C = TypeVar("C", bound=SourceColumn)

NULL_TYPE = "null"
"""The native type of a column that holds only nulls, as pandas writes an empty one: it fits every type."""
BY_VALUE = {(wanted, found) for wanted in (Int32, Int64) for found in (Float32, Float64)} | {(Float64, Int64)}
"""Declared types -> types of file columns whose values may fit them."""
HUGE = ("HUGEINT", "UHUGEINT")
"""The type of sums of integers in DuckDB: here Int64, after a check of each value."""
_NULLS = re.compile(r"((?:(?:large_|fixed_size_)?list<\w+: )*)null[>\[\]0-9]*|\"?NULL\"?((?:\[\d*\])*)")
"""Nulls, and lists of them, in the names of Arrow and of DuckDB."""


def null_depth(native_type: str) -> int | None:
    """Return how many lists enclose nulls, 0 for `NULL_TYPE`, None for a type with values.

    Pandas writes a column of empty lists as ``list<null>``: it fits every list.
    """
    match = _NULLS.fullmatch(native_type)
    return None if match is None else (match[1] or "").count("list<") + (match[2] or "").count("[")


def list_depth(value_type: ValueType | None) -> int:
    """Return how many lists enclose a type."""
    return 0 if value_type is None or value_type.item is None else 1 + list_depth(value_type.item)


def serves(column: SourceColumn, wanted: ValueType | None, *, by_value: bool = False) -> bool:
    """Tell whether a column converts to a type without loss; None stands for the type of an instant.

    ``by_value``: whole floats count as integers, because pandas turns integers with nulls into floats, and integers
    as floats; `convert.converted` checks each value.
    """
    if by_value and (wanted, column.value_type) in BY_VALUE:
        return True
    depth = null_depth(column.native_type)
    if depth is not None:
        return depth <= list_depth(wanted)
    return column.value_type in (Timestamp, Date) if wanted is None else fits(wanted, column.value_type)


def find_column(columns: Iterable[C], name: str) -> C | None:
    """Return the column of that name, compared without case, or None."""
    return next((column for column in columns if column.name.lower() == name.lower()), None)


def check_columns(view: FeatureView, columns: Sequence[SourceColumn]) -> None:
    """Check what a view reads (`Sources.columns`) against what it declares.

    Every join key, both time columns and every feature must exist, with a type that converts to the declared one
    without loss. Raises SourceSchemaError; its message has a line for each problem.
    """
    problems = twins(column.name for column in columns)
    if view.sql is None:  # row numbers are not needed for the output of SQL
        problems += [
            f"column {column.name!r} has a name by which the engine finds rows: rename it, or leave it out with sql="
            for column in columns
            if column.name.lower() in (FILE_NUMBER, FILE_ROW)
        ]
    for role, name, kind in declared(view):
        column = find_column(columns, name)
        if column is None:
            like = did_you_mean(name, [column.name for column in columns])
            problems.append(f"{role} {name!r} is missing. {like}".rstrip())
        elif not serves(column, kind, by_value=_by_value(view, kind)):
            problems.append(f"{role} {name!r} {_misfit(column, kind)}")
    if problems:
        read = "the output of its SQL" if view.sql is not None else f"source {view.batch_sources[0].name!r}"
        raise SourceSchemaError(
            f"Feature view {view.name!r} does not fit {read}:" + "".join(f"\n  - {problem}" for problem in problems),
            hint=_huge_hint(view, columns) or "Correct the definition, or the data; sql= can rename and cast.",
            view=view.name,
            problems=problems,
        )


def declared(view: FeatureView) -> list[tuple[str, str, ValueType | None]]:
    """Return role, name and type of each column that a view declares; the type of its times is None."""
    columns: list[tuple[str, str, ValueType | None]] = [("join key", *key) for key in view.join_keys.items()]
    columns.append(("event time", view.timestamp_field, None))
    if view.created_timestamp_field is not None:
        columns.append(("created time", view.created_timestamp_field, None))
    return [*columns, *(("feature", field.name, field.type) for field in view.fields or ())]


def _misfit(column: SourceColumn, kind: ValueType | None) -> str:
    if kind is None:
        return f"must be a timestamp or a date, found {column.native_type}"
    found = "" if column.value_type is None else f" ({column.value_type})"
    return f"is declared {kind}, found {column.native_type}{found}"


def _by_value(view: FeatureView, declared: ValueType | None) -> bool:
    """Tell whether values decide if a column fits: for SQL only if it returns integers and floats are declared.

    The column that SQL reads may hold floats one day and integers the next; a float that SQL computes is no integer.
    """
    return view.sql is None or declared == Float64


def _huge_hint(view: FeatureView, columns: Sequence[SourceColumn]) -> str:
    """Return how to cast DuckDB's sums of integers to the declared types, where values do not decide."""
    casts = [
        f'CAST("{column.name}" AS {duckdb_type(kind)})'
        for _, name, kind in declared(view)
        if kind is not None
        and (column := find_column(columns, name)) is not None
        and column.native_type.rstrip("[]") in HUGE
        and not serves(column, kind, by_value=_by_value(view, kind))
    ]
    return f"Sums of integers are HUGEINT in DuckDB: write {' and '.join(casts)} in the SQL." if casts else ""


def check_files(view: FeatureView, source: ParquetSource, files: Mapping[str, Sequence[SourceColumn]]) -> None:
    """Raise SourceSchemaError for a file, by path, that lacks a join key or a time column which others have.

    SQL may give a value for a missing one, by ``coalesce`` or ``CASE``; otherwise such rows would be dropped, or count
    as known when they happened.
    """
    times = [source.timestamp_field, *filter(None, [source.created_timestamp_field])]
    problems = []
    for name, role in {**dict.fromkeys(view.join_keys, "join key"), **dict.fromkeys(times, "time column")}.items():
        without = [path for path, columns in files.items() if find_column(columns, name) is None]
        is_handled = view.sql is not None and stands_in(view.sql, name)
        if len(without) < len(files) and not is_handled:
            problems += [f"{path} has no {role} {name!r}" for path in without]
    if problems:
        raise SourceSchemaError(
            f"Feature view {view.name!r} cannot read every file of source {source.name!r}:"
            + "".join(f"\n  - {problem}" for problem in problems[:20]),
            hint="Write these files again with the column, or take them out of the source.",
            view=view.name,
            problems=problems,
        )
