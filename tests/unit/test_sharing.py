"""Shared round trips and the breaker, over a reader of the tests' own that answers when it is told to."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from featurestore.backends import open_online
from featurestore.errors import OnlineNodeUnavailableError, OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.project.settings import StoreSettings
from featurestore.registered.snapshot import Snapshot
from featurestore.server.read.breaker import FAILURES_TO_OPEN, PROBE_SECONDS, Breaker
from featurestore.server.read.sharing import MOST_SHARED_KEYS, MOST_UNDER_WAY, SharedReads
from featurestore.server.read.templates import MOST_KEPT_BYTES, Asked, Templates
from featurestore.server.watch.metrics import Metrics


class ToldReader(AsyncReader):
    """Answers each key with itself once `let` is set; the call itself never fails by time."""

    def __init__(self, *, deadline_seconds: float = 5.0) -> None:
        self.deadline_seconds = deadline_seconds
        self.let = asyncio.Event()
        self.fail: Callable[[], BaseException] | None = None
        self.calls: list[list[bytes]] = []
        self.under_way = self.most_under_way = 0
        self.checks = 0
        self.check_fails = True

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.calls.append(list(keys))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.let.wait()
        finally:
            self.under_way -= 1
        if self.fail is not None:
            raise self.fail()
        return list(keys)

    async def check(self) -> None:
        self.checks += 1
        if self.fail is not None and self.check_fails:
            raise self.fail()

    async def close(self) -> None:
        self.let.set()


def down() -> OnlineStoreUnavailableError:
    return OnlineStoreUnavailableError("The store is down.")


async def begin(*reads: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Start reads and let each of them get as far as it can."""
    tasks = []
    for read in reads:
        tasks.append(asyncio.create_task(read))
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_what_arrives_meanwhile_goes_together() -> None:
    async def scenario() -> None:
        reader = ToldReader()
        shared = SharedReads(reader)
        tasks = await begin(*(shared.mget([b"%d" % number]) for number in range(6)))
        assert reader.calls == [[b"0"], [b"1"]]  # one direct, one as a task: as many as may be under way
        reader.let.set()
        assert await asyncio.gather(*tasks) == [[b"%d" % number] for number in range(6)]
        assert reader.calls[2:] == [[b"2", b"3", b"4", b"5"]]

    asyncio.run(scenario())


def test_what_is_answered_is_let_go_long_before_its_deadline() -> None:
    async def scenario() -> None:
        reader = ToldReader(deadline_seconds=60)
        shared = SharedReads(reader)
        before = len(gc.get_objects())
        for _ in range(50):
            reader.let.clear()
            tasks = await begin(*(shared.mget([b"%d" % number]) for number in range(10)))
            reader.let.set()
            await asyncio.gather(*tasks)
        reader.calls.clear()
        assert len(gc.get_objects()) - before < 200
        await shared.close()

    asyncio.run(scenario())


