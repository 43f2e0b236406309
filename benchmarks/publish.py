"""Publishing to LMDB and Redis: ours beside ready-made records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import lmdb
import pyarrow as pa
import redis

from benchmarks import floors
from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.projects import make_project, newest_rows, open_workspace
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView
from featurestore.materialization.publish import publish
from featurestore.online.interface import OnlineStore, Write, Writes
from featurestore.online.records.encoder import RecordEncoder
from featurestore.workspace import Workspace

MAP_BYTES = 1 << 30
BATCH_ROWS = 5_000


def run(context: Context) -> Iterator[Section]:
    """Measure both stores, from Arrow in memory, from a table of newest rows, and from the whole log."""
    workload = context.workload()
    with ExitStack() as opened:
        folder = context.place("publish")
        views = newest_rows(workload, folder)
        urls = {"LMDB": "lmdb:///data/published", "Redis": context.redis_url}
        newest = make_project(folder / "newest", views, online_url=urls["LMDB"])
        whole_log = make_project(folder / "log", workload.views, online_url=urls["LMDB"], project="log", with_ttl=False)
        for store, url in urls.items():
            workspace = opened.enter_context(closing(open_workspace(newest, url)))
            batches = _Batches(workspace, views)
            floor, more = _floors(store, folder, context.redis_url, batches.writes, opened)
            section = Section(
                f"Publish to {store}",
                f"{len(batches.writes):,} entities of workload m; the floor puts ready-made records, "
                + ("in one transaction." if store == "LMDB" else "a thousand a call of the compare-and-set script.")
                + " Both write over what is there.",
            )
            target = Target(at_most=3.0 if store == "LMDB" else 1.5)
            from_log = opened.enter_context(closing(open_workspace(whole_log, url)))
            arrow = "Arrow batches in memory to records online"
            cases: list[tuple[str, Callable[[], object], Callable[[], object], Target | None]] = [
                (arrow, batches.send, floor, target),
                *((f"{arrow}, {beside}", batches.send, other, None) for beside, other in more),
                ("fs materialize's publish, one row per entity", partial(publish_all, workspace, views), floor, target),
                (
                    "fs materialize's publish, newest of the whole log",
                    partial(publish_all, from_log, views),
                    floor,
                    None,
                ),
            ]
            for name, ours, beneath, wanted in cases:
                section.rows.append(Row(name, "s", measure(timed(ours), timed(beneath), count=context.pairs), wanted))
            yield section


def publish_all(workspace: Workspace, views: Sequence[WorkloadView]) -> None:
    """Publish every view as a run does after its commit."""
    registered = workspace.snapshot().views
    for view in views:
        found = publish(workspace, registered[view.name], after=None, check=lambda: None)
        assert found.counts.written > 0


class _Batches:
    """Rows as the engine yields them, read beforehand."""

    def __init__(self, workspace: Workspace, views: Sequence[WorkloadView]) -> None:
        self._online: OnlineStore = workspace.online
        self._now_us = workspace.clock()
        self._parts = []
        for view in views:
            registered = workspace.snapshot().views[view.name]
            version = workspace.offline.current(registered.table)
            assert version is not None
            encoder = RecordEncoder(registered.layout)
            rows = workspace.engine.log.latest(
                registered.view,
                [file.path for file in version.files],
                until_us=self._now_us,
                batch_rows=BATCH_ROWS,
            )
            self._parts.append((encoder, list(rows)))
        self.writes = [write for part in self._parts for write in _encoded(*part)]

    def send(self) -> None:
        for encoder, rows in self._parts:
            self._online.write(_encoded(encoder, rows), now_us=self._now_us)


def _encoded(encoder: RecordEncoder, rows: Sequence[pa.RecordBatch]) -> Writes:
    writes = Writes([], [], [])
    for batch in rows:
        writes.extend(encoder.encode_table(batch))
    return writes


def _floors(
    store: str, folder: Path, redis_url: str, writes: Sequence[Write], opened: ExitStack
) -> tuple[Callable[[], object], list[tuple[str, Callable[[], object]]]]:
    """Return the floor, and others beside which one row is shown."""
    if store == "LMDB":
        environment = opened.enter_context(closing(lmdb.open(str(folder / "floor"), map_size=MAP_BYTES)))
        by_hand = partial(floors.set_newest_in_lmdb, environment, writes)
        return partial(floors.publish_to_lmdb, environment, writes), [("beside compare-and-set by hand", by_hand)]
    client = opened.enter_context(redis.Redis.from_url(redis_url))
    return partial(floors.publish_to_redis, client, writes), []
