"""Events, and when they enter and leave the windows of rows that ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.windows.timeline import Timeline, order_of

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One value for each event: float64, or int64 for everything else (dates, instants, booleans, hashes of texts)."""

    values: Array
    """Anything where the value is null."""
    valid: Bools | None = None
    """None if no value is null."""


@dataclass(frozen=True, slots=True)
class Events:
    """Events of the keys 0, 1, 2, ..., ordered by key and then by event time, created time and arrival."""

    starts: Int64s
    """Where each key's events begin, and the end of the last one's."""
    event_us: Int64s
    available_us: Int64s | None
    """When each becomes available; None where availability does not count."""
    columns: Mapping[str, Column]
    conditions: Mapping[str, Bools]
    """Which events a condition is true for."""

    def __len__(self) -> int:
        return len(self.event_us)


@dataclass(frozen=True, slots=True)
class Question:
    """One feature."""

    function: str
    column: str | None
    """None counts events."""
    condition: str | None
    length_us: int | None
    """None: all of history."""
    resolution_us: int
    n: int = 0
    """How many values last_n answers at most, and count_distinct counts."""


@dataclass(frozen=True, slots=True)
class Remarks:
    """What is remarkable about rows, one mark each."""

    own: Bools
    """An event happens at its very instant and counts there."""
    held_back: Bools
    """Events have happened in the longest window, and none of them is available."""


@dataclass(frozen=True, slots=True)
class Passing:
    """The events that enter and leave one window, in both orders, and how many have done so by each row's instant."""

    entering: Int64s | None
    """The events in the order of entering; None if these are all events in their own order."""
    entered: Int64s
    leaving: Int64s | None
    left: Int64s


class Moves:
    """When the events enter and leave, and how many have done so by each row's instant."""

    def __init__(self, events: Events, keys: Int64s, times_us: Int64s) -> None:
        self.events, self.keys, self.times_us = events, keys, times_us
        self._timeline = Timeline.of(events.starts, events.event_us)
        self._event_keys = np.repeat(np.arange(len(events.starts) - 1), np.diff(events.starts))
        self._codes = self._timeline.codes(self._event_keys, events.event_us)
        self._passing: dict[tuple[int | None, int], Passing] = {}
        self.happened = self._by(times_us)
        """How many events of the row's key and of those before it have happened by then."""
        available = self._available()
        self.order: Int64s | None = None
        """The events in the order of entering, None if that is their own order."""
        self.entered = self.happened
        """How many events, in that order, have entered."""
        self._most_lag_us = 0
        if available is not None and len(events):
            self._most_lag_us = int((available - events.event_us).max())
        if available is not None and self._most_lag_us:
            timeline = Timeline.of(events.starts, available)
            codes = timeline.codes(self._event_keys, available)
            if (codes[1:] < codes[:-1]).any():
                self.order = order_of(codes)
                codes = codes[self.order]
            self.entered = np.searchsorted(codes, timeline.codes(keys, times_us), "right")

    def _available(self) -> Int64s | None:
        """Return when the events enter, or just after the key's last row where that is later: nobody asks any more."""
        available = self.events.available_us
        if available is None or not len(self.keys):
            return available
        ends = self._row_starts[1:]
        until = np.where(ends > self._row_starts[:-1], self.times_us[np.maximum(ends, 1) - 1], self.times_us[0]) + 1
        clipped: Int64s = np.minimum(available, until[self._event_keys])
        return clipped

    def begins(self, question: Question) -> Int64s:
        """Return the position of the first event that the window has not left behind, whether it has entered or not."""
        if question.length_us is None:
            return self.events.starts[self.keys]
        bounds = (self.times_us - question.length_us) // question.resolution_us
        bounds *= question.resolution_us
        return self._by(bounds)

    def passing(self, question: Question) -> Passing:
        """Return the events that enter and leave the window, and how many have done so by each row's instant."""
        window = question.length_us, question.resolution_us
        if window not in self._passing:
            begins, counted = self.begins(question), self.counted(question)
            if counted is None:
                made = Passing(self.order, self.entered, None, begins)
            else:
                leaving = np.flatnonzero(counted)
                before = _before(counted)
                if self.order is None:
                    made = Passing(leaving, before[self.entered], leaving, before[begins])
                else:
                    entering = counted[self.order]
                    made = Passing(self.order[entering], _before(entering)[self.entered], leaving, before[begins])
            self._passing[window] = made
        return self._passing[window]

    def counted(self, question: Question) -> Bools | None:
        """Tell which events ever count: not those that would leave before they enter; None for all.

        They leave in their own order, whenever they enter.
        """
        available = self.events.available_us
        if question.length_us is None or available is None or self._most_lag_us <= question.length_us:
            return None
        found: Bools = available < self.leaves(question)
        return None if found.all() else found

    def leaves(self, question: Question) -> Int64s:
        """Return the instant from which each event no longer counts."""
        assert question.length_us is not None
        tiles = -(-self.events.event_us // question.resolution_us)
        return tiles * question.resolution_us + question.length_us

    def covers(self, question: Question) -> tuple[Int64s | None, Int64s, Int64s]:
        """Return the events that ever count (None: all) and the rows [begin, end) at whose instants each does."""
        counted = self.counted(question)
        some = None if counted is None else np.flatnonzero(counted)
        begins, keys = self._first_rows, self._event_keys
        if some is not None:
            begins, keys = begins[some], keys[some]
        if question.length_us is None:
            return some, begins, self._row_starts[keys + 1]
        leaves = self.leaves(question)
        codes = self._rows.codes(keys, leaves if some is None else leaves[some])
        return some, begins, np.searchsorted(self._asked, codes, "left")

    @cached_property
    def _first_rows(self) -> Int64s:
        """The first row, if any, at whose instant each event has entered."""
        available = self.events.available_us
        enters = self.events.event_us if available is None else available
        return np.searchsorted(self._asked, self._rows.codes(self._event_keys, enters), "left")

    @cached_property
    def _rows(self) -> Timeline:
        return Timeline.of(self._row_starts, self.times_us)

    @cached_property
    def _asked(self) -> Int64s:
        return self._rows.codes(self.keys, self.times_us)

    @cached_property
    def _row_starts(self) -> Int64s:
        return np.searchsorted(self.keys, np.arange(len(self.events.starts)))

    def _by(self, instants: Int64s) -> Int64s:
        return np.searchsorted(self._codes, self._timeline.codes(self.keys, instants), "right")

    def remarks(self, questions: Sequence[Question]) -> Remarks:
        """Return what is remarkable about the rows."""
        held_back = np.zeros(len(self.keys), np.bool_)
        if self.events.available_us is not None and questions:
            longest = max(questions, key=lambda each: np.inf if each.length_us is None else each.length_us)
            passing = self.passing(longest)
            held_back = (self.begins(longest) < self.happened) & (passing.entered == passing.left)
        return Remarks(self._are_own(), held_back)

    def _are_own(self) -> Bools:
        begins = self._by(self.times_us - 1)
        if self.events.available_us is None:
            return begins < self.happened
        at_once = _before(self.events.available_us <= self.events.event_us)
        own: Bools = at_once[begins] < at_once[self.happened]
        return own

    @property
    def event_keys(self) -> Int64s:
        """The key of each event."""
        return self._event_keys


def _before(marks: Bools) -> Int64s:
    """Return how many marks are before each position, and in all."""
    counts = np.zeros(len(marks) + 1, np.int64)
    np.cumsum(marks, out=counts[1:])
    return counts
