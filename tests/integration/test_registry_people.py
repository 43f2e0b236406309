"""People of an identity provider at the registry: an issuer of our own, its keys, and tokens that were made up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from featurestore_registry.auth import Role
from featurestore_registry.errors import AuthError, RegistryError
from featurestore_registry.http import access, oidc
from featurestore_registry.http.oidc import IdentityProvider, Issuer, LoginError
from featurestore_registry.sql import open_registry
from support.registry_server import serving_registry
from support.serving import until

URL = "https://id.example"
ROLES = {"everyone": "viewer", "ranking": "editor:p", "ops": "admin", "head of ranking": "admin:p"}


class Provider:
    """An issuer: its keys, what it publishes, and how often it was asked."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"one": rsa.generate_private_key(public_exponent=65537, key_size=2048)}
        self.asked: list[str] = []
        self.name = URL

    def fetch(self, url: str) -> Any:
        self.asked.append(url)
        if url == f"{URL}/.well-known/openid-configuration":
            return {"issuer": self.name, "jwks_uri": f"{URL}/keys"}
        assert url == f"{URL}/keys"
        made = []
        for name, key in self.keys.items():
            is_rsa = isinstance(key, rsa.RSAPrivateKey)
            algorithm: Any = jwt.algorithms.RSAAlgorithm if is_rsa else jwt.algorithms.ECAlgorithm
            document = json.loads(algorithm.to_jwk(key.public_key()))
            made.append({**document, "kid": name, "alg": "RS256" if is_rsa else "ES256", "use": "sig"})
        return {"keys": made}

    def token(
        self, key: str = "one", *, signed_by: Any = None, algorithm: str = "", kid: str | None = None, **claims: Any
    ) -> bytes:
        now = time.time()
        of = {"iss": URL, "aud": "registry", "sub": "ada", "exp": now + 600, "groups": ["everyone"], **claims}
        kept = {name: value for name, value in of.items() if value is not None}
        secret = self.keys[key] if signed_by is None else signed_by
        by = algorithm or ("RS256" if isinstance(secret, rsa.RSAPrivateKey) else "ES256")
        return jwt.encode(kept, secret, by, headers={"kid": key if kid is None else kid}).encode()


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture
def people(provider: Provider) -> IdentityProvider:
    provider.asked.clear()
    made = IdentityProvider(Issuer(URL, "registry", ROLES, cli_audience="terminal"), provider.fetch)
    made.refresh()
    return made


def test_a_person_has_the_roles_of_the_groups(provider: Provider, people: IdentityProvider) -> None:
    found = people.verify(provider.token(groups=["everyone", "ranking", "unknown", 7]))
    assert found is not None
    assert (found.name, found.id) == ("ada", f"{URL}#ada")
    found.require(Role.EDITOR, "p")
    found.require(Role.VIEWER, "q")
    for role, project, told in ((Role.ADMIN, "p", "role here is editor"), (Role.READER, "q", "role here is viewer")):
        with pytest.raises(AuthError, match=told):
            found.require(role, project)
    bound = people.verify(provider.token(groups="ranking"))
    assert bound is not None
    assert (bound.sees("p"), bound.sees("q")) == (True, False)
    for project in ("q", "", None):
        with pytest.raises(AuthError, match="no role in this project"):
            bound.require(Role.VIEWER, project)
    named = people.verify(provider.token(email="ada@example.org", email_verified=True))
    claimed = people.verify(provider.token(email="ops@example.org", email_verified="true"))
    assert named is not None
    assert claimed is not None
    assert (named.name, claimed.name) == ("ada@example.org", "ada")
    for groups in (None, ["king"], 7, {"ops": "ops"}):
        nobody = people.verify(provider.token(groups=groups))
        assert nobody is not None
        assert (nobody.grants, nobody.sees("p")) == ([], False), groups


def test_an_address_that_nobody_verified_gives_no_role(provider: Provider) -> None:
    people = IdentityProvider(Issuer(URL, "registry", {"ada@example.org": "admin"}, claim="email"), provider.fetch)
    people.refresh()
    for is_verified in (True, False, None, "true"):
        found = people.verify(provider.token(email="ada@example.org", email_verified=is_verified))
        assert found is not None
        assert bool(found.grants) is (is_verified is True)


