"""The threads that push for a server: what comes back from them, and how they end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from featurestore.server.read.threads import THREADS, AllBusyError, Threads


def test_results_and_errors_come_back():
    def fail() -> None:
        raise KeyError("amount")

    async def check() -> None:
        threads = Threads()
        assert await threads.run(lambda: threading.current_thread().name) != threading.current_thread().name
        for _ in range(THREADS + 1):  # an error ends no thread
            with pytest.raises(KeyError, match="amount"):
                await asyncio.wait_for(threads.run(fail), 60)
        found = await asyncio.gather(*(threads.run(lambda number=number: number) for number in range(20)))
        assert found == [*range(20)]
        threads.close()

    asyncio.run(check())


def test_what_nobody_waits_for_is_done_before_the_end():
    may_go_on, done, problems = threading.Event(), [], []

    def work() -> None:
        may_go_on.wait(60)
        time.sleep(0.1)
        done.append(1)

    async def check() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, problem: problems.append(problem))
        threads = Threads()
        waiting = [asyncio.create_task(threads.run(work)) for _ in range(2 * THREADS)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        may_go_on.set()
        await asyncio.to_thread(threads.close)
        assert len(done) == 2 * THREADS
        await asyncio.sleep(0)  # the loop hears of each
        assert problems == []
        with pytest.raises(RuntimeError, match="has stopped"):
            await threads.run(work)
        threads.close()

    asyncio.run(check())


ENDS_WITHOUT_CLOSE = """
import asyncio, time
from featurestore.server.read.threads import Threads

async def main():
    asyncio.create_task(threads.run(lambda: (time.sleep(0.5), print("done", flush=True))))
    await asyncio.sleep(0.1)

threads = Threads()
asyncio.run(main())
"""


def test_a_process_that_ends_finishes_what_was_given():
    command = [sys.executable, "-c", ENDS_WITHOUT_CLOSE]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (ended.stdout, ended.stderr) == ("done\n", "")


def test_the_end_waits_only_so_long_for_work_that_does_not_end():
    may_end = threading.Event()

    async def check() -> None:
        threads = Threads(ending_seconds=1)
        waiting = [asyncio.create_task(threads.run(may_end.wait)) for _ in range(THREADS)]
        await asyncio.sleep(0)
        closing = threading.Thread(target=threads.close, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, THREADS - 0.5)  # all of them together are waited for, not each
        has_ended = not closing.is_alive()
        may_end.set()
        assert await asyncio.gather(*waiting) == [True] * THREADS
        assert has_ended

    asyncio.run(check())


def test_work_that_finds_no_free_thread_in_time_is_not_begun():
    may_end, begun = threading.Event(), []

    def long(number: int) -> None:
        begun.append(number)
        may_end.wait(60)

    async def check() -> None:
        threads = Threads(count=2, waiting_seconds=0.2)
        first = [asyncio.create_task(threads.run(partial(long, number))) for number in range(2)]
        await asyncio.sleep(0)
        first[0].cancel()  # its thread is busy nevertheless
        for number in (2, 3):
            with pytest.raises(AllBusyError):
                await threads.run(partial(long, number))
        may_end.set()
        assert await first[1] is None
        together = threading.Barrier(2)  # as many as there are threads work again
        for _ in range(5):
            await asyncio.gather(*(threads.run(partial(together.wait, 5)) for _ in range(2)))
        assert sorted(begun) == [0, 1]
        threads.close()

    asyncio.run(check())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, StopIteration])
def test_what_would_end_the_loop_or_never_come_back_is_told_as_an_error(kind: type[BaseException]):
    def fail() -> None:
        raise kind

    async def check() -> None:
        threads = Threads()
        with pytest.raises(RuntimeError, match=f"the work ended with {kind.__name__}") as caught:
            await asyncio.wait_for(threads.run(fail), 60)
        assert isinstance(caught.value.__cause__, kind)
        threads.close()

    asyncio.run(check())
