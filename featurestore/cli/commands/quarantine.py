"""fs quarantine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from featurestore.cli.entities import confirm_parts, declared_types, entity_option, entity_rows
from featurestore.cli.output import Output, jsonable, repo_command
from featurestore.cli.shared import shared_options
from featurestore.definitions import FeatureView
from featurestore.ledger.runs import heads_of
from featurestore.materialization.deciding import Choice, drop, release
from featurestore.quarantine.listing import (
    HeldRun,
    decisions,
    held_runs,
    held_table,
    lost_rows,
    quarantine_of,
    shown_columns,
)
from featurestore.served.forgetting import only_part_of
from featurestore.statistics.columns import PERSONAL, is_personal
from featurestore.store import FeatureStore
from featurestore.types.times import to_short_rfc3339

MOST_ROWS = 1_000
"""At most so many rows are shown, of `--json` too."""


@click.group("quarantine")
@shared_options()
def command(**_: Any) -> None:
    """Show rows that runs set aside because they fail rules, release them or drop them."""


@command.command("list")
@click.argument("view", required=False)
@click.option("--run", metavar="RUN", help="Only rows that this run set aside.")
@click.option("--rows", "has_rows", is_flag=True, help=f"Show the rows of VIEW, at most {MOST_ROWS:,}.")
@click.option("--generation", type=int, help="With --rows: of an earlier generation of VIEW.")
@repo_command
def list_all(
    store: FeatureStore, output: Output, view: str | None, run: str | None, has_rows: bool, generation: int | None
) -> None:
    """List what is held, and why; values of personal fields do not show."""
    if has_rows and view is None:
        raise click.UsageError("--rows needs VIEW.")
    if generation is not None and not has_rows:
        raise click.UsageError("--generation goes with --rows.")
    if has_rows and view is not None:
        _show_rows(store, output, view, run, generation)
        return
    found = held_runs(store.workspace, view, run)
    decided = list(decisions(store.workspace, view))
    lost = lost_rows(store.workspace, view)
    output.emit(
        {
            "held": [jsonable(each) for each in found],
            "decided": [jsonable(each) for each in decided],
            "missing": list(lost.values()),
        }
    )
    for told in lost.values():
        output.say(told, style="red")
    if not found and not lost:
        output.say("No rows are set aside.")
    elif found:
        rows = [
            (each.view, f"{each.generation}", each.run, to_short_rfc3339(each.found_us), f"{each.rows:,}",
             f"{each.entities:,}", ", ".join(f"{rule} ({count:,})" for rule, count in each.rules.items()))
            for each in found
        ]  # fmt: skip
        output.table(
            ("view", "generation", "run", "found", "rows", "entities", "fail"), rows, right=("rows", "entities")
        )
    for each in decided:
        rows_were = "1 row was" if each.rows == 1 else f"{each.rows:,} rows were"
        is_over = "is being released" if each.what == "releasing" else each.what
        at = to_short_rfc3339(each.at_us)
        output.say(
            f"{each.view} (generation {each.generation}): {rows_were} {is_over} {at} by {each.by}: {each.reason}"
        )
    for held in (held for held in found if not held.is_applied):
        output.say(_old(held), style="yellow")


def _old(each: HeldRun) -> str:
    return (
        f"{each.view}: generation {each.generation} is not applied any more, its rows cannot be released. Drop them: "
        f"`fs quarantine drop {each.view} --generation {each.generation} --all --reason TEXT`."
    )


def _show_rows(store: FeatureStore, output: Output, view: str, run: str | None, generation: int | None) -> None:
    rows = held_table(store.workspace, view, generation, run=run)
    table = quarantine_of(store.workspace, view, generation)
    hidden = _hidden(store, view, rows.column_names, is_applied=_is_applied(store, view, table.generation))
    shown = shown_columns(rows.slice(0, MOST_ROWS), hidden)
    output.emit([jsonable(row) for row in shown])
    if not shown:
        output.say(f"No rows of {view} are set aside.")
        return
    heads = [name for name in rows.column_names if name not in hidden]
    output.table(tuple(heads), [tuple(_cell(row[name]) for name in heads) for row in shown])
    if rows.num_rows > MOST_ROWS:
        output.say(f"{rows.num_rows - MOST_ROWS:,} more rows: `store.quarantined({view!r})` has all of them.")
    if hidden:
        output.say(f"Tagged {PERSONAL} and not shown: {', '.join(sorted(hidden))}.")


def _is_applied(store: FeatureStore, view: str, generation: int) -> bool:
    registered = store.workspace.snapshot().views.get(view)
    return registered is not None and registered.generation == generation


def _hidden(store: FeatureStore, view: str, columns: list[str], *, is_applied: bool) -> set[str]:
    """Return the columns of which no value may show; of an earlier generation, nobody knows which those are."""
    if not is_applied:
        return {name for name in columns if not name.startswith(("fs_", "event_ts", "created_ts"))}
    found = store.workspace.snapshot().get(FeatureView, view)
    personal = {field.name for field in found.stored if is_personal(field)}
    keys = {key for each in found.entities if each.tags.get(PERSONAL, "false") != "false" for key in each.join_keys}
    return personal | keys


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return "null" if value is None else str(jsonable(value))


def _chosen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what says which rows are meant, and why."""
    for option in (
        click.option("--reason", required=True, help="Why; it is kept."),
        click.option("--all", "is_all", is_flag=True, help="All rows that are held of VIEW."),
        click.option("--row", "rows", multiple=True, metavar="ID", help="A row by its id. Repeat for more."),
        click.option("--run", metavar="RUN", help="The rows that this run set aside."),
    ):
        function = option(function)
    return function


