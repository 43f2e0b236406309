"""What people wrote into the ledger by name: saved training sets, and consumers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.drawing import SMALL, Bars, histogram
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.named import SavedSet
from featurestore_registry.catalog.pages.shared import personal_of, why_hidden
from featurestore_registry.catalog.project import ON_DEMAND, SERVICE, VIEW
from featurestore_registry.catalog.statistics import bins_of, feature_of, profile_of, without_values
from featurestore_registry.documents import CONSUMER, TRAINING_SET, ColumnStatistics, ConsumerDocument
from featurestore_registry.records import Record

PER_PAGE = 50
REASONS = {
    "null_key": "null key",
    "no_entity": "no such entity",
    "nothing_before": "nothing before",
    "not_yet_available": "not yet available",
    "expired": "expired",
}
"""Why rows have no answer."""


def saved_sets(ask: Ask) -> Sequence[SavedSet]:
    """Return the saved sets, the newest first."""
    return ask.site.named(ask.project, ask.state).sets


def training_sets_of(ask: Ask, keys: Collection[str]) -> list[SavedSet]:
    """Return the sets that read one of some definitions (``kind:name``)."""
    names = {key.partition(":")[2] for key in keys}
    return [found for found in saved_sets(ask) if any(each.view in names for each in found.document.reads)]


def consumers(ask: Ask) -> Sequence[ConsumerDocument]:
    """Return the consumers by name."""
    return ask.site.named(ask.project, ask.state).consumers


def consumers_of(ask: Ask, *services: str) -> list[ConsumerDocument]:
    """Return the consumers that read one of some services."""
    return [each for each in consumers(ask) if {*services} & {*each.services}]


def readers_of(ask: Ask, services: Sequence[str], keys: Collection[str]) -> dict[str, object]:
    """Return who reads some services, and which sets hold some definitions: what `readers.html` shows."""
    return {"services": services, "consumers": consumers_of(ask, *services), "sets": training_sets_of(ask, keys)}


def training_set_list(ask: Ask) -> Page:
    """Return the list of saved training sets."""
    found, page = saved_sets(ask), ask.page_number()
    shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    return Page(
        "training_sets.html", {"sets": shown, "total": len(found), "page": page, "pages": -(-len(found) // PER_PAGE)}
    )


def training_set(ask: Ask, name: str) -> Page:
    """Return the page of a saved training set."""
    sets = saved_sets(ask)
    found = next((each for each in sets if each.name == name), None)
    if found is None:
        known = [each.name for each in sets]
        raise NotThere("training set", name, known, (ask.at("training_set"), "All training sets"))
    profile = ask.if_may(Role.READER, lambda: profile_of(ask.ledger, ask.project.name, f"{TRAINING_SET}:{name}"))
    page = ask.page_number()
    columns = [] if profile is None or profile.newest is None else list(profile.newest.columns)
    shown = columns[(page - 1) * PER_PAGE : page * PER_PAGE]
    return Page(
        "training_set.html",
        {
            "found": found,
            "revision": min(found.document.registry_revision, ask.project.number),
            "reasons": REASONS,
            "profile": profile,
            "columns": _drawn(ask, shown),
            "total": len(columns),
            "page": page,
            "pages": -(-len(columns) // PER_PAGE),
        },
    )


def _drawn(ask: Ask, columns: Sequence[ColumnStatistics]) -> list[tuple[ColumnStatistics, Bars | None, str, str]]:
    """Return columns with their histograms, the address of the page of each one's feature, why values are hidden."""
    bins = {
        key: bins_of(ask.ledger, ask.project.name, key) for key in {feature_of(column)[0] for column in columns} if key
    }
    made = []
    for column in columns:
        key, name = feature_of(column)
        view, _, generation = key.rpartition(".")
        kind = ON_DEMAND if generation == "0" else VIEW
        record = ask.project.find(kind, view)
        is_there = record is not None and any(field.name == name for field in record.fields)
        if record is not None and name in personal_of(ask, record):
            column = without_values(column)
        found = bins.get(key, {}).get((name, column.bins or 0))
        made.append(
            (
                column,
                histogram(column, found, **SMALL),
                ask.at("feature", kind, view, name) if is_there else "",
                _why_hidden(ask, record, column, name),
            )
        )
    return made


def _why_hidden(ask: Ask, record: Record | None, column: ColumnStatistics, name: str) -> str:
    if record is None:
        return "a join key" if column.role == "key" else "personal, or an entity's key"
    return why_hidden(ask, record, replace(column, name=name))


def consumer_list(ask: Ask) -> Page:
    """Return the list of consumers."""
    return Page("consumers.html", {"consumers": consumers(ask)})


def consumer(ask: Ask, name: str) -> Page:
    """Return the page of a consumer."""
    found = consumers(ask)
    one = next((each for each in found if each.name == name), None)
    if one is None:
        raise NotThere("consumer", name, [each.name for each in found], (ask.at(CONSUMER), "All consumers"))
    services = [(service, ask.project.find(SERVICE, service)) for service in one.services]
    return Page("consumer.html", {"consumer": one, "services": services})
