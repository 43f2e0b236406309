"""Windows on a Redis Cluster whose nodes lose what they acknowledged: after the next push every event counts once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from support.projects import make_workspace
from support.redis_cluster import RedisCluster
from support.redis_server import RedisServer
from support.serving import serving_here

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.following import follow, slices
from featurestore.following.mark import read_marks
from featurestore.ingest import push
from featurestore.materialization import republish, succeeded
from featurestore.offline import groups
from featurestore.online.interface import OnlineStore
from featurestore.online.records import windows_known
from featurestore.online.records.keys import KeyEncoder
from featurestore.server.read import endpoints
from featurestore.serving import get_online_features
from featurestore.types import Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.workspace import Workspace

SHOPS = range(40)
PATIENT = {"read_timeout_ms": 10_000, "write_timeout_ms": 30_000}
State = dict[bytes, tuple[bytes, int]]


def sales_view() -> FeatureView:
    windows = [timedelta(days=3), None]
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", ParquetSource("sales_file", "sales", "sold_at")),
        schema=[Field("id", String), Field("v", Int64)],
        event_id="id",
        aggregations=[Aggregation("*", "count", windows=windows), Aggregation("v", "sum", windows=windows)],
    )


class Shops:
    """A project with events of many shops, and how many of them each shop has in the log."""

    def __init__(self, root: Path, url: str) -> None:
        online = {"url": url, **PATIENT}
        self.workspace = make_workspace(root, [sales_view()], online_url=online, now_us=system_clock())
        self.counts: Counter[int] = Counter()
        self.made = 0
        self._lock = threading.Lock()

    def another(self) -> Workspace:
        return Workspace(self.workspace.root, self.workspace.settings, clock=self.workspace.clock)

    def push(self, shops: Sequence[int], workspace: Workspace | None = None) -> None:
        with self._lock:
            first, self.made = self.made, self.made + len(shops)
            self.counts.update(shops)
        columns: dict[str, Any] = {
            "shop": list(shops),
            "sold_at": [to_datetime(self.workspace.clock() - 1)] * len(shops),
            "id": [f"e{first + place}" for place in range(len(shops))],
            "v": [1] * len(shops),
        }
        self.last = columns
        push(workspace or self.workspace, "sales_push", columns)

    def push_again(self) -> None:
        """Repeat the last push, as a caller does that got no answer."""
        push(self.workspace, "sales_push", self.last)

    def online(self, workspace: Workspace | None = None) -> list[int | None]:
        names = ["sales:count_all", "sales:count_3d", "sales:v_sum_all", "sales:v_sum_3d"]
        found = get_online_features(workspace or self.workspace, names, {"shop": list(SHOPS)}).to_dict()
        assert found["count_all"] == found["count_3d"]
        assert [value or 0 for value in found["v_sum_all"]] == found["count_all"]
        return found["count_all"]

    def check(self) -> None:
        assert self.online() == [self.counts[shop] for shop in SHOPS]

    def key(self, shop: int) -> bytes:
        return KeyEncoder(self.workspace.snapshot().views["sales"].layout).encode([shop])


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def shops(tmp_path: Path, redis_cluster: RedisCluster) -> Iterator[Shops]:
    redis_cluster.flush()
    made = Shops(tmp_path, redis_cluster.url)
    with closing(made.workspace):
        yield made


def state_of(server: RedisServer) -> State:
    """Return every key of a node, with its value and how long it lives."""
    with server.client() as client:
        keys = client.keys()
        return {key: (client.get(key), client.pttl(key)) for key in keys}


def put_back(server: RedisServer, state: State) -> None:
    """Make a node hold what it held at an earlier moment, as a replica does that lacked the last writes."""
    with server.client() as client:
        client.flushall()
        for key, (value, left_ms) in state.items():
            client.set(key, value, px=left_ms if left_ms > 0 else None)


def after_call(
    monkeypatch: pytest.MonkeyPatch, store: OnlineStore, name: str, number: int, do: Callable[[], None]
) -> Any:
    """Do something once, when a method has been called so often; returns the list of its calls."""
    calls: list[int] = []
    real = getattr(store, name)

    def called(*given: Any, **more: Any) -> Any:
        result = real(*given, **more)
        calls.append(1)
        if len(calls) == number:
            do()
        return result

    monkeypatch.setattr(store, name, called)
    return calls


def nothing_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow.Follower, "_publish", lambda self: pytest.fail("all records are made again"))


@pytest.mark.parametrize("call", [1, 3, 7])
def test_a_node_is_put_back_between_two_slices_of_one_range(
    shops: Shops, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The later events of the range are appended to records that lack the earlier ones, if nobody looks."""
    shops.push([*SHOPS, *SHOPS])
    victim = redis_cluster.owner(shops.key(7))
    earlier = state_of(victim)
    nothing_is_made_anew(monkeypatch)
    monkeypatch.setattr(shops.workspace.online, "events_at_once", 2)
    monkeypatch.setattr(slices, "SLICES_AT_ONCE", 8)
    calls = after_call(monkeypatch, shops.workspace.online, "advance", call, lambda: put_back(victim, earlier))
    shops.push([*SHOPS, *[7] * 8, *SHOPS])
    assert len(calls) > 8
    shops.check()
    shops.push([3])
    shops.check()


