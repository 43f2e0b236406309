"""Plans on the terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featurestore.cli.output import jsonable
from featurestore.plan import ChangeClass, Plan
from featurestore.plan.changes import explain

if TYPE_CHECKING:
    from rich.console import Console

_ACTION_STYLES = {"create": "green", "update": "yellow", "delete": "red"}
_CLASS_STYLES = {
    ChangeClass.METADATA: "dim",
    ChangeClass.COMPATIBLE: "green",
    ChangeClass.REBUILD: "yellow",
    ChangeClass.BREAKING: "red",
    ChangeClass.DESTRUCTIVE: "bold red",
}


def render_plan(console: Console, plan: Plan, *, is_teardown: bool = False) -> None:
    """Print a plan like a diff, the class of each change on the right."""
    from rich.text import Text

    for line in explain(plan, is_teardown=is_teardown):
        text = Text("  " * line.indent + line.text, style=_ACTION_STYLES.get(line.action, ""))
        if line.change_class is not None:
            text.pad_right(max(1, 64 - text.cell_len))
            text.append(line.change_class.name.lower(), style=_CLASS_STYLES[line.change_class])
        console.print(text)


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
                "generation": step.generation,
                "loss": jsonable(step.loss),
                "notices": list(step.notices),
                "commands": list(step.commands),
            }
            for step in plan.steps
        ],
    }
