"""A project's definitions at one revision, ready for use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from featurestore_registry.records import Chain, Record, Revision

from featurestore.definitions import Definition, FeatureService, FeatureView, OnDemandFeatureView
from featurestore.errors import NotFoundError, did_you_mean
from featurestore.offline.interface import TableId, TableSchema
from featurestore.online.interface import ViewLayout
from featurestore.online.records.keys import view_prefix
from featurestore.registered.records import KINDS, from_records
from featurestore.types import ValueType


def generation_key(view: str, generation: int) -> str:
    """Return the key of what the ledger remembers of one generation: its watermark, commit, gaps and repair."""
    return f"{view}.{generation}"


D = TypeVar("D", bound=Definition)


@dataclass(frozen=True, slots=True)
class RegisteredView:
    """A feature view as applied: its schema is pinned, its generation names its storage."""

    project: str
    view: FeatureView
    generation: int
    chain: Chain = field(default_factory=Chain, compare=False)
    """The revisions of the project that declares it; empty where they are unknown."""

    @property
    def table(self) -> TableId:
        """The table of its rows offline."""
        return TableId(self.project, self.view.name, self.generation)

    @property
    def ledger_key(self) -> str:
        """Its `generation_key`."""
        return generation_key(self.view.name, self.generation)

    @property
    def online_prefix(self) -> bytes:
        """The prefix of its keys online."""
        return view_prefix(self.project, self.view.name, self.generation)

    @property
    def table_schema(self) -> TableSchema:
        """The columns of its offline table."""
        return TableSchema(tuple(self.view.join_keys.items()), self._stored)

    @property
    def _stored(self) -> tuple[tuple[str, ValueType], ...]:
        return tuple((field.name, field.type) for field in self.view.stored)

    @property
    def layout(self) -> ViewLayout:
        """The layout of its records online."""
        return ViewLayout(
            project=self.project,
            view=self.view.name,
            generation=self.generation,
            join_keys=tuple(sorted(self.view.join_keys.items(), key=lambda pair: pair[0])),
            fields=self._stored,
            ttl_us=self.view.ttl_us,
            has_created=self.view.created_timestamp_field is not None,
            has_buckets=bool(self.view.aggregations),
        )


@dataclass(frozen=True)
class Snapshot:
    """A project's definitions at one revision. It never changes; a newer revision is another snapshot."""

    project: str
    revision: int
    records: tuple[Record, ...]
    functions: Mapping[str, tuple[Callable[[Any], Any], str]] = field(default_factory=dict)
    """Loaded on-demand functions by view name, each with the hash of its text."""
    chain: Chain = field(default_factory=Chain)
    """The hashes of the project's revisions up to this one."""

    @classmethod
    def of(cls, revision: Revision, code: Iterable[Definition] = ()) -> Snapshot:
        """Make the snapshot of a registry revision, with the functions found among ``code``."""
        return cls(revision.project, revision.number, revision.records, chain=revision.chain).with_code(code)

    def with_code(self, code: Iterable[Definition]) -> Snapshot:
        """Return the snapshot with the on-demand functions found among definitions of the feature repo."""
        functions = {
            found.name: (found.function, found.code_hash)
            for found in code
            if isinstance(found, OnDemandFeatureView) and found.function is not None
        }
        return Snapshot(self.project, self.revision, self.records, functions or self.functions, self.chain)

    def build(self) -> None:
        """Build every definition; raises RegistryFormatError for what only a newer version can read."""
        for part in ("views", "on_demand", "services"):
            getattr(self, part)

    @cached_property
    def definitions(self) -> dict[tuple[str, str], Definition]:
        """Every definition by (kind, name); on-demand views without their code."""
        return from_records(self.records)

    @cached_property
    def views(self) -> dict[str, RegisteredView]:
        """Every feature view by name."""
        views = [found for found in self.definitions.values() if isinstance(found, FeatureView)]
        generations = {r.name: r.document["generation"] for r in self.records if r.kind == FeatureView.kind}
        return {view.name: RegisteredView(self.project, view, generations[view.name], self.chain) for view in views}

    def registered(self, name: str) -> RegisteredView:
        """Return one feature view as applied; raises NotFoundError with the closest name."""
        self.get(FeatureView, name)
        return self.views[name]

    @cached_property
    def on_demand(self) -> dict[str, OnDemandFeatureView]:
        """Every on-demand feature view by name."""
        return {d.name: d for d in self.definitions.values() if isinstance(d, OnDemandFeatureView)}

    @cached_property
    def services(self) -> dict[str, FeatureService]:
        """Every feature service by name."""
        return {d.name: d for d in self.definitions.values() if isinstance(d, FeatureService)}

    def users_of(self, key: str) -> tuple[str, ...]:
        """Return the ``kind:name`` of every record that needs ``key``, directly or through others, sorted."""
        found: set[str] = set()
        frontier = {key}
        while frontier:
            frontier = {r.key for r in self.records if frontier & set(r.depends_on)} - found
            found |= frontier
        return tuple(sorted(found))

    def function(self, name: str) -> Callable[[Any], Any] | None:
        """Return the loaded code of an on-demand view, or None where it differs from what was applied."""
        found = self.functions.get(name)
        if found is None or found[1] != self.on_demand[name].code_hash:
            return None
        return found[0]

    def get(self, kind: type[D], name: str) -> D:
        """Return one definition; raises NotFoundError with the closest name."""
        found = self.definitions.get((kind.kind, name))
        if found is None:
            known = [n for k, n in self.definitions if k == kind.kind]
            hint = did_you_mean(name, known) or f"Project {self.project!r} has none: declare one, and run `fs apply`."
            what = kind.kind.replace("_", " ").replace("on demand", "on-demand")
            raise NotFoundError(f"There is no {what} {name!r}.", hint=hint, kind=kind.kind, name=name)
        assert isinstance(found, kind)
        return found

    def list(self, kind: str | None = None) -> list[Definition]:
        """Return all definitions, or those of one kind, sorted by kind and name."""
        kinds = list(KINDS)
        pairs = sorted(self.definitions.items(), key=lambda pair: (kinds.index(pair[0][0]), pair[0][1]))
        return [definition for (found, _), definition in pairs if kind in (None, found)]
