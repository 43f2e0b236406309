"""What a plan says: what differs, to the letter, and what is likely to surprise."""

from __future__ import annotations

import json
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.cli.plans import plan_document
from featurestore.plan import Plan
from featurestore.plan.changes import explain
from featurestore.training import TrainingSetWarning
from featurestore.types import Float64, String

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "ts")


def view(name: str = "delays", **changes) -> FeatureView:
    values = {"entities": [carrier], "source": flights, "schema": [Field("delay", Float64)], **changes}
    return FeatureView(name, **values)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    at = pa.array([NOW], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"carrier": ["UA"], "ts": at, "delay": [1.5]}), tmp_path / "flights.parquet")
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


ROWS = "SELECT carrier,\n  ts,\n  delay\nFROM flights\nWHERE delay > 0\n  AND carrier <> ''\n  AND true"


def test_a_changed_query_is_shown_line_by_line(store):
    store.apply([view(sql=ROWS)])
    text = text_of(store.plan([view(sql=ROWS.replace("delay > 0", "delay >= 0").replace("true", "true "))]))
    assert (
        "sql:\n… line 3\n    delay\n  FROM flights\n- WHERE delay > 0\n+ WHERE delay >= 0\n"
        "    AND carrier <> ''\n-   AND true\n+ '  AND true '\n" in text
    )


def test_a_changed_service_is_shown_element_by_element(store, root):
    numbers = [f"feature_number_{number:02}" for number in range(12)]
    wide = view(schema=[Field(name, Float64) for name in numbers])
    columns = {name: [1.0] for name in numbers}
    at = pa.array([NOW], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"carrier": ["UA"], "ts": at, **columns}), root / "flights.parquet")
    store.apply([FeatureService("model", [wide])])
    plan = store.plan([FeatureService("model", [wide[[*numbers[:9], numbers[10], numbers[9]]]])])
    text = text_of(plan)
    assert (
        "features:\n… line 8\n  delays:feature_number_07\n  delays:feature_number_08\n+ delays:feature_number_10\n"
        "  delays:feature_number_09\n- delays:feature_number_10\n- delays:feature_number_11\n" in text
    )
    (step,) = plan_document(plan)["steps"]
    (found,) = step["differences"]
    assert (len(found["before"]), len(found["after"])) == (12, 11)  # JSON holds both in full
    assert "delays:feature_number_07" in plan._repr_html_()


def test_what_cannot_be_seen_is_spelled_out(store):
    store.apply([view(description="late", schema=[Field("delay", Float64, default=0.0)])])
    changed = view(description="late\u200b", owner="none", schema=[Field("delay", Float64, default=-0.0)])
    text = text_of(store.plan([changed]))
    assert r"description: late -> 'late\u200b'" in text
    assert "owner: (empty) -> 'none'" in text
    assert "default of delay: 0.0 -> -0.0" in text


HOUR = timedelta(hours=1)
FILLED = {
    "incremental": lambda store: store.materialize_incremental(),
    "two spans": lambda store: [store.materialize(NOW - b * HOUR, NOW - a * HOUR) for a, b in [(0, 2.5), (4, 6)]],
}


@pytest.mark.parametrize("change", ["rename", "sql", "source"])
@pytest.mark.parametrize("filled", FILLED)
def test_the_commands_of_a_plan_bring_what_is_stored_to_the_new_definition(store, root, capsys, filled, change):
    hours = range(1, 9)
    at = pa.array([NOW - hour * HOUR for hour in hours], pa.timestamp("us", tz="UTC"))
    rows = {"carrier": ["UA"] * 8, "ts": at, "delay": [float(hour) for hour in hours]}
    pq.write_table(pa.table(rows), root / "flights.parquet")
    pq.write_table(pa.table({**rows, "delay": [-float(hour) for hour in hours]}), root / "other.parquet")
    renamed = "SELECT carrier, ts, -delay AS late FROM flights"
    changed = {
        "rename": view(schema=[Field("late", Float64)], sql=renamed),
        "sql": view(sql=renamed.replace("late", "delay")),
        "source": view(source=ParquetSource("flights", "other.parquet", "ts")),
    }[change]
    store.apply([view()])
    FILLED[filled](store)
    held = values(store, "delay")
    plan = store.apply([changed], allow_breaking=True)
    commands = [command for step in plan.steps for command in step.commands]
    assert all(f"afterwards run `{command}`" in text_of(plan) for command in commands)
    fs = CommandLine(root, capsys)
    for command in commands:
        fs(*command.split()[1:], *(["--yes"] if "--rebuild" in command else []))
    assert commands
    name = changed.features[0].name
    assert [-value for value in values(store, name)] == held
    assert store.get_online_features(f"delays:{name}", [{"carrier": "UA"}]).to_dict()[name] == [-1.0]


def values(store: FeatureStore, name: str) -> list[float]:
    """Return what training sets hold at every hour."""
    at = pa.array([NOW - hour * HOUR for hour in range(1, 9)], pa.timestamp("us", tz="UTC"))
    frame = pa.table({"carrier": ["UA"] * 8, "event_timestamp": at})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)  # not all of them are committed
        found = store.get_historical_features(frame, f"delays:{name}").to_arrow().column(name).to_pylist()
    return [value for value in found if value is not None]
