"""Removing what the registry gave up: old generations, data of deleted views, leftovers of killed runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from featurestore.consistency.belonging import compare_before_cleaning
from featurestore.consistency.ownership import Ownership
from featurestore.consistency.remains import pushed_rows_of
from featurestore.errors import OfflineStoreError, OnlineStoreError
from featurestore.following.mark import mark_from, read_marks
from featurestore.ledger.commits import known_commit
from featurestore.ledger.journal import forget_old
from featurestore.ledger.leases import holding
from featurestore.ledger.prepared import Preparations
from featurestore.ledger.saved_sets import (
    document_of,
    forgotten_sets,
    frame_file,
    keep_missing_documents,
    kept_blobs,
    known_frames,
    list_sets,
    lost_pins,
    pins,
    sample_of,
)
from featurestore.ledger.watermarks import read_watermark, write_watermark
from featurestore.maintenance.superseded import read_until
from featurestore.offline.interface import TableId
from featurestore.online.records.keys import view_prefix
from featurestore.online.records.marker import MarkerReader
from featurestore.quarantine.cleaning import Cleaned, clean, clean_gone, held_count
from featurestore.quarantine.files import tables_of
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.served.retaining import NOTHING_REMOVED, Retained, retain
from featurestore.statistics.gone import forget_gone
from featurestore.steps import step
from featurestore.types.times import to_short_rfc3339
from featurestore.workspace import Readers, Workspace

BEING_SAVED_US = 3_600_000_000
"""How old an entity frame without a set must be: a younger one may belong to a set that is just being saved."""

_UNDER_WAY = "an apply that prepares it is still to come"


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that looks unused and stays."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `collect_garbage` removes, or would remove."""

    tables: tuple[TableId, ...]
    """The tables of generations that this registry gave up and no saved training set pins."""
    online_prefixes: tuple[bytes, ...]
    """The records of generations and views that this registry gave up."""
    kept: tuple[Kept, ...]
    """Things that no definition uses but that are pinned, or not this registry's to delete."""
    pushed: Mapping[TableId, int] = field(default_factory=dict)
    """How many rows of those tables were pushed, where there are any: a batch source may not hold them."""
    files: int = 0
    """Files removed, leftovers of killed runs, unneeded versions and frames included; 0 on a dry run."""
    records: int = 0
    """Online keys removed: records, those past their expiry included, and what a view's part says about itself; 0 on
    a dry run."""
    journal: int = 0
    """Entries of the registry's journal that are older than the settings keep them; a dry run counts at most a thousand
    of each kind."""
    served: Retained = NOTHING_REMOVED
    """What went of served logs."""
    quarantines: tuple[Cleaned, ...] = ()
    """What goes of rows that were set aside."""


def collect_garbage(workspace: Workspace, *, dry_run: bool = False) -> Garbage:
    """Remove the data that this registry remembers giving up, and that no saved training set pins.

    Everything else stays and is listed: data of another registry's project, data that this one never had, data that is
    just being made, and data that servers may still read. Raises RegistryUnavailableError when the registry cannot be
    read and NotFoundError when it does not know the project: then nobody knows what is garbage.
    """
    # Listed before the definitions are read, so that a table made in between is not in the list.
    tables = workspace.offline.tables(workspace.project)
    owned = Ownership(workspace)
    snapshot = workspace.snapshot()
    until = read_until(workspace)  # read after the definitions: they still use what an apply supersedes in between
    prepared = Preparations(workspace.ledger, workspace.project, snapshot.chain.head)
    pinned = pins(workspace)

    def why_kept(table: TableId) -> str | None:
        pin = "a saved training set pins it" if table in pinned else None
        why = owned.of_table(table) or pin or _needed_by(workspace, snapshot.views.get(table.view), table, prepared)
        return why or _still_read(until, table.view, table.generation)

    kept: list[Kept] = []
    left = set[TableId]()
    unused: list[TableId] = []
    for table in tables:
        registered = snapshot.views.get(table.view)
        if registered is not None and registered.generation == table.generation:
            if why := owned.of_table(table) or _does_not_fit(workspace, registered):
                kept.append(Kept(f"unneeded files of offline table {table}", why))
                left.add(table)
            continue
        why = why_kept(table)
        if why is None and not dry_run and not prepared.give_up(table.view, table.generation):
            why = _UNDER_WAY
        if why is None:
            unused.append(table)
        else:
            kept.append(Kept(f"offline table {table}", why))
    live = {each.table for each in snapshot.views.values() if owned.of_table(each.table) is None}
    quarantines = _clean_quarantines(workspace, live, {*tables} - {*unused}, why_kept, kept, dry_run=dry_run)
    parts = _parts_to_remove(workspace, _unused_parts(snapshot, owned, prepared), owned, prepared, until, kept, dry_run)
    cleaned = [table for table in tables if table not in left and owned.of_table(table) is None]
    forgotten, refused = forget_old(workspace, cleaned, dry_run=dry_run)
    kept += [*_kept_sets(workspace), *(Kept("old entries of the journal", why) for why in refused)]
    prefixes = (view_prefix(workspace.project, *part) for part in parts)
    pushed = {table: rows for table in unused if (rows := pushed_rows_of(workspace, table))}
    served = retain(workspace, dry_run=dry_run)
    garbage = Garbage(
        tuple(unused), tuple(prefixes), tuple(kept), pushed, 0, 0, forgotten, served, quarantines=tuple(quarantines)
    )
    return garbage if dry_run else _remove(workspace, cleaned, garbage, parts, pinned)


