"""The pages of feature services and on-demand views, which read features of others."""

from __future__ import annotations

from datetime import timedelta

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.ledgered import readers_of
from featurestore_registry.catalog.pages.shared import about, columns_of, parts_read
from featurestore_registry.catalog.pages.views import feature_rows
from featurestore_registry.catalog.pages.watching import watched_by
from featurestore_registry.catalog.project import features_of
from featurestore_registry.catalog.reading import objects, read
from featurestore_registry.catalog.statistics import profile_of
from featurestore_registry.catalog.usage import usage
from featurestore_registry.documents import SERVING, ServerDocument
from featurestore_registry.records import Document, JournalEntry, Record

_HEARD = timedelta(minutes=15)
"""A server that has said nothing for so long is gone."""
_MOST_SERVERS = 500
PER_PAGE = 50
PARTS_PER_PAGE, MOST_NAMES = 40, 300
"""At most so many views of a service are on a page, with about so many names of features."""


def service(ask: Ask, record: Record) -> Page:
    """Return the page of a feature service."""
    parts = parts_read(ask, record.document, "features")
    keys, brought = columns_of(ask, parts)
    page = ask.page_number()
    shown = parts[(page - 1) * PARTS_PER_PAGE : page * PARTS_PER_PAGE]
    views = {part.record.key for part in parts if part.record is not None}
    return Page(
        "service.html",
        {
            **about(ask, record),
            **watched_by(ask, record),
            "read_parts": shown,
            "total": len(parts),
            "names": max(MOST_NAMES // max(len(shown), 1), 4),
            "page": page,
            "pages": -(-len(parts) // PARTS_PER_PAGE),
            "keys": keys,
            "brought": brought,
            "count": sum(len(part.features) for part in parts),
            "usage": usage([], record.name, keys, brought),
            "activity": ask.activity,
            **readers_of(ask, [record.name], views),
            "servers": servers(ask),
            "log": _log_of(record),
        },
    )


def _log_of(record: Record) -> Document | None:
    """Return what is kept of what a service served, where a version wrote it that writes as this one."""
    for told in objects([record.document.get("log")]):
        sample, retention_us, keys = (told.get(name) for name in ("sample", "retention_us", "keys"))
        if isinstance(sample, float | int) and isinstance(retention_us, int) and isinstance(keys, str):
            return told
    return None


def on_demand(ask: Ask, record: Record) -> Page:
    """Return the page of an on-demand view."""
    parts = parts_read(ask, record.document, "inputs")
    keys, brought = columns_of(ask, parts)
    features = features_of(record)
    page = ask.page_number()
    shown = features[(page - 1) * PER_PAGE : page * PER_PAGE]
    profile = ask.if_may(Role.READER, lambda: profile_of(ask.ledger, ask.project.name, f"{record.name}.0"))
    references = [features[0].reference] if len(features) == 1 else [f"{record.name}:*"]
    return Page(
        "on_demand.html",
        {
            **about(ask, record),
            **watched_by(ask, record),
            "read_parts": parts,
            "keys": keys,
            "brought": brought,
            "usage": usage(references, "", keys, brought),
            "features": feature_rows(ask, record, profile, shown),
            "count": len(features),
            "profile": profile,
            "page": page,
            "pages": -(-len(features) // PER_PAGE),
        },
    )


def servers(ask: Ask) -> list[tuple[ServerDocument, JournalEntry]]:
    """Return what each live server process said last, by instance."""
    newest: dict[str, JournalEntry] = {}
    for entry in ask.journal.newest(ask.project.name, SERVING, limit=_MOST_SERVERS):
        if entry.written_at >= ask.state.now - _HEARD:
            newest.setdefault(entry.key, entry)
    found = [(read(entry, ServerDocument), entry) for entry in newest.values() if not entry.document.get("stopped")]
    made = [(server, entry) for server, entry in found if server is not None]
    return sorted(made, key=lambda each: (each[0].instance, each[0].process))
