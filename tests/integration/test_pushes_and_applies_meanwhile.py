"""Runs, compaction and cleaning while others push and apply: nothing pushed is lost, nothing online goes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.serving import serving_here

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.engine.duck.log import DuckLog
from featurestore.engine.duck.session import Session
from featurestore.ingest.push import OfflineCounts
from featurestore.ledger.leases import holding
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.status import status
from featurestore.materialization import materialize, materialize_incremental
from featurestore.offline.local.store import DeltaStore
from featurestore.plan import apply_plan, make_plan
from featurestore.plan.changes import explain
from featurestore.types import Int64
from featurestore.types.times import system_clock, to_instant

T0 = datetime(2026, 1, 1, tzinfo=UTC)
INSTANTS = pa.timestamp("us", tz="UTC")
X, G = ("x", Int64), ("g", Int64)
PUSHED = {"k": 5, "ts": T0, "x": 50, "g": 500}


def definitions(*features: Any, online: bool = True) -> list[Any]:
    entity = Entity("e", join_keys={"k": Int64})
    batch = ParquetSource("b", path="source.parquet", timestamp_field="ts", created_timestamp_field="cr")
    source = PushSource("ps", batch_source=batch)
    schema = [Field(name, kind) for name, kind in features or (X,)]
    return [entity, batch, source, FeatureView("v", entities=[entity], source=source, online=online, schema=schema)]


def write_source(rows: Sequence[tuple[int, int, int]]) -> None:
    """Write rows of k, x and g, all at one time."""
    columns = {name: pa.array([row[place] for row in rows], pa.int64()) for place, name in enumerate("kxg")}
    times = pa.array([T0] * len(rows), INSTANTS)
    pq.write_table(pa.table({**columns, "ts": times, "cr": times}), "source.parquet")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeatureStore]:
    monkeypatch.chdir(tmp_path)
    settings = {"project": "p", "registry": "sqlite:///r.db", "offline_store": "offline", "online_store": "lmdb:///o"}
    with FeatureStore(settings) as store:
        write_source([(1, 10, 100), (2, 20, 200)])
        store.apply(definitions())
        store.materialize_incremental()
        yield store


def online(store: FeatureStore, *keys: int, feature: str = "x") -> list[Any]:
    return store.get_online_features([f"v:{feature}"], {"k": list(keys)}).to_dict()[feature]


def offline(store: FeatureStore, feature: str) -> dict[int, Any]:
    rows = store.peek("v", 1_000).select(["k", feature]).to_pylist()
    return {row["k"]: row[feature] for row in reversed(rows)}


@contextmanager
def waiting_for_the_lease(store: FeatureStore, work: Any) -> Iterator[None]:
    """Let ``work`` of another process's store begin, and wait for the lease until the block has ended."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with FeatureStore(store.settings) as other:
                work(other.workspace)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    with holding(store.workspace.ledger, "p", "v", holder="x", clock=store.workspace.clock):
        thread.start()
        thread.join(timeout=1.0)
        assert thread.is_alive()
        yield
    thread.join()
    assert errors == []


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", ["incremental", "rebuild", "optimize"])
def test_what_an_apply_adds_while_a_run_waits_is_kept(store: FeatureStore, kind: str) -> None:
    def work(workspace: Any) -> None:
        if kind == "optimize":
            optimize(workspace)
        elif kind == "incremental":
            assert materialize_incremental(workspace)[0].state == "done"
        else:
            span = to_instant(T0) - 1, to_instant(T0) + 1
            assert materialize(workspace, *span, rebuild=True, confirm=lambda view, rows: True)[0].state == "done"

    with waiting_for_the_lease(store, work):
        store.apply(definitions(X, G))
        store.push("ps", [PUSHED])
    assert online(store, 5, feature="g") == [500]
    read = (None, None) if kind == "optimize" else (100, 200)  # by the definition as it is when the run begins
    assert offline(store, "g") == {5: 500, 1: read[0], 2: read[1]}


def test_a_run_that_waited_reads_by_the_newest_definition(store: FeatureStore) -> None:
    with waiting_for_the_lease(store, materialize_incremental):
        store.apply(definitions(X, G))
    assert offline(store, "g") == {1: 100, 2: 200}
    assert online(store, 1, 2, feature="g") == [100, 200]


