"""Monitors of how models do: predictions that servers took beside labels that became known, against plain loops."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from support.catalog_server import serving_catalog
from support.clock import ManualClock
from support.command_line import CommandLine
from support.predicted import HOSTILE, LOGGED, ask, auc_by_pairs, outcome, predict
from support.rows import commit_rows
from support.serving import HOUR_US, Project, serving_here, small_project

from featurestore import FeatureStore
from featurestore.definitions.monitor import CHECKS, METRICS
from featurestore.errors import DefinitionError, RegistryFormatError, SettingsError
from featurestore.quality.figures import FIGURES, Task, chance, tasks_of
from featurestore.quality.report import MonitorResult
from featurestore.types.times import to_datetime, to_rfc3339

MONITORS = """
from featurestore import Drift, FeatureService, Label, MatchRate, ModelMetric, Monitor
late = Label("outcomes:late", horizon=timedelta(hours=6))
same = Label(outcomes[["late"]], horizon=timedelta(hours=6))
delay = Label("outcomes:delay", horizon=timedelta(hours=6))
watched = Monitor("watched", service=logged, baseline=timedelta(days=1), window=timedelta(hours=4), checks=[
    ModelMetric("auc", late, "late", at_least=0.7, rows=300),
    ModelMetric("accuracy", late, "late", at_least=0.6, rows=300, model="good"),
    ModelMetric("mean_absolute_error", delay, "delay", at_most=5),
    ModelMetric("mean_absolute_error", delay, "delay", at_most=9000, model="coarse"),
    ModelMetric("bias", delay, "delay", at_most=2),
])
"""
PEOPLE = range(1_000, 1_600)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-02-01T12:00:00Z")


@pytest.fixture
def project(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("FS_SERVED__SECRET", "a long random text that nobody guesses")
    found = small_project(tmp_path / "repo", clock())
    write(found, MONITORS)
    found.apply()
    return found


def write(project: Project, monitors: str, change: Callable[[str], str] = lambda text: text) -> None:
    from support.serving import FEATURES

    (project.root / "features.py").write_text(FEATURES + change(LOGGED + monitors))


def run(project: Project, clock: ManualClock, name: str = "watched", until_us: int | None = None) -> MonitorResult:
    with FeatureStore(project.root, clock=clock) as store:
        return store.monitor(name, None if until_us is None else to_rfc3339(until_us))


def states(result: MonitorResult) -> dict[str, str]:
    return {each.name: each.state for each in result.document.features}


def spread_by_loops(scores: Sequence[float], truth: Sequence[bool], groups: Sequence[int]) -> float:
    """Return the standard error of an AUC: DeLong's placements, pair by pair, summed by group."""
    placed, yes = [0.0] * len(scores), sum(truth)
    no = len(truth) - yes
    for mine, is_yes in enumerate(truth):
        for other, is_other in enumerate(truth):
            if is_yes != is_other:
                gap = (scores[mine] - scores[other]) * (1 if is_yes else -1)
                placed[mine] += (1.0 if gap > 0 else 0.5 if gap == 0 else 0.0) / (no if is_yes else yes)
    auc = sum(each for each, is_yes in zip(placed, truth, strict=True) if is_yes) / yes
    sums: dict[int, float] = {}
    for each, is_yes, group in zip(placed, truth, groups, strict=True):
        sums[group] = sums.get(group, 0.0) + (each - auc) / (yes if is_yes else no)
    return math.sqrt(sum(each**2 for each in sums.values()) * len(sums) / (len(sums) - 1))


