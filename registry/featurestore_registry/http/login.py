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
from html import escape
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from featurestore_registry.auth import Person, Session
from featurestore_registry.auth.middleware import cookie_of
from featurestore_registry.auth.sessions import KIND, document_of, sessions_of
from featurestore_registry.errors import AuthError, RecordNotFoundError, RegistryError
from featurestore_registry.http import wire
from featurestore_registry.http.access import Access
from featurestore_registry.http.urls import PREFIX
from featurestore_registry.interface import Registry

if TYPE_CHECKING:
    from featurestore_registry.http.flow import CodeFlow

logger = logging.getLogger("featurestore.registry")

LOGIN_SECONDS = 600
"""A login takes no longer."""
MOST_AT_ONCE = 8
"""At most so many logins wait for the provider: they hold threads that others need."""
_PATH = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*")
"""A path of this server: printable ASCII without a backslash, which browsers take for a slash."""
_HEADERS = {
    "content-security-policy": "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "cache-control": "no-store",
    "referrer-policy": "same-origin",  # with no-referrer browsers would send no Origin along with the form
    "x-content-type-options": "nosniff",
}
_PAGES: dict[int | str, dict[str, Any]] = {
    status: {"content": {"text/html": {}}, "description": description}
    for status, description in {
        400: "The login came to nothing.",
        403: "The provider refused, or gave no role here.",
        404: "No identity provider is set.",
        502: "The provider does not answer.",
        503: "Too many logins at once, or the database does not answer.",
    }.items()
}


def page(title: str, body: str = "", *, status: int = 200) -> HTMLResponse:
    """Return a page; ``body`` is HTML, ``title`` any text."""
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><h1>{escape(title)}</h1>'
    )
    return HTMLResponse(text + body, status, _HEADERS)


def add_pages(api: FastAPI, access: Access) -> None:
    """Add what browsers ask for."""
    _add_home(api, access)
    _add_login(api, access)


def _add_home(api: FastAPI, access: Access) -> None:
    @api.get("/", summary="Who is logged in", response_class=HTMLResponse)
    def home(request: Request) -> Response:
        token = request.scope["state"].get("token")
        if not isinstance(token, Person):
            return page("Feature registry", '<p>Nobody is logged in. <a href="/login">Log in</a>')
        roles = escape(", ".join(role for _, role in token.roles))
        button = '<form method="post" action="/logout"><button>Log out</button></form>'
        return page("Feature registry", f"<p>Logged in as {escape(token.name)} ({roles}).{button}")

    @api.post(
        "/logout",
        summary="End the browser's session",
        status_code=303,
        response_class=Response,
        responses={403: {**_PAGES[403], "description": "Another site asked for it."}},
    )
    def logout(request: Request) -> Response:
        told = request.headers.getlist("origin")
        if told != [access.public_url] and (told or request.headers.getlist("sec-fetch-site") != ["same-origin"]):
            return page("Another site asked for this", "<p>Nobody was logged out.", status=403)
        _end(request, access)
        answer = RedirectResponse("/", 303, _HEADERS)
        _set_cookie(answer, access, access.cookie, "", 0)
        return answer


def _add_login(api: FastAPI, access: Access) -> None:
    waiting = threading.BoundedSemaphore(MOST_AT_ONCE)
    pending_cookie = access.cookie_named("fs_login")

    def answered(work: Callable[[CodeFlow], Response]) -> Response:
        flow = _flow_of(access)
        if flow is None:
            return page("Nobody logs in here by browser", status=404)
        if not waiting.acquire(blocking=False):
            return page("Too many people log in at this moment. Try again.", status=503)
        try:
            return work(flow)
        except RegistryError as error:
            return _failed(error)
        finally:
            waiting.release()

    @api.get(
        "/login",
        summary="Begin a login at the identity provider",
        status_code=303,
        response_class=Response,
        responses={status: _PAGES[status] for status in (404, 502, 503)},
    )
    def login(next: Annotated[str, Query(max_length=1000, description="Where to go afterwards.")] = "/") -> Response:
        def begun(flow: CodeFlow) -> Response:
            _refreshed(flow)
            address, pending = flow.begin()
            answer = RedirectResponse(address, 303, _HEADERS)
            kept = base64.urlsafe_b64encode(json.dumps([*astuple(pending), next]).encode()).decode().rstrip("=")
            _set_cookie(answer, access, pending_cookie, kept, LOGIN_SECONDS)
            return answer

        return answered(begun)

    @api.get(
        "/login/callback",
        summary="End a login: where the identity provider sends the browser",
        status_code=303,
        response_class=Response,
        responses=_PAGES,
    )
    def callback(request: Request) -> Response:
        answer = answered(lambda flow: _logged_in(request, access, flow, cookie_of(request.scope, pending_cookie)))
        _set_cookie(answer, access, pending_cookie, "", 0)
        return answer


