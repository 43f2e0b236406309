"""Whether registry, offline store and online store belong together, and which of them is behind.

Comparing writes nothing. The next run settles a mismatch that ``heals``; `fs repair` settles the others, and until then
pieces that do not belong together are only read.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from featurestore_registry.interface import LedgerReader, RegistryReader

from featurestore.errors import MismatchError, OfflineStoreError, OnlineStoreUnavailableError, RegistryUnavailableError
from featurestore.ledger.commits import BELONG_HINT, REVISION, Remembered, held_of, known_commit
from featurestore.ledger.watermarks import Watermark, read_watermark
from featurestore.offline.interface import OfflineReader, TableId, TableVersion
from featurestore.online.interface import OnlineReader, OnlineStore
from featurestore.online.records.marker import RECONCILE, Marker, MarkerReader, PartMarkers
from featurestore.registered.snapshot import RegisteredView
from featurestore.workspace import Readers, Workspace

Kind = Literal[
    "other_project",
    "unknown_revision",
    "lost",
    "behind",
    "rewritten",
    "unknown_to_ledger",
    "ahead",
    "missing",
    "unfinished",
    "unreadable",
    "unavailable",
]

_ONLINE_HINT = BELONG_HINT.replace("offline", "online")
_NEWER = (
    "Restore the registry that wrote it, or let this one take over with `fs repair`. Until then this one only reads."
)
_RESTORE = (
    "Check `offline_store` in the settings, or restore the table from a newer backup. Without one, `fs repair` reads "
    "the missing rows from the source again."
)
_APART = ": one of them was restored from a backup, or is a copy that was written to since."


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Two pieces that do not belong together, or of which one is behind the other or does not answer."""

    piece: Literal["offline", "online"]
    """The store that does not fit."""
    view: str
    kind: Kind
    message: str
    hint: str
    heals: bool = False
    """Whether the next run of the view settles it."""

    @property
    def error(self) -> MismatchError | OfflineStoreError:
        """The mismatch as an error."""
        if self.kind == "unreadable":
            return OfflineStoreError(self.message, hint=self.hint, view=self.view)
        return MismatchError(self.message, hint=self.hint, piece=self.piece, view=self.view, kind=self.kind)


def refuse(found: Mismatch | None) -> None:
    """Raise a mismatch as its error, unless the next run settles it."""
    if found is not None and not found.heals:
        raise found.error


@dataclass(frozen=True, slots=True)
class Part:
    """What the online part of a view says about itself."""

    version: int | None
    """The table version up to which everything is published; None where it is unknown."""
    mismatch: Mismatch | None
    must_reconcile: bool = False
    """Whether the next publish removes what the table does not hold: `fs repair` took the part over, or the log entry
    of the commit that it was published from was cleaned away."""


def compare_table(
    workspace: Readers, registered: RegisteredView, remembered: Remembered | None = None
) -> Mismatch | None:
    """Compare a view's offline table with the registry; ``remembered`` saves ledger reads when there are many views."""
    found = _compare_table(workspace.registry, workspace.offline, registered, remembered)
    return None if found is None else _or_damage(workspace.offline, registered, found)


def _or_damage(offline: OfflineReader, registered: RegisteredView, found: Mismatch) -> Mismatch:
    """Return the mismatch, or the damage of the table's log if there is any: it makes a commit look like another."""
    try:
        offline.current(registered.table)
    except OfflineStoreError as error:
        if "versions" in error.details:
            return _offline(registered, "unreadable", error.message, error.hint)
    return found


def _compare_table(
    registry: RegistryReader, offline: OfflineReader, registered: RegisteredView, remembered: Remembered | None
) -> Mismatch | None:
    chain = registered.chain
    owner = offline.owner(registered.project)
    # Without a table nothing can be lost: the first commit takes the folder over.
    if chain.number and owner not in (None, chain.identity) and offline.tables(registered.project):
        return _offline(
            registered,
            "other_project",
            f"The offline tables of {registered.project!r} belong to the project with identity {_short(owner)}; "
            f"this registry's is {_short(chain.identity)}.",
            BELONG_HINT,
        )
    newest = offline.find_commit(registered.table)
    if newest is not None and not _knows(registry, registered, newest.facts.get(REVISION, chain.head)):
        return _offline(
            registered,
            "unknown_revision",
            f"Table {registered.table} was last written at revision {_short(newest.facts[REVISION])}, which this "
            f"registry does not have{_APART}",
            _NEWER,
        )
    return _later(registry, offline, registered) or compare_commit(registry.ledger, offline, registered, remembered)