def _parts_to_remove(
    workspace: Workspace,
    unused: Sequence[tuple[str, int]],
    owned: Ownership,
    prepared: Preparations,
    until: Mapping[tuple[str, int], int],
    kept: list[Kept],
    dry_run: bool,
) -> list[tuple[str, int]]:
    """Return the online parts that go, of those that no definition uses; notes in ``kept`` why others stay."""
    parts = []
    for view, generation in unused:
        why = owned.of_part(view, generation) or _still_read(until, view, generation)
        if why is None and not dry_run and not prepared.give_up(view, generation):
            continue
        if why is None:
            parts.append((view, generation))
        elif next(iter(workspace.online.scan(view_prefix(workspace.project, view, generation))), None):
            kept.append(Kept(f"online records of {view} (generation {generation})", why))
    return parts


def _clean_quarantines(
    workspace: Workspace,
    live: Collection[TableId],
    left: Collection[TableId],
    why_kept: Callable[[TableId], str | None],
    kept: list[Kept],
    *,
    dry_run: bool,
) -> list[Cleaned]:
    """Clean quarantines: of live generations what is decided, of those of which no table is left everything."""
    cleaned: list[Cleaned | None] = []
    for table in tables_of(workspace.offline, workspace.project):
        if table in live:
            cleaned.append(clean(workspace, table, dry_run=dry_run))
            continue
        why = "its table is kept" if table in left else why_kept(table)
        if why is None:
            cleaned.append(clean_gone(workspace, table, dry_run=dry_run))
        elif held_count(workspace, table) != 0:
            kept.append(Kept(f"the quarantine of {table}", why))
    return [each for each in cleaned if each is not None]


def _kept_sets(workspace: Readers) -> list[Kept]:
    lost = [
        Kept(f"training set {found.name}", f"it cannot be built again, {found.what} is gone")
        for found in lost_pins(workspace)
    ]
    unknown = forgotten_sets(workspace)
    return lost + [Kept(f"training set {found.saved.name}", "this registry does not know it") for found in unknown]


def _needed_by(
    workspace: Readers, registered: RegisteredView | None, table: TableId, prepared: Preparations
) -> str | None:
    """Return why a generation that its view does not use is still needed, None where nothing needs it."""
    if prepared.is_under_way(table.view, table.generation):
        return _UNDER_WAY
    if registered is None:
        return None
    if registered.generation < table.generation:
        # An apply may be under way that will use it.
        is_past = prepared.is_past(table.view, table.generation)
        return None if is_past else "the registry is not at this generation yet"
    return _does_not_fit(workspace, registered)


def _does_not_fit(workspace: Readers, registered: RegisteredView) -> str | None:
    """Return why files of a view stay that nobody needs, None where they may go."""
    found = compare_before_cleaning(workspace, registered)
    return None if found is None else "the view's current table does not fit: settle that first, see `fs doctor`"


def _still_read(until: Mapping[tuple[str, int], int], view: str, generation: int) -> str | None:
    """Return why a generation stays that servers may still read, because they do not have the newest revision yet."""
    end_us = until.get((view, generation))
    if end_us is None:
        return None
    return f"servers may read this generation until {to_short_rfc3339(end_us)}; run `fs gc` again then"


