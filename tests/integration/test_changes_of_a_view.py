"""What becomes of rows that are stored when their view's definition changes, and that the plan's remedy is one."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

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
    ParquetSource,
    PushSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.definitions import Definition
from featurestore.errors import DefinitionError
from featurestore.maintenance.gc import collect_garbage
from featurestore.materialization import materialize, republish, succeeded
from featurestore.online.records.keys import project_prefix
from featurestore.plan import make_plan
from featurestore.plan.changes import explain
from featurestore.project.loader import collect
from featurestore.training import TrainingSetWarning
from featurestore.types import Int32, Int64, String
from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

# Redis expires by its own clock, so these instants are real ones.
NOW_US = system_clock()
DAY_US = 86_400_000_000
SHOPS = ["a", "b", "old"]
VALUES = [1, 2, 3]
AGES_DAYS = [1, 2, 10]


def sales(name: str = "sales", **changes: Any) -> FeatureView:
    values = {"schema": [Field("amount", Int32), Field("note", String)], "ttl": timedelta(days=3), **changes}
    source = ParquetSource("rows", "rows.parquet", "at")
    return FeatureView(name, entities=[Entity("shop", {"shop": String})], source=source, **values)


def write_rows(root: Path, amounts: list[int]) -> None:
    at = pa.array([NOW_US - age * DAY_US for age in AGES_DAYS], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    kind = pa.int64() if max(amounts) > 2**31 else pa.int32()
    columns = {"shop": SHOPS, "at": at, "amount": pa.array(amounts, kind), "note": ["x", "y", "z"], "more": ["m"] * 3}
    pq.write_table(pa.table(columns), root / "rows.parquet")


BOTH = pytest.mark.parametrize("store", ["lmdb", "redis"], indirect=True)


def make(root: Path, settings: str = "") -> FeatureStore:
    (root / "feature_store.yaml").write_text(f"project: shop\n{settings}")
    write_rows(root, VALUES)
    made = FeatureStore(root, clock=ManualClock(NOW_US))
    made.apply([sales(), sales("sales_2")])
    made.materialize_incremental()
    return made


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `store` is with the embedded online store, to be copied."""
    root = tmp_path_factory.mktemp("embedded")
    make(root).close()
    return root


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, embedded: Path) -> Iterator[FeatureStore]:
    """A project whose view ``sales`` is materialized, and a neighbour whose name begins alike."""
    if getattr(request, "param", "lmdb") == "redis":
        made = make(
            tmp_path, f"online_store: {{url: '{request.getfixturevalue('redis_url')}', read_timeout_ms: 5000}}\n"
        )
    else:
        shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)
        made = FeatureStore(tmp_path, clock=ManualClock(NOW_US))
    with made:
        yield made


def change(store: FeatureStore, view: FeatureView) -> str:
    """Apply a changed view and return what its plan said."""
    plan = store.plan([view])
    store.apply_plan(plan, allow_breaking=True, allow_destroy=True)
    return "\n".join(line.text for line in explain(plan))


def online(store: FeatureStore, feature: str = "sales:amount") -> list[tuple[Any, str]]:
    answer = store.get_online_features(feature, {"shop": SHOPS})
    (name,) = answer.names
    values = zip(answer.to_dict()[name], answer.statuses[name], strict=True)
    return [(value, status.name) for value, status in values]


def offline(store: FeatureStore, name: str = "amount") -> list[Any]:
    at = pa.array([NOW_US - 1] * 3, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    frame = pa.table({"shop": SHOPS, "event_timestamp": at})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)  # nothing is committed yet of a new generation
        return store.get_historical_features(frame, f"sales:{name}").to_arrow().column(name).to_pylist()


def rebuild(store: FeatureStore) -> None:
    succeeded(materialize(store.workspace, NOW_US - 30 * DAY_US, NOW_US, rebuild=True, confirm=lambda *_: True))


PRESENT = [(1, "PRESENT"), (2, "PRESENT"), (None, "NOT_FOUND")]


@BOTH
def test_a_higher_ttl_brings_back_what_had_expired_after_a_republish(store: FeatureStore) -> None:
    assert (online(store), offline(store)) == (PRESENT, [1, 2, None])
    said = change(store, sales(ttl=timedelta(days=30)))
    assert "afterwards run `fs materialize --republish --view sales`" in said
    assert "--rebuild" not in said
    assert offline(store) == VALUES
    rebuild(store)
    assert online(store) == PRESENT  # no row differs, so nothing is published: a rebuild is not the remedy
    succeeded(republish(store.workspace))
    assert online(store) == [(value, "PRESENT") for value in VALUES]