def _later(registry: RegistryReader, offline: OfflineReader, registered: RegisteredView) -> Mismatch | None:
    """Report a later generation that was written at a revision which the registry does not have."""
    last = offline.last_generation(registered.project, registered.view.name)
    for generation in range(registered.generation + 1, last + 1):
        table = TableId(registered.project, registered.view.name, generation)
        commit = offline.find_commit(table)
        if commit is not None and not _knows(registry, registered, commit.facts.get(REVISION, registered.chain.head)):
            return _offline(
                registered,
                "unknown_revision",
                f"There is a later table of {registered.view.name}, {table}, written at a revision that this registry "
                f"does not have{_APART}",
                _NEWER,
            )
    return None


def compare_commit(
    ledger: LedgerReader, offline: OfflineReader, registered: RegisteredView, remembered: Remembered | None = None
) -> Mismatch | None:
    """Compare a view's offline table with the commit that the ledger remembers, without asking who owns the table."""
    newest = offline.find_commit(registered.table)
    if remembered is None:
        watermark, known = read_watermark(ledger, registered), known_commit(ledger, registered)
    else:
        watermark, known = remembered.of(registered)
    numbers = [watermark.table_version, None if known is None else known.version]
    version = max((number for number in numbers if number is not None), default=None)
    if version is None:
        if newest is None or held_of(offline, registered.table, newest) is None:
            return None
        return _offline(
            registered,
            "unknown_to_ledger",
            f"The registry knows of no run that wrote {registered.table}, but the table holds rows of one: the "
            "registry was restored from an older backup.",
            "The next `fs materialize` reads the source again and appends only what is missing.",
            heals=True,
        )
    if newest is None:
        message = f"The offline store has no table {registered.table}, but version {version} of it was committed."
        return _offline(registered, "lost", message, _RESTORE)
    if version > newest.number:
        message = f"Table {registered.table} is at version {newest.number}, but version {version} was committed."
        return _offline(registered, "behind", message, _RESTORE)
    # A log entry that is missing although later ones exist was cleaned away: it proves nothing.
    there = None if known is None else offline.find_commit(registered.table, known.version)
    if known is not None and there is not None and there.identity != known.identity:
        message = (
            f"Version {known.version} of table {registered.table} is not the commit that the registry remembers: the "
            "table was restored and written to since."
        )
        return _or_damage(offline, registered, _offline(registered, "rewritten", message, _RESTORE))
    return None


def compare_part(
    workspace: Readers, registered: RegisteredView, watermark: Watermark | None = None, *, at_once: bool = False
) -> Part:
    """Compare a view's online part with the registry and the offline table.

    With a ``watermark`` also with the version that it says was published; ``at_once`` as in `MarkerReader.read`. Raises
    OnlineStoreUnavailableError.
    """
    offline, online = workspace.offline, workspace.online
    copies, pushed = MarkerReader(online, registered.online_prefix).read(at_once=at_once)
    if foreign := _foreign(workspace.registry, registered, copies):
        return Part(None, foreign)
    if message := _ahead(offline, registered, copies, pushed):
        return Part(None, _or_damage(offline, registered, _online(registered, "ahead", message, _RESTORE)))
    least = least_of(copies)
    if least is None:
        foreign = _earlier(online, registered, at_once=at_once)
        return Part(None, foreign or _missing(registered, watermark))
    if least.version is not None and offline.find_commit(registered.table, least.version) is None:
        return Part(None, _cleaned(registered, least), must_reconcile=True)
    return Part(least.version, _behind(registered, watermark, least), must_reconcile=least.commit == RECONCILE)


def _ahead(
    offline: OfflineReader, registered: RegisteredView, copies: Sequence[Marker | None], pushed: tuple[int, str] | None
) -> str:
    """Return that a commit is online which the offline store does not have, empty where it has them."""
    lost = (each for each in copies if each is not None and has_other(offline, registered, each.version, each.commit))
    marker = next(lost, None)
    is_pushed = pushed is not None and has_other(offline, registered, *pushed)
    # A push of events moves the marker, too.
    if marker is not None and not (is_pushed and registered.view.aggregations):
        return (
            f"The online records of {registered.view.name} were published from version {marker.version} of "
            f"{registered.table}, a commit that the offline store does not have."
        )
    if pushed is not None and is_pushed:
        return (
            f"Rows were pushed to {registered.table} in version {pushed[0]}, a commit that the offline store does not "
            "have: it is older than what is online."
        )
    return ""


def compare_before_cleaning(workspace: Readers, registered: RegisteredView) -> Mismatch | None:
    """Return why nothing of a view's table may be cleaned, None where it may.

    Files that a table does not need may be those of a newer log, which is still to be restored: where it does not fit
    the registry, or is older than what is online. An online store that is down is skipped.
    """
    if (found := compare_table(workspace, registered)) is not None and not found.heals:
        return found
    if registered.view.online:
        with suppress(OnlineStoreUnavailableError):
            part = compare_part(workspace, registered, at_once=True).mismatch
            return part if part is not None and part.kind == "ahead" else None
    return None


