"""What a training set lacks for reasons that its user can change: spans not committed, values not yet available."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore_registry.documents import Interval

from featurestore.definitions import FeatureView
from featurestore.ledger.watermarks import Watermark, covered, subtract
from featurestore.offline.interface import TableReader
from featurestore.offline.reading import opened
from featurestore.registered.snapshot import RegisteredView
from featurestore.training.frames import TIME
from featurestore.training.joins import BATCH_ROWS, JoinedRows, Observed, PinnedRead
from featurestore.types.columns import CREATED, EVENT
from featurestore.types.times import MIN_INSTANT, to_rfc3339

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


RECENT_US = 3_600_000_000
"""Rows less than this after the last committed span cause no warning: every frame dated now has some, even right after
a run."""
LARGE_SHARE = 0.1
"""Warn when at least this share of the rows has no value because it was not yet available."""
_SMALL_TABLE_ROWS = 200_000
_BETWEEN = ("featurestore", "functools", "contextlib")
"""The product, and modules of Python between it and the caller."""


class TrainingSetWarning(UserWarning):
    """Something about a training set that its user should know before using it."""


def warn(text: str) -> None:
    """Warn at the user's own line, every time and not only the first time that Python runs the line."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    # Without a registry Python does not remember that it has warned already.
    warnings.warn_explicit(
        text, TrainingSetWarning, frame.f_code.co_filename, frame.f_lineno, module=frame.f_globals.get("__name__")
    )


@dataclass(frozen=True, slots=True)
class Gap:
    """Entity rows of one view that need spans of event time which are not committed."""

    view: str
    rows: int
    total: int
    span: Interval | None = None
    """What to commit; None for what is new since the last run."""
    recent: int = 0
    """How many of them are just after the last committed span and lack nothing else."""


def gaps_text(gaps: Sequence[Gap]) -> str | None:
    """Return one sentence about all views for which entity rows lack more than the newest events."""
    told = [gap for gap in gaps if gap.rows > gap.recent]
    if not told:
        return None
    first, *others = told
    shares = [f"{first.rows:,} of {first.total:,} entity rows look past what was committed of view {first.view!r}"]
    shares += [f"{gap.rows:,} of view {gap.view!r}" for gap in others]
    new = [f" --view {gap.view}" for gap in told if gap.span is None]
    commands = [f"fs materialize{''.join(new)}"] if new else []
    spans = [(gap.view, *map(to_rfc3339, gap.span)) for gap in told if gap.span is not None]
    commands += [f"fs materialize {start} {end} --view {view}" for view, start, end in spans]
    return (
        f"{', '.join(shares)}: values may be missing or old only because of that. Fill the "
        f"gap{'s' * bool(others)} with {', '.join(f'`{command}`' for command in commands)}."
    )


def find_gap(registered: RegisteredView, watermark: Watermark, times: npt.NDArray[np.int64], now_us: int) -> Gap | None:
    """Return the gap of one view, None where every entity row is covered.

    Rows after now do not count: no command can commit what they look at. A row at t needs the events in
    [t - reach, t]. Before the source's first event there is nothing to commit. For a view that was never read
    incrementally the first event is unknown, and the row counts if t itself is not committed; windows count also where
    they look back before the first committed span, unless the source had nothing there.
    """
    if not len(times):
        return None
    name, total, come = registered.view.name, len(times), times <= now_us
    if not watermark.intervals:
        return Gap(name, int(come.sum()), total) if come.any() else None
    begun_us = watermark.source_begun_us if watermark.begun_us is None else watermark.begun_us
    oldest = _oldest(registered.view, times, watermark.intervals[0], begun_us)
    missing = come & ~covered(watermark.intervals, oldest, times)
    if begun_us is not None:
        missing &= times >= begun_us
    if not missing.any():
        return None
    *earlier, (start, end) = watermark.intervals
    recent = missing & covered([*earlier, (start, end + RECENT_US)], oldest, times)
    span = _span(watermark.intervals, oldest[missing], times[missing], now_us)
    return Gap(name, int(missing.sum()), total, span, int(recent.sum()))


def _oldest(
    view: FeatureView, times: npt.NDArray[np.int64], first: Interval, begun_us: int | None
) -> npt.NDArray[np.int64]:
    """Return for each instant the earliest event time that can change the answer there.

    The ``first`` committed interval extends back for ever: where windows look back, only if the source, which begins at
    ``begun_us``, has nothing before it.
    """
    import numpy as np

    begin = first[0] if not view.aggregations else MIN_INSTANT if begun_us is None else begun_us
    return np.maximum(_reached(view, times), begin)


