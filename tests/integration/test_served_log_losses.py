"""What the served log loses is counted and told, and nothing waits for it; what became personal does not show."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.served import SECRET, ask, kept, logged_project
from support.serving import Project, serving_here

from featurestore import FeatureStore
from featurestore.cli.main import main
from featurestore.errors import NotFoundError, OfflineStoreError
from featurestore.offline.local.blobs import FolderBlobs
from featurestore.offline.local.files import disk_errors
from featurestore.quality.comparing import parity
from featurestore.served.keep import read_served
from featurestore.server.read import served as server_log


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", SECRET["secret"])
    return logged_project(tmp_path / "repo", clock())


def lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if " are lost: " in record.getMessage()]


def test_a_stalled_store_does_not_hold_up_the_stop_of_a_server(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on, usual = threading.Event(), FolderBlobs.put

    def stalled(self: FolderBlobs, *given: Any) -> None:
        goes_on.wait(60)
        usual(self, *given)

    monkeypatch.setattr(FolderBlobs, "put", stalled)
    monkeypatch.setattr(server_log, "CLOSE_SECONDS", 0.5)
    try:
        with serving_here(project.workspace(clock)) as client:
            ask(client, "whole", {"customer_id": [1, 2]}, "r")
            ask(client, "logged", {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}, "s",
                request_data={"amount": [1.0]})  # fmt: skip
            began = monotonic()
        assert monotonic() - began < 15
        assert sorted(lost(caplog)) == [
            "1 rows of the served log of logged are lost: the server stopped before the store took them",
            "2 rows of the served log of whole are lost: the server stopped before the store took them",
        ]
    finally:
        goes_on.set()


def test_a_full_queue_is_told_with_all_that_came_since(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice: at once, and what came within the same minute at the end."""
    monkeypatch.setattr(server_log, "MOST_ROWS", 1)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 0.05)
    with serving_here(project.workspace(clock)) as client:
        ask(client, "whole", {"customer_id": [1, 2]}, "a")
        limit = monotonic() + 30
        while not lost(caplog) and monotonic() < limit:
            threading.Event().wait(0.02)
        for number in range(3):
            ask(client, "whole", {"customer_id": [1, 2]}, f"b{number}")
    assert lost(caplog) == [f"{rows} rows of the served log of whole are lost: the queue was full" for rows in (2, 6)]


def test_failures_of_one_minute_are_told_at_the_end(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = project.root / "data" / "offline" / "shop"
    place.mkdir(parents=True)
    (place / "_served.whole").write_text("a file where the folder should be")
    monkeypatch.setattr(server_log, "FILE_SECONDS", 0.0)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 0.05)
    with serving_here(project.workspace(clock)) as client:
        ask(client, "whole", {"customer_id": [1]}, "a")
        limit = monotonic() + 30
        while not lost(caplog) and monotonic() < limit:
            threading.Event().wait(0.02)
        ask(client, "whole", {"customer_id": [1, 2]}, "b")
        text = client.get("/metrics").text
    assert [told[:40] for told in lost(caplog)] == [f"{rows} rows of the served log of whole are lo" for rows in (1, 2)]
    assert 'featurestore_served_dropped_total{reason="failed",service="whole"}' in text


def test_keys_and_request_data_count_for_the_bound_of_memory(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_log, "MOST_BYTES", 20_000)
    monkeypatch.setattr(server_log, "DRAIN_SECONDS", 60.0)
    with serving_here(project.workspace(clock)) as client:
        for name, origin in (("short", "JFK"), ("long", "J" * 20_000)):
            entities = {"customer_id": [1], "origin": [origin], "dest": ["LAX"]}
            ask(client, "logged", entities, name, request_data={"amount": [1.0]})
        entities = {"customer_id": [1] * 400, "origin": ["JFK"] * 400, "dest": ["LAX"] * 400}
        ask(client, "logged", entities, "many", request_data={"amount": [1.5] * 400})
    rows = read_served(project.workspace(clock), "logged", 0, clock() + 1)
    assert rows.column("request_id").to_pylist() == ["short"]


