"""Which node of a Redis Cluster holds which key, and the routing of commands, through redirections."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import redis
from featurestore_registry.forks import ForkLock
from hiredis import pack_command
from redis.cluster import ClusterNode, NodesManager
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, TryAgainError

from featurestore.errors import SettingsError
from featurestore.online.redis.node import CONNECTION_OPTIONS, check_tls, connection_options, may_pass
from featurestore.online.url import StoreUrl

Address = tuple[str, int]
Node = TypeVar("Node")

URL_EXAMPLE = "Write it as redis+cluster://user:password@host1:6379,host2:6379."
MOST_HOPS = 2
"""At most one redirection, and one more if a slot is half moved: its keys are then asked for one by one."""
LEAST_PAUSE_SECONDS = 0.1
"""Seconds between two reads of the topology, at least, even if many reads fail in between."""


class ClusterUrl(NamedTuple):
    """The nodes to ask for the topology, and the options of every connection."""

    seeds: tuple[Address, ...]
    options: Mapping[str, Any]

    @property
    def location(self) -> str:
        """The addresses that messages name."""
        return ",".join(f"{host}:{port}" for host, port in self.seeds)

    def place(self, address: Address | None) -> str:
        """Return the place for a message: a node, or the cluster's addresses."""
        return self.location if address is None else f"{address[0]}:{address[1]}"

    def options_of(self, address: Address) -> dict[str, Any]:
        """Return the options of connections to one node."""
        return {**self.options, "host": address[0], "port": address[1]}


def parsed_cluster_url(url: str) -> ClusterUrl:
    """Return the parts of a URL. Raises SettingsError, for TLS too (`check_tls`); it never quotes the URL."""
    url = StoreUrl(url)
    try:
        scheme, hosts, path, query, _ = urlsplit(url)
    except ValueError:
        raise SettingsError("online_store: the Redis URL cannot be read.", hint=URL_EXAMPLE) from None
    beginning, ending = f"{scheme.removesuffix('+cluster')}://", f"{path}?{query}"
    nodes = [
        connection_options(f"{beginning}{host}{ending}", url.credentials, URL_EXAMPLE) for host in hosts.split(",")
    ]
    if any(node.pop("db", 0) for node in nodes):
        raise SettingsError("online_store: a Redis Cluster has only the database 0.", hint=URL_EXAMPLE)
    check_tls(nodes[0])
    return ClusterUrl(tuple((node.pop("host"), node.pop("port", 6379)) for node in nodes), nodes[0])


class Topology:
    """The primary of each slot, read in a thread of its own whenever an answer shows that it has changed."""

    def __init__(self, url: ClusterUrl, connect_seconds: float) -> None:
        self.url = url
        self.owners: list[Address | None] = []
        """The primary of each slot; empty until the topology is known."""
        self.replicas: Mapping[Address, int] = {}
        """How many replicas each primary has."""
        self._connect_seconds = connect_seconds
        self._lock = ForkLock()
        self._reading: Future[Exception | None] | None = None
        self._pid = os.getpid()
        self._next_look = 0.0

    def refresh(self, failed: Address | None = None) -> Future[Exception | None]:
        """Read the topology in the background, from other nodes than ``failed``; the result is the error, if any."""
        with self._lock:
            if self._reading is None or self._reading.done() or self._pid != os.getpid():
                self._reading, self._pid = Future(), os.getpid()
                self._reading.set_running_or_notify_cancel()
                arguments = (self._reading, failed, self._next_look - time.monotonic())
                threading.Thread(target=self._read, args=arguments, daemon=True).start()
            return self._reading

    def wait(self, seconds: float) -> None:
        """Read the topology and wait for it. Raises the driver's error, or TimeoutError."""
        if (earlier := self._reading) is not None and self._pid == os.getpid():
            earlier.result(timeout=seconds)
        self._next_look = 0.0
        raise_if_failed(self.refresh().result(timeout=seconds))

    def moved(self, slot: int, address: Address) -> None:
        """Note a slot's new primary, and read the others in the background."""
        if self.owners:
            self.owners[slot] = address
        self.refresh()

    def _read(self, future: Future[Exception | None], failed: Address | None, pause_seconds: float) -> None:
        time.sleep(max(0.0, pause_seconds))
        self._next_look = time.monotonic() + LEAST_PAUSE_SECONDS
        # Ask the seeds too: every known node may have another address now.
        asked = [address for address in dict.fromkeys([*self.replicas, *self.url.seeds]) if address != failed]
        try:
            found = NodesManager(
                [ClusterNode(*address) for address in asked or self.url.seeds],  # type: ignore[no-untyped-call]  # redis-py has none
                from_url=True,
                **self.url.options,
                **CONNECTION_OPTIONS,
                socket_timeout=self._connect_seconds,
                socket_connect_timeout=self._connect_seconds,
            )
        except Exception as error:  # of any kind, so that no waiter waits for ever
            future.set_result(error)
            return
        slots = found.slots_cache
        ranges = {id(nodes): nodes for nodes in slots.values()}  # a range's slots share one list: primary, replicas
        primaries = {number: (nodes[0].host, nodes[0].port) for number, nodes in ranges.items()}
        self.replicas = {primaries[number]: len(nodes) - 1 for number, nodes in ranges.items()}
        self.owners = [primaries.get(id(slots.get(slot))) for slot in range(REDIS_CLUSTER_HASH_SLOTS)]
        future.set_result(None)


