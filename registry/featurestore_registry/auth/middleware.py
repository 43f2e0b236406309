"""The gate in front of a server: closed by default, and before the body is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from featurestore_registry.auth.sessions import PREFIX
from featurestore_registry.auth.tokens import Token
from featurestore_registry.errors import AuthError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TYPES = {401: "unauthorized", 403: "forbidden"}
_MAX_REQUEST_ID = 128


class Verifier(Protocol):
    """What finds the token for a presented text: a `TokenVerifier`, for example."""

    def verify(self, presented: bytes) -> Token | None:
        """Return the token, None where there is none."""


class AuthMiddleware:
    """An ASGI app that lets a request through to ``app`` only with a token whose role is enough.

    - ``open_paths`` never need a token; they are compared with the whole ``scope["path"]``. ``open_below`` are
      beginnings of such paths: what answers there checks the token itself.
    - ``permit(scope, token)`` raises AuthError where a token is not enough for any other request, of any method; see
      `Token.require`.

    The body of an error is the JSON ``{"error": {"type", "message", "details"}}`` with, in the details, the
    ``request_id`` that an outer middleware left in ``scope["state"]`` or the client sent as ``X-Request-ID``.
    A missing, unknown or expired token is answered 401, always in the same words; a role or project that does not
    suffice 403. An accepted token is left in ``scope["state"]["token"]``, on open paths too. WebSockets are refused.

    Where ``cookie`` names one, a session in it stands for the token of a GET or HEAD without the header: a browser
    sends it along whatever site asks, so it changes nothing. The header wins over it, even with a wrong token.
    """

    def __init__(
        self,
        app: App,
        *,
        verifier: Verifier,
        open_paths: frozenset[str],
        permit: Callable[[Scope, Token], None],
        cookie: str = "",
        open_below: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._open_paths = open_paths
        self._permit = permit
        self._cookie = cookie
        self._open_below = open_below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "WebSockets are not served."})
        else:
            raise NotImplementedError(f"ASGI scope type {scope['type']!r}")

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope.setdefault("state", {})["token"] = self._admit(scope)
        except AuthError as error:
            if scope["path"] not in self._open_paths and not scope["path"].startswith(self._open_below):
                await self._refuse(scope, send, error)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Token:
        presented = _bearer(scope)
        if self._cookie and scope["method"] in ("GET", "HEAD") and not _headers(scope, b"authorization"):
            presented = cookie_of(scope, self._cookie)
            if presented is not None and not presented.startswith(PREFIX.encode()):
                presented = None
        token = None if presented is None else self._verifier.verify(presented)
        if token is None:
            raise AuthError("A valid token is needed: send the header 'Authorization: Bearer TOKEN'.", status=401)
        self._permit(scope, token)
        return token

    async def _refuse(self, scope: Scope, send: Send, error: AuthError) -> None:
        request_id = _request_id(scope)
        details = {} if request_id is None else {"request_id": request_id}
        told = {"type": _TYPES[error.status], "message": error.message, "details": details}
        body = json.dumps({"error": told}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def cookie_of(scope: Scope, name: str) -> bytes | None:
    """Return a cookie's value; None without one, or with two: another site of the same domain may have set one."""
    parts = [part.strip().partition(b"=") for line in _headers(scope, b"cookie") for part in line.split(b";")]
    found = [value for key, _, value in parts if key == name.encode()]
    return found[0] if len(found) == 1 else None


def _bearer(scope: Scope) -> bytes | None:
    """Return the presented token; None without one, with another scheme, or with two headers."""
    values = _headers(scope, b"authorization")
    if len(values) != 1:
        return None
    scheme, _, presented = values[0].strip().partition(b" ")
    return presented.strip() if scheme.lower() == b"bearer" else None


def _request_id(scope: Scope) -> str | None:
    set_before = scope.get("state", {}).get("request_id")
    if set_before is not None:
        return str(set_before)
    sent = _headers(scope, b"x-request-id")
    return sent[0].decode("latin-1")[:_MAX_REQUEST_ID] if sent else None
