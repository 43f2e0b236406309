"""All projects: where the catalog begins when there is more than one."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.site import Site
from featurestore_registry.catalog.words import to_us

MOST = 200
"""At most so many projects are listed with what they hold."""


def projects(site: Site, names: Sequence[str]) -> Page:
    """Return the page of the projects that a visitor sees."""
    rows, now_us = [], 0
    for name in names[:MOST]:
        found = site.summary(name)
        if found is not None:
            summary, state = found
            now_us = to_us(state.now)
            rows.append((name, summary, state))
    return Page("projects.html", {"rows": rows, "now_us": now_us, "left_out": len(names) - MOST})