@pytest.mark.parametrize("call", [1, 4, "last"])
def test_a_node_is_put_back_while_all_records_are_made_anew(
    shops: Shops, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, call: int | str
) -> None:
    """Back to where this very publish had begun already: the first token is there, and the last parts are gone."""
    shops.push([*SHOPS, *SHOPS])
    victim = redis_cluster.owner(shops.key(7))
    monkeypatch.setattr(follow, "PLACED_AT_ONCE", 9)
    store, state = shops.workspace.online, State()
    with monkeypatch.context() as patch:
        # What the node lost is all that was pushed since it began to be published: without its records nobody can tell.
        after_call(patch, store, "place", 1, lambda: state.update(without_records(state_of(victim))))
        number = 1 + (len(SHOPS) // 9 + 1 if call == "last" else int(call))
        calls = after_call(patch, store, "place", number, lambda: put_back(victim, state))
        succeeded(republish(shops.workspace))
        assert len(calls) > number  # it began again
    shops.check()


def without_records(state: State) -> State:
    return {key: value for key, value in state.items() if b":sales:{" not in key}


def test_a_writer_dies_between_the_scripts_of_one_call(shops: Shops, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some buckets have the events, others have not: its repetition brings the others there, and no event twice."""
    shops.push([*SHOPS])
    nothing_is_made_anew(monkeypatch)
    store = shops.workspace.online
    real = store.advance

    def dies(slices: Sequence[Any], **more: Any) -> Any:
        real(slices[::2], **more)
        raise OnlineStoreUnavailableError("It is down.")

    with monkeypatch.context() as patch:
        patch.setattr(store, "advance", dies)
        for _ in range(2):
            with pytest.raises(OnlineStoreUnavailableError, match="Committed offline before: sales"):
                shops.push([*SHOPS, *SHOPS])
    marks = read_marks(shops.workspace, shops.workspace.snapshot().views["sales"])
    assert len(set(marks.values())) == 2
    shops.push_again()
    shops.check()


def test_a_node_that_came_back_empty_is_told_from_one_without_events(
    shops: Shops, redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows of events there: their count is null and not 0, until the next push brings them back."""
    monkeypatch.setattr(endpoints, "ABSENT_SCHEMA_SECONDS", 0.1)
    monkeypatch.setattr(windows_known, "MARK_SECONDS", 0.1)
    nobody = [*range(100, 140)]
    asked: dict[str, Any] = {"features": ["sales:count_all"], "entities": {"shop": [*SHOPS, *nobody]}}
    with serving_here(shops.another()) as client:

        def served() -> list[int | None]:
            return [row[0] for row in client.post("/v1/online-features", json=asked).json()["rows"]]

        def in_process() -> list[int | None]:
            with closing(shops.another()) as workspace:
                return get_online_features(workspace, asked["features"], asked["entities"]).to_dict()["count_all"]

        assert in_process() == served() == [None] * 80
        time.sleep(0.15)
        shops.push([*SHOPS])
        assert in_process() == served() == [1] * 40 + [0] * 40
        victim = redis_cluster.owner(shops.key(7))
        lost = [redis_cluster.owner(shops.key(shop)) is victim for shop in (*SHOPS, *nobody)]
        put_back(victim, {})
        time.sleep(0.15)
        counts = [None if is_lost else number for is_lost, number in zip(lost, [1] * 40 + [0] * 40, strict=True)]
        assert 10 < lost.count(True) < 50
        assert in_process() == served() == counts
        shops.push([3])
        time.sleep(0.15)
        assert in_process() == served() == [2 if shop == 3 else int(shop < 40) for shop in (*SHOPS, *nobody)]


@pytest.fixture(scope="module")
def breakable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    # A replica that lost its primary's last writes is elected as well.
    with RedisCluster(tmp_path_factory.mktemp("broken_cluster"), "--cluster-replica-validity-factor", "0") as cluster:
        yield cluster


def test_events_are_pushed_while_their_slot_moves(breakable: RedisCluster, tmp_path: Path) -> None:
    """What is all there or all gone is done at once; where a record is on each side, the push waits for the last."""
    breakable.heal()
    breakable.flush()
    shops = Shops(tmp_path, breakable.url)
    with closing(shops.workspace):
        bucket = KeyEncoder(shops.workspace.snapshot().views["sales"].layout).bucket_of
        mine = [shop for shop in range(2_000) if bucket(shops.key(shop)) == bucket(shops.key(7))]
        shops.push([*SHOPS, *mine[1:3]])
        source = breakable.owner(shops.key(7))
        target = next(server for server in breakable.primaries() if server is not source)
        with breakable.migrating(key_slot(shops.key(7)), source, target) as move_keys:
            shops.push([7, 3, mine[1]])
            move_keys()
            shops.push([7, 4])
            pushing = threading.Thread(target=shops.push, args=([7, 5, *mine[3:6]],))
            pushing.start()
            time.sleep(0.3)
            assert pushing.is_alive()
        pushing.join()
        shops.push([6])
        shops.check()
        found = get_online_features(shops.workspace, ["sales:count_all"], {"shop": mine[:7]}).to_dict()
        assert found["count_all"] == [shops.counts[shop] for shop in mine[:7]]


class Race:
    """Writers push to one cluster, and a reader looks on."""

    def __init__(self, shops: Shops) -> None:
        self.shops, self.wrong = shops, list[BaseException]()
        self.acknowledged, self.failed = 0, 0
        self.polls = 0
        self._over = threading.Event()
        targets = [*[self._write] * 4, self._read]
        self._threads = [threading.Thread(target=self._run, args=(place, each)) for place, each in enumerate(targets)]

    def __enter__(self) -> Race:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raise what went wrong in a thread."""
        if self.wrong:
            raise self.wrong[0]

    def _run(self, place: int, work: Callable[[Workspace, int], None]) -> None:
        try:
            with closing(self.shops.another()) as workspace:
                while not self._over.wait(0.1):
                    work(workspace, place)
        except BaseException as error:
            self.wrong.append(error)

    def _write(self, workspace: Workspace, place: int) -> None:
        try:
            self.shops.push([(self.acknowledged * 7 + place * 3 + step) % len(SHOPS) for step in range(6)], workspace)
            self.acknowledged += 1
        except OnlineStoreUnavailableError:
            self.failed += 1

    def _read(self, workspace: Workspace, place: int) -> None:
        try:
            found = self.shops.online(workspace)
        except OnlineStoreUnavailableError:
            return
        counts = [self.shops.counts[shop] for shop in SHOPS]
        assert all(value is not None and value <= count for value, count in zip(found, counts, strict=True))
        self.polls += 1


@pytest.mark.uncounted
@pytest.mark.slow(9)
def test_a_primary_dies_with_events_that_it_has_acknowledged(
    breakable: RedisCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breakable.heal()
    breakable.flush()
    shops = Shops(tmp_path, breakable.url)
    with closing(shops.workspace):
        shops.push([*SHOPS])
        nothing_is_made_anew(monkeypatch)
        victim = breakable.owner(shops.key(7))
        heir = breakable.replica_of(victim)
        with Race(shops) as race:
            while race.acknowledged < 4:
                time.sleep(0.02)
                race.check()
            with victim.client() as client:  # its replica hears no more of it, but the cluster still does
                client.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
                client.execute_command("CLIENT", "KILL", "TYPE", "replica")
            before = race.acknowledged
            while race.acknowledged < before + 6:
                time.sleep(0.02)
                race.check()
            held = state_of(victim)
            victim.kill()
            killed = time.monotonic()
            while heir not in breakable.primaries():
                assert time.monotonic() < killed + 30
                time.sleep(0.05)
            lost = {key for key, value in held.items() if state_of(heir).get(key) != value}
            before = race.acknowledged
            while race.acknowledged < before + 4:
                race.check()
                assert time.monotonic() < killed + 60
                time.sleep(0.02)
        race.check()
        assert race.polls > 10
        assert lost
        shops.push([3])
        shops.check()
