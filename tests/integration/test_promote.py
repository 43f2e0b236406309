"""Promoting definitions from one project of a registry to another, over each registry."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http import access
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, fingerprint
from featurestore_registry.sql import open_registry
from support.clock import ManualClock
from support.command_line import CommandLine
from support.registry_server import asking, serving_registry
from support.serving import error_of, serving_here, until

from featurestore import Aggregation, Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.errors import (
    AuthError,
    ChangesNotAllowedError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    PlanError,
    RegistryFormatError,
    RevisionConflictError,
    SourceFileError,
)
from featurestore.ledger.consumers import Consumer, add_consumer
from featurestore.ledger.serving import Server, servers_of, tell
from featurestore.plan import ChangeClass
from featurestore.plan.judging import judge
from featurestore.server.app import open_workspace
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "ts")
DELAY, COUNT = Field("delay", Float64), Field("count", Int64)


def view(name: str = "delays", source: ParquetSource = flights, **changes: Any) -> FeatureView:
    return FeatureView(name, **{"entities": [carrier], "source": source, "schema": [DELAY, COUNT], **changes})


ON_DEMAND = """
from featurestore import (
    Entity, FeatureService, FeatureView, Field, ParquetSource, RequestSource, on_demand_feature_view,
)
from featurestore.types import Float64, Int64, String

delays = FeatureView(
    "delays",
    entities=[Entity("carrier", join_keys={"carrier": String})],
    source=ParquetSource("flights", "flights.parquet", "ts"),
    schema=[Field("delay", Float64), Field("count", Int64)],
)

@on_demand_feature_view(
    sources=[delays[["delay"]], RequestSource("request", schema=[Field("hours", Float64)])],
    schema=[Field("share", Float64)],
)
def share(inputs):
    return {"share": [1.0 for _ in inputs["delay"]]}

model = FeatureService("model", features=[delays, share])
"""


class Environments:
    """Two repos of one registry, each with stores of its own: `staging` and `prod`."""

    def __init__(self, folder: Path, url: str, registry: Registry) -> None:
        self.registry = registry
        self.clock = ManualClock(NOW)
        self._stack = ExitStack()
        at = pa.array([NOW - timedelta(hours=1)], pa.timestamp("us", tz="UTC"))
        rows = pa.table({"carrier": ["UA"], "ts": at, "delay": [1.5], "count": [3]})
        for name in ("staging", "prod"):
            root = folder / name
            root.mkdir()
            (root / "feature_store.yaml").write_text(f"project: {name}\nregistry: {url}\nserver: {{refresh: 100ms}}\n")
            for file in ("flights.parquet", "other.parquet"):
                pq.write_table(rows, root / file)
        self.staging, self.prod = (self.store(folder / name) for name in ("staging", "prod"))

    def store(self, root: Path, clock: Any = None) -> FeatureStore:
        return self._stack.enter_context(FeatureStore(root, clock=clock or self.clock))

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(autouse=True)
def quick_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)


@pytest.fixture
def environments(tmp_path: Path) -> Iterator[Environments]:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    with open_registry(url) as registry:
        made = Environments(tmp_path, f"sqlite:////{tmp_path / 'registry.db'}", registry)
        yield made
        made.close()


@pytest.fixture(params=["sqlite", "postgres", "http"])
def anywhere(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Environments, Callable]]:
    """The environments over each registry; the function sets a token of one project, with a reader's of the other."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'registry.db'}"
        place = request.getfixturevalue("postgres_url") if request.param == "postgres" else url
        registry = stack.enter_context(open_registry(place))

        def as_editor(of: str, reads: str = "") -> None: ...

        if request.param == "http":
            tokens = {
                (project, role): create_token(
                    registry.ledger, project, role, expires_at_us=None, now_us=0, name=f"{role} of {project}"
                )[0]
                for project in ("staging", "prod")
                for role in (Role.VIEWER, Role.EDITOR)
            }

            def as_editor(of: str, reads: str = "") -> None:
                monkeypatch.setenv("FS_REGISTRY_TOKEN", tokens[of, Role.EDITOR])
                monkeypatch.setenv("FS_REGISTRY_TOKEN_FROM", tokens.get((reads, Role.VIEWER), ""))

            place = stack.enter_context(serving_registry(registry, judge))
        made = Environments(tmp_path, place if request.param != "sqlite" else f"sqlite:////{url[10:]}", registry)
        stack.callback(made.close)
        yield made, as_editor


