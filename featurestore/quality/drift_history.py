"""What a change comes with, by what is kept beside the rows: runs and files, definitions, and whose rows they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath

import numpy as np
from featurestore_registry.documents import ColumnStatistics, DriftCause, StatisticsDocument

from featurestore.definitions import FeatureView
from featurestore.ledger.statistics import recent_statistics
from featurestore.quality.counts import Floats
from featurestore.quality.drift import population_stability
from featurestore.quality.drift_causes import Change
from featurestore.quality.entities import looked_up
from featurestore.quality.gathering import request_of
from featurestore.quality.observed import Bools, Observed, numbered
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.served.hashing import keys_of
from featurestore.statistics.sets import hashed
from featurestore.types.times import to_short_rfc3339
from featurestore.workspace import Readers

RUNS = 60
"""So many runs are looked back."""
LEAST_VALUES = 100
BEGUN = 0.1
"""Runs before and after a beginning are so far apart, at least: the index, or a share of nulls."""
BEGUN_DEVIATIONS = 0.5
OF_RUN, OF_DEFINITION = 0.6, 0.99
"""A run says where a change began, not what it is; a definition that changed then is what it is."""
MOST_FILES = 3


def of_runs(workspace: Readers, registered: RegisteredView, feature: str, *, of_nulls: bool) -> Iterator[DriftCause]:
    """Yield the run with which a stored feature changed, and what of the view's definition changed with it."""
    found = recent_statistics(workspace.ledger, workspace.project, registered.ledger_key, limit=RUNS)[::-1]
    runs = [(each, column) for each in found if (column := _column(each, feature)) is not None and column.rows]
    columns = [column for _, column in runs]
    if of_nulls:
        begun = _beginning([np.array([column.nulls, column.rows - column.nulls], np.float64) for column in columns])
    elif len({column.bins for column in columns}) == 1:
        begun = _beginning([_counts(column) for column in columns])
    else:  # bins were made again: too many values lay outside, perhaps of these very runs
        begun = _beginning_of_means(columns)
    if begun is None:
        return
    before, first = runs[begun - 1][0], runs[begun][0]
    yield DriftCause(
        "run", f"it began with run {first.run_id} at {to_short_rfc3339(first.made_us)}{_files(before, first)}", OF_RUN
    )
    changed = _changed(workspace, registered.view.name, before.revision, first.revision)
    if changed:
        yield DriftCause("definition", f"{changed}, before run {first.run_id}, with which it began", OF_DEFINITION)


def of_entities(
    workspace: Readers, service: str | None, baseline: Observed, now: Observed, change: Change
) -> Iterator[DriftCause]:
    """Yield how much of a change comes of entities that the baseline does not have."""
    owner = change.feature.owner
    columns = owner.split(", ")
    if not set(columns) <= baseline.keys.keys() & now.keys.keys():
        return
    known = _known(workspace, service, baseline, now, columns)
    if known is None or known.all():
        return
    share = 1 - float(known.mean())
    weight = change.explained(change.without(np.zeros(len(change.before), bool), ~known))
    told = (
        f"{share:.0%} of the rows are of entities that {baseline.what} does not have: without them {weight:.0%} of the "
        "change is gone"
    )
    yield DriftCause("entities", told.replace("%", " %"), weight * 0.97)


def _known(
    workspace: Readers, service: str | None, baseline: Observed, now: Observed, columns: Sequence[str]
) -> Bools | None:
    """Tell which rows of now are of entities that the baseline has; None where keys cannot be compared."""
    import pyarrow as pa

    sides = [[each.keys[name] for name in columns] for each in (baseline, now)]
    if baseline.hashes != now.hashes:
        key = keys_of(workspace).of(now.hashes)
        if service is None or baseline.kind != "training" or key is None:
            return None
        request, salt = request_of(workspace, service), bytes.fromhex(baseline.hashes)
        again = []
        for name, column in zip(columns, sides[1], strict=True):
            kind = request.key_types[name][0]
            plain = looked_up(workspace, [request], name, column, key) if now.hashes else column
            codes = plain.dictionary_encode()
            values = pa.array(hashed(codes.dictionary.to_pylist(), kind, salt), pa.string())
            again.append(values.take(codes.indices))
        sides[1] = again
    together = [pa.concat_arrays([one, two.cast(one.type)]) for one, two in zip(*sides, strict=True)]
    numbers = numbered(together)
    rows = len(sides[0][0])
    return np.isin(numbers[rows:], np.flatnonzero(np.bincount(numbers[:rows])))


