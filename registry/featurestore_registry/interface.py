"""The three small interfaces of a registry, each with the part that only reads. `testing` holds the suite for all.

What only reads receives a reader: the type checker then sees that it cannot write.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

from featurestore_registry.records import (
    Chain,
    Change,
    Document,
    JournalEntry,
    LedgerEntry,
    Revision,
    RevisionInfo,
    State,
)


class DefinitionsReader(ABC):
    """Versioned definitions, per project.

    A revision is a project's complete set of records; it never changes. Revisions count 1, 2, 3 …; a project
    nobody applied to has head 0 and no records. Safe to call from several threads and processes. Every method
    raises RegistryUnavailableError when the registry cannot be reached, RegistryFormatError when it was written by a
    newer version, and ValueError for a name or text with U+0000 or half a surrogate pair, which not every database
    keeps. (In a document U+0000 may stand: JSON escapes it.)
    """

    @abstractmethod
    def head(self, project: str) -> int:
        """Return the newest revision's number, 0 for an unknown project."""

    @abstractmethod
    def chain(self, project: str) -> Chain:
        """Return the hashes of all revisions, an empty chain for an unknown project."""

    @abstractmethod
    def read(self, project: str, revision: int | None = None) -> Revision:
        """Return one revision whole (the newest when None), as one consistent snapshot.

        Raises RecordNotFoundError for a revision that does not exist.
        """

    @abstractmethod
    def history(self, project: str, *, limit: int = 50) -> list[RevisionInfo]:
        """Return the newest revisions first, at most ``limit``; none for an unknown project."""

    @abstractmethod
    def projects(self) -> list[str]:
        """Return the names of all projects ever applied, sorted."""


class Definitions(DefinitionsReader):
    """Definitions that can be changed."""

    @abstractmethod
    def apply(
        self,
        project: str,
        expected: str,
        changes: Sequence[Change],
        *,
        author: str,
        message: str,
        commit: str,
    ) -> Chain:
        """Apply the changes in one transaction and return the chain that ends with the new revision.

        ``expected`` is the hash of the newest revision, empty for a project that was never applied: a number would
        let through a plan made before the registry was restored. Raises RevisionConflictError, having changed nothing,
        when the newest revision is another; of concurrent calls with the same expectation exactly one succeeds. A
        delete of a missing record raises RecordNotFoundError and changes nothing. Raises ValueError, before it reads
        anything, for empty ``changes``, two changes of one (kind, name), a put whose record is missing or of another
        project, kind or name, a delete with a record, and a document that JSON cannot hold (NaN, infinities).
        """


class LedgerReader(ABC):
    """An append-only book of what happened: runs, watermarks, saved sets, tokens, audit.

    Ledger writes never move a revision. Keys are versioned: 1, 2, 3 …. Per (project, kind, key) the newest
    1,000 entries are kept (the newest always). Safe to call from several threads and processes. Names and texts are
    refused as `DefinitionsReader` says.
    """

    def latest(self, project: str, kind: str, key: str) -> LedgerEntry | None:
        """Return the newest entry of a key, or None."""
        return next(iter(self.scan(project, kind, key=key, limit=1)), None)

    @abstractmethod
    def scan(self, project: str, kind: str, *, key: str | None = None, limit: int | None = None) -> list[LedgerEntry]:
        """Return entries, newest first.

        With ``key`` all kept versions of that key; without it the newest entry of each key of the kind.
        """


class Ledger(LedgerReader):
    """A ledger that takes new entries."""

    @abstractmethod
    def append(self, project: str, kind: str, key: str, document: Document, *, if_version: int | None = None) -> int:
        """Append the next version of a key and return its number, durably.

        With ``if_version`` (0: the key must not exist yet) raises LedgerConflictError, having written
        nothing, when the newest version is another; of concurrent calls exactly one succeeds.
        """


class JournalReader(ABC):
    """What happened, entry by entry, in the order in which it was written: commits, publishes, audit.

    Unlike a ledger's, entries have no versions, and none is given up for its number: only `Journal.forget` removes
    some, by their age. Safe to call from several threads and processes. Names are refused as `DefinitionsReader` says.
    """

    def exists(self) -> bool:
        """Return False where an earlier version's file has no journal yet: the first entry would upgrade it.

        What is written in passing, without anybody's order, asks this first.
        """
        return True

    @abstractmethod
    def scan(
        self,
        project: str,
        kind: str,
        *,
        key: str | None = None,
        after: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1_000,
    ) -> list[JournalEntry]:
        """Return the first ``limit`` entries after a cursor, oldest first, written in [since, until).

        The cursor of the last one leads on. An entry that became visible later than another of its project has the
        greater cursor: who follows the journal misses none. Raises ValueError for a negative limit or a time without a
        zone.
        """

    @abstractmethod
    def newest(self, project: str, kind: str, *, key: str | None = None, limit: int = 50) -> list[JournalEntry]:
        """Return the newest entries, newest first; raises ValueError for a negative limit."""


class Journal(JournalReader):
    """A journal that takes new entries."""

    @abstractmethod
    def append(self, project: str, kind: str, entries: Sequence[tuple[str, Document]]) -> list[int]:
        """Append a document for each key, all or none, durably; return their cursors."""

    @abstractmethod
    def forget(self, project: str, kind: str, before: datetime) -> int:
        """Remove the entries that were written before an instant, and return how many there were."""


class Governance(ABC):
    """What projects allow their editors. Only a server can hold them to it: who has the database can do anything."""

    @abstractmethod
    def policy(self, project: str) -> Document:
        """Return ``refuse`` and ``approve``, lists of classes of change, and ``groups``, members by owner."""

    @abstractmethod
    def set_policy(self, project: str, document: Document) -> None:
        """Set what `policy` returns."""

    @abstractmethod
    def proposals(self, project: str) -> list[Document]:
        """Return the applies that wait for a second person, newest first: ``plan``, ``by``, ``changes``, …

        ``writes`` are the changes whole, none of a proposal that an earlier server took.
        """

    @abstractmethod
    def approve(self, project: str, plan: str) -> Document:
        """Approve a proposal, named by how its id begins, and return it.

        Raises RecordNotFoundError where there is none, AuthError for the one who made it.
        """


class RegistryReader(ABC):
    """What a registry holds, to be read."""

    definitions: DefinitionsReader
    ledger: LedgerReader
    journal: JournalReader

    @abstractmethod
    def state(self, project: str) -> State:
        """Return how far a project is, cheaply: for those who look often. Raises as the methods of `definitions`."""

    def projects_with(self, kind: str) -> list[str]:
        """Return the projects whose ledger has entries of a kind, before their first apply too; else those applied."""
        return ["", *self.definitions.projects()]


class Registry(RegistryReader):
    """A connection to a registry: its definitions, its ledger and its journal, closed together."""

    definitions: Definitions
    ledger: Ledger
    journal: Journal
    governance: Governance | None = None
    """None where no server stands between the caller and the database."""

    @abstractmethod
    def close(self) -> None:
        """Release connections; calling it twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
