"""Fingerprints of results: every value in order and its type count, but not how the rows are cut into batches."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


class TableFingerprint:
    """Takes batches of one schema and gives one hash. Nulls differ from every value, NaN from null.

    The hashes of parts cannot be combined: they run over a column's bytes in order, and saved sets store them. For a
    set that is joined part by part one fingerprint takes the parts in order, each as it becomes ready.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns = [_ColumnHash(field.type) for field in schema]

    def update(self, batch: pa.RecordBatch) -> None:
        """Take the next rows."""
        for column, taken in zip(batch.columns, self._columns, strict=True):
            column.validate()
            taken.update(column)

    def hexdigest(self) -> str:
        """Return the hash of names, types and all rows so far."""
        whole = blake2b(digest_size=32)
        for field, column in zip(self._schema, self._columns, strict=True):
            whole.update(f"{len(field.name)}:{field.name}:{field.type}:".encode())
            whole.update(column.digest())
        return whole.hexdigest()


def fingerprint(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """Return the hash of all rows of ``batches``."""
    taken = TableFingerprint(schema)
    for batch in batches:
        taken.update(batch)
    return taken.hexdigest()


class _ColumnHash:
    """One hash for which values are null and one for the values; lists and texts add one for their lengths."""

    def __init__(self, kind: pa.DataType) -> None:
        import pyarrow as pa

        self._kind = kind
        self._parts = {name: blake2b(digest_size=32) for name in ("valid", "values", "lengths")}
        self._items = _ColumnHash(kind.value_type) if pa.types.is_list(kind) else None

    def update(self, column: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._parts["valid"].update(_bytes_of(column.is_valid()))
        if self._items is not None:
            self._parts["lengths"].update(_bytes_of(pc.fill_null(pc.list_value_length(column), 0)))
            self._items.update(pc.list_flatten(column))
        elif pa.types.is_string(self._kind) or pa.types.is_binary(self._kind):
            self._parts["lengths"].update(_bytes_of(pc.fill_null(pc.binary_length(column), 0)))
            self._parts["values"].update(_text_bytes(column))
        elif pa.types.is_decimal(self._kind):
            self._parts["values"].update("".join(f"{value}|" for value in column.to_pylist()).encode())
        else:
            self._parts["values"].update(_bytes_of(_filled(column)))

    def digest(self) -> bytes:
        parts = b"".join(part.digest() for part in self._parts.values())
        return parts if self._items is None else parts + self._items.digest()


def _filled(column: pa.Array) -> pa.Array:
    """Return a column of numbers, bools, instants or dates as numbers or bools, 0 or false where it is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    return pc.fill_null(column, pa.scalar(0).cast(column.type)) if column.null_count else column


def _bytes_of(column: pa.Array) -> Any:
    import numpy as np

    return np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).view(np.uint8).data


def _text_bytes(column: pa.Array) -> Any:
    """Return the bytes of all texts one after the other; nulls have none."""
    import pyarrow.compute as pc

    column = pc.drop_null(column) if column.null_count else column
    _, offsets, values = column.buffers()
    if values is None or not len(column):
        return b""
    import numpy as np

    bounds = np.frombuffer(offsets, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    return memoryview(values)[int(bounds[0]) : int(bounds[-1])]
