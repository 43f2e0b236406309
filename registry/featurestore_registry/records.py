"""What a registry holds: records of definitions, revisions of them, and entries of the ledger.

A registry knows records, not feature views: a new kind of definition needs no registry code.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

Document = Mapping[str, Any]
Clock = Callable[[], int]
"""Returns the current instant in UTC microseconds; the one source of "now".

How long something takes is measured with a monotonic clock, and how old a file is comes from its file system.
"""


def system_clock() -> int:
    """Return the machine's current instant in UTC microseconds."""
    return time.time_ns() // 1000  # noqa: TID251 - the one place that asks it


def canonical_json(document: Any) -> str:
    """Return the one JSON text of a document: sorted keys, no spaces, UTF-8 kept. NaN is refused."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def check_storable(*texts: str) -> None:
    """Raise ValueError for a name or text that not every database keeps: one with U+0000 or half a surrogate pair."""
    for text in texts:
        if not is_storable(text):
            raise ValueError(f"{text!r} holds U+0000 or half a surrogate pair, which a registry cannot keep")


def is_storable(text: str) -> bool:
    """Tell whether every database keeps a name or text."""
    return "\0" not in text and (text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text))


def fingerprint(document: Any) -> str:
    """Return the hex of the 16-byte BLAKE2b digest of the canonical JSON."""
    return hashlib.blake2b(canonical_json(document).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class RecordField:
    """A column that a record offers, with enough detail for plans, lineage and a catalog."""

    name: str
    type: str
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    """``object.column`` strings that this column is computed from."""


@dataclass(frozen=True, slots=True)
class Record:
    """One definition as the registry keeps it. (kind, name) is unique in a project."""

    kind: str
    project: str
    name: str
    document: Document
    fingerprint: str
    fields: tuple[RecordField, ...] = ()
    depends_on: tuple[str, ...] = ()
    """``kind:name`` strings of the records of the same project that this one needs."""
    owner: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""

    @property
    def key(self) -> str:
        """``kind:name``, as in ``depends_on``."""
        return f"{self.kind}:{self.name}"


def known_fields(kind: type, document: Document) -> dict[str, Any]:
    """Return what a dataclass takes of a document: a server of a later version may tell more."""
    return {known.name: document[known.name] for known in fields(kind) if known.name in document}


def record_from(document: Document) -> Record:
    """Return the record whose ``dataclasses.asdict`` is this, also where it went through JSON."""
    columns = tuple(
        RecordField(**{**known_fields(RecordField, column), "inputs": tuple(column["inputs"])})
        for column in document["fields"]
    )
    known = known_fields(Record, document)
    return Record(**{**known, "fields": columns, "depends_on": tuple(document["depends_on"])})


@dataclass(frozen=True, slots=True)
class Change:
    """One step of an apply: put a record (replacing the one of its kind and name), or delete it."""

    action: Literal["put", "delete"]
    kind: str
    name: str
    record: Record | None = None
    """The new record of a put; None for a delete."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The hashes of a project's revisions, oldest first. Each covers its own content and the hash before it.

    Hashes tell two registries apart, and a restored one from its former state; revision numbers cannot. They contain
    no path, host or URL, so a registry keeps them when it moves.
    """

    hashes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """The project's identity: the hash of its first revision; empty for a project that was never applied."""
        return self.hashes[0] if self.hashes else ""

    @property
    def head(self) -> str:
        """The hash of the newest revision; empty for a project that was never applied."""
        return self.hashes[-1] if self.hashes else ""

    @property
    def number(self) -> int:
        """The number of the newest revision."""
        return len(self.hashes)

    def __contains__(self, revision_hash: str) -> bool:
        return revision_hash in self.hashes


def revision_hash(
    parent: str,
    project: str,
    *,
    applied_at_us: int,
    author: str,
    message: str,
    commit: str,
    changes: Sequence[tuple[str, str, str, str]],
) -> str:
    """Return the hash of a revision: BLAKE2b-256, as hex, of the canonical JSON of its content.

    ``parent`` is the hash of the revision before it, empty for the first. ``changes`` are (action, kind, name,
    fingerprint of the record) in their order; a delete has no fingerprint.
    """
    content = [parent, project, applied_at_us, author, message, commit, [list(change) for change in changes]]
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=32).hexdigest()


@dataclass(frozen=True, slots=True)
class Revision:
    """A project's definitions at one moment; it never changes. Revision 0 is the empty project."""

    project: str
    number: int
    records: tuple[Record, ...]
    """Sorted by (kind, name)."""
    chain: Chain = field(default_factory=Chain)
    """The hashes up to this revision."""


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """One apply, as `history` shows it."""

    number: int
    applied_at: datetime
    """Aware, UTC."""
    author: str
    message: str
    commit: str
    """The user's version-control commit, or an empty string."""
    changes: tuple[Change, ...]
    hash: str
    """As in `Chain`."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One version of one ledger key."""

    project: str
    kind: str
    key: str
    version: int
    """Counts from 1 for each (project, kind, key)."""
    document: Document
    written_at: datetime
    """Aware, UTC."""


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One thing that happened, as the journal keeps it."""

    project: str
    kind: str
    key: str
    """What it happened to, a view for example."""
    cursor: int
    """Where it stands: later entries of a project have greater cursors."""
    document: Document
    written_at: datetime
    """Aware, UTC, by the registry's clock."""


@dataclass(frozen=True, slots=True)
class State:
    """How far a project's registry is: what has to be read again is told by comparing two of them."""

    head: str
    """The hash of the newest revision; empty for a project that was never applied."""
    number: int
    """The number of that revision."""
    ledger: int
    """Grows with every entry that is appended to the project's ledger, or to that of every project (the empty name)."""
    now: datetime
    """By the registry's clock. Aware, UTC."""


def check_changes(project: str, changes: Sequence[Change]) -> None:
    """Raise ValueError for an apply's changes that make no sense: see `Definitions.apply`."""
    if not changes:
        raise ValueError("an apply needs at least one change")
    counts = Counter((change.kind, change.name) for change in changes)
    (kind, name), count = counts.most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} changes of {kind}:{name} in one apply")
    for change in changes:
        record = change.record
        check_storable(change.kind, change.name)
        if (change.action == "put") != (record is not None) or change.action not in ("put", "delete"):
            raise ValueError(f"a put needs a record and a delete has none: {change.kind}:{change.name}")
        if record is None:
            continue
        if (record.project, record.kind, record.name) != (project, change.kind, change.name):
            raise ValueError(
                f"the record {record.key} of project {record.project!r} is not "
                f"{change.kind}:{change.name} of project {project!r}"
            )
        check_storable(record.fingerprint, record.owner, record.description, canonical_json(asdict(record)))
