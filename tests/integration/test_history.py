"""History: what each apply changed, what differs between revisions, and the way back; over every registry."""

from __future__ import annotations

import json
import logging
import subprocess
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.records import Change
from featurestore_registry.sql import open_registry
from support.clock import ManualClock
from support.command_line import CommandLine
from support.registry_server import serving_registry
from support.serving import ask_until_ready, serving_here

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.cli.plans import diff_document
from featurestore.errors import ChangesNotAllowedError, InputError, NotFoundError, RegistryFormatError
from featurestore.offline.interface import TableId
from featurestore.server.read.templates import Asked, Templates
from featurestore.training import TrainingSetWarning
from featurestore.types import Float64, Int64, String
from featurestore.workspace import Workspace

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "ts")
DELAY, COUNT = Field("delay", Float64), Field("count", Int64)
FRAME = {"carrier": ["UA"], "event_timestamp": [NOW]}
ROWS = "SELECT carrier,\n  ts,\n  delay,\n  count\nFROM flights\nWHERE delay > 0"

FEATURES = """
from featurestore import Entity, FeatureView, Field, ParquetSource, on_demand_feature_view
from featurestore.types import Float64, Int64, String

delays = FeatureView(
    "delays",
    entities=[Entity("carrier", join_keys={"carrier": String})],
    source=ParquetSource("flights", "flights.parquet", "ts"),
    schema=[Field("delay", Float64)],
    sql='''SELECT carrier, ts, delay
FROM flights
WHERE delay > 0''',
)
"""


