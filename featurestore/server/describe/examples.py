"""The description's examples: requests to the repo that `fs init` makes, and their answers.

A test sends each one and compares the answer.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

ADDRESS = "http://127.0.0.1:6566"


class Example(NamedTuple):
    """A request's body (None for GET) and the answer's (None where it is not JSON)."""

    request: dict[str, Any] | None
    answer: dict[str, Any] | None


EXAMPLES: dict[str, Example] = {
    "/v1/online-features": Example(
        {
            "feature_service": "trip_model_v1",
            "entities": {"driver_id": [1001, 7]},
            "request_data": {"trip_km": [12.5, 3]},
        },
        {
            "names": ["trips", "rating", "km_per_trip"],
            "rows": [[2, 4.28, 4.166666666666667], [None, None, None]],
            "status": [["PRESENT", "PRESENT", "PRESENT"], ["NOT_FOUND", "NOT_FOUND", "NULL_VALUE"]],
        },
    ),
    "/get-online-features": Example(
        {
            "features": ["driver_stats:trips", "driver_stats:rating"],
            "entities": {"driver_id": [1001, 7]},
            "full_feature_names": False,
        },
        {
            "metadata": {"feature_names": ["driver_id", "trips", "rating"]},
            "results": [
                {
                    "values": [1001, 7],
                    "statuses": ["PRESENT", "PRESENT"],
                    "event_timestamps": ["1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"],
                },
                {
                    "values": [2, None],
                    "statuses": ["PRESENT", "NOT_FOUND"],
                    "event_timestamps": ["2026-11-26T08:00:00Z", "1970-01-01T00:00:00Z"],
                },
                {
                    "values": [4.28, None],
                    "statuses": ["PRESENT", "NOT_FOUND"],
                    "event_timestamps": ["2026-11-26T08:00:00Z", "1970-01-01T00:00:00Z"],
                },
            ],
        },
    ),
    "/push": Example(
        {
            "source": "driver_events",
            "rows": {"driver_id": [1001], "hour": ["2026-11-26T09:19:45Z"], "trips": [4], "rating": [4.7]},
            "to": "both",
        },
        {
            "source": "driver_events",
            "rows": 1,
            "to": "both",
            "views": {
                "driver_stats": {
                    "online": {"written": 1, "stale": 0, "expired": 0, "wrong_type": 0},
                    "offline": {"rows": 1, "version": 1},
                }
            },
            "note": None,
        },
    ),
    "/predictions": Example(
        {
            "request_id": "eebe4fb1460107a5-2",
            "service": "trip_model_v1",
            "model": "tips-7",
            "values": {"tipped": [0.83, 0.41]},
        },
        {"rows": 2, "dropped": 0},
    ),
    "/health": Example(None, {"status": "ok"}),
    "/ready": Example(None, {"status": "ready", "revision": 3, "registry_age_seconds": 3.2}),
    "/metrics": Example(None, None),
}

ERROR = {
    "error": {
        "type": "not_found",
        "message": "There is no feature view 'driver_stat'. Did you mean 'driver_stats'?",
        "details": {"request_id": "eebe4fb1460107a5-2"},
    }
}


def curl(path: str) -> str:
    """Return the command that sends an example."""
    request = EXAMPLES[path].request
    body = "" if request is None else f" -H 'content-type: application/json' -d '{json.dumps(request)}'"
    return f"curl -s {ADDRESS}{path}{body}"
