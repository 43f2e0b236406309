"""Bodies of requests and answers: read within a limit, decoded with errors of their own, sent as JSON."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from starlette.types import Receive, Scope, Send

from featurestore.server.http.errors import RequestError

WHOLE_ANSWER = "featurestore.whole_answer"
"""Our own ASGI extension for the most frequent answers: the scope's key of the `WholeAnswer`, and the type of a message
with the ``body`` of a JSON answer."""
WholeAnswer = Callable[[Scope, bytes, bytes], bool]
"""Takes the scope, the header lines and the body of a 200 and sends them at once; False where it cannot."""

PAUSE = "pause_seconds"
"""Key in a scope's state: how long the request may wait on purpose without being logged as slow."""

KEPT = "is_kept"
"""Key in a scope's state: whether the served log keeps the answer; absent where it never would."""

REFUSED = "refused_status"
"""Key in a scope's state: the status with which the protocol ended a request whose body had not arrived."""

MOST_ROWS = 1_000
"""At most this many rows in a request."""
Name = Annotated[str, msgspec.Meta(max_length=256)]
# The description names the most rows; more of them are refused with an error of its own, and not by the decoder.
Columns = dict[Name, Annotated[list[Any], msgspec.Meta(extra_json_schema={"maxItems": MOST_ROWS})]]
T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client left, or the protocol refused its request, before it was read: there is nobody to answer."""


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
    parts, size, is_whole = [], 0, False
    while not is_whole:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientDisconnectedError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise _too_large(limit)
        is_whole = not message.get("more_body", False)
    return b"".join(parts)


def decoded(decoder: msgspec.json.Decoder[T], body: bytes, part: str = "") -> T:
    """Return the document of a body, or of its key ``part``; raises RequestError (400, 422) for an invalid one."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        text = _explained(str(error), decoder.type, body)
        if part:
            text = text.replace("`$", f"`$.{part}") if "`$" in text else f"{text} - at `$.{part}`"
        raise RequestError(422, "invalid_request", f"The body is not as described: {text}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # msgspec misses the other half of a character where the text ends, and takes the body for cut off.
        is_half = "truncated" in str(error) and _HALF.search(body)
        why = "JSON is malformed: half a surrogate pair" if is_half else error
        raise RequestError(400, "malformed_json", f"The body is not JSON: {why}.") from None
    except RecursionError:
        raise RequestError(400, "malformed_json", "The body is nested too deeply.") from None


_HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u)")
_UNKNOWN = re.compile("Object contains unknown field `(.*)`", re.DOTALL)
_IN_COLUMNS = re.compile(r"`\$\.(\w+)\[\.\.\.]`$")
_NO_COLUMNS = re.compile(r"Expected `.*`\$\.(rows|entities|request_data)`$", re.DOTALL)
_OF_FEW = re.compile(r"Invalid enum value .*`\$\.(\w+)[^`]*`$", re.DOTALL)


def _explained(text: str, kind: Any, body: bytes) -> str:
    """Return msgspec's message about a body, with the allowed keys or values and the name of the column."""
    if unknown := _UNKNOWN.fullmatch(text):
        return f"{unknown[1][:256]!r} is not one of its keys, which are {', '.join(kind.__struct_encode_fields__)}"
    if few := _OF_FEW.match(text):
        return f"{text}: it must be {' or '.join(_literals(get_type_hints(kind)[few[1]]))}"
    if table := _NO_COLUMNS.fullmatch(text):
        return f'`$.{table[1]}` must be an object of columns, a list for each: {{"name": [1, 2]}} for two rows'
    if columns := _IN_COLUMNS.search(text):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the body after the error
            values = msgspec.json.decode(body)[columns[1]]
            wrong = [name for name in values if type(values[name]) is not list] if type(values) is dict else []
            return text.replace("[...]", f"[{wrong[0]!r}]") if wrong else text
    return text


def _literals(kind: Any) -> Iterator[str]:
    for each in get_args(kind):
        yield from [each] if get_origin(kind) is Literal else _literals(each)


def _too_large(limit: int) -> RequestError:
    return RequestError(
        413, "body_too_large", f"The body is larger than {limit} bytes.", hint="Send fewer rows.", max_bytes=limit
    )


class JsonEndpoint(ABC, Generic[T]):
    """A bare ASGI app that takes a JSON body, and answers 200 with one."""

    def __init__(self, kind: type[T], max_body: int) -> None:
        self._decoder = msgspec.json.Decoder(kind)
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; `Envelope` knows how to send the answer."""
        body = await read_body(scope, receive, self._max_body)
        started = perf_counter()
        answer = await self.answer(decoded(self._decoder, body), scope, started)
        await send({"type": WHOLE_ANSWER, "body": answer})

    @abstractmethod
    async def answer(self, request: T, scope: Scope, started: float) -> bytes:
        """Return the body of the answer. ``started`` is the instant on `perf_counter` at which the body was there."""
