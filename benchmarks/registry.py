"""The central registry: plans, applies and polls beside SQLite and an empty route, with 500 views."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from featurestore_registry.auth import Role, create_token
from featurestore_registry.sql import open_registry

from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.report import Row, Section, Target
from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.definitions import Definition
from featurestore.types import Float64, Int64
from tests.support.postgres_server import PostgresServer

VIEWS, FEATURES = 500, 10
POLLS = 200
EMPTY = """
import sys
import uvicorn
from fastapi import FastAPI
from featurestore.server.run import bind, server_config, url_of
app = FastAPI()
@app.get("/empty")
def empty() -> dict[str, str]:
    return {}
with bind("127.0.0.1", 0) as listening:
    print("at", url_of(listening), flush=True)
    uvicorn.Server(server_config(app)).run(sockets=[listening])
"""


def run(context: Context) -> Iterator[Section]:
    """Measure over SQLite, PostgreSQL and HTTP before PostgreSQL."""
    views = 20 if context.is_quick else VIEWS
    root = context.place("registry")
    source = pa.table(
        {"id": [1], "at": pa.array([0], pa.timestamp("us", "UTC"))} | {f"f{n}": [0.0] for n in range(FEATURES)}
    )
    pq.write_table(source, root / "rows.parquet")
    with PostgresServer("-c", "fsync=on") as server, _serving(root, server.url()) as (url, token, process):
        os.environ["FS_REGISTRY_TOKEN"] = token
        try:
            yield _plans(context, root, views, {"SQLite": "sqlite:///r.db", "PostgreSQL": server.url(), "HTTP": url})
            with _process([sys.executable, "-c", EMPTY]) as (empty, _):
                yield _polls(context, url, token, empty, process)
        finally:
            del os.environ["FS_REGISTRY_TOKEN"]


def definitions(views: int, *, changed: int = 0) -> list[Definition]:
    """Return that many views of ten features, and what they need; ``changed`` makes others of the same names."""
    entity, source = Entity("thing", join_keys={"id": Int64}), ParquetSource("rows", "rows.parquet", "at")
    fields = [Field(f"f{number}", Float64, description=f"of {changed}") for number in range(FEATURES)]
    made = [FeatureView(f"view_{number}", entities=[entity], source=source, schema=fields) for number in range(views)]
    return [entity, source, *made]


def _plans(context: Context, root: Path, views: int, urls: dict[str, str]) -> Section:
    section = Section(
        "The registry, plans and applies",
        f"{views} views of {FEATURES} features, in one process. A plan without changes: the definitions are loaded. An "
        "apply changes every view, plan included; its floor is the same on a SQLite file, which nobody shares.",
    )
    stores = {}
    for name, url in urls.items():
        place = root / name
        place.mkdir()
        shutil.copy(root / "rows.parquet", place)
        (place / "feature_store.yaml").write_text(f"project: p\nregistry: {url}\n")
        (place / "features.py").write_text("")
        stores[name] = FeatureStore(place)
        stores[name].apply(definitions(views))
    unchanged = definitions(views)
    for name, store in stores.items():
        seconds = measure(timed(store.plan, unchanged), lambda: 1.0, count=context.pairs).ours
        section.rows.append(Row(f"plan without changes, {name}", "s", alone=seconds, note="1 s at most wanted"))
    numbers = iter(range(1, 10_000))

    def apply(store: FeatureStore) -> Callable[[], float]:
        return lambda: timed(store.apply, definitions(views, changed=next(numbers)))()

    for name in ("PostgreSQL", "HTTP"):
        pairs = measure(apply(stores[name]), apply(stores["SQLite"]), count=context.pairs)
        section.rows.append(Row(f"apply of {views} views, {name}", "s", pairs, Target(at_most=3)))
    for store in stores.values():
        store.close()
    return section


def _polls(context: Context, url: str, token: str, empty: str, process: psutil.Process) -> Section:
    section = Section(
        "The registry, polls",
        f"{POLLS} polls of a feature server, one after the other, while nothing changes; the floor is an empty route "
        "of FastAPI. The server's PostgreSQL is on this machine.",
    )
    with httpx.Client(headers={"authorization": f"Bearer {token}"}) as client:
        tag = {"if-none-match": client.get(f"{url}/api/v1/state?project=p").headers["etag"]}

        def poll() -> None:
            assert client.get(f"{url}/api/v1/state?project=p", headers=tag).status_code == 304

        def ask() -> None:
            assert client.get(f"{empty}/empty").status_code == 200

        calls = 5 if context.is_quick else POLLS
        pairs = measure(timed(poll, calls=calls), timed(ask, calls=calls), count=context.pairs)
        section.rows.append(Row("poll", "s", pairs, Target(at_most=2)))
    used = process.memory_info().rss >> 20
    section.rows.append(Row("memory of the registry's process, MiB", "", alone=used, note="150 at most wanted"))
    return section


@contextmanager
def _serving(root: Path, database: str) -> Iterator[tuple[str, str, psutil.Process]]:
    with open_registry(database) as registry:
        token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=int(time.time() * 1e6))
    host = root / "host"
    host.mkdir()
    (host / "feature_store.yaml").write_text(f"project: host\nregistry: {database}\n")
    command = [sys.executable, "-m", "featurestore", "registry", "serve", "--repo", str(host), "--port", "0"]
    with _process(command) as (url, process):
        yield url, token, process


@contextmanager
def _process(command: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
