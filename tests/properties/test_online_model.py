"""Both online stores against a dict that keeps the greatest (event_ts, created_ts) of each key.

Step by step by one writer, and what four of them leave that write at once.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.contested import KEYS, WRITERS, begin_writers, offered_by, open_store
from support.examples import examples
from support.redis_server import RedisServer
from support.wire import values_of

from featurestore.online.interface import OnlineStore, Repair, ViewLayout, Write, WriteResult
from featurestore.online.lmdb.store import LmdbStore
from featurestore.online.records.codec import record_times, version_of
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.redis.store import RedisStore
from featurestore.types import Int64, String
from featurestore.types.times import system_clock

NOW = system_clock()
FAR_MS = NOW // 1000 + 86_400_000
VIEWS = [
    ViewLayout("model", view, generation, (("id", String),), (("x", Int64),), None)
    for view, generation in (("a", 1), ("a", 2), ("ab", 1), ("a_", 1))
]
ENTITIES = ["", "a", "a|b", "*", "[ab]", "{}", "\n", "é", "x" * 300]

# Few instants, so that they meet; around zero, and 2**32 apart, where words carry.
instants = st.sampled_from([-(1 << 32), -1, 0, 1, (1 << 32) - 1, 1 << 32, NOW - 1, NOW, NOW + 1, NOW + (1 << 40)])
keys = st.tuples(st.sampled_from(range(len(VIEWS))), st.sampled_from(ENTITIES))
expiries = st.sampled_from([None, None, FAR_MS, NOW // 1000, 1, 0, -1])
rows = st.tuples(keys, instants, instants, st.integers(-5, 5), expiries)

Model = dict[bytes, tuple[int, int, int]]
"""Per key: event_us, created_us, x."""


def write_of(row: tuple[tuple[int, str], int, int, int, int | None]) -> Write:
    (view, entity), event_us, created_us, x, expire_at_ms = row
    write = RecordEncoder(VIEWS[view]).write([entity], event_us, created_us, [x])
    return write._replace(expire_at_ms=expire_at_ms)


class OnlineStoreMachine(RuleBasedStateMachine):
    """Publishes, repairs, deletes and reopens; after each step the store must hold what the dict holds."""

    make: ClassVar[Iterator[OnlineStore]]
    store: OnlineStore

    @initialize()
    def begin(self) -> None:
        self.store = next(type(self).make)
        self.model: Model = {}

    @rule(batch=st.lists(rows, min_size=1, max_size=8))
    def write(self, batch: list[tuple[tuple[int, str], int, int, int, int | None]]) -> None:
        expected = []
        for row in batch:
            key = write_of(row).key
            _, event_us, created_us, x, expire_at_ms = row
            stored = self.model.get(key)
            if stored is not None and (event_us, created_us) < stored[:2]:
                expected.append(WriteResult.STALE)
            elif expire_at_ms is not None and expire_at_ms <= NOW // 1000:
                self.model.pop(key, None)
                expected.append(WriteResult.EXPIRED)
            else:
                self.model[key] = (event_us, created_us, x)
                expected.append(WriteResult.WRITTEN)
        assert self.store.write([write_of(row) for row in batch], now_us=NOW) == expected

    @rule(row=rows, event_us=instants, created_us=instants, replace=st.booleans())
    def repair(
        self,
        row: tuple[tuple[int, str], int, int, int, int | None],
        event_us: int,
        created_us: int,
        replace: bool,
    ) -> None:
        write = write_of(row)
        stored = self.model.get(write.key)
        holds = stored is not None and stored[:2] == (event_us, created_us)
        if holds:
            del self.model[write.key]
            if replace and (write.expire_at_ms is None or write.expire_at_ms > NOW // 1000):
                self.model[write.key] = (row[1], row[2], row[3])
        done = self.store.repair(
            [Repair(write.key, version_of(event_us, created_us), write if replace else None)], now_us=NOW
        )
        assert done == [holds]

    @rule(key=keys)
    def repair_what_is_there(self, key: tuple[int, str]) -> None:
        name = RecordEncoder(VIEWS[key[0]]).keys.encode([key[1]])
        if stored := self.model.pop(name, None):
            assert self.store.repair([Repair(name, version_of(stored[0], stored[1]), None)], now_us=NOW) == [True]

    @rule(view=st.sampled_from(range(len(VIEWS))))
    def delete(self, view: int) -> None:
        prefix = RecordEncoder(VIEWS[view]).keys.namespace
        gone = [key for key in self.model if key.startswith(prefix)]
        assert self.store.delete(prefix) == len(gone)
        for key in gone:
            del self.model[key]

    @rule()
    def reopen(self) -> None:
        self.store.close()

    @invariant()
    def store_equals_model(self) -> None:
        found: Model = {}
        for layout in VIEWS:
            for batch in self.store.scan(RecordEncoder(layout).keys.prefix):
                for key, record in batch:
                    found[key] = (*record_times(record), *values_of(layout, key, record))
                    assert self.store.mget([key]) == [record]
        assert found == self.model
        absent = [RecordEncoder(layout).keys.encode([entity]) for layout in VIEWS for entity in ENTITIES]
        absent = [key for key in absent if key not in self.model]
        assert self.store.mget(absent) == [None] * len(absent)

    def teardown(self) -> None:
        self.store.close()


STEPS = settings(max_examples=examples(25), stateful_step_count=15)


def test_lmdb_is_the_model(tmp_path: Path) -> None:
    def stores() -> Iterator[OnlineStore]:
        while True:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            yield LmdbStore(folder, clock=lambda: NOW)
            shutil.rmtree(folder)

    OnlineStoreMachine.make = stores()
    run_state_machine_as_test(OnlineStoreMachine, settings=STEPS)


@pytest.mark.usefixtures("redis_url")
def test_redis_is_the_model(redis_server: RedisServer) -> None:
    def stores() -> Iterator[OnlineStore]:
        while True:
            with redis_server.client() as client:
                client.flushall()
            yield RedisStore(redis_server.url, read_timeout_ms=10_000)

    OnlineStoreMachine.make = stores()
    run_state_machine_as_test(OnlineStoreMachine, settings=STEPS)


def assert_four_writers_are_the_model(url: str) -> None:
    now_us = system_clock()
    store = open_store(url)
    offered = [write for writer in range(WRITERS) for batch in offered_by(writer, now_us) for write in batch]
    records = {(write.key, write.record) for write in offered}
    seen: dict[bytes, tuple[int, int]] = {}
    looks = 0
    writers = begin_writers(url, now_us)
    while any(writer.poll() is None for writer in writers):
        for key, record in zip(KEYS, store.mget(KEYS), strict=True):
            if record is not None:
                assert (key, record) in records  # whole, as one of them wrote it
                times = record_times(record)
                assert times >= seen.get(key, times)  # never a step back
                seen[key] = times
        looks += 1
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    assert looks > 1

    model: dict[bytes, tuple[int, int]] = {}
    for write in offered:
        model[write.key] = max(record_times(write.record), model.get(write.key, (0, 0)))
    last = dict(zip(KEYS, store.mget(KEYS), strict=True))
    assert {key: record_times(record or b"") for key, record in last.items()} == model
    assert set(last.items()) <= records
    store.close()


def test_four_processes_at_once_leave_lmdb_as_the_model(tmp_path: Path) -> None:
    assert_four_writers_are_the_model(str(tmp_path / "online"))


def test_four_processes_at_once_leave_redis_as_the_model(redis_url: str) -> None:
    assert_four_writers_are_the_model(redis_url)
