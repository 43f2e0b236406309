"""What the pages of several kinds of definitions show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.pages.changes import changed_by
from featurestore_registry.catalog.project import ENTITY, ON_DEMAND, VIEW, Feature
from featurestore_registry.catalog.reading import facts
from featurestore_registry.documents import ColumnStatistics
from featurestore_registry.lineage.views import inputs_of
from featurestore_registry.records import Document, Record, RecordField

PERSONAL = "personal"
"""The tag of a field of which no value shows, unless it is "false"."""
ORIGINS = ("copied", "influences", "rows")
"""Kinds of lineage that lead to a feature."""
SHOWN_CHANGES = 3
"""Of a definition's changes the newest are on its page."""


def about(ask: Ask, record: Record) -> dict[str, object]:
    """Return what the pages of all definitions show."""
    return {
        "record": record,
        "needs": [found for key in record.depends_on if (found := ask.project.records.get(key)) is not None],
        "users": ask.project.users(record.key),
        "touches": (touches := ask.history.of(record.key)),
        "history": changed_by(touches[:SHOWN_CHANGES]),
    }


def join_keys(ask: Ask, record: Record) -> dict[str, str]:
    """Return the columns by which a view is read, and their types."""
    names = facts(record.document, lambda told: [str(name) for name in told["entities"]]) or []
    entities = [entity for name in names if (entity := ask.project.find(ENTITY, name)) is not None]
    return {field.name: field.type for entity in entities for field in entity.fields}


class From(NamedTuple):
    """Something that a feature comes from."""

    name: str
    address: str
    """Of its lineage."""
    how: str
    """Other than that values are computed from it."""


def origins(ask: Ask, feature: Feature) -> list[From]:
    """Return the columns that a feature comes from, as its lineage shows: values first, then what decides rows."""
    graph = ask.site.lineage(ask.project, ask.state)
    found = [edge for edge in graph.before(f"{feature.view.key}.{feature.name.lower()}") if edge.kind in ORIGINS]
    made: dict[str, From] = {}
    for edge in sorted(found, key=lambda edge: ORIGINS.index(edge.kind)):
        how = "copied" if edge.kind == "copied" else "decides which rows there are" if edge.kind == "rows" else ""
        told = how if edge.is_sure else f"perhaps {how}".strip()
        made.setdefault(edge.source, From(graph.node(edge.source).name, ask.at("lineage", of=edge.source), told))
    return list(made.values())


def why_hidden(ask: Ask, record: Record, column: ColumnStatistics) -> str:
    """Return why no value of a view's column shows; empty where they do."""
    if not column.is_hidden:
        return ""
    if column.role == "key":
        return "a join key"
    fields = {field.name: field for field in record.fields}
    if column.name in fields and _is_personal(fields[column.name]):
        return "tagged personal"
    if record.kind != ON_DEMAND:
        return "the id of events" if record.document.get("event_id") == column.name else "made from personal columns"
    parts = [part.record for part in parts_read(ask, record.document, "inputs") if part.record is not None]
    made_of = [part.name for part in parts if any(map(_is_personal, part.fields))]
    return f"made from personal fields of {', '.join(made_of)}" if made_of else "made from personal columns"


def _is_personal(field: RecordField) -> bool:
    return _are_personal(field.tags)


def _are_personal(tags: Mapping[str, Any]) -> bool:
    return str(tags.get(PERSONAL, "false")).lower() != "false"


def personal_of(ask: Ask, record: Record) -> frozenset[str]:
    """Return the features that are personal as the definitions are now: runs before may have counted their values."""
    own = {field.name for field in record.fields if _is_personal(field)}
    if record.kind == ON_DEMAND:
        read = [part for part in parts_read(ask, record.document, "inputs") if part.record is not None]
        made_of = {field.name for field in record.fields} if any(_has_personal(ask, part) for part in read) else set()
    else:
        made_of = facts(record.document, lambda _: _made_of_personal(record)) or set()
    return frozenset(own | {each.name for each in record.fields if each.name in made_of and PERSONAL not in each.tags})


def _has_personal(ask: Ask, part: Part) -> bool:
    return part.record is not None and not personal_of(ask, part.record).isdisjoint(part.features)


def _made_of_personal(view: Record) -> set[str]:
    """Return the features of a view that are computed from columns tagged personal."""
    tagged = {str(part["name"]).lower() for part in view.document["schema"] if _are_personal(part.get("tags") or {})}
    inputs = inputs_of(view) if tagged else {}
    return {name for name, columns in inputs.items() if tagged & {column.lower() for column in columns}}


@dataclass(frozen=True, slots=True)
class Part:
    """What a service or an on-demand view reads of one view."""

    record: Record | None
    """None where the registry has no such definition."""
    name: str
    """Under which it is read."""
    view: str
    features: tuple[str, ...]
    keys: Mapping[str, str]
    """The view's join keys, and the columns that hold them here."""


def parts_read(ask: Ask, document: Document, field: str) -> list[Part]:
    """Return what a definition reads: ``field`` is ``features`` of a service, ``inputs`` of an on-demand view."""

    def part(told: Mapping[str, Any]) -> Part:
        if "view" in told:
            features = tuple(str(name) for name in told["features"])
            record = ask.project.find(VIEW, told["view"])
            keys = {key: key for key in (join_keys(ask, record) if record else ())}
            keys |= {str(key): str(column) for key, column in dict(told["join_keys"]).items()}
            return Part(record, str(told["name"]), str(told["view"]), features, keys)
        kind, name = (ON_DEMAND, told["on_demand"]) if "on_demand" in told else ("request_source", told["request"])
        record = ask.project.find(kind, name)
        names = tuple(column.name for column in record.fields) if record else ()
        return Part(record, str(name), str(name), names, {})

    return facts(document, lambda told: [part(each) for each in told[field]]) or []


def columns_of(ask: Ask, parts: list[Part]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the columns by which some parts are read, and those that a caller brings, with their types."""
    keys, brought = dict[str, str](), dict[str, str]()
    for part in parts:
        if part.record is None:
            continue
        if part.record.kind == VIEW:
            types = join_keys(ask, part.record)
            keys.update({part.keys.get(key, key): kind for key, kind in types.items()})
        elif part.record.kind == ON_DEMAND:
            more_keys, more = columns_of(ask, parts_read(ask, part.record.document, "inputs"))
            keys, brought = {**more_keys, **keys}, {**brought, **more}
        else:
            brought.update({column.name: column.type for column in part.record.fields})
    return keys, brought
