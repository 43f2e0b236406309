"""Monitors as documents of the registry, and documents as monitors again."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from featurestore.definitions import FeatureService, FeatureView, Label, Monitor
from featurestore.definitions.monitor import CHECKS, Baseline, Check
from featurestore.registered.selections import Lookup, selection_document, selection_from
from featurestore.types.times import MICROSECOND, to_datetime, to_instant


def monitor_document(monitor: Monitor) -> dict[str, Any]:
    """Return what the registry keeps of a monitor."""
    return {
        "target": [monitor.target.kind, monitor.target.name],
        "baseline": _baseline_document(monitor.baseline),
        "window_us": monitor.window // MICROSECOND,
        "checks": [*map(check_document, monitor.checks)],
    }


def monitor_from(name: str, document: Mapping[str, Any], lookup: Lookup, common: dict[str, Any]) -> Monitor:
    """Return the monitor of a document; raises ValueError for a check that only a newer version knows."""
    kind, target = document["target"]
    if kind not in (FeatureService.kind, FeatureView.kind):
        raise ValueError(f"its target, a {kind}")
    watched = {"service" if kind == FeatureService.kind else "view": lookup(kind, target)}
    return Monitor(
        name,
        **watched,
        baseline=_baseline_from(document["baseline"]),
        window=document["window_us"] * MICROSECOND,
        checks=[_check_from(check, lookup) for check in document["checks"]],
        **common,
    )


def _baseline_document(baseline: Baseline) -> dict[str, Any]:
    if isinstance(baseline, str):
        return {"training_set": baseline}
    if isinstance(baseline, timedelta):
        return {"before_us": baseline // MICROSECOND}
    return {"start_us": to_instant(baseline[0]), "end_us": to_instant(baseline[1])}


def _baseline_from(document: Mapping[str, Any]) -> Baseline:
    if document.keys() == {"training_set"}:
        return str(document["training_set"])
    if document.keys() == {"before_us"}:
        return timedelta(microseconds=document["before_us"])
    if document.keys() == {"start_us", "end_us"}:
        return to_datetime(document["start_us"]), to_datetime(document["end_us"])
    raise ValueError("its baseline")


def check_document(check: Check) -> dict[str, Any]:
    """Return what the registry keeps of a check."""
    return {"kind": check.kind, **{name: _plain(getattr(check, name)) for name in type(check).model_fields}}


def _plain(value: Any) -> Any:
    if isinstance(value, Label):
        return _label_document(value)
    return list(value) if isinstance(value, tuple) else value


def _label_document(label: Label) -> dict[str, Any]:
    if isinstance(label.feature, str):
        view, _, feature = label.feature.partition(":")
        read = {"view": view, "features": [feature], "name": view, "join_keys": {}}
    else:
        read = selection_document(label.feature)
    return {**read, "column": label.name, "horizon_us": label.horizon_us}


def _label_from(document: Mapping[str, Any], lookup: Lookup) -> Label:
    given = dict(document)
    column, horizon_us = given.pop("column"), given.pop("horizon_us")
    if unread := given.keys() ^ {"view", "features", "name", "join_keys"}:
        raise ValueError(f"its parts {', '.join(sorted(unread))} of a label")
    return Label(selection_from(given, lookup), horizon=horizon_us * MICROSECOND, name=column)


def _check_from(document: Mapping[str, Any], lookup: Lookup) -> Check:
    given = dict(document)
    kind = given.pop("kind")
    if kind not in CHECKS:
        raise ValueError(f"its check {kind}")
    if unread := given.keys() - CHECKS[kind].model_fields.keys():  # it may ask for more than we would look at
        raise ValueError(f"its parts {', '.join(sorted(unread))} of {kind}")
    if "label" in given:
        given["label"] = _label_from(given["label"], lookup)
    return CHECKS[kind](**given)
