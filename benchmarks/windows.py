"""Windowed aggregations: training sets, tiles, reads and pushes beside DuckDB by hand and beside plain views."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.http import running
from benchmarks.load import closed_loop
from benchmarks.pairs import Pairs, measure, timed
from benchmarks.projects import PATIENCE_MS, open_workspace
from benchmarks.report import Row, Section, Target
from benchmarks.windows_data import (
    DAY_US,
    LENGTHS_US,
    SPAN_DAYS,
    START_US,
    STEPS_US,
    USER,
    as_instants,
    event_count,
    events_log,
    events_view,
)
from benchmarks.windows_training import training
from featurestore import FeatureStore, FeatureView, Field, ParquetSource
from featurestore.following.follow import Follower
from featurestore.ingest.push import push
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline import groups
from featurestore.types import Float64
from featurestore.workspace import Workspace

FOUR = [timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(days=30)]
CALLERS, ROWS_A_CALL = 64, 1_000


def run(context: Context) -> Iterator[Section]:
    """Measure everything that windows do."""
    yield training(context)
    yield _tiles(context)
    yield from _online(context)
    yield _pushes(context)


# Tiles.


def _tiles(context: Context) -> Section:
    section = Section(
        "Events to tiles, LMDB",
        f"A full publish of {event_count(context):,} events of 200,000 keys, 3 windows x 4 functions, from the log to "
        "records on disk, over those that are there. The bare floor is DuckDB's GROUP BY of the events in reach to the "
        "same tiles, in memory, with sums that depend on the order of threads. The other one has exact sums and puts "
        "them into LMDB by hand, an entity a value: no suffix sums, checksums or comparing. An incremental run reads, "
        "commits and applies 1 % more events.",
    )
    root = context.place("tiles")
    log = events_log(context, "sparse")
    (root / "source").mkdir()
    shutil.copy(log, root / "source" / "first.parquet")
    with closing(
        workspace_of(root, events_view(path="source", created=None), "lmdb:///data/online", _end_clock)
    ) as workspace:
        succeeded(materialize_incremental(workspace))
        registered = workspace.snapshot().views["events"]

        def publish() -> None:
            version = workspace.offline.current(registered.table)
            assert version is not None
            found = Follower(workspace, registered, version, lambda: None).bring(anew=True)
            assert found is not None
            assert found.placed > 0

        pairs = measure(timed(publish), timed(_tiles_by_hand, log, root / "by_hand"), count=min(context.pairs, 3))
        section.rows.append(Row("full publish, beside tiles by hand", "s", pairs))
        pairs = measure(timed(publish), timed(_group_by, log), count=min(context.pairs, 3))
        section.rows.append(Row("full publish, beside the bare GROUP BY", "s", pairs, Target(at_most=0.9)))
        times = []
        for number in range(1 if context.is_quick else 3):
            _more_events(root / "source" / f"more{number}.parquet", event_count(context) // 100, number)
            incremental = timed(lambda: succeeded(materialize_incremental(workspace)))()
            times.append((incremental, timed(publish)()))
    section.rows.append(
        Row("incremental run, 1 % new events, beside the full publish", "s", Pairs(tuple(times)), Target(at_most=0.3))
    )
    return section


def _group_by(log: Path) -> None:
    with duckdb.connect() as con:
        for name, step in STEPS_US.items():
            oldest = START_US + SPAN_DAYS * DAY_US - LENGTHS_US[name] - step
            con.execute(
                f"CREATE TABLE tiles_{name} AS SELECT user_id, epoch_us(event_ts) // {step} AS tile, count(amount), "
                f"sum(amount), max(amount) FROM '{log}' WHERE event_ts > make_timestamptz({oldest}) GROUP BY ALL"
            )


def _tiles_by_hand(log: Path, folder: Path) -> None:
    """Put each entity's tiles into LMDB: start, count, sum and greatest value.

    A sum of doubles depends on the order of rows; amounts are below 64, so 128-bit integers in units of 2**-52 add up
    without error. The files are read three times, but only row groups of events that a window reaches.
    """
    parts = []
    for name, step in STEPS_US.items():
        oldest = START_US + SPAN_DAYS * DAY_US - LENGTHS_US[name] - step
        parts.append(
            f"SELECT user_id, {step} AS step, epoch_us(event_ts) // {step} AS tile, count(amount) AS n, "
            f"sum((amount * {2**52})::HUGEINT) AS total, max(amount) AS most FROM '{log}' "
            f"WHERE event_ts > make_timestamptz({oldest}) GROUP BY ALL"
        )
    query = (
        "SELECT user_id, step, tile, n, (total >> 64)::BIGINT AS upper, "
        "(total & 18446744073709551615)::UBIGINT AS lower, "
        f"most FROM ({' UNION ALL '.join(parts)}) ORDER BY user_id"
    )
    with duckdb.connect() as con:
        found = con.sql(query).to_arrow_table()
    users = found.column("user_id").to_numpy()
    tiles = np.rec.fromarrays([found.column(name).to_numpy() for name in found.column_names[1:]])
    data, size = tiles.tobytes(), tiles.itemsize
    begins = np.flatnonzero(np.append(True, users[1:] != users[:-1]))
    ends = [*begins[1:].tolist(), len(users)]
    with closing(lmdb.open(str(folder), map_size=1 << 32)) as environment:
        with environment.begin(write=True) as transaction:
            for user, begin, end in zip(users[begins].tolist(), begins.tolist(), ends, strict=True):
                transaction.put(b"%d" % user, data[begin * size : end * size])
        environment.sync(True)


def _more_events(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = START_US + SPAN_DAYS * DAY_US - (rng.random(count) * 3_600e6).astype(np.int64)
    table = {
        "user_id": rng.integers(0, 200_000, count),
        "event_ts": as_instants(at),
        "created_ts": pa.nulls(count, pa.timestamp("us", tz="UTC")),
        "amount": np.round(rng.random(count) * 50, 2),
    }
    pq.write_table(pa.table(table), path)


def _end_clock() -> int:
    return START_US + SPAN_DAYS * DAY_US


def workspace_of(
    root: Path, view: FeatureView, online_url: str, clock: Callable[[], int] | None = None, *more: FeatureView
) -> Workspace:
    """Apply views in a folder, and open it; the caller closes the workspace."""
    options = f", read_timeout_ms: {PATIENCE_MS}" if online_url.startswith("redis") else ""
    settings = f"project: {root.name.replace('-', '_')}\nonline_store: {{url: '{online_url}'{options}}}\n"
    (root / "feature_store.yaml").write_text(settings)
    (root / "features.py").write_text("")
    with FeatureStore(root) as store:
        store.apply([view, *more])
    if clock is None:
        return open_workspace(root, online_url)
    with closing(open_workspace(root, online_url)) as opened:
        return Workspace(root, opened.settings, clock=clock)


# Online.


def _online(context: Context) -> Iterator[Section]:
    for store, url in (("Redis", context.redis_url), ("LMDB", "lmdb:///data/online")):
        section = Section(
            f"Windows online, in process, {store}",
            "4 windows (1 h, 1 d, 7 d, 30 d) x 4 functions, to the end of to_dict(), beside a plain view of 16 floats. "
            "Sparse: 50 events in 90 days; dense: an event in every tile.",
        )
        root = context.place(f"windows_{store.lower()}")
        _make_served(root, context, url)
        with FeatureStore(root) as features:
            cases = [("1 entity, sparse", 1, False), ("100 entities, sparse", 100, False)]
            cases += [("1 entity, dense", 1, True), ("100 entities, dense", 100, True)]
            limits = {"Redis": (1.2, 2.0, 1.2, 4.0), "LMDB": (1.2, 2.0, 1.6, 4.0)}[store]
            for (name, count, is_dense), most in zip(cases, limits, strict=True):
                pairs = _reads(context, features, count, is_dense)
                section.rows.append(Row(name, "s", pairs, Target(at_most=most)))
            if store == "LMDB":
                section.rows.append(_heads(context, features, root))
        yield section
        if store == "Redis":
            yield _over_http(context, root)


def _make_served(root: Path, context: Context, url: str) -> None:
    """Make a windowed view with sparse and dense entities, and a plain one of as many features."""
    now_us = time.time_ns() // 1000
    sparse, dense = (200, 20) if context.is_quick else (10_000, 200)
    rng = np.random.default_rng(7)
    keys = [np.repeat(np.arange(sparse), 50)]
    at = [now_us - (rng.random(50 * sparse) * 90 * DAY_US).astype(np.int64) - 60_000_000]
    ages = np.unique(
        np.concatenate([np.arange(12) * 300_000_000, np.arange(7 * 24) * 3_600_000_000, np.arange(30) * DAY_US])
    )
    keys.append(np.repeat(sparse + np.arange(dense), len(ages)))
    at.append(np.tile(now_us - ages - 60_000_000, dense))
    users, times = np.concatenate(keys), np.concatenate(at)
    columns = {"user_id": users, "event_ts": as_instants(times), "created_ts": as_instants(times)}
    ids = pa.array([f"e{place}" for place in range(len(users))])
    pq.write_table(
        pa.table({**columns, "id": ids, "amount": np.round(rng.random(len(users)) * 50, 2)}), root / "events.parquet"
    )
    count = sparse + dense
    names = [f"f{place}" for place in range(16)]
    instants = as_instants(np.full(count, now_us - 60_000_000))
    plain = {"user_id": np.arange(count), "event_ts": instants, "created_ts": instants}
    pq.write_table(pa.table({**plain, **{name: rng.random(count) for name in names}}), root / "plain.parquet")
    source = ParquetSource("plain_file", "plain.parquet", "event_ts", "created_ts")
    other = FeatureView("plain", entities=[USER], source=source, schema=[Field(name, Float64) for name in names])
    view = events_view(windows=FOUR, pushed=True, path="events.parquet")
    with closing(workspace_of(root, view, url, None, other)) as workspace:
        succeeded(materialize_incremental(workspace))


def _reads(context: Context, features: FeatureStore, count: int, is_dense: bool) -> Pairs:
    sparse, dense = (200, 20) if context.is_quick else (10_000, 200)
    rng, calls = np.random.default_rng(9), 5 if context.is_quick else max(50, 2_000 // count)
    first, most = (sparse, dense) if is_dense else (0, sparse)
    asked = [{"user_id": (first + rng.choice(most, min(count, most), replace=False)).tolist()} for _ in range(16)]
    found = features.get_online_features(["events:*"], asked[0]).to_dict(include_status=True)
    assert set(found["amount_sum_30d__status"]) == {"PRESENT"}
    turns = itertools.cycle(asked)
    return measure(
        timed(lambda: features.get_online_features(["events:*"], next(turns)).to_dict(), calls=calls),
        timed(lambda: features.get_online_features(["plain:*"], next(turns)).to_dict(), calls=calls),
        count=context.pairs,
    )


def _heads(context: Context, features: FeatureStore, root: Path) -> Row:
    """Measure a record with 31 newest events beside one without."""
    now_us = time.time_ns() // 1000
    events = {"user_id": [0] * 31, "event_ts": as_instants(np.full(31, now_us)), "id": [f"h{n}" for n in range(31)]}
    features.push("events_push", pa.table({**events, "amount": np.arange(31) / 8}))
    calls = 5 if context.is_quick else 2_000
    pairs = measure(
        timed(lambda: features.get_online_features(["events:*"], {"user_id": [0]}).to_dict(), calls=calls),
        timed(lambda: features.get_online_features(["events:*"], {"user_id": [1]}).to_dict(), calls=calls),
        count=context.pairs,
    )
    apart = median(pairs.differences) * 1e6
    return Row("1 entity with 31 newest events, beside one with none", "s", pairs, note=f"+ {apart:.0f} µs; 30 wanted")


def _over_http(context: Context, root: Path) -> Section:
    section = Section(
        "Windows over HTTP, 1 worker, Redis",
        "Requests a second under wrk, 16 connections, one sparse entity; the column floor is the plain view. Then one "
        "event by POST /push after a quiet second: acknowledged, and read back.",
    )
    rng = np.random.default_rng(5)
    keys = rng.integers(0, 200 if context.is_quick else 10_000, 256).tolist()
    bodies = {}
    for view in ("events", "plain"):
        bodies[view] = root / f"{view}.bodies"
        lines = [json.dumps({"features": [f"{view}:*"], "entities": {"user_id": [key]}}) for key in keys]
        bodies[view].write_text("\n".join(lines) + "\n")
    with running(root, bodies["plain"]) as server:

        def rate(view: str) -> float:
            url = server.url + "/v1/online-features"
            return closed_loop(url, bodies[view], connections=16, seconds=context.seconds).requests_per_second

        pairs = measure(partial(rate, "events"), partial(rate, "plain"), count=context.pairs)
        section.rows.append(Row("1 entity, 16 features", "1/s", pairs, Target(at_least=0.85)))
        seconds = [_one_event(server.url, number, context.is_quick) for number in range(1 if context.is_quick else 12)]
    section.rows.append(
        Row("one event, acknowledged and readable", "s", alone=median(seconds), note="60 ms at most wanted")
    )
    return section


def _one_event(url: str, number: int, is_quick: bool) -> float:
    """Return how long it takes until an event is acknowledged; it is readable then."""
    if not is_quick:
        time.sleep(1.5)
    before = _asked(url, "/v1/online-features", {"features": ["events:amount_count_1h"], "entities": {"user_id": [3]}})
    event = {"user_id": [3], "id": [f"one{number}"], "amount": [1.0]}
    event["event_ts"] = [time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())]
    start = time.perf_counter()
    _asked(url, "/push", {"source": "events_push", "to": "both", "rows": event})
    took = time.perf_counter() - start
    after = _asked(url, "/v1/online-features", {"features": ["events:amount_count_1h"], "entities": {"user_id": [3]}})
    assert before != after
    return took


def _asked(url: str, path: str, body: dict[str, Any]) -> Any:
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.loads(response.read())


# Pushes.


def _pushes(context: Context) -> Section:
    section = Section(
        "Pushes of events",
        f"{CALLERS} callers at once, {ROWS_A_CALL:,} events a call, offline on this disk and online, events a second "
        "until all are acknowledged; medians.",
    )
    rounds = 1 if context.is_quick else 5
    for store, url in (("LMDB", "lmdb:///data/online"), ("Redis", context.redis_url)):
        for name, keys in (("spread over 10,000 entities", 10_000), ("100 entities", 100), ("one entity", 1)):
            root = context.place(f"events_{store.lower()}_{keys}")
            first = pushed_events(0, 1, keys, "first")
            pq.write_table(first.append_column("created_ts", first["event_ts"]), root / "none.parquet")
            with closing(workspace_of(root, events_view(pushed=True), url)) as workspace:
                rates = [push_rate(workspace, number, keys, context.is_quick) for number in range(rounds + 1)][1:]
            section.rows.append(Row(f"{store}, {name}", "1/s", alone=median(rates), note="40,000 wanted"))
    return section


def push_rate(workspace: Workspace, number: int, keys: int, is_quick: bool) -> float:
    """Return how many events a second all callers together push, each its own."""
    callers, rows = (2, 50) if is_quick else (CALLERS, ROWS_A_CALL)
    tables = [pushed_events(number * callers + caller, rows, keys, "e") for caller in range(callers)]
    failed: list[BaseException] = []

    def one(table: pa.Table) -> None:
        try:
            push(workspace, "events_push", table)
        except BaseException as error:
            failed.append(error)

    time.sleep(0 if is_quick else groups.PAUSE_SECONDS + 0.2)  # a commit of the round before must not hold this one up
    threads = [threading.Thread(target=one, args=(table,)) for table in tables]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - start
    if failed:
        raise failed[0]
    return callers * rows / took


def pushed_events(number: int, rows: int, keys: int, name: str) -> pa.Table:
    """Return events of the last minute."""
    rng = np.random.default_rng(number)
    at = time.time_ns() // 1000 - (rng.random(rows) * 60e6).astype(np.int64) - 1_000
    return pa.table(
        {
            "user_id": rng.integers(0, keys, rows),
            "event_ts": as_instants(at),
            "id": [f"{name}{number}-{row}" for row in range(rows)],
            "amount": np.round(rng.random(rows) * 100, 2),
        }
    )
