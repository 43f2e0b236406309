"""``POST /v1/online-features``: the form of the answer, every status and type, and what is refused."""

from __future__ import annotations

import base64
import gc
import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.clock import ManualClock
from support.raw_http import REQUEST, connect, head, read_one
from support.serving import HOUR_US, Project, error_of, serving_here, small_project

from featurestore.types.times import system_clock, to_rfc3339

# Close to the machine's own time: the embedded store drops by that what is long expired.
NOW_US = system_clock() // 1_000_000 * 1_000_000
CLOCK = ManualClock(NOW_US)
PATH = "/v1/online-features"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("server") / "repo", NOW_US)


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[httpx.Client]:
    with serving_here(project.workspace(CLOCK)) as client:
        yield client


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post(PATH, json=body)


def test_the_whole_answer(client: httpx.Client) -> None:
    response = ask(
        client,
        features=["fresh:score", "fresh:clicks", "routes:miles"],
        entities={"customer_id": [1, 2, 3, 4], "origin": ["JFK"] * 4, "dest": ["LAX", "LAX", "SFO", None]},
        include=["status", "event_timestamp"],
    )
    assert response.status_code == 200
    assert response.json() == {
        "names": ["score", "clicks", "miles"],
        "rows": [[0.5, 7, 2475], [None, 0, 2475], [None, 3, None], [None, 0, None]],
        "status": [
            ["PRESENT", "PRESENT", "PRESENT"],
            ["OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE", "PRESENT"],
            ["NULL_VALUE", "PRESENT", "NOT_FOUND"],
            ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND"],
        ],
        "event_timestamp": {
            "fresh": [
                to_rfc3339(NOW_US - HOUR_US // 2),
                to_rfc3339(NOW_US - HOUR_US - 1_000_000),
                to_rfc3339(NOW_US),
                None,
            ],
            "routes": [to_rfc3339(NOW_US), to_rfc3339(NOW_US), None, None],
        },
    }


def test_a_request_leaves_nothing_for_the_garbage_collector(project: Project, redis_url: str) -> None:
    """Whatever refers to itself stays until the collector runs, which then takes a tenth of a server's time."""
    shared = Project(project.root.with_name("shared"), online_url=redis_url)
    with serving_here(shared.workspace(CLOCK)) as client:
        connections = [connect(client.base_url) for _ in range(8)]

        def ask_together(times: int) -> None:
            for _ in range(times):
                for connection in connections:
                    connection.sendall(head(len(REQUEST)) + REQUEST)
                for connection in connections:
                    assert read_one(connection).startswith(b"HTTP/1.1 200")

        ask_together(2)
        gc.collect()
        gc.disable()
        try:
            ask_together(5)
            found = gc.collect()
        finally:
            gc.enable()
            for connection in connections:
                connection.close()
    assert found < len(connections) * 5


def test_status_comes_by_default_and_event_timestamps_do_not(client: httpx.Client) -> None:
    answer = ask(client, features=["routes:miles"], entities={"origin": ["JFK"], "dest": ["LAX"]}).json()
    assert answer == {"names": ["miles"], "rows": [[2475]], "status": [["PRESENT"]]}


def test_nothing_more_than_rows_when_nothing_more_is_included(client: httpx.Client) -> None:
    answer = ask(client, features=["fresh:clicks"], entities={"customer_id": [2]}, include=[]).json()
    assert answer == {"names": ["clicks"], "rows": [[0]]}


def test_the_ttl_is_judged_by_the_servers_clock_inclusive(project: Project) -> None:
    clock = ManualClock(NOW_US)
    with serving_here(project.workspace(clock)) as client:

        def status() -> str:
            answer = ask(client, features=["fresh:clicks"], entities={"customer_id": [1]}).json()
            return str(answer["status"][0][0])

        clock.set(NOW_US + HOUR_US // 2)
        assert status() == "PRESENT"
        clock.advance(timedelta(microseconds=1))
        assert status() == "OUTSIDE_MAX_AGE"


@pytest.mark.parametrize("include", [["status"], ["status", "event_timestamp"]])
@pytest.mark.parametrize("customers", [[8], [8, 1], [8, 4]])
def test_a_record_counts_from_its_time_on(project: Project, include: list[str], customers: list[int]) -> None:
    project.put("fresh", {"customer_id": 8}, {"clicks": 5, "score": 0.5}, event_us=NOW_US + 10)
    clock = ManualClock(NOW_US + 9)
    with serving_here(project.workspace(clock)) as client:

        def first() -> list[Any]:
            features = ["fresh:clicks", "fresh:score"]
            answer = ask(client, features=features, entities={"customer_id": customers}, include=include).json()
            times = answer.get("event_timestamp", {"fresh": ["not asked for"]})
            return [answer["rows"][0], answer["status"][0], times["fresh"][0]]

        asked = len(include) == 2
        assert first() == [[0, None], ["NOT_FOUND"] * 2, None if asked else "not asked for"]
        clock.advance(timedelta(microseconds=1))
        assert first() == [[5, 0.5], ["PRESENT"] * 2, to_rfc3339(NOW_US + 10) if asked else "not asked for"]


def test_a_service_with_an_on_demand_feature_and_full_names(client: httpx.Client) -> None:
    response = ask(
        client,
        feature_service="model_v1",
        entities={"customer_id": [1, 2], "origin": ["JFK", "JFK"], "dest": ["LAX", "LAX"]},
        request_data={"amount": [14.0, 14]},
        full_feature_names=True,
    )
    assert response.json() == {
        "names": ["fresh__clicks", "fresh__score", "routes__miles", "spending__amount_per_click"],
        "rows": [[7, 0.5, 2475, 2.0], [0, None, 2475, None]],
        "status": [
            ["PRESENT", "PRESENT", "PRESENT", "PRESENT"],
            ["OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE", "PRESENT", "NULL_VALUE"],
        ],
    }


def test_rows_are_answered_in_order_also_twice_and_also_none(client: httpx.Client) -> None:
    answer = ask(client, features=["fresh:clicks"], entities={"customer_id": [3, 1, 3, 4, 1]}).json()
    assert answer["rows"] == [[3], [7], [3], [0], [7]]
    answer = ask(client, features=["fresh:clicks"], entities={"customer_id": []}).json()
    assert answer == {"names": ["clicks"], "rows": [], "status": []}


def test_every_type_in_its_json_form(client: httpx.Client, project: Project) -> None:
    values = {
        "an_int32": -(2**31),
        "an_int64": 2**63 - 1,
        "a_float32": 0.5,
        "a_float64": -0.0,
        "a_bool": False,
        "a_string": 'Zürich "🛬"\n\u0000',
        "some_bytes": b"\x00\xff|{}",
        "an_instant": datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        "a_date": date(1, 1, 1),
        "a_decimal": Decimal("-9999999999.90"),
        "numbers": [1.5, float("inf"), None],
        "instants": [[datetime(2013, 1, 1, tzinfo=UTC)], []],
    }
    project.put("everything", {"customer_id": -(2**63)}, values, event_us=NOW_US)
    features = [f"everything:{name}" for name in values]
    response = ask(client, features=features, entities={"customer_id": [-(2**63)]})
    expected = [
        -(2**31),
        2**63 - 1,
        0.5,
        -0.0,
        False,
        'Zürich "🛬"\n\u0000',
        base64.b64encode(b"\x00\xff|{}").decode(),
        "1969-12-31T23:59:59.999999Z",
        "0001-01-01",
        "-9999999999.90",
        [1.5, None, None],
        [["2013-01-01T00:00:00.000000Z"], []],
    ]
    assert response.json()["rows"] == [expected]
    assert response.json()["status"] == [["PRESENT"] * len(values)]
    assert "9223372036854775807," in response.text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_special_floats_are_null_with_null_value(client: httpx.Client, project: Project, number: float) -> None:
    project.put("everything", {"customer_id": 77}, {"a_float32": number, "a_float64": number}, event_us=NOW_US)
    features = ["everything:a_float32", "everything:a_float64"]
    answer = ask(client, features=features, entities={"customer_id": [77]}).json()
    assert answer["rows"] == [[None, None]]
    assert answer["status"] == [["NULL_VALUE", "NULL_VALUE"]]


def test_keys_of_every_type(client: httpx.Client, project: Project) -> None:
    entity = {"day": date(2013, 11, 3), "open": True, "raw": b"\x00|", "number": -7}
    project.put("days", entity, {"visitors": 12}, event_us=NOW_US)
    keys = {"day": ["2013-11-03"], "open": [True], "raw": [base64.b64encode(b"\x00|").decode()], "number": [-7]}
    assert ask(client, features=["days:visitors"], entities=keys).json()["rows"] == [[12]]


@pytest.mark.parametrize("text", ["a'b", 'a"b', "a|b", "50%", "{}", "a:b", "*", "a\nb", "🛬", "", "x" * 300, "../.."])
def test_keys_with_tempting_characters(client: httpx.Client, project: Project, text: str) -> None:
    project.put("routes", {"origin": text, "dest": "LAX"}, {"miles": 5}, event_us=NOW_US)
    entities = {"origin": [text, f"{text}x"], "dest": ["LAX", "LAX"]}
    assert ask(client, features=["routes:miles"], entities=entities).json()["rows"] == [[5], [None]]


def test_int64_keys_may_be_canonical_decimal_strings(client: httpx.Client) -> None:
    answer = ask(client, features=["fresh:clicks"], entities={"customer_id": ["1", 1, "3", 1.0]}).json()
    assert answer["rows"] == [[7], [7], [3], [7]]


@pytest.mark.parametrize(
    "value", ["01", "+1", "1.0", " 1", "", "x", "-0", "9223372036854775808", 2**63, True, 1.5, [1], {"a": 1}]
)
def test_an_ill_typed_key_is_named_with_its_row(client: httpx.Client, value: Any) -> None:
    response = ask(client, features=["fresh:clicks"], entities={"customer_id": [1, value]})
    assert response.status_code == 422
    error = error_of(response)
    assert error["type"] == "entity_key"
    assert error["details"]["join_key"] == "customer_id"
    assert error["details"]["row"] == 1
    assert "customer_id" in error["message"]
    assert "row 1" in error["message"]


def test_a_missing_key_column_is_named(client: httpx.Client) -> None:
    response = ask(client, features=["routes:miles"], entities={"origin": ["JFK"], "destination": ["LAX"]})
    assert response.status_code == 422
    error = error_of(response)
    assert error["type"] == "entity_key"
    assert error["details"]["join_key"] == "dest"
    assert "'dest'" in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"features": ["freh:clicks"]}, "Did you mean 'fresh'?"),
        ({"features": ["fresh:click"]}, "Did you mean 'clicks'?"),
        ({"features": ["spending:amount"]}, "Known are: amount_per_click."),
        ({"feature_service": "model_v2"}, "Did you mean 'model_v1'?"),
        ({"feature_service": "fresh:clicks"}, "There is no feature service 'fresh:clicks'"),
    ],
)
def test_unknown_names_are_404_with_the_closest(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    response = client.post(PATH, json={**body, "entities": {"customer_id": [1]}})
    assert response.status_code == 404
    error = error_of(response)
    assert error["type"] == "not_found"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "invalid_input"),
        ({"features": ["fresh:clicks"], "feature_service": "plain"}, "invalid_input"),
        ({"features": []}, "invalid_input"),
        ({"features": ["plain"]}, "invalid_input"),
        ({"features": ["fresh:clicks", "fresh:clicks"]}, "output_name_clash"),
        ({"features": ["spending:amount_per_click"]}, "invalid_input"),
        ({"features": ["fresh:clicks"], "request_data": {"customer_id": [1]}}, "invalid_input"),
        ({"features": ["fresh:clicks"], "more": 1}, "invalid_request"),
        ({"features": "fresh:clicks"}, "invalid_request"),
        ({"features": ["fresh:clicks"], "include": ["all"]}, "invalid_request"),
        ({"features": ["f" * 257]}, "invalid_request"),
        ({"features": ["routes:miles"], "entities": {"origin": ["a", "b"], "dest": ["a"]}}, "invalid_input"),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": 1}}, "invalid_request"),
        ({"features": ["fresh:clicks"], "entities": [{"customer_id": 1}]}, "invalid_request"),
        (
            {"features": ["spending:amount_per_click"], "request_data": {"amount": ["x"]}},
            "value_type",
        ),
    ],
)
def test_what_is_not_as_described_is_422(client: httpx.Client, body: dict[str, Any], kind: str) -> None:
    response = client.post(PATH, json={"entities": {"customer_id": [1]}, **body})
    assert response.status_code == 422, response.text
    assert error_of(response)["type"] == kind


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"feature": ["fresh:clicks"]},
            "'feature' is not one of its keys, which are "
            "features, feature_service, entities, request_data, include, full_feature_names.",
        ),
        ({"features": "fresh:clicks"}, "Expected `array | null`, got `str` - at `$.features`."),
        ({"features": ["fresh:clicks", 5]}, "Expected `str`, got `int` - at `$.features[1]`."),
        ({"feature_service": 5}, "Expected `str | null`, got `int` - at `$.feature_service`."),
        ({"entities": {"a": [1], "customer_id": 1}}, "Expected `array`, got `int` - at `$.entities['customer_id']`."),
        ({"include": ["all"]}, "'all' - at `$.include[0]`: it must be status or event_timestamp."),
    ],
)
def test_what_is_not_as_described_is_named_with_what_may_stand_there(
    client: httpx.Client, body: dict[str, Any], words: str
) -> None:
    response = client.post(PATH, json={"entities": {"customer_id": [1]}, **body})
    assert response.status_code == 422, response.text
    assert error_of(response)["message"].endswith(words)


