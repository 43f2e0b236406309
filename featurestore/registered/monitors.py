"""Monitors as documents of the registry, and documents as monitors again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from featurestore.definitions import FeatureService, FeatureView, Monitor
from featurestore.definitions.monitor import CHECKS, Baseline, Check
from featurestore.types.times import MICROSECOND, to_datetime, to_instant


def monitor_document(monitor: Monitor) -> dict[str, Any]:
    """Return what the registry keeps of a monitor."""
    return {
        "target": [monitor.target.kind, monitor.target.name],
        "baseline": _baseline_document(monitor.baseline),
        "window_us": monitor.window // MICROSECOND,
        "checks": [{"kind": check.kind, **_check_document(check)} for check in monitor.checks],
    }


def monitor_from(
    name: str, document: Mapping[str, Any], lookup: Callable[[str, str], Any], common: dict[str, Any]
) -> Monitor:
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
        checks=[_check_from(check) for check in document["checks"]],
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


def _check_document(check: Check) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value := getattr(check, name), tuple) else value
        for name in type(check).model_fields
    }


def _check_from(document: Mapping[str, Any]) -> Check:
    given = dict(document)
    kind = given.pop("kind")
    if kind not in CHECKS:
        raise ValueError(f"its check {kind}")
    if unread := given.keys() - CHECKS[kind].model_fields.keys():  # it may ask for more than we would look at
        raise ValueError(f"its parts {', '.join(sorted(unread))} of {kind}")
    return CHECKS[kind](**given)
