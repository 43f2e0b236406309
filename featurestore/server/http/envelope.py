"""What surrounds every request: its id, its metrics, and an answer to any error inside."""

from __future__ import annotations

import itertools
import re
import secrets
from logging import DEBUG
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore.server.http.bodies import KEPT, PAUSE, REFUSED, WHOLE_ANSWER, ClientDisconnectedError, WholeAnswer
from featurestore.server.http.errors import JsonAnswer, error_answer, json_answer
from featurestore.server.watch.logs import SLOW_SECONDS, log_request, logger
from featurestore.server.watch.metrics import Metrics

_USABLE_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
"""Request ids that are safe in a header and in a log line."""

_JSON_LINES = b"content-type: application/json\r\nx-request-id: %b\r\n"
SERVED_LOG = b"x-served-log"
"""The header by which a client learns whether predictions can be joined to this answer."""
_KEPT_VALUES = {True: b"kept", False: b"left-out"}

# A process-wide random part and a count: unique like a random id each, without a system call each.
_PROCESS = secrets.token_hex(8)
_COUNT = itertools.count(1)


def new_request_id() -> str:
    """Return an id that no other request has."""
    return f"{_PROCESS}-{next(_COUNT):x}"


class Envelope:
    """The outermost ASGI app. Every answer carries ``X-Request-ID``: the client's own where it sent a usable one."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        header = (b"x-request-id", request_id.encode())
        whole: WholeAnswer | None = scope.get("extensions", {}).get(WHOLE_ANSWER)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == WHOLE_ANSWER:
                status, body = 200, message["body"]
                lines, more = _JSON_LINES % header[1], [header]
                if (is_kept := scope["state"].get(KEPT)) is not None:
                    more.append((SERVED_LOG, _KEPT_VALUES[is_kept]))
                    lines += b"%b: %b\r\n" % more[-1]
                if whole is None or not whole(scope, lines, body):
                    await respond(send, json_answer(200, body, more))
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnectedError:
            status = scope["state"].get(REFUSED, 499)
        except Exception as error:
            if status:
                raise  # half an answer has been sent: the server closes the connection
            await respond(send_with_id, error_answer(error, request_id))
        finally:
            seconds, path = perf_counter() - started, scope["path"]
            self._metrics.request(path, status, seconds)
            if seconds >= SLOW_SECONDS or logger.isEnabledFor(DEBUG):
                route = path if path in self._metrics.routes else "other"  # a path may hold secrets
                pause_seconds = scope["state"].get(PAUSE, 0.0)
                log_request(scope["method"], route, status, seconds, request_id, pause_seconds=pause_seconds)


async def respond(send: Send, answer: JsonAnswer) -> None:
    """Send an answer."""
    await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
    await send({"type": "http.response.body", "body": answer.body})


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            return value.decode() if _USABLE_ID.fullmatch(value) else new_request_id()
    return new_request_id()
