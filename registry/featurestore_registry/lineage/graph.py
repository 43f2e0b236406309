"""The graph of a project: from the columns of its sources to the programs that read its features.

Objects are joined by what they depend on. Between columns each edge has a kind: ``copied``, the value is that of the
column, unchanged; ``influences``, it is computed with it; ``rows``, from a column to a view: the column decides which
rows the view has, or their keys and times, and so may change any of its features.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from featurestore_registry.documents import CONSUMER, DELETED, TRAINING_SET
from featurestore_registry.errors import RecordNotFoundError, did_you_mean
from featurestore_registry.interface import LedgerReader
from featurestore_registry.lineage.origins import ALL
from featurestore_registry.lineage.views import Column, Definitions, EdgeKind
from featurestore_registry.records import Record

Direction = Literal["upstream", "downstream"]


@dataclass(frozen=True, slots=True)
class LineageNode:
    """An object, or a column of one."""

    id: str
    """``kind:name`` of an object, with ``.column`` for a column of it, in lower case."""
    kind: str
    """Of an object its kind; else ``feature`` or ``column``."""
    name: str
    """As people write it: ``view``, ``view:feature``, ``source.column``; the column ``*`` is any."""


@dataclass(frozen=True, slots=True)
class LineageEdge:
    """A step from one node to the next."""

    source: str
    """The id of what comes first."""
    target: str
    """The id of what is made of it, or reads it."""
    kind: EdgeKind
    """``copied``, ``influences``, ``rows``; ``reads`` between objects, ``part`` from a view to its feature."""
    is_sure: bool = True
    """Whether the definitions show it; else they may also be read in another way."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """What is before and after some nodes of a graph."""

    of: tuple[LineageNode, ...]
    """What was asked for."""
    nodes: tuple[LineageNode, ...]
    """All nodes, ``of`` first, then by their distance."""
    edges: tuple[LineageEdge, ...]
    """From what comes first."""

    def to_dict(self) -> dict[str, Any]:
        """Return nodes and edges as JSON has them."""
        return {
            "of": [node.id for node in self.of],
            "nodes": [{"id": node.id, "kind": node.kind, "name": node.name} for node in self.nodes],
            "edges": [
                {"from": edge.source, "to": edge.target, "kind": edge.kind, "is_sure": edge.is_sure}
                for edge in self.edges
            ],
        }


class Graph:
    """The graph of one revision; columns are looked at when they are asked for."""

    def __init__(
        self,
        records: Iterable[Record],
        *,
        training_sets: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        consumers: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """``training_sets`` are the references of each by its name, ``consumers`` the services that each reads."""
        self._definitions = Definitions(records, training_sets or {}, consumers or {})
        self._lock = threading.RLock()  # what is looked at is kept
        self._into: dict[str, list[LineageEdge]] = {}
        self._out_of: dict[str, dict[str, list[LineageEdge]]] = {}

    @classmethod
    def read(cls, records: Iterable[Record], ledger: LedgerReader, project: str) -> Graph:
        """Return the graph of some records and of the ledger's training sets and consumers."""

        def kept(kind: str, part: str) -> dict[str, Any]:
            entries = (entry for entry in ledger.scan(project, kind) if entry.document not in DELETED)
            return {entry.key: entry.document.get(part) or () for entry in entries}

        return cls(records, training_sets=kept(TRAINING_SET, "references"), consumers=kept(CONSUMER, "services"))

    def node(self, key: str) -> LineageNode:
        """Return the node of an id."""
        owner, column = _split(key)
        kind, _, name = owner.partition(":")
        if not column:
            return LineageNode(key, kind, name)
        shown = self._definitions.spelled(owner, column)
        if kind in ("feature_view", "on_demand_feature_view"):
            return LineageNode(key, "feature", f"{name}:{shown}")
        return LineageNode(key, "column", f"{name}.{shown}")

    def find(self, name: str) -> str:
        """Return the id of what people call so; raises RecordNotFoundError with the closest name.

        ``view``, ``view:feature`` or ``view.feature``, ``source``, ``source.column``, a service, an entity, and where
        several kinds share a name ``kind:name``, such as ``training_set:NAME``.
        """
        with self._lock:
            return self._find(name)

    def _find(self, name: str) -> str:
        known = self._definitions
        if (found := known.objects_called(name)) and len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(repr(key) for key in found)
            raise RecordNotFoundError(f"Several things are called {name!r}.", hint=f"Write one of {listed}.", name=name)
        owner, column = "", ""
        for before, _, after in (name.rpartition(":"), name.partition(".")):
            for key in known.objects_called(before) if after else ():
                if known.has_column(key, after):
                    return f"{key}.{after.lower()}"
                owner, column = before, after
        if owner:
            hint = did_you_mean(column, known.columns_of(owner))
            raise RecordNotFoundError(f"{owner!r} has no column or feature {column!r}.", hint=hint, name=name)
        hint, features = did_you_mean(name, known.names()), known.features_like(name)
        if features and not hint.startswith("Did"):
            hint = f"Did you mean {' or '.join(map(repr, features[:3]))}?"
        raise RecordNotFoundError(f"Nothing is called {name!r}.", hint=hint, name=name)

    def lineage(
        self, starts: Iterable[str], *, up: int | None = None, down: int | None = None, columns: bool = False
    ) -> Lineage:
        """Return what is at most ``up`` steps before and ``down`` steps after some nodes; None: all.

        With ``columns`` the columns of objects, too; where a column is asked for they always are.
        """
        with self._lock:
            return self._lineage(list(dict.fromkeys(starts)), up, down, columns)

    def _lineage(self, given: list[str], up: int | None, down: int | None, columns: bool) -> Lineage:
        columns = columns or any(_split(key)[1] for key in given)
        begin = list(given)
        if columns:
            begin += [f"{key}.{column}" for key in given for column in self._definitions.columns(key)]
        distance = dict.fromkeys(begin, 0)
        edges: dict[LineageEdge, None] = {}
        for limit, step in ((up, self.before), (down, self.after)):
            self._walk(begin, limit, step, columns, distance, edges)
        nodes = tuple(self.node(key) for key in sorted(distance, key=distance.__getitem__))
        return Lineage(tuple(self.node(key) for key in given), nodes, tuple(edges))

    def _walk(
        self,
        begin: Sequence[str],
        limit: int | None,
        step: Callable[[str, bool], Iterable[LineageEdge]],
        columns: bool,
        distance: dict[str, int],
        edges: dict[LineageEdge, None],
    ) -> None:
        wave, seen, steps = list(begin), set(begin), 0
        while wave and (limit is None or steps < limit):
            steps += 1
            found: dict[str, None] = {}
            for key in wave:
                for edge in step(key, columns):
                    edges[edge] = None
                    other = edge.source if edge.target == key else edge.target
                    if other not in seen:
                        found[other] = None
                        seen.add(other)
            for key in found:
                distance.setdefault(key, steps)
            wave = list(found)

    def columns_read(self, owner: str) -> dict[str, list[str]]:
        """Return, by the id of each column that is made of columns of an object, the names of these, as `lineage`."""
        found: dict[str, list[str]] = {}
        with self._lock:
            for source, edges in self._edges_out_of(owner).items():
                for edge in edges:
                    if edge.kind in ("copied", "influences"):
                        found.setdefault(edge.target, []).append(self._definitions.spelled(*_split(source)))
        return found

    def before(self, key: str, columns: bool = True) -> list[LineageEdge]:
        """Return the edges that lead to a node."""
        owner, column = _split(key)
        if column:
            part = [LineageEdge(owner, key, "part")] if self._definitions.is_view(owner) else []
            return [*(edge for edge in self._edges_into(owner) if edge.target == key), *part]
        made = [LineageEdge(other, key, "reads") for other in self._definitions.needs(owner)]
        return made + ([edge for edge in self._edges_into(owner) if edge.target == key] if columns else [])

    def after(self, key: str, columns: bool = True) -> list[LineageEdge]:
        """Return the edges that lead from a node."""
        owner, column = _split(key)
        if not column:
            made = [LineageEdge(key, other, "reads") for other in self._definitions.users(owner)]
            if columns and self._definitions.is_view(owner):
                made += [LineageEdge(key, f"{key}.{each}", "part") for each in self._definitions.columns(owner)]
            return made
        out = self._edges_out_of(owner)
        found = list(out.get(key, ()))
        if column != ALL:
            sure = {edge.target for edge in found}
            anything = (edge for edge in out.get(f"{owner}.{ALL}", ()) if edge.target not in sure)
            found += [LineageEdge(key, edge.target, edge.kind, is_sure=False) for edge in anything]
        return found

    def _edges_into(self, owner: str) -> list[LineageEdge]:
        if owner not in self._into:
            made = (
                LineageEdge(_key(c.source), _key(c.target), c.kind, c.is_sure) for c in self._definitions.made_of(owner)
            )
            self._into[owner] = list(dict.fromkeys(made))
        return self._into[owner]

    def _edges_out_of(self, owner: str) -> dict[str, list[LineageEdge]]:
        if owner not in self._out_of:
            found: dict[str, list[LineageEdge]] = {}
            for user in self._definitions.users(owner):
                for edge in self._edges_into(user):
                    if _split(edge.source)[0] == owner:
                        found.setdefault(edge.source, []).append(edge)
            self._out_of[owner] = found
        return self._out_of[owner]


def _key(column: Column) -> str:
    return f"{column[0]}.{column[1]}" if column[1] else column[0]


def _split(key: str) -> tuple[str, str]:
    """Return the object of an id and its column, empty for an object: names of objects have no dot."""
    owner, _, column = key.partition(".")
    return owner, column
