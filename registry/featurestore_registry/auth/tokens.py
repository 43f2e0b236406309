"""Roles, tokens in the ledger, and the check of a presented token.

A token is 256 random bits, shown once when it is made. Only its SHA-256 is kept: nobody can guess such a key, so a
slow hash would only slow down the server.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Self

from featurestore_registry.errors import AuthError, RecordNotFoundError, RegistryError, did_you_mean
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import Clock, Document, known_fields, system_clock

MIN_STATIC_TOKEN_LENGTH = 32
"""At least so many characters for ``FS_SERVER_TOKEN``."""

KIND = "token"
"""The kind of their entries in the ledger."""
REVOKED = "revoked_at_us"
"""The only field of a revoked token's entry."""
EVERY_PROJECT = ""
"""The ledger's project for tokens that are not bound to one; no project can have this name."""
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*")
"""What a bearer token may consist of (RFC 6750, section 2.1)."""


class Role(IntEnum):
    """What a token may do; each role includes the ones before it."""

    VIEWER = 1
    """Read the registry."""
    READER = 2
    """Read features."""
    OPERATOR = 3
    """Push rows, record runs."""
    EDITOR = 4
    """Apply definitions."""
    ADMIN = 5
    """Create and revoke tokens."""

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, name: str) -> Self:
        """Return the role with that name, for example ``reader``; raises RegistryError for an unknown one."""
        try:
            return cls[name.upper()]
        except KeyError:
            known = [str(role) for role in cls]
            raise RegistryError(f"There is no role {name!r}.", hint=did_you_mean(name, known), known=known) from None


@dataclass(frozen=True, slots=True)
class Token:
    """What the ledger keeps about a token, which is not the token itself."""

    id: str
    hash: str
    """The SHA-256 of the token's text, as hex."""
    role: Role
    project: str | None = None
    """The one project it is good for; None: every project."""
    expires_at_us: int | None = None
    """The first instant, in UTC microseconds, at which it is no longer valid; None: it never expires."""
    name: str = ""
    """What people call it, for example the service that uses it."""
    is_server: bool = False
    """Whether it may read the hashes of tokens, as servers do that check tokens themselves."""

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Read what `to_document` wrote; ignores other fields."""
        return cls(**{**known_fields(cls, document), "role": Role.parse(document["role"])})

    def require(self, role: Role, project: str | None) -> None:
        """Raise AuthError (403) unless it has a role, or a greater one, and is good for the project asked about.

        One that is bound to a project is good for no request about several (None).
        """
        if self.role < role:
            raise AuthError(f"The token's role is {self.role}; this needs {role}.", status=403)
        if self.project is not None and self.project != project:
            asked = "several projects" if project is None else f"project {project!r}"
            raise AuthError(f"The token is for project {self.project!r}, and this asks for {asked}.", status=403)

    def sees(self, project: str) -> bool:
        """Tell whether it is good for a project at all."""
        return self.project in (None, project)

    def to_document(self) -> dict[str, Any]:
        """Return the token as the ledger and a server's snapshot keep it."""
        document = {**asdict(self), "role": str(self.role)}
        if not self.is_server:
            del document["is_server"]  # as earlier versions wrote it
        return document


def hash_token(plaintext: str | bytes) -> str:
    """Return the SHA-256 of a token's text, as hex."""
    return hashlib.sha256(plaintext.encode() if isinstance(plaintext, str) else plaintext).hexdigest()


def create_token(
    ledger: Ledger,
    project: str | None,
    role: Role,
    *,
    expires_at_us: int | None,
    now_us: int,
    name: str = "",
    is_server: bool = False,
    text: str | None = None,
) -> tuple[str, Token]:
    """Make a token (for every project when ``project`` is None) and return it with its text, which is shown only here.

    ``text`` takes the place of one that is made here; its id follows from it, so that no text becomes a token twice, or
    again after it was revoked. Raises RegistryError, having written nothing, when it would expire at once or the text
    is too short or no header can hold it, LedgerConflictError when the text was a token before.
    """
    if text is not None:
        _check_text("The token's text", text)
    if expires_at_us is not None and expires_at_us <= now_us:
        raise RegistryError(
            f"The token {name!r} would expire before it is made.",
            hint="Choose an expiry in the future.",
            expires_at_us=expires_at_us,
            now_us=now_us,
        )
    plaintext = f"fs_{secrets.token_urlsafe(32)}" if text is None else text
    token_id = secrets.token_hex(8) if text is None else _id_of(text)
    token = Token(token_id, hash_token(plaintext), role, project, expires_at_us, name, is_server)
    document = {**token.to_document(), "created_at_us": now_us}
    ledger.append(project or EVERY_PROJECT, KIND, token.id, document, if_version=0)
    return plaintext, token


