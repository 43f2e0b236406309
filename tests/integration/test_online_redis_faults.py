"""Redis down, hung, cut off, answering nonsense, full: a typed error within a bounded time, never a wrong value."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import redis
import uvloop
from support.faults import FaultProxy
from support.materialized import START, Sale, day, online_rows, sales_view, write_sales
from support.projects import make_workspace
from support.redis_server import RedisServer

from featurestore import FeatureStore
from featurestore.errors import OnlineStoreFullError, OnlineStoreUnavailableError, SettingsError
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.doctor import examine
from featurestore.maintenance.status import status
from featurestore.materialization import materialize_incremental
from featurestore.online.interface import AsyncReader, Repair, Write, WriteResult
from featurestore.online.records.codec import version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.redis.node import (
    DRIVER_ERRORS,
    FAILURES_TO_LEAVE,
    LEFT_SECONDS,
    ReadConnections,
    checked_reply,
)
from featurestore.online.redis.store import BACKOFFS, RedisStore
from featurestore.online.redis.wire import open_wire
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.clocks import ClockWatch
from featurestore.server.watch.metrics import Metrics
from featurestore.testing.online_store import LAYOUT, record_of
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

NOW = system_clock()
READ_MS = 100
TOLERANCE = 10
"""A deadline may be missed by this factor on a busy machine; a minute, as by default, may not."""


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy) -> Iterator[RedisStore]:
    store = RedisStore(proxy.url, read_timeout_ms=READ_MS, write_timeout_ms=500, connect_timeout_ms=1_000)
    yield store
    store.close()


def records(count: int) -> list[Write]:
    return [record_of(NOW, x=number, entity=f"e{number}") for number in range(count)]


def eventually(action: Callable[[], object], seconds: float = 10) -> object:
    """Return what the action returns once it no longer fails."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except OnlineStoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.mark.parametrize("of", ["connections that fail", "connections that are lost"])
def test_however_many_connections_fail_the_next_ones_open(store: RedisStore, proxy: FaultProxy, of: str) -> None:
    """The connection pools of redis-py count each connection that was ever made against a limit of 100."""
    (write,) = records(1)
    proxy.fault = "refuse" if of == "connections that fail" else "none"
    for _ in range(130):
        proxy.cut()
        for ask in (store._node.writes.take, store._node.reads.take):
            with suppress(redis.ConnectionError):
                connection = ask()
                connection.disconnect()
    proxy.fault = "none"
    store.write([write], now_us=NOW)
    assert store.mget([write.key]) == [write.record]
    assert store.facts()["location"] == f"127.0.0.1:{proxy.port}/0"


@pytest.mark.parametrize("fault", ["hang", "reset", "garbage", "refuse"])
def test_a_fault_ends_reads_within_their_deadline_and_passes(store: RedisStore, proxy: FaultProxy, fault: str) -> None:
    writes = records(3)
    store.write(writes, now_us=NOW)
    keys = [write.key for write in writes]
    assert eventually(lambda: store.mget(keys)) == [write.record for write in writes]
    proxy.fault = fault
    if fault == "refuse":
        proxy.cut()
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(OnlineStoreUnavailableError, match=f"127.0.0.1:{proxy.port}"):
            store.mget(keys)
        assert time.monotonic() - start < TOLERANCE * READ_MS / 1000 + 1.0
    proxy.fault = "none"
    assert eventually(lambda: store.mget(keys)) == [write.record for write in writes]


@pytest.mark.parametrize("fault", ["hang", "reset", "garbage", "refuse", "drip"])
def test_a_fault_ends_asynchronous_reads_within_their_deadline_and_passes(
    store: RedisStore, proxy: FaultProxy, fault: str
) -> None:
    writes = records(30)
    store.write(writes, now_us=NOW)
    keys = [write.key for write in writes]

    async def read() -> None:
        reader = store.reader()
        await reader.check()
        proxy.fault = fault
        if fault == "refuse":
            proxy.cut()
        start = time.monotonic()
        answers = await asyncio.gather(*[reader.mget(keys) for _ in range(5)], return_exceptions=True)
        assert [type(answer) for answer in answers] == [OnlineStoreUnavailableError] * 5
        assert time.monotonic() - start < TOLERANCE * READ_MS / 1000
        if fault != "drip":  # in drops the seven bytes of a PONG arrive in time, thirty records do not
            with pytest.raises(OnlineStoreUnavailableError):
                await reader.check()
        proxy.fault = "none"
        deadline = time.monotonic() + 10
        while True:
            try:
                assert await reader.mget(keys) == [write.record for write in writes]
                break
            except OnlineStoreUnavailableError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        await reader.close()
        with pytest.raises(OnlineStoreUnavailableError):
            await reader.mget(keys)

    asyncio.run(read())


