"""Who may ask what; the description and the page of it; what schemathesis finds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route
from support.examples import examples
from support.serving import TOKEN, Project, error_of, serving_here, small_project

from featurestore.server.app import create_app
from featurestore.types.times import system_clock

OPEN = {"/health", "/ready"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("server") / "repo", system_clock())


@pytest.fixture(scope="module")
def closed_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Another folder for servers with a token: one that had a token once is never open again."""
    return small_project(tmp_path_factory.mktemp("closed") / "repo", system_clock())


@pytest.fixture(scope="module")
def paths(project: Project) -> list[str]:
    """Every route that the app has, and some that it has not."""
    routes = create_app(project.workspace()).api.routes
    assert all(isinstance(route, Route) for route in routes)  # nothing mounted that this walk would not see
    found = [route.path for route in routes if isinstance(route, Route)]
    assert {"/v1/online-features", "/get-online-features", "/metrics", "/openapi.json", "/docs"} < set(found)
    return [*found, "/", "/nowhere", "//health", "/health/", "/HEALTH", "/ready/../metrics", "/health%2f..%2fmetrics"]


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[httpx.Client]:
    with serving_here(project.workspace()) as client:
        yield client


def raw_path(client: httpx.Client, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    request = client.build_request(method, client.base_url, headers=headers)
    request.url = request.url.copy_with(raw_path=path.encode())
    return client.send(request)


def test_without_a_token_only_the_open_paths_answer(closed_project: Project, paths: list[str]) -> None:
    wrong = [
        {},
        {"authorization": ""},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"x-api-key": TOKEN},
        {"host": "health"},
    ]
    with serving_here(closed_project.workspace(), token=TOKEN) as client:
        for path in paths:
            for method in METHODS:
                for headers in wrong if method in ("GET", "POST") else wrong[:1]:
                    response = raw_path(client, method, path, headers)
                    if path in OPEN:
                        assert response.status_code == (200 if method in ("GET", "HEAD") else 405), (method, path)
                        continue
                    assert response.status_code == 401, (method, path, headers)
                    assert response.headers["www-authenticate"] == "Bearer"
                    if method != "HEAD":
                        assert error_of(response)["type"] == "unauthorized"
        for path in paths:
            response = raw_path(client, "GET", path, {"authorization": f"Bearer {TOKEN}"})
            assert response.status_code in ((403,) if path == "/push" else (200, 404, 405)), path
        assert client.get(f"/metrics?token={TOKEN}").status_code == 401


def test_the_token_is_checked_before_the_body_is_read(closed_project: Project) -> None:
    with serving_here(closed_project.workspace(), token=TOKEN) as client:
        response = client.post("/v1/online-features", content=b"x" * 10_000_000)
        assert response.status_code == 401


def test_on_loopback_without_tokens_everything_is_open(client: httpx.Client, paths: list[str]) -> None:
    for path in paths:
        assert raw_path(client, "GET", path, {}).status_code in (200, 404, 405), path


OWN_NAMES = [
    "localhost",
    "LocalHost:80",
    "localhost.",
    "api.localhost",
    "127.0.0.1",
    "127.8.9.1:6566",
    "[::1]",
    "[::1]:80",
    "my-laptop:80",
]
OTHER_NAMES = [
    "attacker.example",
    "attacker.example:6566",
    "127.0.0.1.attacker.example",
    "localhost.attacker.example",
    "attacker.example.",
    "localhost:80@attacker.example",
    "attacker.example:127.0.0.1",
    "10.0.0.1",
    "0.0.0.0",
    "[::ffff:10.0.0.1]",
    "::",
]


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/metrics", "/v1/online-features", "/push", "/nowhere"])
def test_an_open_server_answers_under_names_of_loopback_alone(client: httpx.Client, path: str) -> None:
    """A page can have its name resolved to 127.0.0.1; what it then asks bears that name."""
    for method in ("GET", "POST"):
        for name in OWN_NAMES:
            assert client.request(method, path, headers={"host": name}).status_code != 421, name
        for name in OTHER_NAMES:
            refused = client.request(method, path, headers={"host": name})
            assert refused.status_code == 421, name
            assert error_of(refused)["type"] == "misdirected_request"


def test_the_offer_of_a_websocket_is_looked_at_like_any_request(client: httpx.Client) -> None:
    offer = {"host": "attacker.example", "upgrade": "websocket", "connection": "upgrade"}
    assert client.get("/metrics", headers=offer).status_code == 421


def test_with_tokens_a_server_has_any_name(closed_project: Project) -> None:
    with serving_here(closed_project.workspace(), token=TOKEN) as client:
        for name in [*OWN_NAMES, *OTHER_NAMES]:
            assert client.get("/health", headers={"host": name}).status_code == 200
            asked = client.get("/metrics", headers={"host": name, "authorization": f"Bearer {TOKEN}"})
            assert asked.status_code == 200, name


def test_load_balancers_may_ask_by_head(closed_project: Project) -> None:
    with serving_here(closed_project.workspace(), token=TOKEN) as client:
        for path in ("/health", "/ready"):
            found = client.head(path)
            assert (found.status_code, found.content) == (200, b"")
            assert (
                "get" in client.get("/openapi.json", headers={"authorization": f"Bearer {TOKEN}"}).json()["paths"][path]
            )
        assert client.head("/metrics").status_code == 401


