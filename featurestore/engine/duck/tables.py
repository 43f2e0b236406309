"""Sources on disk: what the footers of their files say, and the SQL that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.definitions import ParquetSource
from featurestore.definitions.base import twins
from featurestore.engine.duck.convert import Column, coarse_bounds, converted, instant_us
from featurestore.engine.duck.files import find_files, top
from featurestore.engine.duck.footers import (
    PATH,
    Footer,
    Partition,
    has_nanoseconds,
    holds_nothing,
    holds_whole,
    read_footer,
)
from featurestore.engine.duck.identity import CREATED_US, EVENT_US
from featurestore.engine.duck.session import (
    FOLDER_SAYS,
    USER_ERROR,
    Session,
    file_list,
    quote,
    source_file_error,
    text,
    translated,
)
from featurestore.engine.interface import SourceColumn, SourceFile
from featurestore.engine.schema import NULL_TYPE, find_column, list_depth, null_depth, serves
from featurestore.errors import SourceSchemaError
from featurestore.types import Float32, Float64, Int64, ValueType
from featurestore.types.arrow import fits
from featurestore.types.columns import FILE_NUMBER, FILE_ROW
from featurestore.types.values import duckdb_type

if TYPE_CHECKING:
    import duckdb

_OR, _SHOWN_TYPES = " or ", 3
POSITION, FILE = "fs_position", "fs_file"
"""Columns besides the user's: instants in UTC microseconds, row number over all files, file number."""


@dataclass(frozen=True, slots=True)
class SourceTable:
    """A source as it is on disk now."""

    source: ParquetSource
    files: tuple[SourceFile, ...]
    footers: tuple[Footer, ...]
    columns: tuple[SourceColumn, ...]
    """The columns of all files together, each in the narrowest type that holds all of its values."""

    @property
    def paths(self) -> list[str]:
        """Absolute path of each file."""
        return [footer.path for footer in self.footers]


def open_source(
    session: Session, source: ParquetSource, declared: Mapping[str, ValueType | None] | None = None
) -> SourceTable:
    """Read the footers of a source's files.

    A column that holds only nulls and NaN in a file has no type there if its type does not fit that of the other files,
    or the ``declared`` one (None: that of an instant). Raises SourceFileError naming a file that is empty, truncated or
    foreign, and SourceSchemaError if files disagree on a column in a way that no wider type covers.
    """
    files = find_files(session.root, source)
    below = top(session.root, source)
    footers = tuple(read_footer(str(session.root / file.path), file.state, str(below)) for file in files)
    files, footers = _holding(files, footers)
    columns, disagreeing = _unified(footers, below)
    for nan_too in (False, True):  # among floats a NaN is a value
        wanted = [(find_column(columns, name), kind) for name, kind in (declared or {}).items()]
        doubtful = {*disagreeing, *(column.name for column, kind in wanted if column and not serves(column, kind))}
        if doubtful:
            footers = tuple(_blanked(footer, doubtful, nan_too) for footer in footers)
            columns, disagreeing = _unified(footers, below)
    columns = tuple(_whole(column, footers) for column in columns)
    problems = [*disagreeing.values(), *twins(column.name for column in columns), *_spelled_twice(footers)]
    if problems:
        raise SourceSchemaError(
            f"Source {source.name!r}: its files disagree:" + "".join(f"\n  - {problem}" for problem in problems[:20]),
            hint="Write the files with one schema.",
            source=source.name,
            problems=problems,
        )
    return SourceTable(source, files, footers, columns)


def _holding(
    files: tuple[SourceFile, ...], footers: tuple[Footer, ...]
) -> tuple[tuple[SourceFile, ...], tuple[Footer, ...]]:
    """Leave out files without rows and columns, which DuckDB cannot read: pandas writes an empty frame like that."""
    held = [pair for pair in zip(files, footers, strict=True) if pair[1].rows or pair[1].has_columns]
    return (tuple(file for file, _ in held), tuple(footer for _, footer in held)) if held else (files, footers)


def _whole(column: SourceColumn, footers: Sequence[Footer]) -> SourceColumn:
    """Return the column as integers if some files hold integers and the others only whole floats.

    Pandas turns a day's integers into floats if one is missing.
    """
    if column.value_type != Float64:
        return column
    kinds = [own.value_type if (own := find_column(f.columns, column.name)) is not None else None for f in footers]
    if Int64 not in kinds:
        return column
    is_whole = all(
        holds_whole(footer.path, footer.state, column.name)
        for kind, footer in zip(kinds, footers, strict=True)
        if kind in (Float32, Float64)
    )
    return replace(column, value_type=Int64) if is_whole else column