def test_gc_removes_what_is_long_past_its_ttl(store: FeatureStore) -> None:
    """Redis does so by itself; in LMDB publishes sweep a slice each, and an idle view's records would stay."""

    def entries() -> int:
        return int(store.workspace.online.facts()["entries"])

    before = entries()
    assert collect_garbage(store.workspace).records == 0
    assert entries() == before
    clock = store.workspace.clock
    assert isinstance(clock, ManualClock)
    clock.set(NOW_US + 30 * DAY_US)
    assert collect_garbage(store.workspace).records == 4  # two shops in each of the two views
    assert entries() == before - 4
    assert online(store) == [(None, "NOT_FOUND")] * 3


def test_a_lower_ttl_counts_at_once(store: FeatureStore) -> None:
    change(store, sales(ttl=timedelta(days=1)))
    assert online(store) == [(1, "PRESENT"), (None, "OUTSIDE_MAX_AGE"), (None, "NOT_FOUND")]
    assert offline(store) == [1, None, None]


def test_other_sql_gives_other_values_after_a_rebuild(store: FeatureStore) -> None:
    said = change(store, sales(sql="SELECT * REPLACE (10 * amount AS amount) FROM rows"))
    command = r"`fs materialize \S+Z \S+Z --rebuild --view sales`"
    assert re.search(
        f"{command}: until then rows keep their old values, but those that runs read again meanwhile", said
    )
    assert (online(store), offline(store)) == (PRESENT, [1, 2, None])
    rebuild(store)
    assert online(store)[:2] == [(10, "PRESENT"), (20, "PRESENT")]
    assert offline(store) == [10, 20, None]


def test_what_runs_read_again_before_a_rebuild_is_made_by_the_new_sql(store: FeatureStore) -> None:
    """As the plan says: what did not come again keeps its values."""
    change(store, sales(sql="SELECT * REPLACE (amount + 0 AS amount) FROM rows"))
    store.materialize_incremental(views=["sales"])
    change(store, sales(sql="SELECT * REPLACE (10 * amount AS amount) FROM rows"))
    store.materialize_incremental(views=["sales"])
    assert offline(store) == [1, 2, None]
    write_rows(store.root, [1, 5, 3])  # of a file that changed all rows are read
    store.materialize_incremental(views=["sales"])
    assert offline(store) == [10, 50, None]


def test_wider_numbers_are_read_from_old_rows_and_new(store: FeatureStore) -> None:
    write_rows(store.root, [1, 2**40, 3])
    change(store, sales(schema=[Field("amount", Int64), Field("note", String)]))
    assert (online(store), offline(store)) == (PRESENT, [1, 2, None])
    store.materialize_incremental(views=["sales"])
    assert online(store)[:2] == [(1, "PRESENT"), (2**40, "PRESENT")]
    assert offline(store) == [1, 2**40, None]


def test_a_new_feature_is_not_found_until_it_is_there(store: FeatureStore) -> None:
    change(store, sales(schema=[Field("more", String), Field("note", String), Field("amount", Int32)]))
    assert online(store) == PRESENT  # by name, though the order changed too
    assert online(store, "sales:more") == [(None, "NOT_FOUND")] * 3
    assert offline(store, "more") == [None] * 3
    rebuild(store)
    assert online(store, "sales:more")[:2] == [("m", "PRESENT")] * 2
    assert offline(store, "more") == ["m", "m", None]
    assert online(store) == PRESENT


@BOTH
def test_another_type_starts_empty_and_garbage_collection_takes_the_old(store: FeatureStore) -> None:
    said = change(
        store, sales(schema=[Field("amount", String)], sql="SELECT * REPLACE ('n' || amount AS amount) FROM rows")
    )
    assert "3 offline rows and 2 online rows would be set aside; generation 2 starts empty" in said
    assert online(store) == [(None, "NOT_FOUND")] * 3
    assert offline(store) == [None] * 3
    store.materialize_incremental()
    assert online(store)[:2] == [("n1", "PRESENT"), ("n2", "PRESENT")]
    assert offline(store) == ["n1", "n2", None]

    def deletion() -> str:
        return "\n".join(line.text for line in explain(make_plan(store.workspace, [], partial=False)))

    assert "6 offline rows and 4 online rows would be deleted" in deletion()  # of both generations
    before = online(store, "sales_2:amount")
    store.workspace.clock.pass_refreshes()
    collect_garbage(store.workspace)
    assert "6 offline rows" not in deletion()
    keys = [key for batch in store.workspace.online.scan(project_prefix("shop")) for key, _ in batch]
    assert {key.split(b"{")[0] for key in keys if b":{" in key and b"marker" not in key} == {
        b"fs:shop:sales.2:",
        b"fs:shop:sales_2:",
    }
    assert online(store, "sales_2:amount") == before == PRESENT
    assert online(store)[0] == ("n1", "PRESENT")


