"""Why served windows differ: proved by computing them again from the events that may have been online."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from featurestore.engine.interface import Joins
from featurestore.offline.interface import TableReader
from featurestore.quality.before import Change
from featurestore.quality.causes import CAUSES, is_under_way, leaving, on_its_way
from featurestore.quality.held import Held
from featurestore.quality.past import PUSH, Arrival, Past, Withdrawn
from featurestore.quality.rows import Key
from featurestore.training.asked import Asked
from featurestore.training.joins import PinnedRead
from featurestore.training.recount import EntityEvents
from featurestore.training.reference_windows import ReferenceEvent

if TYPE_CHECKING:
    import pyarrow as pa

MOST_TRIED = 64
"""At most so many of the newest pushed events are tried to be online or not yet."""


@dataclass(frozen=True, slots=True)
class WindowQuestion:
    """One served value that is made of features of a view with windows."""

    features: Sequence[str]
    key: Key
    at_us: int
    ahead_us: int
    fits: Callable[[Mapping[str, Any]], bool]
    """Tells whether values of the features make the value that was served."""
    is_then: bool
    """Whether it differs from what was online then; else from what is known now."""
    change: Change | None
    remade: Callable[[Arrival], bool]


@dataclass(frozen=True, slots=True)
class _State:
    """How it stood with one event at an instant."""

    event: ReferenceEvent
    counts_now: bool
    counts_then: bool
    is_sure: bool
    """Whether the journal says for certain whether it was online: not of pushes that no publish took, nor in one."""
    cause: str
    """Why it may not have been what it is now."""
    arrival: Arrival | None


class WindowEvents:
    """The events of some entities of a view with windows, and what the journal says of them."""

    def __init__(
        self,
        joins: Joins,
        offline: TableReader,
        pinned: PinnedRead,
        past: Past,
        held: Held,
        keys: Sequence[pa.Array],
        at_us: npt.NDArray[np.int64],
    ) -> None:
        """Read the events of ``keys``, one column for each join key, as far as the instants look back."""
        import pyarrow as pa

        self._view, self._past, self._held = pinned.read.view, past, held
        self._windows = {window.name: window for window in self._view.windows}
        oldest_us = np.array([self._view.reaches_back_to(at) for at in at_us.tolist()], np.int64)
        columns = [pa.chunked_array([column]) for column in keys]
        asked = Asked(columns, at_us, oldest_us)
        self._events = EntityEvents(joins, offline, pinned, asked)
        self._gone: list[tuple[Withdrawn, EntityEvents]] = []
        for withdrawal, files in reversed(held.withdrawn):
            if files:
                assert pinned.version is not None
                before = replace(pinned, version=replace(pinned.version, files=files))
                self._gone.append((withdrawal, EntityEvents(joins, offline, before, asked)))

    def then(self, feature: str, key: Key, at_us: int) -> Any:
        """Return a feature's value by the events that were online at an instant; None where nothing was."""
        if self._is_nothing(key, at_us):
            return None
        online = [each.event for each in self._states(feature, key, at_us) if each.counts_then]
        return self._computed(feature, at_us, online)

    def is_lost(self, feature: str, at_us: int) -> bool:
        """Tell whether an event may be missing that was online at an instant: its rows were withdrawn since."""
        begins_us = self._windows[feature].begins_us(at_us)
        lost = [each for each in self._held.lost if each.start_us <= at_us < each.offline_us]
        return any(begins_us is None or each.end_us > begins_us for each in lost)

    def cause(self, asked: WindowQuestion) -> str:
        """Return why a value differs, one of `CAUSES`: what the events prove that may not have been online."""
        states = {name: self._states(name, asked.key, asked.at_us) for name in asked.features}
        wanted = {s.event.sequence for each in states.values() for s in each if self._is_wanted(s, asked)}
        if asked.fits(self._values(asked, states, wanted)):
            return "unexplained"  # not by this view
        every = {s.event.sequence: s for each in states.values() for s in each}
        for online in self._possible(every):
            if asked.fits(self._values(asked, states, online)):
                return self._told(asked, states, every, wanted, online)
        if asked.change is not None:
            return asked.change.of
        is_lost = any(self.is_lost(name, asked.at_us) for name in asked.features)
        if is_lost and not asked.is_then and any(each.at_us > asked.at_us for each in self._held.lost):
            return "withdrawn"
        return "clocks" if asked.ahead_us and self._is_of_clocks(asked, states) else "unexplained"

    def _told(
        self,
        asked: WindowQuestion,
        states: Mapping[str, Sequence[_State]],
        every: Mapping[int, _State],
        wanted: set[int],
        online: set[int],
    ) -> str:
        """Return the first cause without which the events that were online do not make what was served."""
        differing = wanted ^ online
        by_cause = {cause: {s for s in differing if every[s].cause == cause} for cause in CAUSES}
        found = [cause for cause, events in by_cause.items() if events]
        needed = [cause for cause in found if not asked.fits(self._values(asked, states, online ^ by_cause[cause]))]
        told = next(iter(needed or found), "unexplained")
        change = asked.change
        if told in ("late", "withdrawn") and change is not None and change.of == "definition":
            arrivals = [every[s].arrival for s in by_cause["late"]]
            if any(each is not None and asked.remade(each) for each in arrivals):
                return "definition"
        return told

    def _possible(self, every: Mapping[int, _State]) -> Iterator[set[int]]:
        """Yield which events may have been online, the newest uncertain ones left out one after the other."""
        sure = {sequence for sequence, each in every.items() if each.is_sure and each.counts_then}
        unsure = sorted(sequence for sequence, each in every.items() if not each.is_sure)
        for count in range(len(unsure), max(len(unsure) - MOST_TRIED, 0) - 1, -1):
            yield sure | set(unsure[:count])
        if len(unsure) > MOST_TRIED:
            yield sure
        for one in unsure[-MOST_TRIED:]:
            yield sure | set(unsure) - {one}

    def _states(self, feature: str, key: Key, at_us: int) -> list[_State]:
        """Return the events that may count for a feature at an instant, in their order."""
        window, found = self._windows[feature], dict[int, _State]()
        for event in self._events.at(key, self._events.near(key, at_us, window)):
            found[event.sequence] = self._arrived(event, at_us)
        for withdrawal, events in self._gone:
            for event in events.at(key, events.near(key, at_us, window)):
                if event.sequence not in found:
                    found[event.sequence] = self._left(event, withdrawal, at_us)
        return sorted(found.values(), key=lambda s: (s.event.event_us, s.event.known_us, s.event.sequence))

    def _arrived(self, event: ReferenceEvent, at_us: int) -> _State:
        arrival = self._past.arrival(event.sequence)
        if arrival is None:
            return _State(event, True, True, True, "", None)
        cause = on_its_way(arrival, at_us, corrects=False) or ""
        is_there = arrival.committed_us is None or arrival.committed_us <= at_us
        is_pushed = arrival.origin == PUSH and is_there and cause == "not published"
        is_sure = not is_pushed and not is_under_way(arrival, at_us)
        return _State(event, True, arrival.online_us <= at_us, is_sure, cause, arrival)

    def _left(self, event: ReferenceEvent, withdrawal: Withdrawn, at_us: int) -> _State:
        arrived, cause = self._arrived(event, at_us), leaving(withdrawal, at_us)
        is_there = arrived.counts_then and cause is not None
        is_sure = cause != "publishing" and (cause is None or arrived.is_sure)
        return _State(event, False, is_there, is_sure, cause or "", arrived.arrival)

    def _is_wanted(self, state: _State, asked: WindowQuestion) -> bool:
        return state.counts_then if asked.is_then else state.counts_now

    def _is_nothing(self, key: Key, at_us: int) -> bool:
        return None in key or all(each.online_us > at_us for each in self._past.arrivals)

    def _values(
        self, asked: WindowQuestion, states: Mapping[str, Sequence[_State]], online: set[int]
    ) -> dict[str, Any]:
        if not online and self._is_nothing(asked.key, asked.at_us):
            return dict.fromkeys(states)
        chosen = {name: [s.event for s in each if s.event.sequence in online] for name, each in states.items()}
        return {name: self._computed(name, asked.at_us, events) for name, events in chosen.items()}

    def _computed(self, feature: str, at_us: int, events: Sequence[ReferenceEvent]) -> Any:
        return self._events.computed(self._windows[feature], at_us, events)

    def _is_of_clocks(self, asked: WindowQuestion, states: Mapping[str, Sequence[_State]]) -> bool:
        """Tell whether the value is that of an instant to which the clocks that were apart may have led."""
        edges = {asked.at_us - asked.ahead_us, asked.at_us + asked.ahead_us}
        for each in (s for name in states for s in self._states(name, asked.key, asked.at_us + asked.ahead_us)):
            instants = [each.event.event_us, each.event.known_us]
            if (of := each.arrival) is not None:
                instants += [at for at in (of.committed_us, of.started_us, of.finished_us) if at is not None]
            edges |= {at + step for at in instants for step in (-1, 0) if abs(at - asked.at_us) <= asked.ahead_us}
        for at_us in sorted(edges):
            values = {name: self.then(name, asked.key, at_us) for name in asked.features}
            if asked.fits(values):
                return True
        return False
