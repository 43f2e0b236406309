"""fs peek."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command, shown
from featurestore.store import FeatureStore
from featurestore.types.columns import EVENT

if TYPE_CHECKING:
    import pyarrow as pa

SUPERSEDED = "fs_superseded"
"""In JSON: whether there is a later version of the row."""


@click.command("peek")
@click.argument("view")
@click.option("--rows", "-n", type=WholeNumber(1, 10_000), default=10, show_default=True, help="How many.")
@click.option("--dropped", is_flag=True, help="Rows of the source that runs do not take, and why.")
@repo_command
def command(store: FeatureStore, output: Output, view: str, rows: int, dropped: bool) -> None:
    """Show the newest rows of VIEW in the offline store, versions that a later one supersedes among them."""
    if dropped:
        _show_dropped(store.peek(view, rows, dropped=True), view, output)
        return
    found = store.peek(view, rows)
    documents = found.to_pylist()
    definition = store.workspace.snapshot().views[view].view
    identity = [*definition.join_keys, EVENT]
    seen: set[tuple[Any, ...]] = set()
    for row in documents:  # newest first: what has the keys and event time of a row before it is an older version of it
        named = tuple(row[name] for name in identity)
        row[SUPERSEDED] = named in seen and not definition.aggregations  # which take every event
        seen.add(named)
    output.emit(documents)
    if documents:
        marks = [["superseded"] if row[SUPERSEDED] else [""] for row in documents]
        extra = ["version"] if ["superseded"] in marks else []
        cells = [[shown(row[name]) for name in found.column_names] for row in documents]
        marked = [[*row, *mark[: len(extra)]] for row, mark in zip(cells, marks, strict=True)]
        output.table([*found.column_names, *extra], marked)
    else:
        output.say(f"Nothing of {view} is materialized yet: run `fs materialize --view {view}`.")


def _show_dropped(found: pa.Table, view: str, output: Output) -> None:
    documents = found.to_pylist()
    output.emit(documents)
    if documents:
        names = ["why", *found.column_names[1:]]
        output.table(names, [[shown(value) for value in row.values()] for row in documents])
    else:
        output.say(f"Runs take every row of the source of {view}.")
