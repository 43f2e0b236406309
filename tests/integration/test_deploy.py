"""What `deploy/` and the guide say, against the code, a real Redis and a real server."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from starlette.routing import Route
from support.example import REPOSITORY
from support.projects import make_workspace
from support.redis_cluster import RedisCluster
from support.redis_server import RedisServer, find_redis_server
from support.serving import Project, serving, small_project, until

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.cli.main import main
from featurestore.errors import OnlineStoreUnavailableError
from featurestore.ingest import push
from featurestore.materialization import republish, succeeded
from featurestore.online.interface import Repair
from featurestore.online.records.codec import version_of
from featurestore.server.app import create_app
from featurestore.server.watch.metrics import STAGES, Metrics
from featurestore.serving import get_online_features
from featurestore.statuses import Status
from featurestore.types import Int64, String
from featurestore.types.times import system_clock, to_datetime

pytestmark = pytest.mark.uncounted

GUIDE = (REPOSITORY / "docs" / "how-to" / "deploy.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "featurestore.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]

TARGET_LABELS = {"job", "instance"}
"""Those that Prometheus itself adds to all that it scrapes."""


def declared() -> dict[str, set[str]]:
    """Return the labels of every series that a server has, by its name."""
    found = {}
    for collector in Metrics()._registry._collector_to_names:
        ends = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(collector._type, [""])
        for end in ends:
            labels = {*collector._labelnames, *(["le"] if end == "_bucket" else [])}
            found[collector._name + end] = labels
    return found


SERIES = declared()


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every query with the name of where it stands."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("name", "query"), list(expressions()), ids=lambda text: text if len(text) < 60 else "")
def test_queries_use_metrics_and_labels_that_the_server_has(name: str, query: str, routes: set[str]) -> None:
    used = re.findall(r"\b([a-zA-Z_:][\w:]*)\{([^}]*)\}|\b(featurestore_\w+)(?!\w*\{)", query)
    known = {*SERIES, "up"}
    labels = set(TARGET_LABELS)
    for selected, matchers, bare in used:
        metric = selected or bare
        assert metric in known, metric
        labels |= SERIES.get(metric, set())
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            assert label in SERIES.get(metric, set()) | TARGET_LABELS, (metric, label)
            check_value(label, operator, value, routes)
    assert used
    for grouped in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",") if label.strip()} <= labels, grouped
    assert query.count("(") == query.count(")")


def check_value(label: str, operator: str, value: str, routes: set[str]) -> None:
    if value.startswith("$"):
        assert value[1:] in {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    elif label == "route":
        assert value in routes
    elif label == "status" and operator in ("=", "!="):
        assert value in Status.__members__
    elif label == "status":
        assert re.fullmatch(r"[2-5]\.\.", value)
    elif label == "stage":
        assert value in STAGES


@pytest.fixture(scope="module")
def routes(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    project = small_project(tmp_path_factory.mktemp("routes") / "repo", system_clock())
    return {route.path for route in create_app(project.workspace()).api.routes if isinstance(route, Route)}


def test_the_dashboard_shows_every_metric() -> None:
    text = " ".join(query for _, query in expressions())
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name) for name in SERIES if not name.endswith("_created")}
    assert [name for name in sorted(metrics) if name not in text] == []


def test_grafana_can_load_the_dashboard() -> None:
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    assert "id" not in DASHBOARD  # Grafana gives one; a file with one replaces another dashboard
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    used = set(re.findall(r"\$(\w+)", json.dumps(DASHBOARD["panels"]))) - {"__rate_interval"}
    assert used | {"datasource"} == variables


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/how-to/deploy.md"
    assert anchor == rule["alert"].lower()
    section = re.search(rf"^### {rule['alert']}\n\n(.+?)(?=^#|\Z)", GUIDE, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert len(section[1]) > 100
    assert re.fullmatch(r"\d+[ms]", rule["for"])


def test_the_guide_speaks_of_no_alert_that_there_is_not() -> None:
    runbooks = GUIDE.partition("## When an alert fires")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", runbooks, re.MULTILINE) == [rule["alert"] for rule in RULES]


# Redis

USERS = ("fs_admin", "fs_reader", "fs_writer")
(ACL_FILE,) = re.findall(r"^```text\n(user .*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
(REDIS_CONF,) = re.findall(r"^```text\n(maxmemory .*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
FOR_WRITERS = re.findall(r"`fs (\w+)`", "".join(re.findall(r"^(\|.*\| the writer's.*)$", GUIDE, re.MULTILINE)))


def acl_commands() -> list[list[str]]:
    """Return the commands that make the guide's users on a server that runs."""
    return [["ACL", "SETUSER", *line.split()[1:]] for line in ACL_FILE.splitlines()]


