"""What is expected of rows: runs say what is not so, or commit nothing; pushes are checked row by row."""

from __future__ import annotations

import html
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from support.catalog_server import serving_catalog
from support.command_line import CommandLine
from support.rides import HOUR, World, driver, source, view_of

from featurestore import (
    Aggregation,
    Between,
    FeatureService,
    FeatureView,
    Field,
    Fresh,
    Matches,
    NotNull,
    OneOf,
    Rows,
    ServedLog,
    Share,
    Unique,
)
from featurestore.errors import (
    FeatureStoreError,
    InputError,
    MaterializationError,
    NotFoundError,
    SourceSchemaError,
    TrainingSetError,
)
from featurestore.ledger.runs import all_runs
from featurestore.types import Float64, String
from featurestore.types.times import to_datetime


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "taxi")


def test_a_run_says_what_is_not_as_expected_and_commits_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.store.apply([view_of()])
    world.write([4.0, None, 5.0, 1.0])
    assert world.run().unmet == ()
    world.write([7.0, None, None, -2.0], city="bonn")
    page = CommandLine(world.root, capsys)("materialize")
    told = [line.partition("not as expected: ")[2] for line in page.splitlines() if "not as expected" in line]
    assert told == [
        "rating: Between(1.0, 5.0): 2 of 4 rows (-2.0 to 7.0)",
        "rating: NotNull(max_share=0.25): 2 of 4 rows",
        "city: OneOf(['Bonn', 'Köln']): 4 of 4 rows (bonn)",
        "city: Matches('[A-Z].+'): 4 of 4 rows (bonn)",
    ]
    assert world.committed() == 8
    (newest, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    assert list(newest.unmet) == [line.partition(" (")[0] for line in told]  # no values where runs are written
    assert "bonn" not in repr(world.store.workspace.ledger.latest("taxi", "run", "ratings"))


def test_values_that_are_personal_show_in_no_message(world: World) -> None:
    world.store.apply([view_of(expect=[Rows(at_least=1)])])
    frame = pd.DataFrame(world.rows([1.0, 2.0])).assign(phone="+49 777")
    frame.to_parquet(world.root / "data/rides/9.parquet")
    assert world.run().unmet == ("phone: Unique(): 1 of 2 rows",)


def test_a_blocked_run_commits_nothing_and_the_next_reads_the_span_again(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 5.0])
    world.run()
    world.write([9.0, 5.0])
    with pytest.raises(MaterializationError, match=r"nothing was committed: rating: Between\(1.0, 5.0\): 1 of 2 rows"):
        world.store.materialize_incremental()
    assert world.committed() == 2
    (dry,) = world.store.materialize_incremental(dry_run=True)
    assert (dry.unmet, dry.examples) == (("rating: Between(1.0, 5.0): 1 of 2 rows",), ("9.0",))
    world.files -= 1
    world.write([3.0, 5.0])  # corrected
    assert (world.run().appended, world.committed()) == (2, 4)
    staging = world.store.workspace.offline.staging(world.store.workspace.snapshot().views["ratings"].table)
    assert list(staging.glob("*.parquet")) == []