def _flow_of(access: Access) -> CodeFlow | None:
    if access.people is None or not access.public_url:
        return None
    from featurestore_registry.http.flow import CodeFlow

    issuer = access.people.issuer
    return CodeFlow(access.people, issuer.audience, f"{access.public_url}/login/callback", issuer.secret)


def _refreshed(flow: CodeFlow) -> None:
    """Ask the provider what it offers, where that is not known yet."""
    if not flow.people.endpoints:
        try:
            flow.people.refresh()
        except Exception as error:  # whatever an identity provider answers
            logger.warning("the identity provider does not say what it offers: %s", error)


def _logged_in(request: Request, access: Access, flow: CodeFlow, kept: bytes | None) -> Response:
    from featurestore_registry.http.flow import LoginError, Pending

    try:
        state, nonce, verifier, after = map(str, json.loads(base64.urlsafe_b64decode((kept or b"") + b"==")))
    except (ValueError, TypeError, RecursionError):
        raise LoginError("This browser began no login, or longer than 10 minutes ago.", why="no login") from None
    _, claims = flow.finish(request.url.query, Pending(state, nonce, verifier))
    text, _ = access.log_in(flow.people.person(claims), "browser", client_of(request))
    _end(request, access)
    answer = RedirectResponse(after if _PATH.fullmatch(after) else "/", 303, _HEADERS)
    _set_cookie(answer, access, access.cookie, text, access.session_seconds)
    return answer


def _end(request: Request, access: Access) -> None:
    """End the session that the browser had, if any."""
    person = access.verify(cookie_of(request.scope, access.cookie) or b"")
    if isinstance(person, Person) and person.session:
        access.log_out(person, client_of(request))


def _failed(error: RegistryError) -> Response:
    logger.warning("a login failed: %s %s", error.message, getattr(error, "why", ""))
    told, status = (
        (error.message, error.status)
        if isinstance(error, AuthError)
        else ("The registry's database does not answer. Try again.", 503)
    )
    return page("The login failed", f'<p>{escape(told)}<p><a href="/login">Log in</a>', status=status)


def _set_cookie(answer: Response, access: Access, name: str, value: str, seconds: float) -> None:
    answer.set_cookie(name, value, max_age=int(seconds), path="/", secure=access.is_tls, httponly=True, samesite="lax")


def client_of(request: Request) -> str:
    """Return the address that a request came from."""
    return "" if request.client is None else request.client.host


def add_offer(api: FastAPI, access: Access) -> None:
    """Add the one route of the API that wants no token."""

    @api.get(
        f"{PREFIX}/login",
        summary="How people log in: the identity provider, and what to ask it for",
        responses={404: {"model": wire.ErrorBody, "description": "No identity provider is set."}},
    )
    def offer() -> wire.LoginBody:
        issuer = None if access.people is None else access.people.issuer
        # A client with a secret is the server's own: `fs login` cannot keep one.
        client = "" if issuer is None else issuer.cli_audience or ("" if issuer.secret else issuer.audience)
        if issuer is None or not client or not access.public_url:
            raise RecordNotFoundError("Nobody logs in here but with a token of `fs token create`.")
        return wire.LoginBody(issuer=issuer.url, client_id=client, scopes=list(issuer.scopes))


def add_sessions(api: APIRouter, registry: Registry, access: Access) -> None:
    """Add the sessions of oneself and, for admins, of everybody."""
    _add_own(api, access)
    _add_all(api, registry, access)


def _add_own(api: APIRouter, access: Access) -> None:
    @api.post("/session", summary="Begin a session, with an identity provider's token as the bearer token")
    def begin(request: Request, body: wire.SaltBody) -> wire.SessionBody:
        from featurestore_registry.http.flow import bound_nonce

        person = request.scope["state"]["token"]
        if not isinstance(person, Person) or person.session:
            raise AuthError("A session begins with a token of the identity provider.", status=403)
        if person.nonce and person.nonce != bound_nonce(body.salt, access.public_url):
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
            raise AuthError("The bearer token is no session's.", status=403)
        access.log_out(person, client_of(request))
        return wire.CountBody(count=1)


def _add_all(api: APIRouter, registry: Registry, access: Access) -> None:
    @api.get("/sessions", summary="Who is logged in: an entry for each person, of no project")
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
            raise ValueError("only sessions that there are can be kept; they are of the project ''")
        left = [each for each in had.values() if each.id in kept]
        made = registry.ledger.append(project, KIND, body.key, document_of(left), if_version=body.if_version)
        for each in had.values():
            if each.id not in kept:
                ended = {"session": each.id, "of": each.name}
                access.audit(request.scope["state"]["token"], project, "end session", ended, client_of(request))
        access.refresh()
        return wire.VersionBody(version=made)