def view(name: str = "delays", **changes) -> FeatureView:
    return FeatureView(
        name, **{"entities": [carrier], "source": flights, "sql": ROWS, "schema": [DELAY, COUNT], **changes}
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    at = pa.array([NOW - timedelta(hours=1)], pa.timestamp("us", tz="UTC"))
    rows = {"carrier": ["UA"], "ts": at, "delay": [1.5], "count": [3]}
    pq.write_table(pa.table(rows), tmp_path / "flights.parquet")
    return tmp_path


@pytest.fixture
def store(root: Path):
    with FeatureStore(root, clock=ManualClock(NOW)) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgres", "http"])
def anywhere(request, root, monkeypatch):
    """A store over each registry, and the author that its applies get."""
    if request.param == "postgres":
        monkeypatch.setenv("FS_REGISTRY", request.getfixturevalue("postgres_url"))
    if request.param != "http":
        with FeatureStore(root, clock=ManualClock(NOW)) as opened:
            yield opened, None
        return
    with open_registry(f"sqlite:///{root / 'shared.db'}") as registry:
        token, _ = create_token(registry.ledger, None, Role.EDITOR, expires_at_us=None, now_us=0, name="ada")
        with serving_registry(registry) as url:
            monkeypatch.setenv("FS_REGISTRY", url)
            monkeypatch.setenv("FS_REGISTRY_TOKEN", token)
            with FeatureStore(root, clock=ManualClock(NOW)) as opened:
                yield opened, "ada"


def test_history_diff_and_rollback_are_the_same_over_every_registry(anywhere):
    store, author = anywhere
    store.apply([FeatureService("model", [view()])], message="first")
    store.apply([view(sql=ROWS.replace("> 0", ">= 0"), owner="ada")], message="zeros count")
    store.apply([FeatureService("second", [view(sql=ROWS.replace("> 0", ">= 0"), owner="ada")])])

    newest, changed, first = store.history()
    assert [each.info.number for each in (newest, changed, first)] == [3, 2, 1]
    assert (changed.info.message, changed.signs) == ("zeros count", ["~feature_view:delays"])
    assert author is None or changed.info.author == author
    assert newest.signs == ["+feature_service:second"]
    assert [step.action for step in first.diff.steps] == ["create"] * 4
    assert len(store.history(2)) == 2
    assert store.history(1)[0].diff == newest.diff

    (step,) = changed.diff.steps
    assert [found.what for found in step.differences] == ["owner", "sql"]
    assert "- WHERE delay > 0\n" in str(changed)
    assert "\n        + WHERE delay >= 0" in str(changed)
    assert "message: zeros count" in str(changed)
    assert changed.info.hash[:12] in changed._repr_html_()

    beginning = first.info.hash[:9]
    assert store.diff(beginning) == store.diff(1, 3)
    assert [(step.action, step.name) for step in store.diff(1).steps] == [("update", "delays"), ("create", "second")]
    assert [(step.action, step.name) for step in store.diff(3, 2).steps] == [("delete", "second")]
    assert "The definitions are the same." in str(store.diff(2, changed.info.hash))
    assert "shop: revision 2 -&gt; 3" in store.diff(2, "3")._repr_html_()
    assert len(store.diff(0, 1).steps) == 4

    planned = store.plan_rollback(beginning)
    assert [(step.action, step.name) for step in planned.steps] == [("delete", "second"), ("update", "delays")]
    with pytest.raises(ChangesNotAllowedError):
        store.rollback(beginning)
    applied = store.rollback(beginning, allow_breaking=True)
    assert applied.applied == 4
    assert store.diff(1, 4).steps == ()
    assert store.history(1)[0].info.message == f"rollback to revision {beginning}"
    assert store.get("view", "delays").sql == ROWS
    assert store.rollback(1).steps == ()


def generation(store: FeatureStore) -> int:
    return store.workspace.snapshot().views["delays"].generation


def test_a_rollback_never_uses_the_storage_of_an_older_generation(store):
    store.apply([view(schema=[DELAY])])
    store.materialize_incremental()
    store.apply([view()])  # one more column: the same generation
    store.apply([view(schema=[DELAY])], allow_breaking=True)
    assert generation(store) == 2
    assert "generation: 1 -> 2" in str(store.history(1)[0])
    assert store.rollback(2).worst.name == "COMPATIBLE"  # what is stored holds it
    assert generation(store) == 2
    (step,) = store.plan_rollback(1).steps
    assert (step.generation, step.is_new_generation, step.commands) == (3, True, ())
    with pytest.raises(ChangesNotAllowedError, match="delays"):
        store.rollback(1)
    store.rollback(1, allow_breaking=True)
    assert generation(store) == 3
    assert store.peek("delays").num_rows == 0
    tables = store.workspace.offline.tables("shop")
    assert TableId("shop", "delays", 1) in tables  # set aside, until `fs gc`

    store.apply([view("other")])
    assert next(step.drops for step in store.plan_rollback(1).steps) == (TableId("shop", "other", 1),)
    with pytest.raises(ChangesNotAllowedError, match="allow-destroy"):
        store.rollback(1, allow_breaking=True)
    store.rollback(1, allow_destroy=True)
    store.rollback(6)  # it comes back, empty and with new storage
    assert store.workspace.snapshot().views["other"].generation == 2


def test_named_definitions_go_back_and_all_else_stays(store):
    b = view("b")
    store.apply([FeatureService("model", [view()]), b])
    store.apply([view(owner="ada"), view("b", owner="ada"), FeatureService("late", [view(owner="ada")])])
    (step,) = store.plan_rollback(1, "delays").steps
    assert [(found.what, found.after) for found in step.differences] == [("owner", "")]
    store.rollback(1, ["feature_view:delays", "late"], allow_breaking=True)  # late was not there
    assert [found.owner for found in store.list("views")] == ["ada", ""]
    assert [found.name for found in store.list("services")] == ["model"]

    wider = view(schema=[DELAY], sql=None)
    store.apply([wider, FeatureService("model", [wider])], allow_breaking=True)
    with pytest.raises(InputError, match="do not fit together") as caught:
        store.rollback(1, "model", allow_breaking=True)
    assert "Name what they read, and what reads them, too" in caught.value.hint
    store.apply([FeatureService("newest", [wider])])
    store.apply([view("c")])
    store.apply([FeatureService("of_c", [view("c")])])
    with pytest.raises(InputError, match="feature_service:of_c uses feature_view:c, which revision 5 does not have"):
        store.rollback(5, "c", allow_destroy=True)
    for names, error in ((["dealys"], NotFoundError), ([], InputError)):
        with pytest.raises(error):
            store.rollback(1, names)

    store.rollback(1, allow_breaking=True, allow_destroy=True)
    store.apply_plan(store.plan_teardown(), allow_destroy=True, allow_breaking=True)
    store.rollback(1, "model")  # what it needs comes with it
    assert [found.name for found in store.list()] == ["carrier", "flights", "delays", "model"]


def test_a_deprecation_is_told_in_plans_lists_training_sets_and_once_by_a_server(store, root, capsys, caplog):
    old = view(schema=[Field("delay", Float64, deprecated="use delay of recent"), COUNT])
    store.apply([FeatureService("model", [view()]), view("recent")])
    store.materialize_incremental()

    deprecated = old.replaced(deprecated="use recent")
    plan = store.plan([deprecated, FeatureService("model", [deprecated])])
    assert {step.change_class.name for step in plan.steps} == {"METADATA"}
    told = {step.name: list(step.notices) for step in plan.steps}
    assert told == {
        "delays": [
            "delays is deprecated (use recent) and used by feature_service:model",
            "delay is deprecated (use delay of recent) and used by feature_service:model",
        ]
    }
    differences = [(found.what, found.before, found.after) for found in plan.steps[0].differences]
    assert differences == [("deprecated", "", "use recent"), ("deprecated of delay", "", "use delay of recent")]
    store.apply_plan(plan)
    assert store.plan([deprecated]).steps == ()
    assert store.plan([deprecated, FeatureService("other", [deprecated])]).steps[0].notices == (
        "other uses feature_view:delays, which is deprecated: use recent",
        "other uses delays:delay, which is deprecated: use delay of recent",
    )

    with pytest.warns(TrainingSetWarning) as caught:
        training = store.get_historical_features(FRAME, ["delays:delay"])
    view_told = "The feature view 'delays' is deprecated: use recent."
    feature_told = "The feature 'delays:delay' is deprecated: use delay of recent."
    assert [view_told, feature_told] == [str(each.message) for each in caught][-2:] == training.warnings[-2:]
    with pytest.warns(TrainingSetWarning) as caught:
        store.get_historical_features(None, ["delays:delay"], start="2013-01-01", end="2013-02-01")
    assert [str(each.message) for each in caught] == [view_told, feature_told]
    with warnings.catch_warnings():
        warnings.simplefilter("error", TrainingSetWarning)
        store.get_historical_features(FRAME, ["recent:delay"])
        store.get_historical_features(
            FRAME, [view("recent", deprecated="not as applied")]
        )  # only what is applied counts

    run = CommandLine(root, capsys)
    assert "deprecated: use recent" in run("list", "views")
    shown = run("show", "delays")
    assert "deprecated: use recent" in shown
    assert "deprecated: use delay of recent" in shown
    assert "deprecated" not in run("show", "delays", "--at", "1")

    store.apply([FeatureService("model", [deprecated], deprecated="use model_v2")])
    workspace = Workspace(root, store.settings, clock=ManualClock(NOW))
    caplog.set_level(logging.WARNING, "featurestore.server")
    with serving_here(workspace) as client:
        entities = {"carrier": ["UA"]}
        ask_until_ready(client)
        assert "deprecated" not in caplog.text  # nobody has asked yet
        for body in ({"feature_service": "model"}, {"features": ["delays:delay"]}, {"features": ["delays:*"]}):
            for _ in range(2):
                assert client.post("/v1/online-features", json={**body, "entities": entities}).status_code == 200
    found = [record.message for record in caplog.records if "deprecated" in record.message]
    service_told = "The feature service 'model' is deprecated: use model_v2."
    assert sorted(found) == sorted(f"served: {each}" for each in (service_told, view_told, feature_told))

    caplog.clear()
    templates = None
    for _ in range(2):  # a refresh says nothing again
        templates = Templates(store.workspace.snapshot(), templates)
        templates.template(Asked(b'["delays:count"]', None, False))
    assert [record.message for record in caplog.records] == [f"served: {view_told}"]


def test_the_commands_of_history(store, root, capsys):
    run = CommandLine(root, capsys)
    (root / "features.py").write_text(FEATURES)
    run("apply", "--yes", "--message", "the first")
    (root / "features.py").write_text(FEATURES.replace("> 0", "> 1"))
    run("apply", "--yes")
    first = store.workspace.registry.definitions.chain("shop").hashes[0]

    said = run("log", "--diff")
    assert said.index("revision 2 (") < said.index("revision 1 (")
    assert "      message: the first".strip() in said
    assert "+ WHERE delay > 1" in said
    documents = run.json("log", "--diff", "-n", "1")
    assert [each["number"] for each in documents] == [2]
    assert [step["name"] for step in documents[0]["diff"]["steps"]] == ["delays"]
    assert "the first: +entity:carrier" in run("log")

    assert "- WHERE delay > 0" in run("diff", first[:8])
    assert run("diff", "1", "2") == run("diff", "--parent", "2") == run("diff", "1")
    assert "4 created" not in run("diff", "--parent", "2")
    assert "3 created; the worst change is compatible." in run("diff", "--parent", "1")
    assert run.json("diff", "2", "1")["steps"][0]["differences"][0]["after"].endswith("delay > 0")
    run("diff", "--parent", "1", "2", expect=2)
    assert "has no revision '9'; its newest is 2" in run("diff", "9", expect=1)

    shown = run("show", "delays", "--at", first[:8])
    assert "At revision 1:" in shown
    assert "WHERE delay > 0" in shown
    assert "WHERE delay > 1" in run("show", "delays")
    assert run.json("show", "delays", "--at", "1")[0]["definition"]["sql"].endswith("> 0")

    said = run("rollback", "1", expect=2)
    assert "There is no terminal to ask on" in said
    said = run("rollback", "1", "--yes", "--message", "wrong rows")
    assert "Plan for shop: revision 2 -> 3" in said
    assert "Note: The files of the feature repo are not changed: the next `fs apply` would undo this." in said
    assert "shop is at revision 3." in said
    assert "rollback to revision 1: wrong rows: ~feature_view:delays" in run("log")
    assert "+ WHERE delay > 1" in run("plan")
    assert "nothing to change" in run("rollback", "1", "delays", "--yes")


CODE = """
@on_demand_feature_view(sources=[delays], schema=[Field("double", Float64)])
def doubled(inputs):
    return {"double": [None if each is None else each * 2 for each in inputs["delay"]]}
"""


def test_code_does_not_come_back_and_commits_are_named(store, root, capsys):
    run = CommandLine(root, capsys)
    git = ["git", "-C", str(root), "-c", "user.name=ada", "-c", "user.email=ada@example.com"]
    (root / "features.py").write_text(FEATURES + CODE)
    for arguments in (["init", "-q"], ["add", "features.py"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    run("apply", "--yes")
    commit = store.history(1)[0].info.commit
    assert len(commit) == 40
    assert f"git commit: {commit}" in run("log", "--diff")
    (root / "features.py").write_text(FEATURES + CODE.replace("each * 2", "each + each"))
    subprocess.run([*git, "commit", "-q", "-a", "-m", "second"], check=True)
    run("apply", "--yes")
    assert store.history(1)[0].info.commit not in ("", commit)
    said = run("rollback", "1", "--yes", "--message", "wrong rows")
    assert f"that revision was applied from git commit {commit}." in said
    assert store.history(1)[0].info.commit == commit  # what it has, not what is checked out
    assert "The code of doubled in the feature repo is another than that of revision 1." in said
    assert "-     return {" in run("diff", "2", "3")
    (root / "features.py").write_text(FEATURES + CODE)
    assert "nothing to change" in run("plan")
    # What is not committed is told, and so is a checkout that lacks what was applied last.
    (root / "features.py").write_text(FEATURES + CODE.replace("each * 2", "each * 3"))
    run("apply", "--yes")
    second = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert store.history(1)[0].info.commit == f"{second}-dirty"
    subprocess.run([*git, "checkout", "-q", "-f", commit], check=True)
    assert f"from git commit {second[:12]}, which this checkout does not have" in run("plan")
    subprocess.run([*git, "checkout", "-q", second], check=True)
    assert "this checkout" not in run("plan")


def test_a_revision_that_this_version_cannot_read_is_compared_part_by_part(store):
    store.apply([view()])
    definitions = store.workspace.registry.definitions
    (record,) = [record for record in store.workspace.snapshot().records if record.kind == "feature_view"]
    newer = replace(record, document={**record.document, "shard": 3}, fingerprint="f")
    chain = definitions.chain("shop")
    definitions.apply(
        "shop", chain.head, [Change("put", newer.kind, newer.name, newer)], author="", message="", commit=""
    )
    (step,) = store.diff(1, 2).steps
    assert [(found.what, found.before, found.after) for found in step.differences] == [("shard", None, 3)]
    assert "note: this version cannot read both: compared part by part" in str(store.history()[0])
    json.dumps(diff_document(store.diff(1, 2)))
    back = store.plan_rollback
    with pytest.raises(RegistryFormatError):
        back(1)  # nobody may plan from what they cannot read
