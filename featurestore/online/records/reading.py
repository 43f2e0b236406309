"""From records to values, statuses and event times, without I/O: the SDK and the servers share it."""

from __future__ import annotations

import math
import operator
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, cast

import msgspec

from featurestore.errors import DamagedRecordError, DefinitionError
from featurestore.online.interface import ViewLayout
from featurestore.online.records.codec import (
    CRC_BYTES,
    FORMAT_VERSION,
    HEADER_BYTES,
    REPUBLISH,
    Converter,
    damaged,
    foreign,
    from_wire,
    is_record,
    msgpack_array_header,
    pieces,
    read_schema,
    schema_document,
    schema_id,
    time_bytes,
)
from featurestore.online.records.keys import KeyEncoder
from featurestore.statuses import Status
from featurestore.types.times import MIN_INSTANT, days_to_date, to_rfc3339
from featurestore.types.values import PYTHON_KINDS, ValueType, is_widening, to_json

HEAD = operator.itemgetter(slice(0, 9))
CREATED = operator.itemgetter(slice(9, 17))
_SCHEMA = operator.itemgetter(slice(17, 25))
SHAPE = operator.itemgetter(slice(17, 26))
"""The schema id and the first byte of the array header: if they agree, no payload can shift its neighbours."""
PAYLOAD = operator.itemgetter(slice(HEADER_BYTES, -CRC_BYTES))
_VERSION = bytes([FORMAT_VERSION])
_decode_row = msgspec.msgpack.Decoder(list[Any]).decode
decode_rows = msgspec.msgpack.Decoder(list[list[Any]]).decode

_WIRE_KINDS = PYTHON_KINDS | {"Timestamp": int, "Date": int, "Decimal": str}

Form = Literal["python", "json"]
"""The form of values: canonical Python values, or their JSON forms, in which NaN and infinities are None."""
FetchValue = Callable[[bytes], bytes | None]
"""Returns the value of one key of the store: used to look up the schemas of older records."""

FindNulls = Callable[[Sequence[Sequence[Any]], "Sequence[Sequence[Status]] | None"], "list[Sequence[Status]] | None"]
"""Takes rows and their statuses and returns the statuses with NULL_VALUE for each null."""


@dataclass(frozen=True, slots=True)
class _Mapping:
    """How a stored row becomes the asked features: a position for each, None if the row lacks the feature."""

    length: int
    positions: tuple[int | None, ...]
    statuses: tuple[Status, ...]
    """PRESENT if the row has the feature, otherwise NOT_FOUND."""


@dataclass(slots=True, eq=False)
class ViewRows:
    """A view's answer, in the order of the keys. Rows, columns and statuses are made when they are asked for."""

    records: Sequence[bytes | None]
    """The records that were read, None for one whose time has not come."""
    width: int
    _values: Sequence[Sequence[Any]] | None
    """May be None where there are columns."""
    _columns: Sequence[Sequence[Any]] | None = None
    _statuses: Sequence[Sequence[Status]] | None = None
    _find_nulls: FindNulls | None = None
    """Completes the statuses."""

    @property
    def values(self) -> Sequence[Sequence[Any]]:
        """For each entity the asked features in order; None if the status is not PRESENT."""
        if self._values is None:
            assert self._columns is not None
            self._values = list(zip(*self._columns, strict=True))
        return self._values

    @property
    def statuses(self) -> Sequence[Sequence[Status]] | None:
        """For each entity the statuses; None means that every value is PRESENT."""
        if self._find_nulls is not None:
            self._statuses, self._find_nulls = self._find_nulls(self.values, self._statuses), None
        return self._statuses

    def columns(self) -> list[list[Any]]:
        """Return the values feature by feature."""
        if not self.records:
            return [[] for _ in range(self.width)]
        if self._columns is None:
            self._columns = list(zip(*self.values, strict=True))
        return [list(column) for column in self._columns]

    def status_columns(self) -> list[list[Status]]:
        """Return the statuses feature by feature."""
        if self.statuses is None:
            return [[Status.PRESENT] * len(self.records) for _ in range(self.width)]
        return [list(column) for column in zip(*self.statuses, strict=True)]

    def counts(self) -> dict[Status, int]:
        """Return how many values there are of each status."""
        if self.statuses is None:
            return {Status.PRESENT: len(self.records) * self.width}
        counts = dict.fromkeys(Status, 0)
        for row in self.statuses:
            if row and row.count(row[0]) == len(row):
                counts[row[0]] += len(row)
            else:
                for status in row:
                    counts[status] += 1
        return counts


