"""A Redis Cluster whose slots move, whose primaries die, hang and fill up: typed errors in time, no wrong value."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from support.materialized import ExpectedLog, Sale, day, expected_online, online_rows, sales_view, write_sales
from support.projects import make_workspace
from support.redis_cluster import NODE_TIMEOUT_MS, RedisCluster
from support.redis_server import RedisServer
from support.serving import serving_here

from featurestore.errors import OnlineStoreFullError, OnlineStoreUnavailableError
from featurestore.maintenance.doctor import Check, examine
from featurestore.materialization import materialize_incremental, republish
from featurestore.online.interface import AsyncReader, Repair, Write, WriteResult
from featurestore.online.records.codec import is_intact, version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.redis.cluster.store import RedisClusterStore
from featurestore.online.redis.cluster.topology import Routing, Topology, parsed_cluster_url
from featurestore.online.redis.node import FAILURES_TO_LEAVE
from featurestore.testing.online_store import layout_of
from featurestore.types.times import system_clock

NOW = system_clock()
VIEWS = [RecordEncoder(layout_of(view)) for view in ("first", "second", "third")]
READ_MS = 200
TOLERANCE = 10
"""A deadline may be missed by this factor on a busy machine."""
SLACK_SECONDS = 5.0
"""How late a busy machine may notice that the cluster has healed."""
PATIENT = {"read_timeout_ms": 10_000, "write_timeout_ms": 30_000, "connect_timeout_ms": 10_000}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    # A replica that lost its primary's last writes is elected as well: so does one that was only briefly behind.
    directory = tmp_path_factory.mktemp("broken_cluster")
    with RedisCluster(directory, "--cluster-replica-validity-factor", "0") as servers:
        yield servers


@pytest.fixture
def cluster(servers: RedisCluster) -> RedisCluster:
    """A cluster of this module's own, to be broken: well again and empty for each test."""
    servers.heal()
    servers.flush()
    return servers


@pytest.fixture
def store(cluster: RedisCluster) -> Iterator[RedisClusterStore]:
    store = RedisClusterStore(cluster.url, **PATIENT)
    yield store
    store.close()


def record(entity: str, x: int = 0, *, view: int = 0) -> Write:
    return VIEWS[view].write([entity], NOW + x, None, [x, 0.5])


def records(count: int, x: int = 0) -> list[Write]:
    return [record(f"e{number}", x) for number in range(count)]


def read_both_ways(store: RedisClusterStore, keys: Sequence[bytes]) -> list[bytes | None]:
    """Return what a thread and what an event loop reads, which must be the same."""

    async def read() -> list[bytes | None]:
        reader = store.reader()
        try:
            return await reader.mget(keys)
        finally:
            await reader.close()

    found = store.mget(keys)
    assert asyncio.run(read()) == found
    return found