def test_definitions_go_from_project_to_project_over_every_registry(anywhere: tuple[Environments, Callable]) -> None:
    both, as_editor = anywhere
    staging, prod = both.staging, both.prod
    as_editor("staging")
    staging.apply([FeatureService("model", [view()]), view("unfinished")])
    as_editor("prod")
    assert prod.list() == []
    if both.prod.settings.registry.url.startswith("http"):
        with pytest.raises(AuthError, match="'staging' cannot be read") as refused:
            prod.promote("model", "staging")
        assert "FS_REGISTRY_TOKEN_FROM" in refused.value.hint
    as_editor("prod", "staging")
    planned = prod.plan_promotion("model", "staging")
    assert [step.action for step in planned.steps] == ["create"] * 4
    assert "Plan for prod: revision 0 -> 1" in str(planned)
    assert "afterwards run `fs materialize --view delays`" in str(planned)
    assert "The registry does not know project 'prod' yet" in str(planned)
    assert "Source flights is new here and reads flights.parquet" in str(planned)
    assert prod.list() == []

    assert prod.promote("model", "staging").applied == 1
    assert {found.name for found in prod.list()} == {"carrier", "flights", "delays", "model"}
    (applied,) = prod.history()
    as_editor("staging")
    head = staging.workspace.snapshot().chain.head
    as_editor("prod", "staging")
    assert applied.info.message == f"promoted model from staging revision 1 ({head[:12]})"
    assert prod.promote("model", "staging").steps == ()
    prod.materialize_incremental()
    assert prod.peek("delays").num_rows == 1

    as_editor("staging")
    staging.apply([view(schema=[DELAY]), FeatureService("model", [view(schema=[DELAY])])], allow_breaking=True)
    as_editor("prod", "staging")
    prod.apply([FeatureService("of_prod", [view()])])
    with pytest.raises(FeatureStoreError, match="of_prod"):  # what reads it here would break
        prod.promote("model", "staging", allow_breaking=True)
    prod.apply_plan(prod.plan_rollback(1), allow_breaking=True)
    add_consumer(prod.workspace.ledger, "prod", Consumer("churn", ("model",), "ada"))
    planned = prod.plan_promotion(["delays", "model"], "staging")
    assert "read by: churn (ada)" in str(planned)
    with pytest.raises(ChangesNotAllowedError, match="delays"):
        prod.promote("model", "staging")
    assert prod.promote("model", "staging", at=1).steps == ()
    assert prod.promote("model", "staging", allow_breaking=True, message="less").applied == 4
    assert re.fullmatch(r"promoted model from staging revision 2 \(\w{12}\): less", prod.history(1)[0].info.message)
    assert prod.workspace.snapshot().views["delays"].generation == 2
    prod.rollback(1, "delays")  # and back, as every apply
    assert [field.name for field in prod.get("view", "delays").fields] == ["delay", "count"]
    as_editor("staging")
    assert staging.workspace.snapshot().views["delays"].generation == 2
    assert staging.list("services")[0].name == "model"


