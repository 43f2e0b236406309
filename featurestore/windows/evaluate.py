"""The values of windows at any instants, many at once.

An event enters when it is available and leaves a window when its tile does: it counts at t if ``enters <= t < leaves``,
which is ``floor(t - length, resolution) < event_ts <= t`` of the available events. So a count is the number of events
that have entered, less those that have left: a difference of two prefixes, in the order of entering and of leaving,
found by one binary search each. Sums are the same with exact integers instead of ones (see `exact`), and the number of
distinct values with the stretches in which a value counts at all. None of these needs a look at single events, however
late they come. Extremes, first and last need the positions: see `extremes` and `nearest`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from featurestore.windows import exact
from featurestore.windows.extremes import RangeExtremes, covering_extremes
from featurestore.windows.moves import Events, Moves, Question, Remarks
from featurestore.windows.nearest import NearestBefore

if TYPE_CHECKING:
    import numpy.typing as npt

    Int64s = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """A feature's values for each row."""

    values: Array
    """Numbers; for first and last the positions of the events; for last_n those of all rows, one after the other."""
    valid: Bools
    overflowed: Bools | None = None
    """The rows whose sum of integers is beyond 64 bits."""
    offsets: Int64s | None = None
    """Where each row's values of last_n begin, and the end of the last one's."""


def evaluate(
    events: Events, keys: Int64s, times_us: Int64s, questions: Sequence[Question]
) -> tuple[list[Answer], Remarks]:
    """Answer questions for rows of (key, instant), ordered by both.

    Also says what people should know about the rows.
    """
    moves = Moves(events, keys, times_us)
    answers: dict[int, Answer] = {}
    groups: dict[tuple[str | None, str | None], list[int]] = {}
    for number, question in enumerate(questions):
        groups.setdefault((question.column, question.condition), []).append(number)
    for (column, condition), numbers in groups.items():
        taken = _Taken(events, moves, column, condition)
        answers |= {number: taken.answer(questions[number]) for number in numbers}
    return [answers[number] for number in range(len(questions))], moves.remarks(questions)


