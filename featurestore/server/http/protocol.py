"""uvicorn's HTTP protocol with deadlines for what clients send and take, and JSON where uvicorn itself answers.

uvicorn waits for ever for the rest of a header or body, and for clients to take answers. A middleware cannot help,
because it is not called yet, or no longer.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from featurestore.server.http.bodies import REFUSED, WHOLE_ANSWER
from featurestore.server.http.envelope import new_request_id, respond
from featurestore.server.http.errors import RequestError, error_answer, error_body

RECEIVE_SECONDS = 10.0
"""At most so long from a request's first byte to its last, and from the connection to the first byte."""

TAKE_SECONDS = 30.0
"""At most so long for a client to take an answer, except what fits into the network's buffers."""

DISCARD_SECONDS = 0.01
"""Seconds between two reads of a body that was already answered: a flood of it takes no time from other requests."""

MAX_HEADER_BYTES = 64 * 1024
"""At most so much for a request line and its headers; uvicorn with httptools has no limit."""


class _HeadersTooLargeError(Exception):
    """Ends the parsing of a request."""


class DeadlineProtocol(HttpToolsProtocol):
    """Closes connections whose request does not arrive or whose answer is not taken.

    One timer a connection looks at a remembered instant: setting and clearing a timer for every request would
    cost more than the rest of the check.
    """

    receive_seconds = RECEIVE_SECONDS
    take_seconds = TAKE_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # Instants of the loop's clock, None while nothing is waited for: the request arrives, the connection is idle,
        # the client takes no bytes.
        self._waiting_since: float | None = None
        self._idle_since: float | None = None
        self._untaken_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Of the header that is arriving; None within a body. Negative at first: see `on_message_begin`.
        self._header_bytes: int | None = None
        self._piece_bytes = 0
        self._running: Any = None
        self._has_ended = False
        """Whether the client has closed its sending side."""
        # One per connection: a reference from a request's scope back to itself would be garbage only for the collector.
        self._extensions = {WHOLE_ANSWER: self._answer_whole}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the clock: a new connection that stays idle is closed too."""
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        self._timer = self.loop.call_later(self.receive_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._forget_client()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio has it
        """Stay open for the answers to complete requests: a client that sends no more may still read.

        Drops a partial request, whose rest will never come; `on_response_complete` closes the connection.
        """
        cycle: Any = self.cycle
        if self._waiting_since is not None and self._header_bytes is None and cycle is not None:  # within its body
            if not self.pipeline or self.pipeline[0][0] is not cycle:
                return False  # it is under way itself
            self.pipeline.popleft()
        self._has_ended, self._waiting_since = True, None
        return self._running is not None and not self._running.response_complete

    def data_received(self, data: bytes) -> None:
        """Refuse headers that never end."""
        self._piece_bytes = len(data)
        self._feed(data)
        if self.transport.is_closing():
            return
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse_headers()
                return
        if self._waiting_since is not None and self._header_bytes is None:  # within a body
            cycle: Any = self.cycle
            if cycle is not None and cycle.response_complete and not self.flow.read_paused:
                self.flow.pause_reading()
                self.loop.call_later(DISCARD_SECONDS, self._discard_on)

    def _feed(self, data: bytes) -> None:
        """Parse what arrived, and ignore offers to switch to another protocol.

        At such an offer httptools leaves the body unread and would take it for the next request, so the header is
        parsed again without the offer.
        """
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    if self.parser.get_method() == b"CONNECT":
                        self.send_400_response("The server is not a proxy: it does not take CONNECT.")
                        return
                    data = data[offer.args[0] :]
                    self._read_again()
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _HeadersTooLargeError):
                self._refuse_headers()
            else:
                self.send_400_response("Invalid HTTP request received.")

    def _read_again(self) -> None:
        since, version = self._waiting_since, self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))
        if self._waiting_since is not None:
            self._waiting_since = since

    def pause_writing(self) -> None:
        """Remember since when the client has taken nothing."""
        self._untaken_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client has taken everything so far."""
        self._untaken_since = None
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Remember when the request began."""
        self._waiting_since, self._idle_since = self.loop.time(), None
        self._header_bytes = -self._piece_bytes  # bytes before it in this piece belong to another request
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the size of the headers: the body follows, which the app counts."""
        is_in_pieces = (self._header_bytes or 0) >= 0
        if (is_in_pieces or self._piece_bytes > MAX_HEADER_BYTES) and self._head_bytes() > MAX_HEADER_BYTES:
            raise _HeadersTooLargeError
        if self.parser.should_upgrade():
            return  # it will be parsed again
        self._header_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the clock of the request; between requests uvicorn's keep-alive limit holds."""
        if self.parser.should_upgrade():
            return
        self._waiting_since = None
        super().on_message_complete()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _refuse_headers(self) -> None:
        message = f"The headers are larger than {MAX_HEADER_BYTES} bytes."
        self._refuse(b"431 Request Header Fields Too Large", "headers_too_large", message)

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP, in the form of all errors."""
        self._refuse(b"400 Bad Request", "bad_request", msg)

    def on_response_complete(self) -> None:
        """Do as uvicorn does, but without a timer for every answer: `_look` closes idle connections too.

        It runs every `RECEIVE_SECONDS`, so a connection may stay that much longer than uvicorn's keep-alive limit.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._has_ended:
            self.transport.close()
        elif self._waiting_since is None:  # else the next request has begun to arrive
            self._idle_since = self.loop.time()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        cycle.scope["extensions"] = self._extensions
        # uvicorn types its apps by classes of messages, ours are any ASGI app.
        super()._start_asgi_task(cycle, overloaded if app is service_unavailable else app)  # type: ignore[arg-type]

    def _answer_whole(self, scope: Scope, headers: bytes, body: bytes) -> bool:
        """Send a 200 in one packet and by one call, where uvicorn takes two of each; see `bodies.WholeAnswer`."""
        cycle = self._running
        if cycle.scope is not scope or cycle.response_started or self.flow.write_paused:
            return False
        if not cycle.disconnected:
            cycle.response_started = cycle.response_complete = True
            own = b"".join([b"%b: %b\r\n" % header for header in cycle.default_headers])
            ending = b"" if cycle.keep_alive else b"connection: close\r\n"
            head = b"HTTP/1.1 200 OK\r\n%b%b%bcontent-length: %d\r\n\r\n" % (own, headers, ending, len(body))
            self.transport.write(head + body)
            cycle.message_event.set()
            if not cycle.keep_alive:
                self.transport.close()
            cycle.on_response()
        return True

    def _discard_on(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _forget_client(self) -> None:
        """Discard the answer under way: uvicorn knows only the last of several pipelined requests."""
        if self._running is not None:
            self._running.disconnected = True

    def _look(self) -> None:
        since, now = self._waiting_since, self.loop.time()
        left = self.receive_seconds if since is None else since + self.receive_seconds - now
        if self._idle_since is not None:
            left = min(left, self._idle_since + self.timeout_keep_alive - now)
        is_closing = self.transport.is_closing()
        if is_closing and self._untaken_since is None:
            self._untaken_since = now  # it closes once everything written has been taken
        if self._untaken_since is not None and now - self._untaken_since > self.take_seconds:
            self._forget_client()
            self.transport.abort()
            return
        if left <= 0 and not is_closing:
            cycle: Any = self.cycle  # None before the first request's headers, in spite of its annotation
            if cycle is None or not cycle.response_started:
                message = f"The request did not arrive within {self.receive_seconds:g} seconds."
                self._refuse(b"408 Request Timeout", "request_timeout", message)
            else:
                self.transport.close()
        self._timer = self.loop.call_later(left if left > 0 else self.receive_seconds, self._look)

    def _told_as(self, status: int) -> str | None:
        """Have the request whose body is arriving logged with this status, and return its id."""
        cycle: Any = self.cycle
        if self._waiting_since is None or self._header_bytes is not None or cycle is None or cycle.response_started:
            return None
        state = cycle.scope["state"]
        state[REFUSED] = status
        return cast("str | None", state.get("request_id"))  # None while it waits behind another

    def _refuse(self, status: bytes, kind: str, message: str) -> None:
        request_id = self._told_as(int(status[:3])) or new_request_id()
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
