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
from sys import getsizeof
from time import monotonic
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from featurestore.errors import SettingsError
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import FeatureRequest
from featurestore.served import files
from featurestore.served.hashing import KEYS_HINT, keys_of
from featurestore.served.keep import blobs_of
from featurestore.served.predictions import Prediction
from featurestore.served.rows import Clocks, ServedRequest, ServedRows
from featurestore.served.shape import SECRET_HINT, ServedShape, lack_of_secret, shape_of
from featurestore.server.read.known import Known
from featurestore.server.read.losses import FULL, MANY, SECRET, Losses
from featurestore.server.read.predicted import FILE_BYTES, FILE_ROWS, FILE_SECONDS, PredictionLogs
from featurestore.server.watch.metrics import Metrics
from featurestore.serving.compiled import Answer, Query
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore.server")

MOST_ROWS, MOST_BYTES = 100_000, 64 << 20
"""How many rows may wait in the queue, and about how many bytes of memory."""
CLOSE_SECONDS = 10.0
"""How long a server that stops waits for the store to take what is held."""
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
        self._losses = Losses(metrics)
        self.predictions = PredictionLogs(workspace, metrics, self._instance, self._losses)
        """Keeps what models made of the answers; it shares queue, thread and bounds."""
        self._known: dict[str, Known] = {}
        self._logged_before: deque[Prediction] = deque()
        """What files say of earlier predictions: from the thread to the event loop."""
        self._keys = keys_of(workspace)
        self._queue: deque[_Offered] = deque()
        self._bits: list[int] = []
        self._offered_rows = self._offered_bytes = 0
        """What the event loop put into the queues, since the start; the thread has its own count of what it took."""
        self._taken_rows = self._taken_bytes = 0
        self._held: dict[int, tuple[ServedShape, _Held]] = {}
        self._told = set[str]()
        """The services without a secret of which it was told."""
        self._files = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, snapshot: Snapshot) -> None:
        """Raise SettingsError where a service wants hashed join keys and the settings have no secret."""
        if told := lack_of_secret(self._workspace, snapshot.services.values()):
            raise SettingsError(told, hint=SECRET_HINT, key="served.secret")

    def shape(self, snapshot: Snapshot, request: FeatureRequest, service: str) -> ServedShape | None:
        """Return how answers of a service are kept, None where they are not; warns where they cannot be."""
        shape = shape_of(snapshot, request, service, self._keys)
        if shape is not None and self._lacks_secret(shape) and service not in self._told:
            self._told.add(service)
            logger.warning("the log of %s is not written: the settings have no secret. %s", service, KEYS_HINT)
        return shape

    def _lacks_secret(self, shape: ServedShape) -> bool:
        return shape.log.keys == "hashed" and not self._keys.is_known

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="served log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is held, and end the thread; what the store does not take within `CLOSE_SECONDS` is lost."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():  # it ends with the process
                self._losses.stopped()
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
        if self._lacks_secret(shape):
            self._losses.refused(files.SERVED, shape.service, query.rows, SECRET)
            return False
        given = {name: columns[name] for name in shape.keys}
        data = {name: query.request_data[name] for name in shape.request_fields}
        computed = () if answer is None else answer.computed
        size = _size_of(query.keys) + _size_of(records) + sum(map(_size_of, (*given.values(), *data.values())))
        size += sum(_size_of(column) for of_view in computed for column in of_view)
        if not self._has_room(query.rows, size):
            self._losses.refused(files.SERVED, shape.service, query.rows, FULL)
            return False
        kept = ServedRequest(request_id, now_us, query.rows, given, data, query.keys, records, query.found, computed)
        self._queue.append(_Offered(shape, kept, size))
        self._losses.offered(files.SERVED, shape.service, query.rows)
        self._offered_rows += query.rows
        self._offered_bytes += size
        return True

    def offer_prediction(self, prediction: Prediction, size: int) -> bool:
        """Keep a prediction if there is room, and tell whether there was. As `offer`, but for chance.

        Raises InputError for a name that has another kind of value otherwise.
        """
        service, now_s = prediction.kept_for.service, monotonic()
        self._remember(now_s)
        known = self._known.setdefault(service, Known())
        prediction = known.of_one_kind(prediction)
        has_place = known.has_room(prediction, now_s)
        if not has_place or not self._has_room(prediction.rows, size):
            self._losses.refused(files.PREDICTED, service, prediction.rows, FULL if has_place else MANY)
            return False
        known.take(prediction, now_s)
        self.predictions.queue.append((prediction, size))
        self._losses.offered(files.PREDICTED, service, prediction.rows)
        self._offered_rows += prediction.rows
        self._offered_bytes += size
        return True

    def _remember(self, now_s: float) -> None:
        """Take up what files say of names and models: those that were in use keep their place over a restart."""
        while self._logged_before:
            earlier = self._logged_before.popleft()
            self._known.setdefault(earlier.kept_for.service, Known()).remember(earlier, now_s)

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
        try:
            self._logged_before.extend(self.predictions.logged_before())
        except Exception:  # without it names are known as they come
            logger.exception("the newest predictions cannot be read")
        while not self._stop.wait(DRAIN_SECONDS):
            self._turn(is_last=False)
        self._turn(is_last=True)

    def _turn(self, *, is_last: bool) -> None:
        for work in (self._keep_answers, self.predictions.turn):
            try:
                work(is_last=is_last)
            except Exception:  # the thread must live: the next turn may do better
                logger.exception("the served log failed")
        self._losses.tell(is_last=is_last)

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
            self._losses.failed(files.SERVED, shape.service, rows, error)
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
            except Exception as error:  # whatever it is, the rows are lost and are told
                self._losses.failed(files.SERVED, shape.service, table.num_rows, error)
            else:
                self._metrics.served_rows.labels(shape.service).inc(table.num_rows)
                self._losses.done(files.SERVED, shape.service, table.num_rows)


def _size_of(values: Sequence[Any]) -> int:
    """Return about how many bytes values take in memory."""
    kinds = set(map(type, values))
    if kinds <= {int, float, bool, str, bytes, NoneType}:
        return 8 * len(values) + sum(map(getsizeof, values))
    return sum(8 + (_size_of(value) if isinstance(value, list | tuple) else getsizeof(value)) for value in values)
