"""The offline store: one append-only table of row versions per view and generation.

A table's columns: join keys, ``event_ts`` and ``created_ts`` (timestamps in UTC microseconds, created may be
null), ``fs_seq`` (int64, arrival order, unique in a table), ``fs_origin`` (``batch``, ``push`` or ``release``),
features. Rows within a file are in (event_ts, created_ts, fs_seq) order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.types import ValueType
from featurestore.types.columns import LOG_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

WATERMARK = "watermark"
"""The fact of a commit that says how far it read its source."""


@dataclass(frozen=True, slots=True)
class TableId:
    """One generation of one view's table, at ``{project}/{view}/{generation}``. Never reused."""

    project: str
    view: str
    generation: int

    def __str__(self) -> str:
        return f"{self.project}/{self.view}/{self.generation}"


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of a table besides `LOG_COLUMNS`."""

    join_keys: tuple[tuple[str, ValueType], ...]
    stored: tuple[tuple[str, ValueType], ...]

    @property
    def columns(self) -> dict[str, ValueType]:
        """Every column of the table, in its order."""
        return {**dict(self.join_keys), **LOG_COLUMNS, **dict(self.stored)}


MAX_SEQUENCE = 2**63 - 1


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of one table version."""

    path: str
    """Absolute path, as the engine reads it."""
    rows: int
    size_bytes: int
    sha256: str
    min_event_us: int
    max_event_us: int
    """Bounds of the event times, in milliseconds: no row is outside, but none need be on a bound."""
    max_created_us: int | None
    """Bound of the created times, likewise; None if the file has none."""
    max_sequence: int
    """Greatest ``fs_seq``, `MAX_SEQUENCE` if the log does not say it."""


@dataclass(frozen=True, slots=True)
class TableVersion:
    """What a table held right after one commit; it never changes."""

    table: TableId
    number: int
    files: tuple[DataFile, ...]
    """Sorted by path."""
    next_sequence: int
    """Greater than every ``fs_seq`` that was ever committed; the next rows start here or later."""
    rows_kept_since: int
    """A version since which no row left the table: every later commit added rows with greater ``fs_seq``, or merged
    files. This version's own number if nothing is known about the earlier ones."""
    identity: str
    """As in `Commit`."""

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What came and went between two versions."""

    added: tuple[DataFile, ...]
    """Files that hold new rows."""
    removed: tuple[DataFile, ...]
    """Files whose rows may have left the table; a merge removes none."""
    first_sequence: int = 0
    """The new rows of ``added`` are those with this ``fs_seq`` or a greater one."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a table."""

    number: int
    """The version that it made."""
    identity: str
    """Distinguishes it from every other commit with the same number: the SHA-256 of its log entry, in hex."""
    facts: Mapping[str, Any]
    """The facts from its writer; empty if it gave none, or was an earlier release."""
    at_us: int | None = None
    """When it was made, by its writer's clock; None if its entry does not say that."""
    merges: bool = False
    """Whether it only wrote rows anew that were there; its facts are then those of the commit before."""
    rows: int | None = None
    """How many rows came with it; None, as the next three, if its writer was an earlier release."""
    withdrawn: int | None = None
    """How many rows left with it."""
    first_sequence: int | None = None
    """The least ``fs_seq`` of the rows that came, None if there are none."""
    last_sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob in the store."""

    name: str
    modified_us: int
    """When it was written, by the store's clock."""
    is_whole: bool
    """False for a leftover of a `Blobs.put` that was cut off."""


class BlobReader(ABC):
    """Small contents with names, kept with a project's tables. Raises as `OfflineStore`.

    ``what`` names the content in messages: "the entity frame of training set 'first'".
    """

    @abstractmethod
    def get(self, name: str, what: str, *, sha256: str | None = None) -> bytes:
        """Return a content; raises DamagedFileError if it is missing or its hash is not ``sha256``."""

    @abstractmethod
    def list(self) -> list[Blob]:
        """Return all blobs, sorted by name."""


class Blobs(BlobReader):
    """Blobs that can be kept and removed."""

    @abstractmethod
    def put(self, name: str, content: bytes, what: str) -> None:
        """Keep a content, durably, in place of an earlier one: it exists completely or not at all."""

    @abstractmethod
    def delete(self, name: str, what: str) -> None:
        """Remove a blob if it exists."""


