"""An apply that fills what is new before it serves it: nobody reads an empty view, and whatever fails can go on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.consistency.belonging import mismatches
from featurestore.errors import MaterializationError, OnlineStoreUnavailableError, RevisionConflictError
from featurestore.ledger.runs import RunResult, all_runs
from featurestore.ledger.saved_sets import pins
from featurestore.maintenance import gc as gc_module
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.status import status
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize, materialize_incremental
from featurestore.materialization import run as run_module
from featurestore.offline.interface import TableId
from featurestore.plan.changes import explain
from featurestore.prepare import prepare as fill
from featurestore.steps import Event, listening
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock
from featurestore.workspace import Workspace

# Redis expires by its own clock, so these instants are real ones.
NOW_US = system_clock()
HOUR_US = 3_600_000_000
SHOPS = [f"shop {number}" for number in range(7)]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
shop = Entity("shop", {"shop": String})
sales = ParquetSource("sales", "sales.parquet", "ts")


def view(name: str = "takings", feature: str = "amount", **changes: Any) -> FeatureView:
    values = {"entities": [shop], "source": sales, "schema": [Field(feature, Float64)], **changes}
    return FeatureView(name, **values)


def renamed(**changes: Any) -> FeatureView:
    return view(**{"feature": "total", "sql": "SELECT shop, ts, amount AS total FROM sales", **changes})


def service(of: FeatureView) -> FeatureService:
    return FeatureService("model", [of])


def write_sales(root: Path, hours: int = 10, factor: float = 1.0, name: str = "sales.parquet") -> None:
    rows = [(shop, hour) for hour in range(1, hours + 1) for shop in SHOPS]
    at = pa.array([NOW_US - hour * HOUR_US for _, hour in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    amounts = [factor * (hour + len(shop)) for shop, hour in rows]
    pq.write_table(pa.table({"shop": [shop for shop, _ in rows], "ts": at, "amount": amounts}), root / name)


@pytest.fixture(params=["lmdb", "redis"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    """A project with a view that is materialized and a service that reads it."""
    if request.param == "lmdb":
        yield from opened(request.getfixturevalue("till"), tmp_path)
    else:  # a busy machine's delay is no outage
        with make(tmp_path, f"{{url: '{request.getfixturevalue('redis_url')}', read_timeout_ms: 5000}}") as made:
            yield made


@pytest.fixture
def store(till: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    yield from opened(till, tmp_path)


@pytest.fixture
def spanned(till_with_spans: Path, tmp_path: Path) -> Iterator[FeatureStore]:
    """The same with a view that two spans are filled of."""
    yield from opened(till_with_spans, tmp_path)


@pytest.fixture(scope="module")
def till(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the project on an embedded online store: copy it."""
    root = tmp_path_factory.mktemp("till")
    make(root, "lmdb:///data/online").close()
    return root