def test_each_model_is_judged_over_what_has_matured(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    begin_us, dice = clock(), Random(3)
    people = list(PEOPLE)
    late = {who: dice.random() < 0.4 for who in people}
    scores = {
        model: {who: round(dice.gauss(0.5 + shift * late[who], 0.15) % 1, 3) for who in people}
        for model, shift in (("good", 0.25), (HOSTILE, 0.0))
    }
    with serving_here(project.workspace(clock)) as client:
        for half in (people[:300], people[300:]):
            ask(client, f"r{half[0]}", half)
            for model, own in scores.items():
                predict(client, f"r{half[0]}", model, {"late": [own[who] for who in half]})
            predict(client, f"r{half[0]}", "exact", {"delay": [float(who % 7) for who in half]})
            predict(client, f"r{half[0]}", "coarse", {"delay": [500.0 + who for who in half]})
            clock.now_us += HOUR_US
        ask(client, "young", people[:300])  # its horizon ends after the first run, and its labels are all wrong
        predict(client, "young", "good", {"late": [float(not late[who]) for who in people[:300]]})
    workspace = project.workspace(clock)
    clock.now_us = begin_us + 7 * HOUR_US + HOUR_US // 2
    young = run(project, clock)
    assert set(states(young).values()) == {"not judged"}
    assert "600 wait for what is not committed: run `fs materialize --view outcomes`" in str(young)
    rows = [outcome(who, begin_us + HOUR_US + 1, late=late[who], delay=float(who % 7) + 1) for who in people]
    commit_rows(workspace, "outcomes", rows, covers=(begin_us, clock()))
    found = run(project, clock)
    bad = f"auc of late by {HOSTILE}"
    assert states(found) == {
        "auc of late by good": "ok",
        bad: "alarm",
        "accuracy of late by good": "ok",
        "mean_absolute_error of delay by exact": "ok",
        "mean_absolute_error of delay by coarse": "ok",
        "bias of delay by exact": "ok",
        "bias of delay by coarse": "alarm",
    }
    for model in scores:
        each = found[f"auc of late by {model}"]
        (line,) = each.lines
        own, truth = [scores[model][who] for who in people], [late[who] for who in people]
        assert line.value == pytest.approx(auc_by_pairs(own, [float(is_late) for is_late in truth]))
        assert line.bound == pytest.approx(0.7 - 3 * spread_by_loops(own, truth, people))
        assert (each.rows, each.entities) == (600, 600)
        assert (each.start_us, each.until_us) == (begin_us - 5 * HOUR_US // 2, begin_us + 3 * HOUR_US // 2)
    assert found["mean_absolute_error of delay by exact"].lines[0].value == pytest.approx(1)
    assert "bias -1 of 600 predictions, at most 2 is wanted (2 " in found["bias of delay by exact"].lines[0].told
    assert len(found.alarms) == 2
    assert run(project, clock).alarms == found.alarms
    fs, at = CommandLine(project.root, capsys), to_rfc3339(clock())
    page, text = tmp_path / "page.html", tmp_path / "fs.prom"
    said = fs("monitor", "--until", at, "--html", str(page), "--metrics", str(text), expect=3)
    assert "served 2024-02-01T09:30:00Z to 2024-02-01T13:30:00Z" in said
    assert "\u202e" not in said
    assert "AUC" in said
    assert "<b>m" not in page.read_text()
    assert "&lt;b&gt;m" in page.read_text()
    assert "served 2024-02-01T09:30:00Z" in page.read_text()
    assert 'feature="auc of late by good",line="auc"' in text.read_text()
    (told,) = json.loads(fs("monitor", "--until", at, "--json", expect=3))
    alarmed = {each for each, state in states(found).items() if state == "alarm"}
    assert {each["feature"] for each in told["alarms"]} == alarmed
    assert told["features"][0]["start"] == "2024-02-01T09:30:00Z"
    with serving_catalog(workspace.registry) as url:
        seen = httpx.get(f"{url}/p/shop/monitor/watched").text
    assert "AUC of late, by each model, beside outcomes:late within 6" in seen
    assert "at most <strong>9,000</strong>" in seen
    assert "served 2024-02-01 09:30" in seen
    assert "<b>m" not in seen
    assert "&lt;b&gt;m" in seen
    clock.now_us = begin_us + 9 * HOUR_US  # the last request has matured, and the first two are in the window, too
    again = [outcome(who, begin_us + 2 * HOUR_US + 1, late=late[who]) for who in people]
    commit_rows(workspace, "outcomes", again, covers=(begin_us, clock()))
    later = run(project, clock)
    truth = [late[who] for who in [*people, *people[:300]]]
    own = [*(scores["good"][who] for who in people), *(float(not late[who]) for who in people[:300])]
    line = later["auc of late by good"].lines[0]
    assert line.value == pytest.approx(auc_by_pairs(own, [float(each) for each in truth]))
    # Within one horizon a person has one outcome: the two predictions for it stand and fall together.
    assert line.bound == pytest.approx(0.7 - 3 * spread_by_loops(own, truth, [*people, *people[:300]]))
    assert line.exceeds
    # Nobody predicts: nothing is judged, and no alarm ends.
    clock.now_us = begin_us + 13 * HOUR_US
    quiet = run(project, clock)
    assert set(quiet.alarms) == set(later.alarms)
    assert {*later.alarms} > {*found.alarms}
    assert set(states(quiet).values()) == {"not judged"}
    with serving_here(project.workspace(clock)) as client:
        ask(client, "last", people)
        predict(client, "last", "good", {"late": [scores["good"][who] for who in people]})
    clock.now_us = begin_us + 20 * HOUR_US
    commit_rows(workspace, "outcomes", [outcome(who, clock() - 6 * HOUR_US, late=late[who]) for who in people])
    last = run(project, clock)
    assert states(last)["auc of late by good"] == "ok"
    assert bad not in states(last)
    assert {alarm.feature for alarm in last.document.alarms} == {"bias of delay by coarse"}, (
        "a model that others replaced is no alarm any more; one that nobody replaced stays one"
    )


def test_what_cannot_be_judged_is_said(project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, one class, nulls alone, other names, texts for numbers, one outcome, a model that is gone."""
    begin_us, people = clock(), list(PEOPLE)
    with serving_here(project.workspace(clock)) as client:
        ask(client, "r", people)
        predict(client, "r", "one", {"late": [0.5] * 600, "delay": [None] * 600})
        predict(client, "r", "few", {"late": [0.5] * 299 + [None] * 301})
        predict(client, "r", "texts", {"kind": ["x"] * 600})
        predict(client, "r", "nulls", {"delay": [None] * 600})
        predict(client, "lost", "one", {"late": [0.1] * 7})
        for number in range(2):
            ask(client, f"s{number}", [1] * 300, "hashed", request_data={"trip_id": [1] * 300})
            predict(client, f"s{number}", "narrow", {"delay": [1.0] * 300}, "hashed")
    workspace = project.workspace(clock)
    clock.now_us += 7 * HOUR_US
    rows = [outcome(who, begin_us + 1, late=False, delay=1.0, kind="x", flag=who % 3) for who in [1, *people]]
    commit_rows(workspace, "outcomes", rows)
    found = run(project, clock)
    told = {each.name: each.not_judged for each in found.document.features}
    assert set(states(found).values()) <= {"not judged", "ok"}
    assert told["auc of late by one"] == (
        "all labels are alike: AUC needs both; 7 are of requests that are not in the served log"
    )
    assert told["auc of late by few"].startswith("299 predictions have a label, and 300 are needed; 301 are null")
    assert told["accuracy of late by good"] == "no prediction of 'good' stands beside what was served"
    assert told["bias of delay by nulls"] == (
        "0 predictions have a label, and 500 are needed; 600 are null, not finite, or no score between 0 and 1"
    )
    other = """
of_names = Monitor("of_names", service=logged, baseline=timedelta(days=1), window=timedelta(hours=4), checks=[
    ModelMetric("auc", late, "lte", at_least=0.7),
    ModelMetric("bias", delay, "kind", at_most=1),
    ModelMetric("auc", Label("outcomes:flag", horizon=timedelta(hours=6)), "late", at_least=0.7, rows=10),
    ModelMetric("accuracy", Label("outcomes:flag", horizon=timedelta(hours=6)), "delay", at_least=0.7),
])
of_one = Monitor("of_one", service=hashed, baseline=timedelta(days=1), window=timedelta(hours=4), checks=[
    ModelMetric("bias", delay, "delay", at_most=1)
])
"""
    write(project, MONITORS + other)
    project.apply()
    named = {each.name: each.not_judged for each in run(project, clock, "of_names").document.features}
    assert named["auc of lte"] == "No model logged a prediction 'lte' in this span. Did you mean 'late'?"
    assert "The prediction 'kind' is a text, the label outcomes:delay is Float64" in named["bias of kind"]
    assert "is not only 0 and 1, so it is no yes or no" in named["auc of late"]
    assert "0 predictions have a label" in named["accuracy of delay by nulls"]
    narrow = run(project, clock, "of_one")["bias of delay by narrow"]
    assert narrow.not_judged == "their labels are of 1 outcomes, and 30 are needed"
    assert (narrow.rows, narrow.entities) == (600, 1)
    monkeypatch.setenv("FS_SERVED__SECRET", "another one that nobody guesses")
    with pytest.raises(SettingsError, match="hashed with another secret"):
        run(project, clock, "of_one")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("'aux', late, 'late', at_least=0.5", "must be one of auc, accuracy, .* Did you mean 'auc'"),
        ("'auc', late, 'late', at_most=0.5", "auc is a score: .* at_least=, and no at_most="),
        ("'bias', delay, 'late', at_least=0.5", "bias is an error: .* at_most=, and no at_least="),
        ("'auc', late, 'late', at_least=0.5, at_most=0.6", "auc is a score"),
        ("'auc', late, 'late'", "auc is a score"),
        ("'auc', late, 'late', at_least=1.5", "at_least: must be greater than 0 and at most 1"),
        ("'log_loss', late, 'late', at_most=-1", "at_most: must be greater than 0"),
        ("'log_loss', late, 'late', at_most=float('nan')", "at_most"),
        ("'auc', 'outcomes:late', 'late', at_least=0.5", "label: must be Label"),
        ("'auc', late, 'no name', at_least=0.5", "prediction"),
        ("'auc', late, 'late', at_least=0.5, model=''", "model"),
        ("'auc', late, 'late', at_least=0.5, rows=0", "rows: must be 1 or more"),
        ("'auc', Label('outcomes:late', horizon=timedelta(days=30)), 'late', at_least=0.5", "keeps rows for 30 days"),
    ],
)
def test_checks_that_cannot_be_are_refused_where_they_are_made(given: str, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        monitors(f"service=logged, checks=[ModelMetric({given})]")


def monitors(given: str) -> Any:
    """Return a monitor that is declared so."""
    from support.serving import FEATURES

    names: dict[str, Any] = {}
    exec(FEATURES + LOGGED + MONITORS.split("watched = ")[0], names)
    exec(f"made = Monitor('made', baseline=timedelta(days=1), {given})", names)
    return names["made"]


def test_checks_that_do_not_fit_their_monitor_are_refused() -> None:
    one, other = (
        "ModelMetric('auc', late, 'late', at_least=0.5)",
        "ModelMetric('auc', {}, 'late', at_least=0.6, model='m')",
    )
    with pytest.raises(DefinitionError, match="ModelMetric is of what a service served"):
        monitors(f"view=outcomes, checks=[{one}]")
    far = "Label('outcomes:late', horizon=timedelta(hours=7))"
    with pytest.raises(DefinitionError, match="auc of 'late' is judged by two labels"):
        monitors(f"service=logged, checks=[{one}, {other.format(far)}]")
    assert len(monitors(f"service=logged, checks=[{one}, {other.format('same')}]").metrics) == 2


def test_a_plan_knows_which_views_labels_are_of(
    project: Project, clock: ManualClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label's view does not go alone, nor its feature; objects and texts are the same definition."""

    rows = {name: [1] for name in ("customer_id", "trip_id", "flag")} | {name: [0.5] for name in ("delay", "tip")}
    rows |= {"at": [to_datetime(clock())], "known_at": [to_datetime(clock())], "late": [True], "more": [True]}
    rows |= {"kind": ["x"], "day": [date(2024, 2, 1)]}
    (project.root / "outcomes").mkdir()
    pd.DataFrame(rows).to_parquet(project.root / "outcomes/one.parquet")

    def plan(monitors: str = MONITORS, change: Callable[[str], str] = lambda text: text) -> Any:
        write(project, monitors, change)
        with FeatureStore(project.root, clock=clock) as store:
            return store.plan()

    assert not plan().steps
    assert not plan(MONITORS.replace('ModelMetric("auc", late', 'ModelMetric("auc", same')).steps
    (step,) = plan(MONITORS.replace("at_least=0.7", "at_least=0.8")).steps
    assert (step.kind, step.name, step.change_class.name) == ("monitor", "watched", "METADATA")
    assert [each.what for each in step.differences] == ["checks"]
    with FeatureStore(project.root, clock=clock) as store:
        record = next(each for each in store.workspace.snapshot().records if each.kind == "monitor")
        assert record.depends_on == ("feature_service:logged", "feature_view:outcomes")
        assert store.get("monitor", "watched").metrics[0].label.reference == "outcomes:late"
        assert "monitor:watched" in {node.id for node in store.lineage("outcomes").nodes}
    assert "at_least=0.8" in CommandLine(project.root, capsys)("plan")
    more = 'Field("late", Bool)', 'Field("late", Bool), Field("more", Bool)'
    steps = {step.name: step for step in plan(change=lambda text: text.replace(*more)).steps}
    assert "monitor:watched" in steps["outcomes"].affects
    text_only = MONITORS.replace('same = Label(outcomes[["late"]], horizon=timedelta(hours=6))\n', "")
    renamed, without = ('    "outcomes", entities', '    "outcome", entities'), ('Field("late", Bool), ', "")
    for wanted, change, told in (
        (text_only, renamed, "no feature view 'outcomes'. Did you mean 'outcome'"),
        (text_only, without, "has no feature 'late'"),
        (
            text_only.replace("outcomes:late", "outcomes:day"),
            more,
            "auc cannot be of the .* outcomes:day, which is Date",
        ),
        (
            text_only.replace("outcomes:late", "outcomes:kind"),
            more,
            "auc cannot be of .* outcomes:kind, which is String",
        ),
    ):
        with pytest.raises(DefinitionError, match=told):
            plan(wanted, lambda text, change=change: text.replace(*change))
    with pytest.raises(DefinitionError, match="is of 'trip_id', which is neither a join key of 'logged'"):
        plan(MONITORS.replace("outcomes:delay", "trips:tip"))
    assert plan(MONITORS.replace("outcomes:delay", "trips:tip").replace("service=logged", "service=hashed")).steps
    write(project, MONITORS)
    with FeatureStore(project.root, clock=clock) as store:
        odd = store.get("feature_view", "outcomes")
        kept = tuple(field for field in odd.fields if field.name != "late")
        with pytest.raises(DefinitionError, match="monitor 'watched' is applied and does not fit"):
            store.apply([odd.replaced(fields=kept)], allow_breaking=True, allow_destroy=True)


def test_a_check_that_an_earlier_version_does_not_know_is_refused(
    project: Project, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(CHECKS, "model_metric")
    with (
        FeatureStore(project.root, clock=clock) as store,
        pytest.raises(RegistryFormatError, match="check model_metric"),
    ):
        store.list("monitor")


def test_metrics_are_the_figures_that_there_are() -> None:
    nothing = np.zeros(0)
    assert set(METRICS) == {name for figures in FIGURES.values() for name in figures(nothing, nothing)}
    assert tasks_of("accuracy") == ("yes/no", "classes")


@pytest.mark.parametrize("figure", METRICS)
def test_what_chance_makes_is_what_drawing_the_outcomes_again_makes(figure: str) -> None:
    """Drawn anew again and again, entities and all, a figure spreads as one drawing says that it does."""
    dice, task = np.random.default_rng(5), tasks_of(figure)[0]
    assert task != "classes"

    def drawn() -> tuple[Any, Any, Any]:
        groups = np.repeat(np.arange(200), dice.integers(1, 6, 200))
        own = dice.normal(0, 1, 200)[groups] + dice.normal(0, 0.3, len(groups))
        if task == "numbers":
            return own, np.zeros(len(groups)), groups
        truth = (dice.random(200) < 0.4)[groups].astype(float)
        return 1 / (1 + np.exp(-own - truth)), truth, groups

    figures, told = [], []
    for _ in range(200):
        predicted, actual, groups = drawn()
        figures.append(FIGURES[task](predicted, actual)[figure])
        told.append(chance(figure, task, predicted, actual, groups))
    assert np.median(told) == pytest.approx(np.std(figures), rel=0.2)


def test_chance_of_errors_beyond_floats_is_not_told() -> None:
    task: Task = "numbers"
    huge, groups = np.array([1e308, -1e308, 1.0]), np.arange(3)
    assert chance("root_mean_square_error", task, huge, np.zeros(3), groups) == 0
    assert chance("bias", task, huge[2:], np.zeros(1), groups[:1]) == 0
