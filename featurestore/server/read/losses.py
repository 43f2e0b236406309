"""What the served log and that of predictions lack, counted and told: none of it goes without a word."""

from __future__ import annotations

import logging
from collections import Counter
from time import monotonic

from featurestore.served.files import SERVED, Kind
from featurestore.served.hashing import KEYS_HINT
from featurestore.server.read.known import MOST_MODELS, MOST_NAMES, MOST_SHAPES
from featurestore.server.watch.metrics import Metrics

logger = logging.getLogger("featurestore.server")

WARN_SECONDS = 60.0
"""Warn of one log and reason at most so often, with all that came since."""
FULL, SECRET, STOPPED, MANY = "full", "secret", "stopped", "many"
"""Reasons besides a failure: values of the label ``reason``."""
_WORDS = {
    FULL: "the queue was full",
    SECRET: f"the settings have no secret. {KEYS_HINT}",
    STOPPED: "the server stopped before the store took them",
    MANY: f"within a day it takes at most {MOST_NAMES} names, {MOST_SHAPES} sets of names, and {MOST_MODELS} models",
}
_Lost = tuple[Kind, str, str]


class Losses:
    """Counts rows by log. The event loop offers and refuses, the thread of the log does the rest."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = {True: metrics.served_dropped, False: metrics.predicted_dropped}
        self._offered = Counter[tuple[Kind, str]]()
        self._done = Counter[tuple[Kind, str]]()
        self._refused = Counter[_Lost]()
        """What the event loop did not take; it only counts, so that it never waits for a log."""
        self._noted = Counter[_Lost]()
        self._untold = dict[_Lost, tuple[int, str]]()
        self._next_s = dict[_Lost, float]()

    def offered(self, kind: Kind, service: str, rows: int) -> None:
        """Count rows that were taken into the queue."""
        self._offered[kind, service] += rows

    def refused(self, kind: Kind, service: str, rows: int, reason: str) -> None:
        """Count rows that were not."""
        self._refused[kind, service, reason] += rows
        self._metric(kind, service, reason, rows)

    def done(self, kind: Kind, service: str, rows: int) -> None:
        """Count rows that are in a file."""
        self._done[kind, service] += rows

    def failed(self, kind: Kind, service: str, rows: int, error: Exception) -> None:
        """Count rows that were taken and are lost."""
        self.done(kind, service, rows)
        self._metric(kind, service, "failed", rows)
        self._note((kind, service, "failed"), rows, f"{error}")

    def stopped(self) -> None:
        """Count everything that is still on its way as lost, and tell it."""
        for (kind, service), offered in self._offered.items():
            if rows := offered - self._done[kind, service]:
                self._metric(kind, service, STOPPED, rows)
                self._note((kind, service, STOPPED), rows, _WORDS[STOPPED])
        self.tell(is_last=True)

    def tell(self, *, is_last: bool = False) -> None:
        """Warn of what was not told yet, if it is time to; at the end of everything."""
        for lost, count in self._refused.copy().items():
            if rows := count - self._noted[lost]:
                self._noted[lost] = count
                self._note(lost, rows, _WORDS[lost[2]])
        now_s = monotonic()
        for lost, (rows, why) in list(self._untold.items()):
            if is_last or now_s >= self._next_s.get(lost, 0.0):
                self._next_s[lost] = now_s + WARN_SECONDS
                del self._untold[lost]
                logger.warning("%s rows of %s are lost: %s", f"{rows:,}", lost[0].what(lost[1]), why)

    def _note(self, lost: _Lost, rows: int, why: str) -> None:
        self._untold[lost] = self._untold.get(lost, (0, ""))[0] + rows, why

    def _metric(self, kind: Kind, service: str, reason: str, rows: int) -> None:
        self._metrics[kind == SERVED].labels(service, reason).inc(rows)
