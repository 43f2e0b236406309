"""fs diff."""

from __future__ import annotations

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.plans import diff_document, render_lines
from featurestore.plan.history import explain_diff, find_revision
from featurestore.store import FeatureStore


@click.command("diff")
@click.argument("before", metavar="A")
@click.argument("after", metavar="[B]", required=False)
@click.option("--parent", is_flag=True, help="What revision A itself changed: beside the one before it.")
@repo_command
def command(store: FeatureStore, output: Output, before: str, after: str | None, parent: bool) -> None:
    """Show what differs between revisions A and B (default: the newest), line by line.

    A revision is its number, or the beginning of its hash; `fs log --diff` shows both.
    """
    if parent:
        if after is not None:
            raise click.UsageError("--parent goes with one revision.")
        number = find_revision(store.project, store.workspace.registry.definitions.chain(store.project), before)
        found = store.diff(max(number - 1, 0), number)
    else:
        found = store.diff(before, after)
    output.emit(diff_document(found))
    render_lines(output, explain_diff(found))
