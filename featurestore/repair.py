"""Settling what does not belong together: the registry decides definitions, the offline table decides rows.

The online store decides nothing: it is made equal to the table. Rows that the table lacks come from its source again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace

from featurestore_registry.documents import Interval

from featurestore.consistency.belonging import Mismatch, compare_all, compare_part, foreign_generations, markers_of
from featurestore.consistency.ownership import Ownership
from featurestore.errors import LedgerConflictError
from featurestore.following.mark import mark_from, read_marks
from featurestore.ledger.commits import (
    REPAIR_KIND,
    REVISION,
    KnownCommit,
    bind_tables,
    facts_of,
    held_of,
    remember_commit,
    watermark_of,
)
from featurestore.ledger.generations import adopt_generation, used_generations
from featurestore.ledger.leases import holding
from featurestore.ledger.runs import RunResult
from featurestore.ledger.saved_sets import KeptSet, add_set, forgotten_sets, list_sets
from featurestore.ledger.watermarks import merge, read_watermark, write_watermark
from featurestore.maintenance.verify import Verification, verify
from featurestore.materialization.jobs import materialize, materialize_incremental, republish
from featurestore.offline.interface import TableId, TableReader, TableSchema, TableVersion
from featurestore.offline.reading import opened
from featurestore.online.records.marker import RECONCILE, Marker
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached, step
from featurestore.types.arrow import arrow_type
from featurestore.workspace import Readers, Workspace

OWNED = crash_point("repair.owned", "the offline tables belong to this registry's project")
SETTLED = crash_point("repair.settled", "one table is marked as this registry's, the ledger does not know yet")
REMEMBERED = crash_point("repair.remembered", "the ledger knows what one table holds, nothing was read again")
TAKEN_OVER = crash_point("repair.taken_over", "one online part belongs to this registry and is still to be reconciled")


@dataclass(frozen=True, slots=True)
class Repairs:
    """What there is to repair."""

    mismatches: tuple[Mismatch, ...]
    forgotten: tuple[KeptSet, ...]
    """Saved training sets that the ledger does not know and whose names are free."""
    unfinished: tuple[str, ...] = ()
    """Views whose repair was cut off."""
    carried: Mapping[str, TableId] = field(default_factory=dict)
    """For each view without a table, the table whose rows it gets."""
    ahead: Mapping[str, int] = field(default_factory=dict)
    """For each view with windows that is online further than its table, at most how many events that lacks."""

    @property
    def actions(self) -> list[str]:
        """What a repair would do: each finding, and below it what settles it."""
        lines = []
        for found in self.mismatches:
            if found.kind == "unfinished":
                continue
            lines += [found.message, f"  -> {_ACTIONS[found.piece, found.heals].format(view=found.view)}"]
            if found.piece == "offline" and found.view in self.carried:
                table = self.carried[found.view]
                lines.append(f"  -> Carries over the rows of {table}, a generation that this registry never had.")
            if found.piece == "online" and (events := self.ahead.get(found.view, 0)) > 0:
                lines.append(f"  -> Up to {events:,} events are online that the table lacks: pushed ones are lost.")
        lines += [f"An earlier repair of {view} was cut off: it is finished now." for view in self.unfinished]
        for kept in self.forgotten:
            lines += [
                f"The registry does not know the saved training set {kept.saved.name}.",
                "  -> It is registered again.",
            ]
        return lines


_ACTIONS = {
    ("offline", False): (
        "This registry takes over the table of {view} with every row in it, and reads the rows that it lacks from the "
        "source again. Pushed rows that the table does not hold are lost."
    ),
    ("offline", True): "The registry learns from the table of {view} what was read into it.",
    ("online", False): (
        "Makes the online records of {view} equal to the offline table, and removes those that only the online store "
        "has."
    ),
    ("online", True): "Publishes the newest rows of {view} again.",
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair` did."""

    runs: tuple[RunResult, ...]
    adopted: tuple[str, ...]
    """Training sets that were registered again."""
    checked: tuple[Verification, ...]
    """What `verify` finds afterwards."""


def find_repairs(workspace: Readers) -> Repairs:
    """Return what to repair; changes nothing. Raises NotFoundError for a project that the registry does not know.

    Raises OnlineStoreUnavailableError too, because the online records may be what does not fit, and OfflineStoreError
    for a table whose log is damaged, because the table decides which rows there are.
    """
    Ownership(workspace)
    for registered in workspace.snapshot().views.values():
        workspace.offline.current(registered.table)
    found, failure = compare_all(workspace)
    if failure is not None:
        raise failure
    views = workspace.snapshot().views
    tables = {mismatch.view for mismatch in found if mismatch.piece == "offline"}
    ahead = {mismatch.view for mismatch in found if mismatch.kind == "ahead"}
    sources = {name: _carried_from(workspace, views[name]) for name in sorted(tables)}
    taken = {saved.name for saved in list_sets(workspace.ledger, workspace.project)}
    return Repairs(
        mismatches=tuple(found),
        forgotten=tuple(kept for kept in forgotten_sets(workspace) if kept.saved.name not in taken),
        unfinished=tuple(name for name, registered in views.items() if _pending(workspace, registered) is not None),
        carried={name: table for name, table in sources.items() if table is not None},
        ahead={name: _events_ahead(workspace, views[name]) for name in sorted(ahead) if views[name].view.aggregations},
    )


