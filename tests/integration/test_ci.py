"""`deploy/ci/`: the script against a real `fs registry serve` and a git repository; the workflow as it is written."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from featurestore_registry.auth import Role, create_token
from featurestore_registry.http.client import HttpRegistry
from featurestore_registry.sql import open_registry
from support.example import REPOSITORY
from support.processes import plain_environment
from support.registry_process import registry_process
from support.serving import until

import featurestore.cli.main
from featurestore import FeatureStore
from featurestore.cli.markdown import plan_markdown
from featurestore.errors import AuthError
from featurestore.plan import ChangeClass, Plan
from featurestore.plan.changes import Step

pytestmark = pytest.mark.uncounted

SCRIPT = REPOSITORY / "deploy" / "ci" / "features.sh"
WORKFLOW = REPOSITORY / "deploy" / "ci" / "features.yml"
ROLES = {"plans": Role.VIEWER, "ci": Role.EDITOR, "ada": Role.EDITOR, "ops": Role.ADMIN}
FEATURES = """
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource
from featurestore.types import Float64, Int64, String

shop = Entity("shop", join_keys={"shop": String})
sales = ParquetSource("sales", "sales.parquet", "at")
fields = [Field("amount", Float64), Field("tax", Float64)]
takings = FeatureView("takings", entities=[shop], source=sales, schema=fields)
model = FeatureService("model", features=[takings[["amount", "tax"]]])
"""


class Repo:
    """A git repository with a feature repo, its registry served by a process, and the script as a CI runs it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repo"
        self.root.mkdir()
        (folder / "host").mkdir()
        self.host = folder / "host"
        (self.host / "feature_store.yaml").write_text(f"project: host\nregistry: sqlite:////{folder / 'registry.db'}\n")
        at = pa.array([1_700_000_000_000_000], pa.timestamp("us", "UTC"))
        pq.write_table(pa.table({"shop": ["a"], "at": at, "amount": [1.0], "tax": [0.5]}), self.root / "sales.parquet")
        with open_registry(f"sqlite:///{folder / 'registry.db'}") as registry:
            self.tokens = {
                name: create_token(registry.ledger, "shop", role, expires_at_us=None, now_us=0, name=name)[0]
                for name, role in {
                    "plans": Role.VIEWER,
                    "ci": Role.EDITOR,
                    "ada": Role.EDITOR,
                    "ops": Role.ADMIN,
                }.items()
            }
        self.git("init", "--quiet")

    def registry(self, who: str) -> HttpRegistry:
        return HttpRegistry(self.url, token=self.tokens[who])

    def serves(self, url: str) -> None:
        self.url = url
        (self.root / "feature_store.yaml").write_text(f"project: shop\nregistry: {url}\n")

    def git(self, *arguments: str) -> str:
        who = ["-c", "user.name=Ada Lovelace", "-c", "user.email=ada@example.org"]
        done = subprocess.run(["git", *who, *arguments], cwd=self.root, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def commit(self, features: str, subject: str) -> None:
        (self.root / "features.py").write_text(features)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)

    def script(self, *arguments: str, who: str = "", expect: int = 0, **variables: str) -> str:
        environment = {**plain_environment(), "FEATURE_REPO": str(self.root), **variables}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        if who:
            environment["FS_REGISTRY_TOKEN"] = self.tokens[who]
        done = subprocess.run(
            ["sh", str(SCRIPT), *arguments], cwd=self.root.parent, env=environment, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path)


def entered(repo: Repo, who: str) -> bool:
    try:
        with repo.registry(who) as registry:
            registry.definitions.chain("shop")
    except AuthError:
        return False
    return True