def signed_in(server: RedisServer, user: str, password: str | None = None) -> redis.Redis:
    password = password or user.replace("fs_", "") + "-password"
    return redis.Redis(host="127.0.0.1", port=server.port, username=user, password=password, socket_timeout=5)


@pytest.mark.parametrize("place", ["aclfile", "redis.conf"])
def test_the_users_of_the_guide_outlive_a_restart(tmp_path: Path, place: str) -> None:
    acl_file, conf = tmp_path / "users.acl", tmp_path / "redis.conf"
    acl_file.write_text(ACL_FILE)
    conf.write_text(REDIS_CONF + (f"aclfile {acl_file}\n" if place == "aclfile" else ACL_FILE))
    with RedisServer(tmp_path, command=[find_redis_server(), str(conf), "--dir", str(tmp_path)]) as server:
        for _ in range(2):
            assert [signed_in(server, user).ping() for user in USERS] == [True] * 3
            with pytest.raises(redis.AuthenticationError):
                server.client().ping()
            server.restart()
        admin = signed_in(server, "fs_admin")
        admin.execute_command("ACL", "SETUSER", "fs_reader", ">second-password")
        server.restart()
        with pytest.raises(redis.AuthenticationError):
            signed_in(server, "fs_reader", "second-password").ping()
        admin.execute_command("ACL", "SETUSER", "fs_reader", ">second-password")
        admin.execute_command(*(["ACL", "SAVE"] if place == "aclfile" else ["CONFIG", "REWRITE"]))
        server.restart()
        assert signed_in(server, "fs_reader", "second-password").ping()
        if place == "aclfile":
            acl_file.write_text(ACL_FILE.replace("reader-password", "third-password"))
            admin.execute_command("ACL", "LOAD")
            assert signed_in(server, "fs_reader", "third-password").ping()


def test_a_replica_signs_in_as_the_guide_says(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> None:
    acl_file = tmp_path / "users.acl"
    acl_file.write_text(ACL_FILE)
    primary = start_redis("--aclfile", str(acl_file))
    options = re.findall(r"`(masteruser|masterauth) ([\w-]+)`", GUIDE)
    assert len(options) == 2
    given = [part for name, value in options for part in (f"--{name}", value)]
    replica = start_redis("--replicaof", f"127.0.0.1 {primary.port}", *given)
    signed_in(primary, "fs_admin").set("fs:shop:a", "1")
    for _ in range(200):
        if replica.client().get("fs:shop:a") == b"1":
            return
        time.sleep(0.05)
    pytest.fail("the replica has not followed in ten seconds")


class Store:
    """A Redis or a cluster set up as the guide says, with a project in it."""

    def __init__(self, servers: Sequence[RedisServer], root: Path) -> None:
        self._servers = servers
        self._admins = [server.client() for server in servers]  # opened before the default user is off
        for admin in self._admins:
            if len(servers) == 1:
                admin.set("neighbour", "untouched")
            for command in acl_commands():
                assert admin.execute_command(*[part.replace("nyc_flights", "shop") for part in command]) == b"OK"
        self.project = small_project(root, system_clock(), online_url=self.url("fs_writer"))

    def url(self, user: str) -> str:
        passwords = {command[2]: command[4].removeprefix(">") for command in acl_commands() if "on" in command}
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in self._servers)
        scheme, database = ("redis", "/0") if len(self._servers) == 1 else ("redis+cluster", "")
        return f"{scheme}://{user}:{passwords[user]}@{hosts}{database}"

    def client(self, user: str) -> redis.Redis:
        return redis.Redis.from_url(self.url(user), socket_timeout=5)

    def limit(self, user: str, right: str) -> None:
        """Take a right from a user, everywhere."""
        for admin in self._admins:
            admin.execute_command("ACL", "SETUSER", user, right)

    def refused(self) -> list[Any]:
        """Return what a user was refused, by any server."""
        return [entry for admin in self._admins for entry in admin.execute_command("ACL", "LOG")]

    def close(self) -> None:
        for admin in self._admins:
            admin.close()


