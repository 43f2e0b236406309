"""The server while Redis, its file, its registry or its clients fail: what is answered, and how it is well again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.faults import FaultProxy
from support.raw_http import BODY, REQUEST, connect, head, read_all, read_one
from support.redis_cluster import RedisCluster
from support.redis_server import RedisServer
from support.serving import Project, error_of, metric, serving, serving_here, small_project, until

from featurestore.online.redis.node import FAILURES_TO_LEAVE
from featurestore.server import run
from featurestore.server.http.protocol import DeadlineProtocol
from featurestore.server.read import breaker
from featurestore.server.read.breaker import FAILURES_TO_OPEN, PROBE_SECONDS
from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

READ_MS = 200
IN_TIME = 10 * READ_MS / 1000
"""Seconds within which an answer must be there, on a busy machine too."""

CUSTOMERS = range(100, 164)
OPEN = "featurestore_breaker_open"


def body_of(customer: int) -> dict[str, Any]:
    return {"features": ["fresh:clicks"], "entities": {"customer_id": [customer]}}


def ask(client: httpx.Client, customer: int) -> httpx.Response:
    return client.post("/v1/online-features", json=body_of(customer))


def clicks(customer: int) -> int:
    """Each customer's value is its own, so that a mixed-up answer is seen."""
    return 7 * customer


def put_customers(project: Project, now_us: int) -> None:
    project.put_all("fresh", [({"customer_id": one}, {"clicks": clicks(one)}) for one in CUSTOMERS], event_us=now_us)


def project_on(url: str, root: Path, *, read_timeout_ms: int = READ_MS) -> Project:
    project = Project(root, online_url=url, read_timeout_ms=read_timeout_ms)
    put_customers(project, system_clock())
    return project


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest.mark.parametrize("fault", ["hang", "reset", "garbage", "drip", "refuse"])
def test_reads_of_a_broken_redis_fail_in_time_leave_it_alone_and_use_it_again(
    tmp_path: Path, proxy: FaultProxy, fault: Any
) -> None:
    project = project_on(proxy.url, tmp_path / "repo")
    with serving_here(project.workspace()) as client:
        until(lambda: ask(client, CUSTOMERS[0]).status_code == 200)
        proxy.fault = fault
        if fault == "refuse":
            proxy.cut()
        for customer in CUSTOMERS[: FAILURES_TO_OPEN + 5]:
            started = time.monotonic()
            response = ask(client, customer)
            assert time.monotonic() - started < IN_TIME
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert error_of(response)["type"] == "online_store_unavailable"
        assert metric(client, "featurestore_breaker_openings_total") >= 1
        assert client.get("/health").status_code == 200
        if fault != "drip":  # which lets a ping pass
            assert metric(client, OPEN) == 1
            assert client.get("/ready").status_code == 503
            failed = metric(client, "featurestore_online_store_errors_total")
            assert [ask(client, customer).status_code for customer in CUSTOMERS[:20]] == [503] * 20
            assert metric(client, "featurestore_online_store_errors_total") == failed  # it was not asked
        proxy.fault = "none"
        until(lambda: metric(client, OPEN) == 0, seconds=10)  # by itself: nobody reads
        assert client.get("/ready").status_code == 200
        for customer in CUSTOMERS:
            assert ask(client, customer).json()["rows"] == [[clicks(customer)]]


