"""Watermarks: which parts of a view are committed and published. Written after the commit is synced, never before.

One per view and generation, the newest ledger entry of kind ``watermark``, key ``{view}.{generation}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from featurestore_registry.documents import WATERMARK, Interval, WatermarkDocument
from featurestore_registry.interface import Ledger, LedgerReader
from featurestore_registry.records import LedgerEntry

from featurestore.offline.interface import TableVersion
from featurestore.registered.records import understood
from featurestore.registered.snapshot import RegisteredView

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Watermark(WatermarkDocument):
    """What was committed of one generation of a view, never what was intended."""

    entry: int = 0
    """The ledger version that this was read from, 0 when nothing was ever committed."""

    def covers(self, start_us: int, end_us: int) -> bool:
        """Tell whether all of [start, end) is committed."""
        return not subtract(((start_us, end_us),), self.intervals)

    @property
    def end_us(self) -> int | None:
        """End of the last committed interval, exclusive; None when there is none."""
        return self.intervals[-1][1] if self.intervals else None

    def at(self, version: TableVersion | None) -> Watermark:
        """Return it for a version of the table, None where there is no table."""
        if version is None:
            return replace(self, table_version=None, offline_rows=0, greatest_event_us=None)
        greatest_us = max((file.max_event_us for file in version.files), default=None)
        return replace(self, table_version=version.number, offline_rows=version.rows, greatest_event_us=greatest_us)


def read_watermark(ledger: LedgerReader, registered: RegisteredView) -> Watermark:
    """Return a view's watermark; an empty one when nothing was ever committed."""
    return watermark_from(ledger.latest(registered.project, WATERMARK, registered.ledger_key))


def write_watermark(ledger: Ledger, registered: RegisteredView, watermark: Watermark) -> Watermark:
    """Write what was committed, durably, and return it as the newest.

    Raises LedgerConflictError when another run wrote since this one was read: its holder lost the view's lease.
    """
    document = asdict(watermark)
    del document["entry"]
    if watermark.source_begun_us is None:  # only windows have it, and earlier releases refuse what they do not know
        del document["source_begun_us"]
    entry = ledger.append(registered.project, WATERMARK, registered.ledger_key, document, if_version=watermark.entry)
    return replace(watermark, entry=entry)


@understood("a watermark")
def watermark_from(entry: LedgerEntry | None) -> Watermark:
    """Return the watermark of a ledger entry; an empty one when there is none."""
    if entry is None:
        return Watermark()
    intervals = tuple((start, end) for start, end in entry.document["intervals"])
    return Watermark(**{**entry.document, "intervals": intervals, "entry": entry.version})


def merge(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the union: sorted, with intervals that touch or overlap joined, and without empty ones."""
    merged: list[Interval] = []
    for start_us, end_us in sorted(intervals):
        if start_us >= end_us:
            continue
        if merged and start_us <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end_us, merged[-1][1]))
        else:
            merged.append((start_us, end_us))
    return tuple(merged)


def subtract(intervals: Iterable[Interval], taken: Iterable[Interval]) -> tuple[Interval, ...]:
    """Return the parts of ``intervals`` that lie in none of ``taken``."""
    left = list(merge(intervals))
    for taken_start, taken_end in merge(taken):
        left = [
            part
            for start, end in left
            for part in ((start, min(end, taken_start)), (max(start, taken_end), end))
            if part[0] < part[1]
        ]
    return tuple(left)


def covered(
    intervals: Sequence[Interval], oldest: npt.NDArray[np.int64], times: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Tell for each instant whether one interval holds it and what it reaches back to."""
    import numpy as np

    starts = np.array([start for start, _ in intervals])
    ends = np.array([end for _, end in intervals])
    place = np.searchsorted(starts, times, side="right") - 1
    inside: npt.NDArray[np.bool_] = (place >= 0) & (times < ends[np.maximum(place, 0)])
    inside &= oldest >= starts[np.maximum(place, 0)]
    return inside
