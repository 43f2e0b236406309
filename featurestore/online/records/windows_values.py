"""The values of windows at an instant, computed from one record: an entry of its tiles a window, and its newest events.

What is known of all records is worked out once: where the numbers of an entry are depends on the layout and on how many
integers the record's sums take. A record is then read in a few microseconds.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any, NamedTuple

from featurestore.online.records.windowed import (
    HEADER,
    Lists,
    available_events,
    lists_of,
    shapes_of,
    text_at,
)
from featurestore.windows.layout import Asked, Group, Layout
from featurestore.windows.numbers import as_double, joined, mark_of, marked, units_of, variance_of
from featurestore.windows.tiles import BEFORE_ALL, TileEvent

_LISTED = ("last", "last_n", "count_distinct")
_LIMIT = 1 << 63
_PLAIN_SCALES = range(-900, 900)
"""Exponents for which a 64-bit integer times the power of two is a normal double."""
MOST_PLANS = 1_000
_TILES_END, _U16 = struct.Struct("<I"), struct.Struct("<H")
_TILES_END_AT = 4


def hash_of(value: Any) -> int:
    """Return the 64 bits that make a value distinct: its own, or BLAKE2b's of a text. Zeros are one, and NaNs are."""
    if isinstance(value, bytes):
        return int.from_bytes(blake2b(value, digest_size=8).digest(), "little", signed=True)
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", math.nan if value != value else value + 0.0), "little", signed=True)
    return int(value)


class _Newest:
    """The newest events that one group takes in one window, in their order."""

    def __init__(self, events: Sequence[TileEvent], group: Group) -> None:
        self.taken: list[tuple[TileEvent, Any]] = []
        for event in events:
            if group.condition is None or event.true >> group.condition & 1:
                value = 1 if group.column is None else event.values[group.column]
                if value is not None:
                    self.taken.append((event, value))
        self.count = len(self.taken)

    @cached_property
    def values(self) -> list[Any]:
        return [value for _, value in self.taken]

    @cached_property
    def least(self) -> Any:
        return _extreme(min, self.values)

    @cached_property
    def greatest(self) -> Any:
        return _extreme(max, self.values)

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


def _extreme(pick: Any, values: Sequence[Any]) -> Any:
    """Return the least or greatest value; NaN where one is, None for none."""
    if not values:
        return None
    if any(value != value for value in values):
        return math.nan
    best = pick(values)
    return best + 0.0 if isinstance(best, float) else best


class _At(NamedTuple):
    """What lists are read with."""

    lists: Lists | None
    after_us: Sequence[int]
    """Of each window: later events count."""


Entry = tuple[Any, ...]
Get = Callable[[Entry, _Newest | None, _At], Any]
"""Makes a value of the entry of a window, the newest events in it, and the lists."""


class _Resolution(NamedTuple):
    """How the entries of one resolution are read."""

    step_us: int
    unpack_from: Callable[[bytes, int], Entry]
    size: int
    nothing: Entry
    """The entry of a window that no tile is in: all zeros."""
    windows: Sequence[tuple[int, int | None]]
    """Number and length of each window."""


class _Plan(NamedTuple):
    resolutions: Sequence[_Resolution]
    values: Sequence[tuple[Get, int, int]]
    """For each feature how it is made, and the numbers of its window and of its group."""


