"""Logging in by browser and from the terminal: a real identity provider, a browser made of httpx, and attacks."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, urlencode, urlsplit

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from featurestore_registry.auth import Role, create_token, sessions
from featurestore_registry.auth.sessions import KIND, MOST_SESSIONS, SESSIONS
from featurestore_registry.errors import LedgerConflictError, RegistryUnavailableError
from featurestore_registry.http import access, flow, login, oidc
from featurestore_registry.http.oidc import IdentityProvider, Issuer
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record
from featurestore_registry.sql import open_registry
from support.oidc_issuer import Answer, OidcIssuer, oidc_issuer
from support.registry_process import registry_process
from support.registry_server import serving_registry
from support.serving import until

from featurestore.cli import browser as listener
from featurestore.cli.main import main

ROLES = {"everyone": "viewer", "ranking": "editor:p", "ops": "admin"}
STATE = "/api/v1/state?project=p"
EVIL = "https://evil.example"
NO_TLS = httpx.create_ssl_context(verify=False)


class Browser(httpx.Client):
    """Keeps cookies and follows nothing by itself."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, verify=NO_TLS, timeout=20)

    def begin(self, after: str = "/") -> str:
        """Begin a login, let the provider answer, and return where it sends the browser."""
        begun = self.get("/login", params={"next": after})
        assert begun.status_code == 303, begun.text
        answered = self.get(begun.headers["location"])
        return str(answered.headers["location"])

    def log_in(self, after: str = "/") -> httpx.Response:
        return self.get(self.begin(after))

    @property
    def session(self) -> str | None:
        return self.cookies.get("fs_session")


