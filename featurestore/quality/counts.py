"""The values of two sides, counted alike: what distances are computed from, and what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from featurestore_registry.documents import BinsDocument

from featurestore.quality.observed import ObservedFeature
from featurestore.statistics.bins import BinCounts, count_in, make_bins
from featurestore.statistics.counting import Counted

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Bar = tuple[str, float, float]
"""What a bar stands for, its share of the baseline's values (or rows), and of those that are compared."""

CATEGORIES = 20
"""So many categories of a baseline are counted one by one, the others together."""
NEW_SHARE = 0.01
"""A category that came since is drawn by itself from this share on."""
OTHERS = "others"
NOWHERE = -1
_MOST_OUTSIDE = 0.2
"""Bins outside of which more of a baseline lies do not fit it."""


@dataclass(frozen=True)
class Counts:
    """A baseline's values and those that are compared with it."""

    before: Counted
    after: Counted
    bins: BinsDocument | None
    """Of numbers."""
    labels: tuple[str, ...]
    counts: tuple[Floats, Floats]
    """For each label how many rows there are, on each side."""
    common: pa.Array | None = None
    """Of categories: those that have a label of their own."""
    outside: tuple[int, int] = (0, 0)
    """How many rows lie beyond the bins, on each side; the outermost ones have them, too."""

    @property
    def used(self) -> int:
        """How many labels any row has."""
        return int((self.counts[0] + self.counts[1] > 0).sum())

    def places(self, values: pa.Array) -> npt.NDArray[np.int64]:
        """Return the place of each value among the labels; -1 of null, NaN and infinities."""
        import pyarrow as pa
        import pyarrow.compute as pc

        known: pa.Array = self.common if self.bins is None else pa.array(self.bins.points, values.type)
        where: npt.NDArray[np.int64] = np.asarray(
            pc.fill_null(pc.index_in(values, known), NOWHERE).to_numpy(zero_copy_only=False)
        ).astype(np.int64)
        others = where == NOWHERE
        if self.bins is None or not self.bins.edges:
            where[others] = len(self.labels) - 1
            where[np.asarray(pc.is_null(values).to_numpy(zero_copy_only=False), bool)] = NOWHERE
            return where
        numbers = pc.fill_null(values.cast(pa.float64(), safe=False), np.nan).to_numpy(zero_copy_only=False)
        edges = np.asarray(self.bins.edges)
        bins = np.clip(np.searchsorted(edges, numbers, "right") - 1, 0, len(edges) - 2) + len(known)
        where[others] = np.where(np.isfinite(numbers), bins, NOWHERE)[others]
        return where

    def bars(self) -> tuple[Bar, ...]:
        """Return what a drawing shows; numbers in their order."""
        pairs = list(zip(self.labels, *self.counts, strict=True))
        if self.bins is not None:
            begins = [*map(float, self.bins.points), *self.bins.edges[:-1], np.inf]  # type: ignore[arg-type]
            pairs = [pairs[place] for place in np.argsort(begins, kind="stable")]
        else:
            pairs = [*pairs[:-1], *self._new(pairs[-1])]
        held = self.before.held, self.after.held
        return tuple((label, float(one / held[0]), float(two / held[1])) for label, one, two in pairs if one or two)

    def _new(self, others: tuple[str, float, float]) -> Iterator[tuple[str, float, float]]:
        """Yield frequent categories that the baseline hardly had, one by one, and what is left of the others."""
        import pyarrow.compute as pc

        _, one, two = others
        is_common = pc.is_in(self.after.values, self.common).to_numpy(zero_copy_only=False)
        for place in self.after.most_frequent(CATEGORIES):
            now = float(self.after.counts[place])
            if is_common[place] or now <= NEW_SHARE * self.after.held:
                continue
            value = self.after.values[int(place)]
            known = pc.index(self.before.values, value).as_py()
            was = 0.0 if known < 0 else float(self.before.counts[known])
            one, two = one - was, two - now
            yield str(value.as_py()), was, now
        yield OTHERS, one, two


def counts_of(before: Counted, after: Counted, feature: ObservedFeature) -> Counts:
    """Count numbers in the feature's bins, in such as the baseline makes if it has none that fit; or categories."""
    if before.keys is None:
        return _of_categories(before, after)
    bins = feature.bins
    if bins is None or count_in(before, bins).outside > _MOST_OUTSIDE * before.held:
        bins = make_bins(before, rows=before.rows, made_us=0)
    one, two = count_in(before, bins), count_in(after, bins)
    spans = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(bins.edges)]
    labels = (*map(str, bins.points), *spans, OTHERS)
    return Counts(before, after, bins, labels, (_with_ends(one), _with_ends(two)), outside=(one.outside, two.outside))


def _of_categories(before: Counted, after: Counted) -> Counts:
    import pyarrow as pa
    import pyarrow.compute as pc

    common = before.values.take(pa.array(before.most_frequent(CATEGORIES)))
    counts = []
    for each in (before, after):
        places = pc.index_in(each.values, common).fill_null(len(common)).to_numpy(zero_copy_only=False)
        counts.append(np.bincount(places, each.counts, len(common) + 1).astype(np.float64))
    return Counts(before, after, None, (*map(str, common.to_pylist()), OTHERS), (counts[0], counts[1]), common)


def _with_ends(counts: BinCounts) -> Floats:
    """Return counts of points and bins, where the outermost bins have what lies beyond them: it has its own line."""
    below, *bins, above = counts.in_bins or (0, 0)
    if bins:
        bins[0], bins[-1] = bins[0] + below, bins[-1] + above
    return np.array([*counts.at_points, *bins, counts.elsewhere], np.float64)
