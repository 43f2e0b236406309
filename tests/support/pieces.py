"""A project whose registry, offline store and online store can be taken apart: restored, lost, or another one's."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from featurestore.consistency.belonging import Mismatch, mismatches
from featurestore.store import FeatureStore
from support.example import made_once

T0 = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)
FEATURES = """
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64

driver = Entity("driver", {{"driver": Int64}})
trips = PushSource("trips", ParquetSource("trips_file", "trips.parquet", "at"))
stats = FeatureView(
    "stats", entities=[driver], source=trips, schema=[Field("count", Int64), Field("stars", Int64)],
    description={description!r},
)
model = FeatureService("model", [stats])
"""
PIECES = ("registry", "offline", "online")


def day(number: float) -> datetime:
    """Return an instant of the project's month."""
    return T0 + timedelta(days=number)


class Project:
    """One project in a folder. ``online_url`` is a Redis, or None for an embedded store."""

    def __init__(self, root: Path, online_url: str | None) -> None:
        self.root, self.online_url = root, online_url
        root.mkdir(parents=True)
        self._write_settings()
        self.declare("first")
        self.rows: dict[str, list[Any]] = {"driver": [], "at": [], "count": [], "stars": []}

    @classmethod
    def at(cls, root: Path, online_url: str | None = None) -> Project:
        """Return the project that lies in a folder, which was copied, with an online store of the same kind."""
        project = cls.__new__(cls)
        project.root, project.online_url = root, online_url
        project.rows = pq.read_table(root / "trips.parquet").to_pydict()
        project._write_settings()
        return project

    def _write_settings(self) -> None:
        url = self.online_url
        online = "lmdb:///data/online" if url is None else f"{{url: '{url}', read_timeout_ms: 1000}}"
        (self.root / "feature_store.yaml").write_text(f"project: shop\nonline_store: {online}\n")

    def declare(self, description: str) -> None:
        (self.root / "features.py").write_text(FEATURES.format(description=description))

    def open(self) -> FeatureStore:
        return FeatureStore(self.root)

    def apply(self, description: str) -> None:
        self.declare(description)
        with self.open() as store:
            store.apply()

    def source(self, rows: Iterable[tuple[int, float, int]]) -> None:
        """Add (driver, day, count) to the source."""
        for driver, at, count in rows:
            for name, value in zip(self.rows, (driver, day(at), count, 5), strict=True):
                self.rows[name].append(value)
        pq.write_table(pa.table(self.rows), self.root / "trips.parquet")

    def run(self) -> None:
        with self.open() as store:
            store.materialize_incremental()

    def push(self, driver: int, at: float, count: int) -> None:
        with self.open() as store:
            store.push("trips", {"driver": [driver], "at": [day(at)], "count": [count], "stars": [1]})
        # What the committer does after it has answered must not meet a folder that is being replaced.
        for thread in threading.enumerate():
            if thread.name.startswith("commit "):
                thread.join(20)

    def push_until(self, version: int) -> None:
        """Let the table have a version, by commits that the registry does not look at."""
        with self.open() as store:
            workspace = store.workspace
            registered = workspace.snapshot().registered("stats")
            found = workspace.offline.current(registered.table)
            while found is not None and found.number < version:
                found = workspace.offline.commit(registered.table, registered.table_schema, base=found.number, add=[])

    def online(self, drivers: Iterable[int] = range(1, 8)) -> dict[int, int | None]:
        """Return each driver's count that is online."""
        drivers = list(drivers)
        with self.open() as store:
            found = store.get_online_features(["stats:count"], {"driver": drivers}).to_dict()
        return dict(zip(drivers, found["count"], strict=True))

    def offline(self, drivers: Iterable[int] = range(1, 8)) -> dict[int, int | None]:
        """Return each driver's newest count by the offline table, read without the join."""
        with self.open() as store:
            version = store.workspace.offline.current(store.workspace.snapshot().registered("stats").table)
        newest: dict[int, tuple[Any, ...]] = {}
        for file in version.files if version is not None else ():
            for row in pq.ParquetFile(file.path).read().to_pylist():
                found = (row["event_ts"], row["created_ts"] or row["event_ts"], row["fs_seq"], row["count"])
                newest[row["driver"]] = max(newest.get(row["driver"], found), found)
        return {driver: newest[driver][-1] if driver in newest else None for driver in drivers}

    def mismatches(self) -> list[Mismatch]:
        with self.open() as store:
            return mismatches(store.workspace)

    def kinds(self) -> set[tuple[str, str]]:
        return {(found.piece, found.kind) for found in self.mismatches()}

    def back_up(self, place: Path, pieces: Iterable[str] = PIECES) -> None:
        place.mkdir(parents=True, exist_ok=True)
        for piece in pieces:
            if piece == "registry":
                shutil.copy(self.root / "data/registry.db", place / "registry.db")
            elif piece == "offline":
                shutil.copytree(self.root / "data/offline", place / "offline")
            elif self.online_url is None:
                shutil.copytree(self.root / "data/online", place / "online")
            else:
                (place / "online").mkdir()
                for number, (key, value) in enumerate(self._dump().items()):
                    (place / "online" / f"{number}.key").write_bytes(key)
                    (place / "online" / f"{number}.value").write_bytes(value)

    def lose(self, piece: str) -> None:
        if piece == "registry":
            (self.root / "data/registry.db").unlink(missing_ok=True)
        elif piece == "online" and self.online_url is not None:
            self._flush()
        else:
            shutil.rmtree(self.root / "data" / piece, ignore_errors=True)

    def restore(self, place: Path, piece: str) -> None:
        self.lose(piece)
        if piece == "registry":
            shutil.copy(place / "registry.db", self.root / "data/registry.db")
        elif piece == "online" and self.online_url is not None:
            keys = (place / "online").glob("*.key")
            pairs = {key.read_bytes(): key.with_suffix(".value").read_bytes() for key in keys}
            self._load(pairs)
        else:
            shutil.copytree(place / piece, self.root / "data" / piece)

    def flush_one_primary(self) -> None:
        """Let one node of a cluster forget everything."""
        client = self._client()
        client.flushall(target_nodes=client.get_primaries()[0])
        client.close()

    def _is_cluster(self) -> bool:
        return "+cluster" in (self.online_url or "")

    def _client(self) -> Any:
        assert self.online_url is not None
        if self._is_cluster():
            host, port = self.online_url.rpartition("/")[2].split(",")[0].split(":")
            return redis.RedisCluster(host=host, port=int(port))
        return redis.Redis.from_url(self.online_url)

    def _dump(self) -> dict[bytes, bytes]:
        client = self._client()
        found = {key: client.get(key) for key in client.scan_iter(match="fs:shop:*")}
        client.close()
        return found

    def _load(self, pairs: dict[bytes, bytes]) -> None:
        client = self._client()
        for key, value in pairs.items():
            client.set(key, value)
        client.close()

    def _flush(self) -> None:
        client = self._client()
        for key in list(client.scan_iter(match="fs:shop:*")):
            client.delete(key)
        client.close()


