"""Applies, pushes and runs of one project at once, and pushes while the registry or the online store is away."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.errors import RevisionConflictError
from support.command_line import CommandLine
from support.lives import check_calm
from support.pieces import Lives, Project, day
from support.processes import plain_environment
from support.redis_server import RedisServer
from support.serving import serving, until

from featurestore.consistency.belonging import markers_of
from featurestore.errors import MaterializationError
from featurestore.ledger.commits import REVISION
from featurestore.materialization.publish import Publication, publish

pytestmark = pytest.mark.uncounted

Open = Callable[[Project], CommandLine]


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "lmdb" else request.getfixturevalue("redis_url")  # type: ignore[no-any-return]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Open:
    return lambda project: CommandLine(project.root, capsys)


BOTH = pytest.mark.parametrize("url", ["lmdb", "redis"], indirect=True)


def repos_of(project: Project, root: Path) -> list[Project]:
    """Return two checkouts of a project's repo, each with definitions of its own, on the same pieces."""
    made = []
    for name in ("one", "two"):
        checkout = Project(root / name, project.online_url)
        checkout.declare(name)
        shutil.copy2(project.root / "trips.parquet", checkout.root)
        data = project.root / "data"
        settings = f"registry: sqlite:///{data / 'registry.db'}\noffline_store: {data / 'offline'}\n"
        with (checkout.root / "feature_store.yaml").open("a") as file:
            file.write(settings)
        made.append(checkout)
    return made


