"""Whole Arrow columns on their way into records: what `codec` says of one value, for a batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.online.codec import expire_at_ms, kept_us, to_wire
from featurestore.types.values import INTEGER_RANGES, ValueType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_FLOATS = {"Float32": (0xCA, ">f4"), "Float64": (0xCB, ">f8")}
"""msgpack's tag and the big-endian number behind it."""


@dataclass(frozen=True, slots=True)
class TimeColumns:
    """The times of a batch, int64 microseconds."""

    event_us: np.ndarray
    created_us: np.ndarray

    def heads(self, version: int, schema_id: bytes, payload_header: bytes) -> list[bytes]:
        """Return each record's bytes up to its first value."""
        import numpy as np

        fixed = schema_id + payload_header
        layout = [("version", "u1"), ("event", ">u8"), ("created", ">u8"), ("fixed", f"V{len(fixed)}")]
        heads = np.empty(len(self.event_us), dtype=layout)
        sign = np.uint64(1 << 63)
        heads["version"] = version
        heads["event"] = self.event_us.view(np.uint64) ^ sign
        heads["created"] = self.created_us.view(np.uint64) ^ sign
        heads["fixed"] = np.void(fixed)
        return _bytes_of(heads)

    def checksum_bytes(self, checksums: list[int]) -> list[bytes]:
        """Return CRC-32 values as 4 big-endian bytes each."""
        import numpy as np

        return _bytes_of(np.array(checksums, dtype=">u4"))

    def expiries_ms(self, ttl_us: int | None) -> list[int | None]:
        """Return each record's physical expiry (`codec.expire_at_ms`)."""
        newest = int(self.event_us.max())
        latest = expire_at_ms(newest, ttl_us)
        if latest is None:
            return [expire_at_ms(event_us, ttl_us) for event_us in self.event_us.tolist()]
        assert ttl_us is not None
        # The latest expiry is within the calendar, so every sum fits into 64 bits.
        expiries: list[int | None] = (-(-(self.event_us + kept_us(ttl_us)) // 1000)).tolist()
        return expiries


def time_columns(event: pa.ChunkedArray | pa.Array, created: pa.ChunkedArray | pa.Array | None) -> TimeColumns:
    """Return the instants of a batch; a null created_ts becomes the event_ts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from featurestore.types.times import instants_from_arrow

    event_us = instants_from_arrow(event, "ceil").cast(pa.int64())
    if created is None:
        created_us = event_us
    else:
        created_us = pc.coalesce(instants_from_arrow(created, "ceil").cast(pa.int64()), event_us)
    return TimeColumns(event_us.to_numpy(), created_us.to_numpy())


@dataclass(frozen=True, slots=True)
class Part:
    """One or several neighbouring features of a batch, a value per row."""

    values: Sequence[Any]
    is_chunk: bool
    """The values are ready msgpack bytes, of one or several features."""


def float_chunks(features: Sequence[tuple[pa.ChunkedArray | pa.Array, ValueType]]) -> list[Part]:
    """Return a batch's features in order; neighbouring floats without nulls are packed as one chunk per row.

    Packing twenty floats at once costs what one float costs on its own way through Python.
    """
    parts: list[Part] = []
    waiting: list[tuple[pa.ChunkedArray | pa.Array, ValueType]] = []
    for column, value_type in features:
        if value_type.name in _FLOATS and column.null_count == 0:
            waiting.append((column, value_type))
            continue
        parts += _packed(waiting)
        waiting = []
        parts.append(Part(_wire_values(column, value_type), is_chunk=False))
    return parts + _packed(waiting)


def _packed(features: Sequence[tuple[pa.ChunkedArray | pa.Array, ValueType]]) -> list[Part]:
    if not features:
        return []
    import numpy as np

    layout: list[tuple[str, str]] = []
    for position, (_, value_type) in enumerate(features):
        layout += [(f"tag{position}", "u1"), (f"value{position}", _FLOATS[value_type.name][1])]
    rows = np.empty(len(features[0][0]), dtype=layout)
    for position, (column, value_type) in enumerate(features):
        rows[f"tag{position}"] = _FLOATS[value_type.name][0]
        rows[f"value{position}"] = column.to_numpy()
    return [Part(_bytes_of(rows), is_chunk=True)]


def _bytes_of(rows: np.ndarray) -> list[bytes]:
    values: list[bytes] = rows.view(f"V{rows.dtype.itemsize}").tolist()
    return values


def _wire_values(column: pa.ChunkedArray | pa.Array, value_type: ValueType) -> list[Any]:
    """Return a column as the list that msgspec encodes."""
    import pyarrow as pa

    if value_type.name == "Timestamp":
        column = column.cast(pa.int64())
    elif value_type.name == "Date":
        column = column.cast(pa.int32())
    elif (convert := to_wire(value_type)) is not None:
        return [None if value is None else convert(value) for value in column.to_pylist()]
    if column.null_count == 0 and (value_type.name in INTEGER_RANGES or value_type.name in ("Timestamp", "Date")):
        values: list[Any] = column.to_numpy().tolist()
        return values
    listed: list[Any] = column.to_pylist()
    return listed
