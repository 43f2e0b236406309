"""Predictions on their way to files: the event loop queues them, the thread of the served log writes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from featurestore.errors import OfflineStoreError
from featurestore.served.files import PREDICTED, files_of, read, write
from featurestore.served.keep import blobs_of, services_kept
from featurestore.served.predictions import Form, KeptFor, Prediction, about_predictions, by_model, table_of
from featurestore.server.read.losses import Losses
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

FILE_SECONDS, FILE_ROWS, FILE_BYTES = 60.0, 200_000, 64 << 20
"""A file is written when its first row is so old, or so much is held for it."""


_BYTES_A_COLUMN = 500
"""About what a column of a table takes in memory besides its values."""
_Forms = tuple[tuple[str, Form], ...]


NEWEST_FILES = 20
"""So many files of a service say at the start which names and models are in use."""


@dataclass(slots=True)
class _Held:
    """Predictions of one service that are not in a file yet: a file for each set of names that go together."""

    kept_for: KeptFor
    since_s: float
    tables: dict[_Forms, list[pa.Table]] = field(default_factory=dict)
    rows: int = 0
    size: int = 0

    def add(self, forms: _Forms, table: pa.Table) -> None:
        self.tables.setdefault(forms, []).append(table)
        self.rows += table.num_rows
        self.size += table.nbytes + _BYTES_A_COLUMN * table.num_columns

    @property
    def is_full(self) -> bool:
        return self.rows >= FILE_ROWS or self.size >= FILE_BYTES


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

    def logged_before(self) -> Iterator[Prediction]:
        """Yield what the newest files of each service hold, newest first: names and forms, by model, without values."""
        workspace = self._workspace
        for service in services_kept(workspace, PREDICTED):
            blobs = blobs_of(workspace, PREDICTED, service)
            for file in reversed(files_of(blobs)[-NEWEST_FILES:]):
                with suppress(OfflineStoreError):  # damaged ones are for those who read them, others gone meanwhile
                    rows, about = read(PREDICTED, blobs, file, service)
                    yield from by_model(rows, KeptFor(service, about.project, about.retention_us))

    def turn(self, *, is_last: bool) -> None:
        """Take what is queued, and write what has waited long enough."""
        now_s = monotonic()
        alike: dict[tuple[str, _Forms], list[Prediction]] = {}
        while self.queue:
            prediction, size = self.queue.popleft()
            self.taken_rows += prediction.rows
            self.taken_bytes += size
            alike.setdefault((prediction.kept_for.service, prediction.forms), []).append(prediction)
        for (service, forms), predictions in alike.items():
            held = self._held.setdefault(service, _Held(predictions[-1].kept_for, now_s))
            held.kept_for = predictions[-1].kept_for
            try:
                held.add(forms, table_of(predictions, self._instance))
            except Exception as error:  # those of other names are kept
                self._losses.failed(PREDICTED, service, sum(each.rows for each in predictions), error)
        for service, held in list(self._held.items()):
            if is_last or held.is_full or now_s - held.since_s >= FILE_SECONDS:
                del self._held[service]
                for tables in held.tables.values():
                    self._write(held.kept_for, tables)

    def _write(self, kept_for: KeptFor, tables: Sequence[pa.Table]) -> None:
        import pyarrow as pa

        service, rows = kept_for.service, sum(table.num_rows for table in tables)
        self._files += 1
        try:
            blobs, about = blobs_of(self._workspace, PREDICTED, service), about_predictions(kept_for)
            write(PREDICTED, blobs, pa.concat_tables(tables), about, instance=self._instance, number=self._files)
        except Exception as error:  # whatever it is, the rows are lost and are told
            self._losses.failed(PREDICTED, service, rows, error)
        else:
            self._metrics.predicted_rows.labels(service).inc(rows)
            self._losses.done(PREDICTED, service, rows)