@pytest.fixture(scope="module")
def till_with_spans(till: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("spans")
    for store in opened(till, root):
        begin_spans(store)
    return root


def make(root: Path, online_store: str) -> FeatureStore:
    (root / "feature_store.yaml").write_text(
        f"project: till\nonline_store: {online_store}\nserver: {{refresh: 10ms}}\n"
    )
    (root / "features.py").write_text("")
    write_sales(root)
    store = FeatureStore(root, clock=ManualClock(NOW_US))
    store.apply([service(view())])
    store.materialize_incremental()
    return store


def opened(till: Path, root: Path) -> Iterator[FeatureStore]:
    shutil.copytree(till, root, dirs_exist_ok=True)
    with FeatureStore(root, clock=ManualClock(NOW_US)) as store:
        yield store


def online(store: FeatureStore, asked: Any = "model") -> dict[str, list[Any]]:
    answer = store.get_online_features(asked, {"shop": SHOPS})
    return {name: [*zip(answer.to_dict()[name], map(str, answer.statuses[name]), strict=True)] for name in answer.names}


def values(store: FeatureStore, feature: str) -> list[Any]:
    return store.get_online_features(feature, {"shop": SHOPS}).to_dict()[feature.partition(":")[2]]


def generation(store: FeatureStore, name: str = "takings") -> int:
    return store.workspace.snapshot().views[name].generation


def rows_offline(store: FeatureStore, number: int, name: str = "takings") -> int:
    version = store.workspace.offline.current(TableId("till", name, number))
    return 0 if version is None else version.rows


def check_whole(store: FeatureStore) -> None:
    assert mismatches(store.workspace) == []
    assert [found.problems for found in verify(store.workspace)] == [()] * len(store.workspace.snapshot().views)
    assert [run.appended for run in store.materialize_incremental()] == [0] * len(store.workspace.snapshot().views)


class Reader(threading.Thread):
    """Reads a service without a pause, as a model does, until it is told to stop."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.stopped, self.reading = root, threading.Event(), threading.Event()
        self.seen: set[str] = set()
        self.wrong: list[Any] = []

    def run(self) -> None:
        with FeatureStore(self.root, clock=ManualClock(NOW_US)) as store:
            while not self.stopped.wait(0.001):  # the other threads need the interpreter too
                try:
                    answer = store.get_online_features("model", {"shop": SHOPS})
                except Exception as error:  # every one of them is an outage
                    self.wrong.append(error)
                    continue
                finally:
                    self.reading.set()
                self.seen |= {*answer.names}
                for name in answer.names:
                    found = [*zip(answer.to_dict()[name], answer.statuses[name], strict=True)]
                    self.wrong += [each for each in found if each[0] is None or each[1].name != "PRESENT"]


@pytest.mark.uncounted
def test_a_reader_never_misses_a_value_while_a_feature_is_renamed(both: FeatureStore) -> None:
    before = values(both, "takings:amount")
    reader = Reader(both.root)
    reader.start()
    assert reader.reading.wait(30)
    plan = both.apply([service(renamed())], allow_breaking=True, prepare=True)
    assert values(both, "takings:total") == before
    while "total" not in reader.seen and reader.is_alive() and not reader.wrong:
        reader.stopped.wait(0.01)
    reader.stopped.set()
    reader.join()
    assert reader.wrong == []
    assert reader.seen == {"amount", "total"}
    assert (plan.applied, generation(both)) == (2, 2)
    assert rows_offline(both, 2) == rows_offline(both, 1) == 70
    check_whole(both)


def test_without_it_a_reader_misses_values(store: FeatureStore) -> None:
    store.apply([service(renamed())], allow_breaking=True)
    assert values(store, "takings:total") == [None] * len(SHOPS)


KEYED = {"sql": "SELECT shop AS till, ts, amount FROM sales", "entities": [Entity("till", {"till": String})]}


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "changes",
    [
        {"sql": "SELECT shop, ts, 2 * amount AS amount FROM sales"},
        {"source": ParquetSource("sales", "doubled.parquet", "ts")},
        {"schema": [Field("amount", Int64)], "sql": "SELECT shop, ts, (2 * amount)::BIGINT AS amount FROM sales"},
    ],
    ids=["sql", "source", "type"],
)
def test_what_needs_a_rebuild_is_prepared_too(store: FeatureStore, changes: dict[str, Any]) -> None:
    write_sales(store.root, factor=2.0, name="doubled.parquet")
    before = values(store, "takings:amount")
    plan = store.plan([service(view(**changes))], prepare=True)
    assert "generation 2 is filled before it is served" in "\n".join(line.text for line in explain(plan))
    assert [step.commands for step in plan.steps] == [()] * len(plan.steps)
    store.apply_plan(plan, allow_breaking=True)
    assert values(store, "takings:amount") == [2 * value for value in before]
    assert generation(store) == 2
    check_whole(store)


def test_what_is_not_prepared_has_its_commands_as_ever(store: FeatureStore) -> None:
    write_sales(store.root, factor=2.0, name="doubled.parquet")
    rows = pq.read_table(store.root / "sales.parquet")
    pq.write_table(rows.append_column("name", rows.column("shop")), store.root / "sales.parquet")
    wider = store.plan([view(schema=[Field("amount", Float64), Field("name", String)])], prepare=True)
    assert [step.commands for step in wider.steps] == [("fs materialize --view takings",)]
    moved = store.plan([ParquetSource("sales", "doubled.parquet", "ts")], prepare=True)
    ((command,),) = (step.commands for step in moved.steps)  # its view was not given, and is not prepared
    assert command.endswith("--rebuild --view takings")


def test_an_added_feature_is_not_said_to_be_null_where_its_generation_is_filled_first(store: FeatureStore) -> None:
    sql = "SELECT shop, ts, amount, 2 * amount AS twice FROM sales"
    wanted = [service(view(schema=[Field("amount", Float64), Field("twice", Float64)], sql=sql))]

    def notes(*, prepare: bool) -> list[str]:
        return [notice for step in store.plan(wanted, prepare=prepare).steps for notice in step.notices]

    (note,) = notes(prepare=False)
    assert note.startswith("twice: null for ")
    assert notes(prepare=True) == []
    before = values(store, "takings:amount")
    store.apply(wanted, allow_breaking=True, prepare=True)
    assert values(store, "takings:twice") == [2 * value for value in before]


def test_other_keys_are_prepared_under_the_new_keys(store: FeatureStore) -> None:
    before = values(store, "takings:amount")
    store.apply([service(view(**KEYED))], allow_breaking=True, prepare=True)
    assert store.get_online_features("model", {"till": SHOPS}).to_dict()["amount"] == before


def test_a_view_that_is_new_is_filled_and_one_that_only_changes_is_not(store: FeatureStore) -> None:
    plan = store.apply([view("more"), service(view(description="sold"))], prepare=True)
    assert {step.name: step.generation for step in plan.steps if step.kind == "feature_view"} == {
        "more": 1,
        "takings": 1,
    }
    assert values(store, "more:amount") == values(store, "takings:amount")
    check_whole(store)


def test_a_project_that_was_never_applied_is_applied_as_without_it(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: till\n")
    (tmp_path / "features.py").write_text("")
    write_sales(tmp_path)
    with FeatureStore(tmp_path, clock=ManualClock(NOW_US)) as opened:
        assert opened.apply([service(view())], prepare=True).applied == 1
        assert values(opened, "takings:amount") == [None] * len(SHOPS)
        opened.materialize_incremental()
        check_whole(opened)


def test_only_the_spans_that_the_old_generation_holds_are_filled(store: FeatureStore) -> None:
    spans = [(NOW_US - 10 * HOUR_US, NOW_US - 8 * HOUR_US), (NOW_US - 4 * HOUR_US, NOW_US - 2 * HOUR_US)]
    store.apply([view("spans")])
    for start, end in spans:
        store.materialize(*(timedelta(microseconds=us) + EPOCH for us in (start, end)), "spans")
    store.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert rows_offline(store, 2, "spans") == rows_offline(store, 1, "spans") == 4 * len(SHOPS)


def test_nothing_is_filled_that_never_was(store: FeatureStore) -> None:
    store.apply([view("empty")])
    store.apply([renamed(name="empty")], allow_breaking=True, prepare=True)
    assert rows_offline(store, 2, "empty") == 0


def test_an_apply_that_came_meanwhile_refuses_it_and_what_is_filled_is_used_by_the_next(store: FeatureStore) -> None:
    stale = store.plan([service(renamed())], prepare=True)
    other = store.plan([service(renamed())], prepare=True)
    assert [step.generation for step in stale.steps] == [step.generation for step in other.steps]
    store.apply([Entity("other", {"x": String})])
    with pytest.raises(RevisionConflictError):
        store.apply_plan(stale, allow_breaking=True)
    assert rows_offline(store, 2) == 0  # found out before anything was filled

    fresh = store.plan([service(renamed())], prepare=True)
    fill(store.workspace, fresh)
    store.apply([Entity("third", {"x": String})])
    with pytest.raises(RevisionConflictError):
        store.apply_plan(replace(fresh, prepare=False), allow_breaking=True)
    assert (generation(store), rows_offline(store, 2)) == (1, 70)
    assert [run.appended for run in store.materialize_incremental()] == [0]  # of the generation that is served
    again = store.plan([service(renamed())], prepare=True)
    assert {step.generation for step in again.steps if step.kind == "feature_view"} == {2}
    runs = fill(store.workspace, again)
    assert sum(run.appended for run in runs) == 0
    store.apply_plan(again, allow_breaking=True)
    assert values(store, "takings:total") == [value for value in values(store, "takings:total") if value is not None]
    check_whole(store)


def test_what_was_prepared_and_given_up_is_garbage_once_another_apply_came(both: FeatureStore) -> None:
    fill(both.workspace, both.plan([service(renamed()), view("more")], prepare=True))
    second, more = TableId("till", "takings", 2), TableId("till", "more", 1)
    assert {second, more} <= {*both.workspace.offline.tables("till")}
    assert collect_garbage(both.workspace).tables == ()  # its apply may still come
    assert rows_offline(both, 2) == 70
    both.apply([Entity("other", {"x": String})])
    garbage = collect_garbage(both.workspace)
    assert {*garbage.tables} == {second, more}
    assert garbage.records >= 2 * len(SHOPS)
    assert {second, more}.isdisjoint(both.workspace.offline.tables("till"))
    # What was removed is not gone on with.
    plan = both.apply([service(renamed()), view("more")], allow_breaking=True, prepare=True)
    assert {step.name: step.generation for step in plan.steps if step.kind == "feature_view"} == {
        "takings": 3,
        "more": 2,
    }
    assert None not in values(both, "takings:total") + values(both, "more:amount")
    check_whole(both)
    assert online(both)


def test_other_definitions_do_not_go_on_with_what_was_prepared(store: FeatureStore) -> None:
    write_sales(store.root, factor=2.0, name="doubled.parquet")
    fill(store.workspace, store.plan([service(renamed())], prepare=True))
    moved = renamed(source=ParquetSource("sales", "doubled.parquet", "ts"))
    before = values(store, "takings:amount")
    store.apply([service(moved)], allow_breaking=True, prepare=True)
    assert generation(store) == 3
    assert values(store, "takings:total") == [2 * value for value in before]
    store.workspace.clock.pass_refreshes()
    garbage = collect_garbage(store.workspace)
    assert {table.generation for table in garbage.tables} == {1, 2}


def test_a_view_that_cannot_be_filled_leaves_the_old_revision_serving(store: FeatureStore) -> None:
    before = online(store)
    bad = "SELECT shop, ts, CASE WHEN amount > 15 THEN error('too much') ELSE amount END AS total FROM sales"
    with pytest.raises(MaterializationError, match="takings"):
        store.apply([service(view(feature="total", sql=bad))], allow_breaking=True, prepare=True)
    assert (online(store), generation(store)) == (before, 1)
    assert store.workspace.snapshot().revision == 1
    store.apply([service(renamed())], allow_breaking=True, prepare=True)
    assert None not in values(store, "takings:total")


def test_filling_does_not_stop_runs_of_what_is_served(store: FeatureStore) -> None:
    appended: list[int] = []
    running: list[tuple[str, int]] = []

    def meanwhile(event: Event) -> None:
        if (event.phase, event.step) == ("start", "publish") and not running:
            running.extend((run.state, run.generation) for run in runs_of(store) if run.state != "done")
            write_sales(store.root, hours=12)
            with closing(FeatureStore(store.root, clock=ManualClock(NOW_US))) as other:
                runs = materialize_incremental(other.workspace, wait_seconds=0.1)
            appended.extend(run.appended for run in runs)

    with listening(meanwhile):
        store.apply([service(renamed())], allow_breaking=True, prepare=True)
    assert appended == [2 * len(SHOPS)]
    assert running == [("running", 2)]
    assert rows_offline(store, 2) == rows_offline(store, 1) == 12 * len(SHOPS)
    check_whole(store)


def runs_of(store: FeatureStore) -> list[RunResult]:
    return all_runs(store.workspace.ledger, "till", now_us=NOW_US)


def test_spans_that_the_old_generation_gains_meanwhile_are_filled_too(store: FeatureStore) -> None:
    times = [timedelta(microseconds=NOW_US - hours * HOUR_US) + EPOCH for hours in (10, 8, 6)]
    store.apply([view("spans")])
    store.materialize(times[0], times[1], "spans")
    gained: list[int] = []

    def meanwhile(event: Event) -> None:
        if (event.phase, event.step) == ("start", "publish") and not gained:
            gained.append(1)
            with closing(FeatureStore(store.root, clock=ManualClock(NOW_US))) as other:
                gained.extend(run.appended for run in other.materialize(times[1], times[2], "spans"))

    with listening(meanwhile):
        store.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert gained == [1, 2 * len(SHOPS)]
    assert rows_offline(store, 2, "spans") == rows_offline(store, 1, "spans") == 4 * len(SHOPS)


def test_what_was_committed_and_not_published_is_published_by_the_next(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [timedelta(microseconds=NOW_US - hours * HOUR_US) + EPOCH for hours in (10, 0)]
    store.apply([view("spans")])
    store.materialize(*times, "spans")

    def down(*arguments: Any, **options: Any) -> None:
        raise OnlineStoreUnavailableError("It is away.")

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "publish", down)
        with pytest.raises(MaterializationError):
            store.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert (rows_offline(store, 2, "spans"), generation(store, "spans")) == (10 * len(SHOPS), 1)
    store.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert values(store, "spans:total") == values(store, "takings:amount")


def times(*hours: int) -> list[datetime]:
    return [timedelta(microseconds=NOW_US - each * HOUR_US) + EPOCH for each in hours]


def change_hours(root: Path, *hours: int, amount: float | None) -> None:
    """Give the rows of some hours another amount, or take them away."""
    path = root / "sales.parquet"
    rows = pq.read_table(path).to_pylist()
    picked = times(*hours)
    kept = [row if row["ts"] not in picked else {**row, "amount": amount} for row in rows]
    left = [row for row in kept if row["amount"] is not None]
    pq.write_table(pa.Table.from_pylist(left, pq.read_schema(path)), path)


def begin_spans(store: FeatureStore, **changes: Any) -> None:
    store.apply([view("spans", **changes)])
    store.materialize(*times(10, 8), "spans")
    store.materialize(*times(6, 3), "spans")


def read_again(store: FeatureStore, amount: float | None, *, rebuild: bool) -> None:
    """Change the newest row of every shop in the second span, and read it again for what is served."""
    change_hours(store.root, 4, amount=amount)
    with closing(FeatureStore(store.root, clock=ManualClock(NOW_US))) as other:
        start, end = ((at - EPOCH) // timedelta(microseconds=1) for at in times(6, 3))
        runs = materialize(other.workspace, start, end, ["spans"], rebuild=rebuild, confirm=lambda view, rows: True)
    assert [run.state for run in runs] == ["done"]


READ_AGAIN = pytest.mark.parametrize(
    ("amount", "rebuild"), [(100.0, False), (100.0, True), (None, True)], ids=["corrected", "rebuilt", "withdrawn"]
)


@pytest.mark.uncounted
@READ_AGAIN
def test_what_was_left_is_not_gone_on_with_once_what_is_served_was_read_again(
    spanned: FeatureStore, amount: float | None, rebuild: bool
) -> None:
    fill(spanned.workspace, spanned.plan([renamed(name="spans")], prepare=True))
    read_again(spanned, amount, rebuild=rebuild)
    before = values(spanned, "spans:amount")
    plan = spanned.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert [step.generation for step in plan.steps] == [3]
    assert values(spanned, "spans:total") == before
    spanned.apply([Entity("other", {"x": String})])
    assert TableId("till", "spans", 2) in collect_garbage(spanned.workspace).tables


@pytest.mark.uncounted
@READ_AGAIN
@pytest.mark.parametrize("is_incremental", [False, True])
def test_what_is_read_again_while_it_is_filled_is_read_again_too(
    spanned: FeatureStore, amount: float | None, rebuild: bool, is_incremental: bool
) -> None:
    if is_incremental:
        spanned.materialize_incremental(views="spans")
    begun: list[int] = []
    last = 1 if is_incremental else 2  # all is read by then

    def meanwhile(event: Event) -> None:
        if (event.phase, event.step) == ("start", "publish"):
            begun.append(1)
            if len(begun) == last:
                read_again(spanned, amount, rebuild=rebuild)

    with listening(meanwhile):
        spanned.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert len(begun) > last
    assert [found.problems for found in verify(spanned.workspace)] == [(), ()]
    assert history(spanned, "spans", 2) == history(spanned, "spans", 1)


def history(store: FeatureStore, name: str, number: int) -> set[tuple[Any, ...]]:
    """Return what a generation's table says of each shop and time: of several versions the last."""
    version = store.workspace.offline.current(TableId("till", name, number))
    assert version is not None
    rows = [row for file in version.files for row in pq.read_table(file.path).to_pylist()]
    rows.sort(key=lambda row: row["fs_seq"])
    feature = "total" if number == 2 else "amount"
    return {*{(row["shop"], row["event_ts"]): row[feature] for row in rows}.items()}


@pytest.mark.uncounted
def test_runs_that_always_change_what_is_served_refuse_the_apply(spanned: FeatureStore) -> None:
    amounts: list[float] = []
    busy: list[int] = []

    def meanwhile(event: Event) -> None:
        if (event.phase, event.step) == ("finish", "read") and not busy:
            busy.append(1)
            amounts.append(100.0 + len(amounts))
            read_again(spanned, amounts[-1], rebuild=False)
            busy.clear()

    with listening(meanwhile), pytest.raises(RevisionConflictError, match="Runs changed feature view 'spans'"):
        spanned.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert (generation(spanned, "spans"), values(spanned, "spans:amount")) == (1, [amounts[-1]] * len(SHOPS))
    spanned.apply([renamed(name="spans")], allow_breaking=True, prepare=True)
    assert values(spanned, "spans:total") == [amounts[-1]] * len(SHOPS)


def test_pushes_meanwhile_do_not_hold_it_up(store: FeatureStore) -> None:
    live = PushSource("live", sales)
    begin_spans(store, source=live)

    def meanwhile(event: Event) -> None:
        if (event.phase, event.step) == ("finish", "read"):
            with closing(FeatureStore(store.root, clock=ManualClock(NOW_US))) as other:
                other.push("live", [{"shop": SHOPS[0], "ts": times(5)[0], "amount": 1.0}], to="offline")

    with listening(meanwhile):
        store.apply([view("spans", source=live, schema=[Field("amount", Int64)])], allow_breaking=True, prepare=True)
    assert generation(store, "spans") == 2


def test_without_the_flag_nothing_prepared_is_taken(store: FeatureStore) -> None:
    fill(store.workspace, store.plan([service(renamed())], prepare=True))
    plan = store.apply([service(renamed())], allow_breaking=True)
    assert (generation(store), rows_offline(store, 3)) == (3, 0)
    assert "generation 3 starts empty" in str(plan)


def test_a_prepared_table_that_was_lost_is_not_gone_on_with(store: FeatureStore) -> None:
    fill(store.workspace, store.plan([service(renamed())], prepare=True))
    store.workspace.offline.clean(TableId("till", "takings", 2), keep=None)
    store.apply([service(renamed())], allow_breaking=True, prepare=True)
    assert (generation(store), rows_offline(store, 3)) == (3, 70)


def test_a_new_view_that_was_prepared_is_begun_anew_once_another_apply_came(store: FeatureStore) -> None:
    fill(store.workspace, store.plan([view("more")], prepare=True))
    assert [step.generation for step in store.plan([view("more")], prepare=True).steps] == [1]
    store.apply([Entity("other", {"x": String})])
    assert [step.generation for step in store.plan([view("more")], prepare=True).steps] == [2]


def test_what_an_apply_takes_up_again_gc_leaves(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.apply([view("slow", online=False)])
    store.materialize_incremental(views="slow")
    wanted = renamed(name="slow", online=False)
    fill(store.workspace, store.plan([wanted], prepare=True))
    store.apply([Entity("other", {"x": String})])

    def taken_meanwhile(workspace: Workspace) -> dict[TableId, frozenset[int]]:
        with closing(FeatureStore(store.root, clock=ManualClock(NOW_US))) as other:
            fill(other.workspace, other.plan([wanted], prepare=True))
        return pins(workspace)

    monkeypatch.setattr(gc_module, "pins", taken_meanwhile)
    assert collect_garbage(store.workspace).tables == ()
    assert rows_offline(store, 2, "slow") == 70


def test_a_preparation_that_fails_is_no_run_of_what_is_served(store: FeatureStore) -> None:
    before = [found.last_run for found in status(store.workspace)]
    bad = "SELECT shop, ts, CASE WHEN amount > 15 THEN error('too much') ELSE amount END AS total FROM sales"
    with pytest.raises(MaterializationError):
        store.apply([service(view(feature="total", sql=bad))], allow_breaking=True, prepare=True)
    assert [found.last_run for found in status(store.workspace)] == before


def test_rows_that_only_were_pushed_are_said_to_stay_behind(store: FeatureStore) -> None:
    live = PushSource("live", sales)
    wide = [Field("amount", Float64), Field("shop_name", String)]
    rows = pq.read_table(store.root / "sales.parquet")
    pq.write_table(rows.append_column("shop_name", rows.column("shop")), store.root / "sales.parquet")
    store.apply([view("pushed", source=live, schema=wide)])
    longer = view("pushed", source=live, schema=wide, description="sold")
    assert [step.notices for step in store.plan([longer], prepare=True).steps] == [()]
    assert store.plan([view("pushed", source=live)], prepare=True).steps[-1].notices == ()  # none was pushed
    store.push("live", {"shop": ["z"], "ts": [datetime(2026, 1, 1, tzinfo=UTC)], "amount": [1.0], "shop_name": ["z"]})
    (notice,) = store.plan([view("pushed", source=live)], prepare=True).steps[-1].notices
    assert "1 row that was pushed to live" in notice
