"""Runs that were blocked because their rows were not as expected, and which of them somebody accepted.

Kinds ``blocked`` and ``accepted``; the key is the generation's. The latter is written once the rows are committed.
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


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Somebody's word that the rows of a blocked run are right."""

    key: str
    """The generation's."""
    run: BlockedRun
    reason: str
    by: str

    def __str__(self) -> str:
        return f"{self.reason} ({self.by})"


def write_blocked(ledger: Ledger, project: str, key: str, run: BlockedRun) -> None:
    """Remember a run that was blocked."""
    ledger.append(project, BLOCKED, key, _document(asdict(run)))


def blocked_runs(ledger: LedgerReader, project: str) -> list[tuple[str, BlockedRun]]:
    """Return the newest run of each generation that was blocked, with the key of the generation."""
    with understood("a blocked run"):
        return [(entry.key, msgspec.convert(entry.document, BlockedRun)) for entry in ledger.scan(project, BLOCKED)]


def write_accepted(ledger: Ledger, project: str, accepted: Acceptance) -> None:
    """Remember that the rows of a blocked run are committed all the same, why, and who said so."""
    run = accepted.run
    document = {"run_id": run.run_id, "rows": run.rows, "reason": accepted.reason, "by": accepted.by}
    ledger.append(project, ACCEPTED, accepted.key, document)


def accepted_before(ledger: LedgerReader, project: str, key: str, run_id: str) -> str | None:
    """Return with which reason, and by whom, the rows of a blocked run were accepted; None where they were not."""
    found = (entry.document for entry in ledger.scan(project, ACCEPTED, key=key))
    return next((f"{each['reason']} ({each['by']})" for each in found if each.get("run_id") == run_id), None)


def _document(plain: dict[str, object]) -> Document:
    made: Document = msgspec.to_builtins(plain)
    return made
