"""Runs that were blocked because their rows were not as expected, and which of them somebody accepted.

Kinds ``blocked`` and ``accepted``; the key is the generation's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import msgspec
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import Document

from featurestore.registered.records import understood

BLOCKED, ACCEPTED = "blocked", "accepted"


@dataclass(frozen=True, slots=True)
class BlockedRun:
    """A run whose rows were not committed."""

    run_id: str
    view: str
    kind: str
    intervals: tuple[tuple[int, int], ...]
    """What it was asked to read."""
    rows: str
    """The fingerprint of its rows, as `Checks.fingerprint`."""
    revision: str
    """The hash of the definitions' revision."""
    unmet: tuple[str, ...]
    """What its rows are not like."""


def write_blocked(ledger: Ledger, project: str, key: str, run: BlockedRun) -> None:
    """Remember a run that was blocked."""
    ledger.append(project, BLOCKED, key, _document(asdict(run)))


def blocked_runs(ledger: LedgerReader, project: str) -> list[tuple[str, BlockedRun]]:
    """Return the newest run of each generation that was blocked, with the key of the generation."""
    with understood("a blocked run"):
        return [(entry.key, msgspec.convert(entry.document, BlockedRun)) for entry in ledger.scan(project, BLOCKED)]


def accept_rows(ledger: Ledger, project: str, key: str, run: BlockedRun, *, reason: str, by: str) -> None:
    """Let the rows of a blocked run pass, once."""
    ledger.append(project, ACCEPTED, key, {"run_id": run.run_id, "rows": run.rows, "reason": reason, "by": by})


def accepted_reason(ledger: LedgerReader, project: str, key: str, rows: str) -> str | None:
    """Return why rows of a fingerprint may pass; None where nobody has accepted them."""
    entry = ledger.latest(project, ACCEPTED, key)
    if entry is None or entry.document.get("rows") != rows:
        return None
    return f"{entry.document['reason']} ({entry.document['by']})"


def _document(plain: dict[str, object]) -> Document:
    made: Document = msgspec.to_builtins(plain)
    return made
