"""What a materialization left behind, and what it should have: plain loops over the source's rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.online.records.codec import is_intact, record_times
from featurestore.online.records.keys import KeyEncoder
from featurestore.types import Int64, String
from featurestore.workspace import Workspace
from support.wire import entity_of

DAY = 86_400_000_000
START = 1_704_067_200_000_000
"""2024-01-01T00:00Z."""

INSTANT = pa.timestamp("us", tz="UTC")
SOURCE_SCHEMA = pa.schema(
    [("shop", pa.string()), ("sold_at", INSTANT), ("known_at", INSTANT), ("amount", pa.int64()), ("note", pa.string())]
)


def day(number: float) -> int:
    """Return the instant ``number`` days after 2024-01-01."""
    return START + round(number * DAY)


@dataclass(frozen=True)
class Sale:
    """A row of the test's source."""

    shop: str | None
    sold_us: int | None
    known_us: int | None = None
    amount: int | None = 0
    note: str | None = None


def sales_view(
    *, created: bool = True, path: str = "sales.parquet", pushed: bool = False, **options: Any
) -> FeatureView:
    """Return the view that reads sales, with ``pushed`` through the push source ``sales_push``."""
    source: ParquetSource | PushSource = ParquetSource(
        "sales", path=path, timestamp_field="sold_at", created_timestamp_field="known_at" if created else None
    )
    if pushed:
        source = PushSource("sales_push", source.batch_source)
    shop = Entity("shop", join_keys={"shop": String})
    schema = [Field("amount", Int64), Field("note", String)]
    return FeatureView("shop_sales", entities=[shop], source=source, schema=schema, **options)


def write_sales(path: Path, sales: Iterable[Sale]) -> None:
    """Write a source file."""
    rows = list(sales)
    columns = [
        pa.array([sale.shop for sale in rows], pa.string()),
        pa.array([sale.sold_us for sale in rows], pa.int64()).cast(INSTANT),
        pa.array([sale.known_us for sale in rows], pa.int64()).cast(INSTANT),
        pa.array([sale.amount for sale in rows], pa.int64()),
        pa.array([sale.note for sale in rows], pa.string()),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, schema=SOURCE_SCHEMA), path)


LogRow = tuple[str, int, int | None, int | None, str | None]
"""(shop, event_us, created_us, amount, note)"""


@dataclass
class ExpectedLog:
    """What the offline log holds after some runs, in order of arrival."""

    rows: list[LogRow] = field(default_factory=list)

    def read(self, sales: Sequence[Sale], start_us: int, end_us: int, now_us: int) -> dict[str, int]:
        """Do what a run over [start, end) does with a source that holds ``sales``; returns its counts."""
        counts = dict.fromkeys(("read", "appended", "duplicates", "unchanged", "null_keys", "null_times", "waiting"), 0)
        last: dict[tuple[str, int, int], LogRow] = {}
        for sale in sales:
            if sale.sold_us is not None and not start_us <= sale.sold_us < end_us:
                continue
            counts["read"] += 1
            if sale.sold_us is None:
                counts["null_times"] += 1
            elif sale.shop is None:
                counts["null_keys"] += 1
            elif max(sale.sold_us, sale.known_us or sale.sold_us) > now_us:
                counts["waiting"] += 1
            else:
                identity = (sale.shop, sale.sold_us, _known(sale.sold_us, sale.known_us))
                counts["duplicates"] += identity in last
                last.pop(identity, None)
                last[identity] = (sale.shop, sale.sold_us, sale.known_us, sale.amount, sale.note)
        for identity, row in last.items():
            versions = [old for old in self.rows if (old[0], old[1], _known(old[1], old[2])) == identity]
            if versions and versions[-1][3:] == row[3:]:
                counts["unchanged"] += 1
            else:
                counts["appended"] += 1
                self.rows.append(row)
        return counts

    def withdraw(self, sales: Sequence[Sale], start_us: int, end_us: int) -> int:
        """Take out the rows in [start, end) that the source no longer holds; returns how many."""
        held = {(sale.shop, sale.sold_us, _known(sale.sold_us or 0, sale.known_us)) for sale in sales}
        kept = [
            row
            for row in self.rows
            if not start_us <= row[1] < end_us or (row[0], row[1], _known(row[1], row[2])) in held
        ]
        gone = len(self.rows) - len(kept)
        self.rows = kept
        return gone

    def newest(self, now_us: int) -> dict[str, LogRow]:
        """Return the newest row of each shop."""
        best: dict[str, tuple[tuple[int, int, int], LogRow]] = {}
        for arrival, row in enumerate(self.rows):
            known = _known(row[1], row[2])
            if max(row[1], known) > now_us:
                continue
            rank = (row[1], known, arrival)
            if row[0] not in best or rank > best[row[0]][0]:
                best[row[0]] = (rank, row)
        return {shop: row for shop, (_, row) in best.items()}


def _known(event_us: int, created_us: int | None) -> int:
    return event_us if created_us is None else created_us


def log_rows(workspace: Workspace, view: str = "shop_sales") -> list[tuple[Any, ...]]:
    """Return the offline rows in order of arrival: keys, event and created in µs, features (null in older files)."""
    registered = workspace.snapshot().views[view]
    version = workspace.offline.current(registered.table)
    if version is None:
        return []
    names = [*registered.view.join_keys, "event_ts", "created_ts"]
    names += [feature.name for feature in registered.view.features]
    found: list[tuple[int, tuple[Any, ...]]] = []
    for file in version.files:
        table = pq.read_table(file.path, partitioning=None)
        for name in ("event_ts", "created_ts"):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, name, table.column(name).cast(INSTANT).cast(pa.int64()))
        found += [(row["fs_seq"], tuple(row.get(name) for name in names)) for row in table.to_pylist()]
    assert len({sequence for sequence, _ in found}) == len(found), "fs_seq is not unique"
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def online_rows(workspace: Workspace, view: str = "shop_sales") -> dict[Any, tuple[Any, ...]]:
    """Return entity -> (event_us, created_us, values), as a program that knows only the wire format reads it."""
    encoder = KeyEncoder(workspace.snapshot().views[view].layout)
    rows: dict[Any, tuple[Any, ...]] = {}
    for batch in workspace.online.scan(encoder.prefix):
        for key, record in batch:
            assert is_intact(key, record)
            entity = entity_of(encoder.layout, key)
            assert entity is not None
            values: Mapping[str, Any] = msgspec.msgpack.decode(record[25:-4])
            rows[entity[0] if len(entity) == 1 else entity] = (*record_times(record), *values)
    return rows


def expected_online(expected: ExpectedLog, now_us: int) -> dict[str, tuple[Any, ...]]:
    """Return what `online_rows` should return."""
    newest = expected.newest(now_us)
    return {shop: (row[1], _known(row[1], row[2]), *row[3:]) for shop, row in newest.items()}
