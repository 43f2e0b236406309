"""The engine: everything that touches many rows, as abilities of a few methods each.

`Sources` reads what users' files hold, `Log` writes and reads a view's offline table, `Joins` makes training sets,
`Queries` runs SQL, `Profiles` counts what columns hold, `Checks` compares rows with what is expected. Each ability
raises SourceSchemaError and SourceFileError for
what is wrong with a source, DamagedFileError for a file of the offline store, DiskFullError, and EngineError for the
rest; a driver's own errors never leave it. It changes no store: it writes files into folders that the caller names, and
a commit of the offline store takes them over. Memory stays within the configured limit: what does not fit is spilled to
disk. User SQL sees the given sources and views and nothing else: no files, no network. Not safe across threads: open an
engine for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.engine.checks import Checks
from featurestore.engine.profiles import Profiles
from featurestore.types import ValueType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

AsOf = Literal["event", "available"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source as it is now."""

    path: str
    state: str
    """Changes when the file's content may have changed. Only the engine knows what it means."""


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """One column of a source or of a view's SQL."""

    name: str
    native_type: str
    """As the engine or the file calls it, for messages."""
    value_type: ValueType | None
    """Our narrowest type that holds it, or None where there is none."""


@dataclass(frozen=True, slots=True)
class Span:
    """Rows to read: event time in [start_us, end_us), and, if given, created after an instant or in certain files."""

    start_us: int
    end_us: int
    created_after_us: int | None = None
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class StageRequest:
    """Read a view's source rows and write those that its log does not hold yet."""

    view: FeatureView
    spans: tuple[Span, ...]
    """A row in any of the spans is read, once."""
    now_us: int
    """Rows with a later event or created time wait for a later run."""
    log_files: tuple[str, ...]
    """The table's files, to compare with."""
    first_sequence: int
    """Least ``fs_seq`` of the new rows. Each row gets its own, and a row that arrived later a greater one; there may be
    gaps."""
    folder: Path
    """The folder to write to."""
    counts_later: bool = False
    """Whether to count rows with an event time after ``now_us`` as waiting even if no span holds them."""


@dataclass(frozen=True, slots=True)
class StagedRows:
    """What `Log.stage` wrote, and where the other rows went."""

    paths: tuple[Path, ...]
    """The written files, each in the table's order; none when no row was new."""
    appended: int
    read: int
    duplicates: int
    """Rows that were dropped, because a later one has the same keys and times; of events those that repeat another."""
    unchanged: int
    """Rows that are equal to their newest version in the log; of events the others whose id the log has."""
    null_keys: int
    null_times: int
    waiting: int
    """Rows dated after now."""
    min_event_us: int | None
    """The least event time of the appended rows."""
    max_created_us: int | None
    """Greatest created time among the rows read that were not waiting."""
    unusable: int = 0
    """Events without an id, or with a text that is too long to be kept."""
    conflicts: int = 0
    """Events among ``duplicates`` and ``unchanged`` with other values than the one of their id that counts."""
    conflicts_in_source: int = 0
    """Those of which the source holds the id with other values, too: a rebuild does not end them."""


@dataclass(frozen=True, slots=True)
class JudgedEvents:
    """Which of some events are new, by their ids; arrays with an item for each event, in their order."""

    is_new: npt.NDArray[np.bool_]
    known_as: npt.NDArray[np.int64]
    """The ``fs_seq`` of the event in the log that it is; -1 for one that is new, or repeats another new one."""
    conflicts: npt.NDArray[np.bool_]
    """Those that are not new and have other values than the event that counts."""


EVENT_AT, KNOWN_AT, NUMBER = "fs_event", "fs_known", "fs_number"
"""Columns of `Log.events`."""
GONE_EVENT, GONE_CREATED = "fs_gone_event_ts", "fs_gone_created_ts"
"""Columns of `Log.replacements`: the times of the row that is gone, created never null."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What `Log.withdraw` found."""

    rows: int
    """Rows that the source no longer holds; events also where it holds their ids with other values."""
    removed: tuple[str, ...]
    """The log's files that hold such rows; the commit removes them."""
    written: tuple[Path, ...]
    """Files with the rows that stay, for the same commit to add; empty on a dry run."""


