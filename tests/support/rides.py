"""A project with rules: rides of drivers, a file for each hour."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import (
    Between,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    Matches,
    NotNull,
    OneOf,
    ParquetSource,
    PushSource,
    Unique,
)
from featurestore.types import Float64, Int64, String
from featurestore.types.times import to_datetime
from support.clock import ManualClock

HOUR = timedelta(hours=1)
KINDS = {
    "driver_id": pa.int64(), "at": pa.timestamp("us", "UTC"), "rating": pa.float64(), "city": pa.string(),
    "phone": pa.string(),
}  # fmt: skip
source = PushSource("rides", ParquetSource("rides_file", "data/rides", "at"))
driver = Entity("driver", {"driver_id": Int64})
RULES: dict[str, Any] = {
    "rating": [Between(1, 5), NotNull(max_share=0.25)],
    "city": [OneOf(["Bonn", "Köln"]), Matches("[A-Z].+")],
    "phone": [Unique()],
}


def view_of(**options: Any) -> FeatureView:
    schema = [
        Field("rating", Float64, expect=RULES["rating"]),
        Field("city", String, expect=RULES["city"]),
        Field("phone", String, expect=RULES["phone"], tags={"personal": "true"}),
    ]
    return FeatureView("ratings", entities=[driver], source=source, schema=schema, **options)


class World:
    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.files = root, ManualClock("2024-03-01T00:00:00Z"), 0
        (root / "data/rides").mkdir(parents=True)
        (root / "feature_store.yaml").write_text("project: taxi\n")
        (root / "features.py").write_text("")
        self.store = FeatureStore(root, clock=self.clock)
        self.write([])  # what is applied has a source

    def rows(self, ratings: list[float | None], *, city: str = "Bonn", hours: float = -0.5) -> dict[str, list[Any]]:
        at = [to_datetime(self.clock()) + hours * HOUR] * len(ratings)
        ids = [self.files * 1_000 + place for place in range(len(ratings))]
        return {
            "driver_id": ids,
            "at": at,
            "rating": ratings,
            "city": [city] * len(ratings),
            "phone": [f"+49 {number}" for number in ids],
        }

    def write(self, ratings: list[float | None], **more: Any) -> None:
        self.files += 1
        columns = {name: pa.array(values, KINDS[name]) for name, values in self.rows(ratings, **more).items()}
        pq.write_table(pa.table(columns), self.root / f"data/rides/{self.files}.parquet")

    def run(self) -> Any:
        (done,) = self.store.materialize_incremental()
        self.clock.advance(HOUR)
        return done

    def committed(self) -> int:
        table = self.store.workspace.snapshot().views["ratings"].table
        version = self.store.workspace.offline.current(table)
        return 0 if version is None else version.rows
