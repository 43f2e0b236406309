"""The values of windows at an instant, computed from one record: an entry of its tiles a window, and its newest events.

What is known of all records is worked out once: where the numbers of an entry are depends on the layout and on how many
integers the record's sums take. A record is then read in a few microseconds.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from operator import lshift
from typing import Any, NamedTuple

from featurestore.definitions.aggregation import PARTIALS
from featurestore.online.records.newest import NO_EVENTS, Taken, available_events, extreme, taken
from featurestore.online.records.reading import picked
from featurestore.online.records.windowed import (
    FORMAT,
    Lists,
    exponents_of,
    lists_of,
    shapes_of,
    text_at,
)
from featurestore.windows.layout import Asked, Group, Kind, Layout
from featurestore.windows.numbers import as_double, marked, variance_of
from featurestore.windows.tiles import BEFORE_ALL

_NUMBERS = ("count", "sum", "mean", "min", "max")
_LISTED = ("last", "last_n", "count_distinct")
_LIMIT = 1 << 63
_PLAIN, _FAR = range(-900, 700), 100
"""Two to the power of one of these times a 64-bit integer, shifted by fewer bits than far, is a normal double."""
MOST_PLANS = 1_000
UNREADABLE = (struct.error, ValueError, IndexError)
"""What reading a damaged record raises."""
_START = struct.Struct("<q").unpack_from


def hash_of(value: Any) -> int:
    """Return the 64 bits that make a value distinct: its own, or BLAKE2b's of a text. Zeros are one, and NaNs are."""
    if isinstance(value, bytes):
        return int.from_bytes(blake2b(value, digest_size=8).digest(), "little", signed=True)
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", math.nan if value != value else value + 0.0), "little", signed=True)
    return int(value)


_NONE = Taken(NO_EVENTS, (), ())


Unit = tuple[int, tuple[int, ...], float]
"""What the integers of a sum stand for: the least of their exponents, by how many bits each is shifted to get that, and
two to its power; 0.0 where the product of that with the shifted integers might not be a normal double.
"""


class _At(NamedTuple):
    """What other values than `_NUMBERS` are read with."""

    units: Sequence[Unit]
    lists: Lists | None
    after_us: Sequence[int]
    """Of each window: later events count."""
    variances: dict[tuple[int, int], float | None]
    """Those that were computed before, by window and group: a deviation is the root of one."""


Entry = tuple[Any, ...]
Quick = Callable[[Entry, Sequence[Unit]], tuple[Any, ...]]
"""Makes `_NUMBERS` of the entry of a window, where there are no newest events."""
Whole = Callable[[Entry, Sequence[Unit], Taken], tuple[Any, ...]]
"""Makes them of the entry and the newest events."""
Get = Callable[[Entry, Taken, _At], Any]
"""Makes another value of the entry of a window and the newest events in it."""
_Resolution = tuple[Callable[[bytes, int], Entry], int, Entry, Sequence[int]]
"""How the entries of one resolution are read: the function, their size, the one of a window that no tile is in (all
zeros), and the numbers of its windows. No class: tuples are unpacked faster.
"""
_Makers = tuple[
    Sequence[_Resolution], Sequence[tuple[Quick, int]], Sequence[tuple[Whole, int, int]], Sequence[tuple[Get, int, int]]
]
"""How records are read whose sums are of as many integers; each maker with its window, and its group."""


