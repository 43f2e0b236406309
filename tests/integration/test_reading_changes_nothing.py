"""What only reads changes no file, no folder and no key, and makes none where nothing is."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.command_line import CommandLine
from support.lives import contents
from support.pieces import Lives, Project, day, live

from featurestore.cli.main import main

READING = {
    "plan": 0,
    "plan --check --prepare": 3,
    "plan --refresh-schema": 0,
    "status": 0,
    "doctor": 0,
    "list": 0,
    "show stats": 0,
    "log": 0,
    "peek stats": 0,
    "peek stats --dropped": 0,
    "online --features stats:count --entity driver=1": 0,
    "training-set --entities {frame} --features stats:count --out {out}": 0,
    "training-set --entities {frame} --features stats:count --out {out} --direct": 0,
    "training-set --entities {sql} --features stats:count --out {out}": 0,
    "training-sets": 0,
    "verify": 0,
    "token list": 0,
    "gc --dry-run": 0,
    "repair --dry-run": 0,
    "materialize --dry-run": 0,
    "materialize -90d now --dry-run": 0,
    "materialize -90d now --dry-run --rebuild": 0,
    "teardown": 1,
}
"""Every command that only reads, with its exit code on a project that has something of everything."""

FRAME = pa.table({"driver": [1, 4], "event_timestamp": [day(5)] * 2})
SQL = shlex.quote('SELECT driver, "at" AS event_timestamp FROM trips_file')

CHANGES: dict[str, Callable[[str], str]] = {
    "metadata": lambda text: text.replace("to be applied", "in other words"),
    "compatible": lambda text: f'{text}\nmore = FeatureService("more", [stats])',
    "rebuild": lambda text: text.replace('"trips.parquet"', '"./trips.parquet"'),
    "breaking": lambda text: text.replace(', Field("stars", Int64)', ""),
    "destructive": lambda text: text[: text.index("stats =")],
}
"""What is done to the definitions, by the worst class of the changes that it leads to."""


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")  # type: ignore[no-any-return]


def live_and_save(root: Path, url: str | None) -> Project:
    """Make a project that has lived and saved a training set, with a change to apply and a row to read."""
    made = live(root, url)
    with made.open() as store:
        store.get_historical_features(FRAME, "model").save("first")
    made.source([(6, 6, 60)])
    made.declare("to be applied")
    return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    return Lives(tmp_path_factory, "saved", live_and_save)


@pytest.fixture
def project(tmp_path: Path, saved: Lives, url: str | None) -> Project:
    """A project as `live_and_save` makes it."""
    pq.write_table(FRAME, tmp_path / "frame.parquet")
    return saved(tmp_path / "repo", url)[0]


def run(project: Project, command: str) -> int:
    """Run ``fs`` and return its exit code."""
    places = {"frame": project.root.parent / "frame.parquet", "out": project.root.parent / "out.parquet", "sql": SQL}
    with pytest.raises(SystemExit) as caught:
        main([*shlex.split(command.format(**places)), "--repo", str(project.root)])
    return int(caught.value.code or 0)


@pytest.mark.uncounted
@pytest.mark.parametrize("url", ["lmdb", "redis"], indirect=True)
def test_no_reading_command_changes_anything(project: Project) -> None:
    before = contents(project, "*")
    for command, code in READING.items():
        assert run(project, command) == code, command
        assert contents(project, "*") == before, command


@pytest.mark.parametrize("url", ["lmdb", "redis"], indirect=True)
@pytest.mark.parametrize("worst", CHANGES)
def test_a_plan_of_any_change_writes_nothing(project: Project, capsys: pytest.CaptureFixture[str], worst: str) -> None:
    features = project.root / "features.py"
    features.write_text(CHANGES[worst](features.read_text()))
    before = contents(project, "*")
    for prepare in ([], ["--prepare"]):
        # With --prepare a rebuild begins a new generation, which lacks what was pushed.
        told = "breaking" if prepare and worst == "rebuild" else worst
        assert CommandLine(project.root, capsys).json("plan", *prepare)["worst"] == told
        assert contents(project, "*") == before


@pytest.mark.parametrize("setting", ["FS_REGISTRY", "FS_OFFLINE_STORE", "FS_ONLINE_STORE", "FS_PROJECT"])
@pytest.mark.parametrize("url", ["lmdb"], indirect=True)
def test_a_mistyped_setting_makes_nothing(project: Project, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    nowhere = project.root / "mistyped"
    value = {"FS_REGISTRY": f"sqlite:///{nowhere}/registry.db", "FS_ONLINE_STORE": f"lmdb:///{nowhere}/online"}
    monkeypatch.setenv(setting, value.get(setting, "mistyped" if setting == "FS_PROJECT" else f"{nowhere}/offline"))
    before = contents(project, "*")
    for command in READING:
        run(project, command)
        assert contents(project, "*") == before, command


def test_a_project_that_was_never_applied_stays_as_it_is(tmp_path: Path) -> None:
    made = Project(tmp_path / "repo", None)
    made.source([(1, 1, 10)])
    before = contents(made)
    for command in READING:
        run(made, command)
        assert contents(made) == before, command
