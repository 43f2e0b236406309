"""Data of a project that no definition uses any more: of deleted views, and of earlier generations."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from featurestore.consistency.ownership import Ownership
from featurestore.errors import EngineError, FeatureStoreError, OfflineStoreError, OnlineStoreError
from featurestore.offline.interface import TableId, TableReader
from featurestore.online.records.keys import view_prefix
from featurestore.online.records.marker import MarkerReader
from featurestore.workspace import Readers

_MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Remains:
    """Data that this registry may delete. Saved training sets may still use it."""

    tables: tuple[tuple[TableId, int | None], ...]
    """Tables of the offline store and their rows, None if a table cannot be read."""
    parts: tuple[tuple[str, int], ...]
    """View and generation of online records."""
    is_online_known: bool
    """False if the online store did not answer."""

    def texts(self) -> list[str]:
        """Return a few words about each."""
        found = [f"offline table {table}" + ("" if rows is None else f", {rows:,} rows") for table, rows in self.tables]
        found += [f"online records of {view} (generation {generation})" for view, generation in self.parts]
        more = len(found) - _MOST_NAMED
        return found[:_MOST_NAMED] + [f"{more:,} more"] * (more > 0)


def find_remains(workspace: Readers) -> Remains:
    """Return a project's data that none of its definitions uses. Changes nothing.

    Raises NotFoundError if the registry does not know the project.
    """
    owned = Ownership(workspace)
    project = workspace.project
    used = {registered.table for registered in workspace.snapshot().views.values()}
    tables = [
        table
        for table in workspace.offline.tables(project)
        if table not in used and owned.of_table(table, asked=True) is None
    ]
    parts, is_known = [], True
    with suppress(OnlineStoreError):
        is_known = False
        for view, generation in owned.parts():
            if TableId(project, view, generation) in used:
                continue
            # Only the marker: to search for records, Redis would have to scan all of its keys.
            markers, _ = MarkerReader(workspace.online, view_prefix(project, view, generation)).read(at_once=True)
            if any(marker is not None and marker.project == owned.chain.identity for marker in markers):
                parts.append((view, generation))
        is_known = True
    return Remains(tuple((table, rows_of(workspace.offline, table)) for table in tables), tuple(parts), is_known)


def rows_of(offline: TableReader, table: TableId) -> int | None:
    """Return how many rows a table holds, pushed ones included; None where there is none, or it cannot be read."""
    with suppress(OfflineStoreError):
        version = offline.current(table)
        return None if version is None else version.rows
    return None


def pushed_rows_of(workspace: Readers, table: TableId) -> int:
    """Return how many rows of a table were pushed; 0 also where there is none, or it cannot be read."""
    with suppress(OfflineStoreError, EngineError):
        version = workspace.offline.current(table)
        return 0 if version is None else workspace.engine.log.pushed([file.path for file in version.files])
    return 0


def with_remains(workspace: Readers, error: FeatureStoreError, *, finish: str) -> FeatureStoreError:
    """Return the error of a deletion that failed half-way: what is left, and which command finishes it."""
    try:
        revision, remains = workspace.snapshot().revision, find_remains(workspace)
    except FeatureStoreError:
        return error  # the first one says more
    left = remains.texts() + ["online records that could not be listed"] * (not remains.is_online_known)
    still = f" Still there: {'; '.join(left)}." if left else ""
    return type(error)(
        f"{error.message} The definitions are removed (revision {revision}), not all of their data is.{still}",
        hint=f"{error.hint} Then run `{finish}`: it deletes the rest.".strip(),
        **error.details,
    )
