"""Statistics in the ledger, and the bins that they are counted in: kinds ``statistics`` and ``edges``.

The documents are `featurestore_registry.documents`'; a newer version may have written more, which is left out.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from featurestore_registry.documents import EDGES, STATISTICS, EdgesDocument, StatisticsDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.registered.records import understood

Document = TypeVar("Document", EdgesDocument, StatisticsDocument)


def newest_statistics(ledger: LedgerReader, project: str, key: str) -> StatisticsDocument | None:
    """Return the statistics that were written last under a key, None where there are none."""
    found = recent_statistics(ledger, project, key, limit=1)
    return found[0] if found else None


def recent_statistics(ledger: LedgerReader, project: str, key: str, *, limit: int) -> list[StatisticsDocument]:
    """Return the statistics under a key, newest first."""
    entries = ledger.scan(project, STATISTICS, key=key, limit=limit)
    with understood("statistics"):
        return [msgspec.convert(entry.document, StatisticsDocument) for entry in entries]


def write_statistics(ledger: Ledger, project: str, key: str, document: StatisticsDocument) -> None:
    """Append statistics."""
    ledger.append(project, STATISTICS, key, msgspec.to_builtins(document))


def read_edges(ledger: LedgerReader, project: str, key: str) -> tuple[EdgesDocument, int]:
    """Return the bins under a key, and the version of their entry: 0 where there are none."""
    entry = ledger.latest(project, EDGES, key)
    if entry is None:
        return EdgesDocument(), 0
    with understood("bins of statistics"):
        return msgspec.convert(entry.document, EdgesDocument), entry.version


def write_edges(ledger: Ledger, project: str, key: str, document: EdgesDocument, *, if_version: int) -> None:
    """Append bins; raises LedgerConflictError where others were written since those of a version were read."""
    ledger.append(project, EDGES, key, msgspec.to_builtins(document), if_version=if_version)
