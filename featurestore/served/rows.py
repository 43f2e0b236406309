"""From what a server read to rows of the log, many requests at once: nothing here is on the way of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from featurestore.online.records.codec import HEADER_BYTES
from featurestore.online.records.fresh import RowRecords
from featurestore.online.records.reading import FetchValue
from featurestore.online.records.windowed import SCHEMA_AT
from featurestore.online.records.windows_read import WindowRecords
from featurestore.request.features import OutputColumn, ViewRead
from featurestore.served.shape import (
    AT,
    CODE,
    CRC,
    CREATED,
    EVENT,
    GENERATION,
    INSTANCE,
    KEY,
    KEY_ID,
    REGISTRY_AHEAD,
    REQUEST,
    REQUEST_ID,
    REVISION,
    ROW,
    SAMPLE,
    SCHEMA,
    STATUS,
    STATUSES,
    STORE_AHEAD,
    VALUE,
    ServedShape,
    has_checksums,
    view_column,
)
from featurestore.types.arrow import arrow_type, column_from_values
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT
from featurestore.types.values import PYTHON_KINDS, from_json
from featurestore.windows.layout import layout_of

if TYPE_CHECKING:
    import pyarrow as pa

_SIGN = np.uint64(1 << 63)
_HEAD = np.dtype([("format", "u1"), ("event", ">u8"), ("created", ">u8"), ("schema", "V8")])
_CODES = {status: code for code, status in enumerate(STATUSES)}
_PRESENT, _NULL, _MISSING, _TOO_OLD = range(4)


class ServedRequest(NamedTuple):
    """One request of which the answer is kept."""

    request_id: str
    at_us: int
    """The instant by which the answer was made."""
    rows: int
    columns: dict[str, Sequence[Any]]
    """Join keys in their JSON forms, as the client sent them."""
    request_data: dict[str, Sequence[Any]]
    """Canonical values."""
    keys: Sequence[bytes]
    """The keys that were read, for each read after the other, and their records."""
    records: Sequence[bytes | None]
    found: Sequence[tuple[int, ...] | None]
    """For each read the rows that have a key, None for all."""
    computed: Sequence[Sequence[Sequence[Any]]]
    """For each on-demand view the canonical values of its features."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """How far the clocks of other pieces are ahead of this server's, None where that is unknown."""

    registry_us: int | None = None
    store_us: int | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    """What one read of some requests found."""

    values: list[pa.Array]
    """By feature, for all rows."""
    codes: list[npt.NDArray[np.int8]]
    event_us: pa.Array
    created_us: pa.Array
    schemas: pa.Array
    crcs: pa.Array