@dataclass(frozen=True, slots=True)
class ViewJoin:
    """One view of a point-in-time join."""

    name: str
    """Unique in the join; the view's own name or its alias."""
    view: FeatureView
    files: tuple[str, ...]
    """The table version's files."""
    key_columns: Mapping[str, str]
    """Frame column of each join key."""
    features: tuple[str, ...]
    """In output order, each once."""
    as_of: AsOf
    is_begun: bool = True
    """False where the view never had rows, so that nobody knows of any: a windowed count is null then, not 0."""


REASONS = {
    "null_key": "null key",
    "no_entity": "no such entity",
    "nothing_before": "nothing before",
    "not_yet_available": "not yet available",
    "expired": "expired",
}
"""Why an entity row has no candidate, the first that applies, in words for people."""


@dataclass(frozen=True, slots=True)
class JoinFacts:
    """What a join knows about one view, for warnings and certificates."""

    view: str
    nulls: Mapping[str, int]
    """Entity rows without a candidate, for each of `REASONS`."""
    greatest_age_us: int | None
    from_future: int | None
    """Chosen rows whose event time or availability is after the entity row's time: must be 0. None for windows."""
    own_events: int = 0
    """Entity rows of a windowed view at whose very instant an event happens, which counts in them."""
    overflowed: Mapping[str, int] = field(default_factory=dict)
    """Entity rows whose sum of integers 64 bits do not hold, by windowed feature."""
    held_back: int = 0
    """Entity rows of a windowed view in which none of the events that had happened was available yet."""


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What only some engines can do: callers check it before they call."""

    reads_sql: bool = False
    """Whether its `Queries` work."""
    lists_dropped_rows: bool = False
    """Whether `Sources.dropped` works."""


class Sources(ABC):
    """What the files of sources hold."""

    @abstractmethod
    def files(self, source: ParquetSource) -> tuple[SourceFile, ...]:
        """Return the files of a source, sorted by path; raises SourceFileError when there are none."""

    @abstractmethod
    def reads(self, source: ParquetSource, path: Path) -> bool:
        """Tell whether `files` would return a file at an absolute path, also through a source's links."""

    @abstractmethod
    def digest(self, file: SourceFile) -> str:
        """Return a hash of the content of a source's file; raises SourceFileError when it cannot be read."""

    @abstractmethod
    def columns(self, source: FeatureView | ParquetSource) -> tuple[SourceColumn, ...]:
        """Return the columns of a source, or of what a view reads, from footers only.

        Raises SourceSchemaError when files of one source disagree in a way that no wider type covers.
        """

    @abstractmethod
    def check_conditions(self, view: FeatureView) -> Mapping[str, int]:
        """Check the conditions of a view's aggregations against its schema, and on some rows of its source.

        Returns those that are true of none of the rows, each with how many rows that were, at least one. Raises
        SourceSchemaError naming one that does not fit, or that can be computed of none of the rows.
        """

    @abstractmethod
    def first_event_us(self, view: FeatureView) -> int | None:
        """Return the least event time in the view's source, None when there is none."""

    @abstractmethod
    def dropped(self, view: FeatureView, rows: int) -> pa.Table:
        """Return at most ``rows`` rows of a view's source that a run does not take, grouped by reason, newest first.

        Shares ``rows`` evenly among the reasons, as far as each has enough.

        Columns: ``fs_dropped`` (no event time, null key, or duplicate as `StagedRows` counts them), join
        keys, stored fields, ``event_ts``, ``created_ts``. Raises SourceError.
        """


