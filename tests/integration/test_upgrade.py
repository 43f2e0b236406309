"""An installation that the earlier release made, and programs of that release beside those of this one.

Stores of that release say nothing of whose they are. `tests/data/installation-0.1` holds one.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from featurestore_registry.auth import known_tokens
from featurestore_registry.documents import RunDocument, WatermarkDocument
from pydantic import TypeAdapter
from support.command_line import CommandLine
from support.lives import CHECKS_OF_THE_MACHINE
from support.pieces import Project, day
from support.rows import commit_rows, publish

from featurestore.backends import open_registry
from featurestore.ledger.commits import known_commit
from featurestore.ledger.watermarks import read_watermark, write_watermark
from featurestore.offline.local.owner import OWNER_FILE
from featurestore.project.settings import read_settings

pytestmark = pytest.mark.uncounted

STORED = Path(__file__).resolve().parents[1] / "data" / "installation-0.1"
ONLINE = {1: 11, 2: 20, 3: 30, 4: 40, 5: None}
UNMARKED = {("online", "missing")}


class Installation(Project):
    """A copy of the stored installation."""

    def __init__(self, root: Path, online_url: str | None) -> None:
        shutil.copytree(STORED / "repo", root)
        for path in (root, *root.rglob("*")):
            path.chmod(path.stat().st_mode & ~0o007)  # what git checks out everybody may read, which the doctor tells
        self.root, self.online_url = root, online_url
        self.rows = pq.read_table(root / "trips.parquet").to_pydict()
        if online_url is not None:
            (root / "feature_store.yaml").write_text(
                f"project: shop\nonline_store: {{url: '{online_url}', read_timeout_ms: 1000}}\n"
            )
            shutil.rmtree(root / "data/online")
            records = json.loads((STORED / "redis.json").read_text())
            with redis.Redis.from_url(online_url) as client:
                client.mset({key: base64.b64decode(value) for key, value in records.items()})

    def contents(self) -> dict[str, bytes]:
        """Return every file, but for the lock of an embedded store, and every key."""
        found = {str(path): path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        found = {name: content for name, content in found.items() if not name.endswith("lock.mdb")}
        if self.online_url is not None:
            found |= {key.decode(): value for key, value in self._dump().items()}
        return found

    def identity(self) -> str:
        with open_registry(read_settings(self.root).registry, self.root) as registry:
            return registry.definitions.chain("shop").identity


@pytest.fixture(params=["lmdb", "redis"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    url = None if request.param == "lmdb" else request.getfixturevalue("redis_url")
    return Installation(tmp_path / "repo", url)


@pytest.fixture
def fs(installation: Installation, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(installation.root, capsys)


def saved_set(project: Project) -> dict[str, list[object]]:
    with project.open() as store:
        found = store.get_training_set("first").to_arrow().to_pydict()
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


def same_set(project: Project) -> bool:
    return saved_set(project) == json.loads((STORED / "training_set.json").read_text())


def published(fs: CommandLine) -> tuple[int, int]:
    """Return how many rows a run appended, and how many records it wrote."""
    (run,) = fs.json("materialize")
    assert run["state"] == "done"
    return run["appended"], run["published"]["written"] + run["published"]["stale"]


def check_settled(installation: Installation, fs: CommandLine) -> None:
    assert installation.kinds() == set()
    assert (installation.root / "data/offline/shop" / OWNER_FILE).is_file()
    assert installation.online(ONLINE) == installation.offline(ONLINE)
    fs("doctor")
    fs("verify")
    assert same_set(installation)


def test_the_stored_embedded_store_holds_what_the_stored_redis_does(tmp_path: Path) -> None:
    with Installation(tmp_path / "repo", None).open() as store:
        found = {key.decode(): value for batch in store.workspace.online.scan(b"fs:shop:stats") for key, value in batch}
    stored = json.loads((STORED / "redis.json").read_text())
    assert found == {key: base64.b64decode(value) for key, value in stored.items()}


def test_looking_changes_nothing_and_warns_only_that_the_next_run_publishes(
    installation: Installation, fs: CommandLine
) -> None:
    before = installation.contents()
    plan = fs.json("plan", "--check")
    assert plan["steps"] == []
    assert plan["notices"] == []
    (view,) = fs.json("status")
    assert (view["offline_rows"], view["online_rows"], view["published_version"]) == (5, 4, 1)
    assert [found["kind"] for found in view["mismatches"]] == ["missing"]
    assert installation.kinds() == UNMARKED
    checks = {check["name"]: check for check in fs.json("doctor")}
    assert checks["stats"]["state"] == "warning"
    assert "an earlier release published to it" in checks["stats"]["message"]
    assert "The next `fs materialize` publishes every entity again" in checks["stats"]["hint"]
    assert {check["state"] for name, check in checks.items() if name not in ("stats", *CHECKS_OF_THE_MACHINE)} == {"ok"}
    (checked,) = fs.json("verify", expect=1)
    assert (checked["files"], checked["records"]) == (3, 4)
    assert [problem for problem in checked["problems"] if "an earlier release" not in problem] == []
    assert fs("peek", "stats").count("\n") >= 5
    assert installation.online(ONLINE) == installation.offline(ONLINE) == ONLINE
    assert same_set(installation)
    (action,) = fs.json("repair", "--dry-run")["actions"][1:]
    assert "Publishes the newest rows of stats again" in action
    assert installation.contents() == before


def test_cleaning_keeps_all_and_says_why(installation: Installation, fs: CommandLine) -> None:
    before = installation.contents()
    garbage = fs.json("gc")
    kept = {found["what"]: found["why"] for found in garbage["kept"]}
    later = "it does not say yet whose it is; the next run that commits will mark it"
    assert kept == {
        "offline table shop/stats/1": later,
        "unneeded files of offline table shop/stats/2": later,
        "online records of stats (generation 1)": "nothing in this online store says whose it is",
    }
    assert (garbage["files"], garbage["records"]) == (0, 0)
    after = installation.contents()
    added = {name for name in after if name not in before}
    assert {name: after[name] for name in before} == before
    assert {name.rpartition("/")[2].partition("-")[0] for name in added} == {"first"}  # the document of the saved set


def test_the_first_run_binds_marks_and_publishes_once_and_the_second_does_nothing(
    installation: Installation, fs: CommandLine
) -> None:
    assert published(fs) == (0, 4)
    check_settled(installation, fs)
    with installation.open() as store:
        registered = store.workspace.snapshot().registered("stats")
        known = known_commit(store.workspace.ledger, registered)
        assert store.workspace.offline.owner("shop") == installation.identity() == registered.chain.identity
        newest = store.workspace.offline.find_commit(registered.table)
        assert known is not None
        assert newest is not None
        assert (known.version, known.identity) == (newest.number, newest.identity)
    assert published(fs) == (0, 0)
    installation.source([(6, 5, 60)])
    assert published(fs) == (1, 1)
    garbage = fs.json("gc")
    assert garbage["tables"] == ["shop/stats/1"]
    check_settled(installation, fs)


def test_a_push_may_come_first(installation: Installation, fs: CommandLine) -> None:
    installation.push(5, 1, 50)
    assert installation.online(ONLINE) == {**ONLINE, 5: 50}
    (found,) = installation.mismatches()
    assert (found.kind, found.heals) == ("behind", True)
    assert "Where an earlier release published, nothing is missing" in found.hint
    fs("doctor")
    assert published(fs) == (0, 5)
    check_settled(installation, fs)
    assert published(fs) == (0, 0)


def test_compacting_may_come_first(installation: Installation, fs: CommandLine) -> None:
    fs("optimize")
    assert installation.kinds() == UNMARKED
    assert same_set(installation)
    assert published(fs) == (0, 4)
    check_settled(installation, fs)
    installation.push(5, 1, 50)
    fs("materialize")
    fs("optimize")
    check_settled(installation, fs)
    assert published(fs) == (0, 0)


def test_it_can_be_torn_down_when_that_is_asked_for(installation: Installation, fs: CommandLine) -> None:
    if installation.online_url is not None:
        with redis.Redis.from_url(installation.online_url) as client:
            client.set("fs:shopping:stats:{1}", b"a neighbour's")
    fs("teardown", expect=1)
    assert installation.online(ONLINE) == ONLINE
    fs("teardown", "--allow-destroy")
    offline = installation.root / "data/offline/shop"
    assert [path for path in offline.rglob("*.parquet") if "_training_sets" not in path.parts] == []
    if installation.online_url is not None:
        with redis.Redis.from_url(installation.online_url) as client:
            assert client.keys("fs:*") == [b"fs:shopping:stats:{1}"]


def test_an_installation_that_lost_its_registry_is_kept_whole(installation: Installation, fs: CommandLine) -> None:
    installation.lose("registry")
    before = installation.contents()
    assert "does not know project" in fs("gc", expect=1)
    assert installation.contents() == before


# Programs of both releases at once.


def earlier_run(project: Project, driver: int, count: int) -> None:
    """Do what a run of the earlier release does: it knows neither facts of commits nor markers."""
    with project.open() as store:
        workspace = store.workspace
        row = {"driver": driver, "count": count, "stars": 5, "event_ts": day(2)}
        version = commit_rows(workspace, "stats", [row], covers=(day(1), day(3)))
        publish(workspace, "stats")
        registered = workspace.snapshot().registered("stats")
        known = read_watermark(workspace.ledger, registered)
        moved = replace(known, table_version=version.number, published_version=version.number)
        write_watermark(workspace.ledger, registered, moved)


def test_runs_of_the_earlier_release_go_on_beside_those_of_this_one(
    installation: Installation, fs: CommandLine
) -> None:
    published(fs)
    earlier_run(installation, 7, 70)
    (found,) = installation.mismatches()
    assert (found.kind, found.heals) == ("behind", True)
    assert "Where an earlier release published, nothing is missing" in found.hint
    fs("doctor")
    assert fs.json("plan", "--check")["notices"] == []
    fs("gc")
    installation.push(5, 2, 50)
    earlier_run(installation, 8, 80)
    appended, sent = published(fs)
    assert (appended, sent) == (0, 3)  # drivers 5, 7 and 8: what came since the marker
    assert published(fs) == (0, 0)
    assert installation.online([1, 5, 7, 8]) == {1: 11, 5: 50, 7: 70, 8: 80}
    check_settled(installation, fs)


FIELDS = {
    "watermark": {
        "begun_us",
        "created_until_us",
        "files",
        "greatest_event_us",
        "intervals",
        "offline_rows",
        "online_rows",
        "published_version",
        "table_version",
    },
    "lease": {"expires_us", "holder", "host", "pid", "released", "since_us"},
    "run": {
        "appended",
        "damaged",
        "dry_run",
        "duplicates",
        "duration_ms",
        "error",
        "generation",
        "host",
        "intervals",
        "kind",
        "null_keys",
        "null_times",
        "pid",
        "published",
        "read",
        "run_id",
        "started_us",
        "state",
        "table_version",
        "unchanged",
        "view",
        "waiting",
        "withdrawn",
    },
    "training_set": {
        "certificate",
        "frame",
        "full_feature_names",
        "fingerprint",
        "name",
        "reads",
        "references",
        "registry_revision",
    },
    "token": {"created_at_us", "expires_at_us", "hash", "id", "name", "project", "role"},
    "generation": {"generation"},
}
FIELDS["run_start"] = FIELDS["run"]
INNER = {
    ("run", "published"): {
        "deleted",
        "expired",
        "repaired",
        "stale",
        "written",
        "wrong_type",
        "wrong_type_keys",
    },
    ("training_set", "frame"): {"file", "form", "sha256", "timestamp_column"},
    ("training_set", "reads"): {"as_of", "generation", "name", "version", "view"},
}
"""What the earlier release reads, and it refuses any further field."""


OF_EVENTS = {"unusable", "conflicts", "conflicts_in_source", "source_begun_us", "unmet", "accepted", "quarantined"}
"""What is only written of views that no earlier release knows."""
PUBLISHED = {"watermark": WatermarkDocument, "run": RunDocument, "run_start": RunDocument}
"""What other programs are told of the documents."""


def documents(root: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield the kind and the document of every entry of the ledger, old ones too."""
    with open_registry(read_settings(root).registry, root) as registry:
        for kind in FIELDS:
            for newest in registry.ledger.scan("shop", kind):
                for entry in registry.ledger.scan("shop", kind, key=newest.key):
                    yield kind, dict(entry.document)


