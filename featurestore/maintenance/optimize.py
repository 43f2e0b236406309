"""Compacting: many small files of a table become one large file in time order."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from featurestore.errors import ConcurrentCommitError, NotFoundError, OnlineStoreError, did_you_mean
from featurestore.maintenance.gc import kept_versions
from featurestore.metadata.belonging import compare_table, least_of, markers_of
from featurestore.metadata.commits import KnownCommit, bind_tables, facts_of, held_of, remember_commit
from featurestore.metadata.leases import Lease, holding
from featurestore.metadata.ownership import Ownership
from featurestore.metadata.saved_sets import keep_missing_documents, pins
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.watermarks import read_watermark, write_watermark
from featurestore.metadata.workspace import Workspace
from featurestore.offline.files import disk_errors
from featurestore.offline.interface import TableVersion
from featurestore.steps import crash_point, reached, step

COMMIT_TRIES = 20
"""Of a file that is ready: a try takes as long as a push, and those of one process come once a second."""
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
    Ownership(workspace)
    keep_missing_documents(workspace)
    pinned = pins(workspace)
    done = []
    for name in views or sorted(snapshot.views):
        holder = f"optimize-{secrets.token_hex(8)}"
        with (
            step("optimize", f"optimize {name}"),
            holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock) as lease,
        ):
            registered = workspace.snapshot().registered(name)  # an apply may have come while the lease was awaited
            mismatch = compare_table(workspace.registry, workspace.offline, registered)
            if mismatch is not None and not mismatch.heals:
                raise mismatch.error
            version = workspace.offline.current(registered.table)
            if version is not None:
                after = _compact(workspace, registered, version, lease) if len(version.files) > 1 else version
                keep = kept_versions(workspace, registered, pinned.get(registered.table, ()))
                removed = workspace.offline.clean(registered.table, keep=keep)
                done.append(Compaction(name, len(version.files), len(after.files), after.rows, removed))
    return done


def _compact(workspace: Workspace, registered: RegisteredView, version: TableVersion, lease: Lease) -> TableVersion:
    workspace.offline.verify(version.files, again=True)  # under a new hash bad bytes would pass for sound ones
    bind_tables(workspace.offline, registered)
    path = workspace.offline.staging(registered.table) / f"{secrets.token_hex(16)}.parquet"
    workspace.engine.compact(registered.view, [file.path for file in version.files], path)
    made = _commit(workspace, registered, version, path, lease)
    remember_commit(workspace.ledger, registered, KnownCommit(made.number, made.identity))
    reached(COMMITTED)
    watermark = read_watermark(workspace.ledger, registered)
    moved = replace(watermark, table_version=made.number)
    # The same rows, so all of them are online already; but not what was pushed while they were compacted.
    if watermark.published_version == version.number and made.number == version.number + 1:
        moved = replace(moved, published_version=made.number)
    write_watermark(workspace.ledger, registered, moved)
    if moved.published_version == made.number:
        _mark(workspace, registered, version, made)
    return made


def _mark(workspace: Workspace, registered: RegisteredView, before: TableVersion, made: TableVersion) -> None:
    """Let the online part say that it holds the compacted version; a store that is down learns it from the next run."""
    markers = markers_of(workspace.online, registered)
    with suppress(OnlineStoreError):
        least = least_of(markers.read()[0])
        if least is not None and least.commit == before.identity:
            markers.write(replace(least, version=made.number, commit=made.identity))


def _commit(
    workspace: Workspace, registered: RegisteredView, version: TableVersion, path: Path, lease: Lease
) -> TableVersion:
    """Put the compacted file in the place of a version's files, whatever was pushed meanwhile."""
    base = version
    try:
        for last_try in (False,) * (COMMIT_TRIES - 1) + (True,):
            lease.check()
            tried = path.with_name(f"{secrets.token_hex(16)}.parquet")
            with disk_errors(f"stage the compacted file of {registered.table}"):
                tried.hardlink_to(path)  # a commit takes the file with it, also one that fails
            held = held_of(workspace.offline, workspace.offline.find_commit(registered.table, base.number), registered)
            try:
                return workspace.offline.commit(
                    registered.table,
                    registered.table_schema,
                    base=base.number,
                    add=[tried],
                    remove=version.files,
                    facts=facts_of(registered, held),
                )
            except ConcurrentCommitError:
                newest = workspace.offline.current(registered.table)
                paths = {file.path for file in version.files}
                if last_try or newest is None or not paths <= {file.path for file in newest.files}:
                    raise
                base = newest
    finally:
        path.unlink(missing_ok=True)
    raise AssertionError("the last try returns or raises")
