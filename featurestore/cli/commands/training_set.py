"""fs training-set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.features import features_option, wanted_features
from featurestore.cli.output import Output, repo_command
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
    direct: bool,
    save: str | None,
) -> None:
    """Build a training set: each entity row with the features as they were known at its time."""
    wanted = wanted_features(features, service)
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
