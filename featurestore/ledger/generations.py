"""Which generations a view's name has used: a name never reuses storage, even after a deletion."""

from __future__ import annotations

from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import LedgerEntry

from featurestore.errors import OnlineStoreError
from featurestore.online.records.keys import view_prefix
from featurestore.online.records.marker import MarkerReader
from featurestore.registered.records import MOST_GENERATIONS
from featurestore.workspace import Readers

KIND = "generation"


def last_generation(ledger: LedgerReader, project: str, view: str) -> int:
    """Return the last generation that a view's name has used, 0 for a new name."""
    entry = ledger.latest(project, KIND, view)
    return 0 if entry is None else _generation(entry)


def _generation(entry: LedgerEntry) -> int:
    """Return an entry's generation; 0 for one that says none, which must not stop those who clean up."""
    found = entry.document.get("generation")
    return found if type(found) is int and 0 < found <= MOST_GENERATIONS else 0


def remember_generation(ledger: Ledger, project: str, view: str, generation: int) -> None:
    """Note that a generation is used from now on."""
    if last_generation(ledger, project, view) < generation:
        ledger.append(project, KIND, view, {"generation": generation})


def adopt_generation(ledger: Ledger, project: str, view: str, generation: int) -> None:
    """Note that a generation of another history belongs to this registry from now on, to use or to give up."""
    if generation not in used_generations(ledger, project).get(view, ()):
        last = last_generation(ledger, project, view)
        ledger.append(project, KIND, view, {"generation": generation})
        if last > generation:  # the newest entry is the last generation
            ledger.append(project, KIND, view, {"generation": last})


def used_generations(ledger: LedgerReader, project: str) -> dict[str, set[int]]:
    """Return the generations that each view name has used; those in the gaps may belong to another history."""
    views = [entry.key for entry in ledger.scan(project, KIND)]
    return {view: {*map(_generation, ledger.scan(project, KIND, key=view))} - {0} for view in views}


class Generations:
    """Finds generations that neither the registry nor the offline nor the online store has ever seen.

    After registry and offline store were restored together, only the online store knows a generation that came
    later: other definitions under its number would serve its records. A store that is down is not asked again.
    """

    def __init__(self, workspace: Readers, identity: str) -> None:
        self._workspace, self._identity = workspace, identity
        self._is_online_up = bool(identity)

    def unused(self, view: str, *, after: int = 0) -> int:
        """Return the first unused generation of a view, greater than ``after``."""
        project = self._workspace.project
        known = last_generation(self._workspace.ledger, project, view)
        generation = max(after, known, self._workspace.offline.last_generation(project, view)) + 1
        while self._is_online_up and self._is_online(view, generation):
            generation += 1
        return generation

    def _is_online(self, view: str, generation: int) -> bool:
        try:
            prefix = view_prefix(self._workspace.project, view, generation)
            copies, _ = MarkerReader(self._workspace.online, prefix).read(at_once=True)
        except OnlineStoreError:
            self._is_online_up = False
            return False
        return any(copy is not None and copy.project == self._identity for copy in copies)
