"""fs accept."""

from __future__ import annotations

import click

from featurestore.cli.commands.materialize import ask
from featurestore.cli.output import Output, repo_command
from featurestore.ledger.runs import heads_of
from featurestore.store import FeatureStore


@click.command("accept")
@click.argument("run")
@click.option("--reason", required=True, help="Why the rows are right all the same; it is kept.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before rows are withdrawn.")
@repo_command
def command(store: FeatureStore, output: Output, run: str, reason: str, yes: bool) -> None:
    """Commit the rows of a run that was blocked, because they are right all the same.

    The run is made again and its rows are committed if they are the very same; where the source or the definition
    changed since, it is refused. Of a run that blocked an apply with --prepare, apply again afterwards.
    """
    done = store.accept(run, reason, confirm=(lambda view, rows: True) if yes else ask)
    output.emit({"run": done.run_id, "view": done.view, "appended": done.appended, "accepted": done.accepted})
    heads = heads_of([done])
    output.table(heads, [done.cells(heads)])
    for note in done.notes():
        output.say(note)
    served = store.workspace.snapshot().views.get(done.view)
    if served is None or served.generation != done.generation:
        output.say(f"Generation {done.generation} of {done.view} is not served yet: run `fs apply --prepare` again.")
