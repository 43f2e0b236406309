"""Selections of features as JSON, and JSON as selections again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from featurestore.definitions import FeatureSelection, FeatureView

Lookup = Callable[[str, str], Any]
"""Returns the definition of a kind and name that a record depends on."""


def selection_document(selection: FeatureSelection) -> dict[str, Any]:
    """Return a selection as JSON, its features pinned by name."""
    return {
        "view": selection.view.name,
        "features": [field.name for field in selection.features],
        "name": selection.name,
        "join_keys": selection.columns,
    }


def selection_from(document: Mapping[str, Any], lookup: Lookup) -> FeatureSelection:
    """Return the selection of a `selection_document`."""
    return FeatureSelection(
        lookup(FeatureView.kind, document["view"]),
        name=document["name"],
        names=tuple(document["features"]),
        columns=dict(document["join_keys"]),
    )
