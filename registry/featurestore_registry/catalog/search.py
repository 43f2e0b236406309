"""Search over a project's definitions and features: in memory, on the server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from featurestore_registry.catalog.project import OFFERS_FEATURES, ORDER, Project
from featurestore_registry.catalog.words import MOST_ASKED, brief
from featurestore_registry.documents import MONITOR
from featurestore_registry.records import Record, RecordField

PER_PAGE = 50
MOST_TERMS = 8
MOST_FACETS = 12
"""Values of a facet that are offered, the most frequent."""
FACETS = ("kind", "owner", "type", "tag")


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that can be found."""

    kind: str
    name: str
    view: str
    """The view of a feature; empty for a definition."""
    view_kind: str
    description: str
    owner: str
    types: tuple[str, ...]
    tags: tuple[str, ...]
    """As ``name=value``."""
    columns: tuple[str, ...]
    """What it is computed from."""

    @property
    def target(self) -> tuple[str, ...]:
        """The address of its page, below the project."""
        return ("feature", self.view_kind, self.view, self.name) if self.view else (self.kind, self.name)

    def facet(self, name: str) -> tuple[str, ...]:
        """Return its values of a facet."""
        if name == "type":
            return self.types
        if name == "tag":
            return self.tags
        value = self.kind if name == "kind" else self.owner
        return (value,) if value else ()


class Found(NamedTuple):
    """A page of what was found, best first."""

    total: int
    entries: Sequence[Entry]
    facets: Mapping[str, Sequence[tuple[str, int]]]
    terms: tuple[str, ...]


class Index:
    """Entries, and the texts that a search reads, put together once."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = sorted(entries, key=lambda entry: bool(entry.view))  # definitions before their features
        self._names = [entry.name.casefold() for entry in self.entries]
        self._texts = [_text(entry) for entry in self.entries]

    def ranked(self, terms: Sequence[str], wanted: Mapping[str, str]) -> tuple[Sequence[Entry], ...]:
        """Return the entries that hold every term and have the wanted values of facets.

        First the one of that name, then names that begin with the first term, that hold it, and the others.
        """
        found: Iterable[int] = range(len(self.entries))
        for term in terms:
            found = [at for at in found if term in self._texts[at]]
        for facet, value in wanted.items():
            if value:
                found = [at for at in found if value in self.entries[at].facet(facet)]
        if not terms:
            return [self.entries[at] for at in found], (), (), ()
        found, names, whole, first = list(found), self._names, " ".join(terms), terms[0]
        exact = [at for at in found if names[at] == whole]
        begins = [at for at in found if names[at].startswith(first) and names[at] != whole]
        holds = [at for at in found if first in names[at] and not names[at].startswith(first)]
        rest = [at for at in found if first not in names[at]]
        if len(terms) > 1:  # names that hold every term come before those that hold one
            holds.sort(key=lambda at: not all(term in names[at] for term in terms))
        return tuple([self.entries[at] for at in part] for part in (exact, begins, holds, rest))


def search(indexes: Iterable[Index], query: str, wanted: Mapping[str, str], page: int = 1) -> Found:
    """Return a page of what some indexes hold, the best of all first."""
    terms = tuple(dict.fromkeys(query.casefold().split()))[:MOST_TERMS]
    parts = [index.ranked(terms, wanted) for index in indexes]
    found = [entry for ranks in zip(*parts, strict=True) for rank in ranks for entry in rank]
    return Found(len(found), found[(page - 1) * PER_PAGE : page * PER_PAGE], _facets(found), terms)


def _facets(found: Sequence[Entry]) -> dict[str, Sequence[tuple[str, int]]]:
    counts = {
        "kind": Counter([entry.kind for entry in found]),
        "owner": Counter([entry.owner for entry in found if entry.owner]),
        "type": Counter(chain.from_iterable([entry.types for entry in found])),
        "tag": Counter(chain.from_iterable([entry.tags for entry in found])),
    }
    return {
        name: sorted(count.most_common(MOST_FACETS), key=lambda each: (-each[1], each[0]))
        for name, count in counts.items()
    }


def marked(text: str, terms: Sequence[str]) -> list[tuple[str, bool]]:
    """Return a text, or how it begins, in pieces, each with whether it is one of the words that were searched for."""
    text = brief(text)
    if not terms:
        return [(text, False)]
    pattern = re.compile("|".join(re.escape(term) for term in sorted(terms, key=len, reverse=True)), re.IGNORECASE)
    pieces, end = list[tuple[str, bool]](), 0
    for hit in pattern.finditer(text):
        pieces += [(text[end : hit.start()], False), (hit[0], True)]
        end = hit.end()
    return [piece for piece in [*pieces, (text[end:], False)] if piece[0]]


def entries_of(project: Project) -> list[Entry]:
    """Return what can be found of a project's definitions: themselves, and their features."""
    order = {kind: position for position, kind in enumerate(ORDER)}
    records = sorted(project.records.values(), key=lambda record: (order.get(record.kind, len(order)), record.key))
    return [entry for record in records for entry in _entries(record)]


def entry_of(kind: str, name: str, description: str, owner: str, columns: Sequence[str]) -> Entry:
    """Return what can be found of something that is no definition."""
    return Entry(kind, name, "", "", description, brief(owner, MOST_ASKED), (), (), tuple(columns))


def _entries(record: Record) -> list[Entry]:
    own = Entry(
        record.kind,
        record.name,
        "",
        "",
        record.description,
        brief(record.owner, MOST_ASKED),
        (),
        _tags(record.tags),
        (*(field.name for field in record.fields), *_watched(record)),
    )
    offered = record.fields if record.kind in OFFERS_FEATURES else ()
    return [own, *(_feature(record, field) for field in offered)]


def _watched(record: Record) -> tuple[str, ...]:
    """Return what a monitor watches: whoever looks for a service finds its monitors."""
    return tuple(key.partition(":")[2] for key in record.depends_on) if record.kind == MONITOR else ()


def _feature(record: Record, field: RecordField) -> Entry:
    return Entry(
        "feature",
        field.name,
        record.name,
        record.kind,
        field.description,
        brief(record.owner, MOST_ASKED),
        (field.type,),
        _tags(field.tags),
        field.inputs,
    )


def _tags(tags: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(brief(f"{name}={value}", MOST_ASKED) for name, value in tags.items())


def _text(entry: Entry) -> str:
    parts = (
        entry.name,
        f"{entry.view}:{entry.name}" if entry.view else "",
        entry.description,
        entry.owner,
        entry.kind.replace("_", " "),
        *entry.types,
        *entry.tags,
        *entry.columns,
    )
    return "\n".join(parts).casefold()