def test_a_round_trip_takes_no_more_keys_than_are_good_for_it() -> None:
    async def scenario() -> None:
        reader = ToldReader()
        shared = SharedReads(reader)
        half = [b"k"] * (MOST_SHARED_KEYS // 2)
        alone = [b"a"] * (MOST_SHARED_KEYS + 1)
        tasks = await begin(*(shared.mget(keys) for keys in ([b"1"], [b"2"], half, half, half, alone)))
        assert [len(call) for call in reader.calls] == [1, 1, len(alone)]  # the large one waits for nobody
        reader.let.set()
        await asyncio.gather(*tasks)
        assert [len(call) for call in reader.calls[3:]] == [MOST_SHARED_KEYS, MOST_SHARED_KEYS // 2]

    asyncio.run(scenario())


def test_a_round_trip_brings_no_more_bytes_than_are_good_for_it() -> None:
    """How large records are is learned from answers; the reader answers a key with itself."""

    async def scenario() -> None:
        reader = ToldReader()
        shared = SharedReads(reader)
        small, large = [b"small:{1}"], [b"large:{00}" + b"." * 30_000] * 2  # keys of 30 kB
        reader.let.set()
        for keys in (small, large, [*large, *large, large[0]]):
            await shared.mget(keys)
        reader.calls.clear()
        reader.let.clear()
        huge = large * 3
        tasks = await begin(*(shared.mget(keys) for keys in (small, small, large, small, large, small, huge)))
        assert reader.calls == [small, small, huge]  # what is more than may be shared waits for nobody
        reader.let.set()
        assert await asyncio.gather(*tasks) == [small, small, large, small, large, small, huge]
        assert reader.calls[3:] == [[*large, *small, *large, *small]]
        reader.calls.clear()
        reader.let.clear()
        tasks = await begin(*(shared.mget(keys) for keys in (small, small, large, large, large)))
        reader.let.set()
        await asyncio.gather(*tasks)
        assert reader.calls[2:] == [large * 2, large]

    asyncio.run(scenario())


def test_a_failed_call_fails_each_of_its_requests_by_an_error_of_its_own() -> None:
    async def scenario() -> None:
        reader = ToldReader()
        reader.fail = down
        shared = SharedReads(reader)
        tasks = await begin(*(shared.mget([b"%d" % number]) for number in range(5)))
        reader.let.set()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [OnlineStoreUnavailableError] * 5
        assert {str(error) for error in errors} == {"The store is down."}
        assert len({id(error) for error in errors}) == 5
        reader.fail = None
        assert await shared.mget([b"again"]) == [b"again"]

    asyncio.run(scenario())


@pytest.mark.parametrize("leaving", range(5))
def test_who_leaves_never_cancels_the_others(leaving: int) -> None:
    async def scenario() -> None:
        reader = ToldReader()
        shared = SharedReads(reader)
        tasks = await begin(*(shared.mget([b"%d" % number]) for number in range(5)))
        tasks[leaving].cancel()
        await asyncio.sleep(0)
        reader.let.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(leaving), asyncio.CancelledError)
        assert answers == [[b"%d" % number] for number in range(5) if number != leaving]

    asyncio.run(scenario())


def test_nobodys_deadline_is_extended_by_who_joins_later() -> None:
    async def scenario() -> None:
        reader = ToldReader(deadline_seconds=0.3)
        shared = SharedReads(reader)
        first = await begin(shared.mget([b"direct"]), shared.mget([b"task"]))
        begun = time.monotonic()
        ended: dict[str, float] = {}

        async def read(name: str) -> None:
            with pytest.raises(OnlineStoreUnavailableError, match="within 300 ms"):
                await shared.mget([name.encode()])
            ended[name] = time.monotonic() - begun

        early = asyncio.create_task(read("early"))
        await asyncio.sleep(0.2)
        late = asyncio.create_task(read("late"))
        await asyncio.gather(early, late)
        assert 0.28 < ended["early"] < 0.45
        assert 0.48 < ended["late"] < 0.75
        reader.let.set()
        assert await first[0] == [b"direct"]
        with pytest.raises(OnlineStoreUnavailableError):  # it waited as long as the others
            await first[1]
        assert await shared.mget([b"again"]) == [b"again"]

    asyncio.run(scenario())


def test_no_answer_ever_carries_anothers_values() -> None:
    class Jittery(ToldReader):
        async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            try:
                await asyncio.sleep(dice.random() * 0.002)
            finally:
                self.under_way -= 1
            if dice.random() < 0.2:
                raise down()
            return list(keys)

    dice = random.Random(3)
    counts = {"right": 0, "failed": 0, "left": 0}

    async def ask(shared: SharedReads, number: int) -> None:
        await asyncio.sleep(dice.random() * 0.5)
        keys = [b"%d.%d" % (number, place) for place in range(dice.randint(1, 20))]
        try:
            async with asyncio.timeout(dice.choice([0.0005, 0.001, 5.0])):
                assert await shared.mget(keys) == keys
            counts["right"] += 1
        except OnlineStoreUnavailableError:
            counts["failed"] += 1
        except TimeoutError:
            counts["left"] += 1

    async def scenario() -> None:
        reader = Jittery()
        shared = SharedReads(reader)
        await asyncio.gather(*(ask(shared, number) for number in range(3000)))
        assert reader.most_under_way <= MOST_UNDER_WAY
        await shared.close()

    asyncio.run(scenario())
    assert min(counts.values()) > 20
    assert sum(counts.values()) == 3000


def test_closing_ends_what_still_waits() -> None:
    async def scenario() -> None:
        shared = SharedReads(ToldReader())
        tasks = await begin(*(shared.mget([b"%d" % number]) for number in range(4)))
        await shared.close()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0] == [b"0"]
        assert isinstance(answers[1], OnlineStoreUnavailableError)

    asyncio.run(scenario())


