"""A registry in a PostgreSQL database, which many machines share: a pool, locks, and translated errors.

Writers of one project wait for each other by an advisory lock of their transaction, so that numbers become visible in
the order in which they were given. Who changes the schema waits for all of them. Both locks end with the transaction:
a pool that rolls back, or a connection that breaks, leaves none behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any
from zlib import crc32

from sqlalchemy import (
    URL,
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    create_engine,
    inspect,
    literal,
    literal_column,
    make_url,
    text,
)
from sqlalchemy.event import listen
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from typing_extensions import override

from featurestore_registry.errors import RegistryError, RegistryFormatError, RegistryUnavailableError
from featurestore_registry.forks import ForkLock
from featurestore_registry.records import Clock, system_clock
from featurestore_registry.sql.database import Database
from featurestore_registry.sql.schema import ensure_schema, version_of_schema
from featurestore_registry.sql.sqlite import an_empty_registry
from featurestore_registry.sql.tables import SCHEMA_VERSION, VERSION_TABLE

CONNECT_SECONDS = 10
POOL_SIZE, POOL_MORE = 5, 15
CHECK_SECONDS = 1.0
"""How long a schema that was found right is not looked at again."""
IDLE_SECONDS = 0.1
"""How long a connection that was used is taken without asking whether it is still there."""

_SCHEMA_LOCK, _PROJECT_LOCK = 0x66735F73, 0x66735F70
"""The first number of the advisory locks: ``fs_s`` and ``fs_p``."""
_lock_schema = text("SELECT pg_advisory_xact_lock(:schema, hashtext(current_schema()))")
_lock_project = text(
    "SELECT pg_advisory_xact_lock_shared(:schema, hashtext(current_schema())), pg_advisory_xact_lock(:kind, :project)"
)
_now: ColumnElement[int] = literal_column("CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)", BigInteger)

_WHO = "Check user and password: in the URL, in PGUSER and PGPASSWORD, or in ~/.pgpass."
_HINTS = {
    "28": _WHO,
    "authentication": _WHO,
    "no password": _WHO,
    "role ": _WHO,
    'database "': "Create the database first: `createdb NAME`, or check its name in the URL.",
    "42501": "Give this user the rights to the registry's tables.",
    "53": "The database server has no room left: see its log, then run the command again.",
    "55P03": "Another writer holds its lock: wait for it, or end it, and run the command again.",
    "57014": "The database did not answer in time: look at what it does, then run the command again.",
    "25006": "The database takes no writes: is it a standby, or does the URL name the wrong host?",
}
"""By what a SQLSTATE begins with, or, since a refused connection has none, by a part of the message."""
_DAMAGED = ("42P01", "42703", "42804", "XX001", "XX002")
"""A table or column is missing or of another type, or data is damaged."""


class PostgresDatabase(Database):
    """One PostgreSQL database. Threads share a pool of connections; a forked child has one of its own."""

    upgrades_itself = False

    def __init__(self, url: URL, *, busy_timeout_ms: int, clock: Clock | None, may_make: bool = False) -> None:
        """With ``may_make`` a database without tables reads as empty, and the first write makes them.

        ``clock`` takes the place of the database's own, for tests.
        """
        self.name = URL.create("postgresql", None, None, url.host, url.port, url.database).render_as_string()
        self.details = {"host": url.host or "", "database": url.database or ""}
        self._url = url.set(drivername="postgresql+psycopg")
        self._busy_timeout_ms = busy_timeout_ms
        self._clock = clock
        self._may_make = may_make
        self._lock = ForkLock()
        self._engine: Engine | None = None
        self._pid = 0
        self._right_until_s = 0.0

    @override
    def exists(self) -> bool:
        with self._translated(), self._connected() as connection:
            connection.exec_driver_sql("SELECT 1")
        return True

    @override
    def create(self) -> None:
        """The database itself is made by its administrator."""

    @override
    @contextmanager
    def reading(self) -> Iterator[Connection]:
        if not self._is_right():
            with an_empty_registry() as connection:
                yield connection
            return
        with self._translated(), self._connected() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @override
    @contextmanager
    def writing(self, project: str) -> Iterator[Connection]:
        if not self._is_right():
            ensure_schema(self, create=True)
        with self._translated(), self._connected() as connection, connection.begin():
            numbers = {"schema": _SCHEMA_LOCK, "kind": _PROJECT_LOCK, "project": crc32(project.encode()) - 2**31}
            with self._patience(connection):
                connection.execute(_lock_project, numbers)
            # Under the lock: what was right a moment ago may have been upgraded, or restored, meanwhile.
            if connection.scalar(version_of_schema) == SCHEMA_VERSION:
                yield connection
                return
        self._right_until_s = 0.0
        ensure_schema(self, create=False)
        raise RegistryUnavailableError(
            f"The registry {self.name} was upgraded just now, and nothing was written.", hint="Run the command again."
        )

    @override
    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        with self._translated(), self._connected() as connection, connection.begin():
            with self._patience(connection):
                connection.execute(_lock_schema, {"schema": _SCHEMA_LOCK})
            yield connection

    @override
    @contextmanager
    def looking(self) -> Iterator[Connection]:
        with self._translated(), self._connected() as connection:
            yield connection

    @override
    def now(self, connection: Connection) -> ColumnElement[int]:
        if self._clock is not None:
            return literal(self._clock())
        return _now if connection.dialect.name == "postgresql" else literal(system_clock())

    @override
    def bring_up(self) -> None:
        """No other schema is written to or read."""

    @override
    def settle(self) -> None:
        self._may_make = False

    @override
    def close(self) -> None:
        with self._lock:
            if self._engine is not None and self._pid == os.getpid():
                self._engine.dispose()
            self._engine = None

    def _is_right(self) -> bool:
        """Tell whether the tables are there; raises as `ensure_schema` where they are of another version."""
        if time.monotonic() < self._right_until_s:
            return True
        if self._may_make:
            with self.looking() as connection:
                if not inspect(connection).has_table(VERSION_TABLE):
                    return False
        ensure_schema(self, create=self._may_make)
        self._right_until_s = time.monotonic() + CHECK_SECONDS
        return True

    @contextmanager
    def _patience(self, connection: Connection) -> Iterator[None]:
        """Wait for a lock, for which the server gives up by itself."""
        driver: Any = connection.connection.driver_connection
        before_s = driver.answer_seconds
        driver.answer_seconds += self._busy_timeout_ms / 1000
        try:
            yield
        finally:
            driver.answer_seconds = before_s

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        with self._pool().connect() as connection:
            yield connection

    def _pool(self) -> Engine:
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)  # the parent's connections, which it goes on using
                self._engine, self._pid = self._made(), os.getpid()
            return self._engine

    def _made(self) -> Engine:
        from psycopg.conninfo import make_conninfo

        from featurestore_registry.sql.impatient import ImpatientConnection

        settings = f"-c lock_timeout={self._busy_timeout_ms} -c idle_in_transaction_session_timeout=60000"
        url = self._url.difference_update_query(["options"])
        given = {**url.translate_connect_args(username="user", database="dbname"), **url.query}
        options = f"{settings} {self._url.query.get('options', '')}"
        conninfo = make_conninfo(
            "", **{"connect_timeout": CONNECT_SECONDS, "application_name": "featurestore", **given, "options": options}
        )
        engine = create_engine(
            url,
            creator=partial(ImpatientConnection.connect, conninfo),
            pool_size=POOL_SIZE,
            max_overflow=POOL_MORE,
            pool_timeout=CONNECT_SECONDS,
        )
        listen(engine, "checkout", _check_idle)
        listen(engine, "checkin", _note_use)
        return engine

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._translate(error) from error
        except PoolTimeoutError as error:
            raise RegistryUnavailableError(
                f"The registry {self.name} cannot be used: all {POOL_SIZE + POOL_MORE} connections are busy.",
                hint="Run the command again; if this lasts, look at what holds the database up.",
                **self.details,
            ) from error

    def _translate(self, error: DBAPIError) -> RegistryError:
        code = getattr(error.orig, "sqlstate", None) or ""
        why = " ".join(str(error.orig).split()).rstrip(".")
        if code.startswith(_DAMAGED):
            return RegistryFormatError(
                f"{self.name} is not a registry, or it is damaged: {why}.",
                hint="Check the URL; restore a damaged registry from a backup.",
                **self.details,
                code=code,
            )
        known = (hint for sign, hint in _HINTS.items() if code.startswith(sign) or sign in why)
        hint = next(known, "Check that the server runs and that the URL is right.")
        return RegistryUnavailableError(
            f"The registry {self.name} cannot be used: {why}.", hint=hint, **self.details, code=code
        )


def _note_use(connection: Any, record: Any) -> None:
    record.info["used_s"] = time.monotonic()


def _check_idle(connection: Any, record: Any, proxy: Any) -> None:
    """Replace a connection that a restart of the server broke while nobody used it.

    One that was used a moment ago is not asked: half of a read's time would be such questions.
    """
    if time.monotonic() - record.info.get("used_s", time.monotonic()) < IDLE_SECONDS:
        return
    try:
        connection.execute("SELECT 1")
        connection.rollback()
    except Exception as error:
        raise DisconnectionError from error


def open_postgres(
    url: str, *, create: bool, busy_timeout_ms: int, clock: Clock, credentials: Mapping[str, str]
) -> Database:
    """Open ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``; what the URL lacks comes from libpq's variables.

    Entries bear the database's time: the machines that write may disagree. Another ``clock`` than theirs is for tests.
    """
    try:
        import psycopg  # noqa: F401 - SQLAlchemy loads it by name
    except ImportError as error:
        raise RegistryUnavailableError(
            "A registry in PostgreSQL needs the package psycopg, which is not installed.",
            hint="Run `pip install '.[postgres]'` in a checkout.",
        ) from error
    try:
        parsed = make_url(url)
        if credentials:
            parsed = parsed.set(username=credentials.get("username"), password=credentials.get("password"))
        told = None if clock is system_clock else clock
        database = PostgresDatabase(parsed, busy_timeout_ms=busy_timeout_ms, clock=told, may_make=create)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise RegistryUnavailableError(  # the error may show the password
            "The registry's URL cannot be read.", hint="Write postgresql://USER:PASSWORD@HOST:PORT/DATABASE."
        ) from error
    try:
        if not create:
            ensure_schema(database, create=False)
    except RegistryError:
        database.close()
        raise
    return database
