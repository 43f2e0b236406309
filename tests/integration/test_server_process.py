"""The server as a process: workers, both stores, what arrives slowly or is no HTTP, and the way down."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.command_line import CommandLine
from support.raw_http import BODY, REQUEST, connect, head, read_all, read_one
from support.redis_server import RedisServer
from support.serving import TOKEN, error_of, serving, serving_here, small_project, until

from featurestore.errors import SettingsError
from featurestore.server import run
from featurestore.server.http.protocol import MAX_HEADER_BYTES, DeadlineProtocol
from featurestore.types.times import system_clock

pytestmark = pytest.mark.counts_processes


@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_two_workers_serve_and_count_together(tmp_path: Path, request: pytest.FixtureRequest, store: str) -> None:
    url = request.getfixturevalue("redis_url") if store == "redis" else "lmdb:///data/online"
    project = small_project(tmp_path / "repo", system_clock(), online_url=url)
    environment = {"FS_SERVER_TOKEN": TOKEN}
    headers = {"authorization": f"Bearer {TOKEN}"}
    with serving(project.root, "--workers", "2", environment=environment) as server:
        with server.client(headers=headers) as client:
            assert client.get("/ready").status_code == 200

            def ask(_: int) -> int:
                # A connection each, so that both workers get some.
                with server.client(headers=headers) as own:
                    return own.post("/v1/online-features", json=BODY).json()["rows"][0][0]

            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(ask, range(60))) == {7}
            for line in (
                'featurestore_requests_total{route="/v1/online-features",status="200"} 60.0',
                "featurestore_online_rows_total 60.0",  # the other worker hands over what it counts once a second
                "featurestore_snapshot_revision 1.0",  # the least of both: the other may have just begun
            ):
                until(lambda line=line: line in client.get("/metrics").text)
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert len(children) >= 2
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in children))


def test_a_dead_worker_is_replaced_and_its_gauges_are_forgotten(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock(), refresh="50ms")
    with serving(project.root, "--workers", "2") as server:

        def workers() -> set[str]:
            found = set()
            for child in Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(child)
            return found

        def revision() -> float:
            with server.client() as client:
                lines = client.get("/metrics").text.splitlines()
            found = [line for line in lines if line.startswith("featurestore_snapshot_revision ")]
            return float(found[0].split()[-1]) if found else 0.0

        before = until(lambda: workers() if len(workers()) == 2 else None)
        until(lambda: revision() == 1)
        os.kill(int(min(before)), signal.SIGKILL)
        until(lambda: len(workers()) == 2 and workers() != before)
        project.apply(without=["feature_service:plain"])
        until(lambda: revision() == 2)


def test_redis_away_at_start_dying_and_coming_back(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    redis = start_redis()
    now_us = system_clock()
    project = small_project(tmp_path / "repo", now_us, online_url=redis.url)
    redis.kill()
    with serving_here(project.workspace()) as client:
        assert client.get("/health").status_code == 200
        response = client.get("/ready")
        assert response.status_code == 503
        assert error_of(response)["type"] == "not_ready"
        for path in ("/v1/online-features", "/get-online-features"):
            response = client.post(path, json=BODY)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            error = error_of(response)
            assert error["type"] == "online_store_unavailable"
            assert str(redis.port) not in response.text
        redis.restart()
        project.put("fresh", {"customer_id": 1}, {"clicks": 7, "score": 1.0}, event_us=now_us)
        until(lambda: client.get("/ready").status_code == 200)
        until(lambda: client.post("/v1/online-features", json=BODY).status_code == 200)
        redis.hang()
        started = time.monotonic()
        assert client.post("/v1/online-features", json=BODY).status_code == 503
        assert client.get("/ready").status_code == 503
        assert time.monotonic() - started < 3
        redis.resume()
        until(lambda: client.post("/v1/online-features", json=BODY).status_code == 200)
        assert "featurestore_online_store_errors_total" in client.get("/metrics").text


def test_a_request_that_does_not_arrive_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.4)
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client:
        for sent in (b"", b"POST /v1/online-fea", head(100), head(100) + b'{"features": ['):
            started = time.monotonic()
            with connect(client.base_url) as connection:
                connection.sendall(sent)
                answer = read_all(connection)
            assert 0.2 < time.monotonic() - started < 5
            first, _, body = answer.partition(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 408 "), answer
            assert json.loads(body)["error"]["type"] == "request_timeout"
        # A connection that is used again waits as long as it likes between requests, but not within one.
        with connect(client.base_url) as connection:
            for _ in range(2):
                connection.sendall(head(len(REQUEST)) + REQUEST)
                assert b"200 OK" in read_one(connection)
                time.sleep(0.6)
            connection.sendall(head(len(REQUEST)) + REQUEST)
            assert b"200 OK" in read_one(connection)
            connection.sendall(head(len(REQUEST)))
            assert b"408" in read_all(connection)


def test_an_idle_connection_is_closed_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "KEEP_ALIVE_SECONDS", 1)
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.4)  # a connection is looked at so often
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        for _ in range(3):  # each request begins the time anew
            connection.sendall(head(len(REQUEST)) + REQUEST)
            assert b"200 OK" in read_one(connection)
            time.sleep(0.6)
        started = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - started < 3


def test_a_request_that_began_behind_another_is_not_taken_for_idleness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_server: RedisServer, redis_url: str
) -> None:
    monkeypatch.setattr(run, "KEEP_ALIVE_SECONDS", 1)
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.6)
    project = small_project(tmp_path / "repo", system_clock(), online_url=redis_url, read_timeout_ms=8_000)
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        request = head(len(REQUEST)) + REQUEST
        connection.sendall(request + request[:30])
        assert b"200 OK" in read_one(connection)
        with redis_server.client() as redis:
            redis.execute_command("CLIENT", "PAUSE", 2_500, "ALL")
        connection.sendall(request[30:])
        assert b"200 OK" in read_one(connection)


def test_a_client_that_wants_no_more_is_answered_and_let_go(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        connection.sendall(head(len(REQUEST)).replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n") + REQUEST)
        first, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert b"\r\nconnection: close\r\n" in first + b"\r\n"
        assert b"\r\ndate: " in first
        assert json.loads(body)["rows"] == [[7]]


def test_after_an_early_refusal_the_rest_of_the_body_ends_the_connection_quietly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.4)
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        connection.sendall(head(10_000_000) + b"x" * 1000)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx-long: ")
        with pytest.raises(OSError):  # noqa: PT012 - the refusal may come between any two
            for _ in range(200):
                connection.sendall(b"x" * (MAX_HEADER_BYTES // 8))
                time.sleep(0.005)
                connection.settimeout(0.001)
                try:
                    found = connection.recv(65536)
                except TimeoutError:
                    connection.settimeout(10)
                    continue
                assert found.startswith(b"HTTP/1.1 431 ")
                raise OSError("refused, as it should be")


def test_what_is_no_http_has_the_same_errors(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        first, _, body = read_all(connection).partition(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 400 ")
        assert json.loads(body)["error"]["type"] == "bad_request"


def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client, connect(client.base_url) as connection:
        connection.sendall((head(len(REQUEST)) + REQUEST) * 5 + b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        answer = read_all(connection)
        assert answer.count(b'"rows":[[7]]') == 5
        assert answer.endswith(b'{"status":"ok"}')


def test_clients_that_leave_disturb_nobody(tmp_path: Path, redis_url: str) -> None:
    project = small_project(tmp_path / "repo", system_clock(), online_url=redis_url)
    other = json.dumps({"features": ["fresh:clicks"], "entities": {"customer_id": [3]}}).encode()
    with serving_here(project.workspace()) as client:
        for sent in range(300):
            with connect(client.base_url) as connection:
                connection.sendall(head(len(other)) + (other if sent % 3 else other[:20]))
            if sent % 10 == 0:
                assert client.post("/v1/online-features", json=BODY).json()["rows"] == [[7]]
        assert client.post("/v1/online-features", json=BODY).json()["rows"] == [[7]]


def test_too_many_connections_are_told_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_CONNECTIONS", 3)
    project = small_project(tmp_path / "repo", system_clock())
    with serving_here(project.workspace()) as client:
        idle = [connect(client.base_url) for _ in range(3)]
        response = client.get("/health")
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert error_of(response)["type"] == "overloaded"
        for connection in idle:
            connection.close()
        until(lambda: client.get("/health").status_code == 200)


def test_sigterm_lets_requests_finish(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving(project.root, fresh=True) as server, connect(server.url) as connection:
        with server.client() as client:
            assert client.get("/health").status_code == 200
        connection.sendall(head(len(REQUEST)) + REQUEST[:10])
        time.sleep(0.3)
        server.process.terminate()
        time.sleep(0.5)
        assert server.process.poll() is None
        connection.sendall(REQUEST[10:])
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"rows":[[7]]' in answer
        assert server.process.wait(timeout=10) == 0


def test_sigint_is_a_clean_end_too(tmp_path: Path) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    with serving(project.root, fresh=True) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=10) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_comes_while_an_object_is_collected_is_not_lost() -> None:
    class Collected:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with run._stopping_by_signals() as check:
        check()
        Collected()
        with pytest.raises(run._Stopped):
            check()


def test_a_taken_port_and_an_unknown_host_are_told(tmp_path: Path) -> None:
    with run.bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already in use"):
            run.bind("127.0.0.1", port)
    for host in ("no.such.host.invalid", "192.0.2.1", "ü..x"):
        with pytest.raises(SettingsError, match=r"cannot listen on .*:0: [A-Z][^(]+\.$") as caught:
            run.bind(host, 0)
        assert "--host" in str(caught.value.hint)
        del caught
        gc.collect()  # a socket that was left open is told of here


def test_urls() -> None:
    with run.bind("127.0.0.1", 0) as listening:
        assert run.url_of(listening) == f"http://127.0.0.1:{listening.getsockname()[1]}"
    if socket.has_dualstack_ipv6():
        with run.bind("::1", 0) as listening:
            assert run.url_of(listening) == f"http://[::1]:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "loopback only"),
        (["--host", "0.0.0.0"], {"FS_SERVER_TOKEN": "short"}, "32 characters"),
        ([], {"FS_SERVER_TOKEN": ""}, "32 characters"),
    ],
)
def test_a_wrong_start_is_one_message_without_a_trace(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    project = small_project(tmp_path / "repo", system_clock())
    monkeypatch.delenv("FS_SERVER_TOKEN", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    fs = CommandLine(project.root, capsys)
    fs("serve", "--port", "0", *arguments, expect=1)
    assert message in " ".join(fs.err.split())
    assert "Traceback" not in fs.err
    assert "short" not in fs.err
