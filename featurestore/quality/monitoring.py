"""Running a monitor: two windows beside a baseline, and the alarms that come of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import Literal

from featurestore_registry.findings import MATCHES, RECORDS, ComparedLine, MonitorAlarm, MonitorDocument, WatchedFeature
from featurestore_registry.records import canonical_json

from featurestore.consistency.clocks import REGISTRY, clock_problem, registry_ahead_us
from featurestore.definitions import Drift, FeatureView, MatchRate, Monitor
from featurestore.errors import InputError, LedgerConflictError
from featurestore.ledger.consumers import list_consumers, readers_of
from featurestore.ledger.monitors import TRIES, newest_finding, write_finding
from featurestore.quality.comparing import parity
from featurestore.quality.drift import FeatureDrift, check_alike, compared, compared_ages, of_like_days
from featurestore.quality.explaining import Judged, explained
from featurestore.quality.gathering import batch, served, training
from featurestore.quality.metrics import BY, model_metrics
from featurestore.quality.observed import Observed
from featurestore.quality.report import MonitorResult
from featurestore.registered.applied import check_as_applied
from featurestore.registered.monitors import monitor_document
from featurestore.served.keep import rows_after
from featurestore.types.times import MICROSECOND, to_instant
from featurestore.workspace import Workspace

State = Literal["ok", "watch", "alarm", "not judged"]
_OLDER = "The windows end at this machine's now, so what was served after it is in none: --until says another end."
_MOST = 1e300
"""JSON has no infinity."""


def monitor(workspace: Workspace, which: str | Monitor, until_us: int | None = None) -> MonitorResult:
    """Run a monitor and keep what it found. See `FeatureStore.monitor`."""
    found = _applied(workspace, which)
    snapshot = workspace.snapshot()
    clocks = () if until_us is not None else tuple(_ahead(workspace))
    until_us = workspace.clock() if until_us is None else until_us
    rows = _Rows(workspace, found, until_us)
    definition = hashlib.sha256(canonical_json(monitor_document(found)).encode()).hexdigest()
    judged = Judged(found, definition, rows.baseline, rows.now, until_us)
    features = tuple(explained(workspace, judged, _watched(found, rows)))
    match_rate, matched = _matched(workspace, found, rows)
    features = (*features, *matched, *model_metrics(workspace, found, until_us))
    document = MonitorDocument(
        found.name,
        found.target.key,
        "not judged",
        workspace.clock(),
        rows.start_us,
        until_us,
        rows.baseline.what,
        rows=rows.now.rows,
        features=features,
        match_rate=match_rate,
        revision=snapshot.chain.head,
        definition=definition,
        models=readers_of(list_consumers(workspace.ledger, workspace.project), [found.target.key]),
        clocks=clocks,
    )
    result = _kept(workspace, document)
    if isinstance(found.target, FeatureView):
        return result
    return replace(result, after_now=rows_after(workspace, found.target.name, max(until_us, workspace.clock()) + 1))


def _applied(workspace: Workspace, which: str | Monitor) -> Monitor:
    """Return a monitor as it is applied."""
    snapshot = workspace.snapshot()
    if isinstance(which, Monitor):
        check_as_applied(snapshot, which)
    elif not isinstance(which, str):
        raise InputError(f"{which!r} is no monitor.", hint="Pass its name, or a Monitor that is applied.")
    return snapshot.get(Monitor, which if isinstance(which, str) else which.name)


def _ahead(workspace: Workspace) -> Iterator[str]:
    """Yield which clocks are ahead of this machine's, by which the last window ends: it may be an older one."""
    ahead_us = registry_ahead_us(workspace.registry, workspace.project, workspace.clock())
    told = clock_problem(REGISTRY, ahead_us)
    if told is not None:
        yield f"{told} {_OLDER} Run `fs doctor`."