class ViewReader:
    """Reads the asked features of one view; made once for each view and feature list, then used for every request.

    It maps records of any schema that a generation ever had to the features of its layout. Not locked, because
    learning a schema twice is harmless.
    """

    def __init__(
        self, layout: ViewLayout, features: Sequence[str], *, form: Form = "python", fetch: FetchValue | None = None
    ) -> None:
        types = dict(layout.fields)
        unknown = [name for name in features if name not in types]
        if unknown:
            raise DefinitionError(f"view {layout.view!r} has no feature {unknown[0]!r}.")
        self.layout = layout
        self.features = tuple(features)
        self._types = [types[name] for name in features]
        self._encoder = KeyEncoder(layout)
        self._fetch = fetch
        own_id = schema_id(schema_document(layout.fields))
        self._mappings = {own_id: self._mapping(layout.fields)}
        self._ttl_us = layout.ttl_us
        self._no_oldest = _VERSION + time_bytes(MIN_INSTANT)
        self.stored_width = len(layout.fields)
        self.own_shape = own_id + msgpack_array_header(self.stored_width)[:1]
        # Decoding into types without null proves for free that there is no null. After a null the next reads search
        # for nulls instead, until one finds none.
        self._decode_without_nulls = msgspec.msgpack.Decoder(_wire_rows(layout)).decode
        self._expects_nulls = False
        self.select = _selection([name for name, _ in layout.fields], self.features)
        self._present = (Status.PRESENT,) * len(self.features)
        self._absent = (Status.NOT_FOUND,) * len(self.features)
        self._too_old = (Status.OUTSIDE_MAX_AGE,) * len(self.features)
        self._empty = (None,) * len(self.features)
        converters = map(_json_converter if form == "json" else from_wire, self._types)
        self.converters = [(place, convert) for place, convert in enumerate(converters) if convert is not None]
        floats = ("Float32", "Float64") if form == "json" else ()
        self.checked_floats = [place for place, kind in enumerate(self._types) if kind.name in floats]

    def read(self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int) -> ViewRows:
        """Return the answer for a store's records of ``keys``.

        The ttl counts from ``now_us``, inclusive: event_ts >= now - ttl is PRESENT. NOT_FOUND is a record whose time
        has not come (the writer's clock may run ahead of this one), one whose schema the store no longer has, and a
        feature that an old record lacks. Raises DamagedRecordError naming the key.
        """
        if not records:
            return ViewRows(records, len(self.features), [])
        oldest, future = self.heads(now_us)
        # Nearly always every record exists, has the newest schema and is within its time: then all decode at once.
        if None not in records:
            found = cast("Sequence[bytes]", records)
            heads = list(map(HEAD, found))
            own = set(map(SHAPE, found)) == {self.own_shape}
            if own and min(heads) >= oldest and max(heads) < future and self.are_known(found, future):
                rows, is_without_nulls = self._rows(keys, found)
                return self._finish(rows, None, records, look_for_nulls=not is_without_nulls)
        return self._read_mixed(keys, records, oldest, future)

    def unknown(
        self, keys: Sequence[bytes], records: Sequence[bytes | None], now_us: int
    ) -> dict[bytes, Callable[[bytes | None], None]]:
        """Return the keys of schemas older than the view's own, each with the function that takes the document."""
        unknown = set(map(_SCHEMA, filter(None, records))) - self._mappings.keys()
        if unknown:  # nearly never: only then check which values are records at all
            unknown &= {_SCHEMA(found) for found in records if found and is_record(found)}
        return {self._encoder.schema_key(schema): partial(self.learn, schema) for schema in unknown}

    def learn(self, known_id: bytes, document: bytes | None) -> None:
        """Take a schema document from the store. Raises DamagedRecordError when it does not match the id."""
        if document is None:
            return
        if schema_id(document) != known_id:
            raise DamagedRecordError(
                f"the online schema {known_id.hex()} does not match its own checksum.", hint=REPUBLISH
            )
        self._mappings[known_id] = self._mapping(read_schema(document))

    def _known(self, record: bytes) -> _Mapping | None:
        """Return how to read a record's row, or None if the store no longer has its schema."""
        known_id = _SCHEMA(record)
        if known_id not in self._mappings and self._fetch is not None:
            self.learn(known_id, self._fetch(self._encoder.schema_key(known_id)))
        return self._mappings.get(known_id)

    def _mapping(self, stored: Sequence[tuple[str, ValueType]]) -> _Mapping:
        places = {name: (position, value_type) for position, (name, value_type) in enumerate(stored)}
        positions: list[int | None] = []
        for name, value_type in zip(self.features, self._types, strict=True):
            position, stored_type = places.get(name, (None, value_type))
            readable = stored_type == value_type or is_widening(stored_type, value_type)
            positions.append(position if readable else None)
        statuses = tuple(Status.NOT_FOUND if place is None else Status.PRESENT for place in positions)
        return _Mapping(len(stored), tuple(positions), statuses)

    def heads(self, now_us: int) -> tuple[bytes, bytes]:
        """Return the least first nine bytes of a record within its ttl, and the least of one after ``now_us``."""
        if self._ttl_us is None:
            oldest = self._no_oldest
        else:
            oldest = _VERSION + time_bytes(max(now_us - self._ttl_us, MIN_INSTANT))
        return oldest, _VERSION + time_bytes(now_us + 1)

    def are_known(self, records: Sequence[bytes], future: bytes) -> bool:
        """Tell whether records count by their created times; ``future`` comes from `heads`."""
        return not self.layout.has_created or max(map(CREATED, records)) < future[1:]

    def _rows(self, keys: Sequence[bytes], records: Sequence[Any]) -> tuple[list[Sequence[Any]], bool]:
        """Decode records of the layout's own schema as one array, behind one array header.

        Return the asked features, and whether decoding has proven that no value is null.
        """
        if len(few := pieces(records, self.stored_width)) > 1:
            found = list(map(self._rows, pieces(keys, self.stored_width), few))
            return [row for part, _ in found for row in part], all(proven for _, proven in found)
        payload = msgpack_array_header(len(records)) + b"".join(map(PAYLOAD, records))
        rows: Any = None
        if not self._expects_nulls:
            try:
                rows = self._decode_without_nulls(payload)
            except msgspec.DecodeError:
                self._expects_nulls = True
        is_without_nulls = rows is not None
        try:
            rows = decode_rows(payload) if rows is None else rows
        except msgspec.DecodeError:
            raise self._first_damaged(keys, records) from None
        # The header of a wide row is longer than the part of it that `SHAPE` compares.
        if set(map(len, rows)) != {self.stored_width}:
            raise self._first_damaged(keys, records)
        asked: list[Sequence[Any]] = rows if self.select is None else list(map(self.select, rows))
        return asked, is_without_nulls

    def _first_damaged(self, keys: Sequence[bytes], records: Sequence[bytes]) -> DamagedRecordError:
        try:
            for key, record in zip(keys, records, strict=True):
                mapping = self._known(record)
                assert mapping is not None
                _row(key, record, mapping)
        except DamagedRecordError as error:
            return error
        return damaged(keys[0], "or one read with it holds no msgpack array")

    def _read_mixed(
        self, keys: Sequence[bytes], records: Sequence[bytes | None], oldest: bytes, future: bytes
    ) -> ViewRows:
        values: list[Sequence[Any]] = [self._empty] * len(records)
        statuses: list[Sequence[Status]] = [self._absent] * len(records)
        own_places, seen = [], list(records)
        for place, (key, record) in enumerate(zip(keys, records, strict=True)):
            if record is None:
                continue
            if not is_record(record):
                raise foreign(key)
            if record[:9] >= future or not self.are_known([record], future):
                seen[place] = None  # it has no event time to show either
            elif record[:9] < oldest:
                statuses[place] = self._too_old
            elif record[17:26] == self.own_shape:
                own_places.append(place)
            elif (mapping := self._known(record)) is not None:
                values[place] = _row(key, record, mapping)
                statuses[place] = mapping.statuses
            else:
                seen[place] = None
        if own_places:
            rows, _ = self._rows([keys[place] for place in own_places], [records[place] for place in own_places])
            for place, row in zip(own_places, rows, strict=True):
                values[place] = row
                statuses[place] = self._present
        return self._finish(values, statuses, seen, look_for_nulls=True)

    def _finish(
        self,
        rows: list[Sequence[Any]],
        statuses: list[Sequence[Status]] | None,
        records: Sequence[bytes | None],
        *,
        look_for_nulls: bool,
    ) -> ViewRows:
        columns: list[Sequence[Any]] | None = None
        is_changed = bool(self.converters)
        if rows and (self.converters or self.checked_floats):
            columns = list(zip(*rows, strict=True))
            if self._clear_special_floats(columns):
                is_changed = look_for_nulls = True
            for place, convert in self.converters:
                columns[place] = [None if value is None else convert(value) for value in columns[place]]
        values = None if columns and is_changed else rows
        find_nulls = self._with_nulls if look_for_nulls else None
        return ViewRows(records, len(self.features), values, columns, statuses, find_nulls)

    def _with_nulls(
        self, rows: Sequence[Sequence[Any]], statuses: Sequence[Sequence[Status]] | None
    ) -> list[Sequence[Status]] | None:
        """Return the statuses with NULL_VALUE for each null of a record; None where every value is PRESENT."""
        found = None if statuses is None else list(statuses)
        for place, row in enumerate(rows):
            nulls = row.count(None)
            if not nulls:
                continue
            if found is None:
                found = [self._present] * len(rows)
            if found[place] is self._absent or found[place] is self._too_old:
                continue  # these nulls are not the record's
            marked, position = list(found[place]), -1
            for _ in range(nulls):
                position = row.index(None, position + 1)
                if marked[position] is Status.PRESENT:
                    marked[position] = Status.NULL_VALUE
            found[place] = marked
        if statuses is None:  # all rows decoded at once: decides how the next ones are
            self._expects_nulls = found is not None
        return found

    def _clear_special_floats(self, columns: list[Sequence[Any]]) -> bool:
        """Replace NaN and infinities by None; tell whether there were any."""
        checked = [columns[place] for place in self.checked_floats]
        # NaN and infinities survive a sum, so one pass in C excludes them for nearly every answer. Nulls are skipped.
        if math.isfinite(sum(filter(None, chain.from_iterable(checked)))):
            return False
        is_changed = False
        for place, column in zip(self.checked_floats, checked, strict=True):
            cleaned = [None if value is None or not math.isfinite(value) else value for value in column]
            if cleaned.count(None) != column.count(None):
                columns[place], is_changed = cleaned, True
        return is_changed


