"""Settling what does not belong together: the registry decides definitions, the offline table decides rows.

The online store decides nothing: it is made equal to the table. What the table lacks is read from its source again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from featurestore.errors import LedgerConflictError
from featurestore.maintenance.verify import Verification, verify
from featurestore.materialization.jobs import materialize, materialize_incremental, republish
from featurestore.metadata.belonging import Mismatch, compare_part, markers_of, mismatches
from featurestore.metadata.commits import (
    REVISION,
    KnownCommit,
    bind_tables,
    facts_of,
    held_of,
    remember_commit,
    watermark_of,
)
from featurestore.metadata.leases import holding
from featurestore.metadata.ownership import Ownership
from featurestore.metadata.runs import RunResult
from featurestore.metadata.saved_sets import KeptSet, add_set, forgotten_sets, list_sets
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.watermarks import Interval, Watermark, read_watermark, write_watermark
from featurestore.metadata.workspace import Workspace
from featurestore.offline.files import disk_errors
from featurestore.offline.interface import TableVersion
from featurestore.online.marker import RECONCILE, Marker
from featurestore.steps import crash_point, reached, step
from featurestore.types.arrow import arrow_type

OWNED = crash_point("repair.owned", "the offline tables belong to this registry's project")
SETTLED = crash_point("repair.settled", "one table says that it belongs to this registry, the ledger does not know yet")
REMEMBERED = crash_point("repair.remembered", "the ledger knows what one table holds, nothing was read again")
TAKEN_OVER = crash_point("repair.taken_over", "one online part belongs to this registry and is still to be reconciled")


@dataclass(frozen=True, slots=True)
class Repairs:
    """What `repair` found to do."""

    mismatches: tuple[Mismatch, ...]
    forgotten: tuple[KeptSet, ...]
    """Saved training sets that the ledger does not know."""

    @property
    def actions(self) -> list[str]:
        """What would be done: what was found, and below it what settles it."""
        lines = []
        for found in self.mismatches:
            lines += [found.message, f"  -> {_ACTIONS[found.piece, found.heals](found.view)}"]
        for kept in self.forgotten:
            lines += [
                f"The registry does not know the saved training set {kept.saved.name}.",
                "  -> It is registered again.",
            ]
        return lines


_ACTIONS: dict[tuple[str, bool], Callable[[str], str]] = {
    ("offline", False): lambda view: (
        f"This registry takes over the table of {view} with every row in it, and reads from the source again what it "
        "lacks. Pushed rows that the table does not hold are lost."
    ),
    ("offline", True): lambda view: f"The registry learns from the table of {view} what was read into it.",
    ("online", False): lambda view: (
        f"The online records of {view} are made equal to the offline table; those that only the online store has are "
        "removed."
    ),
    ("online", True): lambda view: f"The newest rows of {view} are published again.",
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair` did."""

    runs: tuple[RunResult, ...]
    adopted: tuple[str, ...]
    """Training sets that are registered again."""
    checked: tuple[Verification, ...]
    """What `verify` says of the whole afterwards."""


def find_repairs(workspace: Workspace) -> Repairs:
    """Return what is to be settled; changes nothing. Raises NotFoundError for a project the registry does not know."""
    Ownership(workspace)
    return Repairs(tuple(mismatches(workspace)), tuple(forgotten_sets(workspace)))


def repair(workspace: Workspace, repairs: Repairs) -> Repaired:
    """Settle what was found, view by view; one that was cut off is finished by the next.

    Raises LeaseHeldError while a run of a view is under way, and what the stores raise.
    """
    snapshot = workspace.snapshot()
    views = sorted({found.view for found in repairs.mismatches})
    tables = {found.view for found in repairs.mismatches if found.piece == "offline"}
    if any(found.piece == "offline" and found.kind == "other_project" for found in repairs.mismatches):
        workspace.offline.bind(workspace.project, snapshot.chain.identity, replace=True)
        reached(OWNED)
    runs: list[RunResult] = []
    for name in views:
        registered = snapshot.registered(name)
        with step("repair", f"repair {name}"):
            holder = f"repair-{secrets.token_hex(8)}"
            with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock):
                before = read_watermark(workspace.ledger, registered)
                if name in tables:
                    _settle_table(workspace, registered, before)
                if registered.view.online:
                    _take_over_part(workspace, registered)
            runs += _read_again(workspace, registered, before)
    return Repaired(tuple(runs), _adopt(workspace, repairs.forgotten), tuple(verify(workspace)))


