"""What the values of features come from, part by part: equal parts make equal values of equal rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from featurestore_registry.records import canonical_json

from featurestore.registered.snapshot import RegisteredView
from featurestore.request.features import FeatureRequest, OutputColumn
from featurestore.types.times import duration_text
from featurestore.types.values import to_json

Meaning = Mapping[str, Any]
"""A feature's parts by name, as JSON."""


def origin(registered: RegisteredView, feature: str) -> dict[str, Any]:
    """Return what a stored feature's rows and values come from, but the ttl and the generation."""
    view, by_name = registered.view, {window.name: window for window in registered.view.windows}
    batch = [each.batch_source for each in view.sources]
    read: tuple[str, ...] = (feature,)
    window: dict[str, Any] | None = None
    if (found := by_name.get(feature)) is not None:
        read, of = view.made_of(feature), found.aggregation
        window = {
            "function": of.function,
            "column": of.column,
            "where": of.where,
            "bound": of.bound,
            "length": None if found.length_us is None else duration_text(found.length_us),
            "step": duration_text(found.resolution_us),
        }
    types = {name: str(kind) for name, kind in view.stored_types.items() if name in (*view.join_keys, *read)}
    return {
        "sql": view.sql,
        "sources": [[each.path, each.timestamp_field, each.created_timestamp_field] for each in batch],
        "types": types,
        "window": window,
        "event_id": view.event_id,
        "takes events": view.takes_events,
    }


def meanings(request: FeatureRequest) -> dict[str, dict[str, Any]]:
    """Return for each output column, by name and in their order, everything that decides about its values."""
    return {output.name: dict(_parts(request, output)) for output in request.outputs}


def definition_hash(request: FeatureRequest) -> str:
    """Return the hash of what decides about the values of a request: BLAKE2b-256, as hex."""
    text = canonical_json([[name, parts] for name, parts in meanings(request).items()])
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _parts(request: FeatureRequest, output: OutputColumn) -> Iterator[tuple[str, Any]]:
    yield "feature", output.reference
    yield "type", str(output.field.type)
    yield "default", to_json(output.field.type, output.field.default)
    if output.read is not None:
        yield from _stored(request, output.read, output.field.name)
        return
    assert output.on_demand is not None
    computed = request.on_demand[output.on_demand]
    yield "code", computed.view.code_hash
    yield "mode", computed.view.mode
    for each in computed.inputs:
        yield f"input {each.name}", str(each.field.type)
        if each.read is not None:
            for part, value in _stored(request, each.read, each.field.name):
                yield f"{part} of input {each.name}", value


def _stored(request: FeatureRequest, place: int, feature: str) -> Iterator[tuple[str, Any]]:
    read = request.reads[place]
    ttl_us = read.view.ttl_us
    yield "view", read.view.name
    yield "join keys", dict(read.key_columns)
    yield "ttl", None if ttl_us is None else duration_text(ttl_us)
    yield from origin(read.registered, feature).items()
