"""uvicorn's HTTP protocol with a deadline for receiving a request, and JSON where uvicorn itself answers.

uvicorn waits for ever for the rest of a header or body; a middleware cannot help, since it is not called yet.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from featurestore.server.envelope import Receive, Scope, Send, new_request_id, respond
from featurestore.server.errors import RequestError, error_answer, error_body

RECEIVE_SECONDS = 10.0
"""A request must have arrived whole so long after its first byte, and its first byte so long after the connection."""

MAX_HEADER_BYTES = 64 * 1024
"""Beyond what came in the first read; uvicorn with httptools would go on collecting."""


class DeadlineProtocol(HttpToolsProtocol):
    """Closes connections whose request does not arrive.

    One timer a connection looks at a remembered instant: setting and clearing a timer for every request would
    cost more than the rest of the check.
    """

    receive_seconds = RECEIVE_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._waiting_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: an idle new connection is closed too."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._timer = self.loop.call_later(self.receive_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Refuse headers that never end."""
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                message = f"The headers are larger than {MAX_HEADER_BYTES} bytes."
                self._refuse(b"431 Request Header Fields Too Large", "headers_too_large", message)
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Remember when the request began."""
        self._waiting_since = self.loop.time()
        self._header_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """What follows is the body, which the app counts."""
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Nothing is waited for any more; between requests uvicorn's keep-alive limit holds."""
        self._waiting_since = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the shape of all errors."""
        self._refuse(b"400 Bad Request", "bad_request", msg)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        super()._start_asgi_task(cycle, overloaded if app is service_unavailable else app)  # type: ignore[arg-type]

    def _look(self) -> None:
        since, now = self._waiting_since, self.loop.time()
        left = self.receive_seconds if since is None else since + self.receive_seconds - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._look)
        elif not self.transport.is_closing():
            cycle: Any = self.cycle  # None before the first request's headers, whatever its annotation says
            if cycle is None or not cycle.response_started:
                message = f"The request did not arrive within {self.receive_seconds:g} seconds."
                self._refuse(b"408 Request Timeout", "request_timeout", message)
            else:
                self.transport.close()

    def _refuse(self, status: bytes, kind: str, message: str) -> None:
        request_id = new_request_id()
        body = error_body(kind, message, request_id)
        lines = [
            b"HTTP/1.1 " + status,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"x-request-id: " + request_id.encode(),
            b"connection: close",
            b"",
            body,
        ]
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()


async def overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer instead of the app when there are too many connections."""
    headers = [(b"retry-after", b"1"), (b"connection", b"close")]
    error = RequestError(503, "overloaded", "There are too many connections. Try again.", headers=headers)
    request_id = new_request_id()
    answer = error_answer(error, request_id)
    await respond(send, answer._replace(headers=[*answer.headers, (b"x-request-id", request_id.encode())]))
