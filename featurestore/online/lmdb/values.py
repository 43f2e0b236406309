"""Values as they lie in the LMDB file: an envelope with the instant of expiry around each record or plain value."""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from zlib import crc32

from featurestore.online.records.arrow import bytes_of
from featurestore.online.records.codec import CRC_BYTES, damaged
from featurestore.online.records.whole import is_intact
from featurestore.online.records.windowed import is_windowed

_ENVELOPE = struct.Struct(">QQ")
ENVELOPE_BYTES = 16
SIGN = 1 << 63
_ONES = (1 << 64) - 1
RECORD = operator.itemgetter(slice(ENVELOPE_BYTES, None))
_CHECKED = operator.itemgetter(slice(ENVELOPE_BYTES, -CRC_BYTES))
_CHECKSUM = operator.itemgetter(slice(-CRC_BYTES, None))
VERSION = operator.itemgetter(slice(ENVELOPE_BYTES, ENVELOPE_BYTES + 17))
NEVER = _ENVELOPE.pack(_ONES, 0)
PLAIN = _ENVELOPE.pack(_ONES - 1, 1)
IS_PLAIN = operator.methodcaller("startswith", PLAIN)


def stored_instant(instant_ms: int) -> bytes:
    """Return an instant as it is stored."""
    return (instant_ms + SIGN).to_bytes(8)


def envelopes(expiries_ms: Sequence[int | None]) -> list[bytes]:
    """Return the envelope of each record."""
    import numpy as np

    never_ms = _ONES - SIGN
    instants = np.array([never_ms if expiry_ms is None else expiry_ms for expiry_ms in expiries_ms], dtype=np.int64)
    stored = instants.view(np.uint64) ^ np.uint64(SIGN)
    return bytes_of(np.stack([stored, ~stored], axis=1).astype(">u8"))


def envelope(expiry_ms: int | None) -> bytes:
    """Return the envelope of one record."""
    if expiry_ms is None:
        return NEVER
    stored = expiry_ms + SIGN
    return _ENVELOPE.pack(stored, stored ^ _ONES)


def is_expiry_whole(value: bytes) -> bool:
    """Tell whether the two copies of an expiry agree; the record's checksum does not cover them."""
    if len(value) < ENVELOPE_BYTES:
        return False
    stored, inverted = _ENVELOPE.unpack_from(value)
    return bool(stored ^ inverted == _ONES)


def plain_checksum(key: bytes, value: bytes) -> bytes:
    """Return the checksum of a plain value."""
    return crc32(value, crc32(PLAIN, crc32(key))).to_bytes(CRC_BYTES)


def is_plain_or_other(value: bytes) -> bool:
    """Tell whether a value is a plain one, or a record of events."""
    return value.startswith(PLAIN) or is_windowed(value[ENVELOPE_BYTES:])


def content(value: bytes) -> bytes:
    """Return what a value holds: a record, or a plain value."""
    return value[ENVELOPE_BYTES + CRC_BYTES if value.startswith(PLAIN) else ENVELOPE_BYTES :]


def are_whole_and_live(keys: Sequence[bytes], values: Sequence[bytes], now: bytes) -> bool:
    """Tell whether all values are records that match their checksums and have not expired."""
    found = list(map(crc32, map(_CHECKED, values), map(crc32, keys)))
    stored = b"".join(map(_CHECKSUM, values))
    if struct.pack(f">{len(found)}I", *found) != stored:
        return False
    return min(values, default=NEVER)[:8] > now  # they sort by their expiry


def opened_value(key: bytes, value: bytes, now: bytes) -> bytes | None:
    """Return a value's content, None if it has expired. Raises DamagedRecordError."""
    found = content(value)
    if value.startswith(PLAIN):
        is_whole = value[ENVELOPE_BYTES : ENVELOPE_BYTES + CRC_BYTES] == plain_checksum(key, found)
    else:
        is_whole = is_intact(key, found)
    if not is_whole:
        raise damaged(key, "does not match its checksum")
    if value[:8] > now:
        return found
    if not is_expiry_whole(value):
        raise damaged(key, "has a damaged instant of expiry")
    return None
