"""People whom an identity provider vouches for: their JSON Web Tokens, checked by the configured issuer's keys alone.

OpenID Connect Core 1.0 and RFC 8725 (best current practices of JWTs): the algorithms are fixed, issuer and audience are
compared, and a token without an end is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import jwt

from featurestore_registry.auth import Person, Role, Session
from featurestore_registry.errors import RegistryError
from featurestore_registry.http.urls import is_private

logger = logging.getLogger("featurestore.registry")

ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 30.0
"""How far the issuer's clock may be from this one."""
REFETCH_SECONDS = 60.0
"""The issuer's keys are fetched again for a key that is not known, at most so often."""
KEPT_SECONDS = 900.0
"""And so often in any case: a key that the issuer gave up ends then."""
_MOST_SHOWN = 200
"""At most so many characters of a text from outside."""
DISCOVERY = "/.well-known/openid-configuration"

FETCH_SECONDS = 5.0
Fetch = Callable[[str], Any]
"""Returns the JSON document at a URL."""


def fetch_json(url: str) -> Any:
    """Return the JSON document at a URL; raises httpx.HTTPError or ValueError."""
    return httpx.get(url, timeout=FETCH_SECONDS, follow_redirects=False).raise_for_status().json()


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


class People:
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
        self._grants = {value: _grant(text) for value, text in issuer.roles.items()}
        self._fetch = fetch
        self._lock = threading.Lock()
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._fetched_s = float("-inf")
        self._is_one_missing = True

    def refresh(self) -> None:
        """Fetch the issuer's keys if they are old, or if one was missing. Raises what fetching raises."""
        with self._lock:
            age_s = time.monotonic() - self._fetched_s
            if age_s < REFETCH_SECONDS or (age_s < KEPT_SECONDS and not self._is_one_missing):
                return
            self._fetched_s, self._is_one_missing = time.monotonic(), True
            found = self._fetch(f"{self.issuer.url.rstrip('/')}{DISCOVERY}")
            if found.get("issuer") != self.issuer.url:
                raise RegistryError(f"The issuer {self.issuer.url} calls itself {found.get('issuer')!r}.")
            for name in ("jwks_uri", "authorization_endpoint", "token_endpoint"):
                if name in found and not is_private(str(found[name])):
                    raise RegistryError(f"The issuer {self.issuer.url} has its {name} at {found[name]}, without TLS.")
            keys = jwt.PyJWKSet.from_dict(self._fetch(found["jwks_uri"])).keys
            self._keys = {key.key_id: key for key in keys if key.key_id and key.algorithm_name in ALGORITHMS}
            self.endpoints, self._is_one_missing = found, False

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
        key = self._keys.get(str(header.get("kid")))
        if key is None:
            self._is_one_missing = True
            raise jwt.InvalidKeyError("it is signed with a key that the provider does not publish")
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
        known = {value: self.issuer.roles[value] for value in values if value in self._grants}
        made = self._made(f"{self.issuer.url}#{subject}", "", printable(address or subject), end_us, known)
        return replace(made, nonce=str(claims.get("nonce") or ""))

    def resume(self, session: Session) -> Person | None:
        """Return whose session it is, with those roles that the settings still give; None for another issuer's."""
        if session.person.partition("#")[0] != self.issuer.url:
            return None
        known = {value: role for value, role in session.roles.items() if self.issuer.roles.get(value) == role}
        return self._made(session.person, session.hash, session.name, session.expires_at_us, known, session.id)

    def _made(
        self, person: str, hash: str, name: str, end_us: int, known: Mapping[str, str], session: str = ""
    ) -> Person:
        grants = tuple(self._grants[value] for value in known)
        role = max((role for role, _ in grants), default=Role.VIEWER)
        return Person(person, hash, role, None, end_us, name, False, grants, tuple(known.items()), session)


def printable(text: object) -> str:
    """Return the beginning of a text from outside without what could move a cursor or begin a line in a log."""
    return "".join(each if each.isprintable() else " " for each in str(text)[:_MOST_SHOWN])


def _grant(text: str) -> tuple[Role, str | None]:
    role, _, project = text.partition(":")
    return Role.parse(role), project or None
