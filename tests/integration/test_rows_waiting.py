"""Committed rows that are not online are told by status, verify and a metric, whatever became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.materialized import Sale, day, sales_view, write_sales
from support.projects import make_workspace
from support.redis_server import RedisServer

from featurestore.cli.commands.verify import in_words
from featurestore.consistency import waiting_rows
from featurestore.errors import OnlineStoreFullError
from featurestore.ingest import push
from featurestore.ingest.push import Push, PushTarget
from featurestore.ingest.rows import read_rows
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.status import status
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline import groups
from featurestore.online.interface import Write
from featurestore.online.records.codec import is_record
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch import waiting
from featurestore.server.watch.metrics import Metrics
from featurestore.server.watch.waiting import WaitingWatch
from featurestore.types.times import to_datetime
from featurestore.workspace import Workspace

NOW = day(20)
PREFIX = b"fs:shop:shop_sales:"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(waiting_rows, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(waiting, "EVERY_SECONDS", 0.0)


@pytest.fixture(params=["lmdb", "redis"])
def server(request: pytest.FixtureRequest, start_redis: Callable[..., RedisServer]) -> RedisServer | None:
    return start_redis() if request.param == "redis" else None


@pytest.fixture
def workspace(tmp_path: Path, server: RedisServer | None) -> Iterator[Workspace]:
    write_sales(tmp_path / "sales.parquet", [Sale(f"shop {number}", day(1), day(1), number) for number in range(10)])
    # Redis expires by its own clock, and the times are long past.
    view = sales_view(pushed=True, ttl=timedelta(days=9) if server is None else None)
    url = None if server is None else server.url
    with closing(make_workspace(tmp_path, [view], online_url=url, now_us=NOW)) as made:
        succeeded(materialize_incremental(made))
        yield made


class Told:
    """What is told of rows that wait."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.metrics = workspace, Metrics()
        self.keeper = SnapshotKeeper(Workspace(workspace.root, workspace.settings, clock=workspace.clock))
        self.keeper.load()
        self.watch = WaitingWatch(workspace, self.keeper, self.metrics)

    def rows(self) -> int:
        """Return how many rows wait, as everybody says it."""
        (shown,) = status(self.workspace)
        (checked,) = verify(self.workspace)
        assert checked.problems == ()
        assert checked.waiting == shown.waiting
        lags = []
        for wait_us in (0, 5_000_000):
            self.keeper.refresh()
            self.watch.look()
            self.metrics.progress(self.keeper.progress, self.workspace.clock() + wait_us)
            line = 'featurestore_publish_lag_seconds{view="shop_sales"} '
            lags.append(float(self.metrics.text().decode().partition(line)[2].split()[0]))
        assert lags[1] == (lags[0] + 5 if shown.waiting else 0)
        return shown.waiting


def rows_of(*sales: tuple[str, float]) -> dict[str, list[object]]:
    times = [to_datetime(day(at)) for _, at in sales]
    return {"shop": [shop for shop, _ in sales], "sold_at": times, "known_at": times} | {
        name: [1 if name == "amount" else "pushed"] * len(sales) for name in ("amount", "note")
    }


def begun(workspace: Workspace, *sales: tuple[str, int]) -> Push:
    """Commit rows, as far as a push comes whose process dies then."""
    target = PushTarget(workspace.snapshot(), "sales_push")
    work = Push(workspace, target, read_rows(rows_of(*sales)), "both")
    wait(work.commit())
    work.confirm()
    return work


def test_rows_of_a_push_that_died_are_told_until_they_are_online(workspace: Workspace) -> None:
    told = Told(workspace)
    push(workspace, "sales_push", rows_of(("shop 1", 10), ("shop 2", 10)))
    assert told.rows() == 0
    begun(workspace, ("shop 1", 11), ("new", 11), ("shop 2", 9))  # one is older than what is online
    assert told.rows() == 2
    push(workspace, "sales_push", rows_of(("shop 3", 12)))
    optimize(workspace)
    assert told.rows() == 2
    push(workspace, "sales_push", rows_of(("new", 13)))  # now nobody misses the one before
    assert told.rows() == 1
    push(workspace, "sales_push", rows_of(("shop 4", 12)), to="offline")
    succeeded(materialize_incremental(workspace))
    assert told.rows() == 0


@pytest.mark.parametrize("server", ["lmdb"], indirect=True)
def test_rows_that_are_not_to_be_online_do_not_wait(workspace: Workspace) -> None:
    """One has expired, the other counts in a second."""
    begun(workspace, ("gone", 1), ("ahead", 20 + 1 / 86_400))
    assert Told(workspace).rows() == 0


def test_a_merged_file_is_read_where_it_is_new(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it has more rows than are looked at."""
    begun(workspace, ("shop 1", 11), ("new", 12))
    optimize(workspace)
    registered = workspace.snapshot().views["shop_sales"]
    mark = read_watermark(workspace.ledger, registered)
    assert len(waiting_rows.waiting_rows(workspace, registered, mark, most_rows=2)) == 2
    monkeypatch.setattr(waiting_rows, "_greatest_sequence", lambda group: -1)
    assert waiting_rows.waiting_rows(workspace, registered, mark) == {}


def test_rows_that_the_online_store_lost_are_told(workspace: Workspace) -> None:
    told, online = Told(workspace), workspace.online
    push(workspace, "sales_push", rows_of(("shop 1", 10)))
    before = [pair for batch in online.scan(PREFIX) for pair in batch]
    push(workspace, "sales_push", rows_of(("shop 1", 11), ("new", 11)))
    assert told.rows() == 0
    online.delete(PREFIX)
    for key, value in before:
        if is_record(value):
            online.write([Write(key, value, None)], now_us=NOW)
        else:
            online.put(key, value)
    assert told.rows() == 2
    push(workspace, "sales_push", rows_of(("shop 2", 12)))  # notes its own commit in the store
    assert told.rows() == 2
    succeeded(materialize_incremental(workspace))
    assert told.rows() == 0
    online.delete(PREFIX)  # which is told by itself
    assert (status(workspace)[0].waiting, len(status(workspace)[0].mismatches)) == (0, 1)


def test_a_push_under_way_is_not_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in (lambda: status(workspace)[0].waiting, lambda: verify(workspace)[0].waiting):
        work = begun(workspace, ("shop 1", 10 + int(time.monotonic_ns() % 5)), ("new", 15))
        monkeypatch.setattr(waiting_rows, "time", SimpleNamespace(sleep=lambda _, work=work: work.publish()))
        assert told() == 0


@pytest.mark.parametrize("server", ["redis"], indirect=True)
def test_rows_that_a_full_redis_refused_are_told(workspace: Workspace, server: RedisServer) -> None:
    told = Told(workspace)
    with server.client() as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(OnlineStoreFullError):
            push(workspace, "sales_push", rows_of(("shop 1", 10)))
        client.config_set("maxmemory", "0")
    assert told.rows() == 1
    assert "shop_sales: 1 row is committed and not online. The next `fs materialize" in in_words("shop_sales", 1)
