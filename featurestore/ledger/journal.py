"""The journal's entries of commits and publishes: what became known when, and what was online when.

The truth about commits is the log of each table: `catch_up` copies what is new in it, so neither serving nor a push
waits for the registry (`docs/decisions/journal-of-commits.md`). Instants in entries are those of the machine that did
the thing; the registry's clock stamps the entry.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, TypedDict

import msgspec
from featurestore_registry.documents import AUDIT, SERVING
from featurestore_registry.interface import Journal, JournalReader
from featurestore_registry.records import Document, JournalEntry

from featurestore.errors import AuthError, FeatureStoreError
from featurestore.ledger.commits import ORIGIN, REBUILT, RUN
from featurestore.offline.interface import MAX_SEQUENCE, Commit, OfflineReader, TableId
from featurestore.registered.records import understood_or_left
from featurestore.registered.snapshot import RegisteredView, generation_key
from featurestore.types.times import MICROSECOND
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")

COMMIT, PUBLISH, PUSHED_ONLINE = "commit", "publish", "pushed_online"
KINDS = (COMMIT, PUBLISH, PUSHED_ONLINE)
"""Kinds whose key is the generation's; `PUSHED_ONLINE` has the view's name."""

MOST_COMMITS, PER_ENTRY, PER_CALL = 2_000, 500, 20_000
"""At most so many commits of a table are taken at once, where somebody waits; so many are an entry; so many are sent by
one call, about 2.5 MB."""
PAGE = 1_000
"""Entries that are read at once."""


class JournaledCommit(msgspec.Struct, frozen=True, array_like=True):
    """A commit as the journal has it; None where its log entry, of an earlier release, does not say it.

    New fields come last, with a default: what a later version adds is left out.
    """

    version: int
    identity: str
    after: str | None
    """The identity of the commit before, None for the first and where that was gone: what does not follow on the one
    before it is of another history, as of a table that was restored."""
    at_us: int | None
    origin: str | None
    """``run``, ``push``, ``repair``, or ``merge`` where only files were merged."""
    rows: int | None
    first_sequence: int | None
    """The least ``fs_seq`` of the rows that came, None if none came."""
    last_sequence: int | None
    withdrawn: int = 0
    """How many rows left with it."""
    run: str | None = None
    """The run that withdrew them, and the span of its rebuild."""
    rebuilt: tuple[int, int] | None = None


class _AtVersion(TypedDict):
    version: int


_Publish = TypedDict(
    "_Publish", {"publish": str, "started_us": int, "from": _AtVersion | None, "to": _AtVersion | None}
)


class _PushedOnline(TypedDict):
    id: str
    generation: int
    last_us: int
    rows: int


def catch_up(workspace: Workspace, tables: Iterable[TableId], *, most: int = MOST_COMMITS) -> None:
    """Append the commits that the journal lacks, of each table the oldest ``most``, by one call for many tables.

    A table of which the journal has nothing begins with its newest ones, as far as they would be kept. Two processes
    at once may append the same commits: `commits_of` tells each once. Does nothing where there is no journal. Raises
    as the registry and the offline store.
    """
    journal, offline = workspace.registry.journal, workspace.offline
    if not journal.exists():
        return
    oldest_us = workspace.clock() - workspace.settings.journal.retention // MICROSECOND
    by_key = {generation_key(table.view, table.generation): table for table in tables}
    page = [] if len(by_key) < 2 else journal.newest(workspace.project, COMMIT, limit=2 * len(by_key) + PAGE // 10)
    newest = {entry.key: entry for entry in reversed(page)}
    missing: list[tuple[str, Document]] = []
    for key, table in by_key.items():
        last = offline.find_commit(table)
        if last is None:
            continue
        entry = newest.get(key) or next(iter(journal.newest(workspace.project, COMMIT, key=key, limit=1)), None)
        known = None if entry is None else _newest_known(journal, offline, last, table, entry)
        # Nobody knows how far back a log goes of which the journal has nothing.
        first = max(0, last.number + 1 - MOST_COMMITS) if known is None else known + 1
        numbers = range(first, min(last.number + 1, first + most))
        found = [commit for number in numbers if (commit := offline.find_commit(table, number)) is not None]
        if known is None:
            found = [commit for commit in found if commit == last or (commit.at_us or 0) >= oldest_us]
        for commits in _runs_of(found):
            before = offline.find_commit(table, commits[0].number - 1) if commits[0].number else None
            rows = [_row(commit) for commit in commits]
            missing.append((key, {"after": None if before is None else before.identity, "commits": rows}))
    for call in _calls(missing):
        journal.append(workspace.project, COMMIT, call)


def catch_up_quietly(workspace: Workspace, tables: Iterable[TableId], *, most: int = MOST_COMMITS) -> bool:
    """Do `catch_up`, unless something is in the way: a later one does it. Returns whether it was done."""
    try:
        catch_up(workspace, tables, most=most)
    except FeatureStoreError as error:
        logger.debug("the journal's entries of commits must wait: %s", error)
        return False
    return True


def append_in_passing(journal: Journal, project: str, kind: str, entries: Sequence[tuple[str, Document]]) -> None:
    """Append entries that nobody ordered: never so that a registry's file of an earlier version is upgraded by them."""
    if entries and journal.exists():
        journal.append(project, kind, entries)


