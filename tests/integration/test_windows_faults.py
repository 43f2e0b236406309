"""Accidents of stores and clocks among pushes, folds and publishes of windows: afterwards every event counts once."""

from __future__ import annotations

import itertools
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis
from support.projects import make_workspace
from support.redis_server import RedisServer
from support.serving import serving_here

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.errors import (
    DamagedRecordError,
    OnlineStoreFullError,
    OnlineStoreUnavailableError,
    RegistryUnavailableError,
)
from featurestore.following import follow
from featurestore.following.follow import Follower
from featurestore.ingest import events, push
from featurestore.ingest.push import Push, PushTarget, To
from featurestore.ingest.rows import read_rows
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize_incremental, republish, succeeded
from featurestore.offline import groups
from featurestore.offline.interface import MAX_SEQUENCE
from featurestore.online.interface import Placed, Slice
from featurestore.online.lmdb.environment import open_environment
from featurestore.online.records import windows_known
from featurestore.online.records.keys import KeyEncoder, mark_key, token_key
from featurestore.online.records.windowed import BASE_AT, empty, head_of
from featurestore.server.read import endpoints
from featurestore.serving import get_online_features
from featurestore.serving.views import served_view
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.windows.layout import layout_of
from featurestore.workspace import Workspace

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
WINDOWS: list[timedelta | None] = [timedelta(hours=1), timedelta(days=1), None]


def sales_view(*functions: str, windows: list[timedelta | None] = WINDOWS) -> FeatureView:
    batch = ParquetSource("sales_file", "sales", "sold_at")
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", batch),
        schema=[Field("id", String), Field("v", Float64), Field("t", String)],
        event_id="id",
        aggregations=[
            Aggregation("*", "count", windows=windows),
            *(Aggregation("v", function, windows=windows) for function in functions),
            Aggregation("t", "count_distinct", windows=windows),
        ],
    )


