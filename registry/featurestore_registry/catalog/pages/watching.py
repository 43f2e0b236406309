"""How monitors are declared, in words, and which features of which views their findings tell of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from featurestore_registry.auth import Role
from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.findings import (
    NEVER,
    STATES,
    WANTING,
    Finding,
    Findings,
    State,
    Watched,
    line_name,
    worst,
)
from featurestore_registry.catalog.pages.shared import parts_read, personal_of
from featurestore_registry.catalog.project import SERVICE, VIEW
from featurestore_registry.catalog.reading import facts, objects
from featurestore_registry.catalog.words import brief, counted, duration, instant, number, rule, share
from featurestore_registry.documents import MONITOR, TRAINING_SET
from featurestore_registry.findings import RECORDS
from featurestore_registry.records import Document, Record

_DISTANCES = ("psi", "shift", "jensen_shannon")
_SHARES = ("nulls", "statuses", "outside", "new_values", "stale")
_MOST_BOUND = 1e15
_OF_METRICS = {"kind", "metric", "label", "prediction", "at_least", "at_most", "model", "rows"}
_KNOWN = {*_DISTANCES, *_SHARES, "kind", "features", "rows", "entities", "same_weekday"}


class Place(NamedTuple):
    """What a name in a finding stands for."""

    record: Record
    feature: str
    """Empty for the view itself."""
    is_hidden: bool
    """Whether its values do not show, as the definitions are now."""


class Check(NamedTuple):
    """A check in words."""

    what: str
    of: tuple[str, ...]
    """The features that it is for; all where there are none."""
    bounds: tuple[tuple[str, str], ...]
    """What is compared, and from where on it is too far."""
    off: tuple[str, ...]
    """What is not compared."""
    more: str = ""


class Watcher(NamedTuple):
    """A monitor, as far as it tells of one view, service or feature."""

    monitor: Record
    finding: Finding
    state: State
    """Of what is asked for; of a service that of the monitor."""
    watched: Watched | None
    """The feature that is asked for, or the first of a view that wants attention."""
    name: str
    """Of that feature."""
    through: str
    """The service that it watches."""


def target_of(monitor: Record) -> tuple[str, str]:
    """Return kind and name of what a monitor watches; empty where another version wrote that."""
    found = monitor.document.get("target")
    if isinstance(found, list | tuple) and len(found) == 2 and all(isinstance(each, str) for each in found):
        return found[0], found[1]
    return "", ""


def baseline_of(monitor: Record) -> tuple[str, str]:
    """Return a monitor's baseline in words, and the training set that it is, if it is one."""

    def told(document: Document) -> tuple[str, str]:
        baseline = document["baseline"]
        if TRAINING_SET in baseline:
            return f"training set {baseline[TRAINING_SET]}", str(baseline[TRAINING_SET])
        what = "what was served" if target_of(monitor)[0] == SERVICE else "the rows"
        if "before_us" in baseline:
            return f"{what} in the {duration(int(baseline['before_us']))} before the compared windows", ""
        start, end = (instant(int(baseline[name])) for name in ("start_us", "end_us"))
        return f"{what} from {start} to {end} UTC", ""

    return facts(monitor.document, told) or ("in a form of another version", "")


def window_of(monitor: Record) -> str:
    """Return how long one comparison reaches back."""
    return facts(monitor.document, lambda document: duration(int(document["window_us"]))) or "–"


def checks_of(monitor: Record) -> list[Check]:
    """Return a monitor's checks in words."""
    return [_check(told) for told in objects(monitor.document.get("checks"))]


def _check(told: Document) -> Check:
    kind, at_least = told.get("kind"), told.get("at_least")
    if kind == "match_rate" and told.keys() == {"kind", "at_least"}:
        return Check("Served values are what was online by then", (), (("at least", _bound("nulls", at_least)),), ())
    if kind == "model_metric" and told.keys() == _OF_METRICS:
        return facts(told, _metric_check) or _unread(told)
    if kind != "drift" or not told.keys() <= _KNOWN:
        return _unread(told)
    bounds = [(name, told.get(name)) for name in (*_DISTANCES, *_SHARES)]
    least = [counted(told[name], one, many) for name, one, many in _LEAST if isinstance(told.get(name), int)]
    more = [f"judged from {' of '.join(least)} on each side"] if least else []
    if told.get("same_weekday") is True:
        more.append("a baseline of four weeks or more by the same days of the week")
    features = told.get("features")
    return Check(
        "Drift",
        tuple(map(str, features)) if isinstance(features, list | tuple) else (),
        tuple((line_name(name), _bound(name, bound)) for name, bound in bounds if bound is not None),
        tuple(line_name(name) for name, bound in bounds if bound is None and name in told),
        "; ".join(more),
    )


def _unread(told: Document) -> Check:
    """Return a check of another version, as it is written."""
    return Check(
        rule({"rule": told.get("kind"), **{name: each for name, each in told.items() if name != "kind"}}), (), (), ()
    )