def live(root: Path, online_url: str | None) -> Project:
    """Make a project that lives a little, with a backup of all its pieces from the middle of its life beside it.

    After the backup came: source rows of driver 3 and a newer one of driver 1, another revision, a run, a push.
    """
    project = Project(root, online_url)
    project.source([(1, 1, 10), (2, 1, 20)])
    project.apply("first")
    project.run()
    project.push(4, 2, 40)
    project.back_up(backup_of(root))
    project.source([(3, 3, 30), (1, 3, 11)])
    project.apply("second")
    project.run()
    project.push(5, 4, 50)
    return project


def backup_of(root: Path) -> Path:
    return root.parent / f"{root.name}-backup"


class Lives:
    """Projects like one that was made once for all workers of a run, on each kind of online store."""

    def __init__(self, factory: pytest.TempPathFactory, name: str, live: Callable[[Path, str | None], Project]) -> None:
        """``live`` makes the first in a folder that is not there yet; beside it may lie its `backup_of`."""
        self._factory, self._name, self._live = factory, name, live

    def __call__(self, root: Path, online_url: str | None) -> tuple[Project, Path]:
        """Return a project in ``root`` with its own online store, and its backup."""
        kind = "lmdb" if online_url is None else online_url.partition(":")[0]
        made = made_once(self._factory, f"{self._name} {kind}", lambda place: self._make(place, online_url))
        shutil.copytree(made / "project", root)
        shutil.copytree(backup_of(made / "project"), backup_of(root))
        project = Project.at(root, online_url)
        if online_url is not None:
            project.restore(made / "end", "online")
        return project, backup_of(root)

    def _make(self, place: Path, online_url: str | None) -> None:
        self._live(place / "project", online_url).back_up(place / "end", ["online"])
