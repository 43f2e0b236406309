"""The description of the hot routes, written by hand: FastAPI does not see what is a bare ASGI app.

A test sends what this says, and checks that the answers are what it says.
"""

from __future__ import annotations

from typing import Any

from featurestore.server.describe.examples import ERROR, EXAMPLES, curl
from featurestore.server.read.endpoints import MOST_ROWS
from featurestore.server.read.plans import MOST_FEATURES

Json = dict[str, Any]

_NAME: Json = {"type": "string", "maxLength": 256}
_STATUS: Json = {"type": "string", "enum": ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]}
_COUNT: Json = {"type": "integer", "minimum": 0}
_INSTANT: Json = {"type": "string", "format": "date-time"}
_FEATURES: Json = {
    "type": ["array", "null"],
    "items": _NAME,
    "maxItems": MOST_FEATURES,
    "description": "`view:feature`, or `view:*` for all of a view, in the order of the answer.",
}
_FULL_NAMES: Json = {"type": "boolean", "default": False, "description": "Name outputs `view__feature`."}
_SERVICE: Json = {
    "type": ["string", "null"],
    "maxLength": 256,
    "description": "All features of this service, in its order.",
}


def _columns(description: str) -> Json:
    return {
        "type": "object",
        "description": description,
        "propertyNames": _NAME,
        "additionalProperties": {"type": "array", "maxItems": MOST_ROWS, "items": {}},
    }


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(properties: Json, required: list[str], **more: Any) -> Json:
    return {"type": "object", **more, "properties": properties, "required": required}


_TO = "Where rows go: into the offline store, online, or first the one and then the other."

SCHEMAS: dict[str, Json] = {
    "OnlineRequest": _object(
        {
            "features": _FEATURES,
            "feature_service": _SERVICE,
            "entities": _columns("Join keys, one list each. Int64 keys may be decimal strings."),
            "request_data": _columns("Values for on-demand features, one list each."),
            "include": {
                "type": "array",
                "items": {"type": "string", "enum": ["status", "event_timestamp"]},
                "default": ["status"],
                "description": "What is answered beside the values.",
            },
            "full_feature_names": _FULL_NAMES,
        },
        [],
        additionalProperties=False,
        description="Either `features` or `feature_service`.",
    ),
    "OnlineAnswer": _object(
        {
            "names": {**_list({"type": "string"}), "description": "The outputs, in the order asked."},
            "rows": {
                **_list(_list({})),
                "description": "For each entity row its values, in the order of `names`.",
            },
            "status": {**_list(_list(_STATUS)), "description": "What each value is; where `include` asks for it."},
            "event_timestamp": {
                "type": "object",
                "description": "By view an instant a row, null where nothing was found; where `include` asks for it.",
                "additionalProperties": _list({**_INSTANT, "type": ["string", "null"]}),
            },
        },
        ["names", "rows"],
        additionalProperties=False,
        description="Row-major, features only, in the order asked. Values that are not PRESENT are null, or the "
        "feature's declared default. Timestamps are RFC 3339, dates ISO 8601, decimals strings, bytes base64; NaN and "
        "infinities are null with NULL_VALUE.",
    ),
    "FeastRequest": _object(
        {
            "features": _FEATURES,
            "feature_service": _SERVICE,
            "entities": _columns("Join keys and request data, one list each."),
            "full_feature_names": _FULL_NAMES,
            "include_feature_view_version_metadata": {
                "type": "boolean",
                "default": False,
                "description": "Adds `feature_view_metadata`: each view with its generation.",
            },
        },
        ["entities"],
        description="As Feast's clients send it. Other keys are ignored.",
    ),
    "FeastAnswer": _object(
        {
            "metadata": _object(
                {
                    "feature_names": _list({"type": "string"}),
                    "feature_view_metadata": _list(
                        _object({"name": {"type": "string"}, "version": _COUNT}, ["name", "version"])
                    ),
                },
                ["feature_names"],
            ),
            "results": _list(
                _object(
                    {
                        "values": _list({}),
                        "statuses": _list(_STATUS),
                        "event_timestamps": _list(_INSTANT),
                    },
                    ["values", "statuses", "event_timestamps"],
                )
            ),
        },
        ["metadata", "results"],
        description="Column-major: `metadata.feature_names[i]` belongs to `results[i]`, join keys first.",
    ),
    "PushRequest": _object(
        {
            "source": {**_NAME, "description": "The name of a `PushSource`."},
            "rows": _columns("Join keys, features and the event time (RFC 3339), one list each; others are ignored."),
            "to": {"type": "string", "enum": ["both", "online", "offline"], "default": "both", "description": _TO},
        },
        ["source", "rows"],
        additionalProperties=False,
        description="A created time that is null or not there is the time of arrival.",
    ),
    "PushAnswer": _object(
        {
            "source": {"type": "string"},
            "rows": _COUNT,
            "to": {"type": "string", "enum": ["both", "online", "offline"]},
            "views": {
                "type": "object",
                "description": "By view; null for a store that the rows did not go to.",
                "additionalProperties": _object(
                    {
                        "online": _object(
                            dict.fromkeys(("written", "stale", "expired", "wrong_type"), _COUNT),
                            ["written", "stale", "expired", "wrong_type"],
                            type=["object", "null"],
                        ),
                        "offline": _object(
                            {"rows": _COUNT, "version": {"type": ["integer", "null"]}},
                            ["rows", "version"],
                            type=["object", "null"],
                        ),
                    },
                    ["online", "offline"],
                ),
            },
            "note": {
                "type": ["string", "null"],
                "description": "What to know of a push to `online` alone, and which views did not take the rows.",
            },
        },
        ["source", "rows", "to", "views", "note"],
        description="Sent when the rows are committed offline and then written online.",
    ),
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
    "400": "The body is no JSON.",
    "401": "A token is missing or unknown.",
    "403": "The token's role or project is not enough.",
    "404": "No such feature or feature service.",
    "405": "The method is not the one described.",
    "408": "The request did not arrive in time.",
    "413": f"Over {MOST_ROWS:,} entity rows, {MOST_FEATURES} features, or the body limit.",
    "415": "The body is not application/json.",
    "421": "The server is open, and was asked under another host's name.",
    "422": "A join key is missing or ill-typed, or the body is not as described.",
    "431": "The headers are too large.",
    "500": "The server failed.",
    "503": "The online store does not answer, there are too many connections or on-demand functions are busy (all with "
    "Retry-After), or on-demand code differs from what was applied.",
}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> Json:
    return {"application/json": {"schema": _ref(name)}}


def error_responses(*statuses: str) -> Json:
    """Return the responses of some error statuses, all of them where none is named."""
    return {
        status: {
            "description": text,
            "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
            "content": _json("Error"),
        }
        for status, text in ERRORS.items()
        if not statuses or status in statuses
    }


_READ = "The newest values, each with a true status."


def _operation(operation_id: str, summary: str, request: str, answer: str, description: str = _READ) -> Json:
    return {
        "post": {
            "tags": ["features"],
            "operationId": operation_id,
            "summary": summary,
            "requestBody": {"required": True, "content": _json(request)},
            "responses": {
                "200": {
                    "description": description,
                    "headers": {"X-Request-ID": {"schema": {"type": "string"}}},
                    "content": _json(answer),
                },
                **error_responses(),
            },
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
        "push", "Push rows of a push source (role operator)", "PushRequest", "PushAnswer", "What became of the rows."
    ),
}


def complete(document: Json, open_paths: frozenset[str]) -> Json:
    """Add the hot routes, their schemas and the token to what FastAPI describes."""
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
