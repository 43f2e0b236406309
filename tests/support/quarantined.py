"""A project whose views set failing rows aside."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import FeatureStore
from featurestore.types.times import to_datetime
from support.clock import ManualClock

START = "2024-03-01T00:00:00Z"
HOUR = timedelta(hours=1)
FEATURES = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64, String

driver = Entity("driver", join_keys={"driver_id": Int64})
rides = ParquetSource("rides", "data/rides", "at", "known")
ratings = FeatureView(
    "ratings", entities=[driver], source=rides, on_failure="quarantine",
    schema=[
        Field("rating", Float64, expect=[Between(1, 5), NotNull()]),
        Field("city", String, expect=[OneOf(["Bonn", "Köln"])]),
        Field("phone", String, expect=[Matches(r"\\+.*")], tags={"personal": "true"}),
    ],
    expect=[MORE],
)
service = FeatureService("model", features=[ratings])
"""
WINDOWS = """
trips = PushSource("trips", ParquetSource("trips_file", "data/trips", "at", "known"))
km = FeatureView(
    "km", entities=[driver], source=trips, event_id="id", on_failure="quarantine",
    schema=[Field("km", Float64, expect=[Between(0, 1000)]), Field("id", String)],
    aggregations=[Aggregation("km", "sum", [timedelta(days=1)]), Aggregation("*", "count", [None])],
)
plain_file = ParquetSource("plain_file", "data/plain", "at", "known")
loose = FeatureView(
    "loose", entities=[driver], source=plain_file, on_failure="quarantine",
    schema=[Field("km", Float64, expect=[Between(0, 1000)])],
    aggregations=[Aggregation("km", "sum", [timedelta(days=1)]), Aggregation("*", "count", [None])],
)
"""
KINDS = {
    "driver_id": pa.int64(), "at": pa.timestamp("us", "UTC"), "known": pa.timestamp("us", "UTC"),
    "rating": pa.float64(), "city": pa.string(), "phone": pa.string(), "km": pa.float64(), "id": pa.string(),
}  # fmt: skip


class World:
    """A project, its clock, and its sources."""

    def __init__(self, root: Path, *, more: str = "", windows: bool = False, start: str | int = START) -> None:
        self.root, self.clock = root, ManualClock(start)
        if not (root / "feature_store.yaml").exists():
            for folder in ("data/rides", "data/trips", "data/plain"):
                (root / folder).mkdir(parents=True)
            (root / "feature_store.yaml").write_text("project: taxi\n")
            self.define(FEATURES.replace("MORE", more) + (WINDOWS if windows else ""))
            self.rides("0", [])
            self.write("trips/0", {"driver_id": [], "at": [], "known": [], "km": [], "id": []})
            self.write("plain/0", {"driver_id": [], "at": [], "known": [], "km": []})
        self.store = FeatureStore(root, clock=self.clock)

    def define(self, text: str) -> None:
        (self.root / "features.py").write_text(text)

    def apply(self, **options: Any) -> None:
        self.store.apply(**options)

    def at(self, hours: float) -> Any:
        return to_datetime(self.clock()) + hours * HOUR

    def write(self, file: str, columns: dict[str, Any]) -> None:
        made = {name: pa.array(values, KINDS[name]) for name, values in columns.items()}
        pq.write_table(pa.table(made), self.root / f"data/{file}.parquet")

    def rides(self, file: str, ratings: Sequence[float | None], *, first: int = 0, **more: Any) -> None:
        """Write rows of half an hour ago, of as many drivers."""
        count = len(ratings)
        at = [self.at(-0.5)] * count
        columns: dict[str, Any] = {
            "driver_id": [first + place for place in range(count)],
            "at": at,
            "known": at,
            "rating": list(ratings),
            "city": ["Bonn"] * count,
            "phone": [f"+49 {place}" for place in range(count)],
        }
        self.write(f"rides/{file}", {**columns, **more})

    def trips(self, file: str, km: Sequence[float], ids: Sequence[str] | None = None, *, hours: float = -0.5) -> None:
        """Write events of driver 1."""
        at = [self.at(hours)] * len(km)
        columns: dict[str, Any] = {"driver_id": [1] * len(km), "at": at, "known": at, "km": list(km)}
        self.write(file, columns if ids is None else {**columns, "id": list(ids)})

    def run(self, *views: str) -> Any:
        """Run, and let an hour pass."""
        done = {run.view: run for run in self.store.materialize_incremental(views=list(views) or None)}
        self.clock.advance(HOUR)
        return done[views[0] if views else "ratings"]

    def log(self, view: str = "ratings") -> pa.Table:
        """Return what is in a view's table."""
        offline = self.store.workspace.offline
        version = offline.current(self.store.workspace.snapshot().views[view].table)
        if version is None:
            return pa.table({})
        parts = [pq.ParquetFile(file.path).read() for file in version.files]
        return pa.concat_tables(parts, promote_options="default").sort_by("fs_seq")

    def held(self, view: str = "ratings") -> list[Any]:
        return list(self.store.quarantined(view)["driver_id"].to_pylist())
