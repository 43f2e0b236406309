"""fs status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.tables import table
from featurestore.maintenance.status import status, without_views
from featurestore.store import FeatureStore
from featurestore.types.times import to_rfc3339

if TYPE_CHECKING:
    from rich.console import Console


@click.command("status")
@repo_command
def command(store: FeatureStore, output: Output) -> None:
    """Show each view's freshness, watermark, rows, and how its last run went."""
    found = status(store.workspace)

    def render(console: Console) -> None:
        if not found:
            for line in without_views(store.workspace):
                console.print(line, markup=False)
            return
        heads = ("view", "newest event", "age", "committed until", "entities", "versions", "online", "last run")
        rows = [
            (
                view.view,
                _instant(view.greatest_event_us),
                _age(view.age_us),
                _instant(view.committed_until_us),
                "" if view.entities is None else f"{view.entities:,}",
                f"{view.offline_rows:,}",
                f"{view.online_rows:,}" if view.online else "-",
                view.last_run,
            )
            for view in found
        ]
        table(console, heads, rows, right=("age", "entities", "versions", "online"))
        for mismatch in (each for view in found for each in view.mismatches):
            console.print(f"{mismatch.message} {mismatch.hint}", markup=False, style="yellow")
        for view in found:
            if view.unreadable:
                console.print(view.unreadable, markup=False, style="yellow")
        for lack in (each for view in found for each in view.lacks):
            console.print(lack, markup=False, style="yellow")
        for told in found[0].clocks:
            console.print(f"{told} Run `fs doctor`.", markup=False)

    output.emit(found, render)


def _instant(instant_us: int | None) -> str:
    return "never" if instant_us is None else to_rfc3339(instant_us)[:19].replace("T", " ")


_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def _age(age_us: int | None) -> str:
    if age_us is None:
        return ""
    seconds = age_us // 1_000_000
    length, unit = next((found for found in _UNITS if seconds >= found[0]), _UNITS[-1])
    return f"{seconds // length} {unit}"
