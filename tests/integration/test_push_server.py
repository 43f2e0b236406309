"""POST /push: what it takes and refuses, who may, what it counts, and that it finishes what it began."""

from __future__ import annotations

import gc
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from featurestore_registry.auth import Role, create_token
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)
from support.examples import examples
from support.materialized import day, log_rows, online_rows, sales_view
from support.projects import apply_records, make_workspace
from support.serving import TOKEN, error_of, metric, serving, serving_here, until

from featurestore import Field
from featurestore.errors import DiskFullError, OnlineStoreError
from featurestore.offline import groups
from featurestore.offline.local.store import DeltaStore
from featurestore.project.settings import make_settings
from featurestore.server import push as endpoint
from featurestore.server.http import envelope
from featurestore.server.watch import logs
from featurestore.types import Bytes, Decimal, Float64, Timestamp
from featurestore.types.times import to_rfc3339
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(20)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with closing(made(tmp_path)) as workspace:
        yield workspace


@pytest.fixture
def client(workspace: Workspace) -> Iterator[httpx.Client]:
    with serving_here(workspace) as client:
        yield client


def made(tmp_path: Path, **options: Any) -> Workspace:
    return make_workspace(tmp_path, [sales_view(pushed=True)], now_us=NOW, **options)


def body(count: int = 1, to: str = "both", **columns: Any) -> dict[str, Any]:
    rows = {
        "shop": [f"shop {number}" for number in range(count)],
        "sold_at": [to_rfc3339(day(1) + number) for number in range(count)],
        "amount": list(range(count)),
        "note": [None] * count,
    }
    return {"source": "sales_push", "rows": {**rows, **columns}, "to": to}


def test_rows_are_committed_and_served(workspace, client):
    response = client.post("/push", json=body(1000))
    assert response.json() == {
        "source": "sales_push",
        "rows": 1000,
        "to": "both",
        "views": {
            "shop_sales": {
                "online": {"written": 1000, "stale": 0, "expired": 0, "wrong_type": 0},
                "offline": {"rows": 1000, "version": 0},
            }
        },
        "note": None,
    }
    assert log_rows(workspace) == [(f"shop {n}", day(1) + n, NOW, n, None) for n in range(1000)]
    asked = {"features": ["shop_sales:amount"], "entities": {"shop": ["shop 7", "nobody"]}}
    answer = client.post("/v1/online-features", json=asked).json()
    assert (answer["rows"], answer["status"]) == ([[7], [None]], [["PRESENT"], ["NOT_FOUND"]])


def test_a_push_that_waits_for_the_next_commit_is_not_slow(client, caplog, monkeypatch):
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 1.2)  # as if each commit took a little
    with caplog.at_level(logging.INFO, "featurestore.server"):
        started = time.monotonic()
        for _ in range(3):
            assert client.post("/push", json=body()).status_code == 200
        assert time.monotonic() - started > 1
    assert [record.getMessage() for record in caplog.records if "request" in record.getMessage()] == []


