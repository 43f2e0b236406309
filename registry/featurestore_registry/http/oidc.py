"""An identity provider: the JSON Web Tokens with which it vouches for people, checked by its own keys alone.

OpenID Connect Core 1.0 and RFC 8725 (best current practices of JWTs): the algorithms are fixed, issuer and audience are
compared, and a token without an end is none.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import jwt

from featurestore_registry.auth import Person, Role, Session
from featurestore_registry.auth.sessions import grant_of
from featurestore_registry.errors import AuthError, RegistryError
from featurestore_registry.http.urls import is_private, tls_of

ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 30.0
"""How far the issuer's clock may be from this one."""
REFETCH_SECONDS = 60.0
"""The issuer's keys are fetched again for a key that is not known, and after a failure, at most so often."""
FRESH_SECONDS = 300.0
"""And so often in any case."""
KEPT_SECONDS = 900.0
"""No key counts longer than this after it was fetched, whether the issuer answers or not: it may have given it up."""
_MOST_SHOWN = 200
"""At most so many characters of a text from outside."""
DISCOVERY = "/.well-known/openid-configuration"

_CLIENT_CLAIMS = ("azp", "client_id", "appid", "cid")
"""Where providers name the client that a token was made for, besides ``aud`` (RFC 9068, OpenID Connect, and habits)."""
_URL = re.compile(r"[\x21-\x7e]+")

ANSWER_SECONDS = 10.0
"""A provider answers whole within so long."""
Fetch = Callable[[str], Any]
"""Returns the JSON document at a URL."""


class LoginError(AuthError):
    """A login came to nothing; ``why`` is for the log alone."""

    def __init__(self, message: str, *, status: int = 400, why: object = "", hint: str = "") -> None:
        super().__init__(message, status=status, hint=hint)
        self.why = printable(why)


def away(why: object) -> LoginError:
    """Return what a login comes to where the provider answers nothing, or nothing that makes sense."""
    return LoginError("The identity provider does not answer as it should. Try again in a minute.", status=502, why=why)


def ask(url: str, form: str | None = None, auth: tuple[str, str] | None = None) -> httpx.Response:
    """Return the answer to a GET, or to the POST of a form; raises LoginError where there is none."""
    method, headers = "GET", {"accept": "application/json"}
    if form is not None:
        method, headers["content-type"] = "POST", "application/x-www-form-urlencoded"

    async def asked() -> httpx.Response:
        # httpx itself would wait so long for each piece: a whole answer could take forever.
        async with asyncio.timeout(ANSWER_SECONDS), httpx.AsyncClient(verify=tls_of(url)) as client:
            sent = httpx.Request(method, url, content=form, headers=headers)
            return await client.send(sent, auth=auth or httpx.USE_CLIENT_DEFAULT)

    try:
        return asyncio.run(asked())
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        raise away(f"{type(error).__name__}: {error}") from None


def fetch_json(url: str) -> Any:
    """Return the JSON document at a URL; raises LoginError, httpx.HTTPStatusError or ValueError."""
    return ask(url).raise_for_status().json()


@dataclass(frozen=True, slots=True)
class Issuer:
    """An identity provider, and what its claims are worth here."""

    url: str
    """As in the claim ``iss``."""
    audience: str
    """As in the claim ``aud``: this registry's client id."""
    roles: Mapping[str, str]
    """By a value of the claim: a role for every project, or ``role:project``."""
    claim: str = "groups"
    """The claim whose values are looked up in ``roles``."""
    secret: str = field(default="", repr=False)
    """What the provider gave this registry to prove itself with; empty for a public client."""
    cli_audience: str = ""
    """The client id of `fs login` at the provider, where that is another one."""
    scopes: tuple[str, ...] = ("openid", "email")
    """What a login asks for."""

    @property
    def login_client(self) -> str:
        """The client id that `fs login` uses; empty for none: it cannot keep the secret of the server's client."""
        return self.cli_audience or ("" if self.secret else self.audience)


