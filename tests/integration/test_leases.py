"""The lease of a view: one run at a time, who holds it is told, a dead or lost one does no harm."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.clock import ManualClock
from support.materialized import ExpectedLog, Sale, day, expected_online, log_rows, online_rows, sales_view, write_sales
from support.projects import make_workspace

from featurestore import FeatureStore
from featurestore.errors import LeaseHeldError
from featurestore.materialization import materialize_incremental
from featurestore.metadata import leases
from featurestore.metadata.leases import LEASE_US, holding, read_lease
from featurestore.metadata.runs import runs
from featurestore.metadata.workspace import Workspace
from featurestore.steps import Event, listening

NOW = day(20)
VIEW = "shop_sales"
SALES = [Sale(f"shop {number % 50}", day(number / 100), day(number / 100), number) for number in range(1500)]
EXPIRES = timedelta(microseconds=LEASE_US)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    write_sales(tmp_path / "sales.parquet", SALES)
    made = make_workspace(tmp_path, [sales_view()], now_us=NOW)
    yield made
    made.close()


def expected() -> ExpectedLog:
    log = ExpectedLog()
    log.read(SALES, day(0), NOW, NOW)
    return log


def held(workspace: Workspace, holder: str = "other", **options: Any) -> Any:
    return holding(workspace.ledger, "shop", VIEW, holder=holder, clock=workspace.clock, **options)


def clock_of(workspace: Workspace) -> ManualClock:
    assert isinstance(workspace.clock, ManualClock)
    return workspace.clock


def _materialize(root: str, barrier: Any, results: Any) -> None:
    with FeatureStore(root, clock=ManualClock(NOW)) as store:
        barrier.wait()
        (run,) = materialize_incremental(store.workspace)
        results.put((run.state, run.appended, run.error))


def test_runs_at_once_in_several_processes_do_it_once(workspace: Workspace) -> None:
    (workspace.root / "feature_store.yaml").write_text("project: shop\n")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    workers = [context.Process(target=_materialize, args=(str(workspace.root), barrier, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    outcomes = sorted(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert outcomes == [("done", 0, None), ("done", 0, None), ("done", len(SALES), None)]
    assert log_rows(workspace) == expected().rows
    assert online_rows(workspace) == expected_online(expected(), NOW)
    state, _ = read_lease(workspace.ledger, "shop", VIEW)
    assert state is not None
    assert state.released


def test_a_run_waits_says_for_whom_and_gives_up_in_time(workspace: Workspace) -> None:
    heard: list[Event] = []
    with held(workspace), listening(heard.append):
        (run,) = materialize_incremental(workspace, wait_seconds=0.2)
    who = f"process {os.getpid()} on {socket.gethostname()} since 2024-01-21T00:00:00Z"
    assert run.state == "failed"
    assert who in (run.error or "")
    assert "expires within 60 seconds" in (run.error or "")
    assert f"wait for the run of {VIEW} by {who}" in {event.title for event in heard}
    assert log_rows(workspace) == []
    assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["failed"]
    (run,) = materialize_incremental(workspace, wait_seconds=0.2)
    assert (run.state, run.appended) == ("done", len(SALES))


def test_the_lease_of_a_dead_holder_expires(workspace: Workspace) -> None:
    block = held(workspace)
    block.__enter__()  # and is never left: what a killed process does
    clock_of(workspace).advance(EXPIRES - timedelta(microseconds=1))
    with pytest.raises(LeaseHeldError), held(workspace, "second", wait_seconds=0):
        pass
    clock_of(workspace).advance(timedelta(microseconds=1))
    (run,) = materialize_incremental(workspace, wait_seconds=0)
    assert run.state == "done"
    block.__exit__(None, None, None)  # comes back from the dead: it must not free what others hold
    with held(workspace, "third", wait_seconds=0):
        pass


def test_a_holder_that_slept_notices_before_it_commits(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = type(workspace.engine).stage
    other: list[Any] = []

    def slow(self: Any, request: Any) -> Any:
        staged = stage(self, request)
        if not other:
            clock_of(workspace).advance(EXPIRES)
            other.append(held(workspace, "second", wait_seconds=0))
            other[0].__enter__()
        return staged

    monkeypatch.setattr(type(workspace.engine), "stage", slow)
    (run,) = materialize_incremental(workspace)
    assert run.state == "failed"
    assert "lost its lease to" in (run.error or "")
    assert log_rows(workspace) == []
    assert online_rows(workspace) == {}
    state, _ = read_lease(workspace.ledger, "shop", VIEW)
    assert state is not None
    assert (state.holder, state.released) == ("second", False)
    other[0].__exit__(None, None, None)
    (run,) = materialize_incremental(workspace)
    assert (run.state, run.appended) == ("done", len(SALES))


def test_a_lease_is_renewed_while_its_holder_works(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    with held(workspace) as lease:
        for _ in range(5):
            clock_of(workspace).advance(EXPIRES / 2)
            renewed = workspace.clock() + LEASE_US
            deadline = time.monotonic() + 30
            while (state := read_lease(workspace.ledger, "shop", VIEW)[0]) is None or state.expires_us < renewed:
                assert time.monotonic() < deadline
                time.sleep(0.005)
            with pytest.raises(LeaseHeldError), held(workspace, "second", wait_seconds=0):
                pass
            lease.check()


def test_an_expired_lease_that_nobody_took_is_taken_again(workspace: Workspace) -> None:
    with held(workspace) as lease:
        clock_of(workspace).advance(EXPIRES * 3)
        lease.check()
        with pytest.raises(LeaseHeldError), held(workspace, "second", wait_seconds=0):
            pass


def test_other_views_do_not_wait(workspace: Workspace) -> None:
    with held(workspace), holding(workspace.ledger, "shop", "other_view", holder="x", clock=workspace.clock):
        pass


def test_runs_that_ended_without_a_word_are_told_from_those_under_way(workspace: Workspace) -> None:
    from featurestore.materialization.jobs import _started
    from featurestore.metadata.runs import record_start

    registered = workspace.snapshot().views[VIEW]
    run = _started(workspace, registered, "incremental", dry_run=False)
    with held(workspace, run.run_id):
        record_start(workspace.ledger, "shop", run)
        assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["running"]
        later = NOW + LEASE_US
        assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=later)] == ["killed"]
    assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["killed"]
