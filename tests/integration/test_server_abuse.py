"""Requests that nobody should send: refused with 4xx, in bounded memory, and hardly felt by the other clients."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.raw_http import REQUEST, connect, head, read_all, read_one
from support.serving import ServerProcess, serving, serving_here, small_project, until

from featurestore.server.http.protocol import RECEIVE_SECONDS, DeadlineProtocol
from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

MOST_MEMORY_BYTES = 200_000_000
TIMES_SLOWER = 2
SLACK_SECONDS = 0.005
"""What the machine's other work adds now and then, whoever waits."""

ROUNDS = 12
MANY = 100_000
NOT_HELD = 500
"""Connections that a slow client opens."""

# What a well-behaved client sees: for each line of its input the 99th percentile of 300 reads, in seconds.
POLITE = """
import socket, sys, time
connections = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(4)]
request = sys.argv[2].encode()
for _ in sys.stdin:
    seconds = []
    for number in range(300):
        connection = connections[number % len(connections)]
        begun = time.perf_counter()
        connection.sendall(request)
        answer = b""
        while not answer.endswith(b'"status":[["PRESENT"]]}'):
            answer += connection.recv(65536)
        seconds.append(time.perf_counter() - begun)
        assert answer.startswith(b"HTTP/1.1 200 ") and b'"rows":[[7]]' in answer, answer
        time.sleep(0.002)
    print(sorted(seconds)[-3], flush=True)
"""


