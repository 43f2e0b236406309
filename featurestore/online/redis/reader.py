"""Asynchronous reads from Redis: few connections, one deadline, and no reply can reach another reader."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from hiredis import pack_command

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.patience import Patience
from featurestore.online.redis.node import (
    DRIVER_ERRORS,
    Deadlines,
    checked_reply,
    location_of,
    unavailable,
)
from featurestore.online.redis.wire import Wire, open_wire

MOST_CONNECTIONS = 64
"""At most so many connections at once; further reads wait for one within their deadline."""


class AsyncNode:
    """The connections of one event loop to one server.

    redis-py's pool opens a connection inside the read that needs it, so a deadline of 50 ms would cut off every
    longer handshake, for ever. Here a connection that a read gave up on is still opened, for the next read. A
    connection is used again only after its whole reply was read: a cancelled read closes it.
    """

    def __init__(self, options: Mapping[str, Any], deadlines: Deadlines) -> None:
        self.location = location_of(options)
        self._options = options
        self._connecting = Patience(deadlines.connect)
        self._idle: list[Wire] = []
        self._opening: set[asyncio.Task[Wire]] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self._gate = asyncio.Semaphore(MOST_CONNECTIONS)
        self._closed = False

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """Send commands in one write and return their replies, errors among them as values. The caller sets a deadline.

        Raises the driver's errors, and OnlineStoreUnavailableError.
        """
        try:
            async with self._gate:
                wire = self._unused() or await self._connection()
                try:
                    replies = await wire.ask(packed, count)
                except BaseException:
                    self._close(wire)
                    raise
        except DRIVER_ERRORS as error:
            if not isinstance(error, TimeoutError):
                self.drop_idle()  # they were probably opened before the server went away
            raise
        if self._closed:
            self._close(wire)
        else:
            self._idle.append(wire)
        return replies

    def drop_idle(self) -> None:
        """Close unused connections."""
        while self._idle:
            self._close(self._idle.pop())

    def _close(self, wire: Wire) -> None:
        self._closing.add(wire.closed)
        wire.closed.add_done_callback(self._closing.discard)
        wire.close()

    async def close(self) -> None:
        """Close every connection, those being opened too; a read under way closes its own when it ends."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        self.drop_idle()
        await asyncio.gather(*self._opening, *self._closing, return_exceptions=True)

    async def _connection(self) -> Wire:
        """Return an open connection; one that its reader stops waiting for is opened all the same.

        Raises the reason if a connection that was opened for this read was closed: opening more would not help.
        """
        while (wire := self._unused()) is None:
            if self._closed or len(self._opening) >= MOST_CONNECTIONS:
                # No connection that earlier reads gave up on is open yet: another one would wait in vain too.
                raise OnlineStoreUnavailableError(f"Redis at {self.location} accepts no connection.")
            task = asyncio.create_task(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opened)
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise OnlineStoreUnavailableError(f"The reader of Redis at {self.location} is closed.") from None
                raise
            opened = task.result()
            if opened.failure is not None and opened in self._idle:
                self._idle.remove(opened)
                raise opened.failure
        return wire

    def _unused(self) -> Wire | None:
        """Return an unused open connection, if there is one; drops those that the server has closed."""
        while self._idle:
            wire = self._idle.pop()
            if wire.is_open:
                return wire
        return None

    async def _open(self) -> Wire:
        with self._connecting.limit():
            wire = await open_wire(self._options)
        self._idle.append(wire)
        return wire

    def _opened(self, task: asyncio.Task[Wire]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved, because its reader may be gone


class RedisReader(AsyncReader):
    """Reads from one server, for one event loop."""

    def __init__(self, options: Mapping[str, Any], deadlines: Deadlines) -> None:
        self._node = AsyncNode(options, deadlines)
        self._reading = Patience(deadlines.read)
        self._checking = Patience(deadlines.connect + deadlines.read)
        self.deadline_seconds = deadlines.read

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value in one MGET, within the read deadline."""
        if not keys:
            return []
        reply = await self._ask(self._reading, "MGET", *keys)
        try:
            return checked_reply(reply, len(keys))
        except redis.RedisError as error:
            self._node.drop_idle()
            raise unavailable(self._node.location, self._reading.seconds, error) from None

    async def check(self) -> None:
        """Return when the server answers a PING; opens the first connection, which may take longer than a read."""
        if isinstance(reply := await self._ask(self._checking, "PING"), Exception):
            raise unavailable(self._node.location, self._checking.seconds, reply)

    async def close(self) -> None:
        """Close every connection, those being opened too; a read under way closes its own when it ends."""
        await self._node.close()

    async def _ask(self, patience: Patience, *command: Any) -> Any:
        try:
            with patience.limit():
                (reply,) = await self._node.ask(pack_command(command), 1)
        except DRIVER_ERRORS as error:
            raise unavailable(self._node.location, patience.seconds, error) from error
        return reply
