"""Events of the log as the online store takes them: keys, records and expiries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.engine.interface import EVENT_AT, KNOWN_AT, NUMBER
from featurestore.offline.interface import TableVersion
from featurestore.online.interface import Append, Placed
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import MOST_UNSETTLED, empty, encode, encode_event
from featurestore.registered.snapshot import RegisteredView
from featurestore.types import Date, ValueType
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import MAX_INSTANT
from featurestore.windows.layout import Kind, Layout, layout_of
from featurestore.windows.tiles import TileEvent, Tiles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from featurestore.online.records.bulk import Events

SETTLED_US = 2_000_000
"""Events go into tiles when they have been available for so long: the clocks of writers and readers may differ."""
PLACED_ROWS = 250_000
"""So many events become records at once."""
_DAY_US = 86_400_000_000


class NewestRows(NamedTuple):
    """The rows of a log's newest commit, as its file has them."""

    identity: str
    """That commit."""
    rows: pa.Table


class EventEncoder:
    """Makes keys, entries and records of one view's events, by default of the layout of its definition."""

    def __init__(self, registered: RegisteredView, layout: Layout | None = None) -> None:
        self.layout: Layout = layout_of(registered.view)[0] if layout is None else layout
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

    def since_us(self, version: TableVersion, now_us: int) -> int | None:
        """Return the event time up to which events of a version count no more, with the day that records stay longer.

        Not by the clock alone: one that is ahead for a moment would take events that everybody else still reads.
        """
        newest_us = max((file.max_event_us for file in version.files), default=now_us)
        reach_us = self.layout.reach_us
        return None if reach_us is None else min(now_us, newest_us) - reach_us - _DAY_US

    def keys(self, batch: pa.RecordBatch) -> list[bytes]:
        """Return the key of each row."""
        return self._encoder.encode_columns({name: batch.column(name) for name, _ in self._encoder.layout.join_keys})

    def events(self, batch: pa.RecordBatch) -> Iterator[tuple[bytes, TileEvent]]:
        """Yield key and event of each row of `Log.events`."""
        keys = self.keys(batch)
        columns = [batch.column(f"v{place}").to_pylist() for place in range(len(self.layout.kinds))]
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

    def from_rows(self, rows: pa.Table) -> pa.RecordBatch | None:
        """Return rows of the log as `Log.events` does, in the order of ``fs_seq``; None where conditions take SQL."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kept = list(zip(self.layout.kinds, self.layout.columns, strict=False))
        if self.layout.conditions or any(name not in rows.column_names for _, (name, _) in kept):
            return None
        rows = rows.sort_by(SEQUENCE).combine_chunks()
        event_us, created_us = (rows.column(name).cast(pa.int64()) for name in (EVENT, CREATED))
        names = [name for name, _ in self._encoder.layout.join_keys]
        columns = {name: rows.column(name) for name in names}
        columns |= {EVENT_AT: event_us, KNOWN_AT: pc.coalesce(created_us, event_us), NUMBER: rows.column(SEQUENCE)}
        for place, (how, (name, kind)) in enumerate(kept):
            columns[f"v{place}"] = _as_kept(rows.column(name), how, kind)
        return pa.table(columns).to_batches()[0]

    def numbered(self, batch: pa.RecordBatch) -> tuple[list[bytes], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the keys of some events, each once, and of each event the place of its key and its number."""
        import numpy as np

        places: dict[bytes, int] = {}
        entity = [places.setdefault(key, len(places)) for key in self.keys(batch)]
        return list(places), np.array(entity, np.int64), _numbers(batch.column(NUMBER), 0)

    def entries(
        self, batch: pa.RecordBatch, keys: Sequence[bytes], entity: npt.NDArray[np.int64]
    ) -> tuple[list[bytes], npt.NDArray[np.int64]]:
        """Return events as they are appended to records, and their event times; keys and their places as `numbered`."""
        import numpy as np
        import pyarrow as pa

        from featurestore.online.records.bulk import encode_events

        events = self._columns(batch, entity)
        entries, is_whole = encode_events(self.layout, keys, events)
        if not is_whole.all():
            others = self.events(batch.filter(pa.array(~is_whole)))
            for row, (key, event) in zip(np.flatnonzero(~is_whole).tolist(), others, strict=True):
                entries[row] = encode_event(key, self.layout, event)
        return entries, events.event_us

    def append(self, key: bytes, sequence: int, events: bytes, newest_us: int) -> Append:
        """Return events on their way to a record: the number of the first, and the event time of the newest."""
        return Append(key, sequence, events, empty(key, self.layout), self.expire_at_ms(newest_us))

    def placed(self, batches: Iterable[pa.RecordBatch], sequence: int, now_us: int) -> Iterator[Placed]:
        """Yield the record of each entity, whose events come one after the other, by event time.

        Events that are not settled by ``now_us`` wait beside the tiles.
        """
        import pyarrow as pa

        held, enough = list[pa.RecordBatch](), PLACED_ROWS
        for batch in batches:
            held.append(batch)
            if sum(each.num_rows for each in held) >= enough:
                rows = pa.concat_batches(held)
                last = int(self._begins(rows)[-1])  # its entity may go on
                if last:
                    yield from self._placed(rows.slice(0, last), sequence, now_us)
                held = [rows.slice(last)]
                enough = PLACED_ROWS + 2 * held[0].num_rows  # one with most events is not put together each time
        if held:
            yield from self._placed(pa.concat_batches(held), sequence, now_us)

    def _begins(self, rows: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return where entities begin."""
        import numpy as np
        import pyarrow.compute as pc

        is_first = np.zeros(rows.num_rows, np.bool_)
        is_first[:1] = True
        for name, _ in self._encoder.layout.join_keys:
            column = rows.column(name)
            is_first[1:] |= pc.not_equal(column.slice(1), column.slice(0, max(len(column) - 1, 0))).to_numpy(
                zero_copy_only=False
            )
        return np.flatnonzero(is_first)

    def _placed(self, rows: pa.RecordBatch, sequence: int, now_us: int) -> Iterator[Placed]:
        import numpy as np
        import pyarrow as pa

        from featurestore.online.records.bulk import build

        begins = self._begins(rows)
        keys = self.keys(rows.take(pa.array(begins)))
        entity = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, rows.num_rows)))
        event_us, known_us, number = (_numbers(rows.column(name), 0) for name in (EVENT_AT, KNOWN_AT, NUMBER))
        if ((event_us[1:] == event_us[:-1]) & (entity[1:] == entity[:-1])).any():
            rows = rows.take(pa.array(np.lexsort((number, known_us, event_us, entity))))
        events = self._columns(rows, entity)
        available = np.maximum(events.event_us, events.known_us)
        is_settled = available <= now_us - SETTLED_US
        unsettled = np.bincount(entity[~is_settled], minlength=len(begins))
        is_settled |= (unsettled > MOST_UNSETTLED)[entity] & (available <= now_us)  # as `folded`
        newest = np.maximum.reduceat(events.event_us, begins) if len(begins) else begins
        waiting: dict[bytes, bytes] = {}
        if not is_settled.all():
            for key, event in self.events(rows.filter(pa.array(~is_settled)).sort_by(NUMBER)):
                waiting[key] = waiting.get(key, b"") + encode_event(key, self.layout, event)
            events = events.where(is_settled)
        records = build(self.layout, keys, events, sequence, now_us)
        for key, record, newest_us in zip(keys, records, newest.tolist(), strict=True):
            yield Placed(key, record + waiting.get(key, b""), sequence, self.expire_at_ms(newest_us))

    def _columns(self, rows: pa.RecordBatch, entity: npt.NDArray[np.int64]) -> Events:
        """Return the rows as columns, with the place of each one's key."""
        import numpy as np

        from featurestore.online.records.bulk import Events

        event_us = _numbers(rows.column(EVENT_AT), 0)
        values = []
        for place, kind in enumerate(self.layout.kinds):
            column = rows.column(f"v{place}")
            is_given = column.is_valid().to_numpy(zero_copy_only=False)
            if kind == "text":
                values.append((column.to_numpy(zero_copy_only=False), is_given))
            else:
                values.append((_numbers(column, 0.0 if kind == "float" else 0), is_given))
        if self.layout.event_time:
            values.append((event_us, np.ones(len(event_us), np.bool_)))
        conditions = [
            rows.column(f"c{place}").to_numpy(zero_copy_only=False) for place in range(len(self.layout.conditions))
        ]
        return Events(
            entity, event_us, _numbers(rows.column(KNOWN_AT), 0), _numbers(rows.column(NUMBER), 0), values, conditions
        )

    def gone(self, key: bytes, sequence: int) -> Placed:
        """Return what removes the record of an entity that has no events up to a number."""
        tiles = Tiles(self.layout)
        tiles.base_sequence = sequence
        return Placed(key, encode(key, tiles), sequence, 1)


def _numbers(column: pa.Array, null: float) -> npt.NDArray[Any]:
    """Return numbers, with another one for null."""
    filled = column.fill_null(null) if column.null_count else column
    found: npt.NDArray[Any] = filled.to_numpy(zero_copy_only=False)
    return found


def _as_kept(column: pa.ChunkedArray, kept: Kind, kind: ValueType) -> pa.ChunkedArray:
    """Return a column as windows compute with it: doubles, 64 bits, or bytes; zeros where values are only counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if kept == "none":
        return pc.if_else(column.is_valid(), 0, pa.scalar(None, pa.int64()))
    if kept == "integer":
        return (column.cast(pa.int32()) if kind == Date else column).cast(pa.int64())
    return column.cast(pa.float64() if kept == "float" else pa.binary())
