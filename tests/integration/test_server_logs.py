"""Logs of a running server: their two forms, what they tell, and what never reaches them."""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import redis
from featurestore_registry.auth import Role, create_token
from support.faults import Fault, FaultProxy
from support.redis_server import RedisServer
from support.serving import FEATURES, Project, ServerProcess, serving, small_project, until

from featurestore.backends import open_registry
from featurestore.errors import OfflineStoreError, OnlineStoreUnavailableError
from featurestore.project.settings import read_settings
from featurestore.server.http.errors import error_answer
from featurestore.server.watch import logs
from featurestore.types.times import system_clock

TOKEN = "marked-token-" + "t" * 30
PASSWORD = "marked-password"
MARK = "marked"
FAULTS: tuple[Fault, ...] = ("hang", "garbage", "reset", "refuse", "drip")
BODY = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}

FAILING = """

from featurestore import PushSource

notes = PushSource("notes", batch_source=orders)
noted = FeatureView("noted", entities=[customer], source=notes, schema=[Field("note", String), Field("count", Int64)])


@on_demand_feature_view(sources=[fresh[["clicks"]], request], schema=[Field("failing", Float64)])
def failing(inputs):
    def inner():
        raise LookupError(f"nothing known of {inputs}")

    inner()


@on_demand_feature_view(sources=[fresh[["clicks"]], request], schema=[Field("wrong", Float64)])
def wrong(inputs):
    return inputs["amount"]
"""


@pytest.fixture
def redis_server_with_password(start_redis: Callable[..., RedisServer]) -> RedisServer:
    return start_redis("--requirepass", PASSWORD)


def make_project(root: Path, online_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr("support.serving.FEATURES", FEATURES + FAILING)
    project = small_project(root, system_clock(), online_url=online_url)
    project.put("routes", {"origin": "marked-key", "dest": "X"}, {"miles": 1}, event_us=system_clock())
    return project


def break_records(client: redis.Redis) -> None:
    """Leave records that cannot be read under keys that are marked."""
    (good,) = client.keys("fs:shop:routes:{*marked-key*")
    client.set(good.replace(b"marked-key", b"marked-damaged"), b"\x01marked-value")
    client.set(good.replace(b"marked-key", b"marked-cut"), client.get(good)[:20])
    client.rpush(good.replace(b"marked-key", b"marked-list"), b"marked-value")


def push(server: ServerProcess, token: str, **columns: list[object]) -> int:
    """Push one row whose every value is marked."""
    rows = {
        "customer_id": [77340],
        "ordered_at": ["2026-01-01T00:00:00Z"],
        "note": ["marked"],
        "count": [77341],
        **columns,
    }
    with server.client(headers={"authorization": f"Bearer {token}", "x-request-id": "push-1"}) as client:
        return client.post("/push", json={"source": "notes", "rows": rows}).status_code


def wrong_requests(server: ServerProcess) -> None:
    """Send what goes wrong in every way that one request can, with marks in all that a client chooses."""
    headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "wrong-1"}
    amount = {"amount": [0.7734]}
    with server.client(headers=headers) as client:

        def ask(path: str = "/v1/online-features", **body: object) -> int:
            return client.post(path, json=body).status_code

        origins = ["marked-damaged", "marked-cut", "marked-list", "marked-absent"]
        for origin in origins:
            keys = {"origin": [origin], "dest": ["X"]}
            assert ask(features=["routes:miles"], entities=keys) in (200, 500)
            assert ask("/get-online-features", features=["routes:miles"], entities=keys) in (200, 500)
        for feature in ("failing:failing", "wrong:wrong"):
            assert ask(features=[feature], entities={"customer_id": [1]}, request_data=amount) == 500
        assert ask(features=["fresh:clicks"], entities={"customer_id": ["marked"]}) == 422
        assert ask(features=["fresh:marked"], entities={"customer_id": [1]}) == 404
        assert ask(feature_service="marked", entities={"marked": ["marked"]}) == 404
        assert ask("/push", source="marked", rows={"marked": ["marked"]}, to="marked") in (403, 404, 422)
        for content in (b'{"marked', b"\xff\xfemarked", b"[" * 5000, b'{"features": "marked"}', b"m" * 1_500_000):
            sent = client.post("/v1/online-features", content=content, headers={"content-type": "application/json"})
            assert sent.status_code in (400, 413, 422)
        assert client.post("/v1/online-features", content=b"marked").status_code == 415
        for path in ("/marked", f"/metrics?token={TOKEN}", "/v1/online-features/marked", "/%6Darked"):
            assert client.get(path, headers={"x-request-id": "marked id"}).status_code in (200, 404)
        assert client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}x"}).status_code == 401
    place = httpx.URL(server.url)
    for sent in (b"marked\r\n\r\n", b"POST /marked HTTP/1.1\r\nhost: marked\r\ncontent-length: 9\r\n\r\nmarked"):
        with socket.create_connection((place.host, place.port), timeout=10) as connection:
            connection.sendall(sent)


