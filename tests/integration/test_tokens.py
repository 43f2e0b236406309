"""Tokens from `fs token` to a server's answer: taken, refused, revoked, expired, and never told twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role, tokens
from featurestore_registry.auth.tokens import hash_token
from featurestore_registry.records import Change
from starlette.routing import Route
from support.clock import ManualClock
from support.serving import HOUR_US, Project, error_of, serving, serving_here, small_project, until

from featurestore.backends import open_registry
from featurestore.cli.main import main
from featurestore.definitions import Entity
from featurestore.project.settings import read_settings
from featurestore.registered.records import to_record
from featurestore.registered.snapshot_file import FILE_NAME
from featurestore.server.app import create_app
from featurestore.types import Int64
from featurestore.types.times import system_clock, to_rfc3339

BODY = {"features": ["fresh:clicks"], "entities": {"customer_id": [1]}}
OPEN = {"/health", "/ready"}
NEEDED = {"/push": Role.OPERATOR}
"""The least role of a route; it is reader where none is named."""

Token = Callable[..., Any]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return small_project(tmp_path / "repo", system_clock(), refresh="100ms")


@pytest.fixture
def token(project: Project, capsys: pytest.CaptureFixture[str]) -> Token:
    """Run ``fs token`` in the project's folder; return its JSON, or what it printed when that was no success."""

    apply_to_others(project)

    def run(*arguments: str, expect: int = 0) -> Any:
        with pytest.raises(SystemExit) as caught:
            main(["token", *arguments, "--repo", str(project.root), "--json"])
        printed = capsys.readouterr()
        assert caught.value.code == expect, printed
        return json.loads(printed.out) if expect == 0 else printed.out + printed.err

    return run


def apply_to_others(project: Project) -> None:
    """Apply something to another project of the same registry."""
    with open_registry(read_settings(project.root).registry, project.root) as registry:
        record = to_record("others", Entity("shop", {"shop": Int64}))
        changes = [Change("put", record.kind, record.name, record)]
        registry.definitions.apply("others", "", changes, author="test", message="", commit="")