def eventually(action: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except OnlineStoreUnavailableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def test_records_lie_where_the_cluster_says_and_an_entitys_views_together(
    cluster: RedisCluster, store: RedisClusterStore
) -> None:
    writes = [record(f"e{number}", number, view=view) for view in range(3) for number in range(400)]
    assert store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * len(writes)
    lying: list[set[bytes]] = []
    for server in cluster.primaries():
        with server.client() as client:
            lying.append(set(client.keys()))
    assert set.union(*lying) == {write.key for write in writes}
    assert all(len(keys) > 200 for keys in lying)
    for keys in lying:
        entities = {key[key.index(b"{") :] for key in keys}
        assert len(keys) == 3 * len(entities)
    random.Random(7).shuffle(writes)
    assert read_both_ways(store, [write.key for write in writes]) == [write.record for write in writes]
    repairs = [
        Repair(write.key, version_of(NOW + place, NOW + place), None) for place, write in enumerate(records(400))
    ]
    assert store.repair(repairs, now_us=NOW) == [True] * 400
    assert read_both_ways(store, [write.key for write in records(400)]) == [None] * 400


def test_every_key_is_asked_for_where_the_server_would_look(cluster: RedisCluster, store: RedisClusterStore) -> None:
    odd = [b"a", b"{a}", b"x{a}", b"x{a", b"x{}", b"x{}{a}", b"x{a}{b}", b"x}{a}", b"{}x", b"x{{a}}", b"x{a}y", b""]
    with cluster.servers[0].client() as client:
        for key in [*odd, *[write.key for write in records(20)]]:
            (part,) = Routing(Topology(parsed_cluster_url(cluster.url), 1), [key], lambda places: ()).left
            assert part.slot == client.cluster("KEYSLOT", key), key
    keys = [b"fs:conformance:" + key for key in odd]
    for key in keys:
        store.put(key, key)
    assert read_both_ways(store, keys) == keys
    assert {key for batch in store.scan(b"fs:conformance:") for key, _ in batch} == set(keys)
    assert store.delete(b"fs:conformance:") == len(keys)
    assert cluster.keys() == set()


def test_deleting_a_project_touches_only_its_keys_on_every_primary(
    cluster: RedisCluster, store: RedisClusterStore
) -> None:
    mine, others = RecordEncoder(layout_of("v")), RecordEncoder(layout_of("v", project="conformance_2"))
    for encoder in (mine, others):
        store.write([encoder.write([f"e{number}"], NOW, None, [1, 1.0]) for number in range(3_000)], now_us=NOW)
        store.put(encoder.schema_key, encoder.schema_json)
    tempting = [b"fs:conformance", b"fs:conformanc:v:{a}", b"fs:*:v:{a}", b"conformance:{a}", b"xfs:conformance:v:{b}"]
    for key in tempting:
        with cluster.owner(key).client() as client:
            client.set(key, b"neighbour")
    before = cluster.keys()
    gone = {key for key in before if key.startswith(b"fs:conformance:")}
    assert len(gone) == 3_001
    assert {key for batch in store.scan(b"fs:conformance:") for key, _ in batch} == gone
    assert store.delete(b"fs:conformance:") == 3_001
    assert cluster.keys() == before - gone
    assert store.delete(b"fs:conformance:") == 0


def test_a_slot_on_the_move_is_read_and_written_all_the_time(cluster: RedisCluster, store: RedisClusterStore) -> None:
    entity = "moving"
    slot = key_slot(record(entity).key)
    there = [record(entity, view=view) for view in (0, 1)]
    absent = record(entity, view=2).key
    others = records(50)
    store.write([*there, *others], now_us=NOW)
    keys = [absent, *[write.key for write in there], *[write.key for write in others]]
    source = cluster.owner(there[0].key)
    target = next(server for server in cluster.primaries() if server is not source)
    round_number = 0

    def check() -> None:
        nonlocal round_number
        round_number += 1
        for known in (store, RedisClusterStore(cluster.url, **PATIENT)):
            expected = [None, *[write.record for write in (*there, *others)]]
            assert read_both_ways(known, keys) == expected, round_number
            assert read_both_ways(known, [there[0].key]) == [there[0].record]
        there[:] = [record(entity, round_number, view=view) for view in (0, 1)]
        newest = [*there, *reversed(there), *others]
        assert store.write(newest, now_us=NOW) == [WriteResult.WRITTEN] * len(newest)
        assert store.write([record(entity, 0)], now_us=NOW) == [WriteResult.STALE]

    check()
    with cluster.migrating(slot, source, target) as move_keys:
        check()  # nothing has moved: the absent key alone is asked for elsewhere
        with source.client() as client:
            client.execute_command("MIGRATE", "127.0.0.1", target.port, there[0].key, 0, 5_000)
        check()  # one of the entity's views is here, the other there
        move_keys()
        check()
        assert {key for batch in store.scan(b"fs:conformance:first:") for key, _ in batch} == {
            key for key in keys if b":first:" in key
        }
    check()  # MOVED: nobody was told but the nodes
    assert cluster.owner(there[0].key) is target
    with source.client() as client:
        redirects = {"errorstat_ASK", "errorstat_MOVED", "errorstat_TRYAGAIN"}
        met = client.info("errorstats")
        assert met.keys() >= redirects
        assert store.mget(keys)[1] == there[0].record
        again = client.info("errorstats")
        assert {name: again[name] for name in redirects} == {name: met[name] for name in redirects}, (
            "what was once redirected is asked for at the right place"
        )
    assert store.delete(b"fs:conformance:") == 52
    assert cluster.keys() == set()


def test_a_scan_finds_what_moved_to_a_node_that_was_walked_already(
    cluster: RedisCluster, store: RedisClusterStore
) -> None:
    writes = records(600)
    store.write(writes, now_us=NOW)
    walked: list[int] = []
    found: set[bytes] = set()
    moved: bytes | None = None
    for batch in store.scan(b"fs:conformance:"):
        found |= {key for key, _ in batch}
        walked += [port for port in [cluster.owner(batch[0][0]).port] if port not in walked]
        if len(walked) == 2 and moved is None:
            first, third = cluster.server(walked[0]), next(one for one in cluster.primaries() if one.port not in walked)
            moved = next(write.key for write in writes if cluster.owner(write.key) is third)
            with cluster.migrating(key_slot(moved), third, first):
                pass
            assert moved not in found
    assert moved is not None
    assert found == {write.key for write in writes}


def test_reads_alone_find_the_new_primary(cluster: RedisCluster) -> None:
    writes = records(100)
    keys = [write.key for write in writes]
    stores = [RedisClusterStore(cluster.url, read_timeout_ms=2_000, connect_timeout_ms=2_000) for _ in range(2)]
    stores[0].write(writes, now_us=NOW)

    async def read() -> None:
        reader = stores[1].reader()
        await reader.check()
        assert stores[0].mget(keys) == await reader.mget(keys) == [write.record for write in writes]
        cluster.primaries()[0].kill()
        with pytest.raises(OnlineStoreUnavailableError):
            await reader.mget(keys)
        with pytest.raises(OnlineStoreUnavailableError):
            await asyncio.to_thread(stores[0].mget, keys)
        missing = {"thread", "loop"}
        deadline = time.monotonic() + 30
        while missing:
            assert time.monotonic() < deadline, missing
            await asyncio.sleep(0.1)
            for name in sorted(missing):
                try:
                    found = await reader.mget(keys) if name == "loop" else await asyncio.to_thread(stores[0].mget, keys)
                except OnlineStoreUnavailableError:
                    continue
                assert found == [write.record for write in writes]
                missing.discard(name)
        await reader.check()
        await reader.close()

    asyncio.run(read())
    for store in stores:
        store.close()


class Load:
    """Reads and publishing in threads, and whatever goes wrong with them; every answer is checked."""

    def __init__(self, store: RedisClusterStore, count: int) -> None:
        self.errors: list[tuple[float, str]] = []
        self.wrong: list[object] = []
        self.answers: list[float] = []
        self.rounds = 0
        self._store, self._count = store, count
        self._keys = [write.key for write in records(count)]
        self._done = threading.Event()
        targets = [self._read, self._read_in_a_loop, self._publish]
        self._threads = [threading.Thread(target=self._guarded, args=(target,)) for target in targets]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            self.wrong.append(error)

    def _chosen(self, dice: random.Random) -> list[bytes]:
        return dice.sample(self._keys, dice.choice([1, 2, 10]))

    def _check(self, keys: Sequence[bytes], found: Sequence[bytes | None]) -> None:
        self.answers.append(time.monotonic())
        self.wrong += [
            (key, value) for key, value in zip(keys, found, strict=True) if value is None or not is_intact(key, value)
        ]

    def _read(self) -> None:
        dice = random.Random(1)
        while not self._done.is_set():
            keys = self._chosen(dice)
            try:
                self._check(keys, self._store.mget(keys))
            except OnlineStoreUnavailableError as error:
                self.errors.append((time.monotonic(), str(error)))
            time.sleep(0.002)

    def _read_in_a_loop(self) -> None:
        async def one(reader: AsyncReader, dice: random.Random) -> None:
            while not self._done.is_set():
                keys = self._chosen(dice)
                try:
                    self._check(keys, await reader.mget(keys))
                except OnlineStoreUnavailableError as error:
                    self.errors.append((time.monotonic(), str(error)))
                await asyncio.sleep(0.01)

        async def read() -> None:
            reader = self._store.reader()
            await asyncio.gather(*[one(reader, random.Random(seed)) for seed in range(2, 6)])
            await reader.close()

        asyncio.run(read())

    def _publish(self) -> None:
        while not self._done.is_set():
            self.rounds += 1
            results = self._store.write(records(self._count, self.rounds), now_us=NOW)
            self.wrong += [result for result in results if result is not WriteResult.WRITTEN]


@pytest.mark.uncounted
@pytest.mark.slow(9)
def test_a_primary_is_killed_under_load(cluster: RedisCluster) -> None:
    # Longer than an answer takes here under load; whoever waits for the dead one is refused at once.
    store = RedisClusterStore(cluster.url, read_timeout_ms=2_000, connect_timeout_ms=2_000, write_timeout_ms=30_000)
    store.write(records(500), now_us=NOW)
    with Load(store, 500) as load:
        time.sleep(1)
        victim = cluster.primaries()[0]
        heir = cluster.replica_of(victim)
        killed = time.monotonic()
        victim.kill()
        while heir not in cluster.primaries():
            assert time.monotonic() - killed < 30
            time.sleep(0.05)
        recovered = time.monotonic()
        rounds_then = load.rounds
        deadline = recovered + SLACK_SECONDS + 30
        while load.rounds < rounds_then + 3 or time.monotonic() < recovered + SLACK_SECONDS:
            assert time.monotonic() < deadline
            assert load.wrong == []
            time.sleep(0.05)
    assert load.wrong == []
    assert recovered - killed > NODE_TIMEOUT_MS / 1000
    assert load.errors, "nobody noticed"
    assert [error for error in load.errors if not killed <= error[0] <= recovered + SLACK_SECONDS] == []
    assert len([moment for moment in load.answers if moment > recovered]) > 20
    last = records(500, load.rounds)
    assert read_both_ways(store, [write.key for write in last]) == [write.record for write in last]
    cluster.heal()
    assert eventually(lambda: store.facts())["primaries_without_replica"] == "0"
    assert victim not in cluster.primaries()
    store.close()


def test_the_doctor_tells_of_a_primary_without_a_replica(cluster: RedisCluster, tmp_path: Path) -> None:
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1))])
    workspace = make_workspace(tmp_path, [sales_view()], online_url=cluster.url, now_us=day(20))

    def told() -> list[Check]:
        return [check for check in examine(workspace) if check.name == "replicas"]

    assert told() == []
    cluster.replica_of(cluster.primaries()[0]).kill()
    deadline = time.monotonic() + 20
    while not (found := told()) and time.monotonic() < deadline:  # until the cluster has noticed
        time.sleep(0.1)
    (check,) = found
    workspace.close()
    assert check.state == "warning"
    assert "1 primary has no replica" in check.message
    assert "CLUSTER REPLICATE" in check.hint


