"""What servers may still read after an apply superseded it: `fs gc` leaves it to them, and takes it afterwards."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry
from support.clock import ManualClock
from support.serving import ServerProcess, serving, until

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.maintenance.gc import Garbage, collect_garbage
from featurestore.maintenance.superseded import read_until
from featurestore.offline.interface import TableId
from featurestore.project.settings import make_settings
from featurestore.types import Float64, String
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

SECOND_US = 1_000_000
NOW_US = 1_767_225_600 * SECOND_US
SHOPS = [f"shop {number}" for number in range(5)]


def workspace_of(root: Path, refresh: str, applied: ManualClock, now: ManualClock) -> Workspace:
    """Return a workspace whose registry dates what is applied by a clock of its own."""
    settings = make_settings({"project": "till", "server": {"refresh": refresh}})
    workspace = Workspace(root, settings, clock=now)
    workspace.registry = open_registry(f"sqlite:///{root}/registry.db", clock=applied)
    return workspace


def put(workspace: Workspace, **views: int | None) -> None:
    """Apply views of these generations: 0 stands for a deletion, a negative one is not online."""
    changes = [
        Change("put", "feature_view", name, Record("feature_view", "till", name, document(generation), str(generation)))
        if generation
        else Change("delete", "feature_view", name)
        for name, generation in views.items()
    ]
    definitions = workspace.registry.definitions
    head = definitions.chain("till").head
    definitions.apply("till", head, changes, author="", message="", commit="")


def document(generation: int) -> dict[str, Any]:
    return {"generation": abs(generation), "online": generation > 0}


@pytest.mark.parametrize(("refresh", "lag_s"), [("10ms", 30), ("10s", 30), ("11s", 33), ("1h", 10_800)])
def test_it_is_kept_as_long_as_servers_may_lag_behind(tmp_path: Path, refresh: str, lag_s: int) -> None:
    applied = ManualClock(NOW_US)
    now = ManualClock(NOW_US + 1)
    workspace = workspace_of(tmp_path, refresh, applied, now)
    put(workspace, v=1, other=1)
    put(workspace, v=2)
    ends_us = NOW_US + lag_s * SECOND_US
    assert read_until(workspace) == {("v", 1): ends_us}
    for clock_us, is_kept in ((NOW_US - 86_400 * SECOND_US, True), (ends_us - 1, True), (ends_us, False)):
        now.set(clock_us)  # a revision that is dated after now is young
        assert bool(read_until(workspace)) is is_kept


def test_a_generation_that_is_superseded_twice_is_kept_until_the_later_end(tmp_path: Path) -> None:
    applied = ManualClock(NOW_US + 20 * SECOND_US)  # a clock that is ahead dates the first two
    workspace = workspace_of(tmp_path, "10s", applied, ManualClock(NOW_US))
    put(workspace, v=1)
    put(workspace, v=2)
    applied.set(NOW_US)
    put(workspace, v=1)
    put(workspace, v=3)
    assert read_until(workspace) == {("v", 1): NOW_US + 50 * SECOND_US, ("v", 2): NOW_US + 30 * SECOND_US}


def test_what_a_deleted_view_left_is_kept_for_nobody(tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, "10s", ManualClock(NOW_US), ManualClock(NOW_US))
    put(workspace, v=1, other=1)
    put(workspace, v=2, other=2)
    put(workspace, v=0)
    assert read_until(workspace) == {("other", 1): NOW_US + 30 * SECOND_US}


def test_more_young_revisions_than_are_read_at_once(tmp_path: Path) -> None:
    applied = ManualClock(NOW_US)
    workspace = workspace_of(tmp_path, "10s", applied, ManualClock(NOW_US))
    for generation in range(1, 61):
        put(workspace, v=generation)
    assert {generation for _, generation in read_until(workspace)} == set(range(1, 60))


@pytest.mark.parametrize("seed", range(12))
def test_it_is_what_a_server_that_lags_behind_would_ask_for(tmp_path: Path, seed: int) -> None:
    """The oracle plays every second of a server: what it may serve, having looked at the registry 30 s ago or later."""
    dice = Random(seed)
    applied, now = ManualClock(NOW_US), ManualClock(NOW_US)
    workspace = workspace_of(tmp_path, "10s", applied, now)
    at_s, last = 0, {"a": 0, "b": 0}
    states: list[tuple[int, dict[str, int]]] = []
    deleted: set[tuple[str, int]] = set()
    live: dict[str, int] = {}
    for _ in range(dice.randint(2, 8)):
        name = dice.choice("ab")
        kind = dice.choice(["new", "new", "off", "on", "delete"]) if name in live else "new"
        if kind == "new":
            last[name] += 1
        generation = {"new": last[name], "off": -last[name], "on": last[name], "delete": 0}[kind]
        applied.set(NOW_US + at_s * SECOND_US)
        put(workspace, **{name: generation})
        if kind == "delete":
            del live[name]
            deleted |= {(name, generation) for generation in range(1, last[name] + 1)}
        else:
            live[name] = generation
        states.append((at_s, dict(live)))
        at_s += dice.choice([1, 5, 20, 29, 30, 31, 60])
    now_s = states[-1][0] + dice.choice([0, 1, 29, 30, 31])
    now.set(NOW_US + now_s * SECOND_US)
    seen: set[tuple[str, int]] = set()
    for looked_s in range(max(0, now_s - 29), now_s + 1):
        for before_s in (looked_s - 1, looked_s):  # just before an apply, and just after it
            found = [state for since_s, state in states if since_s <= before_s]
            seen |= {(name, generation) for name, generation in (found[-1] if found else {}).items() if generation > 0}
    current = {(name, generation) for name, generation in live.items() if generation > 0}
    assert read_until(workspace).keys() - current == seen - current - deleted


shop = Entity("shop", {"shop": String})
sales = ParquetSource("sales", "sales.parquet", "ts")


def service(feature: str) -> FeatureService:
    sql = None if feature == "amount" else f"SELECT shop, ts, amount AS {feature} FROM sales"
    view = FeatureView("takings", entities=[shop], source=sales, schema=[Field(feature, Float64)], sql=sql)
    return FeatureService("model", [view])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "feature_store.yaml").write_text("project: till\nserver: {refresh: 2s}\n")
    (tmp_path / "features.py").write_text("")
    at = pa.array([system_clock() - SECOND_US] * len(SHOPS), pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    rows = pa.table({"shop": SHOPS, "ts": at, "amount": [float(number) for number in range(len(SHOPS))]})
    pq.write_table(rows, tmp_path / "sales.parquet")
    with FeatureStore(tmp_path, clock=ManualClock(system_clock())) as opened:
        opened.apply([service("amount")])
        opened.materialize_incremental()
        yield opened


def left(garbage: Garbage) -> list[str]:
    assert all("servers may read this generation until" in kept.why for kept in garbage.kept)
    return [kept.what for kept in garbage.kept]


def test_gc_keeps_rows_and_records_together_and_takes_both_later(store: FeatureStore) -> None:
    store.apply([service("total")], allow_breaking=True, prepare=True)
    for dry_run in (True, False):
        garbage = collect_garbage(store.workspace, dry_run=dry_run)
        assert (garbage.tables, garbage.online_prefixes, garbage.records) == ((), (), 0)
        assert left(garbage) == ["offline table till/takings/1", "online records of takings (generation 1)"]
    store.workspace.clock.advance(timedelta(hours=1))
    garbage = collect_garbage(store.workspace)
    assert garbage.tables == (TableId("till", "takings", 1),)
    assert (garbage.kept, garbage.records >= len(SHOPS)) == ((), True)
    assert store.get_online_features("model", {"shop": SHOPS}).to_dict()["total"] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_a_view_that_is_not_online_has_no_readers(store: FeatureStore) -> None:
    schema = [Field("amount", Float64)]
    store.apply([FeatureView("log", entities=[shop], source=sales, schema=schema, online=False)])
    store.materialize_incremental()
    sql = "SELECT shop, ts, amount AS total FROM sales"
    wanted = FeatureView("log", entities=[shop], source=sales, schema=[Field("total", Float64)], sql=sql, online=False)
    store.apply([wanted], allow_breaking=True)
    assert collect_garbage(store.workspace).tables == (TableId("till", "log", 1),)


@pytest.mark.uncounted
def test_a_server_reads_on_while_gc_follows_an_apply(store: FeatureStore) -> None:
    stopped, wrong, seen = threading.Event(), list[Any](), set[str]()
    body = {"feature_service": "model", "entities": {"shop": SHOPS}}

    def read(server: ServerProcess) -> None:
        with server.client() as client:
            while not stopped.is_set():
                answer = client.post("/v1/online-features", json=body)
                found = answer.json()
                if answer.status_code != 200 or [row[0] for row in found["rows"]] != [0.0, 1.0, 2.0, 3.0, 4.0]:
                    wrong.append(found)
                else:
                    seen.update(found["names"])

    with serving(store.root) as server:
        reader = threading.Thread(target=read, args=(server,))
        reader.start()
        try:
            until(lambda: seen or wrong)
            store.apply([service("total")], allow_breaking=True, prepare=True)
            collect_garbage(store.workspace)
            until(lambda: wrong or len(seen) == 2)
            assert wrong == []
            store.workspace.clock.advance(timedelta(hours=1))
            assert collect_garbage(store.workspace).records > 0
            stopped.wait(0.2)
        finally:
            stopped.set()
            reader.join()
    assert wrong == []
