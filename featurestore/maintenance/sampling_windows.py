"""Comparing the records of some entities of a view with windows with records made from its log: every tile of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from featurestore.following.held import held_layouts
from featurestore.following.mark import known_marks, read_marks
from featurestore.following.rows import EventEncoder
from featurestore.offline.interface import TableVersion
from featurestore.online.records.windowed import decode, decode_event, encode, entries_of, head_of, is_windowed
from featurestore.online.records.windows_read import WindowRecords
from featurestore.online.records.windows_values import hash_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.statuses import Status
from featurestore.types.arrow import arrow_schema
from featurestore.windows.layout import layout_of
from featurestore.windows.tiles import Sums, TileEvent, Tiles
from featurestore.workspace import Readers

State = Literal["equal", "missing", "older", "different", "newer"]
_BATCH_ROWS = 50_000


class WindowComparison:
    """Compares records of one view, as they are now, with a version of its log.

    The log counts as far as the marks say that it is online: what comes after need not be there yet.
    """

    def __init__(self, workspace: Readers, registered: RegisteredView, version: TableVersion) -> None:
        self._workspace, self._registered, self._version = workspace, registered, version
        self._encoder = EventEncoder(registered)
        self._layout, places = layout_of(registered.view)
        self._names = list(places)
        online = workspace.online
        self._reader = WindowRecords(
            registered.layout, self._layout, list(places.values()), fetch=lambda key: online.get([key])[0]
        )
        held = {each.id: each for each in held_layouts(workspace, registered)}
        self._held = {**held, self._layout.id: self._layout}
        """Layouts that records may be of: after an apply they stay as they are until they are made again."""
        self._expiries = [EventEncoder(registered, each).expire_at_ms for each in self._held.values()]
        self._marks = known_marks(workspace, registered, version, read_marks(workspace, registered)) or {}
        self._now_us = workspace.clock()
        self._since_us = self._encoder.since_us(version, self._now_us)

    def compare(self, entities: Sequence[dict[str, Any]]) -> Iterator[tuple[State, str]]:
        """Yield what is found for each entity that should be online, and in words what differs."""
        import pyarrow as pa

        names = sorted(self._registered.view.join_keys)
        of = pa.Table.from_pylist(list(entities), arrow_schema(self._registered.view.join_keys))
        files = [file.path for file in self._version.files]
        batches = self._workspace.engine.log.events(
            self._registered.view, files, since_us=self._since_us, by_entity=True, of=of, batch_rows=_BATCH_ROWS
        )
        rows = (
            (key, event, entity)
            for batch in batches
            for (key, event), entity in zip(self._encoder.events(batch), batch.select(names).to_pylist(), strict=True)
        )
        wanted = []
        for key, own in groupby(rows, itemgetter(0)):
            events = list(own)
            entity = ", ".join(f"{name}={events[0][2][name]}" for name in names)
            tiles = self._tiles([event for _, event, _ in events if event.sequence <= self._until(key)])
            expiries_ms = [expire_at_ms(tiles.newest_us) for expire_at_ms in self._expiries]
            if all(expiry_ms is None or expiry_ms > self._now_us // 1000 for expiry_ms in expiries_ms):
                wanted.append((key, entity, tiles))
        records = self._workspace.online.get([key for key, _, _ in wanted])
        for (key, entity, tiles), record in zip(wanted, records, strict=True):
            state, what = self._state(key, tiles, record)
            yield state, f"{entity}: {what}"

    def _until(self, key: bytes) -> int:
        """Return the greatest number of an event that must be online."""
        mark = self._marks.get(self._encoder.bucket_of(key), next(iter(self._marks.values()), None))
        return self._version.next_sequence - 1 if mark is None else mark.sequence

    def _tiles(self, events: Sequence[TileEvent]) -> Tiles:
        tiles = Tiles(self._layout)
        tiles.add(events, hashed=hash_of)
        self._expire(tiles)
        return tiles

    def _expire(self, tiles: Tiles) -> None:
        """Drop what no record must hold: those that were made of the log lack what they could not answer with."""
        tiles.expire(self._now_us)
        if self._since_us is not None:
            tiles.leave(self._since_us)

    def _state(self, key: bytes, wanted: Tiles, record: bytes | None) -> tuple[State, str]:
        if record is None or not is_windowed(record):
            return "missing", "no record"
        head, until = head_of(record), self._until(key)
        if head.schema_id not in self._held:
            return "older", "a record of other definitions"
        if head.base_sequence > until:
            return "newer", ""  # it went on meanwhile
        if head.schema_id != self._layout.id:
            differs = self._difference(key, record, wanted)
            return ("different", differs) if differs else ("equal", "")
        found = decode(key, self._layout, record)
        newest = [decode_event(self._layout, entry) for entry in entries_of(record)]
        found.add([event for event in newest if event.sequence <= until], hashed=hash_of)
        self._expire(found)
        if _plain(found) == _plain(wanted):
            return "equal", ""
        told = self._difference(key, encode(key, found), wanted)
        return "different", told or "tiles differ that no window begins with now"

    def _difference(self, key: bytes, record: bytes, wanted: Tiles) -> str:
        """Return which window that a record holds has another value than by the log, and both values."""
        read = self._reader.read([key, key], [record, encode(key, wanted)], self._now_us)
        statuses = (read.statuses or [[Status.PRESENT] * len(self._names)])[0]
        for name, one, other, status in zip(self._names, *read.values, statuses, strict=True):
            if status is not Status.NOT_FOUND and repr(one) != repr(other):  # NaN is equal to itself so
                return f"{name} is {one}, by the log {other}"
        return ""


def _plain(tiles: Tiles) -> str:
    """Return what two tiles must have in common."""
    parts = [
        (
            part.counts,
            _sums(part.sums),
            _sums(part.squares),
            part.least,
            part.greatest,
            part.first,
        )
        for resolution in tiles.parts
        for part in resolution
    ]
    return repr((tiles.starts, parts, tiles.lasts, [sorted(seen.items()) for seen in tiles.distinct]))


def _sums(sums: Sums | None) -> list[tuple[int, int, int]]:
    if sums is None:
        return []
    found = []
    for integer, mark in zip(sums.integers, sums.marks, strict=True):
        exponent = sums.exponent if integer else 0
        while integer and not integer % 2:
            integer, exponent = integer // 2, exponent + 1
        found.append((integer, exponent, mark))
    return found
