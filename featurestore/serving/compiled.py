"""Online reads: a request compiled once, without I/O, which the SDK and the servers share.

>>> compiled = CompiledRequest(snapshot, resolve(snapshot, ["carrier_profile:last_delay"]))     # doctest: +SKIP
>>> query = compiled.query({"carrier": ["UA", "AA"]})                                           # doctest: +SKIP
>>> answer = compiled.answer(query, store.mget(query.keys), now_us)                             # doctest: +SKIP
>>> answer.rows(), answer.status_rows()                                                     # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from time import perf_counter
from typing import Any, NamedTuple

from featurestore.errors import EntityKeyError, InputError, ValueTypeError
from featurestore.online.records.keys import EntityEncoder, integer_texts
from featurestore.online.records.reading import FetchValue, Form, ViewRows
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest, OnDemandRead, OutputColumn, ViewRead
from featurestore.request.on_demand import OnDemandFunction
from featurestore.serving.views import ServedView, served_view
from featurestore.statuses import Status
from featurestore.tables import check_lengths
from featurestore.types.values import INTEGER_RANGES, ValueType, coerce, from_json, to_json


class Query(NamedTuple):
    """The keys of one request, and what its answer needs to know about it."""

    keys: list[bytes]
    """The keys of every read, one after the other: one MGET."""
    rows: int
    found: tuple[tuple[int, ...] | None, ...]
    """For each read the rows that have a key, None for all rows: a row with a null key has no key."""
    request_data: Mapping[str, Sequence[Any]]
    """Canonical values of the request fields."""


class CompiledRequest:
    """A compiled request, without I/O except ``fetch``. Serves any number of requests of its shape.

    ``form`` says how values go in and come out: as canonical Python values, or in their JSON forms, where NaN and
    infinities are null with NULL_VALUE. Raises InputError for a view that stays offline, and CodeMismatchError for an
    on-demand function whose code is not loaded or differs from what was applied.
    """

    def __init__(
        self, snapshot: Snapshot, request: FeatureRequest, *, form: Form = "python", fetch: FetchValue | None = None
    ) -> None:
        offline = next((read for read in request.reads if not read.view.online), None)
        if offline is not None:
            raise InputError(
                f"Feature view {offline.view.name!r} is not online.",
                hint="Apply it with online=True and materialize it.",
            )
        self.request = request
        self.form = form
        self.names = tuple(output.name for output in request.outputs)
        self.lower_names = frozenset(map(str.lower, self.names))
        self._functions = [(OnDemandFunction(snapshot, read.view), read) for read in request.on_demand]
        self.has_functions = bool(self._functions)
        # Functions take canonical values, in whichever form the caller sends them.
        inputs = {argument.read for read in request.on_demand for argument in read.inputs}
        forms: list[Form] = ["python" if place in inputs else form for place in range(len(request.reads))]
        self._views = [
            served_view(read.registered, read.features, form=read_form, fetch=fetch)
            for read, read_form in zip(request.reads, forms, strict=True)
        ]
        self._entities = _entities(request.reads)
        self._needed = (*request.key_types, *(name for name in request.request_fields if name not in request.key_types))
        self._columns = [_OutputColumn(request, output, form, forms) for output in request.outputs]
        order = [(place, feature) for place, read in enumerate(request.reads) for feature in range(len(read.features))]
        # Whether an answer's row is the reads' rows one after the other.
        self._straight = not self._functions and order == [(column.read, column.position) for column in self._columns]
        self.has_defaults = any(column.default is not None for column in self._columns)

    def query(self, columns: Mapping[str, Sequence[Any]]) -> Query:
        """Return the keys of a request's rows; ``columns`` holds lists of the key columns and request fields.

        Values are anything that `coerce` takes; in the form ``json`` anything that `from_json` takes.
        None is a null key. Raises EntityKeyError naming column, value and row, ValueTypeError likewise for
        request fields, and InputError for columns of different lengths or a missing request field.
        """
        try:
            rows = check_lengths({name: columns[name] for name in self._needed}, "the entity rows")
        except KeyError as error:
            raise self._missing(error.args[0], columns) from None
        found: list[tuple[int, ...] | None] = [None] * len(self._views)
        keys: list[list[bytes]] = [[]] * len(self._views)
        for entity in self._entities:
            places, texts = entity.texts(columns, self.form)
            for read in entity.reads:
                found[read] = places
                keys[read] = self._views[read].keys(texts)
        data = {
            name: _canonical(field.type, columns[name], self.form, partial(_wrong_field, name))
            for name, field in self.request.request_fields.items()
        }
        return Query(list(chain.from_iterable(keys)), rows, tuple(found), data)

    def _missing(self, name: str, columns: Mapping[str, Any]) -> InputError:
        given = f"Given are: {', '.join(map(repr, columns))}." if columns else "Nothing is given."
        if name in self.request.key_types:
            readers = ", ".join(r.view.name for r in self.request.reads if name in dict(r.key_columns).values())
            return EntityKeyError(
                f"The join key column {name!r} of {readers} is missing.", hint=given, join_key=name, row=None
            )
        of = ", ".join(r.view.name for r in self.request.on_demand if name in {f.name for f in r.view.request_fields})
        hint = f"Pass one value of type {self.request.request_fields[name].type} a row. {given}"
        return InputError(f"The request field {name!r} of {of} is missing.", hint=hint, field=name)

    def missing_schemas(
        self, query: Query, records: Sequence[bytes | None], now_us: int
    ) -> dict[bytes, list[Callable[[bytes | None], None]]]:
        """Return the keys to look up before `answer`, each with the functions that take its value.

        For callers without ``fetch``. Only records that were written before the view's newest schema need any, and
        windows without events.
        """
        wanted: dict[bytes, list[Callable[[bytes | None], None]]] = {}
        for view, part, _ in self._parts(query):
            for key, take in view.unknown(query.keys[part], records[part], now_us).items():
                # Reads of one view under several names learn apart.
                wanted.setdefault(key, []).append(take)
        return wanted

    def event_us(self, query: Query, records: Sequence[bytes | None], now_us: int) -> Iterator[Iterator[int | None]]:
        """Yield for each read the event times of the records that there are."""
        for view, part, _ in self._parts(query):
            yield view.event_us([found for found in records[part] if found is not None], now_us)

    def records(self, query: Query, records: Sequence[bytes | None]) -> Iterator[Sequence[bytes | None]]:
        """Yield the records of each read."""
        return (records[part] for _, part, _ in self._parts(query))

    def _parts(self, query: Query) -> list[tuple[ServedView, slice, tuple[int, ...] | None]]:
        parts, start = [], 0
        for view, places in zip(self._views, query.found, strict=True):
            stop = start + (query.rows if places is None else len(places))
            parts.append((view, slice(start, stop), places))
            start = stop
        return parts

    def fresh_rows(self, query: Query, records: Sequence[bytes | None], now_us: int) -> list[list[Any]] | None:
        """Return the answer's rows if every view can take its short way (`ServedView.fresh`); None otherwise."""
        if not self._straight or query.found.count(None) != len(query.found):
            return None
        views, start = [], 0
        for view in self._views:
            rows = view.fresh(records[start : start + query.rows], now_us)
            if rows is None:
                return None
            views.append(rows)
            start += query.rows
        joined = views[0]
        for rows in views[1:]:
            for row, more in zip(joined, rows, strict=True):
                row += more  # in place: nothing else refers to these lists
        return joined

    def answer(self, query: Query, records: Sequence[bytes | None], now_us: int) -> Answer:
        """Return the answer for the records of ``query.keys``; ttls are counted from ``now_us``, inclusive.

        Raises DamagedRecordError, and what an on-demand function raises (see `OnDemandFunction`).
        """
        views = []
        for view, part, places in self._parts(query):
            rows = view.read(query.keys[part], records[part], now_us)
            views.append(rows if places is None else _spread(rows, places, query.rows))
        started = perf_counter()
        computed = [_compute(function, read, views, query) for function, read in self._functions]
        spent = perf_counter() - started
        flags = self._straight, self.has_defaults
        return Answer(self._columns, self._views, views, computed, query.rows, *flags, spent, query.found, now_us)


