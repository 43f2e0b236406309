"""What a run reads, and what its watermark says after the commit.

An interval run reads the rows of its span. An incremental run reads the spans that no run has read yet, from the
source's first event on, and the rows that turned up late in the others: by created time if the source declares one, by
changed files otherwise, and everything again when a joined source changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

from featurestore_registry.documents import Interval

from featurestore.definitions import FeatureView, ParquetSource
from featurestore.engine.interface import SourceFile, Sources, Span, StagedRows
from featurestore.errors import SourceError
from featurestore.ledger.unread import Unread
from featurestore.ledger.watermarks import Watermark, merge, subtract
from featurestore.offline.interface import TableVersion
from featurestore.types.times import MICROSECOND, MIN_INSTANT

Seen = Mapping[str, Mapping[str, str]]
"""For each source whose files show what changed: fingerprints by file, or one under ``*`` for all files together.

A file's fingerprint is its state (size and time) and its content. Rows of a file that was only touched must not count
as the newest again: another file may have corrected them.
"""

ALL_FILES = "*"


@dataclass(frozen=True, slots=True)
class SpansToRead:
    """What a run reads from a view's source."""

    spans: tuple[Span, ...]
    intervals: tuple[Interval, ...]
    """Intervals that are committed with the run, in addition to the earlier ones."""
    seen: Seen
    """The source's files as they were before the run read them."""
    is_complete: bool
    """Whether the run reads everything that the source now holds in the committed intervals."""
    begun_us: int | None
    """The watermark's ``begun_us``."""
    source_begun_us: int | None = None
    """The watermark's ``source_begun_us``; None where the run does not look."""
    again: tuple[Interval, ...] = ()
    """Committed spans that are read again, because they lack something."""


def spans_within(sources: Sources, view: FeatureView, watermark: Watermark, interval: Interval) -> SpansToRead:
    """Read exactly the rows with event time in an interval."""
    outside = subtract(watermark.intervals, (interval,))
    # Only incremental runs look for rows before an incremental run's first event.
    is_complete = not outside and watermark.begun_us is None
    return SpansToRead(
        spans=(Span(*interval),),
        intervals=(interval,),
        seen=seen_files(sources, view, watermark.files) if is_complete else watermark.files,
        is_complete=is_complete,
        begun_us=watermark.begun_us,
        source_begun_us=_source_begun(sources, view, watermark, interval),
    )


def _source_begun(sources: Sources, view: FeatureView, watermark: Watermark, interval: Interval) -> int | None:
    """Return the first event of a windowed view's source where an interval begins before what is committed.

    None where it is not to be had: what the run does not read may be damaged.
    """
    is_known = watermark.begun_us is not None or (watermark.intervals and watermark.intervals[0][0] < interval[0])
    if not view.aggregations or is_known:
        return None
    try:
        first_us = sources.first_event_us(view)
    except SourceError:
        return None
    return interval[1] if first_us is None else first_us


def unread_spans(sources: Sources, view: FeatureView, watermark: Watermark, unread: Unread, end_us: int) -> SpansToRead:
    """Read rows before ``end_us`` that no run has read, and in the spans already read the changes and the gaps."""
    seen = seen_files(sources, view, watermark.files)
    begun_us = watermark.begun_us
    if begun_us is None:
        begun_us = sources.first_event_us(view)
    if begun_us is None or begun_us >= end_us:
        # There is nothing to take yet, and where the source begins stays open, because older rows may still turn up.
        # Rows without an event time are read and counted: otherwise nobody would learn why nothing comes.
        undated = [Span(MIN_INSTANT, end_us)] if begun_us is None else []
        return SpansToRead(tuple(undated), (), seen, is_complete=not watermark.intervals, begun_us=watermark.begun_us)
    gaps = subtract(((begun_us, end_us),), watermark.intervals)
    spans = [Span(*span) for span in (*gaps, *unread.again)]
    if watermark.intervals:
        spans += _late_spans(view, watermark, seen, max(end_us, watermark.intervals[-1][1]))
    return SpansToRead(tuple(spans), gaps, seen, is_complete=True, begun_us=begun_us, again=unread.again)


