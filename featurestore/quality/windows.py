"""Why served windows differ: by the events of their entities, and when each was online."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.definitions import FeatureView
from featurestore.engine.interface import Joins
from featurestore.offline.interface import TableReader
from featurestore.quality.causes import CAUSES, is_under_way, on_its_way
from featurestore.quality.past import Past
from featurestore.quality.rows import Key
from featurestore.training.asked import Asked
from featurestore.training.joins import PinnedRead
from featurestore.training.recount import EntityEvents
from featurestore.training.reference_windows import ReferenceEvent

if TYPE_CHECKING:
    import pyarrow as pa


class WindowEvents:
    """The events of some entities of a view with windows, and what the journal says of them."""

    def __init__(
        self,
        joins: Joins,
        offline: TableReader,
        pinned: PinnedRead,
        past: Past,
        keys: Sequence[pa.Array],
        at_us: npt.NDArray[np.int64],
    ) -> None:
        """Read the events of ``keys``, one column for each join key, as far as the instants look back."""
        import pyarrow as pa

        self._view, self._past = pinned.read.view, past
        self._windows = {window.name: window for window in self._view.windows}
        self._names, self._as_of = pinned.read.features, pinned.as_of
        oldest_us = np.array([self._view.reaches_back_to(at) for at in at_us.tolist()], np.int64)
        columns = [pa.chunked_array([column]) for column in keys]
        self._events = EntityEvents(joins, offline, pinned, Asked(columns, at_us, oldest_us))

    def then(self, feature: str, key: Key, at_us: int) -> Any:
        """Return a feature's value by the events that were online at an instant; None where nothing was."""
        if None in key or all(each.online_us > at_us for each in self._past.arrivals):
            return None
        return self._events.computed(
            self._windows[feature], at_us, self._online(self._near(feature, key, at_us), at_us)
        )

    def cause(self, key: Key, at_us: int, ahead_us: int, before: FeatureView | None, *, is_then: bool) -> str:
        """Return why features of an entity differ, one of `CAUSES`."""
        near = {event.sequence: event for name in self._names for event in self._near(name, key, at_us)}
        events = [event for event in near.values() if self._counts(event, at_us)]
        arrivals = [self._past.arrival(event.sequence) for event in events]
        known = [each for each in arrivals if each is not None]
        # Pushed events count as online from their commit on: they are asked about where nothing else explains it.
        missing = [each for each in known if each.online_us > at_us and not is_then] or known
        found = [on_its_way(each, at_us, corrects=False) for each in missing]
        found += ["publishing" for each in known if is_under_way(each, at_us)]
        oldest_us = self._view.reaches_back_to(at_us)
        found += ["withdrawn" for gone in self._past.withdrawals if gone.start_us <= at_us and gone.end_us > oldest_us]
        found += ["definition"] * (before is not None)
        edges = [event.event_us for event in near.values()] + [event.known_us for event in near.values()]
        edges += [each for of in known for each in (of.committed_us, of.started_us, of.finished_us) if each is not None]
        if ahead_us and any(abs(edge - at_us) <= ahead_us for edge in edges):
            found.append("clocks")
        return next((cause for cause in CAUSES if cause in found), "unexplained")

    def _counts(self, event: ReferenceEvent, at_us: int) -> bool:
        return event.event_us <= at_us and (self._as_of == "event" or event.known_us <= at_us)

    def _near(self, feature: str, key: Key, at_us: int) -> list[ReferenceEvent]:
        return self._events.at(key, self._events.near(key, at_us, self._windows[feature]))

    def _online(self, events: Iterable[ReferenceEvent], at_us: int) -> list[ReferenceEvent]:
        pairs = ((event, self._past.arrival(event.sequence)) for event in events)
        return [event for event, arrival in pairs if arrival is None or arrival.online_us <= at_us]
