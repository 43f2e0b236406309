"""Runs that were blocked because their rows were not as expected, and which of them somebody accepted.

Kinds ``blocked`` and ``accepted``; the key is the generation's. The latter is written once the rows are committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile

import msgspec
from featurestore_registry.documents import RunDocument
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


def still_blocked(ledger: LedgerReader, project: str, key: str, later: Sequence[RunDocument]) -> BlockedRun | None:
    """Return the run of a generation whose rows are blocked; None where they were accepted, or a later run read them.

    ``later`` are the generation's runs, newest first.
    """
    with understood("a blocked run"):
        entry = ledger.latest(project, BLOCKED, key)
        found = None if entry is None else msgspec.convert(entry.document, BlockedRun)
    if found is None or accepted_before(ledger, project, key, found.run_id) is not None:
        return None
    for run in takewhile(lambda run: run.run_id != found.run_id, later):
        if run.state == "done" and not run.dry_run and (run.kind == found.kind or _covers(run, found)):
            return None
    return found


def _covers(run: RunDocument, blocked: BlockedRun) -> bool:
    return run.kind not in ("republish", "release") and all(
        any(start <= first and last <= end for start, end in run.intervals) for first, last in blocked.intervals
    )


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
