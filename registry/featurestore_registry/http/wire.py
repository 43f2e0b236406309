"""What client and server say to each other: bodies, and errors that come back as they were raised.

A client takes answers of a later server: it leaves out what it does not know. A server refuses requests that hold what
it does not know, instead of doing something else than was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from featurestore_registry.errors import (
    ApprovalNeededError,
    AuthError,
    FeatureStoreError,
    LedgerConflictError,
    RecordNotFoundError,
    RegistryError,
    RegistryFormatError,
    RegistryUnavailableError,
    RevisionConflictError,
)
from featurestore_registry.records import (
    Change,
    Document,
    JournalEntry,
    LedgerEntry,
    Record,
    RecordField,
    Revision,
    RevisionInfo,
    State,
    known_fields,
    record_from,
)

Made = TypeVar("Made", RevisionInfo, State, LedgerEntry, JournalEntry)

MAX_BODY_BYTES = 8 << 20
"""At most so many bytes in a request."""
MOST_ENTRIES = 10_000
"""At most so many entries in an answer, and in an append to the journal."""

STATUSES: Mapping[str, int] = {
    RevisionConflictError.__name__: 409,
    LedgerConflictError.__name__: 409,
    ApprovalNeededError.__name__: 409,
    RecordNotFoundError.__name__: 404,
    RegistryUnavailableError.__name__: 503,
    RegistryFormatError.__name__: 503,
    ValueError.__name__: 422,
}
"""The HTTP status of each error of a registry, by the name under which it is sent."""
_RAISED: Mapping[str, type[RegistryError]] = {
    kind.__name__: kind
    for kind in (
        RevisionConflictError,
        LedgerConflictError,
        ApprovalNeededError,
        RecordNotFoundError,
        RegistryUnavailableError,
        RegistryFormatError,
        AuthError,
    )
}


ChangeClass = Literal["metadata", "compatible", "rebuild", "breaking", "destructive"]


class Body(BaseModel):
    """A JSON object that holds the fields that are declared, and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorContent(BaseModel):
    """What was wrong."""

    type: str
    message: str
    hint: str = ""
    details: dict[str, Any] = {}


class ErrorBody(Body):
    """The body of every error."""

    error: ErrorContent


class FieldBody(Body):
    """A column of a record."""

    name: str
    type: str
    description: str = ""
    tags: dict[str, str] = {}
    inputs: list[str] = []


class RecordBody(Body):
    """A definition as the registry keeps it."""

    kind: str
    project: str
    name: str
    document: dict[str, Any]
    fingerprint: str
    fields: list[FieldBody] = []
    depends_on: list[str] = []
    owner: str = ""
    tags: dict[str, str] = {}
    description: str = ""


class ChangeBody(Body):
    """One step of an apply."""

    action: Literal["put", "delete"]
    kind: str
    name: str
    record: RecordBody | None = None


class ApplyBody(Body):
    """An apply: all of its changes, or none."""

    expected: str = Field(description="The hash of the newest revision; empty for a project that was never applied.")
    changes: list[ChangeBody] = Field(min_length=1, max_length=MOST_ENTRIES)
    author: str = Field(
        default="", description="Who applies it, where the server asks for no tokens; else the token's."
    )
    message: str = ""
    commit: str = Field(default="", description="The commit of the feature repo.")


class ChainBody(Body):
    """The hashes of a project's revisions."""

    after: int = Field(description="How many of the first hashes are left out, because the client knows them.")
    hashes: list[str]


class RevisionBody(Body):
    """A revision whole."""

    project: str
    number: int
    records: list[RecordBody]


class InfoBody(Body):
    """One apply."""

    number: int
    applied_at: datetime
    author: str
    message: str
    commit: str
    changes: list[ChangeBody]
    hash: str


EntryKey = Annotated[str, Field(max_length=1_000)]


class EntryBody(Body):
    """A new entry of the ledger."""

    key: EntryKey
    document: dict[str, Any]
    if_version: int | None = Field(default=None, description="The newest version that is expected, 0 for none.")


class TokenBody(Body):
    """A token as the ledger keeps it."""

    id: str = Field(min_length=1, max_length=64)
    hash: str = Field(pattern="^[0-9a-f]{64}$", description="The SHA-256 of the token's text.")
    role: Literal["viewer", "reader", "operator", "editor", "admin"]
    project: str | None = None
    expires_at_us: int | None = None
    name: str = ""
    is_server: bool = False
    created_at_us: int | None = None


class RevocationBody(Body):
    """The end of a token."""

    id: str
    revoked_at_us: int


class TokenEntryBody(Body):
    """A new entry of a token."""

    key: str = Field(description="The token's id.")
    document: TokenBody | RevocationBody
    if_version: int | None = Field(default=None, description="0 for a new token.")


class LoginBody(Body):
    """How people log in."""

    issuer: str
    client_id: str
    scopes: list[str]


class BeginBody(Body):
    """What a session begins with, besides the bearer token."""

    nonce_verifier: str = Field(
        default="",
        description="The token's claim nonce is the SHA-256, in hex, of this, a space and the server's public URL.",
    )


