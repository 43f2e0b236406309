"""A project whose served rows are compared: its clock, and a server that is asked now and then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore import FeatureStore
from featurestore.materialization import materialize
from featurestore.online.records.keys import KeyEncoder
from featurestore.quality.parity import Parity
from featurestore.types.times import to_datetime, to_instant
from support.clock import ManualClock
from support.serving import serving_here

FEATURES = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64, String

driver = Entity("driver", join_keys={"driver_id": KIND})
rides_file = ParquetSource("rides_file", "data/rides", "at", "known")
rides = PushSource("rides", rides_file)
plain_file = ParquetSource("plain_file", "data/plain", "at")

ratings = FeatureView(
    "ratings", entities=[driver], source=rides, ttl=timedelta(days=7),
    schema=[Field("rating", Float64), Field("trips", Int64)],
)
names = FeatureView("names", entities=[driver], source=plain_file, schema=[Field("name", String)])
request = RequestSource("request", schema=[Field("km", Float64)])

@on_demand_feature_view(sources=[ratings[["trips"]], request], schema=[Field("per_trip", Float64)])
def per_trip(inputs):
    return {"per_trip": [k / t if t else None for k, t in zip(inputs["km"], inputs["trips"])]}

model = FeatureService("model", features=[ratings, names, per_trip], log=ServedLog(1.0, keys="KEYS"))
"""
START = "2024-03-01T00:00:00Z"
HOUR = timedelta(hours=1)


WINDOWS = """
events_file = ParquetSource("events_file", "data/events", "at")
events = PushSource("events", events_file)
counts = FeatureView(
    "counts", entities=[driver], source=events, event_id="id", schema=[Field("km", Float64), Field("id", String)],
    aggregations=[Aggregation("km", "sum", [timedelta(hours=1), timedelta(days=1)]), Aggregation("*", "count", [None])],
)
@on_demand_feature_view(sources=[counts[["km_sum_1h"]]], schema=[Field("miles", Float64)])
def miles(inputs):
    return {"miles": [None if km is None else km * 0.621 for km in inputs["km_sum_1h"]]}

model = FeatureService("model", features=[counts, names, miles], log=ServedLog(1.0, keys="plain"))
"""


class World:
    """A project, its clock, and a server that is asked now and then."""

    def __init__(self, root: Path, keys: str = "plain", more: str = "", *, key: type = int) -> None:
        self.root, self.clock, self.asked, self.key = root, ManualClock(START), 0, key
        for folder in ("data/rides", "data/plain", "data/events"):
            (root / folder).mkdir(parents=True)
        text = FEATURES.replace("KEYS", keys).replace("KIND", "Int64" if key is int else "String")
        (root / "feature_store.yaml").write_text("project: taxi\nserved: {secret: long and random text}\n")
        (root / "features.py").write_text(text + more)
        self.write("plain", "0", [(1, -24, "Ann"), (2, -24, "Bob"), (3, -24, "Cem")])
        self.rides("0", [(1, -5, 4.5, 9), (2, -5, 3.5, 4), (3, -24 * 8, 5.0, 1)])
        pd.DataFrame(self.trips([(1, -0.5, 2.0), (1, -5, 8.0), (2, -30, 4.0)])).to_parquet(
            root / "data/events/0.parquet"
        )
        with self.store() as store:
            store.apply()
            store.materialize_incremental()

    def store(self) -> FeatureStore:
        return FeatureStore(self.root, clock=self.clock)

    def at(self, hours: float) -> Any:
        return to_datetime(self.clock()) + hours * HOUR

    def write(self, kind: str, file: str, rows: Sequence[tuple[int, float, str]]) -> None:
        frame = {
            "driver_id": [self.key(r[0]) for r in rows],
            "at": [self.at(r[1]) for r in rows],
            "name": [r[2] for r in rows],
        }
        pd.DataFrame(frame).to_parquet(self.root / f"data/{kind}/{file}.parquet")

    def rides(self, file: str, rows: Sequence[tuple[int, float, float, int]]) -> None:
        pd.DataFrame(self.columns(rows)).to_parquet(self.root / f"data/rides/{file}.parquet")

    def columns(self, rows: Sequence[tuple[int, float, float, int]]) -> dict[str, list[Any]]:
        return {
            "driver_id": [self.key(r[0]) for r in rows],
            "at": [self.at(r[1]) for r in rows],
            "known": [self.at(r[1]) for r in rows],
            "rating": [r[2] for r in rows],
            "trips": [r[3] for r in rows],
        }

    def trips(self, rows: Sequence[tuple[int, float, float]]) -> dict[str, list[Any]]:
        at = [self.at(r[1]) for r in rows]
        return {
            "driver_id": [self.key(r[0]) for r in rows],
            "at": at,
            "km": [r[2] for r in rows],
            "id": [f"{r}" for r in rows],
        }

    def serve(self, ids: Sequence[int | str | None] = (1, 2, 3, 4, None)) -> list[Any]:
        """Ask the server; two minutes pass before and after."""
        self.clock.advance(timedelta(minutes=2))
        self.asked += 1
        body = {
            "feature_service": "model",
            "entities": {"driver_id": list(ids)},
            "request_data": {"km": [18.0] * len(ids)},
        }
        with serving_here(FeatureStore(self.root, clock=self.clock).workspace) as client:
            answer = client.post("/v1/online-features", json=body, headers={"x-request-id": f"r{self.asked}"})
        assert answer.status_code == 200, answer.text
        self.clock.advance(timedelta(minutes=2))
        rows: list[Any] = answer.json()["rows"]
        return rows

    def change(self, *pairs: tuple[str, str]) -> None:
        """Replace texts of the definitions, and apply them."""
        path = self.root / "features.py"
        text = path.read_text()
        for old, new in pairs:
            assert old in text, old
            text = text.replace(old, new)
        path.write_text(text)
        with self.store() as store:
            store.apply(allow_breaking=True, allow_destroy=True)

    def rebuild(self, view: str, hours: float = 24) -> int:
        """Rebuild a view over the last hours; returns how many rows that withdrew."""
        with self.store() as store:
            span = to_instant(self.at(-hours)), to_instant(self.at(0))
            (run,) = materialize(store.workspace, *span, [view], rebuild=True, confirm=lambda view, rows: True)
        return run.withdrawn

    def delete_online(self, view: str, key: tuple[Any, ...]) -> None:
        """Lose a record of the online store."""
        with self.store() as store:
            layout = store.workspace.snapshot().views[view].layout
            assert store.workspace.online.delete(KeyEncoder(layout).encode(key)) == 1

    def materialize(self) -> None:
        with self.store() as store:
            store.materialize_incremental()

    def parity(self) -> Parity:
        with self.store() as store:
            return store.parity("model")


def causes(found: Parity) -> tuple[dict[str, int], dict[str, int]]:
    assert found.unexplained == 0, str(found)
    return dict(found.causes), dict(found.causes_then)