def test_writes_outlast_primaries_that_refuse_for_a_while(cluster: RedisCluster, store: RedisClusterStore) -> None:
    def want_replicas(count: int) -> None:
        for server in cluster.primaries():
            with server.client() as client:
                client.config_set("min-replicas-to-write", count)

    want_replicas(100)
    timer = threading.Timer(0.5, want_replicas, [0])
    timer.start()
    start = time.monotonic()
    assert store.write(records(30), now_us=NOW) == [WriteResult.WRITTEN] * 30
    assert time.monotonic() - start > 0.4
    timer.join()


def test_republishing_repairs_what_a_failover_lost(cluster: RedisCluster, tmp_path: Path) -> None:
    sales = [Sale(f"shop {number}", day(1 + number / 100), day(1 + number / 100), number) for number in range(200)]
    newer = [Sale(f"shop {number}", day(10), day(10), -number) for number in range(0, 200, 2)]
    now = day(20)
    expected = ExpectedLog()
    expected.read([*sales, *newer], day(0), now, now)
    write_sales(tmp_path / "sales.parquet", sales)
    online = {"url": cluster.url, "read_timeout_ms": 10_000, "write_timeout_ms": 30_000}
    workspace = make_workspace(tmp_path, [sales_view()], online_url=online, now_us=now)
    materialize_incremental(workspace, day(5))
    victim = cluster.primaries()[1]
    heir = cluster.replica_of(victim)
    with victim.client() as client:  # its replica hears no more of it, but the cluster still does
        client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
    write_sales(tmp_path / "sales.parquet", [*sales, *newer])
    materialize_incremental(workspace)
    assert online_rows(workspace) == expected_online(expected, now)
    victim.kill()
    while heir not in cluster.primaries():
        time.sleep(0.05)
    left = online_rows(workspace)
    lost = {shop for shop, row in expected_online(expected, now).items() if left.get(shop) != row}
    encoder = RecordEncoder(workspace.snapshot().views["shop_sales"].layout).keys
    assert lost
    assert {cluster.owner(encoder.encode([shop])).port for shop in lost} == {heir.port}
    republish(workspace)
    assert online_rows(workspace) == expected_online(expected, now)
    workspace.close()