def _spelled_twice(footers: Sequence[Footer]) -> Iterator[str]:
    """Report folders that spell a number of the files' own column in two ways, which would be two keys."""
    seen: dict[tuple[str, Decimal], str] = {}
    for footer in footers:
        for partition, spelled in zip(footer.partitions, footer.texts, strict=True):
            with suppress(InvalidOperation):
                if partition.stored is not None and not partition.stored.endswith("string"):
                    first = seen.setdefault((partition.name, Decimal(spelled)), spelled)
                    if first != spelled:
                        yield f"column {partition.name!r} is {spelled} in one folder's name, but {first} in another's"


def _blanked(footer: Footer, names: Set[str], nan_too: bool) -> Footer:
    """Return a footer in which columns without values in the file have no type."""
    names = names - {partition.name for partition in footer.partitions}
    columns = [
        SourceColumn(column.name, NULL_TYPE, None)
        if column.name in names and holds_nothing(footer.path, footer.state, column.name, nan_too)
        else column
        for column in footer.columns
    ]
    return replace(footer, columns=tuple(columns))


def _unified(footers: Sequence[Footer], below: Path) -> tuple[tuple[SourceColumn, ...], dict[str, str]]:
    """Return the columns of all files together, and for each column what the files disagree on."""
    unified: dict[str, SourceColumn] = {}
    first_seen: dict[str, str] = {}
    problems: dict[str, str] = {}
    for footer in footers:
        for column in footer.columns:
            known = unified.setdefault(column.name, column)
            first = first_seen.setdefault(column.name, footer.path)
            wider = _wider(known, column)
            if wider is not None:
                unified[column.name] = wider
            elif column.name not in problems:
                others = " and others" if _OR in known.native_type else ""
                problems[column.name] = (
                    f"column {column.name!r} is {column.native_type} in {_shown(footer.path, below)}, "
                    f"but {_few(known.native_type)} in {_shown(first, below)}{others}"
                )
    return tuple(unified.values()), problems


def _shown(path: str, below: Path) -> str:
    """Return a file's path below its source's folder, whose files may all have one name."""
    file = Path(path)
    return str(file.relative_to(below) if file.is_relative_to(below) else file)


def _few(types: str) -> str:
    """Return types that `_either` joined as a message names them: the first ones."""
    few = types.split(_OR)
    return types if len(few) <= _SHOWN_TYPES else f"{_OR.join(few[:_SHOWN_TYPES])}{_OR}others"


def _either(one: str, other: str) -> str:
    """Return the types of two columns together, each once."""
    return _OR.join(dict.fromkeys((*one.split(_OR), *other.split(_OR))))


def _wider(one: SourceColumn, other: SourceColumn) -> SourceColumn | None:
    """Return the column whose type holds the values of both, or None where there is none."""
    if one.native_type == other.native_type or _is_within(other, one):
        return one
    if _is_within(one, other):
        return other
    if one.value_type is None or other.value_type is None:
        return None
    for candidate in (one.value_type, other.value_type, Int64, Float64):
        if fits(candidate, one.value_type) and fits(candidate, other.value_type):
            return SourceColumn(one.name, _either(one.native_type, other.native_type), candidate)
    if {one.value_type, other.value_type} <= {Int64, Float32, Float64}:
        return SourceColumn(one.name, _either(one.native_type, other.native_type), Float64)  # by value
    return None


def _is_within(nulls: SourceColumn, column: SourceColumn) -> bool:
    """Tell whether the nulls, or lists of nulls, of one column are values of another's type."""
    depth = null_depth(nulls.native_type)
    room = max(list_depth(column.value_type), null_depth(column.native_type) or 0)
    return depth == 0 or (depth is not None and depth <= room)


