"""The files of the served log and of predictions: Parquet among a project's blobs, each written whole.

Named by their instants, ``{first_us}-{last_us}-{instance}-{number}.{SHA-256}.parquet``, in a place of their own for
each kind and service. What a file is about stands in its metadata, so files of many revisions and of services that are
gone can be read alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from featurestore.errors import DamagedFileError, OfflineStoreError
from featurestore.offline.interface import BlobReader, Blobs
from featurestore.served.shape import AT, KEY, PREDICTED_AT, REQUEST_ID, ROW, ServedShape
from featurestore.tables import visible
from featurestore.types.times import MAX_INSTANT, MICROSECOND, MIN_INSTANT
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


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
_WITHOUT_IT = "Restore it from a backup, or delete the file: the log then lacks its rows."
_ABOUT = b"featurestore"
_NAME = re.compile(r"(-?\d{1,19})-(-?\d{1,19})-([0-9a-z]+)-(\d+)\.([0-9a-f]{64})\.parquet")
REPLACING = "-m"
"""Begins the instance in the name of a file that replaces others."""
_TRIES = 5
"""How often files are listed when some go while they are read."""


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
    """The names of files whose rows are in this one, or are gone."""
    fence: int = 0
    """Where it replaces others: the fence of the lease under which it was written, as `Lease.fence`."""


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


def write(
    kind: Kind,
    blobs: Blobs,
    rows: pa.Table,
    about: dict[str, Any],
    *,
    instance: str,
    number: int,
    span: tuple[int, int] | None = None,
) -> None:
    """Keep rows in a file of their own, none without rows; ``span`` is its name's where that is not of the rows.

    Raises DiskFullError and OfflineStoreError.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if span is None:
        if not rows.num_rows:
            return
        bounds = pc.min_max(rows.column(kind.at).cast(pa.int64())).as_py()
        span = bounds["min"], bounds["max"]
    marked = rows.replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(marked, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    name = f"{span[0]}-{span[1]}-{instance}-{number}.{hashlib.sha256(content).hexdigest()}.parquet"
    blobs.put(name, content, kind.what(about["service"]))


def files_of(blobs: BlobReader) -> list[ServedFile]:
    """Return the whole files of one service, oldest first; those of other names are not ours."""
    found = []
    for blob in blobs.list():
        named = _NAME.fullmatch(blob.name)
        if named is not None and blob.is_whole:
            file = ServedFile(blob.name, int(named[1]), int(named[2]), named[5])
            if MIN_INSTANT <= file.first_us <= file.last_us <= MAX_INSTANT:
                found.append(file)
    return sorted(found, key=lambda file: (file.first_us, file.name))


def read(kind: Kind, blobs: BlobReader, file: ServedFile, service: str) -> tuple[pa.Table, About]:
    """Return a file's rows and what it says of them. Raises OfflineStoreError, DamagedFileError among them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = blobs.get(file.name, kind.what(service), sha256=file.sha256)
    except DamagedFileError as error:
        raise DamagedFileError(error.message, hint=_WITHOUT_IT, path=file.name) from None
    try:
        rows = pq.ParquetFile(pa.BufferReader(content)).read()
        document = json.loads((rows.schema.metadata or {})[_ABOUT])
        is_later = document["format"] != FORMAT
        about = None if is_later else _about(document)
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = visible(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise DamagedFileError(
            f"{file.name}, {kind.what(service)}, cannot be read: {reason}.",
            hint=_WITHOUT_IT,
            path=file.name,
        ) from None
    if about is None:
        raise OfflineStoreError(
            f"{file.name}, {kind.what(service)}, has format {document['format']}: a later release wrote it.",
            hint="Upgrade this installation of featurestore.",
        )
    return rows, about


def _about(document: dict[str, Any]) -> About:
    known = {name: document[name] for name in About.__slots__ if name in document}
    return About(**{**known, "replaces": tuple(document.get("replaces", ()))})


def replaced(
    kind: Kind, blobs: BlobReader, files: Sequence[ServedFile], service: str, problems: list[str] | None = None
) -> frozenset[str]:
    """Return the names of files that do not count: their rows are in another.

    Of two files that replace the same one, that of the later holder of the lease counts: the other was written late, by
    a process that was stopped meanwhile, and has rows that are forgotten since. A damaged file is noted in
    ``problems``; without them raises OfflineStoreError.
    """
    abouts: dict[str, About] = {}
    for file in files:
        if REPLACING in file.name:
            try:
                abouts[file.name] = read(kind, blobs, file, service)[1]
            except OfflineStoreError as error:
                if problems is None:
                    raise
                problems.append(str(error))
    gone = set[str]()
    for name, about in sorted(abouts.items(), key=lambda found: -found[1].fence):
        if gone.isdisjoint(about.replaces):
            gone.update(about.replaces)
        else:
            gone.add(name)
    return frozenset(gone)


def rows_between(
    kind: Kind, workspace: Readers, service: str, start_us: int, end_us: int, take: Callable[[Iterator[pa.Table]], T]
) -> T:
    """Return what ``take`` makes of the rows of [start, end), file by file, oldest file first.

    It is called again where files were merged, or rows forgotten, while it read them.
    """
    blobs = workspace.offline.blobs(workspace.project, kind.prefix + service)
    for tries_left in range(_TRIES - 1, -1, -1):
        try:
            return take(_rows(kind, blobs, service, start_us, end_us))
        except DamagedFileError as error:
            if not tries_left or error.details.get("path") in {file.name for file in files_of(blobs)}:
                raise
    raise AssertionError("the last try returns or raises")


def _rows(kind: Kind, blobs: BlobReader, service: str, start_us: int, end_us: int) -> Iterator[pa.Table]:
    import pyarrow.compute as pc

    for file in _counted(kind, blobs, files_of(blobs), service, start_us, end_us):
        rows, _ = read(kind, blobs, file, service)
        if file.first_us < start_us or file.last_us >= end_us:
            at_us = rows.column(kind.at).cast("int64")
            rows = rows.filter(pc.and_(pc.greater_equal(at_us, start_us), pc.less(at_us, end_us)))
        yield rows.replace_schema_metadata(None)


def _counted(
    kind: Kind, blobs: BlobReader, files: Sequence[ServedFile], service: str, start_us: int, end_us: int
) -> list[ServedFile]:
    """Return the files that count and may have rows of [start, end)."""
    inside = [file for file in files if file.first_us < end_us and file.last_us >= start_us]
    gone = replaced(kind, blobs, inside, service)  # a file spans what it replaces
    return [file for file in inside if file.name not in gone]


def key_columns(about: About, name: str) -> list[str]:
    """Return the columns of a file that hold a join key, by its own name or by that of the column."""
    found = []
    for column, pairs in about.join_keys.items():
        if column == name or any(key == name for key, _ in pairs):
            found.append(KEY + column)
    return found
