"""Who changed what: the applies of a project, newest first, and for each definition the changes that touched it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from featurestore_registry.catalog.words import to_us
from featurestore_registry.interface import DefinitionsReader
from featurestore_registry.records import Record, RevisionInfo

MOST_REVISIONS = 500
"""At most so many of the newest applies are kept."""
MOST_FIELDS = 20_000
"""At most about so many fields of definitions that applies wrote are kept, 25 MB; one apply is always whole."""


@dataclass(frozen=True, slots=True)
class Touch:
    """What one apply did to one definition."""

    apply: RevisionInfo
    kind: str
    name: str
    before: Record | None
    after: Record | None
    is_first_known: bool
    """Whether what was before is not kept here."""

    @property
    def key(self) -> str:
        """``kind:name``."""
        return f"{self.kind}:{self.name}"

    @property
    def what(self) -> Literal["created", "changed", "deleted"]:
        """What happened to it."""
        if self.after is None:
            return "deleted"
        return "changed" if self.before is not None or self.is_first_known else "created"

    @property
    def at_us(self) -> int:
        """When, by the registry's clock."""
        return to_us(self.apply.applied_at)


class History:
    """The newest applies of a project, as of one revision."""

    def __init__(self, applies: Sequence[RevisionInfo]) -> None:
        """``applies`` are the newest first, one for each revision without a gap."""
        self.applies = tuple(_bounded(applies))
        self.is_whole = bool(self.applies) and self.applies[-1].number == 1
        """Whether it reaches back to the first revision."""
        self._touches: dict[str, list[Touch]] = {}
        last: dict[str, Record | None] = {}
        for info in reversed(self.applies):
            for change in info.changes:
                key = f"{change.kind}:{change.name}"
                is_first = key not in last and not self.is_whole
                touch = Touch(info, change.kind, change.name, last.get(key), change.record, is_first)
                self._touches.setdefault(key, []).insert(0, touch)
                last[key] = change.record

    def of(self, key: str) -> Sequence[Touch]:
        """Return what touched a definition, newest first."""
        return self._touches.get(key, ())

    def touches(self) -> Iterator[Touch]:
        """Yield everything, newest apply first; of one apply in its order."""
        at: Mapping[tuple[int, str], Touch] = {
            (touch.apply.number, key): touch for key, found in self._touches.items() for touch in found
        }
        for info in self.applies:
            for change in info.changes:
                yield at[info.number, f"{change.kind}:{change.name}"]


def read_history(definitions: DefinitionsReader, project: str, hashes: Sequence[str], known: History | None) -> History:
    """Return the history up to the last of some hashes; only what ``known`` lacks is read where that still holds."""
    old = known.applies if known is not None else ()
    if old and old[0].number <= len(hashes) and hashes[old[0].number - 1] == old[0].hash:
        missing = len(hashes) - old[0].number
    else:
        old, missing = (), MOST_REVISIONS
    if missing == 0 and known is not None:
        return known
    new, limit = list[RevisionInfo](), min(missing, MOST_REVISIONS, 10)
    while True:  # a few first: all at once may be far more than is kept
        found = definitions.history(project, limit=limit)
        new = [info for info in found if info.number <= len(hashes)]
        if limit >= min(missing, MOST_REVISIONS) or len(found) < limit or len(_bounded(new)) < len(new):
            return History([*new, *old] if len(new) == missing else new)
        limit = min(missing, MOST_REVISIONS, 7 * limit)


def _bounded(applies: Sequence[RevisionInfo]) -> Sequence[RevisionInfo]:
    """Return the newest applies that are kept."""
    fields = 0
    for number, info in enumerate(applies[:MOST_REVISIONS]):
        fields += sum(1 + (len(change.record.fields) if change.record else 0) for change in info.changes)
        if number and fields > MOST_FIELDS:
            return applies[:number]
    return applies[:MOST_REVISIONS]
