"""One connection of an event loop to a Redis server.

Feeds hiredis as bytes arrive; redis-py reads through a stream instead, which wakes a task for every piece. See
docs/decisions/redis-wire.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import hiredis
import redis
from redis.asyncio.connection import Connection, DefaultParser, SSLConnection

from featurestore.online.redis.node import CONNECTION_OPTIONS

_MORE = object()
"""What the parser returns while a reply is incomplete."""

CLOSED = "Connection closed by server"


class Wire(asyncio.Protocol):
    """Asks one question at a time; after a failure or a cancelled question it must be closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=redis.InvalidResponse,
            replyError=DefaultParser.parse_error,
            notEnoughData=_MORE,
        )
        self._transport: Any = None
        self._answer: asyncio.Future[list[Any]] | None = None
        self._replies: list[Any] = []
        self._wanted = 0
        self.failure: BaseException | None = None
        """Why no question can be asked any more."""
        self.closed: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Tell whether the next question may succeed."""
        return self.failure is None and not self._transport.is_closing()

    def ask(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send commands in one write; the result is their ``count`` replies, errors among them as values.

        It fails with redis.ConnectionError, or with redis.InvalidResponse for an invalid reply.
        """
        answer = self._answer = self._loop.create_future()
        if self.failure is not None:
            answer.set_exception(self.failure)
            return answer
        self._wanted, self._replies = count, []
        self._transport.write(packed)
        return answer

    def close(self) -> None:
        """Close at once; `closed` is done when it is."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        answer = self._answer
        try:
            self._reader.feed(data)
            if answer is None or answer.done():
                reply = self._reader.gets()  # perhaps the reason why it refuses us, which it sends unasked
                raise reply if isinstance(reply, Exception) else redis.InvalidResponse("it sent what nobody asked for")
            while len(self._replies) < self._wanted:
                reply = self._reader.gets()
                if reply is _MORE:
                    return
                self._replies.append(reply)
            if self._reader.has_data():
                raise redis.InvalidResponse("it sent more than was asked for")
        except (redis.RedisError, UnicodeError) as error:
            self._fail(error)
            self._transport.abort()
        else:
            answer.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the question under way."""
        self._fail(redis.ConnectionError(f"{CLOSED}: {exc}" if exc else CLOSED))
        if not self.closed.done():
            self.closed.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self.failure)


async def open_wire(options: Mapping[str, Any]) -> Wire:
    """Return an open connection, as the user and with the database of a URL's ``options``.

    Raises the driver's errors and OSError; the caller sets a deadline.
    """
    kind = SSLConnection if "connection_class" in options else Connection
    chosen = {name: value for name, value in options.items() if name != "connection_class"}
    told: Any = kind(**chosen, **CONNECTION_OPTIONS)  # it knows the meaning of a URL's options, and the defaults
    context = told.ssl_context.get() if kind is SSLConnection else None
    transport, wire = await asyncio.get_running_loop().create_connection(Wire, told.host, told.port, ssl=context)
    if told.socket_keepalive:  # without it a connection that a router has dropped costs a read its deadline
        opened: socket.socket = transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (told.socket_keepalive_options or {}).items():
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
    commands: list[tuple[Any, ...]] = []
    if told.username or told.password:
        commands.append(("AUTH", *([told.username] if told.username else []), told.password or ""))
    if told.client_name:
        commands.append(("CLIENT", "SETNAME", told.client_name))
    if told.db:
        commands.append(("SELECT", told.db))
    try:
        for reply in await wire.ask(b"".join(map(hiredis.pack_command, commands)), len(commands)) if commands else ():
            if isinstance(reply, Exception):
                raise reply
    except BaseException:
        wire.close()
        raise
    return wire
