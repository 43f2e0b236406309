"""The registry on a SQL database, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, func, literal, select
from typing_extensions import override

from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Chain, Clock, State, check_storable, system_clock
from featurestore_registry.sql import tables
from featurestore_registry.sql.database import Database, utc_datetime
from featurestore_registry.sql.definitions import SqlDefinitions
from featurestore_registry.sql.journal import SqlJournal
from featurestore_registry.sql.ledger import SqlLedger
from featurestore_registry.sql.postgres import open_postgres
from featurestore_registry.sql.schema import ensure_schema, schema_of
from featurestore_registry.sql.sqlite import open_sqlite
from featurestore_registry.sql.tables import SCHEMA_VERSION

BACKENDS: dict[str, Callable[..., Database]] = {"sqlite": open_sqlite, "postgresql": open_postgres}
FORMS = {
    "sqlite": "sqlite:///PATH with an absolute path, for example sqlite:////srv/registry.db",
    "postgresql": "postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
}
"""By the scheme of the URL: what opens it, and how the URL is written."""


def _newest(project: ColumnElement[str]) -> ScalarSelect[Any]:
    # One project each: of several no database finds the greatest in an index.
    return select(func.max(tables.ledger.c.sequence)).where(tables.ledger.c.project == project).scalar_subquery()


_state = select(
    select(tables.project.c.revision).where(tables.project.c.project == bindparam("project")).scalar_subquery(),
    _newest(bindparam("project")),
    _newest(literal("")),
)


class SqlRegistry(Registry):
    """Definitions, ledger and journal in one SQL database. Threads, processes and forks may share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.definitions: SqlDefinitions = SqlDefinitions(database)
        self.ledger = SqlLedger(database)
        self.journal = SqlJournal(database)

    @override
    def state(self, project: str) -> State:
        check_storable(project)
        with self._database.reading() as connection:
            asked = _state.add_columns(self._database.now(connection))
            number, own, everyones, now_us = connection.execute(asked, {"project": project}).one()
            # Nothing is hashed but the newest revision, where the chain is known.
            chain = Chain() if number is None else self.definitions.chain_on(connection, project)
        return State(chain.head, chain.number, max(own or 0, everyones or 0), utc_datetime(now_us))

    @override
    def projects_with(self, kind: str) -> list[str]:
        keys = tables.ledger_key.c
        with self._database.reading() as connection:
            return list(connection.scalars(select(keys.project).where(keys.kind == kind).distinct()))

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""
        self._database.close()


def open_registry(
    url: str,
    *,
    create: bool = True,
    clock: Clock = system_clock,
    busy_timeout_ms: int = 30_000,
    credentials: Mapping[str, str] | None = None,
) -> SqlRegistry:
    """Open the registry at a URL, in one of the `FORMS`.

    With ``create`` a missing registry is empty, and the first write makes it (a file with its folder, a database's
    tables); without ``create`` it raises RegistryUnavailableError. An older schema of a file is upgraded in both cases,
    one that machines share only by `upgrade_registry`. A writer waits up to ``busy_timeout_ms`` for another.
    ``credentials`` are ``username`` and ``password`` of a URL that lacks them. Raises RegistryUnavailableError when it
    cannot be opened or the URL has another scheme, RegistryFormatError when it is not a registry, is damaged, or has
    the schema of another version.
    """
    return SqlRegistry(opened(url, credentials, create=create, clock=clock, busy_timeout_ms=busy_timeout_ms))


def upgrade_registry(url: str, *, credentials: Mapping[str, str] | None = None) -> tuple[str | None, str]:
    """Bring the registry at a URL to this version's schema, and return the one that it had and the one that it has.

    None for a database that had no tables: they are made. Raises as `open_registry`.
    """
    database = opened(url, credentials, create=True, clock=system_clock, busy_timeout_ms=30_000)
    try:
        before = schema_of(database)
        ensure_schema(database, create=True, upgrade=True)
        return before, SCHEMA_VERSION
    finally:
        database.close()


def opened(
    url: str, credentials: Mapping[str, str] | None, *, create: bool, clock: Clock, busy_timeout_ms: int
) -> Database:
    """Return the database at a URL; as `open_registry`."""
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in BACKENDS:
        # The URL may hold a password, so the message shows only its scheme.
        raise RegistryUnavailableError(
            f"No registry of the scheme {scheme!r} can be opened here.",
            hint=f"Write {', or '.join(FORMS[name] for name in BACKENDS)}.",
        )
    more = {} if scheme == "sqlite" else {"credentials": credentials or {}}
    return BACKENDS[scheme](url, create=create, busy_timeout_ms=busy_timeout_ms, clock=clock, **more)
