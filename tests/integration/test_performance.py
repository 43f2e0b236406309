"""How models did: predictions that servers took beside labels that became known later, against plain loops."""

from __future__ import annotations

import json
import math
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from support.clock import ManualClock
from support.command_line import CommandLine
from support.predicted import HORIZON, HOSTILE, LOGGED, ask, auc_by_pairs, outcome, predict
from support.rows import commit_rows, cover
from support.serving import HOUR_US, Project, serving_here, small_project

from featurestore import FeatureStore, Label
from featurestore.errors import InputError, IntervalError, NotFoundError, SettingsError
from featurestore.quality.figures import classes, numbers, yes_or_no
from featurestore.quality.performance import Performance
from featurestore.served.predictions import KeptFor, checked, table_of
from featurestore.server.read import served as server_log
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT, to_datetime

US = timedelta(microseconds=1)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", "a long random text that nobody guesses")
    found = small_project(tmp_path / "repo", clock())
    with (found.root / "features.py").open("a") as features:
        features.write(LOGGED)
    found.apply()
    return found


def judged(project: Project, clock: ManualClock, feature: str = "outcomes:delay", **options: Any) -> Performance:
    with FeatureStore(project.root, clock=clock) as store:
        options = {"prediction": "delay", "service": "logged", **options}
        return store.performance(label=Label(feature, horizon=HORIZON), **options)


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_plain_loops(seed: int) -> None:
    import numpy as np

    dice = Random(seed)
    count = dice.choice([0, 1, 2, 40, 300])
    truth = [float(dice.random() < 0.3) for _ in range(count)]
    scores = [round(dice.random(), dice.choice([1, 1, 6])) for _ in range(count)]
    found = yes_or_no(np.array(scores), np.array(truth))
    if not count:
        assert set(found.values()) == {None}
        assert classes(np.array([], object), np.array([], object)) == {"accuracy": None}
        return
    assert found["auc"] == pytest.approx(auc_by_pairs(scores, truth))
    assert found["accuracy"] == sum((score >= 0.5) == (is_yes == 1) for score, is_yes in zip(scores, truth)) / count  # noqa: B905
    losses = [
        -math.log(max(score if is_yes else 1 - score, 1e-15)) for score, is_yes in zip(scores, truth, strict=True)
    ]
    assert found["log_loss"] == pytest.approx(sum(losses) / count)
    actual = [dice.gauss(0, 100) for _ in range(count)]
    errors = [score - value for score, value in zip(scores, actual, strict=True)]
    told = numbers(np.array(scores), np.array(actual))
    assert told["mean_absolute_error"] == pytest.approx(sum(map(abs, errors)) / count)
    assert told["root_mean_square_error"] == pytest.approx(math.sqrt(sum(error**2 for error in errors) / count))
    assert told["bias"] == pytest.approx(sum(errors) / count)
    assert numbers(np.array([3e200, 4e200]), np.zeros(2))["root_mean_square_error"] == pytest.approx(
        math.sqrt(12.5) * 1e200
    )
    one, other = (np.array([dice.choice("ab") for _ in range(count)], object) for _ in range(2))
    right = sum(a == b for a, b in zip(one, other, strict=True))
    assert classes(one, other) == {"accuracy": pytest.approx(right / count)}


