"""The offline store on Delta tables of one folder: Parquet files of our own in explicit, durable commits."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore_registry.forks import ForkLock
from typing_extensions import override

from featurestore.errors import ConcurrentCommitError, FeatureStoreError, OfflineStoreError, TableVersionError
from featurestore.offline.interface import (
    WATERMARK,
    Blobs,
    Commit,
    DataFile,
    OfflineStore,
    TableChanges,
    TableId,
    TableSchema,
    TableVersion,
)
from featurestore.offline.local import files as disk
from featurestore.offline.local.blobs import FolderBlobs
from featurestore.offline.local.delta_log import (
    CHECKPOINT_EVERY,
    COMMITTED,
    LOG_SYNCED,
    LogState,
    TableLog,
    check_not_forked,
    file_name,
)
from featurestore.offline.local.owner import bind, read_owner
from featurestore.offline.local.staging import Staging, claimed, folders, is_held
from featurestore.offline.reading import unreadable
from featurestore.steps import crash_point, reached
from featurestore.types.arrow import arrow_schema
from featurestore.types.times import Clock, system_clock

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

logger = logging.getLogger("featurestore")

FILES_SYNCED = crash_point("offline.files_synced", "new files are on the disk, in the staging place")
FILES_MOVED = crash_point("offline.files_moved", "new files are in the table's folder, in no version yet")
COLUMNS_ADDED = crash_point("offline.columns_added", "a version with the new columns and no new rows")
TABLE_MOVED = crash_point("offline.table_moved", "a dropped table is out of sight, its files still exist")

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DROPPED = ".dropped-"


class DeltaStore(OfflineStore):
    """Tables below one folder of the local file system. Safe across threads and processes.

    ``clock`` dates commits, and removals for other programs that clean Delta tables.
    """

    def __init__(self, folder: Path, *, clock: Clock = system_clock) -> None:
        self._folder = folder
        self._clock = clock
        self._staging: dict[TableId, Staging] = {}
        self._newest: dict[TableId, tuple[LogState, TableVersion]] = {}
        """Newest versions as they were last loaded, each with what the log looked like before that."""
        self._loaded: dict[TableId, tuple[LogState, DeltaTable]] = {}
        """The same as the library loaded them, of logs that did not change meanwhile."""
        self._lock = ForkLock()
        weakref.finalize(self, _close_all, self._staging)

    @override
    def current(self, table: TableId) -> TableVersion | None:
        log = self._log(table)
        check_not_forked()  # what was loaded before a fork would do, but the next version would not
        state = log.state()
        if not state:
            return None
        known_state, known = self._newest.get(table, ((), None))
        if known is None or state != known_state:
            known = self._load_newest(log, state)
            self._newest[table] = state, known
        return known

    def _load_newest(self, log: TableLog, state: LogState) -> TableVersion:
        """Load the newest version, from the one that was loaded last where its log has only grown since."""
        # Taken out while it is brought up: no other thread uses it meanwhile.
        before, loaded = self._loaded.pop(log.table, None) or ((), None)
        newest = None if loaded is None else log.bring_up(loaded, before, state)
        if newest is None:
            loaded, newest = log.load()
        if loaded is not None and log.state() == state:  # else it may be newer than the state tells
            self._loaded[log.table] = state, loaded
        return newest

    @override
    def version(self, table: TableId, number: int) -> TableVersion:
        log = self._log(table)
        found = log.version(number)
        gone = next((file.path for file in found.files if not Path(file.path).is_file()), None)
        if gone is not None:
            raise TableVersionError(
                f"Version {number} of table {table} cannot be read any more: {gone} is gone.",
                hint="Saved training sets keep the versions that they pin; cleaning the store removes all others.",
                table=str(table),
                version=number,
            )
        return found

    @override
    def staging(self, table: TableId) -> Path:
        return self._own_staging(table).folder

    @override
    def write(self, table: TableId, rows: pa.Table) -> Path:
        import pyarrow.parquet as pq

        path = self._new_path(table)
        try:
            with disk.disk_errors(f"write rows to {path}"):
                pq.write_table(rows, path, compression="zstd")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    @override
    def commit(
        self,
        table: TableId,
        schema: TableSchema,
        *,
        base: int | None,
        add: Sequence[Path | DataFile],
        remove: Sequence[DataFile] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> TableVersion:
        return self._made(self._log(table), arrow_schema(schema.columns), base, add, remove, facts or {})

    @override
    def merge(self, table: TableId, *, base: int, add: Sequence[Path], remove: Sequence[DataFile]) -> TableVersion:
        log = self._log(table)
        before = log.commit_at(base)
        return self._made(log, None, base, add, remove, {} if before is None else before.facts)

    def _made(
        self,
        log: TableLog,
        schema: pa.Schema | None,
        base: int | None,
        add: Sequence[Path | DataFile],
        remove: Sequence[DataFile],
        facts: Mapping[str, Any],
    ) -> TableVersion:
        """Make the next version; without a schema a merge."""
        staged, moved = [path for path in add if isinstance(path, Path)], dict[str, disk.FileFacts]()
        given = frozenset(staged)
        try:
            self._link(log, [file for file in add if isinstance(file, DataFile)], staged)
            number = self._commit(log, schema, base, staged, moved, remove, facts)
        except FeatureStoreError:
            _give_back(log, staged, moved, given)
            raise
        reached(COMMITTED)
        log.sync(number)
        reached(LOG_SYNCED)
        if number and number % CHECKPOINT_EVERY == 0:
            log.checkpoint(number, self.staging(log.table))
            try:
                log.archive.move_old()
            except OSError as error:  # the commit is done; opening the table is a little slower until this succeeds
                logger.warning("old entries of the log of table %s stay in it: %s", log.table, error)
        newest = self.current(log.table)
        return newest if newest is not None and newest.number == number else log.version(number)

    @override
    def changes(self, table: TableId, after: int | None, until: int) -> TableChanges:
        log = self._log(table)
        version = log.version(until)
        if after is not None and version.rows_kept_since <= after <= until:
            first = log.next_sequence(after)
            return TableChanges(tuple(file for file in version.files if file.max_sequence >= first), (), first)
        old, new = () if after is None else log.version(after).files, version.files
        before, now = {file.path for file in old}, {file.path for file in new}
        return TableChanges(
            added=tuple(file for file in new if file.path not in before),
            removed=tuple(file for file in old if file.path not in now),
        )

    @override
    def verify(self, files: Sequence[DataFile], *, again: bool = False) -> None:
        disk.verify(files, again=again)

    @override
    def open(self, file: DataFile) -> pa.NativeFile:
        import pyarrow as pa

        try:
            return pa.OSFile(file.path)
        except OSError as error:
            raise unreadable(file.path, error) from None

    @override
    def tables(self, project: str) -> list[TableId]:
        found = []
        for folder in self._path(project).glob("*/*"):
            if folder.name.isdecimal() and not folder.parent.name.startswith("."):
                table = TableId(project, folder.parent.name, int(folder.name))
                if self._log(table).exists():
                    found.append(table)
        return sorted(found, key=lambda table: (table.view, table.generation))

    @override
    def blobs(self, project: str, kind: str) -> Blobs:
        return FolderBlobs(self._path(project) / f"_{kind}")

    @override
    def blob_kinds(self, project: str) -> list[str]:
        with disk.disk_errors(f"read the folder of {project}"):
            return sorted(folder.name[1:] for folder in self._path(project).glob("_*") if folder.is_dir())

    @override
    def clean(self, table: TableId, *, keep: Sequence[int] | None, known: Sequence[int] | None = None) -> int:
        log = self._log(table)
        with disk.disk_errors(f"clean table {table}"):
            removed = sum(_remove_tree(folder) for folder in log.path.parent.glob(f"{_DROPPED}*"))
            if keep is None:
                return removed + self._drop(table, log)
            # A writer that is gone before the newest version is read has its commit in it, or never will have one.
            present = [path for path in log.path.glob("*.parquet*") if path.is_file()]
            unclaimed = {path for path in present if not is_held(log.path, path.name.partition("-")[0])}
            needed: set[str] = set()
            committed: set[str] = set()
            if log.exists():
                committed, needed = log.committed_names(), log.newest_names()
                for number in keep:
                    needed |= {Path(file.path).name for file in self.version(table, number).files}
            for path in present:
                if path.name not in needed and (path in unclaimed or path.name in committed):
                    removed += _remove(path)
            for folder in folders(log.path):
                with claimed(folder) as is_ours:
                    removed += _remove_tree(folder) if is_ours else 0
            for folder in () if known is None else log.archive.unneeded({*keep, *known}):
                _remove_tree(folder)
            return removed

    @override
    def find_commit(self, table: TableId, number: int | None = None) -> Commit | None:
        log = self._log(table)
        number = log.newest() if number is None else number
        return None if number is None else log.commit_at(number)

    @override
    def owner(self, project: str) -> str | None:
        return read_owner(self._path(project))

    @override
    def bind(self, project: str, identity: str, *, replace: bool = False) -> str:
        return bind(self._path(project), identity, replace=replace or not self.tables(project))

    @override
    def claim(self, table: TableId) -> bool:
        folder = self._log(table).path
        with disk.disk_errors(f"claim {folder}"):
            disk.make_folder(folder.parent)
            try:
                folder.mkdir()
            except FileExistsError:
                return False
            disk.sync_folder(folder.parent)
        return True

    @override
    def last_generation(self, project: str, view: str) -> int:
        folder = self._path(project, view)
        with disk.disk_errors(f"read {folder}"):
            try:
                return max((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), default=0)
            except (FileNotFoundError, NotADirectoryError):
                return 0

    def _commit(
        self,
        log: TableLog,
        schema: pa.Schema | None,
        base: int | None,
        staged: list[Path],
        moved: dict[str, disk.FileFacts],
        remove: Sequence[DataFile],
        facts: Mapping[str, Any],
    ) -> int:
        """Commit, and keep ``staged`` and ``moved`` up to date in case it fails; returns the number."""
        before, widened, merges = None, False, schema is None
        if base is not None:
            before = log.base(base)
            log.sync(base)  # its writer may have died before it did
            schema, widened = self._prepare(log, before, schema, facts)
            if widened:
                self._widen(log, before, schema, remove, staged)
        elif log.exists():
            raise ConcurrentCommitError(
                f"Another writer created table {log.table} first.", hint="Run it again.", table=str(log.table)
            )
        self._move(log, staged, moved)
        if merges:
            _check_merge(log, moved, remove)
        at_us = self._clock()
        return log.commit(before, schema, moved, remove, at_us=at_us, replace=widened, merges=merges, facts=facts)

    def _drop(self, table: TableId, log: TableLog) -> int:
        staging = self._staging.pop(table, None)
        if staging is not None:
            staging.close()
        # A half removed table would be a broken one, so it goes out of sight in one step.
        hidden = log.path.with_name(f"{_DROPPED}{secrets.token_hex(8)}")
        try:
            log.path.rename(hidden)
        except FileNotFoundError:  # never existed, or another cleaner was first
            return 0
        log.path.mkdir(exist_ok=True)  # the generation stays used
        disk.sync_folder(hidden.parent)
        reached(TABLE_MOVED)
        return _remove_tree(hidden)

    def _prepare(
        self, log: TableLog, before: DeltaTable, wanted: pa.Schema | None, facts: Mapping[str, Any]
    ) -> tuple[pa.Schema, bool]:
        """Give the base of a commit the columns that are new; returns its schema and whether a type is wider."""
        if wanted is None:
            return log.schema(before), False
        merged, added, widened = log.merged(before, wanted)
        if added and not widened:
            # The watermark is true only after the commit.
            origin = {name: fact for name, fact in facts.items() if name != WATERMARK}
            log.add_columns(before, [merged.field(name) for name in added], origin, at_us=self._clock())
            reached(COLUMNS_ADDED)
        return merged, widened

    def _widen(
        self, log: TableLog, before: DeltaTable, schema: pa.Schema, remove: Sequence[DataFile], staged: list[Path]
    ) -> None:
        """Stage the files that stay again, with wider types: Delta's readers expect the table's types in them.

        Raises DamagedFileError, because bad bytes with a new hash would look sound.
        """
        dropped = {file.path for file in remove}
        kept = [file for file in log.read(before).files if file.path not in dropped]
        try:
            disk.verify(kept, again=True)
            with disk.disk_errors(f"rewrite table {log.table}"):
                for file in kept:
                    staged.append(self._new_path(log.table))
                    disk.rewrite(Path(file.path), staged[-1], schema)
        except OfflineStoreError:
            log.check_newest(int(before.version()))  # otherwise a cleaner may have removed them
            raise

    def _link(self, log: TableLog, files: Sequence[DataFile], staged: list[Path]) -> None:
        """Stage files of another table: linked, not copied."""
        with disk.disk_errors(f"stage files of another table for {log.table}"):
            for file in files:
                staged.append(self._new_path(log.table))
                staged[-1].hardlink_to(file.path)

    def _move(self, log: TableLog, staged: Sequence[Path], moved: dict[str, disk.FileFacts]) -> None:
        """Sync and hash new files and move them into the table's folder; no version needs them yet."""
        place = self._own_staging(log.table)
        facts = {path: disk.examine(path) for path in staged}
        reached(FILES_SYNCED)
        with disk.disk_errors(f"move new files into table {log.table}"):
            for path, found in facts.items():
                name = file_name(place.name, found.sha256)
                path.rename(log.path / name)
                moved[name] = found
                disk.remember(log.path / name, found.sha256, (log.path / name).stat())
            disk.sync_folder(log.path)
        reached(FILES_MOVED)

    def _new_path(self, table: TableId) -> Path:
        return self.staging(table) / f"{secrets.token_hex(16)}.parquet"

    def _own_staging(self, table: TableId) -> Staging:
        with disk.disk_errors(f"make a place for new files of table {table}"), self._lock:
            place = self._staging.get(table)
            if place is None or not place.folder.is_dir():
                place = self._staging[table] = Staging(self._log(table).path)
        return place

    def _log(self, table: TableId) -> TableLog:
        return TableLog(table, self._path(table.project, table.view, str(table.generation)))

    def _path(self, *parts: str) -> Path:
        for part in parts:
            if not _PART.fullmatch(part):
                raise OfflineStoreError(f"{part!r} cannot be a part of a table's name.", name=part)
        return self._folder.joinpath(*parts)


