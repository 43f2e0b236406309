"""What was served before something changed: it is compared where it can be, and no fault hides behind a change."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import CommandLine
from support.parity import WINDOWS, World, causes

from featurestore.errors import IntervalError, SettingsError
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.online.records.encoder import RecordEncoder
from featurestore.quality import reasons
from featurestore.steps import listening
from featurestore.types.times import to_datetime


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "taxi")


@pytest.fixture
def windows(tmp_path: Path) -> World:
    return World(tmp_path / "taxi", more=WINDOWS)


def late_event(world: World, hours: float, name: str = "1") -> None:
    pd.DataFrame(world.trips([(1, hours, 4.0)])).to_parquet(world.root / f"data/events/{name}.parquet")
    world.materialize()


def test_a_lost_record_of_windows_stays_unexplained_when_an_event_comes_late(windows: World) -> None:
    windows.delete_online("counts", (1,))
    assert windows.serve((1,))[0][:3] == [None, None, 0]
    features = {"km_sum_1h", "km_sum_1d", "count_all", "miles"}
    before = windows.parity()
    assert (dict(before.causes), dict(before.causes_then)) == ({"unexplained": 4}, {"unexplained": 4})
    late_event(windows, -12)  # the sum of an hour cannot see it
    found = windows.parity()
    assert {row["feature"] for row in found.differences.to_pylist()} == features
    assert (dict(found.causes), dict(found.causes_then)) == ({"unexplained": 4}, {"unexplained": 4})


def test_a_late_event_explains_the_windows_that_it_changes(windows: World) -> None:
    windows.serve((1, 2))
    late_event(windows, -12)
    found = windows.parity()
    assert causes(found) == ({"late": 2}, {})
    assert {row["feature"] for row in found.differences.to_pylist()} == {"km_sum_1d", "count_all"}


def test_two_causes_of_one_window_are_told_by_the_first(windows: World) -> None:
    with windows.store() as store:
        store.push("events", windows.trips([(1, -0.25, 16.0)]), to="offline")
    windows.serve((1,))
    late_event(windows, -12)
    found = windows.parity()
    assert found.unexplained == 0
    told = {row["feature"]: (row["cause"], row["cause_then"]) for row in found.differences.to_pylist()}
    assert told == dict.fromkeys(("km_sum_1h", "km_sum_1d", "count_all", "miles"), ("not published", "not published"))


def test_an_event_that_changes_no_value_is_no_cause(windows: World) -> None:
    with windows.store() as store:
        store.push("events", windows.trips([(1, -0.25, 0.0)]), to="offline")
    windows.serve((1,))
    late_event(windows, -12)
    told = {row["feature"]: (row["cause"], row["cause_then"]) for row in windows.parity().differences.to_pylist()}
    assert told == {"km_sum_1d": ("late", ""), "count_all": ("not published", "not published")}


def test_a_change_that_no_value_comes_from_explains_nothing(world: World) -> None:
    world.delete_online("ratings", (1,))
    world.serve((1,))
    world.change(('"ratings", ', '"ratings", description="by riders", '))
    world.change(
        ('PushSource("rides",', 'PushSource("rides_again",'), ("ttl=timedelta(days=7)", "ttl=timedelta(days=8)")
    )
    found = world.parity()
    assert (dict(found.causes), dict(found.causes_then)) == ({"unexplained": 3}, {"unexplained": 3})


def test_a_ttl_is_told_when_something_harmless_changed_too(world: World) -> None:
    assert world.serve((3,))[0][:2] == [None, None]
    world.change(
        ('PushSource("rides",', 'PushSource("rides_again",'), ("ttl=timedelta(days=7)", "ttl=timedelta(days=70)")
    )
    assert causes(world.parity()) == ({"ttl": 3}, {"ttl": 3})


def test_a_feature_that_was_added_was_not_served_before(world: World) -> None:
    world.change(("[ratings, names, per_trip]", "[ratings, per_trip]"))
    world.serve()
    world.change(("[ratings, per_trip]", "[ratings, names, per_trip]"))
    world.serve((1, 2))
    found = world.parity()
    assert causes(found) == ({}, {})
    assert dict(found.not_served) == {"name": 5}
    assert {each.feature: each.rows for each in found.features} == {"rating": 7, "trips": 7, "name": 2, "per_trip": 7}


def test_a_feature_that_became_personal_is_left_out(world: World) -> None:
    world.serve()
    world.change(('Field("name", String)', 'Field("name", String, tags={"personal": "true"})'))
    world.serve()
    world.write("plain", "1", [(2, -24, "Rob")])
    world.materialize()
    found = world.parity()
    assert causes(found) == ({}, {})
    assert "name" not in {each.feature for each in found.features}
    world.change(('Field("name", String, tags={"personal": "true"})', 'Field("name", String)'))
    world.serve((1,))
    found = world.parity()
    assert {each.feature: each.rows for each in found.features}["name"] == 6  # not those whose value was not kept
    assert dict(found.not_served) == {"name": 5}


def test_keys_are_read_row_by_row(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", "plain", key=str)
    world.serve(("1", "2"))
    world.change(('keys="plain"', 'keys="hashed"'))
    world.serve(("1", "3", "9"))
    world.rides("1", [(1, -1, 4.0, 10)])
    world.materialize()
    found = world.parity()
    assert causes(found) == ({"late": 6}, {})
    assert [each.rows for each in found.features] == [5] * 4
    settings = world.root / "feature_store.yaml"
    settings.write_text(settings.read_text().replace("long and random text", "another long random text"))
    found = world.parity()
    assert causes(found) == ({"late": 3}, {})
    assert (found.rows, found.other_secret) == (2, 3)
    assert "3 rows are not compared: the join keys are hashed with another secret" in str(found)


def test_keys_of_another_secret_alone_cannot_be_compared(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", "hashed")
    world.serve()
    settings = world.root / "feature_store.yaml"
    settings.write_text(settings.read_text().replace("long and random text", "another long random text"))
    with pytest.raises(SettingsError, match="another secret"):
        world.parity()


QUERY = "sql='SELECT driver_id, \"at\", name FROM plain_file'"


def test_a_row_that_a_new_definition_made_is_no_correction(world: World) -> None:
    world.change(("source=plain_file,", f"source=plain_file, {QUERY},"))
    world.materialize()
    world.serve((1, 2))
    world.change((", name FROM", ", upper(name) AS name FROM"))
    world.clock.advance(timedelta(minutes=1))
    world.rebuild("names", 72)
    world.clock.advance(timedelta(minutes=1))
    assert [row[2] for row in world.serve((1, 2))] == ["ANN", "BOB"]
    assert causes(world.parity())[0] == {"definition": 2}
    world.write("plain", "1", [(2, -24 - 10 / 60, "Rob")])
    world.materialize()
    assert set(world.parity().causes) == {"definition", "corrected"}


def lose(world: World, file: str) -> None:
    """Take the first row from a source's file."""
    path = world.root / file
    pd.read_parquet(path)[1:].to_parquet(path)


