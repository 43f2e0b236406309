"""Fixtures that every test may use; what they are made of is in `tests/support`."""

from __future__ import annotations

import gc
import os
import posix
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import none
from support.example import copy_example, made_once, write_example_sources
from support.examples import PROFILE
from support.order import slow_first
from support.pieces import Lives, live
from support.postgres_server import PostgresServer
from support.redis_cluster import RedisCluster
from support.redis_server import RedisServer

# "ci" always tries the same examples, so that a run says something about the change and not about the dice;
# HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, print_blob=True)
settings.register_profile("explore", deadline=None, max_examples=2_000, print_blob=True)
settings.load_profile(PROFILE)


UNCOUNTED = ("acceptance", "properties")
"""Folders of tests whose lines the others run too: counting them takes half as long again, or twice."""
OTHER_STORES = {"redis", "redis_cluster"}
"""Parameters of tests that run on several online stores: their lines are counted on the embedded one."""


COUNTED_ONCE = ("conformance",)
"""Folders of tests that run the same lines in nearly all of their cases: they are counted in the first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begun: set[str] = set()
    for item in items:
        if item.path.parent.name in COUNTED_ONCE or item.get_closest_marker("counted_once"):
            name = item.nodeid.partition("[")[0]
            if name in begun:
                item.add_marker("uncounted")
            begun.add(name)
    if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
        items[:] = slow_first(items, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def pytest_configure(config: pytest.Config) -> None:
    """End what pytest-cov begins before it knows that this is a worker: where the worker pauses, it would go on."""
    if hasattr(config, "workerinput") and (counting := _counting(config)) is not None:
        counting.pause()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Let no worker be counted as a process, too: that would go on wherever the worker pauses."""
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)  # each worker sets it anew, for its own processes


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Take modules and tests out of the search for garbage: they stay, and in a fork the search would copy them.

    What runs when modules are imported is the same in each worker: it is counted in the first.
    """
    counting = _counting(session.config) if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0" else None
    gc.disable()
    if counting is not None:
        counting.pause()
    try:
        return (yield)
    finally:
        if counting is not None:
            counting.resume()
        # Hypothesis asks the collector who holds its random numbers: it must have done so before.
        given(none())(settings(max_examples=1, database=None)(lambda _: None))()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Count coverage where the marks say so: to import everything counted takes a process half a second more."""
    counting = _counting(item.config)
    is_repeated = _is_repeated(item)
    if counting is None or (item.get_closest_marker("counts_processes") and not is_repeated):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        patch.setattr(os, "_exit", posix._exit)  # coverage's own writes all that the parent has counted, in each fork
        if not (is_repeated or item.path.parent.name in UNCOUNTED or item.get_closest_marker("uncounted")):
            return (yield)
        counting.pause()
        try:
            return (yield)
        finally:
            counting.resume()


def _counting(config: pytest.Config) -> Any:
    """Return what counts coverage in this process, or None."""
    return getattr(config.pluginmanager.get_plugin("_cov"), "cov_controller", None)


def _is_repeated(item: pytest.Item) -> bool:
    given = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(isinstance(value, str) and value in OTHER_STORES for value in given)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real server for every test of one worker. Leave it running; take `start_redis` to break one."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the worker's server, emptied."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A real server for every test of one worker. Leave it running; make one of its own to break it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """The URL of an empty place in the worker's server."""
    return postgres_server.new_place()


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A real cluster for every test of one worker that asks for it. Leave it as it is."""
    with RedisCluster(tmp_path_factory.mktemp("redis_cluster")) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster_url(redis_cluster: RedisCluster) -> str:
    """The URL of the worker's cluster, emptied."""
    redis_cluster.flush()
    return redis_cluster.url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers of the test's own: ``start_redis("--maxmemory", "3mb", environment={"LC_ALL": "C"})``."""
    servers: list[RedisServer] = []

    def start(*options: str, environment: Mapping[str, str] | None = None) -> RedisServer:
        directory = tmp_path / f"redis{len(servers)}"
        directory.mkdir()
        servers.append(RedisServer(directory, *options, environment=environment))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def example_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the example's Parquet sources, instants as they were in 2013. Do not change it."""
    return made_once(tmp_path_factory, "example_sources", write_example_sources)


@pytest.fixture
def example_repo(tmp_path: Path, example_sources: Path) -> Path:
    """A feature repo of the test's own like `feature_repo/`, with its sources and nothing applied yet."""
    return copy_example(tmp_path / "feature_repo", example_sources)


@pytest.fixture(scope="session")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """Give projects that have lived a little: ``project, backup = lived(tmp_path / "project", redis_url)``."""
    return Lives(tmp_path_factory, "lived", live)


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def process_time_zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test in three process time zones: one without, one with summer time, one off by half an hour.

    DuckDB takes its default zone when it is first loaded, so what depends on that belongs into a subprocess.
    """
    zone: str = request.param
    with monkeypatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        yield zone
    time.tzset()
