"""The page of a feature view: how to use it, what it is, how its data is."""

from __future__ import annotations

from featurestore_registry.catalog.activity import activity_of_view, runs_of_view
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.project import ENTITY, features_of
from featurestore_registry.catalog.reading import facts
from featurestore_registry.catalog.usage import usage
from featurestore_registry.records import Record

RUNS = 40
"""So many of the newest runs are drawn."""


def view(ask: Ask, record: Record) -> Page:
    """Return the page."""
    document, now_us = record.document, ask.now_us
    keys = join_keys(ask, record)
    features = features_of(record)
    references = [features[0].reference] if len(features) == 1 else [f"{record.name}:*"]
    return Page(
        "view.html",
        {
            "record": record,
            "features": features,
            "keys": keys,
            "usage": usage(references, "", keys),
            "ttl_us": document.get("ttl_us"),
            "sql": document.get("sql"),
            "activity": activity_of_view(ask.ledger, ask.project.name, record.name, document, now_us),
            "runs": runs_of_view(ask.ledger, ask.project.name, record.name, RUNS),
            "needs": [found for key in record.depends_on if (found := ask.project.records.get(key))],
            "users": ask.project.users(record.key),
            "touches": ask.history.of(record.key),
        },
    )


def join_keys(ask: Ask, record: Record) -> dict[str, str]:
    """Return the columns by which a view is read, and their types."""
    names = facts(record.document, lambda told: [str(name) for name in told["entities"]]) or []
    entities = [entity for name in names if (entity := ask.project.find(ENTITY, name)) is not None]
    return {field.name: field.type for entity in entities for field in entity.fields}
