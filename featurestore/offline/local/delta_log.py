"""The log of one Delta table: the only place that calls `deltalake`.

`deltalake` does not sync its writes and does not refuse a commit of new files when another one came first. So every
commit here is made from exactly one version or not at all, and the log is synced around it.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurestore.errors import FORK_HINT, ConcurrentCommitError, DiskFullError, OfflineStoreError, TableVersionError
from featurestore.offline.interface import MAX_SEQUENCE, Commit, DataFile, TableId, TableVersion
from featurestore.offline.local.archive import LogArchive, is_checkpoint, numbered
from featurestore.offline.local.files import DISK_HINT, FileFacts, disk_errors, sync_file, sync_folder
from featurestore.offline.local.log_faults import has_empty_entry, log_error
from featurestore.steps import crash_point, reached
from featurestore.types.arrow import fits, value_type_of
from featurestore.types.columns import CREATED, EVENT, SEQUENCE
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

COMMITTED = crash_point("offline.committed", "the version is in the log, the log is not synced")
LOG_SYNCED = crash_point("offline.log_synced", "the version is durable")
CHECKPOINT_MOVED = crash_point("offline.checkpoint_moved", "a checkpoint of the log is in place")

LogState = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of every file in a log."""
FOLDER = "_delta_log"
READ_AGAIN = 3
"""At most so many times the newest version is read again while its log moves into the archive."""
CHECKPOINT_EVERY = 20
"""Commits between two checkpoints. Loading reads every commit since the newest one: 0.18 s for 500, 0.02 s for few."""
NEXT_SEQUENCE = "featurestore.next_sequence"
"""The application transaction that carries `TableVersion.next_sequence` from version to version."""
KEPT_SINCE, KEPT_UNTIL = "featurestore.rows_kept_since", "featurestore.rows_kept_until"
"""The application transactions that carry `TableVersion.rows_kept_since`, and the last version whose writer knew it:
after a commit by any other program the two mean nothing."""
MERGED_MS_AGO = 8 * 24 * 3600 * 1000
"""How far back merges date the removal of their files, longer than Delta's retention of a week: otherwise every
checkpoint would hold their names for a week, 600,000 for one push a second."""
CONFIGURATION: dict[str, str | None] = {
    "delta.enableExpiredLogCleanup": "false",
    "delta.enableDeletionVectors": "false",
}
_FILE_NAME = re.compile(r"[0-9a-f]{32}-[0-9a-f]{8}-(?P<sha256>[0-9a-f]{64})\.parquet")


def file_name(writer: str, sha256: str) -> str:
    """Return the name of a data file: its writer's staging folder, something random, its hash."""
    return f"{writer}-{secrets.token_hex(4)}-{sha256}.parquet"