def test_runs_are_fresh_and_as_large_as_the_median_of_those_before(world: World) -> None:
    expect = [Fresh(within=2 * HOUR), Rows(at_least=2, change_at_most=0.5), Share("rating < 2", at_most=0.4)]
    world.store.apply([view_of(expect=expect)])
    for count in (4, 4, 5, 4):
        world.write([3.0] * count)
        assert world.run().unmet == ()
    world.write([3.0, 1.0, 1.0, 1.0, *[4.0] * 5])
    assert world.run().unmet == ("Rows(at_least=2, change_at_most=0.5): 9 rows, where runs like it had 4",)
    world.write([1.0], hours=-3)
    assert world.run().unmet == (
        "Share('rating < 2', at_most=0.4): 1 of 1 row",
        "Rows(at_least=2, change_at_most=0.5): 1 row",
        "Rows(at_least=2, change_at_most=0.5): 1 row, where runs like it had 5",
    )
    assert world.run().unmet == ()  # nothing new is no change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rating": [0.5, 3.0]}, r"column 'rating', row 0: 0.5 is not as expected by 'ratings': Between\(1.0, 5.0\)"),
        ({"rating": [3.0, float("nan")]}, r"column 'rating', row 1: nan is not"),
        ({"city": ["Bonn", "Kölna"]}, r"column 'city', row 1: 'Kölna' is not as expected by 'ratings': OneOf"),
    ],
)
@pytest.mark.parametrize("count", [2, 200])
def test_a_push_names_row_and_rule(world: World, change: dict[str, list[Any]], told: str, count: int) -> None:
    world.store.apply([view_of(on_failure="block")])
    rows = {name: values[:2] for name, values in {**world.rows([3.0, 4.0]), **change}.items()}
    good = world.rows([3.0] * (count - 2))
    frame = {name: [*values, *good[name]] for name, values in rows.items()}
    with pytest.raises(InputError, match=told) as error:
        world.store.push("rides", frame)
    assert set(error.value.details) >= {"column", "row", "rule"}
    assert world.committed() == 0
    (name,) = change
    frame[name] = world.rows([3.0] * count)[name]
    assert world.store.push("rides", frame).note is None
    world.store.apply([view_of()])
    note = world.store.push(
        "rides", {**frame, **{name: [*values, *frame[name][2:]] for name, values in change.items()}}
    ).note
    assert "1 row is not as ratings expects" in (note or "")


def test_a_training_set_is_checked_before_it_is_trained_on(world: World) -> None:
    world.store.apply([view_of()])
    world.write([4.0, None, 5.0, 1.0])
    world.run()
    frame = pd.DataFrame(
        {
            "driver_id": [2000, 2001, 2002, 2003, 9],
            "event_timestamp": to_datetime(world.clock()) - HOUR,
            "label": pd.array([1, 0, None, 1, 0], "Int64"),
            "odd": pd.Series(range(5), dtype="uint64"),
        }
    )
    training = world.store.get_historical_features(frame, ["ratings:rating", "ratings:phone"])
    rating, phone = training.features
    fine = {rating: [Between(1, 5), NotNull(max_share=0.4)], "label": [OneOf([0, 1])]}
    assert training.check([Rows(at_least=5), Share("label IS NULL", at_most=0.2)], columns=fine) is training
    wrong = {rating: [Between(2, 4), NotNull()], phone: [Matches("x"), Unique()], "label": [NotNull()]}
    with pytest.raises(TrainingSetError) as error:
        training.check([Rows(at_least=6), Share(f"{rating} > 2", at_most=0.2)], columns=wrong)
    assert error.value.details["unmet"] == [
        f"Share('{rating} > 2', at_most=0.2): 2 of 5 rows",
        f"{rating}: Between(2.0, 4.0): 2 of 5 rows (1.0 to 5.0)",
        f"{rating}: NotNull(): 2 of 5 rows",
        f"{phone}: Matches('x'): 4 of 5 rows",  # personal: no values
        "label: NotNull(): 1 of 5 rows",
        "Rows(at_least=6): 5 rows",
    ]


@pytest.mark.parametrize(
    ("rules", "columns", "told"),
    [
        ([], {}, "Nothing is expected"),
        ([Fresh(within=HOUR)], {}, "is no rule of a training set"),
        ([NotNull()], {}, "is no rule of a training set"),
        ([Rows(change_at_most=0.5)], {}, "compares runs"),
        ([Share("nobody > 1", at_most=0)], {}, "training set cannot be checked"),
        ([], {"ratting": [NotNull()]}, "no column 'ratting'"),
        ([], {"label": [Matches("x")]}, "Column 'label': Matches is for texts"),
        ([], {"label": [Share("label > 1", at_most=0)]}, "no rule of a column"),
        ([], {"odd": [Between(1, 2)]}, "which rules do not know"),
        ([], {"odd": Unique()}, "which rules do not know"),
        ([Share("ratings__rating", at_most=0)], {}, "is DOUBLE, and a condition is true or false"),
        ([Share("ratings__phone", at_most=0)], {}, "is VARCHAR, and a condition is true or false"),
        (NotNull(), {}, r"NotNull\(\) is no rule of a training set"),
    ],
)
def test_rules_that_do_not_fit_a_training_set_are_refused(
    world: World, rules: Any, columns: dict[str, Any], told: str
) -> None:
    world.store.apply([view_of()])
    world.write([3.0])
    world.run()
    frame = pd.DataFrame({"driver_id": [1], "event_timestamp": to_datetime(world.clock()) - HOUR, "label": [1]})
    frame["odd"] = frame.label.astype("uint64")
    features = ["ratings:rating", "ratings:phone"]
    training = world.store.get_historical_features(frame, features, full_feature_names=True)
    with pytest.raises(FeatureStoreError, match=told) as error:
        training.check(rules, columns=columns)
    assert "+49" not in str(error.value)