SOON = READ_MS / 1000 * 3


def refused_seconds(store: RedisStore, keys: list[bytes]) -> float:
    """Return how long a read took to fail."""
    begun = time.monotonic()
    with pytest.raises(OnlineStoreUnavailableError):
        store.mget(keys)
    return time.monotonic() - begun


def test_a_redis_that_hangs_costs_no_read_more_than_its_deadline(start_redis: Callable[..., RedisServer]) -> None:
    """A new connection says which client it is, and would wait a second for the answer, once for every read."""
    server = start_redis()
    store = RedisStore(f"{server.url}?client_name=us", read_timeout_ms=READ_MS)
    writes = records(3)
    keys = [write.key for write in writes]
    store.write(writes, now_us=NOW)
    assert store.mget(keys) == [write.record for write in writes]
    server.hang()
    took = sorted(refused_seconds(store, keys) for _ in range(FAILURES_TO_LEAVE + 20))
    assert took[-FAILURES_TO_LEAVE] < SOON
    assert took[10] < READ_MS / 2000  # it is left alone
    assert sum(took) < 4
    server.resume()
    assert eventually(lambda: store.mget(keys)) == [write.record for write in writes]
    assert [store.mget(keys) for _ in range(50)] == [[write.record for write in writes]] * 50
    store.close()


def test_threads_that_read_a_redis_that_hangs_are_told_soon_and_answered_again(
    start_redis: Callable[..., RedisServer],
) -> None:
    server = start_redis()
    store = RedisStore(f"{server.url}?client_name=us", read_timeout_ms=READ_MS)
    writes = records(3)
    keys = [write.key for write in writes]
    store.write(writes, now_us=NOW)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: store.mget(keys), range(100)))
        server.hang()
        took = sorted(pool.map(lambda _: refused_seconds(store, keys), range(200)))
        assert took[100] < READ_MS / 2000
        assert took[-20] < SOON
        server.resume()
        assert eventually(lambda: store.mget(keys))
        found = list(pool.map(lambda _: store.mget(keys), range(100)))
    assert found == [[write.record for write in writes]] * 100
    store.close()


