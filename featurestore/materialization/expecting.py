"""Comparing the rows of a run with what is expected of them, before they are committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from statistics import median

from featurestore.definitions import Fresh, Rows
from featurestore.definitions.expectations import FieldRule
from featurestore.engine.checks import CheckedRows, counted_rows, rules_of_rows, unmet_by_rows
from featurestore.errors import ExpectationError
from featurestore.ledger.blocked import BlockedRun, accepted_reason, write_blocked
from featurestore.ledger.runs import RunResult, runs
from featurestore.registered.snapshot import RegisteredView
from featurestore.statistics.columns import is_personal
from featurestore.types.times import MICROSECOND, duration_text
from featurestore.workspace import Readers, Workspace

RUNS, LEAST_RUNS = 7, 3
"""With how many earlier runs of its kind a run is compared, and with how few it is not judged."""
ALIKE = 2.0
"""Spans are alike up to this factor."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A run's result with what its rows are not like, and what comes of that."""

    result: RunResult
    blocking: tuple[str, ...] = ()
    """What stops the run, in words."""
    has_failing_rows: bool = False
    """Whether rows fail rules of single rows."""


def checked(workspace: Workspace, registered: RegisteredView, result: RunResult, files: Sequence[str]) -> Checked:
    """Compare a run's rows with what is expected of them; of no rows nothing is expected."""
    view = registered.view
    if not view.rules or not files:
        return Checked(result)
    row_rules = rules_of_rows(view)
    found = workspace.engine.checks.check(f"feature view {view.name!r}", view.stored_types, files, row_rules)
    personal = {field.name for field in view.stored if is_personal(field)}
    unmet: list[tuple[str, str]] = []
    stops: list[str] = []
    has_failing_rows = False
    for (name, rule), failures in zip(row_rules, found.failures, strict=True):
        told = list(unmet_by_rows([(name, rule)], replace(found, failures=(failures,)), personal))
        if isinstance(rule, FieldRule) and rule.is_of_rows:
            has_failing_rows |= bool(told)
        else:
            stops += [text for text, _ in told]
        unmet += told
    of_run = list(_of_run(workspace, registered, result, found))
    unmet, stops = unmet + of_run, [*stops, *(text for text, _ in of_run)]
    texts, shown = tuple(text for text, _ in unmet), tuple(example for _, example in unmet)
    result = replace(result, unmet=texts, examples=shown)
    blocking = {"warn": (), "block": texts, "quarantine": tuple(stops)}[view.on_failure]
    return Checked(result, blocking, has_failing_rows)


def accepted(workspace: Workspace, registered: RegisteredView, found: Checked, files: Sequence[str]) -> RunResult:
    """Return the result of a run whose rows may be committed.

    Raises ExpectationError where they are not as expected, the view blocks such rows, and nobody accepted them.
    """
    view, project, key = registered.view, workspace.project, registered.ledger_key
    result, unmet = found.result, found.blocking
    if not unmet or result.dry_run:
        return result
    rows = workspace.engine.checks.fingerprint(view, files)
    reason = accepted_reason(workspace.ledger, project, key, rows)
    if reason is not None:
        return replace(result, accepted=reason)
    head = registered.chain.head
    write_blocked(
        workspace.ledger,
        project,
        key,
        BlockedRun(result.run_id, view.name, result.kind, result.intervals, rows, head, unmet),
    )
    raise ExpectationError(
        f"{view.name} is not as expected, and nothing was committed: {'; '.join(unmet)}. Correct the source: the next "
        f"run reads the same rows again. If they are right, run `fs accept {result.run_id} --reason TEXT`.",
        hint="Or change what is expected in the feature repo, and run `fs apply`.",
        view=view.name,
        run_id=result.run_id,
        unmet=list(unmet),
    )


def _of_run(
    workspace: Readers, registered: RegisteredView, result: RunResult, found: CheckedRows
) -> Iterator[tuple[str, str]]:
    for _, rule in registered.view.rules:
        if isinstance(rule, Fresh) and found.greatest_event_us is not None:
            age_us = result.started_us - found.greatest_event_us
            if age_us > rule.within // MICROSECOND:
                yield f"{rule}: the newest event is {duration_text(age_us)} old", ""
        elif isinstance(rule, Rows):
            if rule.at_least is not None and found.rows < rule.at_least:
                yield f"{rule}: {counted_rows(found.rows)}", ""
            usual = _usual_rows(workspace, result) if rule.change_at_most is not None else None
            if usual is not None and abs(found.rows - usual) > (rule.change_at_most or 0.0) * usual:
                yield f"{rule}: {counted_rows(found.rows)}, where runs like it had {usual:,.0f}", ""


def _usual_rows(workspace: Readers, result: RunResult) -> float | None:
    """Return the median of what the last runs of a kind and span like this one appended; None where they are few."""
    before = runs(workspace.ledger, workspace.project, result.view, now_us=workspace.clock())
    span_us = _span_us(result)
    alike = [
        run.appended
        for run in before
        if (run.kind, run.state, run.generation) == (result.kind, "done", result.generation)
        and run.appended
        and not run.dry_run
        and run.run_id != result.run_id
        and _are_alike(_span_us(run), span_us)
    ][:RUNS]
    return float(median(alike)) if len(alike) >= LEAST_RUNS else None


def _span_us(run: RunResult) -> int:
    return sum(end - start for start, end in run.intervals)


def _are_alike(one_us: int, other_us: int) -> bool:
    least, greatest = sorted((one_us, other_us))
    return greatest <= ALIKE * max(least, timedelta(seconds=1) // MICROSECOND)
