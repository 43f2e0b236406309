"""A registry that a newer version wrote into: every command says so and changes nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.records import Change, fingerprint
from featurestore_registry.sql.tables import VERSION_TABLE

from featurestore import __version__
from featurestore.cli.main import main
from featurestore.errors import NotFoundError, RegistryFormatError
from featurestore.ledger.progress import read_progress
from featurestore.store import FeatureStore

FEATURES = """
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource
from featurestore.types import Int64, String

carrier = Entity("carrier", {"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "at")
delays = FeatureView("delays", entities=[carrier], source=flights, schema=[Field("delay", Int64)])
model = FeatureService("model", [delays])
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A materialized project. Do not change it."""
    root = tmp_path_factory.mktemp("made")
    (root / "feature_store.yaml").write_text("project: shop\n")
    (root / "features.py").write_text(FEATURES)
    at = pa.array([0], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"carrier": ["UA"], "at": at, "delay": [1]}), root / "flights.parquet")
    frame = pa.table({"carrier": ["UA"], "event_timestamp": pa.array([1], pa.timestamp("us", tz="UTC"))})
    pq.write_table(frame, root / "frame.parquet")
    with FeatureStore(root) as store:
        store.apply()
        store.materialize_incremental()
        store.get_historical_features(root / "frame.parquet", "model").save("first")
    return root


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def newer_schema(root: Path) -> None:
    connection = sqlite3.connect(root / "data" / "registry.db")
    with connection:
        connection.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    connection.close()


def changed(**changes: Any) -> Callable[[Path], None]:
    """Return what puts a record of a view with another kind or document into the registry, as a newer version may."""

    def change(root: Path) -> None:
        with FeatureStore(root) as store:
            definitions = store.workspace.registry.definitions
            record = next(r for r in definitions.read("shop").records if r.kind == "feature_view")
            values = {field: getattr(record, field) for field in record.__dataclass_fields__} | changes
            values["document"] = {key: value for key, value in values["document"].items() if value is not ...}
            values["fingerprint"] = fingerprint(values["document"])
            made = type(record)(**values)
            put = Change("put", made.kind, made.name, made)
            definitions.apply("shop", definitions.chain("shop").head, [put], author="", message="", commit="")

    return change


DOCUMENT = {
    "entities": ["carrier"],
    "sources": [["source", "flights"]],
    "schema": [{"name": "delay", "type": "Int64", "description": "", "tags": {}, "default": None}],
    "sql": None,
    "ttl_us": None,
    "online": True,
    "generation": 1,
}
NEWER = {
    "schema of the registry": (newer_schema, "newer version"),
    "kind": (changed(kind="embedding_view", name="other"), "the embedding_view 'other' of project 'shop'"),
    "part of a view": (
        changed(document={**DOCUMENT, "tiles": "hourly"}),
        "'delays' of project 'shop' in a form .*tiles",
    ),
    "lost part of a view": (
        changed(document={**DOCUMENT, "generation": ...}),
        "'delays' of project 'shop'.*generation",
    ),
    "value type": (
        changed(document={**DOCUMENT, "schema": [{**DOCUMENT["schema"][0], "type": "Map(String)"}]}),
        "Map",
    ),
    "kind of source": (changed(document={**DOCUMENT, "sources": [["stream", "flights"]]}), "stream"),
}
COMMANDS = [
    "plan",
    "apply --yes --allow-breaking --allow-destroy",
    "list",
    "show delays",
    "status",
    "materialize",
    "materialize --republish --authoritative",
    "training-set --entities frame.parquet --service model --out out.parquet",
    "online --service model --entity carrier=UA",
    "peek delays",
    "optimize",
    "gc",
    "verify",
    "teardown --allow-destroy",
    "serve --port 0",
]


def contents(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "lock.mdb" and ".pyc" not in path.name]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("case", NEWER)
def test_what_a_newer_version_wrote_stops_every_command(
    repo: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = NEWER[case]
    change(repo)
    monkeypatch.chdir(repo)
    before = contents(repo)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            main(command.split())
        said = capsys.readouterr().err
        assert caught.value.code == 1, (command, said)
        assert "Internal error" not in said, command
        assert "pip install --upgrade ." in said, (command, said)
        assert re.search(words, " ".join(said.split())), (command, said)
    assert contents(repo) == before


@pytest.mark.parametrize("kind", ["watermark", "training_set", "lease"])
def test_entries_of_the_ledger_too(
    repo: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FeatureStore(repo) as store:
        ledger = store.workspace.ledger
        (entry,) = ledger.scan("shop", kind)
        ledger.append("shop", kind, entry.key, {**entry.document, "sketch": 1}, if_version=entry.version)
    monkeypatch.chdir(repo)
    commands = {"watermark": "materialize", "training_set": "optimize", "lease": "materialize"}
    with pytest.raises(SystemExit) as caught:
        main([commands[kind]])
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert caught.value.code == 1
    assert f"in a form that featurestore {__version__} cannot read" in said
    assert "sketch" in said
    assert "Upgrade the package to the newest version that writes into this registry" in said
    assert "Internal error" not in said


TOLD = [
    {"sketch": 1, "shape": {"a": [1]}},
    {"state": "throttled", "kind": "compaction"},
    {"published": {"written": 7, "merged": 9, "wrong_type_keys": []}},
    {"published": {"written": "7", "wrong_type_keys": None}},
    {"published": 3, "intervals": None, "appended": None, "error": None},
    {"intervals": [{"start": 1}], "host": None, "started_us": "now"},
    dict.fromkeys(("published", "intervals", "host", "pid", "state", "kind", "duration_ms", "read", "view"), ...),
]
"""What a newer version may have changed in the document of a run; ... is left out."""


@pytest.mark.parametrize("kind", ["run", "run_start"])
@pytest.mark.parametrize("changes", TOLD, ids=str)
def test_runs_are_shown_as_far_as_they_are_understood(
    repo: Path, kind: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FeatureStore(repo) as store:
        ledger = store.workspace.ledger
        (entry,) = ledger.scan("shop", kind)
        document = {key: value for key, value in {**entry.document, **changes}.items() if value is not ...}
        ledger.append("shop", kind, entry.key, document, if_version=entry.version)
        progress = read_progress(ledger, store.workspace.snapshot())["delays"]
        assert progress.published.keys() >= {"written", "stale"}
    monkeypatch.chdir(repo)
    for command in ("status", "status --json", "log", "log --json"):
        with pytest.raises(SystemExit) as caught:
            main(command.split())
        captured = capsys.readouterr()
        assert caught.value.code == 0, (command, captured)
        if kind == "run" and "state" in changes and command in ("status", "log") and changes["state"] is not ...:
            assert "compaction" in captured.out
        if kind == "run" and command == "status --json":
            assert len(json.loads(captured.out)) == 1


def test_a_lease_that_is_not_understood_hides_no_status(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who holds it decides whether a run may begin; here it only decides a word."""
    with FeatureStore(repo) as store:
        ledger = store.workspace.ledger
        (start,), (lease,) = ledger.scan("shop", "run_start"), ledger.scan("shop", "lease")
        ledger.append("shop", "run_start", "delays", {**start.document, "run_id": "another", "started_us": 10**15})
        ledger.append("shop", "lease", "delays", {**lease.document, "sketch": 1}, if_version=lease.version)
    monkeypatch.chdir(repo)
    for command in ("status", "log"):
        with pytest.raises(SystemExit) as caught:
            main([command])
        assert caught.value.code == 0, capsys.readouterr()


def test_saved_sets_are_listed_though_a_newer_version_saved_one(
    repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FeatureStore(repo) as store:
        ledger = store.workspace.ledger
        (entry,) = ledger.scan("shop", "training_set")
        reads = [{**read, "tiles": "hourly"} for read in entry.document["reads"]]
        document = {**entry.document, "sketch": 1, "reads": reads, "frame": {**entry.document["frame"], "order": []}}
        ledger.append("shop", "training_set", "first", document, if_version=entry.version)
        assert [saved.name for saved in store.list_training_sets()] == ["first"]
        for use in (store.get_training_set, store.delete_training_set):  # what it rests on is not understood
            with pytest.raises(RegistryFormatError, match="a saved training set in a form"):
                use("first")
        with pytest.raises(NotFoundError, match="'first'"):
            store.get_training_set("frist")
        assert ledger.latest("shop", "training_set", "first").document == document