def test_a_source_keeps_the_path_that_its_project_reads(environments: Environments) -> None:
    staging, prod = environments.staging, environments.prod
    own = ParquetSource("flights", "other.parquet", "ts")
    prod.apply([view("of_prod", own)])
    staging.apply([view(owner="ada"), view("more", ParquetSource("more", "other.parquet", "ts"))])
    planned = prod.plan_promotion("delays", "staging")
    assert [step.name for step in planned.steps] == ["delays"]
    assert "Source flights keeps its path other.parquet; in staging it reads flights.parquet." in str(planned)
    prod.promote("delays", "staging")
    assert prod.get("source", "flights").path == "other.parquet"
    prod.promote("more", "staging", paths={"more": "flights.parquet"})
    assert prod.get("source", "more").path == "flights.parquet"
    slow = ParquetSource("flights", "flights.parquet", "ts", allowed_lateness=timedelta(days=2))
    staging.apply([view(source=slow, owner="ada")])
    prod.promote("source:flights", "staging")
    assert prod.get("source", "flights").path == "other.parquet"
    assert prod.get("source", "flights").allowed_lateness == timedelta(days=2)
    (prod.root / "other.parquet").unlink()
    with pytest.raises(SourceFileError) as missing:
        prod.promote("more", "staging", paths={"more": "nowhere.parquet"})
    assert "--source NAME=PATH says what a source reads in prod." in missing.value.hint
    with pytest.raises(InputError, match="'flight', which is no source") as wrong:
        prod.promote("delays", "staging", paths={"flight": "x"})
    assert "flights" in wrong.value.hint


def test_windows_and_other_names_come_along(environments: Environments) -> None:
    staging, prod = environments.staging, environments.prod
    windowed = view("windowed", schema=None, aggregations=[Aggregation("delay", "sum", windows=[timedelta(hours=2)])])
    departure = view()[["delay"]].with_name("departure").with_join_keys({"carrier": "from_carrier"})
    renamed = FeatureService("both", [departure, windowed])
    staging.apply([renamed])
    prod.promote("both", "staging")
    assert prod.list("services") == staging.list("services")
    prod.materialize_incremental()
    (answer,) = prod.get_online_features(["windowed:delay_sum_2h"], [{"carrier": "UA"}]).to_dict()["delay_sum_2h"]
    assert answer == 1.5


def test_what_cannot_be_promoted_is_refused_by_name(environments: Environments) -> None:
    staging, prod = environments.staging, environments.prod
    staging.apply([FeatureService("model", [view()])])
    for names, project, more, error, said in (
        ("modle", "staging", {}, NotFoundError, "Did you mean 'model'"),
        ("model", "stagin", {}, NotFoundError, "Did you mean 'staging'"),
        ("model", "staging", {"at": 7}, NotFoundError, "no revision 7"),
        ("model", "staging", {"at": 0}, NotFoundError, "at revision 0"),
        ("model", "prod", {}, InputError, "to itself"),
        ([], "staging", {}, InputError, "Name the views"),
    ):
        with pytest.raises(error) as refused:
            prod.promote(names, project, **more)
        assert said in f"{refused.value.message} {refused.value.hint}"
    with pytest.raises(InputError, match="cannot be a project"):
        prod.in_project("Prod")
    assert prod.list() == []


def test_a_target_that_changed_meanwhile_and_two_at_once(environments: Environments) -> None:
    staging, prod = environments.staging, environments.prod
    staging.apply([view(), view("other")])
    planned = prod.plan_promotion("delays", "staging")
    prod.promote("other", "staging")
    with pytest.raises(RevisionConflictError):
        prod.apply_plan(planned)

    stores = [environments.store(prod.root) for _ in range(4)]
    plans = [each.plan_promotion("delays", "staging") for each in stores]
    outcomes: list[object] = []

    def promote(each: FeatureStore, plan: Any) -> None:
        try:
            outcomes.append(each.apply_plan(plan).applied)
        except RevisionConflictError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=promote, args=pair) for pair in zip(stores, plans, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each for each in outcomes if isinstance(each, int)] == [2]
    assert len(outcomes) == 4
    assert prod.workspace.snapshot().revision == 2


