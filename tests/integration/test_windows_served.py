"""Windows are served like any feature, whichever way they are asked for, and events are pushed over HTTP."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.redis_cluster import RedisCluster
from support.serving import error_of, serving_here

from featurestore import FeatureStore
from featurestore.cli.main import main
from featurestore.client import FeatureClient
from featurestore.types.times import system_clock, to_datetime, to_instant, to_rfc3339

MINUTE_US = 60_000_000
DAY_US = 1_440 * MINUTE_US
FEATURES = """
from datetime import timedelta
from featurestore import (
    Aggregation, Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource, RequestSource,
    on_demand_feature_view,
)
from featurestore.types import Float64, Int64, String, Timestamp

customer = Entity("customer", join_keys={"customer_id": Int64})
orders = PushSource("orders", ParquetSource("order_file", "orders.parquet", "bought_at", "known_at"))
profiles = ParquetSource("profiles", "profiles.parquet", "since")
COLUMNS = [Field("order_id", String), Field("amount", Float64), Field("shop", String)]
purchases = FeatureView(
    "purchases", entities=[customer], source=orders, schema=COLUMNS, event_id="order_id",
    aggregations=[
        *(Aggregation("amount", name, windows=[timedelta(days=7), None]) for name in ("sum", "mean", "max", "std")),
        Aggregation("*", "count", windows=[timedelta(days=7), None]),
        Aggregation("amount", "sum", windows=[None], name="refunds", where="amount < 0"),
        Aggregation("shop", "last_n", n=2, windows=[None]),
        Aggregation("shop", "count_distinct", windows=[timedelta(days=7)]),
        Aggregation("bought_at", "last", windows=[None]),
    ],
)
today = FeatureView(
    "today", entities=[customer], source=orders, schema=COLUMNS[:1], event_id="order_id",
    aggregations=[Aggregation("*", "count", windows=[timedelta(days=1)])],
)
profile = FeatureView("profile", entities=[customer], source=profiles, schema=[Field("budget", Float64)])
request = RequestSource("request", schema=[Field("at", Timestamp)])


@on_demand_feature_view(
    sources=[purchases[["amount_sum_7d", "bought_at_last_all", "amount_mean_all"]], profile, request],
    schema=[Field("share_of_budget", Float64), Field("minutes_since", Float64), Field("mean_again", Float64)],
)
def spending(inputs):
    columns = ("amount_sum_7d", "budget", "at", "bought_at_last_all", "amount_mean_all")
    rows = list(zip(*map(inputs.get, columns)))
    return {
        "share_of_budget": [None if None in (spent, budget) else spent / budget for spent, budget, *_ in rows],
        "minutes_since": [None if last is None else (at - last) / timedelta(minutes=1) for _, _, at, last, _ in rows],
        "mean_again": [mean for *_, mean in rows],
    }


