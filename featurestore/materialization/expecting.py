"""Comparing the rows of a run with what is expected of them, before they are committed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import median

from featurestore.definitions import Fresh, Rows
from featurestore.definitions.expectations import FieldRule
from featurestore.engine.checks import CheckedRows, counted_rows, rules_of_rows, times_of, unmet_by_rows
from featurestore.errors import ExpectationError
from featurestore.ledger.blocked import Acceptance, BlockedRun, accepted_before, blocked_runs, write_blocked
from featurestore.ledger.runs import RunResult, runs
from featurestore.ledger.watermarks import read_watermark
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.statistics.columns import is_personal
from featurestore.types.times import MICROSECOND, duration_text
from featurestore.workspace import Readers, Workspace

RUNS, LEAST_RUNS = 7, 3
"""With how many earlier runs of its kind a run is compared, and with how few it is not judged."""
ALIKE = 2.0
"""Spans are alike up to this factor. A run that none is like is compared, by its rate, with all of its kind."""


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
    rows_of = f"feature view {view.name!r}"
    found = workspace.engine.checks.check(rows_of, view.stored_types, files, row_rules, times=times_of(view))
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
    compares = [rule for rule in view.expect if isinstance(rule, Rows) and rule.change_at_most is not None]
    usual = usual_rows(workspace, result) if compares else None
    of_run = list(_of_run(workspace, registered, result, found, usual))
    unmet, stops = unmet + of_run, [*stops, *(text for text, _ in of_run)]
    texts, shown = tuple(text for text, _ in unmet), tuple(example for _, example in unmet)
    few = f"change_at_most compares with {LEAST_RUNS} earlier runs of its kind that brought rows, and there are fewer"
    not_judged = tuple(f"{rule}: {few}" for rule in compares if usual is None)
    result = replace(result, unmet=texts, examples=shown, not_judged=not_judged)
    blocking = {"warn": (), "block": texts, "quarantine": tuple(stops)}[view.on_failure]
    return Checked(result, blocking, has_failing_rows)


def accepted(
    workspace: Workspace,
    registered: RegisteredView,
    found: Checked,
    files: Sequence[str],
    acceptance: Acceptance | None = None,
) -> RunResult:
    """Return the result of a run whose rows may be committed.

    Raises ExpectationError where they are not as expected, the view blocks such rows, and nobody accepts them; with an
    acceptance also where they are other rows, or other things are expected of them now.
    """
    view, project, key = registered.view, workspace.project, registered.ledger_key
    result, unmet = found.result, found.blocking
    if result.dry_run:
        return replace(result, blocked=unmet)
    if acceptance is None and not unmet:
        return result
    rows = workspace.engine.checks.fingerprint(view, files)
    changed = ""
    if acceptance is not None:
        # A second try of the commit no longer finds the rows that the first one has set aside.
        if rows != acceptance.run.rows and not result.quarantined:
            raise other_rows(view.name)
        if _expects_the_same(workspace, registered, acceptance):
            return replace(result, accepted=str(acceptance))
        if not unmet:
            raise ExpectationError(
                f"What is expected of {view.name} changed since, and its rows are as expected; nothing was committed.",
                hint=f"`fs materialize --view {view.name}` commits them.",
                view=view.name,
            )
        changed = " What is expected of it changed since the run that you accepted."
    head = registered.chain.head
    write_blocked(
        workspace.ledger,
        project,
        key,
        BlockedRun(result.run_id, view.name, result.kind, result.intervals, rows, head, unmet),
    )
    raise ExpectationError(
        f"The rows are not as expected, and nothing was committed: {'; '.join(unmet)}.{changed} Correct the "
        "source: the next run reads the same rows again. If they are right, run "
        f"`fs accept {result.run_id} --reason TEXT`.",
        hint="Or change what is expected in the feature repo, and run `fs apply`.",
        view=view.name,
        run_id=result.run_id,
        unmet=list(unmet),
    )


def check_acceptance(workspace: Readers, registered: RegisteredView, acceptance: Acceptance) -> None:
    """Raise ExpectationError where a blocked run is not to be accepted any more: whoever holds the lease asks this."""
    ledger, project, run = workspace.ledger, workspace.project, acceptance.run
    before = accepted_before(ledger, project, acceptance.key, run.run_id)
    if before is not None:
        raise ExpectationError(
            f"Run {run.run_id} was accepted already: {before}. Nothing was committed now.", view=run.view
        )
    if registered.ledger_key != acceptance.key or (acceptance.key, run) not in blocked_runs(ledger, project):
        raise ExpectationError(
            f"Run {run.run_id} is not the newest of {run.view} that was blocked; nothing was committed.",
            hint="`fs log` shows the newest.",
            view=run.view,
        )


def other_rows(view: str) -> ExpectationError:
    """Return the error for rows that are not those that somebody accepts."""
    return ExpectationError(
        f"The rows of {view} are no longer those that were blocked; nothing was committed.",
        hint=f"`fs materialize --view {view}` reads what there is now, and says what is not as expected.",
        view=view,
    )


def _expects_the_same(workspace: Readers, registered: RegisteredView, acceptance: Acceptance) -> bool:
    """Tell whether the rules are those by which a run was blocked, whatever else was applied since."""
    revision, hashes = acceptance.run.revision, registered.chain.hashes
    if revision == registered.chain.head:
        return True
    if revision not in hashes:
        return False
    found = Snapshot.of(workspace.registry.definitions.read(workspace.project, hashes.index(revision) + 1))
    then, now = found.views.get(registered.view.name), registered.view
    return then is not None and (then.view.rules, then.view.on_failure) == (now.rules, now.on_failure)


def _of_run(
    workspace: Readers, registered: RegisteredView, result: RunResult, found: CheckedRows, usual: Fraction | None
) -> Iterator[tuple[str, str]]:
    for _, rule in registered.view.rules:
        if isinstance(rule, Fresh) and found.greatest_event_us is not None:
            # A run that brings nothing but a late correction leaves a fresh view fresh.
            known_us = read_watermark(workspace.ledger, registered).greatest_event_us
            age_us = result.started_us - max(found.greatest_event_us, known_us or found.greatest_event_us)
            if age_us > rule.within // MICROSECOND:
                yield f"{rule}: the newest event is {duration_text(age_us)} old", ""
        elif isinstance(rule, Rows):
            if rule.at_least is not None and found.rows < rule.at_least:
                yield f"{rule}: {counted_rows(found.rows)}", ""
            # Rounded once, as what the author wrote: 29 of 100 are not more than a share of 0.29.
            share = 0.0 if usual is None else float(abs(found.rows - usual) / usual)
            if usual is not None and rule.change_at_most is not None and share > rule.change_at_most:
                yield f"{rule}: {counted_rows(found.rows)}, where runs like it had {float(usual):,.0f}", ""


def usual_rows(workspace: Readers, result: RunResult) -> Fraction | None:
    """Return how many rows a run would bring at the median rate of the last runs of its kind; None where they are few.

    Of runs with a span like its own where there are enough, else of all: a run that was blocked moves no watermark, so
    the span of the next one grows, and must not escape the rule by that. A span reaches back over runs that brought
    nothing.
    """
    before = runs(workspace.ledger, workspace.project, result.view, now_us=workspace.clock())
    same = [
        run
        for run in before
        if (run.kind, run.state, run.generation) == (result.kind, "done", result.generation)
        and not run.dry_run
        and run.run_id != result.run_id
    ]
    rates: list[tuple[int, Fraction]] = []
    empty_us = 0
    for run in reversed(same):  # oldest first
        brought, span_us = run.appended + run.quarantined, _span_us(run) + empty_us
        reads_on = result.kind == "incremental"  # where the run before it ended
        empty_us = span_us if reads_on and not brought else 0
        if brought and span_us:
            rates.insert(0, (span_us, Fraction(brought, span_us)))
    own_us = _span_us(result) + empty_us
    if not own_us:
        return None
    alike = [rate for span_us, rate in rates if _are_alike(span_us, own_us)][:RUNS]
    chosen = alike if len(alike) >= LEAST_RUNS else [rate for _, rate in rates][:RUNS]
    return median(chosen) * own_us if len(chosen) >= LEAST_RUNS else None


def _span_us(run: RunResult) -> int:
    return sum(end - start for start, end in run.intervals)


def _are_alike(one_us: int, other_us: int) -> bool:
    least, greatest = sorted((one_us, other_us))
    return greatest <= ALIKE * least