def test_a_push_that_waits_longer_than_it_should_is_slow(client, caplog, monkeypatch):
    monkeypatch.setattr(logs, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(envelope, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(endpoint, "PAUSE_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "featurestore.server"):
        assert client.post("/push", json=body()).status_code == 200
        until(lambda: re.search(r"POST /push 200 in", caplog.text))  # the line follows the answer


def test_online_alone_and_what_is_counted(workspace, client):
    first = client.post("/push", json=body(3, to="online")).json()
    assert first["views"]["shop_sales"] == {
        "online": {"written": 3, "stale": 0, "expired": 0, "wrong_type": 0},
        "offline": None,
    }
    assert "no training set" in first["note"]
    ignored = client.post("/push", json=body(0, extra=[], known_at=[])).json()["note"]
    assert ignored == "No view that takes the rows has these columns, which were ignored: extra."
    client.post("/push", json=body(2, to="offline"))
    client.post("/push", json=body(2, to="online", known_at=[to_rfc3339(day(2)), None]))
    lines = set(client.get("/metrics").text.splitlines())
    counted = {"written": 4, "stale": 1, "offline": 2}
    for result, count in counted.items():
        assert f'featurestore_push_rows_total{{result="{result}",view="shop_sales"}} {count}.0' in lines
    assert len(log_rows(workspace)) == 2


@pytest.mark.parametrize(
    ("change", "status", "kind", "text"),
    [
        ({"rows": {}}, 422, "invalid_input", "no column 'shop'"),
        ({"amount": ["1"] * 2}, 200, None, ""),
        ({"amount": [1, "1.0"]}, 422, "value_type", "column 'amount', row 1: '1.0'"),
        ({"amount": [1, 1.5]}, 422, "value_type", "column 'amount', row 1: 1.5"),
        ({"amount": [1, 2**63]}, 422, "value_type", "column 'amount', row 1"),
        ({"shop": ["a", None]}, 422, "entity_key", "'shop' is null in row 1"),
        ({"shop": ["a", 1]}, 422, "entity_key", "column 'shop', row 1: 1"),
        ({"sold_at": [to_rfc3339(day(1)), day(1)]}, 422, "value_type", "column 'sold_at', row 1"),
        ({"sold_at": [to_rfc3339(day(21))] * 2}, 422, "value_type", "row 0: 2024-01-22T00:00:00.000000Z lies in"),
        ({"known_at": [None, to_rfc3339(day(21))]}, 422, "value_type", "column 'known_at', row 1"),
        ({"note": [None]}, 422, "invalid_input", "not equally long"),
        ({"ignored": [{"deep": [1]}, 2]}, 200, None, ""),
        ({"source": "sale_push"}, 404, "not_found", "Did you mean 'sales_push'"),
        (
            {"to": "everywhere"},
            422,
            "invalid_request",
            "'everywhere' - at `$.to`: it must be both or online or offline",
        ),
        ({"more": 1}, 422, "invalid_request", "'more' is not one of its keys, which are source, rows, to."),
        ({"rows": [{"shop": "a"}]}, 422, "invalid_request", "`$.rows` must be an object of columns, a list for each"),
        ({"sold_at": ["2024-01-02T00:00", "2024-01-02T01:00+01:00"]}, 200, None, ""),
        ({"note": 5}, 422, "invalid_request", "Expected `array`, got `int` - at `$.rows['note']`."),
    ],
)
def test_all_rows_or_none(workspace, client, change, status, kind, text):
    document = body(2, to="online")
    for name, value in change.items():
        (document if name in ("source", "to", "rows", "more") else document["rows"])[name] = value
    response = client.post("/push", json=document)
    assert response.status_code == status, response.text
    if kind is not None:
        error = error_of(response)
        assert error["type"] == kind
        assert text in error["message"]
    assert bool(online_rows(workspace)) == (status == 200)
    assert log_rows(workspace) == []


def test_too_many_rows(client):
    response = client.post("/push", json=body(1001))
    assert response.status_code == 413
    assert error_of(response)["type"] == "too_many_rows"


def test_values_that_json_writes_as_text(workspace, client):
    view = sales_view(pushed=True)
    fields = [Field("price", Decimal(10, 2)), Field("raw", Bytes), Field("until", Timestamp), Field("rate", Float64)]
    apply_records(workspace, [view.replaced(name="typed", fields=tuple(fields))])
    workspace.close()
    typed = {"price": ["1.5"], "raw": ["AP8="], "until": ["2030-01-01T00:00:00Z"], "rate": [1]}
    with serving_here(made(workspace.root)) as fresh:
        response = fresh.post("/push", json=body(1, **typed))
        assert set(response.json()["views"]) == {"shop_sales", "typed"}
        asked = {"features": [f"typed:{field.name}" for field in fields], "entities": {"shop": ["shop 0"]}}
        answer = fresh.post("/v1/online-features", json=asked).json()
        assert answer["rows"] == [["1.50", "AP8=", "2030-01-01T00:00:00.000000Z", 1.0]]


class TestWhoMay:
    def test_readers_may_not(self, tmp_path):
        workspace = made(tmp_path)
        readers = create_token(workspace.ledger, "shop", Role.READER, expires_at_us=None, now_us=NOW)[0]
        operators = create_token(workspace.ledger, "shop", Role.OPERATOR, expires_at_us=None, now_us=NOW)[0]
        elsewhere = create_token(workspace.ledger, "other", Role.ADMIN, expires_at_us=None, now_us=NOW)[0]
        with serving_here(workspace, token=TOKEN) as client:
            expected = {None: 401, "x" * 40: 401, TOKEN: 403, readers: 403, elsewhere: 401, operators: 200}
            for token, status in expected.items():
                headers = {} if token is None else {"authorization": f"Bearer {token}"}
                response = client.post("/push", json=body(), headers=headers)
                assert response.status_code == status, token
            assert len(log_rows(workspace)) == 1

    def test_the_role_is_asked_for_whatever_the_method(self, tmp_path):
        with serving_here(made(tmp_path), token=TOKEN) as client:
            headers = {"authorization": f"Bearer {TOKEN}"}
            for path in ("/push", "/push?x=1"):
                assert client.request("GET", path, headers=headers).status_code == 403
            assert client.post("/push/", json=body(), headers=headers).status_code == 404


class TestTrouble:
    def test_a_full_disk_is_told_without_paths(self, workspace, client, monkeypatch, caplog):
        def full(*_: Any, **__: Any) -> None:
            raise DiskFullError("No space was left on /secret/place.")

        monkeypatch.setattr(DeltaStore, "commit", full)
        response = client.post("/push", json=body())
        assert response.status_code == 503
        assert error_of(response)["type"] == "disk_full"
        assert "secret" not in response.text
        gc.collect()
        assert "never retrieved" not in caplog.text  # by asyncio, which tells what a future failed with
        monkeypatch.undo()
        assert online_rows(workspace) == {}
        assert client.post("/push", json=body()).status_code == 200

    def test_redis_away(self, tmp_path, start_redis):
        server = start_redis()
        store = {"url": server.url, "write_timeout_ms": 500}
        with closing(made(tmp_path)) as workspace:
            options = make_settings({"project": "shop", "online_store": store})
            with serving_here(Workspace(tmp_path, options, clock=workspace.clock)) as client:
                server.stop()
                response = client.post("/push", json=body())
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                assert error_of(response)["type"] == "online_store_unavailable"
                assert len(log_rows(workspace)) == 1
                assert metric(client, "featurestore_online_store_errors_total") >= 1

    def test_a_store_that_does_not_keep_what_it_takes(self, client, monkeypatch):
        def lost(*_: Any) -> None:
            raise OnlineStoreError("The online store lost records of view 'sales'.", hint="Run it again.")

        monkeypatch.setattr(endpoint.Push, "publish", lost)
        response = client.post("/push", json=body())
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert error_of(response)["type"] == "online_store_failed"
        assert error_of(response)["message"] == "The online store lost records of view 'sales'. Run it again."
        assert metric(client, "featurestore_online_store_errors_total") == 1

    def test_reads_do_not_wait_for_commits(self, workspace, client, monkeypatch):
        client.post("/push", json=body(to="online"))
        begun, may_go_on = threading.Event(), threading.Event()
        write = DeltaStore.write

        def slow(*arguments: Any) -> Path:
            begun.set()
            assert may_go_on.wait(60)
            return write(*arguments)

        monkeypatch.setattr(DeltaStore, "write", slow)
        found: list[httpx.Response] = []
        url = str(client.base_url.join("/push"))

        def push() -> None:
            found.append(httpx.post(url, json=body(), timeout=60))

        pushers = [threading.Thread(target=push) for _ in range(12)]
        for pusher in pushers:
            pusher.start()
        try:
            assert begun.wait(60)
            asked = {"features": ["shop_sales:amount"], "entities": {"shop": ["shop 0"]}}
            assert client.post("/v1/online-features", json=asked).json()["rows"] == [[0]]
            assert client.post("/push", json=body(to="online")).status_code == 200
        finally:
            may_go_on.set()
        for pusher in pushers:
            pusher.join(60)
        assert [response.status_code for response in found] == [200] * 12
        assert len(log_rows(workspace)) == 12
        assert {response.json()["views"]["shop_sales"]["offline"]["version"] for response in found} <= {0, 1, 2}


FEATURES = """
from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64, String

sales = PushSource("sales_push", ParquetSource("sales", "sales.parquet", "sold_at"))
shop_sales = FeatureView(
    "shop_sales", entities=[Entity("shop", {"shop": String})], source=sales,
    schema=[Field("amount", Int64), Field("note", String)],
)
"""


def test_a_stopping_server_finishes_its_pushes(tmp_path):
    made(tmp_path).close()
    (tmp_path / "features.py").write_text(FEATURES)
    (tmp_path / "feature_store.yaml").write_text(json.dumps({"project": "shop"}))
    answers: list[int] = []
    with serving(tmp_path) as server, ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(4)]
        for client in clients:
            assert client.get("/health").status_code == 200
        assert clients[0].post("/push", json=body()).status_code == 200

        def push(client: httpx.Client) -> None:
            answers.append(client.post("/push", json=body(3)).status_code)

        pushers = [threading.Thread(target=push, args=(client,)) for client in clients[1:]]
        for pusher in pushers:
            pusher.start()
        time.sleep(0.4)  # they wait for the next second's commit now
        server.process.terminate()
        for pusher in pushers:
            pusher.join(60)
        until(lambda: server.process.poll() is not None)
    with closing(made(tmp_path)) as workspace:
        assert answers == [200] * 3
        assert len(log_rows(workspace)) == 10


@pytest.mark.parametrize("kind", ["known names", "any names", "not as described"])
def test_schemathesis_finds_nothing(client, kind):
    document = client.get("/openapi.json").json()
    request = document["components"]["schemas"]["PushRequest"]["properties"]
    request["to"]["enum"] = ["online"]  # a commit takes up to a second
    if kind == "known names":
        instants = {"type": "array", "items": {"const": to_rfc3339(day(1))}, "minItems": 1, "maxItems": 1}
        one = {"type": "array", "minItems": 1, "maxItems": 1}
        columns = {
            "shop": {**one, "items": {"type": "string"}},
            "sold_at": instants,
            "amount": {**one, "items": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}},
            "note": {**one, "items": {"type": ["string", "null"]}},
        }
        request["source"] = {"const": "sales_push"}
        request["rows"] = {
            "type": "object", "properties": columns, "required": list(columns), "additionalProperties": False
        }  # fmt: skip
        document["components"]["schemas"]["PushRequest"]["required"] = ["source", "rows", "to"]
    schema = schemathesis.openapi.from_dict(document)
    operation = next(found.ok() for found in schema.get_all_operations() if found.ok().path == "/push")
    mode = GenerationMode.NEGATIVE if kind == "not as described" else GenerationMode.POSITIVE
    seen = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples(15), deadline=None, suppress_health_check=list(HealthCheck))
    def conforms(case: schemathesis.Case) -> None:
        response = case.call(base_url=str(client.base_url))
        seen.add(response.status_code)
        checks = [
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
            negative_data_rejection,
        ]
        case.validate_response(response, checks=checks)

    conforms()
    assert seen == {200} if kind == "known names" else seen
