"""The registry on a SQL database, and how it is opened."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Clock, system_clock
from featurestore_registry.sql.definitions import SqlDefinitions
from featurestore_registry.sql.engine import SqliteDatabase
from featurestore_registry.sql.ledger import SqlLedger
from featurestore_registry.sql.schema import ensure_schema

_SQLITE = "sqlite:///"


class SqlRegistry(Registry):
    """Definitions and ledger in one SQL database. Threads, processes and forks may share it."""

    def __init__(self, database: SqliteDatabase, *, clock: Clock) -> None:
        self._database = database
        self.definitions = SqlDefinitions(database, clock)
        self.ledger = SqlLedger(database, clock)

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""
        self._database.close()


def open_registry(
    url: str, *, create: bool = True, clock: Clock = system_clock, busy_timeout_ms: int = 30_000
) -> SqlRegistry:
    """Open the registry at ``sqlite:///PATH``, with PATH absolute (so four slashes) and taken as it is written.

    With ``create`` a missing registry is empty, and the first write makes it with its folder; without ``create`` it
    raises RegistryUnavailableError. An older schema is upgraded in both cases. A writer waits up to
    ``busy_timeout_ms`` for another. Raises RegistryUnavailableError when the file cannot be opened or the URL has
    another scheme, RegistryFormatError when it is not a registry, is damaged, or was written by a newer version.
    """
    hint = "Known is sqlite:///PATH with an absolute path, for example sqlite:////srv/registry.db."
    if not url.startswith(_SQLITE):
        # The URL may hold a password, so the message shows only its scheme.
        scheme = url.partition("://")[0] if "://" in url else ""
        raise RegistryUnavailableError(f"No registry of the scheme {scheme!r} can be opened here.", hint=hint)
    path = Path(url.removeprefix(_SQLITE))
    if not path.is_absolute():
        raise RegistryUnavailableError(f"The registry's path {str(path)!r} is not absolute.", hint=hint)
    database = SqliteDatabase(path, busy_timeout_ms=busy_timeout_ms)
    if create and not database.exists():
        database.make_when_written(partial(ensure_schema, database, create=True))
    else:
        ensure_schema(database, create=create)
    return SqlRegistry(database, clock=clock)
