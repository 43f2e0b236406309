"""The description of the hot routes: FastAPI cannot describe a bare ASGI app.

A test sends requests by this description, and checks that the answers match it.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from featurestore.ingest.events import EventCounts
from featurestore.ingest.push import PushResult
from featurestore.server.describe.examples import ERROR, EXAMPLES, curl
from featurestore.server.http.bodies import MOST_ROWS
from featurestore.server.predictions import PredictionAnswer, PredictionRequest
from featurestore.server.push import PushRequest
from featurestore.server.read.endpoints import FeastAnswer, FeastRequest, Instant, OnlineRequest
from featurestore.server.read.templates import MOST_FEATURES
from featurestore.statuses import Status

Json = dict[str, Any]


class OnlineAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """Row-major, features only, in the order asked.

    Values that are not PRESENT are null, or the feature's declared default. Timestamps are RFC 3339, dates ISO 8601,
    decimals strings, bytes base64; NaN and infinities are null with NULL_VALUE.
    """

    names: Annotated[list[str], Meta(description="The outputs, in the order asked.")]
    rows: Annotated[list[list[Any]], Meta(description="The values of each entity row, in the order of `names`.")]
    status: (
        Annotated[list[list[Status]], Meta(description="The status of each value, if `include` asks for it.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    event_timestamp: (
        Annotated[
            dict[str, list[Instant | None]],
            Meta(
                description="For each view an instant per row: of the event, or, where windows hold none, until when "
                "the view is covered. Null if nothing was found; if `include` asks for it."
            ),
        ]
        | msgspec.UnsetType
    ) = msgspec.UNSET


_DESCRIBED = (
    OnlineRequest,
    OnlineAnswer,
    FeastRequest,
    FeastAnswer,
    PushRequest,
    PushResult,
    EventCounts,
    PredictionRequest,
    PredictionAnswer,
)


def _schemas() -> dict[str, Json]:
    """Return the schemas of bodies: made from the classes that are decoded and encoded, as far as there are any."""
    _, found = msgspec.json.schema_components(_DESCRIBED, ref_template="#/components/schemas/{name}")
    for name in ("PushResult", "PushedView", "OnlineCounts", "EventCounts"):  # an answer has every key
        found[name]["required"] = list(found[name]["properties"])
        for described in found[name]["properties"].values():
            described.pop("default", None)
    found["PushedView"]["properties"]["events"] = {  # views without windows have no such key
        "$ref": "#/components/schemas/EventCounts",
        "description": "Of a view with windows: what became of the events.",
    }
    pushed = found["PushAnswer"] = found.pop("PushResult")
    pushed["title"] = "PushAnswer"
    pushed["description"] = "Sent when the rows are committed offline and then written online."
    pushed["properties"]["views"]["description"] = "Counts by view; null for a store that the rows did not go to."
    pushed["properties"]["note"]["description"] = (
        "What to know about a push to `online` only, and which views did not take the rows."
    )
    return found


def _object(properties: Json, required: list[str], **more: Any) -> Json:
    return {"type": "object", **more, "properties": properties, "required": required}


SCHEMAS: dict[str, Json] = {
    **_schemas(),
    "Error": _object(
        {
            "error": _object(
                {
                    "type": {"type": "string"},
                    "message": {"type": "string"},
                    "details": _object({"request_id": {"type": "string"}}, []),
                },
                ["type", "message", "details"],
            )
        },
        ["error"],
        examples=[ERROR],
    ),
}

ERRORS = {
    "400": "The body is not JSON.",
    "401": "A token is missing or unknown.",
    "403": "The token's role or project does not suffice.",
    "404": "No such feature or feature service.",
    "405": "The method is not the one described.",
    "408": "The request did not arrive in time.",
    "413": f"Over {MOST_ROWS:,} entity rows, {MOST_FEATURES} features, or the body limit.",
    "415": "The body is not application/json.",
    "421": "The server is open, and the request names another host.",
    "422": "A join key is missing or ill-typed, or the body is not as described.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "The online store does not answer, there are too many connections or on-demand functions are busy (all with "
    "Retry-After), or on-demand code differs from what was applied.",
}


def _json(name: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _response(description: str, body: str) -> Json:
    headers = {"X-Request-ID": {"schema": {"type": "string"}}}
    return {"description": description, "headers": headers, "content": _json(body)}


ERROR_RESPONSES = {status: _response(text, "Error") for status, text in ERRORS.items()}
_READ = "The newest values, each with a true status."


_SERVED_LOG: Json = {
    "description": "Of a service that keeps a log: whether it keeps this answer, so that predictions can be joined.",
    "schema": {"type": "string", "enum": ["kept", "left-out"]},
}


def _operation(operation_id: str, summary: str, request: str, answer: str, description: str = _READ) -> Json:
    done = _response(description, answer)
    if description == _READ:
        done["headers"]["X-Served-Log"] = _SERVED_LOG
    return {
        "post": {
            "tags": ["features"],
            "operationId": operation_id,
            "summary": summary,
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {"200": done, **ERROR_RESPONSES},
        }
    }


PATHS: dict[str, Json] = {
    "/v1/online-features": _operation(
        "online_features", "The newest feature values of some entities", "OnlineRequest", "OnlineAnswer"
    ),
    "/get-online-features": _operation(
        "get_online_features", "The same for Feast's clients", "FeastRequest", "FeastAnswer"
    ),
    "/push": _operation(
        "push", "Push rows of a push source (role operator)", "PushRequest", "PushAnswer", "The outcome for the rows."
    ),
    "/predictions": _operation(
        "log_prediction",
        "Keep what a model predicted from an answer",
        "PredictionRequest",
        "PredictionAnswer",
        "How many rows were taken.",
    ),
}


def complete(document: Json, open_paths: frozenset[str]) -> Json:
    """Add the hot routes, their schemas and the token to FastAPI's description."""
    document["paths"] = {**PATHS, **document["paths"]}
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **SCHEMAS}
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _add_example(path, operation)
    for path in open_paths:
        for operation in document["paths"][path].values():
            operation["security"] = []
    return document


def _add_example(path: str, operation: Json) -> None:
    example = EXAMPLES[path]
    operation["description"] = f"```sh\n{curl(path)}\n```"
    if example.request is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = example.request
    if example.answer is not None:
        operation["responses"]["200"]["content"]["application/json"]["example"] = example.answer
