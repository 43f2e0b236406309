"""DuckDB connections: how they are set up, how names are quoted, and how DuckDB's errors become ours."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import duckdb

from featurestore.errors import (
    FORK_HINT,
    DamagedFileError,
    DiskFullError,
    EngineError,
    FeatureStoreError,
    SourceError,
    SourceFileError,
    SourceSchemaError,
)
from featurestore.tables import parquet_fault

if TYPE_CHECKING:
    import pyarrow as pa

MEMORY_HINT = "Raise `engine: {memory_limit}`, or set `engine: {temp_directory}` to a disk with room."
DISK_HINT = "Free some space, or set `engine: {temp_directory}` to a disk with room, and run it again."
WRITTEN_HINT = "Free some space on that disk and run it again: what was there before is still readable."
START_HINT = "Check `engine:` in feature_store.yaml: a memory_limit such as 4GB, as many threads as there are cores."
USER_ERROR = "featurestore: "
"""Marks texts that our own SQL passes to ``error()``: a fault of the data, in words for people."""
FOLDER_SAYS = ", but its folder says "
_PATTERN = re.compile(r"[*?\[]")
_WRITTEN = re.compile(r'Could not write file [\\"]+([^"]+\.parquet)[\\"]+:')
"""What DuckDB says of a file that was its task to write; it spills into files of other names."""
MOST_FOLDERS = 100
"""How many folders a database that is kept may see."""
NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of the engine; None leaves a bound to DuckDB (80 % of memory, all cores)."""

    memory_limit: str | None = None
    """As DuckDB reads it, for example ``4GB``."""
    threads: int | None = None
    temp_directory: str | None = None
    """The folder to spill to; relative paths are relative to the feature repo. None: the machine's temporary folder."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A database that one use after the other reads with; see `docs/decisions/kept-database.md`."""

    database: duckdb.DuckDBPyConnection
    folders: frozenset[str]
    """What it may see."""