def test_the_earlier_release_can_read_what_this_one_writes_to_the_ledger(
    installation: Installation, fs: CommandLine
) -> None:
    earlier = {kind for kind, _ in documents(installation.root)}
    assert earlier == {*FIELDS}
    with open_registry(read_settings(installation.root).registry, installation.root) as registry:
        seen = {kind: registry.ledger.scan("shop", kind) for kind in FIELDS}
    published(fs)
    installation.push(5, 1, 50)
    fs("optimize")
    installation.source([(6, 5, 60)])
    fs("materialize")
    with installation.open() as store:
        frame = pa.table({"driver": [1, 5, 6], "event_timestamp": [day(6)] * 3})
        store.get_historical_features(frame, "model").save("second")
    fs("token", "create", "--role", "reader", "--name", "late")
    definitions = installation.root / "features.py"
    definitions.write_text(definitions.read_text().replace(', Field("stars", Int64)', ""))
    fs("apply", "--yes", "--allow-breaking")
    with open_registry(read_settings(installation.root).registry, installation.root) as registry:
        for kind, entries in seen.items():
            assert registry.ledger.scan("shop", kind) != entries, f"nothing new of kind {kind}"
        good, revoked = known_tokens(registry.ledger, "shop")
    assert {token.name for token in good} == {"scorer", "late"}
    assert len(revoked) == 1
    for kind, document in documents(installation.root):
        if kind == "token" and "revoked_at_us" in document:
            assert {*document} == {"id", "revoked_at_us"}
            continue
        assert {*document} == FIELDS[kind], kind
        if kind in PUBLISHED:
            assert FIELDS[kind] == {*PUBLISHED[kind].__dataclass_fields__} - OF_EVENTS
            TypeAdapter(PUBLISHED[kind]).validate_json(json.dumps(document), strict=True)
        for (outer, name), fields in INNER.items():
            if outer == kind.removesuffix("_start"):
                inner = document[name]
                for each in inner if isinstance(inner, list) else [inner]:
                    assert {*each} == fields, (kind, name)
