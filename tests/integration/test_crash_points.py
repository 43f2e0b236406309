"""Every durable step can be the last: a process that dies in it leaves a store that the same command finishes."""

from __future__ import annotations

import functools
import importlib
import json
import pkgutil
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.crash_scenario import COMMANDS, PASSED_FILE, Job, open_workspace, run_here, run_in_a_process
from support.example import made_once
from support.materialized import day, log_rows, online_rows
from support.redis_server import RedisServer

import featurestore
from featurestore.consistency import waiting_rows
from featurestore.ledger.runs import all_runs
from featurestore.ledger.saved_sets import list_sets
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.status import status
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.steps import CRASH_POINTS
from featurestore.training import get_training_set

pytestmark = pytest.mark.uncounted

KILLED = -signal.SIGALRM


class Life:
    """The scenario's undisturbed run, with a copy of everything before each command.

    ``folder`` holds what `live` left, for all workers; the copies come into a folder of one's own.
    """

    def __init__(self, folder: Path, own: Path, url: str | None) -> None:
        self.folder, self.own, self.url = folder, own, url
        self.passed: dict[str, dict[str, int]]
        """How often each command passes each crash point."""
        self.took_ms: dict[str, float]
        """How long each command took."""
        self.passed, self.took_ms = json.loads((folder / "undisturbed.json").read_text())
        self.copies = 0

    @functools.cache  # noqa: B019 - a life lasts as long as its module
    def state(self, command: str) -> dict[str, Any]:
        """Return what is there after a command."""
        project = self.before(THEN[command])
        state = state_of(project, self.url)
        shutil.rmtree(project)
        return state

    def before(self, command: str) -> Path:
        """Return a fresh copy of the project as it was before a command, the online store included."""
        self.copies += 1
        project = self.own / f"copy {self.copies}"
        shutil.copytree(self.folder / f"before {command}", project)
        if self.url is not None:
            with closing(open_workspace(project, self.url)) as workspace:
                workspace.online.delete(b"fs:shop:")
                for key, value in json.loads((self.folder / f"online before {command}").read_text()):
                    workspace.online.put(bytes.fromhex(key), bytes.fromhex(value))
        return project

    def finish(self, project: Path, command: str, what: str) -> None:
        """Run a command again, which died in another process, and compare what is there with the undisturbed run."""
        run_here(Job(command, str(project), self.url))
        state = state_of(project, self.url)
        if command == "push_rows":  # rows whose push was committed and not answered are there twice
            for name in ("shop_sales", "doomed"):
                registered, rows, *rest = state[name]
                state[name] = (registered, list(dict.fromkeys(rows)), *rest)
        assert state == self.state(command), what
        shutil.rmtree(project)


END = "the end"
THEN = dict(zip(COMMANDS, [*list(COMMANDS)[1:], END], strict=True))
"""What comes after each command."""


def live(folder: Path, url: str | None) -> None:
    """Run all commands undisturbed, and keep for `Life` what was there before each, and at the end."""
    project = folder / "undisturbed"
    project.mkdir(parents=True)
    passed: dict[str, dict[str, int]] = {}
    took_ms: dict[str, float] = {}
    for command in (*COMMANDS, END):
        shutil.copytree(project, folder / f"before {command}")
        if url is not None:
            with closing(open_workspace(project, url)) as workspace:
                online = [pair for batch in workspace.online.scan(b"fs:shop:") for pair in batch]
            (folder / f"online before {command}").write_text(json.dumps([(k.hex(), v.hex()) for k, v in online]))
        if command != END:
            began = time.perf_counter()
            run(Job(command, str(project), url))
            took_ms[command] = 1000 * (time.perf_counter() - began)
            passed[command] = json.loads((project / PASSED_FILE).read_text())
    (folder / "undisturbed.json").write_text(json.dumps([passed, took_ms]))


def run(job: Job, *, wanted: tuple[int, ...] = (0,)) -> int:
    code, said = run_in_a_process(job)
    assert code in wanted, f"{job}: exit status {code}\n{said}"
    return code


def state_of(project: Path, url: str | None) -> dict[str, Any]:
    """Return everything that a user could see: definitions, rows, watermarks, online records, training sets."""
    workspace = open_workspace(project, url)
    views = workspace.snapshot().views
    state: dict[str, Any] = {"tables": workspace.offline.tables("shop")}
    for name, registered in views.items():
        state[name] = (
            registered,
            log_rows(workspace, name),
            _with_new_features(online_rows(workspace, name), 2 + len(registered.layout.fields)),
            replace(read_watermark(workspace.ledger, registered), entry=0),
        )
    state["doomed online"] = {key for batch in workspace.online.scan(b"fs:shop:doomed:") for key, _ in batch}
    saved = [saved.name for saved in list_sets(workspace.ledger, "shop")]
    state["training sets"] = {name: get_training_set(workspace, name).to_arrow() for name in saved}
    assert {run.state for run in all_runs(workspace.ledger, "shop", now_us=workspace.clock())} <= {"done", "killed"}
    workspace.close()
    return state


def _with_new_features(rows: dict[Any, tuple[Any, ...]], width: int) -> dict[Any, tuple[Any, ...]]:
    """Return records as wide as the newest schema: a run that finishes another's may write again what has not changed,
    and a feature that the older record lacked is null then."""
    return {entity: row + (None,) * (width - len(row)) for entity, row in rows.items()}