class WindowValues:
    """Computes the asked features of records of one layout."""

    def __init__(self, layout: Layout, asked: Sequence[Asked]) -> None:
        self._layout, self._asked = layout, tuple(asked)
        self._windows = list(dict.fromkeys((each.resolution, each.length_us) for each in asked))
        self._needs_lists = any(
            each.function in _LISTED or (each.function == "first" and layout.groups[each.group].kind == "text")
            for each in asked
        )
        self._counts = struct.Struct(f"<{len(layout.resolutions)}I")
        self._scales_at = HEADER.size + self._counts.size
        self._plans: dict[bytes, _Plan] = {}

    def after_us(self, now_us: int) -> list[int]:
        """Return of each window the instant after which events count."""
        steps = self._layout.resolutions
        return [
            BEFORE_ALL if length is None else (now_us - length) // steps[number].step_us * steps[number].step_us
            for number, length in self._windows
        ]

    def row(self, record: bytes, now_us: int, after_us: Sequence[int]) -> list[Any]:
        """Return the features, ``after_us`` as the method.

        Raises struct.error, ValueError or IndexError for a record that cannot be read.
        """
        counts = self._counts.unpack_from(record, HEADER.size)
        (length,) = _U16.unpack_from(record, self._scales_at)
        place = self._scales_at + 2 + length
        scales = record[self._scales_at + 2 : place]
        plan = self._plans.get(scales)
        if plan is None:
            if len(self._plans) > MOST_PLANS:
                self._plans.clear()
            plan = self._plans[scales] = self._planned(scales)
        bytes_, entries = memoryview(record), list[Entry]([()] * len(after_us))
        for resolution, count in zip(plan.resolutions, counts, strict=True):
            first = place + 8 * count
            starts = bytes_[place:first].cast("q") if count else ()
            for window, _ in resolution.windows:
                index = bisect_left(starts, after_us[window])
                entries[window] = (
                    resolution.unpack_from(record, first + index * resolution.size)
                    if index < count
                    else resolution.nothing
                )
            place = first + count * resolution.size
        at = _At(lists_of(self._layout, record, place) if self._needs_lists else None, after_us)
        (end,) = _TILES_END.unpack_from(record, _TILES_END_AT)
        if end == len(record):
            return [get(entries[window], None, at) for get, window, _ in plan.values]
        newest = self._newest(record, now_us, after_us)
        return [get(entries[window], newest[window, group], at) for get, window, group in plan.values]

    def _newest(self, record: bytes, now_us: int, after_us: Sequence[int]) -> Mapping[tuple[int, int], _Newest]:
        """Return the newest events of each window and group; windows with the same events share them."""
        events = available_events(self._layout, record, now_us)
        times = [event.event_us for event in events]
        begins = [bisect_right(times, after) for after in after_us]
        groups = {each.group for each in self._asked}
        made = {
            (begin, group): _Newest(events[begin:], self._layout.groups[group])
            for begin in set(begins)
            for group in groups
        }
        return {(window, group): made[begin, group] for window, begin in enumerate(begins) for group in groups}

    def _planned(self, scales: bytes) -> _Plan:
        layout, shapes = self._layout, shapes_of(self._layout, scales)
        windows: list[list[tuple[int, int | None]]] = [[] for _ in layout.resolutions]
        for place, (number, length) in enumerate(self._windows):
            windows[number].append((place, length))
        resolutions = [
            _Resolution(
                each.step_us,
                shape.entry.unpack_from,
                shape.entry.size,
                shape.entry.unpack(bytes(shape.entry.size)),
                own,
            )
            for each, shape, own in zip(layout.resolutions, shapes, windows, strict=True)
        ]
        values = []
        for each in self._asked:
            window = self._windows.index((each.resolution, each.length_us))
            parts = [group for group, _ in layout.resolutions[each.resolution].parts]
            fields = shapes[each.resolution].parts[parts.index(each.group)] if each.group in parts else {}
            values.append((_made(each, layout.groups[each.group], fields, window), window, each.group))
        return _Plan(resolutions, values)


Fields = Mapping[str, tuple[int, tuple[int, ...]]]
"""Where each partial of a group is in an entry, and the exponents of its integers."""


def _made(asked: Asked, group: Group, fields: Fields, window: int) -> Get:
    """Return what makes a feature."""
    if asked.function in _LISTED:
        return _LISTS[asked.function](asked, group, window)
    count = fields["count"][0]
    if asked.function == "count":
        return lambda entry, new, at: entry[count] if new is None else entry[count] + new.count
    if asked.function in ("min", "max"):
        return _extreme_of(asked.function, count, fields[asked.function][0])
    if asked.function == "first":
        return _first_of(asked, group, count, fields["first"][0])
    total = _total_of("sum", fields)
    if asked.function == "sum" and group.kind != "float":
        return _integer_sum_of(count, total)
    double = _double_of(fields, total)
    if asked.function == "sum":
        return lambda entry, new, at: double(entry, new) if entry[count] or (new is not None and new.count) else None
    if asked.function == "mean":
        return _mean_of(count, double)
    return _variance_of(asked.function, count, total, _total_of("square", fields))


Total = Callable[[Entry, "_Newest | None"], tuple[int, int, int]]


def _total_of(name: str, fields: Fields) -> Total:
    """Return what adds up the values, or their squares: an integer, the exponent of its unit, and the marks."""
    place, exponents = fields[name]
    end, mark_at = place + len(exponents), fields["marks"][0] if "marks" in fields else None

    def total(entry: Entry, new: _Newest | None) -> tuple[int, int, int]:
        integer, exponent = joined(entry[place:end], exponents)
        marks = 0 if mark_at is None else entry[mark_at]
        if new is None:
            return integer, exponent, marks
        more, its_exponent, its_marks = new.sum if name == "sum" else new.square
        if not more:
            return integer, exponent, marks | its_marks
        least = min(exponent, its_exponent)
        return (integer << exponent - least) + (more << its_exponent - least), least, marks | its_marks

    return total


