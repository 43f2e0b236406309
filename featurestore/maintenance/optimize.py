"""Compacting: many small files of a table become one large file in time order."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from featurestore.errors import NotFoundError, did_you_mean
from featurestore.metadata.leases import Lease, holding
from featurestore.metadata.saved_sets import pins
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.watermarks import read_watermark, write_watermark
from featurestore.metadata.workspace import Workspace
from featurestore.offline.interface import TableVersion
from featurestore.steps import crash_point, reached, step

COMMITTED = crash_point("optimize.committed", "the compacted version is committed, its watermark is not")


@dataclass(frozen=True, slots=True)
class Compaction:
    """What became of one view's table."""

    view: str
    files_before: int
    files_after: int
    rows: int
    removed: int
    """Files of earlier versions, and leftovers, that were deleted: nothing pins them."""


def optimize(workspace: Workspace, views: Sequence[str] | None = None) -> list[Compaction]:
    """Compact the tables of all views, or of some, and delete the files that no saved training set pins.

    Rows, their order of arrival and all results stay the same. Raises NotFoundError for an unknown view,
    RegistryUnavailableError when the pins cannot be read, LeaseHeldError while a run of the view is under way.
    """
    snapshot = workspace.snapshot()
    for name in views or ():
        if name not in snapshot.views:
            raise NotFoundError(f"There is no feature view {name!r}.", hint=did_you_mean(name, snapshot.views))
    pinned = pins(workspace.ledger, workspace.project)
    done = []
    for name in views or sorted(snapshot.views):
        registered = snapshot.views[name]
        holder = f"optimize-{secrets.token_hex(8)}"
        with (
            step("optimize", f"optimize {name}"),
            holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock) as lease,
        ):
            version = workspace.offline.current(registered.table)
            if version is not None:
                after = _compact(workspace, registered, version, lease) if len(version.files) > 1 else version
                removed = workspace.offline.clean(registered.table, keep=sorted(pinned.get(registered.table, ())))
                done.append(Compaction(name, len(version.files), len(after.files), after.rows, removed))
    return done


def _compact(workspace: Workspace, registered: RegisteredView, version: TableVersion, lease: Lease) -> TableVersion:
    workspace.offline.verify(version.files)
    path = workspace.offline.staging(registered.table) / f"{secrets.token_hex(16)}.parquet"
    workspace.engine.compact(registered.view, [file.path for file in version.files], path)
    lease.check()
    made = workspace.offline.commit(
        registered.table, registered.table_schema, base=version.number, add=[path], remove=version.files
    )
    reached(COMMITTED)
    watermark = read_watermark(workspace.ledger, registered)
    moved = replace(watermark, table_version=made.number)
    if watermark.published_version == version.number:
        moved = replace(moved, published_version=made.number)  # the same rows, so all of them are online already
    write_watermark(workspace.ledger, registered, moved)
    return made
