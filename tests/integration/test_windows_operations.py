"""Windowed views in operation: definitions change, stores are restored or lost, and what is seen of it.

Whatever happens, a value online is that of the offline join at the same instant, or NOT_FOUND: never another number.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from support.clock import ManualClock
from support.redis_server import RedisServer
from support.serving import serving_here

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.cli.main import main
from featurestore.consistency import moments
from featurestore.consistency.belonging import markers_of
from featurestore.errors import (
    ChangesNotAllowedError,
    MismatchError,
    OnlineStoreError,
    OnlineStoreUnavailableError,
)
from featurestore.following import held
from featurestore.following.follow import Follower
from featurestore.following.lag import Lag
from featurestore.following.mark import mark_from, read_marks
from featurestore.ingest import events, push
from featurestore.ingest.push import Push, PushTarget
from featurestore.ingest.rows import read_rows
from featurestore.maintenance import gc
from featurestore.maintenance.doctor import examine
from featurestore.maintenance.optimize import optimize
from featurestore.maintenance.status import status
from featurestore.maintenance.teardown import drop_data
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.offline import groups
from featurestore.offline.interface import MAX_SEQUENCE
from featurestore.online.interface import Placed, Slice
from featurestore.online.records import windows_known
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.marker import RECONCILE
from featurestore.online.records.windowed import decode, encode, entries_of
from featurestore.plan import apply_plan, make_plan
from featurestore.plan.applying import check_allowed
from featurestore.plan.changes import Loss, Plan, Step
from featurestore.plan.classes import ChangeClass
from featurestore.project.loader import collect
from featurestore.project.settings import make_settings
from featurestore.registered.snapshot import Snapshot
from featurestore.repair import find_repairs, repair
from featurestore.server.app import create_app
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.server.watch.parts import PartWatch
from featurestore.server.watch.windows import WindowWatch
from featurestore.serving import get_online_features
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock, to_datetime, to_rfc3339
from featurestore.windows.layout import layout_of
from featurestore.windows.tiles import Tiles
from featurestore.workspace import Workspace

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SHOPS = [0, 1, 2, 9]
NAMESPACE = b"fs:shop:sales:"


def sales_view(*more: Aggregation, windows: tuple[timedelta | None, ...] = (HOUR,), **options: Any) -> FeatureView:
    batch = ParquetSource("sales_file", "sales", "sold_at", allowed_lateness=timedelta(days=400))
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=options.pop("source", PushSource("sales_push", batch)),
        schema=[Field("id", String), Field("v", Float64), *options.pop("schema", ())],
        event_id="id",
        aggregations=[
            Aggregation("v", "sum", windows=windows),
            Aggregation("*", "count", windows=windows),
            *more,
        ],
        **options,
    )


def view_without_ids() -> FeatureView:
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=sales_view().batch_sources[0],
        schema=[Field("v", Float64)],
        aggregations=[Aggregation("v", "sum", windows=[HOUR])],
    )


REFUNDS = Aggregation("v", "sum", windows=[HOUR], name="refunds", where="v < 0")


class Shop:
    """A project to which events are pushed."""

    def __init__(self, root: Path, online_url: str | None, view: FeatureView) -> None:
        now_us = system_clock() // HOUR_US * HOUR_US - HOUR_US
        self.root, self.url = root, online_url
        settings = make_settings({"project": "shop", "online_store": online_url or "lmdb:///data/online"})
        self.workspace = Workspace(root, settings, clock=ManualClock(now_us))
        self.made = 0
        self.write([])
        self.apply(view)

    @property
    def now_us(self) -> int:
        return self.workspace.clock()

    def wait(self, by_us: int) -> None:
        self.workspace.clock.now_us += by_us

    def other(self) -> Workspace:
        """Return a workspace of another process."""
        return Workspace(self.root, self.workspace.settings, clock=self.workspace.clock)

    def sales(self, count: int, minutes: int, shops: int) -> dict[str, list[Any]]:
        numbers = range(self.made, self.made + count)
        self.made += count
        return {
            "shop": [number % shops for number in numbers],
            "sold_at": [to_datetime(self.now_us - place * minutes * MINUTE_US // count) for place in range(count)],
            "id": [f"e{number}" for number in numbers],
            "v": [(number % 7 - 3) / 8 + 0.1 for number in numbers],
        }

    def sell(self, count: int = 12, *, minutes: int = 50, shops: int = 3, **options: Any) -> Any:
        """Push events, in turn of some shops and spread evenly over the last minutes."""
        return push(self.workspace, "sales_push", self.sales(count, minutes, shops), **options)

    def sell_at(self, workspace: Workspace, snapshot: Snapshot) -> None:
        """Push as a server that has a snapshot of the definitions."""
        work = Push(workspace, PushTarget(snapshot, "sales_push"), read_rows(self.sales(6, 5, 3)), "both")
        wait(work.commit())
        work.confirm()
        work.publish()

    def write(self, sales: list[dict[str, Any]]) -> None:
        """Write a file of events for the batch source."""
        (self.root / "sales").mkdir(exist_ok=True)
        kinds = {"shop": pa.int64(), "sold_at": pa.timestamp("us", "UTC"), "id": pa.string(), "v": pa.float64()}
        kinds["t"] = pa.string()
        count = len(list((self.root / "sales").iterdir()))
        table = pa.Table.from_pylist(sales, schema=pa.schema(list(kinds.items())))
        pq.write_table(table, self.root / "sales" / f"{count}.parquet")

    def plan(self, view: FeatureView) -> Plan:
        return make_plan(self.workspace, collect([view]), partial=False)

    def apply(self, view: FeatureView) -> Step:
        plan = self.plan(view)
        apply_plan(self.workspace, plan)
        self.workspace.snapshot()  # as a server that has refreshed
        (step,) = (step for step in plan.steps if step.kind == "feature_view")
        return step

    def run(self) -> Any:
        self.wait(1)
        (done,) = succeeded(materialize_incremental(self.workspace))
        return done

    def online(self, workspace: Workspace | None = None, features: str = "sales:*") -> dict[str, list[Any]]:
        response = get_online_features(workspace or self.workspace, [features], {"shop": SHOPS})
        return response.to_dict(include_status=True, include_event_timestamps=True)

    def offline(self, workspace: Workspace | None = None) -> dict[str, list[Any]]:
        at = pa.array([self.now_us] * len(SHOPS), pa.timestamp("us", "UTC"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingSetWarning)
            frame = pa.table({"shop": SHOPS, "event_timestamp": at})
            made = get_historical_features(workspace or self.workspace, features=["sales:*"], entity_df=frame)
            found = made.to_arrow()
        return {name: found.column(name).to_pylist() for name in found.column_names}

    def check(self, workspace: Workspace | None = None, *, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
        """Compare online with the offline join; features ``without`` must be NOT_FOUND and null for every entity."""
        found, wanted = self.online(workspace), self.offline(workspace)
        names = [name.removesuffix("__status") for name in found if name.endswith("__status")]
        assert {*without} <= {*names}
        for name in names:
            if name in without:
                assert found[name] == [None] * len(SHOPS), name
                assert found[f"{name}__status"] == ["NOT_FOUND"] * len(SHOPS)
            else:
                assert found[name] == wanted[name], name
        return found


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(windows_known, "MARK_SECONDS", 0.0)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, None, sales_view())
    with closing(made.workspace):
        yield made


@pytest.fixture(params=["lmdb", "redis"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, None if request.param == "lmdb" else request.getfixturevalue("redis_url"), sales_view())
    with closing(made.workspace):
        yield made


# Definitions change ---------------------------------------------------------------------------------------------------


def test_an_added_window_serves_at_once_where_its_tiles_are_kept(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = HOUR, timedelta(days=1)
    shop.apply(sales_view(REFUNDS, windows=windows))
    shop.sell(48, minutes=200)
    monkeypatch.setattr(Follower, "_publish", lambda self: pytest.fail("all records are made again"))
    wanted = sales_view(
        Aggregation("v", "mean", windows=[timedelta(minutes=30)], resolution=timedelta(minutes=5)),
        REFUNDS,
        windows=windows,
    )
    step = shop.apply(wanted)
    assert (step.change_class, step.commands) == (ChangeClass.COMPATIBLE, ())
    assert None not in shop.check()["v_mean_30min"][:3]
    assert shop.sell().views["sales"].online is not None
    shop.check()
    # Named in another order it is the same layout.
    wanted = sales_view(windows=windows[::-1])
    shop.apply(wanted.model_copy(update={"aggregations": (REFUNDS, *wanted.aggregations[::-1])}))
    shop.sell()
    shop.check()


@pytest.mark.parametrize(
    ("changed", "without"),
    [
        (sales_view(windows=(HOUR, timedelta(hours=2))), ("v_sum_2h", "count_2h")),
        (sales_view(windows=(HOUR, None)), ("v_sum_all", "count_all")),
        (sales_view(Aggregation("v", "max", windows=[HOUR])), ("v_max_1h",)),
        (sales_view(Aggregation("v", "last_n", n=2, windows=[HOUR])), ("v_last_2_1h",)),
        (sales_view(REFUNDS), ("refunds_1h",)),
    ],
    ids=["longer", "all of history", "function", "list", "where"],
)
def test_an_added_window_that_needs_more_is_not_found_until_its_records_are_made(
    shop: Shop, changed: FeatureView, without: tuple[str, ...]
) -> None:
    shop.sell(minutes=100)
    old = shop.other()
    snapshot = old.recent_snapshot()
    step = shop.apply(changed)
    assert step.change_class is ChangeClass.REBUILD
    assert step.commands == ("fs materialize --republish --view sales",)
    shop.check(without=without)
    # A server that still has the old definitions reads the new records, and its pushes do not undo them.
    (run,) = succeeded(republish(shop.workspace))
    assert (run.published.written, run.read) == (3, 0)
    shop.check()
    assert old.recent_snapshot() is snapshot
    assert shop.online(old)["v_sum_1h"] == shop.online()["v_sum_1h"]
    assert shop.online(old)["count_1h"][3] == 0
    assert old.recent_snapshot() is snapshot
    shop.sell_at(old, snapshot)
    shop.check()
    shop.apply(sales_view())
    shop.sell_at(old, snapshot)
    shop.check()
    old.close()


def test_a_changed_where_is_published_from_the_log(either: Shop) -> None:
    shop = either
    shop.apply(sales_view(REFUNDS))
    shop.sell()
    shop.check()
    changed = REFUNDS.model_copy(update={"where": "v < -0.2"})
    step = shop.apply(sales_view(changed))
    assert {each.what: each.change_class for each in step.differences} == {"window refunds_1h": ChangeClass.REBUILD}
    shop.check(without=("refunds_1h",))
    assert shop.sell(3).views["sales"].online is not None  # a push of a small log makes the records itself
    shop.check()
    # The next run does, too, though nothing came.
    shop.apply(sales_view(REFUNDS))
    shop.check(without=("refunds_1h",))
    assert shop.run().read == 0
    shop.check()


def test_a_record_that_had_left_the_windows_before_is_not_missed(shop: Shop) -> None:
    shop.sell()
    key = KeyEncoder(shop.workspace.snapshot().views["sales"].layout).encode([1])
    shop.wait(48 * HOUR_US)
    shop.workspace.online.delete(key)  # as stores do, when a record expires
    shop.apply(sales_view(windows=(HOUR, timedelta(days=30))))
    assert (verify(shop.workspace)[0].compared, verify(shop.workspace)[0].problems) == (0, ())
    republish(shop.workspace)
    assert (verify(shop.workspace)[0].compared, verify(shop.workspace)[0].problems) == (3, ())


def test_a_removed_window_and_another_resolution(shop: Shop) -> None:
    shop.apply(sales_view(REFUNDS))
    shop.sell()
    finer = [Aggregation("v", "sum", windows=[HOUR], resolution=MINUTE), Aggregation("*", "count", windows=[HOUR])]
    step = shop.apply(sales_view().model_copy(update={"aggregations": tuple(finer)}))
    classes = {each.what: each.change_class for each in step.differences}
    assert classes == {"window refunds_1h": ChangeClass.BREAKING, "window v_sum_1h": ChangeClass.REBUILD}
    assert step.generation == 1
    shop.check(without=("v_sum_1h",))
    shop.run()
    shop.check()


NONE_HAS_TO_RUN = "nothing has to be run: what is kept holds the new values too"
AGAIN = "fs materialize --republish --view sales"
REPUBLISH = f"afterwards run `{AGAIN}`: until then, or the next run, "
ONLINE_LATER = f"{REPUBLISH}pushed events do not come online where the log has more than 100,000 events\n"


def where(condition: str) -> Aggregation:
    return REFUNDS.model_copy(update={"where": condition})


def _fail(error: Exception) -> Any:
    raise error


def at_most(n: int | None) -> Aggregation:
    return Aggregation("id", "count_distinct", windows=[HOUR], n=n)


DISTINCT = at_most(50)


def test_a_plan_says_what_has_to_be_run_and_what_waits_for_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(view: FeatureView) -> str:
        """Apply, and return what the plan said."""
        plan = shop.plan(view)
        shop.apply(view)
        return str(plan)

    # Nothing is online yet.
    shop.apply(sales_view(REFUNDS))
    text = told(sales_view(where("v < 1"), DISTINCT))
    assert NONE_HAS_TO_RUN in text
    assert "afterwards" not in text
    shop.sell()
    monkeypatch.setattr(events, "MOST_MADE_ANEW", 5)
    assert f"{REPUBLISH}not found online: refunds_1h\n" in told(sales_view(REFUNDS, DISTINCT))
    succeeded(republish(shop.workspace))
    shop.check()
    # Records hold what is asked, but of another layout events cannot be appended to them.
    wanted = sales_view(REFUNDS, at_most(40))
    prepared = [
        make_plan(shop.workspace, collect([each]), partial=False, prepare=True) for each in (sales_view(), wanted)
    ]
    assert not any(step.is_new_generation for plan in prepared for step in plan.steps)
    text = told(wanted)
    assert ONLINE_LATER in text
    assert NONE_HAS_TO_RUN not in text
    shop.check()
    assert "afterwards" not in told(sales_view(REFUNDS, DISTINCT))  # as the records are
    assert ONLINE_LATER in told(sales_view(DISTINCT))  # a window goes
    shop.check()
    # Until then status says so, and verify compares what the records hold.
    assert not status(shop.workspace)[0].pushes_wait
    monkeypatch.setattr("featurestore.maintenance.status.MOST_MADE_ANEW", 5)
    assert (status(shop.workspace)[0].pushes_wait, status(shop.workspace)[0].not_found) == (True, ())
    assert f"other windows, so events that are pushed come online with the next run, or with `{AGAIN}`." in fs(
        shop, capsys, "status"
    )
    assert (checked := verify(shop.workspace)[0]).problems == ()
    assert checked.compared == 3
    before = shop.online()
    assert shop.sell().note is not None
    assert shop.online()["count_1h"] == before["count_1h"]
    assert verify(shop.workspace)[0].problems == ()
    with monkeypatch.context() as patched:  # where the store does not say, they are as they are defined
        patched.setattr(held, "read_marks", lambda *_: _fail(OnlineStoreUnavailableError("it is away")))
        assert "afterwards" not in str(shop.plan(sales_view(DISTINCT, Aggregation("v", "mean", windows=[HOUR]))))
    # An apply later, the records are still as they were made.
    text = told(sales_view(DISTINCT, where("v < 1"), windows=(timedelta(hours=2),)))
    assert (verify(shop.workspace)[0].problems, status(shop.workspace)[0].pushes_wait) == ((), True)
    assert f"{REPUBLISH}not found online: v_sum_2h, count_2h, refunds_1h\n" in text
    text = told(sales_view(DISTINCT, REFUNDS, where("v < 1").model_copy(update={"name": "low"})))
    assert f"{REPUBLISH}not found online: low_1h\n" in text
    succeeded(republish(shop.workspace))
    shop.check()
    # Without pushes the next run does it, and nothing waits.
    batch = ParquetSource("sales_file", "sales", "sold_at", allowed_lateness=timedelta(days=400))
    assert "--republish" not in told(sales_view(REFUNDS, source=batch))
    # Training computes a changed window of the log.
    shop.apply(sales_view(REFUNDS, online=False))
    text = told(sales_view(where("v < 1"), online=False))
    assert NONE_HAS_TO_RUN in text
    assert "afterwards" not in text
    # The default, written out, is no other definition.
    shop.apply(sales_view(at_most(None)))
    assert "nothing to change" in str(shop.plan(sales_view(at_most(1_000))))


def test_a_rebuild_takes_the_corrections_of_pushed_events(either: Shop) -> None:
    shop = either
    at = shop.now_us - MINUTE_US
    sold = {"shop": 1, "sold_at": to_datetime(at), "v": 1.0}
    push(shop.workspace, "sales_push", [{**sold, "id": each, "v": 100.0} for each in ("wrong", "right", "untold")])
    shop.write([{**sold, "id": "wrong"}, {**sold, "id": "right", "v": 100.0}])
    done = shop.run()
    assert (done.appended, done.conflicts) == (0, 1)
    assert shop.check()["v_sum_1h"][1] == 300.0
    span = at - HOUR_US, shop.now_us
    (done,) = succeeded(materialize(shop.workspace, *span, rebuild=True, confirm=lambda view, rows: rows == 1))
    assert (done.withdrawn, done.appended, done.unchanged) == (1, 1, 1)
    found = shop.check()
    assert (found["v_sum_1h"][1], found["count_1h"][1]) == (201.0, 3)
    # Pushed once more as it was, it is known, and changes nothing.
    again = push(shop.workspace, "sales_push", [{**sold, "id": "wrong", "v": 100.0}]).views["sales"].events
    assert (again.known, again.conflicting) == (1, 1)
    assert shop.check()["v_sum_1h"][1] == 201.0


def test_views_without_pushes_say_that_serving_is_behind(shop: Shop) -> None:
    batch = ParquetSource("sales_file", "sales", "sold_at", allowed_lateness=timedelta(days=400))
    (told,) = (step.notices for step in shop.plan(sales_view(source=batch)).steps if step.kind == "feature_view")
    assert any("serving only those of the last run" in each for each in told)
    assert "serving only those" not in str(shop.plan(sales_view(REFUNDS)))
    assert "serving only those" not in str(shop.plan(sales_view(source=batch, online=False)))


# How far a view is covered --------------------------------------------------------------------------------------------


def test_an_answer_without_an_event_says_until_when_the_view_is_covered(either: Shop) -> None:
    shop, at = either, "sales__event_timestamp"
    assert shop.online()[at] == [None] * 4
    shop.sell(3)
    sold, first = shop.online()[at], to_datetime(shop.now_us)
    assert sold == [first, first - timedelta(minutes=50) / 3, first - timedelta(minutes=100) / 3, first]
    # Hours later nothing of it is in a window any more, and only a push or a run says that nothing else came.
    shop.wait(5 * HOUR_US)
    assert shop.online()[at] == [first] * 4
    assert [shop.online()[f"{name}__status"][0] for name in ("count_1h", "v_sum_1h")] == ["PRESENT", "NULL_VALUE"]
    assert [each.online_rows for each in status(shop.workspace)] == [3]
    shop.wait(20 * HOUR_US + 5 * MINUTE_US)  # a day after every window has left them
    assert [(each.entities, each.online_rows) for each in status(shop.workspace)] == [(3, 0)]
    if shop.url is None:  # a Redis goes by its own clock
        assert [shop.online()[f"{name}__status"][0] for name in ("count_1h", "v_sum_1h")] == ["NOT_FOUND"] * 2
        assert shop.online()["count_1h"] == [0] * 4
    shop.sell(1, minutes=1)
    second = to_datetime(shop.now_us)
    assert shop.online()[at] == [second] * 4
    shop.wait(50 * MINUTE_US)
    shop.write([{"shop": 5, "sold_at": to_datetime(shop.now_us - 9 * HOUR_US), "id": "old", "v": 1.0}])
    shop.run()
    third = to_datetime(shop.now_us)
    assert shop.online()[at] == [second, third, third, third]
    shop.wait(2 * HOUR_US)
    assert shop.online()["count_1h"] == [0] * 4
    found = get_online_features(shop.workspace, ["sales:count_1h"], {"shop": [None, 9]})
    assert found.event_timestamps == {"sales": [None, third]}
    shop.run()
    last = to_datetime(shop.now_us)
    with serving_here(shop.other()) as client:
        asked = {"features": ["sales:count_1h"], "entities": {"shop": [0, 9, None]}}
        answer = client.post("/v1/online-features", json={**asked, "include": ["event_timestamp", "status"]}).json()
        assert [answer["rows"], answer["status"][1]] == [[[0], [0], [None]], ["NOT_FOUND"]]
        text = last.isoformat().replace("+00:00", "Z")
        assert answer["event_timestamp"] == {"sales": [text, text, None]}
        feast = client.post("/get-online-features", json=asked).json()
        assert feast["results"][-1]["event_timestamps"][:2] == [text, text]


def test_a_store_that_was_emptied_is_told_from_one_without_events(either: Shop) -> None:
    shop = either
    shop.sell(3)
    assert shop.online()["count_1h"] == [1, 1, 1, 0]
    shop.workspace.online.delete(NAMESPACE)
    assert shop.online()["count_1h"] == [None] * 4
    assert shop.online()["sales__event_timestamp"] == [None] * 4
    shop.sell(3)
    assert shop.check()["count_1h"] == [2, 2, 2, 0]


def test_what_is_said_of_a_lost_store_is_true_after_a_push(either: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A push makes the records anew, as a run does, unless the log is long."""
    shop = either
    for push_makes_records in (True, False):
        monkeypatch.setattr(moments, "MOMENT_SECONDS", 60.0 if push_makes_records else 0.0)
        shop.sell(9)
        shop.run()
        shop.workspace.online.delete(NAMESPACE)
        assert [each.kind for each in status(shop.workspace)[0].mismatches] == ["missing"]
        monkeypatch.setattr(events, "MOST_MADE_ANEW", 100 if push_makes_records else 0)
        shop.sell(3)
        found = status(shop.workspace)[0].mismatches
        if push_makes_records:
            assert (found, verify(shop.workspace)[0].problems) == ((), ())
    (behind,) = found
    assert "have to be made anew: the online store was emptied" in behind.message
    assert "pushed events wait there" in behind.hint
    assert verify(shop.workspace)[0].waiting == 24
    shop.run()
    assert (status(shop.workspace)[0].mismatches, verify(shop.workspace)[0].waiting) == ((), 0)
    markers = markers_of(shop.workspace.online, shop.workspace.snapshot().views["sales"])
    (marker,) = markers.read()[0]
    taken_over = replace(marker, version=None, commit=RECONCILE)
    markers.write(taken_over)
    shop.sell(3)  # goes on with the records that there are
    assert markers.read()[0] == [taken_over]


