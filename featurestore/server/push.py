"""Pushes over HTTP: checked and written in a few threads, committed offline by the process's committer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.types import Scope
from typing_extensions import override

from featurestore.definitions import PushSource
from featurestore.errors import FeatureStoreError, OnlineStoreError, RevisionConflictError
from featurestore.ingest.push import Push, PushResult, PushTarget, To
from featurestore.ingest.rows import PushedRows
from featurestore.offline.groups import PAUSE_SECONDS
from featurestore.registered.snapshot import Snapshot
from featurestore.server.http.bodies import MOST_ROWS, PAUSE, Columns, JsonEndpoint, Name
from featurestore.server.http.errors import check_count
from featurestore.server.read import endpoints
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.read.threads import THREADS, Threads
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Workspace

PUSH_PATH = "/push"


class PushRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A missing or null created time means the time of arrival."""

    source: Annotated[Name, Meta(description="The name of a `PushSource`.")]
    rows: Annotated[
        Columns | Annotated[list[Any], Meta(max_length=0)],
        Meta(
            description="Join keys, features and the event time, one list each; others are ignored. Times are RFC "
            "3339, in UTC if they name no zone. An empty list: no rows."
        ),
    ]
    to: Annotated[
        To,
        Meta(description="Where rows go: into the offline store, online, or first offline and then online."),
    ] = "both"

    @property
    def columns(self) -> Columns:
        """The rows by column."""
        return self.rows if isinstance(self.rows, dict) else {}


class PushEndpoint(JsonEndpoint[PushRequest]):
    """``POST /push``: every row is checked before any is written."""

    def __init__(self, workspace: Workspace, snapshots: SnapshotKeeper, metrics: Metrics, max_body: int) -> None:
        super().__init__(PushRequest, max_body)
        self._workspace = workspace
        self._snapshots = snapshots
        self._metrics = metrics
        self._threads = Threads("push", THREADS)
        self._targets: tuple[Snapshot | None, dict[str, PushTarget]] = (None, {})

    @override
    async def answer(self, request: PushRequest, scope: Scope, started: float) -> bytes:
        rows = max(map(len, request.columns.values()), default=0)
        check_count(rows, MOST_ROWS, "too_many_rows", "rows", "Push them in several requests.")
        try:
            work = await self._push(request, scope)
        except OnlineStoreError:
            self._metrics.store_errors.inc()
            raise
        result = work.result()
        self._count(result)
        for view, folded in work.folded.items():
            self._metrics.folds.labels(view).inc(folded)
        return msgspec.json.encode(result)

    async def _push(self, request: PushRequest, scope: Scope) -> Push:
        try:
            return await self._push_once(request, scope)
        except RevisionConflictError:  # an apply came since the last refresh
            await self._threads.run(self._snapshots.refresh)
            return await self._push_once(request, scope)

    async def _push_once(self, request: PushRequest, scope: Scope) -> Push:
        target = self._target(request.source)
        work, versions = await self._threads.run(partial(self._begin, target, request))
        if versions:
            scope["state"][PAUSE] = PAUSE_SECONDS
            # Only futures wait for the commits, so that the threads are free in the meantime.
            await asyncio.wait([_awaited(version) for version in versions])
            await self._threads.run(partial(_finish, work))
        return work

    async def warm(self) -> None:
        """Load and open what the first push would wait for, if there is a source to push to."""
        if sources := self._snapshots.current.snapshot.list(PushSource.kind):
            look = self._threads.run(partial(self._look, [source.name for source in sources]))
            with suppress(TimeoutError):
                await asyncio.wait_for(look, endpoints.WARM_SECONDS)

    def close(self) -> None:
        """Wait for writes that are under way."""
        self._threads.close()

    def _look(self, sources: Sequence[str]) -> None:
        import_module("pyarrow.parquet")  # commits write by it
        for source in sources:
            with suppress(FeatureStoreError):  # pushes will report it
                for registered in self._target(source).views:
                    self._workspace.offline.current(registered.table)

    def _target(self, source: str) -> PushTarget:
        snapshot = self._snapshots.current.snapshot
        if self._targets[0] is not snapshot:
            self._targets = snapshot, {}
        targets = self._targets[1]
        if source not in targets:
            targets[source] = PushTarget(snapshot, source)
        return targets[source]

    def _begin(self, target: PushTarget, request: PushRequest) -> tuple[Push, list[Future[int]]]:
        rows = PushedRows(request.columns, json=True, has_columns=isinstance(request.rows, dict))
        work = Push(self._workspace, target, rows, request.to)
        versions = work.commit()
        if not versions:
            work.publish()
        return work, versions

    def _count(self, result: PushResult) -> None:
        for view, done in result.views.items():
            counts = {} if done.online is None else asdict(done.online)
            counts["offline"] = 0 if done.offline is None else done.offline.rows
            for outcome, count in counts.items():
                if count:
                    self._metrics.push_rows.labels(view, outcome).inc(count)


def _awaited(version: Future[int]) -> asyncio.Future[int]:
    """Return a commit to wait for; `Push.confirm` reports its error, so asyncio must not report it again."""
    found = asyncio.wrap_future(version)
    found.add_done_callback(lambda done: done.cancelled() or done.exception())
    return found


def _finish(work: Push) -> None:
    work.confirm()
    work.publish()
