"""Making a plan: what an apply would do, as a list of steps that *explain* and *apply* both walk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from featurestore_registry.records import Change, Record

from featurestore.definitions import Definition, FeatureView
from featurestore.errors import DefinitionError, OfflineStoreError
from featurestore.metadata.belonging import compare_table
from featurestore.metadata.commits import Remembered
from featurestore.metadata.generations import Generations
from featurestore.metadata.online_rows import count_online
from featurestore.metadata.records import KINDS, to_record
from featurestore.metadata.saved_sets import list_sets
from featurestore.metadata.snapshot import Snapshot
from featurestore.metadata.watermarks import Watermark, read_watermark
from featurestore.metadata.workspace import Workspace
from featurestore.offline.interface import TableId
from featurestore.plan.classes import DELETION_CLASS, ChangeClass, Difference, differences
from featurestore.plan.notices import step_notices
from featurestore.plan.remedies import commands_after
from featurestore.plan.schemas import pin_schemas


@dataclass(frozen=True, slots=True)
class Loss:
    """What a step takes away."""

    offline_rows: int
    """Of the tables, pushed rows included."""
    online_rows: int
    """Entities online, by the offline table; of old generations as the last run counted them."""
    deleted: bool
    """True: by this apply. False: kept under the old generation until `fs gc`."""
    training_sets: tuple[str, ...] = ()
    """Saved sets that could not be built again: the tables they are pinned to would go."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a definition."""

    action: Literal["create", "update", "delete"]
    kind: str
    title: str
    name: str
    change_class: ChangeClass
    differences: tuple[Difference, ...]
    affects: tuple[str, ...]
    """``kind:name`` of what depends on it, directly or not."""
    record: Record | None
    generation: int | None
    """The view's generation after the step."""
    drops: tuple[TableId, ...]
    """Tables, and their online records, that this step deletes."""
    loss: Loss | None
    notices: tuple[str, ...] = ()
    """What its user should know of it: `notices.step_notices`."""
    commands: tuple[str, ...] = ()
    """What to run after it is applied, so that what is stored follows: `remedies.commands_after`."""

    @property
    def change(self) -> Change:
        """What the registry is told."""
        return Change("delete" if self.action == "delete" else "put", self.kind, self.name, self.record)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do to a project that is at ``revision``."""

    project: str
    revision: int
    base: str
    """The hash of that revision, which an apply has to find there still; empty for a new project."""
    steps: tuple[Step, ...]
    notices: tuple[str, ...]
    applied: int | None = None
    """The revision that applying it made, None while it is only a plan."""

    @property
    def worst(self) -> ChangeClass | None:
        """The greatest class among the steps, None when nothing changes."""
        return max((step.change_class for step in self.steps), default=None)

    def __repr__(self) -> str:
        worst = "nothing to change" if self.worst is None else f"the worst change is {self.worst.name.lower()}"
        applied = "" if self.applied is None else f", applied as revision {self.applied}"
        return f"Plan({self.project} at revision {self.revision}: {len(self.steps)} changes, {worst}{applied})"

    def __str__(self) -> str:
        from featurestore.plan.explain import explain

        return "\n".join("  " * line.indent + line.text for line in explain(self))

    def _repr_html_(self) -> str:
        from featurestore.plan.explain import to_html

        return to_html(self)


def make_plan(
    workspace: Workspace, definitions: Iterable[Definition], *, partial: bool, refresh_schema: bool = False
) -> Plan:
    """Compare definitions with what is applied. Changes nothing.

    ``partial``: definitions that are not given stay; otherwise they are planned for deletion. Raises what
    `pin_schemas` raises for a source that does not fit.
    """
    snapshot = workspace.snapshot()
    applied = {name: registered.view for name, registered in snapshot.views.items()}
    wanted, notices = pin_schemas(list(definitions), applied, workspace.engine, refresh=refresh_schema)
    order = {kind.kind: position for position, kind in enumerate(KINDS)}
    wanted.sort(key=lambda found: (order[found.kind], found.name))
    given = {(found.kind, found.name) for found in wanted}
    if partial:
        _check_shared_names(snapshot, wanted)
    generations = Generations(workspace, snapshot.chain.identity)
    steps = [step for found in wanted if (step := _put_step(workspace, snapshot, found, generations)) is not None]
    if not partial:
        gone = [found for key, found in snapshot.definitions.items() if key not in given]
        gone.sort(key=lambda found: (-order[found.kind], found.name))
        keys = {found.key for found in gone}
        steps = [*(_delete_step(workspace, snapshot, found, keys) for found in gone), *steps]
    notices += _unknown_tables(workspace, snapshot)
    remembered = Remembered(workspace.ledger, workspace.project)
    for registered in snapshot.views.values():
        mismatch = compare_table(workspace.registry, workspace.offline, registered, remembered)
        if mismatch is not None:
            notices.append(f"{mismatch.message} {mismatch.hint}")
    # What is one for the whole project is said once.
    told = tuple(dict.fromkeys(notices))
    return Plan(workspace.project, snapshot.revision, snapshot.chain.head, tuple(steps), told)


def _unknown_tables(workspace: Workspace, snapshot: Snapshot) -> list[str]:
    """Return what to say of tables that are there before the registry knows the project."""
    count = 0 if snapshot.chain.number else len(workspace.offline.tables(workspace.project))
    if not count:
        return []
    tables = "1 table" if count == 1 else f"{count} tables"
    owner = workspace.offline.owner(workspace.project)
    whose = "" if owner is None else f", of the project with identity {owner[:12]}"
    return [
        f"The offline store holds {tables} of {workspace.project!r}{whose}, and this registry does not know that "
        "project: what is applied here begins new generations. Check `registry` and `offline_store` in the settings."
    ]


def _check_shared_names(snapshot: Snapshot, wanted: Sequence[Definition]) -> None:
    for found in wanted:
        other = {"feature_view": "on_demand_feature_view", "on_demand_feature_view": "feature_view"}.get(found.kind)
        if other is not None and (other, found.name) in snapshot.definitions:
            raise DefinitionError(
                f"{found.title} {found.name!r}: the name is taken by another kind of view.",
                hint="Feature references are view:feature for both kinds; rename one of them.",
            )


def _put_step(workspace: Workspace, snapshot: Snapshot, wanted: Definition, generations: Generations) -> Step | None:
    before = snapshot.definitions.get((wanted.kind, wanted.name))
    changes = () if before is None else tuple(differences(before, wanted))
    generation: int | None = None
    loss: Loss | None = None
    if isinstance(wanted, FeatureView):
        registered = snapshot.views.get(wanted.name)
        if registered is None:
            generation = generations.unused(wanted.name)
        elif any(change.new_generation for change in changes):
            generation = generations.unused(wanted.name, after=registered.generation)
            loss = _loss(workspace, snapshot, wanted.name)
        else:
            generation = registered.generation
    record = to_record(workspace.project, wanted, generation=generation or 1)
    known = next((r for r in snapshot.records if r.key == record.key), None)
    if known is not None and known.fingerprint == record.fingerprint:
        return None
    change_class = max((change.change_class for change in changes), default=ChangeClass.COMPATIBLE)
    return Step(
        action="create" if before is None else "update",
        kind=wanted.kind,
        title=wanted.title,
        name=wanted.name,
        change_class=change_class,
        differences=changes,
        affects=_dependents(snapshot, wanted.key) if before is not None else (),
        record=record,
        generation=generation,
        drops=(),
        loss=loss,
        notices=step_notices(workspace, snapshot, before, wanted),
        commands=commands_after(workspace, snapshot, wanted, changes, is_new=loss is not None),
    )


def _delete_step(workspace: Workspace, snapshot: Snapshot, gone: Definition, leaving: set[str]) -> Step:
    is_view = isinstance(gone, FeatureView)
    generation = snapshot.views[gone.name].generation if is_view else 0
    drops = tuple(TableId(workspace.project, gone.name, number + 1) for number in range(generation))
    return Step(
        action="delete",
        kind=gone.kind,
        title=gone.title,
        name=gone.name,
        change_class=DELETION_CLASS[type(gone)],
        differences=(),
        affects=tuple(key for key in _dependents(snapshot, gone.key) if key not in leaving),
        record=None,
        generation=None,
        drops=drops,
        loss=_loss(workspace, snapshot, gone.name, deleted=drops) if is_view else None,
    )


def _loss(workspace: Workspace, snapshot: Snapshot, name: str, *, deleted: Sequence[TableId] = ()) -> Loss:
    """Return what a view loses: its rows now, or with ``deleted`` those of every generation that is still there."""
    registered = snapshot.views[name]
    there = set(workspace.offline.tables(workspace.project)) & {*deleted} if deleted else set()
    tables = {registered.table, *there}
    marks = {
        table: read_watermark(workspace.ledger, replace(registered, generation=table.generation)) for table in tables
    }
    saved = list_sets(workspace.ledger, workspace.project) if deleted else []
    return Loss(
        offline_rows=sum(_rows(workspace, table, mark) for table, mark in marks.items()),
        online_rows=sum(
            count_online(workspace, registered, mark) if table == registered.table else mark.online_rows
            for table, mark in marks.items()
        ),
        deleted=bool(deleted),
        training_sets=tuple(found.name for found in saved if any(read.view == name for read in found.reads)),
    )


def _rows(workspace: Workspace, table: TableId, watermark: Watermark) -> int:
    """Return the rows of a table, pushed ones included; those of its last run where the table cannot be read."""
    with suppress(OfflineStoreError):
        version = workspace.offline.current(table)
        if version is not None:
            return version.rows
    return watermark.offline_rows


def _dependents(snapshot: Snapshot, key: str) -> tuple[str, ...]:
    """Return the ``kind:name`` of every record that needs ``key``, directly or through others, sorted."""
    found: set[str] = set()
    frontier = {key}
    while frontier:
        frontier = {r.key for r in snapshot.records if frontier & set(r.depends_on)} - found
        found |= frontier
    return tuple(sorted(found))
