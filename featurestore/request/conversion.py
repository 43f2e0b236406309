"""Arrow columns as Python values and as pandas columns, without changing a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError
from featurestore.tables import as_arrow
from featurestore.types.times import to_datetimes
from featurestore.types.values import ValueType, coerce

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def canonical_values(column: pa.Array | pa.ChunkedArray, value_type: ValueType) -> list[Any]:
    """Return a column of the declared type as canonical Python values (see `types.values.coerce`)."""
    import pyarrow as pa

    if value_type.name == "Timestamp":
        return to_datetimes(column.cast(pa.int64()).to_pylist())
    values: list[Any] = column.to_pylist()
    if value_type.item is not None:
        return [coerce(value_type, value) for value in values]
    return values


def to_series(column: pa.ChunkedArray | pa.Array, index: pd.Index | None = None) -> pd.Series:
    """Return a column as numpy would hold it where nothing is null, and as a nullable pandas dtype otherwise.

    NaN stays NaN and null stays null; lists, dates, decimals and bytes are Python objects.
    """
    import pandas as pd

    if column.null_count:
        return to_nullable_series(column, index)
    return pd.Series(_plain(column), index=index)


def to_nullable_series(column: pa.ChunkedArray | pa.Array, index: pd.Index | None = None) -> pd.Series:
    """Return a column in pandas' nullable dtype (Int64, Float64, boolean, string), others as `to_series`."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    is_a = pa.types
    if is_a.is_string(kind) or is_a.is_large_string(kind):
        return pd.Series(column.to_pandas().astype("string").array, index=index)
    if not (is_a.is_integer(kind) or is_a.is_boolean(kind) or kind in (pa.float32(), pa.float64())):
        return pd.Series(_plain(column), index=index)
    mask = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    # The arrays' own constructors keep NaN apart from null; everything else in pandas turns one into the other.
    if is_a.is_boolean(kind):
        values = np.array(pc.fill_null(column, False).to_numpy(zero_copy_only=False), dtype=bool)
        return pd.Series(pd.arrays.BooleanArray(values, mask), index=index)
    values = np.array(pc.fill_null(column, pa.scalar(0, kind)).to_numpy(zero_copy_only=False))
    array = pd.arrays.IntegerArray if is_a.is_integer(kind) else pd.arrays.FloatingArray
    return pd.Series(array(values, mask), index=index)


def _plain(column: pa.ChunkedArray | pa.Array) -> Any:
    """Return the values for a Series, unchanged."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_nested(column.type) and not pa.types.is_dictionary(column.type):
        # pyarrow would turn integers with nulls among them into floats.
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return values
    return column.to_pandas(date_as_object=True, integer_object_nulls=True).array


def to_frame(table: pa.Table, index: pd.Index | None = None) -> pd.DataFrame:
    """Return a table as a frame, column by column as `to_series`."""
    import pandas as pd

    columns = [to_series(column, index) for column in table.columns]
    index = pd.RangeIndex(table.num_rows) if index is None else index
    frame = pd.DataFrame(dict(enumerate(columns)), index=index, copy=False)
    frame.columns = pd.Index(table.column_names)
    return frame


def inferred_column(values: list[Any], *, name: str) -> pa.Array:
    """Return values in the type that Arrow infers, NaN among other types as null; raises InputError with the column."""
    try:
        return as_arrow(values)
    except ValueError as error:
        raise InputError(
            f"Your own column {name!r} mixes types: {error}.", hint="Leave it out, or use to_dict()."
        ) from None
