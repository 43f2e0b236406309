"""A process that dies while it brings windows online leaves a store that the same command finishes."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.example import made_once
from support.materialized import log_rows
from support.redis_server import RedisServer
from support.windowed_life import COMMANDS, MINUTE_US, PASSED_FILE, SHOPS, open_life, run_in_a_process, sales_view

from featurestore.maintenance.verify import verify
from featurestore.serving import get_online_features
from featurestore.steps import CRASH_POINTS
from featurestore.training import TrainingSetWarning, get_historical_features

pytestmark = pytest.mark.uncounted

END = "the end"
THEN = dict(zip(COMMANDS, [*list(COMMANDS)[1:], END], strict=True))
FOLLOWING = sorted(point for point in CRASH_POINTS if point.startswith("follow."))
COMMITTED = ["offline.committed", "push.committed", "watermark.published"]


class Life:
    """The undisturbed run, with a copy of everything before each command."""

    def __init__(self, folder: Path, own: Path, url: str | None) -> None:
        self.folder, self.own, self.url, self.copies = folder, own, url, 0
        self.passed: dict[str, dict[str, int]] = json.loads((folder / "undisturbed.json").read_text())

    @functools.cache  # noqa: B019 - a life lasts as long as its module
    def state(self, command: str) -> dict[str, Any]:
        """Return what is there after a command."""
        return state_of(self.before(THEN[command]), self.url, command)

    def before(self, command: str) -> Path:
        """Return a fresh copy of the project as it was before a command, the online store included."""
        self.copies += 1
        project = self.own / f"copy {self.copies}"
        shutil.copytree(self.folder / f"before {command}", project)
        if self.url is not None:
            with closing(open_life(project, self.url, "fill")) as workspace:
                workspace.online.delete(b"fs:shop:")
                for key, value in json.loads((self.folder / f"online before {command}").read_text()):
                    workspace.online.put(bytes.fromhex(key), bytes.fromhex(value))
        return project


def live(folder: Path, url: str | None) -> None:
    """Run all commands undisturbed, and keep for `Life` what was there before each, and at the end."""
    project = folder / "undisturbed"
    project.mkdir(parents=True)
    passed: dict[str, dict[str, int]] = {}
    for command in (*COMMANDS, END):
        shutil.copytree(project, folder / f"before {command}")
        if url is not None:
            with closing(open_life(project, url, "fill")) as workspace:
                online = [pair for batch in workspace.online.scan(b"fs:shop:") for pair in batch]
            (folder / f"online before {command}").write_text(json.dumps([(k.hex(), v.hex()) for k, v in online]))
        if command != END:
            run(project, url, command)
            passed[command] = json.loads((project / PASSED_FILE).read_text())
    (folder / "undisturbed.json").write_text(json.dumps(passed))


def run(project: Path, url: str | None, command: str, crash_at: str | None = None) -> None:
    code, said = run_in_a_process(project, url, command, crash_at)
    assert code == (0 if crash_at is None else 137), f"{command} {crash_at}: exit status {code}\n{said}"


def state_of(project: Path, url: str | None, command: str) -> dict[str, Any]:
    """Return the log's rows and all windows at several instants, which online and the offline join agree on."""
    with closing(open_life(project, url, command)) as workspace:
        state: dict[str, Any] = {"log": sorted(row[:2] + row[3:] for row in log_rows(workspace, "sales"))}
        for minutes in (0, 11, 60):
            workspace.clock.now_us += minutes * MINUTE_US
            found = get_online_features(workspace, ["sales:*"], {"shop": list(SHOPS)}).to_dict()
            at = pa.array([workspace.clock()] * len(SHOPS), pa.timestamp("us", "UTC"))
            frame = pa.table({"shop": list(SHOPS), "event_timestamp": at})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TrainingSetWarning)
                joined = get_historical_features(workspace, features=["sales:*"], entity_df=frame).to_arrow()
            for window in sales_view().windows:
                assert found[window.name] == joined[window.name].to_pylist(), (minutes, window.name)
            state[f"after {minutes} min"] = found
        assert [check.problems for check in verify(workspace)] == [()]
    return state


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Callable[[str], Life]:
    """Give the undisturbed run on each kind of online store."""

    @functools.cache
    def life_on(store: str) -> Life:
        url = redis_server.url if store == "redis" else None
        if url is not None:
            with redis_server.client() as client:
                client.flushall()
        folder = made_once(tmp_path_factory, f"windowed_life_{store}", lambda place: live(place, url))
        return Life(folder, tmp_path_factory.mktemp(store), url)

    return life_on


def test_the_commands_do_what_they_say_and_pass_every_step(lives: Callable[[str], Life]) -> None:
    life = lives("lmdb")
    counts = {command: life.state(command)["after 0 min"]["count_all"] for command in COMMANDS}
    assert counts == {
        "fill": [17, 17, 17, 17, 0],
        "push_events": [17, 17, 57, 17, 8],
        "push_again": [17, 17, 97, 17, 8],
        "late_events": [32, 32, 112, 32, 8],
        "publish_again": [32, 32, 112, 32, 8],
        "rebuild": [30, 30, 110, 30, 8],
    }
    passed = set().union(*life.passed.values())
    assert passed >= {*FOLLOWING, *COMMITTED}
    assert len(FOLLOWING) == 3


@pytest.mark.parametrize("store", ["lmdb", "redis"])
@pytest.mark.parametrize("point", [*FOLLOWING, *COMMITTED])
def test_a_command_that_died_at_a_step_is_finished_by_its_repetition(
    lives: Callable[[str], Life], store: str, point: str
) -> None:
    life = lives(store)
    died = 0
    for command, points in life.passed.items():
        times = points.get(point, 0)
        if times and (point in FOLLOWING or (store, command) == ("lmdb", "push_events")):
            project = life.before(command)
            run(project, life.url, command, f"{point}:{max(times - 1, 1)}")
            run(project, life.url, command)
            assert state_of(project, life.url, command) == life.state(command), command
            shutil.rmtree(project)
            died += 1
    assert died or point in COMMITTED


@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_a_push_after_a_publish_that_died_misses_nothing(lives: Callable[[str], Life], store: str) -> None:
    life = lives(store)
    project = life.before("fill")
    run(project, life.url, "fill", "follow.placed:1")
    run(project, life.url, "push_events")
    state = state_of(project, life.url, "push_events")
    assert state["after 0 min"] == life.state("push_events")["after 0 min"]
