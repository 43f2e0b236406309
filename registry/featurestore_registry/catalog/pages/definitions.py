"""The page of a definition, of any kind, and the list of one kind."""

from __future__ import annotations

from collections.abc import Callable

from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages import data, monitors, services, views
from featurestore_registry.catalog.pages.shared import about
from featurestore_registry.catalog.project import ENTITY, ON_DEMAND, SERVICE, SOURCES, VIEW
from featurestore_registry.catalog.words import kind_name
from featurestore_registry.documents import MONITOR
from featurestore_registry.records import Record

_OF_KIND: dict[str, Callable[[Ask, Record], Page]] = {
    VIEW: views.view,
    ON_DEMAND: services.on_demand,
    SERVICE: services.service,
    ENTITY: data.entity,
    MONITOR: monitors.monitor,
    **dict.fromkeys(SOURCES, data.source),
}
"""The kinds that have a page of their own; `anything` shows the others."""
PER_PAGE = 100


def definition(ask: Ask, kind: str, name: str) -> Page:
    """Return the page of a definition."""
    record = ask.project.find(kind, name)
    if record is None:
        known = [each.name for each in ask.project.of_kind(kind)]
        link = (ask.at(kind), f"All {kind_name(kind, 2)}") if known else (ask.at(), ask.project.name)
        raise NotThere(kind_name(kind), name, known, link)
    return _OF_KIND.get(kind, anything)(ask, record)


def anything(ask: Ask, record: Record) -> Page:
    """Return the page of a record of which this version knows nothing more than that it is one."""
    return Page("definition.html", about(ask, record))


def kind(ask: Ask, kind: str) -> Page:
    """Return the list of one kind's definitions."""
    found = ask.project.of_kind(kind)
    if not found:
        raise NotThere("page", kind, list(ask.project.kinds), (ask.at(), ask.project.name))
    page = ask.page_number()
    shown = found[(page - 1) * PER_PAGE : page * PER_PAGE]
    return Page(
        "kind.html",
        {
            "kind": kind,
            "rows": shown,
            "total": len(found),
            "page": page,
            "pages": -(-len(found) // PER_PAGE),
            "activity": ask.activity if kind == VIEW else {},
        },
    )
