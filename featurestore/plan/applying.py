"""Applying a plan: one registry transaction, then deleting what the plan said it would delete."""

from __future__ import annotations

import getpass
import socket
from contextlib import suppress
from dataclasses import replace

from featurestore.consistency.ownership import Ownership
from featurestore.consistency.remains import with_remains
from featurestore.errors import (
    ChangesNotAllowedError,
    FeatureStoreError,
    LedgerConflictError,
    OnlineStoreError,
    RevisionConflictError,
)
from featurestore.ledger.commits import last_read
from featurestore.ledger.generations import remember_generation
from featurestore.ledger.journal import catch_up_quietly
from featurestore.ledger.prepared import Preparations, Prepared, mark_of
from featurestore.offline.interface import MAX_SEQUENCE, TableId
from featurestore.online.records.keys import project_prefix, view_prefix
from featurestore.plan.changes import Plan, Step
from featurestore.plan.classes import FLAGS, ChangeClass
from featurestore.plan.planning import check_readable
from featurestore.plan.server_code import check_code
from featurestore.plan.version_control import commit_of
from featurestore.quarantine.cleaning import clean_gone
from featurestore.registered.snapshot import Snapshot
from featurestore.statistics.gone import forget_gone
from featurestore.steps import crash_point, reached, step
from featurestore.workspace import Workspace

APPLIED = crash_point("apply.committed", "the new revision is in the registry; dropped views still have data")
DROPPED = crash_point("apply.dropped", "one dropped view's data is deleted")

_PLAN_AGAIN = "Run the same command again, and look at the plan: something changed meanwhile."


def check_allowed(plan: Plan, *, allow_breaking: bool, allow_destroy: bool) -> None:
    """Raise ChangesNotAllowedError naming the first step whose class needs a flag that was not given."""
    allowed = {ChangeClass.BREAKING: allow_breaking, ChangeClass.DESTRUCTIVE: allow_destroy}
    for planned in plan.steps:
        if not allowed.get(planned.change_class, True):
            flag = FLAGS[planned.change_class]
            argument = flag.removeprefix("--").replace("-", "_")
            raise ChangesNotAllowedError(
                f"{planned.action} {planned.title} {planned.name!r} is {planned.change_class.name.lower()}"
                f"{_lost(planned)}, and nothing was applied.",
                hint=f"If that is what you want, apply with {flag} (in Python {argument}=True).",
                step=planned.name,
                change_class=planned.change_class.name.lower(),
            )


def _lost(planned: Step) -> str:
    if planned.loss is None:
        return ""
    verb = "deletes" if planned.loss.deleted else "sets aside"
    return f" ({verb} {planned.loss.offline_rows:,} offline and {planned.loss.online_rows:,} online rows)"


def apply_plan(workspace: Workspace, plan: Plan, *, message: str = "", finish: str = "fs gc") -> int:
    """Apply a plan's steps and return the revision that the project is at afterwards.

    Having changed nothing, raises RevisionConflictError when another apply came since the plan was made, and
    DefinitionError for what nobody could read back. An empty plan changes nothing. Definitions are deleted before their
    data: a crash in between leaves data without a definition, which `fs gc` removes, and never a definition without its
    data. An error in between says what is left, and that the command ``finish`` deletes it.
    """
    if not plan.steps:
        return plan.revision
    check_code(workspace, plan)
    check_readable(workspace.snapshot(), plan)
    if drops := [table for planned in plan.steps for table in planned.drops]:
        drops = Ownership(workspace).check(drops)
        check_writable(workspace)
    with step("apply", f"apply {len(plan.steps)} changes to {plan.project}"):
        claim_generations(workspace, plan)
        try:
            chain = workspace.registry.definitions.apply(
                plan.project,
                plan.base,
                [planned.change for planned in plan.steps],
                author=_author(),
                message=": ".join(filter(None, [plan.message, message])),
                commit=commit_of(workspace.root) if plan.commit is None else plan.commit,
            )
        except RevisionConflictError as error:
            raise RevisionConflictError(error.message, hint=_PLAN_AGAIN) from None
        reached(APPLIED)
    try:
        catch_up_quietly(workspace, drops, most=MAX_SEQUENCE)  # their logs go
        for table in drops:
            with step("drop", f"delete the data of {table.view} (generation {table.generation})"):
                workspace.online.delete(view_prefix(table.project, table.view, table.generation))
                workspace.offline.clean(table, keep=None)
                clean_gone(workspace, table)
                reached(DROPPED)
        if drops:
            forget_gone(workspace)
    except FeatureStoreError as error:
        raise with_remains(workspace, error, finish=finish) from error
    return chain.number


def check_writable(workspace: Workspace) -> None:
    """Raise OnlineStoreError where the online store would refuse to delete, before anything else is deleted."""
    try:
        workspace.online.check_writable(project_prefix(workspace.project))
    except OnlineStoreError as error:
        raise type(error)(f"{error.message} Nothing was changed.", hint=error.hint, **error.details) from error


def check_base(snapshot: Snapshot, plan: Plan) -> None:
    """Raise RevisionConflictError when another apply came since the plan was made."""
    if snapshot.chain.head != plan.base:
        raise RevisionConflictError(
            f"Project {plan.project!r} is at another revision than the plan was made on: {snapshot.revision}, planned "
            f"on {plan.revision}.",
            hint=_PLAN_AGAIN,
        )


def claim_generations(workspace: Workspace, plan: Plan, *, to_prepare: bool = False) -> None:
    """Take a plan's new generations in the offline store; raises RevisionConflictError where one was used meanwhile.

    Leaves alone the folder of another project's tables, and tables that a new registry does not know: a trial with a
    registry of its own must leave no trace there. ``to_prepare``: the generations will be filled before they are
    served, and the next apply of the same definitions continues if this one is cut off.
    """
    snapshot = workspace.snapshot()
    owner = workspace.offline.owner(plan.project)
    is_tried_out = not plan.base and workspace.offline.tables(plan.project)
    preparations = Preparations(workspace.ledger, plan.project, plan.base)
    for planned in plan.steps:
        if planned.generation is None:
            continue
        if planned.is_new_generation and owner in (None, snapshot.chain.identity) and not is_tried_out:
            _claim(workspace, plan, planned, preparations, to_prepare=to_prepare)
        remember_generation(workspace.ledger, plan.project, planned.name, planned.generation)


def _claim(workspace: Workspace, plan: Plan, planned: Step, preparations: Preparations, *, to_prepare: bool) -> None:
    assert planned.generation is not None
    snapshot = workspace.snapshot()
    prepared = preparations.get(planned.name, planned.generation)
    table = TableId(plan.project, planned.name, planned.generation)
    try:
        if prepared is not None:  # from now on it is reserved for this apply
            preparations.note(replace(prepared, base=plan.base))
            return
        is_claimed = workspace.offline.claim(table)
        if is_claimed and to_prepare:
            view = plan.result(snapshot).views[planned.name].view
            registered = snapshot.views.get(planned.name)
            after = 0 if registered is None else registered.generation
            mark = mark_of(plan.project, view)
            since = None if registered is None else last_read(workspace.ledger, workspace.offline, registered)
            preparations.note(Prepared(planned.name, planned.generation, after, plan.base, mark, since))
    except LedgerConflictError:
        is_claimed = False
    if not is_claimed:
        raise RevisionConflictError(
            f"Generation {planned.generation} of feature view {planned.name!r} was used meanwhile.",
            hint=_PLAN_AGAIN,
            view=planned.name,
        )


def _author() -> str:
    """Return user@host; a container's user may have no name."""
    user = ""
    with suppress(KeyError, OSError):
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