class TableReader(ABC):
    """Tables of files with versions. A version is pinned by its number and readable until it is cleaned.

    Raises as `OfflineStore`.
    """

    @abstractmethod
    def current(self, table: TableId) -> TableVersion | None:
        """Return the newest version, or None when the table does not exist."""

    @abstractmethod
    def version(self, table: TableId, number: int) -> TableVersion:
        """Return one version; raises TableVersionError when it no longer exists."""

    @abstractmethod
    def changes(self, table: TableId, after: int | None, until: int) -> TableChanges:
        """Return which rows changed after version ``after`` (None: from nothing) up to and with ``until``.

        Only the log entry of ``after`` must still exist, unless rows left the table since.
        """

    @abstractmethod
    def tables(self, project: str) -> list[TableId]:
        """Return every table of a project that holds data, sorted."""

    @abstractmethod
    def verify(self, files: Sequence[DataFile], *, again: bool = False) -> None:
        """Check the hashes of files, each once per process unless ``again``; raises DamagedFileError."""

    @abstractmethod
    def open(self, file: DataFile) -> pa.NativeFile:
        """Open a file of a table for reading at any place; the caller closes it. Raises DamagedFileError."""


class OfflineReader(TableReader):
    """Tables, who owns them, which commits made them, and a project's blobs."""

    @abstractmethod
    def find_commit(self, table: TableId, number: int | None = None) -> Commit | None:
        """Return one commit of a table, by default the newest; None if the table has no such version."""

    @abstractmethod
    def owner(self, project: str) -> str | None:
        """Return the identity of the project that owns the tables under a name, None before the first commit."""

    @abstractmethod
    def last_generation(self, project: str, view: str) -> int:
        """Return the last generation of a view that was ever claimed or written, 0 if there was none."""

    @abstractmethod
    def blobs(self, project: str, kind: str) -> BlobReader:
        """Return the place for one kind of a project's blobs; it need not exist yet."""

    @abstractmethod
    def blob_kinds(self, project: str) -> list[str]:
        """Return the kinds of blobs that a project has or had, sorted."""


class OfflineStore(OfflineReader):
    """Tables that are read and written.

    Safe to call from several processes: a commit either is the next version or raises ConcurrentCommitError.
    After `commit` returns, the version survives a power cut. Raises DiskFullError when no space is left,
    OfflineStoreError otherwise; driver errors never leave it.
    """

    @abstractmethod
    def staging(self, table: TableId) -> Path:
        """Return a folder on the table's own disk in which new files are written, creating it.

        It belongs to this store object while the object lives: `clean` leaves it alone.
        """

    @abstractmethod
    def write(self, table: TableId, rows: pa.Table) -> Path:
        """Write rows, with columns and order unchanged, to a new Parquet file in `staging`; returns its path."""

    @abstractmethod
    def commit(
        self,
        table: TableId,
        schema: TableSchema,
        *,
        base: int | None,
        add: Sequence[Path | DataFile],
        remove: Sequence[DataFile] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> TableVersion:
        """Make the next version from ``base`` (None: the table does not exist yet) in one commit.

        ``add`` are Parquet files in `staging`, which move into the table, or verified files of another table, which
        also stay there. When the commit fails, those in `staging` are still there: the caller may try again with them,
        and removes them. Syncs them, records their sizes and SHA-256 hashes, commits, syncs the log. The schema may
        have gained features or wider types since ``base``; files that are written again for a wider type are verified
        first: raises DamagedFileError, having changed nothing. ``facts`` (JSON) are kept with the commit, for
        `find_commit`: anything that the caller must know about its commit, such as offsets and identities.
        """

    @abstractmethod
    def merge(self, table: TableId, *, base: int, add: Sequence[Path], remove: Sequence[DataFile]) -> TableVersion:
        """Make the next version from ``base``, in which files in `staging` hold the rows of others of the table.

        Only the layout changes: schema, rows and `TableVersion.rows_kept_since` stay, and so do the facts of ``base``.
        The caller has verified the files. Otherwise as `commit`.
        """

    @abstractmethod
    def clean(self, table: TableId, *, keep: Sequence[int] | None, known: Sequence[int] | None = None) -> int:
        """Remove staged leftovers, and files that no version of ``keep`` or the newest one needs.

        With ``known`` also removes old log entries, except those of these versions: `find_commit` and `changes` need no
        more. ``keep=None`` drops the whole table. Returns the number of files removed, without log entries.
        """

    @abstractmethod
    def bind(self, project: str, identity: str, *, replace: bool = False) -> str:
        """Bind the tables under a name to a project, durably, and return the identity that owns them now.

        An owner stays, unless the name holds no table yet, or with ``replace``: the first commit decides.
        """

    @abstractmethod
    def claim(self, table: TableId) -> bool:
        """Take a generation that was never used; False if anyone has used it. It stays used after it is cleaned."""

    @abstractmethod
    def blobs(self, project: str, kind: str) -> Blobs:
        """Return the place for one kind of a project's blobs, to keep and remove some."""
