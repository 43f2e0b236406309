"""The journal's entries of commits, withdrawals and publishes: what became known when, and what was online when.

The truth about commits is the log of each table: `catch_up` copies what is new in it, so neither serving nor a push
waits for the registry (`docs/decisions/journal-of-commits.md`). Instants in entries are those of the machine that did
the thing; the registry's clock stamps the entry.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from featurestore_registry.interface import JournalReader
from featurestore_registry.records import Document, JournalEntry

from featurestore.errors import AuthError, FeatureStoreError
from featurestore.ledger.commits import ORIGIN, REBUILT, RUN
from featurestore.ledger.serving import KIND as SERVING
from featurestore.offline.interface import Commit, OfflineReader, TableId
from featurestore.registered.snapshot import RegisteredView, generation_key
from featurestore.types.times import EPOCH, MICROSECOND
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")

COMMIT, PUBLISH, WITHDRAWAL, PUSHED_ONLINE = "commit", "publish", "withdrawal", "pushed_online"
KINDS = (COMMIT, PUBLISH, WITHDRAWAL, PUSHED_ONLINE)
"""Kinds whose key is the generation's; `PUSHED_ONLINE` has the view's name."""
AUDIT = "audit"

MOST_COMMITS, PER_ENTRY, PER_CALL = 2_000, 500, 20_000
"""At most so many commits of a table are taken at once, where somebody waits; so many are an entry; so many are sent by
one call, about 2.5 MB."""
PAGE = 1_000
"""Entries that are read at once."""
CLOCKS_APART = timedelta(hours=1)
"""How far a writer's clock may be ahead of the registry's for `commits_of` to find all its commits."""


@dataclass(frozen=True, slots=True)
class JournaledCommit:
    """A commit as the journal has it; None where its log entry, of an earlier release, does not say it."""

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


def catch_up(workspace: Workspace, tables: Iterable[TableId], *, most: int = MOST_COMMITS) -> None:
    """Append the commits that the journal lacks, of each table the oldest ``most``, by one call for many tables.

    A table of which the journal has nothing begins with its newest ones, as far as they would be kept. Two processes
    at once may append the same commits: `commits_of` tells each once. Does nothing where there is no journal. Raises
    as the registry and the offline store.
    """
    journal, offline = workspace.registry.journal, workspace.offline
    if not is_kept(journal):
        return
    oldest_us = workspace.clock() - workspace.settings.journal.retention // MICROSECOND
    by_key = {generation_key(table.view, table.generation): table for table in tables}
    page = [] if len(by_key) < 2 else journal.newest(workspace.project, COMMIT, limit=2 * len(by_key) + PAGE // 10)
    newest = {entry.key: entry for entry in reversed(page)}
    missing: list[tuple[str, Document]] = []
    withdrawn: list[tuple[str, Document]] = []
    for key, table in by_key.items():
        last = offline.find_commit(table)
        if last is None:
            continue
        entry = newest.get(key) or next(iter(journal.newest(workspace.project, COMMIT, key=key, limit=1)), None)
        known = None if entry is None else _identities(entry)[-1]
        if known == (last.number, last.identity):
            continue
        for commits in _runs_of(_lacking(journal, offline, last, table, known, most, oldest_us)):
            before = offline.find_commit(table, commits[0].number - 1) if commits[0].number else None
            rows = [_row(commit) for commit in commits]
            missing.append((key, {"after": None if before is None else before.identity, "commits": rows}))
            withdrawn += [(key, _withdrawal(commit)) for commit in commits if commit.withdrawn]
    journal.append(workspace.project, WITHDRAWAL, withdrawn)  # first: the commits' entries say how far it is
    for call in _calls(missing):
        journal.append(workspace.project, COMMIT, call)


def catch_up_quietly(workspace: Workspace, tables: Iterable[TableId]) -> bool:
    """Do `catch_up`, unless something is in the way: a later one does it. Returns whether it was done."""
    try:
        catch_up(workspace, tables)
    except FeatureStoreError as error:
        logger.debug("the journal's entries of commits must wait: %s", error)
        return False
    return True


def is_kept(journal: JournalReader) -> bool:
    """Tell whether to write entries: never so that a registry's file of an earlier version is upgraded by them."""
    if not journal.exists():
        logger.debug("the registry has no journal before `fs registry upgrade`: nothing is written into it")
        return False
    return True


