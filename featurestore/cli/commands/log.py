"""fs log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command
from featurestore.cli.tables import table
from featurestore.metadata.runs import all_runs
from featurestore.store import FeatureStore
from featurestore.types.times import to_rfc3339

if TYPE_CHECKING:
    from rich.console import Console


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
    events: list[dict[str, Any]] = []
    for info in workspace.registry.definitions.history(workspace.project, limit=limit):
        changed = ", ".join(f"{'-' if c.action == 'delete' else '+'}{c.kind}:{c.name}" for c in info.changes)
        at = info.applied_at.isoformat()
        about = f"{info.message + ': ' if info.message else ''}{changed}"
        events.append({"at": at, "what": f"apply revision {info.number}", "by": info.author, "about": about})
    for run in all_runs(workspace.ledger, workspace.project, now_us=workspace.clock()):
        about = f"{run.appended:,} rows appended, {run.published.written:,} published"
        events.append(
            {
                "at": to_rfc3339(run.started_us),
                "what": f"{run.kind} {run.view}",
                "by": run.host,
                "about": about if run.error is None else f"{run.state}: {run.error}",
            }
        )
    events.sort(key=lambda event: event["at"], reverse=True)
    shown = events[:limit]

    def render(console: Console) -> None:
        rows = [(event["at"][:19].replace("T", " "), event["what"], event["by"], event["about"]) for event in shown]
        table(console, ("when (UTC)", "what", "by", "about"), rows)

    output.emit(shown, render)
