"""Domain errors as HTTP answers: one table and one body, neither of which shows internals.

Every error body is ``{"error": {"type", "message", "details"}}``; the details always hold the request id.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from featurestore.errors import (
    CodeMismatchError,
    DamagedRecordError,
    DiskFullError,
    EntityKeyError,
    FeatureStoreError,
    InputError,
    MismatchError,
    NotFoundError,
    OfflineStoreError,
    OnDemandError,
    OnlineStoreError,
    OnlineStoreFullError,
    OnlineStoreUnavailableError,
    OutputNameClashError,
    RegistryError,
    ValueTypeError,
)
from featurestore.server.watch.logs import is_news

logger = logging.getLogger("featurestore.server")

Headers = Sequence[tuple[bytes, bytes]]


class RequestError(InputError):
    """A request that is refused before anything is looked up, for its body, size or type."""

    def __init__(self, status: int, kind: str, message: str, *, headers: Headers = (), **details: Any) -> None:
        super().__init__(message, **details)
        self.status = status
        self.kind = kind
        self.headers = headers


def check_count(count: int, most: int, kind: str, what: str, hint: str) -> None:
    """Raise RequestError (413) for more than ``most`` of a kind of thing."""
    if count > most:
        name = kind.removeprefix("too_many_")
        details: dict[str, Any] = {name: count, f"max_{name}": most}
        raise RequestError(413, kind, f"{count} {what} are more than {most}.", hint=hint, **details)


class _Answer(NamedTuple):
    status: int
    kind: str
    message: str | None = None
    """The message to send instead of the error's own, which may name hosts and paths."""
    retry_after_seconds: int | None = None


_ANSWERS: Mapping[type[BaseException], _Answer] = {
    NotFoundError: _Answer(404, "not_found"),
    EntityKeyError: _Answer(422, "entity_key"),
    ValueTypeError: _Answer(422, "value_type"),
    OutputNameClashError: _Answer(422, "output_name_clash"),
    OnDemandError: _Answer(500, "on_demand_failed", "An on-demand function failed. The server's log tells more."),
    InputError: _Answer(422, "invalid_input"),
    CodeMismatchError: _Answer(503, "code_mismatch"),
    OnlineStoreUnavailableError: _Answer(
        503, "online_store_unavailable", "The online store does not answer. Try again.", retry_after_seconds=1
    ),
    OnlineStoreFullError: _Answer(503, "online_store_full", "The online store has no room for the rows.", 60),
    OnlineStoreError: _Answer(503, "online_store_failed", retry_after_seconds=1),
    OfflineStoreError: _Answer(503, "offline_store_unavailable", "The offline store did not take the rows.", 1),
    DiskFullError: _Answer(503, "disk_full", "The offline store has no room for the rows.", 60),
    MismatchError: _Answer(503, "mismatch", retry_after_seconds=60),
    DamagedRecordError: _Answer(500, "damaged_record", "A stored record is damaged. The server's log tells more."),
    RegistryError: _Answer(503, "registry_unavailable", "The registry does not answer. Try again.", 5),
    BaseException: _Answer(500, "internal_error", "The request failed. The server's log tells more."),
}
"""A class's answer also holds for its subclasses that are not in the table."""


class JsonAnswer(NamedTuple):
    """A JSON body as it is sent."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def json_answer(status: int, body: bytes, more: Headers) -> JsonAnswer:
    """Return a body with its headers, and some more of them."""
    length = str(len(body)).encode()
    return JsonAnswer(status, [(b"content-type", b"application/json"), (b"content-length", length), *more], body)


def error_body(kind: str, message: str, request_id: str, details: Mapping[str, Any] | None = None) -> bytes:
    """Return the one body of an error."""
    error = {"type": kind, "message": message, "details": {**(details or {}), "request_id": request_id}}
    return msgspec.json.encode({"error": error}, enc_hook=str)


def error_answer(error: BaseException, request_id: str) -> JsonAnswer:
    """Return the answer to an error, and log what only the operator may read."""
    if isinstance(error, RequestError):
        return json_answer(error.status, error_body(error.kind, str(error), request_id, error.details), error.headers)
    answer = next(_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS)
    if answer.message is None and isinstance(error, FeatureStoreError):
        body = error_body(answer.kind, str(error), request_id, error.details)
    else:
        body = error_body(answer.kind, answer.message or "", request_id)
    extra = {"request_id": request_id}
    if answer.status == 500:
        # One damaged record or function may fail every request: log these only once in a while.
        is_told = answer.kind == "internal_error" or is_news(answer.kind)
        level = logging.ERROR if is_told else logging.DEBUG
        logger.log(level, "request %s failed", request_id, exc_info=error, extra=extra)
    elif answer.status == 503:
        level = logging.WARNING if is_news(answer.kind) else logging.DEBUG
        logger.log(level, "request %s: %s", request_id, error, extra=extra)
    again = [] if answer.retry_after_seconds is None else [(b"retry-after", b"%d" % answer.retry_after_seconds)]
    return json_answer(answer.status, body, again)
