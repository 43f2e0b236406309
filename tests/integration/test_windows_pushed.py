"""Events that are pushed: each counts once, in the log and online, whoever pushes it, how often, and who dies."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.serving import until
from support.windowed_shop import DAY_US, MINUTE_US, WINDOWS, Sale, Shop, sales_view

from featurestore import Aggregation
from featurestore.errors import InputError, OnlineStoreUnavailableError, ValueTypeError
from featurestore.following import folds, follow
from featurestore.following.mark import mark_from
from featurestore.ingest import PushResult, push
from featurestore.ingest import ahead as ahead_of_now
from featurestore.ingest.events import EventCounts
from featurestore.ingest.push import OfflineCounts, Push, PushedWindows, PushTarget
from featurestore.ingest.rows import read_rows
from featurestore.materialization import republish
from featurestore.offline import groups
from featurestore.online.interface import OnlineCounts
from featurestore.online.records.keys import KeyEncoder, mark_key
from featurestore.online.records.windowed import decode_event, entries_of, head_of
from featurestore.serving import get_online_features
from featurestore.types.times import to_datetime
from featurestore.windows.layout import layout_of
from featurestore.workspace import Workspace


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)


ALL_STORES = ["lmdb", "redis", "redis_cluster"]


@pytest.fixture(params=ALL_STORES[:2])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = None if request.param == "lmdb" else request.getfixturevalue(f"{request.param}_url")
    made = Shop(tmp_path, url, sales_view())
    with closing(made.workspace):
        yield made


@pytest.mark.parametrize("shop", ALL_STORES, indirect=True)
def test_pushes_and_runs_in_any_order_count_each_event_once(shop: Shop) -> None:
    dice = Random(8)
    before: list[Sale] = []
    for _ in range(8):  # a property draws many more such lives
        shop.wait(dice.choice([1, 1_000_000, MINUTE_US, 5 * MINUTE_US]))
        new = [shop.sale(dice) for _ in range(dice.randrange(1, 12))]
        again = dice.sample(before, min(len(before), 4))
        if dice.random() < 0.7:
            result = shop.push([*new, *again]).views["sales"]
            assert isinstance(result, PushedWindows)
            assert (result.events.appended, result.events.known) == (len(new), len(again))
            assert result.online is not None
        else:
            shop.write([*new, *again])
            shop.run()
        before += new
        shop.check()
        if dice.random() < 0.4:
            shop.write(dice.sample(before, min(len(before), 9)))
            run = shop.run()
            assert run.appended == 0
            shop.check()
    assert len(shop.counted) == len(before)


def test_what_a_push_says_about_its_events(shop: Shop) -> None:
    now = shop.now_us
    sale = {"shop": 1, "sold_at": now, "id": "x", "v": 1.0, "t": "a"}
    first = shop.push([sale, sale, {**sale, "shop": 2}]).views["sales"].events
    assert (first.appended, first.known, first.conflicting, first.too_late) == (2, 1, 0, 0)
    shop.wait(5 * MINUTE_US)
    second = shop.push([{**sale, "v": 2.0}, {**sale, "sold_at": now - 1}, sale]).views["sales"].events
    assert (second.appended, second.known, second.conflicting) == (0, 3, 2)
    shop.check()
    # The same id more than a day later is another event.
    shop.counted[1, "x"] = {**shop.counted[1, "x"]}
    shop.wait(2 * DAY_US)
    third = push(
        shop.workspace,
        "sales_push",
        {"shop": [1], "sold_at": [to_datetime(shop.now_us)], "id": ["x"], "v": [4.0], "t": ["b"]},
    ).views["sales"]
    assert third.events.appended == 1
    found = get_online_features(shop.workspace, ["sales:count_all"], {"shop": [1]})
    assert found.to_dict()["count_all"] == [2]


def test_events_that_come_too_late_for_every_window_are_told(tmp_path: Path) -> None:
    shop = Shop(tmp_path, None, sales_view(WINDOWS[:2]))
    with closing(shop.workspace):
        old = {"shop": 1, "sold_at": shop.now_us - 14 * MINUTE_US, "id": "old", "v": 1.0, "t": "a"}
        new = {**old, "id": "new", "sold_at": shop.now_us - 11 * MINUTE_US}
        found = shop.push([old, new]).views["sales"].events
        assert (found.appended, found.too_late) == (2, 1)
        shop.check()


def test_what_cannot_be_an_event_changes_nothing(shop: Shop) -> None:
    sale = {"shop": 1, "sold_at": shop.now_us, "id": "x", "v": 1.0, "t": "a"}
    with pytest.raises(ValueTypeError, match="column 'id', row 1: an event needs an id"):
        shop.push([sale, {**sale, "id": None}])
    with pytest.raises(ValueTypeError, match="column 't', row 0: the text has 258 bytes, and windows keep at most 256"):
        shop.push([{**sale, "t": "é" * 129}])
    with pytest.raises(InputError, match="Events cannot be pushed to 'sales' online only"):
        shop.push([sale], to="online")
    for to in ("both", "offline"):
        nothing = shop.push([], to=to).views["sales"]
        assert nothing == PushedWindows(OnlineCounts() if to == "both" else None, OfflineCounts(0, None), EventCounts())
    assert shop.workspace.offline.current(shop.workspace.snapshot().views["sales"].table) is None


def test_a_push_to_the_log_alone_is_online_after_the_next(shop: Shop) -> None:
    dice = Random(1)
    shop.push([shop.sale(dice)])
    shop.push([shop.sale(dice) for _ in range(5)], to="offline")
    shop.push([shop.sale(dice)])
    shop.check()


def test_a_repeated_push_brings_online_what_its_first_try_could_not(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = Random(2)
    shop.push([shop.sale(dice) for _ in range(3)])
    new = [shop.sale(dice) for _ in range(3)]

    def fails(self: Any, *given: Any, **more: Any) -> Any:
        raise OnlineStoreUnavailableError("It is down.")

    with monkeypatch.context() as patch:
        patch.setattr(type(shop.workspace.online), "advance", fails)
        with pytest.raises(OnlineStoreUnavailableError, match="Committed offline before: sales"):
            shop.push(new)
    again = shop.push(new).views["sales"]
    assert (again.events.appended, again.events.known) == (0, 3)
    shop.check()


def test_a_repeat_in_the_same_commit_is_acknowledged_when_it_is_online(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = {"shop": 1, "sold_at": shop.now_us, "id": "x", "v": 1.0, "t": "a"}
    shop.push([{**sale, "id": "before"}])
    failed: list[OnlineStoreUnavailableError] = []

    def fails(self: Any, *given: Any, **more: Any) -> Any:
        raise OnlineStoreUnavailableError("It is down.")

    def work() -> None:
        try:
            shop.push([sale])
        except OnlineStoreUnavailableError as error:
            failed.append(error)

    with monkeypatch.context() as patch:
        patch.setattr(type(shop.workspace.online), "advance", fails)
        patch.setattr(groups, "PAUSE_SECONDS", 0.3)  # the first commit since a quiet time comes at once
        shop.push([{**sale, "id": "alone"}], to="offline")
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert shop.workspace.offline.current(shop.workspace.snapshot().views["sales"].table).number == 2
    assert len(failed) == 2
    assert shop.push([sale]).views["sales"].events.known == 1
    shop.check()


def test_pushes_that_wait_for_one_another_fail_together(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store hangs, and at the latest after its deadline for writes."""
    dice, failed = Random(13), list[str]()
    shop.push([shop.sale(dice)])
    sales = [shop.sale(dice) for _ in range(5)]
    shop.push(sales, to="offline")
    goes_on = threading.Event()
    hanging: list[int] = []

    def hangs(self: Any, *given: Any, **more: Any) -> Any:
        hanging.append(1)
        goes_on.wait(20)
        raise OnlineStoreUnavailableError("It hangs.")

    def work(sale: Sale) -> None:
        try:
            shop.push([sale])
        except OnlineStoreUnavailableError as error:
            failed.append(str(error))

    monkeypatch.setattr(type(shop.workspace.online), "advance", hangs)
    threads = [threading.Thread(target=work, args=(sale,)) for sale in sales]
    for thread in threads[:4]:
        thread.start()
    until(lambda: len(hanging) == 1)
    time.sleep(0.2)  # the others wait by now
    monkeypatch.setattr(shop.workspace.online, "write_deadline_seconds", 0.05)
    threads[4].start()
    threads[4].join()
    assert "Another push has been writing to the online store for 0.05 s" in failed[0]
    goes_on.set()
    for thread in threads:
        thread.join()
    assert [("It hangs." in each) for each in failed] == [False, True, True, True, True]
    assert len(hanging) == 1
    monkeypatch.undo()
    shop.push(sales[:1])
    shop.check()


