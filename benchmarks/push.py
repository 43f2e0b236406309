"""Pushing: batches into Redis beside ready-made records, and single rows over HTTP beside reads of one entity."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import redis

from benchmarks import floors
from benchmarks.context import Context
from benchmarks.http import PATH, running, write_bodies
from benchmarks.load import closed_loop, find_wrk
from benchmarks.pairs import measure, timed
from benchmarks.projects import make_project, newest_rows, open_workspace
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView
from featurestore.ingest.push import push
from featurestore.online.records.encoder import RecordEncoder

BATCH_ROWS = 1_000
SOURCE = "driver_stats_events"


def run(context: Context) -> Iterator[Section]:
    """Measure pushes to the online store alone: offline waits for a commit, at most one a second, by design."""
    find_wrk()
    folder = context.place("push")
    views = newest_rows(context.workload(), folder)[:1]
    root = make_project(folder / "project", views, online_url=context.redis_url, pushed=True)
    yield _batches(context, root, views[0].source)
    yield _single_rows(context, root, folder, views)


def _batches(context: Context, root: Path, source: Path) -> Section:
    section = Section(
        "Push to Redis, batches of 1,000 rows",
        "Ten mixed features a row, checked, encoded and written, to='online'; the floor sends ready-made records by "
        "the compare-and-set script in one call.",
    )
    table = pq.read_table(source).slice(0, BATCH_ROWS)
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    forms = {"Arrow": table, "pandas": frame, "a dict of lists": table.to_pydict()}
    with ExitStack() as opened:
        workspace = opened.enter_context(closing(open_workspace(root, context.redis_url)))
        client = opened.enter_context(redis.Redis.from_url(context.redis_url))
        (registered,) = workspace.snapshot().views.values()
        writes = RecordEncoder(registered.layout).encode_table(table)
        calls = 2 if context.is_quick else 20
        for name, rows in forms.items():
            pairs = measure(
                timed(partial(push, workspace, SOURCE, rows, "online"), calls=calls),
                timed(partial(floors.publish_to_redis, client, writes), calls=calls),
                count=context.pairs,
            )
            section.rows.append(Row(f"from {name}", "s", pairs, Target(at_most=3.0)))
    return section


def _single_rows(context: Context, root: Path, folder: Path, views: Sequence[WorkloadView]) -> Section:
    section = Section(
        "Push over HTTP, one row, to='online'",
        "Time of a request under wrk, one connection; the column floor is our own read of one entity's ten features.",
    )
    reads = write_bodies(folder, views, 1)
    pushes = folder / "pushes"
    rows = pq.read_table(views[0].source).slice(0, 256).to_pylist()
    body = [{"source": SOURCE, "to": "online", "rows": {name: [value] for name, value in row.items()}} for row in rows]
    pushes.write_text("\n".join(json.dumps(one, default=_as_json) for one in body) + "\n")
    with running(root, reads) as server:

        def seconds(path: str, bodies: Path) -> float:
            load = closed_loop(server.url + path, bodies, connections=1, seconds=context.seconds)
            return 1 / load.requests_per_second

        pairs = measure(lambda: seconds("/push", pushes), lambda: seconds(PATH, reads), count=context.pairs)
    section.rows.append(Row("one row of ten features", "s", pairs, Target(at_most=2.0)))
    return section


def _as_json(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
