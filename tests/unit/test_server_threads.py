"""The threads that push for a server: what comes back from them, and how they end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from featurestore.server.threads import THREADS, Threads


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
from featurestore.server.threads import Threads

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