def test_long_texts_that_are_only_counted_or_compared_are_not_kept(tmp_path: Path) -> None:
    counts = [
        Aggregation("t", "count", windows=WINDOWS[:2]),
        Aggregation("*", "count", windows=WINDOWS[:2], name="some", where="t <> 'x'"),
        Aggregation("v", "sum", windows=WINDOWS[:2]),
    ]
    shop = Shop(tmp_path, None, sales_view(aggregations=counts))
    long = "t" * 70_000
    with closing(shop.workspace):
        sales = [{"shop": 1, "sold_at": shop.now_us, "id": f"e{number}", "v": None, "t": long} for number in range(3)]
        for sale in sales[:2]:
            shop.push([sale])
        shop.write(sales)
        shop.run()
        shop.wait(MINUTE_US)
        shop.push([{"shop": 1, "sold_at": shop.now_us, "id": "e3", "v": None, "t": None}])
        found = get_online_features(shop.workspace, ["sales:*"], {"shop": [1]}).to_dict()
        assert [found["t_count_12min"], found["some_12min"]] == [[3], [3]]
        (batch,) = shop.workspace.online.scan(b"fs:shop:sales:")
        assert max(len(record) for _, record in batch) < 1_000


@pytest.mark.parametrize("shop", ALL_STORES, indirect=True)
def test_four_writers_push_the_same_events(shop: Shop) -> None:
    """Already the first ones, which each of the four finds no mark for: all records are made from the log."""
    dice = Random(4)
    others = [Workspace(shop.root, shop.workspace.settings, clock=shop.workspace.clock) for _ in range(3)]
    for _ in range(4):
        shop.wait(MINUTE_US)
        sales = [shop.sale(dice) for _ in range(20)]
        results: list[PushResult] = []

        def work(workspace: Workspace, sales: list[Sale] = sales, results: list[PushResult] = results) -> None:
            columns = {name: [sale[name] for sale in sales] for name in ("shop", "id", "v", "t")}
            columns["sold_at"] = [to_datetime(sale["sold_at"]) for sale in sales]
            results.append(push(workspace, "sales_push", columns))

        for place, sale in enumerate(sales):
            known = {**sale, "known_at": shop.now_us, "place": len(shop.counted) + place}
            shop.counted.setdefault((sale["shop"], sale["id"]), known)
        threads = [threading.Thread(target=work, args=(each,)) for each in (shop.workspace, *others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = [result.views["sales"].events for result in results]
        assert [sum(each.appended for each in counts), sum(each.known for each in counts)] == [20, 60]
        shop.check(ordered=False)
    for workspace in others:
        workspace.close()


def test_publishes_at_once_leave_the_work_to_the_last(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the processes of one server do that get the first events of a view."""
    dice = Random(5)
    shop.push([shop.sale(dice) for _ in range(40)])
    monkeypatch.setattr(follow, "PLACED_AT_ONCE", 1)
    registered = shop.workspace.snapshot().views["sales"]
    version = shop.workspace.offline.current(registered.table)
    assert version is not None
    done: list[follow.Followed | None] = []
    all_have_begun = threading.Barrier(3)

    def publish() -> None:
        waits = [lambda: None, all_have_begun.wait]
        check = lambda: waits.pop()() if waits else None  # noqa: E731
        done.append(follow.Follower(shop.workspace, registered, version, check).bring(anew=True))

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 3
    assert not all(each is not None and each.is_whole for each in done)
    shop.check()


def test_newest_events_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    shop = Shop(tmp_path, None, sales_view())
    with closing(shop.workspace):
        sale = {"shop": 1, "v": 1.0, "t": "a"}
        for number in range(4):
            shop.push([{**sale, "id": f"e{number}", "sold_at": shop.now_us - number}])
        key = KeyEncoder(shop.workspace.snapshot().views["sales"].layout).encode([1])
        for _ in range(2):
            (record,) = shop.workspace.online.get([key])
            assert record is not None
            numbers = [decode_event(layout_of(shop.view)[0], entry).sequence for entry in entries_of(record)]
            assert numbers == [0, 1, 2, 3]
            republish(shop.workspace)
        shop.check()


def test_a_run_meets_pushes_of_what_it_reads(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between staging and commit of a run the same events are pushed: they count once."""
    from featurestore.materialization import run

    dice = Random(6)
    shop.push([shop.sale(dice)])
    sales = [shop.sale(dice) for _ in range(6)]
    others = [shop.sale(dice) for _ in range(4)]
    shop.write(sales)
    tries: list[int] = []
    real = run.reached

    def meanwhile(point: str) -> None:
        real(point)
        if point == run.STAGED and len(tries) < 3:
            tries.append(1)
            shop.push([*others[: len(tries)], *(sales[:2] if len(tries) == 2 else [])])

    shop.wait(MINUTE_US)
    monkeypatch.setattr(run, "reached", meanwhile)
    shop.run()
    assert len(tries) == 3
    shop.check(ordered=False)


def test_one_hot_entity_stays_in_bounds(shop: Shop) -> None:
    shop.push([{"shop": 1, "sold_at": shop.now_us, "id": "0", "v": 1.0, "t": "a"}])
    sizes, key = [], KeyEncoder(shop.workspace.snapshot().views["sales"].layout).encode([1])
    for number in range(1, 12):
        shop.wait(7_000_000)
        shop.push(
            [
                {"shop": 1, "sold_at": shop.now_us - place, "id": f"{number} {place}", "v": place / 8, "t": "b"}
                for place in range(100)
            ]
        )
        (record,) = shop.workspace.online.get([key])
        assert record is not None
        sizes.append(len(record) - head_of(record).tiles_end)
        shop.check()
    assert max(sizes) <= 33 * 100 + 250 * 100


def test_a_push_after_another_writes_no_schema_and_reads_the_marks_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, store = Random(12), type(shop.workspace.online)
    shop.push([shop.sale(dice)])
    asked: list[bytes] = []
    get = store.get

    def spying(self: Any, keys: list[bytes]) -> Any:
        asked.extend(keys)
        return get(self, keys)

    monkeypatch.setattr(store, "get", spying)
    monkeypatch.setattr(store, "put", lambda self, key, *given, **more: asked.append(key))
    shop.push([shop.sale(dice)])
    assert [key for key in asked if b":applied:" in key or b":schema:" in key] == [mark_key(b"fs:shop:sales:")]
    assert not [key for key in asked if b":marker:" in key]
    monkeypatch.undo()
    shop.check()


def test_events_that_lie_after_now_are_few_and_go_into_tiles_when_they_are_due(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where their entity gets no other event: the next push of the view, or run, folds them."""

    def ahead(count: int, shop_id: int, name: str) -> None:
        at = shop.now_us + 4_000_000
        columns = {"shop": shop_id, "sold_at": at, "v": 1.0, "t": "a", "known_at": at}
        shop.push([{**columns, "id": f"{name}{number}"} for number in range(count)])

    def newest_of(shop_id: int) -> int:
        (record,) = shop.workspace.online.get([keys.encode([shop_id])])
        assert record is not None
        return len(list(entries_of(record)))

    monkeypatch.setattr(ahead_of_now, "MOST_AHEAD", 300)
    keys = KeyEncoder(shop.workspace.snapshot().views["sales"].layout)
    ahead(1, 0, "first")
    ahead(150, 1, "a")
    ahead(150, 1, "b")
    for shop_id, count, found in ((1, 1, 301), (0, 300, 301)):
        at = [to_datetime(shop.now_us + 1)] * count
        rows = {"shop": [shop_id] * count, "sold_at": at, "id": [f"late{number}" for number in range(count)]}
        told = f"{found} events of one entity of 'sales' would lie after now; at most 300 may"
        with pytest.raises(InputError, match=told):
            push(shop.workspace, "sales_push", {**rows, "v": [1.0] * count, "t": ["a"] * count})
    ahead(60, 2, "c")
    assert (newest_of(1), newest_of(2)) == (300, 60)
    shop.check()
    shop.wait(6_000_000)
    shop.push([shop.sale(Random(1), shop=3)])
    assert (newest_of(1), newest_of(2)) == (0, 0)
    shop.check()
    ahead(300, 1, "d")
    shop.wait(6_000_000)
    shop.write([])
    shop.run()
    assert newest_of(1) == 0
    shop.check()
    # Those that a publish leaves beside the tiles, too, and it leaves few.
    ahead(60, 2, "e")
    shop.push([shop.sale(Random(1), shop=3, sold_at=shop.now_us) for _ in range(300)], to="offline")
    folds._waiting.clear()
    republish(shop.workspace)
    assert (newest_of(2), newest_of(3)) == (60, 0)
    shop.wait(6_000_000)
    shop.push([shop.sale(Random(1), shop=0)])
    assert newest_of(2) == 0
    shop.check()
    # A clock that is put back meanwhile makes no event one that lies after now.
    rows = {
        "shop": [0] * 301,
        "sold_at": [to_datetime(shop.now_us)] * 301,
        "id": [f"x{number}" for number in range(301)],
    }
    target = PushTarget(shop.workspace.snapshot(), "sales_push")
    work = Push(shop.workspace, target, read_rows({**rows, "v": [1.0] * 301, "t": ["a"] * 301}), "offline")
    shop.wait(-1_000_000)
    wait(work.commit())
    work.confirm()


def test_a_mark_that_the_log_does_not_know_leaves_the_events_to_a_run(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.ingest import events

    dice = Random(7)
    shop.push([shop.sale(dice) for _ in range(3)])
    key = mark_key(b"fs:shop:sales:")
    found = mark_from(shop.workspace.online.get([key])[0])
    assert found is not None
    shop.workspace.online.put(key, found._replace(commit="0" * 64).to_bytes())
    monkeypatch.setattr(events, "MOST_MADE_ANEW", 2)
    shop.write([])
    result = shop.push([shop.sale(dice)])
    assert result.views["sales"].online is None
    assert "online with the next `fs materialize --view sales`" in str(result.note)
    shop.run()
    shop.check()
    shop.workspace.online.put(key, found._replace(commit="0" * 64).to_bytes())
    monkeypatch.setattr(events, "MOST_MADE_ANEW", 100)
    shop.push([shop.sale(dice)])
    shop.check()


def test_a_reader_never_sees_a_count_fall(shop: Shop) -> None:
    """While events are only added, and time stands still for the reader."""
    dice = Random(9)
    view_of = ["sales:count_all", "sales:v_count_all"]
    shop.push([shop.sale(dice, shop=1)])
    seen: list[list[Any]] = []
    done = threading.Event()
    other = Workspace(shop.root, shop.workspace.settings, clock=shop.workspace.clock)

    def watch() -> None:
        # With a pause: a thread that only computes lets another that reads and writes files have the interpreter
        # every 5 ms only, and a push would take minutes.
        while not done.wait(0.001):
            try:
                found = get_online_features(other, view_of, {"shop": [1]}).to_dict()
            except OnlineStoreUnavailableError:  # a busy machine; a read that says so shows no count
                continue
            seen.append([found["count_all"][0], found["v_count_all"][0]])

    with closing(other), ThreadPoolExecutor(1) as threads:
        watching = threads.submit(watch)
        try:
            for number in range(12):
                shop.push([shop.sale(dice, shop=1) for _ in range(15)])
                shop.wait(3_000_000)
                if number % 4 == 3:
                    follow.Follower(
                        shop.workspace,
                        shop.workspace.snapshot().views["sales"],
                        shop.workspace.offline.current(shop.workspace.snapshot().views["sales"].table),
                        lambda: None,
                    ).bring(anew=True)
        finally:
            done.set()
        watching.result(timeout=60)
    for before, after in itertools.pairwise(seen):
        assert all(one <= two for one, two in zip(before, after, strict=True)), (before, after)
    assert seen[-1][0] > 100
    shop.check()
