"""fs log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from featurestore_registry.interface import DefinitionsReader

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command
from featurestore.ledger.runs import all_runs
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
@repo_command
def command(store: FeatureStore, output: Output, limit: int) -> None:
    """Show what was applied and materialized, newest first."""
    workspace = store.workspace
    events = list(_applies(workspace.registry.definitions, workspace.project, limit))
    for run in all_runs(workspace.ledger, workspace.project, now_us=workspace.clock()):
        about = f"{run.appended:,} rows appended, {run.published.written:,} published"
        if run.state != "done":  # a start counts nothing yet
            about = run.state
        events.append(
            {
                "at": to_rfc3339(run.started_us),
                "what": f"{run.kind} {run.view}",
                "by": f"@{run.host}",
                "state": run.state,
                "about": about if run.error is None else f"{run.state}: {run.error}",
            }
        )
    events.sort(key=lambda event: event["at"], reverse=True)
    shown = events[:limit]
    output.emit(shown)
    rows = [(event["at"][:19].replace("T", " "), event["what"], event["by"], event["about"]) for event in shown]
    output.table(("when (UTC)", "what", "by", "about"), rows)


def _applies(definitions: DefinitionsReader, project: str, limit: int) -> Iterator[dict[str, Any]]:
    """Yield what was applied, each change as new (+), changed (~) or deleted (-)."""
    found = sorted(definitions.history(project, limit=limit), key=lambda info: info.number)
    first = found[0].number if found else 1
    known = {record.key for record in definitions.read(project, first - 1).records} if first > 1 else set()
    for info in found:
        signs = []
        for change in info.changes:
            key = f"{change.kind}:{change.name}"
            signs.append(f"{'-' if change.action == 'delete' else '~' if key in known else '+'}{key}")
            known = known - {key} if change.action == "delete" else known | {key}
        about = f"{info.message + ': ' if info.message else ''}{', '.join(signs)}"
        at, what = info.applied_at.isoformat(), f"apply revision {info.number}"
        yield {"at": at, "what": what, "by": info.author, "state": "done", "about": about}