@pytest.mark.slow(7)
def test_a_pull_request_is_planned_and_a_merge_applied(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comment = tmp_path / "plan.md"
    with registry_process(repo.host) as url:
        repo.serves(url)
        repo.commit(FEATURES, "The first features")
        until(lambda: entered(repo, "ci"))
        assert "A CI gives no secrets to a pull request of a fork" in repo.script("plan", str(comment), expect=1)
        assert not comment.exists()

        repo.script("plan", str(comment), who="plans")
        assert comment.read_text().startswith("### Features: 4 to create; the worst change is compatible.\n")
        assert "shop is at revision 1." in repo.script("apply", who="ci")
        with repo.registry("plans") as registry:
            (applied,) = registry.definitions.history("shop")
        assert applied.message == f"{repo.git('log', '-1', '--format=%h')} The first features (Ada Lovelace)"
        assert (applied.author, applied.commit) == ("ci", repo.git("rev-parse", "HEAD"))
        repo.script("plan", str(comment), who="plans")
        assert comment.read_text().startswith("### Features: nothing to change\n")

        # What breaks readers is refused on merge, and the pull request says so.
        broken = FEATURES.replace(', Field("tax", Float64)', "").replace('[["amount", "tax"]]', '[["amount"]]')
        repo.commit(broken, "No tax")
        assert "The merge would be refused" in repo.script("plan", str(comment), who="plans", expect=3)
        told = comment.read_text()
        assert "Changes by class: 2 breaking." in told
        assert "~ feature view takings: feature_service:model" in told
        assert "--allow-breaking" in repo.script("apply", who="ci", expect=1)
        # What a features.py prints is no plan.
        repo.commit(broken + "\nprint('1 to change; the worst change is breaking; apply needs nothing.')", "Prints")
        repo.script("plan", who="plans", expect=3)
        repo.script("plan", who="plans", FEATURES_ALLOW="--allow-breaking")

        with repo.registry("ops") as registry:
            registry.governance.set_policy("shop", {"refuse": ["breaking"], "approve": [], "groups": {}})
        said = repo.script("plan", str(comment), who="plans", FEATURES_ALLOW="--allow-breaking", expect=3)
        assert "refuses breaking changes: feature_view:takings, feature_service:model." in said
        assert "Changes by class: 2 breaking. The project's policy refuses it.\n" in comment.read_text()

        # A second person.
        with repo.registry("ops") as registry:
            registry.governance.set_policy("shop", {"refuse": [], "approve": ["breaking"], "groups": {}})
        said = repo.script("apply", who="ci", FEATURES_ALLOW="--allow-breaking", expect=5)
        assert "Proposed. When another editor has approved it" in said
        with repo.registry("ada") as registry:
            (waiting,) = registry.governance.proposals("shop")
            registry.governance.approve("shop", waiting["plan"])
        assert "shop is at revision 2." in repo.script("apply", who="ci", FEATURES_ALLOW="--allow-breaking")

        # Between the plan and the merge somebody applies something that the repo does not have.
        monkeypatch.setenv("FS_REGISTRY_TOKEN", repo.tokens["ada"])
        with FeatureStore(repo.root) as store:
            by_name = {found.name: found for found in store.list()}
            store.apply([by_name["takings"].replaced(name="by_hand")])
        said = repo.script("apply", who="ci", expect=1)
        assert "- feature view by_hand" in said
        assert "--allow-destroy" in said
    said = repo.script("plan", str(comment), who="plans", expect=1)
    assert "cannot be used" in said
    assert comment.read_text() == "### Features: the plan failed (exit code 1), as the log of the job says\n"


def test_a_comment_fits_and_nothing_in_a_plan_ends_its_block() -> None:
    steps = [
        Step(
            "update",
            "feature_view",
            "feature view",
            f"v{n}",
            ChangeClass.BREAKING,
            affects=("feature_service:s ✓",),
            notices=("```` @all",),
        )
        for n in range(2_000)
    ]
    steps.append(Step("create", "feature_view", "feature view", "new", ChangeClass.COMPATIBLE))
    plan = Plan("shop", 1, "", tuple(steps), ())
    told = plan_markdown(plan)
    assert 50_000 < len(told.encode()) <= 65_536
    assert told.startswith(
        "### Features: 1 to create, 2000 to change; the worst change is breaking; apply needs --allow-breaking.\n"
    )
    assert "Changes by class: 2000 breaking, 1 compatible." in told
    assert "~ feature view v0: feature_service:s ✓\n" in told
    assert re.search(r"\n\.\.\. 1\d\d\d more\n", told)
    assert told.rstrip("`\n").endswith("more lines, in the job's log")
    assert [line for line in told.splitlines() if line.startswith("```")] == ["`````"] * 4
    assert plan_markdown(replace(plan, steps=())) == "### Features: nothing to change\n"
    told = plan_markdown(replace(plan, steps=(), notices=("``` look",)))
    assert told == "### Features: nothing to change\n\n````\nNote: ``` look\n````\n"


@pytest.mark.parametrize("arguments", [[], ["plan", "a", "b"], ["apply", "a"], ["destroy"]])
def test_a_wrong_use_is_told(arguments: list[str]) -> None:
    done = subprocess.run(["sh", str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "features.sh apply " in done.stderr


def steps() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, job in yaml.safe_load(WORKFLOW.read_text())["jobs"].items():
        for step in job["steps"]:
            yield name, step


def test_the_workflow_uses_what_there_is() -> None:
    document = yaml.load(WORKFLOW.read_text(), yaml.BaseLoader)  # "on" is a text
    assert set(document["on"]) == {"pull_request", "push", "workflow_dispatch"}
    assert document["permissions"] == {"contents": "read"}
    uses = {step["uses"] for _, step in steps() if "uses" in step}
    assert all(re.fullmatch(r"actions/(checkout|setup-python|(up|down)load-artifact)@v\d+", each) for each in uses)
    runs = [(job, step) for job, step in steps() if "run" in step]
    asked = {(job, line) for job, step in runs for line in step["run"].splitlines() if "features.sh" in line}
    assert asked == {("plan", "sh ci/features.sh plan plan.md"), ("apply", "sh ci/features.sh apply")}
    assert {step["run"].split()[0] for _, step in runs} == {"sh", "pip", "cat", "gh"}
    # The token is in the steps that need it, and from the store of secrets.
    with_token = [step["run"].split()[1] for _, step in runs if "FS_REGISTRY_TOKEN" in step.get("env", {})]
    assert with_token == ["ci/features.sh"] * 2
    assert set(re.findall(r"secrets\.(\w+)", WORKFLOW.read_text())) == {"FS_REGISTRY_TOKEN"}
    # No job that runs a pull request's own code may write anything.
    jobs = document["jobs"]
    assert {name for name, job in jobs.items() if "permissions" in job} == {"comment"}
    assert [step["run"].split()[0] for step in jobs["comment"]["steps"] if "run" in step] == ["gh"]
    # What comes from a pull request reaches no shell but by variables.
    assert [step["run"] for _, step in runs if "${{" in step["run"]] == []


def test_the_commands_of_the_script_are_commands() -> None:
    group = featurestore.cli.main.fs
    text = "\n".join(
        line for line in SCRIPT.read_text().splitlines() if not line.lstrip().startswith("#") and "echo" not in line
    )
    found = re.findall(r"\bfs ([a-z]+)((?: (?:--?[a-z]+|\$allow|\"\$[^\"]+\"))*)", text)
    assert [name for name, _ in found] == ["apply", "plan"]
    for name, arguments in found:
        command = group.get_command(group.make_context("fs", [], resilient_parsing=True), name)
        assert command is not None
        known = {option for parameter in command.params for option in parameter.opts}
        asked = [argument for argument in arguments.split() if argument.startswith("--")]
        assert len(asked) > 1
        assert set(asked) <= known