class TableLog:
    """The log of one table; holds no state."""

    def __init__(self, table: TableId, path: Path) -> None:
        self.table = table
        self.path = path
        self.archive = LogArchive(path)

    def exists(self) -> bool:
        """Tell whether the table has a version."""
        return bool(self.state())

    def state(self) -> LogState:
        """Return what tells this log from every other that was or will be in its folder; empty without a version.

        Loading a version takes 3 ms, this a few microseconds an entry.
        """
        files: list[tuple[str, int, int, int]] = []
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(self.path / FOLDER) as found:
            for file in found:
                with suppress(FileNotFoundError):  # another writer's temporary file: the table is there all the same
                    facts = file.stat()
                    files.append((file.name, facts.st_ino, facts.st_size, facts.st_mtime_ns))
        is_table = any(name[:20].isdecimal() and name.endswith(".json") for name, *_ in files)
        return tuple(sorted(files)) if is_table else ()

    def open(self, number: int | None = None) -> DeltaTable:
        """Load a version, by default the newest. Raises TableVersionError, and OfflineStoreError for a table that
        needs features which this reader lacks.
        """
        return self._open(self.path if number is None else self.entry(number).parent.parent, number)

    def _open(self, folder: Path, number: int | None, *, base: int | None = None) -> DeltaTable:
        from deltalake import DeltaTable

        if has_empty_entry(folder / FOLDER) and (fault := log_error(self.table, folder / FOLDER, number)):
            raise fault
        with self._translated(base, folder, number):
            found = DeltaTable(folder, version=number)
        self._check_readable(found)
        return found

    def _check_readable(self, found: DeltaTable) -> None:
        """Raise OfflineStoreError for a table that needs features which this reader lacks."""
        with self._translated():
            protocol = found.protocol()
        if protocol.min_reader_version > 1 or protocol.reader_features:
            needs = ", ".join(protocol.reader_features or ()) or f"reader version {protocol.min_reader_version}"
            raise OfflineStoreError(
                f"Table {self.table} cannot be read: it needs {needs}.",
                hint="Another program changed it; restore it, or materialize it again.",
                table=str(self.table),
            )

    def version(self, number: int | None = None) -> TableVersion:
        """Return what a version holds, by default the newest. Raises as `open`."""
        return self.load(number)[1]

    def load(self, number: int | None = None) -> tuple[DeltaTable, TableVersion]:
        """Load a version and return it with what it holds, as `version`."""
        for _ in range(READ_AGAIN):
            try:
                return self._load(self.open(number))
            except TableVersionError:
                raise
            except OfflineStoreError:
                # In the meantime it, or entries that it needs, moved into the archive: there is a newer version now.
                moved = None if number is None else self.archive.archived(number)
                if moved is not None:
                    return self._load(self._open(moved.parent.parent, number))
                if number is not None:
                    raise
        return self._load(self.open(number))

    def _load(self, found: DeltaTable) -> tuple[DeltaTable, TableVersion]:
        return found, self.read(found)

    def bring_up(self, loaded: DeltaTable, before: LogState, now: LogState) -> TableVersion | None:
        """Bring a version that was loaded when the log looked as ``before`` up to the newest: a fifth of loading it.

        Returns None where the log did anything but grow, or something is wrong with it: `load` says what.
        """
        if not set(before) <= set(now) or has_empty_entry(self.path / FOLDER):
            return None
        try:
            with self._translated():
                loaded.update_incremental()
            self._check_readable(loaded)
            return self.read(loaded)
        except OfflineStoreError:
            return None

    def entry(self, number: int) -> Path:
        """Return the path of a version's log entry, in the archive or not; raises TableVersionError."""
        found = self.archive.entry(number)
        if found is None:
            raise TableVersionError(
                f"Table {self.table} has no version {number}.", table=str(self.table), version=number
            )
        return found

    def read_entry(self, number: int) -> bytes:
        """Return the log entry of a version, even while it moves into the archive; raises TableVersionError."""
        with disk_errors(f"read the log of table {self.table}"):
            with suppress(FileNotFoundError):
                return self.entry(number).read_bytes()
            return self.entry(number).read_bytes()

    def base(self, number: int) -> DeltaTable:
        """Load the version that a commit is made from; raises ConcurrentCommitError when there is a later one."""
        self.entry(number)
        self.check_newest(number)
        return self._open(self.path, number, base=number)

    def next_sequence(self, number: int) -> int:
        """Return `TableVersion.next_sequence` of a version, from its entry alone if that has it."""
        known = _transactions_in(self.read_entry(number)).get(NEXT_SEQUENCE)
        return self.open(number).transaction_version(NEXT_SEQUENCE) or 0 if known is None else known

    def newest(self) -> int | None:
        """Return the number of the newest version, without loading it, None if there is none."""
        return max((int(entry.stem) for entry in (self.path / FOLDER).glob("0*.json")), default=None)

    def read(self, found: DeltaTable) -> TableVersion:
        """Return the content of a loaded version."""
        import pyarrow as pa

        number = int(found.version())
        entry = self.read_entry(number)
        with self._translated():
            actions = pa.table(found.get_add_actions(flatten=True))
            next_sequence, kept_since = _carried(found, entry)
        bounds = (f"min.{EVENT}", f"max.{EVENT}", f"max.{CREATED}", f"max.{SEQUENCE}")
        known = {name: actions[name].cast(pa.int64()) for name in bounds if name in actions.column_names}
        rows = pa.table({name: actions[name] for name in ("path", "num_records", "size_bytes")} | known).to_pylist()
        files = map(self._data_file, rows)
        by_path = tuple(sorted(files, key=lambda file: file.path))
        return TableVersion(self.table, number, by_path, next_sequence, kept_since, sha256(entry).hexdigest())

    def commit_at(self, number: int) -> Commit | None:
        """Return the commit in a version's log entry; None if there is no such entry."""
        try:
            entry = self.read_entry(number)
        except TableVersionError:
            return None
        return _commit_in(entry, number)

    def _data_file(self, row: Mapping[str, Any]) -> DataFile:
        name, least, greatest = row["path"], row.get(f"min.{EVENT}"), row.get(f"max.{EVENT}")
        sequence = row.get(f"max.{SEQUENCE}")
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            raise OfflineStoreError(
                f"File {name!r} of table {self.table} was not written by this product.",
                hint="Another program wrote to the table; restore it, or materialize it again.",
                table=str(self.table),
            )
        return DataFile(
            path=str(self.path / name),
            rows=row["num_records"],
            size_bytes=row["size_bytes"],
            sha256=match["sha256"],
            min_event_us=MIN_INSTANT if least is None else least,
            max_event_us=MAX_INSTANT if greatest is None else greatest,
            max_created_us=row.get(f"max.{CREATED}"),
            max_sequence=MAX_SEQUENCE if sequence is None else sequence,
        )

    def schema(self, base: DeltaTable) -> pa.Schema:
        """Return a version's columns."""
        import pyarrow as pa

        return pa.schema(base.schema().to_arrow())

    def merged(self, base: DeltaTable, wanted: pa.Schema) -> tuple[pa.Schema, list[str], bool]:
        """Return a version's schema with the additions of ``wanted``, the new names, and whether a type is wider.

        Raises OfflineStoreError for any other change of type: that is a new generation.
        """
        import pyarrow as pa

        known = self.schema(base)
        fields: dict[str, pa.Field] = {field.name: field for field in known}
        widened = False
        for field in wanted:
            old, new = (value_type_of(fields.get(field.name, field).type), value_type_of(field.type))
            assert new is not None
            if old != new and not fits(new, old):
                raise OfflineStoreError(
                    f"Column {field.name!r} of table {self.table} is {old} and cannot become {new}.",
                    hint="Such a change starts a new generation.",
                    table=str(self.table),
                    column=field.name,
                )
            widened = widened or old != new
            fields[field.name] = field
        added = [name for name in fields if name not in known.names]
        return pa.schema(list(fields.values())), added, widened

    def add_columns(
        self, base: DeltaTable, fields: Sequence[pa.Field], facts: Mapping[str, Any], *, at_us: int
    ) -> None:
        """Commit a version with further columns and the same rows; ``base`` moves on to it."""
        import pyarrow as pa
        from deltalake import Schema

        columns = Schema.from_arrow(pa.schema(list(fields))).fields
        with self._translated(base.version()):
            kept = {KEPT_SINCE: _carried(base)[1], KEPT_UNTIL: base.version() + 1}
            made = {"at_us": at_us, "rows": 0, "withdrawn": 0}
            base.alter.add_columns(columns, **_properties({}, facts, kept, made))
        self.sync(base.version())

    def commit(
        self,
        base: DeltaTable | None,
        schema: pa.Schema,
        added: Mapping[str, FileFacts],
        removed: Sequence[DataFile],
        *,
        at_us: int,
        replace: bool,
        merges: bool,
        facts: Mapping[str, Any],
    ) -> int:
        """Commit files in the table's folder, by name, and return the number of the version.

        ``replace`` removes all others and sets the schema; with ``merges`` the added files hold the rows of the removed
        ones. ``at_us`` is now.
        """
        from deltalake import Schema
        from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

        actions: list[Any] = [
            AddAction(name, facts.size_bytes, {}, facts.modified_ms, True, facts.statistics())
            for name, facts in added.items()
        ]
        next_sequence = max((facts.max_sequence + 1 for facts in added.values()), default=0)
        hashes = {name: {"sha256": facts.sha256, "size": facts.size_bytes} for name, facts in added.items()}
        number = known = kept_since = 0
        gone = sum(file.rows for file in (self.read(base).files if replace and base is not None else removed))
        if base is not None:
            number = base.version() + 1
            with self._translated(base.version()):  # reads the log
                known, kept_since = _carried(base, self.read_entry(base.version()))
        # Readers find new rows by their numbers: a commit with a smaller one does not count as only adding.
        appends = not replace and not removed and all(facts.min_sequence >= known for facts in added.values())
        since = kept_since if appends or merges else number
        carried = {NEXT_SEQUENCE: max(next_sequence, known), KEPT_SINCE: since, KEPT_UNTIL: number}
        made = {"at_us": at_us, "merges": merges, **_counts_of(added.values(), gone, MAX_SEQUENCE if merges else known)}
        properties, columns = _properties(hashes, facts, carried, made), Schema.from_arrow(schema)
        removed_ms = at_us // 1000 - (MERGED_MS_AGO if merges else 0)
        actions += [] if replace else [RemoveAction(Path(f.path).name, True, removed_ms, f.size_bytes) for f in removed]
        with self._translated(number - 1):
            if base is None:
                create_table_with_add_actions(
                    str(self.path), columns, actions, mode="error", configuration=CONFIGURATION, **properties
                )
            else:
                mode: Literal["overwrite", "append"] = "overwrite" if replace else "append"
                base.create_write_transaction(actions, mode, columns, **properties)
        return number

    def sync(self, number: int) -> None:
        """Make a version survive a power cut."""
        with disk_errors(f"sync the log of table {self.table}"):
            sync_file(self.entry(number))
            sync_folder(self.path / FOLDER)
            sync_folder(self.path)

    def checkpoint(self, number: int, staging: Path) -> None:
        """Write a checkpoint of a version, so that loading need not read every commit.

        A torn checkpoint would make the table unreadable, and `deltalake` puts it in place before it is synced. So it
        is written into a copy of the log in ``staging``, synced, and moved.
        """
        from deltalake import DeltaTable

        copy = staging / f"checkpoint-{secrets.token_hex(8)}"
        with disk_errors(f"write a checkpoint of table {self.table}"):
            (copy / FOLDER).mkdir(parents=True)
            try:
                for file in self._since_checkpoint():
                    os.link(file, copy / FOLDER / file.name)
                with self._translated():
                    DeltaTable(copy, version=number).create_checkpoint()
                for pattern in (f"{number:020}.checkpoint*.parquet", "_last_checkpoint"):
                    for file in (copy / FOLDER).glob(pattern):
                        sync_file(file)
                        file.replace(self.path / FOLDER / file.name)
                    sync_folder(self.path / FOLDER)
                    reached(CHECKPOINT_MOVED)
            finally:
                shutil.rmtree(copy, ignore_errors=True)

    def _since_checkpoint(self) -> list[Path]:
        """Return the newest checkpoint's files and every commit from it on."""
        found = numbered(self.path / FOLDER)
        newest = max((number for number, file in found if is_checkpoint(file)), default=0)
        return [file for number, file in found if number >= newest]

    def newest_names(self) -> set[str]:
        """Return the names of the newest version's files."""
        return {Path(file.path).name for file in self.version().files}

    def committed_names(self) -> set[str]:
        """Return the names of all files that were ever part of the table, as far as its log goes back."""
        with self._translated():
            return self.archive.file_names()

    def check_newest(self, number: int) -> None:
        """Raise ConcurrentCommitError when there is a version after this one."""
        is_archived = number >= 0 and not self.archive.live(number).is_file()
        if is_archived or self.archive.live(number + 1).is_file():
            raise ConcurrentCommitError(
                f"Another writer committed to table {self.table} after version {number}.",
                hint="Run it again: it starts from the newest version.",
                table=str(self.table),
                base=number,
            ) from None

    @contextmanager
    def _translated(
        self, base: int | None = None, folder: Path | None = None, number: int | None = None
    ) -> Iterator[None]:
        """Turn deltalake's errors into ours; ``base`` is the version that a commit in the block is made from.

        ``folder`` is the folder whose log is read up to version ``number``, by default the table's own.
        """
        from deltalake.exceptions import DeltaError

        check_not_forked()
        try:
            yield
        except (DeltaError, OSError) as error:
            message = str(error)
            if "No space left" in message or "quota exceeded" in message or "File too large" in message:
                raise DiskFullError(
                    f"No space was left while committing to table {self.table}.", hint=DISK_HINT
                ) from None
            if base is not None:
                self.check_newest(base)
            if fault := log_error(self.table, (folder or self.path) / FOLDER, number):
                raise fault from None
            # After its first words the kernel dumps everything that it knows.
            what = message.splitlines()[0].partition("ParsedLogPath")[0][:300]
            raise OfflineStoreError(f"Table {self.table}: {what}", table=str(self.table)) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a panic of deltalake's Rust, which is not an Exception
                raise
            message = str(error).splitlines()[0]
            hint = FORK_HINT if "fork" in message.lower() else ""
            raise OfflineStoreError(f"Table {self.table}: {message}", hint=hint, table=str(self.table)) from None


