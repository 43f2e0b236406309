"""fs monitor."""

from __future__ import annotations

from pathlib import Path

import click

from featurestore.cli.exits import EXIT_PENDING
from featurestore.cli.instants import Moment, instant
from featurestore.cli.output import Output, repo_command
from featurestore.definitions import Monitor
from featurestore.quality.report import HEADS, MonitorResult, metrics, page
from featurestore.store import FeatureStore
from featurestore.types.times import to_datetime


@click.command("monitor")
@click.argument("names", nargs=-1)
@click.option("--until", callback=instant, metavar="INSTANT", help="The end of the last window; default: now.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Page to write, which stands alone.")
@click.option("--metrics", "text", type=click.Path(path_type=Path, dir_okay=False), help="Prometheus file to write.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    names: tuple[str, ...],
    until: Moment | None,
    html: Path | None,
    text: Path | None,
) -> None:
    """Compare what is served, or what runs bring, with its baseline.

    All monitors of the project, or those that are named. Exit codes: 0 healthy or not judged, 3 alarm, 1 could not
    tell.
    """
    at = None if until is None else to_datetime(until(store.workspace.clock))
    results = [store.monitor(name, at) for name in names or _all(store)]
    if html is not None:
        html.write_text(page(results), encoding="utf-8")
    if text is not None:
        text.write_text(metrics(results), encoding="utf-8")
    output.emit([result.to_dict() for result in results])
    if not results:
        output.say("Nothing is monitored: declare Monitor(...) in the feature repo, and run `fs apply`.")
    for result in results:
        _show(output, result)
    if html is not None:
        output.say(f"A page is written to {html}.")
    if any(result.state == "alarm" for result in results):
        raise SystemExit(EXIT_PENDING)


def _all(store: FeatureStore) -> list[str]:
    return [each.name for each in store.workspace.snapshot().list(Monitor.kind)]


def _show(output: Output, result: MonitorResult) -> None:
    output.say(result.title())
    rows = list(result.cells())
    if rows:
        output.table(HEADS, rows)
    for note in result.notes():
        output.say(note)
