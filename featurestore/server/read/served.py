"""The served log: a share of the answers goes through a bounded queue to files, off the way of the answers.

The event loop only puts what it has read anyway into the queue; a thread decodes it again, many requests at once, and
writes files of about a minute each, and so it does with predictions. When the queue is full, requests are left out and
counted; nothing waits. A process that is killed loses what it has not written, at most that minute.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import FeatureStoreError, SettingsError
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest
from featurestore.served import files
from featurestore.served.hashing import KEYS_HINT, keys_of
from featurestore.served.keep import blobs_of
from featurestore.served.predictions import Prediction
from featurestore.served.rows import Clocks, ServedRequest, ServedRows
from featurestore.served.shape import ServedShape, shape_of
from featurestore.server.read.predicted import FILE_BYTES, FILE_ROWS, FILE_SECONDS, PredictionLogs, Warnings
from featurestore.server.watch.metrics import Metrics
from featurestore.serving.compiled import Answer, Query
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore.server")

MOST_ROWS, MOST_BYTES = 100_000, 64 << 20
"""How many rows, and bytes of records, may wait in the queue."""
DRAIN_SECONDS = 1.0
"""How often the queue is emptied."""
BATCH_VALUES = 100_000
"""So many values are decoded together: with fewer the work for each column costs more than that for each value."""
_AT_ONCE = 1_024
"""So many random numbers are taken from the system together."""


class _Offered(NamedTuple):
    shape: ServedShape
    request: ServedRequest
    size: int


@dataclass(slots=True)
class _Held:
    """Rows of one shape that are not in a file yet."""

    rows: ServedRows
    batches: list[pa.RecordBatch] = field(default_factory=list)
    since_s: float = 0.0

    @property
    def is_full(self) -> bool:
        rows, size = (sum(getattr(batch, name) for batch in self.batches) for name in ("num_rows", "nbytes"))
        return bool(rows >= FILE_ROWS or size >= FILE_BYTES)


class ServedLogs:
    """Keeps a share of the answers of services that are declared with a log."""

    def __init__(self, workspace: Workspace, metrics: Metrics) -> None:
        self._workspace, self._metrics = workspace, metrics
        self.clocks: Callable[[], Clocks] = Clocks
        """Says how far other clocks are ahead."""
        self._instance = secrets.token_hex(8)
        self.predictions = PredictionLogs(workspace, metrics, self._instance)
        """Keeps what models made of the answers; it shares queue, thread and bounds."""
        self._keys = keys_of(workspace)
        self._queue: deque[_Offered] = deque()
        self._bits: list[int] = []
        self._offered_rows = self._offered_bytes = 0
        """What the event loop put into the queues, since the start; the thread has its own count of what it took."""
        self._taken_rows = self._taken_bytes = 0
        self._held: dict[int, tuple[ServedShape, _Held]] = {}
        self._warn = Warnings().tell
        self._files = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, snapshot: Snapshot) -> None:
        """Raise SettingsError where a service wants hashed join keys and the settings have no secret."""
        wanting = [name for name, each in snapshot.services.items() if each.log and each.log.keys == "hashed"]
        if wanting and not self._keys.is_known:
            raise SettingsError(
                f"The log of {', '.join(sorted(wanting))} keeps join keys hashed, and the settings have no secret.",
                hint=f'{KEYS_HINT} Or declare ServedLog(keys="plain").',
                key="served.secret",
            )

    def shape(self, snapshot: Snapshot, request: FeatureRequest, service: str) -> ServedShape | None:
        """Return how answers of a service are kept, None where they are not; warns where they cannot be."""
        shape = shape_of(snapshot, request, service, self._keys)
        if shape is not None and shape.log.keys == "hashed" and not self._keys.is_known:
            self._warn("secret", f"the log of {service} is not written: the settings have no secret. {KEYS_HINT}")
            return None
        return shape

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="served log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is held, and end the thread."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def offer(
        self,
        shape: ServedShape,
        request_id: str,
        columns: Mapping[str, Sequence[Any]],
        query: Query,
        records: Sequence[bytes | None],
        now_us: int,
        answer: Answer | None,
    ) -> bool:
        """Keep one answer if chance takes it and there is room, and tell whether it is kept.

        Never waits; call it in the event loop's thread.
        """
        if self._chance() >= shape.log.sample:
            return False
        size = sum(len(record) for record in records if record is not None)
        if not self._has_room(query.rows, size):
            self._metrics.served_dropped.labels(shape.service, "full").inc(query.rows)
            return False
        given = {name: columns[name] for name in shape.keys}
        data = {name: query.request_data[name] for name in shape.request_fields}
        computed = () if answer is None else answer.computed
        kept = ServedRequest(request_id, now_us, query.rows, given, data, query.keys, records, query.found, computed)
        self._queue.append(_Offered(shape, kept, size))
        self._offered_rows += query.rows
        self._offered_bytes += size
        return True

    def offer_prediction(self, prediction: Prediction, size: int) -> bool:
        """Keep a prediction if there is room, and tell whether there was. As `offer`, but for chance."""
        if not self._has_room(prediction.rows, size):
            self._metrics.predicted_dropped.labels(prediction.kept_for.service, "full").inc(prediction.rows)
            return False
        self.predictions.queue.append((prediction, size))
        self._offered_rows += prediction.rows
        self._offered_bytes += size
        return True

    def _has_room(self, rows: int, size: int) -> bool:
        if self._thread is None:
            return False
        waiting = self._offered_rows - self._taken_rows - self.predictions.taken_rows
        used = self._offered_bytes - self._taken_bytes - self.predictions.taken_bytes
        return waiting + rows <= MOST_ROWS and used + size <= MOST_BYTES

    def _chance(self) -> float:
        """Return a number in [0, 1), of the system's random bits: asked one by one they are most of what it costs."""
        if not self._bits:
            self._bits = memoryview(secrets.token_bytes(_AT_ONCE * 4)).cast("I").tolist()
        return self._bits.pop() / (1 << 32)

    def _run(self) -> None:
        while not self._stop.wait(DRAIN_SECONDS):
            self._turn(is_last=False)
        self._turn(is_last=True)

    def _turn(self, *, is_last: bool) -> None:
        for work in (self._keep_answers, self.predictions.turn):
            try:
                work(is_last=is_last)
            except Exception:  # the thread must live: the next turn may do better
                logger.exception("the served log failed")

    def _keep_answers(self, *, is_last: bool) -> None:
        self._drain()
        self._write(is_last=is_last)

    def _drain(self) -> None:
        by_shape: dict[int, list[_Offered]] = {}
        while self._queue:
            offered = self._queue.popleft()
            by_shape.setdefault(id(offered.shape), []).append(offered)
        for group in by_shape.values():
            shape, width = group[0].shape, len(group[0].shape.outputs)
            some, rows = list[_Offered](), 0
            for offered in group:
                if some and rows * width > BATCH_VALUES:
                    self._decode(shape, some)
                    some, rows = [], 0
                some.append(offered)
                rows += offered.request.rows
            self._decode(shape, some)

    def _decode(self, shape: ServedShape, some: Sequence[_Offered]) -> None:
        requests = [each.request for each in some]
        rows = sum(each.rows for each in requests)
        _, held = self._held.setdefault(id(shape), (shape, _Held(ServedRows(shape, self._fetch))))
        try:
            batch = held.rows.batch(requests, self._instance, self.clocks())
        except Exception as error:
            self._dropped(shape, rows, "failed", error)
            return
        finally:
            self._taken_rows += rows
            self._taken_bytes += sum(each.size for each in some)
        if not held.batches:
            held.since_s = monotonic()
        held.batches.append(batch)

    def _fetch(self, key: bytes) -> bytes | None:
        return self._workspace.online.mget([key])[0]

    def _write(self, *, is_last: bool) -> None:
        import pyarrow as pa

        now_s = monotonic()
        for known, (shape, held) in list(self._held.items()):
            is_due = bool(held.batches) and now_s - held.since_s >= FILE_SECONDS
            if not (is_due or held.is_full or (is_last and held.batches)):
                if not held.batches and now_s - held.since_s >= FILE_SECONDS:
                    del self._held[known]  # of a revision that is served no more, perhaps
                continue
            table = pa.Table.from_batches(held.batches, shape.schema)
            held.batches, held.since_s = [], now_s
            self._files += 1
            try:
                blobs = blobs_of(self._workspace, files.SERVED, shape.service)
                files.write(
                    files.SERVED, blobs, table, files.about_of(shape), instance=self._instance, number=self._files
                )
            except FeatureStoreError as error:
                self._dropped(shape, table.num_rows, "failed", error)
            else:
                self._metrics.served_rows.labels(shape.service).inc(table.num_rows)

    def _dropped(self, shape: ServedShape, rows: int, reason: str, error: Exception) -> None:
        self._metrics.served_dropped.labels(shape.service, reason).inc(rows)
        self._warn(shape.service, f"{rows:,} rows of the log of {shape.service} are lost: {error}")
