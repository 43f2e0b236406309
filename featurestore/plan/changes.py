"""A plan: what an apply would do, as steps that *apply* walks and as lines that read like a diff."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from featurestore_registry.records import Change, Record

from featurestore.following.held import MOST_MADE_ANEW
from featurestore.offline.interface import TableId
from featurestore.plan.classes import FLAGS, ChangeClass, Difference
from featurestore.plan.texts import difference_lines
from featurestore.registered.snapshot import Snapshot
from featurestore.tables import visible

MARKS = {"create": "+", "update": "~", "delete": "-"}
_CLASS_COLUMN = 64
_ACTIONS = {mark: action for action, mark in MARKS.items()}


@dataclass(frozen=True, slots=True)
class Loss:
    """What a step deletes or sets aside."""

    offline_rows: int
    """Rows in the tables, pushed rows included."""
    pushed_rows: int
    """How many of them were pushed: no run reads those again that the batch source does not hold."""
    online_rows: int
    """Entities online, counted in the offline table; for old generations as the last run counted them."""
    deleted: bool
    """True: this apply deletes them. False: they stay under the old generation until `fs gc`."""
    training_sets: tuple[str, ...] = ()
    """Saved sets that could not be built again, because the tables they are pinned to would go."""
    held_rows: int = 0
    """Rows that are set aside: a new generation takes none of them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One change of a definition."""

    action: Literal["create", "update", "delete"]
    kind: str
    title: str
    name: str
    change_class: ChangeClass
    differences: tuple[Difference, ...] = ()
    affects: tuple[str, ...] = ()
    """``kind:name`` of what depends on it, directly or not."""
    consumers: tuple[str, ...] = ()
    """Models and programs that read it, with their owners: whom the change may break."""
    record: Record | None = None
    generation: int | None = None
    """The view's generation after the step."""
    drops: tuple[TableId, ...] = ()
    """Tables, and their online records, that this step deletes."""
    loss: Loss | None = None
    notices: tuple[str, ...] = ()
    """What users should know about it, such as which pushed rows it leaves behind."""
    commands: tuple[str, ...] = ()
    """What to run after the apply, so that stored data follows the definition."""
    waiting: tuple[str, ...] = ()
    """Windows that are not found online until the commands have run."""
    is_new_generation: bool = False
    """Whether the view gets a new table and new records."""

    @property
    def change(self) -> Change:
        """The change as the registry takes it."""
        return Change("delete" if self.action == "delete" else "put", self.kind, self.name, self.record)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an apply would do to a project that is at ``revision``."""

    project: str
    revision: int
    base: str
    """The hash of that revision, which must still be the newest at the apply; empty for a new project."""
    steps: tuple[Step, ...]
    notices: tuple[str, ...]
    applied: int | None = None
    """The revision that the apply made, None while this is only a plan."""
    message: str = ""
    """What the history says about the apply before what its author says."""
    code: Mapping[str, str] = field(default_factory=dict)
    """The hash of the code that the project's servers must have first, by on-demand view."""
    has_servers: bool = True
    """Whether some server must say that it has it: false where none serves the project yet."""
    commit: str | None = None
    """The git commit that the definitions come from, where it is not the one that is checked out."""
    is_refused: bool = False
    """Whether the project's policy refuses it, as far as its planner may read that; the notices say what."""
    prepare: bool = False
    """Whether new generations are filled before they are served; a view that needs a rebuild then gets a new one."""

    @property
    def worst(self) -> ChangeClass | None:
        """The greatest class among the steps, None when nothing changes."""
        return max((step.change_class for step in self.steps), default=None)

    def __repr__(self) -> str:
        worst = "nothing to change" if self.worst is None else f"the worst change is {self.worst.name.lower()}"
        applied = "" if self.applied is None else f", applied as revision {self.applied}"
        changes = "1 change" if len(self.steps) == 1 else f"{len(self.steps)} changes"
        return f"Plan({self.project} at revision {self.revision}: {changes}, {worst}{applied})"

    def __str__(self) -> str:
        return to_text(explain(self))

    def result(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot that applying the plan leads to, before anything is deleted."""
        records = {record.key: record for record in snapshot.records}
        records |= {step.record.key: step.record for step in self.steps if step.record is not None}
        return Snapshot(snapshot.project, snapshot.revision, tuple(records.values()), chain=snapshot.chain)

    def _repr_html_(self) -> str:
        return to_html(explain(self))


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an explained plan."""

    indent: int
    text: str
    change_class: ChangeClass | None = None
    action: str = ""


def columns_of(line: Line) -> tuple[str, str]:
    """Return a line as a terminal shows it: the indented text, and on its right the class of the change, if any."""
    text = "  " * line.indent + visible(line.text)
    if line.change_class is None:
        return text, ""
    from rich.cells import cell_len

    return text + " " * max(1, _CLASS_COLUMN - cell_len(text)), line.change_class.name.lower()


def explain(plan: Plan, *, is_teardown: bool = False) -> list[Line]:
    """Return what a plan would do, line by line; a teardown needs the same one flag for everything that it deletes."""
    if not plan.steps:
        made = [Line(0, f"{plan.project} is up to date (revision {plan.revision}): nothing to change.")]
    else:
        made = [Line(0, f"Plan for {plan.project}: revision {plan.revision} -> {plan.revision + 1}"), Line(0, "")]
        for step in plan.steps:
            made += explain_step(step, prepare=plan.prepare)
        made += [Line(0, ""), Line(0, summary(plan, is_teardown=is_teardown))]
    return made + [Line(0, f"Note: {notice}") for notice in plan.notices]


def explain_step(step: Step, *, prepare: bool = False) -> list[Line]:
    """Return one step line by line."""
    kind = step.kind.replace("_", " ")
    lines = [Line(1, f"{MARKS[step.action]} {kind} {step.name}", step.change_class, step.action)]
    for found in step.differences:
        first, *more = difference_lines(found.before, found.after)
        lines.append(Line(3, f"{found.what}: {first}".rstrip(), found.change_class))
        lines += [Line(4, text, action=_ACTIONS.get(text[0], "")) for text in more]
    if any(found.is_held for found in step.differences) and not step.commands:
        lines.append(Line(3, "nothing has to be run: what is kept holds the new values too"))
    if step.loss is not None:
        pushed = f" ({step.loss.pushed_rows:,} of them pushed)" if step.loss.pushed_rows else ""
        rows = f"{step.loss.offline_rows:,} offline rows{pushed} and {step.loss.online_rows:,} online rows"
        begins = "is filled before it is served" if prepare else "starts empty"
        fate = "deleted" if step.loss.deleted else f"set aside; generation {step.generation} {begins}"
        lines.append(Line(3, f"{rows} would be {fate}"))
        if step.loss.held_rows:
            held = "1 row" if step.loss.held_rows == 1 else f"{step.loss.held_rows:,} rows"
            how = "would be deleted" if step.loss.deleted else "can then only be dropped"
            lines.append(Line(3, f"{held} of its quarantine {how}"))
        if step.loss.training_sets:
            lines.append(Line(3, f"saved training sets {', '.join(step.loss.training_sets)} could not be built again"))
    elif prepare and step.is_new_generation:
        lines.append(Line(3, "filled from its source before it is served"))
    lines += [Line(3, f"afterwards run `{command}`{_why(step, command)}") for command in step.commands]
    lines += [Line(3, f"note: {notice}") for notice in step.notices]
    if step.affects and step.change_class > ChangeClass.METADATA:
        lines.append(Line(3, f"used by: {', '.join(step.affects)}"))
    if step.consumers and step.change_class > ChangeClass.COMPATIBLE:
        lines.append(Line(3, f"read by: {', '.join(step.consumers)}"))
    return lines


def _why(step: Step, command: str) -> str:
    """Return what holds until one of the step's commands has run."""
    rebuilt = {found.what for found in step.differences if found.needs_rebuild}
    if step.loss is not None:
        return ""
    if rebuilt == {"ttl"}:
        return ": then values that expired by the old ttl are online again"
    if all(what.startswith("window ") for what in rebuilt) and " --republish" in command:
        if step.waiting:
            return f": until then, or the next run, not found online: {', '.join(step.waiting)}"
        return (
            ": until then, or the next run, pushed events do not come online where the log has more than "
            f"{MOST_MADE_ANEW:,} events"
        )
    return ": until then rows keep their old values, but those that runs read again meanwhile" if rebuilt else ""


def summary(plan: Plan, *, is_teardown: bool = False) -> str:
    """Return what a plan with steps comes to: how many changes, the worst class, and the flags that it needs."""
    counts = count_steps(plan.steps, {"create": "to create", "update": "to change", "delete": "to delete"})
    worst = plan.worst
    assert worst is not None
    classes = {step.change_class for step in plan.steps}
    flags = [flag for change, flag in FLAGS.items() if change in classes]
    needs = f"; apply needs {' and '.join(flags)}" if flags and not is_teardown else ""
    return f"{counts}; the worst change is {worst.name.lower()}{needs}."


def count_steps(steps: Iterable[Step], words: Mapping[str, str]) -> str:
    """Return how many steps there are of each action, in the given words."""
    counts: Counter[str] = Counter(step.action for step in steps)
    return ", ".join(f"{counts[action]} {word}" for action, word in words.items() if counts[action])


def to_text(lines: Iterable[Line]) -> str:
    """Return explained lines as a terminal shows them."""
    return "\n".join(left + right for left, right in map(columns_of, lines))


def to_html(lines: Iterable[Line]) -> str:
    """Return explained lines as HTML for a notebook."""
    rows = "".join(
        f"<tr><td style='padding-left:{line.indent}em;text-align:left;white-space:pre-wrap'>{escape(line.text)}</td>"
        f"<td>{line.change_class.name.lower() if line.change_class is not None else ''}</td></tr>"
        for line in lines
    )
    return f"<table>{rows}</table>"
