"""A windowed view between its keys and its values: records of tiles and newest events, read at an instant."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

from featurestore.online.interface import ViewLayout
from featurestore.online.records.codec import damaged, foreign
from featurestore.online.records.keys import KeyEncoder, mark_key
from featurestore.online.records.reading import FetchValue, Form, ViewRows
from featurestore.online.records.windowed import (
    EVENT,
    Lists,
    Sections,
    Shape,
    decode_event,
    entries_of,
    head_of,
    is_windowed,
    lists_of,
    sections_of,
    shapes_of,
    text_at,
)
from featurestore.online.records.windows_known import Known, Learn
from featurestore.statuses import Status
from featurestore.types.times import days_to_date, to_datetime
from featurestore.types.values import ValueType, to_json
from featurestore.windows.layout import Asked, Layout
from featurestore.windows.numbers import as_double, joined, mark_of, marked, units_of, variance_of
from featurestore.windows.tiles import BEFORE_ALL, TileEvent

_LISTED = ("last", "last_n", "count_distinct")
_COUNTS = ("count", "count_distinct")
_LIMIT = 1 << 63


def hash_of(value: Any) -> int:
    """Return the 64 bits that make a value distinct: its own, or BLAKE2b's of a text. Zeros are one, and NaNs are."""
    if isinstance(value, bytes):
        return int.from_bytes(blake2b(value, digest_size=8).digest(), "little", signed=True)
    if isinstance(value, float):
        return int.from_bytes(struct.pack("<d", math.nan if value != value else value + 0.0), "little", signed=True)
    return int(value)


class _Window(NamedTuple):
    """One window of a record at an instant."""

    after_us: int
    """Events after this instant count."""
    entry: tuple[Any, ...] | None
    shape: Shape


class _Record(NamedTuple):
    """One record at an instant."""

    windows: Mapping[tuple[int, int | None], _Window]
    lists: Lists | None
    events: Sequence[TileEvent]
    """The newest events that are available, in their order."""


