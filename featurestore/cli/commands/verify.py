"""fs verify."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.consistency.waiting_rows import in_words
from featurestore.maintenance.verify import verify
from featurestore.store import FeatureStore


@click.command("verify")
@repo_command
def command(store: FeatureStore, output: Output) -> Any:
    """Check every offline file and online record, and whether the stores agree.

    Checks the checksums of all files and records, whether registry, offline and online store belong together, and
    whether the online values of 1,000 entities are those of the offline table. Exits with 1 when something is wrong.
    """
    checked = verify(store.workspace)
    problems = [problem for view in checked for problem in view.problems]
    output.emit(checked)
    rows = [
        (v.view, f"{v.files:,}", f"{v.records:,}", f"{v.compared:,}", f"{v.online_only:,}", len(v.problems))
        for v in checked
    ]
    heads = ("view", "files", "online records", "compared", "online only", "problems")
    output.table(heads, rows, right=heads[1:])
    for view in checked:
        if view.waiting:
            output.say(in_words(view.view, view.waiting), style="yellow")
    for problem in problems:
        output.say(problem, style="red")
    return EXIT_FAILED if problems else 0
