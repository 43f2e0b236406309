"""What `fs status` shows: each view's freshness, what is committed and online, and which runs are under way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from featurestore_registry.documents import STATISTICS, Interval

from featurestore.consistency.belonging import Mismatch, compare_all, unavailable
from featurestore.consistency.clocks import (
    ONLINE_STORE,
    REGISTRY,
    clock_problem,
    covered_ahead,
    online_ahead_us,
    registry_ahead_us,
)
from featurestore.consistency.eviction import evicted, lack_of_room
from featurestore.consistency.online_rows import count_entities
from featurestore.consistency.remains import find_remains
from featurestore.consistency.waiting_rows import settled, waiting_rows
from featurestore.errors import AuthError, EngineError, FeatureStoreError, OfflineStoreError, OnlineStoreError
from featurestore.following.held import MOST_MADE_ANEW, held_layouts, not_held, wait_for_records
from featurestore.following.lag import Lag, lag_of
from featurestore.ledger.blocked import BlockedRun, still_blocked
from featurestore.ledger.commits import RUN
from featurestore.ledger.runs import RunResult, runs
from featurestore.ledger.statistics import recent_statistics
from featurestore.ledger.unread import read_unread
from featurestore.ledger.watermarks import Watermark, read_watermark
from featurestore.quarantine.held import noted_held
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.times import to_rfc3339
from featurestore.workspace import Readers

LATE_RUNS, LATE_COMMITS = 50, 200
"""Among how many runs, and in how many commits, killed ones are looked for that nobody counted."""


_READ_NOTHING = ("republish", "release")


@dataclass(frozen=True, slots=True)
class Unexpected:
    """What of a view's rows is not as expected."""

    blocked: BlockedRun | None = None
    """The run whose rows are not committed: nobody accepted them, and no later run read them."""
    unmet: tuple[str, ...] = ()
    """What the rows of its newest run that read any are not like, though they are committed."""
    accepted: str = ""
    """With which reason, and by whom, these were accepted."""


@dataclass(frozen=True, slots=True)
class ViewStatus:
    """One view's state, from the ledger and the offline store's log."""

    view: str
    generation: int
    online: bool
    """Whether the view is published to the online store."""
    greatest_event_us: int | None
    """The newest committed event time, pushed rows included; rounded up to a millisecond."""
    age_us: int | None
    """How long ago that was; negative when it lies in the future."""
    intervals: tuple[Interval, ...]
    """Committed spans of event time."""
    committed_until_us: int | None
    """The end of the last committed span."""
    table_version: int | None
    published_version: int | None
    entities: int | None
    """Entities in the offline table, expired ones too; None where it cannot be read."""
    offline_rows: int
    """Rows in the offline table, including pushed rows and rows that later ones correct."""
    online_rows: int
    """Entities that should be online, counted in the offline table, so without those that were pushed online only."""
    running: tuple[RunResult, ...]
    killed: tuple[RunResult, ...]
    """How many runs died with their process since the last run that ended."""
    last_run: str
    """The newest run in a few words; empty when there never was one."""
    clocks: tuple[str, ...]
    """Warnings about clocks that are more than five seconds off, or were when windows of the view were written."""
    mismatches: tuple[Mismatch, ...] = ()
    """Where the registry and the view's stores do not fit, or the online store does not answer."""
    lacks: tuple[str, ...] = ()
    """What its committed spans lack compared with the applied definition, each with the command that reads it."""
    not_found: tuple[str, ...] = ()
    """Windows that its online records do not hold, so that reads are NOT_FOUND until they are made again."""
    pushes_wait: bool = False
    """Whether pushed events do not come online until its records are made again, as they were made for other windows
    and the log is large."""
    windows: Lag | None = None
    """How far the online part of a view with windows follows its log; None for other views, where the table cannot be
    read, and while the online store is down."""
    waiting: int = 0
    """Entities of a plain view whose newest row is committed and not online, among the newest 100,000 rows."""
    evicted: str = ""
    """How many keys the online store has evicted, and what to do; the same for every view."""
    room: str = ""
    """That the online store has no room left, or hardly any, and what to do; the same for every view."""
    no_statistics: str = ""
    """That nothing was counted of its last run that appended rows, though it should have been; empty where it was."""
    held: int = 0
    """Rows that are set aside and that nobody has released or dropped, as far as the registry knows."""
    unexpected: Unexpected = Unexpected()
    unreadable: str = ""
    """Why its table cannot be read, and what to do; newest event and rows then come from its last run."""


