"""Asynchronous reads from Redis: few connections, one deadline, and no reply that could meet another reader."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from hiredis import pack_command
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.redis_node import (
    CONNECTION_OPTIONS,
    DRIVER_ERRORS,
    Deadlines,
    checked_reply,
    location_of,
    unavailable,
)

MOST_CONNECTIONS = 64
"""In use at once; reads beyond them wait for one within their deadline."""


class AsyncNode:
    """The connections of one event loop to one server.

    redis-py's pool opens a connection inside the read that needs it, so a deadline of 50 ms would cut off every
    handshake that takes longer, for ever. Here a connection that a read gave up waiting for is still opened, for
    the next one. A connection is used again only after its whole reply was read: a cancelled read closes it.
    """

    def __init__(self, options: Mapping[str, Any], deadlines: Deadlines) -> None:
        self.location = location_of(options)
        self._kind = SSLConnection if "connection_class" in options else Connection
        self._options = {name: value for name, value in options.items() if name != "connection_class"}
        self._connect_seconds = deadlines.connect
        self._idle: list[Any] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Future[None]] = set()
        self._gate = asyncio.Semaphore(MOST_CONNECTIONS)
        self._closed = False

    async def ask(self, packed: Sequence[bytes], count: int) -> list[Any]:
        """Send commands in one write and return their replies, errors among them as values. The caller sets a deadline.

        Raises the driver's errors, and OnlineStoreUnavailableError.
        """
        try:
            async with self._gate:
                connection = await self._connection()
                try:
                    await connection.send_packed_command(packed, check_health=False)
                    replies = await _replies(connection, count)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
        except DRIVER_ERRORS as error:
            if not isinstance(error, TimeoutError):
                self.drop_idle()  # opened before the server went away, most likely
            raise
        if self._closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return replies

    def drop_idle(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            task = asyncio.ensure_future(self._idle.pop().disconnect(nowait=True))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every connection, and those on their way; a read under way closes its own when it ends."""
        self._closed = True
        for task in self._opening:
            task.cancel()
        self.drop_idle()
        await asyncio.gather(*self._opening, *self._closing, return_exceptions=True)

    async def _connection(self) -> Any:
        """Return an open connection; one that its reader stops waiting for is opened all the same."""
        while not self._idle:
            if self._closed or len(self._opening) >= MOST_CONNECTIONS:
                # None of those that earlier reads gave up on is open yet: another one would wait in vain as well.
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
        return self._idle.pop()

    async def _open(self) -> None:
        connection: Any = self._kind(
            **self._options,
            **CONNECTION_OPTIONS,
            socket_timeout=None,
            socket_connect_timeout=self._connect_seconds,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            async with asyncio.timeout(self._connect_seconds):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        if not task.cancelled():
            task.exception()  # its reader may be gone: nobody else asks for it


class RedisReader(AsyncReader):
    """Reads of one event loop from one server."""

    def __init__(self, options: Mapping[str, Any], deadlines: Deadlines) -> None:
        self._node = AsyncNode(options, deadlines)
        self._deadlines = deadlines
        self.deadline_seconds = deadlines.read

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value in one MGET, within the read deadline."""
        if not keys:
            return []
        reply = await self._ask(self._deadlines.read, "MGET", *keys)
        try:
            return checked_reply(reply, len(keys))
        except redis.RedisError as error:
            self._node.drop_idle()
            raise unavailable(self._node.location, self._deadlines.read, error) from None

    async def check(self) -> None:
        """Return when the server answers a PING; opens the first connection, which may take longer than a read."""
        seconds = self._deadlines.connect + self._deadlines.read
        if isinstance(reply := await self._ask(seconds, "PING"), Exception):
            raise unavailable(self._node.location, seconds, reply)

    async def close(self) -> None:
        """Close every connection, and those on their way; a read under way closes its own when it ends."""
        await self._node.close()

    async def _ask(self, seconds: float, *command: Any) -> Any:
        try:
            async with asyncio.timeout(seconds):
                (reply,) = await self._node.ask([pack_command(command)], 1)
        except DRIVER_ERRORS as error:
            raise unavailable(self._node.location, seconds, error) from error
        return reply


async def _replies(connection: Any, count: int) -> list[Any]:
    replies: list[Any] = []
    while len(replies) < count:
        try:
            while len(replies) < count:
                replies.append(await connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies
