"""In front of the routes: who may pass, and a short cut for the most frequent requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

from fastapi import FastAPI
from featurestore_registry.auth import AuthMiddleware, Role, TokenVerifier
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from featurestore.errors import SettingsError
from featurestore.server.http.errors import RequestError
from featurestore.server.push import PUSH_PATH

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Paths that are open to everyone; without a token they show no details."""


_PORT = re.compile(r":\d*\Z")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_binding(host: str, *, has_token: bool) -> None:
    """Raise SettingsError when anyone beyond this machine could read features without a token."""
    if not (has_token or is_loopback(host)):
        raise SettingsError(
            f"Without a token the server listens on loopback only, not on {host!r}.",
            hint="Make a token (`fs token create --role reader`), or set FS_SERVER_TOKEN to a secret of 32 characters "
            "or more.",
            host=host,
        )


def check_reopening(host: str, *, has_static_token: bool, is_required: bool) -> None:
    """Raise SettingsError where ``fs serve --open`` contradicts other settings."""
    if not is_loopback(host):
        raise SettingsError(
            f"--open serves everyone who reaches the server, so it is for loopback only, not for {host!r}.",
            hint="Leave --open out and make a token (`fs token create --role reader`), or use --host 127.0.0.1.",
            host=host,
        )
    if has_static_token:
        raise SettingsError(
            "--open serves without a token, but FS_SERVER_TOKEN sets one.",
            hint="Run `unset FS_SERVER_TOKEN` first, or leave --open out.",
        )
    if is_required:
        raise SettingsError(
            "--open serves without a token, but the setting server.auth is `required`.",
            hint="Set server.auth to `auto` first (FS_SERVER__AUTH in the environment), or leave --open out.",
        )


@lru_cache(maxsize=64)
def names_loopback(value: bytes) -> bool:
    """Tell whether a Host header holds an address or name of loopback, or a name without a dot, with or without a port.

    No page of the internet has a name without a dot: this machine or its network decides what it resolves to.
    """
    name = _PORT.sub("", value.decode("latin-1").strip()).removesuffix(".").lower()
    if name.startswith("[") and name.endswith("]"):
        return is_loopback(name[1:-1])
    return is_loopback(name) or name.endswith(".localhost") or not ({".", ":"} & set(name))


class Gate:
    """The token check of every route except the open ones.

    An open server only answers under names of this machine: any web page can have its own name resolve to 127.0.0.1,
    and would then read features through the browser of this machine's user.
    """

    def __init__(self, app: ASGIApp, *, verifier: TokenVerifier, project: str, is_open: Callable[[], bool]) -> None:
        self._app = app
        self._is_open = is_open
        self._closed = AuthMiddleware(
            app,
            verifier=verifier,
            open_paths=OPEN_PATHS,
            permit=lambda scope, token: token.require(
                Role.OPERATOR if scope["path"] == PUSH_PATH else Role.READER, project
            ),
        )

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection. Raises RequestError (421) for another host's name while the server is open."""
        if not self._is_open():
            return self._closed(scope, receive, send)
        for name, value in scope.get("headers", ()):
            if name == b"host" and not names_loopback(value):
                raise RequestError(
                    421,
                    "misdirected_request",
                    "This server is open to its own machine only, and you asked under another host's name.",
                    hint="Ask http://localhost or http://127.0.0.1, or make a token (`fs token create --role reader`).",
                )
        return self._app(scope, receive, send)


class ShortCut:
    """Calls the most frequent endpoints without FastAPI's routing, which costs as much as an answer."""

    def __init__(self, app: ASGIApp, *, endpoints: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._endpoints = endpoints

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one connection."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"], self._app) if is_post else self._app
        return endpoint(scope, receive, send)


class FeatureServer:
    """FastAPI behind layers of our own: ``outside`` wraps its whole stack, once all routes are in it.

    FastAPI's outermost middleware is left out. It would answer errors in another shape, and with its telemetry costs
    every request as much as half an answer.
    """

    def __init__(self, api: FastAPI, *, outside: Callable[[ASGIApp], ASGIApp], notice: str) -> None:
        stack = api.build_middleware_stack()
        assert isinstance(stack, ServerErrorMiddleware)
        self.api = api
        self.notice = notice
        """What to log once where the server starts, however many workers it has."""
        self._stack = outside(stack.app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        scope["app"] = self.api
        await self._stack(scope, receive, send)
