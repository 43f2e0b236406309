"""Requests that share a round trip: what arrives while the store is being asked goes with the next MGET.

Three rules: a failed call fails each of its requests with an error of its own; a client that leaves never cancels
the others; nobody's deadline is extended by who joins later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader

MOST_SHARED_KEYS = 128
"""Of one round trip; a request that asks for more goes alone."""

MOST_UNDER_WAY = 2
"""While one round trip's answer is decoded the other is on its way."""


class _Read(NamedTuple):
    keys: Sequence[bytes]
    answer: asyncio.Future[list[bytes | None]]
    deadline: float
    """On the event loop's clock."""


class SharedReads(AsyncReader):
    """An `AsyncReader` over one that waits for a server. For one event loop."""

    def __init__(self, reader: AsyncReader) -> None:
        assert reader.deadline_seconds is not None
        self.deadline_seconds: float = reader.deadline_seconds
        self._reader = reader
        self._waiting: deque[_Read] = deque()
        self._by_deadline: deque[_Read] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._under_way = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `AsyncReader.mget`; the deadline counts from here, waiting for the next round trip included."""
        if len(keys) > MOST_SHARED_KEYS:
            return await self._reader.mget(keys)
        if not self._under_way:  # nobody to share with: no task, no future
            self._under_way = 1
            try:
                return await self._reader.mget(keys)
            finally:
                self._under_way -= 1
                self._send()
        loop = asyncio.get_running_loop()
        read = _Read(keys, loop.create_future(), loop.time() + self.deadline_seconds)
        self._waiting.append(read)
        self._by_deadline.append(read)
        if self._timer is None:
            self._timer = loop.call_at(read.deadline, self._end_late)
        self._send()
        return await read.answer

    async def check(self) -> None:
        """See `AsyncReader.check`."""
        await self._reader.check()

    async def close(self) -> None:
        """Close the reader; reads that still wait fail."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._reader.close()

    def _send(self) -> None:
        """Ask for what waits, as long as more may be under way."""
        while self._waiting and self._under_way < MOST_UNDER_WAY:
            reads, size = [], 0
            while self._waiting and size + len(self._waiting[0].keys) <= MOST_SHARED_KEYS:
                read = self._waiting.popleft()
                if not read.answer.done():
                    reads.append(read)
                    size += len(read.keys)
            if reads:
                self._under_way += 1
                call = asyncio.get_running_loop().create_task(self._ask(reads))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _ask(self, reads: Sequence[_Read]) -> None:
        """Ask for several reads at once, in a task that belongs to none of them."""
        try:
            records = await self._reader.mget([key for read in reads for key in read.keys])
        except BaseException as error:
            for read in reads:
                if not read.answer.done():
                    # An error of its own: a shared one would gather the tracebacks of all who raise it.
                    read.answer.set_exception(OnlineStoreUnavailableError(_why(error)))
            if not isinstance(error, OnlineStoreUnavailableError):
                raise
        else:
            start = 0
            for read in reads:
                end = start + len(read.keys)
                if not read.answer.done():
                    read.answer.set_result(records[start:end])
                start = end
        finally:
            self._under_way -= 1
            self._forget_answered()
            self._send()

    def _forget_answered(self) -> None:
        """Let go of reads that are answered: kept until their deadline, they and their records would pile up."""
        while self._by_deadline and self._by_deadline[0].answer.done():
            self._by_deadline.popleft()

    def _end_late(self) -> None:
        """End the reads whose deadline has passed; their round trip may still serve those that joined it later."""
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._forget_answered()
        while self._by_deadline:
            read = self._by_deadline[0]
            if read.deadline > now:
                self._timer = loop.call_at(read.deadline, self._end_late)
                return
            late = f"The online store did not answer within {self.deadline_seconds * 1000:g} ms."
            read.answer.set_exception(OnlineStoreUnavailableError(late))
            self._forget_answered()


def _why(error: BaseException) -> str:
    return error.message if isinstance(error, OnlineStoreUnavailableError) else f"A shared read failed ({error!r})."
