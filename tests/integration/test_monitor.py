"""Monitors over real runs and a real server: what is ok, what is watched, what is an alarm and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.serving import serving_here

from featurestore import Drift, FeatureStore
from featurestore.errors import DefinitionError, InputError, NotFoundError
from featurestore.quality.report import MonitorResult
from featurestore.types.times import to_datetime

DRIVERS, DAYS = 260, 8
FEATURES = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64, String

driver = Entity("driver", join_keys={"driver_id": Int64})
rides_file = ParquetSource("rides_file", "data/rides", "at")
ratings = FeatureView(
    "ratings", entities=[driver], source=rides_file, ttl=timedelta(days=7),
    schema=[Field("rating", Float64), Field("trips", Int64), Field("city", String),
            Field("phone", String, tags={"personal": "true"})],
)
request = RequestSource("request", schema=[Field("km", Float64)])

@on_demand_feature_view(sources=[ratings[["trips"]], request], schema=[Field("per_trip", Float64)])
def per_trip(inputs):
    return {"per_trip": [k / t if t else None for k, t in zip(inputs["km"], inputs["trips"])]}

model = FeatureService("model", features=[ratings, per_trip], log=ServedLog(1.0, keys="hashed"))
by_set = Monitor("by_set", service=model, baseline="first", checks=[Drift(), MatchRate(0.99)], owner="ann")
by_time = Monitor("by_time", service=model, baseline=timedelta(days=2))
rows = Monitor("rows", view=ratings, baseline=timedelta(days=14))
"""


