"""Bins in which a column is counted, wherever it is counted: points with a bin of their own, and edges between others.

Bins are made from the rows of a view's log and kept for its generation, so that counts of different runs compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import BinsDocument

from featurestore.statistics.counting import Counted

BINS = 20
"""How many bins of equal shares lie between edges, and how many texts are points, at most."""
TAILS = (0.01, 0.99)
"""Edges lie here, too: rows of a bin are taken to lie evenly in it, and an outlier makes the outermost bins wide."""
POINT_SHARE = 0.05
"""A value with more of the rows is a point."""
SPIKE_SHARE, SPIKE_TIMES, NEIGHBOURS = 0.01, 10, 5
"""So is a number with this share that is so many times as frequent as the median of its next ones, so many on each
side: a sentinel as -999, or the zeros of amounts. A bin between edges would smear it over real values."""
SHOWN_VALUES = 100
"""In a text column with more different values, only those with `POINT_SHARE` of the rows are points."""
PINNED_ROWS = 10_000
"""Bins of fewer rows are provisional: they are made again when the log has twice as many."""
OUTSIDE_SHARE, LEAST_VALUES = 0.2, 50
"""If more of a run's values lie outside than when the bins were made, by this share, they are made again; so few values
say nothing."""


@dataclass(frozen=True, slots=True)
class BinCounts:
    """How many rows lie where, as `ColumnStatistics` has it."""

    at_points: tuple[int, ...]
    in_bins: tuple[int, ...]
    elsewhere: int

    @property
    def outside(self) -> int:
        """Rows in no bin."""
        return self.elsewhere + (self.in_bins[0] + self.in_bins[-1] if self.in_bins else 0)


def make_bins(counted: Counted, *, rows: int, made_us: int, version: int = 1, shows_all: bool = False) -> BinsDocument:
    """Return bins for values like these, which stand for so many rows; ``shows_all`` texts may be points."""
    points = np.sort(_points(counted, shows_all=shows_all))
    edges = _edges(counted, points)
    if len(edges) == 1:  # one value is left
        rest = np.setdiff1d(np.flatnonzero(counted.counts), points)
        points, edges = np.sort(np.append(points, rest)), edges[:0]
    scalars = [counted.scalar(place) for place in points]
    if counted.keys is None:
        scalars.sort(key=str)
    made = BinsDocument(version, tuple(scalars), tuple(map(float, edges)), rows=rows, made_us=made_us)
    if counted.keys is not None or not counted.held:  # edges leave none of these values out
        return made
    return replace(made, outside=count_in(counted, made).outside / counted.held)


def _points(counted: Counted, *, shows_all: bool) -> npt.NDArray[np.int64]:
    """Return the places of the values that get a bin of their own."""
    often = np.flatnonzero(counted.counts > POINT_SHARE * counted.held)
    few = len(counted.counts) <= (BINS if counted.keys is not None else SHOWN_VALUES) or (
        counted.keys is None and shows_all
    )
    if few:
        return counted.most_frequent(BINS)
    points = np.union1d(often, spikes(counted))
    if len(points) > BINS:
        points = np.intersect1d(points, counted.most_frequent(BINS))
    return points.astype(np.int64)


def spikes(counted: Counted) -> npt.NDArray[np.int64]:
    """Return the places of numbers that are far more frequent than those next to them."""
    if counted.keys is None:
        return np.zeros(0, np.int64)
    counts = counted.counts
    found = [
        place
        for place in np.flatnonzero(counts >= SPIKE_SHARE * counted.held)
        if counts[place] >= SPIKE_TIMES * max(1.0, _typical(counts, int(place)))
    ]
    return np.asarray(found, np.int64)


def _typical(counts: npt.NDArray[np.int64], place: int) -> float:
    """Return the median count of a value's neighbours."""
    below, above = counts[max(place - NEIGHBOURS, 0) : place], counts[place + 1 : place + 1 + NEIGHBOURS]
    return float(np.median(np.concatenate((below, above))))


def _edges(counted: Counted, points: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return edges between which the values that are no points are shared out evenly."""
    if counted.keys is None:
        return np.zeros(0)
    rest = np.ones(len(counted.counts), bool)
    rest[points] = False
    keys, counts = counted.keys[rest], counted.counts[rest]
    if not len(keys):
        return np.zeros(0)
    total = np.cumsum(counts)
    shares = np.union1d(np.arange(BINS + 1) / BINS, TAILS)
    ranks = np.maximum(np.ceil(shares * total[-1]), 1)
    return np.unique(keys[np.searchsorted(total, ranks)].astype(np.float64))


def widened(bins: BinsDocument, counted: Counted) -> BinsDocument:
    """Return bins whose edges hold all of these values, too: they may be too few to be in the sample that made them.

    Points stay outside: an edge at a sentinel would spread the rows of its bin over values that there are not.
    """
    if counted.keys is None or not bins.edges or not len(counted.keys):
        return bins
    keys = counted.keys[counted.places(bins.points) < 0]
    if not len(keys):
        return bins
    least, greatest = float(keys[0]), float(keys[-1])
    return replace(bins, edges=(min(bins.edges[0], least), *bins.edges[1:-1], max(bins.edges[-1], greatest)))


def count_in(counted: Counted, bins: BinsDocument) -> BinCounts:
    """Count values in bins."""
    places, counts, keys = counted.places(bins.points), counted.counts, counted.keys
    at = places >= 0
    at_points = np.bincount(places[at], counts[at], len(bins.points)) if at.any() else np.zeros(len(bins.points))
    if at.any():
        counts, keys = counts[~at], None if keys is None else keys[~at]
    if keys is None or not bins.edges:
        return BinCounts(_whole(at_points), (), int(counts.sum()))
    edges = np.asarray(bins.edges)
    # The values are in order: edges are looked up among them. The last bin has its upper edge, too.
    keys = keys.astype(np.float64, copy=False)
    begins = np.append(np.searchsorted(keys, edges[:-1], "left"), np.searchsorted(keys, edges[-1:], "right"))
    below = np.concatenate(([0], np.cumsum(counts)))
    return BinCounts(_whole(at_points), _whole(np.diff(below[begins], prepend=0, append=below[-1])), 0)


def must_be_made(bins: BinsDocument | None, counts: BinCounts | None, held: int, log_rows: int) -> bool:
    """Tell whether a column of a log needs other bins after a run with so many values."""
    if bins is None or counts is None:
        return True
    if bins.rows < PINNED_ROWS:
        return log_rows >= 2 * bins.rows
    return held >= LEAST_VALUES and counts.outside / held > bins.outside + OUTSIDE_SHARE


def _whole(counts: npt.NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in counts)
