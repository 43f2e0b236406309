"""Logging in by browser, and sessions: pages for people, and routes for `fs login` and admins."""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import astuple
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import RedirectResponse, Response

from featurestore_registry.auth import Person, Session
from featurestore_registry.auth.middleware import cookie_of
from featurestore_registry.auth.sessions import KIND, SESSIONS, document_of, sessions_of
from featurestore_registry.auth.tokens import EVERY_PROJECT
from featurestore_registry.catalog.app import said
from featurestore_registry.catalog.frame import HEADERS
from featurestore_registry.errors import AuthError, RecordNotFoundError, RegistryError, RegistryUnavailableError
from featurestore_registry.http import wire
from featurestore_registry.http.access import Access
from featurestore_registry.http.urls import PREFIX
from featurestore_registry.interface import Registry

if TYPE_CHECKING:
    from featurestore_registry.http.flow import CodeFlow

logger = logging.getLogger("featurestore.registry")

LOGIN_SECONDS = 600
"""A login takes no longer."""
_waiting = threading.BoundedSemaphore(8)
"""At most so many logins wait for the provider: they hold threads that others need."""
_PATH = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*")
"""A path of this server: printable ASCII without a backslash, which browsers take for a slash."""
_MOST_PATH = 1000
"""A longer one is none: a browser drops a cookie of more than 4,096 bytes."""


def add_login(api: FastAPI, access: Access) -> None:
    """Add what browsers ask for, and the one route of the API that wants no token."""
    begun = access.cookie_named("fs_login")

    @api.post("/logout", include_in_schema=False)
    def logout(request: Request) -> Response:
        told = request.headers.getlist("origin")
        if told != [access.public_url] and (told or request.headers.getlist("sec-fetch-site") != ["same-origin"]):
            return said("Another site asked for this", "Nobody was logged out.", status=403)
        _end(request, access)
        answer = RedirectResponse("/", 303, HEADERS)
        _set_cookie(answer, access, access.cookie, "", 0)
        return answer

    @api.get("/login", include_in_schema=False)
    def login(next: str = "/") -> Response:
        return _answered(access, lambda flow: _begun(access, flow, begun, next))

    @api.get("/login/callback", include_in_schema=False)
    def callback(request: Request) -> Response:
        kept = cookie_of(request.scope, begun)
        answer = _answered(access, lambda flow: _logged_in(request, access, flow, kept))
        _set_cookie(answer, access, begun, "", 0)
        return answer

    @api.get(
        f"{PREFIX}/login",
        summary="How people log in: the identity provider, and what to ask it for",
        responses={404: {"model": wire.ErrorBody, "description": "No identity provider is set."}},
    )
    def offer() -> wire.LoginBody:
        issuer = None if access.provider is None else access.provider.issuer
        if issuer is None or not issuer.login_client or not access.public_url:
            raise RecordNotFoundError("Nobody logs in here but with a token of `fs token create`.")
        return wire.LoginBody(issuer=issuer.url, client_id=issuer.login_client, scopes=list(issuer.scopes))


def _answered(access: Access, work: Callable[[CodeFlow], Response]) -> Response:
    if access.provider is None or not access.public_url:
        return said("Nobody logs in here by browser", status=404)
    from featurestore_registry.http.flow import CodeFlow

    issuer = access.provider.issuer
    flow = CodeFlow(access.provider, issuer.audience, f"{access.public_url}/login/callback", issuer.secret)
    if not _waiting.acquire(blocking=False):
        return said("Too many people log in at this moment", "Try again.", status=503)
    try:
        return work(flow)
    except RegistryError as error:
        return _failed(error)
    finally:
        _waiting.release()


def _begun(access: Access, flow: CodeFlow, cookie: str, after: str) -> Response:
    address, request = flow.begin()
    answer = RedirectResponse(address, 303, HEADERS)
    kept = base64.urlsafe_b64encode(json.dumps([*astuple(request), _local(after)]).encode()).decode().rstrip("=")
    _set_cookie(answer, access, cookie, kept, LOGIN_SECONDS)
    return answer


def _local(path: str) -> str:
    return path if len(path) <= _MOST_PATH and _PATH.fullmatch(path) else "/"


def _logged_in(request: Request, access: Access, flow: CodeFlow, kept: bytes | None) -> Response:
    from featurestore_registry.http.flow import AuthorizationRequest
    from featurestore_registry.http.oidc import LoginError

    try:
        state, nonce, verifier, after = map(str, json.loads(base64.urlsafe_b64decode((kept or b"") + b"==")))
    except (ValueError, TypeError, RecursionError):
        raise LoginError("This browser began no login, or longer than 10 minutes ago.", why="no login") from None
    _, claims = flow.finish(request.url.query, AuthorizationRequest(state, nonce, verifier))
    text, _ = access.log_in(flow.provider.person(claims), "browser", client_of(request))
    _end(request, access)
    answer = RedirectResponse(_local(after), 303, HEADERS)
    _set_cookie(answer, access, access.cookie, text, access.session_seconds)
    return answer


