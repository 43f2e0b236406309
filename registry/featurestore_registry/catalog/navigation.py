"""The links at the side of every page of a project."""

from __future__ import annotations

from typing import NamedTuple

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.words import kind_name
from featurestore_registry.documents import MONITOR


class Link(NamedTuple):
    """A link; ``number`` is how much is behind it."""

    label: str
    target: str
    number: int | None
    is_here: bool


def nav_links(ask: Ask) -> list[list[Link]]:
    """Return the links in groups; without what there is none of, or the visitor may not see."""
    here = ask.segments[:1]

    def link(label: str, *segments: str, number: int | None = None) -> Link:
        return Link(label, ask.at(*segments), number, here == segments)

    kinds = ask.project.kinds
    features = len(ask.project.features)
    return [
        [link("Home")],
        [
            *([link("All features", "features", number=features)] if features else []),
            *(link(kind_name(kind, 2).capitalize(), kind, number=kinds[kind]) for kind in kinds if kind != MONITOR),
        ],
        [
            link("Monitors", MONITOR, number=kinds.get(MONITOR)),
            link("Training sets", "training_set"),
            link("Consumers", "consumer"),
            link("Lineage", "lineage"),
        ],
        [link("Revisions", "revisions"), *([link("Audit log", "audit")] if ask.may(Role.ADMIN) else [])],
    ]
