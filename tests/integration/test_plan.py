"""Plans and applies: each change has its class, what is shown is what happens, two applies never both win."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock

from featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
    RequestSource,
)
from featurestore.errors import (
    ChangesNotAllowedError,
    DefinitionError,
    NotFoundError,
    RevisionConflictError,
    SourceError,
    SourceSchemaError,
)
from featurestore.ledger.watermarks import Watermark, write_watermark
from featurestore.plan import ChangeClass, make_plan
from featurestore.plan.changes import explain
from featurestore.registered import records
from featurestore.registered.snapshot import Snapshot
from featurestore.types import Array, Float32, Float64, Int32, Int64, String

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "at", "known")
BASE = [Field("delay", Float32), Field("n", Int32, description="count")]


def view(**changes):
    values = {"entities": [carrier], "source": flights, "schema": BASE, "ttl": timedelta(days=7), **changes}
    return FeatureView("delays", **values)


def write_source(root: Path, **columns) -> None:
    at = pa.array([NOW - timedelta(days=1)], pa.timestamp("us", tz="UTC"))
    base = {
        "carrier": ["UA"],
        "at": at,
        "known": at,
        "delay": pa.array([1.5], pa.float32()),
        "n": pa.array([1], pa.int32()),
    }
    table = pa.table({name: column for name, column in {**base, **columns}.items() if column is not None})
    pq.write_table(table, root / "flights.parquet")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_source(tmp_path)
    return tmp_path


@pytest.fixture
def store(root: Path):
    with FeatureStore(root, clock=ManualClock(NOW)) as opened:
        yield opened


def whole(store: FeatureStore, definitions):
    """Plan as if ``definitions`` were all that the repo holds."""
    from featurestore.project.loader import collect

    return make_plan(store.workspace, collect(definitions), partial=False)


def classes(plan):
    assert all(step.differences for step in plan.steps if step.action == "update")  # each says what differs
    return {step.name: step.change_class for step in plan.steps}


def test_the_first_plan_creates_everything_in_order(store):
    plan = store.plan([FeatureService("model", [view()])])
    assert [(step.action, step.kind, step.name) for step in plan.steps] == [
        ("create", "entity", "carrier"),
        ("create", "source", "flights"),
        ("create", "feature_view", "delays"),
        ("create", "feature_service", "model"),
    ]
    assert plan.worst is ChangeClass.COMPATIBLE
    assert store.workspace.registry.definitions.head("shop") == 0


def test_applying_twice_changes_nothing(store):
    assert store.apply([view()]).applied == 1
    again = store.apply([view()])
    assert (again.steps, again.applied) == ((), 1)
    assert "nothing to change" in explain(again)[0].text


def test_definitions_come_back_as_they_were(store):
    service = FeatureService("model", [view()[["n"]].with_name("other").with_join_keys({"carrier": "airline"})])
    described = view(description="late", owner="ops", tags={"tier": "1"})
    request = RequestSource("request", [Field("x", Float64, default=1.5)])
    on_demand = OnDemandFeatureView(
        "twice",
        sources=[described[["delay", "n"]], request],
        schema=[Field("y", Array(Float64))],
        function=None,
        code="def f(): ...",
    )
    pushed = FeatureView("pushed", entities=[carrier], source=PushSource("push", flights), schema=BASE, online=False)
    silent, talkative = view(statistics=False).replaced(name="silent"), view(statistics=["n"]).replaced(name="talks")
    given = [described, replace_view(service, described), request, on_demand, pushed, silent, talkative]
    store.apply(given)
    for definition in given:
        assert store.get(definition.kind, definition.name) == definition
    assert store.workspace.snapshot().views["delays"].generation == 1


def replace_view(service, other):
    return service.replaced(features=tuple(s.replaced(view=other) for s in service.features))


CHANGES = {
    "description": (view(description="x"), ChangeClass.METADATA, 1),
    "owner": (view(owner="x"), ChangeClass.METADATA, 1),
    "tags": (view(tags={"a": "b"}), ChangeClass.METADATA, 1),
    "feature description": (view(schema=[Field("delay", Float32, description="x"), BASE[1]]), ChangeClass.METADATA, 1),
    "statistics": (view(statistics=False), ChangeClass.METADATA, 1),
    "values shown": (view(statistics=["n"]), ChangeClass.METADATA, 1),
    "default": (view(schema=[Field("delay", Float32, default=0.0), BASE[1]]), ChangeClass.COMPATIBLE, 1),
    "new feature": (view(schema=[*BASE, Field("more", Float64)]), ChangeClass.COMPATIBLE, 1),
    "order": (view(schema=BASE[::-1]), ChangeClass.COMPATIBLE, 1),
    "lower ttl": (view(ttl=timedelta(days=1)), ChangeClass.COMPATIBLE, 1),
    "wider numbers": (view(schema=[Field("delay", Float64), Field("n", Int64)]), ChangeClass.COMPATIBLE, 1),
    "higher ttl": (view(ttl=timedelta(days=8)), ChangeClass.REBUILD, 1),
    "no ttl": (view(ttl=None), ChangeClass.REBUILD, 1),
    "sql": (view(sql="SELECT * FROM flights"), ChangeClass.REBUILD, 1),
    "offline only": (view(online=False), ChangeClass.BREAKING, 1),
    "feature removed": (view(schema=BASE[:1]), ChangeClass.BREAKING, 2),
    "type changed": (view(schema=[Field("delay", Float32), Field("n", Float64)]), ChangeClass.BREAKING, 2),
    "renamed entity": (
        view(entities=[Entity("airline", join_keys={"carrier": String})]),
        ChangeClass.COMPATIBLE,
        1,
    ),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("case", CHANGES)
def test_each_change_of_a_view_has_its_class(store, root, case):
    write_source(root, more=[1.0], id=[1])
    store.apply([view()])
    changed, change_class, generation = CHANGES[case]
    plan = store.plan([changed])
    assert classes(plan)["delays"] is change_class
    allowed = store.apply([changed], allow_breaking=True)
    assert allowed.applied == 2
    assert store.workspace.snapshot().views["delays"].generation == generation


def test_keys_that_change_start_a_new_generation(store, root):
    store.apply([view()])
    write_source(root, carrier=[7])
    by_number = view(entities=[Entity("carrier", join_keys={"carrier": Int64})])
    plan = store.plan([by_number])
    assert classes(plan) == {"carrier": ChangeClass.BREAKING, "delays": ChangeClass.BREAKING}
    store.apply([by_number], allow_breaking=True)
    assert store.workspace.snapshot().views["delays"].generation == 2


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("before", "after", "change_class"),
    [
        (flights, ParquetSource("flights", "other.parquet", "at", "known"), ChangeClass.REBUILD),
        (flights, ParquetSource("flights", "flights.parquet", "known", "at"), ChangeClass.REBUILD),
        (
            flights,
            ParquetSource("flights", "flights.parquet", "at", "known", allowed_lateness=timedelta(days=2)),
            ChangeClass.COMPATIBLE,
        ),
        (
            Entity("pair", join_keys={"a": String, "b": Int64}),
            Entity("pair", join_keys={"b": Int64, "a": String}),
            ChangeClass.COMPATIBLE,
        ),
        (
            RequestSource("r", [Field("x", Int64)]),
            RequestSource("r", [Field("x", Int64), Field("y", Int64)]),
            ChangeClass.BREAKING,
        ),
        (
            RequestSource("r", [Field("x", Int64), Field("y", Int64)]),
            RequestSource("r", [Field("x", Int64)]),
            ChangeClass.COMPATIBLE,
        ),
        (
            FeatureService("s", [view()[["n"]]]),
            FeatureService("s", [view()[["n", "delay"]]]),
            ChangeClass.COMPATIBLE,
        ),
        (FeatureService("s", [view()[["n", "delay"]]]), FeatureService("s", [view()[["n"]]]), ChangeClass.BREAKING),
        (
            FeatureService("s", [view()[["n", "delay"]]]),
            FeatureService("s", [view()[["delay", "n"]]]),
            ChangeClass.BREAKING,
        ),
        (
            FeatureService("s", [view()]),
            FeatureService("s", [view().with_join_keys({"carrier": "airline"})]),
            ChangeClass.BREAKING,
        ),
    ],
)
def test_each_change_of_other_kinds_has_its_class(store, before, after, change_class):
    store.apply([before])
    assert classes(store.plan([after]))[after.name] is change_class


def on_demand(code="def f(inputs): ...", **changes):
    values = {"sources": [view()], "schema": [Field("y", Float64), Field("z", Float64)], "function": None, **changes}
    return OnDemandFeatureView("computed", code=code, **values)


@pytest.mark.parametrize(
    ("after", "change_class"),
    [
        (on_demand("def f(inputs): return {}"), ChangeClass.REBUILD),
        (on_demand(mode="pandas"), ChangeClass.REBUILD),
        (on_demand(sources=[view()[["n"]]]), ChangeClass.REBUILD),
        (on_demand("def f(inputs): return inputs['n']", sources=[view()[["n"]]]), ChangeClass.REBUILD),
        (on_demand("def f(inputs): return inputs['delay']", sources=[view()[["n"]]]), ChangeClass.BREAKING),
        (on_demand(schema=[Field("y", Float64)]), ChangeClass.BREAKING),
        (on_demand(schema=[Field("y", Float64), Field("z", Float64), Field("w", Int64)]), ChangeClass.COMPATIBLE),
    ],
)
def test_each_change_of_an_on_demand_view_has_its_class(store, after, change_class):
    store.apply([on_demand()])
    assert classes(store.plan([after]))["computed"] is change_class


def test_a_source_that_is_now_also_pushed_to_holds_what_it_held(store):
    store.apply([view(source=flights)])
    assert classes(store.plan([view(source=PushSource("push", flights))])) == {
        "push": ChangeClass.COMPATIBLE,
        "delays": ChangeClass.COMPATIBLE,
    }


def test_a_plan_says_that_pushers_have_to_send_an_added_field(store):
    pushed = {"source": PushSource("push", flights)}
    store.apply([view(schema=BASE[:1], **pushed)])
    (step,) = store.plan([view(schema=BASE, **pushed)]).steps
    (notice,) = step.notices
    assert notice.startswith("n: once this is applied, rows that are pushed to push without it are refused.")


def test_a_moved_push_source_is_a_rebuild(store, root):
    pq.write_table(pq.read_table(root / "flights.parquet"), root / "b.parquet")
    before, after = PushSource("push", flights), PushSource("push", ParquetSource("b", "b.parquet", "at", "known"))
    store.apply([view(source=before)])
    assert classes(store.plan([view(source=after)]))["push"] is ChangeClass.REBUILD


def test_breaking_changes_need_their_flag_and_change_nothing_without(store):
    store.apply([view(), FeatureService("model", [view()])])
    with pytest.raises(ChangesNotAllowedError, match="--allow-breaking") as caught:
        store.apply([view(schema=BASE[:1])])
    assert "'delays'" in str(caught.value)
    assert store.workspace.registry.definitions.head("shop") == 1


def remember_rows(store, offline, online):
    registered = store.workspace.snapshot().views["delays"]
    write_watermark(store.workspace.ledger, registered, Watermark(offline_rows=offline, online_rows=online))


def test_deleting_a_view_says_what_would_be_lost_and_needs_its_flag(store, root):
    store.apply([view()])
    remember_rows(store, 12_345, 16)
    plan = whole(store, [carrier])
    assert classes(plan) == {"delays": ChangeClass.DESTRUCTIVE, "flights": ChangeClass.COMPATIBLE}
    text = "\n".join(line.text for line in explain(plan))
    assert "12,345 offline rows and 16 online rows would be deleted" in text
    assert "--allow-destroy" in text
    with pytest.raises(ChangesNotAllowedError, match="12,345 offline and 16 online rows"):
        store.apply_plan(plan, allow_breaking=True)
    assert store.apply_plan(plan, allow_destroy=True).applied == 2
    assert store.list("feature_views") == []


def test_a_new_generation_says_what_it_sets_aside(store):
    store.apply([view()])
    remember_rows(store, 5, 3)
    text = "\n".join(line.text for line in explain(store.plan([view(schema=BASE[:1])])))
    assert "5 offline rows and 3 online rows would be set aside; generation 2 starts empty" in text


def test_a_name_never_reuses_storage(store):
    store.apply([view()])
    store.apply_plan(whole(store, [carrier]), allow_destroy=True)
    store.apply([view()])
    assert store.workspace.snapshot().views["delays"].generation == 2


def test_deleting_goes_from_dependents_down(store):
    store.apply([FeatureService("model", [view()])])
    plan = whole(store, [carrier])
    assert [step.name for step in plan.steps] == ["model", "delays", "flights"]
    assert all(step.affects == () for step in plan.steps)  # what leaves with it is not asked


def test_given_objects_delete_nothing(store):
    store.apply([view()])
    other = Entity("other", join_keys={"x": Int64})
    assert [step.name for step in store.apply([other]).steps] == ["other"]
    assert len(store.list()) == 4


def test_both_kinds_of_view_share_their_names_across_applies(store):
    store.apply([view()])
    twin = OnDemandFeatureView("delays", sources=[view()], schema=[Field("y", Int64)], function=None)
    with pytest.raises(DefinitionError, match="'delays'"):
        store.plan([twin])
    request = RequestSource("request", [Field("x", Int64)])
    store.apply([OnDemandFeatureView("computed", sources=[request], schema=[Field("y", Int64)], function=None)])
    other = FeatureView("computed", entities=[carrier], source=flights, schema=BASE)
    with pytest.raises(DefinitionError, match="'computed'"):
        store.plan([other])


class TestSchemas:
    def test_a_schema_left_out_is_read_and_pinned(self, store, root):
        store.apply([view(schema=None)])
        assert [(f.name, f.type) for f in store.get("view", "delays").features] == [("delay", Float32), ("n", Int32)]
        write_source(root, gained=["x"])
        plan = store.plan([view(schema=None)])
        assert plan.steps == ()
        assert "gained" in plan.notices[0]
        assert "--refresh-schema" in plan.notices[0]
        store.apply([view(schema=None)], refresh_schema=True)
        assert [f.name for f in store.get("view", "delays").features] == ["delay", "n", "gained"]

    def test_columns_beyond_a_declared_schema_are_left_alone(self, store, root):
        write_source(root, gained=["x"])
        assert store.plan([view()]).notices == ()

    def test_other_definitions_see_the_pinned_view(self, store):
        bare = view(schema=None)
        computed = OnDemandFeatureView("computed", sources=[bare], schema=[Field("y", Int64)], function=None)
        store.apply([FeatureService("model", [bare, computed])])
        service = store.get("feature-service", "model")
        assert [f.name for read in service.features for f in read.features] == ["delay", "n", "y"]

    @pytest.mark.parametrize(
        ("columns", "words"),
        [
            ({"delay": None}, ["'delay'"]),
            ({"delay": ["late"]}, ["delay", "Float32"]),
            ({"carrier": None}, ["carrier"]),
            ({"carrier": [7]}, ["carrier", "String"]),
            ({"at": ["noon"]}, ["at"]),
            ({"known": None}, ["known"]),
            ({"n": [2**40]}, ["n", "Int32"]),
        ],
        ids=str,
    )
    def test_sources_are_checked(self, store, root, columns, words):
        write_source(root, **columns)
        with pytest.raises(SourceSchemaError) as caught:
            store.apply([view()])
        for word in words:
            assert word in str(caught.value)
        assert store.workspace.registry.definitions.head("shop") == 0

    def test_a_column_that_no_feature_can_have_is_named(self, store, root):
        write_source(root, lasted=pa.array([timedelta(1)]))
        with pytest.raises(SourceSchemaError, match="lasted"):
            store.plan([view(schema=None)])

    def test_a_source_without_features_is_refused(self, store, root):
        write_source(root, delay=None, n=None)
        with pytest.raises(SourceSchemaError, match="no column"):
            store.plan([view(schema=None)])

    def test_a_missing_source_is_an_error_for_what_is_new_and_a_notice_for_what_stands(self, store, root):
        store.apply([view()])
        (root / "flights.parquet").unlink()
        plan = store.plan([view()])
        assert plan.steps == ()
        assert "delays" in plan.notices[0]
        with pytest.raises(SourceError, match="flights"):
            store.plan([view(description="changed")])


def test_a_plan_made_before_another_apply_is_refused(store, root):
    stale = store.plan([view()])
    with FeatureStore(root) as other:
        other.apply([carrier])
    with pytest.raises(RevisionConflictError, match="same command again"):
        store.apply_plan(stale)
    assert store.list("views") == []


def test_nothing_is_applied_that_could_not_be_read(store, monkeypatch):
    store.apply([carrier])
    write, _ = records._FORMS["feature_view"]
    monkeypatch.setitem(records._FORMS, "feature_view", (write, lambda *given: Field("1x", Int64)))
    with pytest.raises(DefinitionError, match="feature_view 'delays' was not applied: nothing could read it back"):
        store.apply([view()])
    monkeypatch.undo()
    assert store.list("views") == []
    assert store.workspace.snapshot().revision == 1


def _apply_one(root: str, number: int, barrier, results) -> None:
    with FeatureStore(root) as store:
        plan = store.plan([Entity(f"entity_{number}", join_keys={"x": Int64})])
        barrier.wait()
        try:
            results.put(store.apply_plan(plan).applied)
        except RevisionConflictError:
            results.put(None)


def test_of_concurrent_applies_one_wins(root):
    with FeatureStore(root) as store:
        store.apply([carrier])
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_apply_one, args=(str(root), n, barrier, results)) for n in range(4)]
    for worker in workers:
        worker.start()
    outcomes = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(outcomes, key=str) == [2, None, None, None]
    with FeatureStore(root) as store:
        assert len(store.list("entity")) == 2


def test_history_tells_who_and_why(store):
    store.apply([view()], message="first")
    info = store.workspace.registry.definitions.history("shop")[0]
    assert info.message == "first"
    assert len(info.changes) == 3


def test_old_revisions_stay_readable(store):
    store.apply([view()])
    store.apply([view(description="second")])
    first = Snapshot.of(store.workspace.registry.definitions.read("shop", 1))
    assert first.views["delays"].view.description == ""


def test_unknown_names_and_kinds_are_told_with_the_closest(store):
    store.apply([view()])
    with pytest.raises(NotFoundError, match="Did you mean 'delays'"):
        store.get("view", "delay")
    with pytest.raises(NotFoundError, match="feature_view"):
        store.list("features_view")
    for word in ("feature-views", "FeatureViews".lower(), "entities"):
        if word != "featureviews":
            assert store.list(word)


def test_plans_are_shown_in_notebooks_escaped(store):
    store.apply([view()])
    html = store.plan([view(sql="SELECT * FROM flights WHERE carrier < 'B'", description="<script>")])._repr_html_()
    assert "<script>" not in html
    assert "rebuild" in html
    assert store.plan([view()])._repr_html_()
    assert ": 1 change, the worst change is metadata)" in repr(store.plan([view(description="second")]))


def test_the_commit_of_the_repo_is_noted(root, monkeypatch):
    import subprocess

    environment = {**os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    environment |= {"GIT_COMMITTER_EMAIL": "a@b", "GIT_CONFIG_GLOBAL": os.devnull}
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(root), *command], check=True, env=environment)
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    with FeatureStore(root) as store:
        store.apply([carrier])
        assert store.workspace.registry.definitions.history("shop")[0].commit == head.stdout.strip()
        monkeypatch.setenv("PATH", "")
        store.apply([Entity("other", join_keys={"x": Int64})])
        assert store.workspace.registry.definitions.history("shop")[0].commit == ""


def test_an_empty_plan_moves_nothing(store):
    store.apply([view()])
    plan = store.plan([view()])
    assert store.apply_plan(replace(plan, revision=1)).applied == 1
