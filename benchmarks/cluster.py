"""Online reads from a Redis Cluster: ours, to the end of `to_dict()`, beside the same commands packed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from benchmarks.context import Context
from benchmarks.projects import make_project, newest_rows
from benchmarks.reads import ENTITIES, measured
from benchmarks.report import Section, Target
from featurestore import FeatureStore
from tests.support.redis_cluster import RedisCluster

MOST = {100: 1.5}


def run(context: Context) -> Iterator[Section]:
    """Measure reads from three primaries on this machine."""
    folder = context.place("cluster")
    views = newest_rows(context.workload(), folder)
    section = Section(
        "Online reads in process, Redis Cluster",
        "n entities x 2 views, 30 features, to the end of to_dict(), from three primaries; the floor knows the "
        "topology and sends the same commands, an MGET for each slot, in one write per node, without decoding.",
    )
    with ExitStack() as opened:
        cluster = opened.enter_context(RedisCluster(folder / "nodes"))
        root = make_project(folder / "project", views, online_url=cluster.url)
        store = opened.enter_context(FeatureStore(root))
        floor = opened.enter_context(HandPacked(cluster.servers[0].port))
        client = opened.enter_context(redis.RedisCluster(host="127.0.0.1", port=cluster.servers[0].port))
        for entities in ENTITIES:
            row = measured(context, store, floor.mget, views, entities, "")
            section.rows.append(replace(row, target=Target(MOST[entities]) if entities in MOST else None))
        row = measured(context, store, client.mget_nonatomic, views, 100, ", beside redis-py's mget_nonatomic")
        section.rows.append(row)
    yield section


class HandPacked:
    """The least that reads keys from a cluster: one connection to each primary, and no care for anything."""

    def __init__(self, port: int) -> None:
        with redis.RedisCluster(host="127.0.0.1", port=port) as client:
            nodes = [client.nodes_manager.get_node_from_slot(slot) for slot in range(REDIS_CLUSTER_HASH_SLOTS)]
        self._connections = {
            node.name: redis.Connection(host=node.host, port=node.port, protocol=2) for node in set(nodes)
        }
        self._owners = [self._connections[node.name] for node in nodes]

    def __enter__(self) -> HandPacked:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.disconnect()

    def mget(self, keys: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """Read keys: an MGET for each slot, one write per node."""
        slots: dict[int, list[bytes]] = {}
        for key in keys:
            slots.setdefault(key_slot(key), []).append(key)
        nodes: dict[redis.Connection, list[list[bytes]]] = {}
        for slot, group in slots.items():
            nodes.setdefault(self._owners[slot], []).append(group)
        for connection, groups in nodes.items():
            commands = [piece for group in groups for piece in connection.pack_command("MGET", *group)]
            connection.send_packed_command([b"".join(commands)], check_health=False)
        return {
            key: value
            for connection, groups in nodes.items()
            for group in groups
            for key, value in zip(group, connection.read_response(), strict=True)
        }
