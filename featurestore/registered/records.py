"""Definitions as registry records, and records as definitions again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from featurestore_registry.errors import UPGRADE_HINT
from featurestore_registry.records import JournalEntry, Record, RecordField, fingerprint

from featurestore.definitions import (
    Aggregation,
    Definition,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Monitor,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
    RequestSource,
    ServedLog,
)
from featurestore.definitions.expectations import RULES, Between, Fresh, OneOf, Rule
from featurestore.definitions.on_demand import input_names
from featurestore.errors import FeatureStoreError, NotFoundError, RegistryFormatError, did_you_mean
from featurestore.project.loader import needs_of
from featurestore.registered.monitors import monitor_document, monitor_from
from featurestore.registered.selections import Lookup, selection_document, selection_from
from featurestore.types import ValueType, parse_type
from featurestore.types.times import MICROSECOND
from featurestore.types.values import from_json, to_json

logger = logging.getLogger("featurestore")

KINDS: dict[str, type[Definition]] = {
    kind.kind: kind
    for kind in (
        Entity,
        ParquetSource,
        PushSource,
        RequestSource,
        FeatureView,
        OnDemandFeatureView,
        FeatureService,
        Monitor,
    )
}
"""Every kind by its name, each after the kinds it may depend on."""

MOST_GENERATIONS = 100_000
"""No view begins as many."""

_SHORT_KINDS = {"view": "feature_view", "service": "feature_service", "on_demand_view": "on_demand_feature_view"}


def kind_named(text: str | type[Definition]) -> str:
    """Return the kind of a class, or of a word: ``feature-views``, ``view`` and ``feature_view`` are the same.

    Raises NotFoundError for anything else.
    """
    if isinstance(text, type) and text in KINDS.values():
        return text.kind
    if not isinstance(text, str):
        hint = "Pass a class such as FeatureView, or a word such as 'feature_view'."
        raise NotFoundError(f"{text!r} is not a kind of definition.", hint=hint)
    word = text.lower().replace("-", "_").removesuffix("s")
    word = "entity" if word == "entitie" else _SHORT_KINDS.get(word, word)
    if word not in KINDS:
        raise NotFoundError(f"There is no kind of definition called {text!r}.", hint=did_you_mean(text, KINDS))
    return word


@contextmanager
def understood(what: str) -> Iterator[None]:
    """Raise RegistryFormatError where a document of the registry has another form than this version writes."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, FeatureStoreError) as error:
        raise RegistryFormatError(
            f"The registry holds {what} in a form that featurestore {version('featurestore')} cannot read "
            f"({type(error).__name__}: {error}).",
            hint=UPGRADE_HINT,
            reason=str(error),
            what=what,
        ) from None


@contextmanager
def understood_or_left(entry: JournalEntry) -> Iterator[None]:
    """End the block with a warning where `understood` would raise: no entry of the journal may stop what reads it."""
    try:
        with understood(f"entry {entry.cursor} of the journal (kind {entry.kind!r}, key {entry.key!r})"):
            yield
    except RegistryFormatError as error:
        logger.warning("%s It is left out.", error.message)


def field_document(field: Field) -> dict[str, Any]:
    """Return a field as JSON."""
    return {
        "name": field.name,
        "type": str(field.type),
        "description": field.description,
        "tags": field.tags,
        "default": to_json(field.type, field.default),
        **_deprecation(field),
        **({"expect": [rule_document(rule, field.type) for rule in field.expect]} if field.expect else {}),
    }


def rule_document(rule: Rule, kind: ValueType | None = None) -> dict[str, Any]:
    """Return a rule as JSON, values in those of a field's type."""
    document: dict[str, Any] = {"rule": rule.title}
    for name in type(rule).model_fields:
        value = getattr(rule, name)
        if isinstance(value, timedelta):
            value = value // MICROSECOND
        elif isinstance(rule, OneOf):
            value = [to_json(kind, each) for each in value] if kind is not None else list(value)
        elif isinstance(rule, Between) and kind is not None:
            value = to_json(kind, value)
        document[name] = value
    return document


