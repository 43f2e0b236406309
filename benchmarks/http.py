"""Reads over HTTP: ``fs serve`` beside a route that answers the records' bytes, and what a worker costs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import psutil
import redis

from benchmarks.context import Context
from benchmarks.load import Load, closed_loop, find_wrk, open_loop
from benchmarks.pairs import Pairs, measure
from benchmarks.projects import SERVICE, make_project, newest_rows, references, requests_of, wide_view
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView

PATH = "/v1/online-features"
WIDE_PATH = "/wide"
Start = Callable[[], AbstractContextManager["Server"]]

BODIES = 256
TAIL_PAIRS = 3
"""No target hangs on the tail, and each of its runs takes long."""

CONNECTIONS = (1, 16)
MOST_CONNECTIONS = CONNECTIONS[-1]
AT_LEAST = {1: 1.5, 100: 0.6}
FLAT = Target(at_least=0.95, at_most=1.05)


@dataclass(frozen=True)
class Server:
    url: str
    process: psutil.Process
    seconds_to_start: float

    @property
    def mib(self) -> float:
        """What the process holds that no other does."""
        return float(self.process.memory_full_info().uss) / 2**20

    @property
    def cpu_seconds(self) -> float:
        """What it has used so far: unlike requests a second, little changed by what else runs."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def run(context: Context) -> Iterator[Section]:
    """Measure one worker of both servers on one Redis."""
    find_wrk()
    workload = context.workload()
    folder = context.place("http")
    views = newest_rows(workload, folder)
    memory = _RedisMemory(context.redis_url)
    few = make_project(folder / "few", views, online_url=context.redis_url, unused_views=3)
    sizes = memory.bytes_per_record(views)
    wide = wide_view(folder, 200 if context.is_quick else 2_000)
    wide_root = make_project(folder / "wide", [wide], online_url=context.redis_url)
    # A project of its own: two registries may not publish the same view of one project.
    unused = 8 if context.is_quick else 498
    many = make_project(folder / "many", views, online_url=context.redis_url, project="many", unused_views=unused)
    bodies, wide_bodies = write_bodies(folder, views, 1), write_bodies(folder, [wide], 1)
    start_ours, start_floor = partial(running, few, bodies), partial(_running_floor, context, bodies)
    with start_floor() as floor, start_ours() as ours:
        first = {"ours": ours.mib, "floor": floor.mib}
        yield _throughput(context, folder, ours, floor, views)
        yield _tail(context, folder, ours, floor, views)
        costs = _costs(ours, floor, first)
        starts = Pairs(((ours.seconds_to_start, floor.seconds_to_start),))
    costs.rows += sizes
    if not context.is_quick:
        starts = measure(partial(_cold_start, start_ours), partial(_cold_start, start_floor), count=context.pairs)
    costs.rows.append(Row("cold start to the first answer", "s", starts))
    with start_floor() as floor, running(wide_root, wide_bodies) as ours:
        yield _wide(context, folder, ours, floor, wide)
    with start_ours() as ours, running(many, bodies) as other:
        yield _registry_size(context, folder, ours, other, views)
    yield costs


def _throughput(context: Context, folder: Path, ours: Server, floor: Server, views: Sequence[WorkloadView]) -> Section:
    section = Section(
        "HTTP /v1/online-features, with status, 1 worker",
        "Requests a second under wrk; n entities x 30 features of two views, asked by list but where said. The floor "
        "is a Starlette route that parses the request, does the MGET and answers the bytes as they are.",
    )
    for entities in _entity_counts(context):
        bodies = write_bodies(folder, views, entities)
        for connections in CONNECTIONS[-1:] if context.is_quick else CONNECTIONS:
            target = Target(at_least=AT_LEAST[entities]) if connections == MOST_CONNECTIONS else None
            row = _rates(context, _named(entities, connections), (ours, PATH), (floor, PATH), bodies, connections)
            section.rows.append(replace(row, target=target))
    if context.is_quick:
        return section
    bodies = write_bodies(folder, views, 1, service=True)
    name = _named(1, MOST_CONNECTIONS) + ", by feature service"
    section.rows.append(_rates(context, name, (ours, PATH), (floor, PATH), bodies, MOST_CONNECTIONS))
    return section


def _tail(context: Context, folder: Path, ours: Server, floor: Server, views: Sequence[WorkloadView]) -> Section:
    """Measure the 99th percentile at half of what each server can do, under requests that do not wait for it."""
    section = Section(
        "HTTP, 99th percentile at half of the peak load, 16 connections",
        "Open loop: requests are sent at random instants fixed beforehand (a Poisson process), and latency counts from "
        "those. Each server at half of its own peak.",
    )
    for entities in _entity_counts(context):
        bodies = write_bodies(folder, views, entities)
        lines = bodies.read_bytes().splitlines()
        rates = {server: _peak(context, server, bodies) / 2 for server in (ours, floor)}
        loads: dict[Server, Load] = {}

        def p99_ms(server: Server, lines: Sequence[bytes] = lines, rates: dict[Server, float] = rates) -> float:
            rate, seconds = rates[server], context.seconds * 3
            found = open_loop(server.url + PATH, lines, rate=rate, connections=MOST_CONNECTIONS, seconds=seconds)
            loads[server] = found  # noqa: B023 - called within this turn
            return found.p99_ms

        pairs = measure(partial(p99_ms, ours), partial(p99_ms, floor), count=min(context.pairs, TAIL_PAIRS))
        notes = [f"median {loads[server].p50_ms:.2g} ms at {rates[server]:,.0f}/s" for server in (ours, floor)]
        section.rows.append(Row(entities_named(entities), "ms", pairs, note=f"{notes[0]}, the floor's {notes[1]}"))
    return section