class ServedRows:
    """Makes rows of one shape. With ``fetch`` it looks up the schemas of older records."""

    def __init__(self, shape: ServedShape, fetch: FetchValue) -> None:
        self._shape = shape
        reads = shape.request.reads
        self._readers = [_WindowReader(r, fetch) if r.view.aggregations else _RowReader(r, fetch) for r in reads]

    def batch(self, requests: Sequence[ServedRequest], instance: str, clocks: Clocks) -> pa.RecordBatch:
        """Return the rows of some requests, in their order. Raises DamagedRecordError."""
        import pyarrow as pa

        shape, count = self._shape, sum(each.rows for each in requests)
        sizes = np.array([each.rows for each in requests], np.int64)
        at_us = np.repeat(np.array([each.at_us for each in requests], np.int64), sizes)
        begins = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        columns: dict[str, Any] = {
            REQUEST_ID: np.repeat(np.array([each.request_id for each in requests], object), sizes),
            ROW: (np.arange(count) - np.repeat(begins, sizes)).astype(np.int32),
            AT: pa.array(at_us).cast(shape.schema.field(AT).type),
            REVISION: pa.repeat(shape.revision, count),
            CODE: pa.repeat(shape.code, count),
            SAMPLE: pa.repeat(shape.log.sample, count),
            INSTANCE: pa.repeat(instance, count),
            KEY_ID: pa.repeat(shape.key_id, count),
        }
        for name, ahead_us in ((REGISTRY_AHEAD, clocks.registry_us), (STORE_AHEAD, clocks.store_us)):
            columns[name] = pa.repeat(pa.scalar(ahead_us, pa.int64()), count)
        for name, kind in shape.keys.items():
            given = [value for each in requests for value in each.columns[name]]
            if not set(map(type, given)) <= {PYTHON_KINDS[kind.name]} & {int, str}:  # most are as they should be
                given = [from_json(kind, value) for value in given]
            columns[KEY + name] = self._keys(given, name)
        for name, field in shape.request_fields.items():
            data = [value for each in requests for value in each.request_data[name]]
            columns[REQUEST + name] = column_from_values(data, field.type)
        found = [self._read(place, requests, at_us, begins) for place in range(len(self._readers))]
        for name, output in shape.outputs.items():
            values, codes = self._output(output, requests, found)
            if name in shape.shown:
                columns[VALUE + name] = values
            columns[STATUS + name] = _statuses(codes)
        for read, each in zip(shape.request.reads, found, strict=True):
            columns[view_column(read, EVENT)] = each.event_us
            columns[view_column(read, CREATED)] = each.created_us
            columns[view_column(read, SCHEMA)] = each.schemas
            columns[view_column(read, CRC)] = self._checksums(read, each.crcs)
            generation = pa.scalar(read.registered.generation, pa.int32())
            columns[view_column(read, GENERATION)] = pa.repeat(generation, count)
        arrays = [pa.array(columns[field.name], field.type) for field in shape.schema]
        return pa.RecordBatch.from_arrays(arrays, schema=shape.schema)

    def _keys(self, values: list[Any], name: str) -> Any:
        kind = self._shape.keys[name]
        if self._shape.log.keys == "plain":
            return column_from_values(values, kind)
        hashes = iter(self._shape.key.hashes(name, (value for value in values if value is not None), kind))
        return [None if value is None else next(hashes) for value in values]

    def _checksums(self, read: ViewRead, crcs: pa.Array) -> Any:
        if not has_checksums(self._shape.log, read.view):
            return [None] * len(crcs)
        if self._shape.log.keys == "plain":
            return crcs
        return [None if crc is None else self._shape.key.checksum(crc) for crc in crcs.to_pylist()]

    def _read(
        self, place: int, requests: Sequence[ServedRequest], at_us: npt.NDArray[np.int64], begins: npt.NDArray[np.int64]
    ) -> _Read:
        if all(found is None for each in requests for found in each.found):
            firsts = [(each, place * each.rows) for each in requests]
            keys = [key for each, first in firsts for key in each.keys[first : first + each.rows]]
            records = [record for each, first in firsts for record in each.records[first : first + each.rows]]
            return self._readers[place].read(keys, records, np.arange(len(at_us)), at_us)
        keys, records = [], []
        places: list[npt.NDArray[np.int64]] = []
        for begin, each in zip(begins.tolist(), requests, strict=True):
            counts = [each.rows if found is None else len(found) for found in each.found]
            first = sum(counts[:place])
            part, found = slice(first, first + counts[place]), each.found[place]
            keys += each.keys[part]
            records += each.records[part]
            within = np.arange(each.rows) if found is None else np.array(found, np.int64)
            places.append(begin + within)
        return self._readers[place].read(keys, records, np.concatenate(places), at_us)

    def _output(
        self, output: OutputColumn, requests: Sequence[ServedRequest], found: Sequence[_Read]
    ) -> tuple[Any, npt.NDArray[np.int8]]:
        request, name = self._shape.request, output.field.name
        if output.read is not None:
            place = request.reads[output.read].features.index(name)
            return found[output.read].values[place], found[output.read].codes[place]
        assert output.on_demand is not None
        names = [field.name for field in request.on_demand[output.on_demand].view.features]
        place = names.index(name)
        values = [value for each in requests for value in each.computed[output.on_demand][place]]
        codes = np.array([_NULL if value is None else _PRESENT for value in values], np.int8)
        return column_from_values(values, output.field.type), codes


class _RowReader:
    """Reads records of one row each. When a record counts is judged here, by each request's own instant."""

    def __init__(self, read: ViewRead, fetch: FetchValue) -> None:
        layout = read.registered.layout
        self._ttl_us, self._has_created = layout.ttl_us, layout.has_created
        self._types = [arrow_type(read.view.feature(name).type) for name in read.features]
        for_ever = replace(layout, ttl_us=None, has_created=False)
        self._records = RowRecords(for_ever, read.features, form="python", fetch=fetch)
        self._own = self._records.own_shape[:8]

    def read(
        self,
        keys: Sequence[bytes],
        records: Sequence[bytes | None],
        places: npt.NDArray[np.int64],
        at_us: npt.NDArray[np.int64],
    ) -> _Read:
        """Return values, statuses and heads of the records of rows at ``places``, in as many rows as ``at_us`` has."""
        import pyarrow as pa

        has = np.array([record is not None for record in records], bool)
        held = [record for record in records if record is not None]
        heads = np.frombuffer(b"".join([record[:HEADER_BYTES] for record in held]), _HEAD)
        event_us = (heads["event"].astype(np.uint64) ^ _SIGN).view(np.int64)
        created_us = (heads["created"].astype(np.uint64) ^ _SIGN).view(np.int64)
        rows = places[has]
        now_us = at_us[rows]
        is_future = event_us > now_us
        if self._has_created:
            is_future |= created_us > now_us
        is_old = np.zeros(len(held), bool)
        if self._ttl_us is not None:
            is_old = ~is_future & (event_us < np.maximum(now_us - self._ttl_us, MIN_INSTANT))
        counts = np.flatnonzero(~is_future & ~is_old)
        key_of = [key for key, there in zip(keys, has.tolist(), strict=True) if there]
        taken = [held[place] for place in counts.tolist()]
        found = self._records.read([key_of[place] for place in counts.tolist()], taken, MAX_INSTANT)
        values, codes = [], []
        target = rows[counts]
        columns = found.columns()
        told = None if _all_own(taken, self._own) else found.status_columns()
        for place, kind in enumerate(self._types):
            array = pa.array(columns[place], kind)
            code = np.full(len(at_us), _MISSING, np.int8)
            code[rows[is_old]] = _TOO_OLD
            if told is None:
                code[target] = np.where(np.asarray(array.is_null()), _NULL, _PRESENT)
            else:
                code[target] = [_CODES[status] for status in told[place]]
            values.append(_spread(array, target, len(at_us)))
            codes.append(code)
        seen = ~is_future
        crcs = np.frombuffer(b"".join([record[-4:] for record in held]), ">u4").astype(np.uint32)
        schemas = pa.array([record[17:25].hex() for record in held], pa.string())
        spread = [
            _spread(pa.array(each[seen]), rows[seen], len(at_us))
            for each in (event_us, created_us, np.asarray(schemas, object), crcs)
        ]
        return _Read(values, codes, *_as_times(spread))