def test_code_must_be_on_every_server_first(environments: Environments) -> None:
    staging, prod, registry = environments.staging, environments.prod, environments.registry
    (staging.root / "features.py").write_text(ON_DEMAND)
    staging.apply()
    code = {"share": staging.get("on_demand_view", "share").code_hash}
    assert not (prod.root / "features.py").exists()  # nor does the machine that promotes need it

    with pytest.raises(PlanError, match="No server of prod says that it has the code of share") as refused:
        prod.promote("model", "staging")
    assert "--no-servers" in refused.value.hint
    assert "At present the apply would be refused. No server" in str(prod.plan_promotion("model", "staging"))
    prod.promote("delays", "staging")  # no code is in this

    def say(name: str, code: dict[str, str], **more: Any) -> None:
        tell(registry.journal, "prod", Server(name, 1, name, "1", 1, "", code), **more)

    environments.clock.set(system_clock())
    say("web-1", code)
    say("web-2", {"share": "another", "more": "x"})
    with pytest.raises(PlanError, match=r"1 of 2 server processes of prod .* web-2 \(1\) has share another") as refused:
        prod.promote("model", "staging")
    assert set(refused.value.details["servers"]) == {"web-1-1", "web-2-1"}
    planned = prod.plan_promotion("model", "staging")
    assert "web-2" in str(planned)
    say("web-2", code)
    say("web-3", {})
    with pytest.raises(PlanError, match=r"web-3 \(1\) has share nowhere"):
        prod.apply_plan(planned)
    say("web-3", {}, is_stopping=True)
    assert prod.apply_plan(planned).applied == 2
    say("web-2", {})
    (staging.root / "features.py").write_text(ON_DEMAND.replace("[1.0 for", "[2.0 for"))
    staging.apply()
    with pytest.raises(PlanError, match="2 of 2 server processes"):
        prod.promote("model", "staging")
    assert prod.promote("delays", "staging").steps == ()
    # That none serves the project is not believed while some say that they do.
    with pytest.raises(PlanError, match="2 of 2 server processes"):
        prod.promote("model", "staging", has_servers=False)
    for name in ("web-1", "web-2"):
        say(name, {}, is_stopping=True)
    prod.promote("model", "staging", has_servers=False)
    assert prod.get("on_demand_view", "share").code == staging.get("on_demand_view", "share").code
    # A rollback needs no servers, and says which will not answer.
    say("web-1", code)
    told = prod.plan_rollback(2).notices
    assert [each for each in told if "lack the code of share" in each] == []
    say("web-2", {})
    told = [each for each in prod.plan_rollback(2).notices if "1 of 2 server processes" in each]
    assert "They answer code_mismatch for it from the apply on" in told[0]
    # What changes but its description needs no other code.
    described = ON_DEMAND.replace("[1.0 for", "[2.0 for").replace(
        'schema=[Field("share", Float64)],', 'schema=[Field("share", Float64)], description="a part",'
    )
    (staging.root / "features.py").write_text(described)
    staging.apply()
    (step,) = prod.promote("share", "staging").steps
    assert step.change_class is ChangeClass.METADATA


