"""A registry that holds something for every page of the catalog, and one whose every text is an attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from featurestore_registry.documents import (
    EDGES,
    MONITOR,
    QUANTILES,
    RUN,
    RUN_START,
    STATISTICS,
    WATERMARK,
    BinsDocument,
    ColumnStatistics,
    EdgesDocument,
    PublishedDocument,
    RunDocument,
    SavedFrame,
    SavedRead,
    StatisticsDocument,
    WatermarkDocument,
)
from featurestore_registry.findings import (
    MATCHES,
    ComparedLine,
    DriftCause,
    MonitorAlarm,
    MonitorDocument,
    WatchedFeature,
)
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change, Record, RecordField
from featurestore_registry.sql import open_registry

from featurestore import (
    Aggregation,
    Drift,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    MatchRate,
    Monitor,
    ParquetSource,
    PushSource,
    RequestSource,
    ServedLog,
    on_demand_feature_view,
)
from featurestore.definitions import Definition
from featurestore.ledger.consumers import Consumer, add_consumer
from featurestore.ledger.saved_sets import SavedSet, add_set
from featurestore.registered.records import to_record
from featurestore.types import Float64, Int64, String
from support.clock import ManualClock

PROJECT, OTHER, HOSTILE = "rides", "payments", "hostile"
NOW = "2026-03-02T12:00:00Z"
HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
OWNER = "mobility"
HTML = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&{{7919*6007}}'; DROP TABLE registry_record;--\u202egnp"
"""What no page may obey."""

driver = Entity("driver", join_keys={"driver_id": Int64}, description="Whoever drives", owner=OWNER)
customer = Entity("customer", join_keys={"customer_id": Int64}, owner="growth")
trips = ParquetSource(
    "trips",
    path="data/trips.parquet",
    timestamp_field="ended_at",
    created_timestamp_field="recorded_at",
    description="Trips as they ended",
    tags={"system": "dispatch"},
)
trips_live = PushSource("trips_live", batch_source=trips, description="A trip that has just ended")
ride = RequestSource("ride", schema=[Field("distance", Float64, description="km to go")], description="The ride itself")

STATS_SQL = """
    SELECT driver_id, ended_at, recorded_at,
           rating AS last_rating, city
    FROM trips
"""


def driver_stats(*, ttl: timedelta, sql: str = STATS_SQL, more: Sequence[Field] = ()) -> FeatureView:
    return FeatureView(
        "driver_stats",
        entities=[driver],
        source=trips,
        ttl=ttl,
        schema=[
            Field("last_rating", Float64, description="stars of the last trip", tags={"scale": "1-5"}),
            Field("city", String, description="where it ended"),
            *more,
        ],
        sql=sql,
        description="The driver's last trip",
        owner=OWNER,
        tags={"team": "eta", "tier": "gold"},
    )


driver_recent = FeatureView(
    "driver_recent",
    entities=[driver],
    source=trips_live,
    schema=[Field("trip_id", Int64), Field("fare", Float64, description="what was paid")],
    event_id="trip_id",
    aggregations=[
        Aggregation("fare", "mean", windows=[timedelta(hours=1), timedelta(days=1), timedelta(days=30)]),
        Aggregation("*", "count", windows=[timedelta(days=7)], name="long", where="fare > 40"),
    ],
    description="What the driver earned lately",
    owner=OWNER,
)
customer_profile = FeatureView(
    "customer_profile",
    entities=[customer],
    source=trips,
    schema=[
        Field("age", Int64, description="years", tags={"personal": "yes"}),
        Field("segment", String, deprecated="use loyalty"),
    ],
    description="Who rides",
    owner="growth",
)
idle = FeatureView("idle", entities=[customer], source=trips, schema=[Field("unused", Int64)], statistics=False)
nightly = FeatureView("nightly", entities=[driver], source=trips, schema=[Field("night_trips", Int64)], owner=OWNER)
legacy = FeatureView("legacy_scores", entities=[driver], source=trips, schema=[Field("score", Float64)], owner=OWNER)
STATS = driver_stats(ttl=timedelta(days=2))
CHANGED_STATS = driver_stats(
    ttl=timedelta(days=1),
    sql=STATS_SQL.replace("rating AS last_rating", "avg(rating) AS last_rating"),
    more=[Field("trips_total", Int64, description="trips so far")],
)


@on_demand_feature_view(
    sources=[ride, CHANGED_STATS[["last_rating"]]],
    schema=[Field("rating_by_km", Float64, description="stars for each km")],
    owner=OWNER,
)
def ride_facts(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What the ride and the driver say together."""
    pairs = zip(inputs["last_rating"], inputs["distance"], strict=True)
    return {"rating_by_km": [rating / km if rating and km else None for rating, km in pairs]}


