"""Where a project's features come from, and who uses them."""

from __future__ import annotations

from contextlib import suppress

from featurestore_registry.lineage.graph import Graph, Lineage

from featurestore.errors import FeatureStoreError, InputError, NotFoundError, RecordNotFoundError
from featurestore.registered.records import KINDS
from featurestore.workspace import Readers


def lineage_of(workspace: Readers, name: str, *, up: int | None, down: int | None, columns: bool) -> Lineage:
    """Return what comes before and after something; see `FeatureStore.lineage`."""
    if any(steps is not None and steps < 0 for steps in (up, down)):
        raise InputError("A number of steps cannot be negative.", hint="Leave it out for all.")
    graph = Graph.read(workspace.snapshot().records, workspace.ledger, workspace.project)
    try:
        start = graph.find(name)
    except RecordNotFoundError as error:
        hint = _to_apply(workspace, name) or error.hint
        raise NotFoundError(error.message, hint=hint, **error.details) from None
    return graph.lineage([start], up=up, down=down, columns=columns)


def _to_apply(workspace: Readers, name: str) -> str:
    """Return what to do where a name is not applied yet; empty where that is not why it is unknown."""
    if not workspace.snapshot().definitions:
        return "Lineage is of what is applied, and nothing is yet: run `fs apply`."
    before, _, after = name.partition(":")
    asked, found = {name, after if before in KINDS else before, name.partition(".")[0]}, set[str]()
    with suppress(FeatureStoreError):  # code that does not load is not what was asked for
        found = {each.name for each in workspace.code} & asked
    known = {each.name for each in workspace.snapshot().definitions.values()}
    return f"{min(new)!r} is in the feature repo, but not applied: run `fs apply`." if (new := found - known) else ""