def test_a_server_with_newer_code_answers_503_until_the_promotion_and_one_with_a_new_name_always(
    environments: Environments,
) -> None:
    staging, prod = environments.staging, environments.prod
    for store in (staging, prod):
        (store.root / "features.py").write_text(ON_DEMAND)
    now = environments.store(prod.root, system_clock)
    staging.apply()
    now.promote("model", "staging", has_servers=False)
    now.materialize_incremental()
    body = {"features": ["share:share"], "entities": {"carrier": ["UA"], "hours": [2.0]}}
    newer = ON_DEMAND.replace("[1.0 for", "[2.0 for")
    function = newer[newer.index("@on_demand") : newer.index("model = ")].replace("def share(", "def share_v2(")
    for store in (staging, prod):
        (store.root / "features.py").write_text(newer)
    environments.store(staging.root).apply()
    with serving_here(open_workspace(prod.root)) as client:
        answer = client.post("/v1/online-features", json=body)
        assert (answer.status_code, error_of(answer)["type"]) == (503, "code_mismatch")
        until(lambda: servers_of(now.workspace.registry, "prod"))
        (server,) = servers_of(now.workspace.registry, "prod")
        assert server.other_code(now.workspace.snapshot()) == ["share"]
        now.promote("model", "staging")
        until(lambda: client.post("/v1/online-features", json=body).status_code == 200)
        assert client.post("/v1/online-features", json=body).json()["rows"] == [[2.0]]

    # With a new name both are there before, between and after.
    for store in (staging, prod):
        (store.root / "features.py").write_text(newer + function)
    environments.store(staging.root).apply(allow_breaking=True)
    with serving_here(open_workspace(prod.root)) as client:
        assert client.post("/v1/online-features", json=body).json()["rows"] == [[2.0]]
        until(lambda: any("share_v2" in each.code for each in servers_of(now.workspace.registry, "prod")))
        now.promote("share_v2", "staging")
        until(lambda: client.post("/v1/online-features", json={**body, "features": ["share_v2:share"]}).is_success)
        assert client.post("/v1/online-features", json=body).json()["rows"] == [[2.0]]


def bad_records(store: FeatureStore) -> dict[str, Any]:
    """Return records that no declaration can make, by what is wrong with them."""
    known = {record.key: record for record in store.workspace.snapshot().records}
    found = {}
    for what, key, document in (
        ("SQL", "feature_view:selected", {"sql": "SELECT 1; DROP TABLE flights"}),
        ("path", "source:flights", {"path": "a\0b"}),
        ("condition", "feature_view:windowed", {"aggregations": None}),
    ):
        record = known[key]
        if what == "condition":
            (aggregation,) = record.document["aggregations"]
            document = {"aggregations": [{**aggregation, "where": "delay > (SELECT max(delay) FROM flights)"}]}
        document = {**record.document, **document}
        found[what] = replace(record, document=document, fingerprint=fingerprint(document))
    return found


def of_every_kind() -> list[Any]:
    windows = [Aggregation("delay", "sum", windows=[timedelta(hours=2)], where="delay > 0")]
    return [
        view("windowed", schema=None, aggregations=windows),
        view("selected", sql="SELECT carrier, ts, delay, count FROM flights"),
    ]