def _choice(run: str | None, rows: tuple[str, ...], is_all: bool) -> Choice:
    if (run is not None) + bool(rows) + is_all != 1:
        raise click.UsageError("Pass one of --run, --row and --all.")
    return Choice(run, rows, is_all)


@command.command("release")
@click.argument("view")
@_chosen
@click.option("--generation", type=int, help="Of this generation; only that which is applied takes rows.")
@repo_command
def release_rows(
    store: FeatureStore,
    output: Output,
    view: str,
    run: str | None,
    rows: tuple[str, ...],
    is_all: bool,
    reason: str,
    generation: int | None,
) -> None:
    """Bring held rows into the stores: they count as known from now on.

    What a source holds is not asked again. Released rows are never set aside or taken again when it is read.
    """
    done = release(store.workspace, view, _choice(run, rows, is_all), reason, generation)
    output.emit(jsonable(done))
    heads = heads_of([done])
    output.table(heads, [done.cells(heads)], right=heads[1:])
    for note in done.notes():
        output.say(note)


@command.command("drop")
@click.argument("view")
@_chosen
@click.option("--generation", type=int, help="Of an earlier generation of VIEW.")
@repo_command
def drop_rows(
    store: FeatureStore,
    output: Output,
    view: str,
    run: str | None,
    rows: tuple[str, ...],
    is_all: bool,
    reason: str,
    generation: int | None,
) -> None:
    """Give held rows up: no run takes them from the source again.

    `fs gc` removes their values once nothing of their file is held.
    """
    done = drop(store.workspace, view, _choice(run, rows, is_all), reason, generation)
    output.emit(jsonable(done))
    dropped = "1 row is" if done.rows == 1 else f"{done.rows:,} rows are"
    output.say(f"{dropped} dropped of {view} (generation {done.generation}).")


@command.command("forget")
@entity_option
@click.option("--view", "views", multiple=True, help="Only of these views; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show how many rows would go; remove nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask where only part of a key is given.")
@repo_command
def forget_entity(
    store: FeatureStore, output: Output, entities: tuple[str, ...], views: tuple[str, ...], dry_run: bool, yes: bool
) -> None:
    """Remove the values of entities' rows from what is set aside, released and dropped rows included.

    --entity carrier=UA --entity carrier=AA forgets two; different keys make one entity together. Where they are only
    part of a key, the rows of all entities that have them go: then it asks. Rows that were held are dropped: no run
    takes them again.
    """
    given = entity_rows(entities, declared_types(store))
    chosen = [{name: values[row] for name, values in given.items()} for row in range(len(next(iter(given.values()))))]
    named = list(views) or None
    if not (dry_run or yes) and (parts := only_part_of(store.workspace, chosen[0])):
        confirm_parts(given, parts, sum(store.forget_quarantined(each, named, dry_run=True).rows for each in chosen))
    done = [store.forget_quarantined(each, named, dry_run=dry_run) for each in chosen]
    rows, files = sum(each.rows for each in done), sum(each.files for each in done)
    output.emit({"rows": rows, "files": files, "dry_run": dry_run})
    output.say(f"{rows:,} rows {'would be' if dry_run else 'are'} forgotten, in {files:,} files.")