def _settle_table(workspace: Workspace, registered: RegisteredView, before: Watermark) -> None:
    """Let the table say that it belongs to this registry, and the ledger what the table holds."""
    offline, table = workspace.offline, registered.table
    version = offline.current(table) or _carry_over(workspace, registered)
    held = None
    if version is not None:
        newest = offline.find_commit(table)
        held = held_of(offline, newest, registered)
        if newest is not None and newest.facts.get(REVISION) != registered.chain.head:
            bind_tables(offline, registered)
            facts = facts_of(registered, held)
            version = offline.commit(table, registered.table_schema, base=version.number, add=[], facts=facts)
        reached(SETTLED)
    settled = replace(watermark_of(held), entry=before.entry)
    write_watermark(workspace.ledger, registered, _counted(settled, version))
    known = None if version is None else KnownCommit(version.number, version.identity)
    remember_commit(workspace.ledger, registered, known)
    reached(REMEMBERED)


def _carry_over(workspace: Workspace, registered: RegisteredView) -> TableVersion | None:
    """Make a generation that has no table of the last one that has, where that is of the same columns.

    A registry that was lost and applied anew gives its views new generations: storage is never used twice. The files
    are linked, not copied. None where no table fits.
    """
    offline = workspace.offline
    earlier = [table for table in offline.tables(workspace.project) if table.view == registered.view.name]
    source = max(earlier, key=lambda table: table.generation, default=None)
    version = None if source is None else offline.current(source)
    if source is None or version is None or not _is_alike(registered, version):
        return None
    offline.verify(version.files, again=True)
    held = held_of(offline, offline.find_commit(source), registered, table=source)
    folder = offline.staging(registered.table)
    linked = [folder / f"{secrets.token_hex(16)}.parquet" for _ in version.files]
    with disk_errors(f"carry the rows of {source} over to {registered.table}"):
        for path, file in zip(linked, version.files, strict=True):
            path.hardlink_to(file.path)
    facts = facts_of(registered, held)
    return offline.commit(registered.table, registered.table_schema, base=None, add=linked, facts=facts)


def _is_alike(registered: RegisteredView, version: TableVersion) -> bool:
    """Tell whether a table's files have the columns that the view stores, each of the same type."""
    import pyarrow.parquet as pq

    schema = registered.table_schema
    wanted = {name: arrow_type(kind) for name, kind in (*schema.join_keys, *schema.features)}
    found = [pq.read_schema(file.path) for file in version.files]
    keys = {name for name, _ in schema.join_keys}
    return all(
        keys <= {*names.names}
        and all(names.field(name).type == wanted.get(name) for name in names.names if name in wanted)
        for names in found
    )


def _counted(watermark: Watermark, version: TableVersion | None) -> Watermark:
    if version is None:
        return watermark
    greatest_us = max((file.max_event_us for file in version.files), default=None)
    return replace(watermark, table_version=version.number, offline_rows=version.rows, greatest_event_us=greatest_us)


def _take_over_part(workspace: Workspace, registered: RegisteredView) -> None:
    """Let an online part that does not fit belong to this registry, to be reconciled by the next publish."""
    part = compare_part(workspace.registry, workspace.online, workspace.offline, registered)
    if part.mismatch is None or part.mismatch.heals:
        return
    chain, markers = registered.chain, markers_of(workspace.online, registered)
    markers.write(Marker(chain.identity, chain.head, registered.generation, None, RECONCILE))
    newest = workspace.offline.find_commit(registered.table)
    markers.note_pushed(*((None, None) if newest is None else (newest.number, newest.identity)))
    reached(TAKEN_OVER)


def _read_again(workspace: Workspace, registered: RegisteredView, before: Watermark) -> Sequence[RunResult]:
    """Read every span that was committed once more, and what is new; then publish."""
    view, now_us = registered.view.name, workspace.clock()
    settled = read_watermark(workspace.ledger, registered)
    spans: list[Interval] = [(start, min(end, now_us)) for start, end in before.intervals if start < now_us]
    runs = [run for start, end in spans for run in materialize(workspace, start, end, [view])]
    if before.begun_us is not None or settled.begun_us is not None:
        runs += materialize_incremental(workspace, None, [view])
    if not runs:  # it was only ever pushed to
        runs = republish(workspace, [view])
    return runs


def _adopt(workspace: Workspace, forgotten: Sequence[KeptSet]) -> tuple[str, ...]:
    """Register the sets that the ledger does not know, where their names are free."""
    adopted = []
    for kept in forgotten:
        if all(saved.name != kept.saved.name for saved in list_sets(workspace.ledger, workspace.project)):
            try:
                add_set(workspace.ledger, workspace.project, kept.saved)
            except LedgerConflictError:
                continue
            adopted.append(kept.saved.name)
    return tuple(adopted)
