"""Filling new generations before they are served, so that an apply is no outage for readers.

An ordinary run of each view uses the plan's definitions as if they were applied. The watermarks, commits and markers of
a generation that no definition names yet disturb nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurestore_registry.documents import Interval

from featurestore.errors import RevisionConflictError, TableVersionError
from featurestore.ledger.commits import KnownCommit, last_read
from featurestore.ledger.prepared import PreparedReader
from featurestore.ledger.runs import RunResult
from featurestore.ledger.watermarks import Watermark, merge, read_watermark, subtract
from featurestore.materialization.jobs import materialize, materialize_incremental, succeeded
from featurestore.plan import Plan, make_plan
from featurestore.plan.applying import check_base, claim_generations
from featurestore.project.loader import load_definitions
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached, step
from featurestore.workspace import Readers, Workspace

FILLED = crash_point("prepare.filled", "one view's new generation is filled and online, and not served yet")

MOST_ROUNDS = 4
"""At most so many times the changes that the old generation got meanwhile are read again; each round is shorter."""


def prepare(workspace: Workspace, plan: Plan) -> Sequence[RunResult]:
    """Fill a plan's new generations, by its definitions, with the spans that the generations before them hold.

    Fills a new view from its source's first event on. Afterwards the plan only has to be applied. Raises
    RevisionConflictError when another apply came since the plan was made, or runs kept changing the served generation,
    and MaterializationError naming the views that failed. What is filled by then stays; the next apply of the same
    definitions continues from there, unless a run has read the served generation again.
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


def as_prepared(workspace: Workspace) -> Workspace:
    """Return a workspace that takes the feature repo's definitions as applied, with generations that are prepared."""
    plan = make_plan(workspace, load_definitions(workspace.root), partial=False, of_repo=True, prepare=True)
    return workspace.as_if(plan.result(workspace.snapshot()))


def _fill(planned: Workspace, new: RegisteredView, old: RegisteredView | None) -> Sequence[RunResult]:
    """Bring a generation up to the one before it: read its spans, and the parts of them that were read again since."""
    if old is None:
        runs = succeeded(materialize_incremental(planned, None, [new.view.name]))
        reached(FILLED)
        return runs
    runs = []
    known = PreparedReader(planned.ledger, planned.project, new.chain.head).get(new.view.name, new.generation)
    since = None if known is None else known.since
    newest, held = _state(planned, old)
    for _ in range(MOST_ROUNDS):
        changed, is_withdrawn = _changed(planned, old, since, newest)
        filled = read_watermark(planned.ledger, new).intervals
        runs += _read(planned, new, held)
        for start_us, end_us in filled if changed is None else subtract(filled, subtract(filled, changed)):
            runs += _read_span(planned, new, start_us, end_us, rebuild=is_withdrawn)
        since, before = newest, held
        newest, held = _state(planned, old)
        if (newest, held.intervals) == (since, before.intervals):
            reached(FILLED)
            return runs
    raise RevisionConflictError(
        f"Runs changed feature view {new.view.name!r} each time its new generation had caught up, "
        f"{MOST_ROUNDS} times in a row; nothing was applied.",
        hint="Apply it again while no run of the view is under way.",
        view=new.view.name,
    )


def _state(workspace: Readers, served: RegisteredView) -> tuple[KnownCommit | None, Watermark]:
    """Return a view's last commit and its watermark, read in the order in which a run writes them."""
    newest = last_read(workspace.ledger, workspace.offline, served)
    return newest, read_watermark(workspace.ledger, served)


def _read(planned: Workspace, new: RegisteredView, held: Watermark) -> Sequence[RunResult]:
    """Read the spans that a generation lacks compared with the one before it."""
    if held.begun_us is not None:
        return succeeded(materialize_incremental(planned, None, [new.view.name]))
    missing = subtract(held.intervals, read_watermark(planned.ledger, new).intervals)
    # Run even where nothing is missing: rows that are not online yet are published.
    spans = missing or held.intervals[-1:]
    return [run for start_us, end_us in spans for run in _read_span(planned, new, start_us, end_us)]


def _read_span(
    planned: Workspace, new: RegisteredView, start_us: int, end_us: int, *, rebuild: bool = False
) -> Sequence[RunResult]:
    end_us = min(end_us, planned.clock())
    names = [new.view.name]
    return succeeded(materialize(planned, start_us, end_us, names, rebuild=rebuild, confirm=lambda view, rows: True))


def _changed(
    workspace: Readers, served: RegisteredView, since: KnownCommit | None, newest: KnownCommit | None
) -> tuple[tuple[Interval, ...] | None, bool]:
    """Return where rows changed between two commits, None where that is unknown, and whether rows may have left."""
    if newest == since:
        return (), False
    offline, table = workspace.offline, served.table
    there = None if since is None else offline.find_commit(table, since.version)
    is_known = since is None or (there is not None and there.identity == since.identity)
    if newest is None or not is_known:
        return None, True
    try:
        changes = offline.changes(table, None if since is None else since.version, newest.version)
    except TableVersionError:  # cleaned away
        return None, True
    files = (*changes.added, *changes.removed)
    return merge((file.min_event_us, file.max_event_us + 1) for file in files), bool(changes.removed)
