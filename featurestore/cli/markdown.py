"""A plan as Markdown, for a comment on a pull request."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from featurestore.plan import ChangeClass, Plan
from featurestore.plan.changes import MARKS, columns_of, explain, summary

MOST_BYTES = 60_000
"""GitHub takes comments of 65,536 characters."""


def plan_markdown(plan: Plan) -> str:
    """Return the worst first: what it comes to, the changes by class, whom they would break, then the plan, cut to fit.

    What definitions say stands in blocks, which it cannot end: it mentions nobody and becomes no link.
    """
    if not plan.steps:
        notes = [f"Note: {notice}" for notice in plan.notices]
        block = [_fence(notes), *_fitting(notes, MOST_BYTES, "more notes"), _fence(notes)]
        return "\n".join(["### Features: nothing to change", *(["", *block] if notes else ()), ""])
    counts = Counter(step.change_class for step in plan.steps)
    told = ", ".join(f"{counts[each]} {each.name.lower()}" for each in sorted(counts, reverse=True))
    broken = [
        f"{MARKS[step.action]} {step.kind.replace('_', ' ')} {step.name}: {', '.join((*step.affects, *step.consumers))}"
        for step in plan.steps
        if step.change_class >= ChangeClass.BREAKING and (step.affects or step.consumers)
    ]
    lines = [("".join(columns_of(line))).rstrip() for line in explain(plan)]
    fence = _fence([*broken, *lines])
    refused = " The project's policy refuses it." if plan.is_refused else ""
    parts = [f"### Features: {summary(plan)}", "", f"Changes by class: {told}.{refused}", ""]
    if broken:
        parts += ["Would break:", fence, *_fitting(broken, MOST_BYTES // 4, "more"), fence, ""]
    used = sum(len(part.encode()) + 1 for part in parts)
    return "\n".join([*parts, fence, *_fitting(lines, MOST_BYTES - used, "more lines, in the job's log"), fence, ""])


def _fence(lines: Iterable[str]) -> str:
    ticks = [len(run) for line in lines for run in re.findall("`+", line)]
    return "`" * max(3, max(ticks, default=0) + 1)


def _fitting(lines: list[str], most: int, what: str) -> Iterator[str]:
    used = 0
    for place, line in enumerate(lines):
        used += len(line.encode()) + 1
        if used > most:
            yield f"... {len(lines) - place} {what}"
            return
        yield line
