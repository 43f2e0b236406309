"""The list of all features, sortable, and the audit log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurestore_registry.auth import Role
from featurestore_registry.catalog.activity import ViewActivity, generation_of
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.project import ON_DEMAND, Feature
from featurestore_registry.catalog.statistics import Shares
from featurestore_registry.documents import AUDIT

PER_PAGE = 100
SORTS = ("name", "view", "type", "owner", "newest", "nulls", "distinct")
NUMBERS = frozenset({"newest", "nulls", "distinct"})
MOST_AUDIT = 1_000
AUDIT_PER_PAGE = 50
_MOST_DEPTH = 8
"""How deep in an entry's document the list goes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A feature in the list."""

    feature: Feature
    activity: ViewActivity | None
    shares: Shares | None


def features(ask: Ask) -> Page:
    """Return the list of all features."""
    sort, page = ask.choice("sort", SORTS), ask.page_number()
    is_down = ask.text("order") == "desc"
    shares = ask.if_may(Role.READER, lambda: ask.site.shares(ask.project, ask.state))
    activity = ask.activity
    rows = [_row(feature, activity, shares or {}) for feature in ask.project.features]
    key = _KEYS[sort]
    known = [row for row in rows if key(row) is not None]
    missing = [row for row in rows if key(row) is None]
    known.sort(key=key, reverse=is_down)  # the sort is stable: equal ones stay in the order of their views
    rows = [*known, *missing]

    def sorted_by(name: str) -> str:
        """Return the address of the list in another order; a second time the other way round."""
        other = "desc" if (name == sort and not is_down) else ""
        return ask.at("features", sort="" if name == SORTS[0] else name, order=other)

    return Page(
        "features.html",
        {
            "rows": rows[(page - 1) * PER_PAGE : page * PER_PAGE],
            "total": len(rows),
            "page": page,
            "pages": -(-len(rows) // PER_PAGE),
            "sort": sort,
            "is_down": is_down,
            "sorted_by": sorted_by,
            "may_read": shares is not None,
            "number_page": lambda number: ask.at(
                "features", sort="" if sort == SORTS[0] else sort, order="desc" if is_down else "", page=number
            ),
        },
    )


def _row(feature: Feature, activity: Mapping[str, ViewActivity], shares: Mapping[tuple[str, str], Shares]) -> Row:
    view = feature.view
    generation = 0 if view.kind == ON_DEMAND else generation_of(view.document)
    return Row(feature, activity.get(view.name), shares.get((f"{view.name}.{generation}", feature.name)))


def _nulls(row: Row) -> float | None:
    return (
        None
        if row.shares is None or not row.shares.rows
        else (row.shares.nulls + row.shares.not_finite) / row.shares.rows
    )


_KEYS: Mapping[str, Callable[[Row], Any]] = {
    "name": lambda row: row.feature.name.casefold(),
    "view": lambda row: row.feature.view.name.casefold(),
    "type": lambda row: row.feature.field.type,
    "owner": lambda row: row.feature.view.owner.casefold() or None,
    "newest": lambda row: None if row.activity is None else row.activity.newest_us,
    "nulls": _nulls,
    "distinct": lambda row: None if row.shares is None else row.shares.distinct,
}


def audit(ask: Ask) -> Page:
    """Return the audit log: of the project, or of what belongs to none, such as logins."""
    sees_all, page = ask.visitor.can(Role.ADMIN, ""), ask.page_number()
    is_all = sees_all and ask.text("of") == "registry"
    found = ask.journal.newest("" if is_all else ask.project.name, AUDIT, limit=MOST_AUDIT)
    shown = found[(page - 1) * AUDIT_PER_PAGE : page * AUDIT_PER_PAGE]
    rows = [
        {
            "at": entry.written_at,
            "by": str(entry.document.get("by", "")),
            "from": str(entry.document.get("from", "")),
            "action": str(entry.document.get("action", entry.key)),
            "about": _about(entry.document),
        }
        for entry in shown
    ]
    return Page(
        "audit.html",
        {
            "rows": rows,
            "is_all": is_all,
            "sees_all": sees_all,
            "page": page,
            "pages": -(-len(found) // AUDIT_PER_PAGE),
            "is_cut": len(found) == MOST_AUDIT,
        },
    )


def _about(document: Mapping[str, Any]) -> str:
    rest = {name: told for name, told in document.items() if name not in ("by", "from", "action", "token")}
    return ", ".join(f"{name} {_text(told)}" for name, told in rest.items())[:600]


def _text(told: Any, depth: int = 0) -> str:
    if depth > _MOST_DEPTH:
        return "…"
    if isinstance(told, list):
        return ", ".join(_text(each, depth + 1) for each in told) or "none"
    if isinstance(told, dict):
        parts = ((name, each) for name, each in told.items() if each and not name.endswith("_us"))
        return ", ".join(f"{name} {_text(each, depth + 1)}" for name, each in parts)
    return str(told)
