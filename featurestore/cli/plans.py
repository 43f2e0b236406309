"""Plans on the terminal and as JSON."""

from __future__ import annotations

from typing import Any

from featurestore.cli.output import Output, jsonable
from featurestore.plan import ChangeClass, Plan
from featurestore.plan.changes import columns_of, explain

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
    for line in explain(plan, is_teardown=is_teardown):
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
        "notices": list(plan.notices),
        "steps": [
            {
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
            for step in plan.steps
        ],
    }