def _double_of(fields: Fields, total: Total) -> Callable[[Entry, _Newest | None], float]:
    """Return what makes a double of a sum that has values."""
    place, exponents = fields["sum"]
    mark_at = fields["marks"][0] if "marks" in fields else None
    least = min(exponents)
    shifts = [exponent - least for exponent in exponents]

    def double(entry: Entry, new: _Newest | None) -> float:
        integer, exponent, marks = total(entry, new)
        return marked(as_double(integer, exponent), marks)

    if len(exponents) > 2 or least not in _PLAIN_SCALES or max(exponents) not in _PLAIN_SCALES:
        return double
    # The integer becomes a double, rounded once; times a power of two nothing is lost.
    scale, shift, more = 2.0**least, shifts[0], shifts[-1] if len(shifts) == 2 else None
    known: list[tuple[Entry | None, float]] = [(None, 0.0)]  # sum and mean of one window ask for the same

    def simple(entry: Entry, new: _Newest | None) -> float:
        if new is not None or (mark_at is not None and entry[mark_at]):
            return double(entry, new)
        of, value = known[0]
        if of is entry:
            return value
        integer = entry[place] << shift
        if more is not None:
            integer += entry[place + 1] << more
        value = float(integer * scale + 0.0)
        known[0] = entry, value
        return value

    return simple


def _integer_sum_of(count: int, total: Total) -> Get:
    def integer_sum(entry: Entry, new: _Newest | None, at: _At) -> int | None:
        if not entry[count] and (new is None or not new.count):
            return None
        integer, exponent, _ = total(entry, new)
        integer <<= exponent
        return integer if -_LIMIT <= integer < _LIMIT else None

    return integer_sum


def _mean_of(count: int, double: Callable[[Entry, _Newest | None], float]) -> Get:
    def mean(entry: Entry, new: _Newest | None, at: _At) -> float | None:
        number = entry[count] if new is None else entry[count] + new.count
        return double(entry, new) / number if number else None

    return mean


def _variance_of(function: str, count: int, total: Total, square: Total) -> Get:
    def variance(entry: Entry, new: _Newest | None, at: _At) -> float | None:
        number = entry[count] if new is None else entry[count] + new.count
        if number < 2:
            return None
        integer, exponent, marks = total(entry, new)
        its_square, unit, _ = square(entry, new)
        if marks:
            return math.nan
        least = min(exponent, unit // 2)
        found = variance_of(integer << (exponent - least), its_square << (unit - 2 * least), least, number)
        return math.sqrt(found) if function == "std" else found

    return variance


def _extreme_of(function: str, count: int, place: int) -> Get:
    pick, name = (min, "least") if function == "min" else (max, "greatest")

    def extreme(entry: Entry, new: _Newest | None, at: _At) -> Any:
        kept = entry[place] if entry[count] else None
        if new is None or not new.count:
            return kept
        come = getattr(new, name)
        return come if kept is None else _extreme(pick, (kept, come))

    return extreme


def _first_of(asked: Asked, group: Group, count: int, place: int) -> Get:
    def first(entry: Entry, new: _Newest | None, at: _At) -> Any:
        come = new.taken[0] if new is not None and new.taken else None
        if entry[count] and (come is None or entry[place : place + 3] < come[0].order):
            return _valued(group, at, entry[place + 3])
        return None if come is None else come[1]

    return first


def _valued(group: Group, at: _At, value: Any) -> Any:
    if group.kind != "text":
        return value
    assert at.lists is not None
    return text_at(at.lists.texts, value)


def _last_of(asked: Asked, group: Group, window: int) -> Get:
    def newest(entry: Entry, new: _Newest | None, at: _At) -> list[Any]:
        assert at.lists is not None
        after, count = at.after_us[window], asked.n if asked.function == "last_n" else 1
        kept = [(order, True, value) for *order, value in at.lists.lasts[asked.group] if order[0] > after]
        if new is None or not new.taken:
            return [_valued(group, at, value) for _, _, value in kept[:count]]
        come = [(list(event.order), False, value) for event, value in new.taken]
        found = sorted([*kept, *come], key=lambda item: item[0], reverse=True)
        return [_valued(group, at, value) if is_kept else value for _, is_kept, value in found[:count]]

    if asked.function == "last_n":
        return lambda entry, new, at: newest(entry, new, at) or None
    return lambda entry, new, at: next(iter(newest(entry, new, at)), None)


def _distinct_of(asked: Asked, group: Group, window: int) -> Get:
    def distinct(entry: Entry, new: _Newest | None, at: _At) -> int:
        assert at.lists is not None
        after, seen = at.after_us[window], at.lists.distinct[asked.group]
        count = sum(last > after for last in seen.values())
        come = () if new is None else {hash_of(value) for value in new.values}
        count += sum(seen.get(code, BEFORE_ALL) <= after for code in come)
        return min(count, asked.n)

    return distinct


_LISTS: Mapping[str, Callable[[Asked, Group, int], Get]] = {
    "last": _last_of,
    "last_n": _last_of,
    "count_distinct": _distinct_of,
}