def is_bearer(text: str) -> bool:
    """Tell whether a header can hold a token with this text."""
    return bool(_TOKEN68.fullmatch(text))


def given_token(ledger: LedgerReader, project: str | None, text: str) -> Token | None:
    """Return the token that `create_token` made of a text, or None; raises RegistryError when it was revoked since."""
    entry = ledger.latest(project or EVERY_PROJECT, KIND, _id_of(text))
    if entry is None:
        return None
    if REVOKED in entry.document:
        raise RegistryError(
            f"This text was the token {entry.key}, which was revoked.", hint="Give another text.", token=entry.key
        )
    return Token.from_document(entry.document)


def _id_of(text: str) -> str:
    return hash_token(f"id of {text}")[:16]


def tokens(ledger: LedgerReader, project: str | None) -> tuple[Token, ...]:
    """Return the tokens that are good for a project, its own and those of every project, newest first.

    With None only those of every project. Revoked ones are left out, expired ones are not.
    """
    return known_tokens(ledger, project)[0]


def known_tokens(ledger: LedgerReader, project: str | None) -> tuple[tuple[Token, ...], dict[str, int]]:
    """Return what `tokens` does, and the revoked ones: for each id the instant of the revocation, in UTC microseconds.

    Both come from one read, so that no token is missing from both.
    """
    found = [
        entry
        for partition in dict.fromkeys([project or EVERY_PROJECT, EVERY_PROJECT])
        for entry in ledger.scan(partition, KIND)
    ]
    found.sort(key=lambda entry: entry.written_at, reverse=True)
    kept = tuple(Token.from_document(entry.document) for entry in found if REVOKED not in entry.document)
    revoked = {entry.key: int(entry.document[REVOKED]) for entry in found if REVOKED in entry.document}
    return kept, revoked


def revoke_token(ledger: Ledger, project: str | None, token_id: str, *, now_us: int) -> None:
    """End a token for good; servers stop taking it when they next refresh.

    Raises RecordNotFoundError when ``project`` has no such token or it has been revoked before.
    """
    partition = project or EVERY_PROJECT
    live = {token.id for token in tokens(ledger, project) if token.project == project}
    if token_id not in live:
        raise RecordNotFoundError(
            f"There is no token {token_id!r} to revoke" + (f" in project {project!r}." if project else "."),
            hint=did_you_mean(token_id, live),
            project=project,
            token=token_id,
        )
    ledger.append(partition, KIND, token_id, {"id": token_id, REVOKED: now_us})


class TokenVerifier:
    """Finds the token for a presented text, if there is one.

    ``current`` returns the current tokens; to change them it returns another tuple. ``static_token`` (the setting
    ``FS_SERVER_TOKEN``) is one more, a reader of every project that never expires; raises RegistryError when it is
    shorter than 32 characters or a header cannot hold it.
    """

    def __init__(
        self,
        current: Callable[[], tuple[Token, ...]] = tuple,
        *,
        static_token: str | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._current = current
        self._clock = clock
        self._static = () if static_token is None else (_static_token(static_token),)
        # One attribute, so that a thread never sees the tokens of one moment together with another moment's index.
        self._index = self._indexed(())

    def _indexed(self, current: tuple[Token, ...]) -> tuple[tuple[Token, ...], dict[str, Token]]:
        return current, {token.hash: token for token in (*current, *self._static)}

    def verify(self, presented: bytes) -> Token | None:
        """Return the token with this text, None when there is none or it has expired."""
        current, index = self._current(), self._index
        if current is not index[0]:
            index = self._index = self._indexed(current)
        digest = hash_token(presented)
        token = index[1].get(digest)
        if token is None or not hmac.compare_digest(token.hash, digest):
            return None
        if token.expires_at_us is not None and self._clock() >= token.expires_at_us:
            return None
        return token


def _static_token(plaintext: str) -> Token:
    _check_text("FS_SERVER_TOKEN", plaintext)
    return Token("static", hash_token(plaintext), Role.READER, name="FS_SERVER_TOKEN")


def _check_text(what: str, plaintext: str) -> None:
    if len(plaintext) < MIN_STATIC_TOKEN_LENGTH or not _TOKEN68.fullmatch(plaintext):
        raise RegistryError(
            f"{what} must be {MIN_STATIC_TOKEN_LENGTH} characters or more of letters, digits and "
            f"-._~+/; the one that is set has {len(plaintext)} characters.",
            hint="Make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'.",
            length=len(plaintext),
        )
