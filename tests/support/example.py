"""The example project in `feature_repo/`, as a fixture."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLE = REPOSITORY / "feature_repo"


def write_example_sources(folder: Path) -> Path:
    """Return a folder with the example's Parquet sources, written by the first process that asks for them."""
    target = folder / "example_sources"
    with (folder / "example_sources.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = folder / "example_sources.partial"
            command = [sys.executable, "-W", "error", str(EXAMPLE / "make_sources.py"), "--out", str(partial)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            partial.rename(target)
    return target


def copy_example(folder: Path, sources: Path) -> Path:
    """Make ``folder`` a feature repo like the example, its sources in place and nothing applied yet."""
    data = folder / "data"
    data.mkdir(parents=True)
    for name in ("features.py", "feature_store.yaml"):
        (folder / name).write_bytes((EXAMPLE / name).read_bytes())
    for source in sources.glob("*.parquet"):
        os.link(source, data / source.name)  # nothing of ours writes into a source
    return folder
