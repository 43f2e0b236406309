"""The classes of change, and the class of each change of a definition."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

from featurestore.definitions import (
    Definition,
    Entity,
    FeatureSelection,
    FeatureService,
    FeatureView,
    Field,
    Monitor,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
    RequestSource,
)
from featurestore.definitions.aggregation import Window
from featurestore.definitions.on_demand import input_names
from featurestore.following.held import not_held
from featurestore.registered.monitors import check_document
from featurestore.types.times import duration_text
from featurestore.types.values import is_widening, to_json
from featurestore.windows.layout import Layout, layout_of


class ChangeClass(IntEnum):
    """How much a change demands from its users; a greater class demands more."""

    METADATA = 0
    """Descriptions, owners, tags, what is deprecated, statistics, expectations, what is logged and monitored."""
    COMPATIBLE = 1
    """Everything that worked keeps working, with the same values."""
    REBUILD = 2
    """Values change; stored data and models made from the old ones should be made again."""
    BREAKING = 3
    """Some request fails or changes its meaning; needs ``--allow-breaking``."""
    DESTRUCTIVE = 4
    """Data is deleted; needs ``--allow-destroy``."""


FLAGS = {ChangeClass.BREAKING: "--allow-breaking", ChangeClass.DESTRUCTIVE: "--allow-destroy"}
"""The flag that a change of a class needs."""


DESCRIBING = "description", "owner", "tags", "deprecated"
"""Parts of every definition that no value depends on."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference between the applied definition and the wanted one."""

    what: str
    before: Any
    after: Any
    change_class: ChangeClass
    new_generation: bool = False
    """The stored data cannot be read by the new definition: the view starts a new table and new records."""
    is_held: bool = False
    """Values change, and what is stored holds the new ones too: nothing has to be run."""

    @property
    def needs_rebuild(self) -> bool:
        """Whether stored data has to be made again."""
        return self.change_class is ChangeClass.REBUILD and not self.is_held


def differences(before: Definition, after: Definition, held: tuple[Layout, ...] | None = None) -> list[Difference]:
    """Return what differs between two definitions of one kind and name, each with its class.

    ``held`` are the layouts of a windowed view's records (`held_layouts`), by default that of its definition.
    """
    compare, _ = _RULES[type(after)]
    if isinstance(before, FeatureView) and before.aggregations and isinstance(after, FeatureView):
        if held is None:
            held = (layout_of(before)[0],) if before.online else ()
        compare = partial(_view, held=held if after.online else ())
    return _attributes(before, after, ChangeClass.METADATA, *DESCRIBING) + compare(before, after)


def deletion_class(gone: Definition) -> ChangeClass:
    """Return the class of deleting a definition."""
    return _RULES[type(gone)][1]


def _attributes(before: Definition, after: Definition, change_class: ChangeClass, *names: str) -> list[Difference]:
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    return [found for name, old, new in pairs for found in _compare(name, old, new, change_class)]


def _compare(what: str, before: Any, after: Any, change_class: ChangeClass, **more: Any) -> list[Difference]:
    return [] if before == after else [Difference(what, before, after, change_class, **more)]


def _entity(before: Entity, after: Entity) -> list[Difference]:
    found = _compare("join_keys", before.join_keys, after.join_keys, ChangeClass.BREAKING)
    return found or _compare("order of join_keys", [*before.join_keys], [*after.join_keys], ChangeClass.COMPATIBLE)


def _parquet(before: ParquetSource, after: ParquetSource) -> list[Difference]:
    read = "path", "timestamp_field", "created_timestamp_field"
    found = _attributes(before, after, ChangeClass.REBUILD, *read)
    return found + _attributes(before, after, ChangeClass.COMPATIBLE, "allowed_lateness")


def _push(before: PushSource, after: PushSource) -> list[Difference]:
    return _compare("batch_source", before.batch_source.name, after.batch_source.name, ChangeClass.REBUILD)


