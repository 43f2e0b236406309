"""The units of `deploy/systemd/`, without systemd: their commands run, and the guide speaks of what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.example import REPOSITORY
from support.serving import serving, small_project

from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

UNITS = {path.name: path for path in sorted((REPOSITORY / "deploy" / "systemd").iterdir())}
GUIDE = (REPOSITORY / "docs" / "how-to" / "service.md").read_text(encoding="utf-8")
FS = "/srv/featurestore/.venv/bin/fs"


def settings(unit: str) -> Iterator[tuple[str, str, str]]:
    """Yield the section, name and value of each setting of a unit."""
    section = ""
    for line in UNITS[unit].read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield section, name, value


def value(unit: str, section: str, name: str) -> str:
    (found,) = [text for place, key, text in settings(unit) if (place, key) == (section, name)]
    return found


def arguments(unit: str) -> list[str]:
    command, *rest = shlex.split(value(unit, "Service", "ExecStart"))
    assert command == FS
    return rest


def test_the_server_of_the_unit_runs_from_its_folder_and_ends_in_time(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    command, *options = arguments("featurestore.service")
    port = options.index("--port")
    assert (command, options[port + 1]) == ("serve", "6566")
    with serving(project.root, *options[:port], *options[port + 2 :], fresh=True) as server, server.client() as client:
        assert client.get("/ready").status_code == 200
    (promised_seconds,) = re.findall(r"within (\d+) seconds", GUIDE)
    assert int(value("featurestore.service", "Service", "TimeoutStopSec")) > int(promised_seconds)


def test_the_run_of_the_unit_is_done(tmp_path: Path) -> None:
    fs = Path(sys.executable).parent / "fs"
    subprocess.run([fs, "init", "tour"], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    for command in (["apply", "--yes"], arguments("featurestore-materialize.service")):
        done = subprocess.run([fs, *command], cwd=tmp_path / "tour", check=True, capture_output=True, timeout=60)
    assert b'"appended": 14400' in done.stdout


def test_the_guide_and_the_units_agree() -> None:
    assert set(re.findall(r"featurestore[\w-]*\.(?:service|timer)", GUIDE)) == set(UNITS)
    services = [unit for unit in UNITS if unit.endswith(".service")]
    assert [f"{path.stem}.timer" in UNITS for path in map(Path, services)] == [True, False]
    for unit in services:
        folder = value(unit, "Service", "WorkingDirectory")
        assert value(unit, "Service", "ReadWritePaths") == folder == "/srv/tour"
        assert f"`{folder}`" in GUIDE
        assert value(unit, "Service", "EnvironmentFile").removeprefix("-") in GUIDE


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_sets_nothing_twice(unit: str) -> None:
    names = [(section, name) for section, name, _ in settings(unit)]
    assert len(names) == len(set(names))