def _newest_known(
    journal: JournalReader, offline: OfflineReader, last: Commit, table: TableId, newest: JournalEntry
) -> int | None:
    """Return the version of the newest commit that the journal has and the log still or again has; None for none."""
    for commit in _walk_back(journal, newest):
        if commit.version > last.number:
            continue
        found = last if commit.version == last.number else offline.find_commit(table, commit.version)
        if found is not None and found.identity == commit.identity:
            return commit.version
    return None  # the table was restored, or cleaned by an earlier release


def _walk_back(journal: JournalReader, newest: JournalEntry) -> Iterator[JournaledCommit]:
    yield from reversed(_commits_in(newest))
    for entry in journal.newest(newest.project, COMMIT, key=newest.key, limit=PAGE):
        yield from reversed(_commits_in(entry))


def _runs_of(commits: Sequence[Commit]) -> Iterator[Sequence[Commit]]:
    """Split commits into some that follow on each other, of `PER_ENTRY` at most."""
    begin = 0
    for place, (one, other) in enumerate(pairwise(commits), 1):
        if other.number != one.number + 1 or place - begin == PER_ENTRY:
            yield commits[begin:place]
            begin = place
    if commits:
        yield commits[begin:]


def _calls(missing: Sequence[tuple[str, Document]]) -> Iterator[Sequence[tuple[str, Document]]]:
    """Split entries into some that a registry takes by one call."""
    begin = count = 0
    for place, (_, document) in enumerate(missing):
        count += len(document["commits"])
        if count > PER_CALL:
            yield missing[begin:place]
            begin, count = place, len(document["commits"])
    yield missing[begin:]


def _row(commit: Commit) -> list[Any]:
    origin = "merge" if commit.merges else commit.facts.get(ORIGIN)
    counts = commit.rows, commit.first_sequence, commit.last_sequence
    # A rebuild withdraws in its span and nothing else.
    withdrawn = [commit.withdrawn, commit.facts.get(RUN), commit.facts.get(REBUILT)] if commit.withdrawn else []
    return [commit.number, commit.identity, commit.at_us, origin, *counts, *withdrawn]


def _commits_in(entry: JournalEntry) -> list[JournaledCommit]:
    """Return what an entry tells; what later versions add to a commit comes last."""
    found: list[JournaledCommit] = []
    with understood_or_left(entry):
        after = entry.document["after"]
        for version, identity, *more in entry.document["commits"]:
            found.append(msgspec.convert([version, identity, after, *more], JournaledCommit))
            after = identity
    return found


def commits_of(journal: JournalReader, registered: RegisteredView) -> Iterator[JournaledCommit]:
    """Yield the commits of a view's table in the order in which they were written down, each identity once.

    Raises as the registry.
    """
    told, after = set[str](), 0
    while page := journal.scan(registered.project, COMMIT, key=registered.ledger_key, after=after, limit=PAGE):
        for commit in (commit for entry in page for commit in _commits_in(entry)):
            if commit.identity not in told:
                yield commit
            told.add(commit.identity)
        after = page[-1].cursor