def _wide(context: Context, folder: Path, ours: Server, floor: Server, view: WorkloadView) -> Section:
    section = Section("HTTP, one view with 200 features, 1 worker", "The same, all 200 floats of one view.")
    for entities in _entity_counts(context):
        bodies = write_bodies(folder, [view], entities)
        name = _named(entities, MOST_CONNECTIONS)
        section.rows.append(_rates(context, name, (ours, PATH), (floor, WIDE_PATH), bodies, MOST_CONNECTIONS))
    return section


def _registry_size(context: Context, folder: Path, few: Server, many: Server, views: Sequence[WorkloadView]) -> Section:
    section = Section(
        "HTTP, 500 views in the registry beside 5",
        "Both are ours: requests a second with 500 views (as ours) and with 5 (as floor).",
    )
    for entities in _entity_counts(context):
        bodies = write_bodies(folder, views, entities)
        name = _named(entities, MOST_CONNECTIONS)
        row = _rates(context, name, (many, PATH), (few, PATH), bodies, MOST_CONNECTIONS)
        section.rows.append(replace(row, target=FLAT))
    return section


def _costs(ours: Server, floor: Server, first: dict[str, float]) -> Section:
    section = Section("What serving costs", "Memory is what the process alone holds (USS); records are workload m's.")
    section.rows += [
        Row("memory of a worker, before load", "MiB", Pairs(((first["ours"], first["floor"]),))),
        Row("memory of a worker, after load", "MiB", Pairs(((ours.mib, floor.mib),))),
    ]
    return section


def _cold_start(start: Start) -> float:
    with start() as server:
        return server.seconds_to_start


def _rates(
    context: Context, name: str, asked: tuple[Server, str], floor: tuple[Server, str], bodies: Path, connections: int
) -> Row:
    """Return a row of requests a second of two servers and paths, in turn, with what a request costs each."""
    costs_us: dict[Server, list[float]] = {asked[0]: [], floor[0]: []}

    def rate(server: Server, path: str) -> float:
        before_s = server.cpu_seconds
        load = closed_loop(server.url + path, bodies, connections=connections, seconds=context.seconds)
        costs_us[server].append((server.cpu_seconds - before_s) / load.requests * 1e6)
        return load.requests_per_second

    pairs = measure(partial(rate, *asked), partial(rate, *floor), count=context.pairs)
    ours_us, floor_us = (median(found) for found in costs_us.values())
    return Row(name, "requests/s", pairs, note=f"{ours_us:,.0f} µs of CPU a request, the floor {floor_us:,.0f}")


def _peak(context: Context, server: Server, bodies: Path) -> float:
    seconds = context.seconds
    return closed_loop(server.url + PATH, bodies, connections=MOST_CONNECTIONS, seconds=seconds).requests_per_second


def write_bodies(folder: Path, views: Sequence[WorkloadView], entities: int, *, service: bool = False) -> Path:
    """Write different request bodies, one a line, for all features of the views."""
    asked = {"feature_service": SERVICE} if service else {"features": references(views)}
    lines = [
        json.dumps({**asked, "entities": entity_rows}, separators=(",", ":"))
        for entity_rows in requests_of(views, entities, BODIES)
    ]
    path = folder / f"bodies_{len(views)}_{entities}_{'service' if service else 'list'}"
    path.write_text("\n".join(lines) + "\n")
    return path


class _RedisMemory:
    """What records cost in an emptied Redis."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._client.flushall()
        self._before = self._used()

    def _used(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def bytes_per_record(self, views: Sequence[WorkloadView]) -> list[Row]:
        """Return a row for each view, as Redis counts a key, and one for all memory."""
        total = self._used() - self._before
        rows, records = [], 0
        for view in views:
            keys = list(self._client.scan_iter(f"fs:*:{view.name}:{{*", count=1_000))
            records += len(keys)
            some = keys[:: max(1, len(keys) // 500)]
            used = sum(int(self._client.memory_usage(key) or 0) for key in some) / len(some)
            rows.append(Row(f"Redis, a record of {len(view.features)} features", "bytes", alone=used))
        self._client.close()
        return [*rows, Row("Redis, an entity's record, all its memory", "bytes", alone=total / records)]


@contextmanager
def running(root: Path, bodies: Path) -> Iterator[Server]:
    """Run `fs serve` on a project."""
    command = [str(Path(sys.executable).parent / "fs"), "serve", "--repo", str(root), "--port", "0", "--workers", "1"]
    with _process(command, bodies) as server:
        yield server


@contextmanager
def _running_floor(context: Context, bodies: Path) -> Iterator[Server]:
    with _process([sys.executable, "-m", "benchmarks.floor_server", context.redis_url], bodies) as server:
        yield server


@contextmanager
def _process(command: Sequence[str], bodies: Path) -> Iterator[Server]:
    """Run a server that prints its URL; its time to start ends with its first answer to a real request."""
    body = bodies.read_bytes().splitlines()[0]
    start = time.perf_counter()
    log_path = bodies.with_name("server.log")
    with log_path.open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{command} ended: {log_path.read_text()}")
        url = line.split()[-1]
        request = urllib.request.Request(url + PATH, body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{error.read().decode()}\n{log_path.read_text()}") from None
        yield Server(url, psutil.Process(process.pid), time.perf_counter() - start)
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def _entity_counts(context: Context) -> tuple[int, ...]:
    return (1,) if context.is_quick else (1, 100)


def entities_named(count: int) -> str:
    """Return ``1 entity``, ``100 entities``."""
    return f"{count} {'entity' if count == 1 else 'entities'}"


def _named(entities: int, connections: int) -> str:
    return f"{entities_named(entities)}, {connections} connection{'s' if connections > 1 else ''}"