_process: int | None = None
"""The process that used deltalake first: its threads, without which it cannot work, do not survive a fork."""


def check_not_forked() -> None:
    """Raise OfflineStoreError in a child of a process that used deltalake."""
    global _process
    _process = _process or os.getpid()
    if _process != os.getpid():
        raise OfflineStoreError(
            f"Process {os.getpid()} was forked after its parent had used the offline store, whose library does not "
            "survive that.",
            hint=FORK_HINT,
        )


def _carried(found: DeltaTable, entry: bytes = b"") -> tuple[int, int]:
    """Return `TableVersion.next_sequence` and `rows_kept_since` of a loaded version.

    What its ``entry`` tells need not be asked of the table, which takes 0.2 ms each.
    """
    number: int = found.version()
    told = _transactions_in(entry)
    sequence, since, until = (
        told[name] if name in told else found.transaction_version(name)
        for name in (NEXT_SEQUENCE, KEPT_SINCE, KEPT_UNTIL)
    )
    return sequence or 0, since if since is not None and until == number else number


def _transactions_in(entry: bytes) -> dict[str, int]:
    """Return the application transactions of a log entry."""
    found = (json.loads(line)["txn"] for line in entry.splitlines() if b'"txn"' in line[:10])
    return {each["appId"]: int(each["version"]) for each in found}


