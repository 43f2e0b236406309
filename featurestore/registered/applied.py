"""Definitions that users pass as objects: they stand for the applied definitions, so they must be equal to them."""

from __future__ import annotations

from typing import Any

from featurestore.definitions import Definition, FeatureSelection, FeatureView, OnDemandFeatureView
from featurestore.errors import InputError
from featurestore.project.loader import with_parts, with_views
from featurestore.registered.records import to_record
from featurestore.registered.snapshot import Snapshot

_WORDS = {"ttl_us": "ttl", "allowed_lateness_us": "allowed_lateness", "code_hash": "code"}
_TEXTS = frozenset({"description", "tags", "deprecated"})
"""Parts of a field that no value depends on."""
_OTHERS = frozenset({"generation", "deprecated", "statistics"})
"""Parts of a document that may differ."""


def check_as_applied(snapshot: Snapshot, given: Definition | FeatureSelection) -> None:
    """Raise InputError where an object, or a part of it, differs from what is applied under its name.

    Descriptions, owners, tags, statistics and what is deprecated may differ; a schema that is left out is the applied
    one. An object that is not applied at all passes: looking it up raises an error later.
    """
    whole = given.view if isinstance(given, FeatureSelection) else given
    if snapshot.definitions.get((whole.kind, whole.name)) == whole:
        return
    applied = {(record.kind, record.name): record.document for record in snapshot.records}

    def with_schema(view: FeatureView) -> FeatureView:
        known = snapshot.views.get(view.name)
        return view.replaced(fields=known.view.fields) if view.fields is None and known is not None else view

    for part in {id(part): part for part in with_parts(whole)}.values():
        document = applied.get((part.kind, part.name))
        if document is None:
            continue
        own = to_record(snapshot.project, with_views(part, with_schema)).document
        changed = [key for key in own if key not in _OTHERS and _meaning(own[key]) != _meaning(document.get(key))]
        if changed:
            raise _differs(snapshot, given, whole, part, changed)


def _meaning(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _meaning(item) for key, item in value.items() if key not in _TEXTS}
    return [_meaning(item) for item in value] if isinstance(value, list | tuple) else value


def _differs(
    snapshot: Snapshot, given: Definition | FeatureSelection, whole: Definition, part: Definition, changed: list[str]
) -> InputError:
    what = " and ".join(dict.fromkeys(_WORDS.get(key, key) for key in changed))
    of = "" if part.key == whole.key else f" of {whole.name!r}"
    text = whole.name
    if isinstance(whole, FeatureView | OnDemandFeatureView):
        names = given.names if isinstance(given, FeatureSelection) else None
        text += f":{(names or [field.name for field in whole.fields or ()] or ['FEATURE'])[0]}"
    return InputError(
        f"{part.title} {part.name!r}{of} differs from what is applied (revision {snapshot.revision}) in {what}.",
        hint=f"Apply it first: store.apply([...]) or `fs apply`; or name the applied one by its text: {text!r}.",
        kind=part.kind,
        name=part.name,
    )