class WindowValues:
    """Computes the asked features of records of one layout."""

    def __init__(self, layout: Layout, asked: Sequence[Asked]) -> None:
        self._layout, self._taking = layout, {each.group for each in asked}
        windows = dict.fromkeys((each.resolution, each.length_us) for each in asked)
        self._windows = sorted(windows, key=lambda window: window[0])  # in the order in which a record has them
        self._steps = [(layout.resolutions[number].step_us, length) for number, length in self._windows]
        self._groups: dict[tuple[int, int], set[str]] = {}
        """For each window and group of `_NUMBERS` the partials that they are made of."""
        for each in asked:
            if each.function in _NUMBERS:
                self._groups.setdefault((self._window(each), each.group), {"marks"}).update(PARTIALS[each.function])
        self._others = [each for each in asked if each.function not in _NUMBERS]
        self._lists = {(each.group, partial) for each in asked for partial in PARTIALS[each.function]}
        self._needs_lists = any(
            each.function in _LISTED or (each.function == "first" and layout.groups[each.group].kind == "text")
            for each in asked
        )
        others = iter(range(len(_NUMBERS) * len(self._groups), len(_NUMBERS) * len(self._groups) + len(self._others)))
        self._pick = picked([self._place(each) if each.function in _NUMBERS else next(others) for each in asked])
        self._head = struct.Struct(f"<B3xI8xq8s{len(layout.resolutions)}IH")
        self._plans: dict[bytes, tuple[Sequence[Unit], _Makers]] = {}
        self._makers: dict[tuple[int, ...], _Makers] = {}
        self._after_us: tuple[int, int, Sequence[int]] = (0, 0, ())

    def _window(self, asked: Asked) -> int:
        return self._windows.index((asked.resolution, asked.length_us))

    def _place(self, asked: Asked) -> int:
        group = list(self._groups).index((self._window(asked), asked.group))
        return len(_NUMBERS) * group + _NUMBERS.index(asked.function)

    def after_us(self, now_us: int) -> Sequence[int]:
        """Return of each window the instant after which events count."""
        since_us, until_us, found = self._after_us
        if not since_us <= now_us < until_us:  # it moves in steps
            found = [BEFORE_ALL if length is None else (now_us - length) // step * step for step, length in self._steps]
            moves = [(after + length, step) for after, (step, length) in zip(found, self._steps, strict=True) if length]
            since_us = max((at for at, _ in moves), default=now_us)
            self._after_us = since_us, min((at + step for at, step in moves), default=now_us + 1), found
        return found

    def rows(self, records: Iterable[bytes], now_us: int) -> list[list[Any]]:
        """Return the features of records of this layout; raises `UNREADABLE` if one is not or is damaged."""
        rows, after_us = [], self.after_us(now_us)
        unpack_head, layout_id, scales_at, pick = self._head.unpack_from, self._layout.id, self._head.size, self._pick
        plans = self._plans
        for record in records:
            head = unpack_head(record)
            if head[3] != layout_id or head[0] != FORMAT or head[1] > len(record):
                raise ValueError("it has another layout, or is cut off")
            newest_us, place = head[2], scales_at + head[-1]
            scales = record[scales_at:place]
            units, (resolutions, quick_numbers, numbers, others) = plans.get(scales) or self._planned(scales)
            entries: list[Entry] = []
            for (unpack_from, size, nothing, windows), count in zip(resolutions, head[4:], strict=False):
                first = place + 8 * count
                start = _START(record, place)[0] if count else 0
                for window in windows:
                    after = after_us[window]
                    if newest_us <= after or not count:
                        entries.append(nothing)
                    elif start >= after:
                        entries.append(unpack_from(record, first))
                    else:
                        index = bisect_left(memoryview(record)[place:first].cast("q"), after)
                        entries.append(unpack_from(record, first + index * size) if index < count else nothing)
                place = first + count * size
            values: list[Any] = []
            newest = None if head[1] == len(record) else self._newest(record, head[1], now_us, after_us)
            if newest is None:
                for quick, window in quick_numbers:
                    values += quick(entries[window], units)
            else:
                for whole, window, group in numbers:
                    values += whole(entries[window], units, newest[window, group])
            if others:
                lists = lists_of(self._layout, record, place, self._lists) if self._needs_lists else None
                at = _At(units, lists, after_us, {})
                for get, window, group in others:
                    values.append(get(entries[window], _NONE if newest is None else newest[window, group], at))
            rows.append([] if pick is None else list(pick(values)))
        return rows

    def _newest(
        self, record: bytes, begin: int, now_us: int, after_us: Sequence[int]
    ) -> Mapping[tuple[int, int], Taken]:
        """Return the newest events of each window and group; windows with the same events share them."""
        events = available_events(self._layout, record, begin, now_us)
        firsts = [bisect_right(events.event_us, after) for after in after_us]
        found: dict[tuple[int, int], Taken] = {}
        for group in self._taking:
            places, values = taken(events, self._layout.groups[group])
            made: dict[int, Taken] = {}
            for window, first in enumerate(firsts):
                if first not in made:
                    at = bisect_left(places, first)
                    made[first] = Taken(events, places[at:], values[at:])
                found[window, group] = made[first]
        return found

    def _planned(self, scales: bytes) -> tuple[Sequence[Unit], _Makers]:
        for known in (self._plans, self._makers):
            if len(known) > MOST_PLANS:
                known.clear()
        exponents = exponents_of(scales)
        limbs = tuple(map(len, exponents))
        if limbs not in self._makers:
            self._makers[limbs] = self._made(limbs)
        self._plans[scales] = plan = list(map(_unit_of, exponents)), self._makers[limbs]
        return plan

    def _made(self, limbs: tuple[int, ...]) -> _Makers:
        """Return how records are read whose sums are of so many integers."""
        layout, shapes = self._layout, shapes_of(self._layout, limbs)
        resolutions = [
            (
                shape.entry.unpack_from,
                shape.entry.size,
                shape.entry.unpack(bytes(shape.entry.size)),
                [window for window, (its, _) in enumerate(self._windows) if its == number],
            )
            for number, shape in enumerate(shapes)
        ]

        def fields_of(window: int, group: int) -> Fields:
            resolution = self._windows[window][0]
            parts = [its for its, _ in layout.resolutions[resolution].parts]
            return shapes[resolution].parts[parts.index(group)] if group in parts else {}

        quick, numbers = [], []
        for (window, group), partials in self._groups.items():
            fields = {name: found for name, found in fields_of(window, group).items() if name in partials}
            whole = _whole_of(layout.groups[group].kind, fields, limbs)
            quick.append((_quick_of(layout.groups[group].kind, fields, limbs, whole), window))
            numbers.append((whole, window, group))
        others = [
            (
                _other_of(each, layout.groups[each.group], fields_of(window, each.group), limbs, window),
                window,
                each.group,
            )
            for each in self._others
            for window in (self._window(each),)
        ]
        return resolutions, quick, numbers, others


def _unit_of(exponents: Sequence[int]) -> Unit:
    least, most = min(exponents, default=0), max(exponents, default=0)
    is_plain = least in _PLAIN and most in _PLAIN and most - least < _FAR
    return least, tuple(exponent - least for exponent in exponents), 2.0**least if is_plain else 0.0


Fields = Mapping[str, tuple[int, int]]
"""Where each partial of a group is in an entry, and which of the record's sums it is."""
_NOTHING = (0, None, None, None, None)


def _whole_of(kind: Kind, fields: Fields, limbs: Sequence[int]) -> Whole:
    """Return what makes `_NUMBERS`; those whose partials are not among the fields mean nothing."""
    count = fields["count"][0]
    least, greatest = (fields[name][0] if name in fields else count for name in ("min", "max"))
    rounded = _rounded_of(kind, fields, limbs) if "sum" in fields else None

    def whole(entry: Entry, units: Sequence[Unit], new: Taken) -> tuple[Any, ...]:
        kept = entry[count]
        number = kept + new.count
        if not number:
            return _NOTHING
        low, high = entry[least], entry[greatest]
        if new.count:
            low = low if least == count else extreme(min, (low, new.least)) if kept else new.least
            high = high if greatest == count else extreme(max, (high, new.greatest)) if kept else new.greatest
        total, double = (None, 0.0) if rounded is None else rounded(entry, units, new)
        return number, total, double / number, low, high

    return whole


def _quick_of(kind: Kind, fields: Fields, limbs: Sequence[int], whole: Whole) -> Quick:
    """Return the same for most records: sums of one or two integers, and no marks."""
    count = fields["count"][0]
    least, greatest = (fields[name][0] if name in fields else count for name in ("min", "max"))
    if "sum" not in fields:
        return lambda entry, units: (
            (entry[count], None, None, entry[least], entry[greatest]) if entry[count] else _NOTHING
        )
    place, which = fields["sum"]
    if limbs[which] > 2:
        return lambda entry, units: whole(entry, units, _NONE)
    second = place + 1 if limbs[which] == 2 else None
    mark_at, is_float = fields["marks"][0] if "marks" in fields else count, kind == "float"

    def quick(entry: Entry, units: Sequence[Unit]) -> tuple[Any, ...]:
        number = entry[count]
        if not number:
            return _NOTHING
        exponent, shifts, unit = units[which]
        if not unit or (is_float and entry[mark_at]):
            return whole(entry, units, _NONE)
        integer = entry[place] if second is None else (entry[place] << shifts[0]) + (entry[second] << shifts[1])
        if is_float:
            total = integer * unit  # the integer becomes a double, rounded once; times a power of two nothing is lost
            return number, total, total / number, entry[least], entry[greatest]
        integer <<= exponent
        kept = integer if -_LIMIT <= integer < _LIMIT else None
        return number, kept, float(integer) / number, entry[least], entry[greatest]

    return quick


def _added_of(place: int, count: int) -> Callable[[Entry, Sequence[int]], int]:
    """Return what adds up so many integers from a place on; for the usual one to three without a loop."""
    if count == 1:
        return lambda entry, shifts: int(entry[place])
    second, third = place + 1, place + 2
    if count == 2:
        return lambda entry, shifts: (entry[place] << shifts[0]) + (entry[second] << shifts[1])
    if count == 3:
        return lambda entry, s: (entry[place] << s[0]) + (entry[second] << s[1]) + (entry[third] << s[2])
    return lambda entry, shifts: sum(map(lshift, entry[place : place + count], shifts))


Total = Callable[[Entry, Sequence[Unit], Taken], tuple[int, int, int]]


def _total_of(name: str, fields: Fields, limbs: Sequence[int]) -> Total:
    """Return what adds up the values, or their squares: an integer, the exponent of its unit, and the marks."""
    place, which = fields[name]
    added, mark_at = _added_of(place, limbs[which]), fields["marks"][0] if "marks" in fields else None

    def total(entry: Entry, units: Sequence[Unit], new: Taken) -> tuple[int, int, int]:
        exponent, shifts, _ = units[which]
        integer = added(entry, shifts)
        marks = 0 if mark_at is None else entry[mark_at]
        if not new.count:
            return integer, exponent, marks
        more, its_exponent, its_marks = new.sum if name == "sum" else new.square
        if not more:
            return integer, exponent, marks | its_marks
        least = min(exponent, its_exponent)
        return (integer << exponent - least) + (more << its_exponent - least), least, marks | its_marks

    return total


def _rounded_of(kind: Kind, fields: Fields, limbs: Sequence[int]) -> Callable[..., tuple[Any, float]]:
    """Return what makes the feature `sum`, and the sum as a double."""
    total = _total_of("sum", fields, limbs)

    def integer_sum(entry: Entry, units: Sequence[Unit], new: Taken) -> tuple[Any, float]:
        integer, exponent, _ = total(entry, units, new)
        integer <<= exponent
        return integer if -_LIMIT <= integer < _LIMIT else None, float(integer)

    (place, which), mark_at = fields["sum"], fields.get("marks", (0,))[0]
    added = _added_of(place, limbs[which])

    def float_sum(entry: Entry, units: Sequence[Unit], new: Taken) -> tuple[Any, float]:
        _, shifts, unit = units[which]
        if unit and new.count and not entry[mark_at]:
            terms = list(new.values)
            integer = added(entry, shifts)
            while integer:  # as doubles that add up to it
                double = float(integer)
                terms.append(double * unit)
                integer -= int(double)
            try:
                double = math.fsum(terms)  # exact, and rounded once
            except (ValueError, OverflowError):
                double = math.nan
            if math.isfinite(double):
                return double, double
        integer, exponent, marks = total(entry, units, new)
        double = marked(as_double(integer, exponent), marks)
        return double, double

    return float_sum if kind == "float" else integer_sum


def _other_of(asked: Asked, group: Group, fields: Fields, limbs: Sequence[int], window: int) -> Get:
    """Return what makes a feature that is not one of `_NUMBERS`."""
    if asked.function in _LISTED:
        return _LISTS[asked.function](asked, group, window)
    count = fields["count"][0]
    if asked.function == "first":
        return _first_of(group, count, fields["first"][0])
    totals = _total_of("sum", fields, limbs), _total_of("square", fields, limbs)
    return _variance_of(asked.function, count, *totals, (window, asked.group))


def _variance_of(function: str, count: int, total: Total, square: Total, of: tuple[int, int]) -> Get:
    def computed(entry: Entry, new: Taken, at: _At) -> float | None:
        number = entry[count] + new.count
        if number < 2:
            return None
        integer, exponent, marks = total(entry, at.units, new)
        its_square, unit, _ = square(entry, at.units, new)
        return math.nan if marks else variance_of(integer, exponent, its_square, unit, number)

    def variance(entry: Entry, new: Taken, at: _At) -> float | None:
        if of in at.variances:
            return at.variances[of]
        found = at.variances[of] = computed(entry, new, at)
        return found

    def deviation(entry: Entry, new: Taken, at: _At) -> float | None:
        found = variance(entry, new, at)
        return None if found is None else math.sqrt(found)

    return deviation if function == "std" else variance


def _first_of(group: Group, count: int, place: int) -> Get:
    def first(entry: Entry, new: Taken, at: _At) -> Any:
        order, value = next(new.ordered) if new.count else (None, None)
        if entry[count] and (order is None or entry[place : place + 3] < order):
            return _valued(group, at, entry[place + 3])
        return value

    return first


def _valued(group: Group, at: _At, value: Any) -> Any:
    if group.kind != "text":
        return value
    assert at.lists is not None
    return text_at(at.lists.texts, value)


def _last_of(asked: Asked, group: Group, window: int) -> Get:
    def newest(entry: Entry, new: Taken, at: _At) -> list[Any]:
        assert at.lists is not None
        after, count = at.after_us[window], asked.n if asked.function == "last_n" else 1
        kept = [(tuple(order), True, value) for *order, value in at.lists.lasts[asked.group] if order[0] > after]
        if not new.count:
            return [_valued(group, at, value) for _, _, value in kept[:count]]
        come = [(order, False, value) for order, value in new.ordered]
        found = sorted([*kept, *come], key=lambda item: item[0], reverse=True)
        return [_valued(group, at, value) if is_kept else value for _, is_kept, value in found[:count]]

    if asked.function == "last_n":
        return lambda entry, new, at: newest(entry, new, at) or None
    return lambda entry, new, at: next(iter(newest(entry, new, at)), None)


def _distinct_of(asked: Asked, group: Group, window: int) -> Get:
    def distinct(entry: Entry, new: Taken, at: _At) -> int:
        assert at.lists is not None
        after, seen = at.after_us[window], at.lists.distinct[asked.group]
        count = sum(map(after.__lt__, seen.values()))
        count += sum(seen.get(code, BEFORE_ALL) <= after for code in set(map(hash_of, new.values)))
        return min(count, asked.n)

    return distinct


_LISTS: Mapping[str, Callable[[Asked, Group, int], Get]] = {
    "last": _last_of,
    "last_n": _last_of,
    "count_distinct": _distinct_of,
}
