"""A registry in a SQLite file: connections, transactions, and the one place that translates the driver's errors."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Engine, create_engine, literal
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import NullPool
from typing_extensions import override

from featurestore_registry.errors import RegistryFormatError, RegistryUnavailableError
from featurestore_registry.forks import ForkLock
from featurestore_registry.records import Clock, system_clock
from featurestore_registry.sql.database import Database
from featurestore_registry.sql.schema import ensure_schema, missing, schema_of, version_of_schema
from featurestore_registry.sql.tables import EARLIER_VERSIONS, SCHEMA_VERSION, create_all

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


_connecting: ContextVar[Callable[[], sqlite3.Connection]] = ContextVar("_connecting")
"""How the engine connects just now."""


@cache
def _engine() -> Engine:
    """Return the engine of all files: it keeps compiled statements, which take longer to compile than to run."""
    return create_engine("sqlite://", creator=lambda: _connecting.get()(), poolclass=NullPool)


def _connected(connect: Callable[[], sqlite3.Connection]) -> Connection:
    """Connect SQLAlchemy by a function; the caller closes the connection."""
    token = _connecting.set(connect)
    try:
        return _engine().connect()
    finally:
        _connecting.reset(token)


@contextmanager
def an_empty_registry() -> Iterator[Connection]:
    """Give a connection to a registry without content, to be read in place of one that is not made yet."""
    with _connected(lambda: _filled(_empty_script())) as connection:
        yield connection


def _filled(script: str) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(script)
    return connection


@cache
def _empty_script() -> str:
    """Return the SQL that makes `an_empty_registry`: SQLAlchemy takes ten times as long, at each read."""
    with _connected(partial(sqlite3.connect, ":memory:")) as connection:
        create_all(connection)
        made = connection.connection.driver_connection
        assert made is not None
        return "\n".join(made.iterdump())


class SqliteDatabase(Database):
    """One SQLite file; every transaction has a connection of its own, safe across threads and forks.

    Connections are not kept: SQLite's must not cross a fork, and an open one would keep writing to a file that was
    moved or deleted. Opening one costs about 0.1 ms, reading the schema's version a third of that: each transaction
    reads it, because a file may be replaced, restored or upgraded while this process lives.
    """

    upgrades_itself = True

    def __init__(
        self, path: Path, *, busy_timeout_ms: int, clock: Clock = system_clock, may_make: bool = False
    ) -> None:
        """With ``may_make`` a missing file reads as empty, and the first write makes it."""
        self.path = path
        self.name = str(path)
        self.details = {"path": self.name}
        self._busy_timeout_ms = busy_timeout_ms
        self._clock = clock
        self._may_make = may_make
        self._lock = ForkLock()

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

    @override
    def exists(self) -> bool:
        with self._translated():
            try:
                self.path.stat()
            except FileNotFoundError:
                return False
            return True

    @override
    def create(self) -> None:
        # Only its owner may read a new file; SQLite gives its journal the same mode.
        with self._translated():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600)

    @override
    @contextmanager
    def reading(self) -> Iterator[Connection]:
        if self._may_make and not self.exists():  # one that another process made meanwhile is brought up to date
            with self._translated(), an_empty_registry() as connection:
                yield connection
            return
        with self.looking() as connection:
            if self._is_current(connection):
                yield connection
                return
        self.check()
        with self.looking() as connection:
            yield connection

    @override
    @contextmanager
    def writing(self, project: str) -> Iterator[Connection]:
        if self._may_make:
            self.check()
        with self.migrating() as connection:  # a file has one writer
            if self._is_current(connection):
                yield connection
                return
        self.check()
        with self.migrating() as connection:
            yield connection

    @override
    @contextmanager
    def looking(self) -> Iterator[Connection]:
        with self._translated(), _connected(self._connect) as connection:
            yield connection

    @override
    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        with self._translated(), _connected(self._connect) as connection, connection.begin():
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield connection

    @override
    def now(self, connection: Connection) -> ColumnElement[int]:
        return literal(self._clock())

    @override
    def bring_up(self) -> None:
        if self.exists() and schema_of(self) != SCHEMA_VERSION:
            ensure_schema(self, create=self._may_make, upgrade=True)

    @override
    def settle(self) -> None:
        # WAL mode stays with a file, and can lose commits before SQLite 3.51.3.
        with self.looking() as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            if mode == "wal":
                connection.exec_driver_sql("PRAGMA journal_mode = DELETE")

    @override
    def close(self) -> None:
        """Nothing is kept open."""

    def check(self) -> None:
        """Bring the file to the schema; raises as `ensure_schema`."""
        with self._lock:
            ensure_schema(self, create=self._may_make)
            self._may_make = False

    def _is_current(self, connection: Connection) -> bool:
        try:
            version = connection.scalar(version_of_schema)
        except OperationalError:
            if self._may_make:  # another process is making it: there is no such table yet
                return False
            raise
        is_current = version == SCHEMA_VERSION or version in EARLIER_VERSIONS
        if is_current:
            self._may_make = False  # one that goes away from now on is missed
        return is_current

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._translate(error) from error
        except OSError as error:
            raise RegistryUnavailableError(
                f"The registry {self.path} cannot be opened: {error.strerror}.",
                hint=_HINTS["SQLITE_CANTOPEN"],
                path=str(self.path),
            ) from error

    def _translate(self, error: DBAPIError) -> RegistryFormatError | RegistryUnavailableError:
        if not self.path.exists():
            return missing(self)
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


def open_sqlite(url: str, *, create: bool, busy_timeout_ms: int, clock: Clock) -> Database:
    """Open ``sqlite:///PATH``, with PATH absolute (so four slashes) and taken as it is written."""
    path = Path(url.partition("://")[2].removeprefix("/"))
    if not path.is_absolute():
        raise RegistryUnavailableError(
            f"The registry's path {str(path)!r} is not absolute.",
            hint="Write sqlite:////srv/registry.db, with four slashes.",
        )
    database = SqliteDatabase(path, busy_timeout_ms=busy_timeout_ms, clock=clock, may_make=create)
    if not create or database.exists():
        database.check()
    return database
