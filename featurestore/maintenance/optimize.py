"""Compacting: many small files of a table become one large file in time order."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurestore.consistency.belonging import compare_before_cleaning, refuse
from featurestore.consistency.ownership import Ownership
from featurestore.ledger.commits import bind_tables
from featurestore.ledger.journal import catch_up
from featurestore.ledger.leases import Lease, holding
from featurestore.ledger.saved_sets import keep_missing_documents, pins
from featurestore.maintenance.gc import kept_versions, known_versions
from featurestore.offline.interface import MAX_SEQUENCE, DataFile, TableVersion
from featurestore.offline.merge import replace_files
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import step
from featurestore.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Compaction:
    """What compaction did to one view's table."""

    view: str
    files_before: int
    files_after: int
    rows: int
    removed: int
    """How many files of earlier versions and leftovers were deleted, because nothing pins them."""


def optimize(workspace: Workspace, views: Sequence[str] | None = None) -> list[Compaction]:
    """Compact the tables of all views, or of some, and delete the files that no saved training set pins.

    Rows, their order of arrival and all results stay the same. Raises NotFoundError for an unknown view,
    RegistryUnavailableError when the pins cannot be read, LeaseHeldError while a run of the view is under way.
    """
    snapshot = workspace.snapshot()
    for name in views or ():
        snapshot.registered(name)
    Ownership(workspace)
    keep_missing_documents(workspace)
    pinned = pins(workspace)
    # Log entries go below that say when rows became known.
    catch_up(workspace, [snapshot.registered(name).table for name in views or snapshot.views], most=MAX_SEQUENCE)
    done = []
    for name in views or sorted(snapshot.views):
        holder = f"optimize-{secrets.token_hex(8)}"
        with (
            step("optimize", f"optimize {name}"),
            holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock) as lease,
        ):
            registered = workspace.snapshot().registered(name)  # an apply may have come while this waited for the lease
            refuse(compare_before_cleaning(workspace, registered))
            version = workspace.offline.current(registered.table)
            if version is not None:
                after = _compact(workspace, registered, version, lease) if len(version.files) > 1 else version
                removed = _clean(workspace, registered, after, pinned.get(registered.table, ()))
                done.append(Compaction(name, len(version.files), len(after.files), after.rows, removed))
    return done


def _compact(workspace: Workspace, registered: RegisteredView, version: TableVersion, lease: Lease) -> TableVersion:
    def write(files: Sequence[DataFile]) -> Sequence[Path]:
        folder = workspace.offline.staging(registered.table)
        return workspace.engine.log.compact(registered.view, [file.path for file in files], folder)

    bind_tables(workspace.offline, registered)
    return replace_files(workspace.offline, version, version.files, write, lease.check)


def _clean(workspace: Workspace, registered: RegisteredView, version: TableVersion, pinned: Collection[int]) -> int:
    keep = list(pinned)
    known = known_versions(workspace, registered)
    # No run is under way, and if rows were only added since, the next one needs no file of the online version.
    if known is None or any(number < version.rows_kept_since for number in known):
        keep = kept_versions(workspace, registered, pinned)
    return workspace.offline.clean(registered.table, keep=keep, known=known)
