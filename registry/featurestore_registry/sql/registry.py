"""The registry on a SQL database, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable

from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.interface import Registry
from featurestore_registry.records import Clock, system_clock
from featurestore_registry.sql.database import Database
from featurestore_registry.sql.definitions import SqlDefinitions
from featurestore_registry.sql.ledger import SqlLedger
from featurestore_registry.sql.sqlite import open_sqlite

BACKENDS: dict[str, Callable[..., Database]] = {"sqlite": open_sqlite}
FORMS = {"sqlite": "sqlite:///PATH with an absolute path, for example sqlite:////srv/registry.db"}
"""By the scheme of the URL: what opens it, and how the URL is written."""


class SqlRegistry(Registry):
    """Definitions and ledger in one SQL database. Threads, processes and forks may share it."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self.definitions = SqlDefinitions(database, clock)
        self.ledger = SqlLedger(database, clock)

    def close(self) -> None:
        """Release connections; calling it twice is allowed."""
        self._database.close()


def open_registry(
    url: str, *, create: bool = True, clock: Clock = system_clock, busy_timeout_ms: int = 30_000
) -> SqlRegistry:
    """Open the registry at a URL: ``sqlite:///PATH``, with PATH absolute (so four slashes) and taken as it is written.

    With ``create`` a missing registry is empty, and the first write makes it with its folder; without ``create`` it
    raises RegistryUnavailableError. An older schema is upgraded in both cases. A writer waits up to
    ``busy_timeout_ms`` for another. Raises RegistryUnavailableError when the file cannot be opened or the URL has
    another scheme, RegistryFormatError when it is not a registry, is damaged, or was written by a newer version.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme not in BACKENDS:
        # The URL may hold a password, so the message shows only its scheme.
        raise RegistryUnavailableError(
            f"No registry of the scheme {scheme!r} can be opened here.",
            hint=f"Write {', or '.join(FORMS[name] for name in BACKENDS)}.",
        )
    database = BACKENDS[scheme](url, create=create, busy_timeout_ms=busy_timeout_ms)
    return SqlRegistry(database, clock=clock)
