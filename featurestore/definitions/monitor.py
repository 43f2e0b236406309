"""Monitors: what is watched of the features that a service serves, or that a view's runs bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from pydantic import SerializeAsAny, field_validator, model_validator

from featurestore.definitions.base import ColumnName, Definition, Part, as_dict, as_tuple
from featurestore.definitions.label import Label
from featurestore.definitions.service import FeatureService
from featurestore.definitions.view import FeatureView
from featurestore.errors import DefinitionError, did_you_mean

Baseline = str | timedelta | tuple[datetime, datetime]
"""The name of a saved training set, the time right before the windows that are compared, or a span [start, end)."""


class Check(Part):
    """What a monitor looks at."""


class Drift(Check):
    """How far values may be from the baseline's before that is an alarm. None turns a line off.

    ``features`` are those that it is for, all where there are none; of two for one feature the last one counts.
    ``psi`` is the population stability index over the bins that a feature is counted in everywhere, ``shift`` the
    distance of the means in standard deviations of the baseline, ``jensen_shannon`` the distance (0 to 1) of
    categories. ``nulls`` and ``statuses`` are changes of a share, ``outside`` how much more lies outside the bins,
    ``new_values`` the share from which a value that was hardly there before counts, ``stale`` the share of records that
    are older than 95 % of the baseline's were. What chance makes of so few entities is allowed on top of each.

    With fewer than ``rows`` rows or ``entities`` entities on either side nothing is judged. With ``same_weekday`` a
    baseline of four weeks or more is compared by the days of the week that the window has.
    """

    kind: ClassVar[str] = "drift"
    title: ClassVar[str] = "Drift"

    features: tuple[str, ...] = ()
    psi: float | None = 0.2
    shift: float | None = 0.5
    jensen_shannon: float | None = 0.2
    nulls: float | None = 0.05
    statuses: float | None = 0.05
    outside: float | None = 0.05
    new_values: float | None = 0.01
    stale: float | None = 0.5
    rows: int = 500
    entities: int = 200
    same_weekday: bool = True

    def __init__(
        self,
        features: str | Sequence[str] = (),
        *,
        psi: float | None = 0.2,
        shift: float | None = 0.5,
        jensen_shannon: float | None = 0.2,
        nulls: float | None = 0.05,
        statuses: float | None = 0.05,
        outside: float | None = 0.05,
        new_values: float | None = 0.01,
        stale: float | None = 0.5,
        rows: int = 500,
        entities: int = 200,
        same_weekday: bool = True,
    ) -> None:
        self._fill(
            features=(features,) if isinstance(features, str) else as_tuple(features),
            psi=psi,
            shift=shift,
            jensen_shannon=jensen_shannon,
            nulls=nulls,
            statuses=statuses,
            outside=outside,
            new_values=new_values,
            stale=stale,
            rows=rows,
            entities=entities,
            same_weekday=same_weekday,
        )

    @field_validator("psi", "shift", mode="before")
    @classmethod
    def _check_distance(cls, bound: object) -> object:
        return _bound(bound, math.inf, "a number greater than 0, such as 0.2, or None")

    @field_validator("jensen_shannon", "nulls", "statuses", "outside", "new_values", "stale", mode="before")
    @classmethod
    def _check_share(cls, bound: object) -> object:
        return _bound(bound, 1.0, "greater than 0 and at most 1, or None")

    @field_validator("rows", "entities")
    @classmethod
    def _check_least(cls, least: int) -> int:
        return at_least_one(least)


class MatchRate(Check):
    """At least this share of the served values is what was committed and online by then, as `FeatureStore.parity`."""

    kind: ClassVar[str] = "match_rate"
    title: ClassVar[str] = "MatchRate"

    at_least: float

    def __init__(self, at_least: float) -> None:
        self._fill(at_least=at_least)

    @field_validator("at_least", mode="before")
    @classmethod
    def _check(cls, share: object) -> object:
        return _bound(share, 1.0, "a share greater than 0 and at most 1, such as 0.999", optional=False)


class Metric(NamedTuple):
    """What a figure of a model means."""

    is_score: bool
    """The greater the better; of errors the smaller."""
    is_share: bool
    """It lies between 0 and 1."""


METRICS: Mapping[str, Metric] = {
    "auc": Metric(is_score=True, is_share=True),
    "accuracy": Metric(is_score=True, is_share=True),
    "log_loss": Metric(is_score=False, is_share=False),
    "mean_absolute_error": Metric(is_score=False, is_share=False),
    "root_mean_square_error": Metric(is_score=False, is_share=False),
    "bias": Metric(is_score=False, is_share=False),
}
"""The figures of `FeatureStore.performance` that can be watched; a bias by its size, whichever its sign."""


class ModelMetric(Check):
    """How well models predict what becomes known later, as `FeatureStore.performance`, over labels that have matured.

    ``metric`` is one of `METRICS`: scores (``auc``, ``accuracy``) take ``at_least``, errors (``log_loss``,
    ``mean_absolute_error``, ``root_mean_square_error``, ``bias``) take ``at_most``. ``label`` is what becomes known,
    ``prediction`` the name under which predictions are logged. Each model that predicted is judged by itself; with
    ``model`` that one alone. Of two checks of one metric for a model the last one counts.

    What is judged was served in the monitor's window, one horizon earlier: only that has matured by now. What chance
    makes of so few outcomes is allowed on top of the bound, so that one window makes an alarm. With fewer than ``rows``
    predictions that have a label nothing is judged.
    """

    kind: ClassVar[str] = "model_metric"
    title: ClassVar[str] = "ModelMetric"

    metric: str
    label: Label
    prediction: ColumnName
    at_least: float | None = None
    at_most: float | None = None
    model: str | None = None
    rows: int = 500

    def __init__(
        self,
        metric: str,
        label: Label,
        prediction: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        model: str | None = None,
        rows: int = 500,
    ) -> None:
        self._fill(
            metric=metric,
            label=label,
            prediction=prediction,
            at_least=at_least,
            at_most=at_most,
            model=model,
            rows=rows,
        )

    @property
    def bound(self) -> float:
        """From where on it is too far; what chance makes comes on top."""
        bound = self.at_most if self.at_least is None else self.at_least
        assert bound is not None
        return bound

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, metric: str) -> str:
        if metric not in METRICS:
            raise ValueError(f"must be one of {', '.join(METRICS)}. {did_you_mean(metric, METRICS)}".rstrip(". "))
        return metric

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | None) -> str | None:
        if model == "":
            raise ValueError("is the model and its version, as predictions are logged; None for all of them")
        return model

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: int) -> int:
        return at_least_one(rows)

    @model_validator(mode="after")
    def _check_bound(self) -> ModelMetric:
        means, bounds = METRICS[self.metric], {"at_least": self.at_least, "at_most": self.at_most}
        wanted, other = ("at_least", "at_most") if means.is_score else ("at_most", "at_least")
        what = "a score: the greater the better" if means.is_score else "an error: the smaller the better"
        if bounds[other] is not None or bounds[wanted] is None:
            raise ValueError(f"{self.metric} is {what}, so give it {wanted}=, and no {other}=")
        told = "greater than 0" + " and at most 1" * means.is_share
        try:
            _bound(bounds[wanted], 1.0 if means.is_share else math.inf, told)
        except ValueError as error:
            raise ValueError(f"{wanted}: {error}") from None
        return self


class Monitor(Definition):
    """Watches what is served for a service, or the rows that runs bring to a view, beside a baseline.

    A service is compared with a saved training set (its name), or with what was served before: in the time right before
    the compared windows (a timedelta), or in a span of two instants. A view is compared with its own rows, in one of
    the latter two ways. ``window`` is how long one comparison reaches back; two windows in a row make an alarm.
    """

    kind: ClassVar[str] = "monitor"
    title: ClassVar[str] = "Monitor"

    target: FeatureService | FeatureView
    baseline: Baseline
    window: timedelta = timedelta(days=1)
    checks: tuple[SerializeAsAny[Check], ...]

    def __init__(
        self,
        name: str,
        *,
        service: FeatureService | None = None,
        view: FeatureView | None = None,
        baseline: Baseline,
        window: timedelta = timedelta(days=1),
        checks: Sequence[Check] = (),
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        if (service is None) == (view is None):
            raise DefinitionError(f"Monitor {name!r}: give it a service or a view, one of them.", object=name)
        self._fill(
            name,
            target=view if service is None else service,
            baseline=as_tuple(baseline),
            window=window,
            checks=as_tuple(checks) or (Drift(),),
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @property
    def metrics(self) -> tuple[ModelMetric, ...]:
        """Its checks of how models do, in their order."""
        return tuple(check for check in self.checks if isinstance(check, ModelMetric))

    @property
    def drift(self) -> tuple[Drift, ...]:
        """Its checks for drift, in their order."""
        return tuple(check for check in self.checks if isinstance(check, Drift))

    def drift_of(self, feature: str) -> Drift | None:
        """Return the check that counts for a feature, None where it is not watched."""
        return next((each for each in reversed(self.drift) if not each.features or feature in each.features), None)

    @field_validator("window")
    @classmethod
    def _check_window(cls, window: timedelta) -> timedelta:
        if window <= timedelta(0):
            raise ValueError("must be greater than zero, such as timedelta(days=1)")
        return window

    @field_validator("baseline", mode="before")
    @classmethod
    def _check_baseline(cls, baseline: Any) -> Any:
        if isinstance(baseline, timedelta):
            if baseline <= timedelta(0):
                raise ValueError("must be greater than zero, such as timedelta(days=28)")
        elif isinstance(baseline, str):
            if not baseline:
                raise ValueError("is the name of a saved training set, which cannot be empty")
        elif not (
            isinstance(baseline, tuple) and len(baseline) == 2 and all(isinstance(e, datetime) for e in baseline)
        ):
            raise ValueError("is the name of a saved training set, a timedelta, or two datetimes")
        else:
            start, end = (each if each.tzinfo else each.replace(tzinfo=UTC) for each in baseline)
            if start >= end:
                raise ValueError("the span's start must be before its end")
            return (start.astimezone(UTC), end.astimezone(UTC))
        return baseline

    @model_validator(mode="after")
    def _check(self) -> Monitor:
        target = self.target
        if isinstance(target, FeatureView):
            if isinstance(self.baseline, str):
                raise ValueError(
                    "baseline: a view's rows, one for each entity and run, do not compare with a training set's, which "
                    "are chosen by traffic; give a timedelta or a span"
                )
            for check in self.checks:
                if isinstance(check, MatchRate | ModelMetric):
                    raise ValueError(f"checks: {check.title} is of what a service served; this monitor is of a view")
        elif target.log is None:
            raise ValueError(f"service: {target.name!r} keeps no log of what is served: declare log=ServedLog(...)")
        else:
            _check_metrics(self.metrics, self.window, target.log.retention)
        known = _feature_names(target)
        for check in self.drift:
            if unknown := next((name for name in check.features if known and name not in known), None):
                like = did_you_mean(unknown.rpartition(":")[2], known)
                raise ValueError(f"checks: {target.name!r} has no feature {unknown!r}. {like}")
        return self


def _feature_names(target: FeatureService | FeatureView) -> set[str]:
    """Return what features may be called; nothing while a schema is neither declared nor pinned."""
    try:
        if isinstance(target, FeatureView):
            return {field.name for field in target.stored}
        named = [(read.name, field.name) for read in target.features for field in read.features]
    except DefinitionError:
        return set()
    return {name for view, feature in named for name in (feature, f"{view}__{feature}")}


def _check_metrics(metrics: Sequence[ModelMetric], window: timedelta, kept: timedelta) -> None:
    """Raise ValueError for a horizon that the log does not last for, and for one line that is judged by two labels."""
    judged_by: dict[tuple[str, str], Label] = {}
    for check in metrics:
        horizon = check.label.horizon
        if horizon + window > kept:
            raise ValueError(
                f"checks: {check.metric} is of what was served {horizon} before the window, which is {window}, and the "
                f"service's log keeps rows for {kept}: declare log=ServedLog(retention=...) longer"
            )
        other = judged_by.setdefault((check.metric, check.prediction), check.label)
        if (other.reference, other.horizon) != (check.label.reference, horizon):
            raise ValueError(
                f"checks: {check.metric} of {check.prediction!r} is judged by two labels, {other.reference} within "
                f"{other.horizon} and {check.label.reference} within {horizon}: declare a monitor for each"
            )


CHECKS: dict[str, type[Check]] = {check.kind: check for check in (Drift, MatchRate, ModelMetric)}


def at_least_one(least: int) -> int:
    """Return a number; raises ValueError for one below 1."""
    if least < 1:
        raise ValueError("must be 1 or more")
    return least


def _bound(given: object, most: float, what: str, *, optional: bool = True) -> object:
    if given is None and optional:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= most or math.isinf(given):
        raise ValueError(f"must be {what}")
    return float(given)
