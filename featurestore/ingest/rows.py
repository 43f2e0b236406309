"""Pushed rows: a caller's table becomes Arrow columns of the declared types; errors name the row that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from featurestore.definitions import FeatureView
from featurestore.errors import EntityKeyError, InputError, ValueTypeError, did_you_mean
from featurestore.online.interface import Write
from featurestore.online.records.encoder import RecordEncoder
from featurestore.tables import as_arrow, check_lengths, read_parquet, read_table
from featurestore.types.arrow import arrow_type, cast_column, one_array
from featurestore.types.columns import CREATED, EVENT
from featurestore.types.times import EPOCH, instants_from_arrow, to_instant, to_rfc3339
from featurestore.types.values import PYTHON_KINDS, Float32, Timestamp, ValueType, coerce, from_json, from_library

if TYPE_CHECKING:
    import pyarrow as pa

Column = Any
"""A list of canonical Python values, instants as microseconds, or an Arrow array."""

FEW = 64
"""Up to so many rows stay Python values: Arrow is faster for more, but slow to start."""
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")
"""Matches a text with a fraction of a microsecond."""


class PushedRows:
    """The rows of one push, column by column: lists, or anything that Arrow can read. Unknown columns are ignored.

    With ``json`` the values are JSON's (`types.values.from_json`), otherwise Python's (`coerce`) or typed columns.
    ``has_columns=False`` means no rows at all, and so no column names.
    """

    def __init__(self, columns: Mapping[str, Any], *, json: bool = False, has_columns: bool = True) -> None:
        self._columns = columns
        self._has_columns = has_columns
        self._convert = from_json if json else coerce
        self._typed: dict[str, list[tuple[ValueType, Column]]] = {}
        self.row_count = check_lengths(columns, "rows")

    def require(self, needed: Sequence[str], source: str) -> None:
        """Raise InputError for a needed column that is missing."""
        if not self._has_columns:
            self._columns = {name: [] for name in needed}
        for name in needed:
            if name not in self._columns:
                raise InputError(
                    f"The rows pushed to {source!r} have no column {name!r}.",
                    hint=did_you_mean(name, self._columns),
                    column=name,
                )

    def others(self, needed: Sequence[str | None]) -> list[str]:
        """Return the columns that are not among those needed."""
        return [name for name in self._columns if name not in needed]

    def of_view(self, view: FeatureView, *, now_us: int, until_us: int) -> CheckedRows:
        """Return the rows as those of a view; a missing or null created time becomes ``now_us``.

        Raises EntityKeyError for a join key that is null or ill-typed, ValueTypeError for any other value that does
        not fit, a null event time, and times after ``until_us``; both name column and row.
        """
        source = view.batch_sources[0]
        keys = {name: self._key(name, kind) for name, kind in view.join_keys.items()}
        event = self._instants(source.timestamp_field, until_us)
        _no_nulls(event, "column", source.timestamp_field, ValueTypeError)
        created: Column = [now_us] * self.row_count
        if source.created_timestamp_field is not None and source.created_timestamp_field in self._columns:
            created = _filled(self._instants(source.created_timestamp_field, until_us), now_us)
        stored = {field.name: self._values(field.name, field.type) for field in view.stored}
        return CheckedRows(view, keys, event, created, stored)

    def _key(self, name: str, kind: ValueType) -> Column:
        try:
            column = self._values(name, kind)
        except ValueTypeError as error:
            raise EntityKeyError(f"Join key: {error.message}", hint=error.hint, **error.details) from None
        _no_nulls(column, "join key", name, EntityKeyError)
        return column

    def _values(self, name: str, kind: ValueType) -> Column:
        """Return a column in its declared type, a list as canonical Python values."""
        typed = self._typed.setdefault(name, [])
        for known, column in typed:
            if known == kind:
                return column
        given = self._given(name)
        column = self._from_list(name, given, kind) if isinstance(given, list) else _from_column(name, given, kind)
        typed.append((kind, column))
        return column

    def _given(self, name: str) -> Any:
        """Return a column as a list of Python values or as Arrow."""
        values = self._columns[name]
        if isinstance(values, list | tuple):
            first = next((value for value in values if value is not None), None)
            if type(first).__name__ != "datetime64":
                return list(values) if isinstance(values, tuple) else values
            # numpy's instants: finer ones would become bare integers in Python. A NaT of any unit equals nothing.
            values = [value if value == value else None for value in values]
        try:
            return one_array(as_arrow(values))
        except ValueError:
            return list(values)  # values of several types: the error will name one of them

    def _from_list(self, name: str, values: list[Any], kind: ValueType) -> Column:
        found = self._at_once(values, kind, texts=self._convert is from_json)
        return _each(name, values, lambda value: self._convert(kind, value)) if found is None else found

    def _at_once(self, values: list[Any], kind: ValueType, *, texts: bool) -> pa.Array | None:
        """Return many values as Arrow, None where a loop has to check each value (`_typed`)."""
        if self.row_count <= FEW:
            return None
        import pyarrow as pa

        try:
            return _typed(values, kind, texts=texts)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, ValueTypeError):
            return None  # out of range, or not a text: the loop finds the row

    def _instants(self, name: str, until_us: int) -> Column:
        """Return a time column in UTC microseconds, ceiled."""
        given = self._given(name)
        if isinstance(given, list):
            is_exact = not any(type(value) is str and _FINER.search(value) for value in given)
            found = self._at_once(given, Timestamp, texts=is_exact)
            instants = _each(name, given, _ceiled) if found is None else _instants_of(name, found)
        else:
            instants = _instants_of(name, given)
        late = _first_after(instants, until_us)
        if late >= 0:
            limit = to_rfc3339(until_us)
            raise ValueTypeError(
                f"column {name!r}, row {late}: {to_rfc3339(int(_listed(instants)[late]))} lies in the future.",
                hint=f"Push rows after they happened; `server.max_clock_skew` now admits times up to {limit}.",
                column=name,
                row=late,
            )
        return instants


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Checked rows of one view, column by column."""

    view: FeatureView
    keys: Mapping[str, Column]
    event_us: Column
    created_us: Column
    stored: Mapping[str, Column]

    def table(self) -> pa.Table:
        """Return the rows as Arrow: join keys, event_ts, created_ts, stored fields."""
        import pyarrow as pa

        kinds, given = self.view.stored_types, {**self.keys, **self.stored}
        typed = {name: _array(column, arrow_type(kinds[name])) for name, column in given.items()}
        instants = {EVENT: self.event_us, CREATED: self.created_us}
        moments = {n: _array(column, pa.int64()).cast(arrow_type(Timestamp)) for n, column in instants.items()}
        columns = {**typed, **moments}
        return pa.table({name: columns[name] for name in (*self.keys, EVENT, CREATED, *self.stored)})

    def after(self, now_us: int) -> Iterator[tuple[tuple[Any, ...], int]]:
        """Yield the keys and the instant of each row that is available after another instant only."""
        if _first_after(self.event_us, now_us) < 0 and _first_after(self.created_us, now_us) < 0:
            return
        instants = map(max, _listed(self.event_us), _listed(self.created_us))
        entities = zip(*map(_listed, self.keys.values()), strict=True)
        yield from (pair for pair in zip(entities, instants, strict=True) if pair[1] > now_us)

    def writes(self, encoder: RecordEncoder, batch_rows: int) -> Iterator[Sequence[Write]]:
        """Yield the rows as records, in batches."""
        columns = [*self.keys.values(), self.event_us, self.created_us, *self.stored.values()]
        if not all(isinstance(column, list) for column in columns) or len(self.event_us) > FEW:
            for batch in self.table().to_batches(max_chunksize=batch_rows):
                yield encoder.encode_table(batch)
            return
        entities = zip(*(self.keys[name] for name, _ in encoder.layout.join_keys), strict=True)
        values = zip(*(self.stored[name] for name, _ in encoder.layout.fields), strict=True)
        yield list(map(encoder.write, entities, self.event_us, self.created_us, values))


