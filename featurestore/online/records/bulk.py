"""Windowed records of many entities at once, from columns of their events: what `Tiles` and `encode` make of each.

Events come in the order of their entities, and of each entity in theirs. An entry holds what comes after its start, so
each of its numbers is a sum, an extreme or a first one from its tile up to the entity's last event.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from featurestore.online.records.codec import CRC_BYTES
from featurestore.online.records.windowed import FORMAT, HEADER, Texts, event_shape
from featurestore.online.records.windows_values import hash_of
from featurestore.windows.exact import Level, float_levels, integer_levels, integer_square_levels, square_levels
from featurestore.windows.layout import Group, Layout, Resolution
from featurestore.windows.numbers import ABOVE, BELOW, NAN
from featurestore.windows.tiles import BEFORE_ALL

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]
    Column = npt.NDArray[Any]

_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")
_LEAST, _GREATEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


class Events(NamedTuple):
    """Events in columns, in the order of entity, event time, known time and number."""

    entity: Ints
    """The place of each event's entity among the keys."""
    event_us: Ints
    known_us: Ints
    number: Ints
    values: Sequence[tuple[Column, Mask]]
    """By the layout's columns: doubles, integers or objects of bytes, and which of them are not null."""
    conditions: Sequence[Mask]

    def where(self, kept: Mask) -> Events:
        """Return some of the events."""
        return Events(
            self.entity[kept],
            self.event_us[kept],
            self.known_us[kept],
            self.number[kept],
            [(column[kept], is_given[kept]) for column, is_given in self.values],
            [condition[kept] for condition in self.conditions],
        )


@dataclass(slots=True)
class _Limb:
    """One integer of a sum; entities for which it is always 0 do without it."""

    sum: tuple[int, int, str]
    """Which sum it is one of."""
    exponent: int
    is_needed: Mask
    """For each entity."""


@dataclass(slots=True)
class _Number:
    """One number of each entry."""

    code: str
    values: Column
    limb: _Limb | None = None


@dataclass(slots=True)
class _Entries:
    """The entries of one resolution, by entity and start."""

    starts: Ints
    begins: Ints
    """Where each entity's entries begin, and the end of all."""
    numbers: list[_Number]


def build(layout: Layout, keys: Sequence[bytes], events: Events, base_sequence: int, now_us: int) -> list[bytes]:
    """Return the record of each key, without newest events. All events are settled."""
    return _Builder(layout, len(keys), events).records(keys, base_sequence, now_us)


def encode_events(layout: Layout, keys: Sequence[bytes], events: Events) -> tuple[list[bytes], Mask]:
    """Return what `encode_event` makes of each event, and of which: the others have nulls or texts."""
    codes, marks, whole = event_shape(layout)
    count = len(events.entity)
    if whole is None or marks > 8:
        return [b""] * count, np.zeros(count, np.bool_)
    kept = events.values[: len(codes)]
    bits = np.zeros(count, "<u8")
    for place, condition in enumerate(events.conditions):
        bits |= condition.astype(np.uint64) << np.uint64(len(codes) + place)
    length = np.full(count, whole.size + CRC_BYTES)
    columns: list[tuple[str, Column]] = [
        ("u2", length),
        ("i8", events.number),
        ("i8", events.event_us),
        ("i8", events.known_us),
    ]
    columns += [("u1", column) for column in bits.view(np.uint8).reshape(count, 8)[:, :marks].T]
    columns += [("f8" if code == "d" else "i8", column) for code, (column, _) in zip(codes, kept, strict=True)]
    data, size = _packed(columns)
    starts = np.array([crc32(key) for key in keys], np.int64)[events.entity].tolist()
    entries = []
    for begin, start in zip(range(0, len(data), size), starts, strict=True):
        entry = data[begin : begin + size]
        entries.append(entry + crc32(entry, start).to_bytes(CRC_BYTES))
    return entries, np.logical_and.reduce([np.ones(count, np.bool_), *(is_given for _, is_given in kept)])


