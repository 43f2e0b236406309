"""What the served log costs a server, and what comparing with it costs: parity, and a monitor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.context import Context
from benchmarks.http import MOST_CONNECTIONS, PATH, Server, running, write_bodies
from benchmarks.load import closed_loop, find_wrk
from benchmarks.pairs import Pairs, measure, timed
from benchmarks.projects import SERVICE, make_project, newest_rows, requests_of
from benchmarks.report import Row, Section, Target
from benchmarks.workload import WorkloadView
from featurestore import Drift, FeatureService, FeatureStore, Monitor, ServedLog
from featurestore.quality.drift import compared
from featurestore.quality.observed import Observed, ObservedFeature
from featurestore.request.features import resolve
from featurestore.served import files
from featurestore.served.rows import Clocks, ServedRequest, ServedRows
from featurestore.served.shape import AT, shape_of
from featurestore.serving.compiled import CompiledRequest
from featurestore.types import Float64
from featurestore.types.times import to_datetime

_DAY_US = 86_400_000_000
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
    count = 2_000 if context.is_quick else 100_000
    with FeatureStore(root) as store:
        store.apply([store.get(FeatureService, SERVICE).replaced(log=ServedLog(1.0, keys="plain"))])
        _write_served(store, views, count)
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


def run_monitor(context: Context) -> Iterator[Section]:
    """Measure a monitor beside reading its rows, and how its time grows with features."""
    folder = context.place("monitor")
    views = newest_rows(context.workload(), folder)
    root = make_project(folder / "project", views, online_url="lmdb:///data/online")
    count = 2_000 if context.is_quick else 1_000_000
    with FeatureStore(root) as store:
        service = store.get(FeatureService, SERVICE).replaced(log=ServedLog(1.0, keys="plain"))
        watch = Monitor(
            "watch", service=service, baseline=timedelta(days=2), checks=[Drift(rows=1, entities=1, stale=None)]
        )
        store.apply([service, watch])
        _write_served(store, views, count, days=4)
        until = to_datetime(store.workspace.clock())
        pairs = measure(
            timed(store.monitor, watch, until),
            timed(lambda: [store.read_served(SERVICE, until - ago, until - less) for ago, less in _SPANS]),
            count=context.pairs,
        )
    section = Section(
        "Monitor",
        f"Two days of {count // 4:,} served rows each, of 30 features of two views, beside a baseline of the two days "
        "before them; the floor reads these rows. 2,000 features of 2,000 rows, compared in memory, beside ten times "
        "200.",
    )
    section.rows.append(Row("30 features", "s", pairs, Target(at_most=5.0, of_difference=True)))
    wide, narrow = (20, 2) if context.is_quick else (2_000, 200)
    pairs = measure(timed(_compare, wide), timed(_compare, narrow, calls=10), count=context.pairs)
    grown = Pairs(tuple((ours, 10 * floor) for ours, floor in pairs.values))
    section.rows.append(Row(f"{wide:,} features", "s", grown, Target(at_most=1.2)))
    yield section


_DAY = timedelta(days=1)
_SPANS = ((_DAY, 0 * _DAY), (2 * _DAY, _DAY), (4 * _DAY, 2 * _DAY))


def _compare(features: int) -> None:
    """Compare so many features of rows in memory."""
    random = np.random.default_rng(1)
    owners = np.arange(2_000)

    def made() -> Observed:
        values = {f"f{n}": pa.array(random.normal(size=2_000)) for n in range(features)}
        found = {name: ObservedFeature(name, Float64, each, "key", "view.1") for name, each in values.items()}
        return Observed("served", "rows", owners, found, {"key": owners})

    baseline, now = made(), made()
    for name in now.features:
        compared(baseline, now, name, Drift())


def _write_served(store: FeatureStore, views: Sequence[WorkloadView], count: int, days: int = 0) -> None:
    """Write rows as a server does; over some days up to now, or all of now."""
    workspace = store.workspace
    snapshot = workspace.snapshot()
    request = resolve(snapshot, snapshot.get(FeatureService, SERVICE))
    shape = shape_of(snapshot, request, SERVICE)
    assert shape is not None
    compiled, rows = CompiledRequest(snapshot, request), ServedRows(shape, lambda key: workspace.online.mget([key])[0])
    blobs = workspace.offline.blobs(workspace.project, files.SERVED.prefix + SERVICE)
    batches = []
    entities = min(1_000, count // 20)
    requests, now_us = requests_of(views, entities, count // entities), workspace.clock()
    for number, columns in enumerate(requests):
        query = compiled.query(columns)
        read = query.keys, workspace.online.mget(query.keys)
        asked = ServedRequest(f"r{number}", now_us, query.rows, columns, {}, *read, query.found, ())
        batch = rows.batch([asked], "benchmark", Clocks())
        # Read as of now, when everything is known; then they are from days before.
        at_us = now_us - (len(requests) - number) * days * _DAY_US // len(requests)
        batches.append(batch.set_column(batch.schema.get_field_index(AT), AT, _instants(at_us, batch.num_rows)))
    for number in range(0, len(batches), 20):
        table = pa.Table.from_batches(batches[number : number + 20])
        files.write(files.SERVED, blobs, table, files.about_of(shape), instance="benchmark", number=number)


def _instants(at_us: int, rows: int) -> pa.Array:
    return pa.repeat(at_us, rows).cast(pa.timestamp("us", "UTC"))


def _cpu_seconds(context: Context, bodies: Path, server: Server) -> float:
    before_s = server.cpu_seconds
    load = closed_loop(server.url + PATH, bodies, connections=MOST_CONNECTIONS, seconds=context.seconds)
    return (server.cpu_seconds - before_s) / load.requests * REQUESTS
