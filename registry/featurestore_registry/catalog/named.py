"""What people wrote into a project's ledger by name: saved training sets, and consumers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from featurestore_registry.catalog.reading import read
from featurestore_registry.catalog.search import Index, entry_of
from featurestore_registry.documents import (
    CONSUMER,
    DELETED,
    TRAINING_SET,
    CertificateDocument,
    ConsumerDocument,
    SavedSetDocument,
)
from featurestore_registry.interface import LedgerReader
from featurestore_registry.records import LedgerEntry


@dataclass(frozen=True, slots=True)
class SavedSet:
    """A saved training set, as far as this version understands it."""

    name: str
    saved_at: datetime
    document: SavedSetDocument
    certificate: CertificateDocument | None


@dataclass(frozen=True, slots=True)
class Named:
    """Both, and what a search looks through."""

    sets: tuple[SavedSet, ...]
    """The newest first."""
    consumers: tuple[ConsumerDocument, ...]
    """By name."""
    index: Index


def read_named(ledger: LedgerReader, project: str) -> Named:
    """Return what is there and was not deleted."""
    entries = (entry for entry in ledger.scan(project, CONSUMER) if entry.document not in DELETED)
    found = (read(entry, ConsumerDocument) for entry in entries)
    consumers = sorted((each for each in found if each is not None), key=lambda each: each.name)
    sets = [made for entry in ledger.scan(project, TRAINING_SET) if (made := _saved(entry)) is not None]
    told = [entry_of(CONSUMER, each.name, each.description, each.owner, each.services) for each in consumers]
    told += [entry_of(TRAINING_SET, each.name, "", "", [read.view for read in each.document.reads]) for each in sets]
    return Named(tuple(sets), tuple(consumers), Index(told))


def _saved(entry: LedgerEntry) -> SavedSet | None:
    document = None if entry.document in DELETED else read(entry, SavedSetDocument)
    if document is None:
        return None
    return SavedSet(entry.key, entry.written_at, document, read(entry, CertificateDocument, document.certificate))
