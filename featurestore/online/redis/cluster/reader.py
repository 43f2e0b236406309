"""Asynchronous reads from a Redis Cluster: asks all nodes at the same time, under one deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import redis
from hiredis import pack_command

from featurestore.errors import OnlineNodeUnavailableError, OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.patience import Patience
from featurestore.online.redis.cluster.topology import (
    MOST_HOPS,
    Address,
    Nodes,
    Part,
    Routing,
    Topology,
    raise_if_failed,
)
from featurestore.online.redis.node import (
    DRIVER_ERRORS,
    FAILURES_TO_LEAVE,
    LEFT_SECONDS,
    Deadlines,
    in_order,
    unavailable,
)
from featurestore.online.redis.reader import AsyncNode

POLL_SECONDS = 0.002
_NEARLY = 0.9


class RedisClusterReader(AsyncReader):
    """Reads from the primaries of a cluster, for one event loop."""

    def __init__(self, topology: Topology, deadlines: Deadlines) -> None:
        self._topology = topology
        self._deadlines = deadlines
        self._reading = Patience(deadlines.read)
        self._checking = Patience(deadlines.connect + deadlines.read)
        self._retired: set[asyncio.Task[None]] = set()
        self._nodes = Nodes(
            topology, lambda address: AsyncNode(topology.url.options_of(address), deadlines), self._retire
        )
        self._is_closed = False
        self._failures: dict[Address, int] = {}
        self._left_until: dict[Address, float] = {}

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value, within the read deadline, redirections included.

        Raises OnlineNodeUnavailableError where other nodes answer.
        """
        if not keys:
            return []
        seconds = self._reading.seconds
        routing = Routing(self._topology, keys, lambda places: ("MGET", *[keys[place] for place in places]))
        try:
            with self._reading.limit():
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
            raise self._told(unavailable(self._topology.url.location, seconds, error)) from error
        if (failure := routing.failure) is not None:
            told = unavailable(self._topology.url.place(routing.failed), seconds, failure)
            raise (told if isinstance(failure, redis.ResponseError) else self._told(told)) from failure
        return in_order(routing.answers, len(keys))

    async def check(self) -> None:
        """Return when one primary has answered a PING, and all that answer soon; opens the first connections."""
        seconds = self._checking.seconds
        try:
            with self._checking.limit():
                if self._is_closed or not self._topology.owners:
                    await self._know()
                await self._ping([self._nodes[address] for address in self._topology.replicas])
        except DRIVER_ERRORS as error:
            self._topology.refresh()
            raise unavailable(self._topology.url.location, seconds, error) from error

    async def close(self) -> None:
        """Close every connection, those being opened too; a read under way closes its own when it ends."""
        self._is_closed = True
        await asyncio.gather(*[node.close() for node in self._nodes], *self._retired)

    async def _know(self) -> None:
        """Return when the topology is known."""
        if self._is_closed:
            raise OnlineStoreUnavailableError(f"The reader of Redis at {self._topology.url.location} is closed.")
        reading = self._topology.refresh()
        while not reading.done():  # its thread may outlive this event loop and must not call it
            await asyncio.sleep(POLL_SECONDS)
        raise_if_failed(reading.result())

    async def _ping(self, nodes: Sequence[AsyncNode]) -> None:
        pings = {asyncio.ensure_future(node.ask(pack_command(("PING",)), 1)) for node in nodes}
        try:
            error: BaseException = redis.ConnectionError("the cluster has no primary")
            waiting = pings
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for ping in done:
                    answer = ping.exception() or ping.result()[0]
                    if not isinstance(answer, BaseException):
                        if waiting:
                            await asyncio.wait(waiting, timeout=self._deadlines.read)
                        return
                    error = answer
            raise error
        finally:
            for ping in pings:
                ping.cancel()
            await asyncio.gather(*pings, return_exceptions=True)

    async def _ask(self, routing: Routing, address: Address, parts: list[Part]) -> None:
        """Ask one node; a failure there does not disturb the others, whose connections are free again at once."""
        now = asyncio.get_running_loop().time
        begun = now()
        if begun < self._left_until.get(address, begun):
            routing.lost(address, parts, redis.ConnectionError("it did not answer lately"))
            return
        if address in self._left_until:
            self._left_until[address] = begun + LEFT_SECONDS  # this read probes the node, the others need not wait
        node = self._nodes[address]
        packed, reply_count = routing.packed(parts)
        try:
            replies = await node.ask(packed, reply_count)
            routing.answered(address, parts, replies)
        except asyncio.CancelledError:
            if now() - begun >= self._deadlines.read * _NEARLY:  # cut off by the deadline, not by the caller
                self._failed(address, now())
            raise
        except OnlineStoreUnavailableError as error:
            self._failed(address, now())
            routing.lost(address, parts, redis.ConnectionError(error.message))
        except DRIVER_ERRORS as error:
            self._failed(address, now())
            if isinstance(error, redis.InvalidResponse):
                node.drop_idle()
            routing.lost(address, parts, error)
        else:
            self._failures.pop(address, None)
            self._left_until.pop(address, None)

    def _failed(self, address: Address, now_s: float) -> None:
        self._failures[address] = self._failures.get(address, 0) + 1
        if self._failures[address] >= FAILURES_TO_LEAVE:
            self._left_until[address] = now_s + LEFT_SECONDS

    def _told(self, error: OnlineStoreUnavailableError) -> OnlineStoreUnavailableError:
        """Return a read's error as one about a single node, if another node has not failed lately."""
        if any(address not in self._failures for address in self._topology.replicas):
            return OnlineNodeUnavailableError(error.message, hint=error.hint, **error.details)
        return error

    def _retire(self, node: AsyncNode) -> None:
        task = asyncio.ensure_future(node.close())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)
