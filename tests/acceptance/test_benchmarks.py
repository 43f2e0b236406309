"""The benchmarks run, in their least version, and say what they should: their numbers are not looked at here."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.example import REPOSITORY
from support.forked_fs import forked_fs
from support.processes import plain_environment

from benchmarks.load import open_loop
from benchmarks.pairs import Pairs, measure
from benchmarks.report import Row, Section, Target, markdown


def run_benchmarks(tmp_path: Path, *names: str) -> str:
    """Run benchmarks and return the page they write."""
    page = tmp_path / "RESULTS.md"
    arguments = [*names, "--quick", "--pairs", "1", "--markdown", "--results", str(page)]
    code = f"import sys; sys.argv[1:] = {arguments!r}; from benchmarks.__main__ import main; main()"
    ((status, said),) = forked_fs().run_code(code, REPOSITORY)
    assert status == 0, said
    return page.read_text()


def rows_of(page: str, title: str) -> dict[str, list[str]]:
    """Return the rows of one section's table: name -> the other cells."""
    lines = page.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in rows[1:]}


@pytest.mark.slow(5)
def test_statistics_are_measured_beside_runs_without_them(tmp_path: Path) -> None:
    rows = rows_of(run_benchmarks(tmp_path, "statistics"), "Statistics of runs")
    assert set(rows) == {
        f"{what}, {where}" for what in ("a first run", "its CPU time") for where in ("LMDB", "offline only")
    }


@pytest.mark.slow(6)
def test_checks_are_measured_beside_runs_without_rules(tmp_path: Path) -> None:
    rows = rows_of(run_benchmarks(tmp_path, "checks"), "Checks of runs")
    what = [f"{what}, {how}" for how in ("warn", "quarantine") for what in ("a first run", "its CPU time")]
    assert set(rows) == {f"{each}, {where}" for each in what for where in ("LMDB", "offline only")}


@pytest.mark.slow(12)
def test_training_sets_and_publishing_are_measured_beside_their_floors(tmp_path: Path) -> None:
    page = run_benchmarks(tmp_path, "training-set", "publish")
    assert "cores" in page
    assert "duckdb" in page
    assert "get_historical_features, write_parquet" in rows_of(page, "Training set, workload m")
    assert "Arrow batches in memory to records online, beside compare-and-set by hand" in rows_of(
        page, "Publish to LMDB"
    )
    assert len(rows_of(page, "Publish to Redis")) == 3


@pytest.mark.slow(6)
def test_the_catalogs_pages_and_its_search_are_measured(tmp_path: Path) -> None:
    page = run_benchmarks(tmp_path, "catalog")
    assert len(rows_of(page, "The catalog, search")) == 4
    assert {"home", "/features", "/feature_view/wide", "/compare/1/21"} <= rows_of(page, "The catalog, pages").keys()


