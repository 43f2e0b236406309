"""Whether the online records of each served view fit the registry and the offline table: a gauge, and a warning.

It only warns: records that do not belong together are still served, and the server stays ready.
"""

from __future__ import annotations

import logging
from time import monotonic

from featurestore.consistency.belonging import Mismatch, compare_part, foreign_part
from featurestore.errors import FeatureStoreError
from featurestore.ledger.watermarks import Watermark
from featurestore.registered.snapshot import RegisteredView
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Readers

logger = logging.getLogger("featurestore.server")

WARN_EVERY_SECONDS = 60.0
"""Seconds between two warnings, at least."""


class PartWatch:
    """Reads the markers of the served views after each refresh of the definitions, in its thread."""

    def __init__(self, workspace: Readers, snapshots: SnapshotKeeper, metrics: Metrics) -> None:
        self._workspace, self._snapshots, self._metrics = workspace, snapshots, metrics
        self._warn_at_s = 0.0
        self._named: set[str] = set()

    def look(self) -> None:
        """Set the gauges, and warn of mismatches. Does nothing while the online store is down."""
        snapshot, progress = self._snapshots.current.snapshot, self._snapshots.progress
        views = {name: each for name, each in snapshot.views.items() if each.view.online}
        for gone in self._named - views.keys():
            self._metrics.part_mismatch.labels(gone).set(False)
        self._named = set(views)
        found: list[Mismatch] = []
        for name, registered in views.items():
            known = progress.get(name)
            if known is not None and known.generation != registered.generation:
                known = None  # it was read before the definitions, which came to a new one
            published = None if known is None else known.published_version
            try:
                mismatch = self._compared(registered, published)
            except FeatureStoreError:
                return  # other metrics show that
            self._metrics.part_mismatch.labels(name).set(mismatch is not None)
            found += [] if mismatch is None else [mismatch]
        now_s = monotonic()
        if found and now_s >= self._warn_at_s:
            self._warn_at_s = now_s + WARN_EVERY_SECONDS
            for mismatch in found:
                logger.warning("%s %s", mismatch.message, mismatch.hint)

    def _compared(self, registered: RegisteredView, published: int | None) -> Mismatch | None:
        """Compare with the offline table too, where this server has it."""
        if self._workspace.offline.find_commit(registered.table) is None:
            return foreign_part(self._workspace, registered, published)
        return compare_part(self._workspace, registered, Watermark(published_version=published)).mismatch
