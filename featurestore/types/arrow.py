"""Value types and Arrow: the Arrow type of each of our types, and the casts of columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featurestore.errors import ValueTypeError
from featurestore.tables import WHOLE_FLOAT_LIMITS
from featurestore.types.times import instants_from_arrow
from featurestore.types.values import (
    AMBIGUOUS,
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
    is_widening,
)

if TYPE_CHECKING:
    import pyarrow as pa


_NUMPY_NAMES = {"float": "float32", "double": "float64"}
"""The names for hints: Arrow's float is half as wide as numpy's and pandas'."""


def arrow_type(value_type: ValueType) -> pa.DataType:
    """Return the Arrow type that stands for a value type."""
    import pyarrow as pa

    if value_type.item is not None:
        return pa.list_(arrow_type(value_type.item))
    if value_type.precision is not None:
        return pa.decimal128(value_type.precision, value_type.scale)
    return {
        "Int32": pa.int32(),
        "Int64": pa.int64(),
        "Float32": pa.float32(),
        "Float64": pa.float64(),
        "Bool": pa.bool_(),
        "String": pa.string(),
        "Bytes": pa.binary(),
        "Timestamp": pa.timestamp("us", tz="UTC"),
        "Date": pa.date32(),
    }[value_type.name]


def arrow_schema(columns: Mapping[str, ValueType]) -> pa.Schema:
    """Return the schema of columns in their order."""
    import pyarrow as pa

    return pa.schema([(name, arrow_type(value_type)) for name, value_type in columns.items()])


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return a column in one piece."""
    import pyarrow as pa

    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies


def value_type_of(kind: pa.DataType) -> ValueType | None:
    """Return the narrowest value type that holds every value of an Arrow type, or None where there is none.

    Timestamps of every unit and zone are Timestamp; unsigned 64-bit integers, times of day, durations,
    structs and maps have none.
    """
    import pyarrow as pa

    is_a = pa.types
    if is_a.is_dictionary(kind):
        return value_type_of(kind.value_type)
    if is_a.is_list(kind) or is_a.is_large_list(kind) or is_a.is_fixed_size_list(kind):
        item = value_type_of(kind.value_type)
        return None if item is None else Array(item)
    if is_a.is_decimal(kind):
        return Decimal(kind.precision, kind.scale) if kind.precision <= 38 and kind.scale >= 0 else None
    checks = (
        (Int32, lambda: is_a.is_signed_integer(kind) and kind.bit_width <= 32),
        (Int32, lambda: kind in (pa.uint8(), pa.uint16())),
        (Int64, lambda: kind in (pa.int64(), pa.uint32())),
        (Float32, lambda: kind in (pa.float16(), pa.float32())),
        (Float64, lambda: kind == pa.float64()),
        (Bool, lambda: is_a.is_boolean(kind)),
        (String, lambda: is_a.is_string(kind) or is_a.is_large_string(kind) or is_a.is_string_view(kind)),
        (Bytes, lambda: is_a.is_binary(kind) or is_a.is_large_binary(kind) or is_a.is_binary_view(kind)),
        (Bytes, lambda: is_a.is_fixed_size_binary(kind)),
        (Timestamp, lambda: is_a.is_timestamp(kind)),
        (Date, lambda: kind == pa.date32()),
    )
    return next((value_type for value_type, holds in checks if holds()), None)


def fits(declared: ValueType, found: ValueType | None) -> bool:
    """Tell whether a column whose narrowest type is ``found`` may feed a feature declared so.

    The same type, integers and floats into wider ones, and integers of up to 32 bits into Float64 lose
    nothing; everything else is refused.
    """
    if found is None:
        return False
    if declared == found:
        return True
    if declared.item is not None and found.item is not None:
        return fits(declared.item, found.item)
    if declared.precision is not None and found.precision is not None:
        assert declared.scale is not None
        assert found.scale is not None
        whole = declared.precision - declared.scale >= found.precision - found.scale
        return whole and declared.scale >= found.scale
    return is_widening(found, declared) or (found, declared) == (Int32, Float64)


def cast_column(column: pa.ChunkedArray | pa.Array, value_type: ValueType, *, name: str) -> pa.ChunkedArray | pa.Array:
    """Return a caller's column as the Arrow type of ``value_type``, losing nothing.

    Accepts what `fits` accepts, a column of nulls (or of lists of them) of any type, a narrower integer, integers in
    the range in which floats hold every one, and whole floats for integers (pandas turns integers with nulls into
    floats; NaN is then a null) below the limit of their bits (`WHOLE_FLOAT_LIMITS`). Timestamps are floored. Raises
    ValueTypeError naming the column and, if a single value is wrong, the value.
    """
    import pyarrow as pa

    target = arrow_type(value_type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if kind == target:
        return column
    if column.null_count == len(column):
        return pa.nulls(len(column), target)
    if value_type == Timestamp and pa.types.is_timestamp(kind):
        return instants_from_arrow(column, "floor")
    try:
        if pa.types.is_floating(kind) and value_type in (Int32, Int64):
            return _whole(column).cast(target)
        is_number = pa.types.is_integer(kind) and value_type in (Int32, Int64, Float32, Float64)
        if is_number or fits(value_type, value_type_of(kind)) or _is_list_of_nulls(kind, value_type):
            return column.cast(target)
    except pa.ArrowInvalid as error:
        raise ValueTypeError(
            f"column {name!r} of type {kind} holds a value that is not a {value_type}: {_first_line(error)}.",
            column=name,
        ) from None
    raise ValueTypeError(
        f"column {name!r} is of type {kind}, but {value_type} is declared.",
        hint=f"Cast it to {_NUMPY_NAMES.get(str(target), target)} first.",
        column=name,
    )


def _is_list_of_nulls(kind: pa.DataType, value_type: ValueType) -> bool:
    """Tell whether Arrow infers this type from empty lists only, nested no deeper than the declared type."""
    import pyarrow as pa

    while value_type.item is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind, value_type = kind.value_type, value_type.item
        if pa.types.is_null(kind):
            return True
    return False


def _whole(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Return floats as integers, NaN as null. Raises ArrowInvalid with the first value that is no certain integer."""
    import pyarrow as pa
    import pyarrow.compute as pc

    limit = float(WHOLE_FLOAT_LIMITS[column.type.bit_width])
    column = column.cast(pa.float64())  # Arrow has few functions for 16 bits
    column = pc.if_else(pc.is_nan(column), None, column)
    wrong = pc.or_(pc.greater_equal(pc.abs(column), limit), pc.not_equal(pc.floor(column), column))
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        value = column[row].as_py()
        reason = AMBIGUOUS if value.is_integer() else "it is not whole"
        raise pa.ArrowInvalid(f"{value!r} in row {row}, {reason}")
    return column.cast(pa.int64())


def column_from_values(values: list[Any], value_type: ValueType) -> pa.Array:
    """Return canonical Python values (see `coerce`) as an Arrow array of the type."""
    import pyarrow as pa

    return pa.array(values, type=arrow_type(value_type))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
