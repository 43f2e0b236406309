"""From rows to records and their keys: the writing side of `codec`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any
from zlib import crc32

from featurestore.online.interface import ViewLayout, Write, Writes
from featurestore.online.records.arrow import record_bodies, time_columns
from featurestore.online.records.codec import (
    CRC_BYTES,
    encode_payload,
    expire_at_ms,
    record_head,
    schema_document,
    schema_id,
    to_wire,
)
from featurestore.online.records.keys import KeyEncoder

if TYPE_CHECKING:
    import pyarrow as pa


class RecordEncoder:
    """Makes the records of one generation of a view."""

    def __init__(self, layout: ViewLayout) -> None:
        self.layout = layout
        self.keys = KeyEncoder(layout)
        self.schema_json = schema_document(layout.fields)
        self.schema_id = schema_id(self.schema_json)
        self.schema_key = self.keys.schema_key(self.schema_id)
        """The key under which the publisher puts ``schema_json`` before the first record."""
        self._converters = [to_wire(value_type) for _, value_type in layout.fields]

    def encode(self, key: bytes, event_us: int, created_us: int | None, values: Sequence[Any]) -> bytes:
        """Return one record of canonical Python values in stored order."""
        wire = [
            value if value is None or convert is None else convert(value)
            for value, convert in zip(values, self._converters, strict=True)
        ]
        created_us = event_us if created_us is None else created_us
        body = record_head(event_us, created_us, self.schema_id) + encode_payload(wire)
        return body + crc32(body, crc32(key)).to_bytes(CRC_BYTES)

    def is_own(self, record: bytes) -> bool:
        """Tell whether a record is of this schema: only then do equal values have equal bytes."""
        return record[17:25] == self.schema_id

    def write(self, entity: Sequence[Any], event_us: int, created_us: int | None, values: Sequence[Any]) -> Write:
        """Return one record as a write, with its key and physical expiry."""
        key = self.keys.encode(entity)
        record = self.encode(key, event_us, created_us, values)
        return Write(key, record, expire_at_ms(event_us, self.layout.ttl_us))

    def encode_table(self, table: pa.RecordBatch | pa.Table) -> Writes:
        """Return the writes of a table with join keys, features, event_ts and created_ts, in order of their keys.

        Columns are of the declared Arrow types (`featurestore.types.arrow.arrow_type`); the created column may
        hold nulls or be absent. Raises EntityKeyError for a null join key.
        """
        if table.num_rows == 0:
            return Writes([], [], [])
        names = [name for name, _ in self.layout.join_keys]
        texts = self.keys.entities.texts_from_arrow({name: table.column(name) for name in names})
        # A store that keeps its keys in order is half as fast again if keys and records are in memory in that order,
        # and both are made here. The brace is part of the key, and sorts after every character of an entity.
        order = sorted(range(len(texts)), key=[text + "}" for text in texts].__getitem__)
        keys = self.keys.keys([texts[place] for place in order])
        created = table.column("created_ts") if "created_ts" in table.schema.names else None
        times = time_columns(table.column("event_ts"), created)
        features = [(table.column(name), kind) for name, kind in self.layout.fields]
        bodies = list(map(record_bodies(times, self.schema_id, features).__getitem__, order))
        checksums = map(int.to_bytes, map(crc32, bodies, map(crc32, keys)), repeat(CRC_BYTES))
        expiries_ms = times.expiries_ms(self.layout.ttl_us)
        return Writes(keys, list(map(operator.add, bodies, checksums)), list(map(expiries_ms.__getitem__, order)))