def test_a_user_runs_one_that_is_named(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks", "startup", "--quick", "--pairs", "1", "--markdown"]
    done = subprocess.run(
        [*command, "--results", str(page)], capture_output=True, text=True, check=False, env=plain_environment()
    )
    assert done.returncode == 0, done.stderr
    assert {"fs --help", "import featurestore"} == set(rows_of(page.read_text(), "Start-up"))


@pytest.mark.slow(11)
def test_growth_is_measured_beside_the_compacted_table(tmp_path: Path) -> None:
    page = run_benchmarks(tmp_path, "growth", "growth-events")
    for grown in ("4 pushes of one row", "3 daily runs"):
        assert len(rows_of(page, f"Growth: {grown}")) == 5
    assert "fs gc --dry-run" in rows_of(page, "Growth: 4 pushes of one event, windows")


@pytest.mark.slow(9)
def test_reads_are_measured_beside_their_floors(tmp_path: Path) -> None:
    page = run_benchmarks(tmp_path, "reads", "cluster", "parity", "monitor")
    beside = {name.partition(", beside ")[2] for name in rows_of(page, "Online reads in process, LMDB")}
    assert beside == {"bare gets", "gets and decoding", "the answer by hand", "redis-py's MGET"}
    for store in ("LMDB", "Redis", "Redis Cluster"):
        reads = rows_of(page, f"Online reads in process, {store}")
        assert {name.split()[0] for name in reads} == {"1", "10", "100"}
        assert all(ours and floor and ratio for ours, floor, ratio, *_ in reads.values())
    assert "nothing differs" in rows_of(page, "Parity")
    assert set(rows_of(page, "Monitor")) == {"30 features", "20 features"}


def says_that_it_needs_wrk(name: str) -> bool:
    """Tell whether wrk is missing, and see that a benchmark then says so."""
    if shutil.which("wrk") is not None:
        return False
    command = [sys.executable, "-m", "benchmarks", name, "--quick", "--pairs", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "apt-get install wrk" in result.stderr
    return True


@pytest.mark.slow(22)
def test_serving_is_measured_beside_its_floor(tmp_path: Path) -> None:
    if says_that_it_needs_wrk("http"):
        return
    page = run_benchmarks(tmp_path, "push", "http")
    assert len(rows_of(page, "Push to Redis, batches of 1,000 rows")) == 3
    assert rows_of(page, "Push over HTTP, one row, to='online'")
    assert "1 entity, 16 connections" in rows_of(page, "HTTP /v1/online-features, with status, 1 worker")
    assert rows_of(page, "HTTP, 99th percentile at half of the peak load, 16 connections")
    assert rows_of(page, "HTTP, one view with 200 features, 1 worker")
    assert rows_of(page, "HTTP, 500 views in the registry beside 5")
    costs = rows_of(page, "What serving costs")
    assert {"cold start to the first answer", "memory of a worker, after load"} < set(costs)
    assert costs["Redis, a record of 20 features"][0].endswith("bytes")


@pytest.mark.slow(17)
def test_windows_are_measured_beside_their_floors(tmp_path: Path) -> None:
    if says_that_it_needs_wrk("windows"):
        return
    page = run_benchmarks(tmp_path, "windows", "windows-10x", "windows-hot")
    assert {name.partition(",")[0] for name in rows_of(page, "Windowed training sets")} == {"S", "M", "D", "H"}
    assert "full publish, beside the bare GROUP BY" in rows_of(page, "Events to tiles, LMDB")
    for store in ("LMDB", "Redis"):
        reads = rows_of(page, f"Windows online, in process, {store}")
        assert {"1 entity, sparse", "100 entities, dense"} <= set(reads)
    assert "1 entity, 16 features" in rows_of(page, "Windows over HTTP, 1 worker, Redis")
    assert len(rows_of(page, "Pushes of events")) == 6
    for store in ("LMDB", "Redis"):
        record = rows_of(page, f"A million events pushed to one entity, {store}")["the record"]
        assert record[-1].endswith("allowed")
    assert "a training set of 100 rows" in rows_of(page, "20,000 events of one entity")
    assert "M x 10, 2,000 rows" in rows_of(page, "Windowed training set of ten times the events")


def test_pairs_take_turns() -> None:
    calls: list[str] = []

    def side(name: str, value: float) -> float:
        calls.append(name)
        return value

    pairs = measure(lambda: side("ours", 3.0), lambda: side("floor", 2.0), count=3)
    assert calls[2:] == ["ours", "floor", "floor", "ours", "ours", "floor"]
    assert pairs.values == ((3.0, 2.0),) * 3


@pytest.mark.parametrize(
    ("target", "value", "is_met"),
    [
        (Target(at_most=1.0), 1.05, True),
        (Target(at_most=1.0), 1.06, False),
        (Target(at_most=1.5), 1.51, False),
        (Target(at_least=0.6), 0.6, True),
        (Target(at_least=0.95, at_most=1.05), 0.94, False),
        (Target(at_most=0.1, of_difference=True), 0.1, True),
        (Target(at_most=1.0, of_difference=True), 1.05, False),
    ],
)
def test_only_a_ratio_of_one_is_rounded(target: Target, value: float, is_met: bool) -> None:
    assert target.is_met(value) is is_met


def test_a_page_tells_medians_of_the_pairs_own_ratios() -> None:
    pairs = Pairs(((2.0, 1.0), (3.0, 1.0), (8.0, 4.0)))
    section = Section("Work", "About.", [Row("a | b", "s", pairs, Target(at_most=1.5))])
    page = markdown([section, Section("Other", "")], ["today", "a fact"], "command")
    assert "| a \\| b | 3 s | 1 s | 2.00 (2.00-3.00) | ≤ 1.5 | MISSED |" in page
    assert "- a fact\n" in page
    # What is measured again takes the place of what it was; the rest stays, and says when it was measured.
    newer = markdown([replace(section, about="Again.")], ["tomorrow"], "other command", page)
    assert [line for line in newer.splitlines() if line.startswith("## ")] == ["## Work", "## Other"]
    assert "Again." in newer
    assert "About." not in newer
    assert newer.count("tomorrow, by `other command`.") == newer.count("today, by `command`.") == 1


@contextmanager
def stalling_server(seconds: float) -> Iterator[str]:
    """Give the URL of a server whose first answer takes long, while it answers nothing else."""
    loop = asyncio.new_event_loop()
    turn = asyncio.Lock()
    stalls = [seconds]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            await reader.readexactly(2)
            async with turn:
                await asyncio.sleep(stalls.pop() if stalls else 0)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    loop.call_soon_threadsafe(server.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.close()


def test_a_stall_is_felt_by_every_request_that_was_due_in_it() -> None:
    with stalling_server(0.5) as url:
        load = open_loop(url, [b"{}"], rate=200, connections=2, seconds=0.6)
    # A client that waits for an answer before it sends again would have seen two slow requests of 120.
    assert load.p50_ms > 100
    assert load.p99_ms > 400
