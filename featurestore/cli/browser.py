"""A login in the browser of this machine, for a terminal: RFC 8252, by a port of loopback."""

from __future__ import annotations

import secrets
import webbrowser
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import click
from featurestore_registry.http.flow import CodeFlow, bound_nonce, redirect_path
from featurestore_registry.http.oidc import IdentityProvider, Issuer, LoginError, printable

WAIT_SECONDS = 300.0
"""So long a login waits for the browser."""
_TEXT = b"<!doctype html><title>fs login</title><p>The terminal goes on. You can close this page."


class _Listener(ThreadingHTTPServer):
    daemon_threads = True  # a browser may open connections that it never uses
    state = ""

    def __init__(self, path: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.path = path
        self.answers = Queue[str]()


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    server: _Listener

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        # Any page that the browser shows can send requests here: those end nothing.
        is_answer = path == self.server.path and parse_qs(query).get("state") == [self.server.state]
        self.send_response(200 if is_answer else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if is_answer:
            self.wfile.write(_TEXT)
            self.server.answers.put(query)

    def log_message(self, *_: Any) -> None:
        """Say nothing: the address holds the code."""


def id_token(offer: Mapping[str, Any], url: str, *, opens: bool) -> tuple[str, str]:
    """Let somebody log in at the provider that the registry at a URL offers, and return the ID token.

    And the verifier that proves to that registry, and to no other, that the token is for it. Raises LoginError.
    """
    provider = IdentityProvider(
        Issuer(printable(offer["issuer"]), offer["client_id"], {}, scopes=tuple(offer["scopes"]))
    )
    try:
        provider.refresh()
    except LoginError as error:
        raise LoginError(
            f"The identity provider {provider.issuer.url} cannot be used: {error.why}.",
            hint="Try again in a minute, or paste a token with `fs login --token`.",
        ) from None
    with _Listener(redirect_path(url)) as listener:
        redirect_uri = f"http://127.0.0.1:{listener.server_port}{listener.path}"
        flow = CodeFlow(provider, provider.issuer.audience, redirect_uri)
        verifier = secrets.token_urlsafe(32)
        address, pending = flow.begin(bound_nonce(verifier, url))
        listener.state = pending.state
        Thread(target=listener.serve_forever, args=(0.1,), daemon=True).start()
        try:
            click.echo(f"Log in here, in a browser on this machine:\n{address}", err=True)
            if opens:
                webbrowser.open(address)
            return flow.finish(listener.answers.get(timeout=WAIT_SECONDS), pending)[0], verifier
        except Empty:
            raise LoginError("Nobody logged in within 5 minutes.", hint="Run `fs login` again.") from None
        finally:
            listener.shutdown()
