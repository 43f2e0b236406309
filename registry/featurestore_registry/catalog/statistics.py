"""Statistics of columns, as runs and saved training sets left them in the ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from featurestore_registry.catalog.named import SavedSet
from featurestore_registry.catalog.reading import read
from featurestore_registry.catalog.sums import Sum, distinct_of, sum_of
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
from featurestore_registry.records import Document, LedgerEntry

MOST_RUNS = 30
"""At most so many of the newest runs make a line."""
_MOST_COLUMNS = 6_000
"""At most about so many statistics of columns are read for one page."""
_MOST_EDGES = 3
"""Versions of a view's bins that are looked through."""
_MOST_SETS = 8
"""Of the training sets that hold a view."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of the columns of one view or training set, newest first."""

    documents: Sequence[StatisticsDocument]
    bins: Mapping[tuple[str, int], BinsDocument]
    """By column and version."""

    def sum_of(self, name: str, in_set: InSet | None = None) -> Sum | None:
        """Return a column over all runs that counted it; where none did, as a training set holds it."""
        found = [
            (document, column)
            for document in self.documents
            if document.rows and (column := column_of(document, name)) is not None
        ]
        if not found and in_set is not None:
            found = [(in_set.document, in_set.column)]
        return sum_of(found, self.bins.get((name, found[0][1].bins or 0)) if found else None)

    @property
    def counted(self) -> tuple[int, int]:
        """The rows of all runs that are read here, and the number of these runs."""
        found = [document.rows for document in self.documents if document.rows]
        return sum(found), len(found)

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


def profile_of(
    ledger: LedgerReader,
    project: str,
    key: str,
    *,
    columns: int = 1,
    runs: int = 1,
    names: Collection[str] | None = None,
    hidden: Collection[str] = (),
) -> Profile:
    """Return the statistics under a key (``{view}.{generation}``), of at most so many runs; of some columns alone.

    Of ``hidden`` columns, and of those that the newest run hid, no earlier run shows a value.
    """
    documents = _documents(ledger, project, key, columns, runs, names)
    newest = next((document for document in documents if document.rows), None)
    kept_back = {*hidden, *(column.name for column in (newest.columns if newest else ()) if column.is_hidden)}
    return Profile([_hiding(each, kept_back) for each in documents], bins_of(ledger, project, key, names))


def _hiding(document: StatisticsDocument, names: Collection[str]) -> StatisticsDocument:
    if not names:
        return document
    columns = (without_values(column) if column.name in names else column for column in document.columns)
    return replace(document, columns=tuple(columns))


def without_values(column: ColumnStatistics) -> ColumnStatistics:
    """Return what shows of a column whose values do not."""
    counts = {name: getattr(column, name) for name in ("rows", "nulls", "not_finite", "distinct", "feature")}
    return ColumnStatistics(column.name, column.type, column.role, **counts, is_hidden=True)


