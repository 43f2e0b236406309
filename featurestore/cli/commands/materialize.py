"""fs materialize."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.instants import InstantsCommand, Moment, instant
from featurestore.cli.output import Output, confirmed, jsonable, repo_command
from featurestore.ledger.runs import heads_of
from featurestore.ledger.unread import read_unread
from featurestore.ledger.watermarks import read_watermark
from featurestore.materialization import RunResult, materialize, materialize_incremental, republish
from featurestore.store import FeatureStore


@click.command("materialize", cls=InstantsCommand)
@click.argument("start", required=False, callback=instant)
@click.argument("end", required=False, callback=instant)
@click.option("--view", "views", multiple=True, help="A view to materialize (default: all). Repeat for more.")
@click.option("--dry-run", is_flag=True, help="Count what would be read and appended; write nothing.")
@click.option(
    "--rebuild", is_flag=True, help="Also withdraw rows of the span that the source no longer holds, and damaged files."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask before rows are withdrawn.")
@click.option("--republish", "again", is_flag=True, help="Publish the newest row of every entity again.")
@click.option("--authoritative", is_flag=True, help="With --republish: also remove what the offline store lacks.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    start: Moment | None,
    end: Moment | None,
    views: tuple[str, ...],
    dry_run: bool,
    rebuild: bool,
    yes: bool,
    again: bool,
    authoritative: bool,
) -> Any:
    """Bring rows from the sources into the offline store, and the newest of each entity online.

    Without START and END: what is new since the last run, late rows and corrections included. With them: rows with
    event time in [START, END), and without END until now. Running it again appends nothing.

    An instant is ISO 8601 (UTC where no zone is given), now, or how long ago: -7d, -12h, -90m.
    """
    _check(start, rebuild=rebuild, again=again, authoritative=authoritative, dry_run=dry_run)
    workspace, wanted = store.workspace, views or None
    if again:
        results = republish(workspace, wanted, authoritative=authoritative)
    elif start is not None:
        now = workspace.clock
        span = start(now), now() if end is None else end(now)
        confirm = (lambda view, rows: True) if yes else ask
        results = materialize(workspace, *span, wanted, dry_run=dry_run, rebuild=rebuild, confirm=confirm)
    else:
        results = materialize_incremental(workspace, None, wanted, dry_run=dry_run)
    lacks = {run.view: () if dry_run or run.state != "done" else _lacks(store, run.view) for run in results}
    document = [{**jsonable(run), "lacks": lacks[run.view]} for run in results]
    output.emit(document)
    _show(output, results, lacks, dry_run=dry_run)
    return EXIT_FAILED if any(run.state != "done" or run.published.wrong_type for run in results) else 0


def _check(start: Moment | None, *, rebuild: bool, again: bool, authoritative: bool, dry_run: bool) -> None:
    if rebuild and start is None:
        raise click.UsageError("--rebuild needs START, and END unless it is now.")
    if authoritative and not again:
        raise click.UsageError("--authoritative goes with --republish.")
    if again and (start is not None or dry_run):
        raise click.UsageError("--republish takes neither START and END nor --dry-run.")


def ask(view: str, rows: int) -> bool:
    """Ask whether a rebuild may withdraw rows; raises UsageError where there is no terminal."""
    return confirmed(
        f"Withdraw {rows:,} rows of {view} that the source no longer holds as they were, or that a damaged file held?",
        f"{rows:,} rows of {view} would be withdrawn and nobody can be asked: pass --yes.",
        abort=False,
    )


def _lacks(store: FeatureStore, view: str) -> tuple[str, ...]:
    """Return what a view still lacks after its run, as `fs status` shows it."""
    registry, registered = store.workspace.registry, store.workspace.snapshot().registered(view)
    return read_unread(registry, registered, read_watermark(registry.ledger, registered)).texts()


def _show(output: Output, results: Sequence[RunResult], lacks: Mapping[str, Sequence[str]], *, dry_run: bool) -> None:
    if not results:
        output.say("There is nothing to materialize: no feature view is declared.")
        return
    heads = heads_of(results)
    narrow = ("waiting", "dropped", "duplicates", "unchanged", "took")
    output.table(heads, [run.cells(heads) for run in results], right=heads[1:], droppable=narrow)
    for run in results:
        for note in (*(f"{run.view}: {note}" for note in run.notes()), *lacks[run.view]):
            output.say(note, style="yellow")
        output.say_error(run)
    if dry_run:
        output.say("This was a dry run: nothing was written.")
