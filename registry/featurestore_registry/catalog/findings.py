"""What monitors found, as the ledger holds it: of each the last finding in short, and its states over the last ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from featurestore_registry.catalog.reading import read
from featurestore_registry.catalog.words import Brief, brief, instant
from featurestore_registry.documents import MONITOR
from featurestore_registry.findings import COMPARED, MATCHES, MonitorAlarm, MonitorDocument, WatchedFeature
from featurestore_registry.interface import LedgerReader
from featurestore_registry.records import Document, LedgerEntry

Judged = Literal["alarm", "watch", "ok", "not judged"]
State = Judged | Literal["never ran", "unreadable"]
WANTING: tuple[State, ...] = ("alarm", "watch")
"""What wants attention, the worst first."""
STATES: tuple[State, ...] = (*WANTING, "unreadable", "never ran", "not judged", "ok")
"""A list that is sorted by it begins with what wants attention."""
BADGES: Mapping[str, str] = {"alarm": "failed", "watch": "stale", "ok": "fresh"}
"""The look of a state; others are grey."""
MOST_FINDINGS = 30
"""At most so many of a monitor's findings are drawn."""
_MOST_FEATURES = 6_000
"""At most about so many features of findings are read for one page."""
_MOST_TOLD, _MOST_ALARMS = 400, 3


class Watched(NamedTuple):
    """One feature of a finding, in short."""

    state: Judged
    told: Brief
    """What is too far, or why nothing was compared: it may show values."""
    cause: Brief


class Past(NamedTuple):
    """One finding, by its state alone."""

    state: State
    made_us: int | None
    alarms: int
    version: int


@dataclass(frozen=True, slots=True)
class Finding:
    """What a monitor found last, in short: texts and drawings of thousands of features are read for its page alone."""

    state: State = "never ran"
    made_us: int | None = None
    start_us: int | None = None
    until_us: int | None = None
    alarms: tuple[str, ...] = ()
    """The first open alarms: feature and line, no values."""
    open: int = 0
    """Alarms."""
    features: Mapping[str, Watched] = field(default_factory=dict)
    version: int = 0

    @property
    def says(self) -> str:
        """Why it is in its state, without values."""
        if self.alarms:
            more = f" and {self.open - len(self.alarms):,} more" if self.open > len(self.alarms) else ""
            return f"too far in two windows: {', '.join(self.alarms)}{more}"
        too_far = [name for name, each in self.features.items() if each.state in WANTING]
        if too_far:
            more = f" and {len(too_far) - _MOST_ALARMS:,} more" if len(too_far) > _MOST_ALARMS else ""
            return f"too far in the last window: {', '.join(brief(name, 80) for name in too_far[:_MOST_ALARMS])}{more}"
        return _SAYS[self.state]


_SAYS: Mapping[State, str] = {
    "alarm": "an alarm is open",
    "watch": "something is too far in the last window",
    "ok": "as its baseline",
    "not judged": "nothing could be judged",
    "never ran": "it never ran",
    "unreadable": "another version wrote what it found",
}
NEVER = Finding()


@dataclass(frozen=True, slots=True)
class Findings:
    """The last findings of a project's monitors, by name."""

    by_name: Mapping[str, Finding]

    def of(self, monitor: str) -> Finding:
        """Return what a monitor found last."""
        return self.by_name.get(monitor, NEVER)


def read_findings(
    ledger: LedgerReader,
    project: str,
    before: Findings | None = None,
    keep: Callable[[str, int, MonitorDocument | None], object] = lambda *_: None,
) -> Findings:
    """Return what is there; what has not changed since ``before`` is not looked through again.

    ``keep`` gets the whole of what is new: monitor, version and document.
    """
    known = before.by_name if before is not None else {}
    made = {}
    for entry in ledger.scan(project, MONITOR):
        found = known.get(entry.key)
        if found is None or found.version != entry.version:
            document = read(entry, MonitorDocument)
            keep(entry.key, entry.version, document)
            found = _finding(document, entry.version)
        made[entry.key] = found
    return Findings(made)


def read_finding(ledger: LedgerReader, project: str, monitor: str) -> MonitorDocument | None:
    """Return the whole of what a monitor found last; None where another version wrote it, or there is nothing."""
    return read(ledger.latest(project, MONITOR, monitor), MonitorDocument)


def read_past(
    ledger: LedgerReader, project: str, monitor: str, last: Finding, known: Sequence[Past] | None = None
) -> Sequence[Past]:
    """Return the states of the last findings, oldest first: those that are new since some were read.

    At first fewer are read of a monitor of very many features.
    """
    most, before = max(min(MOST_FINDINGS, _MOST_FEATURES // max(len(last.features), 1)), 2), tuple(known or ())
    new = last.version - before[-1].version if before else most
    if new == 1:
        return (*before, Past(last.state, last.made_us, last.open, last.version))[-MOST_FINDINGS:]
    if not 0 <= new <= most:
        before, new = (), most
    entries = ledger.scan(project, MONITOR, key=monitor, limit=new) if new else []
    return (*before, *(_past(entry) for entry in reversed(entries)))[-MOST_FINDINGS:]


def line_name(line: str) -> str:
    """Return what a compared line is called."""
    return COMPARED.get(line, line.replace("_", " "))


def too_far(feature: WatchedFeature) -> str:
    """Return what is too far of a feature, in words."""
    return "; ".join(line.told for line in feature.lines if line.exceeds)


def told(feature: WatchedFeature) -> str:
    """Return what is told of a feature; of a model always its figure, and when that was served which it is of."""
    if not feature.start_us:
        return too_far(feature) or feature.not_judged
    figures = [*(line.told for line in feature.lines), *filter(None, [feature.not_judged])]
    return "; ".join([*figures, f"served {instant(feature.start_us)} to {instant(feature.until_us)} UTC"])


def worst(states: Sequence[State]) -> State:
    """Return the state that wants attention most."""
    return min(states, key=STATES.index)


def _finding(document: MonitorDocument | None, version: int) -> Finding:
    if document is None:
        return Finding("unreadable", version=version)
    return Finding(
        document.state,
        document.made_us,
        document.start_us,
        document.until_us,
        tuple(_named(alarm) for alarm in document.alarms[:_MOST_ALARMS]),
        len(document.alarms),
        {each.name: _watched(each) for each in document.features},
        version,
    )


def _named(alarm: MonitorAlarm) -> str:
    name = brief(alarm.feature, 80)
    is_told = alarm.feature == MATCHES or alarm.feature.startswith(f"{alarm.line} of ")  # of a model
    return name if is_told else f"{name} ({brief(line_name(alarm.line), 40)})"


def _watched(feature: WatchedFeature) -> Watched:
    cause = feature.causes[0].told if feature.causes else ""
    return Watched(feature.state, brief(told(feature), _MOST_TOLD), brief(cause, _MOST_TOLD))


def _past(entry: LedgerEntry) -> Past:
    given: Document = entry.document
    alarms = given.get("alarms")
    part = {
        "state": given.get("state"),
        "made_us": given.get("made_us"),
        "alarms": len(alarms) if isinstance(alarms, list | tuple) else 0,
    }
    found = read(entry, _PastDocument, part)
    if found is None:
        return Past("unreadable", None, 0, entry.version)
    return Past(found.state, found.made_us, found.alarms, entry.version)


@dataclass(frozen=True, slots=True)
class _PastDocument:
    state: Judged
    made_us: int
    alarms: int
