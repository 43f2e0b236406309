"""Asynchronous reads from a Redis Cluster: every node asked at the same time, under one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import redis
from hiredis import pack_command

from featurestore.errors import OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.redis_node import DRIVER_ERRORS, Deadlines, unavailable
from featurestore.online.redis_reader import AsyncNode
from featurestore.online.redis_topology import MOST_HOPS, Address, Nodes, Part, Routing, Topology, raise_if_failed

POLL_SECONDS = 0.002


class RedisClusterReader(AsyncReader):
    """Reads of one event loop from the primaries of a cluster."""

    def __init__(self, topology: Topology, deadlines: Deadlines) -> None:
        self._topology = topology
        self._deadlines = deadlines
        self._retired: set[asyncio.Task[None]] = set()
        self._nodes = Nodes(
            topology, lambda address: AsyncNode(topology.url.options_of(address), deadlines), self._retire
        )
        self._is_closed = False

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value, within the read deadline; a redirected command is followed within it too."""
        if not keys:
            return []
        seconds = self._deadlines.read
        routing = Routing(self._topology, keys, lambda places: ("MGET", *[keys[place] for place in places]))
        try:
            async with asyncio.timeout(seconds):
                if self._is_closed or not self._topology.owners:
                    await self._know()
                routing.start()
                for _ in range(1 + MOST_HOPS):
                    questions = list(routing.questions().items())
                    if len(questions) > 1:
                        await asyncio.gather(*[self._ask(routing, *question) for question in questions])
                    elif questions:
                        await self._ask(routing, *questions[0])
                routing.give_up()
        except DRIVER_ERRORS as error:
            self._topology.refresh()
            raise unavailable(self._topology.url.location, seconds, error) from error
        if routing.failure is not None:
            where = self._topology.url.place(routing.failed)
            raise unavailable(where, seconds, routing.failure) from routing.failure
        return routing.values(len(keys))

    async def check(self) -> None:
        """Return when every primary answers a PING; opens the first connections, which may take longer than a read."""
        seconds = self._deadlines.connect + self._deadlines.read
        try:
            async with asyncio.timeout(seconds):
                if self._is_closed or not self._topology.owners:
                    await self._know()
                nodes = [self._nodes[address] for address in self._topology.replicas]
                pings = [node.ask(pack_command(("PING",)), 1) for node in nodes]
                for answer in await asyncio.gather(*pings, return_exceptions=True):
                    error = answer if isinstance(answer, BaseException) else answer[0]
                    if isinstance(error, BaseException):
                        raise error
        except DRIVER_ERRORS as error:
            self._topology.refresh()
            raise unavailable(self._topology.url.location, seconds, error) from error

    async def close(self) -> None:
        """Close every connection, and those on their way; a read under way closes its own when it ends."""
        self._is_closed = True
        await asyncio.gather(*[node.close() for node in self._nodes], *self._retired)

    async def _know(self) -> None:
        """Return when the topology is known."""
        if self._is_closed:
            raise OnlineStoreUnavailableError(f"The reader of Redis at {self._topology.url.location} is closed.")
        reading = self._topology.refresh()
        while not reading.done():  # its thread may outlive this event loop, which it must not call
            await asyncio.sleep(POLL_SECONDS)
        raise_if_failed(reading.result())

    async def _ask(self, routing: Routing, address: Address, parts: list[Part]) -> None:
        """Ask one node; what fails there does not cut off the others, whose connections are in use again at once."""
        node = self._nodes[address]
        packed, reply_count = routing.packed(parts)
        try:
            replies = await node.ask(packed, reply_count)
            routing.answered(address, parts, replies)
        except OnlineStoreUnavailableError as error:
            routing.lost(address, parts, redis.ConnectionError(error.message))
        except DRIVER_ERRORS as error:
            if isinstance(error, redis.InvalidResponse):
                node.drop_idle()
            routing.lost(address, parts, error)

    def _retire(self, node: AsyncNode) -> None:
        task = asyncio.ensure_future(node.close())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)
