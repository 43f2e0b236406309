"""Statistics and bins of generations whose data is gone: their newest entry becomes an empty document."""

from __future__ import annotations

from contextlib import suppress

from featurestore_registry.documents import EDGES, STATISTICS, EdgesDocument, StatisticsDocument

from featurestore.errors import AuthError
from featurestore.ledger.generations import used_generations
from featurestore.ledger.statistics import write_edges, write_statistics
from featurestore.offline.interface import TableId
from featurestore.registered.snapshot import generation_key
from featurestore.workspace import Workspace


def forget_gone(workspace: Workspace) -> None:
    """Write an empty document, once, over what the ledger holds of generations that are neither applied nor stored."""
    ledger, project = workspace.ledger, workspace.project
    with suppress(AuthError):  # a registry's server of an earlier release keeps none
        kept = {entry.key for entry in ledger.scan(project, STATISTICS) if entry.document.get("columns")}
        bins = {entry.key: entry for entry in ledger.scan(project, EDGES) if entry.document.get("columns")}
        if not kept and not bins:
            return
        applied = {registered.table for registered in workspace.snapshot().views.values()}
        there = applied | {*workspace.offline.tables(project)}
        used = used_generations(ledger, project)
        tables = (TableId(project, view, number) for view, numbers in used.items() for number in numbers)
        for key in (generation_key(table.view, table.generation) for table in tables if table not in there):
            if key in kept:
                write_statistics(ledger, project, key, StatisticsDocument(0, 0, 0, ()))
            if key in bins:
                write_edges(ledger, project, key, EdgesDocument(), if_version=bins[key].version)
