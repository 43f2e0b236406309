"""Planning the way back: the definitions of an older revision as those of a new one. Everything here only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from featurestore_registry.records import Record

from featurestore.definitions import Definition, OnDemandFeatureView
from featurestore.errors import InputError, NotFoundError, RegistryFormatError, did_you_mean
from featurestore.plan.changes import Plan
from featurestore.plan.history import snapshot_at
from featurestore.plan.planning import make_plan
from featurestore.plan.version_control import DIRTY
from featurestore.project.loader import collect
from featurestore.registered.records import from_records, kind_named, with_dependencies
from featurestore.registered.snapshot import Snapshot
from featurestore.workspace import Readers


def plan_rollback(
    workspace: Readers, revision: int | str, names: Sequence[str] | None = None, *, prepare: bool = False
) -> Plan:
    """Return a plan that brings back the definitions of a revision: all of them, or those of ``names``.

    With ``names`` all else stays; what a named definition needs and is gone comes back with it, and one that the
    revision does not have is deleted. A view whose stored data does not fit begins a generation that was never used.
    Raises NotFoundError for an unknown revision or name, InputError where the definitions would not fit together.
    """
    snapshot = workspace.known_snapshot()
    old = snapshot_at(workspace.registry.definitions, workspace.project, revision)
    if not old.revision:
        raise InputError("Revision 0 is the project before its first apply.", hint="`fs teardown` deletes a project.")
    records = {record.key: record for record in (old.records if names is None else _mixed(snapshot, old, names))}
    definitions = _definitions(old, records)
    plan = make_plan(workspace, definitions, partial=False, prepare=prepare)
    history = workspace.registry.definitions.history(workspace.project, limit=plan.revision - old.revision + 1)
    commit = next((info.commit for info in history if info.number == old.revision), "")
    plan = replace(plan, message=f"rollback to revision {revision}", commit=commit)
    if not plan.steps:
        return plan
    return replace(plan, notices=(*plan.notices, *_notices(workspace, old, plan, definitions)))


def keys_named(snapshots: Sequence[Snapshot], name: str) -> list[str]:
    """Return the ``kind:name`` of all that is called ``name`` in any snapshot; a kind may stand before the name.

    Raises NotFoundError with the closest name.
    """
    kind, _, bare = name.rpartition(":")
    wanted = kind_named(kind) if kind else None
    records = [record for snapshot in snapshots for record in snapshot.records]
    found = dict.fromkeys(r.key for r in records if r.name == bare and wanted in (None, r.kind))
    if not found:
        hint = did_you_mean(bare, {record.name for record in records})
        raise NotFoundError(f"Nothing called {name!r} is registered.", hint=hint, name=name)
    return list(found)


def _mixed(snapshot: Snapshot, old: Snapshot, names: Sequence[str]) -> list[Record]:
    """Return the newest records with those that are named as they were."""
    if not names:
        raise InputError("No name is given.", hint="Name what goes back, or leave the names out for the whole project.")
    known = {record.key: record for record in old.records}
    found = {record.key: record for record in snapshot.records}
    chosen = [key for name in names for key in keys_named((old, snapshot), name)]
    for key in chosen:
        found.pop(key, None)
    found |= {key: known[key] for key in chosen if key in known}
    for record in with_dependencies(chosen, known):
        found.setdefault(record.key, record)
    return list(found.values())


def _definitions(old: Snapshot, records: dict[str, Record]) -> list[Definition]:
    for record in records.values():
        for needed in record.depends_on:
            if needed not in records:
                raise InputError(
                    f"{record.key} uses {needed}, which revision {old.revision} does not have.",
                    hint=f"Name {record.key}, too, or roll the whole project back.",
                )
    try:
        return collect(from_records(records.values()).values())
    except RegistryFormatError as error:
        raise InputError(
            f"The definitions of revision {old.revision} and the newest ones do not fit together: "
            f"{error.details.get('reason', error.message)}",
            hint="Name what they read, and what reads them, too, or roll the whole project back.",
        ) from None


def _notices(workspace: Readers, old: Snapshot, plan: Plan, definitions: Sequence[Definition]) -> list[str]:
    """Return what a rollback does not do: neither files nor code come back with it."""
    back = f" Bring them back, too: that revision was applied from git commit {plan.commit}." if plan.commit else ""
    if back.endswith(f"{DIRTY}."):
        back += " (With changes that were not committed.)"
    told = [
        "The files of the feature repo are not changed: the next `fs apply` would undo this."
        + (back or " Bring them back, too.")
    ]
    touched = {step.name for step in plan.steps if step.kind == OnDemandFeatureView.kind and step.record is not None}
    code = workspace.code if touched else ()
    loaded = {found.name: found.code_hash for found in code if isinstance(found, OnDemandFeatureView)}
    for found in (found for found in definitions if isinstance(found, OnDemandFeatureView)):
        if found.name in touched and loaded.get(found.name) != found.code_hash:
            told.append(
                f"The code of {found.name} in the feature repo is another than that of revision {old.revision}. Code "
                "never comes from the registry: nobody can read this view until the repo has the old code again."
            )
    return told
