"""The registry's HTTP API, over any registry. Every route but the health checks wants a token, unless all may enter.

A request names its project, and the ledger's or journal's kind, in the query: so what it needs is known before its
body is read.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from pydantic import Field
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from featurestore_registry.auth import Role, Token
from featurestore_registry.auth.tokens import EVERY_PROJECT, KIND
from featurestore_registry.catalog.app import Catalog
from featurestore_registry.documents import DELETED
from featurestore_registry.errors import AuthError, FeatureStoreError, RegistryFormatError
from featurestore_registry.http import wire
from featurestore_registry.http.access import ACCEPTED, AUDITED, Access, shown
from featurestore_registry.http.login import add_login, add_sessions, client_of
from featurestore_registry.http.policy import Judge, Policy, name_of
from featurestore_registry.http.urls import PREFIX
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, check_changes

logger = logging.getLogger("featurestore.registry")

LEAST_KEPT = timedelta(days=7)
"""No operator removes younger entries of the journal."""
_IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
_HEADERS = {"cache-control": "private, no-store", "vary": "authorization, cookie", "x-content-type-options": "nosniff"}
"""Of every answer that says nothing else: what somebody may see, no cache keeps for the next one."""
_HIDDEN = {
    503: ("The registry's database does not answer.", "Try again; the log of the registry's server tells more."),
    500: ("The registry's server failed.", "Its log tells more."),
}
_SCHEMA = (
    "The registry's database has the schema of another version than its server's, or is damaged.",
    "The log of the registry's server says which; `fs registry upgrade` there brings an older schema up.",
)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": wire.ErrorBody, "description": description}
    for status, description in {
        400: "The body is not JSON.",
        401: "No valid token.",
        403: "The token is not enough, or the project's policy refuses.",
        404: "There is no such thing.",
        409: "Somebody else came first, or a second person has to approve.",
        413: "The body is too large.",
        422: "The request makes no sense.",
        503: "The registry's database cannot be used.",
    }.items()
}

Project = Annotated[str, Query(description="The project that is asked about.")]
Kind = Annotated[str, Query(description="The kind of entries.")]
Key = Annotated[str | None, Query(description="One key alone.")]
Limit = Annotated[int | None, Query(ge=0, le=wire.MOST_ENTRIES, description="At most so many.")]


def create_app(registry: Registry, access: Access, *, judge: Judge, version: str = "1") -> ASGIApp:
    """Return the ASGI app of a registry; ``access`` decides who may do what, ``judge`` how much a change demands."""
    policy = Policy(registry, judge)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(access.start)
        yield
        await asyncio.to_thread(access.stop)

    api = FastAPI(
        title="Feature registry",
        version=version,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for kind, answer in ((FeatureStoreError, _told), (ValueError, _told), (RequestValidationError, _invalid)):
        api.add_exception_handler(kind, answer)
    api.add_exception_handler(HTTPException, _http_error)
    _add_health(api, registry)
    add_login(api, access)
    catalog = Catalog(registry, logs_in=lambda: access.provider is not None and bool(access.public_url))
    api.routes.extend(Route(path, catalog) for path in ("/", "/p/{rest:path}", "/static/{name}"))
    bearer = Security(
        HTTPBearer(auto_error=False, description="A token of `fs token create`, or of the identity provider.")
    )
    routes = APIRouter(prefix=PREFIX, dependencies=[bearer], responses=_REFUSALS)  # the middleware checks it
    _add_definitions(routes, registry, access, policy)
    _add_policy(routes, access, policy)
    _add_ledger(routes, registry, access)
    _add_journal(routes, registry, access)
    _add_tokens(routes, registry, access)
    add_sessions(routes, registry, access)
    api.routes.extend(routes.routes)  # included they would be made a second time, at the first request
    return _Bounded(access.guard(api))


def _add_health(api: FastAPI, registry: Registry) -> None:
    @api.get("/health", summary="The process is alive")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/ready", summary="The database answers", responses={503: _REFUSALS[503]})
    def ready() -> dict[str, str]:
        registry.definitions.head("")
        return {"status": "ready"}


def _add_definitions(api: APIRouter, registry: Registry, access: Access, policy: Policy) -> None:
    definitions = registry.definitions

    @api.get("/projects", summary="All projects that were ever applied, and that the token may see")
    def projects(request: Request) -> list[str]:
        return [name for name in definitions.projects() if _token(request).sees(name)]

    @api.get("/state", summary="How far a project is: its newest revision and ledger entry")
    def state(
        project: Project, if_none_match: Annotated[str | None, Header(description="The ETag that is known.")] = None
    ) -> Response:
        found = registry.state(project)
        tag = f'"{found.head[:32]}-{found.ledger}"'
        if if_none_match == tag:
            return Response(status_code=304, headers={"etag": tag, "x-now": found.now.isoformat()})
        return _json(wire.plain(found), {"etag": tag, "cache-control": "private, no-cache"})

    @api.get("/chain", summary="The hashes of a project's revisions", response_model=wire.ChainBody)
    def chain(
        project: Project,
        after: Annotated[int, Query(ge=0, description="How many of the first the client knows.")] = 0,
        at: Annotated[str, Query(description="The hash of the last one that it knows.")] = "",
    ) -> Response:
        hashes = definitions.chain(project).hashes
        known = after if 0 < after <= len(hashes) and hashes[after - 1] == at else 0
        return _json({"after": known, "hashes": hashes[known:]})

    @api.get("/revisions/{revision}", summary="A revision whole, by its hash", response_model=wire.RevisionBody)
    def revision(project: Project, revision: str) -> Response:
        hashes = definitions.chain(project).hashes
        if revision not in hashes:
            raise HTTPException(404, "The project has no revision of this hash.")
        found = definitions.read(project, hashes.index(revision) + 1)
        return _json(wire.plain(found), _IMMUTABLE)

    @api.get("/history", summary="The newest applies first", response_model=list[wire.InfoBody])
    def history(project: Project, limit: Limit = 50) -> Response:
        return _json([wire.plain(info) for info in definitions.history(project, limit=50 if limit is None else limit)])

    @api.post("/apply", summary="Apply changes, all or none", response_model=wire.ChainBody)
    def apply(project: Project, body: wire.ApplyBody, request: Request) -> Response:
        changes = [wire.change_of(each) for each in body.changes]
        told = {"author": name_of(_token(request)), "message": body.message, "commit": body.commit}
        check_changes(project, changes)
        policy.check(_token(request), project, body.expected, changes, body.message)
        made = definitions.apply(project, body.expected, changes, **told)
        _audit(access, request, project, "apply", {"revision": made.number, "changes": _names(changes)})
        return _json({"after": 0, "hashes": made.hashes})


def _add_policy(api: APIRouter, access: Access, policy: Policy) -> None:
    @api.get("/policy", summary="What the project allows its editors")
    def read(project: Project) -> wire.PolicyBody:
        return wire.PolicyBody(**policy.of(project))

    @api.put("/policy", summary="Set what the project allows its editors")
    def write(project: Project, body: wire.PolicyBody, request: Request) -> wire.PolicyBody:
        policy.set(project, body.model_dump())
        _audit(access, request, project, "set policy", {"policy": body.model_dump()})
        return body

    @api.get("/proposals", summary="What waits for a second person, newest first")
    def proposals(project: Project) -> list[wire.ProposalBody]:
        return [wire.ProposalBody(**each) for each in policy.proposals(project)]

    @api.post("/approve", summary="Approve a proposal as a second person")
    def approve(project: Project, body: wire.ApproveBody, request: Request) -> wire.ProposalBody:
        found = policy.approve(_token(request), project, body.plan)
        _audit(access, request, project, "approve", {"plan": found["plan"], "proposed_by": found["by"]})
        return wire.ProposalBody(**found)


def _add_ledger(api: APIRouter, registry: Registry, access: Access) -> None:
    ledger = registry.ledger

    @api.get("/ledger", summary="Entries of the ledger, newest first", response_model=list[wire.LedgerEntryBody])
    def scan(project: Project, kind: Kind, key: Key = None, limit: Limit = None) -> Response:
        return _json([wire.plain(entry) for entry in ledger.scan(project, kind, key=key, limit=limit)])

    @api.post("/ledger", summary="Append an entry to the ledger")
    def append(project: Project, kind: Kind, body: wire.EntryBody, request: Request) -> wire.VersionBody:
        made = ledger.append(project, kind, body.key, body.document, if_version=body.if_version)
        if kind in AUDITED:
            action = "delete" if body.document in DELETED else "set"
            _audit(access, request, project, f"{action} {kind.replace('_', ' ')}", {"name": body.key})
        if kind == ACCEPTED:
            told = {"view": body.key.rpartition(".")[0], "run": body.document.get("run_id", "")}
            _audit(access, request, project, "accept rows", {**told, "reason": body.document.get("reason", "")})
        return wire.VersionBody(version=made)


def _add_tokens(api: APIRouter, registry: Registry, access: Access) -> None:
    """Tokens are entries of the ledger, which only these routes read and write."""
    ledger = registry.ledger

    @api.get("/tokens", summary="Tokens; their hashes are for servers alone")
    def scan(request: Request, project: Project, key: Key = None, limit: Limit = None) -> list[wire.LedgerEntryBody]:
        found = [wire.plain(entry) for entry in ledger.scan(project, KIND, key=key, limit=limit)]
        is_server = _token(request).is_server
        made = [{**entry, "document": entry["document"] if is_server else shown(entry["document"])} for entry in found]
        return [wire.LedgerEntryBody(**entry) for entry in made]

    @api.post("/tokens", summary="Make a token, of which the server sees the hash alone, or revoke one")
    def append(project: Project, body: wire.TokenEntryBody, request: Request) -> wire.VersionBody:
        of = body.document
        if isinstance(of, wire.RevocationBody):
            action, is_right = "revoke token", ledger.latest(project, KIND, body.key) is not None
        else:
            action, is_right = "create token", (of.project or EVERY_PROJECT) == project and body.if_version == 0
        if not is_right or of.id != body.key:
            raise ValueError(
                "an entry of a token has its id as key, and is of its project; a new one expects version 0"
            )
        document = of.model_dump(exclude_unset=True)
        made = ledger.append(project, KIND, body.key, document, if_version=body.if_version)
        _audit(access, request, project, action, {"of": shown(document)})
        access.refresh()
        return wire.VersionBody(version=made)


def _add_journal(api: APIRouter, registry: Registry, access: Access) -> None:
    journal = registry.journal

    @api.get("/journal", summary="Entries of the journal, in order", response_model=list[wire.JournalEntryBody])
    def scan(
        project: Project,
        kind: Kind,
        key: Key = None,
        after: Annotated[int, Query(lt=2**63, description="The cursor after which to begin.")] = 0,
        since: Annotated[datetime | None, Query(description="Written at or after this.")] = None,
        until: Annotated[datetime | None, Query(description="Written before this.")] = None,
        limit: Limit = None,
    ) -> Response:
        most = 1_000 if limit is None else limit
        found = journal.scan(project, kind, key=key, after=after, since=since, until=until, limit=most)
        return _json([wire.plain(entry) for entry in found])

    @api.get(
        "/journal/newest",
        summary="The newest entries of the journal first",
        response_model=list[wire.JournalEntryBody],
    )
    def newest(project: Project, kind: Kind, key: Key = None, limit: Limit = None) -> Response:
        found = journal.newest(project, kind, key=key, limit=50 if limit is None else limit)
        return _json([wire.plain(entry) for entry in found])

    @api.post("/journal", summary="Append entries to the journal, all or none")
    def append(
        project: Project,
        kind: Kind,
        body: Annotated[list[wire.NewsBody], Field(max_length=wire.MOST_ENTRIES)],
    ) -> wire.CursorsBody:
        return wire.CursorsBody(cursors=journal.append(project, kind, [(each.key, each.document) for each in body]))

    @api.delete("/journal", summary="Remove old entries of the journal")
    def forget(project: Project, kind: Kind, before: Annotated[datetime, Query()], request: Request) -> wire.CountBody:
        if before.tzinfo is not None and before > registry.state(project).now - LEAST_KEPT:
            try:
                _token(request).require(Role.ADMIN, project)
            except AuthError as error:
                raise AuthError(
                    f"An operator removes entries that are older than {LEAST_KEPT.days} days alone.",
                    status=403,
                    hint="Set `journal.retention` to as much at least, or ask an admin.",
                ) from error
        count = journal.forget(project, kind, before)
        _audit(access, request, project, "forget", {"kind": kind, "before": before.isoformat(), "count": count})
        return wire.CountBody(count=count)


def _names(changes: Sequence[Change]) -> list[str]:
    return [f"{change.action} {change.kind}:{change.name}" for change in changes]


def _token(request: Request) -> Token:
    found = request.scope["state"]["token"]
    assert isinstance(found, Token)
    return found


def _audit(access: Access, request: Request, project: str, action: str, document: dict[str, Any]) -> None:
    access.audit(_token(request), project, action, document, client_of(request))


def _json(document: Any, headers: dict[str, str] | None = None) -> Response:
    # Not FastAPI's encoder: documents come out exactly as they went in, integers of any size included.
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode(), media_type="application/json", headers=headers)


def _told(request: Request, error: Exception) -> Response:
    if isinstance(error, AuthError):
        response = _json(wire.error_document("AuthError", error.message, error.hint, {"status": error.status}))
        response.status_code = error.status
        return response
    name = next((each.__name__ for each in type(error).__mro__ if each.__name__ in wire.STATUSES), "")
    status = wire.STATUSES.get(name, 500)
    if isinstance(error, FeatureStoreError) and status in (404, 409):
        document = wire.error_document(name, error.message, error.hint, error.details)
    elif status == 422:
        document = wire.error_document(name, str(error))
    else:
        logger.warning("%s %s: %s", request.method, request.url.path, error)
        said = _SCHEMA if name == RegistryFormatError.__name__ else _HIDDEN[status]
        document = wire.error_document(name or "InternalError", *said)
    response = _json(document)
    response.status_code = status
    return response


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    response = _json(wire.error_document("InvalidRequest", f"{where}: {first['msg']}."))
    response.status_code = 422
    return response


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _json(wire.error_document("HttpError", str(error.detail)), dict(error.headers or {}))
    response.status_code = error.status_code
    return response


class _Bounded:
    """Refuses a body that is too large, before more of it is read, and says what caches may keep."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > wire.MAX_BODY_BYTES:
                raise HTTPException(413, f"A body has at most {wire.MAX_BODY_BYTES} bytes.")
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, bounded, sending)
