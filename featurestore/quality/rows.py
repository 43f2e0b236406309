"""Rows of a view's log, read without an engine: what a difference is explained by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.offline.interface import TableReader
from featurestore.offline.reading import opened, read_groups
from featurestore.online.records.codec import CRC_BYTES
from featurestore.online.records.encoder import RecordEncoder
from featurestore.quality.held import Held
from featurestore.quality.past import Withdrawn
from featurestore.registered.snapshot import RegisteredView
from featurestore.training.asked import Asked
from featurestore.types import Int64, Timestamp
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import CREATED, EVENT, SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[Any, ...]
NONE = -1
"""In place of an ``fs_seq``: no row."""


@dataclass(frozen=True, slots=True)
class LogRow:
    """One row version of an entity."""

    event_us: int
    created_us: int
    """The event time where there is none."""
    sequence: int
    checksum: Callable[[], int]
    """Makes its record, and returns the checksum of it."""
    withdrawn: Withdrawn | None = None
    """What withdrew it since."""

    @property
    def crc(self) -> int:
        """The checksum of its record."""
        return self.checksum()


class LogRows:
    """The row versions of some entities of a plain view, withdrawn ones included."""

    def __init__(
        self,
        offline: TableReader,
        registered: RegisteredView,
        held: Held,
        keys: Sequence[pa.Array],
        at_us: npt.NDArray[np.int64],
    ) -> None:
        """Read the rows of ``keys``, one column for each join key, that lie before one of the instants."""
        self.by_sequence: dict[int, LogRow] = {}
        self._by_key: dict[Key, list[LogRow]] = {}
        self.lost: Sequence[Withdrawn] = held.lost
        """Withdrawals whose rows may not be among these."""
        self._encoder = RecordEncoder(registered.layout)
        self.schema = self._encoder.schema_id.hex()
        if not len(at_us):
            return
        oldest_us = np.full(len(at_us), np.iinfo(np.int64).min)
        asked = Asked([_chunked(column) for column in keys], at_us, oldest_us)
        names = list(registered.view.join_keys)
        in_record = [names.index(name) for name, _ in registered.layout.join_keys]
        schema = arrow_schema(
            {
                **registered.view.join_keys,
                EVENT: Timestamp,
                CREATED: Timestamp,
                SEQUENCE: Int64,
                **dict(registered.table_schema.stored),
            }
        )
        for withdrawn, file in held.files:
            with opened(offline, file) as parquet:
                for group in range(parquet.num_row_groups):
                    table = read_groups(parquet, [group], schema)
                    event_us = table.column(EVENT).cast("int64").to_numpy()
                    places = asked.places(iter([table.column(name) for name in names]), event_us)
                    if len(places):
                        self._take(table.take(places), names, in_record, withdrawn)

    def _take(
        self, table: pa.Table, names: Sequence[str], in_record: Sequence[int], withdrawn: Withdrawn | None
    ) -> None:
        events, createds = (table.column(name).cast("int64").to_pylist() for name in (EVENT, CREATED))
        keys = list(zip(*(table.column(name).to_pylist() for name in names), strict=True))
        sequences = table.column(SEQUENCE).to_pylist()
        stored = table.drop_columns([*names, EVENT, CREATED, SEQUENCE])
        rows = enumerate(zip(keys, events, createds, sequences, strict=True))
        for place, (key, event_us, created_us, sequence) in rows:
            if sequence in self.by_sequence:  # files are read from the newest version on: it was there for longer
                continue
            written = [key[each] for each in in_record], event_us, created_us
            made = LogRow(
                event_us,
                event_us if created_us is None else created_us,
                sequence,
                _checksum(self._encoder, written, stored, place),
                withdrawn,
            )
            self.by_sequence[sequence] = made
            self._by_key.setdefault(key, []).append(made)

    def same(self, key: Key, event_us: int, created_us: int | None) -> list[LogRow]:
        """Return the rows of an entity with these times."""
        created = event_us if created_us is None else created_us
        found = self._by_key.get(key, [])
        return [row for row in found if (row.event_us, row.created_us) == (event_us, created)]


def _checksum(
    encoder: RecordEncoder, written: tuple[list[Any], int, int | None], stored: pa.Table, place: int
) -> Callable[[], int]:
    def checksum() -> int:
        values = [column[place].as_py() for column in stored.columns]
        return int.from_bytes(encoder.write(*written, values).record[-CRC_BYTES:])

    return checksum


def stored_values(
    offline: TableReader, registered: RegisteredView, held: Held, sequences: npt.NDArray[np.int64]
) -> pa.Table:
    """Return the stored fields of rows of the log by their ``fs_seq``, in the order given; nulls for `NONE`."""
    import pyarrow as pa

    wanted = np.unique(sequences[sequences != NONE])
    schema = arrow_schema({SEQUENCE: Int64, **dict(registered.table_schema.stored)})
    parts = [schema.empty_table()]
    for _, file in held.files if len(wanted) else ():
        with opened(offline, file) as parquet:
            for group in range(parquet.num_row_groups):
                numbers = parquet.read_row_group(group, columns=[SEQUENCE]).column(SEQUENCE).to_numpy()
                places = np.flatnonzero(np.isin(numbers, wanted))
                if len(places):
                    parts.append(read_groups(parquet, [group], schema).take(pa.array(places)))
    table = pa.concat_tables(parts)
    found, first = np.unique(table.column(SEQUENCE).to_numpy(), return_index=True)
    places = np.minimum(found.searchsorted(sequences), max(len(found) - 1, 0))
    is_missing = np.ones(len(sequences), bool) if not len(found) else found[places] != sequences
    picked = pa.array(first[places] if len(found) else np.zeros(len(sequences), np.int64), mask=is_missing)
    return table.drop_columns(SEQUENCE).take(picked)


def _chunked(column: pa.Array) -> pa.ChunkedArray:
    import pyarrow as pa

    return pa.chunked_array([column])