class Session:
    """Makes connections that see only the files they are given. `root` is the feature repo."""

    def __init__(self, root: Path, settings: EngineSettings) -> None:
        self.root = root
        self.settings = settings
        self._prepared: Future[duckdb.DuckDBPyConnection] | None = None
        self._kept: _Kept | None = None
        self._in_use = threading.Lock()
        """Held while somebody uses the kept database."""
        _sessions.add(self)

    def prepare(self) -> None:
        """Start the next connection's database in the background, because that takes longer than most queries.

        `connect` raises its errors.
        """
        if self._prepared is None and self._kept is None:
            starter = ThreadPoolExecutor(1, thread_name_prefix="engine start")
            with suppress(RuntimeError):  # Python is ending and starts no threads: `connect` does it then
                self._prepared = starter.submit(self._start)
            starter.shutdown(wait=False)

    def connect(
        self,
        *,
        reads: Iterable[str | Path] = (),
        writes: Path | None = None,
        in_order: bool = False,
    ) -> duckdb.DuckDBPyConnection:
        """Return a connection to a database of its own, locked: it reads ``reads`` and writes below ``writes``.

        Everything runs in UTC, nothing is downloaded, SQL cannot read Python variables. With ``in_order`` one thread
        does everything: rows always come in the order of files and rows, so that results that depend on it repeat.
        The caller closes it; `open` does so by itself.
        """
        connection = self._take_prepared()
        with translated("start", hint=START_HINT):
            _set_up(connection)
            if in_order:
                connection.execute("SET threads = 1")
            allowed = [str(path) for path in reads]
            # To find a file by a pattern, DuckDB needs permission for the pattern and for the file.
            patterns = [_escaped(path) for path in allowed if _PATTERN.search(path)]
            connection.execute(f"SET allowed_paths = {text_list([*allowed, *patterns])}")
            if writes is not None:
                connection.execute(f"SET allowed_directories = {text_list([str(writes)])}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        _open.add(connection)
        return connection

    @contextmanager
    def reading(
        self, files: Iterable[str | Path], *, writes: Path | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Make a connection for SQL in which nothing is a user's, and close it at the end of the block.

        It shares a database with the blocks before it, which may see the repo and the folders that any of them asked
        for; what one makes is gone for the next. Inside another such block, and for files in very many folders, it is
        as `open`.
        """
        paths, in_use = [*map(Path, files)], self._in_use
        parents = {path.parent for path in paths} | ({writes} if writes else set())
        # DuckDB follows links before it looks at what it may see.
        parents |= {Path(os.path.realpath(path)).parent for path in paths if path.is_symlink()}
        folders = {self._seen(Path(os.path.realpath(folder))) for folder in parents}
        if len(folders) > MOST_FOLDERS or not all(map(_may_be_seen, folders)) or not in_use.acquire(blocking=False):
            with self.open(reads=paths, writes=writes) as connection:
                yield connection
            return
        try:
            kept = self._keep(folders)
            with translated("start", hint=START_HINT):
                connection = kept.database.cursor()
                _open.add(connection)
                _set_up(connection)
            try:
                yield connection
            finally:
                close(connection)
        except BaseException:
            self._drop_kept()  # after some errors a database takes no more queries
            raise
        finally:
            in_use.release()  # in the child of a fork the session has another one

    def _seen(self, folder: Path) -> str:
        """Return the folder that the kept database may see, for one that a block asks for: all of a repo's are one."""
        root = Path(os.path.realpath(self.root))
        return str(root if folder.is_relative_to(root) else folder)

    def _keep(self, folders: set[str]) -> _Kept:
        """Return the kept database, another one if it may not see these folders."""
        kept = self._kept
        if kept is not None and folders <= kept.folders:
            return kept
        known = frozenset[str]() if kept is None else kept.folders
        self._drop_kept()
        allowed = frozenset(folders | known)
        database = self._take_prepared()
        _open.add(database)
        with translated("start", hint=START_HINT):
            among = folders if len(allowed) > MOST_FOLDERS else allowed
            database.execute(f"SET allowed_directories = {text_list(sorted(among))}")
            database.execute("SET enable_external_access = false")
        self._kept = _Kept(database, frozenset(among))
        return self._kept

    def _drop_kept(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            close(kept.database)

    def _take_prepared(self) -> duckdb.DuckDBPyConnection:
        prepared, self._prepared = self._prepared, None
        return self._start() if prepared is None else prepared.result()

    def _start(self) -> duckdb.DuckDBPyConnection:
        """Return a connection to a new database, not locked yet."""
        temporary = self._temporary()
        config: dict[str, Any] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": str(temporary),
            # SQL that depends on order says so; keeping the order of rows costs memory.
            "preserve_insertion_order": "false",
        }
        if self.settings.memory_limit is not None:
            config["memory_limit"] = self.settings.memory_limit
        if self.settings.threads is not None:
            config["threads"] = str(self.settings.threads)
        with translated("start", hint=START_HINT):
            return duckdb.connect(":memory:", config=config)

    @contextmanager
    def open(
        self,
        *,
        reads: Iterable[str | Path] = (),
        writes: Path | None = None,
        in_order: bool = False,
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Make a connection as `connect` does and close it at the end of the block."""
        connection = self.connect(reads=reads, writes=writes, in_order=in_order)
        try:
            yield connection
        finally:
            close(connection)

    def _temporary(self) -> Path:
        """Return a folder for this connection only: DuckDB's file names are not unique between processes."""
        if self.settings.temp_directory is None:
            parent = Path(tempfile.gettempdir())
        else:
            parent = self.root / self.settings.temp_directory
            try:
                parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise EngineError(
                    f"engine.temp_directory: the folder {parent} cannot be made: {error.strerror}.",
                    hint="Name a folder that you may write in `engine: {temp_directory}`, or leave the setting out.",
                ) from None
        return parent / f"featurestore-{secrets.token_hex(8)}"


_sessions: WeakSet[Session] = WeakSet()


def _drop_prepared() -> None:
    """Close idle connections before a fork: a child does not have their threads and would wait for them for ever.

    A fork must not happen during the start of a database either: the child would find DuckDB's locks held.
    """
    for session in list(_sessions):
        prepared, session._prepared = session._prepared, None
        if prepared is not None and prepared.exception() is None:
            prepared.result().close()
        if session._in_use.acquire(blocking=False):  # what is in use stays open, as every connection does
            try:
                session._drop_kept()
            finally:
                session._in_use.release()


_open: WeakSet[Any] = WeakSet()
"""The connections and readers of this process."""
_inherited: list[Any] = []


def _keep_inherited() -> None:
    """In a child: keep the parent's connections for ever. Closing one without its threads hangs or kills the child."""
    _inherited.extend(_open)
    _open.clear()
    for session in list(_sessions):
        session._kept, session._in_use = None, threading.Lock()


os.register_at_fork(before=_drop_prepared, after_in_child=_keep_inherited)


def _set_up(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    # A progress bar would write into the caller's output. In a notebook without ipywidgets there is no bar, and DuckDB
    # refuses to turn it off.
    if connection.execute("SELECT current_setting('enable_progress_bar')").fetchall() == [(True,)]:
        connection.execute("SET enable_progress_bar = false")


def _may_be_seen(folder: str) -> bool:
    """Tell whether a database may be given a folder: DuckDB would take others for patterns, or for everything."""
    path = Path(folder)
    return path.is_absolute() and len(path.parts) > 1 and _PATTERN.search(folder) is None


def close(connection: duckdb.DuckDBPyConnection) -> None:
    """Close a connection, unless it was open before a fork."""
    if not any(connection is inherited for inherited in _inherited):
        connection.close()


def stream(
    connection: duckdb.DuckDBPyConnection, sql: str, batch_rows: int, schema: pa.Schema | None = None
) -> pa.RecordBatchReader:
    """Run a query whose rows come as they are read; a child of the process that ran it cannot continue.

    ``schema`` has the declared types to cast to: DuckDB names the items of lists its own way.
    """
    import pyarrow as pa

    rows = connection.sql(sql).to_arrow_reader(batch_rows)
    _open.add(rows)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows:
            yield batch if schema is None else batch.cast(schema)
            if rows not in _open:
                raise EngineError("A result that was read halfway before a fork cannot go on.", hint=FORK_HINT)

    return pa.RecordBatchReader.from_batches(schema or rows.schema, batches())


def quote(name: str) -> str:
    """Return a name as a SQL identifier. Names may enter SQL in no other way."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as a SQL literal, for the places that take no parameters."""
    return "'" + value.replace("'", "''") + "'"


def text_list(values: Iterable[str]) -> str:
    """Return texts as a SQL list literal."""
    return "[" + ", ".join(text(value) for value in values) + "]"


def file_list(paths: Iterable[str]) -> str:
    """Return paths as a SQL list that names these files and no others: DuckDB reads ``*``, ``?`` and ``[`` in them."""
    return text_list(map(_escaped, paths))


def _escaped(path: str) -> str:
    return _PATTERN.sub(r"[\g<0>]", path)


@contextmanager
def translated(
    doing: str,
    *,
    source_files: Sequence[str] = (),
    table_files: Sequence[str] = (),
    sql_of: str | None = None,
    hint: str = "",
) -> Iterator[None]:
    """Turn DuckDB's errors into ours: the one place that knows them.

    ``doing`` completes "the engine could not …". ``source_files`` and ``table_files`` are the files that the block
    reads: after an error without another cause they are read again, to name the damaged one. ``sql_of`` names the
    view whose SQL runs in the block; ``hint`` is what to do if nothing else is known.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # DuckDB takes Ctrl-C for itself
            raise
        raise KeyboardInterrupt from None
    except duckdb.Error as error:
        raise (
            lack_of_room(error, doing)
            or _wrong_data(error, source_files, table_files, sql_of)
            or EngineError(f"The engine could not {doing}: {reason_of(error)}.", hint=hint)
        ) from None


def reason_of(error: Exception) -> str:
    """Return an error's message in one line, without a full stop."""
    return str(error).split("\n\n")[0].replace("\n", " ").strip().rstrip(".")


def lack_of_room(error: Exception, doing: str) -> FeatureStoreError | None:
    """Return our error where an error of DuckDB or the disk says that memory or space ran out."""
    reason = reason_of(error)
    if any(mark in str(error) for mark in NO_SPACE):
        if written := _WRITTEN.search(str(error)):
            folder = Path(written[1]).parent
            return DiskFullError(f"No space was left in {folder} while the engine tried to {doing}.", hint=WRITTEN_HINT)
        return DiskFullError(f"No space was left while the engine tried to {doing}: {reason}.", hint=DISK_HINT)
    if isinstance(error, duckdb.OutOfMemoryException):
        return EngineError(f"The engine ran out of memory while it tried to {doing}: {reason}.", hint=MEMORY_HINT)
    return None


def is_fault_of_data(error: duckdb.Error) -> bool:
    """Tell whether our own SQL raised an error, for data that it cannot take."""
    return USER_ERROR in str(error).partition("\n\n")[0]  # below it DuckDB may quote our SQL


FAULTS_OF_SQL = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.PermissionException)
"""What DuckDB says of a query before it reads a row: no value is in it."""


def _wrong_data(
    error: duckdb.Error, source_files: Sequence[str], table_files: Sequence[str], sql_of: str | None
) -> FeatureStoreError | None:
    message = str(error)
    if is_fault_of_data(error):
        found = message.partition(USER_ERROR)[2].splitlines()[0]
        hint = "Correct the data, or leave such rows out with sql=."
        if FOLDER_SAYS in found:  # our own SQL writes it, and reading a view's SQL raises it too
            hint = "Rename the folder, or correct the column of the file."
        return SourceError(f"{found[0].upper()}{found[1:]}.", hint=hint)
    for path in source_files:
        if (fault := parquet_fault(path)) is not None:
            return source_file_error(path, fault)
    for path in table_files:
        if (fault := parquet_fault(path)) is not None:
            return DamagedFileError(
                f"{path} of the offline store cannot be read: {fault}.", hint="Run `fs verify`.", path=path
            )
    if sql_of is not None:
        # The line is the user's without the DESCRIBE in front of it.
        told = re.sub(r"^(LINE 1: )DESCRIBE (.*\n) {9}", r"\1\2", message.strip(), flags=re.MULTILINE)
        about = f"The SQL of feature view {sql_of!r} fails: {told}"
        if isinstance(error, FAULTS_OF_SQL):
            return SourceSchemaError(about, hint=_sql_hint(error), view=sql_of)
        return SourceError(about, hint="Correct the SQL, or the data it reads.", view=sql_of)
    if source_files and not isinstance(error, FAULTS_OF_SQL):
        if len(source_files) == 1:
            return source_file_error(source_files[0], reason_of(error))
        return SourceError(f"The source cannot be read: {reason_of(error)}.", hint="Correct the data.")
    return None


def _sql_hint(error: duckdb.Error) -> str:
    if isinstance(error, duckdb.ParserException):
        return 'Correct it there. A column whose name is a word of SQL needs quotes: "at".'
    candidates = re.search(r"Candidate bindings: (.*)", str(error))
    names = [] if candidates is None else re.findall(r'"((?:[^"]|"")+)"', candidates[1])
    if names:
        return f"Did you mean {' or '.join(map(repr, names))}?"
    return "Compare it with the columns of its sources."


def source_file_error(path: str, reason: str) -> SourceFileError:
    """Return the error for a source file that is not a readable Parquet file."""
    return SourceFileError(
        f"{path} cannot be read: {reason}.", hint="Write the file again, or take it out of the source.", path=path
    )
