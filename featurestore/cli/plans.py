"""Plans on the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from featurestore.cli.output import Output, jsonable
from featurestore.plan import AppliedRevision, ChangeClass, Plan, RevisionDiff
from featurestore.plan.changes import Line, Step, columns_of, explain

_ACTION_STYLES = {"create": "green", "update": "yellow", "delete": "red"}
_CLASS_STYLES = {
    ChangeClass.METADATA: "dim",
    ChangeClass.COMPATIBLE: "green",
    ChangeClass.REBUILD: "yellow",
    ChangeClass.BREAKING: "red",
    ChangeClass.DESTRUCTIVE: "bold red",
}


def render_plan(output: Output, plan: Plan, *, is_teardown: bool = False) -> None:
    """Print a plan for people like a diff, the class of each change on the right."""
    render_lines(output, explain(plan, is_teardown=is_teardown))


def render_lines(output: Output, lines: Iterable[Line]) -> None:
    """Print the lines of an explained plan or diff."""
    for line in lines:
        text, said = columns_of(line)
        style = _ACTION_STYLES.get(line.action, "")
        if line.change_class is None:
            output.say((text, style))
        else:
            output.say((text, style), (said, _CLASS_STYLES[line.change_class]))


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON."""
    return {
        "project": plan.project,
        "revision": plan.revision,
        "applied": plan.applied,
        "worst": None if plan.worst is None else plan.worst.name.lower(),
        "is_refused": plan.is_refused,
        "notices": list(plan.notices),
        "steps": [*map(_step_document, plan.steps)],
    }


def diff_document(diff: RevisionDiff) -> dict[str, Any]:
    """Return what differs between two revisions as JSON; its steps have the form of a plan's."""
    return {
        "project": diff.project,
        "before": diff.before,
        "after": diff.after,
        "worst": None if diff.worst is None else diff.worst.name.lower(),
        "steps": [*map(_step_document, diff.steps)],
    }


def applied_document(applied: AppliedRevision) -> dict[str, Any]:
    """Return an apply as JSON, with its diff."""
    info = applied.info
    about = {name: getattr(info, name) for name in ("number", "hash", "author", "message", "commit")}
    return {**about, "applied_at": info.applied_at.isoformat(), "diff": diff_document(applied.diff)}


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "action": step.action,
        "kind": step.kind,
        "name": step.name,
        "class": step.change_class.name.lower(),
        "differences": jsonable(step.differences),
        "affects": list(step.affects),
        "consumers": list(step.consumers),
        "generation": step.generation,
        "loss": jsonable(step.loss),
        "notices": list(step.notices),
        "commands": list(step.commands),
    }
