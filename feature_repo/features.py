"""Will this flight arrive more than 15 minutes late? What can be known about it at its scheduled departure.

Event times are when something happened, not when it was planned: an arrival delay belongs to the minute in which
the plane landed. Dated by the departure it would tell a model the future, and look excellent until it is used.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
    PushSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.types import Float64, Int64, String, Timestamp

OWNER = "flight-ops"

# Entities: what features are about

carrier = Entity("carrier", join_keys={"carrier": String}, description="Airline, by IATA code", owner=OWNER)
airport = Entity("airport", join_keys={"airport": String}, description="Airport, by FAA code", owner=OWNER)
plane = Entity("plane", join_keys={"tailnum": String}, description="Plane, by tail number", owner=OWNER)
origin = Entity("origin", join_keys={"origin": String}, description="Airport that flights leave", owner=OWNER)
destination = Entity("destination", join_keys={"dest": String}, description="Airport that flights reach", owner=OWNER)
route = Entity("route", join_keys={"origin": String, "dest": String}, description="From where to where", owner=OWNER)

# Sources: written by make_sources.py

flights = ParquetSource(
    "flights",
    path="data/flights.parquet",
    timestamp_field="arrived_at",
    created_timestamp_field="recorded_at",
    description="Flights from New York as they landed; those that never did have no event time and are left out",
)
take_offs = ParquetSource(
    "take_offs",
    path="data/flights.parquet",
    timestamp_field="departed_at",
    description="The same flights as they took off: a departure delay is known hours before the arrival delay",
)
weather = ParquetSource(
    "weather",
    path="data/weather.parquet",
    timestamp_field="observed_at",
    created_timestamp_field="recorded_at",
    description="Hourly weather at the three airports of New York; some hours are missing",
)
planes = ParquetSource("planes", path="data/planes.parquet", timestamp_field="known_since")
airports = ParquetSource("airports", path="data/airports.parquet", timestamp_field="known_since")
airlines = ParquetSource("airlines", path="data/airlines.parquet", timestamp_field="known_since")

# Where flights are pushed the moment they take off and land; the file has them later

landings = PushSource("landings", batch_source=flights, description="A flight that has just landed")
departures = PushSource("departures", batch_source=take_offs, description="A flight that has just taken off")

# Feature views: what is known, since when, and for how long it means anything

carrier_profile = FeatureView(
    "carrier_profile",
    entities=[carrier],
    source=airlines,  # no schema: `fs apply` reads it from the file
    description="The airline's name",
    owner=OWNER,
)

carrier_delays = FeatureView(
    "carrier_delays",
    entities=[carrier],
    source=flights,
    ttl=timedelta(days=7),
    schema=[Field("last_delay", Float64, description="minutes late, negative when early")],
    sql="""
        SELECT carrier, arrived_at, recorded_at, arr_delay AS last_delay
        FROM flights
        WHERE arr_delay IS NOT NULL
    """,
    description="The airline's last landing",
    owner=OWNER,
)

route_delays = FeatureView(
    "route_delays",
    entities=[route],
    source=flights,
    ttl=timedelta(days=7),
    schema=[
        Field("last_delay", Float64, description="minutes late, negative when early"),
        Field("last_air_time", Float64, description="minutes"),
        Field("miles", Int64, description="distance between the two airports"),
    ],
    sql="""
        SELECT origin, dest, arrived_at, recorded_at,
               arr_delay AS last_delay, air_time AS last_air_time, distance AS miles
        FROM flights
        WHERE arr_delay IS NOT NULL
    """,
    description="The last landing of a flight from one airport to the other",
    owner=OWNER,
)

airport_departures = FeatureView(
    "airport_departures",
    entities=[airport],
    source=take_offs,
    ttl=timedelta(hours=12),
    schema=[Field("last_dep_delay", Float64, description="minutes, negative when before time")],
    sql="SELECT origin AS airport, departed_at, dep_delay AS last_dep_delay FROM take_offs",
    description="The last take-off at an airport",
    owner=OWNER,
)

airport_weather = FeatureView(
    "airport_weather",
    entities=[airport],
    source=weather,
    ttl=timedelta(hours=3),
    schema=[
        Field("temp", Float64, description="degrees Fahrenheit"),
        Field("wind_speed", Float64, description="miles per hour"),
        Field("precip", Float64, description="inches in the hour"),
        Field("visib", Float64, description="miles", default=10.0),
    ],
    sql="SELECT origin AS airport, observed_at, recorded_at, temp, wind_speed, precip, visib FROM weather",
    description="The weather as it was last reported, an hour after it was observed",
    owner=OWNER,
)

airport_profile = FeatureView(
    "airport_profile",
    entities=[airport],
    source=airports,
    schema=[
        Field("lat", Float64, description="degrees north"),
        Field("lon", Float64, description="degrees east"),
        Field("alt", Int64, description="feet above the sea"),
    ],
    sql="SELECT faa AS airport, known_since, lat, lon, alt FROM airports",
    description="Where an airport lies; four destinations are not in the list",
    owner=OWNER,
)

plane_profile = FeatureView(
    "plane_profile",
    entities=[plane],
    source=planes,
    schema=[
        Field("year", Int64, description="when it was built"),
        Field("seats", Int64),
        Field("engines", Int64),
        Field("manufacturer", String),
    ],
    description="The plane itself, as its file has it",
    owner=OWNER,
)

plane_status = FeatureView(
    "plane_status",
    entities=[plane],
    source=[flights, airports],
    ttl=timedelta(days=30),
    schema=[
        Field("last_delay", Float64, description="minutes late; null where the flight was diverted"),
        Field("last_airport", String, description="where it last landed"),
        Field("last_lat", Float64, description="degrees north"),
        Field("last_lon", Float64, description="degrees east"),
        Field("last_landed_at", Timestamp),
    ],
    sql="""
        SELECT flights.tailnum, flights.arrived_at, flights.recorded_at,
               flights.arr_delay AS last_delay,
               flights.dest AS last_airport, airports.lat AS last_lat, airports.lon AS last_lon,
               flights.arrived_at AS last_landed_at
        FROM flights LEFT JOIN airports ON flights.dest = airports.faa
    """,
    description="Where and how late the plane last landed; its flights to New York are not in the data",
    owner=OWNER,
)

# Windows: delays over the last hour, day, week and month, at any instant. Each flight is an event; its number in the
# list tells it from the others, so that one that is pushed and later read from the file counts once.

RECENT = [timedelta(hours=1), timedelta(hours=24), timedelta(days=7), timedelta(days=30)]
LANDED = [Field("flight_id", Int64), Field("arr_delay", Float64, description="minutes late, negative when early")]
DELAYS = [Aggregation("arr_delay", "mean", windows=RECENT)]

carrier_recent = FeatureView(
    "carrier_recent",
    entities=[carrier],
    source=landings,
    schema=LANDED,
    event_id="flight_id",
    aggregations=[*DELAYS, Aggregation("*", "count", windows=RECENT[:2], name="late", where="arr_delay > 15")],
    description="How late the airline's flights have landed lately",
    owner=OWNER,
)

dest_recent = FeatureView(
    "dest_recent",
    entities=[destination],
    source=landings,
    schema=LANDED,
    event_id="flight_id",
    aggregations=DELAYS,
    description="How late flights from New York have landed there lately",
    owner=OWNER,
)

plane_recent = FeatureView(
    "plane_recent",
    entities=[plane],
    source=landings,
    schema=LANDED,
    event_id="flight_id",
    aggregations=DELAYS,
    description="How late the plane has landed lately",
    owner=OWNER,
)

origin_recent = FeatureView(
    "origin_recent",
    entities=[origin],
    source=departures,
    schema=[Field("flight_id", Int64), Field("dep_delay", Float64, description="minutes, negative when before time")],
    event_id="flight_id",
    aggregations=[Aggregation("dep_delay", "mean", windows=RECENT)],
    description="How late flights have taken off there lately",
    owner=OWNER,
)

# On demand: computed when it is read, from stored features and from what the caller brings

departure = RequestSource(
    "departure",
    schema=[
        Field("sched_dep", Timestamp, description="scheduled departure"),
        Field("distance", Int64, description="miles to fly"),
    ],
    description="What is known of the flight itself: columns of a training frame, request data of an online read",
)


@on_demand_feature_view(
    sources=[departure, plane_profile[["seats"]], plane_status[["last_landed_at"]]],
    schema=[
        Field("minutes_since_landing", Float64, description="from the plane's last landing to this departure"),
        Field("miles_per_seat", Float64),
    ],
    owner=OWNER,
)
def departure_facts(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """How long the plane has been down, and how far it goes for its size."""
    minute = timedelta(minutes=1)
    landings = zip(inputs["sched_dep"], inputs["last_landed_at"], strict=True)
    sizes = zip(inputs["distance"], inputs["seats"], strict=True)
    return {
        "minutes_since_landing": [None if None in pair else (pair[0] - pair[1]) / minute for pair in landings],
        "miles_per_seat": [distance / seats if distance and seats else None for distance, seats in sizes],
    }


# Feature service: what one model reads, in training and in serving. Views that are read for one end of the flight
# or the other carry its name; so their features differ only in full ("dest_airport__alt"): read it with full names.

departure_delay_v1 = FeatureService(
    "departure_delay_v1",
    features=[
        carrier_delays,
        route_delays,
        plane_status[["last_delay", "last_airport"]],
        plane_profile[["year", "seats"]],
        airport_departures.with_name("origin_departures").with_join_keys({"airport": "origin"}),
        airport_weather.with_name("origin_weather").with_join_keys({"airport": "origin"}),
        airport_profile.with_name("origin_airport").with_join_keys({"airport": "origin"})[["alt"]],
        airport_profile.with_name("dest_airport").with_join_keys({"airport": "dest"}),
        carrier_recent,
        dest_recent,
        plane_recent,
        origin_recent,
        departure_facts,
    ],
    description="At scheduled departure: will this flight arrive more than 15 minutes late?",
    owner=OWNER,
)