def rule_from(document: Mapping[str, Any], kind: ValueType | None = None) -> Any:
    """Return the rule of a `rule_document`."""
    values = {name: value for name, value in document.items() if name != "rule"}
    made = RULES[document["rule"]]
    if made is Between and kind is not None:
        return Between(*(from_json(kind, values[name]) for name in ("least", "greatest")))
    if made is OneOf and kind is not None:
        return OneOf([from_json(kind, each) for each in values["values"]])
    if made is Fresh:
        return Fresh(values["within"] * MICROSECOND)
    return made(**values)


def rules_told(documents: Iterable[Mapping[str, Any]], kind: str | None = None) -> list[str]:
    """Return rules, written as `rule_document`, as people read them; ``kind`` is the type of their field."""
    return [str(rule_from(each, None if kind is None else parse_type(kind))) for each in documents]


def _deprecation(given: Field | Definition) -> dict[str, str]:
    """Return the part about what is deprecated; without one the document stays as earlier versions wrote it."""
    return {"deprecated": given.deprecated} if given.deprecated else {}


def field_from(document: Mapping[str, Any]) -> Field:
    """Return the field of a `field_document`."""
    kind = parse_type(document["type"])
    return Field(
        document["name"],
        kind,
        description=document["description"],
        tags=document["tags"],
        default=from_json(kind, document["default"]),
        deprecated=document.get("deprecated", ""),
        expect=[rule_from(rule, kind) for rule in document.get("expect", ())],
    )


def to_record(project: str, definition: Definition, *, generation: int = 1) -> Record:
    """Return a definition as the record that the registry keeps; a view's schema must be known."""
    write, _ = _FORMS[definition.kind]
    document, fields = write(definition)
    if isinstance(definition, FeatureView):
        document["generation"] = generation
    document |= _deprecation(definition)
    described = {
        "document": document,
        "description": definition.description,
        "owner": definition.owner,
        "tags": definition.tags,
    }
    return Record(
        kind=definition.kind,
        project=project,
        name=definition.name,
        document=document,
        fingerprint=fingerprint(described),
        fields=tuple(fields),
        depends_on=needs_of(definition),
        owner=definition.owner,
        tags=definition.tags,
        description=definition.description,
    )


def from_records(records: Iterable[Record]) -> dict[tuple[str, str], Definition]:
    """Return the definitions of a complete set of records by (kind, name), without on-demand code.

    Raises RegistryFormatError for a kind, or a part of a definition, that a newer version wrote.
    """
    made: dict[tuple[str, str], Definition] = {}

    def lookup(kind: str, name: str) -> Definition:
        if (kind, name) not in made:
            raise ValueError(f"it needs the {kind} {name!r}, which does not exist")
        return made[kind, name]

    order = {kind: position for position, kind in enumerate(KINDS)}
    for record in sorted(records, key=lambda record: order.get(record.kind, len(order))):
        with understood(f"the {record.kind} {record.name!r} of project {record.project!r}"):
            made[record.kind, record.name] = _from_record(record, lookup)
    return made


def with_dependencies(keys: Iterable[str], by_key: Mapping[str, Record]) -> list[Record]:
    """Return the records of some keys and of all that they depend on, as far as there are any."""
    found: dict[str, Record] = {}
    wanted = list(keys)
    while wanted:
        key = wanted.pop()
        if key in by_key and key not in found:
            found[key] = by_key[key]
            wanted += by_key[key].depends_on
    return list(found.values())