def begin_part(workspace: Workspace, registered: RegisteredView) -> None:
    """Mark a view's online part as this project's before the first record goes into it.

    Raises MismatchError where it belongs to another project or history.
    """
    chain, markers = registered.chain, markers_of(workspace.online, registered)
    if not chain.number:
        return
    copies, _ = markers.read()
    if foreign := _foreign(workspace.registry, registered, copies):
        raise foreign.error
    if None in copies:
        markers.begin(Marker(chain.identity, chain.head, registered.generation))
    else:
        least = least_of(copies)
        # A writer that does not know the newest revision yet must not overwrite the marker of one that does.
        if least is not None and least.revision in chain.hashes[:-1]:
            markers.write(replace(least, revision=chain.head))


def move_part(workspace: Workspace, registered: RegisteredView, version: TableVersion, *, is_anew: bool) -> None:
    """Let a part's marker say that everything up to a version is online, unless it says more.

    A part that was taken over goes on saying so, until all its records are made anew.
    """
    markers = markers_of(workspace.online, registered)
    least = least_of(markers.read()[0])
    if least is None or _order(least.version) >= version.number or (least.commit == RECONCILE and not is_anew):
        return
    markers.write(replace(least, version=version.number, commit=version.identity))


def foreign_part(
    workspace: Readers, registered: RegisteredView, published: int | None, *, at_once: bool = False
) -> Mismatch | None:
    """Compare a view's online part with the registry alone: with its history, and with the version last ``published``.

    For servers, which may not reach the offline store. Raises OnlineStoreUnavailableError.
    """
    copies, _ = MarkerReader(workspace.online, registered.online_prefix).read(at_once=at_once)
    if foreign := _foreign(workspace.registry, registered, copies):
        return foreign
    least, watermark = least_of(copies), Watermark(published_version=published)
    return _missing(registered, watermark) if least is None else _behind(registered, watermark, least)


def least_of(copies: Sequence[Marker | None]) -> Marker | None:
    """Return the copy of a marker that is furthest behind; None where one is missing."""
    found = [marker for marker in copies if marker is not None]
    return None if len(found) < len(copies) else min(found, key=lambda marker: _order(marker.version))


def markers_of(online: OnlineStore, registered: RegisteredView) -> PartMarkers:
    """Return the markers of a view's online part, to write them."""
    return PartMarkers(online, registered.online_prefix)


def mismatches(workspace: Readers) -> list[Mismatch]:
    """Return the mismatches, view by view; without those of an online store that is down."""
    return compare_all(workspace)[0]


def compare_all(workspace: Readers) -> tuple[list[Mismatch], OnlineStoreUnavailableError | None]:
    """Return the mismatches, view by view, and why the online store could not be asked, None where it could."""
    found: list[Mismatch] = []
    failure: OnlineStoreUnavailableError | None = None
    remembered = Remembered(workspace.ledger, workspace.project)
    for registered in workspace.snapshot().views.values():
        mismatch = compare_table(workspace, registered, remembered)
        found += [] if mismatch is None else [mismatch]
        if remembered.is_under_repair(registered):
            found.append(_unfinished(registered))
        if registered.view.online and failure is None:
            try:
                mismatch = part_mismatch(workspace, registered, remembered)
            except OnlineStoreUnavailableError as error:
                failure = error  # do not let every view wait for it again
            else:
                found += [] if mismatch is None else [mismatch]
    return found, failure


def _unfinished(registered: RegisteredView) -> Mismatch:
    message = f"A repair of {registered.view.name} was cut off: rows may be missing, online records may be foreign."
    return Mismatch("offline", registered.view.name, "unfinished", message, "Run `fs repair` to finish it.")


def part_mismatch(
    workspace: Readers, registered: RegisteredView, remembered: Remembered | None = None
) -> Mismatch | None:
    """Return the mismatch of a view's online part. Raises OnlineStoreUnavailableError."""
    watermark = remembered.of(registered)[0] if remembered else read_watermark(workspace.ledger, registered)
    return compare_part(workspace, registered, watermark).mismatch


def _knows(registry: RegistryReader, registered: RegisteredView, revision: str) -> bool:
    """Tell whether the registry has a revision; True also when the registry cannot be asked now."""
    if not registered.chain.number or revision in registered.chain:
        return True
    try:
        newest = registry.definitions.chain(registered.project)  # an apply may have come since
    except RegistryUnavailableError:
        return True
    return revision in newest or not newest.number