def test_an_apply_while_records_are_published_begins_the_publish_anew(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_source([(1, 11, 100), (2, 20, 200)])
    begun: list[object] = []

    def prepare(session: Session) -> None:
        begun.append(session)
        if len(begun) == 2:  # a publish begins, and has not read the table yet
            store.apply(definitions(X, G))
            store.push("ps", [PUSHED])

    monkeypatch.setattr(Session, "prepare", prepare)
    with FeatureStore(store.settings) as other:
        assert other.materialize_incremental()[0].state == "done"
    assert len(begun) > 2
    assert online(store, 5, feature="g") == [500]


def test_a_push_goes_into_the_generation_that_an_apply_began_meanwhile(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, applied = DeltaStore.write, list[object]()

    def write(offline: DeltaStore, *arguments: Any) -> Path:
        if not applied:
            applied.append(store.apply(definitions(G), allow_breaking=True))
        return real(offline, *arguments)

    monkeypatch.setattr(DeltaStore, "write", write)
    with FeatureStore(store.settings) as other:
        result = other.push("ps", [PUSHED])
    assert result.views["v"].offline == OfflineCounts(1, 0)
    assert offline(store, "g") == {5: 500}
    assert online(store, 5, feature="g") == [500]


def test_a_server_that_has_not_seen_an_apply_pushes_by_its_definitions(store: FeatureStore) -> None:
    columns = {"k": [5], "ts": ["2026-01-01T00:00:00Z"], "x": [50]}
    settings = {**store.settings.model_dump(mode="json"), "server": {"refresh": "1h"}}
    with FeatureStore(settings) as serving, serving_here(serving.workspace) as client:

        def push() -> httpx.Response:
            return client.post("/push", json={"source": "ps", "rows": columns})

        assert push().json()["views"]["v"]["offline"]["version"] == 1
        store.apply(definitions(X, G))
        assert push().json()["views"]["v"]["offline"]["version"] == 2  # a feature more: the same generation
        store.apply(definitions(G), allow_breaking=True)
        refused = push()
        assert (refused.status_code, "'g'" in refused.text) == (422, True)
        columns["g"] = [500]
        assert push().json()["views"]["v"]["offline"]["version"] == 0
        assert offline(store, "g") == {5: 500}
        apply_plan(store.workspace, make_plan(store.workspace, [], partial=False))
        assert push().status_code == 404
        assert store.workspace.offline.tables("p") == []


@pytest.mark.uncounted
def test_optimize_and_gc_leave_what_was_pushed_online_alone(store: FeatureStore) -> None:
    soon = T0 + timedelta(minutes=5)
    store.push("ps", [{"k": 77, "ts": soon, "x": 777}, {"k": 1, "ts": soon, "x": 111}], to="online")
    store.push("ps", [{"k": 3, "ts": soon, "x": 30}])
    optimize(store.workspace)
    collect_garbage(store.workspace)
    optimize(store.workspace)
    store.materialize_incremental()
    assert online(store, 1, 2, 3, 77) == [111, 20, 30, 777]
    optimize(store.workspace)
    (version,) = [store.workspace.offline.current(table) for table in store.workspace.offline.tables("p")]
    assert version is not None
    assert len(list(Path("offline/p/v/1").glob("*.parquet"))) == len(version.files)  # what was kept is not any more


def test_publishing_needs_no_file_of_what_is_online_when_rows_were_only_added(store: FeatureStore) -> None:
    table = store.workspace.snapshot().views["v"].table
    published = store.workspace.offline.current(table)
    assert published is not None
    store.push("ps", [{"k": 3, "ts": T0, "x": 30}])
    optimize(store.workspace)
    assert not any(Path(file.path).exists() for file in published.files)
    collect_garbage(store.workspace)
    optimize(store.workspace)
    store.materialize_incremental()
    assert online(store, 1, 2, 3) == [10, 20, 30]


def test_a_view_that_was_offline_for_a_while_is_published_whole(store: FeatureStore) -> None:
    store.apply(definitions(online=False), allow_breaking=True)
    assert collect_garbage(store.workspace).records == 0  # servers may still read it
    store.workspace.clock = ManualClock(system_clock() + 60_000_000)
    assert collect_garbage(store.workspace).records > 0
    assert status(store.workspace)[0].online_rows == 0
    store.apply(definitions())
    store.materialize_incremental()
    assert online(store, 1, 2) == [10, 20]
    assert status(store.workspace)[0].online_rows == 2


@contextmanager
def pushing(store: FeatureStore) -> Iterator[list[int]]:
    """Push rows without a pause; gives the values that were acknowledged."""
    ended, pushed = threading.Event(), list[int]()

    def push() -> None:
        with FeatureStore(store.settings) as other:
            while not ended.is_set():
                other.push("ps", [{"k": 9, "ts": T0, "x": len(pushed)}], to="offline")
                pushed.append(len(pushed))

    thread = threading.Thread(target=push)
    thread.start()
    try:
        yield pushed
    finally:
        ended.set()
        thread.join()


def test_a_long_run_gets_through_between_pushes(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, staged = DuckLog.stage, list[int]()
    monkeypatch.setattr("featurestore.offline.groups.PAUSE_SECONDS", 0.1)
    with pushing(store) as pushed:

        def stage(log: DuckLog, request: Any) -> Any:
            found, before = real(log, request), len(pushed)
            while len(pushed) < before + 3:  # as if there were many rows: others commit meanwhile
                threading.Event().wait(0.05)
            staged.append(request.first_sequence)
            return found

        monkeypatch.setattr(DuckLog, "stage", stage)
        write_source([(1, 12, 100), (2, 22, 200), (4, 44, 400)])
        (run,) = store.materialize_incremental()
    assert (run.state, run.appended) == ("done", 3)
    assert len(staged) == 2
    version = store.workspace.offline.current(store.workspace.snapshot().views["v"].table)
    assert version is not None
    rows = [row for file in version.files for row in pq.read_table(file.path, partitioning=None).to_pylist()]
    assert len({row["fs_seq"] for row in rows}) == len(rows)
    assert [row["x"] for row in sorted(rows, key=lambda row: row["fs_seq"]) if row["k"] == 9] == pushed
    assert online(store, 1, 2, 4) == [12, 22, 44]
    assert offline(store, "x")[9] == pushed[-1]


def test_compaction_gets_through_between_pushes(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real = DuckLog.compact
    monkeypatch.setattr("featurestore.offline.groups.PAUSE_SECONDS", 0.1)
    store.push("ps", [{"k": 3, "ts": T0, "x": 30}])
    tries: list[int] = []
    with pushing(store) as pushed:

        def compact(log: DuckLog, *arguments: Any) -> Any:
            before = len(pushed)
            tries.append(before)
            made = real(log, *arguments)
            while len(pushed) < before + 3:
                threading.Event().wait(0.05)
            return made

        monkeypatch.setattr(DuckLog, "compact", compact)
        (done,) = optimize(store.workspace)
    assert len(tries) == 1
    assert 2 <= done.removed <= 3 + tries[0]  # what was pushed before it began, too
    store.materialize_incremental()
    assert online(store, 1, 2, 3, 9) == [10, 20, 30, pushed[-1]]


@pytest.mark.uncounted
def test_a_rebuild_under_pushes_asks_once(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.offline.groups.PAUSE_SECONDS", 0.1)
    asked: list[tuple[str, int]] = []
    with pushing(store) as pushed:

        def confirm(view: str, rows: int) -> bool:
            before = len(pushed)
            asked.append((view, rows))
            while len(pushed) < before + 3:
                threading.Event().wait(0.05)
            return True

        write_source([(1, 10, 100)])
        span = to_instant(T0) - 1, to_instant(T0) + 1
        (run,) = materialize(store.workspace, *span, rebuild=True, confirm=confirm)
    assert (run.state, run.withdrawn) == ("done", 1)
    assert asked == [("v", 1)]


def test_pushed_rows_are_counted_where_they_would_be_lost(store: FeatureStore) -> None:
    store.push("ps", [{"k": number, "ts": T0, "x": number} for number in range(500)])
    assert status(store.workspace)[0].offline_rows == 502
    plan = store.plan(definitions(G))
    assert "502 offline rows" in "\n".join(line.text for line in explain(plan))
