"""A windowed view between its keys and its values: records of tiles and newest events, read at an instant."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

from featurestore.online.interface import ViewLayout
from featurestore.online.records.codec import damaged, foreign
from featurestore.online.records.keys import KeyEncoder, mark_key
from featurestore.online.records.reading import FetchValue, Form, ViewRows
from featurestore.online.records.windowed import (
    EVENT,
    FORMAT,
    SCHEMA_AT,
    head_of,
    is_newer,
    is_windowed,
    readable_entries,
)
from featurestore.online.records.windows_known import Known, Learn
from featurestore.online.records.windows_values import UNREADABLE, WindowValues
from featurestore.statuses import Status
from featurestore.types.times import days_to_date, to_datetime
from featurestore.types.values import ValueType, to_json
from featurestore.windows.layout import Asked, Layout
from featurestore.windows.tiles import BEFORE_ALL

_COUNTS = ("count", "count_distinct")
_FLOATS = ("Float32", "Float64")
_SAME_IN_JSON = ("Int32", "Int64", "Bool", "String")


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
        self._values = WindowValues(layout, asked)
        converters = [_converter(each.type, form) for each in asked]
        self._convert = [(place, convert) for place, convert in enumerate(converters) if convert is not None]
        floats = _FLOATS if form == "json" else ()
        self._checked = [place for place, each in enumerate(asked) if each.type.name in floats]
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
        after = min(self._values.after_us(now_us), default=BEFORE_ALL)
        unsure = [record for record in records if record is None or not is_newer(record, after)]
        return any(instant is None for instant in self._newest_us(unsure, now_us))

    def event_us(self, records: Iterable[bytes | None], now_us: int) -> Iterator[int | None]:
        """Yield for each record the time of the newest event that counts, or else until when the view is covered."""
        covered_us = self._known.covered_us
        covered_us = None if covered_us is None else min(covered_us, now_us)  # its writer's clock may be ahead
        return (covered_us if instant is None else instant for instant in self._newest_us(records, now_us))

    def _newest_us(self, records: Iterable[bytes | None], now_us: int) -> Iterator[int | None]:
        """Yield for each record the time of the newest event that a window holds now, None where there is none."""
        after = min(self._values.after_us(now_us), default=BEFORE_ALL)
        for record in records:
            if record is None or not is_windowed(record):
                yield None
                continue
            newest = head_of(record).newest_us
            for entry in readable_entries(record):
                _, _, event_us, known_us = EVENT.unpack_from(entry)
                if newest < event_us <= now_us and known_us <= now_us:
                    newest = event_us
            yield None if newest <= after else newest

    def fresh(self, records: Sequence[bytes | None], now_us: int) -> list[list[Any]] | None:
        """Return each record's features, None where only `read` can answer. NaN and infinities stay as they are."""
        if None in records:
            return None
        try:
            return self._rows(cast("Sequence[bytes]", records), now_us)
        except UNREADABLE:
            return None

    def _rows(self, records: Sequence[bytes], now_us: int) -> list[list[Any]]:
        rows = self._values.rows(records, now_us)
        for place, convert in self._convert:
            for row in rows:
                if row[place] is not None:
                    row[place] = convert(row[place])
        return rows

    def read(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> ViewRows:
        """Return the answer for a store's records of ``keys``. Raises DamagedRecordError naming the key."""
        if self._fetch is not None:
            needs_mark = self._needs_mark(records, now_us)
            buckets = self._empty_buckets(keys, records)
            self._known.look_up(self._fetch, _layouts_of(records), needs_mark=needs_mark, buckets=buckets)
            if self._known.is_young:
                fetch, pairs = self._fetch, zip(keys, records, strict=True)
                records = [fetch(key) if record is None else record for key, record in pairs]
                self._known.look_up(fetch, _layouts_of(records), needs_mark=False, buckets=())
        values: list[Sequence[Any]] = [()] * len(records)
        statuses: list[Sequence[Status]] = [self._present] * len(records)
        own = {place: record for place, record in enumerate(records) if record is not None and self._is_own(record)}
        rows = self._read_own([keys[place] for place in own], list(own.values()), now_us) if own else []
        for place, row in zip(own, rows, strict=True):
            values[place] = row
        nothing: dict[bytes, Sequence[Any]] = {}
        for place in set(range(len(records))) - own.keys():
            key, record = keys[place], records[place]
            if record is not None:
                values[place], statuses[place] = self._read_other(key, record, now_us)
                continue
            bucket = self._encoder.bucket_of(key)
            if bucket not in nothing:
                nothing[bucket] = self._nothing(bucket)
            values[place], statuses[place] = nothing[bucket], self._absent
        return ViewRows(records, len(self._asked), values, None, statuses, self._with_nulls)

    def _with_nulls(
        self, rows: Sequence[Sequence[Any]], statuses: Sequence[Sequence[Status]] | None
    ) -> list[Sequence[Status]] | None:
        """Return the statuses with NULL_VALUE for each null of a record; None where every value is PRESENT."""
        found = [
            [Status.NULL_VALUE if value is None else Status.PRESENT for value in row]
            if of is self._present and None in row
            else of
            for row, of in zip(rows, statuses or (), strict=True)
        ]
        return None if all(of is self._present for of in found) else found

    def _nothing(self, bucket: bytes) -> Sequence[Any]:
        """Return the values of an entity without a record."""
        held = zip(self._asked, self._known.is_held(bucket), strict=True)
        return tuple(0 if is_held and each.function in _COUNTS else None for each, is_held in held)

    def _is_own(self, record: bytes) -> bool:
        return record[SCHEMA_AT : SCHEMA_AT + 8] == self._layout.id and record[0] == FORMAT

    def _read_other(self, key: bytes, record: bytes, now_us: int) -> tuple[Sequence[Any], Sequence[Status]]:
        """Return values and statuses of a record of another layout: NOT_FOUND for what it does not hold."""
        if not is_windowed(record):
            raise foreign(key)
        layout_id = head_of(record).schema_id
        places = self._known.others.get(layout_id)
        if places is None:
            return (None,) * len(self._asked), self._absent
        if layout_id not in self._others:
            asked = [each for each in places.found if each is not None]
            self._others[layout_id] = WindowRecords(self._encoder.layout, places.layout, asked, form=self._form)
        other = self._others[layout_id]
        row = iter(other._read_own([key], [record], now_us)[0])
        values = [None if found is None else next(row) for found in places.found]
        statuses = [
            Status.NOT_FOUND if found is None else Status.NULL_VALUE if value is None else Status.PRESENT
            for found, value in zip(places.found, values, strict=True)
        ]
        return values, statuses

    def _read_own(self, keys: Sequence[bytes], records: Sequence[bytes], now_us: int) -> list[list[Any]]:
        try:
            rows = self._rows(records, now_us)
        except UNREADABLE as error:
            if len(records) == 1:
                raise damaged(keys[0], f"cannot be read: {error}") from None
            pairs = zip(keys, records, strict=True)
            return [row for key, record in pairs for row in self._read_own([key], [record], now_us)]
        for place in self._checked:
            for row in rows:
                if row[place] is not None and not math.isfinite(row[place]):
                    row[place] = None
        return rows


def _layouts_of(records: Iterable[bytes | None]) -> set[bytes]:
    return {found[SCHEMA_AT : SCHEMA_AT + 8] for found in records if found is not None and is_windowed(found)}


def _converter(kind: ValueType, form: Form) -> Callable[[Any], Any] | None:
    """Return the function from a value as it is kept to one of the feature's type; None where they are the same."""
    python = _python(kind)
    if form == "python" or kind.name in (*_FLOATS, *_SAME_IN_JSON):
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