@dataclass
class Answer:
    """Values and statuses of one request's outputs, by row or by column."""

    _outputs: Sequence[_OutputColumn]
    _served: Sequence[ServedView]
    views: Sequence[ViewRows]
    """The rows of each read of the request, in its order."""
    computed: Sequence[list[list[Any]]]
    """The features of each on-demand view, as canonical values."""
    row_count: int
    _is_straight: bool
    _has_defaults: bool
    transform_seconds: float
    """How long the on-demand functions took."""
    _found: Sequence[tuple[int, ...] | None]
    _now_us: int

    @cached_property
    def _values(self) -> list[list[Any]]:
        columns = [view.columns() for view in self.views]
        if self._is_straight:
            return list(chain.from_iterable(columns))
        return [output.values(columns, self.computed) for output in self._outputs]

    @cached_property
    def _statuses(self) -> list[list[Status] | None]:
        columns = [None if view.statuses is None else view.status_columns() for view in self.views]
        return [output.statuses(columns, values) for output, values in zip(self._outputs, self._values, strict=True)]

    def columns(self) -> list[list[Any]]:
        """Return each output's values; a declared default or None where the status is not PRESENT."""
        if not self._has_defaults:
            return self._values  # statuses are only computed when somebody asks for them
        return [
            output.with_default(values, statuses)
            for output, values, statuses in zip(self._outputs, self._values, self._statuses, strict=True)
        ]

    def status_columns(self) -> list[list[Status]]:
        """Return each output's statuses."""
        present = [Status.PRESENT] * self.row_count
        return [list(present) if statuses is None else statuses for statuses in self._statuses]

    def rows(self) -> Sequence[Sequence[Any]]:
        """Return each row's values, as `columns`."""
        needs_defaults = self._has_defaults and any(view.statuses is not None for view in self.views)
        if needs_defaults or not self._is_straight:
            return list(zip(*self.columns(), strict=True))
        if len(self.views) == 1:
            return self.views[0].values
        return [list(chain.from_iterable(row)) for row in zip(*(v.values for v in self.views), strict=True)]

    def status_rows(self) -> Sequence[Sequence[Status]] | None:
        """Return each row's statuses, or None where every value is PRESENT."""
        if not self._is_straight:
            return (
                None
                if all(found is None for found in self._statuses)
                else list(zip(*self.status_columns(), strict=True))
            )
        found = [view.statuses for view in self.views]
        if all(statuses is None for statuses in found):
            return None
        parts = [
            [(Status.PRESENT,) * view.width] * self.row_count if statuses is None else statuses
            for view, statuses in zip(self.views, found, strict=True)
        ]
        return [list(chain.from_iterable(row)) for row in zip(*parts, strict=True)]

    def event_us(self) -> dict[str, list[int | None]]:
        """Return each row's event time, by view or the name it was read under; None where there is no record.

        Without an event a windowed view has one too: until when that is known.
        """
        reads = {output.alias: output.read for output in self._outputs if output.read is not None}
        return {alias: self._event_us_of(read) for alias, read in reads.items()}

    def _event_us_of(self, read: int) -> list[int | None]:
        instants = list(self._served[read].event_us(self.views[read].records, self._now_us))
        places = self._found[read]
        if places is None:
            return instants
        found: list[int | None] = [None] * self.row_count
        for place in places:
            found[place] = instants[place]
        return found