class _Taken:
    """The events that one column and condition take: those with a value for which the condition is true."""

    def __init__(self, events: Events, moves: Moves, column: str | None, condition: str | None) -> None:
        self._events, self._moves = events, moves
        self._column = None if column is None else events.columns[column]
        masks = [] if self._column is None or self._column.valid is None else [self._column.valid]
        masks += [] if condition is None else [events.conditions[condition]]
        self._mask: Bools | None = None
        """None if all are taken."""
        if masks:
            mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
            self._mask = None if mask.all() else mask
        self._prefixes: dict[Any, Int64s] = {}
        self._levels: dict[str, list[exact.Level]] = {}
        self._counts: dict[tuple[int | None, int], Int64s] = {}
        self._extremes: dict[str, RangeExtremes] = {}
        self._doubles: dict[tuple[str, int | None, int], Array] = {}
        """Sums and variances by window: mean and std are made of them."""

    def answer(self, question: Question) -> Answer:
        return self._functions[question.function](self, question)

    # Numbers of events, sums, and what is made of them.

    def _difference(self, name: str, question: Question, plus: Array, minus: Array | None = None) -> Int64s:
        """Return the sum of ``plus`` over the events that have entered less that of ``minus`` over those that left."""
        passing = self._moves.passing(question)
        entered = self._prefix(name, plus, passing.entering)[passing.entered]
        if minus is None:
            return entered - self._prefix(name, plus, passing.leaving)[passing.left]
        return entered - self._prefix(f"{name} -", minus, passing.leaving)[passing.left]

    def _prefix(self, name: str, integers: Array, order: Int64s | None) -> Int64s:
        key = name, id(order)
        if key not in self._prefixes:
            integers = integers if order is None else integers[order]
            sums = np.zeros(len(integers) + 1, np.int64)
            np.cumsum(integers, out=sums[1:])
            self._prefixes[key] = sums
        return self._prefixes[key]

    def counts(self, question: Question) -> Int64s:
        """Return how many events the window takes."""
        window = question.length_us, question.resolution_us
        if window not in self._counts:
            if self._mask is None:
                passing = self._moves.passing(question)
                self._counts[window] = passing.entered - passing.left
            else:
                self._counts[window] = self._difference("count", question, self._mask)
        return self._counts[window]

    def _count(self, question: Question) -> Answer:
        counts = self.counts(question)
        return Answer(counts, np.ones(len(counts), np.bool_))

    def _values(self) -> Array:
        assert self._column is not None
        return self._column.values

    def _numbers(self) -> Array:
        """Return the values with zero for every event that is not taken or is not finite."""
        values = self._values()
        kept = self._mask
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                kept = finite if kept is None else kept & finite
        return values if kept is None else np.where(kept, values, values.dtype.type(0))

    def _level(self, name: str) -> list[exact.Level]:
        """Return the levels of the taken values, of their squares, or of marks at NaNs and infinities."""
        if name not in self._levels:
            self._levels[name] = self._made_level(name)
        return self._levels[name]

    def _made_level(self, name: str) -> list[exact.Level]:
        values = self._values()
        is_float = values.dtype.kind == "f"
        if name in ("sum", "square"):
            make: dict[tuple[str, bool], Callable[..., list[exact.Level]]] = {
                ("sum", True): exact.float_levels,
                ("sum", False): exact.integer_levels,
                ("square", True): exact.square_levels,
                ("square", False): exact.integer_square_levels,
            }
            # Of one key alone: what the prefixes of all keys lose beyond 64 bits, their differences do not.
            most = int(np.diff(self._events.starts).max(initial=0))
            return make[name, is_float](self._numbers(), most=most) or [exact.Level(0, np.zeros(len(values), np.int64))]
        marks = np.isnan(values) if name == "nan" else values == (np.inf if name == "above" else -np.inf)
        marks = marks if self._mask is None else marks & self._mask
        return [exact.Level(0, marks.astype(np.int64))] if marks.any() else []

    def _sums(self, name: str, question: Question) -> list[exact.Level]:
        return [
            exact.Level(level.exponent, self._difference(f"{name} {number}", question, level.integers))
            for number, level in enumerate(self._level(name))
        ]

    def _special(self, question: Question) -> tuple[Bools | None, Array | None]:
        """Return the rows with a NaN or both infinities, and the sign of the infinity of those with one."""
        if self._values().dtype.kind != "f":
            return None, None
        found = {name: self._sums(name, question) for name in ("nan", "above", "below")}
        if not any(found.values()):
            return None, None
        none = np.zeros(len(self._moves.keys), np.bool_)
        nan, above, below = (sums[0].integers > 0 if sums else none for sums in found.values())
        return nan | (above & below), above.astype(np.int8) - below.astype(np.int8)

    def _sum(self, question: Question) -> Answer:
        counts = self.counts(question)
        if self._values().dtype.kind != "f":
            return _integer_sum(self._sums("sum", question), counts)
        return Answer(self._once("sum", question, self._float_sum), counts > 0)

    def _once(self, name: str, question: Question, make: Callable[[Question], Array]) -> Array:
        key = name, question.length_us, question.resolution_us
        if key not in self._doubles:
            self._doubles[key] = make(question)
        return self._doubles[key]

    def _float_sum(self, question: Question) -> Array:
        values: Array = exact.rounded(self._sums("sum", question))
        nan, sign = self._special(question)
        if nan is not None and sign is not None:
            values = np.where(sign > 0, np.inf, np.where(sign < 0, -np.inf, values))
            values = np.where(nan, np.nan, values)
        return values

    def _mean(self, question: Question) -> Answer:
        counts = self.counts(question)
        return Answer(self._once("sum", question, self._float_sum) / np.maximum(counts, 1), counts > 0)

    def _variance(self, question: Question) -> Answer:
        values = self._once("variance", question, self._float_variance)
        return Answer(np.sqrt(values) if question.function == "std" else values, self.counts(question) > 1)

    def _float_variance(self, question: Question) -> Array:
        counts, sums, squares = self.counts(question), self._sums("sum", question), self._sums("square", question)
        some = np.flatnonzero(counts > 1)
        values = np.zeros(len(counts))
        sums, squares = (
            [exact.Level(level.exponent, level.integers[some]) for level in levels] for levels in (sums, squares)
        )
        values[some] = exact.variances(sums, squares, counts[some])
        nan, sign = self._special(question)
        if nan is not None and sign is not None:
            values = np.where(nan | (sign != 0), np.nan, values)
        return values

    def _distinct(self, question: Question) -> Answer:
        begins, ends = self._stretches(question)
        # Unlike sums, these differ between the windows: what begins with an event depends on when others leave.
        counts = self._difference(f"distinct {question.length_us} {question.resolution_us}", question, begins, ends)
        return Answer(np.minimum(counts, question.n), np.ones(len(counts), np.bool_))

    def _stretches(self, question: Question) -> tuple[Bools, Bools]:
        """Mark the events that begin a stretch in which a value counts without a break, and those that end one."""
        events, some, keys, values = self._events, *self._by_value
        enters = (events.event_us if events.available_us is None else events.available_us)[some]
        marks = np.zeros(len(events), np.bool_), np.zeros(len(events), np.bool_)
        if (counted := self._moves.counted(question)) is not None:
            mine = counted[some]
            some, keys, values, enters = some[mine], keys[mine], values[mine], enters[mine]
        is_first = np.ones(len(some), np.bool_)
        is_first[1:] = (keys[1:] != keys[:-1]) | (values[1:] != values[:-1])
        if question.length_us is None:
            marks[0][some[is_first]] = True
            return marks[0], marks[0]  # none leaves, but those of earlier keys are not counted
        leaves = self._moves.leaves(question)[some]
        # The latest leave among the events of the value so far, and which event has it.
        groups = np.cumsum(is_first) - 1
        order = np.lexsort((leaves, groups))
        rank = np.empty(len(some), np.int64)
        rank[order] = np.arange(len(some))
        latest = np.maximum.accumulate(rank)  # ranks grow from group to group, so none is taken over from another
        begins = is_first.copy()
        begins[1:] |= enters[1:] > leaves[order[latest[:-1]]]
        marks[0][some[begins]] = True
        ends = np.flatnonzero(np.append(begins[1:], True)) if len(some) else np.zeros(0, np.int64)
        marks[1][some[order[latest[ends]]]] = True
        return marks

    @cached_property
    def _by_value(self) -> tuple[Int64s, Int64s, Array]:
        """The taken events, their keys and values, by key and value and then in the order of entering."""
        values = _identities(self._values())
        keys = self._moves.event_keys
        entering = np.arange(len(values)) if self._moves.order is None else self._moves.order
        some = entering if self._mask is None else entering[self._mask[entering]]
        some = some[np.lexsort((values[some], keys[some]))]
        return some, keys[some], values[some]

    # What needs the positions of events.

    @cached_property
    def _positions(self) -> Int64s | None:
        return None if self._mask is None else np.flatnonzero(self._mask)

    def _among(self, positions: Int64s) -> Int64s:
        """Return how many taken events are before each position."""
        if self._mask is None:
            return positions
        return self._prefix("count", self._mask, None)[positions]

    def _extreme(self, question: Question) -> Answer:
        pick, counts, values = (
            np.minimum if question.function == "min" else np.maximum,
            self.counts(question),
            self._values(),
        )
        is_float = values.dtype.kind == "f"
        least, greatest = (-np.inf, np.inf) if is_float else (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
        empty = greatest if question.function == "min" else least
        if self._mask is not None:
            values = np.where(self._mask, values, empty)
        if self._moves.order is not None:
            some, begins, ends = self._moves.covers(question)
            values = values if some is None else values[some]
            found = covering_extremes(values, begins, ends, len(counts), pick, empty)
        else:
            found = np.full(len(counts), empty, values.dtype)
            begins, ends = self._moves.begins(question), self._moves.entered
            some = np.flatnonzero(begins < ends)
            if len(some):
                found[some] = self._ranges(question.function, values, pick).of(begins[some], ends[some])
        return Answer(found + 0.0 if is_float else found, counts > 0)

    def _ranges(self, function: str, values: Array, pick: np.ufunc) -> RangeExtremes:
        if function not in self._extremes:
            self._extremes[function] = RangeExtremes(values, pick)
        return self._extremes[function]

    def _first(self, question: Question) -> Answer:
        counts, begins = self.counts(question), self._among(self._moves.begins(question))
        if self._moves.order is not None:
            available = self._available
            last = NearestBefore(available[::-1])
            begins = len(available) - 1 - last.of(len(available) - begins, self._moves.times_us)
        return self._at(begins, counts > 0)

    def _last(self, question: Question) -> Answer:
        counts = self.counts(question)
        return self._at(self._newest(1)[0], counts > 0)

    def _last_n(self, question: Question) -> Answer:
        sizes = np.minimum(self.counts(question), question.n)
        offsets = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        found = np.empty(offsets[-1], np.int64)
        for number, places in enumerate(self._newest(question.n)):
            mine = np.flatnonzero(sizes > number)
            found[offsets[mine] + number] = places[mine]
        return Answer(found if self._positions is None else self._positions[found], sizes > 0, offsets=offsets)

    def _newest(self, count: int) -> list[Int64s]:
        """Return the newest, second newest, ... taken event by each row's instant; they may be of other windows."""
        if self._moves.order is None:
            last = self._among(self._moves.entered) - 1
            return [last - number for number in range(count)]
        nearest = self._nearest
        places, found = self._among(self._moves.happened), []
        for _ in range(count):
            places = nearest.of(places, self._moves.times_us)
            found.append(places)
            places = np.maximum(places, 0)
        return found

    @cached_property
    def _available(self) -> Int64s:
        available = self._events.available_us
        assert available is not None
        return available if self._positions is None else available[self._positions]

    @cached_property
    def _nearest(self) -> NearestBefore:
        return NearestBefore(self._available)

    def _at(self, places: Int64s, valid: Bools) -> Answer:
        places = np.where(valid, places, 0)
        if self._positions is not None and len(self._positions):
            places = np.where(valid, self._positions[places], 0)
        return Answer(places, valid)

    _functions: ClassVar[dict[str, Callable[[_Taken, Question], Answer]]] = {
        "count": _count,
        "sum": _sum,
        "mean": _mean,
        "var": _variance,
        "std": _variance,
        "min": _extreme,
        "max": _extreme,
        "first": _first,
        "last": _last,
        "last_n": _last_n,
        "count_distinct": _distinct,
    }


def _integer_sum(sums: Sequence[exact.Level], counts: Int64s) -> Answer:
    """Return sums of integers, null where 64 bits do not hold them."""
    if len(sums) == 1:
        return Answer(sums[0].integers, counts > 0)
    upper, lower = sums[0].integers + (sums[1].integers >> 31), sums[1].integers & 0x7FFFFFFF
    fits = (upper >= -(1 << 32)) & (upper < 1 << 32)
    return Answer((np.where(fits, upper, 0) << 31) + lower, (counts > 0) & fits, ~fits)


def _identities(values: Array) -> Array:
    """Return integers that are equal where values are one: both zeros are, and all NaNs."""
    if values.dtype.kind != "f":
        return values
    return np.where(np.isnan(values), np.nan, values + 0.0).view(np.int64)