def test_a_redis_that_hangs_from_the_start_costs_one_read_a_second(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    server.hang()
    store = RedisStore(f"{server.url}?client_name=us", read_timeout_ms=READ_MS)
    took = [refused_seconds(store, [b"key"]) for _ in range(10)]
    assert took[0] < 2
    assert sorted(took[1:])[-3] < SOON
    server.resume()
    assert eventually(lambda: store.mget([b"key"])) == [None]
    store.close()


@pytest.mark.parametrize("fault", ["hang", "garbage", "refuse"])
def test_a_fault_ends_writes_within_their_deadline(store: RedisStore, proxy: FaultProxy, fault: str) -> None:
    proxy.fault = fault
    calls: list[Callable[[], object]] = [
        lambda: store.write(records(5), now_us=NOW),
        lambda: store.repair([Repair(records(1)[0].key, version_of(NOW, NOW), None)], now_us=NOW),
        lambda: store.put(b"fs:p:v:schema:00", b""),
        lambda: store.delete(b"fs:p:"),
        lambda: list(store.scan(b"fs:p:")),
        store.facts,
    ]
    for call in calls:
        start = time.monotonic()
        with pytest.raises(OnlineStoreUnavailableError):
            call()
        assert time.monotonic() - start < 5


@pytest.mark.uncounted
def test_a_lost_connection_is_tried_again_and_every_record_arrives_once(
    redis_server: RedisServer, redis_url: str
) -> None:
    writes = records(20_000)
    with FaultProxy(redis_server.port) as proxy:
        store = RedisStore(proxy.url, read_timeout_ms=10_000, connect_timeout_ms=10_000, write_timeout_ms=10_000)
        done = threading.Event()

        def cut_now_and_then() -> None:
            for _ in range(BACKOFFS - 1):  # fewer than are tried again, however slow the machine is
                done.wait(0.05)
                proxy.cut()

        cutter = threading.Thread(target=cut_now_and_then)
        cutter.start()
        try:
            results = store.write(writes, now_us=NOW)
        finally:
            done.set()
            cutter.join()
        assert results == [WriteResult.WRITTEN] * len(writes)
        read = eventually(lambda: store.mget([write.key for write in writes]))
        assert read == [write.record for write in writes]
        store.close()


def test_down_at_start_and_coming_back(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    server.kill()
    store = RedisStore(server.url, read_timeout_ms=1_000, write_timeout_ms=500)
    with pytest.raises(OnlineStoreUnavailableError, match=f"127.0.0.1:{server.port}"):
        store.mget([b"fs:p:v:{a}"])
    with pytest.raises(OnlineStoreUnavailableError):
        store.write(records(1), now_us=NOW)
    server.restart()
    assert store.write(records(1), now_us=NOW) == [WriteResult.WRITTEN]
    # A restart forgets the script and every open connection; neither reaches the caller of a write or a read.
    server.restart()
    assert store.mget([records(1)[0].key]) == [None]
    assert store.write(records(1), now_us=NOW) == [WriteResult.WRITTEN]
    assert store.mget([records(1)[0].key]) == [records(1)[0].record]
    with server.client() as client:
        client.script_flush()
    assert store.write(records(3), now_us=NOW) == [WriteResult.WRITTEN] * 3
    server.hang()
    start = time.monotonic()
    with pytest.raises(OnlineStoreUnavailableError, match="did not answer"):
        store.mget([b"fs:p:v:{a}"])
    assert time.monotonic() - start < 5
    server.resume()
    assert eventually(lambda: store.mget([b"fs:p:v:{a}"])) == [None]
    store.close()


def test_a_connection_opened_too_late_serves_the_next_read(redis_server: RedisServer, redis_url: str) -> None:
    with FaultProxy(redis_server.port, delay_seconds=0.4) as proxy:
        proxy.fault = "delay"
        store = RedisStore(proxy.url, read_timeout_ms=5, connect_timeout_ms=5_000)

        async def read() -> None:
            reader = store.reader()
            with pytest.raises(OnlineStoreUnavailableError):
                await reader.mget([b"fs:p:v:{a}"])
            deadline = time.monotonic() + 10
            while True:
                await asyncio.sleep(0.1)
                proxy.fault = "none"
                try:
                    assert await reader.mget([b"fs:p:v:{a}"]) == [None]
                    break
                except OnlineStoreUnavailableError:
                    assert time.monotonic() < deadline
            await reader.close()

        asyncio.run(read())


@pytest.mark.uncounted
def test_cancelled_reads_never_meet_anothers_answer(redis_server: RedisServer, redis_url: str) -> None:
    writes = records(50)
    with FaultProxy(redis_server.port, delay_seconds=0.02) as proxy:
        store = RedisStore(proxy.url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
        store.write(writes, now_us=NOW)
        proxy.fault = "delay"
        outcomes = {"answered": 0, "cancelled": 0, "failed": 0}

        async def one(reader: AsyncReader, place: int) -> None:
            write = writes[place % len(writes)]
            try:
                async with asyncio.timeout(0.002 + (place % 13) * 0.002):
                    assert await reader.mget([write.key]) == [write.record]
                outcomes["answered"] += 1
            except TimeoutError:
                outcomes["cancelled"] += 1
            except OnlineStoreUnavailableError:
                outcomes["failed"] += 1

        async def read() -> None:
            reader = store.reader()
            await reader.check()
            for start in range(0, 1_500, 50):
                await asyncio.gather(*[one(reader, place) for place in range(start, start + 50)])
            proxy.fault = "none"
            deadline = time.monotonic() + 10
            for write in writes:
                while True:
                    try:
                        assert await reader.mget([write.key]) == [write.record]
                        break
                    except OnlineStoreUnavailableError:  # connections that were given up are still being opened
                        assert time.monotonic() < deadline
                        await asyncio.sleep(0.02)
            await reader.close()

        asyncio.run(read())
        store.close()
    assert outcomes["cancelled"] > 100
    assert outcomes["answered"] > 20


def test_failing_reads_leak_no_descriptor(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    store = RedisStore(server.url, read_timeout_ms=20, connect_timeout_ms=50)

    def open_descriptors() -> int:
        gc.collect()
        return len(list(Path("/dev/fd").iterdir()))

    async def read(times: int) -> None:
        reader = store.reader()
        for _ in range(times):
            with pytest.raises(OnlineStoreUnavailableError):
                await reader.mget([b"fs:p:v:{a}"])
        await reader.close()

    server.hang()
    asyncio.run(read(2))
    before = open_descriptors()
    asyncio.run(read(40))
    for _ in range(20):
        with pytest.raises(OnlineStoreUnavailableError):
            store.mget([b"fs:p:v:{a}"])
    assert open_descriptors() <= before + 2
    server.resume()


@pytest.mark.uncounted
def test_full_memory_names_the_limit_and_the_next_run_completes(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    store = RedisStore(server.url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
    encoder = RecordEncoder(LAYOUT)
    writes = [encoder.write([f"{'x' * 150}{number}"], NOW, None, [number, 1.0]) for number in range(60_000)]
    with pytest.raises(OnlineStoreFullError, match="maxmemory of 4194304 bytes"):
        store.write(writes, now_us=NOW)
    assert store.mget([writes[0].key]) == [writes[0].record]
    with server.client() as client:
        client.config_set("maxmemory", "200mb")
    assert store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * len(writes)
    assert store.facts()["maxmemory_policy"] == "noeviction"
    store.close()


def test_a_read_only_server_is_unavailable_for_writes(start_redis: Callable[..., RedisServer]) -> None:
    primary, replica = start_redis(), start_redis()
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
    store = RedisStore(replica.url, read_timeout_ms=10_000, connect_timeout_ms=10_000, write_timeout_ms=300)
    with pytest.raises(OnlineStoreUnavailableError):
        eventually(lambda: store.put(b"fs:p:v:schema:00", b"x"), seconds=1)
    store.close()


@pytest.mark.parametrize("refusal", ["READONLY", "MASTERDOWN", "NOREPLICAS"])
def test_writes_outlast_a_failover(start_redis: Callable[..., RedisServer], refusal: str) -> None:
    """What a server answers while it is not, or not yet, the primary passes within the deadline of writes."""
    server, other = start_redis(), start_redis()
    store = RedisStore(server.url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
    some = records(3_000)
    assert store.write(some[:1], now_us=NOW) == [WriteResult.WRITTEN]
    with server.client() as client:
        if refusal == "NOREPLICAS":
            client.config_set("min-replicas-to-write", 1)
        else:
            client.replicaof("127.0.0.1", other.port)
        if refusal == "MASTERDOWN":
            client.config_set("replica-serve-stale-data", "no")
            other.hang()

        def promote() -> None:
            client.config_set("min-replicas-to-write", 0)
            client.replicaof("NO", "ONE")

        promotion = threading.Timer(0.5, promote)
        promotion.start()
        start = time.monotonic()
        assert store.write(some, now_us=NOW) == [WriteResult.WRITTEN] * len(some)
        assert time.monotonic() - start > 0.4
        promotion.join()
    assert store.get([write.key for write in some]) == [write.record for write in some]
    store.close()


def test_writes_go_to_the_new_primary_behind_the_same_address(start_redis: Callable[..., RedisServer]) -> None:
    """However many connections to the old one are open: it lives on, as a replica."""
    old, new = start_redis(), start_redis()
    with FaultProxy(old.port) as proxy:
        store = RedisStore(proxy.url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
        for connection in [store._node.writes.take() for _ in range(3 * BACKOFFS)]:
            store._node.writes.give(connection)
        with old.client() as client:
            client.replicaof("127.0.0.1", new.port)
        proxy.target_port = new.port
        assert store.write(records(10), now_us=NOW) == [WriteResult.WRITTEN] * 10
        with new.client() as client:
            assert client.dbsize() == 10
        store.close()


def test_wrong_credentials_are_told_without_the_password(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--requirepass", "right-secret")
    good = server.url.replace("redis://", "redis://:right-secret@")
    bad = server.url.replace("redis://", "redis://someone:wrong-secret@")
    store = RedisStore(good, read_timeout_ms=10_000, connect_timeout_ms=10_000)
    assert store.write(records(1), now_us=NOW) == [WriteResult.WRITTEN]
    store.close()

    async def check(store: RedisStore) -> None:
        reader = store.reader()
        try:
            await reader.check()
        finally:
            await reader.close()

    for url in (server.url, bad):
        store = RedisStore(url, read_timeout_ms=10_000, connect_timeout_ms=10_000, write_timeout_ms=60_000)
        calls: list[Callable[[], object]] = [
            partial(store.mget, [b"fs:p:v:{a}"]),
            partial(store.write, records(1), now_us=NOW),
            store.facts,
            partial(asyncio.run, check(store)),
        ]
        for call in calls:
            start = time.monotonic()
            with pytest.raises(OnlineStoreUnavailableError) as raised:
                call()
            assert time.monotonic() - start < 10  # no use in trying again
            told, error = "", raised.value
            while error is not None:
                told, error = told + str(error) + repr(error), error.__cause__ or error.__context__
            assert "secret" not in told
        store.close()


def told_by(store: RedisStore) -> set[str]:
    """Return the hints of what fails on every path to a server."""

    async def asked(question: Callable[[AsyncReader], Awaitable[object]]) -> None:
        reader = store.reader()
        try:
            await question(reader)
        finally:
            await reader.close()

    calls: list[Callable[[], object]] = [
        partial(store.mget, [b"fs:p:v:{a}"]),
        lambda: asyncio.run(asked(lambda reader: reader.mget([b"fs:p:v:{a}"]))),
        partial(store.write, records(1), now_us=NOW),
        partial(store.put, b"fs:p:v:schema:00", b"x"),
    ]
    hints = set()
    for call in calls:
        with pytest.raises(OnlineStoreUnavailableError) as raised:
            call()
        hints.add(raised.value.hint)
    store.close()
    return hints


def patient(url: str) -> RedisStore:
    return RedisStore(url, read_timeout_ms=10_000, connect_timeout_ms=10_000, write_timeout_ms=300)


def test_what_redis_refuses_is_told_with_what_helps(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "nobody", "on", ">pass", "~other:*", "+@all")
    (hint,) = told_by(patient(server.url.replace("//", "//nobody:pass@")))
    assert "docs/how-to/deploy.md" in hint
    (hint,) = told_by(patient(server.url.replace("//", "//nobody:wrong@")))
    assert "Check user and password in the URL" in hint
    with server.client() as client:
        client.config_set("requirepass", "right")
    (hint,) = told_by(patient(server.url))
    assert "Check user and password in the URL" in hint


def test_a_replica_points_to_its_primary(start_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    primary, replica = start_redis(), start_redis()
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
    store = patient(replica.url)
    with pytest.raises(OnlineStoreUnavailableError) as raised:
        store.put(b"fs:p:v:schema:00", b"x")
    assert "let online_store name the primary" in raised.value.hint
    with pytest.raises(OnlineStoreUnavailableError) as raised:
        store.write(records(1), now_us=NOW)
    assert "let online_store name the primary" in raised.value.hint
    assert store.facts()["role"] == "replica: only reads"
    workspace = make_workspace(tmp_path / "shop", [sales_view()], online_url=replica.url, now_us=NOW)
    found = {check.name: check for check in examine(workspace)}
    assert found["role of the online store"].message == "role replica: only reads"
    with replica.client() as client:
        client.config_set("replica-read-only", "no")
    assert "role" not in store.facts()
    store.close()


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (b"-LOADING Redis is loading the dataset in memory", "Wait until it has read its data"),
        (b"-OOM command not allowed when used memory > 'maxmemory'.", "Raise maxmemory"),
        (b"-READONLY You can't write against a read only replica.", "name the primary"),
        (b"-NOPERM No permissions to access a key", "docs/how-to/deploy.md"),
        (b"-ERR Error running script: -NOPERM No permissions to access a key", "docs/how-to/deploy.md"),
        (b"-NOAUTH Authentication required.", "Check user and password"),
        (b"-ERR max number of clients reached", "Raise maxclients"),
        (b"-ERR something else", "Check that it runs"),
    ],
)
def test_an_error_of_the_wire_is_told_with_what_helps(words: bytes, advice: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            writer.write(words + b"\r\n")
        writer.close()

    async def read() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reading = patient(f"redis://127.0.0.1:{port}").reader()
            for question in (reading.mget([b"k"]), reading.check()):
                with pytest.raises(OnlineStoreUnavailableError) as raised:
                    await question
                assert advice in raised.value.hint
            await reading.close()

    asyncio.run(read())


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:pa ss@host:not-a-port/0",
        "redis://",
        "http://secret@host",
        "redis://:secret@host/0?decode_responses=true",
        "redis://:secret@host/0?socket_timeout=60",
        "redis://:secret@host/0?db=x",
        "unix:///tmp/secret.sock",
        "redis://[secret",
    ],
)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        RedisStore(url)
    assert "secret" not in str(raised.value)
    assert "pa ss" not in str(raised.value)


def test_full_memory_is_told_also_to_who_may_not_ask_for_the_limit(start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    with server.client() as client:  # the account may write, and not ask how much memory there is
        client.execute_command("ACL", "SETUSER", "writer", "on", ">pass", "~*", "+@all", "-info")
    url = server.url.replace("redis://", "redis://writer:pass@")
    store = RedisStore(url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
    with pytest.raises(OnlineStoreFullError, match="maxmemory of unknown size"):
        store.write(records(20_000), now_us=NOW)
    store.close()


def test_garbage_of_the_right_form_is_no_answer() -> None:
    with pytest.raises(redis.InvalidResponse):
        checked_reply(b"OK", 1)
    with pytest.raises(redis.InvalidResponse):
        checked_reply([None], 2)
    assert checked_reply([None], 1) == [None]


@pytest.mark.parametrize(
    ("answers", "told"),
    [(1, "not that of MGET"), (2, "sent more than was asked for")],
)
def test_an_answer_to_another_question_is_refused(answers: int, told: str) -> None:
    async def read() -> None:
        async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(4_096):
                    writer.write(b"+OK\r\n" * answers)  # never a list
            finally:
                writer.close()

        async with await asyncio.start_server(answer_ok, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader = RedisStore(f"redis://127.0.0.1:{port}", read_timeout_ms=10_000).reader()
            for _ in range(3):
                with pytest.raises(OnlineStoreUnavailableError, match=told):
                    await reader.mget([b"fs:p:v:{a}", b"fs:p:v:{b}"])
            await reader.close()

    asyncio.run(read())


def test_what_nobody_asked_for_never_becomes_an_answer() -> None:
    async def read() -> None:
        async def answer_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while await reader.read(4_096):
                    writer.write(b"*1\r\n$5\r\nright\r\n")
                    await asyncio.sleep(0.05)
                    writer.write(b"*1\r\n$5\r\nwrong\r\n")
            finally:
                writer.close()

        async with await asyncio.start_server(answer_late, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader = RedisStore(f"redis://127.0.0.1:{port}", read_timeout_ms=10_000).reader()
            for _ in range(3):
                assert await reader.mget([b"fs:p:v:{a}"]) == [b"right"]
                await asyncio.sleep(0.2)
            await reader.close()

    asyncio.run(read())


@pytest.mark.parametrize("words", ["", "-DENIED Redis is running in protected mode\r\n"])
@pytest.mark.parametrize("database", ["", "/1"])
def test_a_server_that_closes_what_it_accepts_is_told_at_once_and_not_stormed(words: str, database: str) -> None:
    accepted = 0

    async def read() -> None:
        async def turn_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal accepted
            accepted += 1
            writer.write(words.encode())
            writer.close()

        async with await asyncio.start_server(turn_away, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            reader = RedisStore(f"redis://127.0.0.1:{port}{database}", read_timeout_ms=2_000).reader()
            start = time.monotonic()
            for _ in range(5):
                with pytest.raises(OnlineStoreUnavailableError) as raised:
                    await reader.mget([b"fs:p:v:{a}"])
                assert ("protected mode" if words else "is not available") in raised.value.message
            assert time.monotonic() - start < 2
            await reader.close()

    asyncio.run(read())
    assert accepted == 5


def test_connections_are_kept_alive(redis_server: RedisServer) -> None:
    async def look() -> None:
        wire = await open_wire({"host": "127.0.0.1", "port": redis_server.port})
        opened = wire._transport.get_extra_info("socket")
        assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
        wire.close()
        await wire.closed

    asyncio.run(look())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(look())


def test_connections_that_were_lost_while_nobody_used_them_cost_no_read(store: RedisStore, proxy: FaultProxy) -> None:
    writes = records(8)
    store.write(writes, now_us=NOW)

    async def read() -> None:
        reader = store.reader()
        await reader.check()
        await asyncio.gather(*[reader.mget([write.key]) for write in writes], return_exceptions=True)
        proxy.cut()
        await asyncio.sleep(0.1)
        assert await reader.mget([write.key for write in writes]) == [write.record for write in writes]
        await reader.close()

    asyncio.run(read())


def test_a_reader_closed_while_it_reads_keeps_nothing_open(proxy: FaultProxy, redis_server: RedisServer) -> None:
    # To choose a database is a question before the first: the connection is still being opened when it is closed.
    store = RedisStore(f"{proxy.url}/3", read_timeout_ms=10_000, connect_timeout_ms=10_000)

    async def read() -> None:
        reader = store.reader()
        await reader.check()
        proxy.delay_seconds, proxy.fault = 0.5, "delay"
        reading = asyncio.create_task(reader.mget([b"fs:p:v:{a}"]))
        opening = asyncio.create_task(reader.mget([b"fs:p:v:{b}"]))
        await asyncio.sleep(0.01)
        await reader.close()
        with pytest.raises(OnlineStoreUnavailableError, match="closed"):
            await opening
        assert await reading == [None]

    asyncio.run(read())
    with redis_server.client() as client:
        deadline = time.monotonic() + 10
        while len(client.client_list()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_every_database_of_a_server_is_its_own(redis_server: RedisServer, redis_url: str) -> None:
    stores = [
        RedisStore(f"{redis_url}/{number}?client_name=ours", read_timeout_ms=10_000, connect_timeout_ms=10_000)
        for number in (0, 3)
    ]
    stores[1].write(records(1), now_us=NOW)
    assert [store.mget([records(1)[0].key]) for store in stores] == [[None], [records(1)[0].record]]
    assert stores[1].facts()["location"].endswith("/3")

    async def read() -> list[bytes | None]:
        reader = stores[1].reader()
        answer = await reader.mget([records(1)[0].key])
        await reader.close()
        return answer

    assert asyncio.run(read()) == [records(1)[0].record]
    with redis.Redis(port=redis_server.port) as client:
        assert "ours" in {entry["name"] for entry in client.client_list()}
    for store in stores:
        store.delete(b"fs:conformance:")
        store.close()


def test_after_a_fork_the_child_has_connections_of_its_own(redis_url: str, tmp_path: Path) -> None:
    store = RedisStore(redis_url, read_timeout_ms=10_000, connect_timeout_ms=10_000)
    writes = records(200)
    store.write(writes, now_us=NOW)
    store.mget([writes[0].key])
    pid = os.fork()
    if pid == 0:
        answers = all(store.mget([write.key]) == [write.record] for write in writes)
        answers = answers and store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * len(writes)
        os._exit(0 if answers else 1)
    assert all(store.mget([write.key]) == [write.record] for write in writes)
    assert os.waitpid(pid, 0)[1] == 0
    store.close()


NEIGHBOURS = """
from featurestore import Entity, FeatureView, Field, ParquetSource
from featurestore.types import Int64, String

sales = ParquetSource("sales", path="sales.parquet", timestamp_field="sold_at", created_timestamp_field="known_at")
shop = Entity("shop", join_keys={"shop": String})
amount = [Field("amount", Int64)]
a = FeatureView("a", entities=[shop], source=sales, schema=amount)
a_ = FeatureView("a_", entities=[shop], source=sales, schema=amount)
ab = FeatureView("ab", entities=[shop], source=sales, schema=amount)
"""


@pytest.mark.uncounted
def test_of_projects_in_one_redis_the_one_torn_down_takes_nothing_of_the_others(
    redis_server: RedisServer, redis_url: str, tmp_path: Path
) -> None:
    projects = ["shop", "shop_", "shop_2", "sho", "s"]
    tempting = ["*", "?", "[a-z]*", "shop", "a|b", "{x}", "\\", "a:b"]
    stores = {}
    for project in projects:
        root = tmp_path / project
        root.mkdir()
        (root / "features.py").write_text(NEIGHBOURS)
        (root / "feature_store.yaml").write_text(f"project: {project}\nonline_store: {redis_url}\n")
        write_sales(root / "sales.parquet", [Sale(name, START, START, 7) for name in tempting])
        stores[project] = FeatureStore(root)
        stores[project].apply()
        assert {run.state for run in stores[project].materialize_incremental()} == {"done"}
    foreign = [
        b"*",
        b"fs",
        b"fs:*",
        b"fs:shop",
        b"fs:sho?:a:{x}",
        b"fs:[s]hop:a:{x}",
        b"other:fs:shop:a:{x}",
        b"FS:shop:",
    ]

    with redis_server.client() as client:
        for key in foreign:
            client.set(key, b"a neighbour's", ex=1_000)

        def everything() -> dict[bytes, tuple[bytes, bool]]:
            return {key: (client.dump(key), client.ttl(key) > 0) for key in client.scan_iter(count=1_000)}

        left = everything()
        assert len(left) == len(projects) * 3 * (len(tempting) + 2) + len(
            foreign
        )  # schema and marker beside the records
        for project in projects[:3]:
            stores[project].teardown()
            left = {key: held for key, held in left.items() if not key.startswith(f"fs:{project}:".encode())}
            assert everything() == left
    for project in projects[3:]:
        answer = stores[project].get_online_features(["ab:amount"], {"shop": tempting}).to_dict()
        assert answer["amount"] == [7] * len(tempting)
    for store in stores.values():
        store.close()


@pytest.mark.uncounted
def test_memory_that_runs_out_moves_no_watermark_and_what_is_missing_is_published_next(
    start_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = start_redis("--maxmemory", "20mb", "--maxmemory-policy", "noeviction")
    first = [Sale(f"shop {number}", START, START, number) for number in range(100)]
    second = [Sale(f"shop {number}", day(1), day(1), -number, "x" * 1_000) for number in range(20_000)]
    write_sales(tmp_path / "sales.parquet", first)
    workspace = make_workspace(tmp_path, [sales_view()], online_url=server.url, now_us=day(2))
    (run,) = materialize_incremental(workspace)
    view = workspace.snapshot().views["shop_sales"]
    assert read_watermark(workspace.ledger, view).published_version == 0

    write_sales(tmp_path / "sales.parquet", first + second)
    for _ in range(2):  # a run in vain changes nothing for the next
        (run,) = materialize_incremental(workspace)
        assert run.state == "failed"
        assert "maxmemory of 20971520 bytes" in str(run.error)
        mark = read_watermark(workspace.ledger, view)
        assert (mark.table_version, mark.published_version) == (1, 0)
    with server.client() as client:
        used = client.info("memory")["used_memory"]
        for limit, state in ((used // 2, "failed"), (used * 100 // 95, "warning"), (200 << 20, None)):
            client.config_set("maxmemory", limit)
            told = [check for check in examine(workspace) if check.name == "memory of the online store"]
            assert [check.state for check in told] == ([state] if state else [])
            if state == "failed":
                assert status(workspace)[0].room == f"{told[0].message}. {told[0].hint}"
    (run,) = materialize_incremental(workspace)
    assert run.state == "done"
    assert read_watermark(workspace.ledger, view).published_version == 1
    rows = online_rows(workspace)
    assert len(rows) == 20_000
    assert {shop: row[2] for shop, row in rows.items()} == {sale.shop: sale.amount for sale in second}
    workspace.close()


@pytest.mark.parametrize("policy", ["noeviction", "volatile-ttl", "allkeys-lru"])
def test_the_doctor_tells_of_a_redis_that_evicts(
    start_redis: Callable[..., RedisServer], tmp_path: Path, policy: str
) -> None:
    server = start_redis("--maxmemory", "20mb", "--maxmemory-policy", policy)
    write_sales(tmp_path / "sales.parquet", [Sale("a", START)])
    workspace = make_workspace(tmp_path, [sales_view()], online_url=server.url, now_us=START)
    told = [check for check in examine(workspace) if check.name in ("eviction", "evicted")]
    assert status(workspace)[0].evicted == ""
    if policy == "noeviction":
        assert told == []
    else:
        assert [check.state for check in told] == ["warning"]
        assert policy in told[0].message
        assert "noeviction" in told[0].hint
        told_what_is_gone(workspace, server)
    workspace.close()


def told_what_is_gone(workspace: Workspace, server: RedisServer) -> None:
    """Whatever the policy is by now, keys that were evicted are told of until their count begins anew."""
    metrics = Metrics()
    keeper = SnapshotKeeper(workspace)
    keeper.load()
    with server.client() as client:
        for number in range(50):
            client.set(f"big:{number}", b"x" * 1_000_000, ex=1_000)
        count = client.info("stats")["evicted_keys"]
        assert count > 10
        words = f"The online store has evicted {count} keys since it started: records among them are gone"
        for policy, todo in (("allkeys-lru", "maxmemory-policy noeviction"), ("noeviction", "CONFIG RESETSTAT")):
            client.config_set("maxmemory-policy", policy)
            (gone,) = (check for check in examine(workspace) if check.name == "evicted")
            assert gone.message.startswith(words)
            assert todo in gone.hint
            assert status(workspace)[0].evicted == f"{gone.message}. {gone.hint}"
            ClockWatch(workspace, keeper, metrics).look()
            assert f"featurestore_online_store_evicted_keys {count:.1f}" in metrics.text().decode()
        client.config_resetstat()
        assert [check for check in examine(workspace) if check.name == "evicted"] == []


def reads_of(server: socket.socket, *, seconds: float, connect_seconds: float | None = None) -> ReadConnections:
    """Return connections that each have to be answered before they are open."""
    host, port = server.getsockname()
    options = {"host": host, "port": port, "client_name": "us"}
    return ReadConnections(options, connect_seconds=connect_seconds or seconds, answer_seconds=seconds)


def test_a_server_that_is_left_alone_is_asked_once_by_many_reads_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(8) as pool:
        reads, together = reads_of(silent, seconds=0.3), threading.Barrier(8)
        for _ in range(FAILURES_TO_LEAVE):
            reads.failed(TimeoutError())
        time.sleep(LEFT_SECONDS)

        def take(_: int) -> BaseException | None:
            together.wait(10)
            try:
                reads.take()
            except DRIVER_ERRORS as error:
                return error
            return None

        found = list(pool.map(take, range(8)))
    assert sum(str(error) == "it did not answer lately" for error in found) == 7, found
    # The eighth waited: for the connection, or on a machine that stood still for an answer on it.
    assert sum(isinstance(error, TimeoutError | redis.TimeoutError) for error in found) == 1, found


def test_a_connection_that_opens_too_late_for_its_read_is_there_for_the_next() -> None:
    # A machine that stands still for a second in the wrong moment ends the connection: then once more.
    assert any(_is_there_for_the_next() for _ in range(3))


def _is_there_for_the_next() -> bool:
    may_answer = threading.Event()

    def answer_the_first(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            while data := connection.recv(65_536):
                may_answer.wait(10)
                connection.sendall(b"+OK\r\n" * data.count(b"CLIENT\r\n"))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_the_first, args=(server,), daemon=True).start()
        # After a failure a read waits for its answer's time alone: the connection has longer to open.
        reads = reads_of(server, seconds=0.3, connect_seconds=5)
        reads.failed(TimeoutError())
        with pytest.raises(TimeoutError):
            reads.take()
        may_answer.set()
        late = None
        deadline = time.monotonic() + 3
        while late is None and time.monotonic() < deadline:
            try:
                late = reads.take()
            except DRIVER_ERRORS:  # no other connection is ever answered
                time.sleep(0.02)
        if late is not None:
            late.disconnect()
        reads.close()
    return late is not None