@pytest.mark.parametrize(
    "rest", [b"}", b", nonsense", b', "entities": 5}', b', "entities": {"a": []}}', b', "x": ' + b"[" * 100_000]
)
def test_a_column_that_cannot_be_found_again_is_not_named(client: httpx.Client, rest: bytes) -> None:
    content = b'{"entities": {"a": 1}' + rest
    error = error_of(client.post(PATH, content=content, headers={"content-type": "application/json"}))
    assert error["message"].endswith("at `$.entities['a']`." if rest == b"}" else "at `$.entities[...]`.")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"nothing",
        b'{"entities": {"customer_id": [NaN]}}',
        b'{"entities": {"customer_id": [Infinity]}}',
        b'{"entities": {"customer_id": ["\xff"]}}',
        b'{"entities": {"customer_id": ["\\ud800"]}}',
        b'{"features": ["fresh:clicks"], "entities": {"customer_id": ' + b"[" * 200_000,
    ],
)
def test_what_is_no_json_is_400(client: httpx.Client, content: bytes) -> None:
    response = client.post(PATH, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "malformed_json"
    assert ("half a surrogate pair" in response.text) is (b"ud800" in content)


def test_deep_json_of_the_right_shape_is_refused(client: httpx.Client) -> None:
    deep = "[" * 900 + "]" * 900
    body = f'{{"features": ["fresh:clicks"], "entities": {{"customer_id": [{deep}]}}}}'
    response = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422)
    error_of(response)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