def lose_a_ride(world: World) -> None:
    lose(world, "data/rides/0.parquet")
    world.clock.advance(timedelta(minutes=1))
    assert world.rebuild("ratings") == 1
    world.clock.advance(timedelta(minutes=1))


def test_rows_that_are_withdrawn_later_were_online_then(world: World) -> None:
    assert world.serve((1, 2))[0][:2] == [4.5, 9]
    lose_a_ride(world)
    assert world.serve((1, 2))[0][:2] == [None, None]
    found = world.parity()
    assert causes(found) == ({"withdrawn": 3}, {})
    assert found.not_known == {}


def test_rows_that_are_withdrawn_and_gone_are_counted_apart(world: World) -> None:
    world.serve((1, 2))
    lose_a_ride(world)
    world.serve((1, 2))
    with world.store() as store:
        optimize(store.workspace, ["ratings"])
        collect_garbage(store.workspace)
    found = world.parity()
    assert causes(found) == ({"withdrawn": 3}, {})
    assert found.not_known == {"rating": 1, "trips": 1, "per_trip": 1}
    assert [each.differs_then for each in found.features] == [0, 0, 0, 0]
    assert "1 row was withdrawn since: what was online then is not known" in str(found)


def test_nothing_is_withdrawn_before_it_was_served(world: World) -> None:
    lose_a_ride(world)
    with world.store() as store:
        encoder = RecordEncoder(store.workspace.snapshot().views["ratings"].layout)
        at_us = world.clock() - 5 * 3_600_000_000 - 120_000_000
        store.workspace.online.write([encoder.write((1,), at_us, at_us, (4.5, 9))], now_us=world.clock())
    assert world.serve((1, 2))[0][:2] == [4.5, 9]
    found = world.parity()
    assert (dict(found.causes), dict(found.causes_then)) == ({"in no commit": 3}, {"in no commit": 3})