class _Builder:
    def __init__(self, layout: Layout, count: int, events: Events) -> None:
        self._layout, self._count, self._events = layout, count, events
        self._groups = [_Values(group, place, layout, events) for place, group in enumerate(layout.groups)]
        self._texts = [Texts() for _ in range(count)] if _keeps_texts(layout) else None

    def records(self, keys: Sequence[bytes], base_sequence: int, now_us: int) -> list[bytes]:
        ends = np.searchsorted(self._events.entity, np.arange(self._count), side="right")
        newest = np.full(self._count, BEFORE_ALL, np.int64)
        has_any = np.diff(ends, prepend=0) > 0
        newest[has_any] = self._events.event_us[ends[has_any] - 1]
        until = np.where(has_any, np.minimum(newest, now_us), now_us)  # as `Tiles.expire`
        made = [self._entries(place, each, until) for place, each in enumerate(self._layout.resolutions)]
        lists = [each for group in self._groups for each in self._lists(group)]
        records = [b""] * self._count
        for entities, scales, blocks in _alike(made, self._count):
            tails = self._tails(entities.tolist(), lists)
            sizes = HEADER.size + len(scales) + np.array(list(map(len, tails)), np.int64) + CRC_BYTES
            sizes += sum(4 + block.counts * (8 + block.size) for block in blocks)
            constants = [np.full(len(sizes), each) for each in (FORMAT, base_sequence, self._layout.id)]
            head = [("u4", constants[0]), ("u4", sizes), ("i8", constants[1]), ("i8", newest[entities])]
            head += [("S8", constants[2]), *(("u4", block.counts) for block in blocks)]
            parts = [_cut(*_packed(head), np.ones_like(sizes)), repeat(scales, len(sizes))]
            parts += [_cut(*each, block.counts) for block in blocks for each in ((block.starts, 8), block[2:])]
            for entity, *body in zip(entities.tolist(), *parts, tails, strict=True):
                content = b"".join(body)
                records[entity] = content + crc32(content, crc32(keys[entity])).to_bytes(CRC_BYTES)
        return records

    def _tails(self, entities: Sequence[int], lists: Sequence[Sequence[bytes]]) -> list[bytes]:
        """Return what follows the entries of each entity: its lists and texts."""
        if self._texts is None:
            nothing = _U32.pack(0)
            return [b"".join([*(each[entity] for each in lists), nothing]) for entity in entities]
        return [
            b"".join([*(each[entity] for each in lists), _U32.pack(len(texts := self._texts[entity].data)), texts])
            for entity in entities
        ]

    def _entries(self, place: int, resolution: Resolution, until_us: npt.NDArray[np.int64]) -> _Entries:
        events, step = self._events, resolution.step_us
        starts = (-(-events.event_us // step) - 1) * step if step else np.full(len(events.entity), BEFORE_ALL)
        rows = np.arange(len(starts))
        if resolution.longest_us is not None:
            oldest = (until_us - resolution.longest_us) // step * step
            rows = np.flatnonzero(starts >= oldest[events.entity])
        entity, starts = events.entity[rows], starts[rows]
        is_first = np.ones(len(rows), np.bool_)
        is_first[1:] = (entity[1:] != entity[:-1]) | (starts[1:] != starts[:-1])
        first = np.flatnonzero(is_first)
        begins = np.searchsorted(entity[first], np.arange(self._count + 1))
        suffix = _Suffix(rows, first, entity[first], begins)
        numbers = [
            number
            for group, partials in resolution.parts
            for number in self._numbers((place, group), self._groups[group], partials, suffix)
        ]
        return _Entries(starts[first], begins, numbers)

    def _numbers(
        self, where: tuple[int, int], group: _Values, partials: Sequence[str], suffix: _Suffix
    ) -> Iterator[_Number]:
        counts = suffix.sums(group.taken.astype(np.int64))
        code = "f8" if group.group.kind == "float" else "i8"
        yield _Number("u4", counts)
        if "sum" in partials and group.group.kind == "float":
            marks = np.zeros(len(counts), np.uint8)
            for mark, has in group.marks:
                marks |= np.where(suffix.sums(has.astype(np.int64)) > 0, mark, 0).astype(np.uint8)
            yield _Number("u1", marks)
        for partial, levels in (("sum", group.sums), ("square", group.squares)):
            if partial in partials:
                yield from self._limbs((*where, partial), levels, suffix)
        for partial, pick in (("min", np.minimum), ("max", np.maximum)):
            if partial in partials:
                yield _Number(code, np.where(counts > 0, suffix.extremes(pick, group.values, group.taken), 0) + 0)
        if "first" in partials:
            yield from self._firsts(group, suffix, code)

    def _limbs(self, of: tuple[int, int, str], levels: Sequence[Level], suffix: _Suffix) -> Iterator[_Number]:
        zeros = Level(0, np.zeros(len(self._events.entity), np.int64))
        found = []
        for level in levels or [zeros]:
            sums = suffix.sums(level.integers)
            is_needed = np.zeros(self._count, np.bool_)
            is_needed[suffix.entity[sums != 0]] = True
            found.append(_Number("i8", sums, _Limb(of, level.exponent, is_needed)))
        limbs = [each.limb for each in found if each.limb is not None]
        limbs[0].is_needed |= ~np.logical_or.reduce([limb.is_needed for limb in limbs])
        yield from found

    def _firsts(self, group: _Values, suffix: _Suffix, code: str) -> Iterator[_Number]:
        rows = suffix.firsts(group.taken)
        has, events = rows >= 0, self._events
        for column in (events.event_us, events.known_us, events.number):
            yield _Number("i8", np.where(has, column[rows], 0) if len(column) else column)
        if self._texts is None or group.group.kind != "text":
            yield _Number(code, np.where(has, group.values[rows], 0) if len(group.values) else group.values)
            return
        texts = [
            self._texts[entity].place(group.values[row]) if row >= 0 else 0
            for entity, row in zip(suffix.entity.tolist(), rows.tolist(), strict=True)
        ]
        yield _Number("i8", np.array(texts, np.int64))

    def _lists(self, group: _Values) -> Iterator[list[bytes]]:
        """Yield the lists of the last and of the distinct values of each entity, where they are kept."""
        entity = self._events.entity
        if group.group.last:
            rows = np.flatnonzero(group.taken)[::-1]
            rows = rows[np.argsort(-entity[rows], kind="stable")][::-1]  # by entity, oldest first
            rows = _latest(rows, entity[rows], group.group.last)
            values = group.values[rows]
            if group.group.kind == "text":
                assert self._texts is not None
                places = [self._texts[of].place(text) for of, text in zip(entity[rows].tolist(), values, strict=True)]
                values = np.array(places, np.int64)
            columns = [self._events.event_us[rows], self._events.known_us[rows], self._events.number[rows], values]
            yield self._listed(entity[rows], columns)
        if group.group.distinct:
            rows = np.flatnonzero(group.taken)
            codes, at_us = group.codes(rows), self._events.event_us[rows]
            order = np.lexsort((at_us, codes, entity[rows]))
            of, codes, at_us = entity[rows][order], codes[order], at_us[order]
            is_last = np.ones(len(of), np.bool_)
            is_last[:-1] = (of[1:] != of[:-1]) | (codes[1:] != codes[:-1])
            of, codes, at_us = of[is_last], codes[is_last], at_us[is_last]
            order = np.lexsort((codes, at_us, of))
            kept = _latest(order, of[order], group.group.distinct)
            yield self._listed(of[kept], [codes[kept], at_us[kept]])

    def _listed(self, entity: Ints, columns: Sequence[Column]) -> list[bytes]:
        """Return the items of each entity as bytes, with their number before."""
        data, size = _packed([("f8" if column.dtype == np.float64 else "i8", column) for column in columns])
        begins = np.searchsorted(entity, np.arange(self._count + 1)).tolist()
        return [_U16.pack(end - begin) + data[begin * size : end * size] for begin, end in pairwise(begins)]


class _Values:
    """The values of one group, as integers that add without error where they are summed."""

    def __init__(self, group: Group, place: int, layout: Layout, events: Events) -> None:
        self.group = group
        if group.column is None:
            self.values: Column = np.ones(len(events.entity), np.int64)
            self.taken: Mask = np.ones(len(events.entity), np.bool_)
        else:
            self.values, self.taken = events.values[group.column]
        if group.condition is not None:
            self.taken = self.taken & events.conditions[group.condition]
        self.sums: list[Level] = []
        self.squares: list[Level] = []
        self.marks: list[tuple[int, Mask]] = []
        partials = {each for r in layout.resolutions for g, names in r.parts if g == place for each in names}
        if "sum" in partials:
            most = int(np.bincount(events.entity).max(initial=0))
            self._split(most, is_squared="square" in partials)

    def _split(self, most: int, *, is_squared: bool) -> None:
        values = self.values
        if self.group.kind != "float":
            summed = np.where(self.taken, values, 0)
            self.sums = integer_levels(summed, most=most)
            self.squares = integer_square_levels(summed, most=most) if is_squared else []
            return
        is_finite = np.isfinite(values)
        if not is_finite.all():
            kinds = ((NAN, np.isnan(values)), (ABOVE, values == np.inf), (BELOW, values == -np.inf))
            self.marks = [(mark, self.taken & is_kind) for mark, is_kind in kinds]
        summed = np.where(self.taken & is_finite, values, 0.0)
        self.sums = float_levels(summed, most=most)
        self.squares = square_levels(summed, most=most) if is_squared else []

    def codes(self, rows: Ints) -> Ints:
        """Return what makes the values of some rows distinct, as `hash_of`."""
        values = self.values[rows]
        if self.group.kind == "float":
            return np.where(np.isnan(values), np.nan, values + 0.0).view(np.int64)
        if self.group.kind == "integer":
            return values
        known = {text: hash_of(text) for text in set(values.tolist())}
        return np.array([known[text] for text in values.tolist()], np.int64)


class _Suffix:
    """What entries hold of all events from their start to their entity's last."""

    def __init__(self, rows: Ints, first: Ints, entity: Ints, begins: Ints) -> None:
        self._rows, self._first, self.entity = rows, first, entity
        self._ends = begins[entity + 1]
        """The end of the entity's entries, for each entry."""
        distance = self._ends - np.arange(len(first))
        order = np.argsort(distance, kind="stable")
        steps = np.searchsorted(distance[order], np.arange(1, int(distance.max(initial=0)) + 2))
        self._steps = [order[begin:end] for begin, end in pairwise(steps[1:])]
        """The entries that are the second, third ... from the end of their entity."""

    def sums(self, values: Ints) -> Ints:
        """Return sums of integers."""
        if not len(self._first):
            return np.zeros(0, np.int64)
        own = np.add.reduceat(values[self._rows], self._first)
        total = np.append(np.cumsum(own[::-1])[::-1], 0)
        found: Ints = total[:-1] - total[self._ends]
        return found

    def extremes(self, pick: np.ufunc, values: Column, taken: Mask) -> Column:
        """Return the least or greatest of the values that are taken; NaN where one is."""
        least, greatest = (-np.inf, np.inf) if values.dtype == np.float64 else (_LEAST, _GREATEST)
        if not len(self._first):
            return values[:0]
        found = pick.reduceat(
            np.where(taken, values, greatest if pick is np.minimum else least)[self._rows], self._first
        )
        for entries in self._steps:
            found[entries] = pick(found[entries], found[entries + 1])
        return found

    def firsts(self, taken: Mask) -> Ints:
        """Return the row of the first event that is taken; -1 for none."""
        if not len(self._first):
            return np.zeros(0, np.int64)
        count = len(self._rows)
        places = np.where(taken[self._rows], np.arange(count), count)
        following = np.minimum.accumulate(places[::-1])[::-1][self._first]
        ends = np.append(self._first, count)[self._ends]
        return np.where(following < ends, self._rows[np.minimum(following, count - 1)], -1)


def _latest(rows: Ints, entity: Ints, most: int) -> Ints:
    """Return the last rows of each entity, at most so many, the last first."""
    ends = np.searchsorted(entity, entity, side="right")
    kept = np.flatnonzero(ends - 1 - np.arange(len(rows)) < most)[::-1]
    return rows[kept[np.argsort(entity[kept], kind="stable")]]


def _keeps_texts(layout: Layout) -> bool:
    firsts = {group for each in layout.resolutions for group, partials in each.parts if "first" in partials}
    return any(g.kind == "text" and (g.last or place in firsts) for place, g in enumerate(layout.groups))


def _packed(columns: Sequence[tuple[str, Column]]) -> tuple[bytes, int]:
    """Return rows of little-endian numbers, and the size of one."""
    shape = np.dtype([(f"n{place}", f"<{code}") for place, (code, _) in enumerate(columns)])
    rows = np.empty(len(columns[0][1]) if columns else 0, shape)
    for name, (_, values) in zip(shape.names or (), columns, strict=True):
        rows[name] = values
    return rows.tobytes(), shape.itemsize


class _Block(NamedTuple):
    """The entries of one resolution of some entities."""

    counts: Ints
    starts: bytes
    numbers: bytes
    size: int
    """That of the numbers of an entry."""


def _cut(data: bytes, size: int, counts: Ints) -> list[bytes]:
    """Return so many rows of one size after the other."""
    return [data[begin:end] for begin, end in pairwise([0, *np.cumsum(size * counts).tolist()])]


def _alike(made: Sequence[_Entries], count: int) -> Iterator[tuple[Ints, bytes, list[_Block]]]:
    """Yield entities whose sums need the same limbs, with the scales, and their entries of each
    resolution."""
    limbs = [number.limb for entries in made for number in entries.numbers if number.limb is not None]
    if limbs:
        needs = np.packbits(np.stack([limb.is_needed for limb in limbs], axis=1), axis=1)
        patterns, which = np.unique(needs, axis=0, return_inverse=True)
    else:
        patterns, which = np.zeros((1, 0), np.uint8), np.zeros(count, np.int64)
    for pattern in range(len(patterns)):
        entities = np.flatnonzero(which.reshape(-1) == pattern)
        of_sums: dict[tuple[int, int, str], list[int]] = {}
        for limb in limbs:
            if limb.is_needed[entities[0]]:
                of_sums.setdefault(limb.sum, []).append(limb.exponent)
        scales = b"".join(struct.pack(f"<B{len(found)}h", len(found), *found) for found in of_sums.values())
        yield entities, _U16.pack(len(scales)) + scales, [_block(entries, entities) for entries in made]


def _block(entries: _Entries, entities: Ints) -> _Block:
    counts = entries.begins[entities + 1] - entries.begins[entities]
    ends = np.cumsum(counts)
    rows = np.repeat(entries.begins[entities] - (ends - counts), counts) + np.arange(int(counts.sum()))
    columns = [
        (number.code, number.values[rows])
        for number in entries.numbers
        if number.limb is None or number.limb.is_needed[entities[0]]
    ]
    return _Block(counts, entries.starts[rows].astype("<i8").tobytes(), *_packed(columns))