def _request(before: RequestSource, after: RequestSource) -> list[Difference]:
    return _fields(before.fields, after.fields, added=ChangeClass.BREAKING, removed=ChangeClass.COMPATIBLE)


def _view(before: FeatureView, after: FeatureView, held: tuple[Layout, ...] = ()) -> list[Difference]:
    found = (
        _events(before, after, held)
        if before.aggregations or after.aggregations
        else _fields(before.stored, after.stored, removed=ChangeClass.BREAKING, stored=True)
    )
    found += _compare("join_keys", before.join_keys, after.join_keys, ChangeClass.BREAKING, new_generation=True)
    entities = [e.name for e in before.entities], [e.name for e in after.entities]
    found += _compare("entities", *entities, ChangeClass.COMPATIBLE)
    sources = [s.key for s in before.sources], [s.key for s in after.sources]
    # A source that now also takes pushes still holds the same rows.
    is_same_data = [s.batch_source.name for s in before.sources] == [s.batch_source.name for s in after.sources]
    found += _compare("source", *sources, ChangeClass.COMPATIBLE if is_same_data else ChangeClass.REBUILD)
    found += _attributes(before, after, ChangeClass.REBUILD, "sql")
    found += _attributes(before, after, ChangeClass.METADATA, "statistics", "expect", "on_failure")
    longer = before.ttl is not None and (after.ttl is None or after.ttl > before.ttl)
    # A longer ttl brings back rows whose records may already have expired physically.
    found += _attributes(before, after, ChangeClass.REBUILD if longer else ChangeClass.COMPATIBLE, "ttl")
    return found + _attributes(
        before, after, ChangeClass.COMPATIBLE if after.online else ChangeClass.BREAKING, "online"
    )


def _events(before: FeatureView, after: FeatureView, held: tuple[Layout, ...]) -> list[Difference]:
    """Return what differs between the features of two views of which one, at least, has windows."""
    if not (before.aggregations and after.aggregations):  # rows that are values become events, or the other way round
        kinds = ["windows over events" if view.aggregations else "columns of rows" for view in (before, after)]
        found = [Difference("features are", kinds[0], kinds[1], ChangeClass.BREAKING, new_generation=True)]
        return found + _fields(before.features, after.features, removed=ChangeClass.BREAKING)
    kept, wanted = ({field.name: str(field.type) for field in view.stored} for view in (before, after))
    # Events that are already there lack the values of a column that was not kept, and they never change.
    is_new = any(name not in kept or not _widens(before, after, name) for name in wanted)
    change = ChangeClass.REBUILD if is_new else ChangeClass.COMPATIBLE
    found = _compare("columns of events", kept, wanted, change, new_generation=is_new)
    found += _compare("event_id", before.event_id, after.event_id, ChangeClass.REBUILD, new_generation=True)
    old, new = ({window.name: window for window in view.windows} for view in (before, after))
    found += [
        Difference(f"window {name}", _told(old[name]), None, ChangeClass.BREAKING) for name in old if name not in new
    ]
    missing = not_held(held, after)
    for name, window in new.items():
        there = name not in missing  # and training reads the log, which has the columns
        if name not in old:
            change = ChangeClass.COMPATIBLE if there else ChangeClass.REBUILD
            found.append(Difference(f"window {name}", None, _told(window), change))
        else:
            told = _told(old[name]), _told(window)
            found += _compare(f"window {name}", *told, ChangeClass.REBUILD, is_held=there)
    old_types, new_types = ({field.name: str(field.type) for field in view.features} for view in (before, after))
    for name in (name for name in new_types if old_types.get(name, new_types[name]) != new_types[name]):
        found += _compare(f"type of {name}", old_types[name], new_types[name], ChangeClass.BREAKING)
    order = [name for name in old if name in new], [name for name in new if name in old]
    return found + _compare("order of features", *order, ChangeClass.COMPATIBLE)


def _widens(before: FeatureView, after: FeatureView, name: str) -> bool:
    old, new = ({field.name: field.type for field in view.stored}[name] for view in (before, after))
    return old == new or is_widening(old, new)


