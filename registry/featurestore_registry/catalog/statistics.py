"""Statistics of columns, as runs and saved training sets left them in the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from featurestore_registry.catalog.named import SavedSet
from featurestore_registry.catalog.reading import read, read_all
from featurestore_registry.documents import (
    EDGES,
    STATISTICS,
    TRAINING_SET,
    BinsDocument,
    ColumnStatistics,
    EdgesDocument,
    StatisticsDocument,
)
from featurestore_registry.interface import LedgerReader

MOST_RUNS = 30
"""At most so many of the newest runs make a line."""
_MOST_COLUMNS = 6_000
"""At most about so many statistics of columns are read for one page."""
_MOST_EDGES = 3
"""Versions of a view's bins that are looked through."""
_MOST_SETS = 8


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of the columns of one view or training set, newest first."""

    documents: Sequence[StatisticsDocument]
    bins: Mapping[tuple[str, int], BinsDocument]
    """By column and version."""

    @property
    def newest(self) -> StatisticsDocument | None:
        """The newest statistics of rows: a run that appended none tells nothing."""
        return next((found for found in self.documents if found.rows), next(iter(self.documents), None))

    def column(self, name: str) -> ColumnStatistics | None:
        """Return the newest statistics of a column."""
        return None if self.newest is None else column_of(self.newest, name)


def column_of(document: StatisticsDocument, name: str) -> ColumnStatistics | None:
    """Return a column's statistics."""
    return next((column for column in document.columns if column.name == name), None)


def profile_of(ledger: LedgerReader, project: str, key: str, *, columns: int = 1, runs: int = 1) -> Profile:
    """Return the statistics under a key (``{view}.{generation}``), of at most so many runs."""
    most = max(min(runs, MOST_RUNS, _MOST_COLUMNS // max(columns, 1)), 1)
    found = (read(entry, StatisticsDocument) for entry in ledger.scan(project, STATISTICS, key=key, limit=most))
    documents = [document for document in found if document is not None]
    return Profile(documents, bins_of(ledger, project, key))


def bins_of(ledger: LedgerReader, project: str, key: str) -> dict[tuple[str, int], BinsDocument]:
    """Return the bins of the columns under a key, by column and version: those of the newest versions."""
    made: dict[tuple[str, int], BinsDocument] = {}
    for entry in ledger.scan(project, EDGES, key=key, limit=_MOST_EDGES):
        document = read(entry, EdgesDocument)
        for name, bins in (document.columns if document else {}).items():
            made.setdefault((name, bins.version), bins)
    return made


@dataclass(frozen=True, slots=True)
class InSet:
    """The statistics of a feature in a saved training set: of windowed and on-demand ones there are no others."""

    training_set: str
    document: StatisticsDocument
    column: ColumnStatistics


def in_training_sets(
    ledger: LedgerReader, project: str, sets: Sequence[SavedSet], key: str, names: Sequence[str]
) -> dict[str, InSet]:
    """Return, by feature of a view's generation (``key``), its statistics in the newest of some sets that holds it."""
    made: dict[str, InSet] = {}
    view = key.rpartition(".")[0]
    for saved in sets[:_MOST_SETS]:
        on_demand = saved.certificate.on_demand if saved.certificate else {}
        if view not in on_demand and all(found.view != view for found in saved.document.reads):
            continue
        document = read(ledger.latest(project, STATISTICS, f"{TRAINING_SET}:{saved.name}"), StatisticsDocument)
        columns = {column.feature: column for column in (document.columns if document else ())}
        for name in names:
            found = columns.get(f"{key}:{name}")
            if document is not None and found is not None and name not in made:
                made[name] = InSet(saved.name, document, found)
    return made


def feature_of(column: ColumnStatistics) -> tuple[str, str]:
    """Return the key of a view's generation, and the feature of it, that a column of a training set holds."""
    key, _, name = column.feature.rpartition(":")
    return key, name


@dataclass(frozen=True, slots=True)
class Shares:
    """The figures of one feature that lists show."""

    rows: int
    nulls: int
    distinct: int | None


def all_shares(ledger: LedgerReader, project: str) -> dict[tuple[str, str], Shares]:
    """Return the newest figures by key (``{view}.{generation}``) and feature, of a whole project: one read.

    Of features that no run counts, windowed and on-demand ones, those of the newest training set that holds them.
    """
    of_runs, of_sets = dict[tuple[str, str], Shares](), dict[tuple[str, str], Shares]()
    documents = read_all(ledger.scan(project, STATISTICS), StatisticsDocument)
    for key, document in sorted(documents.items(), key=lambda each: each[1].made_us):
        for column in document.columns:
            shares = Shares(column.rows, column.nulls, column.distinct)
            if key.startswith(f"{TRAINING_SET}:"):
                of_sets[feature_of(column)] = shares
            else:
                of_runs[key, column.name] = shares
    return of_sets | of_runs
