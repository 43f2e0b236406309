"""The tiles of one entity: partial aggregates of all events from each tile's start on, so that a window is one of them.

Tile j of a resolution r is (j*r, (j+1)*r]; an entry stands at the start of a tile that has events, and holds what comes
after that start up to the newest event. A window that begins at a tile's start is the first entry at or after it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from featurestore.windows.layout import Layout, Resolution
from featurestore.windows.numbers import mark_of, units_of

BEFORE_ALL = -(2**63)
"""Where the one tile of all of history starts."""


class TileEvent(NamedTuple):
    """One event as the online store takes it."""

    sequence: int
    event_us: int
    known_us: int
    values: tuple[Any, ...]
    """By the layout's columns: doubles, integers or bytes; None for null."""
    true: int
    """A bit for each of the layout's conditions."""

    @property
    def available_us(self) -> int:
        """When it becomes available."""
        return max(self.event_us, self.known_us)

    @property
    def order(self) -> tuple[int, int, int]:
        """Its place among the events of its entity."""
        return self.event_us, self.known_us, self.sequence


class Sums:
    """Exact sums, one an entry, in units of one power of two."""

    __slots__ = ("exponent", "integers", "marks")

    def __init__(self) -> None:
        self.exponent = 0
        self.integers: list[int] = []
        self.marks: list[int] = []

    def insert(self, place: int) -> None:
        """Add an entry that holds what the next one holds."""
        self.integers.insert(place, self.integers[place] if place < len(self.integers) else 0)
        self.marks.insert(place, self.marks[place] if place < len(self.marks) else 0)

    def add(self, until: int, integer: int, exponent: int, mark: int) -> None:
        """Add a value to the first ``until`` entries."""
        if mark:
            self.marks[:until] = [marks | mark for marks in self.marks[:until]]
            return
        if not integer:
            return
        if not any(self.integers):
            self.exponent = exponent
        elif exponent < self.exponent:
            self.integers = [each << (self.exponent - exponent) for each in self.integers]
            self.exponent = exponent
        integer <<= exponent - self.exponent
        self.integers[:until] = [each + integer for each in self.integers[:until]]

    def drop(self, count: int) -> None:
        """Drop the first entries."""
        del self.integers[:count], self.marks[:count]


@dataclass(slots=True)
class Part:
    """The partials of one group at one resolution; each list has one item an entry, None where no event is taken."""

    counts: list[int] = field(default_factory=list)
    sums: Sums | None = None
    squares: Sums | None = None
    least: list[Any] | None = None
    greatest: list[Any] | None = None
    first: list[tuple[int, int, int, Any] | None] | None = None

    @classmethod
    def of(cls, partials: Sequence[str]) -> Part:
        """Return the empty partials of some names."""
        made = cls()
        made.sums = Sums() if "sum" in partials else None
        made.squares = Sums() if "square" in partials else None
        made.least = [] if "min" in partials else None
        made.greatest = [] if "max" in partials else None
        made.first = [] if "first" in partials else None
        return made

    def insert(self, place: int) -> None:
        """Add an entry that holds what the next one holds."""
        self.counts.insert(place, self.counts[place] if place < len(self.counts) else 0)
        for sums in (self.sums, self.squares):
            if sums is not None:
                sums.insert(place)
        for column in (self.least, self.greatest, self.first):
            if column is not None:
                column.insert(place, column[place] if place < len(column) else None)

    def add(self, until: int, event: TileEvent, value: Any) -> None:
        """Take an event into the first ``until`` entries."""
        self.counts[:until] = [count + 1 for count in self.counts[:until]]
        if self.sums is not None:
            mark = mark_of(value) if isinstance(value, float) else 0
            integer, exponent = (0, 0) if mark else units_of(value) if isinstance(value, float) else (value, 0)
            self.sums.add(until, integer, exponent, mark)
            if self.squares is not None and not mark:
                self.squares.add(until, integer * integer, 2 * exponent, 0)
        for column, pick in ((self.least, min), (self.greatest, max)):
            if column is not None:
                column[:until] = [_extreme(pick, old, value) for old in column[:until]]
        if self.first is not None:
            mine = (*event.order, value)
            self.first[:until] = [mine if old is None or event.order < old[:3] else old for old in self.first[:until]]

    def drop(self, count: int) -> None:
        """Drop the first entries."""
        for column in (self.counts, self.least, self.greatest, self.first):
            if column is not None:
                del column[:count]
        for sums in (self.sums, self.squares):
            if sums is not None:
                sums.drop(count)


