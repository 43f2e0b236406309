"""Where a project's features come from, and who uses them."""

from __future__ import annotations

from featurestore_registry.lineage.graph import Graph, Lineage

from featurestore.errors import InputError, NotFoundError, RecordNotFoundError
from featurestore.workspace import Readers


def lineage_of(workspace: Readers, name: str, *, up: int | None, down: int | None, columns: bool) -> Lineage:
    """Return what comes before and after something; see `FeatureStore.lineage`."""
    if any(steps is not None and steps < 0 for steps in (up, down)):
        raise InputError("A number of steps cannot be negative.", hint="Leave it out for all.")
    graph = Graph.read(workspace.snapshot().records, workspace.ledger, workspace.project)
    try:
        start = graph.find(name)
    except RecordNotFoundError as error:
        raise NotFoundError(error.message, hint=error.hint, **error.details) from None
    return graph.lineage([start], up=up, down=down, columns=columns)
