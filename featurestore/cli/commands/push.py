"""fs push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.tables import table
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from rich.console import Console

    from featurestore.ingest.push import To


@click.command("push")
@click.argument("source")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Choice(["both", "online", "offline"]), default="both", show_default=True, help="Where rows go."
)
@repo_command
def command(store: FeatureStore, output: Output, source: str, file: Path, to: To) -> None:
    """Push the rows of FILE (Parquet) to the feature views that read the push source SOURCE.

    Every row is checked before any is written. Rows are committed offline first and then written online, where a newer
    row stays. Running it again does no harm.
    """
    done = store.push(source, file, to)

    def render(console: Console) -> None:
        heads = ("view", "committed", "version", "online", "stale", "expired", "wrong type")
        rows = []
        for view, pushed in done.views.items():
            offline, online = pushed.offline, pushed.online
            committed = ("", "") if offline is None else (f"{offline.rows:,}", offline.version)
            counts = [""] * 4
            if online is not None:
                found = (online.written, online.stale, online.expired, online.wrong_type)
                counts = [f"{count:,}" for count in found]
            rows.append((view, *committed, *counts))
        table(console, heads, rows, right=heads[1:])
        if done.note is not None:
            console.print(done.note, markup=False, style="yellow")

    output.emit(done, render)