class Reader:
    """The SQL that reads one source through one connection, in groups of files with equal columns."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, table: SourceTable) -> None:
        self._table = table
        self._groups = self._describe_groups(connection)

    def _describe_groups(self, connection: duckdb.DuckDBPyConnection) -> list[_Group]:
        members: dict[Any, list[int]] = {}
        for number, footer in enumerate(self._table.footers):
            members.setdefault((footer.columns, footer.partitions), []).append(number)
        groups = []
        for (columns, partitions), numbers in members.items():
            path = self._table.footers[numbers[0]].path
            with translated("read a source", source_files=[path]):
                rows = connection.execute(f"DESCRIBE SELECT * FROM {_read([path])}").fetchall()
            duck_types = {row[0]: row[1] for row in rows}
            folders = {found.name: _from_folder(found, duck_types.get(found.name, "")) for found in partitions}
            duck_types |= dict.fromkeys(folders, "VARCHAR")
            if not duck_types.keys() >= {column.name for column in columns}:
                raise source_file_error(path, "the names of its columns are damaged")
            found = {c.name: Column(c.name, c.native_type, c.value_type, duck_types[c.name]) for c in columns}
            group = _Group(tuple(numbers), found, folders)
            for name in (self._table.source.timestamp_field, self._table.source.created_timestamp_field):
                if name is not None:
                    self._check_digits(group, name)
            groups.append(group)
        return groups

    def _check_digits(self, group: _Group, name: str) -> None:
        """Refuse nanoseconds that DuckDB drops from INT96: rounded down, a row would count as known too early."""
        column = group.find(name)
        if column is None or column.duck_type.endswith("_NS"):
            return
        for footer in (self._table.footers[number] for number in group.files):
            if column.name in footer.in_nanoseconds and has_nanoseconds(footer.path, column.name):
                raise SourceSchemaError(
                    f"Source {self._table.source.name!r}: column {column.name!r} of {footer.path} is "
                    f"{column.native_type} with digits below microseconds, which DuckDB cannot read exactly.",
                    hint="Write it as timestamp[us] or plain timestamp[ns].",
                    column=column.name,
                )

    def rows(
        self,
        values: Mapping[str, ValueType],
        event: str,
        created: str | None,
        *,
        only: frozenset[str] | None = None,
        between_us: tuple[int, int] | None = None,
    ) -> str:
        """Return a SELECT of the columns ``values`` in their declared types, instants, position and file.

        ``only`` names the files to read (as `find_files` does); positions count over all files. With ``between_us``
        rows with other event times may be left out: the condition is in the file's own type, so that whole row groups
        are skipped.
        """
        selects = []
        for group, numbers in self._chosen(only):
            columns = [f"{self._value(group, name, kind)} AS {quote(name)}" for name, kind in values.items()]
            columns.append(f"{self._instant(group, event)} AS {EVENT_US}")
            columns.append(f"{self._instant(group, created) if created else 'NULL::BIGINT'} AS {CREATED_US}")
            columns += self._place(numbers)
            paths = [self._table.footers[number].path for number in numbers]
            column = group.find(event)
            bounds = coarse_bounds(column, quote(column.name), *between_us) if column and between_us else None
            selects.append(_select(columns, paths) + (f" WHERE {bounds}" if bounds else ""))
        return "\nUNION ALL\n".join(selects)

    def presented(self, *, placed: bool = False) -> str:
        """Return a SELECT of every column as users' SQL sees it; if ``placed``, of `POSITION` and `FILE`, too.

        Types are the files' own, but timestamps in nanoseconds become microseconds (the source's times are
        ceiled, others floored), and if files disagree the column has the wider type.
        """
        selects = []
        for group in self._groups:
            columns = [f"{self._presented(group, c)} AS {quote(c.name)}" for c in self._table.columns]
            columns += self._place(group.files) if placed else []
            paths = [self._table.footers[number].path for number in group.files]
            selects.append(_select(columns, paths))
        return "\nUNION ALL\n".join(selects)

    def _presented(self, group: _Group, column: SourceColumn) -> str:
        own = group.columns.get(column.name)
        found = [g.columns[column.name] for g in self._groups if column.name in g.columns]
        kinds = {other.duck_type for other in found if null_depth(other.native_type) is None}
        is_fine = any(column.name in footer.in_nanoseconds for footer in self._table.footers)
        if column.value_type is not None and (len(kinds) > 1 or is_fine):
            times = (self._table.source.timestamp_field, self._table.source.created_timestamp_field)
            return self._value(group, column.name, column.value_type, is_time=column.name in times)
        if own is not None and (own.duck_type in kinds or (not kinds and null_depth(own.native_type))):
            return group.sql(own)
        value = group.sql(own) if own is not None and null_depth(own.native_type) else "NULL"
        return f"CAST({value} AS {kinds.pop()})" if kinds else "NULL"

    def _chosen(self, only: frozenset[str] | None) -> list[tuple[_Group, list[int]]]:
        chosen = []
        for group in self._groups:
            numbers = [n for n in group.files if only is None or self._table.files[n].path in only]
            if numbers:
                chosen.append((group, numbers))
        return chosen or [(self._groups[0], list(self._groups[0].files[:1]))]

    def _place(self, numbers: Sequence[int]) -> list[str]:
        """Return the expressions of a row's position and file, from the number of the file in this read."""
        starts, total = [], 0
        for footer in self._table.footers:
            starts.append(total)
            total += footer.rows
        begin = ", ".join(str(starts[number]) for number in numbers)
        files = ", ".join(str(number) for number in numbers)
        return [
            f"([{begin}]::BIGINT[])[({FILE_NUMBER} + 1)::BIGINT] + {FILE_ROW} AS {POSITION}",
            f"([{files}]::BIGINT[])[({FILE_NUMBER} + 1)::BIGINT] AS {FILE}",
        ]

    def _value(self, group: _Group, name: str, declared: ValueType, *, is_time: bool = False) -> str:
        column = group.find(name)
        if column is None:
            return f"NULL::{duckdb_type(declared)}"
        return converted(column, group.sql(column), declared, rounding="ceil" if is_time else "floor", path=PATH)

    def _instant(self, group: _Group, name: str) -> str:
        column = group.find(name)
        return "NULL::BIGINT" if column is None else instant_us(column, group.sql(column), "ceil")


