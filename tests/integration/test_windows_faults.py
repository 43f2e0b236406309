"""Accidents of stores and clocks among pushes, folds and publishes of windows: afterwards every event counts once."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.projects import make_workspace
from support.redis_server import RedisServer

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.errors import OnlineStoreFullError, OnlineStoreUnavailableError
from featurestore.following.follow import Follower
from featurestore.ingest import push
from featurestore.maintenance.verify import verify
from featurestore.materialization import republish, succeeded
from featurestore.offline import groups
from featurestore.offline.interface import MAX_SEQUENCE
from featurestore.online.interface import Placed, Slice
from featurestore.online.records import windows_known
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import empty
from featurestore.serving import get_online_features
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.windows.layout import layout_of
from featurestore.workspace import Workspace

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
WINDOWS = [timedelta(hours=1), timedelta(days=1), None]


def sales_view(*functions: str) -> FeatureView:
    batch = ParquetSource("sales_file", "sales", "sold_at")
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", batch),
        schema=[Field("id", String), Field("v", Float64), Field("t", String)],
        event_id="id",
        aggregations=[
            Aggregation("*", "count", windows=WINDOWS),
            *(Aggregation("v", function, windows=WINDOWS) for function in functions),
            Aggregation("t", "count_distinct", windows=WINDOWS),
        ],
    )


class Shop:
    """A project to which events are pushed."""

    def __init__(self, root: Path, url: str | None, *, shops: int = 3) -> None:
        self.shops, self.made = shops, 0
        now_us = system_clock() // HOUR_US * HOUR_US - HOUR_US
        self.workspace = make_workspace(root, [sales_view("sum", "max", "last")], online_url=url, now_us=now_us)
        self.namespace = self.workspace.snapshot().views["sales"].online_prefix

    @property
    def now_us(self) -> int:
        return self.workspace.clock()

    def wait(self, by_us: int) -> None:
        self.workspace.clock.now_us += by_us

    def sell(self, count: int, *, text: str = "x", shop: int | None = None, workspace: Workspace | None = None) -> Any:
        numbers = range(self.made, self.made + count)
        self.made += count
        columns = {
            "shop": [number % self.shops if shop is None else shop for number in numbers],
            "sold_at": [to_datetime(self.now_us - place * 10_000_000) for place in range(count)],
            "id": [f"e{number}" for number in numbers],
            "v": [number % 7 / 8 + 0.1 for number in numbers],
            "t": [f"{text}{number % 50}" for number in numbers],
        }
        return push(workspace or self.workspace, "sales_push", columns)

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


def test_a_record_of_other_definitions_among_the_others_is_made_anew(shop: Shop) -> None:
    shop.sell(60)
    registered = shop.workspace.snapshot().views["sales"]
    key, (other, _) = KeyEncoder(registered.layout).encode([1]), layout_of(sales_view("min"))
    strange = Placed(key, empty(key, other), MAX_SEQUENCE, None)
    shop.workspace.online.place([Slice([], [strange])], now_us=shop.now_us)
    assert shop.online()["count_1h"][1] is None  # the layout's document is not there
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