class IdentityProvider:
    """Checks JSON Web Tokens of one issuer. `verify` asks nobody; `refresh` fetches keys, in the caller's thread."""

    def __init__(self, issuer: Issuer, fetch: Fetch = fetch_json) -> None:
        """Raises RegistryError for a role that does not exist, and for an issuer that is reached without TLS."""
        if not is_private(issuer.url):
            raise RegistryError(
                f"The identity provider {issuer.url} is not behind TLS: anybody on the way could vouch for anybody.",
                hint="Name it by https://.",
            )
        self.issuer = issuer
        self.endpoints: Mapping[str, Any] = {}
        """What the provider says of itself; empty until it was reached."""
        for text in issuer.roles.values():
            grant_of(text)
        self._fetch = fetch
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._tried_s = self._fetched_s = float("-inf")
        self._is_one_missing = True

    def refresh(self) -> None:
        """Fetch the issuer's keys if they are old, or if one was missing; raises LoginError where that fails."""
        with self._lock:
            age_s = time.monotonic() - self._tried_s
            if age_s < REFETCH_SECONDS or (age_s < FRESH_SECONDS and not self._is_one_missing):
                return
            self._tried_s, self._is_one_missing = time.monotonic(), True
            try:
                self._fetch_all()
            except LoginError:
                raise
            except Exception as error:  # whatever a provider answers
                raise away(f"{type(error).__name__}: {error}") from error
            self._fetched_s, self._is_one_missing = self._tried_s, False

    def _fetch_all(self) -> None:
        found = self._fetch(f"{self.issuer.url.rstrip('/')}{DISCOVERY}")
        if found["issuer"] != self.issuer.url:
            raise away(f"{self.issuer.url} calls itself {found['issuer']!r}")
        for name in ("jwks_uri", "authorization_endpoint", "token_endpoint"):
            if name in found and not (_URL.fullmatch(found[name]) and is_private(found[name])):
                raise away(f"{self.issuer.url} has its {name} at {found[name]}, without TLS")
        keys = jwt.PyJWKSet.from_dict(self._fetch(found["jwks_uri"])).keys
        self._keys = {key.key_id: key for key in keys if key.key_id and key.algorithm_name in ALGORITHMS}
        self.endpoints = found

    def verify(self, presented: bytes) -> Person | None:
        """Return whom a token vouches for, perhaps without a role; None for one that is not the issuer's, or ended."""
        try:
            return self.person(self.claims(presented, [self.issuer.audience, self.issuer.cli_audience]))
        except (jwt.PyJWTError, ValueError):
            return None

    def verify_login(self, id_token: str, client_id: str, nonce: str) -> Mapping[str, Any]:
        """Return the claims of the ID token that a login got; raises jwt.PyJWTError or ValueError for a wrong one.

        Fetches the issuer's keys where one is missing, at most every `REFETCH_SECONDS`; raises what that raises.
        """
        try:
            claims = self.claims(id_token, [client_id])
        except jwt.InvalidKeyError:
            self.refresh()
            claims = self.claims(id_token, [client_id])
        if claims.get("nonce") != nonce:
            raise jwt.InvalidTokenError("it was made for another login (nonce)")
        if claims.get("azp", client_id) != client_id:
            raise jwt.InvalidTokenError("it was made for another client (azp)")
        return claims

    def claims(self, presented: str | bytes, audiences: Sequence[str]) -> Mapping[str, Any]:
        """Return what a token claims; raises jwt.PyJWTError or ValueError, InvalidKeyError for an unknown key."""
        header = jwt.get_unverified_header(presented)
        is_fresh = time.monotonic() - self._fetched_s <= KEPT_SECONDS
        key = self._keys.get(str(header.get("kid"))) if is_fresh else None
        if key is None:
            self._is_one_missing = True
            raise jwt.InvalidKeyError("it is signed with a key that the provider does not publish now")
        found: Mapping[str, Any] = jwt.decode(
            presented,
            key,
            algorithms=[key.algorithm_name],
            audience=[each for each in audiences if each],
            issuer=self.issuer.url,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
        return found

    def person(self, claims: Mapping[str, Any]) -> Person:
        """Return whom claims are about, with the roles that they give here."""
        told = claims.get(self.issuer.claim)
        values = [value for value in (told if isinstance(told, list) else [told]) if isinstance(value, str)]
        # Anybody may claim an address that was not verified.
        address = str(claims.get("email") or "") if claims.get("email_verified") is True else ""
        if self.issuer.claim == "email" and not address:
            values = []
        subject = str(claims["sub"])
        end_us = int(float(claims["exp"]) * 1_000_000)
        known = {value: self.issuer.roles[value] for value in values if value in self.issuer.roles}
        made = self._made(f"{self.issuer.url}#{subject}", "", printable(address or subject), end_us, known)
        aud, nonce, login_client = claims["aud"], str(claims.get("nonce") or ""), self.issuer.login_client
        clients = [*([aud] if isinstance(aud, str) else aud), *(claims.get(name) for name in _CLIENT_CLAIMS)]
        # Whoever lures somebody into `fs login` elsewhere may get such tokens: they are never bearer tokens here.
        return replace(made, nonce=nonce if nonce or (login_client and login_client in clients) else None)

    def resume(self, session: Session) -> Person | None:
        """Return whose session it is, with those roles that the settings still give; None for another issuer's."""
        if session.person.partition("#")[0] != self.issuer.url:
            return None
        known = {value: role for value, role in session.roles.items() if self.issuer.roles.get(value) == role}
        return self._made(session.person, session.hash, session.name, session.expires_at_us, known, session.id)

    def _made(
        self, person: str, hash: str, name: str, end_us: int, known: Mapping[str, str], session: str = ""
    ) -> Person:
        role = max((grant_of(text)[0] for text in known.values()), default=Role.VIEWER)
        return Person(person, hash, role, None, end_us, name, False, tuple(known.items()), session)


def printable(text: object) -> str:
    """Return the beginning of a text from outside without what could move a cursor or begin a line in a log."""
    return "".join(each if each.isprintable() else " " for each in str(text)[:_MOST_SHOWN])