def test_made_up_tokens_are_nobodys(provider: Provider, people: IdentityProvider) -> None:
    good = provider.token()
    assert people.verify(good) is not None
    head, body, signature = good.split(b".")
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = (
        provider.keys["one"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    none = jwt.encode(
        {"iss": URL, "aud": "registry", "sub": "ada", "exp": time.time() + 600, "groups": ["ops"]}, "", "none"
    )
    raised = jwt.utils.base64url_encode(
        json.dumps({"iss": URL, "aud": "registry", "sub": "ada", "groups": ["ops"]}).encode()
    )
    now = time.time()
    for name, token in {
        "another audience": provider.token(aud="another"),
        "several audiences without ours": provider.token(aud=["a", "b"]),
        "another issuer": provider.token(iss="https://evil.example"),
        "ended": provider.token(exp=now - 60),
        "not yet": provider.token(nbf=now + 300),
        "no end": provider.token(exp=None),
        "no audience": provider.token(aud=None),
        "no issuer": provider.token(iss=None),
        "nobody": provider.token(sub=None),
        "another key": provider.token(signed_by=other),
        "an unknown key": provider.token(kid="two"),
        "no key's name": provider.token(kid=""),
        "another algorithm": provider.token(algorithm="RS512"),
        "no algorithm": none.encode(),
        "the public key as a secret": jwt.encode({"sub": "x"}, public.hex(), "HS256", headers={"kid": "one"}).encode(),
        "another body": b".".join((head, raised, signature)),
        "no signature": b".".join((head, body, b"")),
        "cut": good[:-10],
        "noise": b"a.b.c",
        "bytes": b"\xff.\xfe.\xfd",
    }.items():
        assert people.verify(token) is None, name


def test_keys_are_fetched_again_for_an_unknown_one_but_not_often(
    provider: Provider, people: IdentityProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched() -> int:
        people.refresh()
        return len(provider.asked) // 2

    assert fetched() == 1
    provider.keys["new"] = ec.generate_private_key(ec.SECP256R1())
    try:
        assert people.verify(provider.token("new")) is None
        assert fetched() == 1  # within the minute
        now_s = time.monotonic()
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + 61)
        assert fetched() == 2
        assert people.verify(provider.token("new")) is not None
        for _ in range(3):
            assert people.verify(provider.token(kid="made up")) is None
            assert fetched() == 2
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + 130)
        assert fetched() == 3
        gone = provider.token("new")
        del provider.keys["new"]
        monkeypatch.setattr(oidc.time, "monotonic", lambda: now_s + 130 + oidc.KEPT_SECONDS + 1)
        assert fetched() == 4
        assert people.verify(gone) is None
        # While the provider is away nobody knows which keys it gave up: none counts for longer than it says.
        known_s = now_s + 130 + oidc.KEPT_SECONDS + 1
        monkeypatch.setattr(people, "_fetch", lambda url: {}[url])
        for age_s, is_taken in ((oidc.FRESH_SECONDS + 1, True), (oidc.KEPT_SECONDS + 1, False)):
            monkeypatch.setattr(oidc.time, "monotonic", lambda at_s=known_s + age_s: at_s)
            with pytest.raises(LoginError, match="does not answer"):
                people.refresh()
            assert (people.verify(provider.token(exp=time.time() + 10**6)) is not None) is is_taken
    finally:
        provider.keys.pop("new", None)


def test_an_issuer_that_is_another_or_without_tls_is_refused(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RegistryError, match="not behind TLS"):
        IdentityProvider(Issuer("http://id.example", "registry", ROLES), provider.fetch)
    for role, told in (("king", "no role 'king'"), ("editor:", "names no project"), (":p", "no role ''")):
        with pytest.raises(RegistryError, match=told):
            IdentityProvider(Issuer(URL, "registry", {"a": role}), provider.fetch)
    monkeypatch.setattr(provider, "name", "https://evil.example")
    with pytest.raises(LoginError) as raised:
        IdentityProvider(Issuer(URL, "registry", ROLES), provider.fetch).refresh()
    assert "calls itself 'https://evil.example'" in raised.value.why


@pytest.mark.parametrize(
    "discovery",
    [
        *([], None, "x", 7, {}),
        *({"issuer": URL}, {"issuer": URL, "jwks_uri": 7}, {"issuer": URL, "token_endpoint": None}),
        *({"issuer": URL, "jwks_uri": f"{URL}/x"}, {"issuer": URL, "authorization_endpoint": f"{URL}/\x1b[31m"}),
    ],
)
def test_a_provider_that_describes_itself_in_another_way_is_told_so(discovery: Any) -> None:
    told = {f"{URL}{oidc.DISCOVERY}": discovery, f"{URL}/x": [7]}
    with pytest.raises(LoginError) as raised:
        IdentityProvider(Issuer(URL, "registry", ROLES), told.__getitem__).refresh()
    assert raised.value.status == 502
    assert "\x1b" not in raised.value.why


def test_a_provider_that_hangs_delays_neither_the_start_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    answers, asked = threading.Event(), threading.Event()

    def hang(url: str) -> Any:
        asked.set()
        answers.wait(6)

    def running() -> list[str]:
        return [each.name for each in threading.enumerate() if each.name.startswith("featurestore-registry")]

    with open_registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        guard = access.Access(registry, provider=IdentityProvider(Issuer(URL, "registry", ROLES), hang))
        began_s = time.monotonic()
        guard.start()
        assert asked.wait(5)
        guard.stop()
        assert time.monotonic() - began_s < 5
        assert running() == ["featurestore-registry-keys"]  # it waits for the provider, and ends then
        answers.set()
        until(lambda: not running())
        guard.start()
        assert sorted(running()) == ["featurestore-registry-keys", "featurestore-registry-tokens"]
        guard.stop()
        assert running() == []


@pytest.fixture
def url(tmp_path: Path, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(access, "REFRESH_SECONDS", 0.05)
    with open_registry(f"sqlite:///{tmp_path / 'registry.db'}") as registry:
        registry.ledger.append("p", "run", "k", {})
        people = IdentityProvider(Issuer(URL, "registry", ROLES, cli_audience="terminal"), provider.fetch)
        people.refresh()
        with serving_registry(registry, provider=people) as url:
            yield url


def test_people_enter_by_their_roles_and_are_named_in_what_they_do(url: str, provider: Provider) -> None:
    def ask(method: str, path: str, body: Any = None, **claims: Any) -> httpx.Response:
        token = provider.token(**claims).decode()
        return httpx.request(method, f"{url}/api/v1{path}", json=body, headers={"authorization": f"Bearer {token}"})

    assert ask("GET", "/state?project=p").status_code == 200
    assert ask("GET", "/state?project=p", aud="another").status_code == 401
    for path in ("/state?project=p", "/projects"):
        refused = ask("GET", path, groups=["king"])
        assert (refused.status_code, "no role" in refused.text) == (403, True)
    record = {"kind": "view", "project": "p", "name": "a", "document": {}, "fingerprint": "f"}
    change = {"action": "put", "kind": "view", "name": "a", "record": record}
    apply = {"expected": "", "changes": [change]}
    assert ask("POST", "/apply?project=p", apply).status_code == 403
    told = {"groups": ["ranking"], "email": "ada@example.org", "email_verified": True}
    assert ask("POST", "/apply?project=p", apply, **told).status_code == 200
    assert ask("GET", "/projects", **told).json() == ["p"]
    assert ask("GET", "/history?project=p").json()[0]["author"] == "ada@example.org"
    (entry,) = ask("GET", "/journal?project=p&kind=audit", groups=["ops"], sub="root").json()
    assert (entry["document"]["by"], entry["document"]["token"]) == ("ada@example.org", f"{URL}#ada")
    # An admin of one project says nothing for the servers of another.
    said = [{"key": "web-1", "document": {}}]
    both = {"groups": ["head of ranking", "everyone"]}
    assert ask("POST", "/journal?project=q&kind=serving", said, **both).status_code == 403
    assert ask("POST", "/journal?project=p&kind=serving", said, **both).status_code == 200