def test_models_are_judged_over_what_is_matured(project: Project, clock: ManualClock) -> None:
    """Two models: a label, an early one of a young request, none, one known too late, and a request that is lost."""
    begin_us = clock()
    with serving_here(project.workspace(clock)) as client:
        for number, customers in enumerate(([1, 2], [1], [3], [2])):
            ask(client, f"r{number}", customers)
            for model, error in (("b", 1.0), ("a", -2.0)):
                predict(client, f"r{number}", model, {"delay": [10 * customer + error for customer in customers]})
            clock.now_us += HOUR_US
        predict(client, "r0", "a", {"delay": [8, float(18)]})  # again: the last one counts
        predict(client, "r0", "a", {"other": ["x", "y"]})  # another name: takes nothing away
        predict(client, "r3", "c", {"other": ["x"]})  # a model that predicts something else
        predict(client, "gone", "b", {"delay": [1, 2, 3]})
        predict(client, "r2", "b", {"delay": [None]})
    workspace = project.workspace(clock)
    rows = [
        outcome(1, begin_us + 1, delay=10.0),  # of r0; of r1 not: it was before
        outcome(2, begin_us + 6 * HOUR_US, delay=26.0),  # the end of r0's horizon; and within that of r3
        outcome(1, begin_us + 2 * HOUR_US, begin_us + 8 * HOUR_US, delay=99.0),  # known too late for r0 and r1
        outcome(3, begin_us + 3 * HOUR_US, delay=30.0),  # of r2, early
    ]
    clock.now_us = begin_us + 7 * HOUR_US + HOUR_US // 2  # r0 and r1 are old enough, r2 and r3 are not
    commit_rows(workspace, "outcomes", rows, covers=(begin_us, clock()))
    found = judged(project, clock)
    assert [each.model for each in found.models] == ["a", "b"]
    assert (found.task, found.repeated) == ("numbers", 2)
    for each, errors in zip(found.models, ([-2.0, -8.0], [1.0, -5.0]), strict=True):
        assert (each.rows, each.not_matured, each.not_committed, each.without_label) == (2, 2, 0, 1)
        assert (each.first_us, each.last_us) == (begin_us, begin_us + 3 * HOUR_US)
        assert each.figures["bias"] == pytest.approx(sum(errors) / 2)
        assert each.figures["mean_absolute_error"] == pytest.approx(sum(map(abs, errors)) / 2)
    assert [each.without_served for each in found.models] == [0, 3]
    clock.now_us = begin_us + 20 * HOUR_US
    half = judged(project, clock)
    assert [(each.rows, each.not_committed) for each in half.models] == [(2, 2), (2, 2)]
    assert "a: 2 wait for what is not committed: `fs materialize --view outcomes`" in str(half)
    cover(workspace, "outcomes", begin_us, clock())
    whole = judged(project, clock)
    assert [(each.rows, each.without_label, each.unusable) for each in whole.models] == [
        (4, 1, 0),
        (4, 1, 0),
    ]  # null takes nothing away
    assert whole.models[0].figures["bias"] == pytest.approx((-2 - 8 - 2 - 8) / 4)
    late = judged(project, clock, start=to_datetime(begin_us + HOUR_US), end=to_datetime(begin_us + 2 * HOUR_US))
    assert [(each.rows, each.without_label) for each in late.models] == [(0, 1), (0, 1)]
    assert late.models[1].figures == dict.fromkeys(late.models[0].figures)


