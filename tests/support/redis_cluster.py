"""A real Redis Cluster of the test's own: three primaries with a replica each, on free loopback ports."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from .redis_server import RedisServer

PRIMARIES = 3
NODE_TIMEOUT_MS = 1_500
READY_SECONDS = 30.0


class RedisCluster:
    """Six servers; a killed one can be restarted and comes back as a replica. Gone when the test process is."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._stack = ExitStack()
        self.servers: list[RedisServer] = []
        try:
            for number in range(2 * PRIMARIES):
                self.servers.append(self._start(directory / f"node{number}", *options))
            self._join()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def primaries(self) -> list[RedisServer]:
        """Return the servers that own slots, as one of those that answer sees it."""
        owners = set(self._owners().values())
        return [server for server in self.servers if server.port in owners]

    def owner(self, key: bytes) -> RedisServer:
        """Return the primary of a key's slot."""
        return self.server(self._owners()[key_slot(key)])

    def server(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)

    def replica_of(self, primary: RedisServer) -> RedisServer:
        with primary.client() as client:
            return self.server(client.info("replication")["slave0"]["port"])

    def keys(self) -> set[bytes]:
        """Return every key of every primary."""
        found: set[bytes] = set()
        for server in self.primaries():
            with server.client() as client:
                found |= set(client.keys())
        return found

    def flush(self) -> None:
        for server in self.primaries():
            with server.client() as client:
                client.flushall()

    @contextlib.contextmanager
    def migrating(self, slot: int, source: RedisServer, target: RedisServer) -> Iterator[Callable[[], None]]:
        """Open a slot's migration; what is yielded moves all its keys. At the end the slot belongs to the target."""
        with source.client() as at_source, target.client() as at_target:
            names = [client.execute_command("CLUSTER MYID").decode() for client in (at_source, at_target)]
            at_target.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
            at_source.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])

            def move_keys() -> None:
                while keys := at_source.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
                    at_source.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)

            yield move_keys
            move_keys()
            for client in (at_target, at_source):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])

    def heal(self) -> None:
        """Start what was killed, and wait until every primary has its replica again."""
        for server in self.servers:
            server.resume_if_hung()
            try:
                with server.client() as client:
                    client.ping()
            except redis.ConnectionError:
                server.restart()
        self.wait()

    def wait(self) -> None:
        """Return when all servers agree that all is well."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_well():
            if time.monotonic() > deadline:
                raise RuntimeError("the cluster did not become well")
            time.sleep(0.05)

    def stop(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, directory: Path, *options: str) -> RedisServer:
        directory.mkdir(parents=True)
        with socket.socket() as probe:  # the usual bus port, 10,000 higher, may be above the last one there is
            probe.bind(("127.0.0.1", 0))
            bus_port = probe.getsockname()[1]
        return self._stack.enter_context(
            RedisServer(
                directory,
                *["--cluster-enabled", "yes", "--cluster-port", str(bus_port)],
                *["--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--repl-diskless-sync-delay", "0"],
                # A replica counts for nothing before its first heartbeat, which usually takes ten seconds.
                *["--repl-ping-replica-period", "1", *options],
            )
        )

    def _join(self) -> None:
        """Do what ``redis-cli --cluster create`` does: not every server comes with one."""
        primaries, replicas = self.servers[:PRIMARIES], self.servers[PRIMARIES:]
        slots = REDIS_CLUSTER_HASH_SLOTS
        for number, server in enumerate(primaries):
            first, last = slots * number // PRIMARIES, slots * (number + 1) // PRIMARIES - 1
            with server.client() as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        with self.servers[0].client() as first_client:
            for server in self.servers[1:]:
                with server.client() as client:
                    bus_port = int(client.config_get("cluster-port")["cluster-port"])
                first_client.execute_command("CLUSTER MEET", "127.0.0.1", server.port, bus_port)
        deadline = time.monotonic() + READY_SECONDS
        for primary, replica in zip(primaries, replicas, strict=True):
            with primary.client() as client:
                name = client.execute_command("CLUSTER MYID").decode()
            with replica.client() as client:
                while True:
                    try:
                        client.execute_command("CLUSTER REPLICATE", name)
                        break
                    except redis.ResponseError:  # it has not heard of that node yet
                        if time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)
        self.wait()

    def _is_well(self) -> bool:
        roles: list[str] = []
        views = set()
        for server in self.servers:
            with server.client() as client:
                try:
                    cluster = client.cluster("INFO")
                    replication = client.info("replication")
                    slots = client.execute_command("CLUSTER SLOTS")
                except redis.ConnectionError:
                    return False
            if cluster["cluster_state"] != "ok" or cluster["cluster_known_nodes"] != str(len(self.servers)):
                return False
            roles.append(replication["role"])
            if replication["role"] == "slave" and replication["master_link_status"] != "up":
                return False
            if replication["role"] == "master" and replication["connected_slaves"] == 0:
                return False
            if any(len(nodes) != 2 for _, _, *nodes in slots):  # a primary and its replica
                return False
            views.add(tuple(sorted((begin, end, *sorted(str(node) for node in nodes)) for begin, end, *nodes in slots)))
        return roles.count("master") == PRIMARIES and len(views) == 1

    def _owners(self) -> dict[int, int]:
        for server in self.servers:
            try:
                with server.client() as client:
                    slots = client.execute_command("CLUSTER SLOTS")
            except redis.RedisError:
                continue
            return {slot: node[1] for begin, end, node, *_ in slots for slot in range(begin, end + 1)}
        raise RuntimeError("no server of the cluster answers")
