"""Tokens in the ledger, their check, and the ASGI gate."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from featurestore_registry.auth import (
    AuthMiddleware,
    Role,
    Token,
    TokenVerifier,
    create_token,
    known_tokens,
    revoke_token,
    tokens,
)
from featurestore_registry.errors import RecordNotFoundError, RegistryError
from featurestore_registry.sql import open_registry

NOW = 1_383_456_789_000_000
SECOND = 1_000_000
STATIC = "0123456789abcdef0123456789ABCDEF"


@pytest.fixture
def ledger(tmp_path):
    with open_registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        yield registry.ledger


def create(ledger, project="p", role=Role.READER, expires_at_us=None, name=""):
    return create_token(ledger, project, role, expires_at_us=expires_at_us, now_us=NOW, name=name)


def test_roles_are_ordered_and_known_by_name():
    names = ["viewer", "reader", "operator", "editor", "admin"]
    assert [str(role) for role in sorted(Role)] == names
    assert [Role.parse(name) for name in names] == sorted(Role)
    assert Role.VIEWER < Role.READER < Role.OPERATOR < Role.EDITOR < Role.ADMIN
    with pytest.raises(RegistryError, match="no role 'raeder'") as raised:
        Role.parse("raeder")
    assert raised.value.hint == "Did you mean 'reader'?"


def test_a_token_is_kept_hashed(ledger):
    plaintext, token = create(ledger, role=Role.EDITOR, expires_at_us=NOW + SECOND, name="ci")
    assert plaintext.startswith("fs_")
    assert len(plaintext) == 3 + 43  # 256 bits in URL-safe base64
    assert token.hash == hashlib.sha256(plaintext.encode()).hexdigest()
    assert (token.role, token.project, token.expires_at_us, token.name) == (Role.EDITOR, "p", NOW + SECOND, "ci")
    assert tokens(ledger, "p") == (token,)
    entry = ledger.latest("p", "token", token.id)
    assert entry.document["role"] == "editor"
    assert entry.document["created_at_us"] == NOW
    assert plaintext not in json.dumps(entry.document)


def test_tokens_are_all_different(ledger):
    made = [create(ledger) for _ in range(20)]
    assert len({plaintext for plaintext, _ in made}) == len({token.id for _, token in made}) == 20


def test_tokens_of_a_project_and_of_every_project(ledger):
    of_p, of_q, of_all = (create(ledger, project)[1] for project in ("p", "q", None))
    assert tokens(ledger, "p") == (of_all, of_p)
    assert tokens(ledger, "q") == (of_all, of_q)
    assert tokens(ledger, None) == (of_all,)
    assert tokens(ledger, "nobody") == (of_all,)


def test_revoking(ledger):
    _, first = create(ledger)
    _, second = create(ledger)
    _, of_all = create(ledger, None)
    revoke_token(ledger, "p", first.id, now_us=NOW)
    assert tokens(ledger, "p") == (of_all, second)
    for project, token_id in [("p", first.id), ("p", "unknown"), ("q", second.id), (None, second.id), ("p", of_all.id)]:
        with pytest.raises(RecordNotFoundError, match=token_id):
            revoke_token(ledger, project, token_id, now_us=NOW)
    assert tokens(ledger, "p") == (of_all, second)
    revoke_token(ledger, None, of_all.id, now_us=NOW)
    assert tokens(ledger, "p") == (second,)


def test_revoked_tokens_are_known_with_their_end(ledger):
    _, kept = create(ledger)
    ended = [create(ledger, project)[1] for project in ("p", None, "q")]
    for number, token in enumerate(ended):
        revoke_token(ledger, token.project, token.id, now_us=NOW + number)
    assert known_tokens(ledger, "p") == ((kept,), {ended[0].id: NOW, ended[1].id: NOW + 1})
    assert known_tokens(ledger, None) == ((), {ended[1].id: NOW + 1})


def test_a_token_that_expires_at_once_is_not_made(ledger):
    for expires_at_us in (NOW, NOW - SECOND):
        with pytest.raises(RegistryError, match="would expire"):
            create(ledger, expires_at_us=expires_at_us)
    assert tokens(ledger, "p") == ()


def test_a_token_goes_through_its_document():
    token = Token("id", "hash", Role.OPERATOR, None, NOW, "n")
    document = json.loads(json.dumps(token.to_document()))
    assert Token.from_document({**document, "written by a later version": 1}) == token


def test_verifying():
    plaintext, other = b"fs_one", b"fs_two"
    token = Token("1", hashlib.sha256(plaintext).hexdigest(), Role.READER, expires_at_us=NOW)
    now = [NOW - 1]
    verifier = TokenVerifier(lambda: (token,), clock=lambda: now[0])
    assert verifier.verify(plaintext) == token
    for wrong in (other, b"", b"fs_on", b"fs_one ", b"FS_ONE", b"\xff\x00", token.hash.encode()):
        assert verifier.verify(wrong) is None
    now[0] = NOW
    assert verifier.verify(plaintext) is None


def test_the_tokens_can_be_swapped():
    made = [Token(str(n), hashlib.sha256(b"fs_%d" % n).hexdigest(), Role.READER) for n in range(3)]
    current = [()]
    verifier = TokenVerifier(lambda: current[0], static_token=STATIC)

    def good():
        return [n for n in range(3) if verifier.verify(b"fs_%d" % n)]

    assert good() == []
    for chosen in ([0], [0, 1], [2], [], [1]):
        current[0] = tuple(made[n] for n in chosen)
        assert good() == chosen
        assert verifier.verify(STATIC.encode()).role is Role.READER
    current[0] = (replace(made[1], role=Role.ADMIN),)
    assert verifier.verify(b"fs_1").role is Role.ADMIN


def test_the_static_token_is_one_reader_of_every_project():
    token = TokenVerifier(static_token=STATIC).verify(STATIC.encode())
    assert (token.role, token.project, token.expires_at_us) == (Role.READER, None, None)
    assert TokenVerifier().verify(b"") is None


@pytest.mark.parametrize("static", ["", "short", STATIC[:31], STATIC + "\n", " " + STATIC, "ü" * 32, "a b" * 12])
def test_a_weak_static_token_is_refused_and_not_shown(static):
    with pytest.raises(RegistryError, match="FS_SERVER_TOKEN must be 32 characters") as raised:
        TokenVerifier(static_token=static)
    assert "secrets.token_urlsafe" in raised.value.hint
    assert not static or static not in str(raised.value)


# The gate

KEYS = {role: f"fs_{role}_{'x' * 40}" for role in Role}
BOUND = "fs_bound_" + "x" * 40
EXPIRED = "fs_expired_" + "x" * 40


def token_of(plaintext, role, **rest):
    return Token(str(role), hashlib.sha256(plaintext.encode()).hexdigest(), role, **rest)


ALL_TOKENS = (
    *(token_of(plaintext, role) for role, plaintext in KEYS.items()),
    token_of(BOUND, Role.ADMIN, project="p"),
    token_of(EXPIRED, Role.ADMIN, expires_at_us=NOW),
)


class App:
    """An ASGI app that says yes and remembers what reached it."""

    def __init__(self):
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"yes"})


def required_role(method, path):
    return Role.READER if path == "/read" else Role.EDITOR if method == "GET" else Role.ADMIN


def gate(app, project_of=lambda path: None, **options):
    settings = {
        "verifier": TokenVerifier(lambda: ALL_TOKENS, static_token=STATIC, clock=lambda: NOW),
        "open_paths": frozenset({"/health", "/"}),
        "permit": lambda scope, token: token.require(
            required_role(scope["method"], scope["path"]), project_of(scope["path"])
        ),
    }
    return AuthMiddleware(app, **{**settings, **options})


def call(middleware, path, headers=(), method="GET", **scope):
    sent = []

    async def receive():
        raise AssertionError("the body was read")

    async def send(message):
        sent.append(message)

    connection = {"type": "http", "method": method, "path": path, "headers": list(headers), **scope}
    asyncio.run(middleware(connection, receive, send))
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


def bearer(plaintext):
    return [(b"authorization", f"Bearer {plaintext}".encode())]


def test_closed_by_default():
    app = App()
    for path in (
        "/read",
        "/health/",
        "//health",
        "/HEALTH",
        "/health/x",
        "/docs",
        "",
        "/health;x",
        "/%68ealth",
        "/x/../health",
    ):
        for method in ("GET", "HEAD", "OPTIONS", "POST", "TRACE", "ODD"):
            assert call(gate(app), path, method=method)[0] == 401
    assert app.scopes == []
    for path in ("/health", "/"):
        assert call(gate(app), path, method="POST") == (200, {}, b"yes")
    assert all("token" not in scope.get("state", {}) for scope in app.scopes)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer("fs_unknown_" + "x" * 40),
        bearer(EXPIRED),
        bearer(""),
        bearer(KEYS[Role.ADMIN] + "x"),
        bearer(KEYS[Role.ADMIN][:-1]),
        [(b"authorization", KEYS[Role.ADMIN].encode())],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Basic " + KEYS[Role.ADMIN].encode())],
        [(b"authorization", b"Bearer" + KEYS[Role.ADMIN].encode())],
        [(b"authorization", b"Bearer x " + KEYS[Role.ADMIN].encode())],
        [(b"authorization", b"\xff\xfe\x00")],
        bearer(KEYS[Role.ADMIN]) * 2,
        [*bearer("other"), *bearer(KEYS[Role.ADMIN])],
        [(b"cookie", b"token=" + KEYS[Role.ADMIN].encode())],
    ],
)
def test_without_a_good_token_the_answer_is_always_the_same(headers):
    app = App()
    assert call(gate(app), "/read", headers) == call(gate(app), "/read") == call(gate(app), "/admin")
    status, answered, body = call(gate(app), "/read", headers)
    assert status == 401
    assert answered[b"www-authenticate"] == b"Bearer"
    assert answered[b"content-type"] == b"application/json"
    assert answered[b"content-length"] == str(len(body)).encode()
    error = json.loads(body)["error"]
    assert error == {"type": "unauthorized", "message": error["message"], "details": {}}
    assert app.scopes == []


@pytest.mark.parametrize("header", [b"Bearer %s", b"bearer %s", b"BEARER   %s", b" Bearer %s "])
@pytest.mark.parametrize("name", [b"authorization", b"Authorization"])
def test_a_good_token_is_let_through(header, name):
    app = App()
    assert call(gate(app), "/read", [(name, header % KEYS[Role.READER].encode())])[0] == 200
    assert app.scopes[0]["state"]["token"].role is Role.READER
    assert call(gate(app), "/read", bearer(STATIC))[0] == 200
    assert app.scopes[1]["state"]["token"].name == "FS_SERVER_TOKEN"


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(("method", "path"), [("GET", "/read"), ("GET", "/x"), ("POST", "/x")])
def test_each_role_does_what_it_may(role, method, path):
    app = App()
    required = required_role(method, path)
    status, _, body = call(gate(app), path, bearer(KEYS[role]), method)
    if role >= required:
        assert (status, body) == (200, b"yes")
    else:
        assert status == 403
        error = json.loads(body)["error"]
        assert error["type"] == "forbidden"
        assert str(role) in error["message"]
        assert str(required) in error["message"]
        assert app.scopes == []


def test_a_token_of_one_project_is_good_for_that_project_alone():
    app = App()
    of_path = gate(app, project_of=lambda path: path.split("/")[1] or None)
    assert call(of_path, "/p/x", bearer(BOUND))[0] == 200
    assert call(of_path, "/q/x", bearer(BOUND))[0] == 403
    assert call(of_path, "//x", bearer(BOUND))[0] == 403
    assert call(gate(app), "/p/x", bearer(BOUND))[0] == 403
    assert call(of_path, "/q/x", bearer(KEYS[Role.ADMIN]))[0] == 200
    assert len(app.scopes) == 2


def test_errors_carry_the_request_id():
    def details(headers=(), **scope):
        return json.loads(call(gate(App()), "/read", headers, **scope)[2])["error"]["details"]

    sent = [(b"x-request-id", b'from the client \xff"')]
    assert details() == {}
    assert details(state={}) == {}
    assert details(state={"request_id": "set"}) == {"request_id": "set"}
    assert details(sent) == {"request_id": 'from the client ÿ"'}
    assert details(sent, state={"request_id": "set"}) == {"request_id": "set"}
    assert details([(b"X-Request-ID", b"a" * 1000)]) == {"request_id": "a" * 128}


def test_websockets_are_refused_and_lifespan_passes():
    app, sent = App(), []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    for path in ("/health", "/read"):
        scope = {"type": "websocket", "path": path, "headers": bearer(KEYS[Role.ADMIN])}
        asyncio.run(gate(app)(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"] * 2
    assert app.scopes == []
    asyncio.run(gate(app)({"type": "lifespan"}, receive, send))
    assert app.scopes == [{"type": "lifespan"}]
    with pytest.raises(NotImplementedError):
        asyncio.run(gate(app)({"type": "carrier pigeon"}, receive, send))
    assert len(app.scopes) == 1


def test_no_web_framework_is_loaded():
    code = "import sys, featurestore_registry.auth; print({'starlette', 'fastapi', 'sqlalchemy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"
