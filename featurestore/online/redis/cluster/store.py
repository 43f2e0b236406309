"""A Redis Cluster as the online store: the records of `redis`, each on the primary that owns its slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, NoScriptError
from redis.retry import Retry

from featurestore.online.interface import AsyncReader, Slice
from featurestore.online.records.keys import BUCKETS
from featurestore.online.redis.cluster.topology import (
    MOST_HOPS,
    Address,
    Nodes,
    Part,
    Routing,
    Topology,
    parsed_cluster_url,
)
from featurestore.online.redis.node import (
    DRIVER_ERRORS,
    Connections,
    RedisNode,
    digest_of,
    in_order,
    may_pass,
    unavailable,
)
from featurestore.online.redis.store import Arguments, Item, Kept, RedisCommands, scanned
from featurestore.types.times import Clock, system_clock

Result = TypeVar("Result")

LONGEST_PAUSE_SECONDS = 0.5
"""Seconds between two tries of a write, and so the delay to notice that a failover is over."""
LEAST_WAIT_SECONDS = 0.001
"""Seconds for the answers of healthy nodes after another one has used up the deadline: they have arrived already."""


MARKER_COPIES = 64
"""A node with more than this share of the slots, in one span, holds a copy of each marker."""


@cache
def _marker_tags() -> tuple[bytes, ...]:
    """Return tags whose slots are spread evenly: one in each of as many spans of slots as there are copies."""
    tags: dict[int, bytes] = {}
    number = 0
    while len(tags) < MARKER_COPIES:
        tag = b"%d" % number
        tags.setdefault(key_slot(tag) * MARKER_COPIES // REDIS_CLUSTER_HASH_SLOTS, tag)
        number += 1
    return tuple(tags[span] for span in sorted(tags))


class RedisClusterStore(RedisCommands):
    """An `OnlineStore` in a Redis (7.0 or later) or Valkey cluster. Replicas are never read.

    Reads ask all nodes at once and wait ``read_timeout_ms`` for all of them on open connections; they follow
    redirections within that time, and try nothing else again. Writes follow their slots, read the topology again and
    retry for about ``write_timeout_ms``, which should be longer than a failover.
    """

    def __init__(self, url: str, *, clock: Clock = system_clock, **timeouts_ms: int) -> None:
        super().__init__(clock=clock, **timeouts_ms)
        self.marker_tags, self.mark_buckets = _marker_tags(), BUCKETS
        self._has_waited = False
        """Whether a read has waited for the topology: later ones wait no longer than for an answer."""
        self._url = parsed_cluster_url(url)
        self._topology = Topology(self._url, self._deadlines.connect)
        self._nodes: Nodes[RedisNode] = Nodes(
            self._topology,
            lambda address: RedisNode(self._url.options_of(address), self._deadlines),
            partial(RedisNode.close, for_good=True),
        )

    def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return each key's value. Raises OnlineStoreUnavailableError within the read deadline."""
        if not keys:
            return []
        seconds = self._deadlines.read
        patience_s = seconds if self._has_waited else self._deadlines.connect
        try:
            if not self._topology.owners:
                self._has_waited = True
                self._topology.wait(patience_s)
        except DRIVER_ERRORS as error:
            raise unavailable(self._url.location, patience_s, error) from error
        routing = Routing(self._topology, keys, lambda places: ("MGET", *[keys[place] for place in places]))
        routing.start()
        self._exchange(routing, read_seconds=seconds)
        if routing.failure is not None:
            raise unavailable(self._url.place(routing.failed), seconds, routing.failure) from routing.failure
        return in_order(routing.answers, len(keys))

    def facts(self) -> Mapping[str, str]:
        """Return the nodes and their combined facts: sums of memory, each version and policy, the clock furthest off.

        The percentage of memory is the fullest node's.

        Also what a failover depends on: the state of the cluster, uncovered slots, primaries without a replica.
        """
        self._read_topology()
        replicas = self._topology.replicas
        primaries = [self._nodes[address] for address in replicas]
        found = [node.facts(self._clock) for node in primaries]
        with primaries[0].translated(self._deadlines.write):
            cluster = primaries[0].writes.client().cluster("INFO")
        ahead_ms = max((int(facts["clock_ahead_ms"]) for facts in found), key=abs)
        filled = [facts["memory_percent"] for facts in found if "memory_percent" in facts]
        return {
            "server": _each(found, "server"),
            "location": self._url.location,
            "nodes": ", ".join(f"{host}:{port} with {count} replicas" for (host, port), count in replicas.items()),
            "cluster_state": cluster["cluster_state"],
            "slots_without_node": str(REDIS_CLUSTER_HASH_SLOTS - int(cluster["cluster_slots_ok"])),
            "primaries_without_replica": str(sum(count == 0 for count in replicas.values())),
            "used_memory_bytes": _sum(found, "used_memory_bytes"),
            "maxmemory_bytes": _sum(found, "maxmemory_bytes"),
            **({"memory_percent": max(filled, key=int)} if filled else {}),
            "maxmemory_policy": _each(found, "maxmemory_policy"),
            "evicted_keys": _sum(found, "evicted_keys"),
            "clock_ahead_ms": str(ahead_ms),
        }

    def reader(self) -> AsyncReader:
        """Return a reader of the running event loop, with connections of its own."""
        from featurestore.online.redis.cluster.reader import RedisClusterReader

        return RedisClusterReader(self._topology, self._deadlines)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        for node in self._nodes:
            node.close()

    def _run_script(
        self, script: str, parts: Sequence[Sequence[Item]], arguments: Arguments[Sequence[Item]]
    ) -> Iterator[list[int]]:
        """Run the script once per slot of a part; a part begins after the one before is done, which keeps the order."""
        digest = digest_of(script)

        def command(part: Sequence[Item], places: list[int]) -> tuple[Any, ...]:
            return ("EVALSHA", digest, *arguments([part[place] for place in places]))

        for part in parts:
            codes = [0] * len(part)
            for places, reply in self._routed([item.key for item in part], partial(command, part), script=script):
                for place, code in zip(places, reply, strict=True):
                    codes[place] = code
            yield codes

    def _run_slices(
        self, script: str, slices: Sequence[Slice[Kept]], arguments: Arguments[Slice[Kept]]
    ) -> list[list[int]]:
        """Run the script once per slice; all are sent before the first answer is waited for."""
        digest = digest_of(script)

        def command(places: list[int]) -> tuple[Any, ...]:
            return ("EVALSHA", digest, *arguments(slices[places[0]]))

        keys = [slice_.moves[0].key if slice_.moves else slice_.items[0].key for slice_ in slices]
        answers: list[list[int]] = [[]] * len(slices)
        for (place,), answer in self._routed(keys, command, script=script, has_reply_per_key=False):
            answers[place] = answer
        return answers

    def _on_keys(self, command: str, keys: Sequence[bytes], *more: bytes) -> Sequence[tuple[Sequence[int], Any]]:
        def packed(places: list[int]) -> tuple[Any, ...]:
            return (command, *[keys[place] for place in places], *more)

        return self._routed(keys, packed, has_reply_per_key=command == "MGET")

    def _routed(
        self,
        keys: Sequence[bytes],
        command: Callable[[list[int]], tuple[Any, ...]],
        *,
        script: str = "",
        has_reply_per_key: bool = True,
    ) -> list[tuple[list[int], Any]]:
        routing = Routing(self._topology, keys, command, has_reply_per_key=has_reply_per_key)

        def attempt() -> None:
            routing.start()
            self._exchange(routing, script=script)
            if routing.failure is not None:
                raise routing.failure

        self._retried(attempt, lambda: routing.failed)
        return routing.answers

    def _exchange(self, routing: Routing, *, read_seconds: float | None = None, script: str = "") -> None:
        """Send to every node before waiting for the first answer, and follow redirections.

        All answers to a read come within ``read_seconds``; a write waits for each as long as its connection does.
        """
        deadline: float | None = None
        for _ in range(1 + MOST_HOPS):
            under_way: list[_UnderWay] = []
            try:
                for address, parts in routing.questions().items():
                    node = self._nodes[address]
                    pool = node.writes if read_seconds is None else node.reads
                    try:
                        under_way.append(_sent(routing, address, parts, node, pool, script))
                    except DRIVER_ERRORS as error:
                        routing.lost(address, parts, error)
                if deadline is None and read_seconds is not None:  # it starts here: the connections are open
                    deadline = time.monotonic() + read_seconds
                while under_way:
                    asked = under_way.pop(0)
                    try:
                        _received(routing, asked, deadline)
                    except DRIVER_ERRORS as error:
                        routing.lost(asked.address, asked.parts, error)
            finally:
                for asked in under_way:  # interrupted: the next reader must not get their replies
                    asked.connection.disconnect()
        routing.give_up()

    def _retried(self, attempt: Callable[[], Result], failed: Callable[[], Address | None] = lambda: None) -> Result:
        """Call ``attempt`` until the deadline, reading the topology before each retry; ``failed`` names the culprit."""
        deadline = time.monotonic() + self._deadlines.write
        retry = Retry(ExponentialBackoff(cap=LONGEST_PAUSE_SECONDS, base=0.02), -1, (redis.RedisError,))
        is_known = bool(self._topology.owners)

        def informed() -> Result:
            nonlocal is_known
            if not is_known:
                self._topology.wait(max(self._deadlines.connect, deadline - time.monotonic()))
            is_known = False
            return attempt()

        try:
            return retry.call_with_retry(
                informed, lambda _: None, is_retryable=lambda error: may_pass(error) and time.monotonic() < deadline
            )
        except DRIVER_ERRORS as error:
            if (address := failed()) is None:
                raise unavailable(self._url.location, self._deadlines.write, error) from error
            with self._nodes[address].translated(self._deadlines.write):
                raise

    def _read_topology(self) -> list[Address | None]:
        """Return the primary of every slot, as it is now."""

        def attempt() -> list[Address | None]:
            self._topology.wait(self._deadlines.write)
            owners = list(self._topology.owners)
            if None in owners:
                raise ClusterDownError(f"slot {owners.index(None)} belongs to no node")
            return owners

        return self._retried(attempt)

    def _scan_keys(self, prefix: bytes) -> Iterator[list[bytes]]:
        """Walk every primary, and all of them again if slots moved in the meantime."""
        owners: list[Address | None] = []
        while (now := self._read_topology()) != owners:
            owners = now
            for address in dict.fromkeys(owners):
                assert address is not None
                yield from scanned(partial(self._ask_primary, address), prefix)

    def _ask_primary(self, address: Address, *command: Any) -> Any:
        """Return a node's reply to a command, None if it is no longer a primary."""

        def attempt() -> Any:
            if address not in self._topology.replicas:
                return None
            pool = self._nodes[address].writes
            connection = _opened(pool)
            try:
                connection.send_command(*command, check_health=False)
                reply = connection.read_response()
            except BaseException:
                connection.disconnect()
                raise
            pool.give(connection)
            return reply

        return self._retried(attempt, lambda: address)


