"""Rows of a view's log, of few entities, read without an engine: what a difference is explained by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.offline.interface import TableReader, TableVersion
from featurestore.offline.reading import opened, read_groups
from featurestore.online.records.codec import CRC_BYTES
from featurestore.online.records.encoder import RecordEncoder
from featurestore.registered.snapshot import RegisteredView
from featurestore.training.asked import Asked
from featurestore.types import Int64, Timestamp
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import CREATED, EVENT, SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row version of an entity."""

    event_us: int
    created_us: int
    """The event time where there is none."""
    sequence: int
    values: tuple[Any, ...]
    """In the order of the view's stored fields."""
    crc: int
    """The checksum of its record."""


class LogRows:
    """The row versions of some entities of a plain view."""

    def __init__(
        self,
        offline: TableReader,
        registered: RegisteredView,
        version: TableVersion | None,
        keys: Sequence[pa.Array],
        at_us: np.typing.NDArray[np.int64],
    ) -> None:
        """Read the rows of ``keys``, one column for each join key, that lie before one of the instants."""
        self.by_sequence: dict[int, LogRow] = {}
        self._by_key: dict[Key, list[LogRow]] = {}
        encoder = RecordEncoder(registered.layout)
        self.schema = encoder.schema_id.hex()
        if version is None or not len(at_us):
            return
        oldest_us = np.full(len(at_us), np.iinfo(np.int64).min)
        asked = Asked([_chunked(column) for column in keys], at_us, oldest_us)
        stored = registered.table_schema.stored
        names = list(registered.view.join_keys)
        schema = arrow_schema(
            {**registered.view.join_keys, EVENT: Timestamp, CREATED: Timestamp, SEQUENCE: Int64, **dict(stored)}
        )
        for file in version.files:
            with opened(offline, file) as parquet:
                for group in range(parquet.num_row_groups):
                    table = read_groups(parquet, [group], schema)
                    event_us = table.column(EVENT).cast("int64").to_numpy()
                    places = asked.places(iter([table.column(name) for name in names]), event_us)
                    if len(places):
                        self._take(table.take(places), names, [name for name, _ in stored], encoder)

    def _take(self, table: pa.Table, names: Sequence[str], stored: Sequence[str], encoder: RecordEncoder) -> None:
        events, createds = (table.column(name).cast("int64").to_pylist() for name in (EVENT, CREATED))
        keys = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
        values = list(zip(*(table.column(name).to_pylist() for name in stored), strict=True)) or [()] * len(keys)
        sequences = table.column(SEQUENCE).to_pylist()
        # In the order of the table: `encode_table` sorts by key.
        for key, event_us, created_us, sequence, row in zip(keys, events, createds, sequences, values, strict=True):
            record = encoder.write(key, event_us, created_us, row).record
            created = event_us if created_us is None else created_us
            made = LogRow(event_us, created, sequence, row, int.from_bytes(record[-CRC_BYTES:]))
            self.by_sequence[sequence] = made
            self._by_key.setdefault(key, []).append(made)

    def same(self, key: Key, event_us: int, created_us: int | None) -> list[LogRow]:
        """Return the rows of an entity with these times."""
        created = event_us if created_us is None else created_us
        found = self._by_key.get(key, [])
        return [row for row in found if (row.event_us, row.created_us) == (event_us, created)]


def _chunked(column: pa.Array) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([column])
