"""Statistics of what a run appended to a view's log."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa
from featurestore_registry.documents import BinsDocument, ColumnStatistics, EdgesDocument, StatisticsDocument

from featurestore.engine.profiles import ProfiledColumns, Sample
from featurestore.errors import AuthError, FeatureStoreError, LedgerConflictError
from featurestore.ledger.statistics import newest_statistics, read_edges, write_edges, write_statistics
from featurestore.offline.interface import DataFile, TableVersion
from featurestore.offline.reading import opened, read_groups
from featurestore.registered.snapshot import RegisteredView
from featurestore.statistics.bins import BinCounts, count_in, make_bins, must_be_made, widened
from featurestore.statistics.columns import Column, of_view, statistics_of, totals_in, without_bins
from featurestore.statistics.counting import Counted, count
from featurestore.steps import crash_point, reached, step
from featurestore.types.arrow import arrow_schema
from featurestore.workspace import Workspace

logger = logging.getLogger("featurestore")

BINS_KEPT = crash_point(
    "statistics.bins_kept", "the ledger has the bins, not yet the statistics that were counted in them"
)
KEPT = crash_point("statistics.kept", "the ledger has the statistics of what the run appended")

LOG_ROWS = 50_000
"""How many rows of a log bins are made from, at most twice as many."""
LOG_PARTS = 20
"""From how many files and row groups they come at least, spread over the log."""
MOST_FILES = 100

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Added:
    """What a run brought into a table."""

    version: TableVersion
    """The version that has it."""
    files: tuple[DataFile, ...]


def profile_run(workspace: Workspace, registered: RegisteredView, added: Added | None, run_id: str) -> None:
    """Write statistics of what a run added into the ledger; without them no run fails.

    Where the view's generation has none, as after a run that was killed before that, they are of the whole log.
    """
    if registered.view.statistics is False:
        return
    try:
        before = newest_statistics(workspace.ledger, registered.project, registered.ledger_key)
        if before is None or not before.columns:
            added = _all_rows(workspace, registered, added)
        if added is None:
            return
        with step("profile", f"profile {registered.view.name}"):
            _profile(workspace, registered, added, run_id)
    except Exception as error:
        if added is None and isinstance(error, AuthError):  # a registry's server of an earlier release keeps none
            return
        is_strange = not isinstance(error, FeatureStoreError)
        logger.warning("run %s of %s has no statistics: %s", run_id, registered.view.name, error, exc_info=is_strange)


def _all_rows(workspace: Workspace, registered: RegisteredView, added: Added | None) -> Added | None:
    """Return all rows of a view's log as what a run added; None where there are none, or none that a run brings."""
    if not registered.view.batch_sources:
        return added
    version = workspace.offline.current(registered.table)
    return Added(version, tuple(version.files)) if version is not None and version.rows else None


def _profile(workspace: Workspace, registered: RegisteredView, added: Added, run_id: str) -> None:
    made_us, ledger, key = workspace.clock(), workspace.ledger, registered.ledger_key
    edges, entry = read_edges(ledger, registered.project, key)
    columns = {column.name: column for column in of_view(registered.view)}
    is_first = added.version.rows == sum(file.rows for file in added.files)
    counting = _Counting(workspace, added.version, made_us, dict(edges.columns), is_first)
    found, sampled = list[ColumnStatistics](), 0
    for profiled in workspace.engine.profiles.profile(
        [file.path for file in added.files],
        {column.name: column.kind for column in columns.values()},
        hidden=[column.name for column in columns.values() if column.is_hidden],
        sample=Sample.within(len(columns)),
    ):
        sampled = max(sampled, profiled.sample.num_rows)
        found += counting.statistics(profiled, columns)
    if counting.made:
        try:
            write_edges(ledger, registered.project, key, EdgesDocument(counting.bins), if_version=entry)
        except LedgerConflictError:  # a training set made some: what was counted in ours is in none
            found = [without_bins(each) if each.name in counting.made else each for each in found]
        reached(BINS_KEPT)
    document = StatisticsDocument(
        made_us,
        sum(file.rows for file in added.files),
        sampled,
        tuple(found),
        run_id=run_id,
        revision=registered.chain.head,
        code_hash="" if registered.view.sql is None else hashlib.sha256(registered.view.sql.encode()).hexdigest(),
        files=_files(workspace, registered),
    )
    write_statistics(ledger, registered.project, key, document)
    reached(KEPT)


