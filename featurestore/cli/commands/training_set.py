"""fs training-set."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.features import features_option, wanted_features
from featurestore.cli.instants import durations
from featurestore.cli.output import Output, repo_command
from featurestore.definitions import Label
from featurestore.store import FeatureStore
from featurestore.training.outputs import check_output

if TYPE_CHECKING:
    from featurestore.engine.interface import AsOf


@click.command("training-set")
@click.option("--entities", required=True, help="Parquet file with join keys and times, or a SELECT over the project.")
@features_option
@click.option("--service", help="A feature service, in place of --features.")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="Parquet file to write.")
@click.option("--timestamp-column", default="event_timestamp", show_default=True, help="The frame's time column.")
@click.option("--as-of", type=click.Choice(["event", "available"]), help="Default: available where it is declared.")
@click.option("--full-feature-names", is_flag=True, help="Name columns view__feature.")
@click.option("--label", "labels", multiple=True, metavar="VIEW:FEATURE", help="What became known later; repeatable.")
@click.option(
    "--horizon",
    "horizons",
    multiple=True,
    callback=durations,
    metavar="SPAN",
    help="How long after the row a label counts: 6h. One for all labels, or one for each.",
)
@click.option("--label-name", "names", multiple=True, help="The label's column, in the order of --label.")
@click.option("--direct", is_flag=True, help="Read the sources instead of the offline store.")
@click.option("--save", metavar="NAME", help="Register the set, so that it can be built again, identical.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    entities: str,
    features: tuple[str, ...],
    service: str | None,
    out: Path,
    timestamp_column: str,
    as_of: AsOf | None,
    full_feature_names: bool,
    labels: tuple[str, ...],
    horizons: tuple[timedelta, ...],
    names: tuple[str, ...],
    direct: bool,
    save: str | None,
) -> None:
    """Build a training set: each entity row with the features as they were known at its time.

    With --label also with what became known within the horizon after it; rows whose label is not known yet are left
    out.
    """
    wanted, wanted_labels = wanted_features(features, service), _labels(labels, horizons, names)
    if not entities.strip() or not out.name:
        raise click.UsageError(f"--{'out' if entities.strip() else 'entities'} is empty.")
    check_output(store.workspace, out, entities)  # before any work is done
    training = store.get_historical_features(
        entities,
        wanted,
        timestamp_column=timestamp_column,
        full_feature_names=full_feature_names,
        as_of=as_of,
        direct=direct,
        labels=wanted_labels,
    )
    if save is not None:
        training.save(save)  # first: what cannot be saved under this name writes no file either
    training.write_parquet(out)
    certificate = training.certificate
    output.emit({"out": str(out), "saved": save, "certificate": certificate.to_dict()})
    for line in str(certificate).splitlines():
        output.say(line)
    saved = f" and saved as {save}" if save is not None else ""
    output.say("")
    output.say(f"{certificate.rows:,} rows written to {out}{saved}.")


def _labels(labels: tuple[str, ...], horizons: tuple[timedelta, ...], names: tuple[str, ...]) -> list[Label]:
    """Return the labels; raises UsageError where horizons or names are not as many."""
    if not labels:
        if horizons or names:
            raise click.UsageError(f"--{'horizon' if horizons else 'label-name'} is of a --label: give one.")
        return []
    if len(horizons) not in (1, len(labels)):
        raise click.UsageError(
            f"{len(labels)} --label and {len(horizons)} --horizon: give one horizon for all, or one for each."
        )
    if names and len(names) != len(labels):
        raise click.UsageError(f"{len(labels)} --label and {len(names)} --label-name: give none, or one for each.")
    spans = horizons * len(labels) if len(horizons) == 1 else horizons
    columns = names or (None,) * len(labels)
    return [Label(of, horizon=span, name=name) for of, span, name in zip(labels, spans, columns, strict=True)]
