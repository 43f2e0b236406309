"""Which generations a view's name has used: a name never reuses storage, also after it was deleted."""

from __future__ import annotations

from featurestore_registry.interface import Ledger

KIND = "generation"


def last_generation(ledger: Ledger, project: str, view: str) -> int:
    """Return the last generation that a view's name has used, 0 for a new name."""
    entry = ledger.latest(project, KIND, view)
    return 0 if entry is None else int(entry.document["generation"])


def remember_generation(ledger: Ledger, project: str, view: str, generation: int) -> None:
    """Note that a generation is used from now on."""
    if last_generation(ledger, project, view) < generation:
        ledger.append(project, KIND, view, {"generation": generation})


def used_generations(ledger: Ledger, project: str) -> dict[str, int]:
    """Return the last generation of every view name ever used."""
    return {entry.key: int(entry.document["generation"]) for entry in ledger.scan(project, KIND)}