class _OutputColumn:
    """Where one output's values are, and how to convert them."""

    def __init__(self, request: FeatureRequest, output: OutputColumn, form: Form, forms: Sequence[Form]) -> None:
        self.alias = output.alias
        self.read = output.read
        self._on_demand = output.on_demand
        self._type = output.field.type
        default = output.field.default
        self.default = to_json(self._type, default) if form == "json" else default
        if output.read is not None:
            self.position = request.reads[output.read].features.index(output.field.name)
            self._convert = form != forms[output.read]
        else:
            assert output.on_demand is not None
            names = [field.name for field in request.on_demand[output.on_demand].view.features]
            self.position = names.index(output.field.name)
            self._convert = form == "json"

    def values(self, views: Sequence[list[list[Any]]], computed: Sequence[list[list[Any]]]) -> list[Any]:
        """Return the values in the caller's form, without defaults."""
        if self.read is not None:
            found = views[self.read][self.position]
        else:
            assert self._on_demand is not None
            found = computed[self._on_demand][self.position]
        return [to_json(self._type, value) for value in found] if self._convert else found

    def statuses(self, views: Sequence[list[list[Status]] | None], values: Sequence[Any]) -> list[Status] | None:
        """Return the statuses of `values`, None where every one is PRESENT."""
        columns = None if self.read is None else views[self.read]
        known = None if columns is None else columns[self.position]
        if (self._convert or self.read is None) and None in values:
            return [
                Status.NULL_VALUE if value is None and status is Status.PRESENT else status
                for value, status in zip(values, known or [Status.PRESENT] * len(values), strict=True)
            ]
        return known

    def with_default(self, values: list[Any], statuses: Sequence[Status] | None) -> list[Any]:
        """Return the values with the declared default where the status is not PRESENT."""
        if self.default is None or statuses is None:
            return values
        own = self._type.item is not None  # a default that is a list is copied: callers may change theirs
        return [
            value if status is Status.PRESENT else deepcopy(self.default) if own else self.default
            for value, status in zip(values, statuses, strict=True)
        ]


