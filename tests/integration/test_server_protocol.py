"""Requests by hand over a socket: offers of another protocol, and whatever could make two servers read differently."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

import httpx
import pytest
from support.raw_http import REQUEST, connect, head, read_all, read_one
from support.serving import metric, serving_here, small_project, until

from featurestore.server.http.protocol import DeadlineProtocol
from featurestore.types.times import system_clock

H2C = ("Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA", "Upgrade: h2c")
OFFERS = {
    "h2c": H2C,
    "tls": ("Upgrade: TLS/1.2", "Connection: Upgrade"),
    "websocket": (
        "Connection: keep-alive, Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
}
BODIES = {
    "/v1/online-features": (REQUEST, b'"rows":[[7]]'),
    "/get-online-features": (REQUEST, b'"values":[7]'),
    "/push": (json.dumps({"source": "nowhere", "rows": {"a": [1]}}).encode(), b"'nowhere'"),
}
"""What is sent to each route, and what only somebody who has read it can answer."""

OTHER = json.dumps({"features": ["fresh:score"], "entities": {"customer_id": [1]}}).encode()
NEXT = head(len(OTHER), "connection: close") + OTHER
AFTER = b'"rows":[[0.5]],"status":[["PRESENT"]]}'
"""The end of what answers it."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    project = small_project(tmp_path_factory.mktemp("protocol") / "repo", system_clock())
    with serving_here(project.workspace()) as client:
        yield client


def chunked(body: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=list(OFFERS))
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("cut", ["one packet", "body apart", "byte by byte"])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(
    client: httpx.Client, path: str, offer: tuple[str, ...], is_chunked: bool, cut: str
) -> None:
    body, proof = BODIES[path]
    opening = head(len(body), *offer, path=path)
    if is_chunked:
        opening = opening.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
        body = chunked(body)
    whole = opening + body + NEXT
    bytewise = [bytes([byte]) for byte in whole]
    parts = {"one packet": [whole], "body apart": [opening, body + NEXT], "byte by byte": bytewise}[cut]
    with connect(client.base_url) as connection:
        for number, part in enumerate(parts):
            connection.sendall(part)
            if cut == "body apart" and number == 0:
                time.sleep(0.02)
        answers = read_all(connection)
    assert answers.count(b"HTTP/1.1 ") == 2
    assert proof in answers
    assert answers.endswith(AFTER)  # the next request is the next request


def test_a_get_that_offers_a_protocol_is_answered_and_the_connection_goes_on(client: httpx.Client) -> None:
    for offer in OFFERS.values():
        with connect(client.base_url) as connection:
            lines = "\r\n".join(["GET /health HTTP/1.1", "Host: localhost", *offer, "", ""])
            connection.sendall(2 * lines.encode() + NEXT)
            answers = read_all(connection)
        assert answers.count(b'{"status":"ok"}') == 2
        assert answers.endswith(AFTER)


def test_thousands_of_offers_in_one_packet_are_answered_one_by_one(client: httpx.Client) -> None:
    request = head(len(REQUEST), *H2C) + REQUEST
    with connect(client.base_url) as connection:
        connection.sendall(request * 2_000 + NEXT)
        answers = read_all(connection)
    assert answers.count(b'"rows":[[7]]') == 2_000
    assert answers.endswith(AFTER)


def test_an_offer_closes_the_connection_where_it_says_so(client: httpx.Client) -> None:
    with connect(client.base_url) as connection:
        # What comes after it is not read, and no fault of the request.
        connection.sendall(head(len(REQUEST), "Upgrade: h2c", "Connection: Upgrade, close") + REQUEST + NEXT)
        answer = read_all(connection)
    assert b'"rows":[[7]]' in answer
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1