class _WindowReader:
    """Reads records of windows, whose values depend on the instant: request by request."""

    def __init__(self, read: ViewRead, fetch: FetchValue) -> None:
        layout, places = layout_of(read.view)
        asked = [places[name] for name in read.features]
        self._types = [arrow_type(read.view.feature(name).type) for name in read.features]
        self._records = WindowRecords(read.registered.layout, layout, asked, form="python", fetch=fetch)

    def read(
        self,
        keys: Sequence[bytes],
        records: Sequence[bytes | None],
        places: npt.NDArray[np.int64],
        at_us: npt.NDArray[np.int64],
    ) -> _Read:
        """Return as `_RowReader.read`; the event time is that of the newest event, or until when there is none."""
        import pyarrow as pa

        count = len(at_us)
        values: list[list[Any]] = [[None] * count for _ in self._types]
        codes = [np.full(count, _MISSING, np.int8) for _ in self._types]
        events: list[int | None] = [None] * count
        schemas: list[str | None] = [None] * count
        crcs: list[int | None] = [None] * count
        instants = at_us[places]
        edges = [0, *(np.flatnonzero(np.diff(instants)) + 1).tolist(), len(places)] if len(places) else [0]
        for first, end in pairwise(edges):
            part, now_us = slice(first, end), int(instants[first])
            found = self._records.read(keys[part], records[part], now_us)
            rows, columns, statuses = places[part].tolist(), found.columns(), found.status_columns()
            for place in range(len(self._types)):
                for row, value, status in zip(rows, columns[place], statuses[place], strict=True):
                    values[place][row] = value
                    codes[place][row] = _CODES[status]
            newest = self._records.event_us(found.records, now_us)
            for row, record, event in zip(rows, found.records, newest, strict=True):
                events[row] = event
                if record is not None:
                    schemas[row] = record[SCHEMA_AT : SCHEMA_AT + 8].hex()
                    crcs[row] = int.from_bytes(record[-4:])
        arrays = [pa.array(each, kind) for each, kind in zip(values, self._types, strict=True)]
        created = pa.nulls(count, pa.int64())
        spread = [pa.array(events, pa.int64()), created, pa.array(schemas, pa.string()), pa.array(crcs, pa.uint32())]
        return _Read(arrays, codes, *_as_times(spread))


def _all_own(records: Sequence[bytes], own: bytes) -> bool:
    return all(record[17:25] == own for record in records)


def _spread(array: pa.Array, rows: npt.NDArray[np.int64], count: int) -> pa.Array:
    """Return an array of so many rows that has values at some, and null in the others."""
    import pyarrow as pa

    if len(array) == count and len(rows) == count and (np.diff(rows) == 1).all():
        return array
    source = np.zeros(count, np.int64)
    is_there = np.zeros(count, bool)
    source[rows], is_there[rows] = np.arange(len(rows)), True
    return array.take(pa.array(source, mask=~is_there))


def _as_times(columns: Sequence[pa.Array]) -> list[pa.Array]:
    """Return event and created times as instants, and the rest."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    return [*(each.cast(instant) for each in columns[:2]), *columns[2:]]


def _statuses(codes: npt.NDArray[np.int8]) -> pa.Array:
    import pyarrow as pa

    return pa.DictionaryArray.from_arrays(pa.array(codes), pa.array([status.name for status in STATUSES]))
