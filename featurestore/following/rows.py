"""Events of the log as the online store takes them: keys, records and expiries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from featurestore.engine.interface import EVENT_AT, KNOWN_AT, NUMBER
from featurestore.online.interface import Append, Placed
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import empty, encode, encode_event
from featurestore.online.records.windows_read import hash_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.times import MAX_INSTANT
from featurestore.windows.layout import Layout, layout_of
from featurestore.windows.tiles import TileEvent, Tiles

if TYPE_CHECKING:
    import pyarrow as pa

SETTLED_US = 2_000_000
"""Events go into tiles when they have been available for so long: the clocks of writers and readers may differ."""
_DAY_US = 86_400_000_000


class EventEncoder:
    """Makes keys, entries and records of one view's events."""

    def __init__(self, registered: RegisteredView) -> None:
        self.layout: Layout = layout_of(registered.view)[0]
        self._encoder = KeyEncoder(registered.layout)
        self.namespace = self._encoder.namespace
        self.prefix = self._encoder.prefix
        self.bucket_of = self._encoder.bucket_of
        self.schema_key = self._encoder.schema_key(self.layout.id)
        steps = [resolution.step_us for resolution in self.layout.resolutions]
        lengths = [resolution.longest_us for resolution in self.layout.resolutions]
        self._step_us = max(steps, default=0)
        self._longest_us = None if None in lengths else max(length for length in lengths if length is not None)

    def expire_at_ms(self, event_us: int) -> int | None:
        """Return when a record goes whose newest event is at an instant: a day after every window has left it."""
        if self._longest_us is None:
            return None
        expiry_us = -(-event_us // self._step_us) * self._step_us + self._longest_us + _DAY_US
        return None if expiry_us > MAX_INSTANT else -(-expiry_us // 1000)

    def keys(self, batch: pa.RecordBatch) -> list[bytes]:
        """Return the key of each row."""
        return self._encoder.encode_columns({name: batch.column(name) for name, _ in self._encoder.layout.join_keys})

    def events(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes, TileEvent]]:
        """Yield key and event of each row of `Log.events`."""
        keys = self.keys(batch)
        kept = len(self.layout.columns) - self.layout.event_time
        columns = [batch.column(f"v{place}").to_pylist() for place in range(kept)]
        event_us = batch.column(EVENT_AT).to_pylist()
        if self.layout.event_time:
            columns.append(event_us)
        marks = [0] * batch.num_rows
        for place in range(len(self.layout.conditions)):
            marks = [
                mark | holds << place for mark, holds in zip(marks, batch.column(f"c{place}").to_pylist(), strict=True)
            ]
        values = list(zip(*columns, strict=True)) if columns else [()] * batch.num_rows
        numbers, known = batch.column(NUMBER).to_pylist(), batch.column(KNOWN_AT).to_pylist()
        return zip(keys, map(TileEvent, numbers, event_us, known, values, marks), strict=True)

    def append(self, key: bytes, event: TileEvent) -> Append:
        """Return an event on its way to a record."""
        entry = encode_event(key, self.layout, event)
        return Append(key, event.sequence, entry, empty(key, self.layout), self.expire_at_ms(event.event_us))

    def placed(self, batches: Iterable[pa.RecordBatch], sequence: int, now_us: int) -> Iterator[Placed]:
        """Yield the record of each entity, whose events come one after the other.

        Events that are not settled by ``now_us`` wait beside the tiles.
        """
        rows = (row for batch in batches for row in self.events(batch))
        for key, own in groupby(rows, itemgetter(0)):
            tiles, waiting, newest = Tiles(self.layout), b"", 0
            for _, event in own:
                newest = max(newest, event.event_us)
                if event.available_us <= now_us - SETTLED_US:
                    tiles.add([event], hashed=hash_of)
                else:
                    waiting += encode_event(key, self.layout, event)
            tiles.base_sequence = sequence
            tiles.expire(now_us)
            yield Placed(key, encode(key, tiles) + waiting, sequence, self.expire_at_ms(newest))

    def gone(self, key: bytes, sequence: int) -> Placed:
        """Return what removes the record of an entity that has no events up to a number."""
        tiles = Tiles(self.layout)
        tiles.base_sequence = sequence
        return Placed(key, encode(key, tiles), sequence, 1)
