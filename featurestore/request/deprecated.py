"""What a request reads and should no longer be used."""

from __future__ import annotations

from featurestore.definitions import Definition
from featurestore.project.loader import with_parts
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest
from featurestore.tables import visible


def deprecations(snapshot: Snapshot, request: FeatureRequest) -> list[str]:
    """Return a sentence for each deprecated thing that a request names or reads, each once."""
    asked: list[Definition] = [snapshot.services[name] for name in request.services]
    asked += [read.view for read in request.on_demand]
    asked += [read.view for read in request.reads]
    parts = {part.key: part for found in asked for part in with_parts(found)}
    told = [_told(part.kind, part.name, part.deprecated) for part in parts.values() if part.deprecated]
    told += [_told("feature", out.reference, out.field.deprecated) for out in request.outputs if out.field.deprecated]
    return list(dict.fromkeys(told))


def _told(kind: str, name: str, instead: str) -> str:
    return f"The {kind.replace('_', ' ')} {name!r} is deprecated: {visible(instead.rstrip('.'))}."