model = FeatureService("model", features=[purchases, today, profile, spending])
"""
EVENTS = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("bought_at", pa.timestamp("us", "UTC")),
        ("known_at", pa.timestamp("us", "UTC")),
        ("order_id", pa.string()),
        ("amount", pa.float64()),
        ("shop", pa.string()),
    ]
)
CUSTOMERS = [1, 2, 9]
"""The last one has never bought anything, and has a profile."""


@pytest.fixture(scope="module")
def now_us() -> int:
    return system_clock()


@pytest.fixture(scope="module", params=["lmdb", "redis_cluster"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, now_us: int
) -> Iterator[FeatureStore]:
    """A repo whose events are in the middle of their windows, so that no value moves while the test runs.

    On a cluster windows and plain features of an entity lie on different nodes.
    """
    online = {"url": "lmdb:///data/online"}
    if request.param == "redis_cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        cluster.flush()
        online = {"url": cluster.url, "read_timeout_ms": "10000"}
    root = tmp_path_factory.mktemp("windows") / "repo"
    root.mkdir()
    (root / "features.py").write_text(FEATURES)
    (root / "feature_store.yaml").write_text(yaml.safe_dump({"project": "shop", "online_store": online}))
    sold = [
        (1, 20 * DAY_US, "a", 0.1, "north"),
        (1, 3 * DAY_US, "b", 0.2, "south"),
        (1, 400 * MINUTE_US, "c", -12.5, "north"),
        (2, 2 * DAY_US, "a", 1e16, None),
        (2, 200 * MINUTE_US, "d", 0.3, "east"),
    ]
    rows = [
        (customer, to_datetime(now_us - ago), to_datetime(now_us - ago), order, amount, shop)
        for customer, ago, order, amount, shop in sold
    ]
    events = [dict(zip(EVENTS.names, row, strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(events, schema=EVENTS), root / "orders.parquet")
    since = pa.array([to_datetime(now_us - 90 * DAY_US)] * 3, pa.timestamp("us", "UTC"))
    columns = {"customer_id": CUSTOMERS, "since": since, "budget": [100.0, None, 5.0]}
    pq.write_table(pa.table(columns), root / "profiles.parquet")
    with FeatureStore(root) as store:
        store.apply()
        store.materialize_incremental()
        yield store


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> Iterator[httpx.Client]:
    with serving_here(store.workspace) as client:
        yield client


def in_json(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, list):
        return [in_json(item) for item in value]
    return to_rfc3339(to_instant(value)) if hasattr(value, "tzinfo") else value


def joined(store: FeatureStore, at_us: int) -> dict[str, list[Any]]:
    """Return what the offline join gives at an instant, in the forms of JSON."""
    instants = pa.array([to_datetime(at_us)] * len(CUSTOMERS), pa.timestamp("us", "UTC"))
    frame = pa.table({"customer_id": CUSTOMERS, "event_timestamp": instants, "at": instants})
    training = store.get_historical_features(frame, "model", full_feature_names=True)
    found = training.to_arrow().drop_columns(frame.column_names)
    return {name: [in_json(value) for value in found[name].to_pylist()] for name in found.column_names}


def test_every_way_of_asking_has_the_same_answer(store: FeatureStore, client: httpx.Client, capsys: Any) -> None:
    at_us = system_clock()
    wanted, at = joined(store, at_us), to_rfc3339(at_us)
    body = {"feature_service": "model", "full_feature_names": True}
    own = {"entities": {"customer_id": CUSTOMERS}, "request_data": {"at": [at] * 3}}
    answer = client.post("/v1/online-features", json={**body, **own}).json()
    assert answer["names"] == list(wanted)
    assert answer["rows"] == [list(row) for row in zip(*wanted.values(), strict=True)]
    names = {name: place for place, name in enumerate(answer["names"])}
    assert answer["rows"][1][names["purchases__amount_sum_7d"]] == 1e16 + 0.3
    nobody = {name: (answer["rows"][2][place], answer["status"][2][place]) for name, place in names.items()}
    assert nobody["purchases__count_7d"] == nobody["today__count_1d"] == (0, "NOT_FOUND")
    assert nobody["purchases__amount_sum_7d"] == (None, "NOT_FOUND")
    assert nobody["profile__budget"] == (5.0, "PRESENT")
    assert answer["status"][1][names["profile__budget"]] == "NULL_VALUE"

    entities = {"customer_id": CUSTOMERS, "at": [at] * 3}
    feast = client.post("/get-online-features", json={**body, "entities": entities}).json()
    assert feast["metadata"]["feature_names"] == ["customer_id", *wanted]
    columns = dict(zip(wanted, feast["results"][1:], strict=True))
    last = "purchases__bought_at_last_all"
    whole_seconds = [None if at is None else to_instant(at) // 1_000_000 for at in wanted[last]]
    assert {name: each["values"] for name, each in columns.items()} == {**wanted, last: whole_seconds}
    assert [each["statuses"] for each in columns.values()] == [list(s) for s in zip(*answer["status"], strict=True)]

    rows = [{"customer_id": customer, "at": to_datetime(at_us)} for customer in CUSTOMERS]
    with FeatureClient(str(client.base_url)) as ours:
        over_http = ours.get_online_features("model", rows, full_feature_names=True)
    for response in (over_http, store.get_online_features("model", rows, full_feature_names=True)):
        assert {name: list(map(in_json, response.to_dict()[name])) for name in wanted} == wanted
    for place, customer in enumerate(CUSTOMERS):
        asked = ["--service", "model", "--entity", f"customer_id={customer}", "--entity", f"at={at}"]
        with pytest.raises(SystemExit) as ended:
            main(["online", *asked, "--full-feature-names", "--json", "--repo", str(store.workspace.root)])
        assert ended.value.code == 0
        shown = json.loads(capsys.readouterr().out.replace("+00:00", "Z"))["features"]
        assert {name: shown[name][0] for name in wanted} == {name: values[place] for name, values in wanted.items()}


def test_events_are_pushed_over_http(store: FeatureStore, client: httpx.Client, tmp_path: Path, capsys: Any) -> None:
    """New ones, a known one, one that says something else, and one that no window of a view reaches."""
    now = system_clock()
    events = {
        "customer_id": [1, 1, 1, 9],
        "bought_at": [to_rfc3339(now - ago) for ago in (5 * MINUTE_US, 4 * MINUTE_US, 9 * DAY_US, 0)],
        "order_id": ["e", "f", "g", "e"],
        "amount": [0.7, None, 3.0, 8.0],
        "shop": ["west", "west", "south", "north"],
    }
    first = client.post("/push", json={"source": "orders", "rows": events}).json()
    told = {name: view["events"] for name, view in first["views"].items()}
    new = {"appended": 4, "known": 0, "conflicting": 0, "too_late": 0}
    assert told == {"purchases": new, "today": {**new, "too_late": 1}}
    assert first["views"]["purchases"]["online"]["written"] == 4
    asked = {"features": ["purchases:count_7d", "today:count_1d"], "entities": {"customer_id": CUSTOMERS}}
    rows = [[4, 3], [2, 1], [1, 1]]
    assert client.post("/v1/online-features", json=asked).json()["rows"] == rows
    again = {**events, "amount": [0.7, None, 4.0, 8.0]}
    with FeatureClient(str(client.base_url)) as ours:
        second = ours.push("orders", again)
    assert second["views"]["purchases"]["events"] == {"appended": 0, "known": 4, "conflicting": 1, "too_late": 0}
    assert client.post("/v1/online-features", json=asked).json()["rows"] == rows

    instants = pa.array([to_instant(at) for at in map(to_datetime, [now])], pa.timestamp("us", "UTC"))
    file = pa.table({**{n: v[:1] for n, v in events.items()}, "bought_at": instants, "order_id": ["h"]})
    pq.write_table(file, tmp_path / "late.parquet")
    with pytest.raises(SystemExit) as ended:
        main(["push", "orders", str(tmp_path / "late.parquet"), "--repo", str(store.workspace.root)])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "known  conflicting  too late" in shown
    assert client.post("/v1/online-features", json=asked).json()["rows"][0] == [5, 4]

    refused = client.post("/push", json={"source": "orders", "rows": events, "to": "online"})
    assert refused.status_code == 422
    assert "its windows are made of the log" in error_of(refused)["message"]
    described = client.get("/openapi.json").json()["components"]["schemas"]
    assert set(described["EventCounts"]["properties"]) == set(new)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)
