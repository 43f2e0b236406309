"""The example project in `feature_repo/`, as a fixture."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "feature_repo"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker of a run that asks for it makes: ``make`` gets the path, not there yet.

    The folder may not be moved, and nobody changes it. When making it fails, the next worker tries again.
    """
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "is made").exists():
            shutil.rmtree(place / name, ignore_errors=True)
            make(place / name)
            (place / "is made").touch()
    return place / name


def write_example_sources(folder: Path) -> None:
    """Write the example's Parquet sources into a folder."""
    command = [sys.executable, "-W", "error", str(EXAMPLE / "make_sources.py"), "--out", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def copy_example(folder: Path, sources: Path) -> Path:
    """Make ``folder`` a feature repo like the example, its sources in place and nothing applied yet."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name in ("features.py", "feature_store.yaml"):
        (folder / name).write_bytes((EXAMPLE / name).read_bytes())
    for source in sources.glob("*.parquet"):
        os.link(source, data / source.name)  # nothing of ours writes into a source
    return folder