@BOTH
def test_a_deleted_view_takes_its_rows_along_and_nothing_else(store: FeatureStore) -> None:
    plan = make_plan(store.workspace, collect([sales("sales_2")]), partial=False)
    assert "3 offline rows and 2 online rows would be deleted" in "\n".join(line.text for line in explain(plan))
    store.apply_plan(plan, allow_destroy=True)
    keys = [key for batch in store.workspace.online.scan(project_prefix("shop")) for key, _ in batch]
    assert keys
    assert all(key.startswith(b"fs:shop:sales_2:") for key in keys)
    assert [str(table) for table in store.workspace.offline.tables("shop")] == ["shop/sales_2/1"]
    assert online(store, "sales_2:amount") == PRESENT
    # A view of the same name later finds nothing of what was.
    store.apply([sales()])
    assert online(store) == [(None, "NOT_FOUND")] * 3
    assert offline(store) == [None] * 3
    store.materialize_incremental()
    assert (online(store), offline(store)) == (PRESENT, [1, 2, None])


def test_a_view_that_goes_online_again_publishes_what_came_meanwhile(store: FeatureStore) -> None:
    change(store, sales(online=False))
    write_rows(store.root, [5, 2, 3])
    store.materialize_incremental()
    change(store, sales())
    store.materialize_incremental()
    assert online(store)[:2] == [(5, "PRESENT"), (2, "PRESENT")]


def test_a_store_that_lives_on_runs_the_code_that_it_applied_last(tmp_path: Path) -> None:
    text = """
from featurestore import Field, RequestSource, on_demand_feature_view
from featurestore.types import Int64

@on_demand_feature_view(sources=[RequestSource("given", [Field("x", Int64)])], schema=[Field("y", Int64)])
def computed(inputs):
    return {"y": [x + 1 for x in inputs["x"]]}
"""
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    with FeatureStore(tmp_path) as store:
        for added in (1, 20):
            (tmp_path / "features.py").write_text(text.replace("x + 1", f"x + {added}"))
            store.apply()
            assert store.get_online_features("computed:y", {"x": [1]}).to_dict()["y"] == [1 + added]


@pytest.mark.parametrize("objects", ["all", "changed"])
@pytest.mark.parametrize("changed", ["entity", "source", "path", "request"])
def test_a_change_below_many_views_is_applied(store: FeatureStore, changed: str, objects: str) -> None:
    """Definitions of every kind stand on an entity and a source: none of them hinders a change of what is below."""

    def definitions(describe: str = "") -> list[Definition]:
        shop = Entity("shop", {"shop": String}, description=describe * (changed == "entity"))
        source = ParquetSource(
            "rows",
            "copy.parquet" if describe and changed == "path" else "rows.parquet",
            "at",
            description=describe * (changed == "source"),
        )
        request = RequestSource("given", [Field("x", Int64)], description=describe * (changed == "request"))
        views = [
            FeatureView(name, entities=[shop], source=read, schema=[Field("amount", Int32)])
            for name, read in (("one", source), ("two", source), ("three", PushSource("pushed", source)))
        ]

        @on_demand_feature_view(sources=[request, views[0][["amount"]]], schema=[Field("total", Int64)])
        def summed(inputs: dict[str, list[int]]) -> dict[str, list[int]]:
            return {"total": inputs["x"]}

        named = [view.with_name(f"{view.name}_") for view in views]
        services = [FeatureService("first", [views[0]]), FeatureService("second", [summed, named[1][["amount"]]])]
        return [shop, source, request, views[2].sources[0], *views, summed, *services]

    (store.workspace.root / "copy.parquet").write_bytes((store.workspace.root / "rows.parquet").read_bytes())
    store.apply(definitions())
    after = definitions("another text")
    place = {"entity": 0, "source": 1, "path": 1, "request": 2}[changed]
    plan = store.apply(after if objects == "all" else [after[place]])
    assert [step.name for step in plan.steps] == [after[place].name]
    assert store.plan(after).steps == ()


@pytest.mark.parametrize("prepare", [False, True])
def test_an_apply_of_some_definitions_leaves_none_that_cannot_be_read(store: FeatureStore, prepare: bool) -> None:
    """From a notebook a view is applied alone; what names its features would no longer load, nor anything else."""
    view, model = sales(), FeatureService("model", features=[sales()[["amount", "note"]]])
    store.apply([view, model])
    smaller = sales(schema=[Field("amount", Int32)])
    with pytest.raises(
        DefinitionError, match="feature_service 'model' is applied and does not fit the new definitions"
    ) as told:
        store.apply([smaller], allow_breaking=True, prepare=prepare)
    assert "has no feature 'note'" in told.value.message
    assert store.plan([view, model]).steps == ()
    fitting = FeatureService("model", features=[smaller[["amount"]]])
    assert store.apply([smaller, fitting], allow_breaking=True, prepare=prepare).applied
