"""How models do, as monitors tell it: a figure over labels that have matured, beside a bound and what chance makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from featurestore_registry.findings import COMPARED, ComparedLine, WatchedFeature

from featurestore.definitions import Label, ModelMetric, Monitor
from featurestore.definitions.monitor import METRICS
from featurestore.errors import InputError, NotFoundError
from featurestore.quality.figures import Task, chance, tasks_of
from featurestore.quality.judging import PredictedLabels, predictions_beside
from featurestore.quality.observed import Int64s, numbered
from featurestore.quality.performance import ModelPerformance
from featurestore.types.times import MICROSECOND
from featurestore.workspace import Workspace

Watched = Callable[..., WatchedFeature]
"""Makes what is told, of the span of what was served."""
LEAST_OUTCOMES = 30
"""Of fewer outcomes nobody can say what chance makes."""
DEVIATIONS = 3
"""So many standard errors are allowed on top of a bound, as in `quality.drift`."""
BY = " by "
"""Stands before the model in the name of what is told."""
_MOST = 1e300
"""JSON has no infinity."""


class _Line(NamedTuple):
    """A figure of one prediction, and its checks."""

    metric: str
    prediction: str
    checks: Sequence[ModelMetric]

    @property
    def name(self) -> str:
        """How it is told where there is no model."""
        return f"{self.metric} of {self.prediction}"

    def check_of(self, model: str) -> ModelMetric | None:
        """Return the check that counts for a model: the last one."""
        return next((each for each in reversed(self.checks) if each.model in (None, model)), None)


def model_metrics(workspace: Workspace, monitor: Monitor, until_us: int) -> Iterator[WatchedFeature]:
    """Yield how each model does that a monitor judges; raises SettingsError for another secret than the log's.

    Judged is what was served in the monitor's window one horizon before ``until_us``.
    """
    known: dict[tuple[str, Label], PredictedLabels] = {}
    for line in _lines(monitor.metrics):
        label = line.checks[-1].label
        end_us = until_us - label.horizon_us
        start_us, key = end_us - monitor.window // MICROSECOND, (line.prediction, label)
        watched = partial(WatchedFeature, start_us=start_us, until_us=end_us)
        try:
            if key not in known:
                known[key] = predictions_beside(
                    workspace, monitor.target.name, label, line.prediction, start_us, end_us
                )
            yield from _judged(line, known[key], watched)
        except (InputError, NotFoundError) as error:  # what is logged does not fit; all else can be told
            yield watched(line.name, "not judged", not_judged=str(error))


def _lines(checks: Sequence[ModelMetric]) -> list[_Line]:
    found: dict[tuple[str, str], list[ModelMetric]] = {}
    for check in checks:
        found.setdefault((check.metric, check.prediction), []).append(check)
    return [_Line(*key, own) for key, own in found.items()]


def _judged(line: _Line, beside: PredictedLabels, watched: Watched) -> Iterator[WatchedFeature]:
    task = beside.task(tasks_of(line.metric))
    models = {each.model: each for each in beside.performances(task)}
    named = (check.model for check in line.checks if check.model is not None)
    wanted = {model: check for model in (*models, *named) if (check := line.check_of(model)) is not None}
    for model, check in wanted.items():
        name = f"{line.name}{BY}{model}"
        if model not in models:
            yield watched(name, "not judged", not_judged=f"no prediction of {model!r} stands beside what was served")
            continue
        yield _of_model(watched, name, check, beside, task, models[model])
    if not wanted:
        lack = f"no prediction {line.prediction!r} that is not null stands beside what was served"
        yield watched(line.name, "not judged", not_judged=lack)


def _of_model(
    watched: Watched, name: str, check: ModelMetric, beside: PredictedLabels, task: Task, model: ModelPerformance
) -> WatchedFeature:
    values = beside.values(task)
    rows = beside.judged(model.model, values)
    entities = beside.entities[rows]
    outcomes = outcomes_of(entities, beside.at_us[rows], check.label.horizon_us)
    count, figure = int(outcomes.max(initial=-1)) + 1, model.figures[check.metric]
    found = watched(name, "not judged", model.rows, len(np.unique(entities)))
    lack = ""
    if model.rows < check.rows:
        lack = f"{model.rows:,} predictions have a label, and {check.rows:,} are needed"
    elif count < LEAST_OUTCOMES:
        lack = f"their labels are of {count} outcomes, and {LEAST_OUTCOMES} are needed"
    elif figure is None:
        lack = f"all labels are alike: {COMPARED[check.metric]} needs both"
    else:
        spread = chance(check.metric, task, values.predicted[rows], values.actual[rows], outcomes)
        line = _compared(check, figure, DEVIATIONS * spread, model.rows)
        found = replace(found, state="alarm" if line.exceeds else "ok", lines=(line,))
    return replace(found, not_judged="; ".join([*filter(None, [lack]), *_left_out(check, model, beside.other_kind)]))


def _compared(check: ModelMetric, figure: float, allowed: float, rows: int) -> ComparedLine:
    """Return a figure beside its bound; of one window, for it is late by a horizon, and chance is allowed for."""
    value = abs(figure) if check.metric == "bias" else figure
    if METRICS[check.metric].is_score:
        bound, wanted = check.bound - allowed, "at least"
        exceeds = value < bound
    else:
        bound, wanted = check.bound + allowed, "at most"
        exceeds = value > bound
    told = (
        f"{COMPARED[check.metric]} {figure:.4g} of {rows:,} predictions, {wanted} {check.bound:g} is wanted "
        f"({bound:.4g} with what chance makes of so few)"
    )
    return ComparedLine(check.metric, min(value, _MOST), min(bound, _MOST), told, exceeds, exceeds)


def outcomes_of(entities: Int64s, at_us: Int64s, horizon_us: int) -> Int64s:
    """Return a number for each outcome: predictions for an entity within one horizon are of the same one."""
    import pyarrow as pa

    return numbered([pa.array(entities), pa.array(at_us // horizon_us)])


def _left_out(check: ModelMetric, model: ModelPerformance, other_kind: int) -> Iterator[str]:
    """Yield what is in no figure."""
    if model.not_committed:
        command = f"`fs materialize --view {check.label.view}`"
        yield f"{model.not_committed:,} wait for what is not committed: run {command}"
    counts = (
        (model.not_matured, "end their horizon after now"),
        (model.without_label, "have no label, for nothing became known"),
        (model.without_served, "are of requests that are not in the served log"),
        (model.unusable, "are null, not finite, or no score between 0 and 1"),
        (other_kind, "of all models are of another kind than those that are judged"),
    )
    for count, why in counts:
        if count:
            yield f"{count:,} {why}"
