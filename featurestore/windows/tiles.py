"""The tiles of one entity: partial aggregates of all events from each tile's start on, so that a window is one of them.

Tile j of a resolution r is (j*r, (j+1)*r]; an entry stands at the start of a tile that has events, and holds what comes
after that start up to the newest event. A window that begins at a tile's start is the first entry at or after it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
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
        """Add an entry without values."""
        self.integers.insert(place, 0)
        self.marks.insert(place, 0)

    def add(self, place: int, integer: int, exponent: int, mark: int) -> None:
        """Add a value to one entry."""
        if mark:
            self.marks[place] |= mark
        elif integer:
            if not any(self.integers):
                self.exponent = exponent
            elif exponent < self.exponent:
                self.integers = [each << (self.exponent - exponent) for each in self.integers]
                self.exponent = exponent
            self.integers[place] += integer << (exponent - self.exponent)

    def accumulate(self) -> None:
        """Let each entry hold what the later ones hold, too."""
        for place in range(len(self.integers) - 2, -1, -1):
            self.integers[place] += self.integers[place + 1]
            self.marks[place] |= self.marks[place + 1]

    def merged(self, mine: Sequence[int], other: Sums, others: Sequence[int]) -> Sums:
        """Return the sums of entries: each of one of these and one of the others, by their places."""
        new = Sums()
        one, two = self._shifted(other), other._shifted(self)
        new.exponent = min(each.exponent for each in (self, other) if any(each.integers)) if any(one + two) else 0
        new.integers = [one[place] + two[its] for place, its in zip(mine, others, strict=True)]
        marks, its_marks = [*self.marks, 0], [*other.marks, 0]
        new.marks = [marks[place] | its_marks[its] for place, its in zip(mine, others, strict=True)]
        return new

    def _shifted(self, other: Sums) -> list[int]:
        """Return the integers in the finer unit of two, and a 0 for no entry."""
        by = self.exponent - other.exponent
        if by <= 0 or not any(other.integers):
            return [*self.integers, 0]
        return [*(each << by for each in self.integers), 0]

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
        """Add an entry without events."""
        self.counts.insert(place, 0)
        for sums in (self.sums, self.squares):
            if sums is not None:
                sums.insert(place)
        for column in (self.least, self.greatest, self.first):
            if column is not None:
                column.insert(place, None)

    def add(self, place: int, event: TileEvent, value: Any, units: tuple[int, int, int]) -> None:
        """Take an event into one entry; ``units`` are its value as an integer, the exponent of its unit, its mark."""
        self.counts[place] += 1
        if self.sums is not None:
            self.sums.add(place, *units)
            if self.squares is not None:
                integer, exponent, mark = units
                if not mark:
                    self.squares.add(place, integer * integer, 2 * exponent, 0)
        if self.least is not None:
            self.least[place] = _extreme(min, self.least[place], value)
        if self.greatest is not None:
            self.greatest[place] = _extreme(max, self.greatest[place], value)
        if self.first is not None:
            self.first[place] = _earlier((*event.order, value), self.first[place])

    def accumulate(self) -> None:
        """Let each entry hold what the later ones hold, too."""
        for place in range(len(self.counts) - 2, -1, -1):
            self.counts[place] += self.counts[place + 1]
            if self.least is not None and self.least[place + 1] is not None:
                self.least[place] = _extreme(min, self.least[place], self.least[place + 1])
            if self.greatest is not None and self.greatest[place + 1] is not None:
                self.greatest[place] = _extreme(max, self.greatest[place], self.greatest[place + 1])
            if self.first is not None:
                self.first[place] = _earlier(self.first[place], self.first[place + 1])
        for sums in (self.sums, self.squares):
            if sums is not None:
                sums.accumulate()

    def merged(self, mine: Sequence[int], other: Part, others: Sequence[int]) -> Part:
        """Return the partials of entries: each of one of these and one of the others, by their places."""
        new = Part()
        counts, its_counts = [*self.counts, 0], [*other.counts, 0]
        new.counts = [counts[place] + its_counts[its] for place, its in zip(mine, others, strict=True)]
        if self.sums is not None and other.sums is not None:
            new.sums = self.sums.merged(mine, other.sums, others)
        if self.squares is not None and other.squares is not None:
            new.squares = self.squares.merged(mine, other.squares, others)
        if self.least is not None and other.least is not None:
            new.least = _picked(min, self.least, mine, other.least, others)
        if self.greatest is not None and other.greatest is not None:
            new.greatest = _picked(max, self.greatest, mine, other.greatest, others)
        if self.first is not None and other.first is not None:
            one, two = [*self.first, None], [*other.first, None]
            new.first = [_earlier(one[place], two[its]) for place, its in zip(mine, others, strict=True)]
        return new

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


def _picked(pick: Any, one: Sequence[Any], mine: Sequence[int], two: Sequence[Any], others: Sequence[int]) -> list[Any]:
    one, two = [*one, None], [*two, None]
    return [
        one[place] if two[its] is None else _extreme(pick, one[place], two[its])
        for place, its in zip(mine, others, strict=True)
    ]


def _earlier(one: Any, two: Any) -> Any:
    if one is None or two is None:
        return one or two
    return two if two[:3] < one[:3] else one


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
        new = Tiles(self.layout)  # few tiles of their own: each of them changes all entries here that begin before it
        for event in events:
            new._add(event, hashed)
        for parts in new.parts:
            for part in parts:
                part.accumulate()
        self.merge(new)

    def merge(self, new: Tiles) -> None:
        """Take in what other events of the entity are in."""
        self.newest_us = max(self.newest_us, new.newest_us)
        for number, resolution in enumerate(self.layout.resolutions):
            starts = sorted({*self.starts[number], *new.starts[number]})
            mine = [bisect_left(self.starts[number], start) for start in starts]
            others = [bisect_left(new.starts[number], start) for start in starts]
            self.starts[number] = starts
            for place in range(len(resolution.parts)):
                self.parts[number][place] = self.parts[number][place].merged(mine, new.parts[number][place], others)
        for place, group in enumerate(self.layout.groups):
            if group.last:
                last = sorted(self.lasts[place] + new.lasts[place], key=itemgetter(0, 1, 2), reverse=True)
                self.lasts[place] = last[: group.last]
            if group.distinct:
                self._see(place, group.distinct, new.distinct[place])

    def _see(self, place: int, most: int, new: dict[int, int]) -> None:
        seen = self.distinct[place]
        for code, at_us in new.items():
            seen[code] = max(seen.get(code, BEFORE_ALL), at_us)
        if len(seen) > most:
            newest = sorted(seen.items(), key=lambda item: (item[1], item[0]), reverse=True)
            self.distinct[place] = dict(newest[:most])

    def _add(self, event: TileEvent, hashed: Any) -> None:
        layout = self.layout
        self.newest_us = max(self.newest_us, event.event_us)
        values = [
            (place, group, 1 if group.column is None else event.values[group.column])
            for place, group in enumerate(layout.groups)
            if group.condition is None or event.true >> group.condition & 1
        ]
        taken = {place: (value, _units(value)) for place, _, value in values if value is not None}
        for resolution, starts, parts in zip(layout.resolutions, self.starts, self.parts, strict=True):
            entry = _entry(resolution, starts, parts, event.event_us)
            for (place, _), part in zip(resolution.parts, parts, strict=True):
                if place in taken:
                    part.add(entry, event, *taken[place])
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
        """Drop the tiles that no window reaches any more.

        Not by the clock alone: one that is ahead for a moment would take tiles which everybody else still reads.
        """
        now_us = min(now_us, self.newest_us)
        for resolution, starts, parts in zip(self.layout.resolutions, self.starts, self.parts, strict=True):
            if resolution.longest_us is None:
                continue
            oldest = (now_us - resolution.longest_us) // resolution.step_us * resolution.step_us
            self._drop(starts, parts, bisect_left(starts, oldest))

    def leave(self, since_us: int) -> None:
        """Drop what events up to an instant are needed for: tiles that begin before it, and older values."""
        for resolution, starts, parts in zip(self.layout.resolutions, self.starts, self.parts, strict=True):
            self._drop(starts, parts, bisect_left(starts, since_us) if resolution.step_us else 0)
        self.lasts = [[item for item in last if item[0] > since_us] for last in self.lasts]
        self.distinct = [{code: at for code, at in seen.items() if at > since_us} for seen in self.distinct]

    def _drop(self, starts: list[int], parts: Sequence[Part], count: int) -> None:
        del starts[:count]
        for part in parts:
            part.drop(count)


def _units(value: Any) -> tuple[int, int, int]:
    """Return a value as an integer, the exponent of its unit, and its mark."""
    if not isinstance(value, float):
        return (0 if isinstance(value, bytes) else value), 0, 0
    mark = mark_of(value)
    return (0, 0, mark) if mark else (*units_of(value), 0)


def _entry(resolution: Resolution, starts: list[int], parts: Sequence[Part], event_us: int) -> int:
    """Return the place of the entry of an event's tile; makes one where it lacks."""
    step = resolution.step_us
    start = BEFORE_ALL if not step else (-(-event_us // step) - 1) * step
    place = bisect_left(starts, start)
    if place == len(starts) or starts[place] != start:
        starts.insert(place, start)
        for part in parts:
            part.insert(place)
    return place