class Publishes:
    """The publishes of one run of several views, and what it committed.

    That one begins is written at once; that it ended with the next one, or by `close`: one call of the registry for
    each view, and two for all of them. A publish that died has only its first entry. No run fails for the journal.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._ended: list[tuple[str, Document]] = []
        self._is_kept: bool | None = None
        self.tables = set[TableId]()
        """The tables to which the run may have committed."""

    @contextmanager
    def publishing(self, registered: RegisteredView, document: Document) -> Iterator[dict[str, Any]]:
        """Note that a publish begins and ends; the block puts into the yielded document what became of it."""
        begun = {"publish": secrets.token_hex(8), **document, "started_us": self._workspace.clock()}
        self._write([(registered.ledger_key, begun)])
        ended = {**begun, "complete": False}
        try:
            yield ended
        finally:
            self._ended.append((registered.ledger_key, {**ended, "finished_us": self._workspace.clock()}))

    def close(self) -> None:
        """Write the rest, and bring the journal's commits up to date."""
        if self._ended:
            self._write([])
        if self.tables:
            catch_up_quietly(self._workspace, sorted(self.tables, key=str))

    def _write(self, begun: list[tuple[str, Document]]) -> None:
        entries, journal = [*self._ended, *begun], self._workspace.registry.journal
        try:
            self._is_kept = journal.exists() if self._is_kept is None else self._is_kept
            if self._is_kept:
                journal.append(self._workspace.project, PUBLISH, entries)
            self._ended.clear()
        except FeatureStoreError as error:
            logger.debug("the journal's entries of publishes must wait: %s", error)
            self._ended = entries


def forget_old(workspace: Workspace, tables: Iterable[TableId], *, dry_run: bool) -> tuple[int, list[str]]:
    """Remove the entries that are older than the settings say; return how many, and why some stay that should go.

    Before, `catch_up` takes what the logs of these tables still say: it goes on from entries that may go. A dry run
    counts at most a page of each kind. The registry's clock decides, as it dated them.
    """
    if not dry_run:
        catch_up(workspace, tables, most=MAX_SEQUENCE)
    settings, journal, project = workspace.settings.journal, workspace.registry.journal, workspace.project
    kept_for = {**dict.fromkeys((*KINDS, SERVING), settings.retention), AUDIT: settings.audit_retention}
    count, refused = 0, list[str]()
    if not journal.exists():
        return 0, []
    now = workspace.registry.state(project).now
    for kind, kept in kept_for.items():
        if kept is None or kept > now - datetime.min.replace(tzinfo=UTC):
            continue
        try:
            old = journal.scan(project, kind, until=now - kept, limit=PAGE)
            count += journal.forget(project, kind, now - kept) if old and not dry_run else len(old)
        except AuthError as error:
            refused.append(f"{error.message} Run it where `registry` names the database itself.")
    return count, refused


def newest_events(journal: JournalReader, registered: RegisteredView, limit: int) -> list[dict[str, Any]]:
    """Return what happened to a view, newest first, as plain values: each with ``kind``, ``at_us`` and its document."""
    project, key, events = registered.project, registered.ledger_key, dict[str, dict[str, Any]]()
    for entry in reversed(journal.newest(project, COMMIT, key=key, limit=limit)):
        for commit in _commits_in(entry):
            events.setdefault(commit.identity, {"kind": COMMIT, **msgspec.structs.asdict(commit)})
    for entry in reversed(journal.newest(project, PUBLISH, key=key, limit=2 * limit)):
        with understood_or_left(entry):
            publish = msgspec.convert(entry.document, _Publish)
            events[publish["publish"]] = {"kind": PUBLISH, "at_us": publish["started_us"], **entry.document}
    for entry in journal.newest(project, PUSHED_ONLINE, key=registered.view.name, limit=limit):
        with understood_or_left(entry):
            pushed = msgspec.convert(entry.document, _PushedOnline)
            if pushed["generation"] == registered.generation:
                told = {name: value for name, value in entry.document.items() if name != "crcs"}
                events[pushed["id"]] = {"kind": PUSHED_ONLINE, "at_us": pushed["last_us"], **told}
    return sorted(events.values(), key=lambda event: event["at_us"] or 0, reverse=True)[:limit]
