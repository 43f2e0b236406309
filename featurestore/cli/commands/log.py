"""fs log."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command
from featurestore.cli.plans import applied_document, render_lines
from featurestore.ingest.group_commit import PUSH
from featurestore.ledger.journal import COMMIT, PUBLISH, newest_events
from featurestore.ledger.runs import all_runs
from featurestore.plan import AppliedRevision
from featurestore.plan.history import explain_applied
from featurestore.store import FeatureStore
from featurestore.types.times import to_rfc3339


@click.command("log")
@click.option(
    "--limit",
    "-n",
    type=WholeNumber(1, 100_000),
    default=20,
    show_default=True,
    help="Lines, newest first.",
)
@click.option("--diff", is_flag=True, help="Only applies, each with all that it changed, line by line.")
@click.option("--commits", metavar="VIEW", help="A view's commits, publishes and online-only pushes.")
@repo_command
def command(store: FeatureStore, output: Output, limit: int, diff: bool, commits: str | None) -> None:
    """Show what was applied and materialized, newest first."""
    if diff and commits is not None:
        raise click.UsageError("--diff shows applies, --commits a view's rows: give one of them.")
    if commits is not None:
        _show_commits(store, output, commits, limit)
        return
    if diff:
        _show_diffs(store, output, limit)
        return
    workspace = store.workspace
    events = [*map(_event, store.history(limit))]
    for run in all_runs(workspace.ledger, workspace.project, now_us=workspace.clock()):
        about = f"{run.appended:,} rows appended, {run.published.written:,} published"
        if run.state != "done":  # a start counts nothing yet
            about = run.state
        about = about if run.error is None else f"{run.state}: {run.error}"
        if run.unmet and run.error is None:  # an error tells it
            about = f"{about}; not as expected: {'; '.join(run.unmet)}"
        if run.accepted:
            about = f"{about}; {run.accepted_how}: {run.accepted}"
        events.append(
            {
                "at": to_rfc3339(run.started_us),
                "what": f"{run.kind} {run.view}",
                "by": f"@{run.host}",
                "state": run.state,
                "about": about,
                "run": run.run_id,
                "unmet": list(run.unmet),
                "accepted": run.accepted,
                "quarantined": run.quarantined,
            }
        )
    events.sort(key=lambda event: event["at"], reverse=True)
    shown = events[:limit]
    output.emit(shown)
    rows = [(event["at"][:19].replace("T", " "), event["what"], event["by"], event["about"]) for event in shown]
    output.table(("when (UTC)", "what", "by", "about"), rows)


def _show_diffs(store: FeatureStore, output: Output, limit: int) -> None:
    found = store.history(limit)
    output.emit([applied_document(applied) for applied in found])
    for place, applied in enumerate(found):
        if place:
            output.say("")
        render_lines(output, explain_applied(applied))


def _show_commits(store: FeatureStore, output: Output, view: str, limit: int) -> None:
    registered = store.workspace.known_snapshot().registered(view)
    events = newest_events(store.workspace.registry.journal, registered, limit)
    output.emit(events)
    rows = [
        ("" if each["at_us"] is None else to_rfc3339(each["at_us"])[:19].replace("T", " "), *_told(each))
        for each in events
    ]
    output.table(("when (UTC)", "what", "by", "about"), rows)


def _told(event: dict[str, Any]) -> tuple[str, str, str]:
    """Return what an entry of the journal tells: what, by whom, and about."""
    if event["kind"] == COMMIT:
        span = "" if event["last_sequence"] is None else f", {event['first_sequence']} to {event['last_sequence']}"
        rows = "" if event["rows"] is None else f"{event['rows']:,} rows{span}"
        lost = f", {event['withdrawn']:,} withdrawn" if event["withdrawn"] else ""
        return f"commit {event['version']}", event["origin"] or "", rows + lost
    if event["kind"] == PUBLISH:
        begin, end = ("nothing" if event[name] is None else str(event[name]["version"]) for name in ("from", "to"))
        done = "failed" if "finished_us" in event else "did not end"
        if "written" in event:
            done = f"{event['written']:,} written{'' if event['complete'] else ', rows of the future held back'}"
        return f"publish {begin} to {end}", "run", done
    return "pushed online only", PUSH, f"{event['rows']:,} records"


def _event(applied: AppliedRevision) -> dict[str, Any]:
    """Return an apply as a line, each change as new (+), changed (~) or deleted (-)."""
    info = applied.info
    about = f"{info.message + ': ' if info.message else ''}{', '.join(applied.signs)}"
    at, what = info.applied_at.isoformat(), f"apply revision {info.number}"
    return {"at": at, "what": what, "by": info.author, "state": "done", "about": about}