@pytest.mark.slow(8)
@pytest.mark.parametrize("fault", [RedisServer.hang, RedisServer.kill], ids=["hung", "dead"])
def test_all_nodes_down_is_told_within_the_deadline_and_passes(
    cluster: RedisCluster, fault: Callable[[RedisServer], None]
) -> None:
    store = RedisClusterStore(cluster.url, read_timeout_ms=READ_MS, write_timeout_ms=500, connect_timeout_ms=500)
    writes = records(60)
    eventually(lambda: store.write(writes, now_us=NOW))
    keys = [write.key for write in writes]

    async def read() -> None:
        reader = store.reader()
        await reader.check()
        assert await reader.mget(keys) == [write.record for write in writes]
        for server in cluster.servers:
            fault(server)
        for _ in range(3):
            start = time.monotonic()
            answers = await asyncio.gather(*[reader.mget(keys) for _ in range(5)], return_exceptions=True)
            assert [type(answer) for answer in answers] == [OnlineStoreUnavailableError] * 5
            assert time.monotonic() - start < TOLERANCE * READ_MS / 1000
        with pytest.raises(OnlineStoreUnavailableError):
            await reader.check()
        await reader.close()
        with pytest.raises(OnlineStoreUnavailableError, match="closed"):
            await reader.mget(keys)

    asyncio.run(read())
    new = RedisClusterStore(cluster.url, read_timeout_ms=READ_MS, write_timeout_ms=500, connect_timeout_ms=500)
    for known in (store, new):
        calls: list[Callable[[], object]] = [
            lambda known=known: known.mget(keys),
            lambda known=known: known.write(writes, now_us=NOW),
        ]
        if known is store:
            calls += [
                lambda: store.put(b"fs:p:v:schema:00", b""),
                lambda: store.delete(b"fs:p:"),
                lambda: list(store.scan(b"fs:p:")),
                store.facts,
            ]
        for call in calls:
            start = time.monotonic()
            with pytest.raises(OnlineStoreUnavailableError, match=r"127\.0\.0\.1:\d+"):
                call()
            assert time.monotonic() - start < 5
        took = []
        for _ in range(3 * FAILURES_TO_LEAVE):
            start = time.monotonic()
            with pytest.raises(OnlineStoreUnavailableError, match=r"127\.0\.0\.1:\d+"):
                known.mget(keys)
            took.append(time.monotonic() - start)
        assert sorted(took)[FAILURES_TO_LEAVE] < 2 * READ_MS / 1000  # not a second for each
        assert sum(took) < 3 * FAILURES_TO_LEAVE * 4 * READ_MS / 1000
    cluster.heal()
    for known in (store, new):
        eventually(lambda known=known: known.write(writes, now_us=NOW))
        assert eventually(lambda known=known: known.mget(keys)) == [write.record for write in writes]
        known.close()