class _Entity:
    """Reads that share their keys: the same join keys by the same columns."""

    def __init__(self, join_keys: Sequence[tuple[str, ValueType]], columns: Sequence[str], reads: list[int]) -> None:
        self.reads = reads
        self._columns = columns
        self._types = [value_type for _, value_type in join_keys]
        self._encoder = EntityEncoder(join_keys)
        self._integers = INTEGER_RANGES.get(self._types[0].name) if len(join_keys) == 1 else None

    def texts(self, columns: Mapping[str, Sequence[Any]], form: Form) -> tuple[tuple[int, ...] | None, list[str]]:
        """Return the rows without a null key (None: all of them) and their encoded entities."""
        lists = [columns[name] for name in self._columns]
        if self._integers is not None and set(map(type, lists[0])) == {int}:
            low, high = self._integers
            if low <= min(lists[0]) and max(lists[0]) <= high:
                return None, integer_texts(lists[0])
        if not any(None in values for values in lists):
            try:
                return None, self._encoder.texts(lists)
            except EntityKeyError:
                pass  # not canonical, or wrong: the loop below finds out
        canonical = [
            _canonical(value_type, values, form, partial(_wrong_key, name))
            for name, value_type, values in zip(self._columns, self._types, lists, strict=True)
        ]
        rows = list(zip(*canonical, strict=True))
        places = tuple(place for place, row in enumerate(rows) if None not in row)
        texts = self._encoder.texts([[column[place] for place in places] for column in canonical])
        return None if len(places) == len(rows) else places, texts


def _entities(reads: Sequence[ViewRead]) -> list[_Entity]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for position, read in enumerate(reads):
        columns = dict(read.key_columns)
        join_keys = read.registered.layout.join_keys
        groups.setdefault((join_keys, tuple(columns[key] for key, _ in join_keys)), []).append(position)
    return [_Entity(join_keys, columns, positions) for (join_keys, columns), positions in groups.items()]


def _canonical(
    value_type: ValueType, values: Sequence[Any], form: Form, fail: Callable[[int, str], Exception]
) -> list[Any]:
    """Return canonical values; raises what ``fail`` makes of the row and the message of a value of another type."""
    read = from_json if form == "json" else coerce
    canonical = []
    for row, value in enumerate(values):
        try:
            canonical.append(read(value_type, None if _is_null(value, value_type) else value))
        except ValueTypeError as error:
            raise fail(row, error.message) from None
    return canonical


def _wrong_key(name: str, row: int, why: str) -> EntityKeyError:
    return EntityKeyError(f"Join key column {name!r}, row {row}: {why}", join_key=name, row=row)


def _wrong_field(name: str, row: int, why: str) -> ValueTypeError:
    return ValueTypeError(f"Request field {name!r}, row {row}: {why}", field=name, row=row)


def _is_null(value: Any, value_type: ValueType) -> bool:
    """Tell whether a value is the NaN that pandas writes for a null: one in a column that is not of floats."""
    return isinstance(value, float) and math.isnan(value) and not value_type.name.startswith("Float")


def _spread(found: ViewRows, places: Sequence[int], row_count: int) -> ViewRows:
    """Return a view's answer for all rows, of which only those at ``places`` have a key."""
    values: list[Sequence[Any]] = [(None,) * found.width] * row_count
    statuses: list[Sequence[Status]] = [(Status.NOT_FOUND,) * found.width] * row_count
    records: list[bytes | None] = [None] * row_count
    present = (Status.PRESENT,) * found.width
    for position, place in enumerate(places):
        values[place] = found.values[position]
        statuses[place] = present if found.statuses is None else found.statuses[position]
        records[place] = found.records[position]
    return ViewRows(records, found.width, values, None, statuses)


def _compute(
    function: OnDemandFunction, read: OnDemandRead, views: Sequence[ViewRows], query: Query
) -> list[list[Any]]:
    inputs = read.taken(query.request_data, [view.columns() for view in views])
    return function.on_lists(inputs, query.rows)
