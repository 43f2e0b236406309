"""The files of the offline store: written durably, hashed, and checked again when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore_registry.forks import ForkLock

from featurestore.errors import NO_SPACE, DamagedFileError, DiskFullError, OfflineStoreError
from featurestore.offline.interface import DataFile
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT, to_instant, to_rfc3339

if TYPE_CHECKING:
    import pyarrow as pa

DISK_HINT = "Free some space and run it again: what was there before is still readable."
PARTIAL = "-partial"
"""The ending of a file that is being written."""
_VERIFIERS = 4
"""How many threads hash: hashing releases the interpreter, and one disk cannot feed more."""

_Seen = tuple[str, int, int, int]
_seen: dict[_Seen, str] = {}
_seen_lock = ForkLock()


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a commit records about one file."""

    rows: int
    size_bytes: int
    sha256: str
    modified_ms: int
    min_event_us: int
    max_event_us: int
    max_created_us: int | None
    min_sequence: int
    max_sequence: int

    def statistics(self) -> str:
        """Return Delta's statistics. Their timestamps have milliseconds: the least is floored, the greatest ceiled."""
        least: dict[str, object] = {EVENT: _milliseconds(self.min_event_us)}
        greatest: dict[str, object] = {SEQUENCE: self.max_sequence}
        for name, instant_us in ((EVENT, self.max_event_us), (CREATED, self.max_created_us)):
            ceiled_us = None if instant_us is None else -(-instant_us // 1000) * 1000
            if ceiled_us is not None and ceiled_us <= MAX_INSTANT:
                greatest[name] = _milliseconds(ceiled_us)
        nulls = {EVENT: 0, SEQUENCE: 0}
        return json.dumps({"numRecords": self.rows, "minValues": least, "maxValues": greatest, "nullCount": nulls})


def _milliseconds(instant_us: int) -> str:
    return f"{to_rfc3339(max(instant_us, MIN_INSTANT))[:-4]}Z"


def examine(path: Path) -> FileFacts:
    """Read a new file's footer and hash, and sync it to disk.

    Raises OfflineStoreError when the file is not a Parquet file of a table, DiskFullError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with disk_errors(f"sync {path}"):
        sync_file(path)
        state = path.stat()
        sha256 = hash_of(path)
    try:
        footer = pq.read_metadata(path)
        bounds = [footer.row_group(number).column for number in range(footer.num_row_groups)]
        names = footer.schema.names
        events = [column(names.index(EVENT)).statistics for column in bounds]
        createds = [column(names.index(CREATED)).statistics for column in bounds]
        sequences = [column(names.index(SEQUENCE)).statistics for column in bounds]
        return FileFacts(
            rows=footer.num_rows,
            size_bytes=state.st_size,
            sha256=sha256,
            modified_ms=state.st_mtime_ns // 1_000_000,
            min_event_us=min(to_instant(found.min) for found in events),
            max_event_us=max(to_instant(found.max) for found in events),
            max_created_us=max((to_instant(found.max) for found in createds if found.has_min_max), default=None),
            min_sequence=min(found.min for found in sequences),
            max_sequence=max(found.max for found in sequences),
        )
    except (pa.ArrowException, ValueError, AttributeError) as error:
        raise OfflineStoreError(f"{path} is not a file of an offline table: {error}.") from None


def hash_of(path: Path) -> str:
    """Return a file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(files: Sequence[DataFile], *, again: bool) -> None:
    """See `TableReader.verify`."""
    # Starting threads takes longer than hashing a small file, and at the end of a process no thread can be started.
    if len(files) == 1 or not threading.main_thread().is_alive():
        for file in files:
            _verify(file, again=again)
        return
    with ThreadPoolExecutor(_VERIFIERS) as threads:
        for _ in threads.map(lambda file: _verify(file, again=again), files):
            pass


def _verify(file: DataFile, *, again: bool) -> None:
    path = Path(file.path)
    try:
        state = path.stat()
        found = None if again else _seen.get(_seen_key(path, state))
        if found is None and state.st_size == file.size_bytes:
            found = hash_of(path)
    except OSError as error:
        raise _damaged(file, error.strerror or "it cannot be read") from None
    if state.st_size != file.size_bytes:
        raise _damaged(file, f"it has {state.st_size} bytes, {file.size_bytes} were committed")
    if found != file.sha256:
        raise _damaged(file, "its SHA-256 is not the committed one")
    remember(path, file.sha256, state)


def remember(path: Path, sha256: str, state: os.stat_result) -> None:
    """Remember that a file has this hash while its size and time stay as in ``state``."""
    with _seen_lock:
        _seen[_seen_key(path, state)] = sha256


def _seen_key(path: Path, state: os.stat_result) -> _Seen:
    return str(path), state.st_size, state.st_mtime_ns, state.st_ino


def _damaged(file: DataFile, reason: str) -> DamagedFileError:
    view = Path(file.path).parent.parent.name
    span = f"{to_rfc3339(file.min_event_us)} {to_rfc3339(file.max_event_us + 1)}"
    return DamagedFileError(
        f"{file.path} is damaged: {reason}.",
        hint="Restore it from a backup. If there is none, leave it out and read its rows from the source again (pushed "
        f"rows and earlier values are then lost): `fs materialize {span} --view {view} --rebuild`.",
        path=file.path,
    )


def sync_file(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a folder's entries survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and the missing ones above it, so that they survive a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file, durably, so that it exists completely or not at all; without ``replace`` only if none exists."""
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        partial.write_bytes(content)
        sync_file(partial)
        if replace:
            partial.replace(path)
        else:
            with suppress(FileExistsError):
                os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


_NO_FOLDER_HINT = "Something else is where a folder should be: move it away, or set `offline_store` to another folder."
_READ_ONLY_HINT = "The disk of `offline_store` is mounted read-only: mount it for writing, or run this where it is."
_DISK_HINTS: dict[type[OSError], str] = {
    PermissionError: "Let this user read and write the folder of `offline_store` and everything in it.",
    FileExistsError: _NO_FOLDER_HINT,
    NotADirectoryError: _NO_FOLDER_HINT,
}


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn errors of the file system into DiskFullError or OfflineStoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise DiskFullError(f"No space was left while trying to {doing}.", hint=DISK_HINT) from None
        hint = _READ_ONLY_HINT if error.errno == errno.EROFS else _DISK_HINTS.get(type(error), "")
        raise OfflineStoreError(f"Could not {doing}: {error}.", hint=hint) from None


def rewrite(source: Path, target: Path, schema: pa.Schema) -> None:
    """Write a file again with wider types, row group by row group; columns it lacks are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(source) as file:
        kept = pa.schema([schema.field(name) for name in file.schema_arrow.names])
        with pq.ParquetWriter(target, kept, compression="zstd") as writer:
            for number in range(file.num_row_groups):
                writer.write_table(file.read_row_group(number).cast(kept))