def _reached(view: FeatureView, times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    import numpy as np

    if view.reach_us is None:
        return np.full(len(times), MIN_INSTANT)
    if not view.aggregations:
        return times - view.reach_us
    # As `FeatureView.reaches_back_to`, for many.
    lengths = {(window.length_us, window.resolution_us) for window in view.windows}
    begins = [(times - length) // step * step for length, step in lengths if length is not None]
    oldest: npt.NDArray[np.int64] = np.minimum.reduce(begins) + 1
    return oldest


def _span(
    intervals: Sequence[Interval], oldest: npt.NDArray[np.int64], times: npt.NDArray[np.int64], now_us: int
) -> Interval | None:
    """Return the span to commit for the rows at ``times``; None where an incremental run does it."""
    earliest, first, last = int(oldest.min()), int(times.min()), int(times.max())
    if earliest == MIN_INSTANT or (earliest >= intervals[0][0] and first >= intervals[-1][1] and len(intervals) == 1):
        return None
    first = min(earliest, first)
    # Up to the first interval, not only to the last row, so that the committed spans have no hole afterwards.
    begun = intervals[0][0]
    gaps = subtract([(min(first, begun), max(last + 1, begun))], intervals)
    return gaps[0][0], min(gaps[-1][1], now_us)


def held_back(rows: JoinedRows, observed: Observed) -> list[str]:
    """Return a sentence for each view in which availability holds back a large share of the rows.

    Checks the sampled rows only if so many rows have no value at all and the files show rows that were recorded long
    after their events.
    """
    import pyarrow as pa

    limit = LARGE_SHARE * len(rows.frame)
    texts = [
        _held_back_text(facts.held_back / len(rows.frame), facts.view, "count no event")
        for facts in rows.windowed
        if facts.held_back and facts.held_back >= limit
    ]
    plain = [found for found in rows.pins if not found.read.view.aggregations]
    suspects = [found for found in plain if found.as_of == "available" and found.version and len(rows.frame)]
    views = [
        pinned.view_join()
        for pinned in suspects
        # No more rows than these can be without any value.
        if min(observed.nulls[pinned.read.name, name] for name in pinned.read.features) >= limit
        and _loaded_later(rows.offline, pinned)
    ]
    if not views:
        return texts
    if len(observed.rows) == len(rows.frame) and len(views) == len(rows.pins):
        join = rows.join  # remembers what it chose, and the facts for a certificate
    else:
        sample = rows.frame.keys.take(pa.array(observed.rows))
        join = rows.joins.join(sample, TIME, views, batch_rows=BATCH_ROWS)
    for facts in join.facts():
        share = facts.nulls["not_yet_available"] / len(observed.rows)
        if share >= LARGE_SHARE:
            texts.append(_held_back_text(share, facts.view, "have no value"))
    return texts


def _held_back_text(share: float, view: str, lack: str) -> str:
    return (
        f"{share:.0%} of the entity rows {lack} of view {view!r} because what had happened was not yet known at "
        f"their time. Where created times are those of a later load, pass as_of='event' to go by event time."
    )


def own_events(rows: JoinedRows) -> list[str]:
    """Return a sentence for each windowed view that counts events of the entity rows' very instants."""
    return [
        f"{facts.own_events:,} of {len(rows.frame):,} entity rows count an event of view {facts.view!r} of their very "
        "instant, as in a frame made of the events themselves. At serving time it may not have been pushed yet, and if "
        "it is what you predict, it is a leak: shift the frame's times by a microsecond to leave it out."
        for facts in rows.windowed
        if facts.own_events
    ]


def _loaded_later(offline: TableReader, pinned: PinnedRead) -> bool:
    """Tell from footers whether rows may have been loaded later: a row group all created after its last event.

    A backfill leaves such groups; rows that come in as they happen do not. True for all small tables.
    """
    assert pinned.version is not None
    if pinned.version.rows <= _SMALL_TABLE_ROWS:
        return True
    for file in pinned.version.files:
        with opened(offline, file) as parquet:
            footer = parquet.metadata
        places = {footer.schema.column(place).path: place for place in range(footer.num_columns)}
        for group in (footer.row_group(number) for number in range(footer.num_row_groups)):
            event, created = (group.column(places[name]).statistics for name in (EVENT, CREATED))
            if created is None or not created.has_min_max or created.min > event.max:
                return True
    return False
