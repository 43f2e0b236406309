"""What the served log costs a server: CPU of requests with a tenth of the answers kept, beside none kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from benchmarks.context import Context
from benchmarks.http import MOST_CONNECTIONS, PATH, Server, running, write_bodies
from benchmarks.load import closed_loop, find_wrk
from benchmarks.pairs import measure, timed
from benchmarks.projects import SERVICE, make_project, newest_rows, requests_of
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView
from featurestore import FeatureService, FeatureStore, ServedLog
from featurestore.request.features import resolve
from featurestore.served import files
from featurestore.served.keep import blobs_of
from featurestore.served.rows import Clocks, ServedRequest, ServedRows
from featurestore.served.shape import shape_of
from featurestore.serving.compiled import CompiledRequest

PAIRS = 15
REQUESTS = 10_000
TARGET = Target(at_most=1.03)


def run(context: Context) -> Iterator[Section]:
    """Measure one worker that keeps a tenth of its answers beside one that keeps none."""
    find_wrk()
    folder = context.place("served")
    views = newest_rows(context.workload(), folder)
    section = Section(
        "Served log",
        f"CPU of {REQUESTS:,} requests by feature service, 30 features of two views over LMDB, {MOST_CONNECTIONS} "
        "connections; one worker with `ServedLog(0.1)`, hashed keys, its thread and files included, beside one "
        "without.",
    )
    roots = (folder / "with", folder / "without")
    with_log, without = (make_project(root, views, online_url="lmdb:///data/online") for root in roots)
    (with_log / "feature_store.yaml").write_text(
        (with_log / "feature_store.yaml").read_text() + "\nserved: {secret: a long random text of the benchmark}\n"
    )
    with FeatureStore(with_log) as store:
        service = store.get(FeatureService, SERVICE)
        store.apply([service.replaced(log=ServedLog(0.1))])
    for entities in (1, 10):
        bodies = write_bodies(folder, views, entities, service=True)
        with running(with_log, bodies) as ours, running(without, bodies) as floor:
            cost = partial(_cpu_seconds, context, bodies)
            count = PAIRS if context.pairs > 1 else 1
            pairs = measure(partial(cost, ours), partial(cost, floor), count=count)
        # A row of a larger request is cheaper to serve, and not to keep.
        section.rows.append(
            Row("1 entity", "s", pairs, TARGET) if entities == 1 else Row(f"{entities} entities", "s", pairs)
        )
    yield section


def run_parity(context: Context) -> Iterator[Section]:
    """Measure a comparison of served rows beside a training set of the same rows."""
    folder = context.place("parity")
    views = newest_rows(context.workload(), folder)
    root = make_project(folder / "project", views, online_url="lmdb:///data/online")
    count = 1_000 if context.is_quick else 100_000
    with FeatureStore(root) as store:
        store.apply([store.get(FeatureService, SERVICE).replaced(log=ServedLog(1.0, keys="plain"))])
        _write_served(store, views, count, at_once=100 if context.is_quick else 1_000)
        frame = store.read_served(SERVICE).select([f"key.{view.key}" for view in views] + ["served_at"])
        frame = frame.rename_columns([view.key for view in views] + ["event_timestamp"])
        pairs = measure(
            timed(store.parity, SERVICE),
            timed(lambda: store.get_historical_features(frame, SERVICE).to_arrow()),
            count=context.pairs,
        )
    section = Section(
        "Parity",
        f"{count:,} served rows of 30 features of two views compared, beside a training set of the same rows in "
        "memory.",
    )
    section.rows.append(Row("nothing differs", "s", pairs, Target(at_most=2.0)))
    yield section


def _write_served(store: FeatureStore, views: Sequence[WorkloadView], count: int, *, at_once: int) -> None:
    """Write rows as a server does, of so many entities a request."""
    workspace = store.workspace
    snapshot = workspace.snapshot()
    request = resolve(snapshot, snapshot.get(FeatureService, SERVICE))
    shape = shape_of(snapshot, request, SERVICE)
    assert shape is not None
    compiled, rows = CompiledRequest(snapshot, request), ServedRows(shape, lambda key: workspace.online.mget([key])[0])
    blobs = blobs_of(workspace, files.SERVED, SERVICE)
    batches = []
    for number, columns in enumerate(requests_of(views, at_once, count // at_once)):
        query = compiled.query(columns)
        read = query.keys, workspace.online.mget(query.keys)
        asked = ServedRequest(f"r{number}", workspace.clock(), query.rows, columns, {}, *read, query.found, ())
        batches.append(rows.batch([asked], "benchmark", Clocks()))
    for number in range(0, len(batches), 20):
        table = pa.Table.from_batches(batches[number : number + 20])
        files.write(files.SERVED, blobs, table, files.about_of(shape), instance="benchmark", number=number)


def _cpu_seconds(context: Context, bodies: Path, server: Server) -> float:
    before_s = server.cpu_seconds
    load = closed_loop(server.url + PATH, bodies, connections=MOST_CONNECTIONS, seconds=context.seconds)
    return (server.cpu_seconds - before_s) / load.requests * REQUESTS
