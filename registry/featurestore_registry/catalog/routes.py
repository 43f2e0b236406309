"""Which page has which address below ``/p/{project}``. ``*`` stands for any name; the first that fits is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages import (
    changes,
    definitions,
    features,
    home,
    ledgered,
    lineage,
    listing,
    monitors,
    searching,
)


class Route(NamedTuple):
    """A page's address, what makes it, and the least role that sees it."""

    pattern: str
    make: Callable[..., Page]
    role: Role = Role.VIEWER

    def match(self, segments: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return what stands at the stars; None where the address is another."""
        parts = self.pattern.split("/") if self.pattern else []
        if len(parts) != len(segments):
            return None
        if any(part not in ("*", segment) for part, segment in zip(parts, segments, strict=True)):
            return None
        return tuple(segment for part, segment in zip(parts, segments, strict=True) if part == "*")


ROUTES: tuple[Route, ...] = (
    Route("", home.home),
    Route("search", searching.search),
    Route("features", listing.features),
    Route("feature/*/*/*", features.feature),
    Route("lineage", lineage.lineage),
    Route("training_set", ledgered.training_set_list),
    Route("training_set/*", ledgered.training_set),
    Route("consumer", ledgered.consumer_list),
    Route("consumer/*", ledgered.consumer),
    Route("monitor", monitors.monitor_list),
    Route("revisions", changes.revisions),
    Route("revision/*", changes.revision),
    Route("compare/*/*", changes.compared),
    Route("history/*/*", changes.history),
    Route("audit", listing.audit, Role.ADMIN),
    Route("*/*", definitions.definition),
    Route("*", definitions.kind),
)


def find(segments: tuple[str, ...]) -> tuple[Route, tuple[str, ...]] | None:
    """Return the page of an address, and what stands at its stars."""
    for route in ROUTES:
        found = route.match(segments)
        if found is not None:
            return route, found
    return None


def page_of(ask: Ask, route: Route, names: tuple[str, ...]) -> Page:
    """Return a page; raises AuthError for a visitor whose role is not enough."""
    ask.visitor.require(route.role, ask.project.name)
    return route.make(ask, *names)
