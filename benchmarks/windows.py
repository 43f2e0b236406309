"""Windowed aggregations: training sets, tiles, reads and pushes beside DuckDB by hand and beside plain views."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.http import running
from benchmarks.load import closed_loop
from benchmarks.pairs import Pairs, measure, peak_mib, timed
from benchmarks.projects import PATIENCE_MS, open_workspace
from benchmarks.report import Row, Section, Target
from featurestore import Aggregation, Entity, FeatureStore, FeatureView, Field, ParquetSource, PushSource
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.interface import ViewJoin
from featurestore.following.follow import Follower
from featurestore.ingest.push import push
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline import groups
from featurestore.types import Float64, Int64, String
from featurestore.workspace import Workspace

DAY_US = 86_400_000_000
START_US = 1_577_836_800_000_000  # 2020-01-01T00:00Z
SPAN_DAYS = 90
EVENTS = 10_000_000
USER = Entity("user", join_keys={"user_id": Int64})
LONG = [timedelta(hours=1), timedelta(days=1), timedelta(days=30)]
FOUR = [timedelta(hours=1), timedelta(days=1), timedelta(days=7), timedelta(days=30)]
FUNCTIONS = ("sum", "count", "mean", "max")
STEPS_US = {"1h": 300_000_000, "1d": 3_600_000_000, "30d": DAY_US}
"""The resolution of each of the long windows."""
LENGTHS_US = {"1h": 3_600_000_000, "1d": DAY_US, "30d": 30 * DAY_US}
CALLERS, ROWS_A_CALL = 64, 1_000
MOST_MIB = 700


def run(context: Context) -> Iterator[Section]:
    """Measure everything that windows do."""
    yield _training(context)
    yield _tiles(context)
    yield from _online(context)
    yield _pushes(context)


def aggregations(windows: Sequence[timedelta]) -> list[Aggregation]:
    """Return the functions that are measured, over some windows."""
    return [Aggregation("amount", name, windows=list(windows)) for name in FUNCTIONS]


# Training sets.


def _training(context: Context) -> Section:
    section = Section(
        "Windowed training sets",
        f"{_events(context):,} events over 90 days, 3 windows (1 h, 1 d, 30 d) x sum, count, mean, max, Parquet to "
        "Parquet by the engine. S: 200,000 keys and 100,000 entity rows; M: 1 M rows; D: 2,000 keys; H: one of 2,000 "
        "keys has half of the events and of the rows. The floor is DuckDB's range join with filtered aggregates, by "
        "hand, whose sums depend on the order of its threads; for H it does not end, so H stands beside ours on D.",
    )
    sparse, dense, hot = (_log(context, name) for name in ("sparse", "dense", "hot"))
    few, many = (1_000, 2_000) if context.is_quick else (100_000, 1_000_000)
    frames = {name: _frame(context, name, rows) for name, rows in (("sparse", few), ("dense", few), ("hot", few))}
    large = _frame(context, "sparse", many)
    out = context.folder / "windows.parquet"
    cases = [
        ("S", sparse, frames["sparse"], context.pairs, Target(at_most=1.1)),
        ("M", sparse, large, min(context.pairs, 3), Target(at_most=1.0)),
        ("D", dense, frames["dense"], 1, Target(at_most=0.2)),  # a floor of half a minute
    ]
    for name, log, frame, count, target in cases:
        check_equal(log, frame, out)
        found = measure(timed(training_set, log, frame, out), timed(range_join, log, frame, out), count=count)
        memory = peak_mib(training_set, log, frame, out)
        note = f"peak {memory:,.0f} MiB" + (f": MORE than {MOST_MIB}" if name == "S" and memory > MOST_MIB else "")
        section.rows.append(Row(f"{name}, {pq.read_metadata(frame).num_rows:,} rows", "s", found, target, note=note))
    beside = measure(
        timed(training_set, hot, frames["hot"], out),
        timed(training_set, dense, frames["dense"], out),
        count=context.pairs,
    )
    section.rows.append(Row("H, beside ours on D", "s", beside, Target(at_most=1.2)))
    late = measure(
        timed(training_set, _log(context, "late"), frames["hot"], out),
        timed(training_set, hot, frames["hot"], out),
        count=context.pairs,
    )
    section.rows.append(Row("H, every event known up to 3 days late, beside none late", "s", late, Target(at_most=1.6)))
    return section


def training_set(log: Path, frame: Path, out: Path) -> None:
    """Write the windows of each row with the engine."""
    rows = pq.read_table(frame).combine_chunks()
    names = tuple(window.name for window in _view().windows)
    join = ViewJoin("events", _view(), (str(log),), {"user_id": "user_id"}, names, "available")
    made = open_engine(out.parent).joins.join(rows, "event_timestamp", [join], batch_rows=100_000).batches()
    with pq.ParquetWriter(out, made.schema, use_dictionary=False) as writer:
        for batch in made:
            writer.write_batch(batch)


def range_join(log: Path, frame: Path, out: Path) -> None:
    """Write the same with DuckDB by hand; it knows that no event is late."""
    columns = []
    for name in STEPS_US:
        own = f"FILTER (WHERE e.at_us > f.a{name})"
        columns += [f"sum(amount) {own}", f"count(amount) {own}", f"avg(amount) {own}", f"max(amount) {own}"]
    bounds = [f"(at_us - {LENGTHS_US[name]}) // {step} * {step} AS a{name}" for name, step in STEPS_US.items()]
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(
            f"COPY (SELECT f.row, {', '.join(f'{column} AS x{place}' for place, column in enumerate(columns))} FROM "
            f"(SELECT *, {', '.join(bounds)} FROM (SELECT user_id, epoch_us(event_timestamp) AS at_us, "
            f"file_row_number AS row FROM read_parquet('{frame}', file_row_number = true))) f LEFT JOIN "
            f"(SELECT user_id, epoch_us(event_ts) AS at_us, amount FROM '{log}') e "
            f"ON e.user_id = f.user_id AND e.at_us > f.a30d AND e.at_us <= f.at_us GROUP BY f.row ORDER BY f.row) "
            f"TO '{out}' (FORMAT parquet)"
        )


def check_equal(log: Path, frame: Path, out: Path) -> None:
    """Fail unless both answer the same, sums but for rounding; a floor that answers otherwise is none."""
    training_set(log, frame, out)
    ours = pq.read_table(out)
    range_join(log, frame, out)
    floor = pq.read_table(out)
    names = [window.name for window in _view().windows]
    order = [f"amount_{function}_{window}" for window in STEPS_US for function in FUNCTIONS]
    for place, name in enumerate(order):
        left, right = ours.column(names.index(name)).to_numpy(), floor.column(1 + place).to_numpy()
        assert np.allclose(np.nan_to_num(left.astype(float)), np.nan_to_num(right.astype(float)), rtol=1e-9), name


def _view(
    *,
    windows: Sequence[timedelta] = LONG,
    pushed: bool = False,
    path: str = "none.parquet",
    created: str | None = "created_ts",
) -> FeatureView:
    source = ParquetSource("events_file", path, timestamp_field="event_ts", created_timestamp_field=created)
    return FeatureView(
        "events",
        entities=[USER],
        source=PushSource("events_push", source) if pushed else source,
        schema=[*([Field("id", String)] if pushed else []), Field("amount", Float64)],
        event_id="id" if pushed else None,
        aggregations=aggregations(windows),
    )


def _events(context: Context) -> int:
    return 20_000 if context.is_quick else EVENTS


def _log(context: Context, kind: str) -> Path:
    """Return a log's file of events, in the order of time; made once."""
    path = context.data / f"events_{kind}_{_events(context)}.parquet"
    if not path.exists():
        keys = 200_000 if kind == "sparse" else 2_000
        key = f"(random() * {keys})::BIGINT"
        if kind in ("hot", "late"):
            key = f"CASE WHEN random() < 0.5 THEN 0 ELSE {key} END"
        created = f"to_timestamp(at_us / 1e6 + random() * {3 * 86_400})" if kind == "late" else "NULL::TIMESTAMPTZ"
        with duckdb.connect() as con:
            con.execute("SET threads = 1")
            con.execute("SELECT setseed(0.42)")
            con.execute(
                f"COPY (SELECT user_id, make_timestamptz(at_us) AS event_ts, {created} AS created_ts, "
                f"row_number() OVER () AS fs_seq, 'batch' AS fs_origin, amount FROM (SELECT {key} AS user_id, "
                f"{START_US} + (random() * {SPAN_DAYS * DAY_US})::BIGINT AS at_us, "
                f"round(exp(random() * 4), 2) AS amount FROM range({_events(context)}) ORDER BY at_us)) "
                f"TO '{path}' (FORMAT parquet, COMPRESSION zstd)"
            )
    return path