class WindowRecords:
    """A view whose records hold tiles (`serving.views.ServedView`). ``asked`` in the order of the features."""

    def __init__(
        self,
        keys: ViewLayout,
        layout: Layout,
        asked: Sequence[Asked],
        *,
        form: Form = "python",
        fetch: FetchValue | None = None,
    ) -> None:
        self._encoder = KeyEncoder(keys)
        self._layout, self._asked = layout, tuple(asked)
        self._fetch = fetch
        self._windows = list(dict.fromkeys((each.resolution, each.length_us) for each in asked))
        self._needs_lists = any(
            each.function in _LISTED or (each.function == "first" and layout.groups[each.group].kind == "text")
            for each in asked
        )
        self._part_of = {
            (number, group): place
            for number, resolution in enumerate(layout.resolutions)
            for place, (group, _) in enumerate(resolution.parts)
        }
        self._read = [partial(_FUNCTIONS[each.function], self, each) for each in asked]
        self._convert = [_converter(each.type, form) for each in asked]
        self._form = form
        self._absent = (Status.NOT_FOUND,) * len(self._asked)
        self._present = (Status.PRESENT,) * len(self._asked)
        marks = partial(mark_key, self._encoder.namespace)
        self._known = Known(marks, self._encoder.schema_key, layout, self._asked)
        self._others: dict[bytes, WindowRecords] = {}

    def keys(self, entities: Sequence[str]) -> list[bytes]:
        """Return the key of each encoded entity."""
        return self._encoder.keys(entities)

    def unknown(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> Mapping[bytes, Learn]:
        """Return the keys to look up before `read`: marks, and documents of other layouts."""
        needs_mark, buckets = self._needs_mark(records, now_us), self._empty_buckets(keys, records)
        return self._known.unknown(_layouts_of(records), needs_mark=needs_mark, buckets=buckets)

    def _empty_buckets(self, keys: Sequence[bytes], records: Sequence[bytes | None]) -> list[bytes]:
        """Return the buckets of entities without a record."""
        absent = (key for key, record in zip(keys, records, strict=True) if record is None)
        return list(dict.fromkeys(map(self._encoder.bucket_of, absent)))

    def _needs_mark(self, records: Iterable[bytes | None], now_us: int) -> bool:
        return any(instant is None for instant in self._newest_us(records, now_us))

    def event_us(self, records: Iterable[bytes | None], now_us: int) -> Iterator[int | None]:
        """Yield for each record the time of the newest event that counts, or else until when the view is covered."""
        covered_us = self._known.covered_us
        return (covered_us if instant is None else instant for instant in self._newest_us(records, now_us))

    def _newest_us(self, records: Iterable[bytes | None], now_us: int) -> Iterator[int | None]:
        """Yield for each record the time of the newest event that a window holds now, None where there is none."""
        steps = self._layout.resolutions
        after = min(
            (
                BEFORE_ALL if length is None else (now_us - length) // steps[number].step_us * steps[number].step_us
                for number, length in self._windows
            ),
            default=BEFORE_ALL,
        )
        for record in records:
            if record is None or not is_windowed(record):
                yield None
                continue
            newest = head_of(record).newest_us
            for entry in entries_of(record):
                _, _, event_us, known_us = EVENT.unpack_from(entry)
                if newest < event_us <= now_us and known_us <= now_us:
                    newest = event_us
            yield None if newest <= after else newest

    def fresh(self, records: Sequence[bytes | None], now_us: int) -> list[list[Any]] | None:
        """Return each record's features, None if one is missing or of another layout."""
        if any(found is None or not is_windowed(found) or self._is_other(found) for found in records):
            return None
        return [self._row(b"", found, now_us) for found in records if found is not None]

    def read(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> ViewRows:
        """Return the answer for a store's records of ``keys``. Raises DamagedRecordError naming the key."""
        values: list[Sequence[Any]] = []
        statuses: list[Sequence[Status]] = []
        if self._fetch is not None:
            needs_mark = self._needs_mark(records, now_us)
            buckets = self._empty_buckets(keys, records)
            self._known.look_up(self._fetch, _layouts_of(records), needs_mark=needs_mark, buckets=buckets)
        nothing: dict[bytes, Sequence[Any]] = {}
        for key, record in zip(keys, records, strict=True):
            if record is not None and not is_windowed(record):
                raise foreign(key)
            if record is None:
                bucket = self._encoder.bucket_of(key)
                if bucket not in nothing:
                    nothing[bucket] = self._nothing(bucket)
                values.append(nothing[bucket])
                statuses.append(self._absent)
                continue
            if self._is_other(record):
                row, of = self._read_other(key, record, now_us)
                values.append(row)
                statuses.append(of)
                continue
            row = self._row(key, record, now_us)
            values.append(row)
            null = None in row
            statuses.append(
                [Status.NULL_VALUE if value is None else Status.PRESENT for value in row] if null else self._present
            )
        are_present = all(found is self._present for found in statuses)
        return ViewRows(records, len(self._asked), values, None, None if are_present else statuses)

    def _nothing(self, bucket: bytes) -> Sequence[Any]:
        """Return the values of an entity without a record."""
        held = zip(self._asked, self._known.is_held(bucket), strict=True)
        return tuple(0 if is_held and each.function in _COUNTS else None for each, is_held in held)

    def _is_other(self, record: bytes) -> bool:
        return head_of(record).schema_id != self._layout.id

    def _read_other(self, key: bytes, record: bytes, now_us: int) -> tuple[Sequence[Any], Sequence[Status]]:
        """Return values and statuses of a record of another layout: NOT_FOUND for what it does not hold."""
        layout_id = head_of(record).schema_id
        places = self._known.others.get(layout_id)
        if places is None:
            return (None,) * len(self._asked), self._absent
        if layout_id not in self._others:
            asked = [each for each in places.found if each is not None]
            self._others[layout_id] = WindowRecords(self._encoder.layout, places.layout, asked, form=self._form)
        row = iter(self._others[layout_id]._row(key, record, now_us))
        values = [None if found is None else next(row) for found in places.found]
        statuses = [
            Status.NOT_FOUND if found is None else Status.NULL_VALUE if value is None else Status.PRESENT
            for found, value in zip(places.found, values, strict=True)
        ]
        return values, statuses

    def _row(self, key: bytes, record: bytes, now_us: int) -> list[Any]:
        try:
            found = self._at(record, now_us)
            return [
                value if convert is None or value is None else convert(value)
                for convert, value in zip(self._convert, [read(found) for read in self._read], strict=True)
            ]
        except (struct.error, ValueError, IndexError) as error:
            raise damaged(key, f"cannot be read: {error}") from None

    def _at(self, record: bytes, now_us: int) -> _Record:
        layout, sections = self._layout, sections_of(self._layout, record)
        shapes = shapes_of(layout, sections.scales)
        windows = {
            (number, length): self._window(record, sections, shapes[number], number, length, now_us)
            for number, length in self._windows
        }
        events: list[TileEvent] = []
        if head_of(record).tiles_end < len(record):
            found = (decode_event(layout, entry) for entry in entries_of(record))
            events = sorted((event for event in found if event.available_us <= now_us), key=lambda event: event.order)
        lists = lists_of(layout, record, sections.lists) if self._needs_lists else None
        return _Record(windows, lists, events)

    def _window(
        self, record: bytes, sections: Sections, shape: Shape, number: int, length_us: int | None, now_us: int
    ) -> _Window:
        step = self._layout.resolutions[number].step_us
        after = BEFORE_ALL if length_us is None else (now_us - length_us) // step * step
        count, begin = sections.counts[number], sections.starts[number]
        if not count:
            return _Window(after, None, shape)
        first = begin + 8 * count
        place = bisect_left(memoryview(record)[begin:first].cast("q"), after)
        if place == count:
            return _Window(after, None, shape)
        return _Window(after, shape.entry.unpack_from(record, first + place * shape.entry.size), shape)

    # What a function makes of a record.

    def _fields(self, asked: Asked, found: _Record) -> tuple[tuple[Any, ...] | None, Mapping[str, Any]]:
        window = found.windows[asked.resolution, asked.length_us]
        return window.entry, window.shape.parts[self._part_of[asked.resolution, asked.group]]

    def _events(self, asked: Asked, found: _Record) -> list[tuple[TileEvent, Any]]:
        """Return the newest events in the window that the group takes, and their values."""
        if not found.events:
            return []
        group, after = self._layout.groups[asked.group], found.windows[asked.resolution, asked.length_us].after_us
        taken = []
        for event in found.events:
            if event.event_us <= after or not (group.condition is None or event.true >> group.condition & 1):
                continue
            value = 1 if group.column is None else event.values[group.column]
            if value is not None:
                taken.append((event, value))
        return taken

    def _count_of(self, asked: Asked, found: _Record) -> int:
        entry, fields = self._fields(asked, found)
        return (0 if entry is None else entry[fields["count"][0]]) + len(self._events(asked, found))

    def _total(self, asked: Asked, found: _Record, name: str) -> tuple[int, int, int]:
        """Return the sum of the values, or of their squares, its exponent, and its marks."""
        entry, fields = self._fields(asked, found)
        total, exponent, marks = 0, 0, 0
        if entry is not None:
            place, exponents = fields[name]
            total, exponent = joined(entry[place : place + len(exponents)], exponents)
            marks = entry[fields["marks"][0]] if "marks" in fields else 0
        for _, value in self._events(asked, found):
            if isinstance(value, float):
                if mark := mark_of(value):
                    marks |= mark
                    continue
                integer, unit = units_of(value)
            else:
                integer, unit = value, 0
            if name == "square":
                integer, unit = integer * integer, 2 * unit
            if unit < exponent:
                total, exponent = total << (exponent - unit), unit
            total += integer << (unit - exponent)
        return total, exponent, marks

    def _sum(self, asked: Asked, found: _Record) -> Any:
        if not self._count_of(asked, found):
            return None
        total, exponent, marks = self._total(asked, found, "sum")
        if self._layout.groups[asked.group].kind == "float":
            return marked(as_double(total, exponent), marks)
        total <<= exponent
        return total if -_LIMIT <= total < _LIMIT else None

    def _mean(self, asked: Asked, found: _Record) -> Any:
        count = self._count_of(asked, found)
        if not count:
            return None
        total, exponent, marks = self._total(asked, found, "sum")
        return marked(as_double(total, exponent), marks) / count

    def _variance(self, asked: Asked, found: _Record) -> Any:
        count = self._count_of(asked, found)
        if count < 2:
            return None
        total, exponent, marks = self._total(asked, found, "sum")
        square, unit, _ = self._total(asked, found, "square")
        if marks:
            return math.nan
        least = min(exponent, unit // 2)
        variance = variance_of(total << (exponent - least), square << (unit - 2 * least), least, count)
        return math.sqrt(variance) if asked.function == "std" else variance

    def _extreme(self, asked: Asked, found: _Record) -> Any:
        entry, fields = self._fields(asked, found)
        values = [value for _, value in self._events(asked, found)]
        if entry is not None and entry[fields["count"][0]]:
            values.append(entry[fields[asked.function][0]])
        if not values:
            return None
        if any(value != value for value in values):
            return math.nan
        best = min(values) if asked.function == "min" else max(values)
        return best + 0.0 if isinstance(best, float) else best

    def _first(self, asked: Asked, found: _Record) -> Any:
        entry, fields = self._fields(asked, found)
        candidates = [(event.order, value) for event, value in self._events(asked, found)[:1]]
        if entry is not None and entry[fields["count"][0]]:
            place = fields["first"][0]
            *order, value = entry[place : place + 4]
            candidates.append((tuple(order), self._valued(asked, found, value)))
        return min(candidates)[1] if candidates else None

    def _valued(self, asked: Asked, found: _Record, value: Any) -> Any:
        if self._layout.groups[asked.group].kind != "text":
            return value
        assert found.lists is not None
        return text_at(found.lists.texts, value)

    def _newest(self, asked: Asked, found: _Record, count: int) -> list[Any]:
        assert found.lists is not None
        after = found.windows[asked.resolution, asked.length_us].after_us
        kept = [
            ((event, known, sequence), value)
            for event, known, sequence, value in found.lists.lasts[asked.group]
            if event > after
        ]
        come = [(event.order, value) for event, value in self._events(asked, found)]
        if not come:
            return [self._valued(asked, found, value) for _, value in kept[:count]]
        orders = sorted(
            [*((order, True, value) for order, value in kept), *((order, False, value) for order, value in come)],
            key=lambda item: item[0],
            reverse=True,
        )
        return [self._valued(asked, found, value) if is_kept else value for _, is_kept, value in orders[:count]]

    def _last(self, asked: Asked, found: _Record) -> Any:
        newest = self._newest(asked, found, 1)
        return newest[0] if newest else None

    def _last_n(self, asked: Asked, found: _Record) -> Any:
        return self._newest(asked, found, asked.n) or None

    def _distinct(self, asked: Asked, found: _Record) -> int:
        assert found.lists is not None
        after = found.windows[asked.resolution, asked.length_us].after_us
        seen = found.lists.distinct[asked.group]
        come = {hash_of(value) for _, value in self._events(asked, found)}
        count = sum(last > after for last in seen.values())
        count += sum(seen.get(code, BEFORE_ALL) <= after for code in come)
        return min(count, asked.n)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "count": WindowRecords._count_of,
    "sum": WindowRecords._sum,
    "mean": WindowRecords._mean,
    "var": WindowRecords._variance,
    "std": WindowRecords._variance,
    "min": WindowRecords._extreme,
    "max": WindowRecords._extreme,
    "first": WindowRecords._first,
    "last": WindowRecords._last,
    "last_n": WindowRecords._last_n,
    "count_distinct": WindowRecords._distinct,
}


def _layouts_of(records: Iterable[bytes | None]) -> Sequence[bytes]:
    return [head_of(found).schema_id for found in records if found is not None and is_windowed(found)]


def _converter(kind: ValueType, form: Form) -> Callable[[Any], Any] | None:
    """Return the function from a value as it is kept to one of the feature's type; None where they are the same."""
    python = _python(kind)
    if form == "python":
        return python
    return lambda value: to_json(kind, value if python is None else python(value))


def _python(kind: ValueType) -> Callable[[Any], Any] | None:
    if kind.item is not None:
        item = _python(kind.item)
        return None if item is None else lambda values: [item(value) for value in values]
    converters: dict[str, Callable[[Any], Any]] = {
        "Bool": bool,
        "Date": days_to_date,
        "Timestamp": to_datetime,
        "String": bytes.decode,
    }
    return converters.get(kind.name)
