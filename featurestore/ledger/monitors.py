"""What monitors found, in the ledger: kind ``monitor``, by name."""

from __future__ import annotations

import msgspec
from featurestore_registry.documents import MONITOR, MonitorDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.registered.records import understood


def newest_finding(ledger: LedgerReader, project: str, name: str) -> tuple[MonitorDocument | None, int]:
    """Return what a monitor found last, and the version of the entry; None and 0 where it never ran."""
    entry = ledger.latest(project, MONITOR, name)
    if entry is None:
        return None, 0
    with understood(f"what monitor {name!r} found"):
        return msgspec.convert(entry.document, MonitorDocument), entry.version


def write_finding(ledger: Ledger, project: str, document: MonitorDocument, *, if_version: int) -> None:
    """Keep what a monitor found; raises LedgerConflictError where it was run meanwhile."""
    ledger.append(project, MONITOR, document.monitor, msgspec.to_builtins(document), if_version=if_version)
