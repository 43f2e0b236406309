"""A small project that is ready to be served, and servers on it: in this process, and as real processes."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
from featurestore_registry.records import Change

from featurestore.backends import open_online, open_registry
from featurestore.ledger.serving import KIND
from featurestore.online.records.encoder import RecordEncoder
from featurestore.project.loader import load_definitions
from featurestore.project.settings import read_settings
from featurestore.registered.records import to_record
from featurestore.registered.snapshot import Snapshot
from featurestore.server.app import create_app
from featurestore.server.run import bind, server_config, url_of
from featurestore.types.times import Clock, system_clock
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    from support.forked_fs import Started

TOKEN = "t" * 20 + "-_." + "9" * 20
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For clients of plain HTTP: by default each loads all authorities anew, in some 20 ms."""
HOUR_US = 3_600_000_000

FEATURES = """
from datetime import timedelta

from featurestore import (
    Entity, FeatureService, FeatureView, Field, ParquetSource, RequestSource, on_demand_feature_view,
)
from featurestore.types import (
    Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp,
)

customer = Entity("customer", join_keys={"customer_id": Int64})
route = Entity("route", join_keys={"origin": String, "dest": String})
day = Entity("day", join_keys={"day": Date, "open": Bool, "raw": Bytes, "number": Int32})
orders = ParquetSource("orders", path="data/orders.parquet", timestamp_field="ordered_at")

everything = FeatureView(
    "everything",
    entities=[customer],
    source=orders,
    schema=[
        Field("an_int32", Int32),
        Field("an_int64", Int64),
        Field("a_float32", Float32),
        Field("a_float64", Float64),
        Field("a_bool", Bool),
        Field("a_string", String),
        Field("some_bytes", Bytes),
        Field("an_instant", Timestamp),
        Field("a_date", Date),
        Field("a_decimal", Decimal(12, 2)),
        Field("numbers", Array(Float64)),
        Field("instants", Array(Array(Timestamp))),
    ],
)
fresh = FeatureView(
    "fresh",
    entities=[customer],
    source=orders,
    ttl=timedelta(hours=1),
    schema=[Field("clicks", Int64, default=0), Field("score", Float64)],
)
routes = FeatureView("routes", entities=[route], source=orders, schema=[Field("miles", Int64)])
days = FeatureView("days", entities=[day], source=orders, schema=[Field("visitors", Int32)])
request = RequestSource("request", schema=[Field("amount", Float64)])


@on_demand_feature_view(sources=[fresh[["clicks"]], request], schema=[Field("amount_per_click", Float64)])
def spending(inputs):
    return {
        "amount_per_click": [
            amount / clicks if clicks and amount is not None else None
            for amount, clicks in zip(inputs["amount"], inputs["clicks"])
        ]
    }


model = FeatureService("model_v1", features=[fresh, routes, spending])
plain = FeatureService("plain", features=[fresh, routes])
"""


class Project:
    """A feature repo on disk, applied; `put` publishes rows as a materialization would."""

    def __init__(
        self,
        root: Path,
        *,
        online_url: str = "lmdb:///data/online",
        refresh: str = "10s",
        # The usual 50 ms can pass on a machine busy with other tests.
        read_timeout_ms: int = 1000,
        write_timeout_ms: int = 5000,
    ) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        (root / "features.py").write_text(FEATURES)
        store: dict[str, Any] = {"url": online_url}
        if online_url.startswith("redis"):
            store |= {"read_timeout_ms": read_timeout_ms, "write_timeout_ms": write_timeout_ms}
        settings = {"project": "shop", "online_store": store, "server": {"refresh": refresh}}
        (root / "feature_store.yaml").write_text(json.dumps(settings))
        self.apply()

    @property
    def registry_file(self) -> Path:
        return self.root / "data" / "registry.db"

    def apply(self, without: Sequence[str] = ()) -> int:
        """Apply the definitions in the folder, but for some ``kind:name``; what is left out is deleted."""
        settings = read_settings(self.root)
        found = [definition for definition in load_definitions(self.root) if definition.key not in without]
        records = {record.key: record for record in (to_record("shop", definition) for definition in found)}
        with open_registry(settings.registry, self.root) as registry:
            chain = registry.definitions.chain("shop")
            before = {record.key: record for record in registry.definitions.read("shop").records}
            changes = [Change("put", r.kind, r.name, r) for r in records.values() if before.get(r.key) != r]
            changes += [Change("delete", r.kind, r.name) for key, r in before.items() if key not in records]
            if not changes:
                return chain.number
            made = registry.definitions.apply("shop", chain.head, changes, author="test", message="", commit="")
            return made.number

    def put(self, view: str, entity: Mapping[str, Any], values: Mapping[str, Any], *, event_us: int) -> None:
        """Publish one row."""
        self.put_all(view, [(entity, values)], event_us=event_us)

    def put_all(self, view: str, rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], *, event_us: int) -> None:
        """Publish rows, each an entity and its values."""
        settings = read_settings(self.root)
        with open_registry(settings.registry, self.root) as registry:
            registered = Snapshot.of(registry.definitions.read("shop")).views[view]
        encoder = RecordEncoder(registered.layout)
        writes = []
        for entity, values in rows:
            keys = [entity[name] for name, _ in registered.layout.join_keys]
            row = [values.get(name) for name, _ in registered.layout.fields]
            writes.append(encoder.write(keys, event_us, None, row))
        store = open_online(settings.online_store, self.root)
        store.put(encoder.schema_key, encoder.schema_json)
        store.write(writes, now_us=event_us)
        store.close()

    def until_told(self) -> None:
        """Wait until a server has said what it serves: nobody may replace the registry's file while that is written."""
        with open_registry(read_settings(self.root).registry, self.root) as registry:
            until(
                lambda: [e for e in registry.journal.newest("shop", KIND, limit=1) if "stopped" not in e.document],
                seconds=20,
            )

    def workspace(self, clock: Clock = system_clock) -> Workspace:
        return Workspace(self.root, read_settings(self.root), code=lambda: load_definitions(self.root), clock=clock)


