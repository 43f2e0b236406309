"""A run of one view: read, commit, publish; after each step the watermark records it.

If a run dies in any step, the next one starts from the watermark: it finds rows that are already in the log unchanged
and does not append them again, and first publishes rows that are committed but not published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from featurestore.consistency.belonging import Part, begin_part, compare_part, compare_table, markers_of, refuse
from featurestore.definitions import FeatureView
from featurestore.engine.interface import Span, StagedRows, StageRequest, Withdrawal
from featurestore.errors import (
    ConcurrentCommitError,
    DamagedFileError,
    MaterializationError,
    OnlineStoreUnavailableError,
)
from featurestore.ledger.blocked import Acceptance, write_accepted
from featurestore.ledger.commits import (
    REBUILT,
    RUN,
    KnownCommit,
    bind_tables,
    facts_of,
    held_by,
    remember_commit,
)
from featurestore.ledger.journal import Publishes
from featurestore.ledger.runs import RunResult
from featurestore.ledger.unread import Unread, read_unread, write_unread
from featurestore.ledger.watermarks import Watermark, read_watermark, write_watermark
from featurestore.materialization.prepared import (
    Prepared,
    Rebuild,
    added_by,
    ask,
    counted_in,
    left,
    paths_of,
    without,
)
from featurestore.materialization.publish import Publication, follow, publish
from featurestore.materialization.releasing import Brought, bring_released, releases_under_way
from featurestore.materialization.setting_aside import judge
from featurestore.materialization.spans import SpansToRead, advance
from featurestore.offline.interface import DataFile, TableVersion
from featurestore.offline.merge import due, merge_quietly
from featurestore.online.records.marker import Marker
from featurestore.quarantine.held import note_held
from featurestore.registered.snapshot import RegisteredView
from featurestore.statistics import Added
from featurestore.steps import crash_point, reached, step
from featurestore.workspace import Workspace

STAGED = crash_point("stage.written", "the new rows are in a file of their own, in no version")
REMEMBERED = crash_point("commit.remembered", "the ledger knows the commit, the watermark does not have it yet")
COMMITTED = crash_point("watermark.committed", "the watermark says what is committed, nothing of it is online")
PUBLISHED = crash_point("watermark.published", "the watermark says what is online, the online store does not yet")
MARKED = crash_point("marker.published", "the online store says itself what it holds")

COMMIT_TRIES = 20
"""Pushes commit to the same table, each process once a second; from the second try on rows need not be staged again."""
SEQUENCE_GAP = 1 << 24
"""At most so many rows may be pushed between the staging of a run's rows and its commit and still count as earlier."""

ChooseSpans = Callable[[FeatureView, Watermark, Unread], SpansToRead]
"""Decides what a run reads, by the watermark and the view's gaps as they are once the run holds the lease."""


class _ChangedMeanwhile(Exception):
    """An apply changed the view while it was being published."""


