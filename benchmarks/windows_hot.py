"""Windows of one entity that has nearly everything: a million pushed events, and ten million in the log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.context import Context
from benchmarks.pairs import Pairs, timed
from benchmarks.report import Row, Section, Target
from benchmarks.windows import CALLERS, ROWS_A_CALL, push_rate, pushed_events, workspace_of
from benchmarks.windows_data import DAY_US, EVENTS, as_instants, events_view
from featurestore import FeatureStore
from featurestore.following.follow import MOST_OF_ONE, Follower
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import HEADER, entries_of, event_shape, shapes_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.windows.layout import Layout, layout_of
from featurestore.workspace import Workspace

ROUNDS = 16
MOST_LIMBS = 2
"""Integers that a sum of such amounts needs at most; one of any doubles takes up to 34."""
TRAINING_ROWS = 10_000


def run(context: Context) -> Iterator[Section]:
    """Measure both."""
    for store, url in (("LMDB", "lmdb:///data/online"), ("Redis", context.redis_url)):
        yield _pushes(context, store, url)
    yield _large_log(context)


def _pushes(context: Context, store: str, url: str) -> Section:
    rounds = 1 if context.is_quick else ROUNDS
    section = Section(
        f"A million events pushed to one entity, {store}",
        f"{rounds} rounds of {CALLERS} callers at once, {ROWS_A_CALL:,} events a call, offline and online, after one "
        "for warmth; 3 windows x 4 functions. The column floor is the first quarter of them. The record "
        "is looked at every 20 ms meanwhile; its layout allows one more than a window's tiles, and "
        f"{2 * MOST_OF_ONE:,} newest events.",
    )
    root = context.place(f"hot_{store.lower()}")
    first = pushed_events(0, 1, 1, "first")
    pq.write_table(first.append_column("created_ts", first["event_ts"]), root / "none.parquet")
    with closing(workspace_of(root, events_view(pushed=True), url)) as workspace, FeatureStore(root) as features:
        registered = workspace.snapshot().views["events"]
        rates, reads = list[float](), list[float]()
        with _watched(workspace, registered) as seen:
            for number in range(rounds + 1):
                rates.append(push_rate(workspace, number, 1, context.is_quick))
                reads.append(_read(features, context))
        bound = _most_bytes(layout_of(registered.view)[0])
        found = features.get_online_features(["events:amount_count_1d"], {"user_id": [0]}).to_dict()
        assert found["amount_count_1d"] == [(rounds + 1) * (100 if context.is_quick else CALLERS * ROWS_A_CALL)]
    rates, reads = rates[1:], reads[1:]
    late, early = slice(-(rounds // 4 or 1), None), slice(0, rounds // 4 or 1)
    pushed = Pairs(tuple(zip(rates[late], rates[early], strict=True)))
    section.rows.append(
        Row("events a second, last quarter beside the first", "1/s", pushed, note=f"median of all {median(rates):,.0f}")
    )
    flat = Pairs(tuple(zip(reads[late], reads[early], strict=True)))
    section.rows.append(Row("a read, after each of the last quarter beside the first", "s", flat, Target(at_most=1.3)))
    size = max(seen.sizes, default=0)
    note = f"at most, of {len(seen.sizes):,} looks; {max(seen.newest, default=0):,} newest events; {bound:,} allowed"
    section.rows.append(
        Row("the record", "bytes", alone=size, note=note + (": MORE than that" if size > bound else ""))
    )
    return section


@dataclass
class _Seen:
    sizes: list[int]
    newest: list[int]


@contextmanager
def _watched(workspace: Workspace, registered: RegisteredView) -> Iterator[_Seen]:
    """Look at the record of entity 0 again and again."""
    seen, is_over = _Seen([], []), threading.Event()
    (key,) = KeyEncoder(registered.layout).encode_columns({"user_id": pa.array([0])})

    def watch() -> None:
        while not is_over.wait(0.02):
            (record,) = workspace.online.get([key])
            if record is not None:
                seen.sizes.append(len(record))
                seen.newest.append(sum(1 for _ in entries_of(record)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


def _most_bytes(layout: Layout) -> int:
    """Return how large a record of float columns without lists can be."""
    sums = sum(
        partial in ("sum", "square") for each in layout.resolutions for _, names in each.parts for partial in names
    )
    tiles = 0
    for resolution, shape in zip(layout.resolutions, shapes_of(layout, (MOST_LIMBS,) * sums), strict=True):
        assert resolution.longest_us is not None
        tiles += (resolution.longest_us // resolution.step_us + 1) * (8 + shape.entry.size)
    scales = 2 + sums * (1 + 2 * MOST_LIMBS)
    _, _, event = event_shape(layout)
    assert event is not None
    return HEADER.size + 4 * len(layout.resolutions) + scales + tiles + 8 + 2 * MOST_OF_ONE * (event.size + 4)


def _read(features: FeatureStore, context: Context) -> float:
    calls = 5 if context.is_quick else 100
    read = timed(lambda: features.get_online_features(["events:*"], {"user_id": [0]}).to_dict(), calls=calls)
    return median(read() for _ in range(9))


# A log of one key.


def _large_log(context: Context) -> Section:
    count, rows = (20_000, 100) if context.is_quick else (EVENTS, TRAINING_ROWS)
    section = Section(
        f"{count:,} events of one entity",
        "Over 90 days up to now, 3 windows x 4 functions, LMDB, from the store's own interface.",
    )
    root, now_us = context.place("hot_log"), time.time_ns() // 1000
    frame = _make_log(root, count, rows, now_us)
    with closing(
        workspace_of(root, events_view(path="source.parquet", created=None), "lmdb:///data/online")
    ) as workspace:
        first = timed(lambda: succeeded(materialize_incremental(workspace)))()
        section.rows.append(Row("first run: read, committed, published", "s", alone=first))
        registered = workspace.snapshot().views["events"]
        version = workspace.offline.current(registered.table)
        assert version is not None
        publish = timed(lambda: Follower(workspace, registered, version, lambda: None).bring(anew=True))
        section.rows.append(Row("a full publish", "s", alone=_typical(context, publish)))
    features_of = ["events:*"]
    with FeatureStore(root) as features:
        found = features.get_online_features(features_of, {"user_id": [0]}).to_dict()
        assert 0.99 * count * 30 / 90 < found["amount_count_30d"][0] < 1.05 * count * 31 / 90
        section.rows.append(Row("a read", "s", alone=_read(features, context)))
        training = timed(lambda: features.get_historical_features(frame, features_of).to_arrow())
        section.rows.append(Row(f"a training set of {rows:,} rows", "s", alone=_typical(context, training)))
    return section


def _typical(context: Context, seconds: object) -> float:
    assert callable(seconds)
    return median(seconds() for _ in range(1 if context.is_quick else 3))


def _make_log(root: Path, count: int, rows: int, now_us: int) -> Path:
    """Write a source of one entity's events, and return an entity frame's file."""
    rng = np.random.default_rng(8)
    zeros = np.zeros(count, np.int64)
    at = now_us - 60_000_000 - np.sort((rng.random(count) * 90 * DAY_US).astype(np.int64))[::-1]
    amounts = np.round(np.exp(rng.random(count) * 4), 2)
    pq.write_table(
        pa.table({"user_id": zeros, "event_ts": as_instants(at), "amount": amounts}), root / "source.parquet"
    )
    asked = now_us - (60 * DAY_US * rng.random(rows)).astype(np.int64)
    frame = root / "frame.parquet"
    pq.write_table(pa.table({"user_id": zeros[:rows], "event_timestamp": as_instants(asked)}), frame)
    return frame