def test_another_content_type_is_415(client: httpx.Client, headers: dict[str, str]) -> None:
    response = client.post(PATH, content=b"{}", headers=headers)
    assert response.status_code == 415
    assert error_of(response)["type"] == "unsupported_media_type"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/json ;x"])
def test_the_content_type_may_have_parameters(client: httpx.Client, content_type: str) -> None:
    body = json.dumps({"features": ["fresh:clicks"], "entities": {"customer_id": [1]}})
    assert client.post(PATH, content=body, headers={"content-type": content_type}).status_code == 200


def test_limits(client: httpx.Client) -> None:
    assert ask(client, features=["fresh:clicks"], entities={"customer_id": [1] * 1000}).status_code == 200
    response = ask(client, features=["fresh:clicks"], entities={"customer_id": [1] * 1001})
    assert response.status_code == 413
    assert error_of(response)["type"] == "too_many_entities"
    response = ask(client, features=["fresh:clicks"], entities={"customer_id": [1], "other": [1] * 1001})
    assert response.status_code == 413
    response = ask(client, features=["fresh:clicks"] * 501, entities={"customer_id": [1]})
    assert response.status_code == 413
    assert error_of(response)["type"] == "too_many_features"


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_413_announced_or_counted(client: httpx.Client, announced: bool) -> None:
    content = b'{"features": ["' + b"x" * 1_000_000 + b'"]}'
    parts = iter([content[:500_000], content[500_000:]])
    response = client.post(PATH, content=content if announced else parts, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert error_of(response)["type"] == "body_too_large"
    assert client.get("/health").status_code == 200


def test_request_ids_come_back_or_are_made(client: httpx.Client) -> None:
    response = client.get("/health", headers={"x-request-id": "abc-1.2:3/4"})
    assert response.headers["x-request-id"] == "abc-1.2:3/4"
    made = [client.get("/health").headers["x-request-id"] for _ in range(3)]
    assert len(set(made)) == 3
    for evil in ["a b", "x" * 129, "<script>", "ä".encode().decode("latin-1")]:
        response = client.get("/nowhere", headers={"x-request-id": evil.encode("latin-1")})
        assert response.headers["x-request-id"] != evil
        error_of(response)


def test_other_routes_and_methods_have_the_same_errors(client: httpx.Client) -> None:
    response = client.get(PATH)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_of(response)["type"] == "method_not_allowed"
    for path in ("/", "/v1", f"{PATH}/", "/docs/nothing", "/v1/online-features%2f", "/..%2fetc/passwd"):
        response = client.post(path, json={})
        assert response.status_code == 404, path
        assert error_of(response)["type"] == "no_such_route"


def test_a_view_that_stays_offline_and_a_failing_function(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", NOW_US)
    text = (project.root / "features.py").read_text()
    text = text.replace('miles", Int64)])', 'miles", Int64)], online=False)')
    text = text.replace("if clicks and amount is not None else None", "if amount else undefined_name")
    (project.root / "features.py").write_text(text)
    project.apply()
    with serving_here(project.workspace(CLOCK)) as client:
        response = ask(client, features=["routes:miles"], entities={"origin": ["JFK"], "dest": ["LAX"]})
        assert response.status_code == 422
        assert "is not online" in error_of(response)["message"]
        body = {"features": ["spending:amount_per_click"], "entities": {"customer_id": [1]}}
        response = client.post(PATH, json={**body, "request_data": {"amount": [0.0]}})
        assert response.status_code == 500
        error = error_of(response)
        assert error["type"] == "on_demand_failed"
        assert "undefined_name" not in response.text
        assert client.post(PATH, json={**body, "request_data": {"amount": [7.0]}}).json()["rows"] == [[1.0]]


def test_a_view_that_is_read_twice_learns_an_older_schema_for_both(tmp_path: Path) -> None:
    project, now_us = Project(tmp_path), system_clock()
    project.put("routes", {"origin": "JFK", "dest": "LAX"}, {"miles": 1}, event_us=now_us)
    project.put("routes", {"origin": "LAX", "dest": "JFK"}, {"miles": 2}, event_us=now_us)
    features = tmp_path / "features.py"
    text = features.read_text().replace('Field("miles", Int64)]', 'Field("miles", Int64), Field("hours", Int64)]')
    back = 'routes.with_name("back").with_join_keys({"origin": "dest", "dest": "origin"})'
    features.write_text(f'{text}both = FeatureService("both", features=[routes.with_name("out"), {back}])\n')
    project.apply()
    asked = {"feature_service": "both", "full_feature_names": True, "entities": {"origin": ["JFK"], "dest": ["LAX"]}}
    with serving_here(project.workspace()) as client:
        for _ in range(2):
            answer = client.post("/v1/online-features", json=asked).json()
            assert answer["rows"] == [[1, None, 2, None]]
            assert answer["status"] == [["PRESENT", "NOT_FOUND"] * 2]
