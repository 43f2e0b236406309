"""Accepting the rows of a run that was blocked."""

from __future__ import annotations

from collections.abc import Callable

from featurestore.errors import InputError, MaterializationError, NotFoundError, did_you_mean
from featurestore.ledger.blocked import Acceptance, blocked_runs
from featurestore.ledger.processes import own_user
from featurestore.ledger.runs import RunResult
from featurestore.materialization.jobs import materialize, materialize_incremental
from featurestore.materialization.prepared import Confirm
from featurestore.workspace import Workspace


def accept(
    workspace: Workspace,
    run_id: str,
    reason: str,
    *,
    confirm: Confirm | None = None,
    prepared: Callable[[], Workspace],
) -> RunResult:
    """Run again what was blocked, and commit its rows if they are the same. See `FeatureStore.accept`.

    ``prepared`` returns a workspace with what the next apply that prepares would fill: a run of a generation that is
    not served yet is made there.
    """
    if not reason.strip():
        raise InputError("Accepting rows that are not as expected needs a reason.", hint="Say why they are right.")
    known = {run.run_id: (key, run) for key, run in blocked_runs(workspace.ledger, workspace.project)}
    if run_id not in known:
        hint = did_you_mean(run_id, known) or "Only the newest run of a view that was blocked can be accepted."
        raise NotFoundError(f"No blocked run {run_id!r} is to be accepted.", hint=hint, run_id=run_id)
    key, run = known[run_id]
    acceptance = Acceptance(key, run, reason.strip(), own_user())
    within = _of_generation(workspace, prepared, acceptance)
    if run.kind == "incremental":
        until_us = run.intervals[-1][1] if run.intervals else None
        (done,) = materialize_incremental(within, until_us, [run.view], acceptance=acceptance)
    else:
        start_us, end_us = run.intervals[0][0], run.intervals[-1][1]
        is_rebuild = run.kind == "rebuild"
        (done,) = materialize(
            within, start_us, end_us, [run.view], rebuild=is_rebuild, confirm=confirm, acceptance=acceptance
        )
    if done.state != "done":
        raise MaterializationError(f"The rows of run {run_id} were not committed: {done.error}", view=run.view)
    return done


def _of_generation(workspace: Workspace, prepared: Callable[[], Workspace], acceptance: Acceptance) -> Workspace:
    """Return a workspace in which the blocked generation is the view's; raises NotFoundError where there is none."""
    key, run = acceptance.key, acceptance.run
    served = workspace.snapshot().views.get(run.view)
    if served is not None and served.ledger_key == key:
        return workspace
    if served is None or int(key.rpartition(".")[2]) > served.generation:
        planned = prepared()
        filled = planned.snapshot().views.get(run.view)
        if filled is not None and filled.ledger_key == key:
            return planned
        told = "was blocked while an apply prepared a generation that is not prepared any more"
        again = "Run `fs apply --prepare` again"
    else:
        told, again = "is of a generation that is not served any more", f"Run `fs materialize --view {run.view}`"
    raise NotFoundError(
        f"Run {run.run_id} of {run.view} {told}: nothing was committed.",
        hint=f"{again}: if its rows are not as expected, it names a run that can be accepted.",
        run_id=run.run_id,
    )
