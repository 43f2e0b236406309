"""Policies, approvals and owner groups of a registry behind HTTP: by its commands, and against hand-made requests."""

from __future__ import annotations

import io
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http import access
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record, Revision, fingerprint
from featurestore_registry.sql import open_registry
from support.clock import ManualClock
from support.registry_server import serving_registry
from support.serving import until

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.cli.main import main
from featurestore.errors import ApprovalNeededError, AuthError, RegistryError, RegistryFormatError
from featurestore.plan import judging, proposed
from featurestore.plan.judging import judge
from featurestore.registered.records import from_records, to_record
from featurestore.types import Float64, String

pytestmark = pytest.mark.uncounted
NOW_US = 1_800_000_000_000_000
shop = Entity("shop", join_keys={"shop": String})
sales = ParquetSource("sales", "sales.parquet", "at")


def view(*fields: str, owner: str = "", source: Any = sales, **more: Any) -> FeatureView:
    schema = [Field(name, Float64) for name in fields or ("amount", "tax")]
    return FeatureView("takings", entities=[shop], source=source, schema=schema, owner=owner, online=False, **more)


class Team:
    """A project of several people, each with a token."""

    def __init__(self, root: Path, registry: Registry, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.registry, self.url, self._monkeypatch = root, registry, url, monkeypatch
        self.tokens: dict[str, str] = {}
        for name, role in {"ada": Role.EDITOR, "bob": Role.EDITOR, "ops": Role.ADMIN, "eve": Role.OPERATOR}.items():
            self.tokens[name], _ = create_token(registry.ledger, None, role, expires_at_us=None, now_us=0, name=name)
        (root / "feature_store.yaml").write_text(f"project: p\nregistry: {url}\n")

    def store(self, who: str) -> FeatureStore:
        self._monkeypatch.setenv("FS_REGISTRY_TOKEN", self.tokens[who])
        return FeatureStore(self.root, clock=ManualClock(NOW_US))

    def apply(self, who: str, *objects: Any, **options: Any) -> Any:
        with self.store(who) as store:
            return store.apply([*objects], allow_breaking=True, allow_destroy=True, **options)

    def fs(self, who: str, *arguments: str) -> int:
        """Run a command as somebody; return its exit code."""
        self._monkeypatch.setenv("FS_REGISTRY_TOKEN", self.tokens[who])
        with pytest.raises(SystemExit) as ended:
            main(["--repo", str(self.root), *arguments])
        return int(ended.value.code or 0)

    def post(self, who: str, path: str, document: Any) -> httpx.Response:
        return httpx.post(
            f"{self.url}/api/v1{path}", json=document, headers={"authorization": f"Bearer {self.tokens[who]}"}
        )


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    root = tmp_path / "repo"
    root.mkdir()
    columns = {"shop": ["a"], "at": pa.array([1_700_000_000_000_000], pa.timestamp("us", "UTC"))}
    pq.write_table(pa.table({**columns, "amount": [1.0], "tax": [0.5]}), root / "sales.parquet")
    with open_registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.ledger.append("", "setup", "k", {})
        with serving_registry(registry, judge) as url:
            team = Team(root, registry, url, monkeypatch)
            asked = {"authorization": f"Bearer {team.tokens['eve']}"}
            until(lambda: httpx.get(f"{url}/api/v1/projects", headers=asked).status_code == 200)
            yield team


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: "".join(capsys.readouterr())


def test_a_second_person_approves_what_the_policy_says(team: Team, told: Callable[[], str]) -> None:
    team.apply("ada", view())
    assert team.fs("ops", "policy", "set", "--approve", "breaking", "--refuse", "destructive") == 0
    told()
    assert team.fs("ada", "policy", "show") == 0
    assert "refused: destructive\nwants a second person: breaking\n" in told()
    team.apply("ada", view(description="sold"))  # nobody is asked for that
    with pytest.raises(
        ApprovalNeededError, match="wants a second person for breaking changes: feature_view:takings"
    ) as raised:
        team.apply("ada", view("amount", description="sold"), message="no tax")
    plan = raised.value.details["plan"]
    assert f"fs approve {plan}`, then the same command again." in raised.value.hint
    with team.store("bob") as store:
        before = store.workspace.snapshot()
        stored = next(record for record in before.records if record.name == "takings")
    assert team.fs("bob", "approve") == 0
    listed = told()
    assert f"{plan} by ada: no tax" in listed
    assert re.search(r"~ feature view takings +breaking", listed)
    assert "feature tax: Float64 -> none" in listed
    with team.store("bob") as store:
        (waiting,) = store.workspace.registry.governance.proposals("p")  # type: ignore[union-attr]
    assert [change.name for change in waiting["writes"]] == ["takings"]
    told()
    assert team.fs("bob", "approve", "--json") == 0
    (shown,) = json.loads(told())
    assert shown["diff"]["steps"][0]["differences"][0]["what"] == "feature tax"
    forged = [replace(each, record=replace(each.record, fingerprint=stored.fingerprint)) for each in waiting["writes"]]
    assert "feature tax" in str(proposed(before, forged, []).steps[0].differences)  # its fingerprint is not believed
    assert team.fs("ada", "approve", plan, "--yes") == 1
    assert "Who proposes an apply does not approve it." in told()
    assert team.fs("eve", "approve", plan, "--yes") == 1
    assert "role is operator" in told()
    with pytest.raises(ApprovalNeededError):
        team.apply("ada", view("amount", description="sold"))
    assert team.fs("bob", "approve", plan[:6], "--yes") == 0
    assert "ada may run the same command again now" in told()
    with pytest.raises(ApprovalNeededError):
        team.apply("ada", view("tax", description="sold"))  # another plan than the one that was approved
    assert team.apply("ada", view("amount", description="sold"), message="no tax").applied == 3
    assert team.fs("bob", "approve") == 0
    assert "Nothing waits" in told()  # the other one was made on an older revision
    actions = [(each.document["action"], each.document["by"]) for each in team.registry.journal.scan("p", "audit")]
    assert actions == [("apply", "ada"), ("set policy", "ops"), ("apply", "ada"), ("approve", "bob"), ("apply", "ada")]


def test_what_a_policy_refuses_no_approval_lets_through(team: Team) -> None:
    team.apply("ada", view())
    assert team.fs("ops", "policy", "set", "--refuse", "breaking", "--refuse", "destructive") == 0
    with pytest.raises(AuthError, match="refuses breaking changes: feature_view:takings"):
        team.apply("ada", view("amount"))
    with team.store("eve") as store:
        plan = store.plan(view("amount"))
        assert (plan.is_refused, store.plan(view(description="sold")).is_refused) == (True, False)
    assert "The policy of project 'p' refuses breaking changes: feature_view:takings." in plan.notices
    with (
        pytest.raises(AuthError, match="refuses destructive changes: feature_view:takings"),
        team.store("ops") as store,
    ):
        store.teardown()
    assert len(team.registry.definitions.history("p")) == 1


def test_owner_groups_are_judged_by_the_stored_record(team: Team, told: Callable[[], str]) -> None:
    team.apply("ada", view(owner="tills"))
    assert team.fs("ops", "policy", "set", "--refuse", "destructive") == 0
    assert team.fs("ops", "policy", "set", "--group", "tills=ada,bbo") == 0
    said = told()
    assert "what 'tills' owns is changed by: anybody -> ada, bbo\n" in said
    assert "No token or login has the name 'bbo' so far." in said
    assert "'ada' so far" not in said
    assert team.fs("ops", "policy", "set", "--group", "tills=ada") == 0
    policy = {"refuse": ["destructive"], "approve": [], "groups": {"tills": ["ada"]}}
    with team.store("eve") as store:
        assert store.workspace.registry.governance.policy("p") == policy  # type: ignore[union-attr]
    for stolen in (view(owner="bob", description="mine"), view(description="mine")):
        with pytest.raises(AuthError, match="belongs to 'tills', and 'bob' is not of that group") as raised:
            team.apply("bob", stolen)
        assert "Ask one of: ada" in raised.value.hint
    with team.store("eve") as store:
        plan = str(store.plan(view(description="mine")))
    assert "Note: feature_view:takings belongs to 'tills': it is changed by ada alone." in plan
    assert team.apply("ada", view(owner="bob")).applied == 2
    assert team.apply("bob", view(owner="bob", description="mine")).applied == 3


def test_an_apply_that_an_earlier_server_does_not_understand_says_so(
    team: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.apply("ada", view())
    told = {"statistics": False}

    def earlier(records: Iterable[Record]) -> Any:
        for record in records:
            if told.keys() & record.document.keys():
                raise RegistryFormatError("", what="the feature_view 'takings'", reason="unknown field 'statistics'")
        return from_records(records)

    with monkeypatch.context() as older:
        older.setattr(judging, "from_records", earlier)
        with pytest.raises(RegistryFormatError, match=r"unknown field 'statistics'\. Nothing was applied") as raised:
            team.apply("ada", view(**told))
    assert "earlier version than this program: upgrade it first" in raised.value.hint
    assert team.apply("ada", view(**told)).applied == 2


def test_a_hand_made_request_is_judged_by_what_it_does(team: Team) -> None:
    """It claims nothing, and what nobody could read back, or reads outside of its source, is refused."""
    team.apply("ada", view())
    assert team.fs("ops", "policy", "set", "--refuse", "breaking") == 0
    stored = {record.key: record for record in team.registry.definitions.read("p").records}
    head = team.registry.definitions.chain("p").head

    def put(document: dict[str, Any], key: str = "feature_view:takings", **more: Any) -> httpx.Response:
        record = stored[key]
        described = {"document": document, "description": "", "owner": "", "tags": {}}
        fields = document.get("schema") or []
        changed = {
            "kind": record.kind,
            "project": "p",
            "name": record.name,
            **described,
            "fingerprint": fingerprint(described),
            "fields": [{"name": field["name"], "type": field["type"]} for field in fields],
            "depends_on": list(record.depends_on),
            **more,
        }
        change = {"action": "put", "kind": record.kind, "name": record.name, "record": changed}
        return team.post("ada", "/apply?project=p", {"expected": head, "changes": [change]})

    document = json.loads(json.dumps(stored["feature_view:takings"].document))
    fewer = {**document, "schema": document["schema"][:1]} if "schema" in document else document
    assert fewer != document
    answer = put(fewer)
    assert answer.status_code == 403, answer.text
    assert "breaking" in answer.text
    wrong = [{**document, "more": 1}, {}, {**document, "sql": "COPY sales TO 'x'"}, {**document, "ttl": "long"}]
    wrong += [{**document, "generation": each} for each in (0, -1, 2**70, "1", "../../x", None, True, 1.5)]
    for each in wrong:
        answer = put(each)
        assert (answer.status_code, "nobody could read back" in answer.text) == (422, True), answer.text
    false = [{"depends_on": []}, {"fields": []}, {"fingerprint": "0" * 32}, {"owner": "eve"}]
    false.append({"fields": [{"name": "amount", "type": "Int64"}, {"name": "tax", "type": "Float64"}]})
    for more in false:
        answer = put({**document, "online": True}, **more)
        assert (answer.status_code, "feature_view 'takings'" in answer.text) == (422, True), answer.text
    # A new generation sets all rows aside.
    answer = put({**document, "generation": 2})
    assert (answer.status_code, "breaking" in answer.text) == (403, True), answer.text
    assert team.registry.definitions.chain("p").head == head


def test_an_approval_is_good_for_what_was_approved(team: Team) -> None:
    team.apply("ada", view())
    assert team.fs("ops", "policy", "set", "--approve", "metadata", "--approve", "breaking") == 0
    with pytest.raises(ApprovalNeededError) as raised:
        team.apply("ada", view(description="sold"))
    assert team.fs("bob", "approve", raised.value.details["plan"], "--yes") == 0
    (record,) = [each for each in team.registry.definitions.read("p").records if each.name == "takings"]
    described = {"document": {**record.document, "generation": 9}, "description": "sold", "owner": "", "tags": {}}
    put = replace(record, **described, fingerprint=fingerprint(described))
    change = {"action": "put", "kind": put.kind, "name": put.name, "record": asdict(put)}
    head = team.registry.definitions.chain("p").head
    answer = team.post("ada", "/apply?project=p", {"expected": head, "changes": [change]})
    assert (answer.status_code, "second person for breaking" in answer.text) == (409, True), answer.text
    assert team.apply("ada", view(description="sold")).applied == 2


@pytest.mark.parametrize(
    ("source", "changes", "expected"),
    [
        (sales, {"description": "x", "generation": 2}, "breaking"),
        (sales, {"sql": "SELECT * FROM sales"}, "rebuild"),
        (sales, {"sql": "SELECT * FROM sales", "generation": 2}, "rebuild"),  # as `fs apply --prepare` does
        (sales, {"sql": "SELECT * FROM sales", "generation": 1}, "rebuild"),
        (PushSource("pushed", batch_source=sales), {"ttl": timedelta(days=9), "generation": 2}, "breaking"),
    ],
)
def test_a_generation_is_judged_by_what_calls_for_it(source: Any, changes: dict[str, Any], expected: str) -> None:
    before = view(source=source, ttl=timedelta(days=1))
    changed = {name: value for name, value in changes.items() if name != "generation"}
    made = [to_record("p", each) for each in (shop, *{sales, source}, before)]
    put = to_record("p", before.replaced(**changed), generation=changes.get("generation", 1))
    found = judge(Revision("p", 1, tuple(made)), [Change("put", put.kind, put.name, put)])
    assert found == {"feature_view:takings": expected}


def test_a_registry_without_a_server_has_no_policy(tmp_path: Path, told: Callable[[], str]) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    with pytest.raises(SystemExit):
        main(["--repo", str(tmp_path), "policy", "show"])
    assert "whoever can open it can do everything" in told()


def test_errors_are_the_products_own() -> None:
    assert issubclass(ApprovalNeededError, RegistryError)


def test_a_plan_names_the_consumers_whom_a_change_may_break(team: Team, told: Callable[[], str]) -> None:
    service = FeatureService("model", [view()])
    team.apply("ada", service)
    assert team.fs("ada", "consumer", "add", "churn", "--service", "modle") == 1
    assert "Did you mean 'model'?" in told()
    assert team.fs("eve", "consumer", "add", "churn", "--service", "model") == 1  # her role does not allow it
    assert team.fs("ada", "consumer", "add", "churn", "--service", "model", "--owner", "cora") == 0
    assert team.fs("ada", "consumer", "add", "fraud", "--service", "model") == 0
    assert team.fs("ada", "consumer", "remove", "fraud") == 0
    told()
    assert team.fs("eve", "consumer", "list") == 0
    assert told().splitlines()[1].split() == ["churn", "model", "cora"]
    with team.store("ada") as store:
        breaking = store.plan([view("amount"), FeatureService("model", [view("amount")])])
        compatible = store.plan([view("amount", "tax", description="sold")])
    said = str(breaking)
    assert said.count("read by: churn (cora)") == 2
    assert [step.consumers for step in breaking.steps] == [("churn (cora)",)] * 2
    assert "read by" not in str(compatible)
    assert team.fs("ops", "policy", "set", "--approve", "breaking") == 0
    with pytest.raises(ApprovalNeededError):
        team.apply("ada", view("amount"), FeatureService("model", [view("amount")]))
    told()
    assert team.fs("bob", "approve") == 0
    assert told().count("read by: churn (cora)") == 2


def test_a_login_keeps_a_token_that_only_its_user_can_read(
    team: Team, told: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def login(token: str) -> int:
        monkeypatch.delenv("FS_REGISTRY_TOKEN", raising=False)
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{token}\n"))
        return run("login")

    def run(*arguments: str) -> int:
        monkeypatch.delenv("FS_REGISTRY_TOKEN", raising=False)
        with pytest.raises(SystemExit) as ended:
            main(["--repo", str(team.root), *arguments])
        return int(ended.value.code or 0)

    kept = tmp_path / "config" / "featurestore" / "credentials.json"
    assert login("wrong") == 1
    assert login("") == 2
    assert not kept.exists()
    assert run("audit") == 1
    assert "A valid token is needed" in told()
    assert login(team.tokens["ops"]) == 0
    assert team.tokens["ops"] not in told()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert run("policy", "set", "--refuse", "destructive") == 0
    assert run("audit") == 0
    assert "set policy" in told()
    kept.chmod(0o644)
    assert run("audit") == 1
    assert "Other users may read the tokens" in told()
    kept.chmod(0o600)
    assert run("logout") == 0
    assert run("audit") == 1
    kept.write_text("{")
    assert run("audit") == 1
    assert "Remove it and log in again" in told()


def test_an_audit_says_who_did_what_from_where(team: Team, told: Callable[[], str]) -> None:
    team.apply("ada", view())
    assert team.fs("ops", "token", "create", "--role", "viewer", "--name", "cora") == 0
    told()
    assert team.fs("ada", "audit") == 1
    assert "role is editor; this needs admin" in told()
    assert team.fs("ops", "audit", "-n", "2") == 0
    newest, oldest = told().splitlines()[1:3]
    assert newest.split()[2:6] == ["ops", "127.0.0.1", "create", "token"], newest
    assert "name cora" in newest
    assert oldest.split()[2:5] == ["ada", "127.0.0.1", "apply"]
    assert "put feature_view:takings" in oldest
    team.apply("ada", FeatureService("model", [view()]))
    assert team.fs("ada", "consumer", "add", "churn", "--service", "model") == 0
    assert team.fs("bob", "consumer", "remove", "churn") == 0
    with team.store("eve") as store:
        store.workspace.ledger.append("p", "training_set", "june", {"deleted": True})
        store.workspace.ledger.append("p", "run", "r", {})
    told()
    assert team.fs("ops", "audit", "-n", "3") == 0
    lines = [line.split()[2:] for line in told().splitlines()[1:]]
    assert lines == [
        ["eve", "127.0.0.1", "delete", "training", "set", "name", "june"],
        ["bob", "127.0.0.1", "delete", "consumer", "name", "churn"],
        ["ada", "127.0.0.1", "set", "consumer", "name", "churn"],
    ]