def _end(request: Request, access: Access) -> None:
    """End the session that the browser had, if any."""
    person = access.verify(cookie_of(request.scope, access.cookie) or b"")
    if isinstance(person, Person) and person.session:
        access.log_out(person, client_of(request))


def _failed(error: RegistryError) -> Response:
    logger.warning("a login failed: %s %s", error.message, getattr(error, "why", ""))
    if isinstance(error, AuthError):
        told, status = error.message, error.status
    elif isinstance(error, RegistryUnavailableError):
        told, status = "The registry's database does not answer. Try again.", 503
    else:
        told, status = "The registry could not keep the login. Try again; the server's log tells more.", 503
    return said("The login failed", told, link=("/login", "Log in"), status=status)


def _set_cookie(answer: Response, access: Access, name: str, value: str, seconds: float) -> None:
    answer.set_cookie(name, value, max_age=int(seconds), path="/", secure=access.is_tls, httponly=True, samesite="lax")


def client_of(request: Request) -> str:
    """Return the address that a request came from."""
    return "" if request.client is None else request.client.host


def add_sessions(api: APIRouter, registry: Registry, access: Access) -> None:
    """Add the sessions of oneself and, for admins, of everybody."""

    @api.post("/session", summary="Begin a session, with the ID token that `fs login` got as the bearer token")
    def begin(request: Request, body: wire.BeginBody) -> wire.SessionBody:
        from featurestore_registry.http.flow import bound_nonce

        person = request.scope["state"]["token"]
        if not isinstance(person, Person) or not person.nonce:
            raise AuthError(
                "A session begins with the token that `fs login` gets of the identity provider.", status=403
            )
        if person.nonce != bound_nonce(body.nonce_verifier, access.public_url):
            raise AuthError(
                "This token is for a login at another URL.",
                status=403,
                hint=f"Name the registry as its server does, {access.public_url} (registry_server.public_url).",
            )
        text, made = access.log_in(person, "fs login", client_of(request))
        until = datetime.fromtimestamp(made.expires_at_us / 1_000_000, UTC)
        return wire.SessionBody(token=text, name=made.name, roles=sorted(made.roles.values()), expires_at=until)

    @api.delete("/session", summary="End the session whose text is the bearer token")
    def end(request: Request) -> wire.CountBody:
        person = request.scope["state"]["token"]
        if not isinstance(person, Person) or not person.session:
            raise AuthError("The bearer token is no session's: `fs token revoke` ends others.", status=403)
        access.log_out(person, client_of(request))
        return wire.CountBody(count=1)

    _add_everybodys(api, registry, access)


def _add_everybodys(api: APIRouter, registry: Registry, access: Access) -> None:
    @api.get("/sessions", summary="Who is logged in: an entry for each person, of the project `.sessions`")
    def scan(
        project: str,
        key: Annotated[str | None, Query(description="One person's alone.")] = None,
        limit: Annotated[int | None, Query(ge=0, le=wire.MOST_ENTRIES)] = None,
    ) -> list[wire.LedgerEntryBody]:
        found = [wire.plain(entry) for entry in registry.ledger.scan(project, KIND, key=key, limit=limit)]
        return [
            wire.LedgerEntryBody(**{**each, "document": document_of(sessions_of(each["document"]), are_shown=True)})
            for each in found
        ]

    @api.post("/sessions", summary="End sessions: those of a person's that are not named any more")
    def append(project: str, body: wire.SessionEntryBody, request: Request) -> wire.VersionBody:
        entry = registry.ledger.latest(project, KIND, body.key)
        had: Mapping[str, Session] = {each.id: each for each in (sessions_of(entry.document) if entry else ())}
        kept = {str(each.get("id")) for each in body.document.sessions}
        if not kept <= had.keys():
            raise ValueError(f"only sessions that there are can be kept; they are of the project {SESSIONS!r}")
        left = [each for each in had.values() if each.id in kept]
        made = registry.ledger.append(project, KIND, body.key, document_of(left), if_version=body.if_version)
        for each in had.values():
            if each.id not in kept:
                ended = {"session": each.id, "of": each.name}
                access.audit(request.scope["state"]["token"], EVERY_PROJECT, "end session", ended, client_of(request))
        access.refresh()
        return wire.VersionBody(version=made)