def _close_all(staging: dict[TableId, Staging]) -> None:
    for place in staging.values():
        place.close()


def _give_back(log: TableLog, staged: Sequence[Path], moved: Iterable[str], given: Collection[Path]) -> None:
    """Move the files of a commit that failed back to where the caller staged them, and remove the others.

    Files that are in the log after all stay. ``moved`` are the first of ``staged``, in the same order.
    """
    committed = log.newest_names() if moved and log.exists() else set()
    for name, path in zip(moved, staged, strict=False):
        if name not in committed:
            with contextlib.suppress(OSError):  # the next cleaning removes files that are in no version
                (log.path / name).rename(path)
    for path in staged:
        if path not in given:
            path.unlink(missing_ok=True)


def _check_merge(log: TableLog, moved: Mapping[str, disk.FileFacts], remove: Sequence[DataFile]) -> None:
    """Raise OfflineStoreError for merged files that cannot hold the rows of those they replace."""
    made, taken = (
        (sum(file.rows for file in files), max((file.max_sequence for file in files), default=0))
        for files in (moved.values(), remove)
    )
    if made != taken:
        raise OfflineStoreError(f"A merge would change the rows of table {log.table}: {made} are not {taken}.")


def _remove(path: Path) -> int:
    """Remove a file; returns 0 if another cleaner was first."""
    try:
        path.unlink()
    except FileNotFoundError:
        return 0
    return 1


def _remove_tree(folder: Path) -> int:
    """Remove a folder; returns the number of files that were in it and that no other cleaner removed first."""
    removed = sum(_remove(Path(place, name)) for place, _, names in os.walk(folder) for name in names)
    while folder.exists():
        with contextlib.suppress(FileNotFoundError):  # another cleaner is at it: go on with what is left
            shutil.rmtree(folder)
    return removed