@dataclass
class _Counting:
    """Counts a run's columns in their bins, and makes bins where there are none that fit."""

    workspace: Workspace
    version: TableVersion
    made_us: int
    bins: dict[str, BinsDocument]
    is_first: bool
    """Whether the run's rows are all that there are."""

    def __post_init__(self) -> None:
        self.made = set[str]()
        """The columns whose bins are new."""

    def statistics(self, profiled: ProfiledColumns, columns: Mapping[str, Column]) -> Iterator[ColumnStatistics]:
        """Yield the statistics of some columns."""
        names = profiled.sample.column_names if profiled.totals is None else list(profiled.totals)
        drawn = set(profiled.sample.column_names)
        counted = {name: count(columns[name].kind, profiled.sample.column(name)) for name in names if name in drawn}
        counts = self._count([columns[name] for name in counted if not columns[name].is_hidden], counted)
        for name in names:
            own, column = counted.get(name), columns[name]
            totals = totals_in(profiled, column, own)
            yield statistics_of(column, profiled.rows, own, totals, self.bins.get(name), counts.get(name))

    def _count(self, columns: Sequence[Column], counted: Mapping[str, Counted]) -> dict[str, BinCounts]:
        """Count columns in their bins, in new ones where there are none or too few values lie in them."""
        rows, counts, wanted = self.version.rows, dict[str, BinCounts](), list[Column]()
        for column in columns:
            bins, own = self.bins.get(column.name), counted[column.name]
            if bins is not None:
                counts[column.name] = count_in(own, bins)
            if own.held and must_be_made(bins, counts.get(column.name), own.held, rows):
                wanted.append(column)
        log = _some_rows(self.workspace, self.version, wanted) if wanted and not self.is_first else None
        for column in wanted:
            own, before = counted[column.name], self.bins.get(column.name)
            seen = own if log is None else count(column.kind, log.column(column.name))
            number = 1 if before is None else before.version + 1
            made = make_bins(
                seen if seen.held else own, rows=rows, made_us=self.made_us, version=number, shows_all=column.shows_all
            )
            self.bins[column.name] = widened(made, own)
            self.made.add(column.name)
            counts[column.name] = count_in(own, self.bins[column.name])
        return counts


def _some_rows(workspace: Workspace, version: TableVersion, columns: Sequence[Column]) -> pa.Table:
    """Return columns of rows from row groups that are spread evenly over a table's files, oldest to newest."""
    schema = arrow_schema({column.name: column.kind for column in columns})
    files = _spread(sorted(version.files, key=lambda file: (file.min_event_us, file.path)), version.rows)
    groups = list[tuple[DataFile, int, int]]()
    for file in files:
        with opened(workspace.offline, file) as parquet:
            groups += [(file, n, parquet.metadata.row_group(n).num_rows) for n in range(parquet.num_row_groups)]
    chosen = _spread(groups, sum(rows for _, _, rows in groups))
    every = max(1, sum(rows for _, _, rows in chosen) // LOG_ROWS)
    parts = [schema.empty_table()]
    for file, number, rows in chosen:
        with opened(workspace.offline, file) as parquet:
            parts.append(read_groups(parquet, [number], schema).take(np.arange(0, rows, every)))
    return pa.concat_tables(parts)


def _spread(parts: Sequence[Part], rows: int) -> Sequence[Part]:
    """Return parts at equal distances that have about `LOG_ROWS` rows, at least `LOG_PARTS` of them."""
    wanted = max(LOG_PARTS, -(-LOG_ROWS * len(parts) // max(rows, 1)))
    return parts if wanted >= len(parts) else [parts[(2 * n + 1) * len(parts) // (2 * wanted)] for n in range(wanted)]


def _files(workspace: Workspace, registered: RegisteredView) -> dict[str, tuple[str, ...]]:
    sources = workspace.engine.sources
    return {
        source.name: tuple(file.path for file in sources.files(source)[:MOST_FILES])
        for source in registered.view.batch_sources
    }