def test_the_breaker_opens_fails_at_once_probes_and_closes() -> None:
    async def scenario() -> None:
        reader, metrics = ToldReader(), Metrics()
        reader.let.set()
        breaker = Breaker(reader, metrics, b"probe")
        reader.fail = down
        for _ in range(FAILURES_TO_OPEN - 1):
            with pytest.raises(OnlineStoreUnavailableError):
                await breaker.mget([b"k"])
        reader.fail = None
        assert await breaker.mget([b"k"]) == [b"k"]  # one success begins the count anew
        reader.fail = down
        for _ in range(FAILURES_TO_OPEN):
            assert not breaker.is_open
            with pytest.raises(OnlineStoreUnavailableError, match=r"The store is down\."):
                await breaker.mget([b"k"])
        assert breaker.is_open
        asked = len(reader.calls)
        with pytest.raises(OnlineStoreUnavailableError, match="is being probed"):
            await breaker.mget([b"k"])
        assert len(reader.calls) == asked  # the store was left alone
        assert b"featurestore_breaker_open 1.0" in metrics.text()
        await asyncio.sleep(2.2 * PROBE_SECONDS)
        assert reader.checks >= 2
        assert PROBE_SECONDS <= 1
        reader.fail = None
        await asyncio.sleep(1.5 * PROBE_SECONDS)
        assert not breaker.is_open
        assert await breaker.mget([b"k"]) == [b"k"]
        text = metrics.text()
        assert b"featurestore_breaker_open 0.0" in text
        assert b"featurestore_breaker_openings_total 1.0" in text
        assert f"featurestore_online_store_errors_total {2 * FAILURES_TO_OPEN - 1}.0".encode() in text
        await breaker.close()

    asyncio.run(scenario())


def test_a_node_that_is_away_opens_no_breaker() -> None:
    async def scenario() -> None:
        reader, metrics = ToldReader(), Metrics()
        reader.let.set()
        breaker = Breaker(reader, metrics, b"probe")
        reader.fail = lambda: OnlineNodeUnavailableError("A node is away.")
        for _ in range(3 * FAILURES_TO_OPEN):
            with pytest.raises(OnlineNodeUnavailableError):
                await breaker.mget([b"k"])
        assert not breaker.is_open
        assert f"featurestore_online_store_errors_total {3 * FAILURES_TO_OPEN}.0".encode() in metrics.text()
        reader.fail = None
        assert await breaker.mget([b"k"]) == [b"k"]
        await breaker.close()

    asyncio.run(scenario())


def test_a_store_that_answers_but_refuses_reads_is_not_well() -> None:
    async def scenario() -> None:
        reader = ToldReader()
        reader.let.set()
        breaker = Breaker(reader, Metrics(), b"probe")
        await breaker.check()
        assert reader.calls == [[b"probe"]]
        reader.fail, reader.check_fails = down, False
        with pytest.raises(OnlineStoreUnavailableError):
            await breaker.check()
        for _ in range(FAILURES_TO_OPEN):
            with pytest.raises(OnlineStoreUnavailableError):
                await breaker.mget([b"k"])
        await asyncio.sleep(2.2 * PROBE_SECONDS)
        assert breaker.is_open
        await breaker.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "lmdb"])
def test_one_server_shares_round_trips(scheme: str, tmp_path: Path) -> None:
    """By its deadline the server knows. A node of a cluster that is away must not fail the requests of the others."""
    url = "lmdb:///online" if scheme == "lmdb" else f"{scheme}://127.0.0.1:1"
    options = {} if scheme == "lmdb" else {"read_timeout_ms": 70}

    async def scenario() -> float | None:
        store = open_online(StoreSettings(url=url, **options), tmp_path)
        reader = store.reader()
        await reader.close()
        store.close()
        return reader.deadline_seconds

    assert asyncio.run(scenario()) == (0.07 if scheme == "redis" else None)


def test_templates_of_long_texts_are_not_kept() -> None:
    templates = Templates(Snapshot("p", 1, ()))
    made: list[Asked] = []

    def compile_(asked: Asked) -> Any:
        made.append(asked)
        return SimpleNamespace(deprecated=[])

    templates._compile = compile_  # type: ignore[method-assign]
    for text in (b"[]", b"[" + b" " * MOST_KEPT_BYTES + b"]"):
        for _ in range(2):
            templates.template(Asked(text, None, False))
    assert [len(asked.features) > MOST_KEPT_BYTES for asked in made].count(True) == 2
    assert [asked.features for asked in templates._kept] == [b"[]"]
