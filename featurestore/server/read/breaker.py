"""A circuit breaker in front of the online store: while the store does not answer, requests fail at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

from featurestore.errors import OnlineNodeUnavailableError, OnlineStoreError, OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.patience import Patience
from featurestore.server.watch.metrics import Metrics

logger = logging.getLogger("featurestore.server")

FAILURES_TO_OPEN = 5
"""How many reads in a row must fail to open the breaker; a success in between restarts the count."""

PROBE_SECONDS = 0.5
"""Seconds between two probes of the store while the breaker is open."""

WATCH_SECONDS = 5.0
"""Seconds between two reads of `Breaker.watch`."""

TELL_SECONDS = 60.0
"""Seconds between two lines of log about a store that is away for the same reason."""


class Breaker(AsyncReader):
    """Passes reads on while the store answers, and measures them.

    After `FAILURES_TO_OPEN` failed reads in a row it opens: reads fail without waiting for the deadline, and a task
    probes the store every `PROBE_SECONDS` until it answers. A cluster node that is down does not open it: the reader
    avoids that node by itself, and records on the other nodes can be read.

    ``probe`` is a key that may be read, present or not: a store may answer PING and still refuse reads.
    """

    def __init__(self, reader: AsyncReader, metrics: Metrics, probe: bytes) -> None:
        self._reader = reader
        self._metrics = metrics
        self._probed_key = probe
        self._failures = 0
        self._probing: asyncio.Task[None] | None = None
        self.deadline_seconds = reader.deadline_seconds

    @property
    def is_open(self) -> bool:
        """Tell whether reads are refused."""
        return self._probing is not None

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `AsyncReader.mget`; raises OnlineStoreUnavailableError at once while the breaker is open."""
        if self._probing is not None:
            raise OnlineStoreUnavailableError("The online store did not answer lately; it is being probed.")
        started = perf_counter()
        try:
            records = await self._reader.mget(keys)
        except OnlineStoreUnavailableError as error:
            self._metrics.store_errors.inc()
            self._failures += not isinstance(error, OnlineNodeUnavailableError)
            if self._failures >= FAILURES_TO_OPEN and self._probing is None:
                self._probing = asyncio.create_task(self._probe(error.message))
                # The reason once more: of many equal failures only the first is logged for a while.
                told = "the online store failed %d reads in a row, so it is left alone and probed: %s"
                logger.warning(told, self._failures, error.message)
                self._metrics.breaker(True)
            raise
        finally:
            self._metrics.store_seconds.observe(perf_counter() - started)
        self._failures = 0
        return records

    async def check(self) -> None:
        """Read from the store itself, in any state of the breaker; one node of a cluster has to answer."""
        await self._reader.check()
        with suppress(OnlineNodeUnavailableError):
            await self._reader.mget([self._probed_key])

    async def watch(self) -> None:
        """Read now and then, for ever: a store that is away shows also on a server that nobody reads from."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            with suppress(OnlineStoreError, TimeoutError):
                await self.mget([self._probed_key])

    async def close(self) -> None:
        """Stop probing and close the reader."""
        if self._probing is not None:
            self._probing.cancel()
        await self._reader.close()

    async def _probe(self, told: str) -> None:
        """Read until the store answers; logs why it does not, at once where that is no longer what was ``told``."""
        loop = asyncio.get_running_loop()
        begun, patience = loop.time(), Patience(PROBE_SECONDS)
        tell_again_at = begun + TELL_SECONDS
        while True:
            await asyncio.sleep(max(0.0, begun + PROBE_SECONDS - loop.time()))
            begun = loop.time()
            try:
                with patience.limit():
                    await self.check()
            except (OnlineStoreError, TimeoutError) as error:
                why = error.message if isinstance(error, OnlineStoreError) else told
                if why != told or begun >= tell_again_at:
                    told, tell_again_at = why, begun + TELL_SECONDS
                    logger.warning("the online store is still left alone: %s", told)
                continue
            break
        self._failures, self._probing = 0, None
        logger.warning("the online store answers again")
        self._metrics.breaker(False)