def small_project(root: Path, now_us: int, **options: Any) -> Project:
    """Return a project with two customers: 1 has everything and is fresh, 2 is an hour and a second old."""
    project = Project(root, **options)
    project.put("fresh", {"customer_id": 1}, {"clicks": 7, "score": 0.5}, event_us=now_us - HOUR_US // 2)
    project.put("fresh", {"customer_id": 2}, {"clicks": 9, "score": 1.5}, event_us=now_us - HOUR_US - 1_000_000)
    project.put("fresh", {"customer_id": 3}, {"clicks": 3, "score": float("nan")}, event_us=now_us)
    project.put("routes", {"origin": "JFK", "dest": "LAX"}, {"miles": 2475}, event_us=now_us)
    return project


@contextmanager
def serving_here(source: Workspace, *, token: str | None = None, host: str = "127.0.0.1") -> Iterator[httpx.Client]:
    """Give a client of a real server in a thread of this process, so that the test can move the clock."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(server_config(create_app(source, token=token, host=host)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx.Client(base_url=url_of(listening), timeout=10, verify=NO_TLS) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of an answer, after checking that it has the one shape of all errors."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert set(document) == {"error"}
    assert set(document["error"]) == {"type", "message", "details"}
    assert document["error"]["details"]["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    return dict(document["error"])


def metric(client: httpx.Client, name: str) -> float:
    """Return a metric without labels, 0 where it is not told yet."""
    lines = client.get("/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def until(condition: Callable[[], Any], *, seconds: float = 60) -> Any:
    """Return what the condition returns once it is true."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(pause)
        pause = min(1.5 * pause, 0.1)  # a question costs the one who is asked, too
    raise AssertionError(f"it did not happen within {seconds} seconds")


def ask_until_ready(client: httpx.Client) -> None:
    """Return once the server says that it is ready."""
    until(lambda: client.get("/ready").status_code == 200)


class ServerProcess:
    """A running `fs serve`."""

    def __init__(self, process: subprocess.Popen[str] | ForkedProcess, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    @property
    def resident_bytes(self) -> int:
        """Memory that the process holds."""
        return self._memory_bytes("VmRSS")

    @property
    def peak_resident_bytes(self) -> int:
        """The most that it ever held."""
        return self._memory_bytes("VmHWM")

    def _memory_bytes(self, name: str) -> int:
        return int(Path(f"/proc/{self.process.pid}/status").read_text().split(f"{name}:")[1].split()[0]) * 1024

    @property
    def descriptors(self) -> int:
        """How many files and sockets the process has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def client(self, **options: Any) -> httpx.Client:
        # Workers may still be loading their modules, on a machine that is busy with other tests.
        return httpx.Client(base_url=self.url, timeout=60, verify=NO_TLS, **options)


class ForkedProcess:
    """A command that runs in a fork, with what the tests use of ``Popen``."""

    def __init__(self, started: Started) -> None:
        self._started, self.returncode = started, None
        self.pid, self.stdout = started.pid, started.stdout
        started.stdin.close()

    returncode: int | None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._started.poll()
        return self.returncode

    def wait(self, timeout: float = 60) -> int:
        code = until(lambda: None if self.poll() is None else (self.returncode,), seconds=timeout)[0]
        assert isinstance(code, int)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_fs(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str], *, fresh: bool
) -> subprocess.Popen[str] | ForkedProcess:
    """Start ``fs`` in a new process if it is to be ``fresh`` or counts its coverage, else in a fork: Python takes as
    long to start as many a test takes. The log gets its standard error."""
    given = {**os.environ, **environment}
    with log.open("a") as errors:
        if fresh or "COVERAGE_PROCESS_CONFIG" in given:
            command = [str(Path(sys.executable).parent / "fs"), *arguments]
            return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=given)
    from support.forked_fs import forked_fs  # which a benchmark, whose servers are all fresh, cannot import

    return ForkedProcess(forked_fs().start("", arguments, Path.cwd(), given, str(log)))


@contextmanager
def ended_well(process: subprocess.Popen[str] | ForkedProcess, log: Path) -> Iterator[str]:
    """Give the URL that a server prints first; at the end it must stop by SIGTERM, with exit code 0."""
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "http://" in line, log.read_text()
        yield line.split()[-1]
        if process.poll() is None:
            process.terminate()
        assert process.wait(timeout=20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@contextmanager
def serving(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[ServerProcess]:
    """Run ``fs serve`` on a free port of loopback; at the end it must stop by SIGTERM, with exit code 0.

    It is a fork, but where it starts workers, or is to be a ``fresh`` process: its memory is then its own.
    """
    log = root / "server.log"
    command = ["serve", "--repo", str(root), "--port", "0", *arguments]
    process = start_fs(command, log, environment or {}, fresh=fresh or "--workers" in arguments)
    with ended_well(process, log) as url:
        yield ServerProcess(process, url, log)
