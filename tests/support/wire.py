"""Keys and records of the online store read back, as `docs/reference/wire-format.md` says."""

from __future__ import annotations

from datetime import date
from typing import Any
from urllib.parse import unquote_to_bytes
from zlib import crc32

from featurestore.online.interface import ViewLayout
from featurestore.online.records.keys import view_prefix
from featurestore.online.records.reading import ViewReader
from featurestore.types.times import MAX_INSTANT
from featurestore.types.values import ValueType


def entity_of(layout: ViewLayout, key: bytes) -> tuple[Any, ...] | None:
    """Return the values of a key's entity, None where the key holds a hash."""
    prefix = view_prefix(layout.project, layout.view, layout.generation) + b"{"
    assert key.startswith(prefix)
    if layout.has_buckets:
        bucket, _, text = key[len(prefix) :].partition(b"}")
        assert bucket == b"%02o" % (crc32(text) % 64)
    else:
        assert key.endswith(b"}")
        text = key[len(prefix) : -1]
    if text.startswith(b"#"):
        return None
    parts = zip(layout.join_keys, text.split(b"|"), strict=True)
    return tuple(_value_of(value_type, part) for (_, value_type), part in parts)


def values_of(layout: ViewLayout, key: bytes, record: bytes) -> list[Any]:
    """Return a record's values, however old it is."""
    timeless = ViewLayout(layout.project, layout.view, layout.generation, layout.join_keys, layout.fields, None)
    reader = ViewReader(timeless, [name for name, _ in layout.fields])
    (values,) = reader.read([key], [record], MAX_INSTANT).values
    return list(values)


def _value_of(value_type: ValueType, part: bytes) -> Any:
    if value_type.name in ("String", "Bytes"):
        raw = b"" if part == b"%" else unquote_to_bytes(part)
        return raw.decode() if value_type.name == "String" else raw
    if value_type.name == "Bool":
        return {b"true": True, b"false": False}[part]
    return date.fromisoformat(part.decode()) if value_type.name == "Date" else int(part)
