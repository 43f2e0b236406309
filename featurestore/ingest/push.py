"""Push: a caller's rows go into the offline log and straight online.

Offline comes first: if a crash leaves rows committed but not online, the next materialization publishes them
(`docs/decisions/push-offline-first.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from featurestore.consistency.belonging import Mismatch, begin_part, compare_part, foreign_part, refuse
from featurestore.consistency.moments import once_a_moment
from featurestore.definitions import PushSource
from featurestore.errors import (
    FeatureStoreError,
    InputError,
    OnlineStoreUnavailableError,
    RevisionConflictError,
)
from featurestore.ingest.ahead import Ahead
from featurestore.ingest.events import EventCounts, EventWriter, PushedEvents, bring_online, check_events
from featurestore.ingest.expecting import check_expected
from featurestore.ingest.group_commit import Pushed, commit_rows
from featurestore.ingest.noting import notes_of
from featurestore.ingest.rows import CheckedRows, PushedRows, read_rows
from featurestore.ledger.runs import SHOWN_KEYS
from featurestore.offline.interface import TableId
from featurestore.online.interface import OnlineCounts, WriteResult
from featurestore.online.records.encoder import RecordEncoder
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.steps import crash_point, reached, step
from featurestore.types.times import MICROSECOND
from featurestore.workspace import Readers, Workspace

SCHEMA_WRITTEN = crash_point("push.schema", "the schema of pushed records is online, no record yet")
BATCH_WRITTEN = crash_point("push.batch", "one more batch of pushed records is online")

BATCH_ROWS = 10_000
"""How many rows are encoded and sent at once."""

To = Literal["both", "online", "offline"]

_ahead: WeakKeyDictionary[Workspace, dict[TableId, Ahead]] = WeakKeyDictionary()
"""What was pushed and is not available yet, by view with windows."""

ONLINE_ONLY = (
    "Pushed online only: these rows are in no training set, and republishing with --authoritative removes them."
)


@dataclass(frozen=True, slots=True)
class OfflineCounts:
    """The committed rows of one view."""

    rows: int
    version: int | None
    """The table version that holds them; None where there was nothing to commit."""


@dataclass(frozen=True, slots=True)
class PushedView:
    """What a push did to one view; None for a store that the rows did not go to."""

    online: OnlineCounts | None = None
    offline: OfflineCounts | None = None


@dataclass(frozen=True, slots=True)
class PushedWindows(PushedView):
    """What a push did to one view with aggregations."""

    events: EventCounts = field(default_factory=EventCounts)


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did, by feature view."""

    source: str
    rows: int
    to: To
    views: Mapping[str, PushedView]
    note: str | None = None
    """What to know about the push: rows that only went online, views of the source that did not take the rows."""

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return asdict(self)


class PushTarget:
    """The views that a push source feeds, at one revision, with the encoders to write to them."""

    def __init__(self, snapshot: Snapshot, source: str) -> None:
        """Raises NotFoundError for an unknown source, InputError for one that no plain view reads."""
        self.source = snapshot.get(PushSource, source)
        reading = [r for r in snapshot.views.values() if self.source in r.view.sources]
        self.views = tuple(registered for registered in reading if registered.view.sql is None)
        self.by_sql = tuple(registered.view.name for registered in reading if registered.view.sql is not None)
        if not self.views:
            by_sql = ", ".join(self.by_sql)
            why = f"only by SQL: {by_sql}" if by_sql else "by no feature view"
            raise InputError(
                f"Rows pushed to {source!r} would go nowhere: the source is read {why}.",
                hint="Declare a feature view without sql= whose source it is, and run `fs apply`.",
                source=source,
            )
        plain = [r for r in self.views if not r.view.aggregations]
        self.encoders = {r.view.name: RecordEncoder(r.layout) for r in plain if r.view.online}
        names = (name for registered in self.views for name in registered.view.stored_types)
        batch = self.source.batch_source
        self.needed = tuple(dict.fromkeys([*names, batch.timestamp_field]))
        self.taken = (*self.needed, batch.created_timestamp_field)


