"""Documents of ledger and journal, read as far as this version understands them: none may stop a page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from featurestore_registry.records import Document, JournalEntry, LedgerEntry

logger = logging.getLogger("featurestore.registry")

Made = TypeVar("Made")
Answer = TypeVar("Answer")


def read(entry: LedgerEntry | JournalEntry | None, kind: type[Made], part: Document | None = None) -> Made | None:
    """Return an entry's document, or a part of it; None, with a line in the log, where it has another form."""
    if entry is None:
        return None
    found = entry.document if part is None else part
    try:
        msgspec.msgpack.encode(found)  # fails for integers of more than 64 bits, which no float holds on a page
        return msgspec.convert(found, kind)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        logger.info("the catalog leaves out %s %r of project %r: %s", entry.kind, entry.key, entry.project, error)
        return None


def read_all(entries: Iterable[LedgerEntry], kind: type[Made]) -> dict[str, Made]:
    """Return the documents of entries by their keys, those that have the form."""
    return {entry.key: made for entry in entries if (made := read(entry, kind)) is not None}


def facts(document: Document, make: Callable[[Document], Answer]) -> Answer | None:
    """Return what ``make`` finds in a record's document; None where a version wrote it that writes otherwise."""
    try:
        return make(document)
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def objects(value: Any) -> tuple[Document, ...]:
    """Return the JSON objects of a list; none for anything else."""
    return tuple(part for part in value if isinstance(part, Mapping)) if isinstance(value, list | tuple) else ()


def mapping(value: Any) -> Document:
    """Return a JSON object; raises TypeError for anything else."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is no object")
    return value
