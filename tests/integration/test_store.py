"""``FeatureStore`` as a notebook uses it: settings and objects without a folder of definitions."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.materialized import Sale, day, sales_view, write_sales
from support.projects import make_workspace

from featurestore import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    ParquetSource,
    PushSource,
    on_demand_feature_view,
)
from featurestore.errors import (
    InputError,
    IntervalError,
    MaterializationError,
    NotFoundError,
    RegistryError,
    RepositoryError,
    ValueTypeError,
)
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.types import Int64

NOW = day(20)

shop = Entity("shop", {"shop": Int64})
sales = FeatureView("sales", entities=[shop], source=ParquetSource("rows", "rows.parquet", "at"))


@on_demand_feature_view(sources=[sales], schema=[Field("doubled", Int64)])
def twice(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"doubled": [None if amount is None else 2 * amount for amount in inputs["amount"]]}


def write_rows(folder: Path) -> None:
    at = pa.array([day(1), day(2)], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"shop": [1, 2], "at": at, "amount": [10, 20]}), folder / "rows.parquet")


def test_a_notebook_needs_no_folder_of_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    with FeatureStore({"project": "notebook"}, clock=ManualClock(NOW)) as store:
        assert store.apply([FeatureService("model", [sales, twice])], message="first").applied == 1
        (run,) = store.materialize(pd.Timestamp("2024-01-01"), "2024-01-04T00:00:00Z")
        assert (run.appended, run.published.written) == (2, 2)
        frame = pd.DataFrame({"shop": [2, 1, 3], "event_timestamp": pd.to_datetime(["2024-01-03T12:00Z"] * 3)})
        made = store.get_historical_features(frame, "model")
        assert made.to_df()["doubled"].tolist() == [40, 20, pd.NA]
        made.save("first")
        pd.testing.assert_frame_equal(store.get_training_set("first").to_pandas(), made.to_pandas())
        answer = store.get_online_features("model", [{"shop": 1}, {"shop": 3}])
        assert answer.to_dict() == {"shop": [1, 3], "amount": [10, None], "doubled": [20, None]}
        assert [found.name for found in store.list("service")] == ["model"]
        assert store.peek("sales", rows=1).column("amount").to_pylist() == [20]
        # Without objects there must be a folder: nothing is deleted for want of one.
        for call in (store.plan, store.apply):
            with pytest.raises(RepositoryError, match=r"features\.py"):
                call()
        assert len(store.list()) == 5
        store.close()
        assert len(store.list()) == 5  # opens again


def test_runs_that_fail_raise_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_rows(tmp_path)
    with FeatureStore(tmp_path, clock=ManualClock(NOW)) as store:
        store.apply([sales])
        (tmp_path / "rows.parquet").write_bytes(b"PAR1")
        with pytest.raises(MaterializationError, match=r"(?s)sales.*rows\.parquet cannot be read"):
            store.materialize_incremental()
        for start, end, word in (
            ("2024-01-02", "2024-01-01", "is empty"),
            ("2024-01-02", "2024-01-02", "is empty"),
            ("2024-01-02", pd.Timestamp("2024-01-22", tz="UTC"), "in the future"),
        ):
            with pytest.raises(IntervalError, match=word):
                store.materialize(start, end)
        with pytest.raises(IntervalError, match="in the future"):
            store.materialize_incremental(end="2030-01-01")


def test_numbers_and_nat_are_no_instants(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_rows(tmp_path)
    with FeatureStore(tmp_path, clock=ManualClock(NOW)) as store:
        store.apply([sales])
        later = pd.Timestamp("2024-01-05")
        for seconds in (1_704_067_200, 1_704_067_200.0, pd.NaT):
            for read in (
                lambda given: store.materialize(given, later),
                lambda given: store.materialize("2024-01-01", given),
                lambda given: store.materialize_incremental(given),
                lambda given: store.get_historical_features(features="sales:amount", start=given, end=later),
                lambda given: store.get_historical_features(features="sales:amount", start=date(2024, 1, 1), end=given),
            ):
                with pytest.raises(ValueTypeError, match="not an instant"):
                    read(seconds)
        (run,) = store.materialize(date(2024, 1, 1), np.datetime64("2024-01-04T12:00"))
        assert run.appended == 2


def test_one_object_or_name_does_where_several_may_stand(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_rows(tmp_path)
    rows = ParquetSource("rows", "rows.parquet", "at")
    pushed = PushSource("events", rows)
    fed = FeatureView("fed", entities=[shop], source=pushed)
    with FeatureStore(tmp_path, clock=ManualClock(NOW)) as store:
        assert {step.name for step in store.plan(sales).steps} == {"sales", "rows", "shop"}
        store.apply(sales)
        store.apply(view for view in [fed])
        for views in ("sales", sales, ["sales"], [sales], (sales,)):
            assert [run.view for run in store.materialize_incremental(views=views)] == ["sales"]
            assert [run.view for run in store.materialize("2024-01-01", "2024-01-04", views)] == ["sales"]
        assert (
            store.push(pushed, {"shop": [5], "at": ["2024-01-20T00:00:00Z"], "amount": [50]})
            .views["fed"]
            .online.written
            == 1
        )
        assert store.peek(fed, rows=1).column("amount").to_pylist() == [50]
        assert [found.name for found in store.list(FeatureView)] == ["fed", "sales"]
        assert store.get(FeatureView, "fed") == store.get("view", "fed")


def test_what_is_no_object_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_rows(tmp_path)
    with FeatureStore(tmp_path, clock=ManualClock(NOW)) as store:
        store.apply(sales)
        for given, word in (
            ("sales", "'sales'"),
            ([1], "1"),
            (5, "5"),
            ([sales, "x"], "'x'"),
            (sales["amount"], "amount"),
        ):
            for call in (store.apply, store.plan):
                with pytest.raises(InputError, match=f"{word}.* is not a definition"):
                    call(given)
        for views in (5, [None], shop, [twice]):
            with pytest.raises(InputError, match="is not a FeatureView"):
                store.materialize_incremental(views=views)
        with pytest.raises(InputError, match="'sales' differs from what is applied"):
            store.materialize_incremental(views=sales.replaced(ttl=timedelta(days=1)))
        with pytest.raises(InputError, match="is not a PushSource"):
            store.push(sales, {})
        for kind in (5, int, Field, ["view"]):
            with pytest.raises(NotFoundError, match="is not a kind of definition"):
                store.list(kind)


def test_nothing_is_cleaned_while_the_registry_cannot_be_read(tmp_path: Path) -> None:
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(1), 1)])
    workspace = make_workspace(tmp_path, [sales_view()], now_us=NOW)
    succeeded(materialize_incremental(workspace))
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(19.9), 1)])
    succeeded(materialize_incremental(workspace))
    workspace.close()
    files = sorted((tmp_path / "data" / "offline").rglob("*"))
    content = (tmp_path / "data" / "registry.db").read_bytes()
    (tmp_path / "data" / "registry.db").write_bytes(b"no database at all" * 1000)
    workspace.clock.advance(timedelta(days=365))
    for work in (optimize, collect_garbage):
        with pytest.raises(RegistryError):
            work(workspace)
    assert sorted((tmp_path / "data" / "offline").rglob("*")) == files
    (tmp_path / "data" / "registry.db").write_bytes(content)
    (done,) = optimize(workspace)
    assert (done.files_before, done.files_after) == (2, 1)
    workspace.close()