def _from_record(record: Record, lookup: Lookup) -> Definition:
    common = {"description": record.description, "owner": record.owner, "tags": record.tags}
    common["deprecated"] = record.document.get("deprecated", "")
    write, read = _FORMS[record.kind]
    definition = read(record.name, record.document, lookup, common)
    written = {*write(definition)[0], *_deprecation(definition)}
    if isinstance(definition, FeatureView):
        written.add("generation")
        generation = record.document["generation"]
        if type(generation) is not int or not 1 <= generation <= MOST_GENERATIONS:  # it is part of keys and paths
            raise ValueError(f"generation: {generation!r} is not a number from 1 to {MOST_GENERATIONS}")
    if unread := record.document.keys() ^ written:
        # Without the unknown parts it would be another definition.
        raise ValueError(f"its parts {', '.join(sorted(unread))}")
    return definition


Written = tuple[dict[str, Any], list[RecordField]]


def _write_entity(entity: Entity) -> Written:
    keys = {name: str(kind) for name, kind in entity.join_keys.items()}
    return {"join_keys": list(keys.items())}, [RecordField(name, kind) for name, kind in keys.items()]


def _write_source(source: ParquetSource) -> Written:
    document = {
        "format": "parquet",
        "path": source.path,
        "timestamp_field": source.timestamp_field,
        "created_timestamp_field": source.created_timestamp_field,
        "allowed_lateness_us": source.allowed_lateness // MICROSECOND,
    }
    return document, []


def _write_push(source: PushSource) -> Written:
    return {"batch_source": source.batch_source.name}, []


def _write_request(source: RequestSource) -> Written:
    return {"schema": [field_document(field) for field in source.fields]}, [*map(_record_field, source.fields)]


def _write_view(view: FeatureView) -> Written:
    document = {
        "entities": [entity.name for entity in view.entities],
        "sources": [[source.kind, source.name] for source in view.sources],
        "schema": [field_document(field) for field in view.stored],
        "sql": view.sql,
        "ttl_us": view.ttl_us,
        "online": view.online,
    }
    if view.aggregations:
        document["aggregations"] = [*map(_aggregation_document, view.aggregations)]
        document["event_id"] = view.event_id
    if view.statistics is not True:
        document["statistics"] = view.statistics if view.statistics is False else list(view.statistics)
    if view.expect:
        document["expect"] = [rule_document(rule) for rule in view.expect]
    if view.on_failure != "warn":
        document["on_failure"] = view.on_failure
    sources = [source.name for source in view.sources]
    made_of = {field.name: view.made_of(field.name) if view.sql is None else ("*",) for field in view.features}
    fields = [
        _record_field(field, [f"{source}.{column}" for source in sources for column in made_of[field.name]])
        for field in view.features
    ]
    return document, fields