@pytest.mark.uncounted
def test_a_full_node_names_itself_and_its_limit(cluster: RedisCluster, store: RedisClusterStore) -> None:
    writes = [record(f"{'x' * 150}{number}") for number in range(30_000)]
    server = cluster.primaries()[2]
    with server.client() as client:
        client.config_set("maxmemory", "4mb")
        try:
            with pytest.raises(OnlineStoreFullError, match=rf"127\.0\.0\.1:{server.port}/0 .* of 4194304 bytes"):
                store.write(writes, now_us=NOW)
        finally:
            client.config_set("maxmemory", "0")
    assert store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * len(writes)
    assert store.facts()["maxmemory_policy"] == "noeviction"


def test_forgotten_scripts_and_cut_connections_reach_no_publisher(
    cluster: RedisCluster, store: RedisClusterStore
) -> None:
    writes = records(200)
    store.write(writes, now_us=NOW)
    for server in cluster.primaries():
        with server.client() as client:
            client.script_flush()
    assert store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * 200
    for server in cluster.primaries():
        with server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
    assert store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * 200
    assert store.mget([write.key for write in writes]) == [write.record for write in writes]


def test_cancelled_reads_never_meet_anothers_answer(cluster: RedisCluster, store: RedisClusterStore) -> None:
    writes = [VIEWS[0].write([f"e{number}"], NOW, None, [number, 0.5]) for number in range(300)]
    store.write(writes, now_us=NOW)
    outcomes = {"answered": 0, "cancelled": 0, "failed": 0}
    dice = random.Random(3)

    async def one(reader: AsyncReader, chosen: list[Write], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                assert await reader.mget([write.key for write in chosen]) == [write.record for write in chosen]
            outcomes["answered"] += 1
        except TimeoutError:
            outcomes["cancelled"] += 1
        except OnlineStoreUnavailableError:  # too many connections on their way, none open yet
            outcomes["failed"] += 1

    async def read() -> None:
        reader = store.reader()
        await reader.check()
        for _ in range(40):
            calls = [(dice.sample(writes, dice.choice([1, 5, 50])), dice.random() * 0.02) for _ in range(20)]
            await asyncio.gather(*[one(reader, chosen, seconds) for chosen, seconds in calls])
        await reader.check()
        assert await reader.mget([write.key for write in writes]) == [write.record for write in writes]
        await reader.close()

    asyncio.run(read())
    assert outcomes["cancelled"] > 50
    assert outcomes["answered"] > 50


def test_credentials_are_used_and_never_told(cluster: RedisCluster) -> None:
    for server in cluster.servers:
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "someone", "on", ">right-secret", "~*", "+@all")
    hosts = cluster.url.removeprefix("redis+cluster://")
    good = RedisClusterStore(f"redis+cluster://someone:right-secret@{hosts}/0?client_name=ours", **PATIENT)
    assert good.write(records(10), now_us=NOW) == [WriteResult.WRITTEN] * 10
    assert read_both_ways(good, [write.key for write in records(10)]) == [write.record for write in records(10)]
    bad = RedisClusterStore(f"redis+cluster://someone:wrong-secret@{hosts}", **PATIENT)
    for call in (lambda: bad.mget([b"fs:p:v:{a}"]), lambda: bad.write(records(1), now_us=NOW), bad.facts):
        start = time.monotonic()
        with pytest.raises(OnlineStoreUnavailableError, match="invalid username") as raised:
            call()
        assert time.monotonic() - start < 10  # no use in trying again
        assert "secret" not in str(raised.value)
    for store in (good, bad):
        store.close()


