"""Connections and transactions of a SQLite registry, and the one place that translates the driver's errors."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from featurestore_registry.errors import RegistryFormatError, RegistryUnavailableError
from featurestore_registry.sql.tables import metadata

_DAMAGED = ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_FORMAT", "SQLITE_ERROR", "SQLITE_MISMATCH", "SQLITE_SCHEMA")
"""Codes about the file's content (SQLITE_ERROR: a table or column is missing)."""

_HINTS = {
    "SQLITE_BUSY": "Another program holds its lock: wait for it, or end it, and run the command again.",
    "SQLITE_FULL": "The disk is full: free some space and run the command again.",
    "SQLITE_IOERR": "A read or write of its file failed: look at free space, quotas, limits on the size of files "
    "(`ulimit -f`) and the disk itself, then run the command again.",
    "SQLITE_READONLY": "It cannot be written: check its permissions, its folder's, and that the disk is not read-only.",
    "SQLITE_CANTOPEN": "Check that the file and its folder exist and that you may read and write both.",
}

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def utc_datetime(instant_us: int) -> datetime:
    """Return the aware UTC datetime of an instant in microseconds."""
    return _EPOCH + timedelta(microseconds=instant_us)


def load_json(text: str) -> Any:
    """Return the document of a stored JSON text; raises RegistryFormatError when it is damaged."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RegistryFormatError(
            f"A document of the registry is damaged: {error}.", hint="Restore the registry from a backup."
        ) from error


class SqliteDatabase:
    """One SQLite file; every transaction has a connection of its own, safe across threads and forks.

    Connections are not kept: SQLite's must not cross a fork, and an open one would keep writing to a file that was
    moved or deleted. Opening one costs about 0.1 ms.
    """

    def __init__(self, path: Path, *, busy_timeout_ms: int) -> None:
        self.path = path
        self._busy_timeout_ms = busy_timeout_ms
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        self._make: Callable[[], None] | None = None
        self._making = threading.RLock()
        _engines.add(self)

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: a missing registry is an error, never silently an empty one. isolation_level=None: the
        # transactions begin below; the driver would begin them by itself, too late.
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=self._busy_timeout_ms / 1000,
        )
        # EXTRA is FULL and syncs the folder after the journal is gone: with FULL alone a power cut can bring
        # the journal back and undo a commit that was already acknowledged.
        connection.execute("PRAGMA synchronous = EXTRA")
        return connection

    def exists(self) -> bool:
        """Return whether there is a file, with any content."""
        with self._translated():
            try:
                self.path.stat()
            except FileNotFoundError:
                return False
            return True

    def make_when_written(self, make: Callable[[], None]) -> None:
        """Leave a missing file missing, and read as empty, until something is written or another process makes it.

        ``make`` brings the file to its schema.
        """
        self._make = make

    def create(self) -> None:
        """Make the folder and an empty file where they are missing; only its owner may read a new file.

        SQLite gives its journal the same mode.
        """
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection whose statements each see the newest committed state."""
        with self._translated():
            if self._is_unmade():
                with create_engine("sqlite://", poolclass=NullPool).begin() as connection:
                    metadata.create_all(connection)
                    yield connection
                return
            with self._engine.connect() as connection:
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a transaction that excludes all other writers, in every process, from its first moment.

        It commits at the end of the block and changes nothing when the block raises.
        """
        self._ensure_made()
        with self._translated(), self._engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    def use_rollback_journal(self) -> None:
        """Leave WAL mode, which stays with a file: before SQLite 3.51.3 it can lose commits."""
        with self.reading() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            if mode == "wal":
                connection.exec_driver_sql("PRAGMA journal_mode = DELETE")

    def close(self) -> None:
        """Release what the engine holds."""
        self._engine.dispose()

    def _is_unmade(self) -> bool:
        """Tell whether the file is still to be made; upgrades one that another process made in the meantime."""
        with self._making:
            if self._make is None:
                return False
            if not self.exists():
                return True
            self._ensure_made()
            return False

    def _ensure_made(self) -> None:
        with self._making:
            make, self._make = self._make, None
            if make is None:
                return
            try:
                make()
            except BaseException:
                self._make = make
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._translate(error) from error
        except OSError as error:
            raise RegistryUnavailableError(
                f"The registry {self.path} cannot be opened: {error.strerror}.",
                hint="Check that the file and its folder exist and that you may read and write both.",
                path=str(self.path),
            ) from error

    def _translate(self, error: DBAPIError) -> RegistryFormatError | RegistryUnavailableError:
        # No code at all: the driver could not decode a text.
        code: str = getattr(error.orig, "sqlite_errorname", None) or "SQLITE_FORMAT"
        if code.startswith(_DAMAGED):
            return RegistryFormatError(
                f"{self.path} is not a registry, or it is damaged: {error.orig}.",
                hint="Check the path; restore a damaged registry from a backup, or make a new one with `fs apply`.",
                path=str(self.path),
                code=code,
            )
        hint = next((hint for prefix, hint in _HINTS.items() if code.startswith(prefix)), "")
        return RegistryUnavailableError(
            f"The registry {self.path} cannot be used: {error.orig}.", hint=hint, path=str(self.path), code=code
        )


_engines: WeakSet[SqliteDatabase] = WeakSet()


def _free_inherited() -> None:
    """In a child process: release the lock of a parent's thread that was making a file and does not exist here."""
    for engine in list(_engines):
        engine._making = threading.RLock()


os.register_at_fork(after_in_child=_free_inherited)
