"""The files of the served log and of predictions: Parquet among a project's blobs, each written whole.

Named by their instants, ``{first_us}-{last_us}-{instance}-{number}.{SHA-256}.parquet``, in a place of their own for
each kind and service. What a file is about stands in its metadata, so files of many revisions and of services that are
gone can be read alike.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import DamagedFileError, InputError
from featurestore.offline.interface import BlobReader, Blobs
from featurestore.served.shape import AT, KEY, PREDICTED_AT, REQUEST_ID, ROW, ServedShape
from featurestore.tables import visible
from featurestore.types.times import MICROSECOND, to_rfc3339
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa


class Kind(NamedTuple):
    """What is kept of a service in files of their own."""

    prefix: str
    """What the kind of their blobs begins with; the service's name follows."""
    at: str
    """The column of instants, by which files are named and rows are ordered."""
    words: str
    """What messages call it, before ``of`` and the service."""

    def what(self, service: str) -> str:
        """Return what messages call it."""
        return f"the {self.words} of {service}"

    @property
    def order(self) -> list[tuple[str, str]]:
        """In which rows are read."""
        return [(name, "ascending") for name in (self.at, REQUEST_ID, ROW)]


SERVED = Kind("served.", AT, "served log")
PREDICTED = Kind("predicted.", PREDICTED_AT, "log of predictions")
KINDS = (SERVED, PREDICTED)
FORMAT = 1
_ABOUT = b"featurestore"
_NAME = re.compile(r"(\d{1,19})-(\d{1,19})-([0-9a-z]+)-(\d+)\.([0-9a-f]{64})\.parquet")
MERGED_ROWS = 500_000
REPLACING = "-m"
"""Begins the instance in the name of a file that replaces others."""


@dataclass(frozen=True, slots=True)
class ServedFile:
    """One file, as its name says."""

    name: str
    first_us: int
    last_us: int
    sha256: str


@dataclass(frozen=True, slots=True)
class About:
    """What the metadata of a file says of all its rows."""

    service: str
    revision: str
    keys: str
    """``plain`` or ``hashed``."""
    key_id: str
    """Of the secret of hashed keys, as `shape.key_id`."""
    retention_us: int
    join_keys: dict[str, list[list[str]]]
    """For each column of keys the join keys that it holds, each with its type."""
    views: dict[str, list[Any]]
    """For each read its view and generation."""
    project: str = ""
    """The project's identity."""
    replaces: tuple[str, ...] = ()
    """The names of files whose rows are in this one."""


def about_of(shape: ServedShape) -> dict[str, Any]:
    """Return the metadata of a file of a shape."""
    keys = {
        column: [
            [key, str(read.view.join_keys[key])]
            for read in shape.request.reads
            for key, from_column in read.key_columns
            if from_column == column
        ]
        for column in shape.keys
    }
    return {
        "format": FORMAT,
        "service": shape.service,
        "project": shape.project,
        "revision": shape.revision,
        "keys": shape.log.keys,
        "key_id": shape.key_id,
        "retention_us": shape.log.retention // MICROSECOND,
        "join_keys": {column: _unique(pairs) for column, pairs in keys.items()},
        "views": {read.name: [read.view.name, read.registered.generation] for read in shape.request.reads},
    }


def _unique(pairs: Iterable[Sequence[str]]) -> list[list[str]]:
    return [list(pair) for pair in dict.fromkeys(map(tuple, pairs))]