def test_the_catalog_shows_what_is_expected_and_what_is_kept(world: World) -> None:
    expect = [Fresh(within=2 * HOUR), Share("rating < 2", at_most=0.4)]
    view = view_of(expect=expect, on_failure="block")
    world.store.apply([view, FeatureService("rides_v1", [view], log=ServedLog(0.25, retention=timedelta(days=7)))])
    world.write([9.0])
    with pytest.raises(MaterializationError):
        world.store.materialize_incremental()
    with serving_catalog(world.store.workspace.registry) as url, httpx.Client(base_url=f"{url}/p/taxi/") as pages:
        shown = html.unescape(pages.get("feature_view/ratings").text)
        for text in ("Fresh(within=2 h)", "Share(where=rating < 2, at_most=0.4)", "a run commits nothing"):
            assert f"{text}<" in shown
        assert "Not as expected: rating: Between(1.0, 5.0): 1 of 1 row<" in shown
        rating = html.unescape(pages.get("feature/feature_view/ratings/rating").text)
        assert "<code>Between(least=1.0, greatest=5.0)</code>" in rating
        feature = html.unescape(pages.get("feature/feature_view/ratings/city").text)
        assert "<code>OneOf(values=[Bonn, Köln])</code>" in feature
        kept = html.unescape(pages.get("feature_service/rides_v1").text)
        assert all(f"<dd>{text}</dd>" in kept for text in ("25.0\u00a0%", "7 days", "hashed"))


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("ratting > 2", "does not run"),
        ("phone", "is VARCHAR, and a condition is true or false"),
        ("rating + 1", "is DOUBLE"),
        ("regexp_matches(city, '(')", "cannot be computed of any row"),
        ("unnest([true]) AND rating > 1", "Binder Error: .*unnest|UNNEST"),
    ],
)
def test_conditions_and_patterns_that_do_not_work_are_told_by_the_plan(world: World, where: str, told: str) -> None:
    world.write([3.0])
    with pytest.raises(SourceSchemaError, match=told) as error:
        world.store.plan([view_of(expect=[Share(where, at_most=0.5)])])
    assert "'ratings'" in str(error.value)
    assert "+49" not in str(error.value)


def test_a_condition_on_events_that_does_not_work_is_told_without_values(world: World) -> None:
    world.write([3.0, 4.0])
    counted = Aggregation("*", "count", [HOUR], where="CAST(phone AS INTEGER) > 3")
    fields = [Field("phone", String, tags={"personal": "true"})]
    view = FeatureView("calls", entities=[driver], source=source.batch_source, schema=fields, aggregations=[counted])
    with pytest.raises(SourceSchemaError, match="cannot be computed of any row: Conversion Error") as error:
        world.store.plan([view])
    assert "+49" not in str(error.value)


def test_rows_of_which_a_condition_cannot_be_computed_are_told_without_values(world: World) -> None:
    number, times = "CAST(phone AS INTEGER) > 3", 'epoch_us("at") > 0 AND "at" = event_ts'
    expect = [Share(number, at_most=1), Share(times, at_least=1)]
    world.store.apply([view_of(expect=expect)])
    world.write([3.0, 4.0])
    done = world.run()
    assert done.unmet == (f"Share('{number}', at_most=1): cannot be computed of 2 of 2 rows",)
    assert "+49" not in "".join(done.notes())
    world.store.apply([view_of(expect=expect, on_failure="block")])
    world.write([3.0])
    with pytest.raises(MaterializationError, match="cannot be computed of 1 of 1 row"):
        world.store.materialize_incremental()