def status(workspace: Readers) -> list[ViewStatus]:
    """Return the state of every view, sorted by name."""
    now_us, found = workspace.clock(), list[ViewStatus]()
    found_by_view, is_up = _mismatches(workspace)
    clocks, gone, room = _of_stores(workspace, now_us, is_online_up=is_up)
    counted, held = _counted_runs(workspace), noted_held(workspace.ledger, workspace.project)
    for name, registered in sorted(workspace.snapshot().views.items()):
        watermark = read_watermark(workspace.ledger, registered)
        every = runs(workspace.ledger, workspace.project, name, now_us=now_us)
        history = [run for run in every if run.generation == registered.generation]  # others prepare the next one
        unfinished = list(takewhile(lambda run: run.state in ("running", "killed"), history))
        running = tuple(run for run in unfinished if run.state == "running")
        lag = _lag(workspace, registered) if is_up else None
        ahead = covered_ahead(name, None if lag is None else lag.covered_us, now_us)
        greatest_us, offline_rows, unreadable = _committed(workspace, registered, watermark)
        not_found, pushes_wait = _of_records(workspace, registered, offline_rows) if is_up else ((), False)
        entities, online_rows = count_entities(workspace, registered, watermark)
        found.append(
            ViewStatus(
                view=name,
                generation=registered.generation,
                online=registered.view.online,
                greatest_event_us=greatest_us,
                age_us=None if greatest_us is None else now_us - greatest_us,
                intervals=watermark.intervals,
                committed_until_us=watermark.end_us,
                table_version=watermark.table_version,
                published_version=watermark.published_version,
                entities=entities,
                offline_rows=offline_rows,
                online_rows=online_rows,
                mismatches=tuple(found_by_view.get(name, ())),
                lacks=read_unread(workspace.registry, registered, watermark).texts(),
                running=running,
                killed=tuple(run for run in unfinished if run.state == "killed"),
                last_run=_in_words(history[0]) if history else "",
                clocks=clocks if ahead is None else (*clocks, ahead),
                evicted=gone,
                room=room,
                windows=lag,
                not_found=not_found,
                pushes_wait=pushes_wait,
                waiting=_waiting(workspace, registered, watermark) if is_up and not running else 0,
                unreadable=unreadable,
                unexpected=_unexpected(workspace, registered, history),
                held=held[registered.ledger_key].held if registered.ledger_key in held else 0,
                no_statistics=_no_statistics(workspace, registered, history, counted),
            )
        )
    return found


def _unexpected(workspace: Readers, registered: RegisteredView, history: list[RunResult]) -> Unexpected:
    read = (run for run in history if run.state == "done" and not run.dry_run and run.kind not in _READ_NOTHING)
    last = next(read, None)
    blocked = still_blocked(workspace.ledger, workspace.project, registered.ledger_key, history)
    if last is None or not last.unmet:
        return Unexpected(blocked)
    return Unexpected(blocked, last.unmet, last.accepted)


def _counted_runs(workspace: Readers) -> dict[str, str] | None:
    """Return the run whose statistics are the newest, by the key of the generation; None where nobody may read them."""
    with suppress(AuthError):
        found = workspace.ledger.scan(workspace.project, STATISTICS)
        return {entry.key: str(entry.document.get("run_id", "")) for entry in found}
    return None


def _no_statistics(
    workspace: Readers, registered: RegisteredView, history: list[RunResult], counted: dict[str, str] | None
) -> str:
    """Return that runs that appended rows have no statistics, and what comes of it; else nothing."""
    appended = next((run for run in history if run.appended and run.state == "done" and not run.dry_run), None)
    if counted is None or appended is None or registered.view.statistics is False:
        return ""
    made_by = counted.get(registered.ledger_key)
    if made_by is None:
        return f"{registered.view.name}: no statistics: the next `fs materialize` counts its whole log."
    newer = [run.run_id for run in history[: history.index(appended) + 1]]
    missing = [] if made_by in newer else [appended.run_id]
    missing += _killed_uncounted(workspace, registered, history)
    runs = f"its run {missing[0]}" if len(missing) == 1 else f"its runs {', '.join(missing)}"
    return f"{registered.view.name}: no statistics of {runs}." if missing else ""


def _killed_uncounted(workspace: Readers, registered: RegisteredView, history: list[RunResult]) -> list[str]:
    """Return the runs that died after they had committed rows and before these were counted, of late ones."""
    killed = [run.run_id for run in history[:LATE_RUNS] if run.state == "killed"]
    if not killed:
        return []
    documents = recent_statistics(workspace.ledger, workspace.project, registered.ledger_key, limit=LATE_RUNS)
    uncounted = set(killed) - {document.run_id for document in documents}
    committed = set[str]()
    commit = workspace.offline.find_commit(registered.table) if uncounted else None
    for _ in range(LATE_COMMITS):
        if commit is None:
            break
        if commit.rows:
            committed.add(str(commit.facts.get(RUN)))
        commit = workspace.offline.find_commit(registered.table, commit.number - 1) if commit.number else None
    return sorted(uncounted & committed)