def test_offers_and_what_is_no_http_do_not_fill_the_log(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            with connect(client.base_url) as connection:
                connection.sendall(head(len(REQUEST), *H2C) + REQUEST)
                read_one(connection)
                connection.sendall(b"\x16\x03\x01\r\n\r\n")
                read_all(connection)
    assert caplog.messages == []


def opening_of(*lines: str) -> bytes:
    return "\r\n".join(["POST /v1/online-features HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def test_headers_are_bound_however_they_arrive(client: httpx.Client) -> None:
    def answer(*parts: bytes) -> bytes:
        with connect(client.base_url) as connection:
            for part in parts:
                connection.sendall(part)
                time.sleep(0.05)
            return read_one(connection)

    begun, ended = b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"\r\n\r\n"
    for line in (b"X: ", b"Connection: Upgrade\r\nUpgrade: h2c\r\nX: "):
        fitting, beyond = begun + line + b"a" * 60_000, begun + line + b"a" * 70_000
        assert answer(fitting + ended).startswith(b"HTTP/1.1 200 ")
        assert answer(fitting, ended).startswith(b"HTTP/1.1 200 ")
        assert answer(beyond + ended).startswith(b"HTTP/1.1 431 ")
        assert answer(beyond, ended).startswith(b"HTTP/1.1 431 ")
        assert answer(fitting, b"a" * 10_000 + ended).startswith(b"HTTP/1.1 431 ")
    refused = answer(b"GET /" + b"a" * 70_000 + b" HTTP/1.1" + ended)
    assert b'"type":"headers_too_large"' in refused


JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(REQUEST)}"
REFUSED = {
    "CONNECT": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n",
    "CONNECT with a path": b"CONNECT /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "CONNECT that offers a protocol": b"CONNECT /health HTTP/1.1\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    "length and chunks": opening_of(JSON, LENGTH, "Transfer-Encoding: chunked") + chunked(REQUEST),
    "chunks and length": opening_of(JSON, "Transfer-Encoding: chunked", LENGTH) + chunked(REQUEST),
    "offer, length and chunks": opening_of(JSON, *H2C, LENGTH, "Transfer-Encoding: chunked") + chunked(REQUEST),
    "two lengths": opening_of(JSON, LENGTH, "Content-Length: 0") + REQUEST,
    "one length twice": opening_of(JSON, LENGTH, LENGTH) + REQUEST,
    "lengths in one line": opening_of(JSON, f"Content-Length: {len(REQUEST)}, {len(REQUEST)}") + REQUEST,
    "offer and two lengths": opening_of(JSON, *H2C, LENGTH, "Content-Length: 0") + REQUEST,
    "signed length": opening_of(JSON, f"Content-Length: +{len(REQUEST)}") + REQUEST,
    "hexadecimal length": opening_of(JSON, f"Content-Length: {len(REQUEST):#x}") + REQUEST,
    "chunks of another kind": opening_of(JSON, "Transfer-Encoding: xchunked") + chunked(REQUEST),
    "chunked, but not last": opening_of(JSON, "Transfer-Encoding: chunked, gzip") + chunked(REQUEST),
    "chunk of a wrong size": opening_of(JSON, "Transfer-Encoding: chunked") + b"-1\r\nx\r\n0\r\n\r\n",
    "folded length": opening_of(JSON, f"Content-Length:\r\n {len(REQUEST)}") + REQUEST,
    "folded offer": opening_of(JSON, "Upgrade:\r\n h2c", "Connection: upgrade", LENGTH) + REQUEST,
    "blank before the colon": opening_of(JSON, f"Content-Length : {len(REQUEST)}") + REQUEST,
    "zero byte in a value": opening_of(JSON, "X: a\0b", LENGTH) + REQUEST,
    "carriage return in a value": opening_of(JSON, "X: a\rb", LENGTH) + REQUEST,
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=list(REFUSED))
def test_what_can_be_read_in_two_ways_is_refused_once_and_the_connection_closed(
    client: httpx.Client, request_: bytes
) -> None:
    with connect(client.base_url) as connection:
        connection.sendall(request_ + NEXT)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b'{"error":{"type":"bad_request"' in answer


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(client: httpx.Client) -> None:
    for offer in [(), *OFFERS.values()]:
        with connect(client.base_url) as connection:
            connection.sendall(head(len(REQUEST), "Expect: 100-continue", *offer))
            assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(REQUEST + NEXT)
            answers = read_all(connection)
        assert b'"rows":[[7]]' in answers
        assert answers.endswith(AFTER)


def test_forms_of_a_request_that_are_allowed(client: httpx.Client) -> None:
    with connect(client.base_url) as connection:
        connection.sendall(head(len(REQUEST), path="http://localhost/v1/online-features") + REQUEST)
        assert b'"rows":[[7]]' in read_one(connection)
        old = head(len(REQUEST), "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0")
        connection.sendall(old + REQUEST)
        answer = read_all(connection)  # it is closed: the client of HTTP/1.0 learns where the answer ends
    assert b'"rows":[[7]]' in answer
    assert b"\r\nconnection: close\r\n" in answer


def test_an_offer_gives_no_more_time(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time begins with the first byte, not where the header is read again."""
    seconds = 1.2
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", seconds)
    opening = head(len(REQUEST), *H2C)
    begun = time.monotonic()
    with connect(client.base_url) as connection:
        connection.sendall(opening[:-1])
        time.sleep(seconds * 2 / 3)
        read_again = time.monotonic()
        connection.sendall(opening[-1:])
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    answered = time.monotonic()
    assert answered - begun > seconds - 0.1
    assert answered - read_again < seconds


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [(b"1", 408, "request_timeout"), (b"no size\r\n", 400, "bad_request")],
    ids=["slow", "no chunk"],
)
def test_a_body_that_is_refused_as_it_arrives_is_told_under_the_id_and_status_of_its_answer(
    client: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    body: bytes,
    status: int,
    kind: str,
) -> None:
    counted = f'featurestore_requests_total{{route="/v1/online-features",status="{status}"}}'
    before = metric(client, counted)
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.3)
    opening = opening_of(JSON, "Transfer-Encoding: chunked")
    for own in ("", "X-Request-ID: mine-1"):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "featurestore.server"), connect(client.base_url) as connection:
            connection.sendall(opening[:-2] + own.encode() + b"\r\n" * (1 + bool(own)))
            time.sleep(0.02)
            connection.sendall(body)
            lines, _, answer = read_all(connection).partition(b"\r\n\r\n")
            until(lambda: caplog.records)
        details = json.loads(answer)["error"]
        assert (int(lines.split()[1]), details["type"]) == (status, kind)
        request_id = details["details"]["request_id"]
        assert b"x-request-id: " + request_id.encode() in lines
        assert request_id == "mine-1" or not own
        (told,) = caplog.messages
        assert told.startswith(f"request {request_id}: POST /v1/online-features {status} in ")
    assert metric(client, counted) == before + 2
