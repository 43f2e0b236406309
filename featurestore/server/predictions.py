"""Predictions over HTTP: what a model made of an answer, kept beside the served log."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.types import Scope
from typing_extensions import override

from featurestore.served.keep import no_log
from featurestore.served.predictions import KeptFor, checked
from featurestore.server.http.bodies import MOST_ROWS, Columns, JsonEndpoint, Name
from featurestore.server.http.errors import check_count
from featurestore.server.read.served import ServedLogs
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.types.times import MICROSECOND, Clock

PREDICTIONS_PATH = "/predictions"
MOST_PREDICTIONS = 100
"""At most this many predictions for each entity row."""


class PredictionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What one model predicted for the entity rows of one answer."""

    request_id: Annotated[str, Meta(max_length=128, description="The `X-Request-ID` of the answer.")]
    service: Annotated[Name, Meta(description="The feature service that was asked for; it keeps a log.")]
    model: Annotated[str, Meta(min_length=1, max_length=256, description="The model and its version, as you name it.")]
    values: Annotated[
        Columns,
        Meta(
            description="For each prediction a list with a value for each entity row of the request: numbers, texts or "
            "booleans, null where there is none."
        ),
    ]


class PredictionAnswer(msgspec.Struct):
    """How many rows were taken. They are in a file after at most a minute."""

    rows: Annotated[int, Meta(description="Rows that were taken.")]
    dropped: Annotated[
        int, Meta(description="Rows that were not: the queue was full, or there were too many names or models.")
    ]


class PredictionEndpoint(JsonEndpoint[PredictionRequest]):
    """``POST /predictions``: never waits for a file."""

    def __init__(self, snapshots: SnapshotKeeper, clock: Clock, served: ServedLogs, max_body: int) -> None:
        super().__init__(PredictionRequest, max_body)
        self._snapshots, self._clock, self._served = snapshots, clock, served

    @override
    async def answer(self, request: PredictionRequest, scope: Scope, started: float) -> bytes:
        values: dict[str, list[Any]] = request.values
        rows = max(map(len, values.values()), default=0)
        check_count(rows, MOST_ROWS, "too_many_rows", "rows", "Send what belongs to one request, of as many rows.")
        check_count(len(values), MOST_PREDICTIONS, "too_many_values", "predictions", "Send those that you compare.")
        snapshot = self._snapshots.current.snapshot
        service = snapshot.services.get(request.service)
        if service is None or service.log is None:
            raise no_log(snapshot, request.service)
        kept_for = KeptFor(service.name, snapshot.chain.identity, service.log.retention // MICROSECOND)
        prediction, size = checked(kept_for, request.request_id, self._clock(), request.model, values)
        is_taken = self._served.offer_prediction(prediction, size)
        taken = prediction.rows if is_taken else 0
        return msgspec.json.encode(PredictionAnswer(taken, prediction.rows - taken))
