"""Whole Arrow columns into records: the rules of `codec` for one value, applied to a batch at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from featurestore.online.records.codec import (
    FORMAT_VERSION,
    encode_payload,
    expire_at_ms,
    kept_us,
    msgpack_array_header,
    to_wire,
)
from featurestore.types.values import INTEGER_RANGES, ValueType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_FLOATS = {"Float32": (0xCA, ">f4"), "Float64": (0xCB, ">f8")}
"""msgpack's tag and the big-endian number after it."""
_NIL = 0xC0
_PLAIN_SCALE = 6
"""Arrow does not always write decimals of a greater scale plainly: ``1E-7``."""

Fields = list[tuple[str, Any]]
"""numpy's types of the neighbouring parts of each row, each with an array or one value for all rows."""


@dataclass(frozen=True, slots=True)
class TimeColumns:
    """The times of a batch, int64 microseconds."""

    event_us: np.ndarray
    created_us: np.ndarray

    def expiries_ms(self, ttl_us: int | None) -> list[int | None]:
        """Return each record's physical expiry (`codec.expire_at_ms`)."""
        newest = int(self.event_us.max())
        latest = expire_at_ms(newest, ttl_us)
        if latest is None:
            return [expire_at_ms(event_us, ttl_us) for event_us in self.event_us.tolist()]
        assert ttl_us is not None
        # The latest expiry is before the year 9999, so every sum fits into 64 bits.
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


def record_bodies(
    times: TimeColumns, schema_id: bytes, features: Sequence[tuple[pa.ChunkedArray | pa.Array, ValueType]]
) -> list[bytes]:
    """Return the records of a batch without their checksums.

    Packs the head and neighbouring floats of all rows at once: twenty floats cost as much as one that goes through
    Python.
    """
    import numpy as np

    fixed = schema_id + msgpack_array_header(len(features))
    sign = np.uint64(1 << 63)
    fields: Fields = [
        ("u1", FORMAT_VERSION),
        (">u8", times.event_us.view(np.uint64) ^ sign),
        (">u8", times.created_us.view(np.uint64) ^ sign),
        (f"V{len(fixed)}", np.void(fixed)),
    ]
    nulls: dict[int, np.ndarray] = {}
    parts: list[Iterable[Any]] = []
    rows = len(times.event_us)
    for column, value_type in features:
        if value_type.name in _FLOATS:
            tag: Any
            tag, form = _FLOATS[value_type.name]
            if column.null_count:
                nulls[len(fields) + 1] = is_null = np.asarray(column.is_null())
                tag = np.where(is_null, np.uint8(_NIL), np.uint8(tag))
            fields += [("u1", tag), (form, np.asarray(column))]
            continue
        if fields:
            parts.append(map(msgspec.Raw, _packed(rows, fields, nulls)))
            fields, nulls = [], {}
        parts.append(_wire_values(column, value_type))
    last = _packed(rows, fields, nulls) if fields else None
    if last is not None:
        if not parts:
            return last
        parts.append(map(msgspec.Raw, last))
    # What msgspec writes is one array that begins with our head: cut off the array's own header.
    header = len(msgpack_array_header(len(parts)))
    return [payload[header:] for payload in map(encode_payload, zip(*parts, strict=True))]


def _packed(rows: int, fields: Fields, nulls: Mapping[int, np.ndarray]) -> list[bytes]:
    """Return the bytes of neighbouring fields, for each row.

    ``nulls`` holds, by a field's place, the rows in which the field takes no bytes.
    """
    import numpy as np

    table = np.empty(rows, dtype=[(str(place), form) for place, (form, _) in enumerate(fields)])
    for place, (_, values) in enumerate(fields):
        table[str(place)] = values
    pieces = bytes_of(table)
    if not nulls:
        return pieces
    absent = np.stack(list(nulls.values()), axis=1)
    shorter = np.flatnonzero(absent.any(axis=1))
    present = np.ones((len(shorter), len(fields)), dtype=bool)
    present[:, list(nulls)] = ~absent[shorter]
    kept = np.repeat(present, [table.dtype[place].itemsize for place in range(len(fields))], axis=1)
    left = table[shorter].view(np.uint8).reshape(kept.shape)[kept].tobytes()
    ends = kept.sum(axis=1).cumsum().tolist()
    for row, start, end in zip(shorter.tolist(), [0, *ends], ends, strict=False):
        pieces[row] = left[start:end]
    return pieces


def bytes_of(rows: np.ndarray) -> list[bytes]:
    """Return the bytes of each row of an array."""
    values: list[bytes] = rows.view(f"V{rows.nbytes // len(rows)}").ravel().tolist()
    return values


def _wire_values(column: pa.ChunkedArray | pa.Array, value_type: ValueType) -> list[Any]:
    """Return a column as the list that msgspec encodes."""
    import pyarrow as pa

    if value_type.name == "Timestamp":
        column = column.cast(pa.int64())
    elif value_type.name == "Date":
        column = column.cast(pa.int32())
    elif value_type.scale is not None and value_type.scale <= _PLAIN_SCALE:
        column = column.cast(pa.string())
    elif (convert := to_wire(value_type)) is not None:
        return [None if value is None else convert(value) for value in column.to_pylist()]
    if column.null_count == 0 and (value_type.name in INTEGER_RANGES or value_type.name in ("Timestamp", "Date")):
        values: list[Any] = column.to_numpy().tolist()
        return values
    listed: list[Any] = column.to_pylist()
    return listed
