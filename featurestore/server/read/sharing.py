"""Requests that share a round trip: those that arrive while the store is being asked go with the next MGET.

A round trip has so many keys and bytes at most; how large a view's records are is learned from answers. Three rules:
a failed call fails each of its requests with an error of its own; a client that leaves never cancels the others; a
request that joins later extends nobody's deadline.
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

MOST_SHARED_BYTES = 128 << 10
"""At most so many bytes in one answer, as far as that is known before: the records of windows may be large."""

MOST_UNDER_WAY = 2
"""At most so many round trips at once: while one answer is decoded the other is on its way."""


class _Read(Wait):
    def __init__(self, keys: Sequence[bytes], size: float, deadline_seconds: float) -> None:
        self.keys, self.size = keys, size
        self.answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._deadline_seconds = deadline_seconds

    def end(self) -> None:
        """Fail this read; its round trip may still serve reads that joined later."""
        if not self.answer.done():
            late = f"The online store did not answer within {self._deadline_seconds * 1000:g} ms."
            self.answer.set_exception(OnlineStoreUnavailableError(late))


class Sizes:
    """How many bytes a key takes in answers to requests that begin with the same view: a mean over the last ones."""

    def __init__(self) -> None:
        self._means: dict[bytes, float] = {}

    def expected(self, keys: Sequence[bytes]) -> float:
        """Return how many bytes an answer will have; 0 while that is unknown."""
        return len(keys) * self._means.get(_view_of(keys), 0.0)

    def learn(self, keys: Sequence[bytes], records: Sequence[bytes | None]) -> None:
        """Take an answer into the mean."""
        view, found = _view_of(keys), sum(map(len, filter(None, records))) / len(keys)
        before = self._means.get(view, found)
        self._means[view] = before + (found - before) / 8


def _view_of(keys: Sequence[bytes]) -> bytes:
    return keys[0].partition(b"{")[0]


class SharedReads(AsyncReader):
    """An `AsyncReader` over one that waits for a server. For one event loop."""

    def __init__(self, reader: AsyncReader) -> None:
        assert reader.deadline_seconds is not None
        self.deadline_seconds: float = reader.deadline_seconds
        self._reader = reader
        self._waiting: deque[_Read] = deque()
        self._sizes = Sizes()
        self._patience = Patience(self.deadline_seconds)
        self._under_way = 0
        self._calls: set[asyncio.Task[None]] = set()

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `AsyncReader.mget`; the deadline counts from here, waiting for the next round trip included.

        A read that waits while the store answers others waits for this process: that is not the store's fault.
        """
        if not keys:
            return []
        size = self._sizes.expected(keys)
        if len(keys) > MOST_SHARED_KEYS or size > MOST_SHARED_BYTES:
            return self._learned(keys, await self._reader.mget(keys))
        if not self._under_way:  # nobody to share with: needs no task and no future
            self._under_way = 1
            try:
                records = await self._reader.mget(keys)
                self._patience.heard()
                return self._learned(keys, records)
            finally:
                self._under_way -= 1
                self._send()
        read = _Read(keys, size, self.deadline_seconds)
        self._waiting.append(read)
        self._patience.begin(read)
        self._send()
        try:
            return self._learned(keys, await read.answer)
        finally:
            self._patience.done(read)

    def _learned(self, keys: Sequence[bytes], records: list[bytes | None]) -> list[bytes | None]:
        self._sizes.learn(keys, records)
        return records

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
            reads, count, size = list[_Read](), 0, 0.0
            while self._waiting:
                read = self._waiting[0]
                is_too_much = count + len(read.keys) > MOST_SHARED_KEYS or size + read.size > MOST_SHARED_BYTES
                if reads and is_too_much:
                    break
                self._waiting.popleft()
                if not read.answer.done():
                    reads.append(read)
                    count += len(read.keys)
                    size += read.size
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
