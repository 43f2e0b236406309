"""Removing what nothing refers to any more: old generations, data of deleted views, leftovers of killed runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

from featurestore.metadata.generations import used_generations
from featurestore.metadata.saved_sets import frame_path, frames_folder, list_sets, pins
from featurestore.metadata.snapshot import Snapshot
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
    garbage = Garbage(
        tables=tuple(table for table in unused if table not in pinned),
        kept=tuple(table for table in unused if table in pinned),
        online_prefixes=tuple(_unused_prefixes(snapshot, used)),
    )
    if dry_run:
        return garbage
    records = 0
    files = _remove_unnamed_frames(workspace)
    with step("gc", f"clean up after {workspace.project}", unit="tables") as running:
        for table in tables:
            keep = None if table in garbage.tables else sorted(pinned.get(table, ()))
            files += workspace.offline.clean(table, keep=keep)
            running.advance()
        for prefix in garbage.online_prefixes:
            records += workspace.online.delete(prefix)
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


def _unused_prefixes(snapshot: Snapshot, used: dict[str, int]) -> list[bytes]:
    prefixes = []
    for name, last in used.items():
        registered = snapshot.views.get(name)
        for generation in range(1, last + 1):
            served = registered is not None and registered.view.online and registered.generation == generation
            # A generation after the registered one may be an apply that is under way.
            if not served and (registered is None or generation <= registered.generation):
                prefixes.append(view_prefix(snapshot.project, name, generation))
    return prefixes
