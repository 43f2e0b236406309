"""Will this flight land more than 15 minutes late? What is known of it when the board of its three hours is made up.

Flights and weather arrive as a file each night: `recorded_at` is that night. So a training set knows of a landing from
the morning after on, as the server does.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from featurestore import (
    Aggregation,
    Between,
    Drift,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    Label,
    MatchRate,
    ModelMetric,
    Monitor,
    NotNull,
    ParquetSource,
    RequestSource,
    Rows,
    ServedLog,
    on_demand_feature_view,
)
from featurestore.types import Bool, Float64, Int64, String, Timestamp

OWNER = "flight-ops"
NEW_YORK = ZoneInfo("America/New_York")
TRAINED_ON = "delays_1"  # the model that is served, and its training set

plane = Entity("plane", join_keys={"tailnum": String}, owner=OWNER)
carrier = Entity("carrier", join_keys={"carrier": String}, owner=OWNER)
origin = Entity("origin", join_keys={"origin": String}, owner=OWNER)
flight = Entity("flight", join_keys={"flight_id": Int64}, description="One departure of one day", owner=OWNER)

take_offs = ParquetSource(
    "take_offs",
    path="data/take_offs/*.parquet",
    timestamp_field="departed_at",
    created_timestamp_field="recorded_at",
    description="A file each night: how late flights took off",
)
landings = ParquetSource(
    "landings",
    path="data/landings/*.parquet",
    timestamp_field="arrived_at",
    created_timestamp_field="recorded_at",
    description="A file each night: how late flights landed",
)
observations = ParquetSource(
    "observations",
    path="data/observations/*.parquet",
    timestamp_field="observed_at",
    created_timestamp_field="recorded_at",
    description="A file each night: the weather of each hour",
)

plane_last = FeatureView(
    "plane_last",
    entities=[plane],
    source=take_offs,
    ttl=timedelta(days=14),
    schema=[Field("dep_delay", Float64, description="minutes, negative when before time")],
    description="The plane's last take-off",
    owner=OWNER,
)

DAY, WEEK = timedelta(days=1), timedelta(days=7)
TIMES_OF_TAKE_OFFS = [Field("flight_id", Int64), Field("dep_delay", Float64)]
TIMES_OF_LANDINGS = [Field("flight_id", Int64), Field("arr_delay", Float64)]

origin_recent = FeatureView(
    "origin_recent",
    entities=[origin],
    source=take_offs,
    schema=TIMES_OF_TAKE_OFFS,
    event_id="flight_id",
    aggregations=[Aggregation("dep_delay", "mean", name="origin_delay", windows=[DAY])],
    description="How late flights have taken off there",
    owner=OWNER,
)
carrier_recent = FeatureView(
    "carrier_recent",
    entities=[carrier],
    source=landings,
    schema=TIMES_OF_LANDINGS,
    event_id="flight_id",
    aggregations=[Aggregation("arr_delay", "mean", name="carrier_delay", windows=[DAY, WEEK])],
    description="How late the airline's flights have landed",
    owner=OWNER,
)
weather = FeatureView(
    "weather",
    entities=[origin],
    source=observations,
    ttl=timedelta(days=2),
    schema=[
        Field("wind_speed", Float64, description="mph", expect=[Between(0, 150)]),
        Field("visib", Float64, description="miles", expect=[Between(0, 100), NotNull(max_share=0.5)]),
        Field("pressure", Float64, description="millibar"),
    ],
    expect=[Rows(at_least=20)],
    on_failure="quarantine",
    description="The last weather of the evening before",
    owner=OWNER,
)

outcome = FeatureView(
    "outcome",
    entities=[flight],
    source=landings,
    schema=[Field("late", Bool, description="more than 15 minutes")],
    online=False,
    description="How it went: the label",
    owner=OWNER,
)

departure = RequestSource(
    "departure",
    schema=[Field("flight_id", Int64), Field("sched_dep", Timestamp), Field("distance", Int64, description="miles")],
    description="What the board says",
)


@on_demand_feature_view(
    sources=[departure], schema=[Field("hour", Float64, description="in New York"), Field("miles", Float64)]
)
def departure_facts(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """When it is to leave, by the clock in New York: delays add up over the day, and in UTC the hour would drift."""
    local = [None if at is None else at.astimezone(NEW_YORK) for at in inputs["sched_dep"]]
    return {
        "hour": [None if at is None else at.hour + at.minute / 60 for at in local],
        "miles": [None if miles is None else float(miles) for miles in inputs["distance"]],
    }


delays_v1 = FeatureService(
    "delays_v1",
    features=[plane_last, origin_recent, carrier_recent, weather, departure_facts],
    log=ServedLog(sample=1.0, retention=timedelta(days=90), keys="plain"),
    description="Will this flight land more than 15 minutes late?",
    owner=OWNER,
)

delays = Monitor(
    "delays",
    service=delays_v1,
    baseline=TRAINED_ON,
    window=WEEK,
    checks=[
        Drift(),
        MatchRate(at_least=0.999),
        ModelMetric(
            "log_loss",
            Label("outcome:late", horizon=timedelta(hours=36)),
            prediction="late",
            at_most=0.7,
            model=TRAINED_ON,
        ),
    ],
    owner=OWNER,
)