def _foreign(registry: RegistryReader, registered: RegisteredView, copies: Sequence[Marker | None]) -> Mismatch | None:
    """Report the first marker copy that another project wrote, or a history that this registry does not know."""
    chain, view = registered.chain, registered.view.name
    for marker in copies:
        if marker is None or not chain.number:
            continue
        if marker.project != chain.identity:
            message = (
                f"The online records of {view} belong to the project with identity {_short(marker.project)}; "
                f"this registry's is {_short(chain.identity)}."
            )
            return _online(registered, "other_project", message, _ONLINE_HINT)
        if not _knows(registry, registered, marker.revision):
            message = (
                f"The online records of {view} were last written at revision {_short(marker.revision)}, which this "
                f"registry does not have{_APART}"
            )
            return _online(registered, "unknown_revision", message, _NEWER)
    return None


def unavailable(registered: RegisteredView, failure: OnlineStoreUnavailableError) -> Mismatch:
    """Report an online store that does not answer, for those who go on without it."""
    message = (
        f"What is online of {registered.view.name} cannot be told, only how many entities should be: {failure.message}"
    )
    return _online(registered, "unavailable", message, failure.hint)


def _missing(registered: RegisteredView, watermark: Watermark | None) -> Mismatch | None:
    if watermark is None or watermark.published_version is None:
        return None  # nothing was ever published
    return _online(
        registered,
        "missing",
        f"The online store does not say what it holds of {registered.view.name}: it was emptied, it is not the one "
        "that was published to, or an earlier release published to it.",
        "The next `fs materialize` publishes every entity again.",
        heals=True,
    )


def _behind(registered: RegisteredView, watermark: Watermark | None, marker: Marker) -> Mismatch | None:
    published = None if watermark is None else watermark.published_version
    if published is None or _order(marker.version) >= published:
        return None
    if marker.version is None:
        emptied = "the online store was emptied, restored or is another one"
        if registered.view.aggregations:  # a push makes records anew itself, but not of a long log
            message = f"The online records of {registered.view.name} have to be made anew: {emptied}."
            hint = "The next `fs materialize` makes them from the log; pushed events wait there until then."
        else:
            message = (
                f"The online records of {registered.view.name} are not all there: {emptied}, and only what was pushed "
                "since is in it."
            )
            hint = (
                "The next `fs materialize` publishes every entity again. Where an earlier release published, nothing "
                "is missing."
            )
        return _online(registered, "behind", message, hint, heals=True)
    return _online(
        registered,
        "behind",
        f"The online records of {registered.view.name} are at version {marker.version} of {registered.table}, but "
        f"version {published} was published: the online store was restored from a backup, or lost writes.",
        "The next `fs materialize` publishes what is missing. Where an earlier release published, nothing is missing.",
        heals=True,
    )


def foreign_generations(online: OnlineReader, registered: RegisteredView, *, at_once: bool = False) -> list[int]:
    """Return the generations of a view up to its own whose online parts belong to another project."""
    found = []
    for generation in range(1, registered.generation + 1):
        copies, _ = MarkerReader(online, replace(registered, generation=generation).online_prefix).read(at_once=at_once)
        if any(copy is not None and copy.project != registered.chain.identity for copy in copies):
            found.append(generation)
    return found


def _earlier(online: OnlineReader, registered: RegisteredView, *, at_once: bool) -> Mismatch | None:
    """Report a store that holds another project's records of an earlier generation of the view."""
    if not registered.chain.number or not foreign_generations(online, registered, at_once=at_once):
        return None
    message = f"The online store holds records of {registered.view.name} that belong to another project of that name."
    return _online(registered, "other_project", message, _ONLINE_HINT)


def has_other(offline: OfflineReader, registered: RegisteredView, version: int | None, identity: str | None) -> bool:
    """Tell whether a table never had a commit: it has another one of that number, or has not reached it."""
    if version is None:
        return False
    commit = offline.find_commit(registered.table, version)
    if commit is None:  # its log entry was cleaned away; later ones exist
        newest = offline.find_commit(registered.table)
        return newest is None or newest.number < version
    return commit.identity != identity


def _cleaned(registered: RegisteredView, marker: Marker) -> Mismatch:
    return _online(
        registered,
        "behind",
        f"The online records of {registered.view.name} were published from version {marker.version} of "
        f"{registered.table}, whose log entry was cleaned away since.",
        "The next `fs materialize` makes them equal to the offline table and removes those that only the online store "
        "has.",
        heals=True,
    )


def _order(version: int | None) -> int:
    return -1 if version is None else version


def _short(identity: str | None) -> str:
    return (identity or "")[:12]


def _offline(registered: RegisteredView, kind: Kind, message: str, hint: str, *, heals: bool = False) -> Mismatch:
    return Mismatch("offline", registered.view.name, kind, message, hint, heals)


def _online(registered: RegisteredView, kind: Kind, message: str, hint: str, *, heals: bool = False) -> Mismatch:
    return Mismatch("online", registered.view.name, kind, message, hint, heals)