def _frame(context: Context, kind: str, rows: int) -> Path:
    path = context.data / f"asked_{kind}_{rows}_{_events(context)}.parquet"
    if not path.exists():
        rng = np.random.default_rng(3)
        keys = rng.integers(0, 200_000 if kind == "sparse" else 2_000, rows)
        if kind == "hot":
            keys[rng.random(rows) < 0.5] = 0
        at = START_US + ((30 + 60 * rng.random(rows)) * DAY_US).astype(np.int64)
        pq.write_table(pa.table({"user_id": keys, "event_timestamp": _instants(at)}), path)
    return path


def _instants(values: np.ndarray) -> pa.Array:
    return pa.array(values.astype("datetime64[us]"), pa.timestamp("us", tz="UTC"))


# Tiles.


def _tiles(context: Context) -> Section:
    section = Section(
        "Events to tiles, LMDB",
        f"A full publish of {_events(context):,} events of 200,000 keys, 3 windows x 4 functions, from the log to "
        "records on disk; the floor is DuckDB's GROUP BY to the same tiles, into memory. An incremental run reads, "
        "commits and applies 1 % more events.",
    )
    root = context.place("tiles")
    log = _log(context, "sparse")
    (root / "source").mkdir()
    shutil.copy(log, root / "source" / "first.parquet")
    with closing(_workspace(root, _view(path="source", created=None), "lmdb:///data/online", _end_clock)) as workspace:
        succeeded(materialize_incremental(workspace))
        registered = workspace.snapshot().views["events"]

        def publish() -> None:
            version = workspace.offline.current(registered.table)
            assert version is not None
            found = Follower(workspace, registered, version, lambda: None).bring(anew=True)
            assert found is not None
            assert found.placed > 0

        pairs = measure(timed(publish), timed(_group_by, log), count=min(context.pairs, 3))
        section.rows.append(Row("full publish", "s", pairs, Target(at_most=0.9)))
        times = []
        for number in range(1 if context.is_quick else 3):
            _more_events(root / "source" / f"more{number}.parquet", _events(context) // 100, number)
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
                f"sum(amount), max(amount) FROM '{log}' WHERE epoch_us(event_ts) > {oldest} GROUP BY ALL"
            )