def ask(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/v1/online-features", json=BODY, headers={"authorization": f"Bearer {text}"})


def status(client: httpx.Client, text: str) -> int:
    return ask(client, text).status_code


def test_a_running_server_takes_a_new_token_and_drops_a_revoked_one(project: Project, token: Token) -> None:
    kept = token("create", "--role", "reader")
    with serving_here(project.workspace()) as client:
        assert status(client, kept["token"]) == 200
        made = token("create", "--role", "reader", "--name", "late")
        until(lambda: status(client, made["token"]) == 200, seconds=10)
        assert token("revoke", made["id"][:6]) == {"id": made["id"], "revoked": True, "left": 1}
        until(lambda: status(client, made["token"]) == 401, seconds=10)
        assert status(client, kept["token"]) == 200


def test_the_first_token_closes_a_server_on_loopback(project: Project, token: Token) -> None:
    with serving_here(project.workspace()) as client:
        assert client.post("/v1/online-features", json=BODY).status_code == 200
        token("create", "--role", "viewer")
        until(lambda: client.post("/v1/online-features", json=BODY).status_code == 401, seconds=10)


def test_an_expired_token_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now_us = system_clock()
    project = small_project(tmp_path / "repo", now_us, refresh="1h")  # the server learns nothing while the test runs
    with pytest.raises(SystemExit):
        main(["token", "create", "--role", "reader", "--expires", "10m", "--json", "--repo", str(project.root)])
    made = json.loads(capsys.readouterr().out)
    clock = ManualClock(made["expires_at"])
    end_us = clock()
    assert now_us + HOUR_US / 6 <= end_us < now_us + HOUR_US / 6 + 60_000_000
    clock.set(end_us - 1)
    with serving_here(project.workspace(clock)) as client:
        assert status(client, made["token"]) == 200
        clock.set(end_us)
        assert error_of(ask(client, made["token"]))["type"] == "unauthorized"


def test_a_token_is_good_for_its_project(project: Project, token: Token) -> None:
    texts = [
        token("create", "--role", "reader", *options)["token"]
        for options in ((), ("--project", "shop"), ("--all-projects",), ("--project", "others"))
    ]
    with serving_here(project.workspace()) as client:
        assert [status(client, text) for text in texts] == [200, 200, 200, 401]


def test_a_restart_without_the_registry_knows_the_tokens(project: Project, token: Token) -> None:
    good, ended = (token("create", "--role", "reader") for _ in range(2))
    token("revoke", ended["id"])
    create_app(project.workspace())
    project.registry_file.unlink()
    with serving_here(project.workspace()) as client:
        assert [status(client, text) for text in (good["token"], ended["token"], "other")] == [200, 401, 401]


def test_a_token_is_told_once(project: Project, token: Token) -> None:
    made = [token("create", "--role", str(role)) for role in Role]
    texts = [each["token"] for each in made]
    with open_registry(read_settings(project.root).registry, project.root) as registry:
        hashes = [kept.hash for kept in tokens(registry.ledger, "shop")]
    assert len(set(hashes)) == len(Role)
    listed = json.dumps(token("list"))
    assert [each["id"] in listed for each in made] == [True] * len(made)
    with serving(project.root, "--debug") as server, server.client() as client:
        answers = []
        for text in [*texts, *hashes, texts[0][:-1]]:
            answers.append(ask(client, text))
            answers.append(client.get(f"/metrics?token={text}", headers={"authorization": f"Basic {text}"}))
            answers.append(client.get(f"/{text}"))
        for role, text in zip(Role, texts, strict=True):
            assert status(client, text) == (403 if role is Role.VIEWER else 200)
        metrics = client.get("/metrics", headers={"authorization": f"Bearer {texts[1]}"}).text
        told = [answer.text + repr(answer.headers) for answer in answers]
        log = server.log.read_text()
    snapshot = (project.root / FILE_NAME).read_text()
    stored = project.registry_file.read_bytes().decode("latin-1")
    for text in texts:
        assert text[:-8] not in "\n".join([log, snapshot, stored, listed, metrics, *told])
    for digest in hashes:
        assert digest in snapshot
        assert digest[:-8] not in "\n".join([log, listed, metrics, *told])


@pytest.mark.parametrize("role", [None, *Role])
def test_every_route_wants_a_token_with_its_role(project: Project, token: Token, role: Role | None) -> None:
    anyones = token("create", "--role", str(role or Role.ADMIN))["token"]
    headers = {} if role is None else {"authorization": f"Bearer {anyones}"}
    app = create_app(project.workspace()).api
    walked = [route for route in app.routes if isinstance(route, Route)]
    assert walked == app.routes  # nothing mounted that the walk would miss
    with serving_here(project.workspace()) as client:
        for route in walked:
            for method in route.methods or ():
                response = client.request(method, route.path, headers=headers)
                if route.path in OPEN:
                    assert response.status_code == 200, route.path
                elif role is None:
                    assert response.status_code == 401, (method, route.path)
                elif role < NEEDED.get(route.path, Role.READER):
                    assert response.status_code == 403, (method, route.path)
                else:
                    assert response.status_code not in (401, 403, 404, 500), (method, route.path)
    assert {"/metrics", "/openapi.json", "/docs", "/v1/online-features"} < {route.path for route in walked}


def test_lists_and_ends_of_tokens(project: Project, token: Token) -> None:
    before_us = system_clock()
    first = token("create", "--role", "reader", "--name", "checkout", "--expires", "90d")
    every = token("create", "--role", "admin", "--all-projects")
    elsewhere = token("create", "--role", "editor", "--project", "others")
    assert to_rfc3339(before_us + 90 * 24 * HOUR_US) <= first["expires_at"]
    assert first["expires_at"] <= to_rfc3339(system_clock() + 90 * 24 * HOUR_US)
    shown = [{key: value for key, value in made.items() if key != "token"} for made in (first, every, elsewhere)]
    assert shown[0].items() >= {"name": "checkout", "role": "reader", "project": "shop", "expired": False}.items()
    assert token("list") == [shown[1], shown[0]]
    assert token("list", "--project", "others") == [shown[2], shown[1]]
    assert elsewhere["id"] in token("revoke", elsewhere["id"], expect=1)  # it is not one of this project
    token("revoke", elsewhere["id"], "--project", "others")
    token("revoke", every["id"])  # from any project that it is good for
    assert token("list") == [shown[0]]
    assert token("list", "--project", "others") == []
    assert "There is no token" in token("revoke", every["id"], expect=1)


def test_a_token_of_a_secret_store_is_made_once(project: Project, token: Token, monkeypatch: Any) -> None:
    monkeypatch.setenv("THE_TOKEN", "t" * 40)
    made = token("create", "--role", "operator", "--server", "--from-variable", "THE_TOKEN")
    assert "token" not in made
    assert made["server"]
    assert token("create", "--role", "operator", "--server", "--from-variable", "THE_TOKEN") == made
    assert token("list") == [made]
    with closing(project.workspace()) as workspace:
        assert [each.hash for each in tokens(workspace.ledger, "shop")] == [hash_token("t" * 40)]
    assert "there already: operator, server of project shop" in token(
        "create", "--role", "admin", "--from-variable", "THE_TOKEN", expect=1
    )
    token("revoke", made["id"])
    assert "which was revoked" in token("create", "--role", "operator", "--from-variable", "THE_TOKEN", expect=1)
    assert "must be 32 characters" in token("create", "--role", "operator", "--from-variable", "NOTHING", expect=1)
    assert token("list") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create"], "--role"),
        (["create", "--role", "root"], "'root'"),
        (["create", "--role", "reader", "--expires", "soon"], "for example 10s"),
        (["create", "--role", "reader", "--expires", "99999999d"], "9999"),
        (["create", "--role", "reader", "--expires", "9999999999999d"], "'9999999999999d': this is too long: time"),
        (["create", "--role", "reader", "--expires", "0d"], "'0d' is no time at all"),
        (["create", "--role", "reader", "--project", "fs:*"], "--project"),
        (["create", "--role", "reader", "--project", "p", "--all-projects"], "either"),
    ],
)
def test_what_cannot_be_made_is_told(token: Token, arguments: list[str], said: str) -> None:
    assert said in token(*arguments, expect=2)
    assert token("list") == []


