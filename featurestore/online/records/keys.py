"""Keys of online records: ``fs:nyc_flights:carrier_profile:{UA}``, as `docs/reference/wire-format.md` says.

The braces are characters of the key: Redis Cluster hashes what is between them, so all views of an entity are on one
node. The entity's values are in the order of the join keys sorted by name, percent-encoded and joined by ``|``.

Windowed records are in buckets, ``fs:nyc_flights:delays:{50}UA``: the braces hold two octal digits, so that a cluster
keeps the records of a bucket together with the mark that says how far they follow the log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_from_bytes
from zlib import crc32

import msgspec

from featurestore.errors import EntityKeyError, OnlineStoreError, ValueTypeError
from featurestore.online.interface import ViewLayout
from featurestore.types.values import INTEGER_RANGES, PYTHON_KINDS, ValueType, coerce

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_ENTITY_BYTES = 200
"""An encoded entity longer than this is replaced by its hash."""

BUCKETS = tuple(b"%02o" % number for number in range(64))
"""The buckets of windowed records. As hash tags they spread evenly over the nodes, which hexadecimal ones do not."""
_MANY = 8
_PLAIN = re.compile(r"[A-Za-z0-9._~-]+")
_OWN_PREFIX = re.compile(rb"fs:[a-z][a-z0-9_]*:")


def project_prefix(project: str) -> bytes:
    """Return the exact prefix of every key of a project."""
    return f"fs:{project}:".encode()


def view_prefix(project: str, view: str, generation: int = 1) -> bytes:
    """Return the exact prefix of one generation's keys, records and schemas: no other view's or generation's."""
    suffix = f".{generation}" if generation > 1 else ""
    return project_prefix(project) + f"{view}{suffix}:".encode()


def mark_key(namespace: bytes, bucket: bytes = BUCKETS[0]) -> bytes:
    """Return the key of a bucket's mark: how far its records follow the log. The first one says: it was published."""
    return namespace + b"applied:{" + bucket + b"}"


def token_key(namespace: bytes, bucket: bytes) -> bytes:
    """Return the key of a bucket's token: the publish that is under way, or the last one."""
    return namespace + b"publishing:{" + bucket + b"}"


def check_prefix(prefix: bytes) -> bytes:
    """Return a prefix that is within one project; raises OnlineStoreError for one that would match more."""
    if not _OWN_PREFIX.match(prefix):
        raise OnlineStoreError(
            f"{prefix!r} is not a prefix of one project's keys.",
            hint="Pass at least fs:<project>: so that no neighbour's keys match.",
        )
    return prefix


