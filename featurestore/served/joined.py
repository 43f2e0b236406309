"""Rows of several files and revisions in one table: types that widen, and those that do not go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from featurestore.errors import InputError
from featurestore.served.files import Kind
from featurestore.types.times import to_rfc3339

if TYPE_CHECKING:
    import pyarrow as pa


def joined(kind: Kind, tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the rows of tables of several revisions in one: columns of ``schema`` first, then others.

    A column that some lack is null there; numbers widen where all of them stay what they are, and a column of nulls
    takes any type. Where all rows have another type than the schema's they keep it. Raises InputError for rows of types
    that do not go together.
    """
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {}
    for table in tables:
        for field in table.schema:
            before = kinds.get(field.name, field.type)
            wider = together(before, field.type, tables, field.name)
            if wider is None:
                raise _apart(kind, tables, field.name, before, field.type)
            kinds[field.name] = wider
    for field in schema:
        own = kinds.get(field.name, field.type)
        kinds[field.name] = together(own, field.type, tables, field.name) or own
    first = [field.name for field in schema]
    target = pa.schema([(name, kinds[name]) for name in (*first, *(name for name in kinds if name not in first))])
    cast = [
        pa.table({name: table.column(name).cast(kinds[name]) for name in table.column_names}) for table in tables
    ]  # what a table lacks is null, which is Arrow's to make: in Python many columns of many tables would take long
    return pa.concat_tables([target.empty_table(), *cast], promote_options="default")


def without_others(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in which columns of types that do not go together with a schema's are null."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        at = schema.get_field_index(field.name)
        if at >= 0 and together(schema.field(at).type, field.type, [table], field.name) is None:
            table = table.set_column(place, field.name, pa.nulls(table.num_rows))
    return table


def together(one: pa.DataType, other: pa.DataType, tables: Sequence[pa.Table], name: str) -> pa.DataType | None:
    """Return the type that holds the values of two, None where none does; a column of ``tables`` has these values."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    pairs = (pa.int32(), pa.int64()), (pa.float32(), pa.float64()), (pa.int32(), pa.float64())
    if wide := next((wide for narrow, wide in pairs if {one, other} == {narrow, wide}), None):
        return wide
    is_exact = {one, other} == {pa.int64(), pa.float64()} and all(_are_exact(table, name) for table in tables)
    return pa.float64() if is_exact else None


def _are_exact(table: pa.Table, name: str) -> bool:
    """Tell whether float64 holds every value of a column of integers."""
    import pyarrow as pa

    try:
        table.column(name).cast(pa.float64())
    except (KeyError, pa.ArrowInvalid):
        return name not in table.column_names
    return True


def _apart(kind: Kind, tables: Sequence[pa.Table], name: str, one: pa.DataType, other: pa.DataType) -> InputError:
    """Return the error for rows of two types: where the one ends and the other begins."""
    import pyarrow.compute as pc

    def instants(of: pa.DataType, pick: str) -> int:
        those = [each for each in tables if each.num_rows and _type(each, name) == of]
        found = [pc.min_max(each.column(kind.at).cast("int64")).as_py()[pick] for each in those]
        return int(max(found, default=0) if pick == "max" else min(found, default=0))

    (early, late) = (one, other) if instants(one, "min") <= instants(other, "min") else (other, one)
    until_us, since_us = instants(early, "max"), instants(late, "min")
    until, since = to_rfc3339(until_us), to_rfc3339(since_us)
    if until_us < since_us:
        told, hint = f"until {until} and {late} from {since} on", f"rows before {since}, and from then on"
    else:  # servers of two revisions answered at the same time
        told, hint = f"until {until} and {late} already from {since} on", f"rows before {since}, and after {until}"
    return InputError(
        f"{name!r} of the {kind.words} is {early} {told}.",
        hint=f"Read {hint}, apart: by start and end, or --since and --until.",
        column=name,
    )


def _type(table: pa.Table, name: str) -> pa.DataType | None:
    return table.schema.field(name).type if name in table.column_names else None