def test_of_two_applies_that_were_planned_on_one_revision_one_wins(
    tmp_path: Path, lived: Lives, redis_url: str, shell: Open
) -> None:
    project, _ = lived(tmp_path / "repo", redis_url)
    repos, planned, ended = repos_of(project, tmp_path), threading.Barrier(2), dict[str, str]()

    def apply(repo: Project) -> None:
        with repo.open() as store:
            plan = store.plan()
            planned.wait(timeout=20)
            try:
                ended[repo.root.name] = f"revision {store.apply_plan(plan).applied}"
            except RevisionConflictError as error:
                ended[repo.root.name] = error.message

    threads = [threading.Thread(target=apply, args=(repo,)) for repo in repos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    lost = "Project 'shop' is at revision 3, not at 2: another apply came first."
    assert sorted(ended.values()) == [lost, "revision 3"]
    for repo in repos:
        assert repo.kinds() == set()
    loser = next(repo for repo in repos if ended[repo.root.name] == lost)
    assert "shop is at revision 4" in shell(loser)("apply", "--yes")
    loser.push(6, 5, 60)
    check_calm(loser, shell(loser))
    assert repos[0].kinds() == repos[1].kinds() == set()


def test_two_command_lines_apply_at_once(tmp_path: Path, lived: Lives) -> None:
    project, _ = lived(tmp_path / "repo", None)
    command = [sys.executable, "-c", "from featurestore.cli.main import main; main()", "apply", "--yes"]
    running = [
        subprocess.Popen([*command, "--repo", str(repo.root)], env=plain_environment(), stdout=subprocess.DEVNULL)
        for repo in repos_of(project, tmp_path)
    ]
    codes = [process.wait(timeout=60) for process in running]
    assert 0 in codes
    assert set(codes) <= {0, 4}
    with project.open() as store:
        chain = store.workspace.registry.definitions.chain("shop")
        assert chain.number == 2 + codes.count(0)
        assert len({*chain.hashes}) == chain.number
    assert project.kinds() == set()


def push_over_http(client: httpx.Client, driver: int, count: int) -> int:
    row = {"driver": [driver], "at": [day(5).isoformat()], "count": [count], "stars": [1]}
    return client.post("/push", json={"source": "trips", "rows": row}).status_code


def written_at(project: Project) -> tuple[str, str]:
    """Return the revisions that the newest commit and the marker of the online part name."""
    with project.open() as store:
        workspace = store.workspace
        registered = workspace.snapshot().registered("stats")
        commit = workspace.offline.find_commit(registered.table)
        (marker,), _ = markers_of(workspace.online, registered).read()
        assert commit is not None
        assert marker is not None
        return commit.facts[REVISION], marker.revision


def refresh(project: Project, span: str) -> None:
    with (project.root / "feature_store.yaml").open("a") as file:
        file.write(f"server: {{refresh: {span}}}\n")


def chain_of(project: Project) -> tuple[str, ...]:
    with project.open() as store:
        return store.workspace.registry.definitions.chain("shop").hashes


@BOTH
def test_a_server_that_has_not_met_the_newest_revision_pushes_on(
    tmp_path: Path, lived: Lives, url: str | None, shell: Open
) -> None:
    project, _ = lived(tmp_path / "repo", url)
    refresh(project, "600s")
    with serving(project.root) as server, server.client() as client:
        project.apply("third")
        project.source([(6, 5, 60)])
        project.run()
        newest = chain_of(project)[-1]
        assert written_at(project) == (newest, newest)
        assert push_over_http(client, 7, 70) == 200
        assert project.online([6, 7]) == {6: 60, 7: 70}
        # The commit is the server's, by its definitions; the marker keeps the word of the one who knew more.
        assert written_at(project) == (chain_of(project)[1], newest)
        assert project.kinds() == set()
        away = project.root / "data/away.db"
        (project.root / "data/registry.db").rename(away)
        assert push_over_http(client, 7, 71) == 200
        assert not (project.root / "data/registry.db").exists()
        away.rename(project.root / "data/registry.db")
    assert "unknown" not in server.log.read_text()
    assert "does not have" not in server.log.read_text()
    assert project.online([7]) == {7: 71}
    assert project.kinds() == set()
    fs = shell(project)
    fs("materialize")
    check_calm(project, fs)


def test_pushes_go_on_while_applies_come(tmp_path: Path, lived: Lives, redis_url: str, shell: Open) -> None:
    project, _ = lived(tmp_path / "repo", redis_url)
    refresh(project, "100ms")
    answers: list[int] = []
    done = threading.Event()
    with serving(project.root) as server, server.client() as client:

        def push() -> None:
            count = 100
            while not done.is_set():
                count += 1
                answers.append(push_over_http(client, 7, count))

        pushing = threading.Thread(target=push)
        pushing.start()
        try:
            for number in range(3):
                project.apply(f"meanwhile {number}")
                project.source([(6, 5 + number, number)])
                project.run()
            wanted = len(answers) + 1
            until(lambda: len(answers) > wanted, seconds=20)
        finally:
            done.set()
            pushing.join(timeout=20)
    assert set(answers) == {200}
    fs = shell(project)
    fs("materialize")
    check_calm(project, fs)
    assert project.online([6, 7]) == {6: 2, 7: 100 + len(answers)}


def test_a_part_that_another_registry_took_after_it_was_compared_gets_no_record(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Project(tmp_path / "ours", redis_url), Project(tmp_path / "theirs", redis_url)
    for project, count in ((ours, 10), (theirs, 20)):
        project.source([(1, 1, count)])
        project.apply("first")

    def publish_late(*args: Any, **options: Any) -> Publication:
        monkeypatch.undo()
        theirs.run()
        return publish(*args, **options)

    monkeypatch.setattr("featurestore.materialization.run.publish", publish_late)
    with pytest.raises(MaterializationError, match="belong to the project with identity"):
        ours.run()
    assert theirs.online([1]) == {1: 20}
    assert theirs.kinds() == set()


def test_a_push_has_noted_its_commit_online_when_it_returns(tmp_path: Path, lived: Lives) -> None:
    project, _ = lived(tmp_path / "repo", None)
    with project.open() as store:
        registered = store.workspace.snapshot().registered("stats")
        for _ in range(2):
            store.push("trips", {"driver": [6], "at": [day(5)], "count": [60], "stars": [1]}, to="offline")
            newest = store.workspace.offline.find_commit(registered.table)
            assert newest is not None
            _, pushed = markers_of(store.workspace.online, registered).read()
            assert pushed == (newest.number, newest.identity)


def test_offline_pushes_do_not_wait_each_time_for_an_online_store_that_is_down(
    tmp_path: Path, start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    server = start_redis()
    project = Project(tmp_path / "repo", server.url)
    slow = f"{{url: '{server.url}', write_timeout_ms: 300}}"
    (project.root / "feature_store.yaml").write_text(f"project: shop\nonline_store: {slow}\n")
    project.source([(1, 1, 10)])
    project.apply("first")
    caplog.set_level("DEBUG", "featurestore")
    with project.open() as store:
        server.hang()
        for count in (1, 2, 3, 4, 5):
            store.push("trips", {"driver": [1], "at": [day(2)], "count": [count], "stars": [1]}, to="offline")
        server.resume()
    # One commit a second: it is tried by the first, and after pauses that become longer.
    assert 1 <= caplog.text.count("could not be noted online") <= 3
    assert project.offline([1]) == {1: 5}