class World:
    """A project whose drivers have a row each day, and a server that is asked twice a day for all of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock, self.random = root, ManualClock("2024-03-01T00:00:00Z"), np.random.default_rng(1)
        self.asked, self.service = np.arange(DRIVERS), "model"
        (root / "data/rides").mkdir(parents=True)
        (root / "feature_store.yaml").write_text("project: taxi\nserved: {secret: long and random text}\n")
        (root / "features.py").write_text(FEATURES)
        for day in range(DAYS):
            self.rows(to_datetime(self.clock()) - timedelta(days=DAYS - day))
        with self.store() as store:
            store.apply()
            store.materialize_incremental()
            at = to_datetime(self.clock()) - pd.to_timedelta(self.random.uniform(0, 6, 2_000), "D")
            frame = {"driver_id": self.random.integers(0, DRIVERS, 2_000), "event_timestamp": at}
            frame["km"] = self.random.lognormal(2, 0.3, 2_000)
            store.get_historical_features(pd.DataFrame(frame), "model").save("first")

    def store(self) -> FeatureStore:
        return FeatureStore(self.root, clock=self.clock)

    def rows(self, at: Any, **changed: Callable[[Any], Any]) -> None:
        """Write a row for each driver."""
        columns: dict[str, Any] = {
            "driver_id": np.arange(DRIVERS),
            "at": [at - timedelta(minutes=int(m)) for m in self.random.integers(1, 1_000, DRIVERS)],
            "rating": self.random.normal(4.5, 0.3, DRIVERS),
            "trips": self.random.poisson(20, DRIVERS) + 1,
            "city": self.random.choice(["Ulm", "Bonn", "Kiel"], DRIVERS),
            "phone": [f"0{n}" for n in range(DRIVERS)],
        }
        columns |= {name: change(columns[name]) for name, change in changed.items()}
        pd.DataFrame(columns).to_parquet(self.root / f"data/rides/{at:%Y%m%dT%H%M%S}.parquet")

    def day(self, **changed: Callable[[Any], Any]) -> None:
        """Let a day pass: rows come in at its beginning and are served in three requests."""
        self.rows(to_datetime(self.clock()), **changed)
        with self.store() as store:
            store.materialize_incremental()
        for _ in range(2):
            self.clock.advance(timedelta(hours=8))
            self.serve()
        self.clock.advance(timedelta(hours=8))

    def serve(self) -> None:
        body: dict[str, Any] = {
            "feature_service": self.service,
            "entities": {"driver_id": self.asked.tolist()},
        }
        if self.service == "model":
            body["request_data"] = {"km": self.random.lognormal(2, 0.3, DRIVERS).tolist()}
        with serving_here(self.store().workspace) as client:
            assert client.post("/v1/online-features", json=body).status_code == 200

    def monitor(self, name: str) -> MonitorResult:
        with self.store() as store:
            return store.monitor(name)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def found(result: MonitorResult) -> dict[str, str]:
    return {each.name: each.state for each in result.document.features}


def times_60(values: Any) -> Any:
    return values * 60


def test_an_alarm_takes_two_windows_keeps_its_id_and_ends(world: World) -> None:
    for _ in range(2):
        world.day()
    fine = world.monitor("by_set")
    assert fine.state == "ok", str(fine)
    assert found(fine) == {
        "rating": "ok",
        "trips": "ok",
        "city": "ok",
        "per_trip": "ok",
        "served as known": "ok",
    }
    assert fine.document.rows == 2 * DRIVERS
    assert fine["rating"].rows == 2 * DRIVERS
    assert fine["rating"].entities == DRIVERS
    assert fine["rating"].baseline_rows == 2_000
    assert fine.document.match_rate == 1.0
    world.day(trips=times_60)
    first = world.monitor("by_set")
    assert (first.state, first.alarms) == ("watch", ())
    assert first["trips"].bars
    assert first["rating"].bars
    assert found(first)["trips"] == found(first)["per_trip"] == "watch"
    assert found(first)["rating"] == "ok"
    world.day(trips=times_60)
    second = world.monitor("by_set")
    assert second.state == "alarm"
    assert found(second)["trips"] == found(second)["per_trip"] == "alarm"
    assert str(second).count(second["trips"].lines[0].told) == 1
    assert [note.rpartition(": ")[2] for note in second.notes() if note.startswith("alarm ")] == ["trips", "per_trip"]
    causes = {each.name: each.causes for each in second.document.features}
    assert causes["trips"][0].kind == "unit"
    assert "multiplied by 60" in causes["trips"][0].told
    assert any(each.kind == "run" and "20240303T" in each.told for each in causes["trips"]), causes["trips"]
    assert causes["per_trip"][0].told == "it is made of trips, which changed"
    again = world.monitor("by_set")
    assert again.alarms == second.alarms
    world.day(trips=times_60)
    assert world.monitor("by_set").alarms == second.alarms
    world.clock.advance(timedelta(days=1))  # nobody asks: nothing is judged, and nothing is over
    quiet = world.monitor("by_set")
    assert quiet.state == "alarm", "until it is found to be fine"
    assert {each.state for each in quiet.document.features} == {"not judged"}
    assert set(quiet.alarms) == set(second.alarms)
    assert any(": trips: PSI" in note for note in quiet.notes()), "the table does not say it"
    world.day()
    assert world.monitor("by_set").alarms == ()
    with world.store() as store:
        entries = store.workspace.ledger.scan("taxi", "monitor", key="by_set")
    assert entries[0].document["state"] == "ok"
    assert not any(each["bars"] for each in entries[0].document["features"]), "drawings of what is fine are not kept"


def test_what_was_served_before_is_a_baseline_and_tells_statuses_and_ages(world: World) -> None:
    for _ in range(4):
        world.day()
    fine = world.monitor("by_time")
    assert fine.state == "ok", str(fine)
    assert found(fine)["records of ratings"] == "ok"
    for _ in range(2):  # nothing is materialized: records become old
        for _ in range(2):
            world.clock.advance(timedelta(hours=8))
            world.serve()
        world.clock.advance(timedelta(hours=8))
    late = world.monitor("by_time")
    assert found(late)["records of ratings"] == "alarm", str(late)
    assert "older than" in late["records of ratings"].lines[0].told
    assert late.document.clocks == ()
    assert late.after_now == 0
    world.clock.advance(timedelta(days=3))
    world.serve()  # a server whose clock is ahead
    world.clock.advance(timedelta(days=-3))
    ahead = world.monitor("by_time")
    assert (ahead.after_now, ahead.to_dict()["after_now"]) == (DRIVERS, DRIVERS)
    assert f"{DRIVERS:,} served rows lie after now and are in no figure" in str(ahead)
    assert ahead.document.clocks == ()
    world.clock.advance(timedelta(days=-4))  # as on a machine whose clock is behind
    behind = world.monitor("by_time")
    (told,) = behind.document.clocks
    assert told.startswith("The clock of the newest writer to the registry is 1 day ahead of this machine's. ")
    assert told in str(behind)
    assert "1 day ahead of this machine" in behind.to_html()
    with world.store() as store:
        means_it = store.monitor("by_time", to_datetime(world.clock.now_us))
    assert means_it.document.clocks == ()


def test_rows_of_runs_are_compared_with_rows_of_runs(world: World) -> None:
    for _ in range(3):
        world.day()
    assert world.monitor("rows").state == "not judged"  # 260 rows a day
    (world.root / "features.py").write_text(
        FEATURES.replace("baseline=timedelta(days=14)", "baseline=timedelta(days=14), window=timedelta(days=3)")
    )
    with world.store() as store:
        store.apply()
    fine = world.monitor("rows")
    assert fine.state == "ok", str(fine)
    assert set(found(fine)) == {"rating", "trips", "city"}
    for _ in range(6):
        world.day(city=lambda cities: np.where(np.arange(DRIVERS) % 2 == 0, "Jena", cities), rating=lambda r: r - 1)
    moved = world.monitor("rows")
    assert found(moved) == {"rating": "alarm", "trips": "ok", "city": "alarm"}
    assert "Jena: " in str(moved)
    assert any(each.kind == "run" for each in moved["rating"].causes), moved["rating"].causes


MADE = """
made = FeatureView(
    "made", entities=[driver], source=rides_file, schema=[Field("t", Float64)],
    sql='SELECT driver_id, "at", trips::DOUBLE AS t FROM rides_file',
)
made_model = FeatureService("made_model", features=[made], log=ServedLog(1.0))
of_made = Monitor("of_made", service=made_model, baseline=timedelta(days=1))
"""


def test_a_definition_that_changed_is_a_cause(world: World) -> None:
    definition = world.root / "features.py"
    definition.write_text(FEATURES + MADE)
    with world.store() as store:
        store.apply()
    world.service = "made_model"
    world.day()
    definition.write_text(FEATURES + MADE.replace("trips::DOUBLE", "trips::DOUBLE * 3.7 + 9"))
    with world.store() as store:
        store.apply()
    for _ in range(2):
        world.day()
    moved = world.monitor("of_made")
    assert moved.state == "alarm", str(moved)
    assert moved["t"].causes[0].kind == "definition", moved["t"].causes
    assert "sql of made changed in revision 3" in moved["t"].causes[0].told


def test_entities_that_nobody_knew_are_a_cause(world: World) -> None:
    """Served keys are hashed with the project's secret, a saved set's with a salt of its own."""
    world.day()

    def newcomers(column: Any) -> Any:
        return np.where(np.arange(DRIVERS) % 2 == 0, column, column + DRIVERS)

    def their_ratings(column: Any) -> Any:
        return np.where(np.arange(DRIVERS) % 2 == 0, column, column - 3)

    world.asked = newcomers(np.arange(DRIVERS))
    for _ in range(2):
        world.day(driver_id=newcomers, rating=their_ratings)
    moved = world.monitor("by_set")
    assert found(moved)["rating"] == "alarm", str(moved)
    first = moved["rating"].causes[0]
    assert (first.kind, "50 % of the rows are of entities" in first.told) == ("entities", True), moved["rating"].causes


def test_nulls_are_told_by_the_segment_and_the_run_that_brought_them(world: World) -> None:
    world.day()
    cities, is_ulm = np.array(["Ulm", "Bonn", "Kiel"])[np.arange(DRIVERS) % 3], np.arange(DRIVERS) % 3 == 0
    for _ in range(2):
        world.day(city=lambda _: cities, rating=lambda column: np.where(is_ulm, np.nan, column).tolist())
    moved = world.monitor("by_set")
    assert {line.name for line in moved["rating"].lines if line.exceeds} & {"nulls", "not_finite"}
    causes = {cause.kind: cause.told for cause in moved["rating"].causes}
    assert causes["segment"].startswith("city = Ulm"), causes
    assert "20240302T000000.parquet first" in causes["run"], causes
    with world.store() as store:
        entry = store.workspace.ledger.latest("taxi", "monitor", "by_set")
    assert entry is not None
    assert "city = Ulm" in str(entry.document["features"])
    for _ in range(2):  # what comes after the window is none of its causes, however much more it changes
        world.day(rating=lambda column: np.full(len(column), np.nan).tolist())
    with world.store() as store:
        again = store.monitor("by_set", to_datetime(moved.document.until_us))
    assert again["rating"].causes == moved["rating"].causes


def test_the_command_says_it_with_its_exit_code_and_as_page_and_metrics(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: list[dict[str, Any]] = [{}, {"trips": times_60}, {"trips": times_60}]
    for change in changes:
        world.day(**change)
    fs, at = CommandLine(world.root, capsys), to_datetime(world.clock()).isoformat()
    page, text = tmp_path / "page.html", tmp_path / "fs.prom"
    said = fs("monitor", "by_set", "--until", at, "--html", str(page), "--metrics", str(text), expect=3)
    assert "by_set: alarm" in said
    assert "<svg" in page.read_text()
    assert "<script" not in page.read_text()
    assert 'featurestore_monitor_state{monitor="by_set",state="alarm"} 1.0' in text.read_text()
    (told,) = fs.json("monitor", "by_set", "--until", at, expect=3)
    assert told["state"] == "alarm"
    assert told["alarms"][0]["feature"] in ("trips", "per_trip")
    assert "by_set" in fs("monitor", "by_zet", expect=1)


def test_a_baseline_that_is_gone_or_of_another_definition_is_said(world: World) -> None:
    world.day()
    (world.root / "features.py").write_text(FEATURES.replace('Field("trips", Int64)', 'Field("trips", Float64)'))
    with world.store() as store:
        store.apply(allow_breaking=True)
        store.materialize_incremental()
    world.day()
    changed = world.monitor("by_set")
    assert found(changed)["trips"] == "not judged"
    assert "its definition changed" in changed["trips"].not_judged
    with world.store() as store:
        monitor = store.get("monitor", "by_set").model_copy(update={"description": "new"})
        assert not store.plan([monitor]).steps[0].notices
        store.delete_training_set("first")
        (note,) = store.plan([monitor]).steps[0].notices
        assert note == (
            "by_set cannot be run before training set 'first' is saved: "
            "`fs training-set --entities FILE --service model --out FILE --save first`."
        )
        with pytest.raises(NotFoundError, match="first"):
            store.monitor("by_set")
        with pytest.raises(InputError, match="no monitor"):
            store.monitor(3)  # type: ignore[arg-type]


def test_a_service_that_is_monitored_does_not_go_alone(world: World) -> None:
    (world.root / "features.py").write_text(FEATURES.split("by_set = ")[0])
    with world.store() as store:
        plan = store.plan()
        assert {"monitor:by_set", "monitor:by_time", "monitor:rows"} <= {
            f"{step.kind}:{step.name}" for step in plan.steps
        }
        store.apply()
        assert store.list("monitor") == []


MONITOR = "x = Monitor('x', {})"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("baseline='first'", "a service or a view, one of them"),
        ("service=model, view=ratings, baseline='first'", "a service or a view, one of them"),
        ("view=ratings, baseline='first'", "chosen by traffic"),
        ("view=ratings, baseline=timedelta(days=1), checks=[MatchRate(0.9)]", "MatchRate"),
        ("service=model.replaced(log=None), baseline='first'", "keeps no log"),
        ("service=model, baseline=''", "cannot be empty"),
        ("service=model, baseline=timedelta(0)", "greater than zero"),
        ("service=model, baseline=7", "a timedelta, or two datetimes"),
        ("service=model, baseline='first', window=timedelta(0)", "greater than zero"),
        ("service=model, baseline='first', checks=[Drift('ratting')]", "no feature 'ratting'. Did you mean 'rating'?"),
        (
            "service=model, baseline='first', checks=[Drift('ratings:rating')]",
            "no feature 'ratings:rating'. Did you mean 'rating'?",
        ),
        ("service=model, baseline='first', checks=[Drift(psi=-1)]", "psi"),
        ("service=model, baseline='first', checks=[Drift(nulls=1.5)]", "nulls"),
        ("service=model, baseline='first', checks=['drift']", "checks"),
    ],
)
def test_monitors_that_cannot_be_are_refused_where_they_are_made(given: str, told: str) -> None:
    names: dict[str, Any] = {}
    exec(FEATURES.split("by_set = ")[0], names)
    with pytest.raises(DefinitionError, match=told):
        exec(MONITOR.format(given), names)


def test_the_last_check_for_a_feature_counts() -> None:
    names: dict[str, Any] = {}
    exec(FEATURES.split("by_set = ")[0], names)
    exec("x = Monitor('x', service=model, baseline='first', checks=[Drift(), Drift('trips', psi=0.5)])", names)
    assert names["x"].drift_of("trips").psi == 0.5
    assert names["x"].drift_of("rating") == Drift()
