"""The lease of a view: one run at a time, who holds it is told, a dead or lost one does no harm."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.clock import ManualClock
from support.materialized import ExpectedLog, Sale, day, expected_online, log_rows, online_rows, sales_view, write_sales
from support.processes import plain_environment
from support.projects import make_workspace

from featurestore import FeatureStore
from featurestore.errors import LeaseHeldError
from featurestore.ledger import leases, processes
from featurestore.ledger.leases import KIND, LEASE_US, PROCESS_KIND, LeaseState, Timer, holding, read_lease
from featurestore.ledger.processes import Process, own_process
from featurestore.ledger.runs import all_runs, runs
from featurestore.materialization import materialize_incremental
from featurestore.steps import Event, listening
from featurestore.workspace import Workspace

pytestmark = pytest.mark.counts_processes

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


class HandTimer:
    """A monotonic clock that only sleeping moves; ``asleep`` runs after each sleep."""

    def __init__(self, asleep: Callable[[float], None] = lambda seconds: None) -> None:
        self.seconds = 1000.0
        self.asleep = asleep

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        self.asleep(self.seconds)

    @property
    def timer(self) -> Timer:
        return Timer(lambda: self.seconds, self.sleep)


def clock_of(workspace: Workspace) -> ManualClock:
    assert isinstance(workspace.clock, ManualClock)
    return workspace.clock


def _materialize(root: str, barrier: Any, results: Any) -> None:
    with FeatureStore(root, clock=ManualClock(NOW)) as store:
        barrier.wait()
        (run,) = materialize_incremental(store.workspace)
        results.put((run.state, run.appended, run.error))


@pytest.mark.uncounted
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
    until = "it is taken over when that process ends, or 60 seconds after its last sign of life"
    assert run.state == "failed"
    assert who in (run.error or "")
    assert until.removeprefix("it is ") in (run.error or "")
    assert f"wait for the run of {VIEW} by {who}; {until}" in {event.title for event in heard}
    assert log_rows(workspace) == []
    assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["failed"]
    (run,) = materialize_incremental(workspace, wait_seconds=0.2)
    assert (run.state, run.appended) == ("done", len(SALES))


@pytest.mark.uncounted
def test_a_lease_is_followed_when_it_has_not_moved_for_a_minute_of_the_waiters_own_clock(workspace: Workspace) -> None:
    block = held(workspace)
    block.__enter__()  # and never moves again, as in a thread that hangs
    clock_of(workspace).advance(EXPIRES * 1000)  # what the clocks of walls say does not matter
    with pytest.raises(LeaseHeldError), held(workspace, "second", wait_seconds=59.9, timer=HandTimer().timer):
        pass
    hand = HandTimer()
    with held(workspace, "third", wait_seconds=70, timer=hand.timer):
        assert 1060 <= hand.seconds <= 1061
        block.__exit__(None, None, None)  # comes back from the dead: it must not free what others hold
        with pytest.raises(LeaseHeldError), held(workspace, "fourth", wait_seconds=0):
            pass
    with held(workspace, "fifth", wait_seconds=0):
        pass


DAY_US = 86_400_000_000


@pytest.mark.uncounted
@pytest.mark.parametrize("expires_us", [NOW - DAY_US, NOW + DAY_US])
def test_a_lease_of_another_machine_or_an_older_version_is_judged_by_whether_it_moves(
    workspace: Workspace, expires_us: int
) -> None:
    lease = LeaseState("far", "elsewhere", 7, NOW - DAY_US, expires_us)
    workspace.ledger.append("shop", KIND, VIEW, asdict(lease))
    with pytest.raises(LeaseHeldError) as caught, held(workspace, wait_seconds=59, timer=HandTimer().timer):
        pass
    assert "process 7 on elsewhere" in caught.value.message
    assert "taken over 60 seconds after its last sign of life" in caught.value.hint

    def renew(seconds: float) -> None:
        if seconds % 20 == 0 and seconds < 1500:  # by a clock that jumps about
            jumped = replace(lease, expires_us=expires_us + round(seconds - 1250) * DAY_US)
            workspace.ledger.append("shop", KIND, VIEW, asdict(jumped))

    hand = HandTimer(renew)
    with held(workspace, "next", wait_seconds=600, timer=hand.timer):
        assert 1480 + 60 <= hand.seconds <= 1480 + 61


HOLDER = """
import sys, threading
from pathlib import Path
from featurestore import FeatureStore
from featurestore.materialization.jobs import _started
from featurestore.ledger.leases import holding
from featurestore.ledger.runs import record_start
from support.clock import ManualClock