class Push:
    """One push, checked but not yet done: `commit`, wait for the futures, `confirm`, `publish`; `result` sums up.

    Making one raises InputError, EntityKeyError and ValueTypeError for rows that do not fit; nothing is written then.
    """

    def __init__(self, workspace: Workspace, target: PushTarget, rows: PushedRows, to: To) -> None:
        self._workspace, self._target, self._to = workspace, target, to
        windowed = [registered.view.name for registered in target.views if registered.view.aggregations]
        if to == "online" and windowed:
            raise InputError(
                f"Events cannot be pushed to {windowed[0]!r} online only: its windows are made of the log.",
                hint="Push them to 'both'.",
            )
        if to == "online" and not target.encoders:
            raise InputError(
                f"No view that reads {target.source.name!r} is online.", hint="Push to='offline', or set online=True."
            )
        rows.require(target.needed, target.source.name)
        self._ignored = rows.others(target.taken)
        now_us = self._now_us = workspace.clock()
        until_us = now_us + workspace.settings.server.max_clock_skew // MICROSECOND
        self.row_count = rows.row_count
        self._rows = {r.view.name: rows.of_view(r.view, now_us=now_us, until_us=until_us) for r in target.views}
        self._unmet = [told for r in target.views for told in check_expected(r.view, self._rows[r.view.name])]
        for name in windowed:
            check_events(self._rows[name])
        self._given = {
            r.view.name: PushedEvents(workspace, r) if r.view.aggregations else Pushed(workspace, r)
            for r in target.views
        }
        self._versions: dict[str, Future[int]] = {}
        self._done: dict[str, PushedView] = {}
        self.folded: dict[str, int] = {}
        """How many records of each view with windows had newest events put into their tiles."""
        self._left: list[str] = []
        """Views whose online part does not have the events yet."""
        self._foreign: dict[str, tuple[bytes, ...]] = {}
        """Keys of each view with windows that hold something else."""

    def commit(self) -> list[Future[int]]:
        """Begin to commit offline; returns the futures to wait for before `confirm`.

        With nothing changed, raises MismatchError where a store is another project's or history's, and InputError where
        too many events lie after now.
        """
        if self._to != "offline":
            for registered in self._target.views:
                if registered.view.online:
                    _check(self._workspace, registered, is_committed=self._to == "both")
        for registered in self._target.views:
            if registered.view.aggregations and registered.view.online:
                ahead = _ahead.setdefault(self._workspace, {}).setdefault(registered.table, Ahead())
                ahead.take(self._rows[registered.view.name], self._now_us)
        if self._to != "online" and self.row_count:
            tables = {name: rows.table() for name, rows in self._rows.items()}
            for registered in self._target.views:
                name = registered.view.name
                writer = EventWriter if registered.view.aggregations else None
                self._versions[name] = commit_rows(self._given[name], tables[name], writer)
        return list(self._versions.values())

    def confirm(self) -> None:
        """Note what was committed; raises the error of a commit that failed, naming its view."""
        failed = [view for view, version in self._versions.items() if version.exception() is not None]
        for registered in self._target.views:
            if registered.view.name in self._versions.keys() - failed:
                notes_of(self._workspace).committed(registered.table)
        for view, version in self._versions.items():
            if view not in failed:
                given = self._given[view]
                if isinstance(given, PushedEvents):
                    counts = OfflineCounts(given.counts.appended, version.result())
                    self._done[view] = PushedWindows(offline=counts, events=given.counts)
                else:
                    self._done[view] = PushedView(offline=OfflineCounts(self.row_count, version.result()))
        for view in failed:
            with self._named(view, "offline"):
                self._versions[view].result()

    def publish(self, advance: Callable[[int], object] = lambda rows: None) -> None:
        """Write online, if this push goes there; calls ``advance`` with the rows of each batch that is written."""
        for registered in self._target.views:
            view = registered.view.name
            nothing = PushedWindows() if registered.view.aggregations else PushedView()
            done = self._done.get(view, nothing)
            if done.offline is None and self._to != "online":
                done = replace(nothing, offline=OfflineCounts(0, None))
            if self._to != "offline" and view in self._target.encoders:
                with self._named(view, "online"):
                    written = self._write(registered, self._target.encoders[view], self._rows[view], advance)
                    done = PushedView(written, done.offline)
            elif self._to == "both" and registered.view.aggregations and registered.view.online:
                with self._named(view, "online"):
                    done = replace(done, online=self._follow(registered))
            if done != nothing:
                self._done[view] = done

    def result(self) -> PushResult:
        """Return what was done."""
        notes = [ONLINE_ONLY] if self._to == "online" else []
        notes += self._unmet
        if self._target.by_sql:
            names, source = ", ".join(self._target.by_sql), self._target.source
            notes.append(
                f"These views did not take the rows, which would have to pass through SQL: {names}. They change when "
                f"`fs materialize` reads {source.batch_source.name!r}."
            )
        if self._ignored:
            names = ", ".join(self._ignored[:SHOWN_KEYS])
            notes.append(f"No view that takes the rows has these columns, which were ignored: {names}.")
        for name in self._left:
            notes.append(
                f"The events of {name} are in the log, and online with the next `fs materialize --view {name}`."
            )
        for name, keys in self._foreign.items():
            shown = ", ".join(key.decode() for key in keys[:SHOWN_KEYS])
            notes.append(
                f"Events of {name} did not go online where {len(keys)} keys hold something else: {shown}. Delete "
                f"those, and run `fs materialize --republish --view {name}`."
            )
        note = " ".join(notes) or None
        return PushResult(self._target.source.name, self.row_count, self._to, dict(sorted(self._done.items())), note)

    def _follow(self, registered: RegisteredView) -> OnlineCounts | None:
        """Bring the pushed events online; None where only a run can do it, because the online part has no mark."""
        given = self._given[registered.view.name]
        assert isinstance(given, PushedEvents)
        if self.row_count:
            brought = bring_online(self._workspace, registered, given.reached[0])
            self.folded[registered.view.name] = brought.folded
            if not brought.is_online:
                self._left.append(registered.view.name)
                return None
            if brought.foreign:
                self._foreign[registered.view.name] = brought.foreign
        return OnlineCounts(written=given.counts.appended)

    def _write(
        self, registered: RegisteredView, encoder: RecordEncoder, rows: CheckedRows, advance: Callable[[int], object]
    ) -> OnlineCounts:
        if not self.row_count:
            return OnlineCounts()
        online = self._workspace.online
        _begin(self._workspace, registered, encoder)
        results: list[WriteResult] = []
        for writes in rows.writes(encoder, BATCH_ROWS):
            done = online.write(writes, now_us=self._workspace.clock())
            reached(BATCH_WRITTEN)
            results += done
            if self._to == "online":
                of = zip(writes, done, strict=True)
                written = [write.record for write, became in of if became is WriteResult.WRITTEN]
                notes_of(self._workspace).pushed_online(registered.table, written)
            advance(len(writes))
        return OnlineCounts(*map(results.count, WriteResult))

    @contextmanager
    def _named(self, view: str, where: str) -> Iterator[None]:
        """Add the view, and what was done before, to errors."""
        try:
            yield
        except FeatureStoreError as error:
            committed = [name for name, done in self._done.items() if done.offline is not None]
            done = f" Committed offline before: {', '.join(committed)}." if committed else ""
            raise type(error)(
                f"Pushing to feature view {view!r} failed {where}: {error.message}{done}",
                hint=error.hint,
                **{**error.details, "view": view, "committed": committed},
            ) from error