def _lacking(
    journal: JournalReader,
    offline: OfflineReader,
    last: Commit,
    table: TableId,
    known: tuple[int, str] | None,
    most: int,
    oldest_us: int,
) -> list[Commit]:
    """Return the commits up to ``last`` that come after the newest one that the journal has."""

    def is_there(known: tuple[int, str]) -> bool:
        found = offline.find_commit(table, known[0]) if known[0] <= last.number else None
        return found is not None and found.identity == known[1]

    if known is not None and not is_there(known):  # the table was restored, or cleaned by an earlier release
        page = journal.newest(table.project, COMMIT, key=generation_key(table.view, table.generation), limit=PAGE)
        known = next(filter(is_there, (each for entry in page for each in reversed(_identities(entry)))), None)
    # Nobody knows how far back a log goes of which the journal has nothing.
    first = max(0, last.number + 1 - MOST_COMMITS) if known is None else known[0] + 1
    numbers = range(first, min(last.number + 1, first + most))
    found = [commit for number in numbers if (commit := offline.find_commit(table, number)) is not None]
    return found if known is not None else [c for c in found if c == last or (c.at_us or 0) >= oldest_us]


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
    return [commit.number, commit.identity, commit.at_us, origin, *counts]


def _withdrawal(commit: Commit) -> Document:
    """Return that rows left with a commit; the span is that of the rebuild, which withdraws nothing else."""
    of, facts = {"version": commit.number, "identity": commit.identity, "at_us": commit.at_us}, commit.facts
    return {**of, "rows": commit.withdrawn, **{name: facts.get(name) for name in (ORIGIN, RUN, REBUILT)}}


def _identities(entry: JournalEntry) -> list[tuple[int, str]]:
    return [(int(row[0]), str(row[1])) for row in entry.document["commits"]]


def _commits_in(entry: JournalEntry) -> Iterator[JournaledCommit]:
    after = entry.document["after"]
    for version, identity, *more in entry.document["commits"]:
        yield JournaledCommit(version, identity, after, *more)
        after = identity


def commits_of(
    journal: JournalReader, registered: RegisteredView, since_us: int | None = None, until_us: int | None = None
) -> Iterator[JournaledCommit]:
    """Yield the commits of a view's table that were made in [since, until), in order, each identity once.

    One without an instant counts as made when it was written down. Raises as the registry.
    """
    since = None if since_us is None else EPOCH + since_us * MICROSECOND - CLOCKS_APART
    told = set[str]()
    for entry in _entries(journal, registered.project, COMMIT, registered.ledger_key, since):
        for commit in _commits_in(entry):
            written_us = (entry.written_at - EPOCH) // MICROSECOND
            at_us = written_us if commit.at_us is None else commit.at_us
            if commit.identity not in told and (since_us or 0) <= at_us < (at_us + 1 if until_us is None else until_us):
                yield commit
            told.add(commit.identity)


def _entries(
    journal: JournalReader, project: str, kind: str, key: str, since: datetime | None
) -> Iterator[JournalEntry]:
    after = 0
    while page := journal.scan(project, kind, key=key, after=after, since=since, limit=PAGE):
        yield from page
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
            if self._is_kept is None:
                self._is_kept = is_kept(journal)
            if entries and self._is_kept:
                journal.append(self._workspace.project, PUBLISH, entries)
            self._ended.clear()
        except FeatureStoreError as error:
            logger.debug("the journal's entries of publishes must wait: %s", error)
            self._ended = entries


def forget_old(workspace: Workspace, *, dry_run: bool) -> tuple[int, list[str]]:
    """Remove the entries that are older than the settings say; return how many, and why some stay that should go.

    A dry run counts at most a page of each kind. The registry's clock decides, as it dated them.
    """
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
            events.setdefault(commit.identity, {"kind": COMMIT, **asdict(commit)})
    for entry in reversed(journal.newest(project, PUBLISH, key=key, limit=2 * limit)):
        document = entry.document
        events[document["publish"]] = {"kind": PUBLISH, "at_us": document["started_us"], **document}
    for entry in journal.newest(project, WITHDRAWAL, key=key, limit=limit):
        events[f"- {entry.document['identity']}"] = {"kind": WITHDRAWAL, **entry.document}
    for entry in journal.newest(project, PUSHED_ONLINE, key=registered.view.name, limit=limit):
        if entry.document["generation"] == registered.generation:
            told = {name: value for name, value in entry.document.items() if name != "crcs"}
            events[str(entry.cursor)] = {"kind": PUSHED_ONLINE, "at_us": told["last_us"], **told}
    return sorted(events.values(), key=lambda event: event["at_us"] or 0, reverse=True)[:limit]
