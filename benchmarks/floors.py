"""Floors: the bare minimum by hand, with the libraries that ours is built on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import lmdb
import msgspec
import redis

from benchmarks.workload import Workload, WorkloadView
from featurestore.online.interface import Write
from featurestore.online.records.codec import CRC_BYTES, HEADER_BYTES
from featurestore.online.redis.scripts import SET_NEWEST
from featurestore.online.redis.store import RECORDS_PER_CALL

LMDB_HEADER_BYTES = 16 + HEADER_BYTES
"""What stands before the payload in LMDB: two instants of expiry, and the record's head."""

_decode = msgspec.msgpack.Decoder(list[object]).decode


def training_set(workload: Workload, as_of: str, with_ttl: bool, out: Path) -> None:
    """Write the training set of all features with DuckDB alone, Parquet to Parquet, rows in the frame's order.

    It knows what the product has to find out: one file for each view, in (event, created, sequence) order, so
    that the row number is row id and rank at once; no null keys; no name or type to take care of.
    """
    with duckdb.connect() as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(
            "CREATE TEMP TABLE frame AS SELECT * RENAME (file_row_number AS row) "
            f"FROM read_parquet('{workload.entities}', file_row_number = true)"
        )
        for number, view in enumerate(workload.views):
            con.execute(f"CREATE TEMP TABLE chosen_{number} AS {_chosen(view, as_of)}")
        gathered = [_gathered(view, number, with_ttl) for number, view in enumerate(workload.views)]
        features = ", ".join(f"g{number}.* EXCLUDE (row)" for number in range(len(gathered)))
        joins = " ".join(f"LEFT JOIN ({part}) g{number} USING (row)" for number, part in enumerate(gathered))
        result = f"SELECT f.* EXCLUDE (row), {features} FROM frame f {joins} ORDER BY f.row"
        con.execute(f"COPY ({result}) TO '{out}' (FORMAT parquet)")


def _chosen(view: WorkloadView, as_of: str) -> str:
    """Select the row number of the newest row at each entity row's time: a thin ASOF join with ties resolved."""
    table = f"read_parquet('{view.table}', file_row_number = true)"
    if as_of == "event":
        # Of equal times the last row: a hash aggregate is quicker here than the window below.
        thin = f"SELECT {view.key}, event_ts AS since, max(file_row_number) AS best FROM {table} GROUP BY ALL"
    else:
        since = "greatest(event_ts, coalesce(created_ts, event_ts))"
        best = f"max(file_row_number) OVER (PARTITION BY {view.key} ORDER BY {since})"  # RANGE: peers included
        thin = f"SELECT {view.key}, {since} AS since, {best} AS best FROM {table}"
    return (
        f"SELECT f.row, f.event_timestamp AS at_time, b.best FROM frame f "
        f"ASOF JOIN ({thin}) b ON f.{view.key} = b.{view.key} AND f.event_timestamp >= b.since"
    )


def _gathered(view: WorkloadView, number: int, with_ttl: bool) -> str:
    fresh = f" AND l.event_ts >= c.at_time - INTERVAL '{view.ttl_us} microseconds'" if with_ttl else ""
    features = ", ".join(f"l.{feature}" for feature in view.features)
    return (
        f"SELECT c.row, {features} FROM read_parquet('{view.table}', file_row_number = true) l "
        f"JOIN chosen_{number} c ON l.file_row_number = c.best{fresh}"
    )


def publish_to_redis(client: redis.Redis, writes: Sequence[Write]) -> None:
    """Run our own script with a thousand ready-made records per call, one call after the other."""
    script = client.register_script(SET_NEWEST)
    for start in range(0, len(writes), RECORDS_PER_CALL):
        part = writes[start : start + RECORDS_PER_CALL]
        script([write.key for write in part], [item for w in part for item in (w.record, w.expire_at_ms or b"")])


def publish_to_lmdb(environment: lmdb.Environment, writes: Sequence[Write]) -> None:
    """Put ready-made records in one transaction, durable at its end."""
    with environment.begin(write=True) as transaction:
        for key, record, _ in writes:
            transaction.put(key, record)
    environment.sync(True)


def set_newest_in_lmdb(environment: lmdb.Environment, writes: Sequence[Write]) -> None:
    """Put ready-made records where what is there is not newer, in one transaction: what Redis's floor does too."""
    with environment.begin(write=True) as transaction:
        for key, record, _ in writes:
            old = transaction.get(key)
            if old is None or old[1:17] <= record[1:17]:
                transaction.put(key, record)
    environment.sync(True)


def read_lmdb(environment: lmdb.Environment, keys: Sequence[bytes]) -> list[bytes | None]:
    """Get each key, and nothing else."""
    with environment.begin() as transaction:
        return [transaction.get(key) for key in keys]


def read_and_decode_lmdb(environment: lmdb.Environment, keys: Sequence[bytes]) -> list[list[object]]:
    """Get each key and decode its payload, one after the other."""
    with environment.begin() as transaction:
        return [_decode(transaction.get(key)[LMDB_HEADER_BYTES:-CRC_BYTES]) for key in keys]


def answer_from_lmdb(
    environment: lmdb.Environment, views: Sequence[WorkloadView], keys: Sequence[bytes]
) -> dict[str, list[object]]:
    """Return the lists of `to_dict()` for keys of one view after the other: nothing checked, no value converted."""
    rows = read_and_decode_lmdb(environment, keys)
    count = len(keys) // len(views)
    columns: dict[str, list[object]] = {}
    for place, view in enumerate(views):
        part = rows[place * count : (place + 1) * count]
        columns.update(zip(view.features, map(list, zip(*part, strict=True)), strict=True))
    return columns
