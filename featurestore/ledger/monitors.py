"""What monitors found, in the ledger: kind ``monitor``, by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from typing import Any

import msgspec
from featurestore_registry.documents import MONITOR
from featurestore_registry.findings import MonitorDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.errors import LedgerConflictError, RegistryFormatError
from featurestore.registered.records import understood
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")
TRIES = 5
"""So often a finding is changed while others change it."""
_ID = re.compile("[0-9a-f]{1,64}")


def newest_finding(ledger: LedgerReader, project: str, name: str) -> tuple[MonitorDocument | None, int]:
    """Return what a monitor found last, and the version of the entry; None and 0 where it never ran.

    What is in no known form counts as nothing, with a warning, so that the next run may go on: the ledger keeps it. A
    later version that wants another form gives it a kind of its own, as with all entries.
    """
    entry = ledger.latest(project, MONITOR, name)
    if entry is None:
        return None, 0
    try:
        with understood(f"what monitor {name!r} found"):
            return _whole(msgspec.convert(entry.document, MonitorDocument), name), entry.version
    except RegistryFormatError as error:
        logger.warning("%s It counts as nothing: alarms that were open begin anew.", error.message)
        return None, entry.version


def _whole(document: MonitorDocument, name: str) -> MonitorDocument:
    """Return a finding; raises ValueError for one that no version wrote: whoever may write the ledger may write any."""
    if document.monitor != name:
        raise ValueError("it is of another monitor")
    if not all(_ID.fullmatch(alarm.id) for alarm in document.alarms):
        raise ValueError("the id of an alarm is none")
    parts: tuple[Any, ...] = (document, *document.alarms, *document.features)
    for part in parts:
        for field in (each.name for each in fields(part)):
            if field.endswith("_us") and not MIN_INSTANT <= getattr(part, field) <= MAX_INSTANT:
                raise ValueError(f"{field} is no instant")
    return document


def recent_findings(ledger: LedgerReader, project: str, name: str, *, limit: int) -> list[MonitorDocument]:
    """Return what a monitor found, newest first; without what is in no known form."""
    found = []
    for entry in ledger.scan(project, MONITOR, key=name, limit=limit):
        with suppress(RegistryFormatError), understood(f"what monitor {name!r} found"):
            found.append(_whole(msgspec.convert(entry.document, MonitorDocument), name))
    return found


def write_finding(ledger: Ledger, project: str, document: MonitorDocument, *, if_version: int) -> None:
    """Keep what a monitor found; raises LedgerConflictError where it was run meanwhile."""
    ledger.append(project, MONITOR, document.monitor, msgspec.to_builtins(document), if_version=if_version)


Marking = Callable[[MonitorDocument, int], tuple[MonitorDocument, tuple[str, ...]]]
"""Returns a finding at an instant with other marks, and the ids of the alarms that got them."""


def change_alarms(workspace: Workspace, name: str, change: Marking) -> tuple[str, ...]:
    """Change the marks of alarms in what a monitor found last; returns the ids that ``change`` did, none where none."""
    for _ in range(TRIES):
        document, version = newest_finding(workspace.ledger, workspace.project, name)
        if document is None:
            return ()
        made, ids = change(document, workspace.clock())
        if not ids:
            return ()
        with suppress(LedgerConflictError):
            write_finding(workspace.ledger, workspace.project, made, if_version=version)
            return ids
    return ()
