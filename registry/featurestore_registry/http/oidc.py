"""People whom an identity provider vouches for: their JSON Web Tokens, checked by the configured issuer's keys alone.

OpenID Connect Core 1.0 and RFC 8725 (best current practices of JWTs): the algorithms are fixed, issuer and audience are
compared, and a token without an end is none.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from typing_extensions import override

from featurestore_registry.auth import Role, Token
from featurestore_registry.errors import AuthError, RegistryError
from featurestore_registry.http.urls import is_private

logger = logging.getLogger("featurestore.registry")

ALGORITHMS = ("RS256", "ES256")
LEEWAY_SECONDS = 30.0
"""How far the issuer's clock may be from this one."""
REFETCH_SECONDS = 60.0
"""The issuer's keys are fetched again for a key that is not known, at most so often."""
KEPT_SECONDS = 900.0
"""And so often in any case: a key that the issuer gave up ends then."""
DISCOVERY = "/.well-known/openid-configuration"

Fetch = Callable[[str], Any]
"""Returns the JSON document at a URL."""


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


@dataclass(frozen=True, slots=True)
class Person(Token):
    """Somebody whom the issuer vouches for until the token ends."""

    grants: tuple[tuple[Role, str | None], ...] = ()
    """Roles, each for one project or for every one (None)."""

    @override
    def require(self, role: Role, project: str | None) -> None:
        fitting = [has for has, of in self.grants if of is None or (project and of == project)]
        if not fitting:
            raise AuthError("Your groups have no role in this project.", status=403)
        if max(fitting) < role:
            raise AuthError(f"Your role here is {max(fitting)}; this needs {role}.", status=403)

    @override
    def sees(self, project: str) -> bool:
        return any(of in (None, project) for _, of in self.grants)


class People:
    """Checks JSON Web Tokens of one issuer. `verify` asks nobody; `refresh` fetches keys, in the caller's thread."""

    def __init__(self, issuer: Issuer, fetch: Fetch) -> None:
        """Raises RegistryError for a role that does not exist, and for an issuer that is reached without TLS."""
        if not is_private(issuer.url):
            raise RegistryError(
                f"The identity provider {issuer.url} is not behind TLS: anybody on the way could vouch for anybody.",
                hint="Name it by https://.",
            )
        self._issuer = issuer
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
            self._fetched_s, self._is_one_missing = time.monotonic(), False
            found = self._fetch(f"{self._issuer.url.rstrip('/')}{DISCOVERY}")
            if found.get("issuer") != self._issuer.url:
                raise RegistryError(f"The issuer {self._issuer.url} calls itself {found.get('issuer')!r}.")
            if not is_private(str(found["jwks_uri"])):
                raise RegistryError(f"The issuer {self._issuer.url} has its keys at {found['jwks_uri']}, without TLS.")
            keys = jwt.PyJWKSet.from_dict(self._fetch(found["jwks_uri"])).keys
            self._keys = {key.key_id: key for key in keys if key.key_id and key.algorithm_name in ALGORITHMS}

    def verify(self, presented: bytes) -> Person | None:
        """Return whom a token vouches for; None for one that is not the issuer's, has ended, or gives no role here."""
        try:
            header = jwt.get_unverified_header(presented)
            key = self._keys.get(str(header.get("kid")))
            if key is None:
                self._is_one_missing = True
                return None
            claims = jwt.decode(
                presented,
                key,
                algorithms=[key.algorithm_name],
                audience=self._issuer.audience,
                issuer=self._issuer.url,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError):
            return None
        told = claims.get(self._issuer.claim, ())
        values = [told] if isinstance(told, str) else [value for value in told if isinstance(value, str)]
        grants = tuple(self._grants[value] for value in values if value in self._grants)
        if not grants:
            return None
        subject = str(claims["sub"])
        # Anybody may claim an address that was not verified.
        name = str(claims["email"]) if claims.get("email_verified") is True and claims.get("email") else subject
        role = max(role for role, _ in grants)
        end_us = int(float(claims["exp"]) * 1_000_000)
        return Person(f"{self._issuer.url}#{subject}", "", role, None, end_us, name, False, grants)


def _grant(text: str) -> tuple[Role, str | None]:
    role, _, project = text.partition(":")
    return Role.parse(role), project or None
