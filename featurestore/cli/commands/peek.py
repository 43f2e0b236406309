"""fs peek."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command, shown
from featurestore.cli.tables import table
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from rich.console import Console


@click.command("peek")
@click.argument("view")
@click.option("--rows", "-n", type=WholeNumber(1, 10_000), default=10, show_default=True, help="How many.")
@repo_command
def command(store: FeatureStore, output: Output, view: str, rows: int) -> None:
    """Show the newest rows of VIEW in the offline store."""
    found = store.peek(view, rows)
    documents = found.to_pylist()

    def render(console: Console) -> None:
        if documents:
            table(console, found.column_names, [[shown(value) for value in row.values()] for row in documents])
        else:
            console.print(f"Nothing of {view} is materialized yet: run `fs materialize --view {view}`.")

    output.emit(documents, render)
