"""A project's definitions as the catalog shows them: immutable, one for each revision, kept in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from featurestore_registry.catalog.reading import objects
from featurestore_registry.documents import MONITOR
from featurestore_registry.records import Chain, Record, RecordField, Revision

VIEW, ON_DEMAND, SERVICE, ENTITY = "feature_view", "on_demand_feature_view", "feature_service", "entity"
SOURCES = ("source", "push_source", "request_source")
OFFERS_FEATURES = (VIEW, ON_DEMAND)
"""Kinds whose fields are features. Those of a service are features of its views."""
ORDER = (VIEW, ON_DEMAND, SERVICE, ENTITY, *SOURCES, MONITOR)
"""Kinds in the order in which pages list them; others come after them."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a view."""

    view: Record
    field: RecordField
    deprecated: str = ""

    @property
    def name(self) -> str:
        """Its name in its view."""
        return self.field.name

    @property
    def reference(self) -> str:
        """How programs ask for it."""
        return f"{self.view.name}:{self.field.name}"


class Project:
    """The definitions of one revision, and how they refer to each other."""

    def __init__(self, revision: Revision) -> None:
        self.name = revision.project
        self.number = revision.number
        self.chain: Chain = revision.chain
        self.records: Mapping[str, Record] = MappingProxyType({record.key: record for record in revision.records})

    @property
    def head(self) -> str:
        """The hash of the revision."""
        return self.chain.head

    @cached_property
    def kinds(self) -> Mapping[str, int]:
        """How many records there are of each kind, in the order of `ORDER`."""
        counts = Counter(record.kind for record in self.records.values())
        rest = sorted(counts.keys() - {*ORDER})
        return {kind: counts[kind] for kind in (*ORDER, *rest) if counts[kind]}

    def of_kind(self, *kinds: str) -> list[Record]:
        """Return the records of some kinds, by kind and name."""
        return [record for record in self.records.values() if record.kind in kinds]

    def find(self, kind: str, name: str) -> Record | None:
        """Return a record."""
        return self.records.get(f"{kind}:{name}")

    @cached_property
    def used_by(self) -> Mapping[str, tuple[Record, ...]]:
        """By ``kind:name``: the records that need it, themselves."""
        found: dict[str, list[Record]] = {}
        for record in self.records.values():
            for key in dict.fromkeys(record.depends_on):
                found.setdefault(key, []).append(record)
        return {key: tuple(records) for key, records in found.items()}

    def users(self, key: str) -> list[Record]:
        """Return all records that need one, through others too: the nearest first."""
        found: dict[str, Record] = {}
        wave = [key]
        while wave:
            wave = [
                record.key
                for each in wave
                for record in self.used_by.get(each, ())
                if record.key not in found and record.key != key and not found.update({record.key: record})
            ]
        return list(found.values())

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """All features, by view and in its order."""
        return tuple(feature for record in self.of_kind(*OFFERS_FEATURES) for feature in features_of(record))

    @cached_property
    def feature_counts(self) -> Mapping[str, int]:
        """How many features each view offers, by its key."""
        return Counter(feature.view.key for feature in self.features)


def features_of(record: Record) -> tuple[Feature, ...]:
    """Return the features of a view."""
    parts = objects(record.document.get("schema"))
    deprecated = {str(part.get("name")): str(part.get("deprecated") or "") for part in parts}
    return tuple(Feature(record, field, deprecated.get(field.name, "")) for field in record.fields)
