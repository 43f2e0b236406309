"""The feature server: one FastAPI app, with the hot routes as bare ASGI apps inside it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from fastapi.responses import PlainTextResponse
from featurestore_registry.auth import TokenVerifier
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

import featurestore
from featurestore.consistency.eviction import NO_EVICTION, windows_at_risk
from featurestore.errors import OnlineStoreError, OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader, eviction_of
from featurestore.online.records.keys import project_prefix
from featurestore.project.access import AUTH_REQUIRED, TOKEN_SET
from featurestore.registered.snapshot import Snapshot
from featurestore.server.describe.docs import add_docs
from featurestore.server.describe.openapi import ERROR_RESPONSES, complete
from featurestore.server.http.door import Door
from featurestore.server.http.envelope import Envelope
from featurestore.server.http.errors import error_body
from featurestore.server.http.gate import (
    OPEN_PATHS,
    FeatureServer,
    Gate,
    ShortCut,
    check_binding,
    check_reopening,
    is_loopback,
)
from featurestore.server.predictions import PREDICTIONS_PATH, PredictionEndpoint
from featurestore.server.push import PUSH_PATH, PushEndpoint
from featurestore.server.read.breaker import Breaker
from featurestore.server.read.endpoints import FeastEndpoint, OnlineEndpoint, OnlineReads
from featurestore.server.read.served import ServedLogs
from featurestore.server.read.sharing import SharedReads
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.clocks import ClockWatch
from featurestore.server.watch.metrics import CONTENT_TYPE, FLUSH_SECONDS, Metrics
from featurestore.server.watch.parts import PartWatch
from featurestore.server.watch.waiting import WaitingWatch
from featurestore.server.watch.windows import WindowWatch
from featurestore.workspace import Readers, Workspace

logger = logging.getLogger("featurestore.server")

READY_SECONDS = 1.0
EVICTION_SECONDS = 5.0
"""Seconds between two questions to a store that was down at the start, whether it evicts records."""

_KINDS = {404: "no_such_route", 405: "method_not_allowed"}


def create_app(
    source: Workspace | Path | str, *, token: str | None = None, host: str = "127.0.0.1", reopen: bool = False
) -> FeatureServer:
    """Return the server of one feature repo (a path, or a workspace, which the app then closes).

    ``token`` is the setting ``FS_SERVER_TOKEN``; ``host`` is where the server will listen; ``reopen`` forgets what
    closed this repo's servers. Reads the definitions, so that errors in them show before the server listens. Raises
    SettingsError without any token beyond loopback, where ``reopen`` is not allowed and for a log without the secret
    that it needs, RegistryError when neither the registry nor a saved snapshot can be read, OnlineStoreError for
    windows in a store that evicts records.
    """
    workspace = source if isinstance(source, Workspace) else open_workspace(Path(source))
    metrics = Metrics()
    served = ServedLogs(workspace, metrics)
    snapshots, door, verifier = _load(workspace, token, host, reopen, served)
    _refuse_eviction(workspace, snapshots.current.snapshot)
    reads = OnlineReads(snapshots, workspace.clock, metrics, served)
    pushes = PushEndpoint(workspace, snapshots, metrics, int(workspace.settings.server.max_body))
    predictions = PredictionEndpoint(snapshots, workspace.clock, served, int(workspace.settings.server.max_body))
    hot = _hot(reads, pushes, predictions, int(workspace.settings.server.max_body))

    def outside(inner: ASGIApp) -> ASGIApp:
        routes = ShortCut(inner, endpoints=hot)
        gate = Gate(routes, verifier=verifier, project=workspace.project, is_open=door.is_open)
        return Envelope(gate, metrics=metrics)

    def measure() -> None:
        metrics.revision.set(snapshots.current.snapshot.revision)
        metrics.registry_age_seconds.set(snapshots.age_us() / 1_000_000)
        metrics.progress(snapshots.progress, workspace.clock())

    api = FastAPI(
        title=f"Features of {workspace.project}",
        version=featurestore.__version__,
        lifespan=_lifespan(workspace, snapshots, reads, pushes, metrics, measure, served),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={StarletteHTTPException: _http_error},
    )
    # Routes for the description only: the short cut serves them.
    api.router.routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in hot.items()]
    _add_health(api, reads, snapshots, door.is_open)
    _add_metrics(api, metrics, measure)
    _add_description(api)
    metrics.routes = frozenset(route.path for route in api.routes if isinstance(route, Route))
    notice = "" if token else door.notice(snapshots.tokens(), now_us=workspace.clock())
    return FeatureServer(api, outside=outside, notice=notice)


def _hot(reads: OnlineReads, pushes: PushEndpoint, predictions: PredictionEndpoint, limit: int) -> dict[str, ASGIApp]:
    """Return the endpoints that no framework touches, by path."""
    return {
        "/v1/online-features": OnlineEndpoint(reads, limit),
        "/get-online-features": FeastEndpoint(reads, limit),
        PUSH_PATH: pushes,
        PREDICTIONS_PATH: predictions,
    }


def _load(
    workspace: Readers, token: str | None, host: str, reopen: bool, served: ServedLogs
) -> tuple[SnapshotKeeper, Door, TokenVerifier]:
    """Read the definitions, and close or open the door by the settings, the registry and the remembered access."""
    is_required = workspace.settings.server.auth == "required"
    if reopen:
        check_reopening(host, has_static_token=token is not None, is_required=is_required)
    door = Door(workspace.root, is_local=is_loopback(host), reopening=reopen)
    snapshots = SnapshotKeeper(workspace, door)
    snapshots.served = served.shape
    snapshots.load()
    served.check(snapshots.current.snapshot)
    verifier = TokenVerifier(snapshots.tokens, static_token=token, clock=workspace.clock)
    check_binding(host, has_token=token is not None or bool(snapshots.tokens()))
    if reopen:
        door.reopen()
    if is_required:
        door.close(AUTH_REQUIRED)
    if token is not None:
        door.close(TOKEN_SET)
    return snapshots, door, verifier


def _refuse_eviction(workspace: Readers, snapshot: Snapshot) -> None:
    """Raise OnlineStoreError where records of windows may be evicted; a store that is down is not waited for."""
    windowed = [found for found in snapshot.views.values() if found.view.aggregations and found.view.online]
    if not windowed:
        return
    with suppress(OnlineStoreUnavailableError):
        if told := windows_at_risk(windowed, workspace.online.facts()):
            raise OnlineStoreError(f"The online store is not fit for windows: {told}.", hint=NO_EVICTION)


def _lifespan(
    workspace: Workspace,
    snapshots: SnapshotKeeper,
    reads: OnlineReads,
    pushes: PushEndpoint,
    metrics: Metrics,
    measure: Callable[[], None],
    served: ServedLogs,
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the lifespan: it opens the reader and the background refresh before the first request and closes them."""
    clocks = ClockWatch(workspace, snapshots, metrics)
    watches = [clocks, *(kind(workspace, snapshots, metrics) for kind in (PartWatch, WindowWatch, WaitingWatch))]
    served.clocks = clocks.known

    def refreshed(outcome: str) -> None:
        metrics.refreshes.labels(outcome).inc()
        measure()
        for watch in watches:
            watch.look()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        measure()
        snapshots.on_refresh = refreshed
        probe = project_prefix(workspace.project) + b"probe"
        reader = Breaker(workspace.online.reader(), metrics, probe)
        reads.reader = reader if reader.deadline_seconds is None else SharedReads(reader)
        with suppress(OnlineStoreError, TimeoutError):  # the first connection is open before the first request
            await asyncio.wait_for(reads.reader.check(), READY_SECONDS)
        for warm in (reads.warm, pushes.warm):
            try:
                await warm()
            except Exception:
                logger.exception("warming up failed: the first requests may take longer")
        snapshots.start()
        served.start()
        tasks = [*map(asyncio.create_task, (_flush(metrics), _tell_eviction(workspace, reader), reader.watch()))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.to_thread(snapshots.stop)
        await asyncio.to_thread(pushes.close)
        await asyncio.to_thread(reads.close)
        await asyncio.to_thread(served.close)
        await reads.reader.close()
        workspace.close()

    return lifespan


async def _flush(metrics: Metrics) -> None:
    while True:
        await asyncio.sleep(FLUSH_SECONDS)
        metrics.flush()


async def _tell_eviction(workspace: Readers, reader: AsyncReader) -> None:
    """Warn, once the store answers, if it evicts records when its memory runs out."""
    while True:
        try:
            await reader.check()
            facts = await asyncio.to_thread(workspace.online.facts)
            break
        except OnlineStoreError:
            await asyncio.sleep(EVICTION_SECONDS)
    if told := eviction_of(facts):
        logger.warning("%s", told)


def open_workspace(root: Path) -> Workspace:
    """Open a feature repo for serving; its code is loaded when an on-demand feature view needs it."""
    from featurestore.project.loader import load_definitions
    from featurestore.project.settings import read_settings, repo_folder

    root = repo_folder(root)  # messages name it
    return Workspace(root, read_settings(root), code=lambda: load_definitions(root))


class Ready(BaseModel):
    """The answer of `/ready`; callers who may read features also get the revision that is served, and its age."""

    status: Literal["ready"] = "ready"
    revision: int | None = None
    registry_age_seconds: float | None = None


def _add_health(app: FastAPI, reads: OnlineReads, snapshots: SnapshotKeeper, is_open: Callable[[], bool]) -> None:
    """Add the endpoints for load balancers."""

    @app.get("/health", tags=["operations"], summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready",
        tags=["operations"],
        summary="The online store answers and definitions are loaded",
        responses={503: ERROR_RESPONSES["503"]},
        response_model_exclude_none=True,
    )
    async def ready(request: Request) -> Ready:
        try:
            if reads.reader is None:
                raise OnlineStoreUnavailableError("The online store is not open.")
            await asyncio.wait_for(reads.reader.check(), READY_SECONDS)
        except (OnlineStoreError, TimeoutError):
            raise HTTPException(503, "Not ready.", {"retry-after": "1"}) from None
        if not (is_open() or "token" in request.scope["state"]):
            return Ready()
        revision, age_us = snapshots.current.snapshot.revision, snapshots.age_us()
        return Ready(revision=revision, registry_age_seconds=age_us / 1_000_000)

    for path, endpoint in (("/health", health), ("/ready", ready)):  # some load balancers send HEAD
        app.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, response_model_exclude_none=True)


def _add_description(app: FastAPI) -> None:
    add_docs(app)
    describe = app.openapi
    # The way that FastAPI's own documentation extends it.
    app.openapi = lambda: app.openapi_schema or complete(describe(), OPEN_PATHS)  # type: ignore[method-assign]


def _add_metrics(app: FastAPI, metrics: Metrics, look: Callable[[], None]) -> None:
    @app.get("/metrics", tags=["operations"], summary="For Prometheus", response_class=PlainTextResponse)
    async def scrape() -> Response:
        look()
        return Response(metrics.text(), media_type=CONTENT_TYPE)


async def _http_error(request: Request, error: Any) -> Response:
    """Answer requests that the router refuses, in the form of all errors."""
    kind = _KINDS.get(error.status_code, "not_ready")
    body = error_body(kind, str(error.detail), request.scope["state"]["request_id"])
    return Response(body, error.status_code, dict(error.headers or {}), "application/json")
