"""DuckDB connections: how they are set up, how names are quoted, and how DuckDB's errors become ours."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from featurestore.errors import DiskFullError, EngineError, FeatureStoreError, SourceError, SourceSchemaError

MEMORY_HINT = "Raise `engine: {memory_limit}`, or set `engine: {temp_directory}` to a disk with room."
DISK_HINT = "Free some space, or set `engine: {temp_directory}` to a disk with room, and run it again."
NO_SPACE = ("No space left on device", "Disk quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Bounds of the engine; None leaves a bound to DuckDB (80 % of memory, all cores)."""

    memory_limit: str | None = None
    """As DuckDB reads it, for example ``4GB``."""
    threads: int | None = None
    temp_directory: str | None = None
    """Where to spill; relative paths are relative to the feature repo. None: the machine's temporary folder."""


class Session:
    """Makes connections that see the files they are given and nothing else. `root` is the feature repo."""

    def __init__(self, root: Path, settings: EngineSettings) -> None:
        self.root = root
        self.settings = settings

    def connect(self, *, reads: Iterable[str | Path] = (), writes: Path | None = None) -> duckdb.DuckDBPyConnection:
        """Return a connection to a database of its own, locked: it reads ``reads`` and writes below ``writes``.

        Everything runs in UTC, nothing is downloaded, Python variables cannot be read from SQL. The caller
        closes it; `open` does so by itself.
        """
        temporary = self._temporary()
        config: dict[str, Any] = {
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": str(temporary),
            # Whatever depends on order says so in its SQL; keeping the order of rows costs memory.
            "preserve_insertion_order": "false",
        }
        if self.settings.memory_limit is not None:
            config["memory_limit"] = self.settings.memory_limit
        if self.settings.threads is not None:
            config["threads"] = str(self.settings.threads)
        with translated("start"):
            connection = duckdb.connect(":memory:", config=config)
            connection.execute("SET TimeZone = 'UTC'")
            connection.execute(f"SET allowed_paths = {text_list(str(path) for path in reads)}")
            if writes is not None:
                connection.execute(f"SET allowed_directories = {text_list([str(writes)])}")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        return connection

    @contextmanager
    def open(
        self, *, reads: Iterable[str | Path] = (), writes: Path | None = None
    ) -> Iterator[duckdb.DuckDBPyConnection]:
        """Make a connection as `connect` does and close it at the end of the block."""
        connection = self.connect(reads=reads, writes=writes)
        try:
            yield connection
        finally:
            connection.close()

    def _temporary(self) -> Path:
        """Return a folder of this connection's own: DuckDB's names in it are not unique between processes."""
        if self.settings.temp_directory is None:
            parent = Path(tempfile.gettempdir())
        else:
            parent = self.root / self.settings.temp_directory
            parent.mkdir(parents=True, exist_ok=True)
        return parent / f"featurestore-{secrets.token_hex(8)}"


def quote(name: str) -> str:
    """Return a name as a SQL identifier. The only way by which a name may enter SQL."""
    return '"' + name.replace('"', '""') + '"'


def text(value: str) -> str:
    """Return a text as a SQL literal, for the places that take no parameters."""
    return "'" + value.replace("'", "''") + "'"


def text_list(values: Iterable[str]) -> str:
    """Return texts as a SQL list literal."""
    return "[" + ", ".join(text(value) for value in values) + "]"


@contextmanager
def translated(
    doing: str,
    *,
    files: Sequence[str] = (),
    damaged: Callable[[str, str], FeatureStoreError] | None = None,
    sql_of: str | None = None,
) -> Iterator[None]:
    """Turn DuckDB's errors into ours: the one place that knows them.

    ``doing`` completes "the engine could not …". ``files`` are what the block reads: after an error that tells of
    no other cause each is read once more, and ``damaged(path, reason)`` makes the error for the first that
    cannot be. ``sql_of`` names the view whose SQL runs in the block.
    """
    try:
        yield
    except duckdb.Error as error:
        raise _translate(error, doing, files, damaged, sql_of) from None


def _translate(
    error: duckdb.Error,
    doing: str,
    files: Sequence[str],
    damaged: Callable[[str, str], FeatureStoreError] | None,
    sql_of: str | None,
) -> FeatureStoreError:
    message = str(error)
    reason = message.split("\n\n")[0].replace("\n", " ").strip().rstrip(".")
    if any(mark in message for mark in NO_SPACE):
        return DiskFullError(f"No space was left while the engine tried to {doing}: {reason}.", hint=DISK_HINT)
    if isinstance(error, duckdb.OutOfMemoryException):
        return EngineError(f"The engine ran out of memory while it tried to {doing}: {reason}.", hint=MEMORY_HINT)
    if damaged is not None:
        for path in files:
            if (fault := unreadable(path)) is not None:
                return damaged(path, fault)
    if sql_of is not None:
        about = f"The SQL of feature view {sql_of!r} fails: {message.strip()}"
        if isinstance(error, duckdb.BinderException | duckdb.CatalogException | duckdb.ParserException):
            return SourceSchemaError(about, hint="Compare it with the columns of its sources.", view=sql_of)
        return SourceError(about, hint="Correct the SQL, or the data it reads.", view=sql_of)
    return EngineError(f"The engine could not {doing}: {reason}.")


def unreadable(path: str) -> str | None:
    """Return why a Parquet file cannot be read to its end, or None when it can."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None
