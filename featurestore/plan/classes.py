"""The classes of change, and the class of each change of a definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from featurestore.definitions import (
    Definition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
    RequestSource,
)
from featurestore.registered.records import selection_document
from featurestore.types.values import is_widening, to_json


class ChangeClass(IntEnum):
    """How much a change demands from its users; a greater class demands more."""

    METADATA = 0
    """Descriptions, owners, tags."""
    COMPATIBLE = 1
    """Everything that worked keeps working, with the same values."""
    REBUILD = 2
    """Values change; stored data and models made from the old ones should be made again."""
    BREAKING = 3
    """Some request fails or changes its meaning; needs ``--allow-breaking``."""
    DESTRUCTIVE = 4
    """Data is deleted; needs ``--allow-destroy``."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the applied definition and the wanted one."""

    what: str
    before: Any
    after: Any
    change_class: ChangeClass
    new_generation: bool = False
    """The stored data cannot be read by the new definition: the view starts a new table and new records."""


def differences(before: Definition, after: Definition) -> list[Difference]:
    """Return what differs between two definitions of one kind and name, each with its class."""
    found = [
        Difference(name, getattr(before, name), getattr(after, name), ChangeClass.METADATA)
        for name in ("description", "owner", "tags")
        if getattr(before, name) != getattr(after, name)
    ]
    return found + _COMPARERS[type(after)](before, after)


def _compare(what: str, before: Any, after: Any, change_class: ChangeClass, **more: Any) -> list[Difference]:
    return [] if before == after else [Difference(what, before, after, change_class, **more)]


def _entity(before: Entity, after: Entity) -> list[Difference]:
    found = _compare("join_keys", before.join_keys, after.join_keys, ChangeClass.BREAKING)
    return found or _compare("order of join_keys", [*before.join_keys], [*after.join_keys], ChangeClass.COMPATIBLE)


def _parquet(before: ParquetSource, after: ParquetSource) -> list[Difference]:
    found = _compare("path", before.path, after.path, ChangeClass.REBUILD)
    for name in ("timestamp_field", "created_timestamp_field"):
        found += _compare(name, getattr(before, name), getattr(after, name), ChangeClass.REBUILD)
    lateness = before.allowed_lateness, after.allowed_lateness
    return found + _compare("allowed_lateness", *lateness, ChangeClass.COMPATIBLE)


def _push(before: PushSource, after: PushSource) -> list[Difference]:
    return _compare("batch_source", before.batch_source.name, after.batch_source.name, ChangeClass.REBUILD)


def _request(before: RequestSource, after: RequestSource) -> list[Difference]:
    return _fields(before.fields, after.fields, added=ChangeClass.BREAKING, removed=ChangeClass.COMPATIBLE)


def _view(before: FeatureView, after: FeatureView) -> list[Difference]:
    found = _fields(before.stored, after.stored, removed=ChangeClass.BREAKING, stored=True)
    found += _compare("join_keys", before.join_keys, after.join_keys, ChangeClass.BREAKING, new_generation=True)
    entities = [e.name for e in before.entities], [e.name for e in after.entities]
    found += _compare("entities", *entities, ChangeClass.COMPATIBLE)
    sources = [s.key for s in before.sources], [s.key for s in after.sources]
    # A source that now also takes pushes still holds the same rows.
    is_same_data = [s.batch_source.name for s in before.sources] == [s.batch_source.name for s in after.sources]
    found += _compare("source", *sources, ChangeClass.COMPATIBLE if is_same_data else ChangeClass.REBUILD)
    found += _compare("sql", before.sql, after.sql, ChangeClass.REBUILD)
    longer = before.ttl is not None and (after.ttl is None or after.ttl > before.ttl)
    # A longer ttl brings back rows whose records may already have expired physically.
    found += _compare("ttl", before.ttl, after.ttl, ChangeClass.REBUILD if longer else ChangeClass.COMPATIBLE)
    online = ChangeClass.COMPATIBLE if after.online else ChangeClass.BREAKING
    return found + _compare("online", before.online, after.online, online)