def test_yes_and_no_and_classes(project: Project, clock: ManualClock) -> None:
    begin_us, dice = clock(), Random(7)
    customers = list(range(100, 160))
    late = [dice.random() < 0.4 for _ in customers]
    scores = [round(min(max(0.3 + 0.4 * is_late + dice.gauss(0, 0.2), 0), 1), 2) for is_late in late]
    kinds, guesses = ([dice.choice("xyz") for _ in customers] for _ in range(2))
    scores[3], scores[4] = 1.5, -0.1
    with serving_here(project.workspace(clock)) as client:
        ask(client, "r", customers)
        predict(client, "r", "m", {"late": scores, "kind": guesses, "yes": [score >= 0.5 for score in scores]})
    workspace = project.workspace(clock)
    rows = [
        outcome(who, begin_us + 1, late=is_late, flag=int(is_late), kind=kind, day=None)
        for who, is_late, kind in zip(customers, late, kinds, strict=True)
    ]
    clock.now_us += 10 * HOUR_US
    commit_rows(workspace, "outcomes", rows)
    (model,) = judged(project, clock, "outcomes:late", prediction="late").models
    used = [(score, is_late) for score, is_late in zip(scores, late, strict=True) if 0 <= score <= 1]
    assert (model.rows, model.unusable) == (58, 2)
    assert model.figures["auc"] == pytest.approx(auc_by_pairs(*zip(*used, strict=True)))
    assert model.figures["accuracy"] == pytest.approx(sum((s >= 0.5) == yes for s, yes in used) / 58)
    (as_number,) = judged(project, clock, "outcomes:flag", prediction="late").models
    assert "bias" in as_number.figures  # 1.5 is no score: numbers
    (forced,) = judged(project, clock, "outcomes:flag", prediction="late", task="yes/no").models
    assert forced.figures == model.figures
    whole = [(score, is_late) for score, is_late in zip(scores, late, strict=True) if score in (0, 1)]
    assert whole
    for feature in ("outcomes:flag", "outcomes:late"):  # a share of a class is none, neither 0 nor 1
        (as_class,) = judged(project, clock, feature, prediction="late", task="classes").models
        assert (as_class.rows, as_class.unusable) == (len(whole), 60 - len(whole))
        assert as_class.figures == {"accuracy": sum(score == is_late for score, is_late in whole) / len(whole)}
    (of_flags,) = judged(project, clock, "outcomes:flag", prediction="yes").models
    right = sum((score >= 0.5) == is_late for score, is_late in zip(scores, late, strict=True)) / 60
    assert of_flags.figures["accuracy"] == pytest.approx(right)
    (of_kinds,) = judged(project, clock, "outcomes:kind", prediction="kind").models
    assert of_kinds.figures == {"accuracy": sum(a == b for a, b in zip(kinds, guesses, strict=True)) / 60}
    with pytest.raises(InputError, match="The prediction 'late' is a number, the label outcomes:kind is String"):
        judged(project, clock, "outcomes:kind", prediction="late")
    for feature, prediction, task in (
        ("outcomes:kind", "late", None), ("outcomes:late", "kind", None), ("outcomes:day", "late", None),
        ("outcomes:kind", "kind", "numbers"),
    ):  # fmt: skip
        with pytest.raises(InputError, match="cannot be compared"):
            judged(project, clock, feature, prediction=prediction, task=task)
    with pytest.raises(NotFoundError, match="No model logged a prediction 'lte'"):
        judged(project, clock, prediction="lte")
    with pytest.raises(InputError, match="task='guess'"):
        judged(project, clock, prediction="late", task="guess")