class Shop:
    """A project to which events are pushed."""

    def __init__(
        self, root: Path, url: str | None, *, shops: int = 3, windows: list[timedelta | None] = WINDOWS
    ) -> None:
        self.root, self.url = root, url
        self.shops, self.made = shops, 0
        now_us = system_clock() // HOUR_US * HOUR_US - HOUR_US
        view = sales_view("sum", "max", "last", windows=windows)
        self.workspace = make_workspace(root, [view], online_url=url, now_us=now_us)
        self.namespace = self.workspace.snapshot().views["sales"].online_prefix

    @property
    def now_us(self) -> int:
        return self.workspace.clock()

    def wait(self, by_us: int) -> None:
        self.workspace.clock.now_us += by_us

    def sell(self, count: int, *, workspace: Workspace | None = None, to: To = "both", **more: Any) -> Any:
        return push(workspace or self.workspace, "sales_push", self.columns(count, **more), to)

    def columns(self, count: int, *, text: str = "x", shop: int | None = None) -> dict[str, list[Any]]:
        numbers = range(self.made, self.made + count)
        self.made += count
        return {
            "shop": [number % self.shops if shop is None else shop for number in numbers],
            "sold_at": [to_datetime(self.now_us - place * 10_000_000) for place in range(count)],
            "id": [f"e{number}" for number in numbers],
            "v": [number % 7 / 8 + 0.1 for number in numbers],
            "t": [f"{text}{number % 50}" for number in numbers],
        }

    def online(self, workspace: Workspace | None = None) -> dict[str, list[Any]]:
        shops = list(range(min(self.shops, 500)))
        return get_online_features(workspace or self.workspace, ["sales:*"], {"shop": shops}).to_dict()

    def check(self) -> None:
        """Compare online with the offline join, and nothing else: no publish may heal what is wrong."""
        found = self.online()
        at = pa.array([self.now_us] * len(found["shop"]), pa.timestamp("us", "UTC"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingSetWarning)
            frame = pa.table({"shop": found["shop"], "event_timestamp": at})
            joined = get_historical_features(self.workspace, features=["sales:*"], entity_df=frame).to_arrow()
        for name in found:
            assert found[name] == joined[name].to_pylist(), name
        assert verify(self.workspace)[0].problems == ()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(windows_known, "MARK_SECONDS", 0.0)


@pytest.fixture(params=["lmdb", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, None if request.param == "lmdb" else request.getfixturevalue("redis_url"))
    with closing(made.workspace):
        yield made


def test_a_full_redis_takes_nothing_by_halves(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    server = start_redis("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")
    shop = Shop(tmp_path, server.url, shops=4_000)
    with closing(shop.workspace):
        fill = [partial(shop.sell, 1_000, text="y" * 200 + str(number)) for number in range(20)]
        with pytest.raises(OnlineStoreFullError, match="Committed offline before: sales"):
            any(push() is None for push in fill)
        before = shop.online()["count_all"]
        with pytest.raises(OnlineStoreFullError):
            shop.sell(300)
        assert shop.online()["count_all"] == before
        with server.client() as client:
            client.config_set("maxmemory", "100mb")
        shop.sell(1)
        shop.check()


def test_a_redis_that_restarts_empty_is_filled_from_the_log(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    server = start_redis()
    shop = Shop(tmp_path, server.url)
    with closing(shop.workspace):
        shop.sell(100)
        server.kill()
        with pytest.raises(OnlineStoreUnavailableError):
            shop.online()
        server.restart()
        assert shop.online()["count_all"] == [None] * 3
        shop.sell(5)
        shop.check()


def test_a_publish_between_a_look_at_records_and_one_at_marks_is_not_taken_for_no_events(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows_known, "MARK_SECONDS", 60.0)
    online, asked = shop.workspace.online, {"features": ["sales:count_all"], "entities": {"shop": [0, 99]}}
    registered = shop.workspace.snapshot().views["sales"]
    view = served_view(registered, ["count_all"], form="python", fetch=lambda key: online.get([key])[0])
    keys = view.keys(["0", "99"])
    before = online.get(keys)
    learn, pushed = endpoints.OnlineReads._learn, list[int]()

    async def learn_after_a_push(self: endpoints.OnlineReads, missing: Any) -> bool:
        if not pushed:
            pushed.append(1)
            shop.sell(5, shop=0)
        return await learn(self, missing)

    monkeypatch.setattr(endpoints.OnlineReads, "_learn", learn_after_a_push)
    with serving_here(Workspace(shop.root, shop.workspace.settings, clock=shop.workspace.clock)) as client:
        assert client.post("/v1/online-features", json=asked).json()["rows"] == [[5], [0]]
    assert before == [None, None]
    for _ in range(2):  # the second time for another thread, whose look at the records came before, too
        assert [list(row) for row in view.read(keys, before, shop.now_us).values] == [[5], [0]]


def test_a_clock_that_jumps_leaves_no_trace(shop: Shop) -> None:
    """A writer's clock is days ahead for a moment, then an hour behind: folds and publishes of it lose nothing."""
    shop.sell(150)
    shop.wait(MINUTE_US)
    shop.check()
    ahead = 20 * HOUR_US
    shop.wait(ahead)
    shop.sell(120)  # folds, by a clock that is ahead
    for publish in (lambda: None, lambda: republish(shop.workspace)):
        publish()
        shop.check()
        shop.wait(-ahead)
        assert min(shop.online()["count_1h"]) >= 50
        none = get_online_features(shop.workspace, ["sales:count_1h"], {"shop": [99]})
        assert none.event_timestamps["sales"] == [to_datetime(shop.now_us)]
        shop.wait(ahead)
    shop.wait(-ahead - HOUR_US)
    shop.sell(120)
    shop.online()
    shop.wait(HOUR_US)
    for _ in range(3):
        shop.sell(40)
        shop.wait(10 * MINUTE_US)
    shop.wait(ahead)
    shop.check()


@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_a_clock_far_ahead_removes_no_record_that_events_feed(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    """By more than the longest window and the day that records stay longer."""
    url = None if store == "lmdb" else request.getfixturevalue("redis_url")
    shop = Shop(tmp_path, url, windows=WINDOWS[:1])
    with closing(shop.workspace):
        shop.sell(150)
        shop.wait(MINUTE_US)
        shop.wait(26 * HOUR_US)
        succeeded(republish(shop.workspace))
        shop.workspace.online.sweep(now_us=shop.now_us)
        shop.wait(-26 * HOUR_US)
        shop.check()
        assert shop.online()["count_1h"] == [50] * 3
        shop.wait(26 * HOUR_US)
        shop.sell(1, shop=1)
        shop.wait(MINUTE_US - 26 * HOUR_US)
        shop.sell(1, shop=2)
        shop.check()
        assert shop.online()["count_1h"] == [50, 50, 51]


def test_a_record_of_other_definitions_among_the_others_is_made_anew(shop: Shop) -> None:
    shop.sell(60)
    registered = shop.workspace.snapshot().views["sales"]
    key, (other, _) = KeyEncoder(registered.layout).encode([1]), layout_of(sales_view("min"))
    strange = Placed(key, empty(key, other), MAX_SEQUENCE, None)
    shop.workspace.online.place([Slice([], [strange])])
    assert shop.online()["count_1h"][1] is None  # the layout's document is not there
    shop.sell(3)
    shop.check()


@pytest.mark.parametrize("parts", [1, 2])
def test_a_push_by_old_definitions_undoes_no_publish_of_new_ones(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """A server has them still when another process has published so many parts of the records anew."""
    shop.sell(12, shop=0)
    shop.sell(12)
    shop.wait(MINUTE_US)
    old = PushTarget(shop.workspace.snapshot(), "sales_push")
    workspace = make_workspace(shop.root, [sales_view("sum", "min")], online_url=shop.url, now_us=shop.now_us)
    server, shop.workspace = shop.workspace, workspace
    placed: list[str] = []
    real = follow.reached

    def push_by_old() -> str | None:
        work = Push(server, old, read_rows(shop.columns(1, shop=2)), "both")
        wait(work.commit())
        work.confirm()
        work.publish()
        return work.result().note

    def meanwhile(point: str) -> None:
        real(point)
        if point == follow.PLACED:
            placed.append(point)
            if len(placed) == parts:
                assert push_by_old() is None

    monkeypatch.setattr(follow, "PLACED_AT_ONCE", 1)
    monkeypatch.setattr(follow, "reached", meanwhile)
    succeeded(republish(workspace))
    shop.check()
    assert push_by_old() is None
    shop.check()

    def unreachable() -> None:
        raise RegistryUnavailableError("It is down.")

    monkeypatch.setattr(server, "snapshot", unreachable)
    assert "online with the next `fs materialize --view sales`" in str(push_by_old())
    shop.sell(1)
    shop.check()
    server.close()


@pytest.mark.parametrize("kind", ["value", "list"])
def test_a_key_that_holds_something_else_holds_up_no_other(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    shop.sell(9)
    key = KeyEncoder(shop.workspace.snapshot().views["sales"].layout).encode([1])
    if kind == "value" or shop.url is None:  # the embedded store has nothing but bytes
        shop.workspace.online.put(key, b"something else")
    else:
        with redis.Redis.from_url(shop.url) as client:
            client.delete(key)
            client.rpush(key, "x")
    monkeypatch.setattr(events, "MOST_MADE_ANEW", 3)
    shown = f"1 keys hold something else: {key.decode()}"
    assert shown in str(shop.sell(3).note)
    assert shop.sell(2, shop=2).note is None
    shops = {"shop": [0, 2]}
    assert get_online_features(shop.workspace, ["sales:count_1h"], shops).to_dict()["count_1h"] == [4, 6]
    shop.sell(1, shop=1, to="offline")
    shop.wait(1)
    (run,) = materialize_incremental(shop.workspace)
    assert (run.published.wrong_type, run.published.wrong_type_keys) == (1, (key.decode(),))
    shop.workspace.online.delete(key)
    succeeded(republish(shop.workspace))
    shop.check()


@pytest.mark.parametrize("kind", ["base", "length", "cut", "orphan"])
def test_a_damaged_record_is_made_anew_by_a_publish(shop: Shop, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    shop.sell(150)
    shop.sell(9)
    keys = KeyEncoder(shop.workspace.snapshot().views["sales"].layout)
    key = keys.encode([99 if kind == "orphan" else 1])
    (found,) = shop.workspace.online.get([keys.encode([1])])
    assert found is not None
    record = bytearray(found)
    if kind == "base":
        record[BASE_AT + 6] ^= 0x40
    elif kind == "cut":
        del record[-20:]
    else:
        record[head_of(found).tiles_end] ^= 0x40  # the length of its first newest event
    shop.workspace.online.place([Slice([], [Placed(key, bytes(record), MAX_SEQUENCE, None)])])
    shop.wait(MINUTE_US)
    shop.sell(120)  # so many that they go into tiles
    assert ("no events go into tiles: the online record" in caplog.text) is (kind != "orphan")
    whole = get_online_features(shop.workspace, ["sales:count_all"], {"shop": [0, 2]})
    assert whole.to_dict()["count_all"] == [93, 93]
    if kind == "length":
        with pytest.raises(DamagedRecordError, match=re.escape(repr(key))):
            shop.online()
    succeeded(republish(shop.workspace))
    shop.check()
    shop.sell(120)
    shop.check()
    assert shop.workspace.online.get([keys.encode([99])]) == [None]


def test_a_damaged_mark_or_token_is_replaced_by_the_next_push(tmp_path: Path) -> None:
    shop = Shop(tmp_path, None)
    with closing(shop.workspace):
        shop.sell(9)
        keys = [mark_key(shop.namespace), token_key(shop.namespace, b"00")]
        for damaged in (keys[:1], keys):
            assert None not in shop.workspace.online.get(keys)
            shop.workspace.close()
            with open_environment(shop.workspace.root / "data" / "online", 1 << 30).begin(write=True) as transaction:
                for key in damaged:
                    value = transaction.get(key)
                    transaction.put(key, value[:-3] + b"?" + value[-2:])
            with pytest.raises(DamagedRecordError, match="applied"):
                shop.workspace.online.get(keys)
            shop.sell(3)
            shop.check()


def test_publishes_among_constant_folds_show_no_reader_fewer_events(shop: Shop, tmp_path: Path) -> None:
    others = [Workspace(tmp_path, shop.workspace.settings, clock=shop.workspace.clock) for _ in range(2)]
    shop.sell(40, shop=1)
    seen: list[int] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def go_on(work: Callable[[], None]) -> None:
        try:
            while not done.wait(0.01):
                work()
        except BaseException as error:
            failed.append(error)

    def publish() -> None:
        registered = others[0].snapshot().views["sales"]
        version = others[0].offline.current(registered.table)
        assert version is not None
        Follower(others[0], registered, version, lambda: None).bring(anew=True)

    threads = [
        threading.Thread(target=go_on, args=(publish,)),
        threading.Thread(target=go_on, args=(lambda: seen.append(shop.online(others[1])["count_all"][1]),)),
    ]
    for thread in threads:
        thread.start()
    for _ in range(8):
        shop.sell(45, shop=1)
        shop.wait(3_000_000)
    done.set()
    for thread in threads:
        thread.join()
    for workspace in others:
        workspace.close()
    assert not failed
    assert all(one <= two for one, two in itertools.pairwise(seen)), seen
    shop.check()
    (run,) = succeeded(republish(shop.workspace))
    assert run.published.written == 1
    shop.check()
