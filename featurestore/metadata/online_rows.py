"""How many entities of a view are online, by the offline table: what is online is made of it."""

from __future__ import annotations

from featurestore.errors import EngineError, OfflineStoreError
from featurestore.metadata.snapshot import RegisteredView
from featurestore.metadata.watermarks import Watermark
from featurestore.metadata.workspace import Workspace
from featurestore.online.codec import kept_us
from featurestore.types.times import MIN_INSTANT


def count_online(workspace: Workspace, registered: RegisteredView, watermark: Watermark) -> int:
    """Return how many entities have a row that is not past its physical expiry.

    Pushed entities count, but for those that were pushed online only. Where the table cannot be read, or was never
    published whole, it is what the last run counted.
    """
    is_committed, is_published = watermark.table_version is not None, watermark.published_version is not None
    if not registered.view.online:
        return 0
    if is_committed and not is_published:
        return watermark.online_rows
    now_us, ttl_us = workspace.clock(), registered.view.ttl_us
    since_us = MIN_INSTANT if ttl_us is None else max(now_us - kept_us(ttl_us), MIN_INSTANT)
    try:
        version = workspace.offline.current(registered.table)
        if version is None:
            return watermark.online_rows
        files = [file.path for file in version.files if file.max_event_us >= since_us]
        return workspace.engine.entities(registered.view, files, since_us=since_us, until_us=now_us) if files else 0
    except (OfflineStoreError, EngineError):
        return watermark.online_rows
