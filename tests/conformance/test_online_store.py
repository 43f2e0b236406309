"""The suite of `featurestore.testing` over every online store that is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.locales import locale_environment
from support.redis_server import RedisServer

from featurestore.online.interface import OnlineStore, WriteResult
from featurestore.online.lmdb.store import LmdbStore
from featurestore.online.redis.cluster.store import RedisClusterStore
from featurestore.online.redis.store import RedisStore
from featurestore.testing.online_events import OnlineEventsConformance
from featurestore.testing.online_store import DAY_US, OnlineStoreConformance, record_of
from featurestore.types.times import system_clock

BUSY_MACHINE_MS = 10_000


class TestLmdb(OnlineStoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OnlineStore]:
        store = LmdbStore(tmp_path / "online")
        yield store
        store.close()

    def test_sweeping_removes_what_has_expired(self, store: OnlineStore, now: int) -> None:
        brief = [record_of(now, entity=f"b{n}")._replace(expire_at_ms=now // 1000 + 1) for n in range(2_500)]
        lasting = [record_of(now, entity=f"l{n}") for n in range(10)]
        store.write([*brief, *lasting], now_us=now)
        entries = int(store.facts()["entries"])
        assert store.sweep(now_us=now) == 0
        assert store.sweep(now_us=now + DAY_US) == 2_500
        assert int(store.facts()["entries"]) == entries - 2_500
        assert None not in store.mget([write.key for write in lasting])

    def test_each_publish_sweeps_a_slice(self, store: OnlineStore, now: int) -> None:
        brief = [record_of(now, entity=f"b{n:04}")._replace(expire_at_ms=now // 1000 + 1) for n in range(1_000)]
        store.write(brief, now_us=now)
        left = []
        for publish in range(40):
            store.write([record_of(now, entity=f"a{publish}")], now_us=now + DAY_US)
            left.append(int(store.facts()["entries"]))
        assert left[0] > left[3] > left[8]
        assert left[-1] < 60

    def test_results_stand_in_the_order_of_the_writes_however_they_are_cut(self, store: OnlineStore, now: int) -> None:
        names = [f"e{number * 7 % 20:02}" for number in range(20)]
        newer = {name for name in names if name[-1] in "09"}
        store.write([record_of(now + 1, entity=name) for name in newer], now_us=now)
        writes = [record_of(now, entity=name) for name in names]
        large = [write._replace(record=write.record + bytes(1 << 20)) for write in writes]  # a transaction takes eight
        results = store.write(large, now_us=now)
        assert results == [WriteResult.STALE if name in newer else WriteResult.WRITTEN for name in names]


class TestRedis(OnlineStoreConformance):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[OnlineStore]:
        store = RedisStore(redis_url, read_timeout_ms=BUSY_MACHINE_MS, connect_timeout_ms=BUSY_MACHINE_MS)
        yield store
        store.close()

    @pytest.mark.parametrize("command", ["hset", "lpush", "sadd"])
    def test_a_key_of_another_type_is_reported_and_left_alone(
        self, store: OnlineStore, redis_server: RedisServer, now: int, command: str
    ) -> None:
        writes = [record_of(now, x=number, entity=f"e{number}") for number in range(2_000)]
        with redis_server.client() as client:
            client.execute_command(command, writes[1_500].key, "a", *(["b"] if command == "hset" else []))
            kind = client.type(writes[1_500].key)
            results = store.write(writes, now_us=now)
            assert client.type(writes[1_500].key) == kind
        assert [place for place, result in enumerate(results) if result is not WriteResult.WRITTEN] == [1_500]
        assert results[1_500] is WriteResult.WRONG_TYPE
        read = store.mget([write.key for write in writes])
        assert read == [None if place == 1_500 else write.record for place, write in enumerate(writes)]

    def test_expiry_is_set_to_the_millisecond(self, store: OnlineStore, redis_server: RedisServer, now: int) -> None:
        write = record_of(now)._replace(expire_at_ms=now // 1000 + 123_457)
        store.write([write], now_us=now)
        with redis_server.client() as client:
            left_ms = client.pttl(write.key)
        assert 0 <= write.expire_at_ms - system_clock() // 1000 - left_ms < 1_000 or left_ms <= 123_457


class TestLmdbEvents(OnlineEventsConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[OnlineStore]:
        store = LmdbStore(tmp_path / "online")
        yield store
        store.close()


class TestRedisEvents(OnlineEventsConformance):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[OnlineStore]:
        store = RedisStore(redis_url, read_timeout_ms=BUSY_MACHINE_MS, connect_timeout_ms=BUSY_MACHINE_MS)
        yield store
        store.close()


class TestRedisCluster(OnlineStoreConformance):
    @pytest.fixture
    def store(self, redis_cluster_url: str) -> Iterator[OnlineStore]:
        deadlines = {"read_timeout_ms": BUSY_MACHINE_MS, "connect_timeout_ms": BUSY_MACHINE_MS}
        store = RedisClusterStore(redis_cluster_url, **deadlines)
        yield store
        store.close()


class TestRedisClusterEvents(OnlineEventsConformance):
    @pytest.fixture
    def store(self, redis_cluster_url: str) -> Iterator[OnlineStore]:
        deadlines = {"read_timeout_ms": BUSY_MACHINE_MS, "connect_timeout_ms": BUSY_MACHINE_MS}
        store = RedisClusterStore(redis_cluster_url, **deadlines)
        yield store
        store.close()


class TestRedisUnderAnotherLocale(TestRedis):
    """Lua's ``<`` on strings follows the server's locale; nothing of ours may."""

    @pytest.fixture(scope="class")
    @classmethod
    def redis_server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
        directory = tmp_path_factory.mktemp("redis_locale")
        with RedisServer(directory, environment=locale_environment(directory)) as server:
            yield server

    def test_the_server_does_collate_by_its_locale(self, redis_server: RedisServer) -> None:
        with redis_server.client() as client:
            assert client.eval("return tostring('B' < 'a')", 0) == b"false"


def test_a_server_without_a_locale_compares_bytes(start_redis: Callable[..., RedisServer]) -> None:
    with start_redis(environment={"LC_ALL": "C"}).client() as client:
        assert client.eval("return tostring('B' < 'a')", 0) == b"true"
