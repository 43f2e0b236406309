"""Columns of numbers and booleans as arrays and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError, NotFoundError, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

_KINDS = frozenset({
    "bool", "int8", "int16", "int32", "int64", "uint8", "halffloat", "float", "double"
})  # fmt: skip
"""The Arrow types that numpy, torch and TensorFlow all have; few functions of torch take larger unsigned integers."""


def tensor_arrays(table: pa.Table, columns: Sequence[str], *, copy: bool) -> dict[str, npt.NDArray[Any]]:
    """Return columns as one-dimensional arrays of their own type, null as NaN.

    Without ``copy`` a column that is one piece and has no null shares the table's memory, and must not be written to.
    Raises NotFoundError for an unknown column, InputError for types that are no numbers, and for nulls where there is
    no NaN.
    """
    chosen = [columns] if isinstance(columns, str) else list(columns)
    for name in chosen:
        if name not in table.column_names:
            raise NotFoundError(
                f"The training set has no column {name!r}.", hint=did_you_mean(name, table.column_names), name=name
            )
    others = [
        f"{name} ({table.schema.field(name).type})" for name in chosen if not _fits(table.schema.field(name).type)
    ]
    if others:
        raise InputError(
            f"These columns are no numbers or booleans, so they make no tensor: {', '.join(others)}.",
            hint="Name the others: columns=[...]. Encode texts first, by to_pandas() or to_polars().",
            columns=others,
        )
    return {name: _array(name, table.column(name), copy=copy) for name in chosen}


def _fits(kind: pa.DataType) -> bool:
    return str(kind) in _KINDS


def _array(name: str, column: pa.ChunkedArray, *, copy: bool) -> npt.NDArray[Any]:
    import numpy as np
    import pyarrow.types as is_

    if column.null_count and not is_.is_floating(column.type):
        raise InputError(
            f"Column {name!r} is {column.type} and has {column.null_count:,} nulls: its tensor has no way to say so.",
            hint="Fill them first, by to_pandas() or to_polars(), or leave the column out: columns=[...].",
            column=name,
        )
    found: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)  # of floats, null becomes NaN
    return np.array(found) if copy and not (found.flags.owndata and found.flags.writeable) else found


def to_torch(arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Any]:
    """Return arrays as torch's tensors, which share their memory; raises InputError where torch is not installed."""
    try:
        import torch
    except ImportError as error:
        raise _missing("to_torch()", "torch", error) from None
    return {name: torch.from_dlpack(array) for name, array in arrays.items()}


def to_tensorflow(arrays: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, Any]:
    """Return arrays as TensorFlow's tensors; raises InputError where TensorFlow is not installed."""
    try:
        import tensorflow as tf
    except ImportError as error:
        raise _missing("to_tensorflow()", "tensorflow", error) from None
    return {name: tf.convert_to_tensor(array) for name, array in arrays.items()}


def _missing(what: str, package: str, error: ImportError) -> InputError:
    return InputError(
        f"{what} needs {package}: {error}.", hint=f"Install it (`pip install {package}`), or use to_pandas()."
    )