def _metric_check(told: Document) -> Check:
    label, of = told["label"], told["model"]
    known = f"{label['view']}:{label['features'][0]} within {duration(int(label['horizon_us']))}"
    what = f"{line_name(str(told['metric']))} of {told['prediction']}, by {'each model' if of is None else of}"
    bounds = [(words, told[name]) for name, words in (("at_least", "at least"), ("at_most", "at most"))]
    shown = tuple((words, number(bound)) for words, bound in bounds if bound is not None)
    least = counted(int(told["rows"]), "prediction with a label", "predictions with labels")
    return Check(f"{what}, beside {known}", (), shown, (), f"judged from {least}")


_LEAST = (("rows", "row", "rows"), ("entities", "entity", "entities"))


def _bound(name: str, bound: object) -> str:
    if not isinstance(bound, int | float) or not abs(bound) < _MOST_BOUND:
        return str(bound)
    if name in _SHARES:
        return share(bound, 1)
    return f"{number(bound)} deviations" if name == "shift" else number(bound)


def places_of(ask: Ask, monitor: Record) -> dict[str, Place]:
    """Return what the names in a monitor's findings stand for."""
    kind, name = target_of(monitor)
    record = ask.project.find(kind, name)
    if record is None:
        return {}
    if kind == VIEW:
        hidden = personal_of(ask, record)
        made = {field.name: Place(record, field.name, field.name in hidden) for field in record.fields}
        return {f"{RECORDS}{name}": Place(record, "", False), **made}
    parts = parts_read(ask, record.document, "features")
    counts = Counter(feature.lower() for part in parts for feature in part.features)
    found = {}
    for part in parts:
        if part.record is None:
            continue
        found[f"{RECORDS}{part.name}"] = Place(part.record, "", False)
        hidden = personal_of(ask, part.record)
        for feature in part.features:
            called = feature if counts[feature.lower()] == 1 else f"{part.name}__{feature}"
            found[called] = Place(part.record, feature, feature in hidden)
    return found


def wanting_monitors(ask: Ask) -> list[tuple[Record, Finding]]:
    """Return the monitors that want attention, the worst first."""
    findings = ask.findings
    if findings is None:
        return []
    found = [(record, findings.of(record.name)) for record in ask.project.of_kind(MONITOR)]
    return sorted((each for each in found if each[1].state in WANTING), key=lambda each: STATES.index(each[1].state))


def watched_by(ask: Ask, record: Record, feature: str = "") -> dict[str, object]:
    """Return the monitors of something: what `monitored.html` shows."""
    findings = ask.findings
    return {
        "watchers": watchers_of(ask, record, feature, findings),
        "is_told": findings is not None,
        "may_read": ask.may(Role.READER),
        "of_feature": feature,
    }


def watchers_of(ask: Ask, record: Record, feature: str, findings: Findings | None) -> list[Watcher]:
    """Return the monitors that watch a service, a view or one of its features, the worst first."""
    made, places_in = [], dict[str, dict[str, Place]]()
    for monitor in ask.project.of_kind(MONITOR):
        target = ask.project.find(*target_of(monitor))
        if target is None:
            continue
        finding = NEVER if findings is None else findings.of(monitor.name)
        through = "" if target is record else target.name
        if record.kind == SERVICE:
            if target is record:
                made.append(Watcher(monitor, finding, finding.state, None, "", ""))
            continue
        if target is not record and record.key not in _reads(ask, target):
            continue
        if target.key not in places_in:
            places_in[target.key] = places_of(ask, monitor)
        places = places_in[target.key]
        hidden = {name for name, place in places.items() if place.is_hidden}
        names = [name for name, each in places.items() if each.record is record and feature in ("", each.feature)]
        if watcher := _watcher(monitor, finding, names, feature, through):
            made.append(watcher._replace(watched=_showing(watcher, hidden)))
    return sorted(made, key=lambda each: STATES.index(each.state))


def _watcher(monitor: Record, finding: Finding, names: Sequence[str], feature: str, through: str) -> Watcher | None:
    if feature and not any(_is_for(monitor.document, {feature, name}) for name in names):
        return None
    if finding.state in ("never ran", "unreadable"):
        return Watcher(monitor, finding, finding.state, None, "", through) if names or not feature else None
    known: Mapping[str, Watched] = {name: finding.features[name] for name in names if name in finding.features}
    if not known:
        return Watcher(monitor, finding, "not judged", None, "", through)
    state = worst([each.state for each in known.values()])
    name = next(name for name, each in known.items() if each.state == state)
    return Watcher(monitor, finding, state, known[name] if feature or state in WANTING else None, name, through)


def _showing(watcher: Watcher, hidden: set[str]) -> Watched | None:
    """Return what a finding tells of a feature, without what no longer shows."""
    found = watcher.watched
    if found is None or watcher.name in hidden:
        return None
    return found._replace(cause=brief("")) if mentions(found.cause, hidden) else found


def mentions(cause: str, hidden: Collection[str]) -> bool:
    """Tell whether a cause names a feature whose values no longer show: it may say one of them."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", cause) for name in hidden)


def _is_for(document: Document, names: set[str]) -> bool:
    """Tell whether a check is for a feature."""
    drift = [told.get("features") for told in objects(document.get("checks")) if told.get("kind") == "drift"]
    return any(not isinstance(of, list | tuple) or not of or not names.isdisjoint(map(str, of)) for of in drift)


def _reads(ask: Ask, service: Record) -> set[str]:
    return {part.record.key for part in parts_read(ask, service.document, "features") if part.record is not None}
