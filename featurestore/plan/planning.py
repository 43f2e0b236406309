"""Making a plan: the definitions compared with what is applied. Everything here only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

from featurestore.consistency.belonging import compare_table, part_mismatch
from featurestore.consistency.online_rows import count_online
from featurestore.consistency.remains import pushed_rows_of, rows_of
from featurestore.definitions import Definition, FeatureSelection, FeatureService, FeatureView
from featurestore.errors import DefinitionError, OnlineStoreUnavailableError, RegistryFormatError, did_you_mean
from featurestore.following.held import held_layouts, not_held
from featurestore.ledger.commits import Remembered, last_read
from featurestore.ledger.consumers import list_consumers, readers_of
from featurestore.ledger.generations import Generations, last_generation
from featurestore.ledger.prepared import PreparedReader
from featurestore.ledger.saved_sets import list_sets
from featurestore.ledger.watermarks import read_watermark
from featurestore.offline.interface import TableId
from featurestore.plan.changes import Loss, Plan, Step
from featurestore.plan.classes import ChangeClass, Difference, deletion_class, differences
from featurestore.plan.labels import check_labels
from featurestore.plan.notices import step_notices
from featurestore.plan.remedies import commands_after, read_by
from featurestore.plan.schemas import pin_schemas
from featurestore.plan.server_code import code_of, lack_of_code
from featurestore.plan.version_control import lacks
from featurestore.project.loader import collect
from featurestore.quarantine.held import noted_held
from featurestore.registered.records import KINDS, from_records, to_record, with_dependencies
from featurestore.registered.snapshot import RegisteredView, Snapshot, generation_key
from featurestore.served.shape import SECRET_HINT, lack_of_secret
from featurestore.windows.layout import Layout
from featurestore.workspace import Readers

SHOWN_COMMIT = 12


def as_if_applied(workspace: Readers, asked: Sequence[Any]) -> Snapshot:
    """Return the snapshot that an apply of what is asked for would make, by name or as objects; changes nothing."""
    names = {each.partition(":")[0] for each in asked if isinstance(each, str)}
    wanted: list[Any] = [found for found in workspace.code if found.name in names]
    wanted += [each.view if isinstance(each, FeatureSelection) else each for each in asked]
    definitions = collect([each for each in wanted if isinstance(each, Definition)])
    applied = workspace.snapshot()
    planned = make_plan(workspace, definitions, partial=True).result(applied)
    return planned.with_code([*workspace.code, *definitions])


def make_plan(
    workspace: Readers,
    definitions: Iterable[Definition],
    *,
    partial: bool,
    of_repo: bool = False,
    refresh_schema: bool = False,
    prepare: bool = False,
) -> Plan:
    """Compare definitions with what is applied. Changes nothing.

    ``partial``: definitions that are not given stay; otherwise the plan deletes them. ``of_repo``: they are those of
    the feature repo as it is checked out. ``prepare``: see `Plan.prepare`; it has no effect for a project that was
    never applied. Raises what `pin_schemas` raises for a source that does not fit.
    """
    snapshot = workspace.snapshot()
    prepare = prepare and bool(snapshot.revision)
    applied = {name: registered.view for name, registered in snapshot.views.items()}
    wanted, notices = pin_schemas(list(definitions), applied, workspace.engine, refresh=refresh_schema)
    order = {kind: position for position, kind in enumerate(KINDS)}
    wanted.sort(key=lambda found: (order[found.kind], found.name))
    given = {(found.kind, found.name) for found in wanted}
    _check_together(snapshot, wanted, partial=partial)
    filled = {found.name for found in wanted if prepare and isinstance(found, FeatureView)}
    putting = _Putting(workspace, snapshot, filled)
    consumers = list_consumers(workspace.ledger, workspace.project)
    steps = [step for found in wanted if (step := putting.step(found)) is not None]
    if not partial:
        gone = [found for key, found in snapshot.definitions.items() if key not in given]
        gone.sort(key=lambda found: (-order[found.kind], found.name))
        keys = {found.key for found in gone}
        steps = [*(_delete_step(workspace, snapshot, found, keys) for found in gone), *steps]
    touched = [(key, *snapshot.users_of(key)) for key in (f"{step.kind}:{step.name}" for step in steps)]
    steps = [
        replace(step, consumers=readers_of(consumers, of)) if step.action != "create" else step
        for step, of in zip(steps, touched, strict=True)
    ]
    notices += _unknown_tables(workspace, snapshot)
    remembered = Remembered(workspace.ledger, workspace.project)
    for registered in snapshot.views.values():
        mismatch = compare_table(workspace, registered, remembered)
        if mismatch is not None:
            notices.append(f"{mismatch.message} {mismatch.hint}")
    notices += _lack_of_secret(workspace, wanted, snapshot.definitions if partial else {})
    # Several views may report the same problem of the project: say it once.
    told = tuple(dict.fromkeys(notices))
    plan = Plan(workspace.project, snapshot.revision, snapshot.chain.head, tuple(steps), told, prepare=prepare)
    about = _about(workspace, snapshot, plan, of_repo=of_repo, partial=partial) if steps else ()
    return replace(plan, notices=(*about, *told))


def _about(workspace: Readers, snapshot: Snapshot, plan: Plan, *, of_repo: bool, partial: bool) -> Iterator[str]:
    """Yield what to know about a plan as a whole: whether the project is the one that is meant, and who is behind."""
    definitions = workspace.registry.definitions
    if not snapshot.revision and (others := definitions.projects()):
        hint = did_you_mean(plan.project, others)
        yield f"The registry does not know project {plan.project!r} yet: this makes it. {hint}".rstrip()
    newest = next(iter(definitions.history(plan.project, limit=1)), None) if of_repo else None
    if newest is not None and lacks(workspace.root, newest.commit):
        yield (
            f"Revision {newest.number} was applied by {newest.author} from git commit {newest.commit[:SHOWN_COMMIT]}, "
            "which this checkout does not have: what it changed would be undone. Pull first."
        )
    if not partial and (told := lack_of_code(workspace, code_of(plan, snapshot))):
        yield f"{told} They answer code_mismatch for it from the apply on, until they have it and are restarted."


def check_readable(snapshot: Snapshot, plan: Plan) -> None:
    """Raise DefinitionError where the registry would then hold a project that nobody can read any more.

    Reads back what the plan writes, and the unchanged definitions that depend on it.
    """
    if snapshot.chain.head != plan.base:
        return  # the apply is refused for that reason
    result = {record.key: record for record in plan.result(snapshot).records}
    written = {step.record.key: step.record for step in plan.steps if step.record is not None}
    for record in written.values():
        try:
            from_records(with_dependencies([record.key], result))
        except RegistryFormatError as error:
            raise DefinitionError(
                f"{record.kind} {record.name!r} was not applied: nothing could read it back: {error.details['reason']}",
                hint="This is a fault of featurestore. Write the definition in another way, and report this one.",
                kind=record.kind,
                name=record.name,
            ) from None
    touched = {f"{step.kind}:{step.name}" for step in plan.steps}
    affected = {key for step in plan.steps for key in step.affects} - touched
    for kept in (record for record in snapshot.records if record.key in affected):
        try:
            from_records(with_dependencies([kept.key], result))  # what another one lacks is not this one's fault
        except RegistryFormatError as error:
            raise DefinitionError(
                f"{kept.kind} {kept.name!r} is applied and does not fit the new definitions: {error.details['reason']}",
                hint="Apply its new form with them, or delete it first.",
                kind=kept.kind,
                name=kept.name,
            ) from None


def _lack_of_secret(
    workspace: Readers, wanted: Iterable[Definition], others: Mapping[tuple[str, str], Definition]
) -> list[str]:
    """Return a notice about services that keep a log which needs a secret, where the settings have none."""
    after = {**others, **{(found.kind, found.name): found for found in wanted}}
    lack = lack_of_secret(workspace, (each for each in after.values() if isinstance(each, FeatureService)))
    return [] if lack is None else [f"{lack} A server does not start so. {SECRET_HINT}"]


def _unknown_tables(workspace: Readers, snapshot: Snapshot) -> list[str]:
    """Return a notice about tables that exist although the registry does not know the project."""
    count = 0 if snapshot.chain.number else len(workspace.offline.tables(workspace.project))
    if not count:
        return []
    tables = "1 table" if count == 1 else f"{count} tables"
    owner = workspace.offline.owner(workspace.project)
    whose = "" if owner is None else f", of the project with identity {owner[:12]}"
    return [
        f"The offline store holds {tables} of {workspace.project!r}{whose}, and this registry does not know that "
        "project: an apply begins new generations. Check `registry` and `offline_store` in the settings."
    ]


def _check_together(snapshot: Snapshot, wanted: Sequence[Definition], *, partial: bool) -> None:
    """Raise DefinitionError for definitions that do not fit each other, nor with ``partial`` what stays."""
    check_labels(wanted, {name: found.view for name, found in snapshot.views.items()} if partial else {})
    for found in wanted if partial else ():
        other = {"feature_view": "on_demand_feature_view", "on_demand_feature_view": "feature_view"}.get(found.kind)
        if other is not None and (other, found.name) in snapshot.definitions:
            raise DefinitionError(
                f"{found.title} {found.name!r}: the name is taken by another kind of view.",
                hint="Feature references are view:feature for both kinds; rename one of them.",
            )


class _Putting:
    """Makes the steps that create and update, in the order of kinds: sources come before the views that read them.

    Views that are ``filled`` are so before they are served, if they get a new generation.
    """

    def __init__(self, workspace: Readers, snapshot: Snapshot, filled: set[str]) -> None:
        self._workspace, self._snapshot, self._filled = workspace, snapshot, filled
        self._generations = Generations(workspace, snapshot.chain.identity)
        self._rebuilt: set[str] = set()
        """``kind:name`` of sources whose rows change."""

    def step(self, wanted: Definition) -> Step | None:
        """Return the step that leads to a definition, None where it is already applied."""
        workspace, snapshot = self._workspace, self._snapshot
        before = snapshot.definitions.get((wanted.kind, wanted.name))
        generation: int | None = None
        registered = snapshot.views.get(wanted.name) if isinstance(wanted, FeatureView) else None
        held: tuple[Layout, ...] = ()
        if isinstance(wanted, FeatureView) and wanted.online and wanted.aggregations and registered is not None:
            held = held_layouts(workspace, registered) if registered.view != wanted else ()
        changes = [] if before is None else differences(before, wanted, held)
        if isinstance(wanted, FeatureView):
            if registered is not None and wanted.name in self._filled:
                changes += [_reread(key) for key in sorted(read_by(wanted) & self._rebuilt)]
            generation = self._generation(wanted, registered, changes)
        record = to_record(workspace.project, wanted, generation=generation or 1)
        known = next((r for r in snapshot.records if r.key == record.key), None)
        if known is not None and known.fingerprint == record.fingerprint:
            return None
        change_class = max((change.change_class for change in changes), default=ChangeClass.COMPATIBLE)
        if change_class is ChangeClass.REBUILD:
            self._rebuilt.add(wanted.key)
        is_replaced = registered is not None and generation != registered.generation
        loss = _loss(workspace, snapshot, wanted.name) if is_replaced else None
        pushed = 0 if loss is None else loss.pushed_rows
        if pushed:
            changes.append(Difference("rows that were pushed", pushed, 0, ChangeClass.BREAKING))
            change_class = max(change_class, ChangeClass.BREAKING)
        return Step(
            action="create" if before is None else "update",
            kind=wanted.kind,
            title=wanted.title,
            name=wanted.name,
            change_class=change_class,
            differences=tuple(changes),
            affects=snapshot.users_of(wanted.key) if before is not None else (),
            record=record,
            generation=generation,
            loss=loss,
            notices=(
                *step_notices(workspace.ledger, snapshot, before, wanted, is_replaced=is_replaced, pushed=pushed),
                *(self._earlier_rows(wanted, generation) if registered is None else ()),
            ),
            commands=self._commands(wanted, changes, held, is_replaced=is_replaced),
            waiting=not_held(held, wanted) if isinstance(wanted, FeatureView) and not is_replaced else (),
            is_new_generation=generation is not None and (registered is None or is_replaced),
        )

    def _commands(
        self, wanted: Definition, changes: Sequence[Difference], held: tuple[Layout, ...], *, is_replaced: bool
    ) -> tuple[str, ...]:
        found = commands_after(self._workspace.ledger, self._snapshot, wanted, changes, is_new=is_replaced, held=held)
        if is_replaced or any(change.needs_rebuild for change in changes):
            return tuple(command for command in found if command.rpartition(" --view ")[2] not in self._filled)
        return found

    def _generation(self, wanted: FeatureView, registered: RegisteredView | None, changes: Sequence[Difference]) -> int:
        is_rebuilt = wanted.name in self._filled and any(change.needs_rebuild for change in changes)
        after = 0 if registered is None else registered.generation
        if registered is not None and not is_rebuilt and not any(change.new_generation for change in changes):
            return after
        if wanted.name in self._filled:
            workspace = self._workspace
            since = None if registered is None else last_read(workspace.ledger, workspace.offline, registered)
            prepared = self._prepared.find(wanted, after, since)
            if prepared is not None and self._is_whole(wanted, prepared.generation):
                return prepared.generation
        return self._generations.unused(wanted.name, after=after)

    @cached_property
    def _prepared(self) -> PreparedReader:
        return PreparedReader(self._workspace.ledger, self._workspace.project, self._snapshot.chain.head)

    def _earlier_rows(self, wanted: Definition, generation: int | None) -> Iterable[str]:
        """Report tables that an earlier view of this name left, because their deletion was not finished."""
        workspace = self._workspace
        if not isinstance(wanted, FeatureView) or not self._snapshot.revision:
            return
        last = last_generation(workspace.ledger, workspace.project, wanted.name)
        for table in workspace.offline.tables(workspace.project) if last else ():
            if table.view == wanted.name and table.generation <= last and table.generation != generation:
                yield (
                    f"table {table} of an earlier {wanted.name} still exists. Its rows are not used, and `fs gc` "
                    "removes them."
                )

    def _is_whole(self, wanted: FeatureView, generation: int) -> bool:
        """Tell whether the prepared table is as this registry left it: a store may have been restored since."""
        workspace = self._workspace
        planned = RegisteredView(workspace.project, wanted, generation, self._snapshot.chain)
        found = [compare_table(workspace, planned)]
        if wanted.online:
            with suppress(OnlineStoreUnavailableError):
                found.append(part_mismatch(workspace, planned))
        return all(mismatch is None or mismatch.heals for mismatch in found)


def _reread(source: str) -> Difference:
    return Difference(f"rows of {source}", "as they were read", "as the source gives them", ChangeClass.REBUILD)


def _delete_step(workspace: Readers, snapshot: Snapshot, gone: Definition, leaving: set[str]) -> Step:
    is_view = isinstance(gone, FeatureView)
    generation = snapshot.views[gone.name].generation if is_view else 0
    drops = tuple(TableId(workspace.project, gone.name, number + 1) for number in range(generation))
    return Step(
        action="delete",
        kind=gone.kind,
        title=gone.title,
        name=gone.name,
        change_class=deletion_class(gone),
        affects=tuple(key for key in snapshot.users_of(gone.key) if key not in leaving),
        drops=drops,
        loss=_loss(workspace, snapshot, gone.name, deleted=drops) if is_view else None,
    )


def _loss(workspace: Readers, snapshot: Snapshot, name: str, *, deleted: Sequence[TableId] = ()) -> Loss:
    """Return what a view loses: its rows now, or with ``deleted`` those of every generation that still exists."""
    registered = snapshot.views[name]
    there = set(workspace.offline.tables(workspace.project)) & {*deleted} if deleted else set()
    tables = {registered.table, *there}
    marks = {
        table: read_watermark(workspace.ledger, replace(registered, generation=table.generation)) for table in tables
    }
    rows = [(mark, rows_of(workspace.offline, table)) for table, mark in marks.items()]
    saved = list_sets(workspace.ledger, workspace.project) if deleted else []
    held = noted_held(workspace.ledger, workspace.project)
    keys = {generation_key(table.view, table.generation) for table in {*tables, *deleted}}
    return Loss(
        offline_rows=sum(mark.offline_rows if found is None else found for mark, found in rows),
        pushed_rows=sum(pushed_rows_of(workspace, table) for table in tables),
        online_rows=sum(
            count_online(workspace, registered, mark) if table == registered.table else mark.online_rows
            for table, mark in marks.items()
        ),
        deleted=bool(deleted),
        training_sets=tuple(found.name for found in saved if any(read.view == name for read in found.reads)),
        held_rows=sum(found.held for key, found in held.items() if key in keys),
    )