def _events_ahead(workspace: Readers, registered: RegisteredView) -> int:
    """Return how many numbers of events the marks online are further than the table; not every number is an event's."""
    version = workspace.offline.current(registered.table)
    marks = map(mark_from, read_marks(workspace, registered).values())
    return max((mark.sequence + 1 for mark in marks if mark is not None), default=0) - (
        0 if version is None else version.next_sequence
    )


def repair(workspace: Workspace, repairs: Repairs) -> Repaired:
    """Repair the findings, view by view. The next repair finishes one that was cut off.

    Raises LeaseHeldError while a run of a view is under way, and what the stores raise.
    """
    snapshot = workspace.snapshot()
    views = sorted({found.view for found in repairs.mismatches} | {*repairs.unfinished})
    tables = {found.view for found in repairs.mismatches if found.piece == "offline"}
    if any(found.piece == "offline" and found.kind == "other_project" for found in repairs.mismatches):
        workspace.offline.bind(workspace.project, snapshot.chain.identity, replace=True)
        reached(OWNED)
    for name in tables & snapshot.views.keys():
        _take_over_generations(workspace, snapshot.registered(name))
    runs: list[RunResult] = []
    for name in views:
        registered = snapshot.registered(name)
        with step("repair", f"repair {name}"):
            holder = f"repair-{secrets.token_hex(8)}"
            with holding(workspace.ledger, workspace.project, name, holder=holder, clock=workspace.clock):
                spans = _begin(workspace, registered)
                if name in tables:
                    _settle_table(workspace, registered, repairs.carried.get(name))
                if registered.view.online:
                    _take_over_part(workspace, registered)
            done = _read_again(workspace, registered, spans)
            runs += done
            if all(run.state == "done" for run in done):
                _finish(workspace, registered)
    return Repaired(tuple(runs), _adopt(workspace, repairs.forgotten), tuple(verify(workspace)))


@dataclass(frozen=True, slots=True)
class _Spans:
    """The spans that a repair reads again."""

    intervals: tuple[Interval, ...]
    is_incremental: bool


def _pending(workspace: Readers, registered: RegisteredView) -> _Spans | None:
    """Return what a repair that was cut off still has to read again, None where there is none."""
    entry = workspace.ledger.latest(workspace.project, REPAIR_KIND, registered.ledger_key)
    if entry is None or "intervals" not in entry.document:
        return None
    spans = tuple((int(start), int(end)) for start, end in entry.document["intervals"])
    return _Spans(spans, bool(entry.document["is_incremental"]))


def _begin(workspace: Workspace, registered: RegisteredView) -> _Spans:
    """Note, durably, what to read again: so far only the watermark says it, and that is about to be replaced."""
    watermark, pending = read_watermark(workspace.ledger, registered), _pending(workspace, registered)
    earlier = () if pending is None else pending.intervals
    is_incremental = watermark.begun_us is not None or (pending is not None and pending.is_incremental)
    spans = _Spans(merge((*watermark.intervals, *earlier)), is_incremental)
    workspace.ledger.append(workspace.project, REPAIR_KIND, registered.ledger_key, asdict(spans))
    return spans


def _finish(workspace: Workspace, registered: RegisteredView) -> None:
    if registered.view.online and workspace.offline.current(registered.table) is None:
        # The view has no rows offline, so its online records come from nothing.
        workspace.online.delete(registered.online_prefix)
    workspace.ledger.append(workspace.project, REPAIR_KIND, registered.ledger_key, {"finished": True})


def _settle_table(workspace: Workspace, registered: RegisteredView, source: TableId | None) -> None:
    """Mark the table as this registry's, and note in the ledger what it holds."""
    offline, table, before = workspace.offline, registered.table, read_watermark(workspace.ledger, registered)
    version = offline.current(table)
    if version is None and source is not None:
        version = _carry_over(workspace, registered, source)
    held = None
    if version is not None:
        newest = offline.find_commit(table)
        held = held_of(offline, table, newest)
        if newest is not None and newest.facts.get(REVISION) != registered.chain.head:
            bind_tables(offline, registered)
            facts = facts_of(registered, held, "repair")
            version = offline.commit(table, registered.table_schema, base=version.number, add=[], facts=facts)
        reached(SETTLED)
    settled = replace(watermark_of(held), entry=before.entry)
    write_watermark(workspace.ledger, registered, settled.at(version))
    known = None if version is None else KnownCommit(version.number, version.identity)
    remember_commit(workspace.ledger, registered, known)
    reached(REMEMBERED)


