"""fs repair."""

from __future__ import annotations

import sys
from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.repair import Repaired, find_repairs, repair
from featurestore.store import FeatureStore


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
    for line in found.actions:
        output.say(line)
    if not found.actions or dry_run:
        output.emit(document)
        nothing = "Registry and stores belong together."
        output.say("This was a dry run: nothing was changed." if found.actions else nothing)
        return 0
    if not yes:
        if output.as_json or not sys.stdin.isatty():
            raise click.UsageError("Nobody can be asked whether to repair this: pass --yes.")
        click.confirm("Do this?", abort=True, err=True)
    done = repair(workspace, found)
    problems = [problem for view in done.checked for problem in view.problems]
    failed = any(run.state != "done" for run in done.runs)
    output.emit({**document, "runs": done.runs, "problems": problems})
    _show(output, done, problems, failed=failed)
    return EXIT_FAILED if problems or failed else 0


def _show(output: Output, done: Repaired, problems: list[str], *, failed: bool) -> None:
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
    output.table(heads, rows, right=heads[2:])
    for run in done.runs:
        output.say_error(run)
    for name in done.adopted:
        output.say(f"training set {name} is registered again")
    for problem in problems:
        output.say(problem, style="red")
    if failed:
        output.say("A run failed: settle what it names and run `fs repair` again.", style="red")
    elif not problems:
        output.say("Verified: registry and stores belong together.")
