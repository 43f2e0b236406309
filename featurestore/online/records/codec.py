"""Records: the bytes of one entity's features in one view, as `docs/reference/wire-format.md` says.

======  =====  ==============================================================================
offset  bytes  what
======  =====  ==============================================================================
0       1      format version, 1
1       8      event_ts, UTC microseconds, big-endian, sign bit flipped: compares as bytes
9       8      created_ts, likewise; event_ts where it is null
17      8      schema id: the first 8 bytes of BLAKE2b-256 of the schema document
25      n      msgpack array of the values, in the order of the schema document
25 + n  4      CRC-32 (zlib) of the key followed by all bytes before this field, big-endian
======  =====  ==============================================================================
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal as PythonDecimal
from hashlib import blake2b
from itertools import accumulate
from typing import Any, TypeVar
from zlib import crc32

import msgspec

from featurestore.errors import DamagedRecordError
from featurestore.types.times import MAX_INSTANT, date_to_days, days_to_date, to_datetime, to_instant
from featurestore.types.values import ValueType, parse_type

FORMAT_VERSION = 1
HEADER_BYTES = 25
CRC_BYTES = 4
SMALLEST_RECORD_BYTES = HEADER_BYTES + 1 + CRC_BYTES
REPUBLISH = "Rebuild it with `fs materialize --republish --authoritative`."

_HEADER = struct.Struct(">BQQ8s")
_SIGN = 1 << 63
_DAY_US = 86_400_000_000
encode_payload = msgspec.msgpack.Encoder().encode

MOST_VALUES_AT_ONCE = 10_000
"""At most so many values in one call to decode or encode: it takes milliseconds in which no other thread runs."""

Converter = Callable[[Any], Any]
Item = TypeVar("Item")


def time_bytes(instant_us: int) -> bytes:
    """Return an instant as the 8 bytes that sort like it."""
    return (instant_us + _SIGN).to_bytes(8)


def record_head(event_us: int, created_us: int, schema: bytes) -> bytes:
    """Return the bytes of a record before its values."""
    return _HEADER.pack(FORMAT_VERSION, event_us + _SIGN, created_us + _SIGN, schema)


def record_times(record: bytes) -> tuple[int, int]:
    """Return (event_us, created_us) of a record."""
    _, event, created, _ = _HEADER.unpack_from(record)
    return event - _SIGN, created - _SIGN


def record_version(record: bytes) -> bytes:
    """Return the version of a record, which is opaque to a store: the greater bytes are the newer record of a key."""
    return record[1:17]


def version_of(event_us: int, created_us: int) -> bytes:
    """Return the version of the record of a row."""
    return time_bytes(event_us) + time_bytes(created_us)


def is_record(value: bytes) -> bool:
    """Tell whether a value looks like a record of this format version."""
    return len(value) >= SMALLEST_RECORD_BYTES and value[0] == FORMAT_VERSION


def is_intact(key: bytes, record: bytes) -> bool:
    """Tell whether a record's checksum is that of its key and bytes."""
    return is_record(record) and crc32(record[:-CRC_BYTES], crc32(key)) == int.from_bytes(record[-CRC_BYTES:])


def damaged(key: bytes, why: str) -> DamagedRecordError:
    """Return the error that names a damaged record and the command that rebuilds it."""
    return DamagedRecordError(f"the online record {key!r} {why}.", hint=REPUBLISH, key=repr(key))


def foreign(key: bytes) -> DamagedRecordError:
    """Return the error about a key that holds something else, which a publish leaves alone."""
    hint = f"{REPUBLISH} A key that it leaves alone holds something else: delete it first."
    return DamagedRecordError(
        f"the online record {key!r} is not a record of this format version.", hint=hint, key=repr(key)
    )


def kept_us(ttl_us: int) -> int:
    """Return how long a record is kept after its event: the ttl, and the greater of ttl and one day as grace."""
    return ttl_us + max(ttl_us, _DAY_US)


def expire_at_ms(event_us: int, ttl_us: int | None) -> int | None:
    """Return the instant of physical expiry in UTC milliseconds, rounded up, or None for never.

    An instant beyond the year 9999 is never.
    """
    if ttl_us is None:
        return None
    expiry_us = event_us + kept_us(ttl_us)
    return None if expiry_us > MAX_INSTANT else -(-expiry_us // 1000)


def schema_document(features: Sequence[tuple[str, ValueType]]) -> bytes:
    """Return the canonical JSON ``[[feature, type], …]`` in stored order: no blanks, UTF-8."""
    pairs = [[name, str(value_type)] for name, value_type in features]
    return json.dumps(pairs, separators=(",", ":"), ensure_ascii=False).encode()


def schema_id(document: bytes) -> bytes:
    """Return the first 8 bytes of BLAKE2b-256 of a schema document."""
    return blake2b(document, digest_size=32).digest()[:8]


def read_schema(document: bytes) -> tuple[tuple[str, ValueType], ...]:
    """Return the features of a schema document. Raises DefinitionError for an unknown type."""
    return tuple((name, parse_type(text)) for name, text in json.loads(document))


def to_wire(value_type: ValueType) -> Converter | None:
    """Return the function from a canonical Python value to its msgpack form, or None if they are the same."""
    return _converter(value_type, _TO_WIRE)


def from_wire(value_type: ValueType) -> Converter | None:
    """Return the function from a decoded msgpack value to the canonical one, or None if they are the same."""
    return _converter(value_type, _FROM_WIRE)


def _converter(value_type: ValueType, scalars: Mapping[str, Converter]) -> Converter | None:
    if value_type.item is None:
        return scalars.get(value_type.name)
    convert = _converter(value_type.item, scalars)
    return convert and (lambda values: [None if value is None else convert(value) for value in values])


def _float32(value: float) -> msgspec.Raw:
    return msgspec.Raw(b"\xca" + struct.pack(">f", value))  # msgspec by itself would write a float64


_TO_WIRE: dict[str, Converter] = {
    "Float32": _float32,
    "Timestamp": to_instant,
    "Date": date_to_days,
    "Decimal": "{:f}".format,
}
_FROM_WIRE: dict[str, Converter] = {
    "Timestamp": to_datetime,
    "Date": days_to_date,
    "Decimal": PythonDecimal,
}


def msgpack_array_header(length: int) -> bytes:
    """Return the msgpack header of an array of ``length`` items."""
    if length < 16:
        return bytes([0x90 | length])
    if length < 1 << 16:
        return b"\xdc" + length.to_bytes(2)
    return b"\xdd" + length.to_bytes(4)


def parts(records: Sequence[bytes], most_records: int, most_bytes: int) -> Iterator[slice]:
    """Cut records where a call to a store would hold too many of them or too many bytes."""
    sizes = list(accumulate(map(len, records), initial=0))
    start = 0
    while start < len(records):
        fitting = bisect_right(sizes, sizes[start] + most_bytes) - 1
        end = max(start + 1, min(fitting, start + most_records))
        yield slice(start, end)
        start = end


def pieces(rows: Sequence[Item], width: int) -> Sequence[Sequence[Item]]:
    """Cut rows of so many values each where a call would take longer than `MOST_VALUES_AT_ONCE` says."""
    most = max(1, MOST_VALUES_AT_ONCE // (width or 1))
    if len(rows) <= most:
        return (rows,)
    return [rows[start : start + most] for start in range(0, len(rows), most)]