def _take_over_generations(workspace: Workspace, registered: RegisteredView) -> None:
    """Make a view's other generations this registry's too, so that it can give them up and clean them."""
    offline, view = workspace.offline, registered.view.name
    for table in offline.tables(workspace.project):
        newest = offline.find_commit(table)
        if table.view != view or table == registered.table or newest is None:
            continue
        if str(newest.facts.get(REVISION)) not in registered.chain:
            facts, as_it_is = facts_of(registered, held_of(offline, table, newest), "repair"), TableSchema((), ())
            offline.commit(table, as_it_is, base=newest.number, add=[], facts=facts)
            adopt_generation(workspace.ledger, workspace.project, view, table.generation)


def _carried_from(workspace: Readers, registered: RegisteredView) -> TableId | None:
    """Return the table whose rows a generation without a table gets: the last one, if its columns are the same.

    A registry that was lost and applied again gives its views new generations, because storage is never used twice. A
    generation that this registry had and gave up is never carried over.
    """
    offline = workspace.offline
    if offline.current(registered.table) is not None:
        return None
    earlier = [table for table in offline.tables(workspace.project) if table.view == registered.view.name]
    source = max(earlier, key=lambda table: table.generation, default=None)
    if source is None or source.generation in used_generations(workspace.ledger, workspace.project).get(
        source.view, ()
    ):
        return None
    version = offline.current(source)
    return source if version is not None and _is_alike(offline, registered, version) else None


def _carry_over(workspace: Workspace, registered: RegisteredView, source: TableId) -> TableVersion:
    """Make a generation's table from the rows of another one, which keeps them."""
    offline = workspace.offline
    version = offline.current(source)
    assert version is not None
    offline.verify(version.files, again=True)
    facts = facts_of(registered, held_of(offline, source, offline.find_commit(source)), "repair")
    return offline.commit(registered.table, registered.table_schema, base=None, add=version.files, facts=facts)


def _is_alike(offline: TableReader, registered: RegisteredView, version: TableVersion) -> bool:
    """Tell whether a table's files have the columns that the view stores, each of the same type."""
    schema = registered.table_schema
    wanted = {name: arrow_type(kind) for name, kind in (*schema.join_keys, *schema.stored)}
    found = []
    for file in version.files:
        with opened(offline, file) as parquet:
            found.append(parquet.schema_arrow)
    keys = {name for name, _ in schema.join_keys}
    return all(
        keys <= {*names.names}
        and all(names.field(name).type == wanted.get(name) for name in names.names if name in wanted)
        for names in found
    )


def _take_over_part(workspace: Workspace, registered: RegisteredView) -> None:
    """Make an online part that does not fit this registry's; the next publish reconciles it."""
    chain = registered.chain
    part = compare_part(workspace, registered)
    for generation in foreign_generations(workspace.online, registered):
        if generation != registered.generation:
            earlier = markers_of(workspace.online, replace(registered, generation=generation))
            earlier.write(Marker(chain.identity, chain.head, generation, None, RECONCILE))
            adopt_generation(workspace.ledger, workspace.project, registered.view.name, generation)
    if part.mismatch is None or part.mismatch.heals:
        return
    markers = markers_of(workspace.online, registered)
    markers.write(Marker(chain.identity, chain.head, registered.generation, None, RECONCILE))
    newest = workspace.offline.find_commit(registered.table)
    markers.note_pushed(*((None, None) if newest is None else (newest.number, newest.identity)))
    reached(TAKEN_OVER)


def _read_again(workspace: Workspace, registered: RegisteredView, spans: _Spans) -> Sequence[RunResult]:
    """Read every committed span again, and what is new; then publish."""
    view, now_us = registered.view.name, workspace.clock()
    settled = read_watermark(workspace.ledger, registered)
    passed = [(start, min(end, now_us)) for start, end in spans.intervals if start < now_us]
    runs = [run for start, end in passed for run in materialize(workspace, start, end, [view])]
    if spans.is_incremental or settled.begun_us is not None:
        runs += materialize_incremental(workspace, None, [view])
    if not runs:  # all its rows were pushed
        runs = republish(workspace, [view])
    return runs


def _adopt(workspace: Workspace, forgotten: Sequence[KeptSet]) -> tuple[str, ...]:
    """Register the sets that the ledger does not know, where their names are free."""
    adopted = []
    for kept in forgotten:
        with suppress(LedgerConflictError):
            add_set(workspace.ledger, workspace.project, kept.saved)
            adopted.append(kept.saved.name)
    return tuple(adopted)