def _counts_of(added: Collection[FileFacts], gone: int, known: int) -> dict[str, Any]:
    """Return how many rows came and left with files, and the span of ``fs_seq`` of those that came, from ``known`` on.

    Files with smaller ones hold what stays of the ``gone`` rows.
    """
    new = [facts for facts in added if facts.min_sequence >= known]
    left = gone - sum(facts.rows for facts in added if facts.min_sequence < known)
    first = min((facts.min_sequence for facts in new), default=None)
    last = max((facts.max_sequence for facts in new), default=None)
    return {"rows": sum(facts.rows for facts in new), "withdrawn": left, "first": first, "last": last}


def _commit_in(entry: bytes, number: int) -> Commit:
    """Return the commit of a log entry; without facts if another program, or damage, left something else."""
    found = partial(Commit, number, sha256(entry).hexdigest())
    with suppress(ValueError, AttributeError):
        for line in entry.splitlines():
            if b'"commitInfo"' in line[:20]:
                info = json.loads(line)["commitInfo"]
                ours = info.get("featurestore", {})
                facts, made = ours.get("facts", {}), ours.get("made", {})
                told_ms = info.get("timestamp")
                at_us = made.get("at_us", told_ms * 1000 if isinstance(told_ms, int) else None)
                counts = made.get("rows"), made.get("withdrawn"), made.get("first"), made.get("last")
                return found(facts if isinstance(facts, dict) else {}, at_us, bool(made.get("merges")), *counts)
    return found({})


def _properties(
    hashes: Mapping[str, Any], facts: Mapping[str, Any], carried: Mapping[str, int], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how to commit; ``carried`` are the numbers of application transactions."""
    from deltalake.transaction import CommitProperties, PostCommitHookProperties, Transaction

    # Without retries a commit is refused when any other came first; with them, one that only adds never is refused.
    commit = CommitProperties(
        custom_metadata={"featurestore": {"files": hashes, "facts": dict(facts), "made": dict(made)}},
        max_commit_retries=0,
        app_transactions=[Transaction(name, number) for name, number in carried.items()],
    )
    after = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
    return {"commit_properties": commit, "post_commithook_properties": after}