def read_rows(rows: Any) -> PushedRows:
    """Return what a caller pushes: any table (see `tables.read_table`), or the path of a Parquet file.

    Raises InputError for anything else, and for two columns of one name.
    """
    if isinstance(rows, str | Path):
        rows = read_parquet(rows, "The file of rows")
    table = read_table(rows, "rows")
    return PushedRows(table.columns, has_columns=table.has_names)


def _array(column: Column, kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    return pa.array(column, kind) if isinstance(column, list) else column


def _listed(column: Column) -> list[Any]:
    return column if isinstance(column, list) else list(column.to_pylist())


def _typed(values: list[Any], kind: ValueType, *, texts: bool) -> pa.Array | None:
    """Return the values as `coerce` would, if all are null or of the type's own Python kind; None for others.

    With ``texts`` instants may be ISO 8601 texts. Raises where a value does not fit, and sometimes where one does.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    kinds = set(map(type, values)) - {type(None)}
    if texts and kind == Timestamp and kinds == {str}:
        values = [None if value is None else datetime.fromisoformat(value) for value in values]
    elif not kinds <= {PYTHON_KINDS[kind.name]}:
        return None
    if kind == Timestamp:
        return instants_from_arrow(_moments(values), "floor")
    if kind.item is not None:
        items = _typed(list(chain.from_iterable(filter(None, values))), kind.item, texts=texts)
        return None if items is None else _lists(values, items)
    column = pa.array(values, arrow_type(kind))
    if kind == Float32 and pc.any(pc.is_inf(column)).as_py():
        return None  # Arrow turns larger numbers into infinity
    return column


def _moments(values: Sequence[datetime | None]) -> pa.Array:
    """Return datetimes as instants, naive ones as UTC. Raises TypeError for a mix of naive and aware ones."""
    import pyarrow as pa

    # Arrow would ask each datetime for its offset, slowly, and drop the offset's fraction of a second. If all share one
    # zone with one offset, their difference to the epoch in that zone needs no offset.
    start = EPOCH
    zones = {id(value.tzinfo): value.tzinfo for value in values if value is not None}
    if len(zones) == 1:
        (zone,) = zones.values()
        if zone is None:
            start = EPOCH.replace(tzinfo=None)
        elif type(zone) in (timezone, ZoneInfo) and zone.utcoffset(None) is not None:
            start = EPOCH.astimezone(zone)
    since = [None if value is None else value - start for value in values]
    return pa.array(since, pa.duration("us")).view(arrow_type(Timestamp))


def _lists(values: Sequence[list[Any] | None], items: pa.Array) -> pa.Array:
    """Return lists, or null, whose items follow one another in ``items``."""
    import pyarrow as pa

    ends = accumulate(0 if value is None else len(value) for value in values)
    starts = [None if value is None else end - len(value) for value, end in zip(values, ends, strict=True)]
    return pa.ListArray.from_arrays(pa.array([*starts, len(items)], pa.int32()), items)


def _each(name: str, values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
    converted: list[Any] = []
    try:
        for value in values:
            converted.append(convert(value))  # the number of converted values is the row that fails
    except ValueTypeError as error:
        row = len(converted)
        message = f"column {name!r}, row {row}: {error.message}"
        raise ValueTypeError(message, hint=error.hint, column=name, row=row) from None
    return converted


def _from_column(name: str, column: pa.Array, kind: ValueType) -> Column:
    try:
        return cast_column(column, kind, name=name)
    except ValueTypeError:
        import pyarrow as pa

        found, wanted = column.type, kind
        while wanted.item is not None and pa.types.is_nested(found):
            found, wanted = found.value_type, wanted.item
        if wanted == Float32 and pa.types.is_floating(found):
            raise  # every value would be rounded: callers with typed columns can cast them
        values = from_library(column.to_pylist(), column.type)
        return _each(name, values, lambda value: coerce(kind, value))


def _instants_of(name: str, column: pa.Array) -> pa.Array:
    import pyarrow as pa

    try:
        instants = instants_from_arrow(column, "ceil")
    except ValueTypeError as error:
        raise ValueTypeError(f"column {name!r}: {error.message}", hint=error.hint, column=name) from None
    return instants.cast(pa.int64())


def _ceiled(value: Any) -> int | None:
    """Return the instant of a datetime or an ISO 8601 text, ceiled where it is finer than microseconds."""
    if isinstance(value, str):
        return to_instant(value) + bool(_FINER.search(value))
    moment = coerce(Timestamp, value)
    return None if moment is None else to_instant(moment) + bool(getattr(value, "nanosecond", 0))


def _first_after(instants: Column, until_us: int) -> int:
    """Return the first row whose instant is after another, -1 where there is none."""
    if isinstance(instants, list):
        return next((row for row, found in enumerate(instants) if found is not None and found > until_us), -1)
    import pyarrow.compute as pc

    return int(pc.index(pc.greater(instants, until_us), True).as_py())


def _filled(instants: Column, now_us: int) -> Column:
    if isinstance(instants, list):
        return [now_us if found is None else found for found in instants]
    import pyarrow.compute as pc

    return pc.fill_null(instants, now_us)


def _no_nulls(column: Column, what: str, name: str, error: type[InputError]) -> None:
    if None in column if isinstance(column, list) else column.null_count:
        row = _listed(column).index(None)
        raise error(f"{what} {name!r} is null in row {row}.", column=name, row=row)