@dataclass(frozen=True, slots=True)
class _Group:
    files: tuple[int, ...]
    columns: dict[str, Column]
    folders: dict[str, str]
    """The expression of each column that is a partition."""

    def sql(self, column: Column | SourceColumn) -> str:
        """Return the expression of a column."""
        return self.folders.get(column.name) or quote(column.name)

    def find(self, name: str) -> Column | None:
        return find_column(self.columns.values(), name)


def _from_folder(partition: Partition, duck_type: str) -> str:
    """Return the expression of a partition; a file's own column of its name, of ``duck_type``, must hold the same."""
    if partition.stored is None or null_depth(partition.stored) == 0:
        return partition.value
    own, folder = quote(partition.name), partition.value
    says = f"' of ' || {PATH} || ' holds ' || coalesce({own}::VARCHAR, 'null') || {text(FOLDER_SAYS)} || "
    fault = f"{text(f'{USER_ERROR}column {partition.name!r}')} || {says}coalesce({folder}, 'null')"
    same = f"coalesce({_is_same(own, folder, duck_type)}, {own} IS NULL AND {folder} IS NULL)"
    return f"CASE WHEN {same} THEN {folder} ELSE error({fault}) END"


def _is_same(own: str, folder: str, duck_type: str) -> str:
    """Return the condition that a folder's text means exactly the value of a file's own column; both are not null."""
    if duck_type == "DATE" or duck_type.startswith("TIMESTAMP"):
        kind = duck_type if duck_type != "DATE" else "TIMESTAMP"  # a text with a time of day is no date
        return f"{own} = TRY_CAST({folder} AS {kind})"
    if duck_type == "BOOLEAN":
        return f"{own}::VARCHAR = lower({folder})"
    if duck_type in ("VARCHAR", "BLOB"):
        return f"{own}::VARCHAR = {folder}"
    return f"{_canonical(f'{own}::VARCHAR')} = {_canonical(folder)}"  # a cast to a number would round


def _canonical(number: str) -> str:
    """Return the text of a number without leading and trailing zeros that mean nothing."""
    for pattern, kept in ((r"^\+", ""), (r"^(-?)0+([0-9])", r"\1\2"), (r"(\.[0-9]*?)0+$", r"\1"), (r"\.$", "")):
        number = f"regexp_replace({number}, '{pattern}', '{kept}')"
    return number


def _select(columns: Sequence[str], paths: Sequence[str]) -> str:
    return f"SELECT {', '.join(columns)} FROM {_read(paths, with_path=any(PATH in column for column in columns))}"


def _read(paths: Sequence[str], *, with_path: bool = False) -> str:
    """Return the table function that reads files; with ``with_path`` also `PATH`."""
    # With hive_partitioning DuckDB would take partitions from the whole path, folders above the source included.
    path = f", filename = '{PATH}'" if with_path else ""
    return f"read_parquet({file_list(paths)}, hive_partitioning = false{path})"