def encoded(kind: Kind, rows: pa.Table, about: dict[str, Any]) -> tuple[str, bytes]:
    """Return rows as a file: the beginning of its name, which says its instants, and its content."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    bounds = pc.min_max(rows.column(kind.at).cast(pa.int64())).as_py()
    marked = rows.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(marked, sink, compression="zstd")
    return f"{bounds['min']}-{bounds['max']}", sink.getvalue().to_pybytes()


def write(kind: Kind, blobs: Blobs, rows: pa.Table, about: dict[str, Any], *, instance: str, number: int) -> None:
    """Keep rows in a file of their own. Raises DiskFullError and OfflineStoreError."""
    span, content = encoded(kind, rows, about)
    name = f"{span}-{instance}-{number}.{hashlib.sha256(content).hexdigest()}.parquet"
    blobs.put(name, content, kind.what(about["service"]))


def files_of(blobs: BlobReader) -> list[ServedFile]:
    """Return the whole files of one service, oldest first."""
    found = []
    for blob in blobs.list():
        named = _NAME.fullmatch(blob.name)
        if named is not None and blob.is_whole:
            found.append(ServedFile(blob.name, int(named[1]), int(named[2]), named[5]))
    return sorted(found, key=lambda file: (file.first_us, file.name))


def read(kind: Kind, blobs: BlobReader, file: ServedFile, service: str) -> tuple[pa.Table, About]:
    """Return a file's rows and what it says of them. Raises DamagedFileError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = blobs.get(file.name, kind.what(service), sha256=file.sha256)
    try:
        rows = pq.ParquetFile(pa.BufferReader(content)).read()
        about = _about(json.loads((rows.schema.metadata or {})[_ABOUT]))
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = visible(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise DamagedFileError(
            f"{file.name}, {kind.what(service)}, cannot be read: {reason}.",
            hint="Restore it from a backup, or delete the file: the log then lacks its rows.",
            path=file.name,
        ) from None
    return rows, about


def _about(document: dict[str, Any]) -> About:
    if document["format"] != FORMAT:
        raise ValueError(f"it has format {document['format']}, which a later release wrote")
    known = {name: document[name] for name in About.__slots__ if name in document}
    return About(**{**known, "replaces": tuple(document.get("replaces", ()))})


def without_replaced(kind: Kind, blobs: BlobReader, files: Sequence[ServedFile], service: str) -> list[ServedFile]:
    """Return files without those whose rows are in another, as after a merge that was cut off."""
    replacing = [file for file in files if REPLACING in file.name]
    gone = {name for file in replacing for name in read(kind, blobs, file, service)[1].replaces}
    return [file for file in files if file.name not in gone]


def settled(kind: Kind, blobs: Blobs, service: str) -> list[ServedFile]:
    """Return the files of a service, once those are deleted whose rows are in another."""
    listed = files_of(blobs)
    files = without_replaced(kind, blobs, listed, service)
    for name in {file.name for file in listed} - {file.name for file in files}:
        blobs.delete(name, kind.what(service))
    return files


def replace(kind: Kind, blobs: Blobs, names: Sequence[str], rows: pa.Table, about: About) -> None:
    """Put rows in the place of some files. If it dies in between, the new file says which ones it replaces."""
    if rows.num_rows:
        fields = {name: getattr(about, name) for name in About.__slots__}
        document = {"format": FORMAT, **fields, "replaces": list(names)}
        ordered = rows.replace_schema_metadata(None).sort_by(kind.order)
        write(kind, blobs, ordered, document, instance=f"m{secrets.token_hex(8)}", number=0)
    for name in names:
        blobs.delete(name, kind.what(about.service))


def rows_between(kind: Kind, workspace: Readers, service: str, start_us: int, end_us: int) -> Iterator[pa.Table]:
    """Yield the rows of [start, end), file by file, oldest file first."""
    import pyarrow.compute as pc

    blobs = workspace.offline.blobs(workspace.project, kind.prefix + service)
    files = [file for file in files_of(blobs) if file.first_us < end_us and file.last_us >= start_us]
    for file in without_replaced(kind, blobs, files, service):  # a merged file spans what it replaces
        rows, _ = read(kind, blobs, file, service)
        if file.first_us < start_us or file.last_us >= end_us:
            at_us = rows.column(kind.at).cast("int64")
            rows = rows.filter(pc.and_(pc.greater_equal(at_us, start_us), pc.less(at_us, end_us)))
        yield rows.replace_schema_metadata(None)


def joined(kind: Kind, tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Return the rows of tables of several revisions in one: columns of ``schema`` first, then others.

    A column that some lack is null there; integers and floats widen, and a column of nulls takes any type. Raises
    InputError for other changes of type.
    """
    import pyarrow as pa

    kinds: dict[str, pa.DataType] = {field.name: field.type for field in schema}
    for table in tables:
        for field in table.schema:
            kinds[field.name] = _wider(kind, field.name, kinds.get(field.name, field.type), field.type, table)
    target = pa.schema(list(kinds.items()))
    if all(table.schema.equals(target) for table in tables):
        return pa.concat_tables([target.empty_table(), *tables])
    cast = [
        pa.table(
            [
                table.column(field.name).cast(field.type)
                if field.name in table.column_names
                else pa.nulls(table.num_rows, field.type)
                for field in target
            ],
            schema=target,
        )
        for table in tables
    ]
    return pa.concat_tables([target.empty_table(), *cast])


def without_others(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in which columns of types that do not go together with a schema's are null."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        at = schema.get_field_index(field.name)
        if at >= 0 and _together(schema.field(at).type, field.type) is None:
            table = table.set_column(place, field.name, pa.nulls(table.num_rows))
    return table


def _wider(kind: Kind, name: str, one: pa.DataType, other: pa.DataType, table: pa.Table) -> pa.DataType:
    import pyarrow.compute as pc

    if (found := _together(one, other)) is not None:
        return found
    since = to_rfc3339(pc.min(table.column(kind.at).cast("int64")).as_py())
    raise InputError(
        f"{name!r} of the {kind.words} is {one} and, in rows from {since} on, {other}.",
        hint="Read the spans before and after the change apart: pass start and end.",
        column=name,
    )


def _together(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the type that holds the values of two, None where none does."""
    import pyarrow as pa

    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    pairs = (pa.int32(), pa.int64()), (pa.float32(), pa.float64())
    return next((wide for narrow, wide in pairs if {one, other} == {narrow, wide}), None)


def merge_old(kind: Kind, blobs: Blobs, service: str, before_us: int, *, least: int = 8) -> None:
    """Write the files of one day and revision into few, where they are many and end before an instant.

    No file of more than `MERGED_ROWS` comes of it, so that no more is held at once; half as large ones stay. Call it
    while nobody else merges or forgets rows of the service.
    """
    days: dict[int, list[ServedFile]] = {}
    for file in settled(kind, blobs, service):
        if file.last_us < before_us:
            days.setdefault(file.first_us // 86_400_000_000, []).append(file)
    for of_day in days.values():
        if len(of_day) < least:
            continue
        groups: dict[tuple[Any, ...], list[tuple[str, pa.Table, About]]] = {}
        for file in of_day:
            rows, about = read(kind, blobs, file, service)
            if rows.num_rows > MERGED_ROWS // 2:
                continue
            alike = about.revision, about.key_id, about.keys, str(rows.schema.remove_metadata())
            group = groups.setdefault(alike, [])
            if sum(held.num_rows for _, held, _ in group) + rows.num_rows > MERGED_ROWS:
                _merge(kind, blobs, group)
                group.clear()
            group.append((file.name, rows, about))
        for group in groups.values():
            _merge(kind, blobs, group)


def _merge(kind: Kind, blobs: Blobs, group: Sequence[tuple[str, pa.Table, About]]) -> None:
    if len(group) > 1:
        names, tables = [name for name, _, _ in group], [rows for _, rows, _ in group]
        replace(kind, blobs, names, joined(kind, tables, tables[0].schema), group[-1][2])


def key_columns(about: About, name: str) -> list[str]:
    """Return the columns of a file that hold a join key, by its own name or by that of the column."""
    found = []
    for column, pairs in about.join_keys.items():
        if column == name or any(key == name for key, _ in pairs):
            found.append(KEY + column)
    return found
