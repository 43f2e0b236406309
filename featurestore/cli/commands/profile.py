"""fs profile."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import given
from featurestore.cli.streams import is_unicode
from featurestore.store import FeatureStore


def _needs_no_repo(values: Mapping[str, Any]) -> bool:
    """Tell whether files are asked for where no project is: they are profiled before anything is defined."""
    from featurestore.maintenance.profile import is_path, is_there
    from featurestore.project.settings import FILE_NAME

    what = values["what"]
    return given("repo") is None and not Path(FILE_NAME).exists() and (is_path(what) or is_there(what))


@click.command("profile")
@click.argument("what")
@click.option("--source", is_flag=True, help="The rows that a first run of a view would bring.")
@partial(repo_command, is_anywhere=_needs_no_repo)
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
