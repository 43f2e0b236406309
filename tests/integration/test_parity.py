"""What was served beside what should have been: each cause is planted, and found by its name."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.clock import ManualClock
from support.serving import serving_here

from featurestore import FeatureStore
from featurestore.materialization import materialize
from featurestore.online.records.encoder import RecordEncoder
from featurestore.quality.parity import Parity
from featurestore.types.times import to_datetime, to_instant

FEATURES = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64, String

driver = Entity("driver", join_keys={"driver_id": Int64})
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

    def __init__(self, root: Path, keys: str = "plain", more: str = "") -> None:
        self.root, self.clock, self.asked = root, ManualClock(START), 0
        for folder in ("data/rides", "data/plain", "data/events"):
            (root / folder).mkdir(parents=True)
        (root / "feature_store.yaml").write_text("project: taxi\nserved: {secret: long and random text}\n")
        (root / "features.py").write_text(FEATURES.replace("KEYS", keys) + more)
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
        frame = {"driver_id": [r[0] for r in rows], "at": [self.at(r[1]) for r in rows], "name": [r[2] for r in rows]}
        pd.DataFrame(frame).to_parquet(self.root / f"data/{kind}/{file}.parquet")

    def rides(self, file: str, rows: Sequence[tuple[int, float, float, int]]) -> None:
        pd.DataFrame(self.columns(rows)).to_parquet(self.root / f"data/rides/{file}.parquet")

    def columns(self, rows: Sequence[tuple[int, float, float, int]]) -> dict[str, list[Any]]:
        return {
            "driver_id": [r[0] for r in rows],
            "at": [self.at(r[1]) for r in rows],
            "known": [self.at(r[1]) for r in rows],
            "rating": [r[2] for r in rows],
            "trips": [r[3] for r in rows],
        }

    def trips(self, rows: Sequence[tuple[int, float, float]]) -> dict[str, list[Any]]:
        at = [self.at(r[1]) for r in rows]
        return {"driver_id": [r[0] for r in rows], "at": at, "km": [r[2] for r in rows], "id": [f"{r}" for r in rows]}

    def serve(self, ids: Sequence[int | None] = (1, 2, 3, 4, None)) -> list[Any]:
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

    def materialize(self) -> None:
        with self.store() as store:
            store.materialize_incremental()

    def parity(self) -> Parity:
        with self.store() as store:
            return store.parity("model")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "taxi")


def causes(found: Parity) -> tuple[dict[str, int], dict[str, int]]:
    assert found.unexplained == 0, str(found)
    return dict(found.causes), dict(found.causes_then)


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_what_is_served_in_peace_has_no_difference(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    world.serve()
    world.rides("1", [(1, -1 / 60, 4.0, 10)])  # after it was served
    world.materialize()
    assert world.serve()[0] == [4.0, 10, "Ann", 1.8]
    found = world.parity()
    assert causes(found) == ({}, {})
    assert [(each.feature, each.rows, each.differs_then, each.differs_now) for each in found.features] == [
        (name, 10, 0, 0) for name in ("rating", "trips", "name", "per_trip")
    ]
    assert found.differences.num_rows == 0
    assert found.entities == ()
    assert "100 %" in str(found)


def test_rows_that_are_committed_afterwards_are_late(world: World) -> None:
    world.serve()
    world.rides("1", [(1, -1, 4.0, 10)])  # happened, and was known, an hour before
    world.materialize()
    found = world.parity()
    assert causes(found) == ({"late": 3}, {})  # rating, trips, and what is computed of them
    assert {row["feature"] for row in found.differences.to_pylist()} == {"rating", "trips", "per_trip"}
    assert found.entities == (("driver_id=1", 3),)
    rating = found.features[0]
    assert (rating.rows, rating.differs_now, rating.greatest_error) == (5, 1, 0.5)
    assert rating.mean_error == pytest.approx(0.25)  # over the two rows in which both sides have a number


def test_a_later_version_of_the_same_event_is_a_correction(world: World) -> None:
    world.serve()
    world.write("plain", "1", [(2, -24 - 4 / 60, "Rob")])  # the clock has moved on by four minutes
    world.materialize()
    assert causes(world.parity()) == ({"corrected": 1}, {})


def test_what_is_committed_and_not_published_is_told(world: World) -> None:
    with world.store() as store:
        store.push("rides", world.columns([(1, -0.5, 1.0, 11)]), to="offline")
    world.serve()
    assert causes(world.parity()) == ({"not published": 3}, {"not published": 3})
    world.materialize()
    world.serve()
    assert causes(world.parity()) == ({"not published": 3}, {"not published": 3})  # the second answer has it


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_what_was_pushed_online_only_is_told(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    with world.store() as store:
        store.push("rides", world.columns([(1, -0.5, 1.0, 11), (4, -0.5, 1.0, 2)]), to="online")
    world.serve()
    assert causes(world.parity()) == ({"pushed online": 6}, {"pushed online": 6})


def test_rows_that_the_source_lost_were_withdrawn(world: World) -> None:
    world.serve()
    world.rides("0", [(2, -5 - 4 / 60, 3.5, 4), (3, -24 * 8 - 4 / 60, 5.0, 1)])
    with world.store() as store:
        span = to_instant(world.at(-24)), to_instant(world.at(0))
        (run,) = materialize(store.workspace, *span, ["ratings"], rebuild=True, confirm=lambda view, rows: True)
    assert run.withdrawn == 1
    assert causes(world.parity())[0] == {"withdrawn": 3}


def test_a_row_that_was_released_is_told(world: World) -> None:
    text = (world.root / "features.py").read_text()
    checked = text.replace('Field("name", String)]', 'Field("name", String, expect=[Matches("[A-Z].*")])], '
                           'on_failure="quarantine"')  # fmt: skip
    (world.root / "features.py").write_text(checked)
    with world.store() as store:
        store.apply()
    world.write("plain", "1", [(2, -1, "bob"), (4, -1, "dan"), (3, -1, "Cem")])
    world.materialize()
    assert [row[2] for row in world.serve((2, 3, 4))] == ["Bob", "Cem", None]
    world.clock.advance(timedelta(minutes=1))
    with world.store() as store:
        store.release_quarantined("names", all=True, reason="nicknames are fine")
    world.clock.advance(timedelta(minutes=1))
    assert [row[2] for row in world.serve((2, 3, 4))] == ["bob", "Cem", "dan"]
    assert causes(world.parity()) == ({"released": 2}, {})


def test_another_ttl_is_told(world: World) -> None:
    assert world.serve()[2][:2] == [None, None]
    text = (world.root / "features.py").read_text()
    (world.root / "features.py").write_text(text.replace("ttl=timedelta(days=7)", "ttl=timedelta(days=70)"))
    with world.store() as store:
        store.apply()
    assert causes(world.parity()) == ({"ttl": 3}, {"ttl": 3})


def test_other_code_is_not_run(world: World) -> None:
    world.serve()
    text = (world.root / "features.py").read_text()
    (world.root / "features.py").write_text(text.replace("k / t if t", "-k / t if t"))
    with world.store() as store:
        store.apply()
    world.serve()
    found = world.parity()
    assert causes(found) == ({}, {})
    assert found.not_recomputed == {"per_trip": 5}
    assert [each.rows for each in found.features] == [10, 10, 10, 5]


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_a_record_that_is_not_that_of_its_row_is_damaged(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    with world.store() as store:
        registered = store.workspace.snapshot().views["ratings"]
        encoder = RecordEncoder(registered.layout)
        at_us = world.clock() - 5 * 3_600_000_000
        store.workspace.online.write([encoder.write((1,), at_us, at_us, (99.0, 9))], now_us=world.clock())
    assert world.serve()[0][0] == 99.0
    assert causes(world.parity()) == ({"damaged": 1}, {"damaged": 1})


def test_windows_are_explained_by_their_events(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", more=WINDOWS)
    assert world.serve((1, 2, 9))[0][:3] == [2.0, 10.0, 2]
    with world.store() as store:
        store.push("events", world.trips([(1, -1 / 60, 1.0)]))
    world.clock.advance(timedelta(minutes=1))
    assert world.serve((1, 2, 9))[0][:3] == [3.0, 11.0, 3]
    assert causes(world.parity()) == ({}, {})
    late = pd.DataFrame(world.trips([(1, -0.25, 4.0)]))  # it happened before either was served
    late.to_parquet(world.root / "data/events/1.parquet")
    world.materialize()
    assert causes(world.parity()) == ({"late": 8}, {})  # two sums, a count, and what is computed of one, twice
    with world.store() as store:
        store.push("events", world.trips([(1, -1 / 60, 16.0)]), to="offline")
    world.serve((1, 2, 9))
    assert causes(world.parity()) == ({"late": 8, "not published": 4}, {"not published": 4})
