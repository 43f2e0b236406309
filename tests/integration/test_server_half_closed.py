"""Clients that say that they send no more (``shutdown(SHUT_WR)``) before they read, as some proxies and pools do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.raw_http import REQUEST, connect, head, read_all, read_one
from support.serving import serving_here, small_project, until

from featurestore.types.times import system_clock

PUSH = json.dumps({"source": "nowhere", "rows": {"a": [1]}}).encode()
GETS = ("/health", "/ready", "/metrics", "/v1/status", "/openapi.json", "/nowhere")
WHOLE = {path: f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in GETS} | {
    "/v1/online-features": head(len(REQUEST)) + REQUEST,
    "/get-online-features": head(len(REQUEST), path="/get-online-features") + REQUEST,
    "/push": head(len(PUSH), path="/push") + PUSH,
}


@pytest.fixture(params=["lmdb", "redis"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[httpx.Client]:
    options = {} if request.param == "lmdb" else {"online_url": request.getfixturevalue("redis_url")}
    project = small_project(tmp_path / "repo", system_clock(), **options)
    with serving_here(project.workspace()) as client:
        until(lambda: client.get("/ready").status_code == 200)
        yield client


def ended(client: httpx.Client, sent: bytes) -> bytes:
    """Return the answers to what is sent, and nothing more, on a connection that the server has to close."""
    with connect(client.base_url) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        begun = time.monotonic()
        answers = read_all(connection)
    assert time.monotonic() - begun < 5  # it waits neither for the rest of a request nor for another one
    return answers


def test_every_route_answers_a_client_that_sends_no_more(client: httpx.Client) -> None:
    for path, sent in WHOLE.items():
        with connect(client.base_url) as connection:
            connection.sendall(sent)
            status = read_one(connection).splitlines()[0]
        answer = ended(client, sent)
        assert answer.splitlines()[:1] == [status], path
        assert answer.count(b"HTTP/1.1 ") == 1


def test_requests_in_a_row_are_all_answered_before_it_is_closed(client: httpx.Client) -> None:
    answers = ended(client, WHOLE["/v1/online-features"] * 5 + WHOLE["/ready"])
    assert answers.count(b'"rows":[[7]]') == 5
    assert answers.count(b"HTTP/1.1 200 OK") == 6


def test_what_arrived_in_part_is_dropped_and_what_came_before_it_answered(client: httpx.Client) -> None:
    whole = WHOLE["/v1/online-features"]
    for part in (b"", whole[:9], whole[:-1], head(len(REQUEST)), head(9, "Expect: 100-continue")):
        assert ended(client, part) in (b"", b"HTTP/1.1 100 Continue\r\n\r\n"), part
        answers = ended(client, whole + part)
        assert answers.count(b'"rows":[[7]]') == 1, part
        assert answers.count(b"HTTP/1.1 200 OK") == 1
    with connect(client.base_url) as connection:  # idle, after an answer
        connection.sendall(whole)
        read_one(connection)
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
