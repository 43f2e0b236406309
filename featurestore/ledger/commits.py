"""What the ledger remembers about offline commits, and what each commit carries about the registry.

The newest ledger entry of kind ``commit``, key ``{view}.{generation}``, names the watermark's commit by its identity.
It is an entry of its own: another field in a watermark would stop earlier releases from reading it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featurestore_registry import documents
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import LedgerEntry

from featurestore.definitions import PushSource
from featurestore.errors import MismatchError
from featurestore.ledger.watermarks import Watermark, watermark_from
from featurestore.offline.interface import WATERMARK, Commit, OfflineReader, OfflineStore, TableId
from featurestore.registered.records import understood
from featurestore.registered.snapshot import RegisteredView

KIND = "commit"
REPAIR_KIND = "repair"
"""The spans that a running repair reads again, by view and generation; written before it replaces the watermark."""
PROJECT, REVISION, ORIGIN, RUN, REBUILT = "project", "revision", "origin", "run", "rebuilt"
"""Facts of a commit: the identity of its project, the hash of the revision that made it, what made it, and for a run
its id and the span in which it withdrew rows."""
BELONG_HINT = (
    "Check `registry` and `offline_store` in the settings. If they are to belong together from now on, run `fs repair`."
)
_FORGOTTEN = {"forgotten": True}
_LONGEST_WALK = 1_000
"""At most this many commits of earlier releases are skipped in a search: they carry no facts."""


@dataclass(frozen=True, slots=True)
class KnownCommit:
    """A commit that the ledger remembers."""

    version: int
    identity: str


def known_commit(ledger: LedgerReader, registered: RegisteredView) -> KnownCommit | None:
    """Return the commit that a view's watermark belongs to; None where an earlier release wrote the watermark."""
    return _known_from(ledger.latest(registered.project, KIND, registered.ledger_key))


def last_read(ledger: LedgerReader, offline: OfflineReader, registered: RegisteredView) -> KnownCommit | None:
    """Return the newest commit that may hold what was read from the view's source, or None.

    Pushes may commit every second. Then it is the commit that the last run remembered.
    """
    if any(isinstance(source, PushSource) for source in registered.view.sources):
        return known_commit(ledger, registered)
    newest = offline.find_commit(registered.table)
    return None if newest is None else KnownCommit(newest.number, newest.identity)


class Remembered:
    """What the ledger remembers about all tables of a project, by three queries for any number of views."""

    def __init__(self, ledger: LedgerReader, project: str) -> None:
        self._repairs = {entry.key for entry in ledger.scan(project, REPAIR_KIND) if "intervals" in entry.document}
        self._watermarks = {entry.key: entry for entry in ledger.scan(project, documents.WATERMARK)}
        self._commits = {entry.key: entry for entry in ledger.scan(project, KIND)}

    def is_under_repair(self, registered: RegisteredView) -> bool:
        """Tell whether a repair of the view began and did not end."""
        return registered.ledger_key in self._repairs

    def of(self, registered: RegisteredView) -> tuple[Watermark, KnownCommit | None]:
        """Return a view's watermark and its commit, as `read_watermark` and `known_commit` do."""
        key = registered.ledger_key
        return watermark_from(self._watermarks.get(key)), _known_from(self._commits.get(key))


def remember_commit(ledger: Ledger, registered: RegisteredView, commit: KnownCommit | None) -> None:
    """Remember a commit, durably; None means that there is none any more."""
    if known_commit(ledger, registered) != commit:
        ledger.append(registered.project, KIND, registered.ledger_key, _FORGOTTEN if commit is None else asdict(commit))


@understood("a commit")
def _known_from(entry: LedgerEntry | None) -> KnownCommit | None:
    if entry is None or entry.document == _FORGOTTEN:
        return None
    return KnownCommit(int(entry.document["version"]), str(entry.document["identity"]))


def facts_of(
    registered: RegisteredView,
    held: Mapping[str, Any] | None,
    origin: Literal["run", "push", "repair", "release"],
    **more: Any,
) -> dict[str, Any]:
    """Return the facts of a commit; ``held`` says what its table then holds from the source."""
    facts: dict[str, Any] = {ORIGIN: origin, **more}
    if registered.chain.number:
        facts |= {PROJECT: registered.chain.identity, REVISION: registered.chain.head}
    return {**facts, WATERMARK: held}  # None too: it ends the search through earlier commits


def bind_tables(offline: OfflineStore, registered: RegisteredView) -> None:
    """Mark a project's tables as its own from its first commit on. Raises MismatchError where another came first."""
    identity = registered.chain.identity
    if identity and offline.owner(registered.project) != identity:
        owner = offline.bind(registered.project, identity)
        if owner != identity:
            raise MismatchError(
                f"The offline tables of {registered.project!r} belong to the project with identity {owner[:12]}; "
                f"this registry's is {identity[:12]}.",
                hint=BELONG_HINT,
            )


def held_by(watermark: Watermark) -> dict[str, Any]:
    """Return what a table holds from its source, as a commit carries it.

    Without the fingerprints of source files: there may be many, and a run that does not know a file reads it again.
    """
    return {
        "intervals": [list(interval) for interval in watermark.intervals],
        "begun_us": watermark.begun_us,
        "created_until_us": watermark.created_until_us,
        **({} if watermark.source_begun_us is None else {"source_begun_us": watermark.source_begun_us}),
    }


def held_of(offline: OfflineReader, table: TableId, commit: Commit | None) -> Mapping[str, Any] | None:
    """Return what a table holds from its source, by the newest commit that says it, from ``commit`` back."""
    for _ in range(_LONGEST_WALK):
        if commit is None or WATERMARK in commit.facts:
            break
        commit = offline.find_commit(table, commit.number - 1) if commit.number else None
    return None if commit is None else commit.facts.get(WATERMARK)


def watermark_of(held: Mapping[str, Any] | None) -> Watermark:
    """Return the watermark of what a table holds; an empty one where no commit says it."""
    if held is None:
        return Watermark()
    with understood("a watermark in a commit"):
        return Watermark(
            intervals=tuple((int(start), int(end)) for start, end in held["intervals"]),
            begun_us=held["begun_us"],
            created_until_us=held["created_until_us"],
            source_begun_us=held.get("source_begun_us"),
        )