def test_open_paths_tell_what_is_served_only_to_those_who_may_read_it(
    closed_project: Project, client: httpx.Client
) -> None:
    def tells(found: httpx.Response) -> bool:
        answer = found.json()
        return set(answer) == {"status", "revision", "registry_age_seconds"} and answer["revision"] == 1

    assert client.get("/health").json() == {"status": "ok"}
    assert tells(client.get("/ready"))  # nobody but this machine can ask
    with serving_here(closed_project.workspace(), token=TOKEN) as closed:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": TOKEN}):
            assert closed.get("/health", headers=headers).json() == {"status": "ok"}
            assert closed.get("/ready", headers=headers).json() == {"status": "ready"}
        assert closed.get("/health", headers={"authorization": f"Bearer {TOKEN}"}).json() == {"status": "ok"}
        assert tells(closed.get("/ready", headers={"authorization": f"Bearer {TOKEN}"}))


def test_an_app_that_was_not_started_is_not_ready(project: Project) -> None:
    import asyncio

    app = create_app(project.workspace())

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            body = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}
            return [await client.get("/ready"), await client.post("/v1/online-features", json=body)]

    ready, answer = asyncio.run(ask())
    assert error_of(ready)["type"] == "not_ready"
    assert error_of(answer)["type"] == "online_store_unavailable"


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = ""
        self._in_script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.inline += data if self._in_script else ""

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


def test_the_page_loads_everything_from_the_server_itself(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    parser = _Addresses()
    parser.feed(page.text)
    assert not parser.inline.strip()
    for address in parser.found:
        if address == "data:,":
            continue
        assert re.fullmatch(r"docs/[a-z.-]+", address), address
        file = client.get(f"/{address}")
        assert file.status_code == 200
        assert file.content
        kind = "text/css" if address.endswith(".css") else "text/javascript"
        assert file.headers["content-type"] == f"{kind}; charset=utf-8"
        for header in ("content-security-policy", "x-content-type-options"):
            assert file.headers[header] == page.headers[header], address
    script = client.get("/docs/start.js").text
    assert 'url: "openapi.json"' in script
    assert "validatorUrl: null" in script
    assert client.get("/openapi.json").json()["openapi"].startswith("3.1")
    assert b"SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").content


def test_the_description_names_every_route_and_who_may_use_it(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/online-features",
        "/get-online-features",
        "/push",
        "/predictions",
        "/health",
        "/ready",
        "/metrics",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("security", document["security"]) == ([] if path in OPEN else [{"token": []}]), path
    assert client.get("/openapi.json").json() == document


def with_known_names(document: Any) -> Any:
    """Return the description narrowed to what this project has, so that the generated requests are answered."""
    for name in ("OnlineRequest", "FeastRequest"):
        request = document["components"]["schemas"][name]
        features = {"enum": ["fresh:clicks", "fresh:score", "everything:a_float64"]}
        request["properties"]["features"] = {"type": "array", "items": features, "minItems": 1, "uniqueItems": True}
        keys = {"anyOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"enum": ["1", "3", None]}]}
        request["properties"]["entities"] = {
            "type": "object",
            "properties": {"customer_id": {"type": "array", "items": keys}},
            "required": ["customer_id"],
            "additionalProperties": False,
        }
        for left_out in ("feature_service", "request_data"):
            request["properties"].pop(left_out, None)
        request["required"] = ["features", "entities"]
    return document


@pytest.mark.parametrize("kind", ["known names", "any names", "not as described"])
@pytest.mark.parametrize("path", ["/v1/online-features", "/get-online-features"])
def test_schemathesis_finds_nothing(client: httpx.Client, path: str, kind: str) -> None:
    document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(with_known_names(document) if kind == "known names" else document)
    operation = next(found.ok() for found in schema.get_all_operations() if found.ok().path == path)
    mode = GenerationMode.NEGATIVE if kind == "not as described" else GenerationMode.POSITIVE
    seen = set()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples(20), deadline=None, suppress_health_check=list(HealthCheck))
    def conforms(case: schemathesis.Case) -> None:
        response = case.call(base_url=str(client.base_url))
        seen.add(response.status_code)
        case.validate_response(
            response,
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_headers_conformance,
                response_schema_conformance,
                # A body of too many entities is refused too, by a status that the check does not count.
                *([] if response.status_code == 413 else [negative_data_rejection]),
            ],
        )

    conforms()
    assert seen == {200} if kind == "known names" else seen


def test_the_description_has_an_example_and_a_curl_line_for_every_route(client: httpx.Client) -> None:
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert f"curl -s http://127.0.0.1:6566{path}" in operation["description"]
            if path != "/metrics":
                assert "example" in operation["responses"]["200"]["content"]["application/json"]
            if method == "post":
                example = operation["requestBody"]["content"]["application/json"]["example"]
                assert client.post(path, json=example).status_code == 404  # only its names are unknown here
