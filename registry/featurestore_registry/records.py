"""What a registry holds: records of definitions, revisions of them, and entries of the ledger.

A registry knows records, not feature views: a new kind of definition needs no registry code.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

Document = Mapping[str, Any]
Clock = Callable[[], int]
"""Returns the current instant in UTC microseconds; the registry's one source of "now"."""


def system_clock() -> int:
    """Return the machine's current instant in UTC microseconds."""
    return time.time_ns() // 1000


def canonical_json(document: Any) -> str:
    """Return the one JSON text of a document: sorted keys, no spaces, UTF-8 kept. NaN is refused."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(document: Any) -> str:
    """Return the hex of the 16-byte BLAKE2b digest of the canonical JSON."""
    return hashlib.blake2b(canonical_json(document).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class RecordField:
    """A column that a record offers: enough for plans, lineage and a catalog."""

    name: str
    type: str
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    """``object.column`` strings this column is computed from."""


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


@dataclass(frozen=True, slots=True)
class Change:
    """One step of an apply: put a record (replacing the one of its kind and name), or delete it."""

    action: Literal["put", "delete"]
    kind: str
    name: str
    record: Record | None = None
    """The new record of a put; None for a delete."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A project's definitions at one moment; it never changes. Revision 0 is the empty project."""

    project: str
    number: int
    records: tuple[Record, ...]
    """Sorted by (kind, name)."""


@dataclass(frozen=True, slots=True)
class RevisionInfo:
    """What `history` tells of one apply."""

    number: int
    applied_at: datetime
    """Aware, UTC."""
    author: str
    message: str
    commit: str
    """The user's version-control commit, or an empty string."""
    changes: tuple[Change, ...]


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