def _on_demand(before: OnDemandFeatureView, after: OnDemandFeatureView) -> list[Difference]:
    found = _fields(before.fields, after.fields, removed=ChangeClass.BREAKING)
    found += _compare("mode", before.mode, after.mode, ChangeClass.REBUILD)
    found += _compare("code", before.code, after.code, ChangeClass.REBUILD)
    return found + _compare("sources", _inputs(before), _inputs(after), ChangeClass.REBUILD)


def _inputs(view: OnDemandFeatureView) -> list[Any]:
    return [
        source.name if isinstance(source, RequestSource) else _short(selection_document(source))
        for source in view.inputs
    ]


def _service(before: FeatureService, after: FeatureService) -> list[Difference]:
    old, new = _service_features(before), _service_features(after)
    if old == new:
        return []
    kept = [feature for feature in new if feature in old]
    # A model reads its features by position: only additions at the end do not move the others.
    grew = kept == old and new[: len(old)] == old
    return [Difference("features", old, new, ChangeClass.COMPATIBLE if grew else ChangeClass.BREAKING)]


def _service_features(service: FeatureService) -> list[str]:
    found = []
    for read in service.features:
        by = "" if isinstance(read, OnDemandFeatureView) or not read.columns else f" by {read.columns}"
        origin = "" if isinstance(read, OnDemandFeatureView) or read.view.name == read.name else f" ({read.view.name})"
        found += [f"{read.name}:{field.name}{origin}{by}" for field in read.features]
    return found


def _short(document: dict[str, Any]) -> str:
    origin = f" ({document['view']})" if document["view"] != document["name"] else ""
    renamed = f" by {document['join_keys']}" if document["join_keys"] else ""
    return f"{document['name']}[{', '.join(document['features'])}]{origin}{renamed}"


def _fields(
    before: Sequence[Field],
    after: Sequence[Field],
    *,
    removed: ChangeClass,
    added: ChangeClass = ChangeClass.COMPATIBLE,
    stored: bool = False,
) -> list[Difference]:
    old, new = {field.name: field for field in before}, {field.name: field for field in after}
    found = [
        Difference(f"feature {name}", str(old[name].type), None, removed, stored) for name in old if name not in new
    ]
    found += [Difference(f"feature {name}", None, str(new[name].type), added) for name in new if name not in old]
    for name in [name for name in new if name in old]:
        one, other = old[name], new[name]
        if one.type != other.type:
            wider = is_widening(one.type, other.type)
            change = ChangeClass.COMPATIBLE if wider else ChangeClass.BREAKING
            found.append(Difference(f"type of {name}", str(one.type), str(other.type), change, stored and not wider))
        defaults = to_json(one.type, one.default), to_json(other.type, other.default)
        if repr(defaults[0]) != repr(defaults[1]):  # 0.0 and -0.0 are equal
            found.append(Difference(f"default of {name}", *defaults, ChangeClass.COMPATIBLE))
        for about in ("description", "tags"):
            texts = getattr(one, about), getattr(other, about)
            found += _compare(f"{about} of {name}", *texts, ChangeClass.METADATA)
    order = [name for name in old if name in new], [name for name in new if name in old]
    return found + _compare("order of features", *order, ChangeClass.COMPATIBLE)


_COMPARERS: dict[type[Definition], Callable[[Any, Any], list[Difference]]] = {
    Entity: _entity,
    ParquetSource: _parquet,
    PushSource: _push,
    RequestSource: _request,
    FeatureView: _view,
    OnDemandFeatureView: _on_demand,
    FeatureService: _service,
}

DELETION_CLASS: dict[type[Definition], ChangeClass] = {
    Entity: ChangeClass.COMPATIBLE,
    ParquetSource: ChangeClass.COMPATIBLE,
    PushSource: ChangeClass.BREAKING,
    RequestSource: ChangeClass.COMPATIBLE,
    FeatureView: ChangeClass.DESTRUCTIVE,
    OnDemandFeatureView: ChangeClass.BREAKING,
    FeatureService: ChangeClass.BREAKING,
}
"""Class of deleting a definition. Entities and sources go only when nothing refers to them any more."""
