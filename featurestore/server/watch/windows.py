"""How far the windows of each served view are: gauges of the events that are not online, and of what is covered."""

from __future__ import annotations

from contextlib import suppress

from featurestore.errors import FeatureStoreError, OfflineStoreError
from featurestore.following.lag import at_most_waiting, least_mark
from featurestore.following.mark import mark_from, read_marks
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Readers


class WindowWatch:
    """Reads the marks of views with windows after each refresh of the definitions, in its thread."""

    def __init__(self, workspace: Readers, snapshots: SnapshotKeeper, metrics: Metrics) -> None:
        self._workspace, self._snapshots, self._metrics = workspace, snapshots, metrics
        self._named: set[str] = set()

    def look(self) -> None:
        """Set the gauges. Does nothing while the online store is down; the log is not there for every server."""
        snapshot = self._snapshots.current.snapshot
        views = {name: each for name, each in snapshot.views.items() if each.view.aggregations and each.view.online}
        for gone in self._named - views.keys():
            self._metrics.window_lag.labels(gone).set(0)
            self._metrics.window_age.labels(gone).set(0)
        self._named = set(views)
        for name, registered in views.items():
            try:
                stored = read_marks(self._workspace, registered).values()
            except FeatureStoreError:
                return  # other metrics show that
            marks = [mark for mark in map(mark_from, stored) if mark is not None]
            if marks and len(marks) == len(stored):
                covered_us = min(mark.covered_us for mark in marks)
                self._metrics.window_age.labels(name).set((self._workspace.clock() - covered_us) / 1_000_000)
            with suppress(OfflineStoreError):
                version = self._workspace.offline.current(registered.table)
                if version is not None:
                    mark = least_mark(self._workspace, registered, version)
                    waiting = at_most_waiting(self._workspace, registered, version, mark)
                    self._metrics.window_lag.labels(name).set(waiting)