def test_hashed_keys_and_labels_by_request_data(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Customer 55 is in no view of the service: the label's own view knows it. Trips are named by the requests."""
    begin_us = clock()
    with serving_here(project.workspace(clock)) as client:
        ask(client, "r", [1, 55], "hashed", request_data={"trip_id": [7, 8]})
        predict(client, "r", "m", {"delay": [10.0, 20.0]}, "hashed")
    workspace = project.workspace(clock)
    commit_rows(workspace, "outcomes", [outcome(who, begin_us + 1, delay=float(who)) for who in (1, 55)])
    commit_rows(workspace, "trips", [{"trip_id": trip, "event_ts": begin_us + 2, "tip": trip / 1} for trip in (7, 8)])
    clock.now_us += 10 * HOUR_US
    (model,) = judged(project, clock, service="hashed").models
    assert (model.rows, model.figures["bias"]) == (2, pytest.approx((9 - 35) / 2))
    (model,) = judged(project, clock, "trips:tip", service="hashed").models
    assert (model.rows, model.figures["bias"]) == (2, pytest.approx((3 + 12) / 2))
    with FeatureStore(project.root, clock=clock) as store:
        labels = [Label("outcomes:delay", horizon=HORIZON), Label("trips:tip", horizon=timedelta(hours=20))]
        assert store.label_served("hashed", labels).rows.num_rows == 0
        found = store.label_served("hashed", [labels[0], Label("trips:tip", horizon=HORIZON, name="tip")])
        assert found.to_pandas()[["label.delay", "label.tip"]].to_numpy().tolist() == [[1, 7], [55, 8]]
        assert [each.not_matured for each in found.labels] == [0, 0]
        young = store.label_served("hashed", labels[1])
        assert (young.left_out, *young.notes()) == (
            2, "of the 20:00:00 after the row for 'tip' 2 end after now: these rows are left out"
        )  # fmt: skip
        for wrong, told in (
            ([labels[0], labels[0]], "Of these labels"), ([], "No label was given"),
            ("trips:tip", "'trips:tip' is not a Label"),
        ):  # fmt: skip
            with pytest.raises(InputError, match=told):
                store.label_served("hashed", wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is of 'trip_id', which is neither a join key of 'logged' nor"):
        judged(project, clock, "trips:tip")
    monkeypatch.setenv("FS_SERVED__SECRET", "another one that nobody guesses")
    with pytest.raises(SettingsError, match="hashed with another secret"):
        judged(project, clock, service="hashed")


def test_the_command_and_the_page_show_the_same(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_us = clock()
    with serving_here(project.workspace(clock)) as client:
        ask(client, "r", [1, 2])
        predict(client, "r", HOSTILE, {"delay": [1.0, None]})
    commit_rows(project.workspace(clock), "outcomes", [outcome(who, begin_us + 1, delay=3.0) for who in (1, 2)])
    clock.now_us += 10 * HOUR_US
    fs = CommandLine(project.root, capsys)
    wanted = ["performance", "logged", "--label", "outcomes:delay", "--horizon", "6h", "--prediction", "delay"]
    found = judged(project, clock)
    page = found._repr_html_()
    assert "<b>m" not in page
    assert "&lt;b&gt;m" in page
    assert "\u202e" not in str(found)
    assert found.to_pandas()["bias"].tolist() == [-2.0]
    assert "1 predictions are null or not finite" in str(found)
    assert "2024-02-01T12:00:00Z to 2024-02-01T22:00:00.000001Z" in found.title()
    text = fs(*wanted)  # by the machine's clock, years later: retention is gc's, not the reader's
    assert "mean absolute error" in text
    told = json.loads(fs(*wanted, "--json"))
    assert told["models"][0]["figures"]["bias"] == -2.0
    assert told["models"][0]["model"] == HOSTILE
    assert "no prediction of this span" in fs(*wanted, "--since", "-1d")
    cover(project.workspace(clock), "fresh", MIN_INSTANT, MAX_INSTANT)
    frame, out = project.root / "frame.parquet", project.root / "training.parquet"
    at = pd.to_datetime([begin_us, begin_us + 1], unit="us", utc=True)
    pd.DataFrame({"customer_id": [1, 2], "event_timestamp": at}).to_parquet(frame)
    made = ["training-set", "--entities", str(frame), "--features", "fresh:score", "--out", str(out)]
    label = ["--label", "outcomes:delay", "--horizon", "6h"]
    assert "2 rows written" in fs(*made, *label, "--label", "outcomes:late", "--label-name", "d", "--label-name", "l")
    rows = pd.read_parquet(out)
    assert rows["d"].fillna(-1).tolist() == [3.0, -1]  # the second row is of the outcome's very instant
    assert list(rows) == ["customer_id", "event_timestamp", "score", "d", "l"]
    fs(*made, *label, "--label", "outcomes:late", "--horizon", "1h")
    assert list(pd.read_parquet(out))[-2:] == ["delay", "late"]
    for wrong, told in (
        (["--horizon", "6h"], "--horizon is of a --label"),
        (["--label", "outcomes:delay"], "1 --label and 0 --horizon"),
        ([*label, "--horizon", "1h"], "1 --label and 2 --horizon"),
        ([*label, "--label-name", "a", "--label-name", "b"], "1 --label and 2 --label-name"),
        ([*label[:3], "six"], "'six'"),
    ):
        fs(*made, *wrong, expect=2)
        assert told in fs.err
    fs(*made, "--label", "outcomes", "--horizon", "6h", expect=1)
    assert "a label is one feature" in fs.err
    fs("performance", "loged", *wanted[2:], expect=1)
    assert "no feature service 'loged'" in fs.err
    fs(*wanted[:4], "--horizon", "six", *wanted[6:], expect=2)
    assert "'six'" in fs.err
    fs(*wanted[:4], "--horizon", "0h", *wanted[6:], expect=1)
    assert "after the row's" in fs.err


def test_values_of_another_kind_and_rows_after_now_are_told(project: Project, clock: ManualClock) -> None:
    """One client's texts, more of them than numbers, keep nobody from judging the numbers; a clock is ahead."""
    begin_us = clock()
    with serving_here(project.workspace(clock)) as client, serving_here(project.workspace(clock)) as other:
        ask(client, "r", [1, 2])
        predict(client, "r", "m", {"delay": [1.0, 2.0]})
        for number in range(3):  # the other server does not know of numbers
            predict(other, "r", "odd", {"delay": [f"t{number}", "t"]})
        predict(other, "r", "m", {"delay": ["t", "t"]})
        clock.now_us = begin_us + 72 * HOUR_US
        ask(client, "ahead", [1, 2, 3])
        predict(client, "ahead", "m", {"delay": [1.0, 2.0, 3.0]})
    clock.now_us = begin_us + 10 * HOUR_US
    commit_rows(project.workspace(clock), "outcomes", [outcome(who, begin_us + 1, delay=3.0) for who in (1, 2)])
    found = judged(project, clock)
    (model,) = found.models
    assert (model.model, model.rows, model.unusable, model.figures["bias"]) == ("m", 2, 0, -1.5)
    assert (found.other_kind, found.after_now, found.repeated) == (8, 3, 0)
    told = str(found)
    assert "8 predictions are of another kind than those that are judged: left out" in told
    assert "3 served rows lie after now and are in no figure: the clock of a server is ahead" in told
    with FeatureStore(project.root, clock=clock) as store:
        parity = store.parity("logged")
        assert (parity.rows, parity.after_now) == (2, 3)
        assert "3 served rows lie after now" in str(parity)
        assert "2 served rows up to 2024-02-01T22:00:00.000001Z" in parity.title()
        later = to_datetime(begin_us + 100 * HOUR_US)
        assert (store.parity("logged", end=later).rows, store.parity("logged", end=later).after_now) == (5, 0)
        with pytest.raises(IntervalError, match="is empty"):
            judged(project, clock, start=later)


def test_a_hundred_thousand_rows(project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred requests of a thousand rows are judged, all of them."""
    monkeypatch.setattr(server_log, "MOST_ROWS", 10**6)
    begin_us = clock()
    with serving_here(project.workspace(clock)) as client:
        for number in range(100):
            ask(client, f"r{number}", range(1_000))
            predict(client, f"r{number}", f"m{number % 2}", {"delay": [float(number)] * 1_000})
    rows = [outcome(who, begin_us + 1, delay=1.0) for who in range(0, 1_000, 2)]
    commit_rows(project.workspace(clock), "outcomes", rows)
    clock.now_us += 10 * HOUR_US
    found = judged(project, clock)
    assert [(each.model, each.rows, each.without_label) for each in found.models] == [
        ("m0", 25_000, 25_000), ("m1", 25_000, 25_000)
    ]  # fmt: skip
    assert [each.figures["bias"] for each in found.models] == [pytest.approx(48), pytest.approx(49)]


def test_predictions_of_one_batch_lie_in_one_table() -> None:
    kept_for = KeptFor("s", "p", 1)
    made = [checked(kept_for, f"r{n}", n, "m", {"p": [n, None]})[0] for n in range(3)]
    table = table_of(made, "i")
    assert table.column("prediction.p").to_pylist() == [0, None, 1, None, 2, None]
    assert table.column("row").to_pylist() == [0, 1] * 3