def test_the_log_says_what_was_not_so_and_who_accepted_it(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.store.apply([view_of()])
    world.write([9.0, 4.0])
    world.run()
    world.store.apply([view_of(on_failure="block")])
    world.write([9.0, 4.0])
    with pytest.raises(MaterializationError):
        world.store.materialize_incremental()
    (blocked, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    world.clock.advance(timedelta(minutes=1))
    world.store.accept(blocked.run_id, "a new scale")
    fs = CommandLine(world.root, capsys)
    told = "rating: Between(1.0, 5.0): 1 of 2 rows"
    runs = [event for event in fs.json("log") if "run" in event]
    assert [(run["state"], run["unmet"]) for run in runs] == [("done", [told]), ("failed", [told]), ("done", [told])]
    assert [run["accepted"].partition(" (")[0] for run in runs] == ["a new scale", "", ""]
    assert runs[1]["run"] == blocked.run_id
    page = "".join(fs("log").split())
    assert page.count("Between(1.0,5.0)") == 3
    assert "anewscale(" in page


def test_a_plan_and_the_registered_view_show_what_is_expected(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    many = OneOf(f"city {number}" for number in range(500))
    fields = [Field("rating", Float64, expect=[Between(1, 5)]), Field("city", String, expect=[many])]
    view = view_of(expect=[Fresh(within=3 * HOUR)], on_failure="block").replaced(fields=tuple(fields))
    told = str(world.store.plan([view]))
    assert "expects rating: Between(1.0, 5.0); city: OneOf(['city 0', " in told
    assert "Fresh(within=3 h). A run of which this is not so commits nothing." in told
    assert "500 values" in told
    assert "city 400" not in told
    world.store.apply([view])
    fs = CommandLine(world.root, capsys)
    page = " ".join(fs("show", "ratings").split())
    assert "expects rating: Between(1.0, 5.0) expects city: OneOf(" in page
    assert "expects Fresh(within=3 h)" in page
    (shown,) = fs.json("show", "ratings")
    assert shown["expect"] == ["Fresh(within=3 h)"]
    assert [field["expect"] for field in shown["fields"] if field["name"] == "rating"] == [["Between(1.0, 5.0)"]]


def test_an_empty_text_that_fails_is_seen(world: World) -> None:
    world.store.apply([view_of()])
    world.write([4.0], city="")
    assert "not as expected: city: OneOf(['Bonn', 'Köln']): 1 of 1 row ('')" in world.run().notes()


def test_nulls_of_a_column_of_any_type_are_counted(world: World) -> None:
    world.store.apply([view_of()])
    world.write([4.0])
    world.run()
    at = to_datetime(world.clock()) - HOUR
    frame = pd.DataFrame({"driver_id": [2000, 9], "event_timestamp": at, "odd": pd.array([1, None], "UInt64")})
    frame["took"] = pd.to_timedelta(pd.Series([1.0, None]), unit="s")
    training = world.store.get_historical_features(frame, ["ratings:rating"])
    assert training.check(Rows(2), columns={"odd": NotNull(0.5), "took": [NotNull(0.5)]}) is training
    with pytest.raises(TrainingSetError, match=r"odd: NotNull\(\): 1 of 2 rows; took: NotNull\(\): 1 of 2 rows"):
        training.check(columns={"odd": NotNull(), "took": [NotNull()]})


def test_rows_that_are_right_all_the_same_are_accepted_by_their_hash(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    with pytest.raises(MaterializationError, match="nothing was committed"):
        world.store.materialize_incremental()
    (blocked, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    with pytest.raises(InputError, match="needs a reason"):
        world.store.accept(blocked.run_id, " ")
    with pytest.raises(NotFoundError, match="No blocked run 'abc'"):
        world.store.accept("abc", "x")
    world.write([4.0, 60.0])  # more came: other rows
    with pytest.raises(MaterializationError, match="were not committed: The rows of ratings are no longer those"):
        world.store.accept(blocked.run_id, "a heat wave")
    with pytest.raises(MaterializationError, match="nothing was committed"):
        world.store.materialize_incremental()
    assert world.committed() == 0
    (again, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    fs = CommandLine(world.root, capsys)
    assert "accepted all the same: a heat wave (" in fs("accept", again.run_id, "--reason", "a heat wave")
    assert world.committed() == 4
    world.write([4.0, 70.0])  # what comes later was not accepted
    with pytest.raises(MaterializationError, match="nothing was committed"):
        world.store.materialize_incremental()
    assert world.committed() == 4