def test_another_reason_is_told_while_redis_is_left_alone(
    tmp_path: Path, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    project = project_on(proxy.url, tmp_path / "repo")
    with serving_here(project.workspace()) as client:
        until(lambda: ask(client, CUSTOMERS[0]).status_code == 200)
        proxy.fault = "hang"
        until(lambda: ask(client, CUSTOMERS[0]).status_code == 503 and metric(client, OPEN) == 1)
        assert "did not answer within" in caplog.text
        proxy.fault = "refuse"
        proxy.cut()
        until(lambda: "still left alone: " in caplog.text)
        told = caplog.text.count("still left alone: ")
        time.sleep(2 * PROBE_SECONDS)
        assert caplog.text.count("still left alone: ") == told  # the same reason is told once


def test_a_redis_that_is_away_is_told_where_nobody_reads(
    tmp_path: Path,
    start_redis: Callable[..., RedisServer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(breaker, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(breaker, "TELL_SECONDS", 0.1)
    redis = start_redis()
    project = project_on(redis.url, tmp_path / "repo")
    with serving_here(project.workspace()) as client:
        redis.hang()
        until(lambda: metric(client, OPEN) == 1)
        assert metric(client, "featurestore_online_store_errors_total") >= FAILURES_TO_OPEN
        until(lambda: caplog.text.count("still left alone: ") >= 2)
        redis.resume()
        until(lambda: metric(client, OPEN) == 0)


def test_a_slow_redis_delays_or_fails_and_never_confuses(tmp_path: Path, proxy: FaultProxy) -> None:
    project = project_on(proxy.url, tmp_path / "repo")
    proxy.delay_seconds, proxy.fault = 2 * READ_MS / 1000, "delay"
    counts = {200: 0, 503: 0}
    enough = time.monotonic() + 30

    def read(number: int) -> None:
        dice = random.Random(number)
        with httpx.Client(base_url=base_url, timeout=IN_TIME) as own:
            while min(counts.values()) < 20 and time.monotonic() < enough:
                customer = dice.choice(CUSTOMERS)
                response = ask(own, customer)
                if response.status_code == 200:
                    assert response.json()["rows"] == [[clicks(customer)]]
                else:
                    time.sleep(0.05)
                counts[response.status_code] += 1

    with serving_here(project.workspace()) as client, ThreadPoolExecutor(8) as pool:
        base_url = client.base_url
        list(pool.map(read, range(8)))
    assert min(counts.values()) >= 20


def test_a_redis_that_answers_pings_and_refuses_reads_is_not_ready(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    redis = start_redis()
    project = project_on(redis.url, tmp_path / "repo")
    with serving_here(project.workspace()) as client, redis.client() as admin:
        assert client.get("/ready").status_code == 200
        admin.execute_command("ACL", "SETUSER", "default", "-mget")
        for customer in CUSTOMERS[:FAILURES_TO_OPEN]:
            assert ask(client, customer).status_code == 503
        ends = time.monotonic() + 4 * PROBE_SECONDS
        while time.monotonic() < ends:
            assert ask(client, CUSTOMERS[0]).status_code == 503
            assert client.get("/ready").status_code == 503
        assert metric(client, OPEN) == 1
        assert metric(client, f"{OPEN}ings_total") == 1
        admin.execute_command("ACL", "SETUSER", "default", "+mget")
        until(lambda: client.get("/ready").status_code == 200)
        until(lambda: ask(client, CUSTOMERS[0]).status_code == 200)


@pytest.mark.slow(10)
def test_a_primary_that_hangs_takes_nothing_from_the_others(tmp_path: Path) -> None:
    with RedisCluster(tmp_path / "cluster", "--cluster-node-timeout", "60000") as cluster:
        project = project_on(cluster.url, tmp_path / "repo")
        victim = cluster.primaries()[0]
        owners = {customer: cluster.owner(f"fs:shop:fresh:{{{customer}}}".encode()).port for customer in CUSTOMERS}
        away = [customer for customer in CUSTOMERS if owners[customer] == victim.port]
        there = [customer for customer in CUSTOMERS if customer not in away]
        assert len(away) > FAILURES_TO_LEAVE
        with serving_here(project.workspace()) as client:
            until(lambda: all(ask(client, customer).status_code == 200 for customer in CUSTOMERS))
            victim.hang()
            for customer in away:
                assert ask(client, customer).status_code == 503
            took = []
            for _ in range(3):
                for customer in there:
                    assert ask(client, customer).json()["rows"] == [[clicks(customer)]]
                for customer in away:
                    started = time.monotonic()
                    assert ask(client, customer).status_code == 503
                    took.append(time.monotonic() - started)
            assert sorted(took)[len(took) // 2] < READ_MS / 2000  # most are refused without waiting
            assert client.get("/ready").status_code == 200
            assert metric(client, OPEN) == 0
            victim.resume()
            until(lambda: all(ask(client, customer).status_code == 200 for customer in CUSTOMERS))


def test_thousands_of_clients_that_leave_change_no_others_answer(tmp_path: Path, proxy: FaultProxy) -> None:
    project = project_on(proxy.url, tmp_path / "repo", read_timeout_ms=5_000)
    proxy.delay_seconds = 0.005
    dice = random.Random(5)
    leavers, answered = 2_000, 0

    def request_of(customer: int) -> bytes:
        content = REQUEST.replace(b"[1]", b"[%d]" % customer)
        return head(len(content)) + content

    async def leave(url: httpx.URL, gate: asyncio.Semaphore) -> None:
        async with gate:
            _, writer = await asyncio.open_connection(url.host, url.port)
            whole = request_of(dice.choice(CUSTOMERS)) * dice.choice((1, 1, 3))
            writer.write(whole if dice.random() < 0.8 else whole[: dice.randrange(len(whole))])
            await writer.drain()
            await asyncio.sleep(dice.random() * 0.02)
            writer.transport.abort()

    async def stay(url: httpx.URL, leaving: asyncio.Event) -> int:
        reader, writer = await asyncio.open_connection(url.host, url.port)
        right = 0
        while not leaving.is_set() or right < 20:
            customer = dice.choice(CUSTOMERS)
            writer.write(request_of(customer))
            lines = await reader.readuntil(b"\r\n\r\n")
            length = int(lines.partition(b"content-length: ")[2].split(b"\r\n")[0])
            answer = await reader.readexactly(length)
            assert lines.startswith(b"HTTP/1.1 200 "), answer
            assert b'"rows":[[%d]]' % clicks(customer) in answer
            right += 1
        writer.close()
        return right

    async def scenario(url: httpx.URL) -> int:
        done, gate = asyncio.Event(), asyncio.Semaphore(60)
        staying = [asyncio.create_task(stay(url, done)) for _ in range(8)]
        await asyncio.gather(*(leave(url, gate) for _ in range(leavers)))
        done.set()
        return sum(await asyncio.gather(*staying))

    with serving(project.root) as server, server.client() as client:
        assert ask(client, 100).json()["rows"] == [[clicks(100)]]
        before = server.descriptors
        proxy.fault = "delay"
        answered = asyncio.run(scenario(httpx.URL(server.url)))
        proxy.fault = "none"
        # Of connections to Redis there may be a few more than before, of left clients none.
        until(lambda: server.descriptors <= before + 10, seconds=20)
        assert metric(client, "featurestore_online_store_errors_total") == 0
    assert answered >= 8 * 20


def test_failures_cost_no_memory_and_no_descriptors(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    redis = start_redis()
    project = project_on(redis.url, tmp_path / "repo")
    answer_end = b"}}}"

    def fail(count: int) -> None:
        with connect(server.url) as connection:
            for _ in range(count // 50):
                connection.sendall((head(len(REQUEST)) + REQUEST) * 50)
                answers = b""
                while answers.count(answer_end) < 50:
                    answers += connection.recv(1 << 20)
                assert answers.count(b"HTTP/1.1 503 ") == 50

    with serving(project.root, fresh=True) as server, server.client() as client:
        redis.kill()
        fail(500)
        memory, descriptors = server.resident_bytes, server.descriptors
        for _ in range(3):
            fail(1_000)
            redis.restart()
            until(lambda: ask(client, 100).status_code == 200, seconds=10)
            redis.kill()
            until(lambda: ask(client, 100).status_code == 503)
        fail(1_000)
        assert server.descriptors <= descriptors + 2
        assert server.resident_bytes - memory < 10_000_000
        redis.restart()
        put_customers(project, system_clock())
        until(lambda: metric(client, OPEN) == 0, seconds=10)
        assert ask(client, 101).json()["rows"] == [[clicks(101)]]


def test_an_evicting_redis_is_told_at_start_and_what_it_evicted_reads_not_found(
    tmp_path: Path, start_redis: Callable[..., RedisServer], caplog: pytest.LogCaptureFixture
) -> None:
    redis = start_redis("--maxmemory", "4mb", "--maxmemory-policy", "allkeys-random")
    project = Project(tmp_path / "repo", online_url=redis.url)
    now_us = system_clock()
    everyone = range(40_000)
    project.put_all("fresh", [({"customer_id": n}, {"clicks": 7 * n}) for n in everyone], event_us=now_us)
    with serving_here(project.workspace()) as client:
        until(lambda: "maxmemory-policy is allkeys-random" in caplog.text)
        found = {"PRESENT": 0, "NOT_FOUND": 0}
        for start in range(0, len(everyone), 1_000):
            asked = list(everyone[start : start + 1_000])
            body = {"features": ["fresh:clicks"], "entities": {"customer_id": asked}}
            answer = client.post("/v1/online-features", json=body).json()
            for customer, (value,), (status,) in zip(asked, answer["rows"], answer["status"], strict=True):
                assert value == (7 * customer if status == "PRESENT" else 0)  # the field's default
                found[status] += 1
    assert min(found.values()) > 100
    assert sum(found.values()) == len(everyone)


def test_a_redis_that_keeps_everything_is_not_spoken_of(
    tmp_path: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    project = project_on(redis_url, tmp_path / "repo")
    with serving_here(project.workspace()) as client:
        assert ask(client, 100).status_code == 200
    assert "maxmemory" not in caplog.text


def test_a_damaged_file_is_told_to_the_operator_and_replaced_under_the_running_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    folder = project.root / "data" / "online"
    os.truncate(folder / "data.mdb", 8_192 + 100)
    with serving_here(project.workspace()) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        found = client.head("/ready")
        assert (found.status_code, found.content, found.headers["retry-after"]) == (503, b"", "1")
        response = ask(client, 1)
        assert response.status_code == 500
        assert error_of(response)["type"] == "damaged_record"
        assert str(folder) not in response.text
        assert "fs materialize --republish --authoritative" in caplog.text
        shutil.rmtree(folder)
        project.put("fresh", {"customer_id": 1}, {"clicks": 7}, event_us=system_clock())
        until(lambda: ask(client, 1).status_code == 200, seconds=10)
        assert ask(client, 1).json()["rows"] == [[7]]
        assert client.get("/ready").status_code == 200


PLAIN = 'plain = FeatureService("plain", features=[fresh, routes])'
OTHER = 'plain = FeatureService("plain", features=[routes, fresh[["score"]]])'


def test_swaps_under_load_drop_and_mix_no_request(tmp_path: Path, redis_server: RedisServer, redis_url: str) -> None:
    with FaultProxy(redis_server.port, delay_seconds=0.03) as proxy:  # so that reads are under way when it swaps
        project = small_project(tmp_path / "repo", system_clock(), online_url=proxy.url, refresh="50ms")
        text = (project.root / "features.py").read_text()
        assert PLAIN in text
        body = {"feature_service": "plain", "entities": {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}}
        right = [
            {"names": ["clicks", "score", "miles"], "rows": [[7, 0.5, 2475]], "status": [["PRESENT"] * 3]},
            {"names": ["miles", "score"], "rows": [[2475, 0.5]], "status": [["PRESENT"] * 2]},
        ]
        seen = [0, 0]
        done = threading.Event()

        def hammer(_: int) -> None:
            with httpx.Client(base_url=base_url, timeout=30) as own:
                while not done.is_set():
                    response = own.post("/v1/online-features", json=body)
                    assert response.status_code == 200, response.text
                    seen[right.index(response.json())] += 1

        with serving_here(project.workspace()) as client, ThreadPoolExecutor(6) as pool:
            base_url = client.base_url
            proxy.fault = "delay"
            hammering = pool.map(hammer, range(6))
            try:
                for swap in range(1, 9):
                    (project.root / "features.py").write_text(text.replace(PLAIN, OTHER) if swap % 2 else text)
                    revision = project.apply()
                    until(lambda: metric(client, "featurestore_snapshot_revision") == revision)  # noqa: B023 - called within this turn
                    enough = seen[swap % 2] + 10
                    until(lambda: seen[swap % 2] >= enough)  # noqa: B023 - called within this turn
            finally:
                done.set()
            assert list(hammering) == [None] * 6
        assert min(seen) >= 40


def test_sigterm_lets_all_requests_under_way_finish_and_takes_no_more(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    redis = start_redis()
    project = project_on(redis.url, tmp_path / "repo", read_timeout_ms=15_000)
    with serving(project.root) as server, server.client() as client:
        assert ask(client, 100).status_code == 200
        connections = [connect(server.url) for _ in range(20)]
        for connection in connections:  # each is accepted
            connection.sendall(head(len(REQUEST)) + REQUEST)
            read_one(connection)
        redis.hang()
        for customer, connection in zip(CUSTOMERS, connections, strict=False):
            content = REQUEST.replace(b"[1]", b"[%d]" % customer)
            connection.sendall(head(len(content)) + content)
        assert client.get("/health").status_code == 200  # it has read what came before
        server.process.terminate()
        until(lambda: not accepts(server.url))
        time.sleep(0.5)
        assert server.process.poll() is None
        redis.resume()
        for customer, connection in zip(CUSTOMERS, connections, strict=False):
            with connection:
                answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b'"rows":[[%d]]' % clicks(customer) in answer
        assert server.process.wait(timeout=20) == 0


def accepts(url: str) -> bool:
    try:
        connect(url).close()
    except ConnectionRefusedError:
        return False
    return True


def test_a_client_that_never_ends_its_request_does_not_keep_a_server_beyond_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.GRACE_SECONDS < 30  # what orchestrators usually wait before they kill
    monkeypatch.setattr(run, "GRACE_SECONDS", 1)
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 120.0)
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client:
        stuck = [connect(client.base_url) for _ in range(3)]
        stuck[0].sendall(head(100) + b"{")
        stuck[1].sendall(head(100)[:30])
        stuck[2].sendall(head(len(REQUEST)) + REQUEST + head(100))
        assert client.post("/v1/online-features", json=BODY).status_code == 200
        started = time.monotonic()
    assert time.monotonic() - started < 15
    for connection in stuck:
        connection.close()
