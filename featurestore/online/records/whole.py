"""Whether a record is whole, whatever its format."""

from __future__ import annotations

from featurestore.online.records import codec, windowed


def is_intact(key: bytes, record: bytes) -> bool:
    """Tell whether the checksums of a record are those of its key and bytes."""
    if record[:1] == bytes([windowed.FORMAT]):
        return windowed.is_intact(key, record)
    return codec.is_intact(key, record)