with FeatureStore(sys.argv[1], clock=ManualClock(int(sys.argv[2]))) as store:
    workspace = store.workspace
    run = _started(workspace, workspace.snapshot().views["shop_sales"], "incremental", dry_run=False)
    with holding(workspace.ledger, "shop", "shop_sales", holder=run.run_id, clock=workspace.clock):
        record_start(workspace.ledger, "shop", run)
        print("held", flush=True)
        threading.Event().wait()
"""


@contextmanager
def holding_process(workspace: Workspace, now_us: int) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds the lease, as a run does that is under way; the block may kill it."""
    (workspace.root / "feature_store.yaml").write_text("project: shop\n")
    command = [sys.executable, "-c", HOLDER, str(workspace.root), str(now_us)]
    environment = {**plain_environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def states(workspace: Workspace) -> list[str]:
    return [run.state for run in all_runs(workspace.ledger, "shop", now_us=workspace.clock())]


def end(process: subprocess.Popen[str], *, reap: bool) -> None:
    """Kill a process; without ``reap`` it stays a zombie, whose number is not free."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reap:
        process.wait()


@pytest.mark.uncounted
@pytest.mark.parametrize("reap", [True, False])
def test_a_killed_process_of_this_machine_is_followed_at_once(workspace: Workspace, reap: bool) -> None:
    with holding_process(workspace, NOW + DAY_US) as process:  # its clock was a day ahead
        with pytest.raises(LeaseHeldError, match=f"process {process.pid} on"), held(workspace, wait_seconds=0):
            pass
        end(process, reap=reap)
        (run,) = materialize_incremental(workspace, wait_seconds=0)
    assert (run.state, run.appended) == ("done", len(SALES))
    assert states(workspace) == ["killed", "done"]


def test_a_run_is_killed_as_soon_as_its_process_is(workspace: Workspace) -> None:
    with holding_process(workspace, NOW) as process:
        assert states(workspace) == ["running"]
        process.send_signal(signal.SIGSTOP)  # it hangs, but may go on
        assert states(workspace) == ["running"]
        with pytest.raises(LeaseHeldError), held(workspace, wait_seconds=0):
            pass
        end(process, reap=False)
        assert states(workspace) == ["killed"]


@pytest.fixture(scope="module")
def gone() -> Process:
    """A process of this machine that has ended."""
    own = own_process()
    assert own is not None
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return replace(own, pid=process.pid)


def leave_lease(workspace: Workspace, holder: str, *said: dict[str, Any]) -> None:
    """Write a lease that is held, after what its holder and others said of themselves."""
    for document in said:
        workspace.ledger.append("shop", PROCESS_KIND, VIEW, document)
    lease = LeaseState(holder, socket.gethostname(), 7, NOW, NOW + LEASE_US)
    workspace.ledger.append("shop", KIND, VIEW, asdict(lease))


@pytest.mark.parametrize(
    "other", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}, {"host": "elsewhere"}, {"holder": "another"}]
)
def test_only_a_process_that_is_known_to_be_gone_is_followed_at_once(
    workspace: Workspace, gone: Process, other: dict[str, str]
) -> None:
    said = {"holder": "killed", **asdict(gone)}
    leave_lease(workspace, "killed", {**said, **other})
    with pytest.raises(LeaseHeldError), held(workspace, wait_seconds=0):
        pass
    leave_lease(workspace, "killed", said, {**said, "holder": "lost the race for the lease"})
    with held(workspace, wait_seconds=0):
        pass


def test_what_a_newer_version_says_of_its_process_is_left_aside(workspace: Workspace, gone: Process) -> None:
    said = {"holder": "killed", **asdict(gone)}
    leave_lease(workspace, "killed", {name: value for name, value in said.items() if name != "started_ticks"})
    with pytest.raises(LeaseHeldError), held(workspace, wait_seconds=0):
        pass
    leave_lease(workspace, "killed", {**said, "cpu": 3})
    with held(workspace, wait_seconds=0):
        pass


def test_a_number_that_was_given_to_another_process_does_not_keep_the_lease() -> None:
    own = own_process()
    assert own is not None
    assert not own.is_gone()
    assert replace(own, started_ticks=own.started_ticks - 1).is_gone()


def test_where_the_system_tells_nothing_of_processes_the_lease_has_to_stand_still(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_BOOT_ID", tmp_path / "not here")
    block = held(workspace)
    block.__enter__()
    assert workspace.ledger.scan("shop", PROCESS_KIND) == []
    with pytest.raises(LeaseHeldError) as caught, held(workspace, "second", wait_seconds=0):
        pass
    assert "that process" not in caught.value.hint
    with held(workspace, "third", wait_seconds=61, timer=HandTimer().timer):
        pass
    block.__exit__(None, None, None)


def test_older_versions_read_the_lease_as_ever(workspace: Workspace) -> None:
    with held(workspace):
        entry = workspace.ledger.latest("shop", KIND, VIEW)
        assert entry is not None
        assert entry.document == {
            "holder": "other",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since_us": NOW,
            "expires_us": NOW + LEASE_US,
            "released": False,
        }
    assert len(workspace.ledger.scan("shop", KIND, key=VIEW)) == 2
    assert len(workspace.ledger.scan("shop", PROCESS_KIND, key=VIEW)) == 1


@pytest.mark.parametrize("wakes_by", ["clock", "monotonic clock"])
def test_a_holder_that_slept_notices_before_it_commits(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, wakes_by: str
) -> None:
    own = HandTimer()
    monkeypatch.setitem(holding.__wrapped__.__kwdefaults__, "timer", own.timer)  # type: ignore[attr-defined]
    stage = type(workspace.engine.log).stage
    other: list[Any] = []

    def slow(self: Any, request: Any) -> Any:
        staged = stage(self, request)
        if not other:
            if wakes_by == "clock":
                clock_of(workspace).advance(EXPIRES)
            else:
                own.seconds += 60
            other.append(held(workspace, "second", wait_seconds=61, timer=HandTimer().timer))
            other[0].__enter__()
        return staged

    monkeypatch.setattr(type(workspace.engine.log), "stage", slow)
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


@pytest.mark.parametrize(("ahead_us", "state"), [(5_000_000, "running"), (5_000_001, "killed"), (DAY_US, "killed")])
def test_a_run_of_another_machine_whose_clock_is_far_ahead_is_not_believed(
    workspace: Workspace, ahead_us: int, state: str
) -> None:
    from featurestore.ledger.runs import record_start
    from featurestore.materialization.jobs import _started

    run = replace(_started(workspace, workspace.snapshot().views[VIEW], "incremental", dry_run=False), host="far")
    record_start(workspace.ledger, "shop", run)
    lease = LeaseState(run.run_id, "far", 7, NOW + ahead_us, NOW + ahead_us + LEASE_US)
    workspace.ledger.append("shop", KIND, VIEW, asdict(lease))
    assert states(workspace) == [state]


def test_runs_that_ended_without_a_word_are_told_from_those_under_way(workspace: Workspace) -> None:
    from featurestore.ledger.runs import record_start
    from featurestore.materialization.jobs import _started

    registered = workspace.snapshot().views[VIEW]
    run = _started(workspace, registered, "incremental", dry_run=False)
    with held(workspace, run.run_id):
        record_start(workspace.ledger, "shop", run)
        assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["running"]
        later = NOW + LEASE_US
        assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=later)] == ["killed"]
    assert [known.state for known in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == ["killed"]


def test_the_last_run_is_the_last_in_the_ledger_whatever_its_clock_said(workspace: Workspace) -> None:
    clock = workspace.clock
    assert isinstance(clock, ManualClock)
    for now_us in (NOW + DAY_US, NOW):
        clock.now_us = now_us
        materialize_incremental(workspace)
    assert [run.started_us for run in runs(workspace.ledger, "shop", VIEW, now_us=NOW)] == [NOW, NOW + DAY_US]
