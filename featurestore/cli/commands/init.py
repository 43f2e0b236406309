"""fs init."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import click

from featurestore.backends import check_offline_folder
from featurestore.definitions.base import OBJECT_NAME
from featurestore.errors import NO_SPACE, SettingsError
from featurestore.project.settings import repo_folder
from featurestore.types.times import system_clock

DAYS, DRIVERS = 30, 20


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--name", help="The project's name (default: made from DIRECTORY's).")
def command(directory: Path, name: str | None) -> None:
    """Make a small feature repo in DIRECTORY, with data, that applies, materializes and serves as it is."""
    folder = repo_folder(directory)
    project = name or re.sub(r"[^a-z0-9]+", "_", folder.name.lower()).strip("_") or "project"
    if not OBJECT_NAME.fullmatch(project) or project.startswith("fs_"):
        raise SettingsError(
            f"{project!r} cannot name a project: a lower-case letter, then at most 62 of a-z, 0-9 and _.",
            hint="Pass --name.",
        )
    check_offline_folder(folder)
    try:
        if directory.exists() and any(directory.iterdir()):
            raise SettingsError(f"{directory} is not empty.", hint="Choose a new folder; nothing was written.")
        with _removed_where_it_fails(directory):
            _write(directory, project)
    except OSError as error:
        is_full = error.errno in NO_SPACE
        why = os.strerror(error.errno) if error.errno else str(error)
        raise SettingsError(
            f"{directory} cannot be written: {why}. Nothing was left there.",
            hint="Free some space, or choose a folder on another disk." if is_full else "Choose another folder.",
        ) from None
    click.echo(f"Made the feature repo {directory} for project {project}. Next:\n")
    path = f"./{directory}" if str(directory).startswith("-") else str(directory)
    click.echo(f"  cd {shlex.quote(path)}")
    click.echo("  fs apply --yes")
    click.echo("  fs materialize")
    click.echo("  fs training-set --entities data/trips.parquet --service trip_model_v1 --out training.parquet")
    click.echo("  fs online --service trip_model_v1 --entity driver_id=1001 --entity trip_km=12.5")
    click.echo("  fs serve")


@contextmanager
def _removed_where_it_fails(directory: Path) -> Iterator[None]:
    """Remove what the block makes in a folder that is empty or not there, if it does not come to its end."""
    made = next((path for path in reversed((directory, *directory.parents)) if not path.exists()), None)
    try:
        yield
    except BaseException:
        for path in [made] if made is not None else list(directory.iterdir()):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def _write(directory: Path, project: str) -> None:
    """Write the folder's files."""
    template = files("featurestore.cli") / "template"
    (directory / "data").mkdir(parents=True)
    for target, source in (
        ("feature_store.yaml", "feature_store.yaml"),
        ("features.py", "features.py.txt"),
        (".gitignore", "gitignore"),
    ):
        text = (template / source).read_text(encoding="utf-8").replace("PROJECT", project)
        (directory / target).write_text(text, encoding="utf-8")
    _write_data(directory / "data")


def _write_data(folder: Path) -> None:
    """Write a month of hourly driver statistics up to now, and trips to train on; the same shape every time."""
    import random

    import pyarrow as pa
    import pyarrow.parquet as pq

    dice = random.Random(2013)  # noqa: S311 - example data
    hour = timedelta(hours=1) // timedelta(microseconds=1)
    now = system_clock() // hour * hour
    instant = pa.timestamp("us", tz="UTC")
    statistics: dict[str, list[float]] = {key: [] for key in ("driver_id", "hour", "created", "trips", "rating")}
    for driver in range(1001, 1001 + DRIVERS):
        for hours_ago in range(DAYS * 24, 0, -1):
            statistics["driver_id"].append(driver)
            statistics["hour"].append(now - hours_ago * hour)
            statistics["created"].append(now - hours_ago * hour + hour // 4)
            statistics["trips"].append(dice.randrange(8))
            statistics["rating"].append(round(dice.uniform(3.5, 5.0), 2))
    types = (pa.int64(), instant, instant, pa.int64(), pa.float64())
    columns = {key: pa.array(values, kind) for (key, values), kind in zip(statistics.items(), types, strict=True)}
    pq.write_table(pa.table(columns), folder / "driver_stats.parquet")
    trips = sorted(now - dice.randrange(hour, (DAYS - 1) * 24 * hour) for _ in range(500))
    pq.write_table(
        pa.table(
            {
                "event_timestamp": pa.array(trips, instant),
                "driver_id": pa.array([dice.randrange(1001, 1001 + DRIVERS) for _ in trips], pa.int64()),
                "trip_km": pa.array([round(dice.uniform(1, 40), 1) for _ in trips], pa.float64()),
                "tipped": pa.array([dice.random() < 0.4 for _ in trips], pa.bool_()),
            }
        ),
        folder / "trips.parquet",
    )