def services(stats: FeatureView, names: Sequence[str]) -> list[Definition]:
    return [
        FeatureService(name, features=[stats, driver_recent], description="Minutes until the ride ends", owner=OWNER)
        for name in names
    ]


rider_eta = FeatureService(
    "ride_eta_v2",
    features=[
        CHANGED_STATS,
        driver_recent,
        customer_profile.with_name("rider").with_join_keys({"customer_id": "rider_id"}),
        ride_facts,
    ],
    description="Minutes until the ride ends",
    owner=OWNER,
    log=ServedLog(sample=0.1),
)
ride_drift = Monitor(
    "ride_drift",
    service=rider_eta,
    baseline="january",
    checks=[Drift(), Drift("city", jensen_shannon=0.3, new_values=None), MatchRate(0.999)],
    description="What the model of rides is asked with",
    owner=OWNER,
)
stats_drift = Monitor("stats_drift", view=CHANGED_STATS, baseline=timedelta(days=28), owner=OWNER)
night_drift = Monitor("night_drift", view=nightly, baseline=timedelta(days=28), window=timedelta(hours=12))


def put(project: str, *definitions: Definition) -> list[Change]:
    records = [to_record(project, each) for each in definitions]
    return [Change("put", record.kind, record.name, record) for record in records]


@contextmanager
def filled(folder: Path) -> Iterator[Registry]:
    clock = ManualClock(0)
    with open_registry(f"sqlite:///{folder}/registry.db", clock=clock) as registry:
        fill(registry, clock)
        yield registry


def fill(registry: Registry, clock: ManualClock) -> None:
    """Write everything, as of NOW at the end; the clock is the registry's."""
    clock.set(NOW)
    now_us = clock()
    definitions = registry.definitions
    clock.advance(-timedelta(days=40))
    common = (driver, customer, trips, trips_live, ride, driver_recent, customer_profile, idle, nightly)
    chain = definitions.apply(
        PROJECT,
        "",
        put(PROJECT, *common, legacy, STATS, *services(STATS, ["ride_eta_v1"])),
        author="ada@example.com",
        message="First features of the ride model",
        commit="4f2a91c",
    )
    clock.advance(timedelta(days=30))
    chain = definitions.apply(
        PROJECT,
        chain.head,
        put(PROJECT, CHANGED_STATS, *services(CHANGED_STATS, ["ride_eta_v1"]), ride_facts),
        author="grace@example.com",
        message="Mean rating; trips so far",
        commit="9be0d17-dirty",
    )
    clock.advance(timedelta(days=9))
    definitions.apply(
        PROJECT,
        chain.head,
        [
            Change("delete", "feature_view", "legacy_scores"),
            *put(PROJECT, rider_eta, ride_drift, stats_drift, night_drift),
        ],
        author="ada@example.com",
        message="",
        commit="",
    )
    definitions.apply(OTHER, "", put(OTHER, customer), author="eve", message="", commit="")
    clock.set(NOW)
    _runs(registry, now_us)
    add_consumer(
        registry.ledger, PROJECT, Consumer("eta_model", ("ride_eta_v1",), owner="ada@example.com", description="ETA")
    )
    add_set(registry.ledger, PROJECT, saved_set("january"))
    registry.ledger.append(PROJECT, STATISTICS, "training_set:january", asdict(set_statistics(now_us)))
    _findings(registry, now_us)
    told = {"action": "apply", "by": "ada@example.com", "token": "of-ada", "revision": 3}
    registry.journal.append(PROJECT, "audit", [("apply", told)])
    registry.journal.append(PROJECT, "serving", [("web-1", {
        "instance": "web", "process": 1, "host": "web-1.example", "version": "0.1.0", "revision": 3,
        "hash": definitions.chain(PROJECT).head, "code": {},
    })])  # fmt: skip
    fill_hostile(registry)


