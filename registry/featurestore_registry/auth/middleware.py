"""The gate in front of a server: closed by default, and before the body is read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from featurestore_registry.auth.tokens import Role, Token, TokenVerifier
from featurestore_registry.errors import AuthError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_TYPES = {401: "unauthorized", 403: "forbidden"}
_MAX_REQUEST_ID = 128


def _any_project(method: str, path: str) -> None:
    return None


class AuthMiddleware:
    """An ASGI app that lets a request through to ``app`` only with a token whose role is enough.

    - ``open_paths`` never need a token; they are compared with the whole ``scope["path"]``.
    - ``required_role(method, path)`` names the least role for every other request, of any method.
    - ``project_of(method, path)`` names the project that a request is about. A token bound to a project is good only
      for requests about that project, so for none where the answer is None (the default).

    The body of an error is the JSON ``{"error": {"type", "message", "details"}}`` with, in the details, the
    ``request_id`` that an outer middleware left in ``scope["state"]`` or the client sent as ``X-Request-ID``.
    A missing, unknown or expired token is answered 401, always in the same words; a role or project that does not
    suffice 403. An accepted token is left in ``scope["state"]["token"]``, on open paths too. WebSockets are refused.
    """

    def __init__(
        self,
        app: App,
        *,
        verifier: TokenVerifier,
        open_paths: frozenset[str],
        required_role: Callable[[str, str], Role],
        project_of: Callable[[str, str], str | None] = _any_project,
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._open_paths = open_paths
        self._required_role = required_role
        self._project_of = project_of

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
            if scope["path"] not in self._open_paths:
                await self._refuse(scope, send, error)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> Token:
        method, path = scope["method"], scope["path"]
        presented = _bearer(scope)
        token = None if presented is None else self._verifier.verify(presented)
        if token is None:
            raise AuthError("A valid token is needed: send the header 'Authorization: Bearer TOKEN'.", status=401)
        required = self._required_role(method, path)
        if token.role < required:
            raise AuthError(f"The token's role is {token.role}; this needs {required}.", status=403)
        if token.project is not None and token.project != self._project_of(method, path):
            raise AuthError("The token is for another project.", status=403)
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
