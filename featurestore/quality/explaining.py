"""Putting causes to what a monitor found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from featurestore_registry.findings import DriftCause, WatchedFeature

from featurestore.definitions import FeatureService, FeatureView, Monitor
from featurestore.ledger.monitors import recent_findings
from featurestore.quality.drift_causes import Parts, causes_of, change_of, columns_of, steady, strongest
from featurestore.quality.drift_history import of_entities, of_runs
from featurestore.quality.gathering import request_of
from featurestore.quality.observed import Observed, some_rows
from featurestore.registered.snapshot import RegisteredView
from featurestore.served.shape import named_outputs
from featurestore.types.times import MIN_INSTANT
from featurestore.workspace import Readers

MOST_ROWS = 200_000
"""Causes are looked for in at most so many rows of either side: shares of so many are exact enough."""
LOOKED_BACK = 30
"""So many findings of a monitor are looked through for windows that were fine."""


class Judged(NamedTuple):
    """What was judged, and by which monitor."""

    monitor: Monitor
    definition: str
    """Its hash."""
    baseline: Observed
    now: Observed
    until_us: int


class _Sides(NamedTuple):
    baseline: Observed
    now: Observed
    columns: Sequence[Parts]
    since_us: Mapping[str, int]
    """For each feature since when what it changed with may have happened: the last window that was fine."""
    until_us: int


def explained(workspace: Readers, judged: Judged, features: Iterable[WatchedFeature]) -> Iterator[WatchedFeature]:
    """Yield features; those that are too far from the baseline with what that comes with."""
    known = list(features)
    if not any(line.exceeds for each in known for line in each.lines):
        yield from known
        return
    target = judged.monitor.target
    baseline, now = some_rows(judged.baseline, MOST_ROWS), some_rows(judged.now, MOST_ROWS)
    far = {each.name: {line.name for line in each.lines if line.exceeds} for each in known}
    judged_far = {each.name: far[each.name] for each in known if each.lines}
    columns = list(steady(columns_of(baseline, now), now.features, judged_far))
    stored = _stored(workspace, target)
    sides = _Sides(baseline, now, columns, _fine_since(workspace, judged), judged.until_us)
    for each in known:
        if far[each.name]:
            yield replace(each, causes=_of(workspace, target, sides, each, far, stored))
        else:
            yield each


def _of(
    workspace: Readers,
    target: FeatureService | FeatureView,
    sides: _Sides,
    feature: WatchedFeature,
    far: Mapping[str, set[str]],
    stored: Mapping[str, tuple[RegisteredView, str]],
) -> tuple[DriftCause, ...]:
    baseline, now = sides.baseline, sides.now
    if feature.name not in now.features:  # the age of records
        return ()
    inputs = [name for name in now.features[feature.name].inputs if far.get(name)]
    if inputs:
        return (DriftCause("input", f"it is made of {', '.join(inputs)}, which changed", 1.0),)
    change = change_of(baseline, now, feature.name, far[feature.name])
    if change is None:
        return ()
    found = causes_of(sides.columns, change)
    found += of_entities(workspace, None if isinstance(target, FeatureView) else target.name, baseline, now, change)
    if feature.name in stored:
        registered, name = stored[feature.name]
        since_us = sides.since_us.get(feature.name, MIN_INSTANT)
        found += of_runs(workspace, registered, name, change, since_us, sides.until_us)
    return strongest(found)


def _fine_since(workspace: Readers, judged: Judged) -> dict[str, int]:
    """Return for each feature the start of the last window that the same monitor judged fine."""
    found = dict[str, int]()
    for each in recent_findings(workspace.ledger, workspace.project, judged.monitor.name, limit=LOOKED_BACK):
        if each.definition == judged.definition and each.until_us <= judged.until_us:
            for feature in each.features:
                if feature.state == "ok":
                    found[feature.name] = max(found.get(feature.name, MIN_INSTANT), each.start_us)
    return found


def _stored(workspace: Readers, target: FeatureService | FeatureView) -> dict[str, tuple[RegisteredView, str]]:
    """Return the view and the stored feature behind each feature; what windows and code make is in no run."""
    if isinstance(target, FeatureView):
        registered = workspace.snapshot().registered(target.name)
        return {} if target.aggregations else {field.name: (registered, field.name) for field in target.stored}
    request = request_of(workspace, target.name)
    reads = {
        name: (request.reads[each.read], each) for name, each in named_outputs(request).items() if each.read is not None
    }
    return {
        name: (read.registered, each.field.name) for name, (read, each) in reads.items() if not read.view.aggregations
    }
