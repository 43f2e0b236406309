"""Whether committed rows of each served view came online: pushes that ended in between, or that the store lost."""

from __future__ import annotations

from time import monotonic

from featurestore.consistency.waiting_rows import not_online, waiting_rows
from featurestore.errors import FeatureStoreError
from featurestore.ledger.watermarks import Watermark
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Readers

EVERY_SECONDS = 60.0
"""Read what was committed at most this often; rows that wait are looked for after each refresh."""


class WaitingWatch:
    """Compares what was committed since the last run with the online store, in the thread of the refresh."""

    def __init__(self, workspace: Readers, snapshots: SnapshotKeeper, metrics: Metrics) -> None:
        self._workspace, self._snapshots, self._metrics = workspace, snapshots, metrics
        self._read_at_s = 0.0
        self._waiting: dict[str, dict[bytes, bytes]] = {}

    def look(self) -> None:
        """Note since when rows wait. Does nothing while a store is down; the log is not there for every server."""
        snapshot, progress = self._snapshots.current.snapshot, self._snapshots.progress
        is_due, now_us = monotonic() >= self._read_at_s, self._workspace.clock()
        if is_due:
            self._read_at_s = monotonic() + EVERY_SECONDS
        plain = {name: each for name, each in snapshot.views.items() if each.view.online and not each.view.aggregations}
        for name in self._waiting.keys() | plain.keys():
            registered, known = plain.get(name), progress.get(name)
            waiting = self._waiting.get(name, {})
            try:
                if registered is None or (known is not None and known.generation != registered.generation):
                    waiting = {}
                elif is_due and (known is None or known.unpublished_since_us is None):  # else a run has it in hand
                    published = Watermark(published_version=None if known is None else known.published_version)
                    waiting |= waiting_rows(self._workspace, registered, published)
                self._waiting[name] = not_online(self._workspace.online, waiting)
            except FeatureStoreError:
                continue  # other metrics show that
            since_us = self._metrics.waiting_since_us.get(name) or now_us
            self._metrics.waiting_since_us[name] = since_us if self._waiting[name] else None
