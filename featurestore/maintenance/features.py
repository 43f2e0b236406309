"""The flat list of all features: what each is, whose, how empty, how fresh, and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from featurestore_registry.documents import STATISTICS, TRAINING_SET, WATERMARK

from featurestore.definitions import FeatureView, OnDemandFeatureView
from featurestore.errors import AuthError
from featurestore.ledger.watermarks import watermark_from
from featurestore.registered.records import understood
from featurestore.registered.snapshot import Snapshot, generation_key
from featurestore.workspace import Readers

Shares = dict[tuple[str, str], float]
"""The share of nulls by the key of statistics and column."""


@dataclass(frozen=True, slots=True)
class ListedFeature:
    """One feature."""

    name: str
    """``view:feature``."""
    type: str
    description: str
    deprecated: str
    owner: str
    """The view's."""
    tags: Mapping[str, str]
    """The view's and its own."""
    own_tags: Mapping[str, str]
    online: bool
    """Whether it can be read online: its view is published, or it is computed of what is."""
    services: tuple[str, ...]
    """The services that read it."""
    null_share: float | None
    """Counted in the rows of the last run, or else in the last saved training set that has it; None without either."""
    newest_event_us: int | None
    """The view's newest committed event time; of an on-demand feature the oldest among its views'."""


def list_features(workspace: Readers) -> list[ListedFeature]:
    """Return all features by view and name; the registry is read once for each kind of fact, not for each view."""
    snapshot, ledger, project = workspace.snapshot(), workspace.ledger, workspace.project
    newest_us = {entry.key: watermark_from(entry).greatest_event_us for entry in ledger.scan(project, WATERMARK)}
    documents: dict[str, Mapping[str, Any]] = {}
    with suppress(AuthError):  # statistics are not for every role
        documents = {entry.key: entry.document for entry in ledger.scan(project, STATISTICS)}
    with understood("statistics"):
        shares, in_sets = _shares(documents), _in_training_sets(documents)
    fresh = {name: newest_us.get(view.ledger_key) for name, view in snapshot.views.items()}
    readers = _readers(snapshot)
    found = []
    views: list[FeatureView | OnDemandFeatureView] = [registered.view for registered in snapshot.views.values()]
    for view in (*views, *snapshot.on_demand.values()):
        is_online, newest, key = _state(snapshot, view, fresh)
        for field in view.features:
            share = shares.get((key, field.name), in_sets.get((key, field.name)))
            found.append(
                ListedFeature(
                    f"{view.name}:{field.name}",
                    str(field.type),
                    field.description,
                    field.deprecated or view.deprecated,
                    view.owner,
                    {**view.tags, **field.tags},
                    field.tags,
                    is_online,
                    tuple(readers.get((view.name, field.name), ())),
                    share,
                    newest,
                )
            )
    return sorted(found, key=lambda feature: feature.name.split(":"))


def _state(
    snapshot: Snapshot, view: FeatureView | OnDemandFeatureView, fresh: Mapping[str, int | None]
) -> tuple[bool, int | None, str]:
    """Return whether a view is online, how fresh it is, and the key of its statistics."""
    if isinstance(view, FeatureView):
        return view.online, fresh[view.name], snapshot.views[view.name].ledger_key
    read = [selection.view for selection in view.selections]
    instants = [fresh.get(each.name) for each in read]
    known = [instant for instant in instants if instant is not None]
    oldest = min(known) if known and len(known) == len(instants) else None
    return all(each.online for each in read), oldest, generation_key(view.name, 0)


def _readers(snapshot: Snapshot) -> dict[tuple[str, str], list[str]]:
    """Return the services that read each feature, by view and feature."""
    found: dict[tuple[str, str], list[str]] = {}
    for service in snapshot.services.values():
        for read in service.features:
            view = read.name if isinstance(read, OnDemandFeatureView) else read.view.name
            for field in read.features:
                found.setdefault((view, field.name), []).append(service.name)
    return {key: sorted(set(names)) for key, names in found.items()}


def _shares(documents: Mapping[str, Mapping[str, Any]]) -> Shares:
    """Return the share of nulls of each column that has rows."""
    return {
        (key, column["name"]): column["nulls"] / column["rows"]
        for key, document in documents.items()
        for column in document["columns"]
        if column["rows"]
    }


def _in_training_sets(documents: Mapping[str, Mapping[str, Any]]) -> Shares:
    """Return the shares in the newest saved training set that has a feature, under whatever name."""
    sets = [document for key, document in documents.items() if key.startswith(f"{TRAINING_SET}:")]
    found: Shares = {}
    for document in sorted(sets, key=lambda document: int(document["made_us"])):
        for column in document["columns"]:
            key, _, name = column.get("feature", "").rpartition(":")
            if column["rows"]:
                found[key, name] = column["nulls"] / column["rows"]
    return found
