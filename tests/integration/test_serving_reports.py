"""What feature servers say about themselves in the registry, and what `fs status` makes of it."""

from __future__ import annotations

import logging
import socket
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http import access
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.sql import open_registry
from featurestore_registry.sql.schema import alembic_config
from support.clock import ManualClock
from support.command_line import CommandLine
from support.registry_server import serving_registry
from support.released_registry import released_0001
from support.serving import Project, ask_until_ready, serving, serving_here, small_project, until

from featurestore.ledger.serving import KIND, Server, servers_of, tell
from featurestore.registered.snapshot import Snapshot
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch import serving as watch
from featurestore.server.watch.serving import ServingReport
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

NOT_APPLIED = """

@on_demand_feature_view(sources=[fresh[["clicks"]]], schema=[Field("twice", Int64)])
def doubled(inputs):
    return {"twice": [None if clicks is None else 2 * clicks for clicks in inputs["clicks"]]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return small_project(tmp_path / "repo", system_clock(), refresh="100ms")


def snapshot_of(workspace: Workspace) -> Snapshot:
    return Snapshot.of(workspace.registry.definitions.read("shop"))


def test_a_server_says_what_it_serves_with_each_revision_and_says_goodbye(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project.root / "features.py").open("a") as features:
        features.write(NOT_APPLIED)
    fs = CommandLine(project.root, capsys)
    other = project.workspace()
    with serving_here(project.workspace()) as client:
        ask_until_ready(client)
        (server,) = until(lambda: servers_of(other.registry, "shop"))
        hashes = {found.name: found.code_hash for found in other.code if hasattr(found, "code_hash")}
        assert server.code == hashes
        assert set(hashes) == {"spending", "doubled"}
        assert (server.revision, server.hash) == (1, other.registry.definitions.chain("shop").head)
        assert "Revision 1 is served by 1 server." in fs("status")

        project.apply(without=["feature_service:model_v1"])
        until(lambda: servers_of(other.registry, "shop")[0].revision == 2)
        told = fs.json("status", "--servers")
        (found,) = told["servers"]
        assert (told["revision"], found["revision"], found["behind"], found["other_code"]) == (2, 2, False, [])
        assert found["hash"] == told["hash"]
        assert isinstance(fs.json("status"), list)
    assert servers_of(other.registry, "shop") == []
    assert other.registry.journal.newest("shop", KIND, limit=1)[0].document["stopped"] is True
    assert "served by" not in fs("status", "--servers")
    other.close()


def test_workers_of_one_server_are_one_instance(project: Project) -> None:
    workspace = project.workspace()
    with serving(project.root, "--workers", "2"):
        until(lambda: len(servers_of(workspace.registry, "shop")) == 2)
        first, second = servers_of(workspace.registry, "shop")
        assert first.instance == second.instance
        assert first.process != second.process
    assert servers_of(workspace.registry, "shop") == []
    workspace.close()


def test_a_registry_that_takes_no_writes_holds_up_no_refresh(project: Project) -> None:
    outcomes: list[str] = []
    with closing(project.workspace()) as workspace:
        keeper = SnapshotKeeper(workspace)
        keeper.on_refresh = outcomes.append
        keeper.load()
        with closing(sqlite3.connect(project.registry_file, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            began_s = time.monotonic()
            keeper.start()
            until(lambda: outcomes.count("same") > 3)
            assert time.monotonic() - began_s < 20  # a write waits for 30 s
            assert servers_of(workspace.registry, "shop") == []
            writer.execute("ROLLBACK")
        until(lambda: servers_of(workspace.registry, "shop"))
        keeper.stop()
        assert servers_of(workspace.registry, "shop") == []


def test_who_is_behind_lacks_code_or_is_gone(
    project: Project, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock("2024-02-01T00:00:00Z")
    workspace = project.workspace(clock)
    journal, head = workspace.registry.journal, workspace.snapshot().chain.head
    code = {"spending": workspace.snapshot().on_demand["spending"].code_hash}
    tell(journal, "shop", Server("gone", 1, "a", "1", 1, head, code))
    clock.advance(timedelta(minutes=10))
    tell(journal, "shop", Server("good", 1, "a", "1", 1, head, code))
    tell(journal, "shop", Server("good", 2, "a", "1", 1, "0" * 32, code))
    tell(journal, "shop", Server("older", 3, "b", "0", 1, "0" * 32, {"spending": "another"}))
    tell(journal, "shop", Server("bare", 4, "b", "0", 1, head, {}))
    tell(journal, "other", Server("foreign", 4, "b", "0", 1, head, {}))
    clock.advance(timedelta(minutes=6))
    snapshot = workspace.snapshot()
    found = {(each.instance, each.process): each for each in servers_of(workspace.registry, "shop")}
    assert list(found) == [("bare", 4), ("good", 1), ("good", 2), ("older", 3)]
    assert [each.behind(snapshot) for each in found.values()] == [False, False, True, True]
    assert [each.other_code(snapshot) for each in found.values()] == [["spending"], [], [], ["spending"]]
    tell(journal, "shop", found["bare", 4], is_stopping=True)
    assert ("bare", 4) not in {(each.instance, each.process) for each in servers_of(workspace.registry, "shop")}
    clock.advance(timedelta(minutes=10))
    assert [each.instance for each in servers_of(workspace.registry, "shop")] == []

    clock.set(system_clock())  # the command has the machine's clock
    tell(journal, "shop", found["good", 1])
    tell(journal, "shop", found["older", 3])
    fs = CommandLine(project.root, capsys)
    table = fs("status", "--servers")
    assert ", behind  spending" in table
    assert "served by" not in table
    said = fs("status")
    document = journal.newest("shop", KIND, limit=1)[0].document
    assert said.count("Revision 1 is served by 1 server") == 2
    assert "Revision 1 is served by 1 server, behind revision 1." in said
    assert "older lacks the applied code of spending: it answers code_mismatch for it." in said
    wrong = ({"instance": "x"}, {**document, "code": "share"}, {**document, "process": "4"})
    journal.append("shop", KIND, [(f"wrong {place}", each) for place, each in enumerate(wrong)])
    journal.append("shop", KIND, [("later", {**document, "instance": "later", "more": {}})])
    assert [each.instance for each in servers_of(workspace.registry, "shop")] == ["good", "later", "older"]
    assert all(f"key 'wrong {place}'" in caplog.text for place in range(3))
    assert fs("status").count("is served by") == 2
    workspace.close()


def test_it_is_said_every_five_minutes_and_a_refusal_costs_one_warning(
    project: Project, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(system_clock())
    workspace = project.workspace(clock)
    snapshot, journal = snapshot_of(workspace), workspace.registry.journal
    report = ServingReport(workspace)

    def entries() -> int:
        return len(journal.scan("shop", KIND))

    for minutes, expected in ((0, 1), (1, 1), (3, 1), (1, 2), (4, 2), (1, 3)):
        clock.advance(timedelta(minutes=minutes))
        report.look(workspace.registry, snapshot)
        assert entries() == expected
    report.look(workspace.registry, snapshot_of(workspace))
    assert entries() == 4

    ledger = workspace.registry.ledger
    reader, server = (
        create_token(ledger, "shop", Role.READER, expires_at_us=None, now_us=0, is_server=is_server)[0]
        for is_server in (False, True)
    )
    report = ServingReport(workspace)
    report.stop()  # who never said a thing says no goodbye
    assert entries() == 4
    with serving_registry(workspace.registry) as url, caplog.at_level(logging.WARNING):
        for token, expected in ((reader, 4), (reader, 4), (server, 4)):
            with HttpRegistry(url, token=token) as registry:
                report.look(registry, snapshot)  # the last comes too soon after a failure
            assert entries() == expected
        (record,) = caplog.records
        assert "written by feature servers" in record.message
        assert "--server" in record.message
        clock.advance(timedelta(minutes=1))
        with HttpRegistry(url, token=reader) as registry:
            report.look(registry, snapshot)
        clock.advance(timedelta(minutes=1))
        with HttpRegistry(url, token=server) as registry:
            report.look(registry, snapshot)
            assert len(servers_of(registry, "shop")) == 2
        assert entries() == 5
    clock.advance(timedelta(minutes=5))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a registry that hangs holds up no end
        monkeypatch.setattr(watch, "FAREWELL_SECONDS", 0.1)
        with HttpRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}", token=server) as registry:
            began_s = time.monotonic()
            report.ask(registry, snapshot)
            report.stop()
            assert time.monotonic() - began_s < 2
    with HttpRegistry(url, token=server) as registry:  # it is away
        report.look(registry, snapshot)
    assert "--server" not in caplog.records[1].message
    workspace.close()


def test_a_file_that_earlier_versions_use_is_left_alone(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    engine = sqlalchemy.create_engine("sqlite://", creator=lambda: sqlite3.connect(path))
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        released_0001(connection)
    engine.dispose()
    before = path.read_bytes()
    workspace = project.workspace()
    with open_registry(f"sqlite:///{path}", create=False) as registry:
        ServingReport(workspace).look(registry, snapshot_of(workspace))
        assert servers_of(registry, "shop") == []
    assert path.read_bytes() == before
    workspace.close()


def test_a_status_over_an_earlier_registrys_server_goes_on(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(access, "JOURNAL", {})
    with open_registry(f"sqlite:///{project.registry_file}") as registry:
        token, _ = create_token(registry.ledger, "shop", Role.VIEWER, expires_at_us=None, now_us=0)
        with serving_registry(registry) as url:
            monkeypatch.setenv("FS_REGISTRY", url)
            monkeypatch.setenv("FS_REGISTRY_TOKEN", token)
            fs = CommandLine(project.root, capsys)
            assert "fresh" in fs("status")
            assert "no entries of kind 'serving'" in fs("status", "--servers", expect=1)