def _told(window: Window) -> str:
    """Return what decides about a feature's values, in words."""
    of = window.aggregation
    step = "" if window.length_us is None else f", in steps of {duration_text(window.resolution_us)}"
    more = f", n={of.n}" if of.n is not None else ""
    return f"{of.function} of {of.column}{step}{more}" + (f", where {of.where}" if of.where else "")


def _on_demand(before: OnDemandFeatureView, after: OnDemandFeatureView) -> list[Difference]:
    found = _fields(before.fields, after.fields, removed=ChangeClass.BREAKING)
    found += _attributes(before, after, ChangeClass.REBUILD, "mode", "code")
    gone = _given(before) - _given(after)
    is_missed = any(re.search(rf"\b{re.escape(name)}\b", after.code) for name in gone)  # the code looks for it
    change = ChangeClass.BREAKING if is_missed else ChangeClass.REBUILD
    return found + _compare("sources", _inputs(before), _inputs(after), change)


def _given(view: OnDemandFeatureView) -> set[str]:
    """Return the names under which a function finds values."""
    return {name for source in view.inputs for name in input_names(source)}


def _inputs(view: OnDemandFeatureView) -> list[str]:
    return [
        source.name
        if isinstance(source, RequestSource)
        else f"{source.name}[{', '.join(input_names(source))}]{_origin(source)}"
        for source in view.inputs
    ]


def _origin(read: FeatureSelection | OnDemandFeatureView) -> str:
    """Return which view is read, and by which columns, where its name does not say so."""
    if isinstance(read, OnDemandFeatureView):
        return ""
    origin = "" if read.view.name == read.name else f" ({read.view.name})"
    return f"{origin} by {read.columns}" if read.columns else origin


def _service(before: FeatureService, after: FeatureService) -> list[Difference]:
    logs = _attributes(before, after, ChangeClass.METADATA, "log")
    old, new = _service_features(before), _service_features(after)
    if old == new:
        return logs
    kept = [feature for feature in new if feature in old]
    # A model reads its features by position: only additions at the end do not move the others.
    grew = kept == old and new[: len(old)] == old
    return [Difference("features", old, new, ChangeClass.COMPATIBLE if grew else ChangeClass.BREAKING), *logs]


def _monitor(before: Monitor, after: Monitor) -> list[Difference]:
    watched = _compare("target", before.target.key, after.target.key, ChangeClass.METADATA)
    watched += _attributes(before, after, ChangeClass.METADATA, "baseline", "window")
    if [*map(check_document, before.checks)] == [*map(check_document, after.checks)]:  # labels by text, or by object
        return watched
    return [*watched, Difference("checks", before.checks, after.checks, ChangeClass.METADATA)]


def _service_features(service: FeatureService) -> list[str]:
    return [f"{read.name}:{field.name}{_origin(read)}" for read in service.features for field in read.features]


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
        for about in ("description", "tags", "deprecated", "expect"):
            texts = getattr(one, about), getattr(other, about)
            found += _compare(f"{about} of {name}", *texts, ChangeClass.METADATA)
    order = [name for name in old if name in new], [name for name in new if name in old]
    return found + _compare("order of features", *order, ChangeClass.COMPATIBLE)


_RULES: dict[type[Definition], tuple[Callable[[Any, Any], list[Difference]], ChangeClass]] = {
    Entity: (_entity, ChangeClass.COMPATIBLE),
    ParquetSource: (_parquet, ChangeClass.COMPATIBLE),
    PushSource: (_push, ChangeClass.BREAKING),
    RequestSource: (_request, ChangeClass.COMPATIBLE),
    FeatureView: (_view, ChangeClass.DESTRUCTIVE),
    OnDemandFeatureView: (_on_demand, ChangeClass.BREAKING),
    FeatureService: (_service, ChangeClass.BREAKING),
    Monitor: (_monitor, ChangeClass.METADATA),
}
"""What compares two definitions of a kind, and the class of deleting one. Entities and sources go only when nothing
refers to them any more."""
