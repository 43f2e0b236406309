"""Whether monitors can judge models: by labels of views that there are, for whom the service is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from featurestore.definitions import Definition, FeatureSelection, FeatureService, FeatureView, Monitor, RequestSource
from featurestore.definitions.label import SHORTER_WINDOW
from featurestore.definitions.monitor import ModelMetric
from featurestore.errors import DefinitionError, NotFoundError, did_you_mean
from featurestore.types import Bool, Float32, Float64, Int32, Int64, String

_NUMBERS = (Bool, Int32, Int64, Float32, Float64)


def check_labels(wanted: Iterable[Definition], applied: Mapping[str, FeatureView]) -> None:
    """Raise DefinitionError for a monitor whose label nobody could look up; ``applied`` are views that stay."""
    known = list(wanted)
    views = {**applied, **{found.name: found for found in known if isinstance(found, FeatureView)}}
    for monitor in (found for found in known if isinstance(found, Monitor)):
        for check in monitor.metrics:
            lack, hint = _lack(monitor, check, views)
            if lack:
                raise DefinitionError(f"Monitor {monitor.name!r}: {lack}", hint=hint, object=monitor.name)


def _lack(monitor: Monitor, check: ModelMetric, views: Mapping[str, FeatureView]) -> tuple[str, str]:
    """Return why a check could judge nothing, and what to do; an empty text where it can."""
    label = check.label
    view = views.get(label.view)
    if view is None:
        hint = did_you_mean(label.view, views) or "Declare the view, or remove the check."
        return f"{check.metric} is judged by {label.reference}, and there is no feature view {label.view!r}.", hint
    try:
        if lack := label.lack_in(view):
            return lack, SHORTER_WINDOW
        kind = view.feature(label.reference.rpartition(":")[2]).type
    except NotFoundError as error:
        return error.message, error.hint
    if kind not in ((*_NUMBERS, String) if check.metric == "accuracy" else _NUMBERS):
        hint = "Texts have an accuracy, numbers and booleans each other metric that fits."
        return f"{check.metric} cannot be of the label {label.reference}, which is {kind}.", hint
    by = label.feature.join_key_columns.values() if isinstance(label.feature, FeatureSelection) else view.join_keys
    assert isinstance(monitor.target, FeatureService)
    if unknown := sorted({*by} - _asked_with(monitor.target)):
        return (
            f"the label {label.reference} is of {', '.join(map(repr, unknown))}, which is neither a join key of "
            f"{monitor.target.name!r} nor request data.",
            "Read the label by a column that there is: view[[...]].with_join_keys({...}); or let requests bring it, by "
            "a RequestSource.",
        )
    return "", ""


def _asked_with(service: FeatureService) -> set[str]:
    """Return the columns that requests for a service bring: join keys and request data."""
    found = set[str]()
    for feature in service.features:
        for read in (feature,) if isinstance(feature, FeatureSelection) else feature.inputs:
            names = [f.name for f in read.fields] if isinstance(read, RequestSource) else read.join_key_columns.values()
            found.update(names)
    return found
