"""How many entities of a view are online, by the offline table: what is online is made of it."""

from __future__ import annotations

from featurestore.errors import EngineError, OfflineStoreError
from featurestore.ledger.watermarks import Watermark
from featurestore.online.records.codec import kept_us
from featurestore.registered.snapshot import RegisteredView
from featurestore.types.times import MIN_INSTANT
from featurestore.workspace import Workspace


def count_online(workspace: Workspace, registered: RegisteredView, watermark: Watermark) -> int:
    """Return how many entities have a row that is not past its physical expiry; see `count_entities`."""
    return count_entities(workspace, registered, watermark)[1]


def count_entities(workspace: Workspace, registered: RegisteredView, watermark: Watermark) -> tuple[int | None, int]:
    """Return how many entities a view's table holds, and how many of them are not past their physical expiry online.

    Pushed entities count, but for those that were pushed online only. Where the table cannot be read the first is None;
    there, and where it was never published whole, the second is what the last run counted.
    """
    now_us, ttl_us = workspace.clock(), registered.view.ttl_us
    since_us = MIN_INSTANT if ttl_us is None else max(now_us - kept_us(ttl_us), MIN_INSTANT)
    count: tuple[int | None, int] = (0, 0)
    try:
        version = workspace.offline.current(registered.table)
        if version is not None and version.files:
            files = [file.path for file in version.files]
            count = workspace.engine.log.entities(registered.view, files, since_us=since_us, until_us=now_us)
    except (OfflineStoreError, EngineError):
        version, count = None, (None, 0)
    is_published = watermark.table_version is None or watermark.published_version is not None
    if not registered.view.online:
        return count[0], 0
    return count[0], count[1] if version is not None and is_published else watermark.online_rows
