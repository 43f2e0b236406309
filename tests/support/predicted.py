"""A project whose service keeps a log, predictions that are logged for it, and outcomes that become known later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import httpx

LOGGED = """

from featurestore import ServedLog

known = dict(source=ParquetSource("outcome_file", "outcomes", "at", "known_at"))
outcomes = FeatureView(
    "outcomes", entities=[customer], **known,
    schema=[
        Field("delay", Float64), Field("late", Bool), Field("kind", String), Field("flag", Int64), Field("day", Date)
    ],
)
trip = Entity("trip", join_keys={"trip_id": Int64})
trips = FeatureView("trips", entities=[trip], **known, schema=[Field("tip", Float64)])
asked = RequestSource("asked", schema=[Field("trip_id", Int64)])

@on_demand_feature_view(sources=[asked], schema=[Field("echo", Int64)])
def echoed(inputs):
    return {"echo": inputs["trip_id"]}

logged = FeatureService("logged", features=[fresh], log=ServedLog(1.0, keys="plain"))
hashed = FeatureService("hashed", features=[fresh, echoed], log=ServedLog(1.0))
"""
HORIZON = timedelta(hours=6)
HOSTILE = "<b>m'1</b>; $(rm) \u202e"


def ask(client: httpx.Client, request_id: str, customers: Sequence[int], service: str = "logged", **more: Any) -> None:
    body = {"feature_service": service, "entities": {"customer_id": list(customers)}, **more}
    assert client.post("/v1/online-features", json=body, headers={"x-request-id": request_id}).status_code == 200


def predict(
    client: httpx.Client, request_id: str, model: str, values: Mapping[str, Any], service: str = "logged"
) -> None:
    body = {"request_id": request_id, "service": service, "model": model, "values": values}
    answer = client.post("/predictions", json=body)
    assert answer.json().get("dropped") == 0, answer.text


def outcome(customer: int, at_us: int, known_us: int | None = None, **values: Any) -> dict[str, Any]:
    return {"customer_id": customer, "event_ts": at_us, "created_ts": known_us, **values}


def auc_by_pairs(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Return the share of pairs of a yes and a no in which the yes has the greater score, ties half."""
    won = [
        1.0 if mine > other else 0.5 if mine == other else 0.0
        for mine, is_yes in zip(scores, truth, strict=True)
        for other, is_other in zip(scores, truth, strict=True)
        if is_yes and not is_other
    ]
    return sum(won) / len(won) if won else None
