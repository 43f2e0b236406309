"""Generations that are filled before they are served: an apply prepares them, and the next apply may continue.

The newest ledger entry of kind ``prepared``, key ``{view}.{generation}``. It is valid until the generation is served,
or `fs gc` gives it up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import fingerprint

from featurestore.definitions import FeatureView
from featurestore.errors import LedgerConflictError
from featurestore.ledger.commits import KnownCommit
from featurestore.project.loader import with_parts
from featurestore.registered.records import to_record, understood
from featurestore.registered.snapshot import generation_key

KIND = "prepared"
_GIVEN_UP = {"given_up": True}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A generation that an apply fills, or filled."""

    view: str
    generation: int
    after: int
    """The generation that is served in the meantime, 0 for a new view."""
    base: str
    """The hash of the revision that the apply was planned on."""
    mark: str
    """Hash of the view and of everything that it refers to."""
    since: KnownCommit | None
    """The last commit of the served generation when the filling began: see `last_read`."""
    entry: int = 0
    """The ledger version that this was read from, 0 before the first write."""


def mark_of(project: str, view: FeatureView) -> str:
    """Return the hash of a view, its schema known, with its entities and sources."""
    parts = {part.key: dict(to_record(project, part).document) for part in with_parts(view)}
    return fingerprint(parts)


class PreparedReader:
    """The prepared generations of a project; ``head`` is the hash of its newest revision."""

    def __init__(self, ledger: LedgerReader, project: str, head: str) -> None:
        self._project, self._head = project, head
        entries = ledger.scan(project, KIND)
        self._given_up = {entry.key for entry in entries if entry.document == _GIVEN_UP}
        known = (entry for entry in entries if entry.key not in self._given_up)
        self._known = {entry.key: _prepared_from(entry.document, entry.version) for entry in known}

    def find(self, view: FeatureView, after: int, since: KnownCommit | None) -> Prepared | None:
        """Return the newest generation that was prepared for a definition, next to the served one.

        One begun before the last commit ``since`` does not count: it may hold rows that were corrected or withdrawn.
        """
        wanted = view.name, after, since
        found = [known for known in self._known.values() if (known.view, known.after, known.since) == wanted]
        if not after:  # after another apply nothing protects the preparations of a view that is not registered
            found = [known for known in found if known.base == self._head]
        mark = mark_of(self._project, view) if found else ""
        fitting = [known for known in found if known.mark == mark]
        return max(fitting, key=lambda known: known.generation, default=None)

    def get(self, view: str, generation: int) -> Prepared | None:
        """Return the preparation of a generation."""
        return self._known.get(generation_key(view, generation))

    def is_under_way(self, view: str, generation: int) -> bool:
        """Tell whether the apply that prepares a generation may still be running."""
        known = self.get(view, generation)
        return known is not None and known.base == self._head

    def is_past(self, view: str, generation: int) -> bool:
        """Tell whether a generation was prepared before another apply."""
        known = self.get(view, generation)
        return generation_key(view, generation) in self._given_up or (known is not None and known.base != self._head)


class Preparations(PreparedReader):
    """The prepared generations, to note and to give up."""

    def __init__(self, ledger: Ledger, project: str, head: str) -> None:
        super().__init__(ledger, project, head)
        self._ledger = ledger

    def give_up(self, view: str, generation: int) -> bool:
        """Note that a prepared generation is about to be removed; False if an apply has just taken it up again."""
        known = self.get(view, generation)
        if known is None:
            return True
        try:
            self._write(known, _GIVEN_UP)
        except LedgerConflictError:
            return False
        key = generation_key(view, generation)
        del self._known[key]
        self._given_up.add(key)
        return True

    def note(self, prepared: Prepared) -> None:
        """Note that an apply prepares a generation; raises LedgerConflictError where another wrote meanwhile."""
        document = asdict(prepared)
        del document["entry"]
        entry = self._write(prepared, document)
        self._known[generation_key(prepared.view, prepared.generation)] = replace(prepared, entry=entry)

    def _write(self, prepared: Prepared, document: dict[str, Any]) -> int:
        key = generation_key(prepared.view, prepared.generation)
        return self._ledger.append(self._project, KIND, key, document, if_version=prepared.entry)


@understood("a prepared generation")
def _prepared_from(document: Mapping[str, Any], entry: int) -> Prepared:
    known = {name: document[name] for name in ("view", "generation", "after", "base", "mark")}
    since = document["since"]
    return Prepared(**known, since=None if since is None else KnownCommit(**since), entry=entry)
