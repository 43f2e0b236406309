"""The registry over raw HTTP: what each token may do, hand-made attacks, cut connections, and what is written down."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role, create_token, revoke_token
from featurestore_registry.auth.tokens import KIND as TOKEN_KIND
from featurestore_registry.errors import (
    AuthError,
    LedgerConflictError,
    RegistryUnavailableError,
    RevisionConflictError,
)
from featurestore_registry.http import access, client, server
from featurestore_registry.http.access import JOURNAL, LEDGER
from featurestore_registry.http.client import HttpRegistry, open_registry
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record, RecordField
from featurestore_registry.sql import open_registry as open_sql
from support.registry_server import asking, serving_registry
from support.serving import until

pytestmark = pytest.mark.uncounted

ALL = [*Role]


def put(name: str, value: object = 0, project: str = "p") -> Change:
    return Change("put", "view", name, Record("view", project, name, {"value": value}, "f"))


def body_of(name: str, expected: str = "", project: str = "p", **more: Any) -> dict[str, Any]:
    record = {"kind": "view", "project": project, "name": name, "document": {}, "fingerprint": "f"}
    change = {"action": "put", "kind": "view", "name": name, "record": record}
    return {"expected": expected, "changes": [change], **more}


class Served:
    """A server over SQLite, and tokens for it."""

    def __init__(self, registry: Registry, url: str) -> None:
        self.registry, self.url = registry, url
        self.by_role = {role: self.token(role, name=str(role)) for role in Role}
        self.client = httpx.Client(base_url=url, timeout=20)

    def token(self, role: Role, project: str | None = None, **more: Any) -> str:
        return create_token(self.registry.ledger, project, role, **{"expires_at_us": None, "now_us": 0, **more})[0]

    def ask(self, token: str | None, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return self.client.request(method, path, headers=headers, **more)

    def head(self, project: str = "p") -> str:
        return self.registry.definitions.chain(project).head


@pytest.fixture
def served(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    with open_sql(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        for project in ("p", "q"):
            registry.definitions.apply(project, "", [put("a", project=project)], author="", message="", commit="")
        with serving_registry(registry) as url:
            served = Served(registry, url)
            with closing(served.client):
                until(lambda: served.ask(served.by_role[Role.ADMIN], "GET", "/api/v1/projects").status_code == 200)
                yield served


def routes() -> list[tuple[str, str, Role | None, Any]]:
    """Return method, path with query, the least role (None: nobody), and a body, of every route."""
    when = "2020-01-01T00:00:00Z"
    found: list[tuple[str, str, Role | None, Any]] = [
        ("GET", "/projects", Role.VIEWER, None),
        ("GET", "/state?project=p", Role.VIEWER, None),
        ("GET", "/chain?project=p", Role.VIEWER, None),
        ("GET", "/revisions/{head}?project=p", Role.VIEWER, None),
        ("GET", "/history?project=p", Role.VIEWER, None),
        ("POST", "/apply?project=p", Role.EDITOR, body_of("new")),
        ("GET", "/tokens?project=p", Role.ADMIN, None),
        ("POST", "/tokens?project=p", Role.ADMIN, {"key": "x", "document": {}}),
        ("GET", "/sessions?project=p", Role.ADMIN, None),
        ("POST", "/sessions?project=p", Role.ADMIN, {"key": "x", "document": {}}),
        ("POST", "/session", None, {}),  # for people alone
        ("DELETE", "/session", None, None),
        ("GET", "/nothing?project=p", Role.ADMIN, None),
    ]
    for kind, needs in LEDGER.items():
        found += [("GET", f"/ledger?project=p&kind={kind}", needs.read, None)]
        found += [("POST", f"/ledger?project=p&kind={kind}", needs.write, {"key": "k", "document": {}})]
    for kind, needs in JOURNAL.items():
        found += [("GET", f"/journal?project=p&kind={kind}", needs.read, None)]
        found += [("GET", f"/journal/newest?project=p&kind={kind}", needs.read, None)]
        least = Role.ADMIN if needs.is_server else needs.write
        found += [("POST", f"/journal?project=p&kind={kind}", least, [{"key": "k", "document": {}}])]
        found += [("DELETE", f"/journal?project=p&kind={kind}&before={when}", needs.write and Role.OPERATOR, None)]
    for kind in ("token", "session", "policy", "owner", "unknown", ""):
        found += [
            (method, f"/ledger?project=p&kind={kind}", None, {"key": "k", "document": {}}) for method in ("GET", "POST")
        ]
        found += [("GET", f"/journal?project=p&kind={kind}", None, None)]
    return found


def test_statistics_show_values_and_want_a_reader(served: Served) -> None:
    for kind in ("statistics", "edges"):
        url, entry = f"/api/v1/ledger?project=p&kind={kind}", {"key": "view.1", "document": {"rows": 1}}
        assert served.ask(served.by_role[Role.READER], "POST", url, json=entry).status_code == 403
        assert served.ask(served.by_role[Role.OPERATOR], "POST", url, json=entry).status_code == 200
        assert served.ask(served.by_role[Role.VIEWER], "GET", url).status_code == 403
        assert "view.1" in served.ask(served.by_role[Role.READER], "GET", url).text


def test_each_role_does_what_it_may_and_no_more(served: Served) -> None:
    before = served.registry.definitions.projects()
    for method, path, least, body in routes():
        for role, token in served.by_role.items():
            url = f"/api/v1{path}".replace("{head}", served.head())
            if path.startswith("/apply"):
                body = body_of("new", served.head())
            status = served.ask(token, method, url, json=body).status_code
            if least is None or role < least:
                assert status == 403, (method, path, role, status)
            else:
                assert status in (200, 404, 422), (method, path, role, status)
                assert status != 422 or path.startswith(("/tokens", "/sessions")), (method, path, role)
                assert status != 404 or path.startswith("/nothing"), (method, path, role)
    assert served.registry.definitions.projects() == before


def test_without_a_good_token_no_route_tells_anything(served: Served) -> None:
    registry = served.registry
    expired = served.token(Role.ADMIN, expires_at_us=1)
    revoked, gone = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0)
    until(lambda: served.ask(revoked, "GET", "/api/v1/projects").status_code == 200)
    revoke_token(registry.ledger, None, gone.id, now_us=1)
    until(lambda: served.ask(revoked, "GET", "/api/v1/projects").status_code == 401)
    forged = served.by_role[Role.ADMIN][:-1] + "-"
    for method, path, _, body in routes():
        answers = {
            served.ask(token, method, f"/api/v1{path}", json=body).content
            for token in (None, expired, revoked, forged, "x")
        }
        (answer,) = answers
        assert json.loads(answer)["error"]["type"] == "unauthorized"
    for path, status in {"/health": 200, "/ready": 200, "/": 200, "/login": 404, "/api/v1/login": 404}.items():
        assert served.ask(None, "GET", path).status_code == status, path
    assert served.ask(None, "GET", "/openapi.json").status_code == 401


def test_a_token_of_one_project_reaches_no_other(served: Served) -> None:
    token = served.token(Role.ADMIN, "p")
    until(lambda: served.ask(token, "GET", "/api/v1/projects").status_code == 200)
    assert served.ask(token, "GET", "/api/v1/projects").json() == ["p"]
    ask = "/api/v1/state"
    assert served.ask(token, "GET", f"{ask}?project=p").status_code == 200
    for query in ("project=q", "", "project=", "project=p&project=q", "project=q&project=p", "project=%70&project=q"):
        assert served.ask(token, "GET", f"{ask}?{query}").status_code == 403, query
    theirs = body_of("a", served.head("q"), "q")
    assert (
        served.ask(token, "POST", "/api/v1/apply?project=p", json={**theirs, "expected": served.head()}).status_code
        == 422
    )
    assert served.ask(token, "POST", "/api/v1/apply?project=q", json=theirs).status_code == 403
    everyone = {"key": "x", "document": {}, "if_version": 0}
    assert served.ask(token, "POST", "/api/v1/tokens?project=", json=everyone).status_code == 403
    assert len(served.registry.definitions.history("q")) == 1


def test_nobody_makes_tokens_by_hand_but_admins(served: Served) -> None:
    """And what they make is a token of that project, with an id and a hash of its own."""
    document = {"id": "x", "hash": "0" * 64, "role": "admin", "project": None, "expires_at_us": None, "name": ""}
    admin = served.token(Role.ADMIN, "p")
    until(lambda: served.ask(admin, "GET", "/api/v1/projects").status_code == 200)
    entry = {"key": "x", "document": document, "if_version": 0}
    for token, path in ((admin, "/tokens?project=p"), (served.by_role[Role.EDITOR], "/tokens?project=")):
        assert served.ask(token, "POST", f"/api/v1{path}", json=entry).status_code in (403, 422)
    own = {**entry, "document": {**document, "project": "p"}}
    for wrong in (
        {"key": "y"},
        {"if_version": None},
        {"document": {**own["document"], "role": "king"}},
        {"document": {}},
    ):
        assert served.ask(admin, "POST", "/api/v1/tokens?project=p", json={**own, **wrong}).status_code == 422, wrong
    assert served.ask(admin, "POST", "/api/v1/tokens?project=p", json=own).status_code == 200
    again = {"key": "none", "document": {"id": "none", "revoked_at_us": 1}}
    assert served.ask(admin, "POST", "/api/v1/tokens?project=p", json=again).status_code == 422


def test_hashes_of_tokens_are_for_servers_alone(served: Served) -> None:
    server = served.token(Role.OPERATOR, "p", is_server=True)
    until(lambda: served.ask(server, "GET", "/api/v1/projects").status_code == 200)
    for token, are_shown in ((server, True), (served.by_role[Role.ADMIN], False)):
        for project in ("p", ""):
            answer = served.ask(token, "GET", f"/api/v1/tokens?project={project}")
            assert answer.status_code == 200, project
            assert answer.json()
            assert {bool(entry["document"]["hash"]) for entry in answer.json()} == {are_shown}
    assert served.ask(server, "GET", "/api/v1/tokens?project=q").status_code == 403


def test_what_was_changed_is_written_down(served: Served) -> None:
    editor = served.by_role[Role.EDITOR]
    wrong = {**body_of("b", served.head()), "author": "somebody else"}
    assert served.ask(editor, "POST", "/api/v1/apply?project=p", json=wrong).status_code == 200
    with HttpRegistry(served.url, token=served.by_role[Role.ADMIN]) as registry:
        create_token(registry.ledger, "p", Role.VIEWER, expires_at_us=None, now_us=0, name="new")
        assert registry.definitions.history("p")[0].author == "editor"
        with HttpRegistry(served.url, token=served.by_role[Role.OPERATOR]) as other:
            accepted = {"run_id": "r7", "rows": "hash", "reason": "<b>a new scale", "by": "root"}
            other.ledger.append("p", "accepted", "ratings.2", accepted)
        entries = registry.journal.scan("p", "audit")
    acceptance = dict(entries.pop().document)
    assert acceptance.pop("token")
    assert acceptance == {
        "action": "accept rows", "by": "operator", "from": "127.0.0.1", "view": "ratings", "run": "r7",
        "reason": "<b>a new scale",
    }  # fmt: skip
    told = [(each.document["action"], each.document["by"], each.document["from"]) for each in entries]
    assert told == [("apply", "editor", "127.0.0.1"), ("create token", "admin", "127.0.0.1")]
    assert entries[0].document["changes"] == ["put view:b"]
    assert entries[1].document["of"]["hash"] == ""


@pytest.mark.parametrize("name", ["../q", "%00", "a/b", "🛫", "p%2e", "x" * 300])
def test_odd_names_are_names(served: Served, name: str) -> None:
    with HttpRegistry(served.url, token=served.by_role[Role.ADMIN]) as registry:
        assert registry.definitions.chain(name).number == 0
        assert registry.ledger.scan(name, "run", key=name) == []
        registry.ledger.append("p", "run", name, {"n": 1})
        entry = registry.ledger.latest("p", "run", name)
        assert entry is not None
        assert entry.key == name
    assert served.ask(served.by_role[Role.ADMIN], "GET", "/api/v1/state?project=a%00b").status_code == 422
    assert served.ask(served.by_role[Role.ADMIN], "GET", "/api/v1/revisions/..%2f..?project=p").status_code == 404


def test_bodies_that_make_no_sense(served: Served) -> None:
    admin = served.by_role[Role.ADMIN]
    path = "/api/v1/ledger?project=p&kind=run"
    for content in (
        b"",
        b"{",
        b"[]",
        b'{"key": "k"}',
        b'{"key": 1, "document": {}}',
        b'{"key":"k","document":{},"x":1}',
    ):
        answer = served.ask(admin, "POST", path, content=content)
        assert answer.status_code == 422, content
        assert answer.json()["error"]["message"]
    for text in ('{"key": "k", "document": {"a": NaN}}', '{"key": "\\ud800", "document": {}}'):
        assert served.ask(admin, "POST", path, content=text.encode()).status_code == 422, text
    large = json.dumps({"key": "k", "document": {"text": "x" * (9 << 20)}}).encode()
    assert served.ask(admin, "POST", path, content=large).status_code == 413
    assert served.registry.ledger.scan("p", "run") == []
    for query in ("limit=-1", "limit=x", "limit=99999999999"):
        assert served.ask(admin, "GET", f"{path}&{query}").status_code == 422


def test_a_poll_costs_no_body_while_nothing_changes(served: Served) -> None:
    with HttpRegistry(served.url, token=served.by_role[Role.VIEWER]) as registry:
        first = registry.state("p")
        again = registry.state("p")
        assert (again.head, again.number, again.ledger) == (first.head, first.number, first.ledger)
        assert abs((datetime.now(UTC) - again.now).total_seconds()) < 30
        served.registry.ledger.append("p", "run", "k", {})
        assert registry.state("p").ledger > first.ledger
    answer = served.ask(served.by_role[Role.VIEWER], "GET", "/api/v1/state?project=p")
    tag = {"if-none-match": answer.headers["etag"], "authorization": f"Bearer {served.by_role[Role.VIEWER]}"}
    same = httpx.get(f"{served.url}/api/v1/state?project=p", headers=tag)
    assert (same.status_code, same.content) == (304, b"")
    whole = served.ask(served.by_role[Role.VIEWER], "GET", f"/api/v1/revisions/{served.head()}?project=p")
    assert "immutable" in whole.headers["cache-control"]
    assert "private" in whole.headers["cache-control"]


@contextmanager
def cutting(url: str, cut: Callable[[bytes], str]) -> Iterator[str]:
    """Give the URL of a proxy that passes requests on and cuts connections where ``cut`` says."""
    target = httpx.URL(url)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            request = _message(connection)
            where = cut(request)
            if not request or where == "before":
                return
            with socket.create_connection((target.host, target.port)) as upstream:
                upstream.sendall(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
                answer = b""
                while piece := upstream.recv(1 << 16):
                    answer += piece
            if where != "after":
                connection.sendall(answer)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with ExitStack() as stack:
        stack.callback(listening.close)
        stack.callback(listening.shutdown, socket.SHUT_RDWR)
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _message(connection: socket.socket) -> bytes:
    found = b""
    while b"\r\n\r\n" not in found:
        piece = connection.recv(1 << 16)
        if not piece:
            return b""
        found += piece
    head, _, body = found.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]):
        body += connection.recv(1 << 16)
    return head + b"\r\n\r\n" + body


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_cut_connection_does_nothing_twice(served: Served, where: str) -> None:
    """What was lost before the server had it raises; what it had done is found, and returned as done."""
    left = ["cut"]

    def cut(request: bytes) -> str:
        return where if request.startswith(b"POST") and left and left.pop() else "never"

    with cutting(served.url, cut) as url, HttpRegistry(url, token=served.by_role[Role.ADMIN]) as registry:
        works: list[tuple[Callable[[], Any], Callable[[], int]]] = [
            (
                lambda: registry.definitions.apply("p", served.head(), [put("new")], author="", message="m", commit=""),
                lambda: len(served.registry.definitions.history("p")),
            ),
            (
                lambda: registry.ledger.append("p", "run", "k", {"run_id": "r"}),
                lambda: len(served.registry.ledger.scan("p", "run", key="k")),
            ),
            (
                lambda: registry.ledger.append("p", "lease", "k", {"holder": "h"}, if_version=0),
                lambda: len(served.registry.ledger.scan("p", "lease", key="k")),
            ),
            (
                lambda: registry.journal.append("p", "commit", [("v", {"n": 1}), ("v", {"n": 2})]),
                lambda: len(served.registry.journal.scan("p", "commit")),
            ),
        ]
        for work, count in works:
            before = count()
            left[:] = ["cut"]
            if where == "before":
                with pytest.raises(RegistryUnavailableError):
                    work()
                assert count() == before
            else:
                work()
                assert count() > before
                after = count()
                assert after - before <= 2
        assert [info.author for info in served.registry.definitions.history("p")] == (
            ["admin", ""] if where == "after" else [""]
        )


def test_what_an_older_entry_says_is_not_taken_for_done(served: Served) -> None:
    """A consumer that was noted, forgotten and noted again, for example."""
    left: list[str] = []

    def cut(request: bytes) -> str:
        return "before" if request.startswith(b"POST") and left and left.pop() else "never"

    with cutting(served.url, cut) as url, HttpRegistry(url, token=served.by_role[Role.ADMIN]) as registry:
        for document in ({"is": "here"}, {"is": "gone"}):
            registry.ledger.append("p", "consumer", "k", document)
        left.append("cut")
        with pytest.raises(RegistryUnavailableError):
            registry.ledger.append("p", "consumer", "k", {"is": "here"})
        assert len(served.registry.ledger.scan("p", "consumer", key="k")) == 2


def test_a_cut_connection_and_another_writer_are_a_conflict(served: Served) -> None:
    def cut(request: bytes) -> str:
        if not request.startswith(b"POST"):
            return "never"
        registry, head = served.registry, served.head()
        if b"/apply" in request:
            registry.definitions.apply("p", head, [put("theirs")], author="", message="", commit="")
        else:
            registry.ledger.append("p", "lease", "k", {"holder": "theirs"})
        return "before"

    with cutting(served.url, cut) as url, HttpRegistry(url, token=served.by_role[Role.ADMIN]) as registry:
        with pytest.raises(RevisionConflictError, match="another apply came first"):
            registry.definitions.apply("p", served.head(), [put("mine")], author="", message="", commit="")
        with pytest.raises(LedgerConflictError, match="another writer came first"):
            registry.ledger.append("p", "lease", "k", {"holder": "mine"}, if_version=0)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://fs_hunter2@registry.example", "holds more than a host"),
        ("https://user:fs_hunter2@registry.example/x", "holds more than a host"),
        ("https://registry.example/?token=fs_hunter2", "holds more than a host"),
        ("https://registry.example/#fs_hunter2", "holds more than a host"),
        ("https://", "or less"),
        ("http://registry.example", "is not behind TLS"),
        ("http://10.0.0.1:6570", "is not behind TLS"),
    ],
)
def test_urls_that_are_refused(url: str, told: str) -> None:
    with pytest.raises(RegistryUnavailableError, match=told) as raised:
        open_registry(url, token=None, plain=frozenset({"registry"}))
    open_registry("http://registry:6570", token=None, plain=frozenset({"registry"})).close()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("token", ["fs_hunter2\r", "fs hunter2", "hünter2", "Bearer fs_hunter2"])
def test_what_no_header_can_hold_is_never_shown(token: str) -> None:
    with pytest.raises(AuthError, match="holds more than letters, digits") as raised:
        open_registry("https://registry.example", token=token)
    assert "unter2" not in str(raised.value)


def test_a_server_that_is_away_or_another_one_is_told(served: Served) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with open_registry(f"http://127.0.0.1:{port}", token=None) as registry:
        with pytest.raises(RegistryUnavailableError, match="onnection refused") as raised:
            registry.definitions.head("p")
        assert "Check that it runs" in raised.value.hint
    with (
        open_registry(f"{served.url}/elsewhere", token=served.by_role[Role.ADMIN]) as registry,
        pytest.raises(RegistryUnavailableError, match="it answers 404"),
    ):
        registry.definitions.head("p")
    for token in (None, "wrong"):
        with open_registry(served.url, token=token) as registry, pytest.raises(AuthError) as refused:
            registry.definitions.head("p")
        assert "FS_REGISTRY_TOKEN" in refused.value.hint


def test_a_client_takes_what_a_server_of_a_later_version_tells(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    to_json = server._json

    def more(value: Any) -> Any:
        if isinstance(value, dict):
            kept = ("document", "tags", "error")
            return {**{name: each if name in kept else more(each) for name, each in value.items()}, "later": {"a": [1]}}
        return [more(each) for each in value] if isinstance(value, list | tuple) else value

    monkeypatch.setattr(server, "_json", lambda document, headers=None: to_json(more(document), headers))
    with HttpRegistry(served.url, token=served.by_role[Role.ADMIN]) as registry:
        record = dataclasses.replace(put("b").record, fields=(RecordField("x", "Int64"),))
        change = Change("put", record.kind, "b", record)
        registry.definitions.apply("p", served.head(), [change], author="", message="m", commit="")
        registry.ledger.append("p", "run", "k", {"a": 1})
        registry.journal.append("p", "commit", [("k", {"a": 1})])
        for ask in (
            lambda of: of.definitions.read("p"),
            lambda of: [dataclasses.replace(each, author="") for each in of.definitions.history("p")],
            lambda of: of.ledger.scan("p", "run"),
            lambda of: of.journal.scan("p", "commit"),
            lambda of: of.state("p").number,
        ):
            assert ask(registry) == ask(served.registry)


def test_a_server_of_an_earlier_version_refuses_what_it_does_not_know(served: Served) -> None:
    """Instead of doing something else than was asked; and the client says what it was."""
    with HttpRegistry(served.url, token=served.by_role[Role.ADMIN]) as registry:
        with pytest.raises(AuthError, match="has no entries of kind 'later'"):
            registry.ledger.append("p", "later", "k", {})
        send = registry._connection.send
        with pytest.raises(RegistryUnavailableError, match=r"422.*body\.later: Extra inputs"):
            send("POST", "/ledger", {"project": "p", "kind": "run"}, {"key": "k", "document": {}, "later": 1})
    assert served.registry.ledger.scan("p", "run") == []


def test_an_operator_removes_old_entries_alone_and_keys_are_short(served: Served) -> None:
    operator, admin = served.by_role[Role.OPERATOR], served.by_role[Role.ADMIN]
    served.registry.journal.append("p", "commit", [("k", {})])
    for before in ("2100-01-01T00:00:00Z", datetime.now(UTC).isoformat().replace("+00:00", "Z")):
        path = f"/api/v1/journal?project=p&kind=commit&before={before}"
        refused = served.ask(operator, "DELETE", path)
        assert (refused.status_code, "older than 7 days alone" in refused.text) == (403, True)
    assert len(served.registry.journal.scan("p", "commit")) == 1
    assert served.ask(admin, "DELETE", path.replace(before, "2100-01-01T00:00:00Z")).json() == {"count": 1}
    old = "/api/v1/journal?project=p&kind=commit&before=2020-01-01T00:00:00Z"
    assert served.ask(operator, "DELETE", old).json() == {"count": 0}
    long = {"key": "k" * 1_001, "document": {}}
    assert served.ask(admin, "POST", "/api/v1/ledger?project=p&kind=run", json=long).status_code == 422
    assert served.ask(admin, "POST", "/api/v1/journal?project=p&kind=commit", json=[long]).status_code == 422
    far = f"/api/v1/journal?project=p&kind=commit&after={2**63}"
    assert served.ask(admin, "GET", far).status_code == 422


def test_a_token_that_is_not_enough_says_for_what_and_what_to_do(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(token: str, work: Callable[[HttpRegistry], object]) -> str:
        with HttpRegistry(served.url, token=token) as registry, pytest.raises(AuthError) as refused:
            work(registry)
        return f"{refused.value.message} {refused.value.hint}"

    of_p = served.token(Role.EDITOR, "p")
    until(lambda: served.ask(of_p, "GET", "/api/v1/state?project=p").status_code == 200)
    assert "is for project 'p', and this asks for project 'q'" in refusal(of_p, lambda of: of.definitions.head("q"))
    assert "token create --role operator --server" in refusal(of_p, lambda of: of.ledger.scan("p", TOKEN_KIND))
    assert "an admin of it gives roles" in refusal(of_p, lambda of: of.journal.scan("p", "audit"))
    assert "of an earlier version" in refusal(of_p, lambda of: of.ledger.scan("p", "later"))
    monkeypatch.setenv("FS_REGISTRY_TOKEN", "x")
    assert "wins over `fs login`" in refusal("wrong", lambda of: of.definitions.head("p"))
    monkeypatch.delenv("FS_REGISTRY_TOKEN")
    assert "Run `fs login`" in refusal("wrong", lambda of: of.definitions.head("p"))


def test_a_registry_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as hangs,
        open_registry(f"http://127.0.0.1:{hangs.getsockname()[1]}", token=None) as registry,
        pytest.raises(RegistryUnavailableError, match="timed out"),
    ):
        registry.definitions.head("p")


def test_asking_by_hand_needs_no_client(served: Served) -> None:
    with asking(served.url, served.by_role[Role.VIEWER]) as client:
        assert client.get("/api/v1/chain", params={"project": "p"}).json() == {"after": 0, "hashes": [served.head()]}
        known = {"project": "p", "after": 1, "at": served.head()}
        assert client.get("/api/v1/chain", params=known).json() == {"after": 1, "hashes": []}
        assert client.get("/api/v1/chain", params={**known, "at": "other"}).json()["after"] == 0
        described = served.ask(served.by_role[Role.ADMIN], "GET", "/openapi.json").json()
    assert {path for path in described["paths"] if path.startswith("/api/v1/")} >= {"/api/v1/apply", "/api/v1/state"}