def _late_spans(view: FeatureView, watermark: Watermark, seen: Seen, end_us: int) -> list[Span]:
    """Return the spans in which rows of the committed intervals, or from before them, may have turned up or changed."""
    known = watermark.files
    changed = {
        source: [path for path, now in files.items() if _differs(known.get(source, {}).get(path), now)]
        for source, files in seen.items()
    }
    by_created = _created_source(view) is not None
    if view.sql is None:
        (source,) = view.batch_sources
        if by_created:
            return [Span(MIN_INSTANT, end_us, created_after_us=watermark.created_until_us)]
        files = tuple(changed[source.name])
        return [Span(MIN_INSTANT, end_us, files=files)] if files else []
    if any(changed.values()):
        return [Span(MIN_INSTANT, end_us)]
    return [Span(MIN_INSTANT, end_us, created_after_us=watermark.created_until_us)] if by_created else []


def _differs(before: str | None, now: str) -> bool:
    """Tell whether a file's content changed; copying or touching does not change it."""
    return before is None or (now != before and _content(now) != _content(before))


def _content(seen: str) -> str:
    return seen.partition(":")[2] or seen


def seen_files(sources: Sources, view: FeatureView, known: Seen) -> Seen:
    """Return fingerprints of the sources whose files show what changed; hashes only files that are new to ``known``.

    A source whose created column finds late rows needs none. Rows of a query do not know their file, so with ``sql``
    one fingerprint stands for all files of a source.
    """
    seen = {}
    for source in view.batch_sources:
        if source is _created_source(view) and view.created_follows:
            continue
        files = sources.files(source)
        if view.sql is not None:
            seen[source.name] = {ALL_FILES: _fingerprint(files)}
        else:
            before = known.get(source.name, {})
            seen[source.name] = {file.path: _look_at(sources, file, before.get(file.path, "")) for file in files}
    return seen


def _created_source(view: FeatureView) -> ParquetSource | None:
    """Return the source whose late rows the created column finds: the first, if it declares one."""
    first = view.batch_sources[0]
    return first if first.created_timestamp_field is not None else None


def _look_at(sources: Sources, file: SourceFile, before: str) -> str:
    """Return ``state:content`` of a file; earlier releases wrote only the state."""
    state = _fingerprint([file])
    return before if before.partition(":")[0] == state else f"{state}:{sources.digest(file)}"


def _fingerprint(files: Sequence[SourceFile]) -> str:
    state = "".join(f"{file.path}\0{file.state}\0" for file in files)
    return blake2b(state.encode(), digest_size=8).hexdigest()


def advance(
    watermark: Watermark,
    view: FeatureView,
    to_read: SpansToRead,
    staged: StagedRows,
    version: TableVersion | None,
    started_us: int,
) -> Watermark:
    """Return the watermark after the rows are committed in the table's ``version``."""
    begun_us, intervals = to_read.begun_us, [*watermark.intervals, *to_read.intervals]
    created_until_us = watermark.created_until_us
    if to_read.is_complete:
        if begun_us is not None and staged.min_event_us is not None and staged.min_event_us < begun_us:
            # Older rows turned up. The source has nothing in between, or it would have been read too.
            intervals.append((staged.min_event_us, begun_us))
            begun_us = staged.min_event_us
        if _created_source(view) is not None and staged.max_created_us is not None:
            created_until_us = _created_until(view, watermark, staged.max_created_us, started_us)
    return replace(
        watermark.at(version),
        intervals=merge(intervals),
        begun_us=begun_us,
        source_begun_us=watermark.source_begun_us if to_read.source_begun_us is None else to_read.source_begun_us,
        created_until_us=created_until_us,
        files=to_read.seen if to_read.is_complete else watermark.files,
    )


def _created_until(view: FeatureView, watermark: Watermark, max_created_us: int, started_us: int) -> int:
    """Return the created time up to which everything is committed once everything was read."""
    lateness_us = view.batch_sources[0].allowed_lateness // MICROSECOND
    found_us = max(min(max_created_us, started_us) - lateness_us, MIN_INSTANT)
    return found_us if watermark.created_until_us is None else max(watermark.created_until_us, found_us)