def test_a_withdrawn_event_was_in_the_windows(windows: World) -> None:
    windows.serve((1, 2))
    lose(windows, "data/events/0.parquet")
    windows.clock.advance(timedelta(minutes=1))
    assert windows.rebuild("counts", 48) >= 1
    windows.clock.advance(timedelta(minutes=1))
    found = windows.parity()
    assert set(found.causes) == {"withdrawn"}
    assert causes(found)[1] == {}


def test_a_second_on_demand_view_leaves_the_first_as_it_was(world: World) -> None:
    world.serve()
    more = """
@on_demand_feature_view(sources=[ratings[["rating"]]], schema=[Field("half", Float64)])
def half(inputs):
    return {"half": [None if r is None else r / 2 for r in inputs["rating"]]}

model = """
    world.change(("\nmodel = ", more), ("names, per_trip]", "names, per_trip, half]"))
    world.serve((1,))
    found = world.parity()
    assert causes(found) == ({}, {})
    assert dict(found.not_recomputed) == {}
    assert dict(found.not_served) == {"half": 5}
    assert {each.feature: each.rows for each in found.features}["per_trip"] == 6


def test_a_view_of_another_entity_that_came_later(world: World) -> None:
    world.serve()
    pd.DataFrame({"city_id": [1], "at": [world.at(-1)], "people": [7]}).to_parquet(world.root / "data/cities.parquet")
    more = """
city = Entity("city", join_keys={"city_id": Int64})
cities = FeatureView(
    "cities", entities=[city], source=ParquetSource("cities_file", "data/cities.parquet", "at"),
    schema=[Field("people", Int64)],
)
model = """
    world.change(
        ("\nmodel = ", more),
        ("names, per_trip]", "names, per_trip, cities]"),
        (', log=ServedLog(1.0, keys="plain")', ""),
    )
    found = world.parity()
    assert causes(found) == ({}, {})
    assert dict(found.not_served) == {"people": 5}
    assert [each.rows for each in found.features] == [5, 5, 5, 5, 0]


def test_a_check_of_nothing_is_not_green(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fs = CommandLine(world.root, capsys)
    assert "0 served rows" in fs("parity", "model", "--since", "2000-01-01")
    told = fs("parity", "model", "--check", "--since", "2000-01-01", expect=1)
    assert "Nothing was served for 'model' from 2000-01-01" in told
    for span in (("--since", "2990-01-01"), ("--since", "-1h", "--until", "-2h")):
        assert "is empty" in fs("parity", "model", "--check", *span, expect=1)
    with world.store() as store, pytest.raises(IntervalError, match="is empty"):
        store.parity("model", to_datetime(world.clock()), to_datetime(world.clock()))


def test_differences_are_no_training_set(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    told = CommandLine(world.root, capsys)(
        "parity", "model", "--out", str(world.root / "data/plain/0.parquet"), expect=1
    )
    assert "the differences are not written there" in told
    assert "training set" not in told


def test_more_differences_than_one_waits_for_are_counted(
    world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve((1, 2))
    world.rides("1", [(1, -1, 4.0, 10), (2, -1, 4.0, 10)])
    world.materialize()
    monkeypatch.setattr(reasons, "MOST_EXPLAINED", 4)
    monkeypatch.setattr(reasons, "MOST_SHOWN", 1)
    told = list[str]()
    with listening(lambda event: told.append(event.title)):
        found = world.parity()
    assert "find causes of differences" in told
    assert dict(found.causes) == {"late": 4}
    assert (found.differing, found.not_explained, found.differences.num_rows) == (6, 2, 1)
    assert sum(each.differs_now for each in found.features) == 6
    assert found.entities == (("driver_id=1", 3), ("driver_id=2", 3))
    assert "2 differences beyond these: not explained" in str(found)
    out = world.root / "differences.parquet"
    arguments = "parity", "model", "--since", "2024-02-01", "--check", "--out", str(out)
    assert "1 of 6 differences written" in CommandLine(world.root, capsys)(*arguments, expect=3)
