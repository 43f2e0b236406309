"""Feast on the same work, on the same machine, in the same run. Feast lives in an environment of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import httpx
import psutil
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.http import entities_named, running, write_bodies
from benchmarks.load import closed_loop
from benchmarks.pairs import measure, timed
from benchmarks.projects import make_project, newest_rows, open_workspace, references, requests_of
from benchmarks.publish import publish_all
from benchmarks.report import Row, Section
from benchmarks.training_set import product_training_set
from benchmarks.workload import DAY_US, WorkloadView
from featurestore import FeatureStore
from tests.compat.feast_client import FEAST_VERSION, environment

MOST_PAIRS = 3
"""Feast's side takes long, and what is far apart needs no many pairs."""

COUNTS = (1, 10, 100)
READS = 30
SCRIPT = Path(__file__).with_name("feast_side.py")


@dataclass(frozen=True)
class Feast:
    """A repo of Feast."""

    python: Path
    repo: Path
    plan: dict[str, Any]

    @classmethod
    def of(
        cls, context: Context, name: str, views: Sequence[WorkloadView], of_views: dict[str, Any], **plan: Any
    ) -> Feast:
        """Make a repo with the views registered."""
        repo = context.place(name)
        host, port = context.redis_url.removeprefix("redis://").split("/")[0].split(":")
        settings = {
            "project": "bench",
            "provider": "local",
            "registry": str(repo / "registry.db"),
            "offline_store": {"type": "duckdb"},
            "online_store": {"type": "redis", "connection_string": f"{host}:{port}"},
            "entity_key_serialization_version": 3,
        }
        (repo / "feature_store.yaml").write_text(json.dumps(settings))
        described = [{**_described(view, repo), **of_views} for view in views]
        document = {"views": described, "references": references(views), **plan}
        (repo / "plan.json").write_text(json.dumps(document))
        made = cls(environment(context.data / "feast", "[redis,duckdb]"), repo, document)
        made.run("apply")
        return made

    def run(self, *arguments: str) -> dict[str, Any]:
        """Run a command of Feast's side."""
        command = [str(self.python), "-P", "-W", "ignore", str(SCRIPT), str(self.repo), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Run its feature server with one worker and yield the URL."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        feast = self.python.with_name("feast")
        command = [
            str(feast),
            "--chdir",
            str(self.repo),
            "serve",
            "--port",
            str(port),
            "--no-access-log",
            "--max-requests",
            "0",
        ]
        with (self.repo / "serve.log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=_environment())
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(f"{url}/health")
            yield url
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.terminate()
            process.wait(timeout=30)


def run(context: Context) -> Iterator[Section]:
    """Measure training sets, publishing, online reads and HTTP beside Feast's."""
    if context.is_quick:
        return
    yield _training_sets(context)
    yield from _online(context)


def _training_sets(context: Context) -> Section:
    workload = context.workload()
    section = _section(
        "training set, workload m",
        "100,000 entity rows, 30 features of two views, Parquet to Parquet; Feast with its DuckDB offline store.",
    )
    out = context.folder / "feast.parquet"
    for with_ttl in (True, False):
        name = f"beside_feast_{'ttl' if with_ttl else 'none'}"
        root = make_project(context.place(name), workload.views, online_url="lmdb:///data/online", with_ttl=with_ttl)
        ttl = {} if with_ttl else {"ttl_us": 365 * DAY_US}
        feast = Feast.of(context, f"{name}_repo", workload.views, ttl, entities=str(workload.entities))
        product_training_set(root, workload, context.folder / "ours.parquet")  # which also checks the files
        ours = timed(product_training_set, root, workload, context.folder / "ours.parquet")
        found: dict[str, Any] = {}

        def theirs(feast: Feast = feast, found: dict[str, Any] = found) -> float:
            found.update(feast.run("historical", str(out)))
            return float(found["seconds"])

        pairs = measure(ours, theirs, count=_pairs(context))
        note = f"Feast's peak {found['peak_mib']:,.0f} MiB, its rows {found['rows']:,} of {workload.rows:,}"
        section.rows.append(
            Row(f"training set, ttl {'of days' if with_ttl else 'of a year (ours: none)'}", "s", pairs, note=note)
        )
    return section


def _online(context: Context) -> Iterator[Section]:
    folder = context.place("beside_feast_online")
    views = newest_rows(context.workload(), folder)
    root = make_project(folder / "ours", views, online_url=context.redis_url, unused_views=3)
    requests = {str(count): requests_of(views, count, READS) for count in COUNTS}
    feast = Feast.of(context, "beside_feast_online_repo", views, {}, requests=requests)
    publishing = _section("publish to Redis", "30,000 entities of two views, the newest row of each, from Parquet.")
    workspace = open_workspace(root, context.redis_url)
    ours = timed(publish_all, workspace, views)
    theirs = partial(_seconds, feast, "materialize")
    publishing.rows.append(Row("newest rows to records online", "s", measure(ours, theirs, count=_pairs(context))))
    workspace.close()
    yield publishing
    yield _reads(context, root, feast, requests)
    yield _http(context, folder, root, feast, views)


def _reads(context: Context, root: Path, feast: Feast, requests: dict[str, list[dict[str, list[int]]]]) -> Section:
    section = _section("online reads in process, Redis", "n entities x 2 views, 30 features, to the end of to_dict().")
    asked = [f"{view['name']}:{name}" for view in feast.plan["views"] for name in view["features"]]
    with FeatureStore(root) as store:
        for count, some in requests.items():

            def ours(some: list[dict[str, list[int]]] = some) -> float:
                times = []
                for columns in some:
                    start = time.perf_counter()
                    store.get_online_features(asked, columns).to_dict()
                    times.append(time.perf_counter() - start)
                return median(times)

            def theirs(count: str = count) -> float:
                return float(feast.run("reads", count)[count])

            section.rows.append(Row(entities_named(int(count)), "s", measure(ours, theirs, count=_pairs(context))))
    return section


def _http(context: Context, folder: Path, root: Path, feast: Feast, views: Sequence[WorkloadView]) -> Section:
    section = _section(
        "HTTP, 16 connections, 1 worker",
        "Requests a second, both asked by /get-online-features; 30 features of two views from Redis.",
    )
    path = "/get-online-features"
    with running(root, write_bodies(folder, views, 1)) as server, feast.serving() as url:
        for count in (1, 100):
            bodies = write_bodies(folder, views, count)
            rate = partial(_rate, context, bodies)
            pairs = measure(partial(rate, server.url + path), partial(rate, url + path), count=_pairs(context))
            section.rows.append(Row(entities_named(count), "requests/s", pairs))
    return section


def _section(title: str, about: str) -> Section:
    return Section(f"Beside Feast {FEAST_VERSION}: {title}", f"{about} The column floor is Feast.")


def _pairs(context: Context) -> int:
    return min(context.pairs, MOST_PAIRS)


def _rate(context: Context, bodies: Path, url: str) -> float:
    return closed_loop(url, bodies, connections=16, seconds=context.seconds).requests_per_second


def _seconds(feast: Feast, command: str) -> float:
    return float(feast.run(command)["seconds"])


def _described(view: WorkloadView, folder: Path) -> dict[str, Any]:
    """Return a view as Feast's side takes it: a source without decimals, which Feast does not have."""
    source = folder / f"{view.name}.parquet"
    schema = pq.read_schema(view.source)
    decimals = [name for name in view.features if str(schema.field(name).type).startswith("decimal")]
    replaced = ", ".join(f"{name}::DOUBLE AS {name}" for name in decimals)
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT * {f'REPLACE ({replaced})' if decimals else ''} FROM '{view.source}') TO '{source}'")
    kinds = {name: "double" if name in decimals else str(schema.field(name).type) for name in view.features}
    return {"name": view.name, "key": view.key, "ttl_us": view.ttl_us, "features": kinds, "source": str(source)}


def _environment() -> dict[str, str]:
    return {**os.environ, "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"}


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"Feast's server does not answer at {url}.")
        time.sleep(0.2)