def test_a_log_without_a_secret_is_counted_and_told_before_a_server_stops_starting(
    project: Project,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("FS_SERVED__SECRET")
    settings = project.root / "feature_store.yaml"
    settings.write_text(settings.read_text().replace('"10s"', '"1s"'))
    project.apply(without=["feature_service:private"])
    fs = CommandLine(project.root, capsys)
    with serving_here(project.workspace(clock)) as client:
        project.apply()
        limit = monotonic() + 30
        text = ""
        while 'reason="secret"' not in text and monotonic() < limit:
            body = {"feature_service": "private", "entities": {"customer_id": [1, 2]}}
            client.post("/v1/online-features", json=body)
            text = "".join(line for line in client.get("/metrics").text.splitlines() if "served_dropped_total" in line)
            threading.Event().wait(0.2)
    assert 'reason="secret",service="private"' in text
    assert any("of the served log of private are lost: the settings have no secret" in each for each in lost(caplog))
    told = " ".join(fs("doctor", expect=1).split())
    assert (
        "The log of private keeps join keys hashed, and the settings have no secret. A server does not start so" in told
    )


def test_the_plan_says_that_a_secret_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FS_SERVED__SECRET", raising=False)
    fs = CommandLine(tmp_path / "tour", capsys)
    with pytest.raises(SystemExit):
        main(["init", str(tmp_path / "tour")])
    capsys.readouterr()
    features = next(path for path in (tmp_path / "tour").glob("*.py") if "FeatureService(" in path.read_text())
    text = features.read_text()
    begin = text.index("= FeatureService(") + len("= FeatureService(")
    features.write_text(f"from featurestore import ServedLog\n{text[:begin]}log=ServedLog(0.1), name={text[begin:]}")
    told = " ".join(fs("plan").split())
    assert "keeps join keys hashed, and the settings have no secret. A server does not start so." in told
    monkeypatch.setenv("FS_SERVED__SECRET", SECRET["secret"])
    assert "no secret" not in fs("plan")


@pytest.mark.parametrize("is_gone", [False, True], ids=["declared", "gone"])
def test_what_became_personal_does_not_show(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], tmp_path: Path, is_gone: bool
) -> None:
    features = project.root / "features.py"
    with features.open("a") as text:
        text.write(
            'town = FeatureService("town", features=[hidden[["city"]], spending], log=ServedLog(1.0, keys="plain"))\n'
        )
    features.write_text(features.read_text().replace('tags={"personal": "true"}', "tags={}"))
    project.apply()
    with serving_here(project.workspace(clock)) as client:
        ask(client, "town", {"customer_id": [1]}, "r", request_data={"amount": [7.0]})
    (row,) = read_served(project.workspace(clock), "town", 0, clock() + 1).to_pylist()
    assert (row["value.city"], row["request.amount"]) == ("Bonn", 7.0)
    assert row["view.hidden.crc"] is not None
    text = features.read_text()
    text = text.replace('Field("city", String)', 'Field("city", String, tags={"personal": "true"})')
    features.write_text(text.replace('Field("amount", Float64)', 'Field("amount", Float64, tags={"personal": "true"})'))
    project.apply(without=["feature_service:town"] if is_gone else ())
    workspace = project.workspace(clock)
    (row,) = read_served(workspace, "town", 0, clock() + 1).to_pylist()
    assert {"value.city", "request.amount", "value.amount_per_click"}.isdisjoint(row)
    assert (row["status.city"], row["view.hidden.crc"]) == ("PRESENT", None)
    out = tmp_path / "out.parquet"
    CommandLine(project.root, capsys)("served", "export", "town", "--out", str(out))
    assert b"Bonn" not in out.read_bytes()


def test_parity_over_a_change_of_type_compares_the_rest(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 1, [1])
    features = project.root / "features.py"
    features.write_text(features.read_text().replace('Field("a_string", String)', 'Field("a_string", Int64)'))
    project.apply()
    with FeatureStore(project.root, clock=clock) as store:
        found = parity(store.workspace, "whole", 0, clock())
    assert found.rows == 1


def test_messages_about_files_say_what_was_to_be_written_and_why_not(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kept(project, clock, "whole", 1, [1])
    fs = CommandLine(project.root, capsys)
    (tmp_path / "notes.txt").write_text("mine")
    for path, told in (
        (tmp_path / "notes.txt", "is not a Parquet file: served rows are not written there"),
        (project.root / "data/offline/x.parquet", "served rows are not written there"),
        (Path("/dev/full"), "is not a Parquet file: served rows are not written there"),
        (Path("/proc/self/x.parquet"), "Check that you may write in /proc/self, or write elsewhere"),
    ):
        assert told in " ".join(fs("served", "export", "whole", "--out", str(path), expect=1).split())
    out = str(tmp_path / "notes.txt")
    assert "the differences are not written" in " ".join(fs("parity", "whole", "--out", out, expect=1).split())
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_log_of_a_service_that_is_gone_is_not_said_to_be_missing(project: Project, clock: ManualClock) -> None:
    kept(project, clock, "whole", 1, [1])
    project.apply(without=["feature_service:whole"])
    workspace = project.workspace(clock)
    assert read_served(workspace, "whole", 0, clock()).num_rows == 1
    with pytest.raises(NotFoundError, match="no feature service any more, lies in this span") as told:
        read_served(workspace, "whole", 0, 1)
    assert "fs served list" in told.value.hint


def test_a_disk_that_is_read_only_is_told_with_what_to_do() -> None:
    with pytest.raises(OfflineStoreError, match="Read-only file system") as told, disk_errors("keep the served log"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    assert "mount it for writing" in told.value.hint