class _Rows:
    """The rows that a monitor compares."""

    def __init__(self, workspace: Workspace, monitor: Monitor, until_us: int) -> None:
        self._workspace, self._monitor = workspace, monitor
        window_us = monitor.window // MICROSECOND
        self.start_us, self.until_us = until_us - window_us, until_us
        self.now = self._between(self.start_us, until_us)
        self.before = self._between(self.start_us - window_us, self.start_us)
        self.baseline = self._baseline(self.start_us - window_us)
        check_alike(self.baseline, self.now)
        self._like: dict[tuple[bool, bool], Observed] = {}

    def _between(self, start_us: int, end_us: int) -> Observed:
        target = self._monitor.target
        if isinstance(target, FeatureView):
            return batch(self._workspace, self._workspace.snapshot().registered(target.name), start_us, end_us)
        return served(self._workspace, target.name, start_us, end_us)

    def _baseline(self, end_us: int) -> Observed:
        baseline = self._monitor.baseline
        if isinstance(baseline, str):
            return training(self._workspace, self._monitor.target.name, baseline)
        if isinstance(baseline, timedelta):
            return self._between(end_us - baseline // MICROSECOND, end_us)
        return self._between(*map(to_instant, baseline))

    def windows(self, bounds: Drift) -> Iterator[tuple[Observed, Observed]]:
        """Yield the last window and the one before it, each behind the baseline's rows that it is compared with."""
        for is_last, window in ((True, self.now), (False, self.before)):
            known = is_last, bounds.same_weekday
            if known not in self._like:
                self._like[known] = of_like_days(self.baseline, window) if bounds.same_weekday else self.baseline
            yield self._like[known], window


def _watched(monitor: Monitor, rows: _Rows) -> Iterator[WatchedFeature]:
    for name in rows.now.features:
        bounds = monitor.drift_of(name)
        if bounds is not None:
            yield _judged(name, *(compared(base, window, name, bounds) for base, window in rows.windows(bounds)))
    bounds = next((check for check in reversed(monitor.drift) if not check.features), None)
    for view in rows.now.ages_us if bounds is not None else ():
        assert bounds is not None
        now, before = (compared_ages(base, window, view, bounds) for base, window in rows.windows(bounds))
        if now is not None and before is not None:
            yield _judged(RECORDS + view, now, before)


def _judged(name: str, now: FeatureDrift, before: FeatureDrift) -> WatchedFeature:
    lines = tuple(
        ComparedLine(
            line.name,
            min(line.value, _MOST),
            line.bound,
            line.told,
            line.exceeds,
            any(line.goes_on(past) for past in before.lines),
        )
        for line in now.lines
    )
    state: State = "ok" if lines else "not judged"
    if any(line.exceeds for line in lines):
        state = "alarm" if any(line.exceeded_before for line in lines) else "watch"
    sizes = now.rows, now.entities, now.baseline_rows, now.baseline_entities
    return WatchedFeature(name, state, *sizes, lines, now.not_judged, now.bars)


def _matched(workspace: Workspace, monitor: Monitor, rows: _Rows) -> tuple[float | None, tuple[WatchedFeature, ...]]:
    check = next((each for each in reversed(monitor.checks) if isinstance(each, MatchRate)), None)
    if check is None:
        return None, ()
    found = parity(workspace, monitor.target.name, rows.start_us, rows.until_us)
    values = sum(each.rows for each in found.features)
    if not values:
        return None, (WatchedFeature(MATCHES, "not judged", not_judged="nothing was served in the window"),)
    differ = sum(each.differs_then for each in found.features)
    causes = ", ".join(f"{cause}: {count:,}" for cause, count in found.causes_then.items())
    told = f"{differ:,} of {values:,} values differ from what was online by then{f' ({causes})' if causes else ''}"
    exceeds = is_below(values - differ, values, check.at_least)
    line = ComparedLine("match_rate", differ / values, 1 - check.at_least, told, exceeds, exceeds)
    return 1 - differ / values, (WatchedFeature(MATCHES, "alarm" if exceeds else "ok", found.rows, lines=(line,)),)


def is_below(part: int, whole: int, share: float) -> bool:
    """Tell whether a part is less than a share as it is written: 9 of 10 are not less than 0.9, which no float is."""
    return Fraction(part, whole) < Fraction(str(share))


def _state(features: tuple[WatchedFeature, ...], alarms: tuple[MonitorAlarm, ...] = ()) -> State:
    """Return the worst state; an alarm stands until its feature is judged and found to be fine."""
    if alarms:
        return "alarm"
    states: tuple[State, ...] = ("alarm", "watch", "ok")
    return next((state for state in states if any(each.state == state for each in features)), "not judged")


def _kept(workspace: Workspace, document: MonitorDocument) -> MonitorResult:
    """Write what was found, with the alarms that go on, and return it; a look back is only returned."""
    for _ in range(TRIES):
        before, version = newest_finding(workspace.ledger, workspace.project, document.monitor)
        if before is not None and document.until_us < min(before.until_us, before.made_us):
            return MonitorResult(replace(document, state=_state(document.features)), is_kept=False)
        alarms = tuple(_alarms(document, before))
        features = tuple(_alarmed(feature, alarms) for feature in document.features)
        acted_us = 0 if before is None else before.acted_us
        made = replace(document, alarms=alarms, features=features, state=_state(features, alarms), acted_us=acted_us)
        try:
            write_finding(workspace.ledger, workspace.project, _brief(made), if_version=version)
        except LedgerConflictError:
            continue
        return MonitorResult(made)
    raise LedgerConflictError(f"Monitor {document.monitor!r} was run by others at the same time, {TRIES} times.")


def _brief(document: MonitorDocument) -> MonitorDocument:
    """Return what is kept: drawings of what is far alone, for it is kept for each run."""
    features = (
        each if any(line.exceeds for line in each.lines) else replace(each, bars=()) for each in document.features
    )
    return replace(document, features=tuple(features))


def _alarmed(feature: WatchedFeature, alarms: tuple[MonitorAlarm, ...]) -> WatchedFeature:
    """Return a feature that is in alarm while its alarm is open and a line is too far, in one window or two."""
    is_open = any(alarm.feature == feature.name for alarm in alarms)
    return replace(feature, state="alarm") if is_open and any(line.exceeds for line in feature.lines) else feature


def _alarms(now: MonitorDocument, before: MonitorDocument | None) -> Iterator[MonitorAlarm]:
    """Yield the alarms that are open, one for a feature: it keeps its id, also while nothing can be judged."""
    is_same = before is not None and before.definition == now.definition
    known = {each.feature: each for each in before.alarms} if before is not None and is_same else {}
    names = {each.name for each in now.features}
    nobody = tuple(f"{each.name}{BY}" for each in now.features if each.state == "not judged")
    for name in known.keys() - names:
        if name.startswith(nobody):  # no model at all is to be seen
            yield known[name]
    for feature in now.features:
        far, opened = [line for line in feature.lines if line.exceeds], known.get(feature.name)
        if opened is not None and not feature.lines:
            yield opened
        elif opened is not None and far:
            yield replace(opened, line=far[0].name, told="; ".join(line.told for line in far))
        elif any(line.exceeded_before for line in far):
            yield _alarm(now, feature.name, far)


def _alarm(now: MonitorDocument, feature: str, far: Sequence[ComparedLine]) -> MonitorAlarm:
    text = canonical_json([now.monitor, now.definition, feature, now.until_us])
    told = "; ".join(line.told for line in far)
    return MonitorAlarm(hashlib.sha256(text.encode()).hexdigest()[:12], feature, far[0].name, told, now.until_us)