def _more_events(path: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = START_US + SPAN_DAYS * DAY_US - (rng.random(count) * 3_600e6).astype(np.int64)
    table = {
        "user_id": rng.integers(0, 200_000, count),
        "event_ts": _instants(at),
        "created_ts": pa.nulls(count, pa.timestamp("us", tz="UTC")),
        "amount": np.round(rng.random(count) * 50, 2),
    }
    pq.write_table(pa.table(table), path)


def _end_clock() -> int:
    return START_US + SPAN_DAYS * DAY_US


def _workspace(
    root: Path, view: FeatureView, online_url: str, clock: Callable[[], int] | None = None, *more: FeatureView
) -> Workspace:
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
    columns = {"user_id": users, "event_ts": _instants(times), "created_ts": _instants(times)}
    ids = pa.array([f"e{place}" for place in range(len(users))])
    pq.write_table(
        pa.table({**columns, "id": ids, "amount": np.round(rng.random(len(users)) * 50, 2)}), root / "events.parquet"
    )
    count = sparse + dense
    names = [f"f{place}" for place in range(16)]
    instants = _instants(np.full(count, now_us - 60_000_000))
    plain = {"user_id": np.arange(count), "event_ts": instants, "created_ts": instants}
    pq.write_table(pa.table({**plain, **{name: rng.random(count) for name in names}}), root / "plain.parquet")
    source = ParquetSource("plain_file", "plain.parquet", "event_ts", "created_ts")
    other = FeatureView("plain", entities=[USER], source=source, schema=[Field(name, Float64) for name in names])
    view = _view(windows=FOUR, pushed=True, path="events.parquet")
    with closing(_workspace(root, view, url, None, other)) as workspace:
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
    events = {"user_id": [0] * 31, "event_ts": _instants(np.full(31, now_us)), "id": [f"h{n}" for n in range(31)]}
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
            first = _pushed(0, 1, keys, "first")
            pq.write_table(first.append_column("created_ts", first["event_ts"]), root / "none.parquet")
            with closing(_workspace(root, _view(pushed=True), url)) as workspace:
                rates = [_rate(workspace, number, keys, context.is_quick) for number in range(rounds + 1)][1:]
            section.rows.append(Row(f"{store}, {name}", "1/s", alone=median(rates), note="40,000 wanted"))
    return section


def _rate(workspace: Workspace, number: int, keys: int, is_quick: bool) -> float:
    callers, rows = (2, 50) if is_quick else (CALLERS, ROWS_A_CALL)
    tables = [_pushed(number * callers + caller, rows, keys, "e") for caller in range(callers)]
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


def _pushed(number: int, rows: int, keys: int, name: str) -> pa.Table:
    rng = np.random.default_rng(number)
    at = time.time_ns() // 1000 - (rng.random(rows) * 60e6).astype(np.int64) - 1_000
    return pa.table(
        {
            "user_id": rng.integers(0, keys, rows),
            "event_ts": _instants(at),
            "id": [f"{name}{number}-{row}" for row in range(rows)],
            "amount": np.round(rng.random(rows) * 100, 2),
        }
    )
