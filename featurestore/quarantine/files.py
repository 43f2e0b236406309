"""The files of a quarantine: Parquet among a project's blobs, each written whole and never changed.

Each generation of a view has a place of its own. ``held`` files hold rows that a run set aside, the others the ids of
rows that somebody decided about: ``releasing`` until the rows are in the log, then ``released``; ``dropped``.
``{state}.{at_us}.{id}.{number}.{first_us}.{last_us}.{rows}.{SHA-256}.parquet``: when it was written, by which run or
decision, and the event times of its rows, so that most runs need not read it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from featurestore.engine.checks import ROW_ID
from featurestore.errors import DamagedFileError
from featurestore.offline.interface import BlobReader, Blobs, OfflineReader, OfflineStore, TableId
from featurestore.tables import visible
from featurestore.types.columns import EVENT

if TYPE_CHECKING:
    import pyarrow as pa

State = Literal["held", "releasing", "released", "dropped"]
KIND = "quarantine."
"""What the kind of a quarantine's blobs begins with; view and generation follow."""
FORMAT = 1
_ABOUT = b"featurestore"
_NAME = re.compile(
    r"(held|releasing|released|dropped)\.(\d{1,19})\.([0-9a-z]+)\.(\d+)\.(-?\d{1,19})\.(-?\d{1,19})\.(\d+)\.([0-9a-f]{64})\.parquet"
)
_OF_TABLE = re.compile(re.escape(KIND) + r"([a-z][a-z0-9_]*)\.(\d+)")


@dataclass(frozen=True, slots=True)
class KeptFile:
    """One file, as its name says."""

    name: str
    state: State
    at_us: int
    """When it was decided; of ``held`` rows when they were found."""
    id: str
    """Of the run that set the rows aside, or of the decision."""
    number: int
    first_us: int
    last_us: int
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Why:
    """Who decided about rows, and why."""

    by: str
    reason: str


def what(table: TableId) -> str:
    """Return what messages call a quarantine."""
    return f"the quarantine of {table.view} (generation {table.generation})"


def blobs_of(offline: OfflineStore, table: TableId) -> Blobs:
    """Return the place of a generation's files."""
    return offline.blobs(table.project, f"{KIND}{table.view}.{table.generation}")


def reader_of(offline: OfflineReader, table: TableId) -> BlobReader:
    """Return `blobs_of` to read."""
    return offline.blobs(table.project, f"{KIND}{table.view}.{table.generation}")


def tables_of(offline: OfflineReader, project: str) -> list[TableId]:
    """Return the generations that have or had a quarantine, by view and generation; those that are gone, too."""
    found = (_OF_TABLE.fullmatch(kind) for kind in offline.blob_kinds(project))
    return sorted((TableId(project, match[1], int(match[2])) for match in found if match), key=_place)


def _place(table: TableId) -> tuple[str, int]:
    return table.view, table.generation


def files_of(blobs: BlobReader) -> list[KeptFile]:
    """Return the whole files of a generation, in the order in which they were written.

    Leaves out what a release was to do that is done, or that is of an earlier instant of it: it died before it could
    remove that.
    """
    found = []
    for blob in blobs.list():
        named = _NAME.fullmatch(blob.name)
        if named is not None and blob.is_whole:
            state: Any = named[1]
            at_us, of, number, first_us, last_us, rows = named.groups()[1:7]
            file = KeptFile(
                blob.name, state, int(at_us), of, int(number), int(first_us), int(last_us), int(rows), named[8]
            )
            found.append(file)
    found.sort(key=lambda file: (file.at_us, file.id, file.number))
    last = {file.id: file for file in found if file.state == "releasing"}
    last |= {file.id: file for file in found if file.state == "released"}
    return [file for file in found if file.state != "releasing" or file is last[file.id]]


