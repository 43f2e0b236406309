"""The use cases: materialize a span, what is new, or publish again; one result for each view.

A view that fails does not stop the others: its result says what went wrong, and `succeeded` turns such results into
an error.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from featurestore_registry.documents import RunKind

from featurestore.definitions import FeatureView
from featurestore.errors import FeatureStoreError, IntervalError, MaterializationError, RegistryError
from featurestore.ledger.blocked import Acceptance
from featurestore.ledger.journal import Publishes
from featurestore.ledger.leases import WAIT_SECONDS, holding
from featurestore.ledger.runs import RunResult, Runs, record_end, record_start
from featurestore.ledger.unread import Unread
from featurestore.ledger.watermarks import Watermark
from featurestore.materialization.expecting import check_acceptance
from featurestore.materialization.prepared import Confirm, Rebuild
from featurestore.materialization.run import ViewRun
from featurestore.materialization.spans import SpansToRead, spans_within, unread_spans
from featurestore.registered.snapshot import RegisteredView
from featurestore.statistics import profile_run
from featurestore.steps import step
from featurestore.types.times import to_rfc3339
from featurestore.workspace import Readers, Workspace

Job = Callable[[ViewRun], None]
May = Callable[[RegisteredView], None]
"""Raises where a run is not to begin any more, once it holds the lease: then there is no run."""


def materialize(
    workspace: Workspace,
    start_us: int,
    end_us: int,
    views: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
    rebuild: bool = False,
    confirm: Confirm | None = None,
    acceptance: Acceptance | None = None,
) -> list[RunResult]:
    """Bring source rows with event time in [start, end) into the offline log, and the newest online.

    ``rebuild`` withdraws the span's rows that came from the source and that it no longer holds, and pushed events of
    which it holds the id with other values, once ``confirm(view, rows)`` has returned True, and the rows of damaged
    files within the span: these are then read from the source again, pushed ones are lost. A dry run counts and writes
    nothing. With ``acceptance`` the rows of a blocked run are committed, or none. Raises IntervalError for a span that
    is empty or ends in the future, NotFoundError for an unknown view.
    """
    if start_us >= end_us:
        raise IntervalError(
            f"The interval from {to_rfc3339(start_us)} to {to_rfc3339(end_us)} is empty.",
            hint="Give a start that lies before the end; the start is part of the interval, the end is not.",
        )
    _check_end(end_us, workspace.clock())
    span = start_us, end_us
    withdraw = Rebuild(span, confirm) if rebuild else None

    def choose(view: FeatureView, watermark: Watermark, _: Unread) -> SpansToRead:
        return spans_within(workspace.engine.sources, view, watermark, span)

    return _run(
        workspace,
        views,
        "rebuild" if rebuild else "interval",
        lambda run: run.count(choose, withdraw) if dry_run else run.bring(choose, withdraw, acceptance),
        dry_run=dry_run,
        may=_still_to_accept(workspace, acceptance),
    )


def materialize_incremental(
    workspace: Workspace,
    end_us: int | None = None,
    views: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
    wait_seconds: float = WAIT_SECONDS,
    acceptance: Acceptance | None = None,
) -> list[RunResult]:
    """Bring rows before ``end_us`` (None: now) that no run has read, and late rows and corrections of the others.

    ``wait_seconds`` is how long to wait for another run of a view; ``acceptance`` as for `materialize`. Raises
    IntervalError for an end in the future, NotFoundError for an unknown view.
    """
    now_us = workspace.clock()
    until_us = now_us if end_us is None else end_us
    _check_end(until_us, now_us)

    def choose(view: FeatureView, watermark: Watermark, unread: Unread) -> SpansToRead:
        return unread_spans(workspace.engine.sources, view, watermark, unread, until_us)

    return _run(
        workspace,
        views,
        "incremental",
        lambda run: run.count(choose) if dry_run else run.bring(choose, acceptance=acceptance),
        dry_run=dry_run,
        wait_seconds=wait_seconds,
        may=_still_to_accept(workspace, acceptance),
    )


def republish(
    workspace: Workspace,
    views: Iterable[str] | None = None,
    *,
    authoritative: bool = False,
) -> list[RunResult]:
    """Publish the newest row of every entity again; views that stay offline are left out.

    With ``authoritative`` the online store is made equal to the offline log: records of entities that the log
    does not hold are deleted, records newer than the log replaced. Raises NotFoundError for an unknown view.
    """
    return _run(workspace, views, "republish", lambda run: run.republish(authoritative=authoritative), dry_run=False)


def _still_to_accept(workspace: Workspace, acceptance: Acceptance | None) -> May | None:
    if acceptance is None:
        return None
    return lambda registered: check_acceptance(workspace, registered, acceptance)


def run_release(workspace: Workspace, view: str, begin: Callable[[RegisteredView], None], may: May) -> RunResult:
    """Bring rows that were set aside into the log and online; ``begin`` writes down which, once it holds the lease."""
    (result,) = _run(
        workspace, [view], "release", lambda run: run.release(lambda: begin(run.registered)), dry_run=False, may=may
    )
    return result


def succeeded(results: Sequence[RunResult]) -> Sequence[RunResult]:
    """Return the results; raises MaterializationError naming the views that failed, if any did."""
    failed = [run for run in results if run.state != "done"]
    if failed:
        reasons = "".join(f"\n  - {run.view}: {run.error}" for run in failed)
        raise MaterializationError(
            f"{_how_many(len(failed), len(results))}:{reasons}",
            hint="Running it again is safe.",
            views=[run.view for run in failed],
        )
    return Runs(results)


def _how_many(failed: int, total: int) -> str:
    if failed < total:
        return f"{failed} of {total} feature views failed; the others are done"
    return "The feature view failed" if total == 1 else f"All {total} feature views failed"


def _check_end(end_us: int, now_us: int) -> None:
    if end_us > now_us:
        raise IntervalError(
            f"The interval ends in the future, at {to_rfc3339(end_us)}; it is {to_rfc3339(now_us)}.",
            hint="Give an end that has passed: future rows cannot be committed yet.",
        )


def _run(
    workspace: Workspace,
    views: Iterable[str] | None,
    kind: RunKind,
    job: Job,
    *,
    dry_run: bool,
    wait_seconds: float = WAIT_SECONDS,
    may: May | None = None,
) -> list[RunResult]:
    """Run a job for each view."""
    snapshot = workspace.known_snapshot()
    names = sorted(snapshot.views) if views is None else list(dict.fromkeys(views))
    for name in names:
        snapshot.get(FeatureView, name)
    if any(snapshot.views[name].view.online for name in names):
        workspace.open("online")  # reports a bad URL before rows are committed
    results, publishes = [], Publishes(workspace)
    try:
        for name in names:
            registered = snapshot.views[name]
            result = _started(workspace, registered, kind, dry_run=dry_run)
            with step("materialize", f"materialize {name}", unit="views"):
                if dry_run:
                    results.append(_attempt(workspace, registered, result, job, lambda: None, publishes))
                else:
                    results.append(_run_alone(workspace, registered, result, job, wait_seconds, publishes, may))
    finally:
        publishes.close()
    return results


def _started(workspace: Readers, registered: RegisteredView, kind: RunKind, *, dry_run: bool) -> RunResult:
    return RunResult(
        run_id=secrets.token_hex(8),
        view=registered.view.name,
        generation=registered.generation,
        kind=kind,
        state="running",
        started_us=workspace.clock(),
        host=socket.gethostname(),
        pid=os.getpid(),
        dry_run=dry_run,
    )


def _run_alone(
    workspace: Workspace,
    registered: RegisteredView,
    result: RunResult,
    job: Job,
    wait_seconds: float,
    publishes: Publishes,
    may: May | None,
) -> RunResult:
    """Run a job while holding the view's lease, and record how it went."""
    ledger, project, view = workspace.ledger, workspace.project, registered.view.name
    name = workspace.lease_name(view, registered.generation)
    try:
        with holding(
            ledger, project, name, holder=result.run_id, clock=workspace.clock, wait_seconds=wait_seconds
        ) as lease:
            # Waiting for the lease may have taken a while: rows that came in the meantime are not in the future, and
            # an apply may have changed the view.
            registered = workspace.snapshot().registered(view)
            result = replace(result, started_us=workspace.clock(), generation=registered.generation)
            if (refusal := _refusal(may, registered)) is not None:
                return replace(result, state="failed", error=str(refusal))
            record_start(ledger, project, result)
            publishes.tables.add(registered.table)
            try:
                result = _attempt(workspace, registered, result, job, lease.check, publishes)
            except BaseException as error:
                is_stopped = isinstance(error, KeyboardInterrupt)
                why = "stopped before its end" if is_stopped else f"{type(error).__name__}: {error}"
                record_end(ledger, project, replace(result, state="failed", error=why))
                raise
            record_end(ledger, project, result)
    except FeatureStoreError as error:  # no lease, no ledger, or no view any more
        result = replace(result, state="failed", error=str(error))
        if not isinstance(error, RegistryError):
            record_start(ledger, project, result)
            record_end(ledger, project, result)
    return result


def _refusal(may: May | None, registered: RegisteredView) -> FeatureStoreError | None:
    try:
        if may is not None:
            may(registered)
    except FeatureStoreError as error:
        return error
    return None


def _attempt(
    workspace: Workspace,
    registered: RegisteredView,
    result: RunResult,
    job: Job,
    check: Callable[[], None],
    publishes: Publishes,
) -> RunResult:
    """Run a job; our own errors go into the result, all others pass."""
    begun = time.perf_counter()
    run: ViewRun | None = None
    try:
        run = ViewRun(workspace, registered, result, check, publishes)
        job(run)
        result = replace(run.result, state="done")
    except FeatureStoreError as error:
        result = replace(result if run is None else run.result, state="failed", error=str(error))
    reads = result.kind != "republish" and not result.dry_run
    if run is not None and reads and (result.state == "done" or run.added is not None):
        # Rows that are committed are counted, published or not.
        profile_run(workspace, run.registered, run.added, result.run_id)
    return replace(result, duration_ms=round((time.perf_counter() - begun) * 1000))
