"""Pushed events that are not available yet, because clocks differ: they wait beside the tiles, so they must be few."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from featurestore_registry.forks import ForkLock

from featurestore.errors import InputError
from featurestore.ingest.rows import CheckedRows

MOST_AHEAD = 1_000
"""At most so many events of one entity, of those that a process pushes, lie after now at a time."""
_LEAST_PRUNED = 1_000

EntityKey = tuple[Any, ...]


class Ahead:
    """The events of one view that this process pushed and that are not available yet. For several threads."""

    def __init__(self) -> None:
        self._lock = ForkLock()
        self._waiting: dict[EntityKey, list[int]] = {}
        self._pruned = 0

    def take(self, rows: CheckedRows, now_us: int) -> None:
        """Note events that are about to be pushed. Raises InputError, and notes none, where an entity has too many."""
        found = defaultdict[EntityKey, list[int]](list)
        for entity, at_us in rows.after(now_us):
            found[entity].append(at_us)
        if not found:
            return
        with self._lock:
            if len(self._waiting) > 2 * self._pruned + _LEAST_PRUNED:
                self._prune(list(self._waiting), now_us)
                self._pruned = len(self._waiting)
            self._prune(found, now_us)
            for entity, instants in found.items():
                before = self._waiting.get(entity, [])
                if len(before) + len(instants) > MOST_AHEAD:
                    raise InputError(
                        f"{len(before) + len(instants):,} events of one entity of {rows.view.name!r} would lie after "
                        f"now; at most {MOST_AHEAD:,} may.",
                        hint="Push events after they happened: `server.max_clock_skew` is for clocks that differ.",
                    )
            for entity, instants in found.items():
                self._waiting[entity] = self._waiting.get(entity, []) + instants

    def _prune(self, entities: Iterable[EntityKey], now_us: int) -> None:
        for entity in entities:
            left = [at_us for at_us in self._waiting.pop(entity, ()) if at_us > now_us]
            if left:
                self._waiting[entity] = left
