"""``POST /get-online-features`` as Feast's own client reads it; `tests/compat` tries the real client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from support.clock import ManualClock
from support.serving import HOUR_US, Project, error_of, serving_here, small_project

from featurestore.types.times import system_clock, to_rfc3339

NOW_US = system_clock() // 1_000_000 * 1_000_000
EPOCH = "1970-01-01T00:00:00Z"
PATH = "/get-online-features"


def seconds_text(instant_us: int) -> str:
    return to_rfc3339(instant_us)[:19] + "Z"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("server") / "repo", NOW_US)


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[httpx.Client]:
    with serving_here(project.workspace(ManualClock(NOW_US))) as client:
        yield client


READ_FORM = {"features": ["fresh:score", "fresh:clicks"], "entities": {"customer_id": [1, 2, 3, 4]}}
"""What `RemoteOnlineStore.online_read` sends."""

RETRIEVAL_FORM = {**READ_FORM, "full_feature_names": False, "include_feature_view_version_metadata": False}
"""What `RemoteOnlineStore.get_online_features` sends."""


@pytest.mark.parametrize("form", [READ_FORM, RETRIEVAL_FORM, {**READ_FORM, "unknown": {"to": "us"}}])
def test_both_request_forms_have_the_whole_answer(client: httpx.Client, form: dict[str, Any]) -> None:
    response = client.post(PATH, json=form)
    assert response.status_code == 200
    times = [
        seconds_text(NOW_US - HOUR_US // 2),
        seconds_text(NOW_US - HOUR_US - 1_000_000),
        seconds_text(NOW_US),
        EPOCH,
    ]
    assert response.json() == {
        "metadata": {"feature_names": ["customer_id", "score", "clicks"]},
        "results": [
            {"values": [1, 2, 3, 4], "statuses": ["PRESENT"] * 4, "event_timestamps": [EPOCH] * 4},
            {
                "values": [0.5, None, None, None],
                "statuses": ["PRESENT", "OUTSIDE_MAX_AGE", "NULL_VALUE", "NOT_FOUND"],
                "event_timestamps": times,
            },
            {
                "values": [7, 0, 3, 0],
                "statuses": ["PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"],
                "event_timestamps": times,
            },
        ],
    }


def test_a_service_with_full_names_and_request_data_among_the_entities(client: httpx.Client) -> None:
    body = {
        "feature_service": "model_v1",
        "features": [],
        "entities": {"amount": [14.0], "customer_id": ["1"], "nothing": [None], "origin": ["JFK"], "dest": ["LAX"]},
        "full_feature_names": True,
        "include_feature_view_version_metadata": True,
    }
    answer = client.post(PATH, json=body).json()
    assert answer["metadata"] == {
        "feature_names": [
            "customer_id",
            "origin",
            "dest",
            "fresh__clicks",
            "fresh__score",
            "routes__miles",
            "spending__amount_per_click",
        ],
        "feature_view_metadata": [{"name": "fresh", "version": 1}, {"name": "routes", "version": 1}],
    }
    assert [result["values"] for result in answer["results"]] == [["1"], ["JFK"], ["LAX"], [7], [0.5], [2475], [2.0]]
    assert answer["results"][-1]["event_timestamps"] == [EPOCH]


def test_instants_are_integer_seconds_and_event_times_keep_their_microseconds(
    client: httpx.Client, project: Project
) -> None:
    before = datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC)
    values = {"an_instant": before, "instants": [[datetime(2013, 1, 1, tzinfo=UTC), None]], "a_decimal": None}
    project.put("everything", {"customer_id": 9}, values, event_us=NOW_US - 7)
    features = ["everything:an_instant", "everything:instants", "everything:a_decimal"]
    body = {"features": features, "entities": {"customer_id": [9]}}
    results = client.post(PATH, json=body).json()["results"][1:]
    assert [result["values"] for result in results] == [[-1], [[[1356998400, None]]], [None]]
    assert [result["statuses"] for result in results] == [["PRESENT"], ["PRESENT"], ["NULL_VALUE"]]
    assert {result["event_timestamps"][0] for result in results} == {to_rfc3339(NOW_US - 7)}


def test_a_record_of_the_future_is_not_found(client: httpx.Client, project: Project) -> None:
    project.put("fresh", {"customer_id": 10}, {"clicks": 7, "score": 0.5}, event_us=NOW_US + 1)
    results = client.post(PATH, json={**READ_FORM, "entities": {"customer_id": [10]}}).json()["results"]
    for result, value in zip(results[1:], [None, 0], strict=True):
        assert result == {"values": [value], "statuses": ["NOT_FOUND"], "event_timestamps": [EPOCH]}


def test_a_null_key_is_not_found(client: httpx.Client) -> None:
    body = {"features": ["fresh:score"], "entities": {"customer_id": [None, 1]}}
    results = client.post(PATH, json=body).json()["results"]
    assert results[0] == {"values": [None, 1], "statuses": ["NULL_VALUE", "PRESENT"], "event_timestamps": [EPOCH] * 2}
    assert results[1]["statuses"] == ["NOT_FOUND", "PRESENT"]
    assert results[1]["event_timestamps"][0] == EPOCH


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"features": ["fresh:nothing"], "entities": {"customer_id": [1]}}, 404),
        ({"feature_service": "nothing", "entities": {"customer_id": [1]}}, 404),
        ({"features": ["fresh:clicks"], "entities": {}}, 422),
        ({"features": ["fresh:clicks"]}, 422),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": ["x"]}}, 422),
        ({"features": [], "entities": {"customer_id": [1]}}, 422),
        ({"features": ["fresh:clicks"], "entities": {"customer_id": [1] * 1001}}, 413),
        ([], 422),
    ],
)
def test_every_error_is_json_which_the_client_parses(client: httpx.Client, body: Any, status: int) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code == status
    error_of(response)
