"""Threads for work that would block an event loop."""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")

THREADS = 4


class AllBusyError(Exception):
    """No thread was free in time."""


class Threads:
    """A few threads that work for an event loop. A round trip costs half as much as with an executor.

    ``ending_seconds`` is how long `close` waits for all of them together, ``waiting_seconds`` how long `run` waits for
    a free one; None means without a limit.
    """

    def __init__(
        self,
        name: str = "work",
        count: int = THREADS,
        *,
        ending_seconds: float | None = None,
        waiting_seconds: float | None = None,
    ) -> None:
        self._name, self._count, self._ending_seconds = name, count, ending_seconds
        self._waiting_seconds = waiting_seconds
        self._free = None if waiting_seconds is None else asyncio.Semaphore(count)
        self._tasks: SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._is_closed = False

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run ``work()`` in one of the threads and return its result. It ends even if nobody waits any more.

        Raises AllBusyError, without having begun, if no thread was free within ``waiting_seconds``.
        """
        if self._free is not None:
            try:
                async with asyncio.timeout(self._waiting_seconds):
                    await self._free.acquire()
            except TimeoutError:
                raise AllBusyError from None
        if self._is_closed:
            raise RuntimeError("the server has stopped")
        if not self._threads:
            self._start()
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._tasks.put((work, done))
        return await done

    def close(self) -> None:
        """Wait for all work of the threads, and end them; calling it twice is allowed."""
        atexit.unregister(self.close)
        self._is_closed = True
        for _ in self._threads:
            self._tasks.put(None)
        until_s = None if self._ending_seconds is None else monotonic() + self._ending_seconds
        for thread in self._threads:
            thread.join(None if until_s is None else max(0.0, until_s - monotonic()))
        self._threads = []

    def _start(self) -> None:
        # At exit Python joins non-daemon threads before it calls any handler that could tell them to end.
        atexit.register(self.close)
        names = [f"{self._name}_{number}" for number in range(self._count)]
        self._threads = [Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            work, done = task
            try:
                tell: Callable[[], None] = partial(done.set_result, work())
            except BaseException as error:
                tell = partial(done.set_exception, error if _may_be_told(error) else _Interrupted(error))
            with suppress(RuntimeError):  # the loop is closed
                done.get_loop().call_soon_threadsafe(self._tell, done, tell)
            del task, work, done, tell  # they hold rows, and the next work may come much later

    def _tell(self, done: asyncio.Future[Any], tell: Callable[[], None]) -> None:
        if self._free is not None:
            self._free.release()  # the thread is free, even if nobody waits for its result
        if not done.done():
            tell()


class _Interrupted(RuntimeError):
    """Work ended with an exception that would end the event loop, or that no future accepts."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the work ended with {type(error).__name__}")
        self.__cause__ = error


def _may_be_told(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, StopIteration)