class SessionBody(Body):
    """A session that began."""

    token: str = Field(description="Its text, shown here alone: the bearer token from now on.")
    name: str
    roles: list[str]
    expires_at: datetime


class SessionsBody(Body):
    """A person's sessions, each with its ``id``."""

    sessions: list[dict[str, Any]] = Field(max_length=100)


class SessionEntryBody(Body):
    """What is left of a person's sessions."""

    key: str
    document: SessionsBody
    if_version: int = Field(description="The newest version of the entry.")


class VersionBody(Body):
    """The version of an entry that was appended."""

    version: int


class LedgerEntryBody(Body):
    """An entry of the ledger."""

    key: str
    version: int
    document: dict[str, Any]
    written_at: datetime


class NewsBody(Body):
    """A new entry of the journal."""

    key: EntryKey
    document: dict[str, Any]


class CursorsBody(Body):
    """The cursors of entries that were appended."""

    cursors: list[int]


class JournalEntryBody(Body):
    """An entry of the journal."""

    key: str
    cursor: int
    document: dict[str, Any]
    written_at: datetime


class CountBody(Body):
    """How many entries there were."""

    count: int


class PolicyBody(Body):
    """What a project allows its editors."""

    refuse: list[ChangeClass] = Field(default=[], description="Classes of change that nobody may apply.")
    approve: list[ChangeClass] = Field(default=[], description="Classes of change that a second person approves.")
    groups: dict[str, list[str]] = Field(
        default={}, description="By the owner of records: the names of the tokens that may change them."
    )


class ApproveBody(Body):
    """A plan to approve."""

    plan: str = Field(min_length=4, description="The plan's id, or how it begins.")


class ProposalBody(Body):
    """An apply that waits for a second person."""

    plan: str
    by: str
    token: str
    message: str
    expected: str
    changes: list[str]
    classes: dict[str, str]
    writes: list[ChangeBody] = Field(default=[], description="The changes whole; an earlier server kept their names.")


class StateBody(Body):
    """How far a project is."""

    head: str
    number: int
    ledger: int
    now: datetime


def plain(value: Any) -> Any:
    """Return a record, a change or an entry as JSON holds it, without the names that a request gives."""
    match value:
        case Record() | Change():
            return asdict(value)
        case LedgerEntry():
            return {"key": value.key, "version": value.version, **_written(value)}
        case JournalEntry():
            return {"key": value.key, "cursor": value.cursor, **_written(value)}
        case Revision():
            return {
                "project": value.project,
                "number": value.number,
                "records": [asdict(each) for each in value.records],
            }
        case RevisionInfo():
            return {**asdict(value), "applied_at": value.applied_at.isoformat()}
        case State():
            return {**asdict(value), "now": value.now.isoformat()}
    raise TypeError(type(value).__name__)


def _written(entry: LedgerEntry | JournalEntry) -> dict[str, Any]:
    return {"document": entry.document, "written_at": entry.written_at.isoformat()}


def change_of(body: ChangeBody) -> Change:
    """Return the change that a body holds."""
    record = body.record
    if record is None:
        return Change(body.action, body.kind, body.name)
    fields = tuple(
        RecordField(each.name, each.type, each.description, each.tags, tuple(each.inputs)) for each in record.fields
    )
    made = Record(
        record.kind,
        record.project,
        record.name,
        record.document,
        record.fingerprint,
        fields,
        tuple(record.depends_on),
        record.owner,
        record.tags,
        record.description,
    )
    return Change(body.action, body.kind, body.name, made)


def change_from(document: Document) -> Change:
    """Return the change whose `plain` this is."""
    record = document["record"]
    put = None if record is None else record_from(record)
    return Change(document["action"], document["kind"], document["name"], put)


def made_from(kind: type[Made], document: Document, /, **more: str) -> Made:
    """Return the apply, the state or the entry whose `plain`, with the names that a request gives, this is."""
    known = known_fields(kind, {**document, **more})
    for name in known.keys() & {"applied_at", "written_at", "now"}:
        known[name] = datetime.fromisoformat(known[name])
    if "changes" in known:
        known["changes"] = tuple(map(change_from, known["changes"]))
    return kind(**known)


def error_document(name: str, message: str, hint: str = "", details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the body of an error."""
    return {"error": {"type": name, "message": message, "hint": hint, "details": dict(details or {})}}


def error_from(document: Any) -> FeatureStoreError | ValueError | None:
    """Return the error that a body tells, None where it tells none."""
    match document:
        case {"error": {"type": "ValueError", "message": str(message)}}:
            return ValueError(message)
        case {"error": {"type": str(name), "message": str(message), "hint": str(hint), "details": dict(details)}}:
            kind = _RAISED.get(name)
            if kind is None:
                return None
            taken = {str(key): value for key, value in details.items() if str(key) not in ("self", "message", "hint")}
            return kind(message, hint=hint, **taken)
    return None