def _remove(
    workspace: Workspace,
    tables: Sequence[TableId],
    garbage: Garbage,
    parts: Sequence[tuple[str, int]],
    pinned: Mapping[TableId, frozenset[int]],
) -> Garbage:
    """Remove the garbage, and unneeded files of the tables that stay; return it with what went."""
    keep_missing_documents(workspace)
    files, records = _remove_unnamed_frames(workspace), 0
    views = workspace.snapshot().views
    with step("gc", f"clean up after {workspace.project}", unit="tables") as running:
        for table in tables:
            registered = views.get(table.view)
            live = registered if registered is not None and registered.table == table else None
            keep = None if table in garbage.tables else kept_versions(workspace, live, pinned.get(table, ()))
            files += workspace.offline.clean(table, keep=keep, known=known_versions(workspace, live))
            running.advance()
        for view, generation in parts:
            registered = views.get(view)
            if registered is not None and registered.generation == generation:
                records += _take_offline(workspace, registered)
            else:
                records += workspace.online.delete(view_prefix(workspace.project, view, generation))
        records += workspace.online.sweep(now_us=workspace.clock())
    forget_gone(workspace)
    return replace(garbage, files=files, records=records)


def _remove_unnamed_frames(workspace: Workspace) -> int:
    """Remove the entity frames that this registry gave up; returns how many there were."""
    saved_before_us = workspace.clock() - BEING_SAVED_US
    project, blobs, what = workspace.project, kept_blobs(workspace), "entity frames of training sets"
    old = [blob for blob in blobs.list() if blob.modified_us < saved_before_us]
    named = {saved.frame.file for saved in list_sets(workspace.ledger, project)}
    given_up = known_frames(workspace.ledger, project) - named
    # What was cut off never became part of a set.
    unnamed = [blob.name for blob in old if frame_file(project, blob.name) in given_up or not blob.is_whole]
    for frame in unnamed:
        for name in (sample_of(frame), document_of(frame), frame):
            blobs.delete(name, what)
    return len(unnamed)


def kept_versions(workspace: Readers, registered: RegisteredView | None, pinned: Iterable[int]) -> list[int]:
    """Return the versions of a table that cleaning must keep: the pinned ones, and the one that is online.

    The next publish compares with the files of the latter: without them it could not tell online records whose rows
    left the table from records that were never in it. A version whose files are already gone is left out.
    """
    keep = set(pinned)
    published = None if registered is None else read_watermark(workspace.ledger, registered).published_version
    if registered is not None and published is not None:
        with suppress(OfflineStoreError):
            keep.add(workspace.offline.version(registered.table, published).number)
    return sorted(keep)


def known_versions(workspace: Readers, registered: RegisteredView | None) -> list[int] | None:
    """Return the versions of a table whose log entries cleaning must keep: the ledger or the online store names them.

    None means all of them, where the online store cannot be asked.
    """
    if registered is None:
        return []
    mark, commit = read_watermark(workspace.ledger, registered), known_commit(workspace.ledger, registered)
    named = {mark.table_version, mark.published_version, None if commit is None else commit.version}
    if registered.view.online:
        try:
            copies, pushed = MarkerReader(workspace.online, registered.online_prefix).read()
            stored = read_marks(workspace, registered).values() if registered.view.aggregations else ()
        except OnlineStoreError:
            return None
        named |= {copy.version for copy in copies if copy is not None} | {None if pushed is None else pushed[0]}
        named |= {mark.version for mark in map(mark_from, stored) if mark is not None}
    return sorted(number for number in named if number is not None)


def _take_offline(workspace: Workspace, registered: RegisteredView) -> int:
    """Delete the records of a view that is no longer online, and note that none is left: it may go online again."""
    name, holder = registered.view.name, f"gc-{secrets.token_hex(8)}"
    with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock):
        now = workspace.snapshot().views.get(name)
        if now is None or now.view.online or now.generation != registered.generation:
            return 0  # an apply came meanwhile: the next gc looks again
        watermark = read_watermark(workspace.ledger, registered)
        if watermark.published_version is not None or watermark.online_rows:
            write_watermark(workspace.ledger, registered, replace(watermark, published_version=None, online_rows=0))
        return workspace.online.delete(registered.online_prefix)


def _unused_parts(snapshot: Snapshot, owned: Ownership, prepared: Preparations) -> list[tuple[str, int]]:
    """Return the online parts that this registry had and that no definition uses."""
    unused = []
    for view, generation in owned.parts():
        registered = snapshot.views.get(view)
        is_served = registered is not None and registered.view.online and registered.generation == generation
        # A generation after the registered one may be an apply that is under way.
        may_come = (
            registered is not None and generation > registered.generation and not prepared.is_past(view, generation)
        )
        if not is_served and not may_come and not prepared.is_under_way(view, generation):
            unused.append((view, generation))
    return unused