def write(
    blobs: Blobs, table: TableId, state: State, rows: pa.Table, *, at_us: int, of: str, number: int = 0, **about: Any
) -> KeptFile:
    """Keep rows, or the ids of rows, in a file; ``about`` goes into its metadata. Raises as the store."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    bounds = pc.min_max(rows.column(EVENT).cast(pa.int64())).as_py()
    document = {"format": FORMAT, "view": table.view, "generation": table.generation, **about}
    # The engine says of some columns that they are never null, and of others not: files are to be alike.
    schema = pa.schema([field.with_nullable(True) for field in rows.schema], {_ABOUT: json.dumps(document).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(rows.columns, schema=schema), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{state}.{at_us}.{of}.{number}.{bounds['min']}.{bounds['max']}.{rows.num_rows}.{sha256}.parquet"
    blobs.put(name, content, what(table))
    return KeptFile(name, state, at_us, of, number, bounds["min"], bounds["max"], rows.num_rows, sha256)


def release_instant(files: Iterable[KeptFile], now_us: int) -> int:
    """Return when a release is made: no two have one instant, by which their rows are known in the log."""
    return max([now_us, *(file.at_us + 1 for file in files if file.state in ("releasing", "released"))])


def move_release(blobs: Blobs, table: TableId, releasing: KeptFile, at_us: int) -> KeptFile:
    """Let a release that is not in the log be of a later instant. If it dies in between, the later one counts."""
    rows, about = read(blobs, table, releasing)
    more = {name: value for name, value in about.items() if name not in ("format", "view", "generation")}
    more["tried"] = instants_of(blobs, table, releasing)
    moved = write(blobs, table, "releasing", rows, at_us=at_us, of=releasing.id, **more)
    blobs.delete(releasing.name, what(table))
    return moved


def instants_of(blobs: BlobReader, table: TableId, release: KeptFile) -> list[int]:
    """Return the instants by one of which the rows of a release are known, if they are in the log."""
    return [*read(blobs, table, release, [ROW_ID])[1].get("tried", ()), release.at_us]


def settle(blobs: Blobs, table: TableId, releasing: KeptFile) -> None:
    """Note that what was to be released is in the log."""
    content = blobs.get(releasing.name, what(table), sha256=releasing.sha256)
    blobs.put(releasing.name.replace("releasing", "released", 1), content, what(table))
    for blob in blobs.list():
        if (named := _NAME.fullmatch(blob.name)) and (named[1], named[3]) == ("releasing", releasing.id):
            blobs.delete(blob.name, what(table))


def read(
    blobs: BlobReader, table: TableId, file: KeptFile, columns: Sequence[str] | None = None
) -> tuple[pa.Table, Mapping[str, Any]]:
    """Return a file's rows, of some columns if given, and what its metadata says. Raises DamagedFileError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hint = (
        "Restore it from a backup. Runs that read its span commit nothing until then: they could not tell which rows "
        "were set aside."
    )
    try:
        content = blobs.get(file.name, what(table), sha256=file.sha256)
    except DamagedFileError as error:
        raise DamagedFileError(error.message, hint=hint, **error.details) from None
    try:
        opened = pq.ParquetFile(pa.BufferReader(content))
        about = json.loads(opened.metadata.metadata[_ABOUT])
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']}, which a later release wrote")
        return opened.read(columns=columns).replace_schema_metadata(None), about
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        reason = visible(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise DamagedFileError(
            f"{file.name}, {what(table)}, cannot be read: {reason}.", hint=hint, path=file.name
        ) from None


def ids_of(blobs: BlobReader, table: TableId, files: Iterable[KeptFile]) -> pa.Table:
    """Return ids and event times of the rows of files, each id once."""
    import pyarrow as pa

    none = pa.table({ROW_ID: pa.array([], pa.string()), EVENT: pa.array([], pa.timestamp("us", "UTC"))})
    parts = [read(blobs, table, file, [ROW_ID, EVENT])[0].select([ROW_ID, EVENT]) for file in files]
    found: pa.Table = pa.concat_tables([none, *parts]).group_by([ROW_ID, EVENT]).aggregate([])
    return found.select([ROW_ID, EVENT])


def why_of(blobs: BlobReader, table: TableId, file: KeptFile) -> Why:
    """Return who made a decision, and why."""
    about = read(blobs, table, file, [ROW_ID])[1]
    return Why(str(about.get("by", "")), str(about.get("reason", "")))


def as_about(why: Why) -> dict[str, Any]:
    """Return a decision's reason as a file's metadata has it."""
    return asdict(why)
