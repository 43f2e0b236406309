"""People who logged in, and their sessions in the ledger: of each only the SHA-256 of its text is kept.

One entry a person, rewritten at each login, so the ledger grows with people and not with logins.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from typing_extensions import override

from featurestore_registry.auth.tokens import Role, Token, hash_token
from featurestore_registry.errors import AuthError, LedgerConflictError, RegistryError
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import Document, known_fields

KIND = "session"
"""The kind of their entries in the ledger."""
SESSIONS = ".sessions"
"""The ledger's project for them, and no project's name: a login moves no other project's ledger."""
PREFIX = "fss_"
"""How the text of every session begins."""
MOST_SESSIONS = 20
"""At most so many live sessions of one person; one more ends the oldest."""
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Person(Token):
    """Somebody whom the identity provider vouches for until the token or the session ends."""

    roles: tuple[tuple[str, str], ...] = ()
    """As the settings say them: a value of the claim, and its role."""
    session: str = ""
    """The session's id; empty for who presents the provider's own token."""
    nonce: str | None = None
    """Of a token for a login, perhaps empty: it is good for nothing but a session. None: of any other."""

    @property
    def grants(self) -> list[tuple[Role, str | None]]:
        """Roles, each for one project or for every one (None)."""
        return [grant_of(text) for _, text in self.roles]

    @override
    def require(self, role: Role, project: str | None) -> None:
        fitting = [has for has, of in self.grants if of is None or (project and of == project)]
        if not fitting:
            raise AuthError("Your groups have no role in this project: ask an admin for one.", status=403)
        if max(fitting) < role:
            raise AuthError(f"Your role here is {max(fitting)}; this needs {role}.", status=403)

    @override
    def sees(self, project: str) -> bool:
        return any(of in (None, project) for _, of in self.grants)


def grant_of(text: str) -> tuple[Role, str | None]:
    """Return the role, and its project, of ``ROLE`` or ``ROLE:PROJECT``; raises RegistryError for anything else."""
    role, colon, project = text.partition(":")
    if colon and not project:
        raise RegistryError(f"The role {text!r} names no project.", hint=f"Write {role}:PROJECT, or {role} for all.")
    return Role.parse(role), project or None


@dataclass(frozen=True, slots=True)
class Session:
    """A login that has not ended."""

    id: str
    hash: str
    """The SHA-256 of its text; empty for those who may not know."""
    person: str
    """The issuer's URL, ``#`` and the subject."""
    name: str
    """What people call the person."""
    roles: dict[str, str]
    """By a value of the claim: the role that it had at the login."""
    made_at_us: int
    expires_at_us: int
    by: str
    """What logged in: ``browser`` or ``fs login``."""
    address: str
    """The client's network address at the login."""

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Read what `asdict` made of one; ignores other fields."""
        return cls(**known_fields(cls, document))


def sessions_of(document: Document) -> list[Session]:
    """Return the sessions in a person's entry."""
    return [Session.from_document(each) for each in document["sessions"]]


def document_of(found: Sequence[Session], *, are_shown: bool = False) -> dict[str, Any]:
    """Return a person's entry; without the hashes where it is shown."""
    return {"sessions": [{**asdict(each), **({"hash": ""} if are_shown else {})} for each in found]}


def sessions(ledger: LedgerReader) -> list[Session]:
    """Return everybody's sessions, those of who logged in last first; expired ones may be among them."""
    return [each for entry in ledger.scan(SESSIONS, KIND) for each in sessions_of(entry.document)]


def begin_session(
    ledger: Ledger, person: Person, *, by: str, address: str, now_us: int, length_us: int
) -> tuple[str, Session]:
    """Begin a session and return it with its text, which is shown only here. Forgets those that expired."""
    text = f"{PREFIX}{secrets.token_urlsafe(32)}"
    made = Session(
        secrets.token_hex(8),
        hash_token(text),
        person.id,
        person.name,
        dict(person.roles),
        now_us,
        now_us + length_us,
        by,
        address,
    )

    def change(found: list[Session]) -> list[Session]:
        live = [each for each in found if each.expires_at_us > now_us]
        return [*live[-MOST_SESSIONS + 1 :], made]

    _rewrite(ledger, hash_token(person.id), change)
    return text, made


def end_sessions(ledger: Ledger, is_meant: Callable[[Session], bool]) -> list[Session]:
    """End the sessions that are meant, and return them; servers stop taking them when they next refresh."""
    meant = [each for each in sessions(ledger) if is_meant(each)]
    for person in {each.person for each in meant}:
        _rewrite(ledger, hash_token(person), lambda found: [each for each in found if not is_meant(each)])
    return meant


def _rewrite(ledger: Ledger, key: str, change: Callable[[list[Session]], list[Session]]) -> None:
    for left in reversed(range(_TRIES)):
        entry = ledger.latest(SESSIONS, KIND, key)
        found, version = ([], 0) if entry is None else (sessions_of(entry.document), entry.version)
        try:
            ledger.append(SESSIONS, KIND, key, document_of(change(found)), if_version=version)
        except LedgerConflictError:  # another login of the same person
            if not left:
                raise
        else:
            return
