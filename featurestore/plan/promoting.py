"""Planning a promotion: definitions that one project has, as those of another. Everything here only reads.

Definitions travel as they are stored; generations, watermarks and data belong to their project, and code comes from the
feature repo alone: what an on-demand view runs must be on the target's servers before its definition is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

from featurestore_registry.records import Record

from featurestore.backends import TOKEN_FROM, open_registry
from featurestore.definitions import FeatureView, ParquetSource
from featurestore.errors import AuthError, InputError, NotFoundError, PlanError, SourceError, did_you_mean
from featurestore.plan.changes import Plan, Step
from featurestore.plan.history import SHOWN_HASH, snapshot_at
from featurestore.plan.planning import make_plan
from featurestore.plan.rollback import keys_named
from featurestore.plan.server_code import check_code, code_of
from featurestore.registered.records import from_records, with_dependencies
from featurestore.registered.snapshot import Snapshot
from featurestore.workspace import Readers


def plan_promotion(
    workspace: Readers,
    names: Sequence[str],
    project: str,
    *,
    at: int | str | None = None,
    paths: Mapping[str, str] | None = None,
    has_servers: bool = True,
    prepare: bool = False,
) -> Plan:
    """Return a plan that brings definitions of another project of the registry here, with all that they depend on.

    They are those of the project's newest revision, or of ``at``. What is not named stays. A source keeps the path that
    it has here, a new one brings its own, unless ``paths`` has one for its name. ``has_servers``: the servers of this
    project must hold the code of on-demand views that change. Raises NotFoundError for an unknown project, revision or
    name, InputError for a path of another source, RegistryFormatError, with its name, for a stored definition that
    nobody would have declared.
    """
    if not names:
        raise InputError("No name is given.", hint="Name the views and services to promote.")
    if project == workspace.project:
        raise InputError(
            f"{project!r} would be promoted to itself.", hint="Name another project with --from, or the target by --to."
        )
    source, target = _source(workspace, project, at), workspace.snapshot()
    by_key = {record.key: record for record in source.records}
    chosen = list(dict.fromkeys(key for name in names for key in keys_named((source,), name)))
    records, notices = _with_paths(with_dependencies(chosen, by_key), source, target, paths or {})
    definitions = from_records(records).values()
    try:
        plan = make_plan(workspace, definitions, partial=True, prepare=prepare)
    except SourceError as error:
        hint = f"{error.hint} --source NAME=PATH says what a source reads in {target.project}.".lstrip()
        raise type(error)(error.message, hint=hint, **error.details) from None
    if not target.revision and not plan.notices:  # nor does the plan say so: the token sees no other project
        notices.insert(0, f"The registry does not know project {target.project!r} yet: this makes it.")
    at_revision = f"{project} revision {source.revision} ({source.chain.head[:SHOWN_HASH]})"
    plan = replace(
        plan,
        steps=tuple(_with_commands(step, prepare=plan.prepare) for step in plan.steps),
        message=f"promoted {', '.join(names)} from {at_revision}",
        code=code_of(plan, target),
        has_servers=has_servers,
    )
    try:
        check_code(workspace, plan)
    except PlanError as error:
        notices.append(f"At present the apply would be refused. {error.message}")
    return replace(plan, notices=(*notices, *plan.notices))


def _source(workspace: Readers, project: str, at: int | str | None) -> Snapshot:
    with ExitStack() as opened:
        registry = workspace.registry
        if token := os.environ.get(TOKEN_FROM, "").strip():
            registry = opened.enter_context(
                open_registry(
                    workspace.settings.registry, workspace.root, create=False, clock=workspace.clock, token=token
                )
            )
        try:
            found = snapshot_at(registry.definitions, project, at)
            known = [] if found.revision else registry.definitions.projects()
        except AuthError as error:
            raise AuthError(
                f"Project {project!r} cannot be read: {error.message}",
                status=error.status,
                hint=f"Put a viewer's token of {project!r} into {TOKEN_FROM}; FS_REGISTRY_TOKEN is for the target.",
            ) from None
    if not found.revision:
        what = f"Project {project!r} has nothing to promote" + (" at revision 0." if project in known else ".")
        raise NotFoundError(what, hint=did_you_mean(project, known), project=project)
    return found


def _with_paths(
    records: Sequence[Record], source: Snapshot, target: Snapshot, paths: Mapping[str, str]
) -> tuple[list[Record], list[str]]:
    """Return the records with each source's path in the target, and what people should know about those paths."""
    sources = {record.name for record in records if record.kind == ParquetSource.kind}
    for name in paths:
        if name not in sources:
            raise InputError(
                f"--source names {name!r}, which is no source of what is promoted.", hint=did_you_mean(name, sources)
            )
    own = {r.name: r.document.get("path") for r in target.records if r.kind == ParquetSource.kind}
    made, notices = [], []
    for record in records:
        if record.kind == ParquetSource.kind and "path" in record.document:
            name, theirs = record.name, record.document["path"]
            path = paths.get(name, own.get(name, theirs))
            if name not in own and name not in paths:
                notices.append(f"Source {name} is new here and reads {path}; --source {name}=PATH sets another path.")
            elif path != theirs and name not in paths:
                notices.append(f"Source {name} keeps its path {path}; in {source.project} it reads {theirs}.")
            record = replace(record, document={**record.document, "path": path})
        made.append(record)
    return made, notices


def _with_commands(step: Step, *, prepare: bool) -> Step:
    """Return a step with the command that fills a new view: its data stays where it is."""
    if step.kind != FeatureView.kind or not step.is_new_generation or step.commands or prepare:
        return step
    return replace(step, commands=(f"fs materialize --view {step.name}",))
