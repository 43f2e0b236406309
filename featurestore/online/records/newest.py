"""The newest events of a windowed record, as `windowed` writes them, read all at once for the windows at an instant."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from featurestore.online.records.codec import CRC_BYTES
from featurestore.online.records.windowed import decode_event, entries_of, event_shape
from featurestore.windows.layout import Group, Layout
from featurestore.windows.numbers import mark_of, units_of


class NewestEvents(NamedTuple):
    """Newest events in their order, column by column."""

    event_us: Sequence[int]
    known_us: Sequence[int]
    sequences: Sequence[int]
    true: Sequence[int]
    """A bit for each of the layout's conditions, event by event."""
    values: Sequence[Sequence[Any]]
    """By the layout's columns."""


NO_EVENTS = NewestEvents((), (), (), (), ())


def available_events(layout: Layout, record: bytes, begin: int, now_us: int) -> NewestEvents:
    """Return the newest events of a record, from a place on, that are available at an instant."""
    events = _alike(layout, record[begin:]) or _decoded(layout, record)
    if all(list(times) == sorted(times) and times[-1] <= now_us for times in (events.event_us, events.known_us)):
        return events  # those of one entity come in the order of their sequences
    orders = zip(events.event_us, events.known_us, events.sequences, range(len(events.sequences)), strict=True)
    places = [place for at, known, _, place in sorted(orders) if at <= now_us and known <= now_us]

    def reordered(column: Sequence[Any]) -> list[Any]:
        return [column[place] for place in places]

    return NewestEvents(
        reordered(events.event_us),
        reordered(events.known_us),
        reordered(events.sequences),
        reordered(events.true),
        list(map(reordered, events.values)),
    )


def _decoded(layout: Layout, record: bytes) -> NewestEvents:
    decoded = [decode_event(layout, entry) for entry in entries_of(record)]
    sequences, event_us, known_us, values, true = zip(*decoded, strict=True)
    return NewestEvents(event_us, known_us, sequences, true, list(zip(*values, strict=True)))


def _alike(layout: Layout, entries: bytes) -> NewestEvents | None:
    """Return all newest events, unpacked at once; None where one has a null or a text."""
    codes, _, whole = event_shape(layout)
    if whole is None or len(entries) % (whole.size + CRC_BYTES):
        return None
    rows = _padded(whole).iter_unpack(entries)
    lengths, sequences, event_us, known_us, marks, *values = zip(*rows, strict=True)
    if lengths.count(whole.size + CRC_BYTES) < len(lengths):
        return None
    if layout.event_time:
        values.append(event_us)
    true = [int.from_bytes(bits, "little") >> len(codes) for bits in marks] if layout.conditions else [0] * len(marks)
    return NewestEvents(event_us, known_us, sequences, true, values)


@lru_cache(maxsize=64)
def _padded(whole: struct.Struct) -> struct.Struct:
    return struct.Struct(f"{whole.format}{CRC_BYTES}x")


def taken(events: NewestEvents, group: Group) -> tuple[Sequence[int], Sequence[Any]]:
    """Return the places of the events that a group takes, and their values."""
    places: Sequence[int] = range(len(events.event_us))
    values: Sequence[Any] = places if group.column is None else events.values[group.column]
    if group.condition is None and None not in values:
        return places, values
    places = [
        place
        for place in places
        if values[place] is not None and (group.condition is None or events.true[place] >> group.condition & 1)
    ]
    return places, [values[place] for place in places]


class Taken:
    """The newest events that one group takes in one window, in their order."""

    def __init__(self, events: NewestEvents, places: Sequence[int], values: Sequence[Any]) -> None:
        self._events, self._places = events, places
        self.values, self.count = values, len(values)

    @property
    def ordered(self) -> Iterator[tuple[tuple[int, int, int], Any]]:
        """The place of each among the events of its entity, and its value."""
        of = self._events
        orders = ((of.event_us[place], of.known_us[place], of.sequences[place]) for place in self._places)
        return zip(orders, self.values, strict=True)

    @cached_property
    def least(self) -> Any:
        """The least value, NaN where there is one."""
        return extreme(min, self.values)

    @cached_property
    def greatest(self) -> Any:
        """The greatest, likewise."""
        return extreme(max, self.values)

    @cached_property
    def sum(self) -> tuple[int, int, int]:
        """The exact sum as an integer, the exponent of its unit, and its marks."""
        return self._summed(1)

    @cached_property
    def square(self) -> tuple[int, int, int]:
        """The same of the squares."""
        return self._summed(2)

    def _summed(self, power: int) -> tuple[int, int, int]:
        marks, sums = 0, dict[int, int]()
        for value in self.values:
            if not isinstance(value, float):
                sums[0] = sums.get(0, 0) + value**power
            elif math.isfinite(value):
                integer, exponent = units_of(value)
                sums[exponent] = sums.get(exponent, 0) + integer**power
            else:
                marks |= mark_of(value)
        least = min(sums, default=0)
        total = sum(integer << power * (exponent - least) for exponent, integer in sums.items())
        return total, power * least, marks


def extreme(pick: Any, values: Sequence[Any]) -> Any:
    """Return the least or greatest value; NaN where one is, None for none."""
    if not values:
        return None
    best = pick(values)
    if not isinstance(best, float):
        return best
    if math.isnan(sum(values)) and any(value != value for value in values):  # infinities of both signs add up to NaN
        return math.nan
    return best + 0.0
