"""fs served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featurestore.cli.entities import confirm_parts, entity_option, entity_rows
from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.instants import Moment, instant
from featurestore.cli.output import Output, repo_command
from featurestore.cli.shared import shared_options
from featurestore.served.forgetting import only_part_of
from featurestore.served.keep import KeptLog, kept_logs
from featurestore.store import FeatureStore
from featurestore.training.outputs import check_output, write_rows
from featurestore.types.times import to_datetime, to_short_rfc3339


@click.group("served")
@shared_options()
def command(**_: Any) -> None:
    """Show what feature servers keep of their answers, and forget an entity there."""


@command.command("list")
@repo_command
def list_all(store: FeatureStore, output: Output) -> None:
    """List the services of which answers are kept, and since when."""
    found = kept_logs(store.workspace)
    output.emit([_document(each) for each in found])
    if not found:
        output.say("Nothing that was served is kept: declare FeatureService(..., log=ServedLog(sample=0.1)).")
        return
    rows = [
        (each.service, f"{each.sample:g}", each.keys, f"{each.files:,}", *_span(each), f"{each.predictions:,}")
        for each in found
    ]
    output.table(("service", "sample", "keys", "files", "from", "until", "of predictions"), rows)


def _document(log: KeptLog) -> dict[str, Any]:
    first, last = _span(log)
    return {
        "service": log.service,
        "sample": log.sample,
        "keys": log.keys,
        "files": log.files,
        "from": first or None,
        "until": last or None,
        "prediction_files": log.predictions,
    }


def _span(log: KeptLog) -> tuple[str, str]:
    if log.first_us is None or log.last_us is None:
        return "", ""
    return to_short_rfc3339(log.first_us), to_short_rfc3339(log.last_us)


@command.command("export")
@click.argument("service")
@click.option("--since", callback=instant, metavar="INSTANT", help="The first instant, such as -7d; default: all.")
@click.option("--until", callback=instant, metavar="INSTANT", help="Rows before it; default: all.")
@click.option("--predictions", is_flag=True, help="What models made of it: predictions, each beside its served row.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Parquet file to write.")
@repo_command
def export(
    store: FeatureStore,
    output: Output,
    service: str,
    since: Moment | None,
    until: Moment | None,
    predictions: bool,
    out: Path,
) -> None:
    """Write what was served for a service into one Parquet file."""
    check_output(store.workspace, out, what="served rows are")
    clock = store.workspace.clock
    bounds = [None if given is None else to_datetime(given(clock)) for given in (since, until)]
    found = store.join_predictions(service, *bounds) if predictions else None
    rows = store.read_served(service, *bounds) if found is None else found.rows
    write_rows(rows, out)
    output.emit({"out": str(out), "rows": rows.num_rows, **({} if found is None else found.counts())})
    output.say(f"{rows.num_rows:,} rows written to {out}.")
    for note in () if found is None else found.notes():
        output.say(note)


@command.command("forget")
@entity_option
@click.option("--service", "services", multiple=True, help="Only of these services; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show how many rows would go; remove nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask where only part of a key is given.")
@repo_command
def forget(
    store: FeatureStore,
    output: Output,
    entities: tuple[str, ...],
    services: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> Any:
    """Remove the rows of entities from what was served, and what models predicted for them.

    --entity carrier=UA --entity carrier=AA forgets two; different keys make one entity together. Where they are only
    part of a key, the rows of all entities that have them go: then it asks. Exits with 1 when files had to stay,
    and names them.
    """
    given = entity_rows(entities, {})  # files say which types keys had: no definition may know them any more
    chosen = [{name: values[row] for name, values in given.items()} for row in range(len(next(iter(given.values()))))]
    named = list(services) or None
    if not (dry_run or yes) and (parts := only_part_of(store.workspace, chosen[0])):
        going = [store.forget_served(each, named, dry_run=True) for each in chosen]
        confirm_parts(given, parts, sum(each.rows for each in going), sum(each.predictions for each in going))
    done = [store.forget_served(each, named, dry_run=dry_run) for each in chosen]
    rows, files, predictions = (sum(getattr(each, name) for each in done) for name in ("rows", "files", "predictions"))
    problems = list(dict.fromkeys(problem for each in done for problem in each.problems))
    document = {"rows": rows, "files": files, "predictions": predictions, "problems": problems, "dry_run": dry_run}
    output.emit(document)
    beside = f" and {predictions:,} of predictions" if predictions else ""
    output.say(f"{rows:,} rows{beside} {'would be' if dry_run else 'are'} forgotten, in {files:,} files.")
    if not dry_run:
        output.say("Servers that run hold rows of up to a minute that are in no file yet: run it again after that.")
    for problem in problems:
        output.say(problem, style="red")
    return EXIT_FAILED if problems else 0