def _extreme(pick: Any, old: Any, value: Any) -> Any:
    if old is None or value != value:
        return value + 0.0 if isinstance(value, float) else value
    return old if old != old else pick(old, value) + 0.0 if isinstance(value, float) else pick(old, value)


class Tiles:
    """The tiles of one entity, and the events that its record holds in no other form: the last, the distinct values."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.base_sequence = -1
        """Every event with this number or a smaller one is in the tiles, or waits beside them."""
        self.newest_us = BEFORE_ALL
        self.starts: list[list[int]] = [[] for _ in layout.resolutions]
        self.parts: list[list[Part]] = [
            [Part.of(partials) for _, partials in resolution.parts] for resolution in layout.resolutions
        ]
        self.lasts: list[list[tuple[int, int, int, Any]]] = [[] for _ in layout.groups]
        """For each group its newest events, newest first: order and value."""
        self.distinct: list[dict[int, int]] = [{} for _ in layout.groups]
        """For each group the hashes of its values, and when each last happened."""

    def add(self, events: Iterable[TileEvent], *, hashed: Any) -> None:
        """Take events in, in any order; ``hashed`` returns the 64 bits that make a value distinct."""
        for event in events:
            self._add(event, hashed)

    def _add(self, event: TileEvent, hashed: Any) -> None:
        layout = self.layout
        self.newest_us = max(self.newest_us, event.event_us)
        values = [
            (place, group, 1 if group.column is None else event.values[group.column])
            for place, group in enumerate(layout.groups)
            if group.condition is None or event.true >> group.condition & 1
        ]
        taken = {place: value for place, _, value in values if value is not None}
        for resolution, starts, parts in zip(layout.resolutions, self.starts, self.parts, strict=True):
            until = _entry(resolution, starts, parts, event.event_us)
            for (place, _), part in zip(resolution.parts, parts, strict=True):
                if place in taken:
                    part.add(until, event, taken[place])
        for place, group, value in values:
            if value is None:
                continue
            if group.last:
                last = self.lasts[place]
                last.append((*event.order, value))
                last.sort(key=lambda item: item[:3], reverse=True)
                del last[group.last :]
            if group.distinct:
                seen, code = self.distinct[place], hashed(value)
                seen[code] = max(seen.get(code, BEFORE_ALL), event.event_us)
                if len(seen) > group.distinct:
                    del seen[min(seen, key=lambda code: (seen[code], code))]

    def expire(self, now_us: int) -> None:
        """Drop the tiles that no window reaches any more."""
        for resolution, starts, parts in zip(self.layout.resolutions, self.starts, self.parts, strict=True):
            if resolution.longest_us is None:
                continue
            oldest = (now_us - resolution.longest_us) // resolution.step_us * resolution.step_us
            gone = bisect_left(starts, oldest)
            if gone:
                del starts[:gone]
                for part in parts:
                    part.drop(gone)


def _entry(resolution: Resolution, starts: list[int], parts: Sequence[Part], event_us: int) -> int:
    """Make the entry of an event's tile where it lacks; return how many entries begin there or before."""
    step = resolution.step_us
    start = BEFORE_ALL if not step else (-(-event_us // step) - 1) * step
    place = bisect_left(starts, start)
    if place == len(starts) or starts[place] != start:
        starts.insert(place, start)
        for part in parts:
            part.insert(place)
    return place + 1
