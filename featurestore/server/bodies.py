"""Bodies of requests and answers: read within a limit, decoded with errors of their own, sent as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, TypeVar

import msgspec

from featurestore.server.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WHOLE_ANSWER = "featurestore.whole_answer"
"""Names an extension of ASGI of our own, for the answers that are sent most: in a scope the `WholeAnswer`, and the type
of a message with the ``body`` of a JSON answer."""
WholeAnswer = Callable[[Scope, bytes, bytes], bool]
"""Takes the scope, the lines of headers and the body of a 200 and sends it at once; False where it cannot."""

PAUSE = "pause_seconds"
"""In the state of a scope: how long the request may have to wait as it should, so that it is not told of as slow."""

Name = Annotated[str, msgspec.Meta(max_length=256)]
Columns = dict[Name, list[Any]]
T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client left before its request was read; nobody is there to answer."""


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """Return the body of a JSON request.

    Raises RequestError: 415 for another content type or a compressed body, 413 for more than ``limit`` bytes,
    whether announced or counted while they arrive. Raises ClientDisconnectedError when the client is gone.
    """
    content_type = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value
        elif name == b"content-length":
            if value.isdigit() and int(value) > limit:
                raise _too_large(limit)
        elif name == b"content-encoding" and value.strip().lower() != b"identity":
            raise RequestError(415, "unsupported_media_type", "The body must not be compressed.")
    if content_type != b"application/json" and content_type.split(b";")[0].strip().lower() != b"application/json":
        raise RequestError(415, "unsupported_media_type", "The body must be JSON: send Content-Type: application/json.")
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    parts, size = [], 0
    while True:
        if message["type"] != "http.request":
            raise ClientDisconnectedError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return a body's document; raises RequestError (400, 422) for what is none."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError(422, "invalid_request", f"The body is not as it should be: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, "malformed_json", f"The body is no JSON: {error}.") from None
    except RecursionError:
        raise RequestError(400, "malformed_json", "The body is nested too deeply.") from None


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, "body_too_large", f"The body is larger than {limit} bytes.", hint="Send fewer rows.", max_bytes=limit
    )


async def send_json(send: Send, body: bytes) -> None:
    """Answer 200 with a JSON body; `Envelope` knows how."""
    await send({"type": WHOLE_ANSWER, "body": body})