class Polite:
    """A client in a process of its own, so that what the abuser computes does not slow it."""

    def __init__(self, server: ServerProcess) -> None:
        request = head(len(REQUEST)) + REQUEST
        command = [sys.executable, "-c", POLITE, server.url.rpartition(":")[2], request.decode()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def p99_seconds(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    project = small_project(tmp_path_factory.mktemp("abuse") / "repo", system_clock())
    with serving(project.root, fresh=True) as server:
        yield server


@pytest.fixture(scope="module")
def polite(server: ServerProcess) -> Iterator[Polite]:
    polite = Polite(server)
    with polite.process:
        polite.p99_seconds()  # both are warm
        yield polite
        assert polite.process.stdin is not None
        polite.process.stdin.close()


def post(content: bytes, *, content_type: str = "application/json") -> bytes:
    return head(len(content)).replace(b"application/json", content_type.encode()) + content


def document(**parts: object) -> bytes:
    return json.dumps({"features": ["fresh:clicks"], "entities": {"customer_id": [1]}, **parts}).encode()


def refused(server: ServerProcess, content: bytes, status: int) -> None:
    """Send a request, whole or as far as the server takes it, and check its answer."""
    with connect(server.url) as connection:
        with contextlib.suppress(ConnectionError):  # it was refused before the end
            connection.sendall(content)
        with contextlib.suppress(ConnectionError):
            answer = read_one(connection)
            assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
            assert b'{"error":{"type":' in answer
            assert b"Traceback" not in answer


def large_announced(server: ServerProcess) -> None:
    refused(server, head(60_000_000) + b"x" * 60_000_000, 413)


def large_in_chunks(server: ServerProcess) -> None:
    chunk = b"%x\r\n" % 1_000_000 + b"x" * 1_000_000 + b"\r\n"
    opening = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    refused(server, opening + chunk * 60 + b"0\r\n\r\n", 413)


def many_entities(server: ServerProcess) -> None:
    refused(server, post(document(entities={"customer_id": list(range(MANY))})), 413)


def many_features(server: ServerProcess) -> None:
    refused(server, post(document(features=[f"fresh:clicks_{number}" for number in range(10_000)])), 413)


def deep_json(server: ServerProcess) -> None:
    refused(server, post(b'{"features": ["fresh:clicks"], "entities": {"customer_id": ' + b"[" * 400_000), 400)
    deep = b'{"features": ["fresh:clicks"], "entities": {"customer_id": [' + b"[" * 9_000 + b"]" * 9_000 + b"]}}"
    refused(server, post(deep), 400)


def nan_literals(server: ServerProcess) -> None:
    for literal in (b"NaN", b"Infinity", b"-Infinity"):
        refused(server, post(document().replace(b"[1]", b"[%s]" % literal)), 400)


def wrong_content_type(server: ServerProcess) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        refused(server, post(document(), content_type=content_type), 415)


def pipelining(server: ServerProcess) -> None:
    with connect(server.url) as connection:
        connection.sendall(post(document()) * 200 + b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n")
        answers = read_all(connection)
        assert answers.count(b'"rows":[[7]]') == 200
        assert answers.endswith(b'{"status":"ok"}')


def early_disconnect(server: ServerProcess) -> None:
    whole = post(document(entities={"customer_id": [1] * 1_000}))
    for end in range(0, len(whole), len(whole) // 40):
        with connect(server.url) as connection:
            connection.sendall(whole[:end])
    for _ in range(20):
        with connect(server.url) as connection:
            connection.sendall(whole)


ABUSES = [
    large_announced,
    large_in_chunks,
    many_entities,
    many_features,
    deep_json,
    nan_literals,
    wrong_content_type,
    pipelining,
    early_disconnect,
]


def test_a_flood_behind_a_refusal_is_read_slowly(server: ServerProcess) -> None:
    """It would take all of the server's time for as long as it lasts."""
    started = time.monotonic()
    large_announced(server)
    assert time.monotonic() - started > 1


@contextmanager
def repeatedly(abuse: Callable[[], None]) -> Iterator[None]:
    """Do it over and over in a thread, ten times a second at most; what fails there fails here."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def go_on() -> None:
        try:
            while not stop.is_set():
                abuse()
                stop.wait(0.1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def assert_hardly_felt(polite: Polite, abusing: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Compare quiet and abused spells in turns: the machine has other work, so one fair pair among many is enough."""
    pairs = []
    for _ in range(ROUNDS):
        quiet = polite.p99_seconds()
        with abusing():
            abused = polite.p99_seconds()
        pairs.append((quiet, abused))
        if abused <= TIMES_SLOWER * quiet + SLACK_SECONDS:
            return
    raise AssertionError(f"p99 in seconds without and with abuse: {pairs}")


@pytest.mark.parametrize("abuse", ABUSES, ids=lambda abuse: abuse.__name__)
def test_abuse_is_refused_in_bounded_memory_and_hardly_felt(
    server: ServerProcess, polite: Polite, abuse: Callable[[ServerProcess], None]
) -> None:
    before = server.resident_bytes
    abuse(server)
    assert_hardly_felt(polite, lambda: repeatedly(lambda: abuse(server)))
    assert server.peak_resident_bytes - before < MOST_MEMORY_BYTES


@pytest.mark.slow(11)
def test_slow_requests_on_many_sockets_are_ended_and_hardly_felt(server: ServerProcess, polite: Polite) -> None:
    before, descriptors = server.resident_bytes, server.descriptors
    openings = (b"POST /v1/online-features HTTP/1.1\r\nhost: ", head(1_000) + b"{")
    slow = [connect(server.url) for _ in range(NOT_HELD)]
    started = time.monotonic()
    for number, connection in enumerate(slow):
        connection.sendall(openings[number % 2])
        connection.setblocking(False)
    open_ones = set(slow)
    answers = dict.fromkeys(slow, b"")

    def trickle() -> None:
        for connection in list(open_ones):
            with contextlib.suppress(BlockingIOError):
                try:
                    connection.send(b" ")
                    answers[connection] += (received := connection.recv(65536))
                except ConnectionError:
                    received = b""
                if not received:
                    open_ones.discard(connection)
        time.sleep(0.3)

    assert_hardly_felt(polite, lambda: repeatedly(trickle))
    with repeatedly(trickle):
        until(lambda: not open_ones, seconds=3 * RECEIVE_SECONDS)
    assert time.monotonic() - started >= RECEIVE_SECONDS / 2
    for connection in slow:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers.values() if answer)
    assert sum(map(bool, answers.values())) > NOT_HELD / 2  # one may be lost with a reset
    until(lambda: server.descriptors <= descriptors + 5)
    assert server.peak_resident_bytes - before < MOST_MEMORY_BYTES


def test_answers_that_nobody_takes_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = set()
    connection_lost = DeadlineProtocol.connection_lost

    def noted(protocol: DeadlineProtocol, error: Exception | None) -> None:
        lost.add(protocol.client)
        connection_lost(protocol, error)

    monkeypatch.setattr(DeadlineProtocol, "connection_lost", noted)
    monkeypatch.setattr(DeadlineProtocol, "receive_seconds", 0.2)
    monkeypatch.setattr(DeadlineProtocol, "take_seconds", 1.0)
    project = small_project(tmp_path / "repo", system_clock())
    large = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with serving_here(project.workspace()) as client, contextlib.ExitStack() as stack:
        with connect(client.base_url) as slow:  # who takes an answer slowly is served
            slow.sendall(large * 20)
            started = time.monotonic()
            while time.monotonic() - started < 2:
                assert slow.recv(100_000)
                time.sleep(0.01)
        takers = [stack.enter_context(connect(client.base_url)) for _ in range(3)]
        for taker in takers:
            taker.sendall(large * 20)  # more than the buffers on the way hold
        until(lambda: {taker.getsockname() for taker in takers} <= lost, seconds=20)
        assert client.get("/health").status_code == 200