def test_after_a_fork_the_child_has_connections_of_its_own(store: RedisClusterStore) -> None:
    writes = records(200)
    store.write(writes, now_us=NOW)
    store.mget([write.key for write in writes])
    pid = os.fork()
    if pid == 0:
        answers = all(store.mget([write.key]) == [write.record] for write in writes)
        answers = answers and store.write(writes, now_us=NOW) == [WriteResult.WRITTEN] * len(writes)
        answers = answers and len(list(store.scan(b"fs:conformance:"))) > 0
        os._exit(0 if answers else 1)
    assert all(store.mget([write.key]) == [write.record] for write in writes)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_answer_to_another_question_is_refused() -> None:
    async def read() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            host, port = writer.get_extra_info("sockname")
            try:
                while data := await reader.read(65_536):
                    if b"SLOTS" in data:
                        node = f"*3\r\n$9\r\n{host}\r\n:{port}\r\n$1\r\nx\r\n"
                        writer.write(f"*1\r\n*3\r\n:0\r\n:16383\r\n{node}".encode())
                    else:
                        writer.write(b"+OK\r\n" * data.count(b"*"))
            finally:
                writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            store = RedisClusterStore(f"redis+cluster://127.0.0.1:{port}", **PATIENT)
            reader = store.reader()
            await reader.check()
            keys = [write.key for write in records(5)]
            for _ in range(3):
                with pytest.raises(OnlineStoreUnavailableError, match="not that of the command"):
                    await reader.mget(keys)
                with pytest.raises(OnlineStoreUnavailableError, match="not that of the command"):
                    await asyncio.to_thread(store.mget, keys)
            await reader.close()
            await asyncio.to_thread(store.close)

    asyncio.run(read())


def test_a_server_that_is_no_cluster_is_told_apart(redis_server: RedisServer) -> None:
    store = RedisClusterStore(f"redis+cluster://127.0.0.1:{redis_server.port}", write_timeout_ms=100)
    with pytest.raises(OnlineStoreUnavailableError, match="Cluster mode is not enabled"):
        store.mget([b"fs:p:v:{a}"])
    with pytest.raises(OnlineStoreUnavailableError, match="Cluster mode is not enabled"):
        store.facts()


def test_a_project_is_materialized_into_a_cluster_and_served_from_it(cluster: RedisCluster, tmp_path: Path) -> None:
    sales = [Sale(f"shop {number}", day(1 + number / 100), None, number, f"note {number}") for number in range(300)]
    write_sales(tmp_path / "sales.parquet", sales)
    online = {"url": cluster.url, "read_timeout_ms": 10_000}
    workspace = make_workspace(tmp_path, [sales_view()], online_url=online, now_us=day(20))
    materialize_incremental(workspace)
    with serving_here(workspace) as client:
        assert client.get("/ready").status_code == 200
        asked = {
            "features": ["shop_sales:amount", "shop_sales:note"],
            "entities": {"shop": [f"shop {number}" for number in range(299, -2, -1)]},
        }
        answer = client.post("/v1/online-features", json=asked)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["rows"]
        assert rows == [[number, f"note {number}"] for number in range(299, -1, -1)] + [[None, None]]
        assert answer.json()["status"][-1] == ["NOT_FOUND", "NOT_FOUND"]
