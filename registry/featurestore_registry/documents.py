"""The documents of the ledger that other programs read: a catalog shows them without importing featurestore.

Each is the newest entry of its kind and key. Instants are UTC microseconds, spans are pairs ``[start, end)`` of event
time. No field changes its meaning or goes, and a watermark never gains one: earlier releases read it strictly. Runs may
gain fields, so a reader skips those that it does not know.
"""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

WATERMARK, RUN_START, RUN = "watermark", "run_start", "run"
"""Kinds of entries. The key of a watermark is ``{view}.{generation}``, of a run the view."""


class WatermarkDocument(TypedDict):
    """What is committed and published for one generation of a view; written after the commit is synced."""

    intervals: list[tuple[int, int]]
    """Spans whose source rows are committed: sorted and disjoint."""
    begun_us: int | None
    """The source's first event when an incremental run first read it."""
    created_until_us: int | None
    """Rows of the committed spans that were created up to here are committed; None without a created time."""
    files: dict[str, dict[str, str]]
    """For each source the files that were read completely, with fingerprints."""
    table_version: int | None
    """The version of the offline table that holds the rows."""
    published_version: int | None
    """The version whose changes are all online."""
    offline_rows: int
    online_rows: int
    """Records online: exact after a publish of everything, otherwise the most that one publish wrote."""
    greatest_event_us: int | None
    """The newest committed event, rounded up to a millisecond."""


class PublishedDocument(TypedDict):
    """Counts of the records that a run sent online."""

    written: int
    stale: int
    """The store held a newer record, which stayed."""
    expired: int
    """Not written, because past their physical expiry."""
    wrong_type: int
    """Their key holds something that is not a record; it was left alone."""
    repaired: int
    """Records of withdrawn rows that the entity's next best row replaced."""
    deleted: int
    """Records of withdrawn rows that were deleted, because the entity has no other row."""
    wrong_type_keys: list[str]
    """The first few of them."""


class RunDocument(TypedDict):
    """One run of one view: written when it starts (``run_start``) and when it ends (``run``). Counts are rows."""

    run_id: str
    """The same in both entries. A start without an end is a run under way, or one whose process was killed."""
    view: str
    generation: int
    kind: Literal["interval", "incremental", "rebuild", "republish"]
    state: Literal["running", "done", "failed", "killed"]
    started_us: int
    duration_ms: int | None
    host: str
    pid: int
    intervals: list[tuple[int, int]]
    """The requested spans; an incremental run also read what changed elsewhere."""
    read: int
    appended: int
    duplicates: int
    """Dropped, because a later row has the same keys and times."""
    unchanged: int
    null_keys: int
    """Dropped."""
    null_times: int
    """Dropped."""
    waiting: int
    """Dated after now: left for a later run."""
    withdrawn: int
    """Withdrawn by a rebuild, because the source no longer holds them."""
    damaged: int
    """In damaged files, which a rebuild left out before it read the source."""
    table_version: int | None
    published: PublishedDocument
    error: str | None
    dry_run: bool
