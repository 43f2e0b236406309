"""How many entities of a view are online, counted in the offline table: the online records come from it."""

from __future__ import annotations

from featurestore.errors import EngineError, OfflineStoreError
from featurestore.ledger.watermarks import Watermark
from featurestore.online.records.codec import kept_us
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.times import MIN_INSTANT
from featurestore.workspace import Readers

_WINDOWED_LONGER_US = 86_400_000_000
"""How much longer than any window reads it an event keeps its record: `EventEncoder.expire_at_ms`."""


def count_online(workspace: Readers, registered: RegisteredView, watermark: Watermark) -> int:
    """Return how many entities have a row whose online record has not expired physically; see `count_entities`."""
    return count_entities(workspace, registered, watermark, kept_only=True)[1]


def count_entities(
    workspace: Readers, registered: RegisteredView, watermark: Watermark, *, kept_only: bool = False
) -> tuple[int | None, int]:
    """Return how many entities a view's table holds, and for how many the online record has not expired physically.

    Pushed entities count, except those that were pushed online only. The first is None where the table cannot be read;
    there, and where the table was never published completely, the second is what the last run counted. ``kept_only``
    skips files that hold only expired rows, whose entities the first number then lacks.
    """
    view, now_us, ttl_us = registered.view, workspace.clock(), registered.view.ttl_us
    kept_since_us = MIN_INSTANT if ttl_us is None else max(now_us - kept_us(ttl_us), MIN_INSTANT)
    if view.aggregations:
        kept_since_us = view.reaches_back_to(now_us - _WINDOWED_LONGER_US)
    since_us = kept_since_us if kept_only else MIN_INSTANT
    count: tuple[int | None, int] = (0, 0)
    try:
        version = workspace.offline.current(registered.table)
        files = [] if version is None else [file.path for file in version.files if file.max_event_us >= since_us]
        if files:
            log = workspace.engine.log
            count = log.entities(view, files, since_us=kept_since_us, until_us=now_us)
    except (OfflineStoreError, EngineError):
        version, count = None, (None, 0)
    is_published = watermark.table_version is None or watermark.published_version is not None
    if not view.online:
        return count[0], 0
    return count[0], count[1] if version is not None and is_published else watermark.online_rows
