"""What a monitor found, as a terminal, a notebook, a page that stands alone and a metrics file show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import msgspec
from featurestore_registry.findings import COMPARED, MonitorDocument, WatchedFeature

from featurestore.quality.pages import rendered
from featurestore.served.keep import after_now_text
from featurestore.tables import html_table, visible
from featurestore.types.times import duration_text, to_second, to_short_rfc3339

if TYPE_CHECKING:
    import pandas as pd

HEADS = ("feature", "state", "rows", "entities", "what is told")
STATES = {
    "ok": "as the baseline",
    "watch": "too far in the last window, not in the one before",
    "alarm": "too far in two windows",
    "not judged": "not judged",
}
"""The states in words."""
MOST_NAMED = 3
"""So many features that are not judged for one reason are named."""
_ORDER = ("alarm", "watch", "ok", "not judged")


@dataclass(frozen=True)
class MonitorResult:
    """What a monitor found. A notebook draws it; `fs monitor` prints the same."""

    document: MonitorDocument
    """The figures, as they are kept."""
    is_kept: bool = True
    """False where it ends before what was found last: such a look back changes no alarm."""
    after_now: int = 0
    """Rows that were served after now and after the window: no window holds them until then."""

    @property
    def state(self) -> str:
        """``ok``, ``watch``, ``alarm`` or ``not judged``."""
        return self.document.state

    @property
    def alarms(self) -> tuple[str, ...]:
        """The ids of the alarms that are open."""
        return tuple(alarm.id for alarm in self.document.alarms)

    def __getitem__(self, feature: str) -> WatchedFeature:
        """Return what is told of one feature; raises KeyError."""
        return {each.name: each for each in self.document.features}[feature]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, instants as ISO 8601."""
        plain: dict[str, Any] = msgspec.to_builtins(self.document)
        plain |= {name: to_short_rfc3339(plain.pop(f"{name}_us")) for name in ("made", "start", "until")}
        for each in plain["features"]:
            span = {name: each.pop(f"{name}_us") for name in ("start", "until")}
            each |= {name: to_short_rfc3339(at_us) for name, at_us in span.items() if span["start"]}
        for alarm in plain["alarms"]:
            del alarm["sending_us"]
        for part in (plain, *plain["alarms"]):
            for name in ("opened", "acted", "sent"):
                if f"{name}_us" in part:
                    at_us = part.pop(f"{name}_us")
                    part[name] = to_short_rfc3339(at_us) if at_us else None
        return {**plain, "kept": self.is_kept, "after_now": self.after_now}

    def to_pandas(self) -> pd.DataFrame:
        """Return a row for each line that was compared."""
        import pandas as pd

        rows = [
            {"feature": each.name, "state": each.state, **msgspec.to_builtins(line)}
            for each in self.document.features
            for line in each.lines
        ]
        return pd.DataFrame(rows)

    def title(self) -> str:
        """Return what was compared with what, in words."""
        it = self.document
        span = f"{to_second(it.start_us)} to {to_second(it.until_us)}"
        window = duration_text(it.until_us - it.start_us)
        return f"{it.monitor}: {it.state}. {it.rows:,} rows from {span} ({window}) beside {it.baseline}"

    def cells(self) -> Iterator[tuple[str, ...]]:
        """Yield the texts of each feature's line, in the order of `HEADS`; what needs looking at comes first.

        Features that are not judged for the same reason share a line.
        """
        alike: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for each in sorted(self.document.features, key=lambda each: _ORDER.index(each.state)):
            sizes = f"{each.rows:,}", f"{each.entities:,}" if each.entities else ""
            told = _told(each)
            reason = told.replace(f'"{each.name}"', "") if each.state == "not judged" else f"{each.name}: {told}"
            alike.setdefault((each.state, *sizes, reason), []).append((each.name, told))
        for (*cells, _), found in alike.items():
            more = f" and {len(found) - MOST_NAMED:,} more" if len(found) > MOST_NAMED else ""
            yield f"{', '.join(name for name, _ in found[:MOST_NAMED])}{more}", *cells, found[0][1]

    def notes(self) -> Iterator[str]:
        """Yield what the table does not say."""
        it = self.document
        yield from it.clocks
        for alarm in it.alarms:
            shown = any(each.name == alarm.feature and any(line.exceeds for line in each.lines) for each in it.features)
            told = "" if shown else f": {alarm.told}"  # the table says it
            yield f"alarm {alarm.id} since {to_second(alarm.opened_us)}: {alarm.feature}{told}"
        for each in it.features:
            for cause in each.causes:
                yield f"{each.name}: {cause.told}"
        if self.after_now:
            yield after_now_text(self.after_now)
        if not self.is_kept:
            yield "a look back: a later window was looked at before, so this is not kept and changes no alarm"
        if it.alarms and it.models:
            yield f"read by {', '.join(it.models)}"

    def __str__(self) -> str:
        rows = [HEADS, *(tuple(map(visible, cells)) for cells in self.cells())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([visible(self.title()), *lines, *map(visible, self.notes())])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes())
        return f"<p>{escape(self.title())}</p>{html_table(self.cells(), HEADS)}{notes}"

    def to_html(self) -> str:
        """Return a page that stands alone: no script, nothing from elsewhere, drawings as inline SVG."""
        return page([self])


def page(results: Sequence[MonitorResult]) -> str:
    """Return what some monitors found as one page."""
    return rendered(
        "monitors.html",
        results=results,
        order=_ORDER,
        states=STATES,
        lines=COMPARED,
        instant=to_second,
        served_in=served_in,
    )


def metrics(results: Sequence[MonitorResult]) -> str:
    """Return gauges in Prometheus' text format: for a textfile collector."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry = CollectorRegistry()

    def gauge(name: str, told: str, *labels: str) -> Gauge:
        return Gauge(f"featurestore_monitor_{name}", told, ["monitor", *labels], registry=registry)

    state, alarms = gauge("state", "1 for the state that a monitor is in.", "state"), gauge("alarms", "Open alarms.")
    at, rate = gauge("until_seconds", "Up to when rows were compared."), gauge("match_rate", "Values served as known.")
    value = gauge("value", "A figure of a feature.", "feature", "line")
    bound = gauge("bound", "From where on it is too far.", "feature", "line")
    for result in results:
        it = result.document
        for name in _ORDER:
            state.labels(it.monitor, name).set(name == it.state)
        alarms.labels(it.monitor).set(len(it.alarms))
        at.labels(it.monitor).set(it.until_us / 1e6)
        if it.match_rate is not None:
            rate.labels(it.monitor).set(it.match_rate)
        for feature in it.features:
            for line in feature.lines:
                value.labels(it.monitor, feature.name, line.name).set(line.value)
                bound.labels(it.monitor, feature.name, line.name).set(line.bound)
    return generate_latest(registry).decode()


def served_in(feature: WatchedFeature) -> str:
    """Return when what is told of a model was served, empty for all else."""
    if not feature.start_us:
        return ""
    return f"served {to_second(feature.start_us)} to {to_second(feature.until_us)}"


def _told(feature: WatchedFeature) -> str:
    exceeding = [line.told for line in feature.lines if line.exceeds or feature.start_us]
    if span := served_in(feature):
        return "; ".join([*exceeding, *filter(None, [feature.not_judged]), span])
    return "; ".join(exceeding) or feature.not_judged
