"""What a registry needs from its SQL database. Each backend is a module of its own: `sqlite`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from featurestore_registry.errors import RegistryFormatError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Database(ABC):
    """One SQL database. Safe across threads, processes and forks.

    Every method raises RegistryUnavailableError when the database cannot be reached and RegistryFormatError when it
    holds something other than a registry, or is damaged; the driver's errors never leave it.
    """

    name: str
    """The database in messages, without credentials."""
    details: Mapping[str, str]
    """The same for the details of errors."""

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
    def writing(self) -> AbstractContextManager[Connection]:
        """Give a transaction that excludes all other writers, in every process, from its first moment.

        It commits at the end of the block and changes nothing when the block raises.
        """

    @abstractmethod
    def settle(self) -> None:
        """Apply the database's persistent settings; its schema exists by now."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; calling it twice is allowed."""


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
