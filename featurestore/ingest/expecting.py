"""Comparing pushed rows with what is expected of them, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from featurestore.definitions import Between, FeatureView, Field, Matches, NotNull, OneOf
from featurestore.definitions.expectations import FieldRule
from featurestore.errors import InputError
from featurestore.ingest.rows import CheckedRows
from featurestore.statistics.columns import is_personal
from featurestore.types.arrow import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa


def check_expected(view: FeatureView, rows: CheckedRows) -> list[str]:
    """Return what rows are not like, a sentence for each rule; raises InputError naming row and rule of a view that
    does not take them. Rules of all rows of a run are not for pushes, nor are shares of nulls and what is unique.
    """
    told = []
    for field in view.stored:
        for rule in field.expect:
            failing = _failing(rule, field, rows)
            if failing is None or not len(failing):
                continue
            row = int(failing[0].as_py())
            value = "its value" if is_personal(field) else repr(_value(rows.stored[field.name], row))
            what = f"column {field.name!r}, row {row}: {value} is not as expected by {view.name!r}: {rule}"
            if view.on_failure != "warn":
                raise InputError(
                    f"{what}.",
                    hint="Correct the rows, or change what is expected in the feature repo.",
                    column=field.name,
                    row=row,
                    rule=str(rule),
                )
            rows_are = "1 row is" if len(failing) == 1 else f"{len(failing):,} rows are"
            told.append(f"{rows_are} not as {view.name} expects: {field.name}: {rule}.")
    return told


def _failing(rule: FieldRule, field: Field, rows: CheckedRows) -> pa.Array | None:
    """Return the numbers of the rows that fail a rule, None for a rule of all rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = arrow_type(field.type)
    given = rows.stored[field.name]
    column = pa.array(given, kind) if isinstance(given, list) else given.cast(kind)
    if isinstance(rule, NotNull):
        fails = pc.is_null(column) if rule.max_share == 0 else None
    elif isinstance(rule, Between):
        fails = pc.fill_null(_any(_outside(rule, column, kind)), False)
    elif isinstance(rule, OneOf):
        fails = pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, value_set=pa.array(rule.values, kind))))
    elif isinstance(rule, Matches):
        matches = pc.match_substring_regex(column, rule.whole)
        fails = pc.fill_null(pc.invert(matches), False)
    else:
        fails = None
    return None if fails is None else pc.indices_nonzero(fails)


def _outside(rule: Between, column: pa.Array, kind: pa.DataType) -> Iterator[pa.Array]:
    import pyarrow as pa
    import pyarrow.compute as pc

    if rule.least is not None:
        yield pc.less(column, pa.scalar(rule.least, kind))
    if rule.greatest is not None:
        yield pc.greater(column, pa.scalar(rule.greatest, kind))
    if pa.types.is_floating(kind):
        yield pc.is_nan(column)


def _any(parts: Iterator[pa.Array]) -> pa.Array:
    import pyarrow.compute as pc

    found = next(parts)
    for part in parts:
        found = pc.or_(found, part)
    return found


def _value(column: Any, row: int) -> Any:
    return column[row] if isinstance(column, list) else column[row].as_py()
