"""What columns hold: totals over all rows, and a sample, in one pass over the values.

Decoding a column costs several times what is counted of it, so sums, distinct values and the drawn rows come from one
query. Extremes come before it, mostly from the footers: around their middle, sums of squares lose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from featurestore.definitions import ParquetSource
from featurestore.engine.duck.offline_sql import log
from featurestore.engine.duck.session import Session, quote, translated
from featurestore.engine.duck.tables import FILE, POSITION, Reader, open_source
from featurestore.engine.profiles import (
    KEPT_CHARACTERS,
    MOST_CHARACTERS,
    ColumnTotals,
    ProfiledColumns,
    Profiles,
    Sample,
    is_number,
    middle_of,
)
from featurestore.errors import ValueTypeError
from featurestore.types import Bytes, Date, String, Timestamp, ValueType
from featurestore.types.arrow import arrow_type
from featurestore.types.columns import FILE_NUMBER, FILE_ROW
from featurestore.types.times import to_datetime
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

CELLS_AT_ONCE = 2_000_000
"""How many values of a sample are held at a time."""
READ_WHOLE_BYTES = 128 << 20
"""Up to this size, decompressed, files that are drawn whole are read without a query: a database starts slowly."""
_FLOATS = ("Float32", "Float64")
_KEPT_BYTES, _MOST_BYTES = KEPT_CHARACTERS // 4 * 3, MOST_CHARACTERS // 4 * 3
READ_WHOLE_FILES = 100
_ROW, DOING = "fs_profiled_row", "profile columns"
NO_VALUES = (None, None)
FEW_DISTINCT, _NEARLY = 100, 1.02
"""With so few values in every row group the sample holds all that matter, and bounds this close are the answer."""
_CUT_BYTES = 64
"""Some writers cut the extremes of texts in footers to so many bytes."""
_NEAR, _WIDE, _LARGER = 4, 1e100, 10**6
"""How many times larger than they are apart values may be to be summed up as they are; how far apart they may be
without a scale; and how many times larger they may be without losing digits as floats."""


@dataclass(frozen=True, slots=True)
class _Relation:
    """What is profiled, in SQL."""

    connection: duckdb.DuckDBPyConnection
    source: str
    """What a SELECT reads FROM."""
    place: str
    """The expression that differs from row to row and is the same whenever they are read."""
    columns: Mapping[str, str]
    """The expression of each column."""
    rows: int
    files: Sequence[str] = ()
    """Files of which footers say what the columns hold."""


class DuckProfiles(Profiles):
    """Profiles made in this process."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def profile(
        self,
        rows: Sequence[str] | ParquetSource | pa.Table,
        columns: Mapping[str, ValueType],
        *,
        hidden: Collection[str] = (),
        sample: Sample = Sample(),  # noqa: B008 - frozen
    ) -> Iterator[ProfiledColumns]:
        whole = _whole(rows, columns, sample)
        if whole is not None:
            yield ProfiledColumns(whole.num_rows, whole, None)
            return
        with self._opened(rows, columns) as relation:
            share = sample.of(relation.rows)
            names = list(columns)
            width = max(1, int(CELLS_AT_ONCE // max(share * relation.rows, 1)))
            for first in range(0, len(names), width):
                group = {name: columns[name] for name in names[first : first + width]}
                yield _Pass(relation, group, hidden).run(share)

    @contextmanager
    def _opened(
        self, rows: Sequence[str] | ParquetSource | pa.Table, columns: Mapping[str, ValueType]
    ) -> Iterator[_Relation]:
        if isinstance(rows, ParquetSource):
            table = open_source(self._session, rows)
            with (
                self._session.reading(table.paths) as connection,
                translated(DOING, source_files=table.paths),
            ):
                names = {column.name.lower() for column in table.columns}
                reader, place = Reader(connection, table), POSITION
                if names.isdisjoint((FILE_NUMBER, FILE_ROW, POSITION, FILE)):
                    query = reader.presented(placed=True)
                else:  # they hide where a row is
                    place = _free(_ROW, names)
                    query = f"SELECT *, row_number() OVER () AS {place} FROM ({reader.presented()})"
                cast = {name: f"{quote(name)}::{duckdb_type(kind)}" for name, kind in columns.items()}
                count = sum(footer.rows for footer in table.footers)
                yield _Relation(connection, f"({query})", place, cast, count)
        elif isinstance(rows, Sequence):
            with self._session.reading(rows) as connection, translated(DOING, table_files=rows):
                yield _files(connection, rows, columns)
        else:
            import numpy as np
            import pyarrow as pa

            with self._session.reading([]) as connection, translated(DOING):
                # By place: a frame's names may be empty, and differ only in case.
                named = rows.select(list(columns)).rename_columns([f"c{place}" for place in range(len(columns))])
                numbered = named.append_column(_ROW, pa.array(np.arange(rows.num_rows)))
                connection.register("profiled", numbered)
                cast = {name: f"c{place}::{duckdb_type(columns[name])}" for place, name in enumerate(columns)}
                yield _Relation(connection, "profiled", _ROW, cast, rows.num_rows)


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name that no column has."""
    while name in taken:
        name += "_"
    return name


def _files(connection: duckdb.DuckDBPyConnection, files: Sequence[str], columns: Mapping[str, ValueType]) -> _Relation:
    """Return a table's files without a UNION, behind which DuckDB would not see what their footers say."""
    found = {row[0]: row[1] for row in connection.execute(f"DESCRIBE SELECT * FROM {log(files)}").fetchall()}
    expressions = {}
    for name, kind in columns.items():
        wanted = duckdb_type(kind)
        same = found.get(name) == {"TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE"}.get(wanted, wanted)
        expressions[name] = quote(name) if same else f"{quote(name) if name in found else 'NULL'}::{wanted}"
    ((count,),) = connection.execute(f"SELECT count(*) FROM {log(files)}").fetchall()
    # One number: a hash of two draws the same rows of some files, and of others those that it leaves out there.
    place = FILE_ROW if len(files) == 1 else f"{FILE_NUMBER} * {1 << 40} + {FILE_ROW}"
    return _Relation(connection, log(files), place, expressions, int(count), files)


@dataclass(frozen=True, slots=True)
class _Extremes:
    """Between which values the finite numbers of a column lie; None where there are none."""

    least: Any
    greatest: Any
    not_finite: int = 0
    distinct: tuple[int, int] | None = None
    """As `ColumnTotals.distinct_within`."""


class _Pass:
    """One pass over some columns: their extremes, then everything else."""

    def __init__(self, relation: _Relation, columns: Mapping[str, ValueType], hidden: Collection[str]) -> None:
        self._relation = relation
        self._columns = columns
        self._shown = {name: kind for name, kind in columns.items() if name not in hidden and kind.item is None}
        self._numbers = {name: kind for name, kind in self._shown.items() if is_number(kind)}

    def run(self, share: float) -> ProfiledColumns:
        """Return totals and sample of the columns."""
        found = self._footers()
        found |= self._scanned([name for name in self._numbers if name not in found])
        counted, sample = self._count(self._columns, found, share)
        # Footers do not tell of NaN; a sum does.
        missed = [name for name, counts in counted.items() if not math.isfinite(counts.get("sum") or 0.0)]
        if missed:
            found |= self._scanned(missed)
            counted |= self._count({name: self._columns[name] for name in missed}, found, None)[0]
        totals = {
            name: _totals(self._relation.rows, kind, counted[name], found.get(name))
            for name, kind in self._columns.items()
        }
        return ProfiledColumns(self._relation.rows, sample, totals)

    def _footers(self) -> dict[str, _Extremes]:
        """Return the extremes of columns as far as every footer says them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        found: dict[str, _Extremes] = {}
        if not self._relation.files:
            return found
        try:
            footers = [pq.read_metadata(path) for path in self._relation.files]
        except (OSError, pa.ArrowException):
            return found
        groups = [footer.row_group(number) for footer in footers for number in range(footer.num_row_groups)]
        places = [{schema.column(n).path: n for n in range(len(schema))} for schema in (f.schema for f in footers)]
        at = [place for footer, place in zip(footers, places, strict=True) for _ in range(footer.num_row_groups)]
        for name, kind in self._shown.items():
            chunks = (group.column(place[name]) for group, place in zip(groups, at, strict=True) if name in place)
            told = [chunk.statistics for chunk in chunks]
            bounds = [_bounds(kind, each) for each in told]
            if None not in bounds:
                held = [each for each in bounds if each is not None and each != NO_VALUES]
                least = min((each[0] for each in held), default=None)
                greatest = max((each[1] for each in held), default=None)
                distinct = [each.distinct_count for each in told if each.has_distinct_count]
                within = (max(distinct, default=0), sum(distinct)) if len(distinct) == len(told) else None
                found[name] = _Extremes(least, greatest, distinct=within)
        return found

    def _scanned(self, names: Collection[str]) -> dict[str, _Extremes]:
        """Return the extremes of numbers by reading them."""
        if not names:
            return {}
        selected = []
        for name in names:
            column = self._relation.columns[name]
            if self._columns[name].name in _FLOATS:
                # Not FILTER: for each one DuckDB goes through the columns of all.
                finite = f"CASE WHEN isfinite({column}) THEN {column} END"
                selected += [f"min({finite})", f"max({finite})", f"count({column}) - count({finite})"]
            else:
                selected += [f"min({column})", f"max({column})", "0"]
        query = f"SELECT {', '.join(selected)} FROM {self._relation.source}"
        (row,) = self._relation.connection.execute(query).fetchall()
        return {name: _Extremes(*row[3 * place : 3 * place + 3]) for place, name in enumerate(names)}

    def _count(
        self, columns: Mapping[str, ValueType], found: Mapping[str, _Extremes], share: float | None
    ) -> tuple[dict[str, dict[str, Any]], pa.Table]:
        """Return what is counted of each column by name, and the sample, empty where no share is asked."""
        import pyarrow as pa

        selected, names = list[str](), list[tuple[str, str]]()
        for name, kind in columns.items():
            for what, expression in self._counts(name, kind, found.get(name)).items():
                selected.append(expression)
                names.append((name, what))
        drawn = {} if share is None else {name: kind for name, kind in columns.items() if kind.item is None}
        if drawn:
            fields = (
                f"v{place} := {_short(self._relation.columns[name], kind)}"
                for place, (name, kind) in enumerate(drawn.items())
            )
            only = (
                ""
                if share is None or share >= 1
                else f" FILTER (hash({self._relation.place}) < {int(share * 2**64)}::UBIGINT)"
            )
            selected.append(f"list(struct_pack({', '.join(fields)})){only}")
        named = ", ".join(f"{expression} AS c{place}" for place, expression in enumerate(selected))
        row = self._relation.connection.sql(f"SELECT {named} FROM {self._relation.source}").to_arrow_table()
        counted: dict[str, dict[str, Any]] = {name: {} for name in columns}
        for place, (name, what) in enumerate(names):
            counted[name][what] = row.column(place)[0].as_py()
        schema = pa.schema([(name, arrow_type(String if kind == Bytes else kind)) for name, kind in drawn.items()])
        if not drawn:
            return counted, schema.empty_table()
        values = row.column(len(names)).chunk(0).flatten()
        arrays = values.flatten() if len(values) else [pa.array([], field.type) for field in schema]
        return counted, pa.table([each.cast(field.type) for each, field in zip(arrays, schema, strict=True)], schema)

    def _counts(self, name: str, kind: ValueType, extremes: _Extremes | None) -> dict[str, str]:
        """Return the aggregates of one column, by name."""
        column = self._relation.columns[name]
        counts = {"count": f"count({column})"}
        if kind.item is not None:
            return counts
        if extremes is not None and extremes.not_finite:
            column = f"CASE WHEN isfinite({column}) THEN {column} END"
        if extremes is None or not _tells(extremes.distinct):
            counts["distinct"] = f"approx_count_distinct({column})"
        if extremes is not None and extremes.least is not None and name in self._numbers:
            near = _distance(kind, column, extremes)
            counts |= {"sum": f"sum({near})", "squares": f"sum({near} * {near})"}
        elif extremes is None and name in self._shown and kind != Bytes:
            value = f"epoch_us({column})" if kind in (Timestamp, Date) else column
            counts |= {"least": _short(f"min({value})", kind), "greatest": _short(f"max({value})", kind)}
        return counts


def _whole(
    rows: Sequence[str] | ParquetSource | pa.Table, columns: Mapping[str, ValueType], sample: Sample
) -> pa.Table | None:
    """Return all rows where they are few and small enough, without a database."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if isinstance(rows, ParquetSource):
        return None
    if not isinstance(rows, Sequence):
        return rows.select(list(columns)) if rows.num_rows <= sample.least else None
    schema = pa.schema([(name, arrow_type(kind)) for name, kind in columns.items()])
    if len(rows) > READ_WHOLE_FILES:
        return None
    try:
        footers = [pq.read_metadata(path) for path in rows]
        groups = (footer.row_group(number) for footer in footers for number in range(footer.num_row_groups))
        if (
            sum(footer.num_rows for footer in footers) > sample.least
            or sum(group.total_byte_size for group in groups) > READ_WHOLE_BYTES
        ):
            return None
        parts = [_read(path, schema) for path in rows]
        return None if any(part is None for part in parts) else pa.concat_tables([schema.empty_table(), *parts])
    except (OSError, pa.ArrowException):
        return None  # the engine says which file is damaged


def _read(path: str, schema: pa.Schema) -> pa.Table | None:
    """Return a file's columns, one that it lacks as nulls; None if texts that repeat take too much memory."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts = [field.name for field in schema if field.type in (pa.string(), pa.binary())]
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        there = set(file.schema_arrow.names)
        table = file.read(columns=[name for name in schema.names if name in there])
    for name in (name for name in texts if name in there):
        chunks = table.column(name).chunks
        lengths = (pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in chunks)
        if sum(pc.sum(each).as_py() or 0 for each in lengths) > READ_WHOLE_BYTES:
            return None
    columns = [
        table.column(field.name).cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _bounds(kind: ValueType, statistics: Any) -> tuple[Any, Any] | None:
    """Return the extremes of a column in a row group, `NO_VALUES` of nulls alone, None where its footer lacks them."""
    if kind == Bytes or statistics is None or not statistics.has_null_count:
        return None
    if not statistics.num_values:
        return NO_VALUES
    try:
        found = (statistics.min, statistics.max) if statistics.has_min_max else None
    except (ValueError, OverflowError):  # an instant that Python does not have
        return None
    if found is None or (kind.name in _FLOATS and not all(map(math.isfinite, found))):
        return None
    if kind == String and max(len(each.encode()) for each in found) >= _CUT_BYTES:
        return None
    return found


def _middle(kind: ValueType, extremes: _Extremes) -> tuple[Any, float]:
    """Return the middle of the values, and the factor that keeps squares of distances from it within a float.

    Sums of such distances and of their squares lose no digits, as both ends are among the values.
    """
    least, greatest = extremes.least, extremes.greatest
    if max(abs(least), abs(greatest)) <= _NEAR * (greatest - least) < _WIDE and greatest - least > 1 / _WIDE:
        return 0, 1.0  # which is nearly as good, and costs no subtraction
    if kind.name not in _FLOATS:
        return middle_of(kind, least, greatest), 1.0 if greatest - least < _WIDE else 1.0 / float(greatest - least)
    width = greatest - least
    if math.isinf(width):
        return 0.0, 1.0 / max(abs(least), abs(greatest))
    return least / 2 + greatest / 2, 1.0 if 1 / _WIDE < width < _WIDE or not width > 1e-300 else 1.0 / width


def _distance(kind: ValueType, column: str, extremes: _Extremes) -> str:
    """Return the expression of the distance from the middle, as a float."""
    middle, scale = _middle(kind, extremes)
    most, width = max(abs(extremes.least), abs(extremes.greatest)), extremes.greatest - extremes.least
    if middle == 0 and scale == 1.0:
        return f"{column}::DOUBLE"
    if kind.name in _FLOATS or most < width * _LARGER:
        distance = f"({column}::DOUBLE - {_double(float(middle))})"
    else:  # a float would have no digit in which they differ
        distance = f"({column} - '{middle}'::{duckdb_type(kind)})::DOUBLE"
    return distance if scale == 1.0 else f"({distance} * {_double(scale)})"


def _totals(rows: int, kind: ValueType, counted: Mapping[str, Any], extremes: _Extremes | None) -> ColumnTotals:
    count = counted["count"]
    found = extremes or _Extremes(*(_value(kind, counted.get(name)) for name in ("least", "greatest")))
    held = count - found.not_finite
    totals = ColumnTotals(
        nulls=rows - count,
        not_finite=found.not_finite,
        distinct=None if counted.get("distinct") is None else min(counted["distinct"], held),
        distinct_within=found.distinct,
        minimum=found.least,
        maximum=found.greatest,
    )
    if "sum" not in counted:
        return totals
    middle, scale = _middle(kind, found)
    offset = counted["sum"] / held
    mean = min(max(float(middle) + offset / scale, float(found.least)), float(found.greatest))
    deviation = math.sqrt(max(counted["squares"] / held - offset * offset, 0.0)) / scale
    if kind.name in _FLOATS:  # a zero has no sign here
        totals = replace(totals, minimum=found.least + 0.0, maximum=found.greatest + 0.0)
    return replace(totals, mean=mean, deviation=deviation)


def _tells(distinct: tuple[int, int] | None) -> bool:
    """Tell whether a sample finds out how many values there are between these bounds: few, or nearly that many."""
    return distinct is not None and (distinct[0] <= FEW_DISTINCT or distinct[1] <= distinct[0] * _NEARLY)


def _value(kind: ValueType, found: Any) -> Any:
    """Return an extreme as a Python value; None for an instant that Python does not have."""
    if found is None or kind not in (Timestamp, Date):
        return found
    with suppress(ValueError, OverflowError, ValueTypeError):
        return to_datetime(found) if kind == Timestamp else to_datetime(found).date()
    return None


def _double(number: float) -> str:
    return f"'{number!r}'::DOUBLE"


def _short(column: str, kind: ValueType) -> str:
    """Return the expression of a value as `shortened` does it, also of bytes."""
    tail = f"'\u2026' || left(md5({column}), 8)"
    if kind == String:
        is_long = f"strlen({column}) > {MOST_CHARACTERS} AND length({column}) > {MOST_CHARACTERS}"
        return f"CASE WHEN {is_long} THEN left({column}, {KEPT_CHARACTERS}) || {tail} ELSE {column} END"
    if kind == Bytes:
        cut = f"to_base64(({column})[1:{_KEPT_BYTES}]) || {tail}"
        return f"CASE WHEN octet_length({column}) > {_MOST_BYTES} THEN {cut} ELSE to_base64({column}) END"
    return column