def push(workspace: Workspace, source_name: str, rows: Any, to: To = "both") -> PushResult:
    """Push rows of a PushSource to every feature view that reads it without SQL.

    See `FeatureStore.push`. Everything is checked before anything is written: raises NotFoundError, InputError,
    EntityKeyError and ValueTypeError (naming column and row), then what the stores raise, naming the view.
    """
    if to not in ("both", "online", "offline"):
        raise InputError(f"Rows are not pushed to {to!r}.", hint="Push to 'both', 'online' or 'offline'.")
    checked = read_rows(rows)
    try:
        return _push(workspace, source_name, checked, to)
    except RevisionConflictError:  # an apply came in between; it may ask for other columns
        return _push(workspace, source_name, checked, to)


def _push(workspace: Workspace, source_name: str, rows: PushedRows, to: To) -> PushResult:
    # A commit goes into the current generation. Online only must be quick, and must not fail with the registry.
    snapshot = workspace.recent_snapshot() if to == "online" else workspace.snapshot()
    work = Push(workspace, PushTarget(snapshot, source_name), rows, to)
    if to != "online":
        with step("commit", f"commit what is pushed to {source_name}"):
            wait(work.commit())
        work.confirm()
    with step("push", f"push to {source_name}") as running:
        work.publish(running.advance)
    return work.result()


def _check(workspace: Readers, registered: RegisteredView, *, is_committed: bool) -> None:
    """Raise MismatchError where a view's online part is not this registry's, unless it was checked a moment ago.

    Rows that are not ``is_committed`` do not concern the offline store, which may be missing. A store that is down is
    skipped without waiting: the rows are committed all the same.
    """
    with once_a_moment(workspace.online, registered.online_prefix) as is_due:
        found: Mismatch | None = None
        with suppress(OnlineStoreUnavailableError):
            if is_due and is_committed:
                found = compare_part(workspace, registered, at_once=True).mismatch
            elif is_due:
                found = foreign_part(workspace, registered, None, at_once=True)
        refuse(found)


def _begin(workspace: Workspace, registered: RegisteredView, encoder: RecordEncoder) -> None:
    """Write the records' schema, without which nobody can read them, and their owner, unless done a moment ago.

    Raises MismatchError where the online store holds records of another project or history.
    """
    with once_a_moment(workspace.online, encoder.schema_key) as is_due:
        if is_due:
            begin_part(workspace, registered)
            workspace.online.put(encoder.schema_key, encoder.schema_json)
            reached(SCHEMA_WRITTEN)