def _aggregation_document(aggregation: Aggregation) -> dict[str, Any]:
    return {
        "name": aggregation.name,
        "column": aggregation.column,
        "function": aggregation.function,
        "windows_us": [None if window is None else window // MICROSECOND for window in aggregation.windows],
        "resolution_us": None if aggregation.resolution is None else aggregation.resolution // MICROSECOND,
        "where": aggregation.where,
        "n": aggregation.n,
    }


def aggregation_from(document: Mapping[str, Any]) -> Aggregation:
    """Return the aggregation of a view's document."""
    resolution_us = document["resolution_us"]
    return Aggregation(
        document["column"],
        document["function"],
        name=document["name"],
        windows=[None if window is None else window * MICROSECOND for window in document["windows_us"]],
        resolution=None if resolution_us is None else resolution_us * MICROSECOND,
        where=document["where"],
        n=document["n"],
    )


def _write_on_demand(view: OnDemandFeatureView) -> Written:
    document = {
        "inputs": [
            {"request": source.name} if isinstance(source, RequestSource) else selection_document(source)
            for source in view.inputs
        ],
        "schema": [field_document(field) for field in view.fields],
        "mode": view.mode,
        "code": view.code,
        "code_hash": view.code_hash,
    }
    read = [
        f"{source.name if isinstance(source, RequestSource) else source.view.name}.{name}"
        for source in view.inputs
        for name in input_names(source)
    ]
    return document, [_record_field(field, read) for field in view.fields]


def _write_service(service: FeatureService) -> Written:
    document: dict[str, Any] = {
        "features": [
            {"on_demand": feature.name} if isinstance(feature, OnDemandFeatureView) else selection_document(feature)
            for feature in service.features
        ]
    }
    if (log := service.log) is not None:
        kept_us = log.retention // MICROSECOND
        document["log"] = {"sample": log.sample, "retention_us": kept_us, "keys": log.keys}
    fields = [
        _record_field(field, [f"{read.name}.{field.name}"]) for read in service.features for field in read.features
    ]
    return document, fields


def _write_monitor(monitor: Monitor) -> Written:
    return monitor_document(monitor), []


def _record_field(field: Field, inputs: Iterable[str] = ()) -> RecordField:
    return RecordField(field.name, str(field.type), field.description, field.tags, tuple(inputs))


def _read_entity(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> Entity:
    return Entity(name, {key: parse_type(kind) for key, kind in document["join_keys"]}, **common)


def _read_source(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> ParquetSource:
    return ParquetSource(
        name,
        document["path"],
        document["timestamp_field"],
        document["created_timestamp_field"],
        allowed_lateness=document["allowed_lateness_us"] * MICROSECOND,
        **common,
    )


def _read_push(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> PushSource:
    return PushSource(name, lookup(ParquetSource.kind, document["batch_source"]), **common)


def _read_request(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> RequestSource:
    return RequestSource(name, [field_from(field) for field in document["schema"]], **common)


def _read_view(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> FeatureView:
    ttl_us = document["ttl_us"]
    return FeatureView(
        name,
        entities=[lookup(Entity.kind, entity) for entity in document["entities"]],
        source=[lookup(kind, source) for kind, source in document["sources"]],
        schema=[field_from(field) for field in document["schema"]],
        sql=document["sql"],
        aggregations=[*map(aggregation_from, document.get("aggregations", []))] or None,
        event_id=document.get("event_id"),
        ttl=None if ttl_us is None else ttl_us * MICROSECOND,
        online=document["online"],
        statistics=document.get("statistics", True),
        expect=[rule_from(rule) for rule in document.get("expect", ())],
        on_failure=document.get("on_failure", "warn"),
        **common,
    )


def _read_on_demand(
    name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]
) -> OnDemandFeatureView:
    return OnDemandFeatureView(
        name,
        sources=[
            lookup(RequestSource.kind, found["request"]) if "request" in found else selection_from(found, lookup)
            for found in document["inputs"]
        ],
        schema=[field_from(field) for field in document["schema"]],
        function=None,
        mode=document["mode"],
        code=document["code"],
        **common,
    )


def _read_service(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> FeatureService:
    features = [
        lookup(OnDemandFeatureView.kind, found["on_demand"]) if "on_demand" in found else selection_from(found, lookup)
        for found in document["features"]
    ]
    log = document.get("log")
    kept = None if log is None else _served_log_from(log)
    return FeatureService(name, features, log=kept, **common)


def _served_log_from(document: Mapping[str, Any]) -> ServedLog:
    if unread := document.keys() - {"sample", "retention_us", "keys"}:  # it may say to keep less than we would
        raise ValueError(f"its parts {', '.join(sorted(unread))} of log")
    return ServedLog(document["sample"], retention=document["retention_us"] * MICROSECOND, keys=document["keys"])


Reader = Callable[[str, Mapping[str, Any], Lookup, dict[str, Any]], Definition]
_FORMS: dict[str, tuple[Callable[[Any], Written], Reader]] = {
    Entity.kind: (_write_entity, _read_entity),
    ParquetSource.kind: (_write_source, _read_source),
    PushSource.kind: (_write_push, _read_push),
    RequestSource.kind: (_write_request, _read_request),
    FeatureView.kind: (_write_view, _read_view),
    OnDemandFeatureView.kind: (_write_on_demand, _read_on_demand),
    FeatureService.kind: (_write_service, _read_service),
    Monitor.kind: (_write_monitor, monitor_from),
}
