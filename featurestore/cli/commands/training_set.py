"""fs training-set."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurestore.cli.features import features_option, wanted_features
from featurestore.cli.output import Output, repo_command
from featurestore.definitions import ParquetSource
from featurestore.errors import InputError, SourceError
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    from rich.console import Console

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
    _check_output(store, entities, out)
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

    def render(console: Console) -> None:
        console.print(str(certificate), markup=False)
        saved = f" and saved as {save}" if save is not None else ""
        console.print(f"\n{certificate.rows:,} rows written to {out}{saved}.", markup=False)

    output.emit({"out": str(out), "saved": save, "certificate": certificate.to_dict()}, render)


def _check_output(store: FeatureStore, entities: str, out: Path) -> None:
    """Raise InputError where writing would fail after all else was done, or destroy what is no training set."""
    if not out.parent.is_dir():
        raise InputError(
            f"{out} cannot be written: there is no folder {out.parent}.", hint="Make it, or choose another --out."
        )
    if not out.exists():
        return
    workspace = store.workspace
    what = None
    if _is_same(out, Path(entities)):
        what = "the entity frame"
    elif not _is_parquet(out):
        what = "no Parquet file"
    else:
        for source in workspace.snapshot().list(ParquetSource.kind):
            assert isinstance(source, ParquetSource)
            with suppress(SourceError):
                if any(_is_same(out, workspace.root / file.path) for file in workspace.engine.files(source)):
                    what = f"a file of source {source.name!r}"
    if what is not None:
        raise InputError(f"{out} is {what}: it would be overwritten.", hint="Choose another --out.", path=str(out))


def _is_same(out: Path, other: Path) -> bool:
    try:
        return out.samefile(other)
    except (OSError, ValueError):
        return False  # a query, or a file that is not there


def _is_parquet(path: Path) -> bool:
    """Tell whether a file begins as Parquet does; an empty one may be overwritten."""
    if not path.is_file():
        return False  # a device
    with path.open("rb") as file:
        return file.read(4) in (b"PAR1", b"")