@pytest.fixture
def store(tmp_path: Path, start_redis: Callable[..., RedisServer]) -> Iterator[Store]:
    store = Store([start_redis("--maxmemory", "50mb", "--maxmemory-policy", "noeviction")], tmp_path / "repo")
    yield store
    store.close()


def test_a_server_elsewhere_follows_the_copies_of_the_registry(tmp_path: Path, redis_url: str) -> None:
    """The guide's section on several machines, with two folders in their place."""
    project = small_project(tmp_path / "repo", system_clock(), online_url=redis_url, refresh="200ms")
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "data").mkdir(parents=True)
    for name in ("feature_store.yaml", "features.py"):
        shutil.copy(project.root / name, elsewhere)
    (make_copy,) = re.findall(r"^python3 (-c .*)$", GUIDE, re.MULTILINE)

    def bring() -> None:
        subprocess.run([sys.executable, *shlex.split(make_copy)], cwd=project.root, check=True, timeout=60)
        shutil.copy(project.root / "data" / "registry.copy", elsewhere / "data" / "registry.next")
        (elsewhere / "data" / "registry.next").rename(elsewhere / "data" / "registry.db")

    bring()
    with serving(elsewhere) as server, server.client() as client:
        body = {"feature_service": "plain", "entities": {"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]}}
        assert client.post("/v1/online-features", json=body).json()["rows"] == [[7, 0.5, 2475]]
        project.apply(without=["feature_service:plain"])
        bring()
        until(lambda: client.get("/ready").json()["revision"] == 2)
        assert client.post("/v1/online-features", json=body).status_code == 404


def test_both_users_of_the_guide_work_on_a_cluster(tmp_path: Path) -> None:
    cluster = RedisCluster(tmp_path)
    try:
        store = Store(cluster.servers, tmp_path / "repo")
        environment = {"FS_ONLINE_STORE": store.url("fs_reader"), "FS_ONLINE_STORE__READ_TIMEOUT_MS": "1000"}
        with serving(store.project.root, environment=environment) as server, server.client() as client:
            assert client.get("/ready").status_code == 200
            body = {"features": ["fresh:clicks"], "entities": {"customer_id": [1, 2, 3]}}
            assert client.post("/v1/online-features", json=body).json()["rows"] == [[7], [0], [3]]
        assert "cluster_state" in store_facts(store.project)
        keep_windows(tmp_path / "windows", store.url("fs_writer"))
        assert store.refused() == []
        store.close()
    finally:
        cluster.stop()


def test_the_reader_of_the_guide_serves_and_can_write_nothing(store: Store) -> None:
    environment = {"FS_ONLINE_STORE": store.url("fs_reader"), "FS_ONLINE_STORE__READ_TIMEOUT_MS": "1000"}
    with serving(store.project.root, environment=environment) as server, server.client() as client:
        assert client.get("/ready").status_code == 200
        body = {"features": ["fresh:clicks", "routes:miles"], "entities": {"customer_id": [1], "origin": ["JFK"]}}
        body["entities"]["dest"] = ["LAX"]
        assert client.post("/v1/online-features", json=body).json()["rows"] == [[7, 2475]]
    assert store.refused() == []
    with store.client("fs_reader") as reader:
        for command in (
            ["SET", "fs:shop:fresh:{1}", "x"],
            ["DEL", "fs:shop:fresh:{1}"],
            ["UNLINK", "fs:shop:fresh:{1}"],
            ["EVAL", "return 1", "0"],
            ["EXPIRE", "fs:shop:fresh:{1}", "1"],
            ["FLUSHALL"],
            ["KEYS", "*"],
            ["SCAN", "0"],
            ["CONFIG", "GET", "*"],
            ["ACL", "LIST"],
            ["MGET", "neighbour"],
            ["MGET", "fs:other:fresh:{1}"],
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                reader.execute_command(*command)


def keep_windows(root: Path, url: str) -> None:
    """Push events of a few entities, so many that they go into tiles, later ones and ones of new entities."""
    view = FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", ParquetSource("sales_file", "sales", "sold_at")),
        schema=[Field("id", String)],
        event_id="id",
        aggregations=[Aggregation("*", "count", windows=[timedelta(hours=1)])],
    )
    root.mkdir()
    online = {"url": url, "read_timeout_ms": 10_000}
    with closing(make_workspace(root, [view], online_url=online, now_us=system_clock())) as workspace:
        for minutes in (30, 20, 10):
            shops = [*[*range(4)] * 40, minutes]
            sold = [to_datetime(workspace.clock() - minutes * 60_000_000)] * len(shops)
            ids = [f"{minutes} {place}" for place in range(len(shops))]
            push(workspace, "sales_push", {"shop": shops, "sold_at": sold, "id": ids})
        found = get_online_features(workspace, ["sales:*"], {"shop": [*range(4)]}).to_dict()
        assert found["count_1h"] == [120] * 4
        succeeded(republish(workspace))


def test_the_writer_of_the_guide_keeps_windows(store: Store, tmp_path: Path) -> None:
    keep_windows(tmp_path / "windows", store.url("fs_writer"))
    assert store.refused() == []


def test_a_writer_that_may_not_read_is_told_so(store: Store) -> None:
    """The script reads before it writes: what it is refused must not pass for a key of another type."""
    store.limit("fs_writer", "-get")
    with pytest.raises(OnlineStoreUnavailableError, match=r"is not available: .*deploy\.md has its ACL line"):
        store.project.put("fresh", {"customer_id": 1}, {"clicks": 8}, event_us=system_clock())
    workspace = store.project.workspace()
    with pytest.raises(OnlineStoreUnavailableError, match=r"is not available: .*deploy\.md has its ACL line"):
        workspace.online.repair([Repair(b"fs:shop:fresh:{1}", version_of(1, 1), None)], now_us=1)
    workspace.close()


def test_the_writer_of_the_guide_does_all_that_jobs_do(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project: Project = store.project
    monkeypatch.setenv("FS_ONLINE_STORE", store.url("fs_writer"))

    def fs(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--repo", str(project.root)])
        printed = capsys.readouterr()
        assert caught.value.code == 0, printed
        return printed.out

    project.put("fresh", {"customer_id": 9}, {"clicks": 1}, event_us=system_clock())
    assert "fresh" in fs("verify")
    assert "noeviction" in store_facts(project)
    fs("gc")
    fs("teardown", "--allow-destroy")
    assert store.refused() == []
    with store.client("fs_writer") as writer:
        assert list(writer.scan_iter("fs:shop:*")) == []
        for command in (
            ["SET", "neighbour", "x"],
            ["GET", "neighbour"],
            ["SET", "fs:other:a", "x"],
            ["FLUSHALL"],
            ["KEYS", "*"],
            ["CONFIG", "SET", "maxmemory", "1"],
            ["SHUTDOWN"],
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                writer.execute_command(*command)


def test_verify_is_not_for_the_reader(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(FOR_WRITERS) == {"serve", "materialize", "push", "gc", "teardown", "apply", "verify"}
    monkeypatch.setenv("FS_ONLINE_STORE", store.url("fs_reader"))
    with pytest.raises(SystemExit) as caught:
        main(["verify", "--repo", str(store.project.root)])
    assert caught.value.code == 1
    assert "no permissions to run the 'scan' command" in capsys.readouterr().err


def store_facts(project: Project) -> str:
    with_store = project.workspace()
    facts = dict(with_store.online.facts())
    with_store.close()
    return str(facts)
