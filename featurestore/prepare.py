"""Filling new generations before they are served: an apply with it is no outage for whoever reads.

The definitions of a plan are used as if they were applied, by an unchanged run of each view. Watermarks, commits and
markers of a generation that no definition names yet are in nobody's way.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.materialization.jobs import materialize, materialize_incremental, succeeded
from featurestore.metadata.runs import RunResult
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.watermarks import Interval, read_watermark, subtract
from featurestore.metadata.workspace import Workspace
from featurestore.plan import Plan
from featurestore.plan.applying import check_base, claim_generations
from featurestore.steps import crash_point, reached, step

FILLED = crash_point("prepare.filled", "one view's new generation is filled and online, and not served yet")

MOST_ROUNDS = 3
"""The old generation may grow while the new one is filled: so often what came meanwhile is read too."""


def prepare(workspace: Workspace, plan: Plan) -> Sequence[RunResult]:
    """Fill the new generations of a plan, by its definitions, with what the generations before them hold.

    A new view is filled from its source's first event on. Applying the plan is then all that is missing. Raises
    RevisionConflictError when another apply came since the plan was made, and MaterializationError naming the views
    that failed; what is filled by then stays, and the next apply of the same definitions goes on with it.
    """
    snapshot = workspace.snapshot()
    names = [planned.name for planned in plan.steps if planned.is_new_generation]
    if not names or not plan.prepare:
        return []
    check_base(snapshot, plan)
    with step("prepare", f"prepare {len(names)} views of {plan.project}", total=len(names), unit="views") as running:
        claim_generations(workspace, plan, to_prepare=True)
        planned = workspace.as_if(plan.result(snapshot))
        runs: list[RunResult] = []
        for name in names:
            runs += _fill(planned, planned.snapshot().registered(name), snapshot.views.get(name))
            running.advance()
    return runs


def _fill(planned: Workspace, new: RegisteredView, old: RegisteredView | None) -> Sequence[RunResult]:
    """Bring a generation to where the one before it is."""
    runs: list[RunResult] = []
    missing: tuple[Interval, ...] = ()
    for rounds in range(MOST_ROUNDS):
        held = None if old is None else read_watermark(planned.ledger, old)
        before = missing
        if held is not None:
            missing = subtract(held.intervals, read_watermark(planned.ledger, new).intervals)
            if not held.intervals or (rounds and missing in ((), before)):
                break
        if held is None or held.begun_us is not None:
            runs += succeeded(materialize_incremental(planned, None, [new.view.name]))
        else:
            now_us = planned.clock()
            # Also where all is read already: what is not online yet goes there.
            for start_us, end_us in missing or held.intervals[-1:]:
                runs += succeeded(materialize(planned, start_us, min(end_us, now_us), [new.view.name]))
        if held is None:
            break
    reached(FILLED)
    return runs