@pytest.mark.parametrize("what", ["SQL", "path", "condition"])
def test_a_document_made_by_hand_is_refused_by_name_wherever_it_is_used(
    environments: Environments, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    staging, prod, registry = environments.staging, environments.prod, environments.registry
    for store in (staging, prod):
        store.apply(of_every_kind())
    bad = bad_records(staging)[what]
    change = [Change("put", bad.kind, bad.name, bad)]

    head = registry.definitions.chain("staging").head
    with serving_registry(registry, judge) as url:
        token, _ = create_token(registry.ledger, "staging", Role.EDITOR, expires_at_us=None, now_us=0)
        record = {name: getattr(bad, name) for name in ("kind", "project", "name", "document", "fingerprint")}
        record |= {"fields": [], "depends_on": bad.depends_on, "owner": "", "tags": {}, "description": ""}
        body = {"expected": head, "message": "", "commit": "", "author": "", "changes": [
            {"action": "put", "kind": bad.kind, "name": bad.name, "record": record}
        ]}  # fmt: skip
        with asking(url, token) as client:
            answer = until(
                lambda: (a := client.post("/api/v1/apply?project=staging", json=body)).status_code != 401 and a
            )
            assert answer.status_code == 422
            assert bad.name in answer.text
    assert registry.definitions.chain("staging").head == head

    with serving_here(open_workspace(prod.root)) as client:
        for project in ("staging", "prod"):
            planted = [replace(each, record=replace(bad, project=project)) for each in change]
            head = registry.definitions.chain(project).head
            registry.definitions.apply(project, head, planted, author="", message="", commit="")
        until(lambda: f"{bad.name!r} of project 'prod'" in caplog.text)
        assert client.get("/ready").status_code == 200
    third = environments.store(prod.root).in_project("third")
    for use in (
        lambda: staging.plan(of_every_kind()),
        lambda: staging.apply(of_every_kind()),
        lambda: staging.materialize_incremental(),
        lambda: third.promote([each.name for each in of_every_kind()], "staging", paths={}),
        lambda: prod.plan_promotion([each.name for each in of_every_kind()], "staging"),
        lambda: prod.get_online_features(["selected:delay"], [{"carrier": "UA"}]),
        lambda: open_and_serve(prod),
    ):
        with pytest.raises(RegistryFormatError, match=f"the {bad.kind} '{bad.name}' of project"):
            use()
    assert registry.definitions.chain("third").number == 0
    third.close()


def open_and_serve(store: FeatureStore) -> None:
    from featurestore.server.app import create_app

    for path in store.root.glob("**/snapshot*"):
        path.unlink()
    create_app(open_workspace(store.root))


def test_the_command_plans_asks_and_applies(
    environments: Environments, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    staging, prod = environments.staging, environments.prod
    staging.apply([FeatureService("model", [view()])])
    fs = CommandLine(prod.root, capsys)
    promote = ("promote", "model", "--from", "staging")
    assert "Plan for prod: revision 0 -> 1" in fs(*promote, "--check", expect=3)
    assert "pass --yes" in fs(*promote, expect=2)
    said = fs(*promote, "--yes", "--source", "flights=other.parquet")
    assert "prod is at revision 1." in said
    assert "Now run: fs materialize --view delays" in said
    assert prod.get("source", "flights").path == "other.parquet"
    assert fs.json(*promote, "--check")["steps"] == []
    staging.apply([view(schema=[DELAY]), FeatureService("model", [view(schema=[DELAY])])], allow_breaking=True)
    assert "--allow-breaking" in fs(*promote, "--yes", expect=1)
    assert "Did you mean 'model'" in fs("promote", "modle", "--from", "staging", expect=1)
    assert "is not NAME=PATH" in fs(*promote, "--source", "flights", expect=2)
    told = fs.json(*promote, "--to", "third", "--yes", "--at", "1")
    assert (told["project"], told["applied"], len(told["steps"])) == ("third", 1, 4)


def test_a_promotion_waits_for_a_second_person_and_spares_what_a_group_owns(
    environments: Environments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    staging, prod, registry = environments.staging, environments.prod, environments.registry
    staging.apply([view(), view("ranked", owner="ranking")])
    tokens = {
        name: create_token(registry.ledger, None, role, expires_at_us=None, now_us=0, name=name)[0]
        for name, role in {"ada": Role.EDITOR, "bob": Role.EDITOR, "ops": Role.ADMIN}.items()
    }
    with serving_registry(registry, judge) as url:
        monkeypatch.setenv("FS_REGISTRY", url)
        monkeypatch.setenv("FS_REGISTRY_TOKEN", tokens["ada"])
        fs = CommandLine(prod.root, capsys)
        promote = ("promote", "delays", "ranked", "--from", "staging", "--yes")
        with HttpRegistry(url, token=tokens["ops"]) as ops:
            ops.governance.set_policy("prod", {"refuse": [], "approve": ["compatible"], "groups": {"ranking": ["bob"]}})
        assert "wants a second person for compatible changes" in fs(*promote, expect=5)
        assert prod.list() == []
        with HttpRegistry(url, token=tokens["bob"]) as bob:
            (waiting,) = bob.governance.proposals("prod")
            assert waiting["message"].startswith("promoted delays, ranked from staging revision 1 (")
            bob.governance.approve("prod", waiting["plan"])
        assert "prod is at revision 1." in fs(*promote)
        staging.apply([view("ranked", owner="ranking", description="by rank")])
        assert "belongs to 'ranking', and 'ada' is not of that group" in fs(*promote, expect=1)
