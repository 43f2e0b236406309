"""What a plan says: what differs, to the letter, and what is likely to surprise."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.cli.plans import plan_document
from featurestore.plan import Plan
from featurestore.plan.explain import explain
from featurestore.types import Float64, String

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "at")


def view(name: str = "delays", **changes) -> FeatureView:
    values = {"entities": [carrier], "source": flights, "schema": [Field("delay", Float64)], **changes}
    return FeatureView(name, **values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    at = pa.array([NOW], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"carrier": ["UA"], "at": at, "delay": [1.5]}), tmp_path / "flights.parquet")
    return tmp_path


@pytest.fixture
def store(root: Path):
    with FeatureStore(root, clock=ManualClock(NOW)) as opened:
        yield opened


def text_of(plan: Plan) -> str:
    return "\n".join(line.text for line in explain(plan))


def test_a_view_with_sql_says_that_it_takes_no_pushes(store):
    live = PushSource("live", flights)
    plain, query = view("plain", source=live), view("query", source=live, sql="SELECT * FROM live")
    plan = store.plan([plain, query, view("batch", sql="SELECT * FROM flights")])
    told = {step.name: step.notices for step in plan.steps if step.notices}
    assert [*told] == ["query"]
    (notice,) = told["query"]
    assert "query takes no rows that are pushed to live" in notice
    assert f"note: {notice}" in text_of(plan)
    document = json.loads(json.dumps(plan_document(plan)))
    assert {step["name"]: step["notices"] for step in document["steps"] if step["notices"]} == {"query": [notice]}
    assert store.apply_plan(plan).steps == plan.steps  # what apply shows
    assert store.plan([query]).steps == ()
