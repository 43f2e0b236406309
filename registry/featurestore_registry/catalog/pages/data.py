"""The pages of entities and sources: what features are about, and what they are made from."""

from __future__ import annotations

from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.shared import about
from featurestore_registry.catalog.project import VIEW, Feature
from featurestore_registry.catalog.words import duration
from featurestore_registry.records import Record

PER_PAGE = 100


def entity(ask: Ask, record: Record) -> Page:
    """Return the page of an entity."""
    page = ask.page_number()
    views = [each for each in ask.project.used_by.get(record.key, ()) if each.kind == VIEW]
    return Page(
        "entity.html",
        {
            **about(ask, record),
            "views": views[(page - 1) * PER_PAGE : page * PER_PAGE],
            "total": len(views),
            "page": page,
            "pages": -(-len(views) // PER_PAGE),
            "activity": ask.activity,
            "count": sum(ask.project.feature_counts.get(view.key, 0) for view in views),
        },
    )


def source(ask: Ask, record: Record) -> Page:
    """Return the page of a source, of any kind."""
    known = {
        "path": "Path",
        "format": "Format",
        "timestamp_field": "Event time",
        "created_timestamp_field": "Became known",
        "batch_source": "Batch source",
    }
    document = record.document
    told = [(label, str(document[name])) for name, label in known.items() if document.get(name)]
    lateness = document.get("allowed_lateness_us")
    if isinstance(lateness, int) and lateness:
        told.append(("Rows may be late by", duration(lateness)))
    read = ask.site.lineage(ask.project, ask.state).columns_read(record.key)
    made = [(feature, columns) for feature in ask.project.features if (columns := read.get(_id_of(feature)))]
    page = ask.page_number()
    return Page(
        "source.html",
        {
            **about(ask, record),
            "told": told,
            "made": made[(page - 1) * PER_PAGE : page * PER_PAGE],
            "count": len(made),
            "page": page,
            "pages": -(-len(made) // PER_PAGE),
        },
    )


def _id_of(feature: Feature) -> str:
    """Return a feature's id in the graph of lineage."""
    return f"{feature.view.key}.{feature.name.lower()}"
