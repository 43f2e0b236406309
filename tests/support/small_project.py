"""A small project of every kind of definition, for tests of training sets and online reads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from featurestore.definitions import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.project.settings import make_settings
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp
from featurestore.workspace import Workspace
from support.clock import ManualClock
from support.projects import make_workspace

NOW = "2024-02-01T00:00:00Z"

carrier = Entity("carrier", {"carrier": String})
airport = Entity("airport", {"airport": String})
route = Entity("route", {"origin": String, "dest": String})
plane = Entity("plane", {"plane_id": Int64})

flights = ParquetSource("flights", "flights.parquet", "arrived_at", "recorded_at")
weather = ParquetSource("weather", "weather.parquet", "hour")

carrier_profile = FeatureView(
    "carrier_profile",
    entities=[carrier],
    source=flights,
    ttl=timedelta(days=7),
    schema=[Field("last_delay", Float64), Field("flights", Int64, default=-1)],
)
airport_weather = FeatureView(
    "airport_weather",
    entities=[airport],
    source=weather,
    schema=[Field("temp", Float64), Field("sky", String, default="unknown")],
)
route_stats = FeatureView(
    "route_stats", entities=[route], source=flights, schema=[Field("distance", Int32), Field("flights", Int64)]
)
every_type = FeatureView(
    "every_type",
    entities=[plane],
    source=weather,
    schema=[
        Field("i32", Int32),
        Field("i64", Int64),
        Field("f32", Float32),
        Field("f64", Float64),
        Field("flag", Bool),
        Field("text", String),
        Field("raw", Bytes),
        Field("moment", Timestamp),
        Field("day", Date),
        Field("money", Decimal(20, 4)),
        Field("longs", Array(Int64)),
        Field("nested", Array(Array(String))),
    ],
)
offline_only = FeatureView(
    "offline_only", entities=[carrier], source=weather, schema=[Field("secret", Int64)], online=False
)

request = RequestSource("request", [Field("scheduled", Timestamp), Field("factor", Float64)])


@on_demand_feature_view(
    sources=[carrier_profile[["last_delay"]], request],
    schema=[Field("scaled_delay", Float64), Field("hour", Int64, default=-1)],
)
def delay_now(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The last delay by a factor, and the hour of the scheduled departure."""
    delays = zip(inputs["last_delay"], inputs["factor"], strict=True)
    return {
        "scaled_delay": [None if delay is None or factor is None else delay * factor for delay, factor in delays],
        "hour": [None if moment is None else moment.hour for moment in inputs["scheduled"]],
    }


@on_demand_feature_view(
    sources=[airport_weather.with_join_keys({"airport": "dest"})], schema=[Field("warm", Bool)], mode="pandas"
)
def dest_is_warm(inputs: pd.DataFrame) -> pd.DataFrame:
    """Whether it is warm where the flight goes."""
    return pd.DataFrame({"warm": inputs["temp"] > 20})


origin_weather = airport_weather.with_name("origin_weather").with_join_keys({"airport": "origin"})
dest_weather = airport_weather.with_name("dest_weather").with_join_keys({"airport": "dest"})
delay_model = FeatureService("delay_model", [carrier_profile, route_stats[["distance"]], delay_now, origin_weather])

DEFINITIONS = [
    carrier_profile,
    airport_weather,
    route_stats,
    every_type,
    offline_only,
    delay_now,
    dest_is_warm,
    delay_model,
]


def small_project(tmp_path: Path, *, online_url: str | None = None, now: Any = NOW) -> Workspace:
    """Return the project applied in ``tmp_path``, without any rows."""
    return make_workspace(tmp_path, DEFINITIONS, online_url=online_url, now_us=now)


def open_small_project(folder: Path, *, now: Any = NOW) -> Workspace:
    """Return the project that `small_project` made in a folder, or a copy of it."""
    settings = make_settings({"project": "shop", "online_store": "lmdb:///data/online"})
    return Workspace(folder, settings, code=DEFINITIONS, clock=ManualClock(now))
