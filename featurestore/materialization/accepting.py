"""Accepting the rows of a run that was blocked."""

from __future__ import annotations

from featurestore.errors import InputError, MaterializationError, NotFoundError, did_you_mean
from featurestore.ledger.blocked import accept_rows, blocked_runs
from featurestore.ledger.processes import own_user
from featurestore.ledger.runs import RunResult
from featurestore.materialization.jobs import materialize, materialize_incremental
from featurestore.workspace import Workspace


def accept(workspace: Workspace, run_id: str, reason: str) -> RunResult:
    """Run again what was blocked, and commit its rows if they are the same. See `FeatureStore.accept`."""
    if not reason.strip():
        raise InputError("Accepting rows that are not as expected needs a reason.", hint="Say why they are right.")
    known = {run.run_id: (key, run) for key, run in blocked_runs(workspace.ledger, workspace.project)}
    if run_id not in known:
        hint = did_you_mean(run_id, known) or "Only the newest run of a view that was blocked can be accepted."
        raise NotFoundError(f"No blocked run {run_id!r} is to be accepted.", hint=hint, run_id=run_id)
    key, run = known[run_id]
    accept_rows(workspace.ledger, workspace.project, key, run, reason=reason, by=own_user())
    if run.kind == "incremental":
        (done,) = materialize_incremental(workspace, run.intervals[-1][1] if run.intervals else None, [run.view])
    else:
        start_us, end_us = run.intervals[0][0], run.intervals[-1][1]
        (done,) = materialize(workspace, start_us, end_us, [run.view], rebuild=run.kind == "rebuild")
    if done.state != "done":
        raise MaterializationError(
            f"The rows of run {run_id} were not committed: {done.error}",
            hint="If its source or its definition changed since, other rows were blocked: accept that run.",
            view=run.view,
        )
    return done
