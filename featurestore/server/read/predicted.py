"""Predictions on their way to files: the event loop queues them, the thread of the served log writes them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from featurestore.served.files import PREDICTED, write
from featurestore.served.keep import blobs_of
from featurestore.served.predictions import KeptFor, Prediction, about_predictions, merged, tables_of
from featurestore.server.read.losses import Losses
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

FILE_SECONDS, FILE_ROWS, FILE_BYTES = 60.0, 200_000, 64 << 20
"""A file is written when its first row is so old, or so much is held for it."""


@dataclass(slots=True)
class _Held:
    """Predictions of one service that are not in a file yet."""

    kept_for: KeptFor
    since_s: float
    tables: list[pa.Table] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        rows, size = (sum(getattr(table, name) for table in self.tables) for name in ("num_rows", "nbytes"))
        return bool(rows >= FILE_ROWS or size >= FILE_BYTES)


class PredictionLogs:
    """Keeps predictions; all but ``queue`` is for the thread of the served log."""

    def __init__(self, workspace: Workspace, metrics: Metrics, instance: str, losses: Losses) -> None:
        self._workspace, self._metrics, self._instance, self._losses = workspace, metrics, instance, losses
        self.queue: deque[tuple[Prediction, int]] = deque()
        """Predictions, each with about its bytes: for the event loop to append to."""
        self.taken_rows = self.taken_bytes = 0
        """What the thread took from the queue, since the start."""
        self._held: dict[str, _Held] = {}
        self._files = 0

    def turn(self, *, is_last: bool) -> None:
        """Take what is queued, and write what has waited long enough."""
        now_s = monotonic()
        by_service: dict[str, list[Prediction]] = {}
        while self.queue:
            prediction, size = self.queue.popleft()
            self.taken_rows += prediction.rows
            self.taken_bytes += size
            by_service.setdefault(prediction.kept_for.service, []).append(prediction)
        for service, predictions in by_service.items():
            held = self._held.setdefault(service, _Held(predictions[-1].kept_for, now_s))
            held.kept_for = predictions[-1].kept_for
            held.tables += tables_of(predictions, self._instance)
        for service, held in list(self._held.items()):
            if is_last or held.is_full or now_s - held.since_s >= FILE_SECONDS:
                del self._held[service]
                for table in merged(held.tables):
                    self._write(held.kept_for, table)

    def _write(self, kept_for: KeptFor, table: pa.Table) -> None:
        service = kept_for.service
        self._files += 1
        try:
            blobs = blobs_of(self._workspace, PREDICTED, service)
            write(PREDICTED, blobs, table, about_predictions(kept_for), instance=self._instance, number=self._files)
        except Exception as error:  # whatever it is, the rows are lost and are told
            self._losses.failed(PREDICTED, service, table.num_rows, error)
        else:
            self._metrics.predicted_rows.labels(service).inc(table.num_rows)
            self._losses.done(PREDICTED, service, table.num_rows)
