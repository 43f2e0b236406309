"""fs performance."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import click

from featurestore.cli.instants import Moment, duration, instant
from featurestore.cli.output import Output, repo_command
from featurestore.definitions import Label
from featurestore.quality.figures import Task
from featurestore.store import FeatureStore
from featurestore.types.times import to_datetime


@click.command("performance")
@click.argument("service")
@click.option("--label", "feature", required=True, metavar="VIEW:FEATURE", help="What became known later.")
@click.option(
    "--horizon", required=True, callback=duration, metavar="SPAN", help="How long after the request it counts: 6h."
)
@click.option("--prediction", required=True, metavar="NAME", help="The prediction, as it was logged.")
@click.option("--since", callback=instant, metavar="INSTANT", help="The first instant, such as -7d; default: all.")
@click.option("--until", callback=instant, metavar="INSTANT", help="Requests before it; default: now.")
@click.option("--task", type=click.Choice(["numbers", "yes/no", "classes"]), help="What is judged; default: what fits.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    service: str,
    feature: str,
    horizon: timedelta,
    prediction: str,
    since: Moment | None,
    until: Moment | None,
    task: str | None,
) -> None:
    """Compare what models predicted with what became known, by model version.

    Numbers by their errors, scores of a yes or no by accuracy, AUC and log loss, texts by accuracy. Only requests count
    whose horizon has ended and is committed. Predictions are logged by FeatureClient.log_prediction.
    """
    clock = store.workspace.clock
    start, end = (None if given is None else to_datetime(given(clock)) for given in (since, until))
    label = Label(feature, horizon=horizon)
    found = store.performance(service, label, prediction, start, end, task=cast(Task | None, task))
    output.emit(found.to_dict())
    output.say(found.title())
    output.table(found.heads, list(found.cells()))
    for note in found.notes():
        output.say(note)
