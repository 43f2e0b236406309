"""Deletions that fail half-way: what is said of them, of what they left, and who finishes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.pieces import Project
from support.redis_server import RedisServer

from featurestore.cli.main import main
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.steps import Event, listening
from featurestore.store import FeatureStore

StartRedis = Callable[..., RedisServer]
FINISH = "fs teardown --allow-destroy"


def run_project(tmp_path: Path, url: str) -> Project:
    project = Project(tmp_path / "repo", url)
    settings = f"project: shop\nonline_store: {{url: '{url}', read_timeout_ms: 5000, write_timeout_ms: 300}}\n"
    (project.root / "feature_store.yaml").write_text(settings)
    project.source([(1, 1, 10), (2, 1, 20)])
    project.apply("first")
    project.run()
    return project


def make_replica(server: RedisServer, of: RedisServer) -> None:
    with server.client() as client:
        client.config_set("replica-serve-stale-data", "yes")
        client.execute_command("REPLICAOF", "127.0.0.1", of.port)


def failing_after(step: str, server: RedisServer, other: RedisServer) -> Callable[[Event], None]:
    """Return a listener that lets the server take no writes, and keep what it holds, once a step is done."""

    def listener(event: Event) -> None:
        if (event.phase, event.step) == ("finish", step):
            other.kill()  # what it would send would replace what the server holds
            make_replica(server, other)

    return listener


def fs(project: Project, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--repo", str(project.root)])
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out + printed.err


def test_a_teardown_changes_nothing_where_the_online_store_takes_no_writes(
    tmp_path: Path, start_redis: StartRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    server, other = start_redis(), start_redis()
    project = run_project(tmp_path, server.url)
    other.kill()
    make_replica(server, other)
    code, said = fs(project, capsys, "teardown", "--allow-destroy")
    assert code == 1
    assert "Nothing was changed." in said
    assert "let online_store name the primary" in said
    with project.open() as store:
        assert store.workspace.snapshot().revision == 1
        assert store.list("feature_view")
    assert project.offline([1, 2]) == {1: 10, 2: 20}


def test_a_teardown_that_fails_half_way_says_what_is_left_and_who_finishes(
    tmp_path: Path, start_redis: StartRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    server, other = start_redis(), start_redis()
    project = run_project(tmp_path, server.url)
    failing = failing_after("apply", server, other)
    with project.open() as store, listening(failing), pytest.raises(OnlineStoreUnavailableError) as raised:
        store.teardown()
    left = ["offline table shop/stats/1, 2 rows", "online records of stats (generation 1)"]
    assert "The definitions are removed (revision 2), not all of their data is." in raised.value.message
    assert all(what in raised.value.message for what in left)
    assert raised.value.hint.endswith(f"Then run `{FINISH}`: it deletes the rest.")

    code, said = fs(project, capsys, "status")
    assert code == 0
    assert "Project shop has no feature views at revision 2" in said
    assert "Nothing is registered" not in said
    assert FINISH in said
    assert all(what in said for what in left)

    code, said = fs(project, capsys, "teardown")
    assert code == 1
    assert "nothing to change" not in said
    assert all(f"would be deleted: {what}" in said for what in left)

    code, said = fs(project, capsys, "teardown", "--allow-destroy")  # it takes no writes still
    assert code == 1
    assert "Nothing was changed" not in said
    assert f"Then run `{FINISH}`: it deletes the rest." in said

    with server.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    assert fs(project, capsys, "teardown", "--allow-destroy")[0] == 0
    with server.client() as client:
        assert client.keys("fs:*") == []
    assert not list((project.root / "data/offline").rglob("*.parquet"))
    code, said = fs(project, capsys, "teardown")
    assert (code, said) == (0, "Project shop holds nothing.\n")
    assert "has no feature views at revision 2: run `fs apply`" in fs(project, capsys, "status")[1]


def test_an_apply_that_deletes_half_of_it_says_that_gc_finishes_and_so_does_a_later_view_of_the_name(
    tmp_path: Path, start_redis: StartRedis, capsys: pytest.CaptureFixture[str]
) -> None:
    server, other = start_redis(), start_redis()
    project = run_project(tmp_path, server.url)
    features = (project.root / "features.py").read_text()
    (project.root / "features.py").write_text(features.partition("stats =")[0])
    failing = failing_after("apply", server, other)
    with project.open() as store, listening(failing), pytest.raises(OnlineStoreUnavailableError) as raised:
        store.apply(allow_breaking=True, allow_destroy=True)
    assert raised.value.hint.endswith("Then run `fs gc`: it deletes the rest.")
    said = fs(project, capsys, "status")[1]
    assert "offline table shop/stats/1, 2 rows" in said
    assert "Delete it: `fs gc`" in said

    with server.client() as client:
        client.execute_command("REPLICAOF", "NO", "ONE")
    (project.root / "features.py").write_text(features)
    for command in (("plan",), ("apply", "--yes")):
        said = fs(project, capsys, *command)[1]
        assert "note: table shop/stats/1 of an earlier stats still exists. Its rows are not used" in said
        assert "`fs gc` removes them" in said
    assert "earlier" not in fs(project, capsys, "plan")[1]
    assert "offline table shop/stats/1 removed" in fs(project, capsys, "gc")[1]
    with FeatureStore(project.root) as store:
        assert [str(table) for table in store.workspace.offline.tables("shop")] == []
