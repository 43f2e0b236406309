"""fs push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore

if TYPE_CHECKING:
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
    from featurestore.ingest.push import PushedWindows

    done = store.push(source, file, to)
    output.emit(done)
    heads: tuple[str, ...] = ("view", "committed", "version", "online", "stale", "expired", "wrong type")
    has_events = any(isinstance(pushed, PushedWindows) for pushed in done.views.values())
    if has_events:
        heads += ("known", "conflicting", "too late")
    rows = []
    for view, pushed in done.views.items():
        offline, online = pushed.offline, pushed.online
        committed = ("", "") if offline is None else (f"{offline.rows:,}", offline.version)
        counts = [""] * 4 if online is None else [f"{count:,}" for count in asdict(online).values()]
        if has_events:
            events = pushed.events if isinstance(pushed, PushedWindows) else None
            shown = () if events is None else (events.known, events.conflicting, events.too_late)
            counts += [f"{count:,}" for count in shown] or [""] * 3
        rows.append((view, *committed, *counts))
    output.table(heads, rows, right=heads[1:])
    if done.note is not None:
        output.say(done.note, style="yellow")