# Back-up and restore --------------------------------------------------------------------------------------------------


class Copies:
    """Copies of a project's stores, to bring them back later."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.folder = shop.root / "data"
        self.kept: dict[bytes, tuple[bytes, int]] = {}

    def keep(self) -> None:
        self.shop.workspace.close()
        shutil.copytree(self.folder, self.shop.root / "kept")
        if self.shop.url is not None:
            with redis.Redis.from_url(self.shop.url) as client:
                self.kept = {key: (client.dump(key), max(client.pttl(key), 0)) for key in client.scan_iter()}
        self.shop.workspace = self.shop.other()

    def bring_back(self, name: str) -> None:
        """Bring back one store by its folder or file below ``data``."""
        self.shop.workspace.close()
        if name == "online" and self.shop.url is not None:
            with redis.Redis.from_url(self.shop.url) as client:
                client.flushall()
                for key, (value, ttl) in self.kept.items():
                    client.restore(key, ttl, value)
        else:
            kept, place = self.shop.root / "kept" / name, self.folder / name
            if kept.is_dir():
                shutil.rmtree(place)
                shutil.copytree(kept, place)
            else:
                shutil.copy(kept, place)
        self.shop.workspace = self.shop.other()


@pytest.mark.parametrize("by", ["push", "run"])
def test_an_older_online_store_catches_up_by_itself(either: Shop, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, copies = either, Copies(either)
    shop.sell(40)
    shop.run()
    copies.keep()
    shop.sell(150)
    shop.run()
    copies.bring_back("online")
    assert sum(shop.online()["count_1h"]) == 40
    monkeypatch.setattr(Follower, "_publish", lambda self: pytest.fail("all records are made again"))
    if by == "push":
        assert [each.kind for each in status(shop.workspace)[0].mismatches] == ["behind"]
        shop.sell(3)
    else:
        shop.run()
    assert status(shop.workspace)[0].mismatches == ()
    assert sum(shop.check()["count_1h"]) == (193 if by == "push" else 190)


def test_an_older_log_takes_back_what_it_does_not_hold(either: Shop) -> None:
    """The records hold folded events, newest events and numbers of a log that is gone: all of it goes."""
    shop, copies = either, Copies(either)
    shop.sell(40)
    shop.run()
    copies.keep()
    shop.sell(200)
    shop.wait(5 * MINUTE_US)
    shop.sell(30, shops=10)
    copies.bring_back("offline")
    told = "Rows were pushed to shop/sales/1 in version 2, a commit that the offline store does not have"
    with pytest.raises(MismatchError, match=told):
        shop.sell(3)
    (found,) = status(shop.workspace)
    assert found.mismatches[0].message.startswith(told)
    assert found.windows == Lag(None, None, 0, None)  # nothing waits: all is online, and more
    assert [each.waiting for each in verify(shop.workspace)] == [0]
    metrics, snapshot = Metrics(), shop.workspace.snapshot()
    served = cast("SnapshotKeeper", SimpleNamespace(current=SimpleNamespace(snapshot=snapshot), progress={}))
    for kind in (PartWatch, WindowWatch):
        kind(shop.workspace, served, metrics).look()
    shown = metrics.text().decode()
    assert 'featurestore_window_lag_events{view="sales"} 0.0' in shown
    assert 'featurestore_online_part_mismatch{view="sales"} 1.0' in shown
    repairs = find_repairs(shop.workspace)
    assert [found.kind for found in repairs.mismatches] == ["ahead"]
    assert repairs.actions[-1] == "  -> Up to 230 events are online that the table lacks: pushed ones are lost."
    done = repair(shop.workspace, repairs)
    assert [found.problems for found in done.checked] == [()]
    assert [(run.published.repaired, run.published.deleted) for run in done.runs][:1] == [(3, 7)]
    shop.wait(1)
    assert sum(shop.check()["count_1h"]) == 40
    shop.sell(100)  # their numbers were those of lost events
    assert sum(shop.check()["count_1h"]) == 140
    shop.run()
    shop.check()


def test_an_older_registry_learns_what_was_read(shop: Shop) -> None:
    copies = Copies(shop)
    shop.write([{"shop": 1, "sold_at": to_datetime(shop.now_us - MINUTE_US), "id": "first", "v": 1.0}])
    shop.run()
    copies.keep()
    shop.write([{"shop": 1, "sold_at": to_datetime(shop.now_us - 2 * MINUTE_US), "id": "second", "v": 1.0}])
    shop.run()
    shop.sell(6)
    (name,) = (path.name for path in copies.folder.iterdir() if path.suffix == ".db")
    copies.bring_back(name)
    shop.sell(6)
    shop.run()
    assert sum(shop.check()["count_1h"]) == 14


# What is cleaned ------------------------------------------------------------------------------------------------------


def test_optimize_and_gc_leave_what_the_online_part_goes_on_from(either: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = either
    shop.run()
    for _ in range(12):
        shop.sell(6)
        shop.wait(MINUTE_US)
    registered = shop.workspace.snapshot().views["sales"]
    marks = read_marks(shop.workspace, registered).values()
    (mark,) = map(mark_from, marks)
    assert mark is not None
    for _ in range(2):
        shop.sell(3, to="offline")
    assert mark.version in (gc.known_versions(shop.workspace, registered) or ())
    (compacted,) = optimize(shop.workspace)
    assert compacted.files_after == 1
    gc.collect_garbage(shop.workspace)
    monkeypatch.setattr(Follower, "_publish", lambda self: pytest.fail("all records are made again"))
    assert shop.workspace.offline.find_commit(registered.table, mark.version) is not None
    shop.sell(6)
    shop.run()
    assert sum(shop.check()["count_1h"]) == 84


def keys_online(shop: Shop) -> list[bytes]:
    """Return every key of the project online, marks and documents too."""
    if shop.url is None:
        environment = shop.workspace.online
        return [key for batch in environment.scan(b"fs:shop:") for key, _ in batch]
    with redis.Redis.from_url(shop.url) as client:
        return list(client.scan_iter())


def test_nothing_of_a_view_stays_that_is_gone(either: Shop) -> None:
    shop = either
    shop.sell(40)
    kinds = {key.removeprefix(NAMESPACE).partition(b":")[0] for key in keys_online(shop)}
    assert {b"applied", b"schema"} <= kinds
    # Without an event_id events are others: a new generation.
    other = view_without_ids()
    assert shop.apply(other).generation == 2
    shop.wait(MINUTE_US)  # servers have refreshed
    gc.collect_garbage(shop.workspace)
    assert [key for key in keys_online(shop) if key.startswith(NAMESPACE)] == []
    # Off and on again.
    shop.write([{"shop": 1, "sold_at": to_datetime(shop.now_us - MINUTE_US), "id": "x", "v": 1.0}])
    shop.run()
    assert shop.check()["v_sum_1h"][1] == 1.0
    shop.apply(other.model_copy(update={"online": False}))
    shop.wait(MINUTE_US)  # servers have refreshed
    gc.collect_garbage(shop.workspace)
    assert keys_online(shop) == []
    shop.apply(other)
    shop.run()
    assert shop.check()["v_sum_1h"][1] is not None
    apply_plan(shop.workspace, make_plan(shop.workspace, [], partial=False))
    assert keys_online(shop) == []
    drop_data(shop.workspace)
    assert shop.workspace.offline.tables("shop") == []


# What is seen of it ---------------------------------------------------------------------------------------------------


def fs(shop: Shop, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command on the project and return what it prints."""
    settings = {"project": "shop", "online_store": shop.url or "lmdb:///data/online"}
    (shop.root / "feature_store.yaml").write_text(json.dumps(settings))
    shop.workspace.close()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--repo", str(shop.root)])
    shop.workspace = shop.other()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.out + printed.err
    return printed.out


