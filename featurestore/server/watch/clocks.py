"""The clocks of the online store and the registry compared with this host's: a gauge, and a warning if they differ.

Also how many keys the online store has evicted: it is asked for both at once.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic

from featurestore.consistency.clocks import ONLINE_STORE, REGISTRY, SYNCHRONISE, clock_problem, online_ahead_us
from featurestore.consistency.eviction import evicted_keys
from featurestore.errors import OnlineStoreError
from featurestore.served.rows import Clocks
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.workspace import Readers

logger = logging.getLogger("featurestore.server")

EVERY_SECONDS = 60.0
"""Ask the online store, and write to the log, at most this often."""


class ClockWatch:
    """Looks at the clocks after each refresh of the definitions, in its thread: never on the read path."""

    def __init__(self, workspace: Readers, snapshots: SnapshotKeeper, metrics: Metrics) -> None:
        self._workspace, self._snapshots, self._metrics = workspace, snapshots, metrics
        self._ask_at_s = self._warn_at_s = 0.0
        self._online_ahead_us: int | None = None

    def known(self) -> Clocks:
        """Return what was seen last."""
        return Clocks(self._snapshots.registry_ahead_us, self._online_ahead_us)

    def look(self) -> None:
        """Set the gauge, and warn of a clock that is more than five seconds off."""
        now_s = monotonic()
        if now_s >= self._ask_at_s:
            self._ask_at_s = now_s + EVERY_SECONDS
            with suppress(OnlineStoreError):  # it is down: other metrics show that
                facts = self._workspace.online.facts()
                self._online_ahead_us = online_ahead_us(facts)
                self._metrics.evicted_keys.set(evicted_keys(facts))
        registry_us, online_us = self._snapshots.registry_ahead_us, self._online_ahead_us
        for piece, ahead_us in (("registry", registry_us), ("online_store", online_us)):
            if ahead_us is not None:
                self._metrics.clock_ahead.labels(piece).set(ahead_us / 1_000_000)
        problems = filter(None, (clock_problem(REGISTRY, registry_us), clock_problem(ONLINE_STORE, online_us)))
        if (told := " ".join(problems)) and now_s >= self._warn_at_s:
            self._warn_at_s = now_s + EVERY_SECONDS
            logger.warning("%s %s", told, SYNCHRONISE)