def run(view: str, number: int, started_us: int, **more: Any) -> RunDocument:
    return RunDocument(**{
        "run_id": f"{view}-{number}", "view": view, "generation": 1, "kind": "incremental", "state": "done",
        "started_us": started_us, "host": "worker", "pid": 7, "read": 1_000 + 100 * number, "appended": 900 + number,
        "duration_ms": 700 + 90 * number, "published": PublishedDocument(written=250), **more,
    })  # fmt: skip


def _runs(registry: Registry, now_us: int) -> None:
    ledger = registry.ledger

    def ended(made: RunDocument) -> None:
        ledger.append(PROJECT, RUN_START, made.view, asdict(replace(made, state="running", duration_ms=None)))
        ledger.append(PROJECT, RUN, made.view, asdict(made))

    def committed(view: str, newest_us: int, rows: int) -> None:
        mark = WatermarkDocument(
            intervals=((now_us - 40 * DAY_US, newest_us),), table_version=12, published_version=12,
            offline_rows=rows, online_rows=250, greatest_event_us=newest_us,
        )  # fmt: skip
        document = asdict(mark)
        del document["source_begun_us"]
        ledger.append(PROJECT, WATERMARK, f"{view}.1", document)

    for number in range(12):  # stale: its newest event is older than its ttl
        at_us = now_us - (14 - number) * DAY_US
        ended(run("driver_stats", number, at_us, **({"state": "failed", "error": "boom"} if number == 4 else {})))
        if number != 4:
            found = statistics(f"driver_stats-{number}", at_us, 900 + number, city_nulls=10 * number)
            ledger.append(PROJECT, STATISTICS, "driver_stats.1", asdict(found))
    committed("driver_stats", now_us - 3 * DAY_US, 10_840)
    stars = BinsDocument(points=(5.0,), edges=(1.0, 2.0, 3.0, 4.0, 5.0), rows=900, made_us=now_us)
    ledger.append(PROJECT, EDGES, "driver_recent.1", asdict(EdgesDocument({"fare_mean_1h": stars})))
    ledger.append(PROJECT, EDGES, "ride_facts.0", asdict(EdgesDocument({"rating_by_km": stars})))
    ledger.append(PROJECT, EDGES, "driver_stats.1", asdict(EdgesDocument({
        "last_rating": stars,
        "city": BinsDocument(points=("Berlin", "Lima"), rows=900, made_us=now_us),
    })))  # fmt: skip
    ended(run("driver_recent", 1, now_us - HOUR_US))
    committed("driver_recent", now_us - HOUR_US // 2, 52_000)
    for view, begun_us in (("driver_recent", now_us - 5_000_000), ("nightly", now_us - 9 * HOUR_US)):
        begun = run(view, 9, begun_us, state="running", duration_ms=None)
        ledger.append(PROJECT, RUN_START, view, asdict(begun))  # one is under way, the other's process was killed
    lease = {"holder": "driver_recent-9", "expires_us": now_us + 30_000_000, "released": False}
    ledger.append(PROJECT, "lease", "driver_recent", lease)
    ended(run("customer_profile", 1, now_us - 2 * DAY_US))
    committed("customer_profile", now_us - 2 * DAY_US, 4_000)
    failed = "The column 'segment' of data/trips.parquet is gone."
    ended(run("customer_profile", 2, now_us - HOUR_US, state="failed", error=failed))


def _findings(registry: Registry, now_us: int) -> None:
    for number in range(6):
        at_us = now_us - (5 - number) * DAY_US - HOUR_US
        state = ("ok", "ok", "not judged", "ok", "watch", "alarm")[number]
        found = finding("ride_drift", "feature_service:ride_eta_v2", at_us, state=state)
        found = found if state == "alarm" else replace(found, alarms=())
        registry.ledger.append(PROJECT, MONITOR, "ride_drift", asdict(found))
    quiet = finding("stats_drift", "feature_view:driver_stats", now_us - 2 * HOUR_US, state="ok")
    quiet = replace(quiet, features=(watched("city"), watched("last_rating")), alarms=(), match_rate=None)
    registry.ledger.append(PROJECT, MONITOR, "stats_drift", asdict(quiet))


def finding(monitor: str, target: str, made_us: int, **more: Any) -> MonitorDocument:
    """An alarm for a city, something too far of a rating, and nothing of the others."""
    spread = ComparedLine("jensen_shannon", 0.46, 0.31, "Jensen-Shannon distance 0.46", True, True)
    new = ComparedLine("new_values", 0.31, 0.01, "Montevideo: 31.0 %, before 0.0 %", True, True)
    mean = ComparedLine("shift", 0.62, 0.52, "mean 3.7, before 4.1: 0.62 deviations", True)
    cities = (("Berlin", 0.61, 0.31), ("Lima", 0.27, 0.26), ("Montevideo", 0.0, 0.31), ("others", 0.12, 0.12))
    stars = tuple((f"{at} to {at + 1}", share, 0.25) for at, share in enumerate((0.05, 0.15, 0.3, 0.5), start=1))
    features = (
        watched("segment", state="not judged", lines=(), bars=(), not_judged="only 12 rows have a value"),
        watched("rating_by_km"),
        watched("last_rating", state="watch", lines=(mean,), bars=stars),
        watched("city", state="alarm", lines=(spread, new), bars=cities, causes=(
            DriftCause("segment", "segment 'south' of segment carries it: 92 % of the change is gone without it", 0.92),
            DriftCause("run", "it began with run driver_stats-11, the first to read data/trips_south.parquet", 0.8),
        )),
        watched("records of driver_stats", entities=0, baseline_entities=0),
        WatchedFeature(MATCHES, "ok", 4_200, lines=(ComparedLine("match_rate", 0.0, 0.001, "none of 4,200 differ"),)),
    )  # fmt: skip
    alarms = (MonitorAlarm("5e1f00c0ffee", "city", "jensen_shannon", spread.told, made_us - DAY_US, made_us),)
    told = {
        "state": "alarm", "start_us": made_us - DAY_US, "until_us": made_us, "baseline": "training set 'january'",
        "rows": 4_200, "features": features, "alarms": alarms, "match_rate": 1.0, "models": ("eta_model",), **more,
    }  # fmt: skip
    return MonitorDocument(monitor, target, made_us=made_us, **told)


def watched(name: str, **more: Any) -> WatchedFeature:
    psi = ComparedLine("psi", 0.02, 0.22, "PSI 0.02, of which chance may be 0.02")
    told = {"state": "ok", "rows": 4_200, "entities": 900, "baseline_rows": 12_000, "baseline_entities": 2_000}
    return WatchedFeature(name, **{**told, "lines": (psi,), "bars": (("1 to 5", 0.9, 0.88), ("5", 0.1, 0.12)), **more})


def statistics(run_id: str, made_us: int, rows: int, *, city_nulls: int) -> StatisticsDocument:
    spread = tuple(round(1 + 4 * share, 2) for share in QUANTILES)
    counts = (0, rows // 20, rows // 10, rows // 4, rows // 2, 0)
    return StatisticsDocument(
        made_us,
        rows,
        rows,
        (
            ColumnStatistics("driver_id", "Int64", role="key", rows=rows, distinct=250, is_hidden=True),
            ColumnStatistics(
                "last_rating", "Float64", rows=rows, nulls=rows // 50, distinct=40, minimum=1.0, maximum=5.0,
                mean=4.1 + city_nulls / 1000, deviation=0.6, quantiles=spread, bins=1, at_points=(rows // 12,),
                in_bins=counts,
            ),
            ColumnStatistics(
                "city", "String", rows=rows, nulls=city_nulls, distinct=7, top=(("Berlin", rows // 2), ("Lima", 90)),
                bins=1, at_points=(rows // 2, 90), elsewhere=rows // 3,
            ),
        ),
        run_id=run_id,
    )  # fmt: skip


def set_statistics(made_us: int) -> StatisticsDocument:
    """Of a training set, with a windowed feature and one that is computed on demand."""
    found = statistics("", made_us, 12_000, city_nulls=40)
    (rating,) = [column for column in found.columns if column.name == "last_rating"]
    names = {"fare_mean_1h": "driver_recent.1", "rating_by_km": "ride_facts.0"}
    more = [replace(rating, name=name, feature=f"{key}:{name}", not_finite=900) for name, key in names.items()]
    own = [replace(column, feature=f"driver_stats.1:{column.name}") for column in found.columns if column.role != "key"]
    return replace(found, columns=(*own, *more))


def saved_set(name: str) -> SavedSet:
    view = {
        "name": "driver_stats", "view": "driver_stats", "generation": 1, "table_version": 12, "as_of": "available",
        "availability": "by recorded_at", "rests_on": "", "features": ["last_rating", "city"],
        "nulls": {"null_key": 3, "no_entity": 40, "nothing_before": 8, "not_yet_available": 2, "expired": 120},
        "null_values": {"last_rating": 11, "city": 0}, "greatest_age_us": 2 * DAY_US, "from_future": 0,
        "not_covered": 0, "windows": 0, "own_events": 0, "held_back": 0, "overflowed": {},
    }  # fmt: skip
    certificate = {
        "project": PROJECT, "registry_revision": 2, "rows": 12_000, "features": ["last_rating", "city"],
        "views": [view], "on_demand": {"ride_facts": "ee" * 16}, "rows_after_now": 0, "recomputed_rows": 1_000,
        "certified_at": "2026-02-24T09:30:00Z",
    }  # fmt: skip
    return SavedSet(
        name,
        2,
        ({"view": "driver_stats", "features": ["last_rating", "city"]},),
        False,
        tuple(SavedRead(view, view, 1, 12, "available") for view in ("driver_stats", "driver_recent")),
        SavedFrame("pandas", f"{PROJECT}/_training_sets/ab12.arrow", "ab" * 32, "event_timestamp"),
        "cd" * 32,
        certificate,
    )


def fill_hostile(registry: Registry) -> None:
    """A project each of whose texts is HTML, SQL, a template and a character that turns text around."""
    tags = {HTML: HTML}
    fields = (RecordField(HTML, HTML, HTML, tags, (f"{HTML}.{HTML}",)),)
    documents = {
        "feature_view": {
            "entities": [HTML], "sources": [["source", HTML]], "sql": HTML, "ttl_us": 1, "online": True,
            "schema": [{"name": HTML, "type": HTML, "description": HTML, "tags": tags, "default": HTML,
                        "deprecated": HTML}],
            "aggregations": [{"name": HTML, "column": HTML, "function": HTML, "windows_us": [1, None],
                              "resolution_us": None, "where": HTML, "n": None}],
            "event_id": HTML, "generation": 1, "deprecated": HTML,
        },
        "on_demand_feature_view": {"inputs": [{"request": HTML}], "schema": [], "mode": HTML, "code": HTML,
                                   "code_hash": HTML},
        "feature_service": {"features": [{"view": HTML, "features": [HTML], "name": HTML, "join_keys": {HTML: HTML}}]},
        "entity": {"join_keys": [[HTML, HTML]]},
        "source": {"format": HTML, "path": HTML, "timestamp_field": HTML, "created_timestamp_field": HTML,
                           "allowed_lateness_us": 0},
        "push_source": {"batch_source": HTML},
        "request_source": {"schema": [{"name": HTML, "type": HTML, "description": HTML, "tags": {}, "default": None}]},
        "monitor": {"target": ["feature_service", HTML], "baseline": {"training_set": HTML}, "window_us": 10**30,
                    "checks": [{"kind": "drift", "features": [HTML], "psi": 10**400, "nulls": HTML},
                               {"kind": HTML, HTML: HTML}]},
        HTML: {HTML: [HTML, {HTML: None}]},
    }  # fmt: skip
    records = [
        Record(kind, HOSTILE, HTML, document, "f", fields, ("entity:" + HTML,), HTML, tags, HTML)
        for kind, document in documents.items()
    ]
    chain = registry.definitions.apply(
        HOSTILE,
        "",
        [Change("put", record.kind, record.name, replace(record, description="")) for record in records],
        author=HTML,
        message=HTML,
        commit=HTML,
    )
    registry.definitions.apply(
        HOSTILE,
        chain.head,
        [Change("put", record.kind, record.name, record) for record in records],
        author=HTML,
        message=HTML,
        commit=HTML,
    )
    ledger = registry.ledger
    ledger.append(HOSTILE, RUN, HTML, asdict(replace(run(HTML, 1, 1), state="failed", error=HTML, host=HTML)))
    ledger.append(HOSTILE, WATERMARK, f"{HTML}.1", {"intervals": HTML})
    column = ColumnStatistics(HTML, HTML, rows=3, distinct=1, minimum=HTML, maximum=HTML, top=((HTML, 3),))
    ledger.append(HOSTILE, STATISTICS, f"{HTML}.1", asdict(StatisticsDocument(1, 3, 3, (column,), HTML, HTML, HTML)))
    told = StatisticsDocument(1, 3, 3, (replace(column, distinct=10**400, mean=1.0),))
    ledger.append(HOSTILE, STATISTICS, f"{HTML}.1", asdict(told))  # what no float holds
    ledger.append(HOSTILE, RUN, HTML, asdict(replace(run(HTML, 2, 1), appended=10**400)))
    line, shares = ComparedLine(HTML, -1e300, 1e300, HTML, True, True), ((HTML, 0.5, 0.25), (HTML, 1e300, 0.0))
    named = WatchedFeature(
        HTML, "alarm", -5, 2**62, lines=(line,), bars=shares, causes=(DriftCause(HTML, HTML, 1e300),)
    )
    odd = replace(named, name=f"records of {HTML}", bars=((HTML, -0.5, 1.0),), state="watch")
    planted = MonitorDocument(HTML, HTML, "alarm", 2**62, -(2**62), 2**62, HTML, 7, (named, odd), models=(HTML,))
    planted = replace(planted, alarms=(MonitorAlarm(HTML, HTML, HTML, HTML, -(2**62)),), match_rate=-1e300)
    ledger.append(HOSTILE, MONITOR, HTML, asdict(replace(planted, rows=10**400)))
    ledger.append(HOSTILE, MONITOR, HTML, asdict(planted))
    add_consumer(ledger, HOSTILE, Consumer(HTML, (HTML,), HTML, HTML))
    made = saved_set(HTML)
    certificate = {**made.certificate, "features": [HTML], "on_demand": {HTML: HTML}, "certified_at": HTML}
    add_set(ledger, HOSTILE, replace(made, certificate=certificate, fingerprint=HTML))
    registry.journal.append(HOSTILE, "audit", [(HTML, {"action": HTML, "by": HTML, "from": HTML, HTML: {HTML: HTML}})])
    server = {"instance": HTML, "process": 1, "host": HTML, "version": HTML, "revision": 1, "hash": HTML, "code": {}}
    registry.journal.append(HOSTILE, "serving", [(HTML, server)])