def _beginning(vectors: Sequence[Floats]) -> int | None:
    """Return from which run on counts are others than before: where both parts are furthest apart."""
    best, begun = BEGUN, None
    for place in range(1, len(vectors)):
        parts = [np.sum(vectors[:place], 0), np.sum(vectors[place:], 0)]
        if min(part.sum() for part in parts) < LEAST_VALUES:
            continue
        apart = population_stability(*parts)
        if apart > best:
            best, begun = apart, place
    return begun


def _beginning_of_means(columns: Sequence[ColumnStatistics]) -> int | None:
    """Return from which run on means are others than before, by the deviations of before."""
    best, begun = BEGUN_DEVIATIONS, None
    for place in range(1, len(columns)):
        parts = [_moments(part) for part in (columns[:place], columns[place:])]
        if parts[0] is None or parts[1] is None or min(part[2] for part in parts if part) < LEAST_VALUES:
            continue
        apart = abs(parts[1][0] - parts[0][0]) / parts[0][1] if parts[0][1] else 0.0
        if apart > best:
            best, begun = apart, place
    return begun


def _moments(columns: Sequence[ColumnStatistics]) -> tuple[float, float, int] | None:
    """Return mean, deviation and rows of some runs together; None where they have no numbers."""
    some = [(each.mean, each.deviation or 0.0, each.rows - each.nulls) for each in columns if each.mean is not None]
    rows = sum(held for _, _, held in some)
    if not rows:
        return None
    mean = sum(each * held for each, _, held in some) / rows
    variance = sum((deviation**2 + (each - mean) ** 2) * held for each, deviation, held in some) / rows
    return mean, variance**0.5, rows


def _column(document: StatisticsDocument, feature: str) -> ColumnStatistics | None:
    return next((column for column in document.columns if column.name == feature), None)


def _counts(column: ColumnStatistics) -> Floats:
    return np.array([*column.at_points, *column.in_bins, column.elsewhere], np.float64)


def _files(before: StatisticsDocument, first: StatisticsDocument) -> str:
    """Return which files of its sources a run was the first to find."""
    new = [path for source, paths in first.files.items() for path in paths if path not in before.files.get(source, ())]
    if not new:
        return ""
    shown = ", ".join(PurePath(path).name for path in new[:MOST_FILES])
    more = f" and {len(new) - MOST_FILES:,} more" if len(new) > MOST_FILES else ""
    return f", which read {shown}{more} first"


def _changed(workspace: Readers, view: str, before: str, after: str) -> str:
    """Return in words how a view's definition changed between two revisions; empty where it did not."""
    hashes = list(workspace.snapshot().chain.hashes)
    if before == after or before not in hashes or after not in hashes:
        return ""
    numbers = range(hashes.index(before), hashes.index(after) + 1)
    definitions = workspace.registry.definitions
    views = [Snapshot.of(definitions.read(workspace.project, n + 1)).views.get(view) for n in numbers]
    for number, (old, new) in zip(list(numbers)[1:], pairwise(views), strict=True):
        parts = [] if old is None or new is None else _parts(old.view, new.view)
        if parts:
            return f"{' and '.join(parts)} of {view} changed in revision {number + 1}"
    return ""


def _parts(old: FeatureView, new: FeatureView) -> list[str]:
    """Return the parts of a definition that values come from and that differ."""
    found = [name for name in ("sql", "aggregations", "ttl") if getattr(old, name) != getattr(new, name)]
    reads = [[(s.batch_source.path, s.batch_source.timestamp_field) for s in view.sources] for view in (old, new)]
    return [*found, *(["source"] if reads[0] != reads[1] else [])]