def _mismatches(workspace: Readers) -> tuple[dict[str, list[Mismatch]], bool]:
    """Return the mismatches of each view, and whether the online store answered."""
    found_by_view: dict[str, list[Mismatch]] = {}
    compared, failure = compare_all(workspace)
    for mismatch in compared:
        if mismatch.kind == "unreadable":
            continue  # reported with the table
        found_by_view.setdefault(mismatch.view, []).append(mismatch)
    if failure is not None:
        for name, registered in workspace.snapshot().views.items():
            if registered.view.online:
                found_by_view.setdefault(name, []).append(unavailable(registered, failure))
    return found_by_view, failure is None


def without_views(workspace: Readers) -> list[str]:
    """Return the lines about a project without feature views: the data that exists all the same."""
    snapshot = workspace.snapshot()
    if not snapshot.revision:
        return ["Nothing is registered yet: run `fs apply`."]
    begins = f"Project {snapshot.project} has no feature views at revision {snapshot.revision}"
    remains = find_remains(workspace)
    if not (left := remains.texts()):
        return [f"{begins}: run `fs apply` to register some."]
    command = "fs gc" if snapshot.records else "fs teardown --allow-destroy"
    return [
        f"{begins}. Data of earlier ones is still there:",
        *(f"  {what}" for what in left),
        f"Delete it: `{command}`",
    ]


def _of_stores(workspace: Readers, now_us: int, *, is_online_up: bool) -> tuple[tuple[str, ...], str, str]:
    """Return what is wrong with the clocks, what was evicted, and a lack of room; a store that is down is not asked."""
    registry_us = registry_ahead_us(workspace.registry, workspace.project, now_us)
    online_us, gone, room = None, None, None
    is_own = workspace.settings.online_store.url.startswith("lmdb:")  # its clock is this machine's
    if is_online_up and not is_own:
        with suppress(FeatureStoreError):  # without the online store the rest is still shown
            facts = workspace.online.facts()
            online_us, gone, room = online_ahead_us(facts), evicted(facts), lack_of_room(facts)
    clocks = tuple(filter(None, (clock_problem(REGISTRY, registry_us), clock_problem(ONLINE_STORE, online_us))))
    told = f"{room.message}. {room.hint}" if room is not None else ""
    return clocks, "" if gone is None else f"{gone[0]}. {gone[1]}", told


def _committed(workspace: Readers, registered: RegisteredView, watermark: Watermark) -> tuple[int | None, int, str]:
    """Return a table's newest event and rows; those of its last run, and why, where the table cannot be read."""
    unreadable = ""
    try:
        version = workspace.offline.current(registered.table)
        if version is not None:
            return max((file.max_event_us for file in version.files), default=None), version.rows, ""
    except OfflineStoreError as error:
        unreadable = str(error)
    return watermark.greatest_event_us, watermark.offline_rows, unreadable


def _lag(workspace: Readers, registered: RegisteredView) -> Lag | None:
    if not (registered.view.aggregations and registered.view.online):
        return None
    with suppress(OfflineStoreError, OnlineStoreError, EngineError):  # said elsewhere
        return lag_of(workspace, registered)
    return None


def _of_records(workspace: Readers, registered: RegisteredView, rows: int) -> tuple[tuple[str, ...], bool]:
    """Return which windows a view's records do not hold, and whether pushed events wait for records of its own."""
    if not registered.view.aggregations:
        return (), False
    with suppress(OfflineStoreError, OnlineStoreError):  # said elsewhere
        held = held_layouts(workspace, registered)
        return not_held(held, registered.view), wait_for_records(held, registered.view) and rows > MOST_MADE_ANEW
    return (), False


def _waiting(workspace: Readers, registered: RegisteredView, watermark: Watermark) -> int:
    if registered.view.aggregations or not registered.view.online:
        return 0
    with suppress(OfflineStoreError, OnlineStoreError):  # said elsewhere
        found = waiting_rows(workspace, registered, watermark)
        return len(settled(workspace.online, found))
    return 0


def _in_words(run: RunResult) -> str:
    by = f", process {run.pid} on {run.host}" if run.state in ("running", "killed") else ""
    return f"{run.kind} {run.state}, {to_rfc3339(run.started_us)[:19].replace('T', ' ')}{by}"