class Site:
    """A registry's server whose people the issuer vouches for."""

    def __init__(self, registry: Registry, issuer: OidcIssuer, provider: IdentityProvider, url: str) -> None:
        self.registry, self.issuer, self.provider, self.url = registry, issuer, provider, url
        self.admin = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0, name="root")[0]
        self.stack = ExitStack()

    def browser(self) -> Browser:
        return self.stack.enter_context(Browser(self.url))

    def ask(self, token: str, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.request(method, f"{self.url}{path}", headers=headers, verify=NO_TLS, **more)

    def begin(self, **claims: Any) -> httpx.Response:
        """Begin a session as `fs login` does."""
        verifier = "v" * 43
        token = self.issuer.token(nonce=flow.bound_nonce(verifier, self.url), **claims)
        return self.ask(token, "POST", "/api/v1/session", json={"nonce_verifier": verifier})

    def is_out(self, token: str) -> None:
        until(lambda: self.ask(token, "GET", STATE).status_code == 401)

    def audit(self) -> list[tuple[str, str]]:
        entries = self.registry.journal.scan("", "audit")
        return [(each.document["action"], each.document["by"]) for each in entries]


@pytest.fixture(scope="module")
def running_issuer() -> Iterator[OidcIssuer]:
    with oidc_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(running_issuer: OidcIssuer) -> OidcIssuer:
    running_issuer.behave()
    return running_issuer


@contextmanager
def serving(issuer: OidcIssuer, path: Path, *, of: dict[str, Any] | None = None, **more: Any) -> Iterator[Site]:
    with open_registry(f"sqlite:///{path}") as registry:
        if not registry.definitions.head("p"):
            view = Change("put", "view", "a", Record("view", "p", "a", {}, "f"))
            registry.definitions.apply("p", "", [view], author="", message="", commit="")
        provider = IdentityProvider(Issuer(**{"url": issuer.url, "audience": "registry", "roles": ROLES, **(of or {})}))
        with suppress(Exception):  # else the first token could come before the keys
            provider.refresh()
        with serving_registry(registry, provider=provider, **more) as url:
            site = Site(registry, issuer, provider, url)
            with site.stack:
                yield site


@pytest.fixture
def site(issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    with serving(issuer, tmp_path / "registry.db") as site:
        yield site


def is_refused(answer: httpx.Response, status: int, told: str) -> None:
    assert answer.status_code == status, answer.text
    assert told in answer.text
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    for secret in ("Traceback", "eyJ", "code_verifier"):
        assert secret not in answer.text


def test_somebody_logs_in_and_out_by_browser(site: Site) -> None:
    site.issuer.person |= {"groups": ["ranking"], "email_verified": True}
    browser = site.browser()
    assert "Nobody is logged in" in browser.get("/").text
    answer = browser.log_in("/api/v1/state?project=p")
    assert (answer.status_code, answer.headers["location"]) == (303, "/api/v1/state?project=p")
    (cookie,) = [each for each in answer.headers.get_list("set-cookie") if each.startswith("fs_session=")]
    assert {"HttpOnly", "SameSite=lax", "Path=/", "Max-Age=43200"} == set(cookie.split("; ")[1:])
    assert browser.cookies.get("fs_login") is None
    assert browser.get(answer.headers["location"]).status_code == 200
    assert browser.get("/api/v1/state?project=q").status_code == 403
    home = browser.get("/", follow_redirects=True)
    assert home.url.path == "/p/p"  # the only project that they see
    assert "Logged in as ada@x.example (editor:p)" in home.text
    assert home.headers["content-security-policy"].split("; ")[0] == "default-src 'none'"
    assert home.headers["cache-control"] == "private, no-store"

    text = browser.session or ""
    stored = json.dumps([entry.document for entry in site.registry.ledger.scan(SESSIONS, KIND)])
    assert text not in stored
    assert browser.post("/logout", headers={"origin": site.url}).status_code == 303
    assert browser.session is None
    assert site.ask(text, "GET", STATE).status_code == 401
    assert "Nobody is logged in" in browser.get("/").text
    assert browser.get(STATE).status_code == 401
    assert site.audit() == [("log in", "ada@x.example"), ("log out", "ada@x.example")]


def test_a_cookie_reads_and_changes_nothing(site: Site) -> None:
    """So no other site makes a browser change anything, whatever requests it can make it send."""
    site.issuer.person["groups"] = ["ops"]
    browser = site.browser()
    browser.log_in()
    assert browser.get(STATE).status_code == 200
    entry = {"key": "k", "document": {}}
    for method, path in (
        ("POST", "/api/v1/ledger?project=p&kind=run"),
        ("PUT", "/api/v1/policy?project=p"),
        ("DELETE", "/api/v1/journal?project=p&kind=audit&before=2020-01-01T00:00:00Z"),
        ("POST", "/api/v1/session"),
        ("DELETE", "/api/v1/session"),
        ("POST", "/api/v1/sessions?project=.sessions"),
        ("OPTIONS", STATE),
    ):
        for headers in ({}, {"origin": site.url}, {"sec-fetch-site": "same-origin"}):
            assert browser.request(method, path, json=entry, headers=headers).status_code == 401, (method, path)
    assert browser.get("/api/v1/apply?project=p&_method=POST").status_code == 405
    head = browser.request("HEAD", STATE)
    assert (head.status_code, head.content) == (405, b"")
    assert "access-control-allow-origin" not in browser.get(STATE, headers={"origin": EVIL}).headers
    for headers in (
        {},
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": f"{site.url}.evil.example"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": EVIL, "sec-fetch-site": "same-origin"},
        {"host": "evil.example", "origin": "http://evil.example"},
    ):
        is_refused(browser.post("/logout", headers=headers), 403, "Another site")
    assert browser.get("/logout").status_code == 405
    assert browser.get(STATE).status_code == 200
    assert browser.post("/logout", headers={"sec-fetch-site": "same-origin"}).status_code == 303
    assert browser.get(STATE).status_code == 401


def test_a_header_wins_over_the_cookie_and_two_cookies_are_none(site: Site) -> None:
    site.issuer.person["groups"] = ["ops"]
    browser = site.browser()
    browser.log_in()
    site.issuer.person |= {"sub": "bob", "groups": ["everyone"]}
    theirs = site.issuer.token()
    for token, status in (("wrong", 401), (theirs, 403), (site.admin, 200)):
        answer = browser.get("/api/v1/tokens?project=", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == status
    mine = f"fs_session={browser.session}"
    alone = {"cookie": mine}
    assert httpx.get(f"{site.url}{STATE}", headers=alone).status_code == 200
    for text in (site.admin, site.issuer.token()):  # neither is a session
        assert httpx.get(f"{site.url}{STATE}", headers={"cookie": f"fs_session={text}"}).status_code == 401
    for tossed in (f"fs_session=x; {mine}", f"{mine}; fs_session=x", f"{mine};{mine}", f"Fs_session={browser.session}"):
        assert httpx.get(f"{site.url}{STATE}", headers={"cookie": tossed}).status_code == 401


def test_a_login_leads_to_this_server_alone(site: Site) -> None:
    for after, goes_to in {
        "/a/b?c=d%20e#f": "/a/b?c=d%20e#f",
        "//evil.example": "/",
        "/\\evil.example": "/",
        "/a\\..\\evil": "/",
        EVIL: "/",
        "javascript:alert(1)": "/",
        "evil.example": "/",
        "/a\r\nSet-Cookie: x=y": "/",
        "/\t/evil.example": "/",
        "/ü": "/",
        f"/{'a' * 999}": f"/{'a' * 999}",
        "/" * 1500: "/",
        "\U0001f600" * 1000: "/",  # its cookie would be too large for a browser
        "": "/",
    }.items():
        browser = site.browser()
        callback = browser.begin(after)
        assert len(browser.cookies["fs_login"]) < 4_000
        answer = browser.get(callback)
        assert (answer.status_code, answer.headers["location"]) == (303, goes_to), after
        assert "x" not in answer.cookies


def test_what_comes_back_wrong_logs_nobody_in(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Of all that an attacker, or a provider, can send by the browser."""
    caplog.set_level(logging.WARNING, "featurestore.registry")
    browser, other = site.browser(), site.browser()

    def changed(url: str, **values: str | None) -> str:
        query = {**dict(parse_qsl(urlsplit(url).query)), **values}
        return f"/login/callback?{urlencode({name: each for name, each in query.items() if each is not None})}"

    theirs = other.begin()
    for told, status, answer in (
        ("not for the login", 400, lambda: browser.get(changed(browser.begin(), state="x"))),
        ("not for the login", 400, lambda: browser.get(changed(browser.begin(), state=None))),
        ("did not take the code", 400, lambda: browser.get(changed(browser.begin(), code=_code(theirs)))),
        ("did not take the code", 400, lambda: browser.get(changed(browser.begin(), code="made up"))),
        ("Missing code", 400, lambda: browser.get(changed(browser.begin(), code=None))),
        ("another identity provider", 400, lambda: browser.get(changed(browser.begin(), iss=EVIL))),
        ("another identity provider", 400, lambda: browser.get(changed(browser.begin(), iss=None))),
        ("says something twice", 400, lambda: browser.get(f"{browser.begin()}&state=x")),
        (
            "access_denied: &lt;script&gt;",
            403,
            lambda: browser.get(
                changed(browser.begin(), code=None, error="access_denied", error_description="<script>\x1b")
            ),
        ),
    ):
        caplog.clear()
        is_refused(answer(), status, told)
        assert browser.session is None
        assert browser.cookies.get("fs_login") is None  # the state is good once
        (record,) = [each for each in caplog.records if "a login failed" in each.getMessage()]
        assert "\x1b" not in record.getMessage()
    is_refused(other.get(browser.begin()), 400, "not for the login")  # login CSRF
    is_refused(site.browser().get(browser.begin()), 400, "began no login")
    for noise in (b"x", b"W10", base64.b64encode(b'["","","",""]'), base64.b64encode(b"[" * 2000), b"\xff", b"MQ"):
        headers = {"cookie": b"fs_login=" + noise}
        url = f"{site.url}/login/callback?code=x&state=&iss={site.issuer.url}"
        is_refused(httpx.get(url, headers=headers), 400, "browser began")
    again = browser.begin()
    cookie = {"cookie": f"fs_login={browser.cookies['fs_login']}"}
    assert browser.get(again).status_code == 303
    is_refused(httpx.get(again, headers=cookie), 400, "did not take the code")  # a code is good once
    assert [name for name, _ in site.audit()] == ["log in"]


def _code(url: str) -> str:
    return parse_qs(urlsplit(url).query)["code"][0]


def broken(*_: Any, **__: Any) -> int:
    raise RegistryUnavailableError("secret.db is away")


def contested(*_: Any, **__: Any) -> int:
    raise LedgerConflictError("version 7 came first")


def test_id_tokens_that_are_wrong_log_nobody_in(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    issuer, browser = site.issuer, site.browser()
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = (
        issuer.keys["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )

    def hs256(claims: dict[str, Any]) -> str:  # PyJWT itself refuses a PEM as a secret
        good = jwt.encode(claims, "s" * 32, "HS256", headers={"kid": "one"})
        head = good.rpartition(".")[0]
        mac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(head.encode(), pem)
        return f"{head}.{jwt.utils.base64url_encode(mac).decode()}"

    for name, made in {
        "another login's": lambda claims: {**claims, "nonce": "x"},
        "no nonce": lambda claims: {key: value for key, value in claims.items() if key != "nonce"},
        "another audience": lambda claims: {**claims, "aud": "another"},
        "another client's": lambda claims: {**claims, "aud": ["registry", "another"], "azp": "another"},
        "another issuer": lambda claims: {**claims, "iss": EVIL},
        "ended": lambda claims: {**claims, "exp": time.time() - 60},
        "unsigned": lambda claims: jwt.encode(claims, "", "none", headers={"kid": "one"}),
        "the public key as a secret": hs256,
        "another key": lambda claims: jwt.encode(claims, other, "RS256", headers={"kid": "one"}),
        "an unknown key": lambda claims: jwt.encode(claims, other, "RS256", headers={"kid": "two"}),
        "noise": lambda claims: "a.b.c",
    }.items():
        issuer.made = made
        answer = browser.log_in()
        is_refused(answer, 400, "not for this login")
        assert browser.session is None, name
    issuer.made = lambda claims: claims
    issuer.person |= {"groups": ["king"], "sub": "<b>eve\n\x1b"}
    is_refused(browser.log_in(), 403, "&lt;b&gt;eve   is known, but has no role here")
    assert site.audit() == [("refuse login", "<b>eve  ")]
    callback, append = browser.begin(), site.registry.ledger.append
    issuer.person["groups"] = ["ops"]
    try:
        site.registry.ledger.append = broken  # type: ignore[method-assign]
        is_refused(browser.get(callback), 503, "database does not answer")
        site.registry.ledger.append = contested  # type: ignore[method-assign]
        is_refused(browser.log_in(), 503, "could not keep the login")
    finally:
        site.registry.ledger.append = append  # type: ignore[method-assign]
    assert "eyJ" not in caplog.text


def test_a_provider_that_hangs_fails_or_is_away_holds_nobody_up(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.3)
    issuer, browser = site.issuer, site.browser()
    json_type = {"content-type": "application/json"}

    def spoilt(answer: Callable[[], Answer | None]) -> httpx.Response:
        issuer.spoil = lambda path, good: answer() if path == "/token" else good
        return browser.log_in()

    def slow() -> Answer:
        time.sleep(0.6)
        return 200, json_type, b"{}"

    for told, status, answer in (
        ("does not answer as it should", 502, slow),
        ("does not answer as it should", 502, lambda: (200, {"x-slowly": "0.04"}, b'{"error": "invalid_grant"}')),
        ("does not answer as it should", 502, lambda: None),
        ("does not answer as it should", 502, lambda: (500, {}, b"<b>boom</b>")),
        ("does not answer as it should", 502, lambda: (200, json_type, b'{"expires_in": "x"}')),
        ("does not answer as it should", 502, lambda: (200, {}, b"<html>")),
        ("gave no ID token", 502, lambda: (200, json_type, b"[]")),
        ("gave no ID token", 502, lambda: (200, json_type, b'{"access_token": "x", "token_type": "Bearer"}')),
        ("did not take the code", 400, lambda: (400, json_type, b'{"error": "invalid_grant"}')),
        ("did not take the code", 400, lambda: (302, {"location": EVIL}, b"{}")),
    ):
        is_refused(spoilt(answer), status, told)
    issuer.spoil = lambda path, good: good
    callback = browser.begin()
    monkeypatch.setattr(site.provider, "endpoints", {**site.provider.endpoints, "token_endpoint": "https://x:y/"})
    is_refused(browser.get(callback), 502, "does not answer as it should")
    issuer.spoil = lambda path, good: (200, {"x-slowly": "0.04"}, b"{" + b" " * 20 + b"}")
    with pytest.raises(oidc.LoginError, match="does not answer"):
        oidc.fetch_json(f"{issuer.url}{oidc.DISCOVERY}")
    assert site.audit() == []
    assert "boom" not in caplog.text


def test_a_provider_that_is_away_at_the_start_is_asked_again(
    issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "_waiting", threading.BoundedSemaphore(1))
    issuer.spoil = lambda path, answer: None
    with serving(issuer, tmp_path / "registry.db") as site:
        browser = site.browser()
        is_refused(browser.get("/login"), 502, "does not answer")
        issuer.spoil = lambda path, answer: answer
        is_refused(browser.get("/login"), 502, "does not answer")  # not asked more than once a minute
        now_s = time.monotonic()
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + oidc.REFETCH_SECONDS + 1)
        callback = browser.begin()
        # Only so many wait for the provider at once; the others are told so.
        busy = site.browser()
        waiting = busy.begin()

        def answer_late(path: str, good: Answer) -> Answer:
            if path == "/token":
                issuer.spoil = lambda path, good: good
                assert httpx.get(waiting).status_code == 503
            return good

        issuer.spoil = answer_late
        assert browser.get(callback).status_code == 303
        # Its new key is fetched when the first login comes that needs it.
        known = issuer.keys
        issuer.keys = {"two": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + 2 * oidc.REFETCH_SECONDS + 2)
        assert browser.log_in().status_code == 303
        # And where it says something else then, the login fails as every other one.
        callback, issuer.keys = browser.begin(), {"three": issuer.keys["two"]}
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + 4 * oidc.REFETCH_SECONDS)
        issuer.spoil = lambda path, good: (200, {}, b"[]") if path == oidc.DISCOVERY else good
        is_refused(browser.get(callback), 502, "does not answer")
        issuer.keys = known


def test_a_session_is_bound_to_its_login(site: Site) -> None:
    """A new one at each login; the browser's last one ends; a person has 20 at most, in one entry."""
    browser = site.browser()
    seen = set()
    for _ in range(3):
        browser.log_in()
        assert browser.session not in seen
        for old in seen:
            assert site.ask(old, "GET", STATE).status_code == 401
        seen.add(browser.session or "")
    callback = browser.begin()
    fixed = httpx.get(callback, headers={"cookie": f"fs_session=fss_fixed; fs_login={browser.cookies['fs_login']}"})
    assert fixed.cookies["fs_session"] not in {"fss_fixed", *seen}
    for _ in range(MOST_SESSIONS):
        assert site.begin().status_code == 200
    assert len(sessions(site.registry.ledger)) == MOST_SESSIONS
    assert browser.get(STATE).status_code == 401
    assert len(site.registry.ledger.scan(SESSIONS, KIND)) == 1


def test_a_token_of_the_provider_becomes_a_session_and_nothing_else_does(site: Site) -> None:
    site.issuer.person |= {"groups": ["ranking", "everyone"]}
    begun = site.begin().json()
    assert (begun["name"], begun["roles"]) == ("ada", ["editor:p", "viewer"])
    text = begun["token"]
    assert site.ask(text, "GET", STATE).status_code == 200
    assert site.ask(text, "POST", "/api/v1/session", json={}).status_code == 403  # or it would never end
    assert site.ask(site.admin, "POST", "/api/v1/session", json={}).status_code == 403
    assert site.ask(site.admin, "DELETE", "/api/v1/session").status_code == 403
    assert site.begin(groups=["king"]).status_code == 403
    for wrong in ({"aud": "another"}, {"exp": time.time() - 60}):
        assert site.begin(**wrong).status_code == 401
    assert site.ask(text, "DELETE", "/api/v1/session").json() == {"count": 1}
    assert site.ask(text, "GET", STATE).status_code == 401
    assert [name for name, _ in site.audit()] == ["log in", "refuse login", "log out"]


def test_a_registry_that_lures_people_gets_nothing_good_elsewhere(site: Site) -> None:
    """It may offer the client of this one: the ID token that `fs login` sends it is good for itself alone."""
    verifier, lure = "s" * 40, "https://lure.example"
    site.issuer.person["groups"] = ["ops"]
    stolen = site.issuer.token(nonce=flow.bound_nonce(verifier, lure))
    for path in (STATE, "/api/v1/projects", "/api/v1/tokens?project="):
        assert site.ask(stolen, "GET", path).status_code == 403
    for body in ({}, {"nonce_verifier": verifier}, {"nonce_verifier": "x"}):
        assert site.ask(stolen, "POST", "/api/v1/session", json=body).status_code == 403
    mine = site.issuer.token(nonce=flow.bound_nonce(verifier, site.url.upper() + "/"))
    assert site.ask(mine, "POST", "/api/v1/session", json={"nonce_verifier": verifier}).status_code == 200
    assert site.ask(mine, "GET", STATE).status_code == 403
    assert flow.bound_nonce(verifier, "https://a.example:443/x") == flow.bound_nonce(verifier, "https://a.example")


def test_only_tokens_of_other_clients_than_that_of_fs_login_are_bearer_tokens(
    issuer: OidcIssuer, tmp_path: Path
) -> None:
    """A lure may get any token of that client: without a nonce by a refresh, or for another audience."""
    issuer.person["groups"] = ["ops"]
    machine = {"aud": "registry", "azp": "nightly"}
    of_the_login: list[dict[str, Any]] = [
        {"aud": "terminal"},
        {"aud": ["registry", "terminal"]},
        *({"aud": "registry", name: "terminal"} for name in ("azp", "client_id", "appid", "cid")),
    ]
    for more, taken, refused in (
        ({}, [], [{"aud": "registry"}]),
        ({"secret": "s"}, [{"aud": "registry"}], [{"aud": "terminal"}]),
        ({"cli_audience": "terminal"}, [{"aud": "registry"}, machine], of_the_login),
    ):
        with serving(issuer, tmp_path / "registry.db", of=more) as site:
            for claims, told in [*((each, True) for each in taken), *((each, False) for each in refused)]:
                token = issuer.token(**claims)
                assert (site.ask(token, "GET", STATE).status_code == 200) is told, (more, claims)
                assert site.ask(token, "POST", "/api/v1/session", json={}).status_code in (401, 403), claims


def test_a_provider_that_leads_on_to_the_companys_gets_no_code(
    site: Site, fs: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mix-up (RFC 9700, section 4.4), at a company's provider that does not name itself in its answers."""
    company = site.issuer
    company.metadata = {"authorization_response_iss_parameter_supported": False}
    monkeypatch.setattr(listener, "WAIT_SECONDS", 0.5)
    came, paths = list[int](), [""]
    with oidc_issuer() as evil, open_registry(f"sqlite:///{Path.cwd()}/lure.db") as empty:
        evil.metadata = {"authorization_response_iss_parameter_supported": False}

        def lead_on(path: str, good: Answer) -> Answer:
            return (302, {"location": onward(evil.asked[-1][1])}, b"") if path == "/authorize" else good

        def onward(asked: dict[str, str]) -> str:
            # What it adds for itself: a nonce for the company's registry, and a redirect address that is registered.
            mine = {
                **asked,
                "nonce": flow.bound_nonce("x", site.url),
                "redirect_uri": asked["redirect_uri"].replace("/localhost/", paths[0]),
            }
            return f"{company.url}/authorize?{urlencode(mine)}"

        def visit(address: str) -> None:
            answer = httpx.get(httpx.get(address).headers["location"])
            back = answer.headers.get("location", "").replace(f"&iss={quote(company.url, safe='')}", "")
            came.append(httpx.get(back).status_code if back else answer.status_code)

        evil.spoil = lead_on
        monkeypatch.setattr("webbrowser.open", lambda url: threading.Thread(target=visit, args=(url,)).start())
        provider = IdentityProvider(Issuer(evil.url, "registry", ROLES))
        with serving_registry(empty, provider=provider, public_url="http://localhost:1") as lure:
            lured = lure.replace("127.0.0.1", "localhost")
            for paths[0] in ("/localhost/", "/127.0.0.1/"):
                assert "Nobody logged in" in fs("login", lured, code=1)
    assert came == [400, 404]  # the company's provider refuses, then the terminal
    assert not [path for path, _ in evil.asked if path == "/token"]


def test_a_login_moves_no_projects_ledger_and_no_cache_keeps_what_it_shows(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a feature server's poll is answered 304 after it, and reads no tokens again."""
    site.issuer.person["groups"] = ["ops"]
    create_token(site.registry.ledger, "p", Role.READER, expires_at_us=None, now_us=0)
    browser = site.browser()
    browser.log_in()
    before = browser.get(STATE)
    scanned, scan = list[tuple[str, str]](), type(site.registry.ledger).scan
    monkeypatch.setattr(
        type(site.registry.ledger),
        "scan",
        lambda self, project, kind, **more: scanned.append((project, kind)) or scan(self, project, kind, **more),
    )
    assert site.begin().status_code == 200
    assert browser.get(STATE, headers={"if-none-match": before.headers["etag"]}).status_code == 304
    assert {kind for _, kind in scanned} == {KIND}
    monkeypatch.undo()
    revision = httpx.URL(STATE).copy_with(path=f"/api/v1/revisions/{site.registry.definitions.chain('p').head}")
    for path, kept in {
        STATE: "private, no-cache",
        str(revision): "private, max-age=31536000, immutable",
        **dict.fromkeys(("/api/v1/projects", "/api/v1/history?project=p", "/api/v1/unknown"), "private, no-store"),
        **dict.fromkeys(("/api/v1/sessions?project=.sessions", "/api/v1/tokens?project="), "private, no-store"),
        **dict.fromkeys(("/api/v1/ledger?project=p&kind=run", "/api/v1/ledger?project=p"), "private, no-store"),
    }.items():
        headers = browser.get(path).headers
        assert (headers["cache-control"], headers["vary"]) == (kept, "authorization, cookie"), path
        assert headers["x-content-type-options"] == "nosniff"


def test_admins_see_who_is_logged_in_and_end_it(site: Site, tmp_path: Path) -> None:
    """Also at another server over the same database, within its refresh."""
    site.issuer.person["groups"] = ["everyone"]
    with serving(site.issuer, tmp_path / "registry.db") as second:
        browser, elsewhere = site.browser(), second.browser()
        browser.log_in()
        elsewhere.log_in()
        text = browser.session or ""
        until(lambda: second.ask(text, "GET", STATE).status_code == 200)
        until(lambda: site.ask(site.admin, "GET", "/api/v1/projects").status_code == 200)
        (entry,) = site.ask(site.admin, "GET", "/api/v1/sessions?project=.sessions").json()
        shown = entry["document"]["sessions"]
        assert [(each["name"], each["by"], each["address"], each["hash"]) for each in shown] == [
            ("ada", "browser", "127.0.0.1", "")
        ] * 2
        body = {"key": entry["key"], "if_version": entry["version"], "document": {"sessions": shown[1:]}}
        made_up = {**shown[1], "id": "x", "hash": "0" * 64}
        for wrong in ({**body, "key": "x"}, {**body, "document": {"sessions": [made_up]}}):
            assert site.ask(site.admin, "POST", "/api/v1/sessions?project=.sessions", json=wrong).status_code == 422
        assert site.ask(text, "POST", "/api/v1/sessions?project=.sessions", json=body).status_code == 403
        assert site.ask(text, "GET", "/api/v1/sessions?project=.sessions").status_code == 403
        raised = {**body, "document": {"sessions": [{**shown[1], "roles": {"ops": "admin"}}]}}
        assert site.ask(site.admin, "POST", "/api/v1/sessions?project=.sessions", json=raised).status_code == 200
        assert site.ask(text, "GET", STATE).status_code == 401
        until(lambda: second.ask(text, "GET", STATE).status_code == 401)
        assert elsewhere.get(STATE).status_code == 200
        assert elsewhere.get("/api/v1/tokens?project=").status_code == 403
    assert site.audit()[-1] == ("end session", "root")
    bound = create_token(site.registry.ledger, "p", Role.ADMIN, expires_at_us=None, now_us=0)[0]
    until(lambda: site.ask(bound, "GET", "/api/v1/projects").status_code == 200)
    for project in ("", "p"):
        assert site.ask(bound, "POST", f"/api/v1/sessions?project={project}", json=body).status_code in (403, 422)
    assert site.ask(bound, "GET", "/api/v1/sessions?project=.sessions").status_code == 403


def test_sessions_end_with_time_with_their_roles_and_with_the_provider(issuer: OidcIssuer, tmp_path: Path) -> None:
    now_us = 10**15
    path = tmp_path / "registry.db"
    issuer.person["groups"] = ["ops"]
    with serving(issuer, path, session_seconds=60, clock=lambda: now_us) as site:
        browser = site.browser()
        browser.log_in()
        assert browser.get(STATE).status_code == 200
        now_us += 60_000_000
        assert browser.get(STATE).status_code == 401
        browser.log_in()
        assert len(sessions(site.registry.ledger)) == 1  # the ended one is dropped
        text = browser.session or ""
    with serving(issuer, path, clock=lambda: now_us) as site:
        assert site.ask(text, "GET", "/api/v1/tokens?project=").status_code == 200
    with serving(issuer, path, of={"roles": {"ops": "viewer"}}, clock=lambda: now_us) as site:
        assert site.ask(text, "GET", STATE).status_code == 403
    with serving(issuer, path, of={"url": "http://127.0.0.1:9"}, clock=lambda: now_us) as site:
        assert site.ask(text, "GET", STATE).status_code == 401
    with open_registry(f"sqlite:///{path}") as registry, serving_registry(registry, clock=lambda: now_us) as url:
        assert httpx.get(f"{url}{STATE}", headers={"authorization": f"Bearer {text}"}).status_code == 401
        assert httpx.get(f"{url}/login").status_code == 404
        assert httpx.get(f"{url}/api/v1/login").status_code == 404


def test_behind_tls_the_server_goes_by_its_public_url(
    issuer: OidcIssuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the request's Host says; and a client with a secret proves itself, in the header or in the form."""
    issuer.secrets["registry"] = "s/e+c ret"
    public = "https://registry.example"
    for methods in (None, ["client_secret_post"]):
        issuer.metadata = {} if methods is None else {"token_endpoint_auth_methods_supported": methods}
        with serving(issuer, tmp_path / "registry.db", of={"secret": "s/e+c ret"}, public_url=public) as site:
            begun = httpx.get(f"{site.url}/login", headers={"host": "evil.example", "x-forwarded-host": "evil.example"})
            asked = parse_qs(urlsplit(begun.headers["location"]).query)
            assert asked["redirect_uri"] == [f"{public}/login/callback"]
            (cookie,) = begun.headers.get_list("set-cookie")
            name, _, value = cookie.partition(";")[0].partition("=")
            assert name == "__Host-fs_login"
            assert {"Secure", "HttpOnly", "Path=/", "SameSite=lax", "Max-Age=600"} == set(cookie.split("; ")[1:])
            back = httpx.get(begun.headers["location"]).headers["location"]
            assert back.startswith(f"{public}/login/callback?")
            answer = httpx.get(back.replace(public, site.url), headers={"cookie": f"{name}={value}"})
            assert answer.status_code == 303, answer.text
            assert all(
                line.startswith("__Host-") and "Secure" in line for line in answer.headers.get_list("set-cookie")
            )
            text = answer.cookies["__Host-fs_session"]
            for cookie, status in ((f"__Host-fs_session={text}", 200), (f"fs_session={text}", 401)):
                assert httpx.get(f"{site.url}{STATE}", headers={"cookie": cookie}).status_code == status
            for origin, status in ((site.url, 403), (public, 303)):
                assert httpx.post(f"{site.url}/logout", headers={"origin": origin}).status_code == status
            assert httpx.get(f"{site.url}/api/v1/login").status_code == 404  # a secret is nothing for `fs login`
    assert "s/e+c" not in repr(site.provider.issuer)
    with serving(issuer, tmp_path / "registry.db", public_url="http://registry.example") as site:
        assert httpx.get(f"{site.url}/login").status_code == 404
        assert httpx.get(f"{site.url}/api/v1/login").status_code == 404


def test_many_logins_of_one_person_at_once_are_all_kept(site: Site) -> None:
    begun = threading.Barrier(6)

    def log_in() -> str:
        begun.wait()
        return str(site.begin().json()["token"])

    with ThreadPoolExecutor(6) as pool:
        texts = [each.result() for each in [pool.submit(log_in) for _ in range(6)]]
    assert [site.ask(text, "GET", STATE).status_code for text in texts] == [200] * 6


@pytest.fixture
def fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command in a folder that is no repo, as at a terminal, and returns all that it says."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("FS_REGISTRY_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def run(*arguments: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        said = "".join(capsys.readouterr())
        assert int(ended.value.code or 0) == code, said
        return said

    return run


def visiting(monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str] = lambda url: url) -> None:
    """Let the browser that a command opens follow the provider to the command, past a page that guesses."""

    def visit(address: str) -> None:
        back = httpx.get(address).headers["location"]
        assert back.startswith("http://127.0.0.1:")
        guess = back.partition("?")[0]
        for url in (guess, f"{guess}?code=x&state=x", f"{guess}/other?{back.partition('?')[2]}"):
            assert httpx.get(url).status_code == 404
        answer = httpx.get(change(back))
        assert (answer.status_code, "close this page" in answer.text) == (200, True)

    monkeypatch.setattr("webbrowser.open", lambda url: threading.Thread(target=visit, args=(url,)).start())


def test_fs_login_and_logout(
    site: Site, fs: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site.issuer.person["groups"] = ["ranking"]
    kept = tmp_path / "config" / "featurestore" / "credentials.json"
    visiting(monkeypatch)
    assert "https://registry.example" in fs("login", "registry.example", code=1)
    said = fs("login", site.url)
    assert "as ada (editor:p)" in said
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    text = json.loads(kept.read_text())[site.url]
    assert text.startswith("fss_")
    assert text not in said
    assert site.ask(text, "GET", STATE).status_code == 200
    assert "eyJ" not in said + kept.read_text()
    assert f"Logged out of {site.url}." in fs("logout", site.url)
    assert json.loads(kept.read_text()) == {}
    assert site.ask(text, "GET", STATE).status_code == 401
    assert "Nobody was logged in" in fs("logout", site.url)
    assert [name for name, _ in site.audit()] == ["log in", "log out"]

    visiting(monkeypatch, lambda url: url.replace("code=", "x=") + "&error=access_denied&error_description=%1b[31mno")
    said = fs("login", site.url, code=1)
    assert "access_denied:  [31mno" in said
    assert "\x1b" not in said
    visiting(monkeypatch)
    site.issuer.made = lambda claims: {**claims, "nonce": "another"}
    assert "not for this login" in fs("login", site.url, code=1)
    site.issuer.made = lambda claims: {**claims, "groups": ["king"]}
    assert "has no role here" in fs("login", site.url, code=1)
    monkeypatch.setattr(listener, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr("webbrowser.open", lambda url: None)
    assert "Nobody logged in within 5 minutes" in fs("login", site.url, code=1)
    # No browser opens what a made-up provider names.
    for endpoint in ("file://localhost/bin/sh", "http://10.0.0.1/authorize", "javascript:alert(1)", "https://x/\x1b[m"):
        site.issuer.metadata = {"authorization_endpoint": endpoint}
        said = fs("login", site.url, code=1)
        assert ("without TLS" in said, "\x1b" in said) == (True, False)
    site.issuer.spoil = lambda path, answer: None
    assert "cannot be used" in fs("login", site.url, code=1)
    assert json.loads(kept.read_text()) == {}

    monkeypatch.setattr("click.prompt", lambda *_, **__: site.admin)
    fs("login", site.url, "--token")
    assert json.loads(kept.read_text()) == {site.url: site.admin}
    assert "stays valid until `fs token revoke`" in fs("logout", site.url)
    kept.write_text(json.dumps({"http://127.0.0.1:9": text}))
    assert "The session lives until its end" in fs("logout", "http://127.0.0.1:9")
    assert json.loads(kept.read_text()) == {}


def test_fs_login_at_an_earlier_server_asks_for_a_token(
    site: Site, fs: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which has no such route, and tells so only those whose token it takes."""
    monkeypatch.setattr(login, "PREFIX", "/api/v0")
    monkeypatch.setattr(access, "OPEN_PATHS", frozenset({"/health", "/ready"}))
    monkeypatch.setattr("click.prompt", lambda *_, **__: site.admin)
    with serving(site.issuer, tmp_path / "registry.db") as earlier:
        for known in ("", site.admin):
            monkeypatch.setenv("FS_REGISTRY_TOKEN", known)
            assert "Logged in" in fs("login", earlier.url)
    monkeypatch.setattr("click.prompt", lambda *_, **__: "no token!")
    said = fs("login", site.url, "--token", code=1)
    assert "no token!" not in said
    assert "or at the prompt" in said


def test_the_settings_reach_the_server(issuer: OidcIssuer, tmp_path: Path) -> None:
    """And a client's secret is in the environment, and in nothing that the server says."""
    secret = "c0nfidential/secret"
    issuer.secrets["site"] = secret
    issuer.person["roles"] = "boss"
    (root := tmp_path / "served").mkdir()
    (root / "feature_store.yaml").write_text(
        f"project: p\nregistry_server:\n  oidc_issuer: {issuer.url}\n  oidc_audience: site\n  oidc_claim: roles\n"
        "  oidc_client_secret: ${SITE_SECRET}\n  oidc_cli_client_id: terminal\n"
        "  oidc_roles: {boss: admin, crew: 'editor:flightlap'}\n"
        "  oidc_scopes: [openid, roles]\n  session: 1h\n"
    )
    with registry_process(root, environment={"SITE_SECRET": secret}) as url, Browser(url) as browser:
        answer = browser.log_in()
        assert "Max-Age=3600" in next(each for each in answer.headers.get_list("set-cookie") if "session" in each)
        assert browser.get("/api/v1/tokens?project=").status_code == 200
        assert [query["scope"] for path, query in issuer.asked if path == "/authorize"] == ["openid roles"]
        offer = httpx.get(f"{url}/api/v1/login").json()
        assert offer == {"issuer": issuer.url, "client_id": "terminal", "scopes": ["openid", "roles"]}
        bad = browser.get("/login/callback?code=SECRETCODE&state=x")
        assert bad.status_code == 400
    log = (tmp_path / "served-registry.log").read_text()
    assert "a login failed" in log
    assert "oidc_roles names project 'flightlap', which has never been applied" in log
    for text in (secret, "SECRETCODE", "eyJ", "Traceback"):
        assert text not in log


def test_fs_login_waits_for_a_browser_elsewhere_and_ends_by_control_c(site: Site, tmp_path: Path) -> None:
    # A shell's background jobs ignore it, and so would whatever they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    site.stack.callback(signal.signal, signal.SIGINT, before)
    command = [str(Path(sys.executable).parent / "fs"), "login", site.url, "--no-browser"]
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path)}
    for is_answered in (True, False):
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stderr is not None
        assert "in a browser" in process.stderr.readline()
        address = process.stderr.readline().strip()
        if is_answered:
            assert httpx.get(address, follow_redirects=True).status_code == 200
        else:
            process.send_signal(signal.SIGINT)
        said = "".join(process.communicate(timeout=20))
        assert ("Logged in" in said, "Traceback" in said) == (is_answered, False), said
        assert (process.returncode == 0) is is_answered
    assert len(sessions(site.registry.ledger)) == 1


def test_fs_token_shows_who_is_logged_in_and_ends_it(site: Site, fs: Callable[..., str], tmp_path: Path) -> None:
    """Over HTTP, and at the database."""
    for name, registry in {"far": site.url, "near": f"sqlite:///{tmp_path / 'registry.db'}"}.items():
        root = tmp_path / name
        root.mkdir()
        (root / "feature_store.yaml").write_text(f"project: p\nregistry: {registry}\n")
        token = ["--repo", str(root), "token"]
        mine = [site.begin().json()["token"] for _ in range(3)]
        site.issuer.person["sub"] = "bob"
        theirs = site.begin().json()["token"]
        site.issuer.person["sub"] = "ada"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FS_REGISTRY_TOKEN", site.admin)
            until(lambda: site.ask(site.admin, "GET", "/api/v1/projects").status_code == 200)
            assert fs(*token, "list").count("fs login from 127.0.0.1") == 4
            listed = json.loads(fs(*token, "list", "--json"))
            (bob,) = [each for each in listed if each["name"] == "bob"]
            assert "hash" not in bob
            assert (bob["roles"], bob["by"], bob["expired"]) == ({"everyone": "viewer"}, "fs login", False)
            assert "Nobody of the name 'eve'" in fs(*token, "revoke", "--person", "eve", code=1)
            fs(*token, "revoke", "x", "--person", "ada", code=2)
            assert "ada is logged out (logins ended: 3)" in fs(*token, "revoke", "--person", "ada")
            site.is_out(mine[0])
            assert site.ask(theirs, "GET", STATE).status_code == 200
            assert "bob is logged out (logins ended: 1)" in fs(*token, "revoke", bob["id"])
            site.is_out(theirs)
    assert [by for name, by in site.audit() if name == "end session"] == ["root"] * 4