PUBLISHING = ("publish.", "push.schema", "push.batch", "watermark.published", "marker.")
"""How the crash points begin in which online stores differ: at the others nothing was written there since the last."""
POINTS = sorted(point for point in CRASH_POINTS if not point.startswith(("follow.", "quarantine.")))
"""Those of windows are walked by test_windows_crashes, those of quarantines by test_quarantine."""
WALKED = [("lmdb", point) for point in POINTS]
WALKED += [("redis", point) for point in POINTS if point.startswith(PUBLISHING)]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory, redis_server: RedisServer) -> Callable[[str], Life]:
    """Give the undisturbed run on each kind of online store."""

    @functools.cache
    def life_on(store: str) -> Life:
        url = redis_server.url if store == "redis" else None
        if url is not None:
            with redis_server.client() as client:
                client.flushall()
        folder = made_once(tmp_path_factory, f"life_{store}", lambda place: live(place, url))
        return Life(folder, tmp_path_factory.mktemp(store), url)

    return life_on


@pytest.mark.slow(3)
def test_the_commands_do_what_they_say_and_pass_every_crash_point(lives):
    for module in pkgutil.walk_packages(featurestore.__path__, "featurestore."):
        importlib.import_module(module.name)
    life = lives("lmdb")
    assert life.state("rebuild")["shop_sales"][1] != life.state("late_rows")["shop_sales"][1]
    assert life.state("save_training_set")["training sets"].keys() == {"kept"}
    registered, rows, records, _ = life.state("new_generation")["shop_sales"]
    assert (registered.generation, {shop for shop, *_ in rows}) == (2, records.keys())
    assert rows
    walked = set().union(*life.passed.values())
    assert walked == set(POINTS), "a crash point that no command passes, or one that is not declared"
    assert {point for store, point in WALKED if store == "lmdb"} == walked


@pytest.mark.slow(1.5)
@pytest.mark.parametrize(("store", "point"), WALKED)
def test_a_run_that_died_at_a_crash_point_is_finished_by_the_next(lives, store, point):
    life = lives(store)
    for command, passing in deaths(life, point):
        project = life.before(command)
        run(Job(command, str(project), life.url, f"{point}:{passing}"), wanted=(137,))
        life.finish(project, command, f"{command} died at {point}:{passing}")


@pytest.mark.slow(3)
@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_a_run_that_died_at_any_moment_is_finished_by_the_next(lives, store):
    kill_at_any_moment(lives(store), times=3)


@pytest.mark.parametrize("store", ["lmdb", "redis"])
@pytest.mark.parametrize("point", ["offline.committed", "push.committed", "push.schema", "push.batch"])
def test_what_a_push_left_committed_is_told_and_published_by_the_next_run(lives, store, point, monkeypatch):
    monkeypatch.setattr(waiting_rows, "SETTLE_SECONDS", 0.0)
    life = lives(store)
    project = life.before(THEN["first_run"])
    run(Job("push_rows", str(project), life.url, point), wanted=(137,))
    with closing(open_workspace(project, life.url)) as workspace:
        for view in ("shop_sales", "doomed"):
            rows = log_rows(workspace, view)
            # The two views are committed at the same time, so the one that dies may take the other with it.
            was_pushed = "pushed alone" in {row[0] for row in rows}
            assert was_pushed or point in ("offline.committed", "push.committed")
            best = {}
            for shop, event_us, created_us, *values in rows:
                best[shop] = max(best.get(shop, ()), (event_us, created_us, *values))
            online = online_rows(workspace, view)
            (shown,) = (each for each in status(workspace) if each.view == view)
            assert shown.waiting == sum(online.get(shop) != row for shop, row in best.items())
            succeeded(materialize_incremental(workspace, day(10), [view]))
            assert online_rows(workspace, view) == best
        assert any("pushed alone" in online_rows(workspace, view) for view in ("shop_sales", "doomed"))


def deaths(life: Life, point: str) -> Iterator[tuple[str, int]]:
    """Yield where to die at a point: in the first command that passes it, and all through the richest commands."""
    is_first = True
    for command, points in life.passed.items():
        times = points.get(point, 0)
        if times and command == "rebuild":
            # How many batches of repairs there are depends on the engine's threads.
            yield from ((command, passing) for passing in {1, times if point == "publish.batch" else 1})
        elif times and (is_first or command == "new_generation"):
            yield command, 1
        is_first = is_first and not times


def kill_at_any_moment(life: Life, times: int) -> None:
    dice = random.Random(7)
    for _ in range(times):
        command = dice.choice(["first_run", "late_rows", "push_rows", "rebuild", "checkpoint"])
        kill_after_ms = life.took_ms[command] * dice.uniform(0.05, 1.0)
        was_killed = False
        while not was_killed:
            project = life.before(command)
            job = Job(command, str(project), life.url, kill_after_ms=kill_after_ms)
            was_killed = run(job, wanted=(0, KILLED)) == KILLED
            life.finish(project, command, f"{job}")
            kill_after_ms *= 0.7  # should the machine be quicker now than it was undisturbed