def _row(key: bytes, record: bytes, mapping: _Mapping) -> list[Any]:
    """Return the asked features of one record in their msgpack form, None for one that it lacks."""
    try:
        stored = _decode_row(PAYLOAD(record))
    except msgspec.DecodeError:
        raise damaged(key, "holds no msgpack array") from None
    if len(stored) != mapping.length:
        raise damaged(key, f"holds {len(stored)} values where its schema has {mapping.length}")
    return [None if position is None else stored[position] for position in mapping.positions]


def _selection(stored: Sequence[str], asked: Sequence[str]) -> Callable[[Any], Sequence[Any]] | None:
    """Return the function that picks the asked features from a stored row, or None if they are the whole row."""
    if list(asked) == list(stored):
        return None
    return picked([stored.index(name) for name in asked]) or (lambda row: ())


def picked(places: Sequence[int]) -> Callable[[Any], Sequence[Any]] | None:
    """Return the function that picks some places of a row, None for no places."""
    if len(places) == 1:
        return lambda row: (row[places[0]],)
    return operator.itemgetter(*places) if places else None


def _wire_rows(layout: ViewLayout) -> Any:
    """Return the type of rows in their msgpack form, without nulls."""
    kinds = [_WIRE_KINDS[value_type.name] for _, value_type in layout.fields]
    return list[tuple[tuple(kinds)]]  # type: ignore[misc]  # made at run time, for msgspec


def _json_converter(value_type: ValueType) -> Converter | None:
    """Return the function from a decoded msgpack value to its JSON form; None where they are the same."""
    if value_type.item is None:
        return _WIRE_TO_JSON.get(value_type.name)
    convert = from_wire(value_type)
    return lambda value: to_json(value_type, value if convert is None else convert(value))


# The results of `to_json`, without making the canonical value first. A decimal is its text in both.
_WIRE_TO_JSON: dict[str, Converter] = {
    "Timestamp": to_rfc3339,
    "Date": lambda days: days_to_date(days).isoformat(),
    "Bytes": lambda value: b64encode(value).decode(),
}