class Log(ABC):
    """A view's offline table: what a run adds and removes, and its newest rows."""

    @abstractmethod
    def stage(self, request: StageRequest) -> StagedRows:
        """Write the new rows of a view's source into sorted Parquet files; the same commit adds all of them."""

    @abstractmethod
    def latest(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        first_sequence: int = 0,
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the newest row of each entity: keys, event_ts, created_ts, stored fields.

        Newest by (event_ts, created_ts with null as event_ts, fs_seq) among the rows of ``files``: the table's, or
        those that changed, where compare-and-set does the rest. Ignores rows with a smaller ``fs_seq`` than
        ``first_sequence``, and rows whose event or created time is after ``until_us``. In no particular order.
        """

    @abstractmethod
    def entities(self, view: FeatureView, files: Sequence[str], *, since_us: int, until_us: int) -> tuple[int, int]:
        """Return how many entities there are, and how many have a row with event time in [since, until].

        For the second count the row's created time must not be after ``until`` either.
        """

    @abstractmethod
    def pushed(self, files: Sequence[str]) -> int:
        """Return how many rows of ``files`` were pushed."""

    @abstractmethod
    def events(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        after_sequence: int = -1,
        since_us: int | None = None,
        until_us: int | None = None,
        by_entity: bool = False,
        of: pa.Table | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield the events of a view with aggregations that come after a number, as the online store takes them.

        Columns: join keys, then int64 `EVENT_AT`, `KNOWN_AT` (created, or else event time) and `NUMBER` (``fs_seq``),
        then ``v0``, ``v1``, ... for the columns of `windows.layout` without the event time (float64, int64 or
        binary), and ``c0``, ... for its conditions (bool). Ordered by number, or with ``by_entity`` by key and event
        time. Only events that happened after ``since_us``; ``until_us`` as in `latest`; ``of`` holds the keys of those
        asked for.
        """

    @abstractmethod
    def judge(self, view: FeatureView, files: Sequence[str], events: pa.Table) -> JudgedEvents:
        """Compare events on their way into the log with it, and with one another, by their ids.

        ``events`` have the log's columns without number and origin; the view has an ``event_id``. ``files`` hold every
        event of the log at most a day from one of them.
        """

    @abstractmethod
    def repeats(self, view: FeatureView, files: Sequence[str], others: Sequence[str]) -> bool:
        """Tell whether an event of some files of the log is, by its id, also one of others."""

    @abstractmethod
    def withdraw(
        self, view: FeatureView, files: Sequence[str], span: Span, *, now_us: int, folder: Path | None
    ) -> Withdrawal:
        """Find the batch rows of the log in [start, end) whose keys and times the source no longer holds.

        All versions of such a row count; pushed rows never do. Of a view with aggregations a pushed event counts in
        whose place a run at ``now_us`` takes another one: the source holds its id with other values only, and no other
        event of the log is at most a day from that. With a ``folder`` their files are written there again without them;
        without one this is a dry run. Uses only start and end of ``span``.
        """

    @abstractmethod
    def replacements(
        self,
        view: FeatureView,
        files: Sequence[str],
        *,
        removed: Sequence[str],
        added: Sequence[str],
        until_us: int | None = None,
        batch_rows: int,
    ) -> Iterator[pa.RecordBatch]:
        """Yield each row that went with ``removed`` and is not in ``added``, and the newest row left of its entity.

        ``files`` are the table's now. Columns: keys, `GONE_EVENT`, `GONE_CREATED` (null created as event), then
        event_ts, created_ts and stored fields of the newest row (as in `latest`); a null event_ts: there is none.
        """

    @abstractmethod
    def compact(self, view: FeatureView, files: Sequence[str], folder: Path) -> tuple[Path, ...]:
        """Write the rows of a table's files into few files, each in the table's order, with every column unchanged."""


class Join(ABC):
    """One point-in-time join: its rows, and facts about them. Ask for either first, or for one only."""

    @abstractmethod
    def batches(self) -> pa.RecordBatchReader:
        """Return one row per frame row, in the frame's order: for each view and feature ``{view}__{feature}``.

        Chooses rows before it returns, and reads the features while the caller reads the result.
        """

    @abstractmethod
    def facts(self) -> tuple[JoinFacts, ...]:
        """Return what a certificate states about each view, by queries that are independent of the choice.

        Raises CertificateError when a chosen row belongs to another entity or is expired, or when a row that should
        have been chosen was not.
        """

    @abstractmethod
    def chosen(self) -> list[pa.Array | None]:
        """Return for each view the ``fs_seq`` of each entity row's answer, null where it has none; None for windows."""

    @abstractmethod
    def windowed(self) -> tuple[JoinFacts, ...]:
        """Return the facts about the views with aggregations alone, which cost nothing once there are batches."""


class Joins(ABC):
    """Features joined to entity rows."""

    @abstractmethod
    def conditions(self, view: FeatureView, events: pa.Table) -> Mapping[str, pa.Array]:
        """Tell for each event whether each condition of the view's aggregations is true of it, never null.

        ``events`` has the log's columns: join keys, event_ts, created_ts and stored fields.
        """

    @abstractmethod
    def join(self, frame: pa.Table, time_column: str, views: Sequence[ViewJoin], *, batch_rows: int) -> Join:
        """Return the join of features to entity rows at each row's time, by the rules of `docs/explanation/time.md`.

        ``frame`` holds the key columns (declared types) and ``time_column`` (timestamp[us, UTC], no nulls); the join
        reads nothing yet. A batch holds at most ``batch_rows`` rows.
        """

    @abstractmethod
    def chosen(
        self, frame: pa.Table, time_column: str, view: ViewJoin, *, since: Sequence[tuple[int, int]]
    ) -> pa.Array:
        """Return as `Join.chosen` of one view without windows, where rows count only from some instants on.

        ``since`` are pairs of a number and an instant, ascending by number: a row whose ``fs_seq`` is the number or
        greater, up to the next pair, counts from that instant on at the earliest. It changes no order of rows.
        """

    @abstractmethod
    def join_stored(
        self, frame_files: Sequence[str], time_column: str, views: Sequence[ViewJoin], folder: Path
    ) -> tuple[Path, ...]:
        """Join features to the rows of stored Parquet files, for frames that one process does not hold.

        Returns a new Parquet file in ``folder`` for each frame file, in their order: what `Join.batches` yields for the
        frame file's rows, in order. A frame file may have further columns. Leaves no file behind when it fails.
        """


class Queries(ABC):
    """SQL over sources and views, and nothing else; only with `EngineCapabilities.reads_sql`."""

    @abstractmethod
    def query(
        self,
        sql: str,
        sources: Mapping[str, ParquetSource],
        views: Mapping[str, tuple[FeatureView, Sequence[str]]],
        *,
        what: str = "the entity frame",
    ) -> pa.Table:
        """Return the result of one SELECT over sources and views by name; messages call it the SQL of ``what``.

        A view (with its table's files) has join keys, ``event_ts`` and stored fields, and only the last correction of
        each row. Raises EntityFrameError with the engine's message for SQL that does not run, and SourceFileError and
        DamagedFileError for the files that it reads.
        """

    @abstractmethod
    def span(
        self, view: FeatureView, files: Sequence[str], start_us: int, end_us: int, *, batch_rows: int
    ) -> pa.RecordBatchReader:
        """Return a view's rows with event time in [start, end), ordered by event time and keys: columns as above."""


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine: its abilities, and which optional ones it has."""

    sources: Sources
    log: Log
    joins: Joins
    queries: Queries
    profiles: Profiles
    checks: Checks
    capabilities: EngineCapabilities
    prepare: Callable[[], None]
    """Prepares the next call in the background, next to the caller's other work; may do nothing."""