class ViewRun:
    """One run of one view under way. ``result`` holds its counts so far."""

    def __init__(
        self,
        workspace: Workspace,
        registered: RegisteredView,
        result: RunResult,
        check: Callable[[], None],
        publishes: Publishes,
    ) -> None:
        self.workspace, self.registered, self.result = workspace, registered, result
        self._check = check
        """Raises when the view's lease is lost."""
        self._publishes = publishes
        self.added: Added | None = None
        """What came into the log, if anything did."""
        self.watermark = read_watermark(workspace.ledger, registered)
        self._acceptance: Acceptance | None = None

    def bring(self, choose: ChooseSpans, rebuild: Rebuild | None = None, acceptance: Acceptance | None = None) -> None:
        """Bring source rows into the log and online; first publishes rows that an earlier run left unpublished.

        With ``acceptance`` the rows are those of a blocked run, or nothing is committed. Raises MismatchError, having
        changed nothing, where the stores do not belong to what is applied.
        """
        self._compare()
        self._acceptance = acceptance
        if not self._damaged(rebuild, self._current()):  # damaged files must go before anything is published
            self.publish_pending()
        self._finish_releases()
        registered, ledger = self.registered, self.workspace.ledger
        unread = read_unread(self.workspace.registry, registered, self.watermark)
        to_read = choose(registered.view, self.watermark, unread)
        self.workspace.engine.prepare()
        self.result = replace(self.result, intervals=to_read.intervals)
        staged, version = self._commit(to_read, rebuild)
        if version is not None:
            bind_tables(self.workspace.offline, registered)  # an earlier release's tables, with nothing to commit
            remember_commit(ledger, registered, KnownCommit(version.number, version.identity))
        if acceptance is not None:
            write_accepted(ledger, self.workspace.project, acceptance)
        reached(REMEMBERED)
        self._write(advance(self.watermark, registered.view, to_read, staged, version, self.result.started_us))
        write_unread(
            ledger, registered, unread.after((*to_read.intervals, *to_read.again), rebuilt=rebuild is not None)
        )
        reached(COMMITTED)
        self._note_held((*to_read.intervals, *to_read.again))
        self.publish_pending()
        self._merge()

    def release(self, begin: Callable[[], None]) -> None:
        """Bring rows that were set aside into the log and online: those of a release that died, and what ``begin``
        writes down, of which alone the result tells, unless nothing was left of it. Raises as `bring`.
        """
        self._compare()
        self.publish_pending()
        others = self._finish_releases()
        begin()
        own = self._finish_releases(are_new=True)
        told = "; ".join([each.why for each in own] or [f"{each.why}, begun before" for each in others])
        self.result = replace(self.result, appended=sum(each.rows for each in own), accepted=told)
        self._note_held()
        self._merge()

    def _finish_releases(self, *, are_new: bool = False) -> list[Brought]:
        done = []
        for release in releases_under_way(self.workspace, self.registered):
            before = self._current()
            given = self.workspace, self.registered, release, self.result, self.watermark, self._check
            brought = bring_released(*given, is_new=are_new)
            if (version := brought.version) is not None:
                remember_commit(self.workspace.ledger, self.registered, KnownCommit(version.number, version.identity))
                self._write(self.watermark.at(version))
                files = {file.path for file in before.files} if before is not None else set()
                added = tuple(file for file in version.files if file.path not in files)
                self.added = Added(version, added) if added else self.added
            self.publish_pending()
            brought.settle()  # what is over is online, too
            done.append(brought)
        return done

    def _note_held(self, read_again: Iterable[tuple[int, int]] = ()) -> None:
        with suppress(DamagedFileError):  # the run that needs its rows says so
            ledger, offline = self.workspace.ledger, self.workspace.offline
            note_held(ledger, offline, self.registered.table, self.result.run_id, read_again=read_again)

    def count(self, choose: ChooseSpans, rebuild: Rebuild | None = None) -> None:
        """Determine what `bring` would read and append. Writes nothing permanent. Raises as `bring`."""
        self._compare()
        unread = read_unread(self.workspace.registry, self.registered, self.watermark)
        to_read = choose(self.registered.view, self.watermark, unread)
        version = self._current()
        damaged = self._damaged(rebuild, version)
        sound = without(version, damaged)
        with TemporaryDirectory(prefix="featurestore-") as folder:
            withdrawal = self._withdraw(rebuild, sound, Path(folder))
            first = 0 if version is None else version.next_sequence
            staged = self._stage(to_read, left(sound, withdrawal), Path(folder), first)
            self.result = replace(self.result, intervals=to_read.intervals)
            self.result, staged = judge(self.workspace, self.registered, self.result, staged, Path(folder))
        counted = Prepared(staged, withdrawal, damaged, version, first_sequence=0)
        self.result = counted_in(self.result, counted, version)

    def publish_pending(self) -> None:
        """Publish rows that are committed but not published yet, according to the online store itself."""
        version = self._current()
        if version is not None:
            self._publish(version)

    def republish(self, *, authoritative: bool) -> None:
        """Publish the newest row of every entity again."""
        self._compare()
        version = self._current()
        if version is not None:
            self._publish(version, again=True, authoritative=authoritative)

    def _publish(self, version: TableVersion, *, again: bool = False, authoritative: bool = False) -> None:
        done: Publication | None = None
        everything = again
        while done is None:
            self._renew()
            if not self.registered.view.online:
                return
            part = self._part()
            if self.registered.view.aggregations:
                # Its marks say how far it is. They move with what was read, also where no event came of it.
                with suppress(_ChangedMeanwhile):
                    done, everything = self._follow(version, anew=again or part.must_reconcile)
                continue
            if not again and part.version == version.number:
                # The marker also records this revision: a clone without it is recognised by that.
                begin_part(self.workspace, self.registered)
                return
            # A part that does not say how far it is may hold records from before there were markers: everything is sent
            # again, and records of rows that left the table since are still to be removed.
            after = self.watermark.published_version if part.version is None else part.version
            everything, reconcile = again or part.version is None, authoritative or part.must_reconcile
            if after is not None and self.workspace.offline.find_commit(self.registered.table, after) is None:
                # The commit is not in the table, or its entry was cleaned away: nobody knows which rows left since.
                after, everything, reconcile = None, True, True
            told = {"everything": everything, "republish": again, "authoritative": reconcile}
            with suppress(_ChangedMeanwhile), self._noted(after, version, **told) as note:
                done = publish(
                    self.workspace,
                    self.registered,
                    after=after,
                    everything=everything,
                    authoritative=reconcile,
                    check=self._check_both,
                )
                _complete(note, done)
        counts = done.counts
        self.result = replace(self.result, published=self.result.published + counts, table_version=done.version.number)
        online_rows = counts.written + counts.stale
        if not everything:
            online_rows = max(self.watermark.online_rows - counts.deleted, online_rows)
        watermark = replace(self.watermark, online_rows=online_rows)
        if done.is_complete:
            watermark = replace(watermark, published_version=done.version.number)
        self._write(watermark)
        reached(PUBLISHED)
        if done.is_complete:
            chain, generation = self.registered.chain, self.registered.generation
            made = Marker(chain.identity, chain.head, generation, done.version.number, done.version.identity)
            markers_of(self.workspace.online, self.registered).write(made)
            reached(MARKED)

    def _follow(self, version: TableVersion, *, anew: bool) -> tuple[Publication, bool]:
        """Bring the online part of windows to the newest version; also tell whether all records were made again."""
        covered_us = min(self.watermark.end_us or 0, self.workspace.clock())
        with self._noted(self.watermark.published_version, version, everything=anew) as note:
            done = follow(self.workspace, self.registered, anew=anew, check=self._check_both, covered_us=covered_us)
            _complete(note, done[0])
        return done

    def _noted(self, after: int | None, version: TableVersion, **told: bool) -> AbstractContextManager[dict[str, Any]]:
        """Let the journal know of a publish of what came after a version up to another, or a newer one."""
        if after == version.number and not told["everything"]:
            return nullcontext({})  # marks move, no row is new
        before = None if after is None else self.workspace.offline.find_commit(self.registered.table, after)
        begin = None if before is None else {"version": before.number, "identity": before.identity}
        end = {"version": version.number, "identity": version.identity}
        document = {"run": self.result.run_id, "from": begin, "to": end, **told}
        return self._publishes.publishing(self.registered, document)

    def _compare(self) -> None:
        """Raise MismatchError where a store is not as this registry left it."""
        refuse(compare_table(self.workspace, self.registered))
        if self.registered.view.online:
            with suppress(OnlineStoreUnavailableError):  # rows are committed all the same; publishing will report it
                self._part()

    def _part(self) -> Part:
        workspace = self.workspace
        part = compare_part(workspace, self.registered, self.watermark)
        refuse(part.mismatch)
        return part

    def _merge(self) -> None:
        """Merge the small files of many commits."""
        version = self._current()
        files = due(version.files) if version is not None else []
        if version is not None and files:
            with step("merge", f"merge files of {self.registered.view.name}"):
                merge_quietly(self.workspace.offline, version, files, self._write_merged)

    def _write_merged(self, files: Sequence[DataFile]) -> Sequence[Path]:
        folder = self.workspace.offline.staging(self.registered.table)
        return self.workspace.engine.log.compact(self.registered.view, [file.path for file in files], folder)

    def _renew(self) -> None:
        """Take the current definition: an older one would publish features that an apply has added as null."""
        newest = self.workspace.snapshot().views.get(self.registered.view.name)
        if newest is not None and newest.generation == self.registered.generation:
            self.registered = newest

    def _check_both(self) -> None:
        self._check()
        published = self.registered
        self._renew()
        if self.registered != published:
            raise _ChangedMeanwhile

    def _commit(self, to_read: SpansToRead, rebuild: Rebuild | None) -> tuple[StagedRows, TableVersion | None]:
        agreed: set[int] = set()
        ready: Prepared | None = None
        try:
            for number in range(COMMIT_TRIES):
                version = self._current()
                if ready is None or not ready.fits(version) or self._repeats(ready, version):
                    if ready is not None:
                        ready.discard()
                    ready = self._prepare(to_read, rebuild, version, gap=SEQUENCE_GAP if number else 0)
                    ask(self.registered.view.name, rebuild, ready, agreed)
                    ready = self._judged(ready)
                reached(STAGED)
                if ready.changes_table:
                    before = version
                    try:
                        version = self._commit_files(version, ready, to_read, rebuild)
                    except ConcurrentCommitError:
                        continue
                    self.added = added_by(before, version, ready)
                self.result = counted_in(self.result, ready, version)
                return ready.staged, version
        finally:
            if ready is not None:
                ready.discard()
        raise MaterializationError(
            f"Other writers committed to {self.registered.table} first, {COMMIT_TRIES} times in a row.",
            hint="Run it again when there are fewer of them.",
        )

    def _judged(self, ready: Prepared) -> Prepared:
        """Return what may be committed; rows that fail are set aside."""
        self._check()
        folder = self.workspace.offline.staging(self.registered.table)
        self.result, staged = judge(
            self.workspace,
            self.registered,
            self.result,
            ready.staged,
            folder,
            lambda told: setattr(self, "result", told),
            self._acceptance,
        )
        return replace(ready, staged=staged)

    def _prepare(
        self, to_read: SpansToRead, rebuild: Rebuild | None, version: TableVersion | None, *, gap: int
    ) -> Prepared:
        """Stage what a commit adds, and find what it removes; leaves ``gap`` numbers to pushes that come first."""
        first = gap + (0 if version is None else version.next_sequence)
        damaged = self._damaged(rebuild, version)
        sound = without(version, damaged)
        folder = self.workspace.offline.staging(self.registered.table)
        withdrawal = self._withdraw(rebuild, sound, folder)
        try:
            staged = self._stage(to_read, left(sound, withdrawal), folder, first)
        except BaseException:
            for path in withdrawal.written:
                path.unlink(missing_ok=True)
            raise
        return Prepared(staged, withdrawal, damaged, version, first)

    def _repeats(self, ready: Prepared, version: TableVersion | None) -> bool:
        """Tell whether events that were pushed since are among those that were read from the source."""
        view = self.registered.view
        if not view.aggregations or version is None or version == ready.base or not ready.staged.paths:
            return False
        before = set() if ready.base is None else {file.path for file in ready.base.files}
        added = [file.path for file in version.files if file.path not in before]
        if view.event_id is None:
            return bool(added) and version.next_sequence != (0 if ready.base is None else ready.base.next_sequence)
        return bool(added) and self.workspace.engine.log.repeats(view, list(map(str, ready.staged.paths)), added)

    def _commit_files(
        self, base: TableVersion | None, ready: Prepared, to_read: SpansToRead, rebuild: Rebuild | None
    ) -> TableVersion:
        self._check()
        bind_tables(self.workspace.offline, self.registered)
        made_true = advance(self.watermark, self.registered.view, to_read, ready.staged, None, self.result.started_us)
        gone = {*ready.withdrawal.removed, *(file.path for file in ready.damaged)}
        more = {RUN: self.result.run_id, **({} if rebuild is None else {REBUILT: list(rebuild.interval)})}
        return self.workspace.offline.commit(
            self.registered.table,
            self.registered.table_schema,
            base=None if base is None else base.number,
            add=ready.written,
            remove=[file for file in base.files if file.path in gone] if base is not None else [],
            facts=facts_of(self.registered, held_by(made_true), "run", **more),
        )

    def _stage(self, to_read: SpansToRead, log_files: tuple[str, ...], folder: Path, first: int) -> StagedRows:
        request = StageRequest(
            view=self.registered.view,
            spans=to_read.spans,
            now_us=self.result.started_us,
            log_files=log_files,
            first_sequence=first,
            folder=folder,
            counts_later=self.result.kind == "incremental",
        )
        with step("read", f"read the source of {self.registered.view.name}") as reading:
            staged = self.workspace.engine.log.stage(request)
            reading.advance(staged.read)
        return staged

    def _withdraw(self, rebuild: Rebuild | None, version: TableVersion | None, folder: Path | None) -> Withdrawal:
        if rebuild is None or version is None:
            return Withdrawal(0, (), ())
        with step("withdraw", f"compare {self.registered.view.name} with its source"):
            view, span = self.registered.view, Span(*rebuild.interval)
            now_us = self.result.started_us
            return self.workspace.engine.log.withdraw(view, paths_of(version), span, now_us=now_us, folder=folder)

    def _damaged(self, rebuild: Rebuild | None, version: TableVersion | None) -> list[DataFile]:
        """Return the span's damaged files: a rebuild leaves them out and reads their rows from the source again.

        Raises DamagedFileError for one that reaches beyond the span: its other rows would not be read again.
        """
        damaged: list[DataFile] = []
        if rebuild is None or version is None:
            return damaged
        start_us, end_us = rebuild.interval
        for file in version.files:
            if file.max_event_us < start_us or file.min_event_us >= end_us:
                continue
            try:
                self.workspace.offline.verify([file], again=True)
            except DamagedFileError:
                if file.min_event_us < start_us or file.max_event_us >= end_us:
                    raise
                damaged.append(file)
        return damaged

    def _current(self) -> TableVersion | None:
        return self.workspace.offline.current(self.registered.table)

    def _write(self, watermark: Watermark) -> None:
        if watermark != self.watermark:
            self._check()
            self.watermark = write_watermark(self.workspace.ledger, self.registered, watermark)


def _complete(note: dict[str, Any], done: Publication) -> None:
    """Note what a publish did."""
    note["to"] = {"version": done.version.number, "identity": done.version.identity}
    counts = {name: getattr(done.counts, name) for name in ("written", "repaired", "deleted")}
    note |= {"complete": done.is_complete, **counts}