def raise_if_failed(error: Exception | None) -> None:
    """Raise what kept the topology from being read, as the driver's error."""
    if error is not None:
        cause = error.__cause__ or error
        raise cause if isinstance(cause, redis.RedisError) else redis.ConnectionError(str(cause))


class Nodes(Generic[Node]):
    """Objects for each node in use, until it is no longer a primary."""

    def __init__(self, topology: Topology, make: Callable[[Address], Node], retire: Callable[[Node], object]) -> None:
        self._topology, self._make, self._retire = topology, make, retire
        self._nodes: dict[Address, Node] = {}
        self._primaries: Mapping[Address, int] = {}

    def __getitem__(self, address: Address) -> Node:
        if self._primaries is not self._topology.replicas:
            self._primaries = self._topology.replicas
            for known in self._nodes.keys() - self._primaries.keys():
                if gone := self._nodes.pop(known, None):
                    self._retire(gone)
        node = self._nodes.get(address)
        # Two threads that make one at the same time both get the same object.
        return self._nodes.setdefault(address, self._make(address)) if node is None else node

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))


class Part(NamedTuple):
    """Keys of one slot, by their places among all keys."""

    slot: int
    places: list[int]
    is_asking: bool = False


class Routing:
    """One command for many keys: cut by slot, packed by node, sent again to where the answers point.

    `questions` returns the commands to send; `answered` and `lost` take the outcomes. After `MOST_HOPS` more rounds
    ``left`` holds the rest; ``failure`` says why and ``failed`` at which node.
    """

    def __init__(
        self,
        topology: Topology,
        keys: Sequence[bytes],
        command: Callable[[list[int]], tuple[Any, ...]],
        *,
        has_reply_per_key: bool = True,
    ) -> None:
        self._topology, self._command, self._has_reply_per_key = topology, command, has_reply_per_key
        self.answers: list[tuple[list[int], Any]] = []
        self.left = _by_slot(keys)
        self.failure: Exception | None = None
        self.failed: Address | None = None
        """The node that ``failure`` is about."""
        self._next: dict[Address, list[Part]] = {}

    def start(self) -> None:
        """Give the rest to the nodes that own it now."""
        owners, parts = self._topology.owners, self.left
        self.left, self.failure = [], None
        for part in parts:
            owner = owners[part.slot]
            if owner is None:
                self.lost(None, [part], ClusterDownError(f"slot {part.slot} belongs to no node"))
            else:
                self._next.setdefault(owner, []).append(part)

    def questions(self) -> dict[Address, list[Part]]:
        """Return the next questions by node; empty when there are no more."""
        questions, self._next = self._next, {}
        return questions

    def packed(self, parts: Sequence[Part]) -> tuple[bytes, int]:
        """Return the packed commands, for one write, and the number of their replies."""
        commands = []
        for part in parts:
            if part.is_asking:
                commands.append(pack_command(("ASKING",)))
            commands.append(pack_command(self._command(part.places)))
        return b"".join(commands), len(commands)

    def lost(self, address: Address | None, parts: Sequence[Part], error: Exception) -> None:
        """Note that a node failed, and read the topology again if that may help."""
        self.left += parts
        if self.failure is None or may_pass(self.failure):
            self.failure, self.failed = error, address
        if not isinstance(error, redis.ResponseError) or isinstance(error, ClusterDownError | redis.ReadOnlyError):
            self._topology.refresh(address)

    def answered(self, address: Address, parts: Sequence[Part], replies: Sequence[Any]) -> None:
        """Take a node's replies, errors among them as values; raises redis.InvalidResponse for invalid ones."""
        remaining = iter(replies)
        for part in parts:
            if part.is_asking:
                next(remaining)
            reply = next(remaining)
            if type(reply) is list and len(reply) == len(part.places):
                self.answers.append((part.places, reply))
            elif isinstance(reply, Exception):
                self._redirect(address, part, reply)
            elif self._has_reply_per_key:
                raise redis.InvalidResponse("the answer is not that of the command")
            else:
                self.answers.append((part.places, reply))

    def give_up(self) -> None:
        """Put parts that were redirected too often into ``left``."""
        for address, parts in self.questions().items():
            self.lost(address, parts, TryAgainError("the keys are on the move"))

    def _redirect(self, address: Address, part: Part, error: Exception) -> None:
        if isinstance(error, AskError):  # MovedError is one
            target = (error.host or address[0], error.port)
            if isinstance(error, MovedError):
                self._topology.moved(error.slot_id, target)
            is_asking = not isinstance(error, MovedError)
            self._next.setdefault(target, []).append(Part(part.slot, part.places, is_asking))
        elif isinstance(error, TryAgainError) and len(part.places) > 1:
            single = [Part(part.slot, [place], part.is_asking) for place in part.places]
            self._next.setdefault(address, []).extend(single)
        else:
            self.lost(address, [part], error)


def _by_slot(keys: Sequence[bytes]) -> list[Part]:
    """Cut keys into parts of one slot each; equal keys keep their order."""
    # The views of an entity share their tag, and computing a slot takes longer than a lookup.
    by_tag: dict[bytes, list[int]] = {}
    for place, key in enumerate(keys):
        start = key.find(b"{")
        end = key.find(b"}", start + 1)
        tag = key[start : end + 1] if end > start + 1 > 0 else key
        if (places := by_tag.get(tag)) is None:
            by_tag[tag] = [place]
        else:
            places.append(place)
    by_slot: dict[int, list[int]] = {}
    for tag, places in by_tag.items():
        slot = key_slot(tag)
        by_slot[slot] = by_slot[slot] + places if slot in by_slot else places
    return [Part(slot, places) for slot, places in by_slot.items()]
