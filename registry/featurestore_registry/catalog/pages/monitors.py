"""The pages of monitors: what is watched, how it is, and what is too far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.drawing import Beside, beside
from featurestore_registry.catalog.findings import (
    NEVER,
    STATES,
    WANTING,
    Finding,
    Past,
    line_name,
    told,
)
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.pages.ledgered import consumers_of, saved_sets
from featurestore_registry.catalog.pages.shared import about
from featurestore_registry.catalog.pages.watching import (
    Place,
    baseline_of,
    checks_of,
    mentions,
    places_of,
    target_of,
    window_of,
)
from featurestore_registry.catalog.project import SERVICE
from featurestore_registry.catalog.words import counted, instant
from featurestore_registry.documents import MONITOR
from featurestore_registry.findings import MonitorAlarm, MonitorDocument, WatchedFeature
from featurestore_registry.records import Record

PER_PAGE, FEATURES_PER_PAGE = 50, 20
MOST_ALARMS, MOST_DRAWN, MOST_CAUSES = 25, 12, 4
"""Open alarms and drawings on a page, and causes of a feature."""
MOST_ALARMS_BESIDE = 10
"""Open alarms on all pages but the first."""
_SMALL, _LARGE = (120, 26), (460, 96)
_HEIGHTS = {"alarm": 28, "watch": 20, "ok": 12}
_STEP = 16


class Row(NamedTuple):
    """A monitor in the list."""

    record: Record
    finding: Finding
    target: Record | None
    target_name: str
    baseline: str


@dataclass(frozen=True, slots=True)
class FeatureRow:
    """A feature in the table of a finding."""

    found: WatchedFeature
    place: Place | None
    told: str
    drawn: Beside | None
    large: Beside | None
    """Of those that want attention."""
    lines: tuple[str, ...]
    """What is too far of it."""
    is_hidden: bool


class Alarm(NamedTuple):
    """An open alarm."""

    alarm: MonitorAlarm
    place: Place | None
    line: str


class Box(NamedTuple):
    """One finding in the line of the last ones."""

    x: int
    y: int
    height: int
    state: str
    text: str


def monitor_list(ask: Ask) -> Page:
    """Return the list of monitors, those that want attention first."""
    findings, page = ask.findings, ask.page_number()
    rows = [
        _row(ask, record, findings.of(record.name) if findings else NEVER) for record in ask.project.of_kind(MONITOR)
    ]
    rows.sort(key=lambda row: STATES.index(row.finding.state))
    return Page(
        "monitors.html",
        {
            "rows": rows[(page - 1) * PER_PAGE : page * PER_PAGE],
            "total": len(rows),
            "is_told": findings is not None,
            "page": page,
            "pages": -(-len(rows) // PER_PAGE),
        },
    )


def _row(ask: Ask, record: Record, finding: Finding) -> Row:
    kind, name = target_of(record)
    return Row(record, finding, ask.project.find(kind, name), name, baseline_of(record)[0])


def monitor(ask: Ask, record: Record) -> Page:
    """Return the page of a monitor."""
    findings = ask.findings
    finding = NEVER if findings is None else findings.of(record.name)
    kind, name = target_of(record)
    baseline, training_set = baseline_of(record)
    shared = about(ask, record)
    return Page(
        "monitor.html",
        {
            **shared,
            "finding": finding,
            "is_told": findings is not None,
            "is_older": _is_older(ask, record, finding),
            "target": ask.project.find(kind, name),
            "target_kind": kind,
            "target_name": name,
            "baseline": baseline,
            "training_set": training_set if any(each.name == training_set for each in saved_sets(ask)) else "",
            "window": window_of(record),
            "checks": checks_of(record),
            "past": _past(ask.site.past_findings(ask.project, record.name, finding)) if finding.version else [],
            "consumers": consumers_of(ask, name) if kind == SERVICE else [],
            "counts": Counter(each.state for each in finding.features.values()),
            **_found(ask, record, finding),
        },
    )


def _is_older(ask: Ask, record: Record, finding: Finding) -> bool:
    """Tell whether the monitor was defined otherwise when it found this."""
    changes = (
        (touch.before, touch.after) for touch in ask.history.of(record.key) if touch.at_us > (finding.made_us or 0)
    )
    return finding.made_us is not None and any(
        before is not None and after is not None and before.document != after.document for before, after in changes
    )


def _found(ask: Ask, record: Record, finding: Finding) -> dict[str, object]:
    """Return what a finding says, to those who may read values; the names and states of features to all."""
    page, places = ask.page_number(), places_of(ask, record)
    document = None
    if finding.version:
        document = ask.if_may(Role.READER, lambda: ask.site.finding(ask.project, record.name, finding.version))
    if document is not None:
        features: Sequence[WatchedFeature] = document.features
    else:
        features = [WatchedFeature(name, each.state) for name, each in finding.features.items()]
    ranked = sorted(features, key=lambda each: STATES.index(each.state))
    shown = ranked[(page - 1) * FEATURES_PER_PAGE : page * FEATURES_PER_PAGE]
    hidden = [name for name, place in places.items() if place.is_hidden]
    rows = [_feature(each, places.get(each.name), hidden, at < MOST_DRAWN) for at, each in enumerate(shown)]
    return {
        "document": document,
        "may_read": ask.may(Role.READER),
        "alarms": _alarms(document, places, MOST_ALARMS if page == 1 else MOST_ALARMS_BESIDE),
        "rows": rows,
        "undrawn": [row.found.name for row in rows if row.large is None and row.found.state in WANTING],
        "total": len(ranked),
        "page": page,
        "pages": -(-len(ranked) // FEATURES_PER_PAGE),
    }


def _feature(found: WatchedFeature, place: Place | None, hidden: Sequence[str], is_early: bool) -> FeatureRow:
    if place is not None and place.is_hidden:
        found = replace(found, causes=(), bars=(), lines=(), not_judged="")
        return FeatureRow(found, place, "", None, None, (), True)
    causes = [each for each in found.causes if not mentions(each.told, hidden)]
    drawn = beside(found.name, found.bars, *_SMALL)
    large = beside(found.name, found.bars, *_LARGE) if is_early and found.state in WANTING else None
    cut = replace(found, causes=tuple(causes[:MOST_CAUSES]))
    far = tuple(line_name(line.name) for line in found.lines if line.exceeds)
    return FeatureRow(cut, place, told(found), drawn, large, far, False)


def _alarms(document: MonitorDocument | None, places: dict[str, Place], most: int) -> list[Alarm]:
    made = []
    for alarm in document.alarms[:most] if document is not None else ():
        place = places.get(alarm.feature)
        if place is not None and place.is_hidden:
            alarm = replace(alarm, told="")
        made.append(Alarm(alarm, place, line_name(alarm.line)))
    return made


def _past(findings: Sequence[Past]) -> list[Box]:
    made = []
    for at, each in enumerate(findings):
        tall = _HEIGHTS.get(each.state, 6)
        alarms = f", {counted(each.alarms, 'open alarm')}" if each.alarms else ""
        when = f"{instant(each.made_us)} UTC: " if each.made_us is not None else ""
        made.append(Box(at * _STEP, 30 - tall, tall, each.state.replace(" ", "-"), f"{when}{each.state}{alarms}"))
    return made
