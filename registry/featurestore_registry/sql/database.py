"""What a registry needs from its SQL database. Each backend is a module of its own: `sqlite`, `postgres`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from featurestore_registry.errors import RegistryFormatError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Database(ABC):
    """One SQL database. Safe across threads, processes and forks.

    Every method raises RegistryUnavailableError when the database cannot be reached and RegistryFormatError when it
    holds something other than a registry, or is damaged; the driver's errors never leave it.
    """

    name: str
    """The database in messages, without credentials."""
    details: Mapping[str, str]
    """The same for the details of errors."""
    upgrades_itself: bool
    """Whether whoever needs the newest schema upgrades an older one. Not where servers of other versions may use it."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there is a database, with any content."""

    @abstractmethod
    def create(self) -> None:
        """Make an empty database where there is none."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Connection]:
        """Give a connection whose statements each see the newest committed state."""

    @abstractmethod
    def writing(self, project: str) -> AbstractContextManager[Connection]:
        """Give a transaction that excludes all other writers of a project, in every process, from its first moment.

        It commits at the end of the block and changes nothing when the block raises.
        """

    @abstractmethod
    def looking(self) -> AbstractContextManager[Connection]:
        """Give a connection to whatever is there, of any schema."""

    @abstractmethod
    def migrating(self) -> AbstractContextManager[Connection]:
        """Give a transaction as `writing` does, that excludes every other one, to change the schema."""

    @abstractmethod
    def now(self, connection: Connection) -> ColumnElement[int]:
        """Return an expression, to be selected on the connection, for what `now_us` returns."""

    def now_us(self, connection: Connection) -> int:
        """Return the instant that entries bear which are written now, in microseconds since 1970 UTC."""
        return int(connection.scalar(select(self.now(connection))) or 0)

    @abstractmethod
    def bring_up(self) -> None:
        """See to it that the newest schema is there, for what an earlier one does not have; raises as `writing`."""

    @abstractmethod
    def settle(self) -> None:
        """Apply the database's persistent settings; its schema exists by now."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; calling it twice is allowed."""


def utc_datetime(instant_us: int) -> datetime:
    """Return the aware UTC datetime of an instant in microseconds."""
    return EPOCH + timedelta(microseconds=instant_us)


def load_json(text: str) -> Any:
    """Return the document of a stored JSON text; raises RegistryFormatError when it is damaged."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise RegistryFormatError(
            f"A document of the registry is damaged: {error}.", hint="Restore the registry from a backup."
        ) from error
