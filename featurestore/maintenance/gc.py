"""Removing what nothing refers to any more: old generations, data of deleted views, leftovers of killed runs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from featurestore.errors import OfflineStoreError
from featurestore.metadata.generations import used_generations
from featurestore.metadata.leases import holding
from featurestore.metadata.saved_sets import frame_path, frames_folder, list_sets, pins
from featurestore.metadata.snapshot import RegisteredView, Snapshot
from featurestore.metadata.watermarks import read_watermark, write_watermark
from featurestore.metadata.workspace import Workspace
from featurestore.offline.files import disk_errors
from featurestore.offline.interface import TableId
from featurestore.online.keys import view_prefix
from featurestore.steps import step

BEING_SAVED_SECONDS = 3600
"""An entity frame that no set names, and that is not older, may belong to a set that is just being saved."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What `collect_garbage` removes, or would."""

    tables: tuple[TableId, ...]
    """Of generations that no definition uses and no saved training set pins."""
    kept: tuple[TableId, ...]
    """Of such generations, those that a saved training set pins."""
    online_prefixes: tuple[bytes, ...]
    """Of the records of generations and views that no definition uses."""
    files: int = 0
    """Files removed, leftovers of killed runs, unneeded versions and frames included; 0 on a dry run."""
    records: int = 0
    """Online records removed; 0 on a dry run."""


def collect_garbage(workspace: Workspace, *, dry_run: bool = False) -> Garbage:
    """Remove data that no definition, and no saved training set, refers to.

    What an apply or a run is just making is left alone. Raises RegistryUnavailableError when the registry cannot
    be read: without it nothing is known to be garbage.
    """
    # Listed before the definitions are read: a table that is made in between is then not among them.
    tables = workspace.offline.tables(workspace.project)
    used = used_generations(workspace.ledger, workspace.project)
    snapshot = workspace.snapshot()
    pinned = pins(workspace.ledger, workspace.project)
    live = {registered.table for registered in snapshot.views.values()}
    unused = [table for table in tables if table not in live]
    unused_prefixes = _unused_prefixes(snapshot, used)
    garbage = Garbage(
        tables=tuple(table for table in unused if table not in pinned),
        kept=tuple(table for table in unused if table in pinned),
        online_prefixes=tuple(prefix for _, prefix in unused_prefixes),
    )
    if dry_run:
        return garbage
    records = 0
    files = _remove_unnamed_frames(workspace)
    with step("gc", f"clean up after {workspace.project}", unit="tables") as running:
        registered_by_table = {registered.table: registered for registered in snapshot.views.values()}
        for table in tables:
            keep, registered_here = None, registered_by_table.get(table)
            if table not in garbage.tables:
                keep = kept_versions(workspace, registered_here, pinned.get(table, ()))
            files += workspace.offline.clean(table, keep=keep, known=known_versions(workspace, registered_here))
            running.advance()
        for registered, prefix in unused_prefixes:
            records += workspace.online.delete(prefix) if registered is None else _take_offline(workspace, registered)
    return Garbage(garbage.tables, garbage.kept, garbage.online_prefixes, files, records)


def _remove_unnamed_frames(workspace: Workspace) -> int:
    """Remove the entity frames that no saved training set names; returns how many there were."""
    saved_before_s = time.time() - BEING_SAVED_SECONDS
    with disk_errors("remove entity frames of training sets"):
        old = [path for path in frames_folder(workspace).glob("*") if path.stat().st_mtime < saved_before_s]
        named = {frame_path(workspace, saved.frame.file) for saved in list_sets(workspace.ledger, workspace.project)}
        unnamed = [path for path in old if path not in named]
        for path in unnamed:
            path.unlink(missing_ok=True)
    return len(unnamed)


def kept_versions(workspace: Workspace, registered: RegisteredView | None, pinned: Iterable[int]) -> list[int]:
    """Return the versions of a table that cleaning must keep: the pinned ones, and what is online.

    The next publish compares with the files of the latter; without them it could not tell which records of the online
    store are of rows that left the table, and which were never in it. Where they are gone already it is left out.
    """
    keep = set(pinned)
    published = None if registered is None else read_watermark(workspace.ledger, registered).published_version
    if registered is not None and published is not None:
        with suppress(OfflineStoreError):
            keep.add(workspace.offline.version(registered.table, published).number)
    return sorted(keep)


def known_versions(workspace: Workspace, registered: RegisteredView | None) -> list[int]:
    """Return the versions of a table whose log entries cleaning must leave: the ledger names them."""
    if registered is None:
        return []
    mark = read_watermark(workspace.ledger, registered)
    return [number for number in (mark.table_version, mark.published_version) if number is not None]


def _take_offline(workspace: Workspace, registered: RegisteredView) -> int:
    """Delete the records of a view that is not online any more, and note that none is: it may be online again."""
    name, holder = registered.view.name, f"gc-{secrets.token_hex(8)}"
    with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock):
        now = workspace.snapshot().views.get(name)
        if now is None or now.view.online or now.generation != registered.generation:
            return 0  # an apply came meanwhile: the next gc looks again
        watermark = read_watermark(workspace.ledger, registered)
        if watermark.published_version is not None or watermark.online_rows:
            write_watermark(workspace.ledger, registered, replace(watermark, published_version=None, online_rows=0))
        return workspace.online.delete(view_prefix(workspace.project, name, registered.generation))


def _unused_prefixes(snapshot: Snapshot, used: dict[str, int]) -> list[tuple[RegisteredView | None, bytes]]:
    """Return the prefixes of records that no definition uses, those of a registered view beside it."""
    prefixes: list[tuple[RegisteredView | None, bytes]] = []
    for name, last in used.items():
        registered = snapshot.views.get(name)
        for generation in range(1, last + 1):
            served = registered is not None and registered.view.online and registered.generation == generation
            # A generation after the registered one may be an apply that is under way.
            if not served and (registered is None or generation <= registered.generation):
                is_registered = registered is not None and generation == registered.generation
                prefixes.append(
                    (registered if is_registered else None, view_prefix(snapshot.project, name, generation))
                )
    return prefixes
