"""fs repair."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.cli.tables import table
from featurestore.repair import Repaired, find_repairs, repair
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from rich.console import Console


@click.command("repair")
@click.option("--dry-run", is_flag=True, help="Show what would be done; change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@repo_command
def command(store: FeatureStore, output: Output, dry_run: bool, yes: bool) -> Any:
    """Settle what does not belong together, after a restore or a mistaken URL.

    The registry decides which definitions hold, the offline table which rows there are; the online store decides
    nothing. Rows that a table lacks are read from its source again and published. Shows what it will do and asks first;
    verifies afterwards.
    """
    workspace = store.workspace
    found = find_repairs(workspace)
    document: dict[str, Any] = {"found": found.mismatches, "actions": found.actions, "dry_run": dry_run}
    if not output.as_json:
        for line in found.actions:
            output.say(line)
    if not found.actions or dry_run:
        output.emit(document, lambda console: console.print(_closing(found.actions)))
        return 0
    if not yes:
        if output.as_json or not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked whether to repair this: pass --yes.")
        click.confirm("Do this?", abort=True, err=True)
    done = repair(workspace, found)
    problems = [problem for view in done.checked for problem in view.problems]
    failed = any(run.state != "done" for run in done.runs)
    output.emit(
        {**document, "runs": done.runs, "problems": problems},
        lambda console: _render(console, done, problems, failed=failed),
    )
    return EXIT_FAILED if problems or failed else 0


def _closing(actions: list[str]) -> str:
    return "This was a dry run: nothing was changed." if actions else "Registry and stores belong together."


def _render(console: Console, done: Repaired, problems: list[str], *, failed: bool) -> None:
    heads = ("view", "run", "read again", "appended", "published", "replaced", "online only, removed")
    rows = [
        (
            run.view,
            run.kind if run.state == "done" else f"{run.kind}, {run.state}",
            f"{run.read:,}",
            f"{run.appended:,}",
            f"{run.published.written:,}",
            f"{run.published.repaired:,}",
            f"{run.published.deleted:,}",
        )
        for run in done.runs
    ]
    table(console, heads, rows, right=heads[2:])
    for run in done.runs:
        if run.error is not None:
            click.echo(f"{click.style('Error', fg='red', bold=True)}: {run.view}: {run.error}", err=True)
    for name in done.adopted:
        console.print(f"training set {name} is registered again", markup=False)
    for problem in problems:
        console.print(problem, markup=False, style="red")
    if failed:
        console.print("A run failed: settle what it names and run `fs repair` again.", markup=False, style="red")
    elif not problems:
        console.print("Verified: registry and stores belong together.")
