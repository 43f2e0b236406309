"""fs optimize."""

from __future__ import annotations

import click

from featurestore.cli.output import Output, repo_command
from featurestore.maintenance.optimize import optimize
from featurestore.store import FeatureStore


@click.command("optimize")
@click.option("--view", "views", multiple=True, help="A view to optimize (default: all). Repeat for more.")
@repo_command
def command(store: FeatureStore, output: Output, views: tuple[str, ...]) -> None:
    """Compact offline tables into large files in time order, and delete what nothing pins."""
    done = optimize(store.workspace, views or None)
    output.emit(done)
    heads = ("view", "files before", "files after", "rows", "files deleted")
    rows = [(d.view, d.files_before, d.files_after, f"{d.rows:,}", d.removed) for d in done]
    output.table(heads, rows, right=heads[1:])
