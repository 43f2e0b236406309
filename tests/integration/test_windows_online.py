"""Windowed views online: the same values as the offline join at every instant, whatever runs and accidents do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.projects import make_workspace
from support.windowed_shop import by_plain_loops

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.following import follow, mark
from featurestore.following.mark import mark_from
from featurestore.following.rows import EventEncoder
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.online.interface import Placed, Slice
from featurestore.online.records.keys import KeyEncoder, mark_key
from featurestore.online.records.windowed import checked, head_of
from featurestore.serving import get_online_features
from featurestore.statuses import Status
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.training.reference_windows import ReferenceEvent
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.workspace import Workspace

MINUTE_US = 60_000_000
DAY_US = 1440 * MINUTE_US
WINDOWS = [timedelta(minutes=1), timedelta(minutes=12), None]
NUMBERS = ("count", "sum", "mean", "min", "max", "var", "std", "first", "last", "count_distinct")
TYPES = pa.schema(
    [
        ("shop", pa.int64()),
        ("sold_at", pa.timestamp("us", "UTC")),
        ("known_at", pa.timestamp("us", "UTC")),
        ("id", pa.string()),
        ("v", pa.float64()),
        ("t", pa.string()),
    ]
)


@dataclass(frozen=True)
class Event:
    shop: int
    sold_us: int
    known_us: int | None
    id: str
    v: float | None
    t: str | None

    def row(self) -> dict[str, Any]:
        return {
            "shop": self.shop,
            "sold_at": to_datetime(self.sold_us),
            "known_at": None if self.known_us is None else to_datetime(self.known_us),
            "id": self.id,
            "v": self.v,
            "t": self.t,
        }


def sales_view(windows: list[timedelta | None] = WINDOWS) -> FeatureView:
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=ParquetSource("sales_file", "sales", "sold_at", "known_at", allowed_lateness=timedelta(days=400)),
        schema=[Field("id", String), Field("v", Float64), Field("t", String)],
        event_id="id",
        aggregations=[
            *(Aggregation("v", name, windows=windows) for name in NUMBERS),
            Aggregation("t", "last_n", n=3, windows=windows),
            Aggregation("t", "count_distinct", n=2, windows=windows),
            Aggregation("*", "count", windows=windows),
            Aggregation("v", "sum", windows=windows, name="some", where="t = 'a'"),
        ],
    )


class Shop:
    """A project whose events come in files, its clock, and what each event should count for."""

    def __init__(self, root: Path, online_url: str | None, view: FeatureView) -> None:
        self.root, self.online_url, self.view = root, online_url, view
        self.dice = Random(11)
        self.begin_us = system_clock() // MINUTE_US * MINUTE_US - 60 * MINUTE_US
        self.workspace = make_workspace(root, [view], online_url=online_url, now_us=self.begin_us)
        self.events: list[Event] = []
        self.committed: list[Event] = []
        self.files = 0

    @property
    def now_us(self) -> int:
        return self.workspace.clock()

    def key(self, shop: int) -> bytes:
        return KeyEncoder(self.workspace.snapshot().views["sales"].layout).encode([shop])

    def wait(self, by_us: int) -> None:
        self.workspace.clock.now_us += by_us

    def sell(self, count: int, *, late_us: int = 20 * MINUTE_US, ahead_us: int = 0) -> None:
        """Write a file of events from before and, if so, after now."""
        dice, made = self.dice, []
        for _ in range(count):
            sold = self.now_us + ahead_us - dice.choice([0, dice.randrange(late_us), dice.randrange(MINUTE_US)])
            known = dice.choice([None, sold, sold + dice.randrange(3 * MINUTE_US)])
            value = dice.choice([None, dice.randrange(-500, 500) / 100, 0.1, 1e16, math.nan, math.inf])
            made.append(
                Event(
                    dice.randrange(4),
                    sold,
                    known,
                    f"e{len(self.events) + len(made)}",
                    value,
                    dice.choice(["a", "b", None]),
                )
            )
        self.events += made
        self.write(made)

    def write(self, events: list[Event]) -> None:
        (self.root / "sales").mkdir(exist_ok=True)
        self.files += 1
        rows = [event.row() for event in events]
        pq.write_table(pa.Table.from_pylist(rows, schema=TYPES), self.root / "sales" / f"{self.files}.parquet")

    def run(self) -> Any:
        (run,) = succeeded(materialize_incremental(self.workspace))
        known = {event.id for event in self.committed}
        come = [
            event
            for event in self.events
            if event.id not in known and event.sold_us < self.now_us and (event.known_us or 0) <= self.now_us
        ]
        self.committed += come
        return run

    def close(self) -> None:
        self.workspace.close()

    def wanted(self, shop: int, at_us: int) -> list[Any]:
        number = {event.id: place for place, event in enumerate(self.committed)}
        events = sorted(
            (
                ReferenceEvent(
                    event.sold_us,
                    event.sold_us if event.known_us is None else event.known_us,
                    number[event.id],
                    {"v": event.v, "t": event.t},
                    frozenset({"t = 'a'"} if event.t == "a" else ()),
                )
                for event in self.committed
                if event.shop == shop
            ),
            key=lambda event: (event.event_us, event.known_us, event.sequence),
        )
        return by_plain_loops(self.view, events, at_us)

    def online(self) -> dict[str, list[Any]]:
        response = get_online_features(self.workspace, ["sales:*"], {"shop": [0, 1, 2, 3, 9]})
        return response.to_dict(include_status=True)

    def check(self) -> None:
        """Compare online with plain loops, and with the offline join."""
        found, now = self.online(), self.now_us
        frame = pa.table({"shop": [0, 1, 2, 3, 9], "event_timestamp": pa.array([now] * 5, pa.timestamp("us", "UTC"))})
        with warnings.catch_warnings():  # the frame's instants are after the last run
            warnings.simplefilter("ignore", TrainingSetWarning)
            joined = get_historical_features(self.workspace, features=["sales:*"], entity_df=frame).to_arrow()
        for place, shop in enumerate(found["shop"]):
            for window, wanted in zip(self.view.windows, self.wanted(shop, now), strict=True):
                value = found[window.name][place]
                if not self.committed:
                    wanted = None  # nobody knows yet of any event
                assert is_same(value, wanted), (window.name, shop, value, wanted)
                assert is_same(joined[window.name][place].as_py(), wanted), (window.name, shop)
                status = found[f"{window.name}__status"][place]
                has_any = any(event.shop == shop for event in self.committed)
                if status == "NOT_FOUND":
                    assert wanted in (0, None)
                else:
                    assert has_any
                    assert status == ("NULL_VALUE" if wanted is None else "PRESENT")


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    return type(one) is type(other) and one == other


@pytest.fixture(params=["lmdb", "redis"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    url = None if request.param == "lmdb" else request.getfixturevalue("redis_url")
    made = Shop(tmp_path, url, sales_view())
    with closing(made):
        yield made


def test_online_equals_offline_as_time_and_runs_go_on(shop: Shop) -> None:
    dice = Random(3)
    for _ in range(5):  # a property draws many more such lives
        shop.sell(dice.randrange(1, 30), ahead_us=dice.choice([0, 0, 2 * MINUTE_US]))
        shop.run()
        shop.check()
        for _ in range(2):
            shop.wait(dice.choice([1, 1_000_000, 2_500_000, MINUTE_US, 7 * MINUTE_US]))
            shop.check()
    republish(shop.workspace)
    shop.check()
    republish(shop.workspace, authoritative=True)
    shop.wait(30 * MINUTE_US)
    shop.check()


def test_a_second_run_applies_only_what_is_new(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sell(50)
    shop.run()
    monkeypatch.setattr(follow.Follower, "_publish", lambda self: pytest.fail("all records are made again"))
    for _ in range(3):
        shop.wait(MINUTE_US)
        shop.sell(40)
        run = shop.run()
        assert (run.published.written, run.appended > 30) == (4, True)  # entities, however many events each has
    shop.check()
    assert shop.run().published.written == 0


def test_many_events_of_one_entity_stay_in_bounds(shop: Shop) -> None:
    shop.sell(5)
    shop.run()
    sizes = []
    for _ in range(6):
        shop.wait(5_000_000)
        shop.events += (
            made := [
                Event(1, shop.now_us - place, None, f"m{len(shop.events) + place}", place / 4, "a")
                for place in range(150)
            ]
        )
        shop.write(made)
        shop.run()
        shop.check()
        (record,) = shop.workspace.online.get([shop.key(1)])
        assert record is not None
        sizes.append(len(record))
    assert max(sizes) < 30_000
    shop.wait(13 * MINUTE_US)
    shop.check()


def test_nothing_is_known_before_the_first_run(shop: Shop) -> None:
    found = shop.online()
    assert found["count_all"] == [None] * 5
    assert found["count_all__status"] == ["NOT_FOUND"] * 5
    shop.sell(3)
    shop.run()
    assert shop.online()["count_all"][-1] == 0
    assert shop.online()["v_sum_all"][-1] is None


def test_a_store_that_lost_everything_is_filled_again(shop: Shop) -> None:
    shop.sell(60)
    shop.run()
    assert shop.workspace.online.delete(b"fs:shop:") > 0
    shop.run()
    shop.check()


def test_a_store_that_lost_its_mark_is_filled_again(shop: Shop) -> None:
    shop.sell(60)
    shop.run()
    key = mark_key(b"fs:shop:sales:")
    (before,) = shop.workspace.online.get([key])
    found = mark_from(before)
    assert found is not None
    shop.workspace.online.put(key, replace_commit(found))
    shop.wait(MINUTE_US)
    shop.sell(10)
    shop.run()
    shop.check()


def place(shop: Shop, *records: Placed) -> None:
    for record in records:  # each may be in another bucket
        shop.workspace.online.place([Slice([], [record])])


def replace_commit(found: mark.Mark) -> bytes:
    return found._replace(commit="0" * 64).to_bytes()


def test_a_restored_store_gets_what_it_lacks(shop: Shop) -> None:
    """The records and the mark of an earlier moment come back: what was committed since is applied to them."""
    shop.sell(60)
    shop.run()
    kept = [pair for batch in shop.workspace.online.scan(b"fs:shop:sales:{") for pair in batch]
    (marked,) = shop.workspace.online.get([mark_key(b"fs:shop:sales:")])
    assert marked is not None
    shop.wait(MINUTE_US)
    shop.sell(60)
    shop.run()
    shop.workspace.online.delete(b"fs:shop:sales:{")
    place(shop, *(Placed(key, record, head_of(record).base_sequence, None) for key, record in kept))
    shop.workspace.online.put(mark_key(b"fs:shop:sales:"), marked)
    shop.wait(MINUTE_US)
    shop.sell(5)
    shop.run()
    shop.check()


def test_a_rebuild_takes_withdrawn_events_out(shop: Shop) -> None:
    shop.sell(40)
    shop.run()
    gone = [event for event in shop.committed if event.shop != 2]
    corrected = [replace(event, v=7.5) if event.id == gone[0].id else event for event in gone]
    shop.write([])
    for path in (shop.root / "sales").glob("*.parquet"):
        path.unlink()
    shop.write(corrected)
    span = shop.begin_us - DAY_US, shop.now_us
    succeeded(materialize(shop.workspace, *span, rebuild=True, confirm=lambda view, rows: True))
    shop.events, shop.committed = list(corrected), list(corrected)
    found = shop.online()
    assert found["count_all__status"][2] == "NOT_FOUND"
    shop.check()


def test_two_workspaces_follow_one_log(shop: Shop) -> None:
    shop.sell(30)
    shop.run()
    other = Workspace(shop.root, shop.workspace.settings, clock=shop.workspace.clock)
    with closing(other):
        for _ in range(4):
            shop.wait(MINUTE_US)
            shop.sell(20)
            shop.workspace, other = other, shop.workspace
            shop.run()
            shop.check()
        shop.workspace, other = other, shop.workspace


def test_windows_need_a_store_that_keeps_events(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.sell(3)
    monkeypatch.setattr(type(shop.workspace.online), "keeps_events", False)
    (run,) = materialize_incremental(shop.workspace)
    assert run.state == "failed"
    assert "which this online store does not keep" in str(run.error)


def test_statuses_are_those_of_the_values(shop: Shop) -> None:
    shop.sell(10)
    shop.run()
    response = get_online_features(shop.workspace, ["sales:count_all", "sales:v_sum_1min"], {"shop": [0, None]})
    assert response.statuses["count_all"][1] is Status.NOT_FOUND
    assert response.to_dict()["count_all"][1] is None


def test_verify_compares_windows_with_the_log(shop: Shop) -> None:
    shop.sell(80)
    shop.run()
    shop.wait(MINUTE_US)
    (whole,) = verify(shop.workspace)
    assert (whole.problems, whole.compared) == ((), 4)
    mine, other = shop.key(1), shop.key(2)
    (record,) = shop.workspace.online.get([other])
    assert record is not None
    head = head_of(record)
    swapped = checked(mine, record[: head.tiles_end - 4])
    sequence = head.base_sequence
    place(shop, Placed(mine, swapped, sequence, None))
    (found,) = verify(shop.workspace)
    assert "1 with other values, of 4 entities compared" in found.problems[0]
    place(shop, Placed(mine, swapped, sequence, 1))
    (found,) = verify(shop.workspace)
    assert "1 missing" in found.problems[0]
    republish(shop.workspace)
    assert verify(shop.workspace)[0].problems == ()


def test_a_publish_reads_what_windows_reach(tmp_path: Path) -> None:
    """By a clock that may be ahead for a moment, and though records that were not made anew hold more."""
    with closing(Shop(tmp_path, None, sales_view([timedelta(hours=12), timedelta(days=3)]))) as shop:
        for number, (days, of) in enumerate(((0, 1), (1.7, 1), (0.8, 1), (2, 2))):
            shop.wait(int(days * DAY_US))
            shop.events.append(Event(of, shop.now_us - 1, None, f"e{number}", 1.5, "a"))
            shop.write(shop.events[-1:])
            shop.run()
            shop.check()
        version = shop.workspace.offline.current(shop.workspace.snapshot().views["sales"].table)
        assert version is not None
        encoder = EventEncoder(shop.workspace.snapshot().views["sales"])
        since_us = encoder.since_us(version, shop.now_us)
        files = [file.path for file in version.files]
        read = shop.workspace.engine.log.events(shop.view, files, since_us=since_us, by_entity=True, batch_rows=9)
        assert sum(batch.num_rows for batch in read) == 3
        for ahead_us in (0, 36 * 60 * MINUTE_US):
            assert verify(shop.workspace)[0].problems == ()
            shop.wait(ahead_us)
            republish(shop.workspace)
            shop.wait(-ahead_us)
            shop.check()
