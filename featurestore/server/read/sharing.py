"""Requests that share a round trip: those that arrive while the store is being asked go with the next MGET.

Three rules: a failed call fails each of its requests with an error of its own; a client that leaves never cancels
the others; a request that joins later extends nobody's deadline.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from typing_extensions import override

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.patience import Patience, Wait

MOST_SHARED_KEYS = 128
"""At most so many keys in one round trip; a request that asks for more goes alone."""

MOST_UNDER_WAY = 2
"""At most so many round trips at once: while one answer is decoded the other is on its way."""


class _Read(Wait):
    def __init__(self, keys: Sequence[bytes], deadline_seconds: float) -> None:
        self.keys = keys
        self.answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._deadline_seconds = deadline_seconds

    def end(self) -> None:
        """Fail this read; its round trip may still serve reads that joined later."""
        if not self.answer.done():
            late = f"The online store did not answer within {self._deadline_seconds * 1000:g} ms."
            self.answer.set_exception(OnlineStoreUnavailableError(late))


class SharedReads(AsyncReader):
    """An `AsyncReader` over one that waits for a server. For one event loop."""

    def __init__(self, reader: AsyncReader) -> None:
        assert reader.deadline_seconds is not None
        self.deadline_seconds: float = reader.deadline_seconds
        self._reader = reader
        self._waiting: deque[_Read] = deque()
        self._patience = Patience(self.deadline_seconds)
        self._under_way = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `AsyncReader.mget`; the deadline counts from here, waiting for the next round trip included.

        A read that waits while the store answers others waits for this process: that is not the store's fault.
        """
        if len(keys) > MOST_SHARED_KEYS:
            return await self._reader.mget(keys)
        if not self._under_way:  # nobody to share with: needs no task and no future
            self._under_way = 1
            try:
                records = await self._reader.mget(keys)
                self._patience.heard()
                return records
            finally:
                self._under_way -= 1
                self._send()
        read = _Read(keys, self.deadline_seconds)
        self._waiting.append(read)
        self._patience.begin(read)
        self._send()
        try:
            return await read.answer
        finally:
            self._patience.done(read)

    @override
    async def check(self) -> None:
        await self._reader.check()

    async def close(self) -> None:
        """Close the reader; reads that still wait fail."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._reader.close()

    def _send(self) -> None:
        """Send the waiting reads, as long as another round trip is allowed."""
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
                    # An error for each: a shared one would collect the tracebacks of everyone who raises it.
                    read.answer.set_exception(OnlineStoreUnavailableError(_why(error)))
            if not isinstance(error, OnlineStoreUnavailableError):
                raise
        else:
            self._patience.heard()
            start = 0
            for read in reads:
                end = start + len(read.keys)
                if not read.answer.done():
                    read.answer.set_result(records[start:end])
                start = end
        finally:
            self._under_way -= 1
            self._send()


def _why(error: BaseException) -> str:
    return error.message if isinstance(error, OnlineStoreUnavailableError) else f"A shared read failed ({error!r})."
