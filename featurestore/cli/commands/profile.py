"""fs profile."""

from __future__ import annotations

import sys

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.streams import is_unicode
from featurestore.store import FeatureStore


@click.command("profile")
@click.argument("what")
@click.option("--source", is_flag=True, help="The rows that a first run of a view would bring.")
@repo_command
def command(store: FeatureStore, output: Output, what: str, source: bool) -> None:
    """Show what the columns of WHAT hold: a feature view or service, a Parquet file or pattern, or a SELECT."""
    from featurestore.statistics.profile import HEADS, RIGHT, Profiles

    found = store.profile(what, source=source)
    output.emit([each.to_dict() for each in found] if isinstance(found, Profiles) else found.to_dict())
    for each in found if isinstance(found, Profiles) else [found]:
        output.say(each.title(), style="bold")
        cells = list(each.cells(blocks=is_unicode(sys.stdout)))
        output.table(HEADS, cells, right=RIGHT, droppable=("mean", "type", "greatest", "least"))
        for name, kind in each.left_out.items():
            output.say(f"{name}: {kind} is not profiled")
