"""Ready means warm: the first request waits for nothing that a later one does not wait for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.serving import FEATURES, ask_until_ready, serving_here, small_project

from featurestore import FeatureStore, ParquetSource, PushSource
from featurestore.offline.interface import TableId, TableVersion
from featurestore.offline.local.store import DeltaStore
from featurestore.server.read import endpoints as online
from featurestore.types.times import system_clock

MORE = """
from featurestore import PushSource

@on_demand_feature_view(sources=[fresh[["clicks"]]], schema=[Field("framed_clicks", Int64)], mode="pandas")
def framed(inputs):
    import pandas as pd

    return pd.DataFrame({"framed_clicks": inputs["clicks"]})


@on_demand_feature_view(sources=[fresh[["clicks"]]], schema=[Field("next_clicks", Int64)])
def wanting(inputs):
    import colorsys, graphlib  # nobody else has them

    return {"next_clicks": [clicks + 1 for clicks in inputs["clicks"]]}  # fails on nulls


@on_demand_feature_view(sources=[fresh[["clicks"]]], schema=[Field("slow_clicks", Int64)])
def slow(inputs):
    import time
    from pathlib import Path

    while Path(__file__).with_name("wait").exists():
        time.sleep(0.01)
    return {"slow_clicks": inputs["clicks"]}


pushed = PushSource("orders_push", ParquetSource("batch", path="data/orders.parquet", timestamp_field="ordered_at"))
events = FeatureView("events", entities=[customer], source=pushed, schema=[Field("n", Int64)])
derived = FeatureService("derived", features=[framed, wanting])
"""
PUSH = {"customer_id": [1], "n": [5], "ordered_at": ["2026-11-29T00:00:00Z"]}
ONE = {"entities": {"customer_id": [1]}}
REQUESTS = [
    ("/v1/online-features", {"features": ["fresh:clicks"], **ONE}, '"rows":[[7]]'),
    ("/v1/online-features", {"feature_service": "derived", **ONE}, '"rows":[[7,8]]'),
    ("/get-online-features", {"feature_service": "derived", **ONE}, '"values":[8]'),
    ("/push", {"source": "orders_push", "rows": PUSH, "to": "online"}, '"online":{"written":1'),
    ("/push", {"source": "orders_push", "rows": PUSH}, '"offline":{"rows":1'),
]

# Serves a repo, and prints which modules each request imported.
SERVE = """
import json, sys, threading
from pathlib import Path
import httpx, uvicorn
from featurestore.server.app import create_app
from featurestore.server.run import bind, server_config, url_of
from support.serving import ask_until_ready

listening = bind("127.0.0.1", 0)
server = uvicorn.Server(server_config(create_app(Path(sys.argv[1]))))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()
with httpx.Client(base_url=url_of(listening), timeout=60) as client:
    ask_until_ready(client)
    for path, body, proof in json.loads(sys.argv[2]):
        before = set(sys.modules)
        answer = client.post(path, json=body)
        assert proof in answer.text, answer.text
        print(path, sorted(set(sys.modules) - before))
server.should_exit = True
thread.join()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    project = small_project(tmp_path / "repo", system_clock())
    (project.root / "features.py").write_text(FEATURES + MORE)
    project.apply()
    return project.root


def test_the_first_requests_import_nothing(root: Path) -> None:
    with FeatureStore(root) as store:
        store.push("orders_push", PUSH)  # the very first one makes the table
    command = [sys.executable, "-c", SERVE, str(root), json.dumps(REQUESTS)]
    support = str(Path(__file__).parents[1])
    path = [entry for entry in sys.path if entry]
    environment = {"PYTHONPATH": ":".join([support, *path]), "PATH": "/usr/bin:/bin"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines() == [f"{path} []" for path, _, _ in REQUESTS]


def test_the_table_of_each_source_is_opened_whatever_becomes_of_another(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def current(self: DeltaStore, table: TableId) -> TableVersion | None:
        opened.append(table.view)
        return found_before(self, table)

    with FeatureStore(root) as store:
        batch = ParquetSource("b", path="data/orders.parquet", timestamp_field="ordered_at")
        unread = PushSource("a_push", batch)  # sorted before orders_push; no view takes its rows
        store.apply([*store.workspace.snapshot().list(), unread])
        found_before = DeltaStore.current
        monkeypatch.setattr(DeltaStore, "current", current)
        with serving_here(store.workspace) as client:
            ask_until_ready(client)
            assert "events" in opened


@pytest.mark.parametrize("is_stuck", [False, True], ids=["fails", "hangs"])
def test_a_table_that_cannot_be_opened_holds_up_no_start(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, is_stuck: bool
) -> None:
    may_end = threading.Event()

    def current(self: DeltaStore, table: TableId) -> TableVersion | None:
        if not is_stuck:
            raise RuntimeError("the disk is gone")
        may_end.wait(60)
        return None

    monkeypatch.setattr(online, "WARM_SECONDS", 0.2)
    monkeypatch.setattr(DeltaStore, "current", current)
    with FeatureStore(root) as store, serving_here(store.workspace) as client:
        ask_until_ready(client)
        assert client.post(*REQUESTS[0][:1], json=REQUESTS[0][1]).json()["rows"] == [[7]]
        may_end.set()
    assert is_stuck or "warming up failed" in caplog.text


def test_a_function_that_does_not_return_holds_up_no_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "WARM_SECONDS", 0.2)
    (root / "wait").touch()
    with FeatureStore(root) as store, serving_here(store.workspace) as client:
        ask_until_ready(client)
        assert client.post(*REQUESTS[0][:1], json=REQUESTS[0][1]).json()["rows"] == [[7]]
        (root / "wait").unlink()
        answer = client.post("/v1/online-features", json={"features": ["slow:slow_clicks"], **ONE})
        assert answer.json()["rows"] == [[7]]
