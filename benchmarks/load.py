"""Load on a server: closed loop by wrk, as fast as it answers; open loop at a given rate by a small client here."""

from __future__ import annotations

import asyncio
import re
import selectors
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np

SCRIPT = Path(__file__).with_name("requests.lua")
QUICK_REQUESTS = 200
"""Where less than a second is asked for, which wrk cannot measure: so many show that all works."""


class LoadGeneratorMissingError(RuntimeError):
    """wrk is not on PATH."""


@dataclass(frozen=True)
class Load:
    requests: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float


def find_wrk() -> str:
    """Return wrk's path; raises LoadGeneratorMissingError that says how to install it."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadGeneratorMissingError(
            "The HTTP benchmark needs wrk on PATH: `apt-get install wrk` on Debian and Ubuntu, `brew install wrk` on "
            "macOS. The other benchmarks run without: name them, see --help."
        )
    return found


def closed_loop(url: str, bodies: Path, *, connections: int, seconds: float) -> Load:
    """Ask as fast as the answers come; fails when one of them is an error. ``bodies`` holds one a line."""
    whole = max(1, round(seconds))  # wrk counts in seconds
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{whole}s", "-s", str(SCRIPT), url, "--", str(bodies)]
    most = [str(QUICK_REQUESTS)] if seconds < 1 else []
    result = subprocess.run([*command, *most], capture_output=True, text=True, check=True, timeout=whole + 30)
    found = re.search(r"^RESULT (\d+) (\d+) (\d+) (\d+) (\d+)$", result.stdout, re.MULTILINE)
    assert found is not None, result.stdout
    requests, duration_us, errors, p50_us, p99_us = map(int, found.groups())
    assert errors == 0, result.stdout
    return Load(requests, requests / duration_us * 1e6, p50_us / 1000, p99_us / 1000)


def open_loop(url: str, bodies: Sequence[bytes], *, rate: float, connections: int, seconds: float) -> Load:
    """Send at instants that were fixed beforehand, whether or not the server keeps up.

    Latency counts from the scheduled instant: what waits for a free connection waits visibly. The instants are
    those of a Poisson process, as of many clients who know nothing of each other.
    """
    gaps = np.random.default_rng(6).exponential(1 / rate, max(1, round(rate * seconds)))
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        return runner.run(_open_loop(url, bodies, np.cumsum(gaps).tolist(), connections))


def _precise_loop() -> asyncio.AbstractEventLoop:
    """Return a loop whose timers are exact to microseconds: those of uvloop and epoll count in milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def _open_loop(url: str, bodies: Sequence[bytes], offsets: Sequence[float], connections: int) -> Load:
    place = urlsplit(url)
    assert place.hostname is not None
    loop = asyncio.get_running_loop()
    messages = [_message(place.netloc, place.path, body) for body in bodies]
    waiting: deque[tuple[float, bytes]] = deque()
    free: list[_Connection] = []
    latencies: list[float] = []
    finished = loop.create_future()

    def take(connection: _Connection) -> None:
        if waiting:
            connection.send(*waiting.popleft())
        else:
            free.append(connection)

    def answered(connection: _Connection, scheduled: float, status: int) -> None:
        latencies.append(time.perf_counter() - scheduled)
        if status != 200 and not finished.done():
            finished.set_exception(AssertionError(f"the server answered {status}"))
        elif len(latencies) == len(offsets) and not finished.done():
            finished.set_result(None)
        take(connection)

    opened = [
        await loop.create_connection(lambda: _Connection(answered), place.hostname, place.port)
        for _ in range(connections)
    ]
    free += [connection for _, connection in opened]
    start = time.perf_counter() + 0.05
    for number, offset in enumerate(offsets):
        scheduled = start + offset
        left = scheduled - time.perf_counter()
        if left > 0:
            await asyncio.sleep(left)
        elif number % 8 == 0:
            await asyncio.sleep(0)  # behind: answers must be read all the same
        message = messages[number % len(messages)]
        if free:
            free.pop().send(scheduled, message)
        else:
            waiting.append((scheduled, message))
    await asyncio.wait_for(finished, timeout=60)
    took = time.perf_counter() - start
    for transport, _ in opened:
        transport.close()
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return Load(len(latencies), len(latencies) / took, float(p50), float(p99))


def _message(host: str, path: str, body: bytes) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, answered: Callable[[_Connection, float, int], None]) -> None:
        self._answered = answered
        self._parser = httptools.HttpResponseParser(self)
        self._scheduled = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def send(self, scheduled: float, message: bytes) -> None:
        self._scheduled = scheduled
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._answered(self, self._scheduled, self._parser.get_status_code())
