"""What monitors find, as the ledger keeps it: documents as those of `documents`, read in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

COMPARED: Mapping[str, str] = {
    "psi": "distribution", "shift": "mean", "jensen_shannon": "categories", "nulls": "nulls",
    "not_finite": "NaN and infinities", "statuses": "statuses", "outside": "outside the bins",
    "new_values": "new values", "stale": "age of records", "match_rate": "match rate", "auc": "AUC", "bias": "bias",
    "accuracy": "accuracy", "log_loss": "log loss", "mean_absolute_error": "mean absolute error",
    "root_mean_square_error": "root mean square error",
}  # fmt: skip
"""What a monitor compares, in words, in the order in which it is told."""
RECORDS, MATCHES = "records of ", "served as known"
"""Begins the name of the age of a view's records; and the name of the rate of matches."""


@dataclass(frozen=True, slots=True)
class ComparedLine:
    """One figure that a monitor compared with a bound."""

    name: str
    """Such as ``psi``, ``nulls`` or ``new_values``."""
    value: float
    bound: float
    """From where on it is too far, what chance makes included; a model's score is so below it."""
    told: str
    """The figures in words."""
    exceeds: bool = False
    exceeded_before: bool = False
    """Whether it was too far in the window before, too: both make an alarm."""


@dataclass(frozen=True, slots=True)
class DriftCause:
    """What a change comes with, strongest first."""

    kind: str
    """Such as ``segment``, ``unit``, ``definition``, ``run``, ``nulls`` or ``entities``."""
    told: str
    weight: float = 0.0
    """The share of the change that it explains, as far as that can be said."""


@dataclass(frozen=True, slots=True)
class WatchedFeature:
    """One feature of a monitor, the records of a view, or how a model does."""

    name: str
    """Of a model ``{metric} of {prediction} by {model}``; without the latter where there is none."""
    state: Literal["ok", "watch", "alarm", "not judged"]
    """``watch``: too far in the last window alone."""
    rows: int = 0
    entities: int = 0
    baseline_rows: int = 0
    baseline_entities: int = 0
    lines: tuple[ComparedLine, ...] = ()
    not_judged: str = ""
    """Why nothing, or not everything, was compared."""
    bars: tuple[tuple[str, float, float], ...] = ()
    """For a drawing: what a bar stands for, its shares of the baseline and of the window. Kept where one is too far."""
    causes: tuple[DriftCause, ...] = ()
    start_us: int = 0
    """Of a model: what it predicted for was served in [start, until), one horizon before the window, so that its labels
    are known. 0 for all else."""
    until_us: int = 0


@dataclass(frozen=True, slots=True)
class MonitorAlarm:
    """A feature that is too far, until it is found not to be."""

    id: str
    feature: str
    line: str
    """The first of the lines that are too far."""
    told: str
    opened_us: int
    acted_us: int = 0
    """When a command was run for it, 0: none was."""
    sent_us: int = 0
    """When the webhook took it, 0: it did not."""
    sending_us: int = 0
    """When somebody began to send it last, 0: it was not taken."""


@dataclass(frozen=True, slots=True)
class MonitorDocument:
    """What a monitor found."""

    monitor: str
    target: str
    """``feature_service:{name}`` or ``feature_view:{name}``."""
    state: Literal["ok", "watch", "alarm", "not judged"]
    made_us: int
    start_us: int
    """The last window, [start, until); the one before it is as long and ends where it starts."""
    until_us: int
    baseline: str
    """In words."""
    rows: int = 0
    features: tuple[WatchedFeature, ...] = ()
    alarms: tuple[MonitorAlarm, ...] = ()
    match_rate: float | None = None
    """The share of served values that are what was online by then; None where that was not asked for."""
    revision: str = ""
    """The hash of the definitions' revision."""
    definition: str = ""
    """A hash of the monitor's definition: alarms of another one ended with it."""
    models: tuple[str, ...] = ()
    """Consumers of the service."""
    acted_us: int = 0
    """When a command was run for an alarm last, also for one that is over."""
    clocks: tuple[str, ...] = ()
    """Which clocks are ahead of the one that ended the window, so that it may be an older one than is meant."""