def test_status_tells_how_far_windows_are(either: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = either
    (none,) = status(shop.workspace)
    assert none.windows == Lag(None, None, 0, None)
    shop.sell(40)
    began_us = shop.now_us
    (whole,) = status(shop.workspace)
    assert whole.windows is not None
    assert (whole.windows.covered_us, whole.windows.events, whole.windows.since_us) == (began_us, 0, None)
    shop.wait(MINUTE_US)
    shop.sell(7, to="offline")
    shop.wait(MINUTE_US)
    shop.sell(5, to="offline")
    optimize(shop.workspace)
    (behind,) = status(shop.workspace)
    assert behind.windows == Lag(whole.windows.version, began_us, 12, began_us + MINUTE_US)
    told = fs(shop, capsys, "status")
    at = [to_datetime(began_us + place * MINUTE_US).strftime("%Y-%m-%d %H:%M:%S") for place in range(2)]
    assert f"covered until {at[0]} (version {whole.windows.version}); 12 events of its log not online yet" in told
    assert f"the first since {at[1]}." in told
    assert json.loads(fs(shop, capsys, "status", "--json"))[0]["windows"]["events"] == 12
    shop.sell(6, minutes=0, to="offline")  # two of each shop at one instant
    assert "superseded" not in fs(shop, capsys, "peek", "sales", "-n", "52")
    view = shop.workspace.snapshot().views["sales"].view
    more = [*view.aggregations, Aggregation("v", "sum", windows=[timedelta(days=300)])]
    shop.apply(view.model_copy(update={"aggregations": tuple(more)}))
    told = fs(shop, capsys, "status")
    assert "sales: its records do not hold v_sum_300d yet: run `fs materialize --republish --view sales`." in told
    assert json.loads(fs(shop, capsys, "status", "--json"))[0]["not_found"] == ["v_sum_300d"]
    shop.workspace.online.delete(NAMESPACE)
    assert "no window is online. The next `fs materialize` makes the records of 58 events" in fs(shop, capsys, "status")


def test_windows_that_are_covered_until_later_than_now_are_named(
    either: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    """A writer's clock was three hours ahead, and was set right."""
    shop = either
    for ahead_us, is_told in ((3 * HOUR_US, True), (5_000_000, False)):
        shop.wait(ahead_us)
        shop.sell(9)
        shop.wait(-ahead_us)
        told = [each for each in status(shop.workspace)[0].clocks if "windows" in each]
        found = [check for check in examine(shop.workspace) if check.name == "windows of sales"]
        assert ([check.message for check in found], bool(told)) == (told, is_told)
        if is_told:
            words = f"The windows of sales are covered until {to_rfc3339(shop.now_us + ahead_us)}, "
            assert told[0].startswith(f"{words}03:00:00 from now: a machine that pushed or published had a clock ahead")
            assert (found[0].state, "count once their time has come" in found[0].hint) == ("warning", True)
            assert words in fs(shop, capsys, "status")
            shop.wait(ahead_us)


@pytest.mark.parametrize("is_run", [False, True])
def test_a_new_generation_is_no_lost_store(shop: Shop, caplog: pytest.LogCaptureFixture, is_run: bool) -> None:
    """A server reads how far views are before it reads the definitions, which may be newer."""
    for _ in range(2):
        shop.sell(9)
        shop.run()
    keeper, metrics = SnapshotKeeper(shop.other()), Metrics()
    keeper.load()
    watch = PartWatch(shop.workspace, keeper, metrics)
    assert keeper.refresh() == "same"
    watch.look()
    shop.apply(view_without_ids())
    if is_run:
        shop.run()
    assert keeper.refresh() == "changed"
    watch.look()
    assert b'online_part_mismatch{view="sales"} 0.0' in metrics.text()
    assert "online" not in caplog.text


def test_a_new_generation_says_which_pushes_it_leaves_and_wants_a_flag(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    """Events lack a column that was not kept, and no source may hold them: an apply must not leave them unasked."""
    wider = sales_view(Aggregation("t", "last", windows=[HOUR]), schema=[Field("t", String)])
    shop.run()
    assert shop.plan(wider).worst is ChangeClass.REBUILD
    shop.sell(9)
    shop.write([{"shop": 1, "sold_at": shop.now_us, "id": "file", "v": 1.0}])
    shop.run()
    plan = shop.plan(wider)
    (step,) = (step for step in plan.steps if step.kind == "feature_view")
    text = str(plan)
    assert step.loss == Loss(offline_rows=10, pushed_rows=9, online_rows=3, deleted=False)
    assert "10 offline rows (9 of them pushed)" in text
    assert "of 9 rows that were pushed to sales_push, the new generation gets what its batch source holds" in text
    with pytest.raises(ChangesNotAllowedError, match="--allow-breaking"):
        check_allowed(plan, allow_breaking=False, allow_destroy=False)
    apply_plan(shop.workspace, plan)
    shop.wait(24 * HOUR_US)
    assert "sales/1 would be removed, with 9 rows that were pushed" in fs(shop, capsys, "gc", "--dry-run")
    assert json.loads(fs(shop, capsys, "gc", "--json"))["pushed_rows"] == {f"{shop.workspace.project}/sales/1": 9}


def test_show_tells_how_large_records_are(either: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = either
    assert json.loads(fs(shop, capsys, "show", "sales", "--json"))[0]["online_records"] is None
    shop.sell(36)
    shop.wait(MINUTE_US)
    republish(shop.workspace)
    shop.sell(4, minutes=1)
    found = json.loads(fs(shop, capsys, "show", "sales", "--json"))[0]["online_records"]
    sizes = [len(record) for batch in shop.workspace.online.scan(NAMESPACE + b"{") for _, record in batch]
    assert (found["records"], found["bytes"]) == (3, [sorted(sizes)[1], max(sizes)])
    assert found["tiles"] == [10, 10]
    assert found["newest_events"] == [1, 2]
    lines = fs(shop, capsys, "show", "sales").splitlines()
    assert lines[-3].split() == ["tiles", "10", "10"]
    assert lines[-4].split() == ["of", "3", "records", "median", "greatest"]


def test_a_redis_that_evicts_is_refused(shop: Shop, redis_server: RedisServer, redis_url: str) -> None:
    """Also volatile-ttl: records of windows expire, so it takes them."""
    settings = make_settings({"project": "shop", "online_store": redis_url})
    with redis_server.client() as client, closing(Workspace(shop.root, settings)) as workspace:
        try:
            client.config_set("maxmemory-policy", "volatile-ttl")
            (found,) = (check for check in examine(workspace) if check.name == "eviction")
            assert (found.state, "windows of sales count wrong" in found.message) == ("failed", True)
            with pytest.raises(OnlineStoreError, match="is not fit for windows: maxmemory-policy is volatile-ttl"):
                create_app(workspace)
            shop.apply(sales_view(online=False))
            workspace.snapshot()
            assert [check.state for check in examine(workspace) if check.name == "eviction"] == ["warning"]
            create_app(workspace)
        finally:
            client.config_set("maxmemory-policy", "noeviction")


def test_verify_finds_and_names_what_a_record_has_wrong(either: Shop) -> None:
    shop, store = either, either.workspace.online
    shop.apply(sales_view(Aggregation("v", "max", windows=[HOUR]), windows=(HOUR, None)))
    shop.sell(60)
    shop.wait(MINUTE_US)
    republish(shop.workspace)
    shop.sell(12, minutes=5)
    shop.sell(2, to="offline")  # it need not be online yet
    assert verify(shop.workspace)[0].problems == ()
    shop.sell(1)
    registered = shop.workspace.snapshot().views["sales"]
    layout, _ = layout_of(registered.view)
    key = KeyEncoder(registered.layout).encode([1])
    (whole,) = store.get([key])
    assert whole is not None
    newest = list(entries_of(whole))

    def changed(by: Callable[[Tiles], None]) -> bytes:
        tiles = decode(key, layout, whole)
        by(tiles)
        return encode(key, tiles) + b"".join(newest)

    def count_twice(tiles: Tiles) -> None:
        for parts in tiles.parts:
            parts[0].counts[0] += 1

    def damage_within(tiles: Tiles) -> None:
        (place,) = (place for place, each in enumerate(layout.resolutions) if each.step_us)
        largest = tiles.parts[place][-1].greatest
        assert largest is not None
        largest[5] = 40.0

    broken = bytearray(whole)
    broken[60] ^= 1
    faults = {
        bytes(broken): "1 online records of sales are damaged",
        changed(count_twice): r"1 with other values, of 3 entities compared \(shop=1: count_\w+ is 26, by the log 25\)",
        changed(damage_within): r"\(shop=1: tiles differ that no window begins with now\)",
        whole[: -len(newest[-1])]: r"shop=1: v_sum_1h is [-.\d]+, by the log",
        whole + newest[-1]: r"shop=1: v_sum_1h is [-.\d]+, by the log",
    }
    for record, told in faults.items():
        slices = [Slice([], [Placed(key, record, MAX_SEQUENCE, None)])]
        store.place(slices)
        (found,) = verify(shop.workspace)
        assert re.search(told, found.problems[0]), found.problems
        republish(shop.workspace)
        assert verify(shop.workspace)[0].problems == ()
    store.place([Slice([], [Placed(key, b"something else", MAX_SEQUENCE, None)])])
    assert "1 online records of sales are damaged" in verify(shop.workspace)[0].problems[0]
    (run,) = republish(shop.workspace)
    assert (run.published.wrong_type, run.published.wrong_type_keys) == (1, (key.decode(),))
    shop.workspace.online.delete(key)
    assert "1 missing, of 3 entities compared (shop=1: no record)" in verify(shop.workspace)[0].problems[0]
    republish(shop.workspace)
    shop.check()


def test_metrics_of_windows(either: Shop) -> None:
    shop = either
    columns = shop.sales(120, 50, 3)
    columns["sold_at"] = [at.isoformat() for at in columns["sold_at"]]
    with serving_here(shop.other()) as client:
        for part in range(2):
            rows = {name: values[60 * part : 60 * part + 60] for name, values in columns.items()}
            assert client.post("/push", json={"source": "sales_push", "rows": rows}).status_code == 200
            shop.wait(3_000_000)
        asked = {"features": ["sales:count_1h"], "entities": {"shop": [0]}}
        assert client.post("/v1/online-features", json=asked).json()["rows"] == [[40]]
        told = client.get("/metrics").text
    assert 'featurestore_window_folds_total{view="sales"} 3.0' in told
    assert 'featurestore_window_newest_events_count{view="sales"} 1.0' in told
    began_us = shop.now_us
    shop.sell(3)
    shop.sell(5, to="offline")
    shop.wait(MINUTE_US)
    metrics, snapshot = Metrics(), shop.workspace.snapshot()
    served = SimpleNamespace(current=SimpleNamespace(snapshot=snapshot))
    WindowWatch(shop.workspace, cast("SnapshotKeeper", served), metrics).look()
    told = metrics.text().decode()
    assert 'featurestore_window_lag_events{view="sales"} 5.0' in told
    age_s = (shop.now_us - began_us) / 1_000_000
    assert f'featurestore_window_covered_age_seconds{{view="sales"}} {age_s}' in told