def fault_requests(server: ServerProcess, proxy: FaultProxy, faults: Sequence[Fault]) -> None:
    """Read while the store fails in every way that it can, each time until it is well again."""
    body = {"features": ["routes:miles"], "entities": {"origin": ["marked-key"], "dest": ["X"]}}
    headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "fault-1"}

    def ask(_: int = 0) -> int:
        with server.client(headers=headers) as client:
            return client.post("/v1/online-features", json=body).status_code

    for fault in faults:
        proxy.fault = fault
        proxy.cut()
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(ask, range(8))) <= {200, 503}
        proxy.fault = "none"
        proxy.cut()
        until(lambda: ask() == 200)


@pytest.mark.slow(6)
@pytest.mark.parametrize("form", ["text", "json"])
def test_no_value_and_no_secret_reaches_a_line(
    tmp_path: Path, redis_server_with_password: RedisServer, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    with FaultProxy(redis_server_with_password.port) as proxy:
        project = make_project(tmp_path / "repo", f"redis://:{PASSWORD}@127.0.0.1:{proxy.port}", monkeypatch)
        with redis_server_with_password.client(PASSWORD) as client:
            break_records(client)
        with open_registry(read_settings(project.root).registry, project.root) as registry:
            operator, _ = create_token(
                registry.ledger, None, Role.OPERATOR, expires_at_us=None, now_us=system_clock(), name="marked"
            )
        environment = {"FS_SERVER_TOKEN": TOKEN}
        with serving(project.root, "--debug", "--log-format", form, environment=environment) as server:
            wrong_requests(server)
            fault_requests(
                server, proxy, ("hang",) if form == "json" else ("hang", "garbage", "reset", "refuse", "drip")
            )
            with redis_server_with_password.client(PASSWORD) as client:
                client.execute_command("ACL", "SETUSER", "default", "-mget", "-get")
                until(lambda: refused(server))
                assert push(server, operator) == 503
            log = server.log.read_text()
    assert MARK not in log
    for secret in ("0.7734", "77340", "77341", TOKEN, operator):
        assert secret not in log
    for told in ("LookupError", "in inner", "OnDemandError", "DamagedRecordError", "did not answer within"):
        assert told in log
    assert re.search(r"request fault-1: POST /v1/online-features 503 in \d+\.\d ms", log)
    assert re.search(r"GET other 404 in", log)
    if form == "json":
        lines = [json.loads(line) for line in log.splitlines()]
        assert {line["level"] for line in lines} >= {"debug", "info", "warning", "error"}
        failed = [line for line in lines if "exception" in line]
        assert {line["request_id"] for line in failed} == {"wrong-1"}
        assert all(set(line) <= {"time", "level", "logger", "message", "request_id", "exception"} for line in lines)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"]) for line in lines)


def refused(server: ServerProcess) -> bool:
    """Read once; tell whether Redis's own refusal, which quotes no key, stands in the log."""
    body = {"features": ["routes:miles"], "entities": {"origin": ["marked-key"], "dest": ["X"]}}
    with server.client(headers={"authorization": f"Bearer {TOKEN}"}) as client:
        client.post("/v1/online-features", json=body)
    return "permission" in server.log.read_text()


def test_a_command_that_redis_does_not_know_is_told_without_the_keys(
    tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> None:
    redis_server = start_redis("--rename-command", "MGET", "")
    project = small_project(tmp_path / "repo", system_clock(), online_url=redis_server.url)
    body = {"features": ["routes:miles"], "entities": {"origin": ["marked-key"], "dest": ["X"]}}
    with serving(project.root, "--log-format", "json") as server, server.client() as client:
        assert client.post("/v1/online-features", json=body).status_code == 503
        log = server.log.read_text()
    assert "unknown command" in log
    assert MARK not in log


def test_wrong_credentials_are_not_shown(tmp_path: Path, redis_server_with_password: RedisServer) -> None:
    port = redis_server_with_password.port
    project = small_project(tmp_path / "repo", system_clock())
    for url in (f"redis://user:wrong-{PASSWORD}@127.0.0.1:{port}", f"redis://:wrong-{PASSWORD}@127.0.0.1:{port}/0"):
        environment = {"FS_ONLINE_STORE": url}
        with serving(project.root, "--debug", "--log-format", "json", environment=environment) as server:
            with server.client() as client:
                assert client.post("/v1/online-features", json=BODY).status_code == 503
            log = server.log.read_text()
    assert MARK not in log
    assert "invalid username-password" in log.lower() or "wrongpass" in log.lower()


def test_requests_are_told_of_in_debug_or_when_slow(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "featurestore.server"):
        logs.log_request("POST", "/push", 200, logs.SLOW_SECONDS - 0.001, "a")
        assert caplog.records == []
        logs.log_request("POST", "/push", 200, 1.2345, "b")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("WARNING", "request b: POST /push 200 in 1234.5 ms")
    assert record.request_id == "b"


def test_an_outage_is_told_once_a_second(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_told", {})
    with caplog.at_level(logging.INFO, "featurestore.server"):
        for number in range(1000):
            error_answer(OnlineStoreUnavailableError("Redis is away."), f"id-{number}")
        error_answer(OfflineStoreError("The disk is away."), "id-1000")
        assert [record.request_id for record in caplog.records] == ["id-0", "id-1000"]
        monkeypatch.setattr(logs, "TELL_AGAIN_SECONDS", 0.0)
        error_answer(OnlineStoreUnavailableError("Redis is away."), "id-1001")
    assert caplog.records[-1].getMessage() == "request id-1001: Redis is away."


def test_workers_write_json_too_and_say_nothing_of_requests_without_debug(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving(project.root, "--workers", "2", "--log-format", "json") as server:
        with server.client() as client:
            for _ in range(10):
                assert client.post("/v1/online-features", json=BODY).status_code == 200
        until(lambda: server.log.read_text().count("serving revision 1") >= 2)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {line["logger"] for line in lines} == {"featurestore.server"}
    assert not [line for line in lines if "request" in line["message"]]


def formatted(form: type[logging.Formatter], name: str, text: str, *arguments: object) -> str:
    """Return the line of an error that came from another; what both say is not in the source either."""
    secret = "".join(["mar", "ked"])
    try:
        try:
            raise ValueError(secret)
        except ValueError as cause:
            raise RuntimeError(f"{secret}\nerror") from cause
    except RuntimeError:
        return form().format(logging.LogRecord(name, logging.ERROR, __file__, 1, text, arguments, sys.exc_info()))


@pytest.mark.parametrize("form", [logs.Lines, logs.JsonLines])
def test_exceptions_are_told_by_type_and_place(form: type[logging.Formatter]) -> None:
    text = formatted(form, "featurestore.server", "it %s", "failed")
    assert "it failed" in text
    assert "ValueError" in text.partition("RuntimeError")[2]
    assert text.count("in formatted") == 2
    assert MARK not in text
    text = formatted(form, "asyncio", "Exception in callback f(%r)\nhandle: <%s>", MARK, MARK)
    assert "Exception in callback" in text
    assert MARK not in text


def test_json_lines_hold_any_text() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, 'a "b"\n\udcff\x00%s', ("ü",), None)
    line = logs.JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == 'a "b"\n\udcff\x00ü'
    assert abs(time.time() - record.created) < 60
