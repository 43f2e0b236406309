"""Deadlines by what a server takes: a stall of the event loop ends no wait, and silence does."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from featurestore.online import patience as patience_module
from featurestore.online.patience import Limit, Patience, Wait

SECONDS = 0.05
LATE = 0.25
"""Within which a wait has ended, on a busy machine too."""

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    found: Run = request.param
    return found


class Server:
    """One connection to somebody who answers a byte after so many seconds, each time he is asked."""

    def __init__(self, answer_seconds: float) -> None:
        self.ours, self._theirs = socket.socketpair()
        self.ours.setblocking(False)
        self._seconds = answer_seconds
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self._theirs.recv(1):
            time.sleep(self._seconds)
            with suppress(OSError):  # the test is over
                self._theirs.send(b"!")
        self._theirs.close()

    async def ask(self, patience: Patience) -> bytes:
        loop = asyncio.get_running_loop()
        with patience.limit():
            await loop.sock_sendall(self.ours, b"?")
            return await loop.sock_recv(self.ours, 1)

    def close(self) -> None:
        self.ours.close()


@pytest.mark.parametrize("stall_seconds", [0.03, 0.06, 0.3])
def test_an_answer_that_lies_there_after_a_stall_counts(run: Run, stall_seconds: float) -> None:
    async def scenario() -> None:
        server, patience = Server(0.02), Patience(SECONDS)
        asked = asyncio.create_task(server.ask(patience))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(stall_seconds)
        assert await asked == b"!"
        server.close()

    run(scenario())


def test_stalls_in_a_row_end_no_wait_for_a_server_that_answers(run: Run) -> None:
    async def scenario() -> None:
        servers, patience = [Server(0.005) for _ in range(5)], Patience(SECONDS)

        async def ask_often(server: Server) -> None:
            for _ in range(10):
                assert await server.ask(patience) == b"!"

        asking = [asyncio.create_task(ask_often(server)) for server in servers]
        while not all(task.done() for task in asking):
            time.sleep(0.06)
            await asyncio.sleep(0)
        await asyncio.gather(*asking)
        for server in servers:
            server.close()

    run(scenario())


def test_an_answer_that_arrives_within_the_stall_before_the_end_counts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer is due before uvloop looks at its sockets."""
    monkeypatch.setattr(patience_module, "LEAST_NAP_SECONDS", 0.1)

    async def scenario() -> None:
        server, patience = Server(0.5), Patience(0.2)
        asked = asyncio.create_task(server.ask(patience))
        for _ in range(2):  # the second stall ends the second nap, within which the answer arrived
            for _ in range(5):
                await asyncio.sleep(0)
            time.sleep(0.3)
        assert await asked == b"!"
        server.close()

    run(scenario())


def test_silence_ends_a_wait_in_time_and_each_wait_for_itself(run: Run) -> None:
    async def scenario() -> None:
        server, patience = Server(10), Patience(SECONDS)
        ended: list[float] = []

        async def wait(after_seconds: float) -> None:
            await asyncio.sleep(after_seconds)
            begun = time.monotonic()
            with pytest.raises(TimeoutError), patience.limit():
                await asyncio.Event().wait()
            ended.append(time.monotonic() - begun)

        await asyncio.gather(*[wait(number * 0.007) for number in range(10)])
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            await server.ask(patience)
        ended.append(time.monotonic() - begun)
        assert min(ended) > SECONDS * 0.95
        assert max(ended) < LATE
        server.close()

    run(scenario())


def test_silence_ends_a_wait_though_the_loop_stalls(run: Run) -> None:
    async def scenario() -> None:
        patience = Patience(SECONDS)

        async def wait() -> None:
            with patience.limit():
                await asyncio.Event().wait()

        waiting, stalls = asyncio.create_task(wait()), 0
        while not waiting.done():
            time.sleep(0.02)
            await asyncio.sleep(0)
            stalls += 1
        assert stalls < 60
        with pytest.raises(TimeoutError):
            waiting.result()

    run(scenario())


def test_who_is_cancelled_by_another_was_not_too_late(run: Run) -> None:
    async def scenario() -> None:
        patience = Patience(SECONDS)

        async def wait() -> None:
            with patience.limit():
                await asyncio.Event().wait()

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with patience.limit():
            pass
        await asyncio.sleep(3 * SECONDS)  # nobody is ended afterwards

    run(scenario())


def test_a_sign_of_life_counts_for_all_that_wait(run: Run) -> None:
    async def scenario() -> None:
        patience, ended = Patience(SECONDS), asyncio.Event()

        class Waiting(Wait):
            def end(self) -> None:
                ended.set()

        waiting = Waiting()
        patience.begin(waiting)
        for _ in range(6):
            await asyncio.sleep(SECONDS / 2)
            patience.heard()
        assert not ended.is_set()
        async with asyncio.timeout(LATE):
            await ended.wait()

    run(scenario())


def test_a_wait_that_begins_within_a_nap_has_all_of_its_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience_module, "LEAST_NAP_SECONDS", 0.1)

    async def scenario() -> None:
        patience = Patience(0.2)  # two naps

        async def wait(after_seconds: float) -> float:
            await asyncio.sleep(after_seconds)
            begun = time.monotonic()
            with pytest.raises(TimeoutError), patience.limit():
                await asyncio.Event().wait()
            return time.monotonic() - begun

        assert min(await asyncio.gather(wait(0), wait(0.08))) > 0.19

    run(scenario())


def test_who_is_cancelled_by_another_when_the_time_is_over_is_cancelled(run: Run) -> None:
    async def scenario() -> None:
        patience, limits = Patience(SECONDS), list[Limit]()

        async def wait() -> None:
            with patience.limit() as limit:
                limits.append(limit)
                await asyncio.Event().wait()

        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        limits[0].end()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError), patience.limit():
            await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(scenario())