class EntityEncoder:
    """The part of a key between the braces, which all views of an entity share. ``join_keys`` sorted by name."""

    def __init__(self, join_keys: Sequence[tuple[str, ValueType]]) -> None:
        self.join_keys = tuple(join_keys)

    def texts(self, columns: Sequence[Sequence[Any]]) -> list[str]:
        """Return each row's encoded entity from one list of values per join key.

        Canonical Python values take a fast path; others are coerced. Raises EntityKeyError naming the join
        key, the row and the value.
        """
        return _joined(
            [
                _column_texts(name, value_type, values)
                for (name, value_type), values in zip(self.join_keys, columns, strict=True)
            ]
        )

    def texts_from_arrow(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> list[str]:
        """Return each row's encoded entity from Arrow columns by join key name. Raises as `texts`."""
        from featurestore.types.arrow import cast_column

        encoded: list[list[str]] = []
        for name, value_type in self.join_keys:
            column = cast_column(columns[name], value_type, name=name)
            if column.null_count == 0 and value_type.name in INTEGER_RANGES:
                encoded.append(column.cast("string").to_pylist())
            else:
                encoded.append(_column_texts(name, value_type, column.to_pylist()))
        return _joined(encoded)


class KeyEncoder:
    """The keys of one generation of a view."""

    def __init__(self, layout: ViewLayout) -> None:
        self.layout = layout
        self.entities = EntityEncoder(layout.join_keys)
        self.namespace = view_prefix(layout.project, layout.view, layout.generation)
        """The exact prefix of this generation's keys, records and schemas."""
        self.prefix = self.namespace + b"{"
        """The exact prefix of this generation's records."""
        self._opening = self.prefix.decode()
        self._between = "}\n" + self._opening
        self._buckets = [self.prefix + bucket + b"}" for bucket in BUCKETS] if layout.has_buckets else []

    def keys(self, texts: Sequence[str]) -> list[bytes]:
        """Return the keys of encoded entities (`EntityEncoder.texts`), which views of one entity can share."""
        if self._buckets:
            buckets, count = self._buckets, len(BUCKETS)
            return [buckets[crc32(text) % count] + text for text in map(str.encode, texts)]
        if not texts:
            return []
        # One encode and one split cost a third of a hundred f-strings; an encoded entity holds no newline.
        return f"{self._opening}{self._between.join(texts)}}}".encode().split(b"\n")

    def encode(self, values: Sequence[Any]) -> bytes:
        """Return the key of one entity, its values in join-key-name order. Raises EntityKeyError."""
        return self.keys(self.entities.texts([[value] for value in values]))[0]

    def encode_columns(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> list[bytes]:
        """Return each row's key from Arrow columns by join key name. Raises EntityKeyError."""
        return self.keys(self.entities.texts_from_arrow(columns))

    def bucket_of(self, key: bytes) -> bytes:
        """Return the bucket of a windowed record's key."""
        return key[len(self.prefix) : key.index(b"}", len(self.prefix))]

    def schema_key(self, schema_id: bytes) -> bytes:
        """Return the key that holds the schema document of ``schema_id``."""
        return self.namespace + b"schema:" + schema_id.hex().encode()


def _joined(encoded: Sequence[list[str]]) -> list[str]:
    """Return each row's encoded entity from its encoded join keys."""
    texts = encoded[0] if len(encoded) == 1 else list(map("|".join, zip(*encoded, strict=True)))
    if texts and max(map(len, texts)) > LONGEST_ENTITY_BYTES:
        return [text if len(text) <= LONGEST_ENTITY_BYTES else _hashed(text) for text in texts]
    return texts


def _hashed(text: str) -> str:
    return "#" + blake2b(text.encode(), digest_size=32).hexdigest()


def _column_texts(name: str, value_type: ValueType, values: Sequence[Any]) -> list[str]:
    """Return the encoded values of one join key."""
    kinds = set(map(type, values))
    if kinds == {PYTHON_KINDS[value_type.name]}:
        try:
            return _canonical_texts(value_type, values)
        except ValueError:
            pass  # out of range, or not a text: the loop below finds the row
    texts = []
    for row, value in enumerate(values):
        try:
            canonical = coerce(value_type, value)
        except ValueTypeError as error:
            raise EntityKeyError(f"join key {name!r}, row {row}: {error.message}", join_key=name, row=row) from None
        if canonical is None:
            raise EntityKeyError(f"join key {name!r} is null in row {row}.", join_key=name, row=row)
        texts += _canonical_texts(value_type, [canonical])
    return texts


def _canonical_texts(value_type: ValueType, values: Sequence[Any]) -> list[str]:
    """Return the encoded values; raises ValueError where one does not fit the type."""
    name = value_type.name
    if name == "String":
        if all(values) and _PLAIN.fullmatch("".join(values)):
            return list(values)
        return [quote(value, safe="") or "%" for value in values]
    if name in INTEGER_RANGES:
        low, high = INTEGER_RANGES[name]
        if min(values) < low or max(values) > high:
            raise ValueError("out of range")
        return integer_texts(values)
    if name == "Bytes":
        return [quote_from_bytes(value, safe="") or "%" for value in values]
    if name == "Bool":
        return ["true" if value else "false" for value in values]
    return [value.isoformat() for value in values]


def integer_texts(values: Sequence[int]) -> list[str]:
    """Return each integer as text; there must be at least one, and all must fit into 64 bits."""
    if len(values) < _MANY:
        return list(map(str, values))
    return msgspec.json.encode(values)[1:-1].decode().split(",")  # a third of the time of single calls