def _documents(
    ledger: LedgerReader, project: str, key: str, columns: int, runs: int, names: Collection[str] | None = None
) -> list[StatisticsDocument]:
    most = max(min(runs, MOST_RUNS, _MOST_COLUMNS // max(columns, 1)), 1)
    # An empty one is written when the data is deleted: what came before is told no more.
    entries = takewhile(_has_columns, ledger.scan(project, STATISTICS, key=key, limit=most))
    found = (read(entry, StatisticsDocument, _with_columns(entry.document, names)) for entry in entries)
    return [document for document in found if document is not None]


def _has_columns(entry: LedgerEntry) -> bool:
    """Tell whether a document names columns, before any are left out."""
    return bool(entry.document.get("columns", True))


def _with_columns(document: Document, names: Collection[str] | None) -> Document:
    """Leave out columns that nobody asks for: a document may hold thousands."""
    columns = document.get("columns")
    if names is None:
        return document
    if isinstance(columns, Mapping):
        return {**document, "columns": {name: told for name, told in columns.items() if name in names}}
    if not isinstance(columns, list | tuple):
        return document
    kept = [told for told in columns if not isinstance(told, Mapping) or told.get("name") in names]
    return {**document, "columns": kept}


def bins_of(
    ledger: LedgerReader, project: str, key: str, names: Collection[str] | None = None
) -> dict[tuple[str, int], BinsDocument]:
    """Return the bins of the columns under a key, by column and version: those of the newest versions."""
    made: dict[tuple[str, int], BinsDocument] = {}
    for entry in ledger.scan(project, EDGES, key=key, limit=_MOST_EDGES):
        document = read(entry, EdgesDocument, _with_columns(entry.document, names))
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
    ledger: LedgerReader,
    project: str,
    sets: Sequence[SavedSet],
    key: str,
    names: Sequence[str],
    hidden: Collection[str] = (),
) -> dict[str, InSet]:
    """Return, by feature of a view's generation (``key``), its statistics in the newest of some sets that holds it.

    Of ``hidden`` features no value shows.
    """
    made: dict[str, InSet] = {}
    view = key.rpartition(".")[0]
    for saved in islice((each for each in sets if _reads(each, view)), _MOST_SETS):
        document = read(ledger.latest(project, STATISTICS, f"{TRAINING_SET}:{saved.name}"), StatisticsDocument)
        columns = {column.feature: column for column in (document.columns if document else ())}
        for name in names:
            found = columns.get(f"{key}:{name}")
            if document is not None and found is not None and name not in made:
                made[name] = InSet(saved.name, document, without_values(found) if name in hidden else found)
    return made


def _reads(saved: SavedSet, view: str) -> bool:
    on_demand = saved.certificate.on_demand if saved.certificate else {}
    return view in on_demand or any(found.view == view for found in saved.document.reads)


def feature_of(column: ColumnStatistics) -> tuple[str, str]:
    """Return the key of a view's generation, and the feature of it, that a column of a training set holds."""
    key, _, name = column.feature.rpartition(":")
    return key, name


@dataclass(frozen=True, slots=True)
class Shares:
    """The figures of one feature that lists show."""

    rows: int
    nulls: int
    not_finite: int
    distinct: int | None
    """The greatest of a run."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of all features of a project."""

    by_key: Mapping[str, tuple[int, Mapping[tuple[str, str], Shares]]]
    """By key of statistics the newest entry's version, and what all of its runs say."""
    shares: Mapping[tuple[str, str], Shares]
    """By key (``{view}.{generation}``) and feature. Of features that no run counts, windowed and on-demand ones, those
    of the newest training set that holds them."""


def figures_of(ledger: LedgerReader, project: str, before: Figures | None = None) -> Figures:
    """Return the figures over all runs; what has not changed since ``before`` is not read again."""
    by_key = dict[str, tuple[int, Mapping[tuple[str, str], Shares]]]()
    known = before.by_key if before is not None else {}
    of_runs, of_sets = dict[tuple[str, str], Shares](), dict[tuple[str, str], Shares]()
    for entry in sorted(ledger.scan(project, STATISTICS), key=lambda entry: entry.written_at):
        found = known.get(entry.key)
        if found is None or found[0] != entry.version:
            found = entry.version, _shares(ledger, project, entry)
        by_key[entry.key] = found
        (of_sets if entry.key.startswith(f"{TRAINING_SET}:") else of_runs).update(found[1])
    return Figures(by_key, of_sets | of_runs)


def _shares(ledger: LedgerReader, project: str, entry: LedgerEntry) -> dict[tuple[str, str], Shares]:
    """Return the figures of a training set, or of a view's runs, whose newest entry is given."""
    newest = read(entry, StatisticsDocument)
    if entry.key.startswith(f"{TRAINING_SET}:"):
        return {feature_of(each): _added([each]) for each in (newest.columns if newest else ())}
    documents = [newest] if newest is not None else []
    if entry.version > 1:
        documents = _documents(ledger, project, entry.key, len(newest.columns) if newest else 1, MOST_RUNS)
    found: dict[str, list[ColumnStatistics]] = {}
    for document in documents:
        for column in document.columns if document.rows else ():
            found.setdefault(column.name, []).append(column)
    return {(entry.key, name): _added(columns) for name, columns in found.items()}


def _added(columns: Sequence[ColumnStatistics]) -> Shares:
    same = [column for column in columns if column.type == columns[0].type]
    return Shares(
        sum(column.rows for column in same),
        sum(column.nulls for column in same),
        sum(column.not_finite for column in same),
        distinct_of(same),
    )