class _UnderWay(NamedTuple):
    """Commands that were sent to one node."""

    address: Address
    parts: list[Part]
    node: RedisNode
    pool: Connections
    connection: Any
    reply_count: int


def _sent(
    routing: Routing, address: Address, parts: list[Part], node: RedisNode, pool: Connections, script: str
) -> _UnderWay:
    """Send a node its commands in one write."""
    connection = _opened(pool)
    try:
        if script:
            node.load(connection, script)
        packed, reply_count = routing.packed(parts)
        connection.send_packed_command([packed], check_health=False)
    except BaseException as error:
        connection.disconnect()
        pool.failed(error)
        raise
    return _UnderWay(address, parts, node, pool, connection, reply_count)


def _received(routing: Routing, asked: _UnderWay, deadline: float | None) -> None:
    """Read a node's whole answer; only then may others use the connection."""
    connection = asked.connection
    try:
        if deadline is not None:
            connection.update_current_socket_timeout(max(deadline - time.monotonic(), LEAST_WAIT_SECONDS))
        replies = _replies(connection, asked.reply_count)
        routing.answered(asked.address, asked.parts, replies)
    except BaseException as error:
        connection.disconnect()
        asked.pool.failed(error)
        raise
    asked.pool.give(connection)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        asked.node.loaded.clear()


def _replies(connection: Any, count: int) -> list[Any]:
    """Read so many replies, errors among them as values."""
    replies: list[Any] = []
    while len(replies) < count:
        try:
            while len(replies) < count:  # hundreds of them: a try block for each would be slow
                replies.append(connection.read_response())
        except redis.ResponseError as error:
            replies.append(error)
    return replies


def _opened(pool: Connections) -> Any:
    """Return a connection; if it cannot be opened in time nothing was sent, so the caller may try again."""
    try:
        return pool.take()
    except redis.TimeoutError as error:
        raise redis.ConnectionError(str(error)) from error


def _each(found: Sequence[Mapping[str, str]], name: str) -> str:
    return ", ".join(dict.fromkeys(facts[name] for facts in found))


def _sum(found: Sequence[Mapping[str, str]], name: str) -> str:
    values = [facts[name] for facts in found]
    return str(sum(map(int, values))) if all(map(str.isdigit, values)) else "unknown"