def test_no_token_is_made_for_a_project_that_is_not_there(token: Token) -> None:
    said = token("create", "--role", "reader", "--project", "othrs", expect=1)
    assert "'othrs'" in said
    assert "Did you mean 'others'?" in said
    assert token("create", "--role", "reader", "--project", "shop")["project"] == "shop"


def test_a_project_that_is_not_there_has_no_tokens_to_list_or_revoke(token: Token) -> None:
    made = token("create", "--role", "reader", "--all-projects")
    for arguments in (["list"], ["revoke", made["id"]]):
        said = token(*arguments, "--project", "othrs", expect=1)
        assert "Nothing is applied to a project 'othrs', so it has no tokens." in said
        assert "Did you mean 'others'?" in said
    assert token("list") == token("list", "--project", "others") != []


def test_a_token_that_is_older_than_its_project_is_listed_and_revoked(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FS_PROJECT", "later")
    made = token("create", "--role", "reader")
    monkeypatch.delenv("FS_PROJECT")
    assert [each["id"] for each in token("list", "--project", "later")] == [made["id"]]
    token("revoke", made["id"], "--project", "later")


def test_pages_for_people(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    def page(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(["token", *arguments, "--repo", str(project.root)])
        return capsys.readouterr().out

    assert "There are no tokens" in page("list")
    lines = page("create", "--role", "reader", "--name", "[red]team", "--expires", "1h").splitlines()
    token_id = lines[0].split()[1].rstrip(":")
    assert lines[0].startswith(f"Token {token_id}: reader of project shop, expires 2")
    assert lines[-1].startswith("fs_")
    listed = page("list")
    assert "[red]team" in listed
    assert lines[-1] not in listed
    ended = page("revoke", token_id)
    assert "is revoked" in ended
    assert "It was the last one" in ended
