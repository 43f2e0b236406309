"""What a change comes with, by what is kept beside the rows: runs and files, definitions, and whose rows they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import PurePath

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import ColumnStatistics, StatisticsDocument
from featurestore_registry.findings import DriftCause

from featurestore.definitions import FeatureView
from featurestore.ledger.statistics import recent_statistics
from featurestore.quality.counts import Counts, Floats
from featurestore.quality.drift import by_chance, population_stability
from featurestore.quality.drift_causes import Change
from featurestore.quality.entities import looked_up
from featurestore.quality.gathering import request_of
from featurestore.quality.observed import Bools, Observed, numbered
from featurestore.registered.snapshot import RegisteredView, Snapshot
from featurestore.served.hashing import keys_of
from featurestore.statistics.bins import BinCounts, count_in
from featurestore.statistics.sets import hashed
from featurestore.types.times import to_second
from featurestore.workspace import Readers

RUNS = 60
"""So many runs are looked back."""
LEAST_VALUES, LEAST_RUNS = 100, 4
BEGUN = 0.1
"""Runs before and after a beginning are so far apart, at least: the index, or a share of nulls."""
BEGUN_DEVIATIONS = 0.5
BEGUN_TIMES = 2.0
"""Or their deviations are so many times the ones of before."""
OF_RUN, OF_DEFINITION = 0.6, 0.99
"""A run says where a change began, not what it is; a definition that changed then is what it is."""
MOST_FILES = 3


def of_runs(
    workspace: Readers, registered: RegisteredView, feature: str, change: Change, since_us: int, until_us: int
) -> Iterator[DriftCause]:
    """Yield the run with which a stored feature changed, and what of the view's definition changed with it.

    Looked at are the runs of [since, until): those before a window that was fine, or after the one that is judged, did
    not bring the change. Where its beginning is not among them, nothing is named.
    """
    found = recent_statistics(workspace.ledger, workspace.project, registered.ledger_key, limit=RUNS)[::-1]
    runs = [
        (each, column)
        for each in found
        if each.made_us < until_us and (column := _column(each, feature)) is not None and column.rows
    ]
    old = sum(each.made_us < since_us for each, _ in runs)
    runs = runs[max(old - 1, 0) :]  # the last of before says how values were
    begun = _begun([column for _, column in runs], change)
    if begun is None:
        return
    before, first = runs[begun - 1][0], runs[begun][0]
    yield DriftCause(
        "run", f"it began with run {first.run_id} at {to_second(first.made_us)}{_files(before, first)}", OF_RUN
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


def _begun(columns: Sequence[ColumnStatistics], change: Change) -> int | None:
    """Return from which run on values changed as a change says; None where no run is seen to have brought it."""
    bins = change.feature.bins
    if change.is_of_nulls:
        lacking = [np.array([_lacking(each), each.rows - _lacking(each)], np.float64) for each in columns]
        more = float(change.after.mean() - change.before.mean())
        place = beginning([math.copysign(1.0, more) * each[0] / each.sum() for each in lacking], lacking)
        return place if place is not None and _is_apart(lacking, place) else None
    if change.pair is None:
        return None
    if bins is not None and {column.bins for column in columns} == {bins.version}:
        vectors = [_counts(column) for column in columns]
        one, two = (_in_bins(count_in(side, bins)) for side in (change.pair.before, change.pair.after))
        ratios = np.log((two + 0.5) / (two + 0.5).sum()) - np.log((one + 0.5) / (one + 0.5).sum())
        if any(len(vector) != len(ratios) for vector in vectors):
            return None
        place = beginning([float(ratios @ vector / max(vector.sum(), 1.0)) for vector in vectors], vectors)
        return place if place is not None and _is_apart(vectors, place) else None
    # Bins were made again: too many values lay outside, perhaps of these very runs.
    return _begun_by_moments(columns, change.pair)


def beginning(scores: Sequence[float], counts: Sequence[Floats]) -> int | None:
    """Return from which run on scores are higher, to the end; None where no run is seen to be the first.

    Begins with the parts that are furthest apart, and takes what is above the middle between both for changed, until
    that changes nothing: something like it that was over meanwhile is none of it.
    """
    weights = np.array([each.sum() for each in counts])
    some = np.asarray(scores) * weights

    def means(place: int) -> tuple[float, float]:
        return some[:place].sum() / weights[:place].sum(), some[place:].sum() / weights[place:].sum()

    def apart(place: int) -> float:
        sizes = weights[:place].sum(), weights[place:].sum()
        if min(sizes) < LEAST_VALUES:
            return 0.0
        low, high = means(place)
        return float(sizes[0] * sizes[1] * max(high - low, 0.0) ** 2)

    found = max(range(1, len(scores)), key=apart, default=0)
    if not found or not apart(found):
        return None
    last = int((np.cumsum(weights[::-1]) < LEAST_VALUES).sum()) + 1
    for _ in scores:
        middle = sum(means(found)) / 2
        over = np.cumsum((some - middle * weights)[::-1])[::-1]
        place = int(over.argmax())
        if not place or not apart(place) or over[-last] <= 0:
            return None
        if place == found:
            break
        found = place
    # A run that brought the first of it among rows that were as before is still below the middle.
    before = np.asarray(scores[: found - 1])
    if len(before) >= LEAST_RUNS:
        low, high = means(found)
        far = float(before.mean() + 3 * before.std()), low + (high - low) / 10
        found -= scores[found - 1] > max(far) and weights[found - 1] >= LEAST_VALUES
    return found


def _is_apart(vectors: Sequence[Floats], place: int) -> bool:
    parts = np.sum(vectors[:place], 0), np.sum(vectors[place:], 0)
    chance = by_chance(int((parts[0] + parts[1] > 0).sum()), float(sum(1 / part.sum() for part in parts)))
    return population_stability(*parts) > BEGUN + chance


def _begun_by_moments(columns: Sequence[ColumnStatistics], pair: Counts) -> int | None:
    """Return from which run on means, or else deviations, are others than before."""
    sides = [
        _weighted(side.keys.astype(np.float64), side.counts)
        for side in (pair.before, pair.after)
        if side.keys is not None
    ]
    if len(sides) < 2 or any(column.mean is None for column in columns):
        return None
    (was, spread), (now, spreads) = sides
    held = [np.array([column.rows - column.nulls], np.float64) for column in columns]
    place = beginning([math.copysign(1.0, now - was) * (column.mean or 0.0) for column in columns], held)
    if place is not None:
        one, two = _moments(columns[:place]), _moments(columns[place:])
        if one and two and one[1] and abs(two[0] - one[0]) / one[1] > BEGUN_DEVIATIONS:
            return place
    if not spread or not spreads or not all(column.deviation for column in columns):
        return None
    wider = math.copysign(1.0, spreads - spread)
    logs = [wider * math.log(column.deviation or 1.0) for column in columns]
    place = beginning(logs, held)
    if place is None or max(spread, spreads) < BEGUN_TIMES * min(spread, spreads):
        return None
    sizes = [each[0] for each in held]
    apart = np.average(logs[place:], weights=sizes[place:]) - np.average(logs[:place], weights=sizes[:place])
    return place if apart > math.log(BEGUN_TIMES) else None


def _weighted(values: Floats, counts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return mean and deviation of values that are there so many times each."""
    mean = float(np.average(values, weights=counts))
    return mean, float(np.average(np.square(values - mean), weights=counts)) ** 0.5


def _lacking(column: ColumnStatistics) -> int:
    return column.nulls + column.not_finite


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


def _in_bins(counts: BinCounts) -> Floats:
    return np.array([*counts.at_points, *counts.in_bins, counts.elsewhere], np.float64)


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
    if before == after:
        return ""
    hashes = list(workspace.snapshot().chain.hashes)
    if before not in hashes or after not in hashes:
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
