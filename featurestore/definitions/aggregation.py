"""Windowed aggregations: what a feature view computes, at any instant, of the events before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any, ClassVar

from pydantic import model_validator
from typing_extensions import override

from featurestore.definitions.base import COLUMN_NAME, Field, Named, as_tuple, check_column_name
from featurestore.errors import DefinitionError, did_you_mean
from featurestore.types import Array, Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp, ValueType
from featurestore.types.times import MICROSECOND

ALL_ROWS = "*"
"""The column of a count of rows."""

_NUMBERS = (Int32, Int64, Float32, Float64)
_ADDED = (*_NUMBERS, Bool)
_ORDERED = (*_NUMBERS, Date, Timestamp)
_KEPT = (*_ORDERED, Bool, String, Bytes)
INPUTS: dict[str, tuple[ValueType, ...] | None] = {
    "count": None,
    "sum": _ADDED,
    "mean": _ADDED,
    "min": _ORDERED,
    "max": _ORDERED,
    "var": _ADDED,
    "std": _ADDED,
    "first": _KEPT,
    "last": _KEPT,
    "last_n": _KEPT,
    "count_distinct": _KEPT,
}
"""Every function with the types that it takes; None: any."""
PARTIALS: dict[str, frozenset[str]] = {
    "count": frozenset({"count"}),
    "sum": frozenset({"count", "sum"}),
    "mean": frozenset({"count", "sum"}),
    "var": frozenset({"count", "sum", "square"}),
    "std": frozenset({"count", "sum", "square"}),
    "min": frozenset({"count", "min"}),
    "max": frozenset({"count", "max"}),
    "first": frozenset({"count", "first"}),
    "last": frozenset({"last"}),
    "last_n": frozenset({"last"}),
    "count_distinct": frozenset({"distinct"}),
}
"""What the online store keeps for each function."""
_OTHER_NAMES = {
    "avg": "mean",
    "average": "mean",
    "stddev": "std",
    "stddev_samp": "std",
    "stdev": "std",
    "variance": "var",
    "var_samp": "var",
    "approx_count_distinct": "count_distinct",
    "nunique": "count_distinct",
    "total": "sum",
    "minimum": "min",
    "maximum": "max",
    "latest": "last",
    "earliest": "first",
}
"""What SQL and other feature stores call the functions."""
_OF_LISTS = ("median", "quantile", "percentile", "mode")
"""What the functions are called that need all values at once."""

MOST_BYTES = 256
"""The longest text or byte string that an aggregation keeps."""
KEEP_TEXTS = ("first", "last", "last_n", "count_distinct")
"""The functions that keep texts; the others count or compare them."""
MOST_LAST, MOST_DISTINCT, DISTINCT_BOUND = 100, 10_000, 1_000
"""The greatest ``n`` of last_n and of count_distinct, and the latter's default."""
MOST_TILES = 400
LEAST_WINDOW, LEAST_RESOLUTION = timedelta(minutes=1), timedelta(seconds=5)
_RESOLUTIONS = (
    timedelta(days=30),
    timedelta(days=7),
    timedelta(days=1),
    timedelta(hours=1),
    timedelta(minutes=5),
    timedelta(minutes=1),
    timedelta(seconds=5),
)
_UNITS = (
    (timedelta(days=1), "d"),
    (timedelta(hours=1), "h"),
    (timedelta(minutes=1), "min"),
    (timedelta(seconds=1), "s"),
)


@dataclass(frozen=True, slots=True)
class Window:
    """One feature of a windowed view: an aggregation over one window.

    At an instant t it counts the available events with ``floor(t - length, resolution) < event_ts <= t``.
    """

    name: str
    aggregation: Aggregation
    length_us: int | None
    """None: all of history."""
    resolution_us: int
    """The steps in which the old end of the window moves; 0 for all of history."""

    def begins_us(self, at_us: int) -> int | None:
        """Return the instant after which events count at ``at_us``; None: from the first on."""
        if self.length_us is None:
            return None
        return (at_us - self.length_us) // self.resolution_us * self.resolution_us


class Aggregation(Named):
    """A function of one column over the events of some windows, as features of a view: one for each window.

    ``function``: count, sum, mean, min, max, var, std, first, last, last_n (with ``n``) or count_distinct (at most
    ``n``, 1,000 by default). ``column`` may be ``"*"`` for a count of rows. A window is a length of time, or None for
    all of history. ``where`` is a condition on the event in SQL: events for which it is true count, not those for which
    it is null or cannot be computed. A feature is called ``{column}_{function}_{window}``, such as ``amount_sum_7d``;
    ``name`` replaces the column and the function.

    The new end of a window is exact, its old end moves in steps of ``resolution``, which divides the window. By default
    that is the greatest of 5 s, 1 min, 5 min, 1 h, 1 day, 7 days and 30 days that divides the window and is at most a
    twelfth of it.
    """

    kind: ClassVar[str] = "aggregation"
    title: ClassVar[str] = "Aggregation"

    name: str
    """What the names of its features begin with."""
    column: str
    function: str
    windows: tuple[timedelta | None, ...]
    resolution: timedelta | None = None
    where: str | None = None
    n: int | None = None

    def __init__(
        self,
        column: str,
        function: str,
        windows: Sequence[timedelta | None],
        *,
        resolution: timedelta | None = None,
        name: str | None = None,
        where: str | None = None,
        n: int | None = None,
    ) -> None:
        self._fill(
            _prefix(column, function, n) if name is None else name,
            column=column,
            function=function,
            windows=as_tuple(windows),
            resolution=resolution,
            where=where,
            n=None if function == "count_distinct" and n == DISTINCT_BOUND else n,  # written out it is the same
        )

    @model_validator(mode="after")
    def _check_whole(self) -> Aggregation:
        if self.function not in INPUTS:
            raise ValueError(f"function: there is no {self.function!r}: {self._instead()}")
        if self.column == ALL_ROWS:
            if self.function != "count":
                raise ValueError(f"column: {ALL_ROWS!r} is for a count of rows; a {self.function} needs a column")
        else:
            _named("column", _check_plain_name, self.column)
        self._check_n()
        self._check_windows()
        for feature in self.features:
            _named("name", check_column_name, feature.name)
        if self.where is not None:
            from featurestore.definitions.condition import columns_of  # loads the parser

            columns_of(self.where)
        return self

    def _instead(self) -> str:
        """Return what to write for a function that there is not."""
        called = self.function.lower()
        if ours := _OTHER_NAMES.get(called, called if called in INPUTS else ""):
            return f"it is called {ours!r} here"
        if any(part in called for part in _OF_LISTS):
            return "compute it of the list that last_n gives, or in SQL (sql=)"
        like = did_you_mean(called, INPUTS)
        return f"use one of {', '.join(INPUTS)}. {'' if like.startswith('Known') else like}".rstrip(" .")

    def _check_n(self) -> None:
        most = {"last_n": MOST_LAST, "count_distinct": MOST_DISTINCT}.get(self.function)
        if most is None and self.n is not None:
            raise ValueError(f"n: a {self.function} takes none; it is for last_n and count_distinct")
        if self.function == "last_n" and self.n is None:
            raise ValueError("n: last_n needs to know how many values, such as n=5")
        if most is not None and self.n is not None and not 1 <= self.n <= most:
            raise ValueError(f"n: must be from 1 to {most:,}, not {self.n}")

    def _check_windows(self) -> None:
        if not self.windows:
            raise ValueError("windows: needs at least one, such as timedelta(days=7), or None for all of history")
        if len(set(self.windows)) != len(self.windows):
            raise ValueError("windows: the same window is given twice")
        if self.resolution is not None:
            if set(self.windows) == {None}:
                raise ValueError("resolution: all of history has no end that moves, so it takes no resolution")
            if self.resolution < LEAST_RESOLUTION or self.resolution % timedelta(seconds=1):
                raise ValueError(f"resolution: must be whole seconds, at least 5, not {self.resolution}")
        for window in self.windows:
            if window is None:
                continue
            if window < LEAST_WINDOW or window % timedelta(seconds=1):
                raise ValueError(f"windows: must be whole seconds, at least a minute, not {window}")
            _resolution(window, self.resolution)

    @property
    def features(self) -> tuple[Window, ...]:
        """One feature for each window, in their order."""
        return tuple(
            Window(
                f"{self.name}_{window_text(window)}",
                self,
                None if window is None else window // MICROSECOND,
                0 if window is None else _resolution(window, self.resolution) // MICROSECOND,
            )
            for window in self.windows
        )

    @property
    def condition_columns(self) -> tuple[str, ...]:
        """The columns that ``where`` reads."""
        if self.where is None:
            return ()
        from featurestore.definitions.condition import columns_of

        return columns_of(self.where)

    @property
    def bound(self) -> int:
        """How many values it keeps: the ``n`` of last_n and count_distinct."""
        return DISTINCT_BOUND if self.n is None else self.n

    def type_of(self, column: ValueType | None) -> ValueType:
        """Return the type of its features of a column of some type; raises DefinitionError for one it does not take."""
        taken = INPUTS[self.function]
        if taken is None:
            return Int64
        if column not in taken:
            raise DefinitionError(
                f"Aggregation {self.name!r}: a {self.function} takes no {column}, which column {self.column!r} is.",
                hint=f"It takes {', '.join(map(str, taken))}.{self._cast(column)}",
                object=self.name,
                field="column",
            )
        if self.function in ("mean", "var", "std"):
            return Float64
        if self.function == "count_distinct":
            return Int64
        if self.function == "sum":
            return Float64 if column in (Float32, Float64) else Int64
        return Array(column) if self.function == "last_n" else column

    def _cast(self, column: ValueType | None) -> str:
        if not str(column).startswith("Decimal"):
            return ""
        return f" Select it with a cast in sql=, such as CAST({self.column} * 100 AS BIGINT) AS {self.column}_cents."

    def field_of(self, window: Window, column: ValueType | None) -> Field:
        """Return one of its features as a field, of a column of some type. Raises as `type_of`."""
        return Field(window.name, self.type_of(column), description=self._description(window))

    def _description(self, window: Window) -> str:
        what = {
            "count": "number of events" if self.column == ALL_ROWS else f"number of values of {self.column}",
            "count_distinct": f"number of distinct values of {self.column}, at most {self.bound:,}",
            "last_n": f"last {self.n} values of {self.column}, newest first",
        }.get(self.function, f"{self.function} of {self.column}")
        over = "all events" if window.length_us is None else f"the last {window.name.rpartition('_')[2]}"
        return f"{what} over {over}" + (f" where {self.where}" if self.where else "")

    def __hash__(self) -> int:
        return hash((self.name, self.column, self.function, self.windows, self.where))

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Yield the arguments as they are written."""
        yield None, self.column
        yield None, self.function
        yield "windows", list(self.windows)
        if self.name != _prefix(self.column, self.function, self.n):
            yield "name", self.name
        for name in ("resolution", "where", "n"):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)


class ExactAggregation(Aggregation):
    """An aggregation whose windows have two exact ends, in steps of a microsecond: for labels, which nobody serves."""

    @classmethod
    def of(cls, found: Aggregation) -> ExactAggregation:
        """Return an aggregation with exact windows."""
        made = cls.__new__(cls)
        made._fill(**{name: getattr(found, name) for name in Aggregation.model_fields})
        return made

    @property
    @override
    def features(self) -> tuple[Window, ...]:
        return tuple(replace(window, resolution_us=min(1, window.resolution_us)) for window in super().features)


@lru_cache(maxsize=1_000)
def window_text(window: timedelta | None) -> str:
    """Return a window as names have it: ``1d``, ``90min``, ``all``."""
    if window is None:
        return "all"
    unit, name = next((unit, name) for unit, name in _UNITS if not window % unit)
    return f"{window // unit}{name}"


def _prefix(column: object, function: object, n: object) -> str:
    if column == ALL_ROWS:
        return str(function)
    return f"{column}_last_{n}" if function == "last_n" and n is not None else f"{column}_{function}"


def _check_plain_name(name: str) -> None:
    """Check a column's name; the view checks whether it is one of its times, whose names are reserved."""
    if not COLUMN_NAME.fullmatch(name):
        raise ValueError("a column name is a letter or _ followed by at most 126 of A-Z, a-z, 0-9 and _")


def _named(what: str, check: Any, value: str) -> None:
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{what}: {error} (got {value!r})") from None


@lru_cache(maxsize=1_000)
def _resolution(window: timedelta, given: timedelta | None) -> timedelta:
    """Return the resolution of a window; raises ValueError for one that does not fit, or where there is none."""
    if given is not None:
        if window % given:
            raise ValueError(f"resolution: {given} does not divide the window {window_text(window)}")
        if window // given > MOST_TILES:
            raise ValueError(
                f"resolution: {given} makes {window // given:,} tiles of the window {window_text(window)}, and "
                f"{MOST_TILES} are the most: take {_coarser(window)}, for one"
            )
        return given
    found = next((each for each in _RESOLUTIONS if not window % each and each * 12 <= window), None)
    if found is None or window // found > MOST_TILES:
        raise ValueError(
            f"windows: {window_text(window)} has no resolution of its own that makes at most {MOST_TILES} tiles: give "
            f"one, such as resolution={_coarser(window)!r}"
        )
    return found


def _coarser(window: timedelta) -> timedelta:
    """Return a fine resolution that makes few enough tiles of a window, in large units where they divide it."""
    least = max(LEAST_RESOLUTION, window / MOST_TILES)
    for unit, _ in _UNITS:
        steps = window // unit
        found = next((n for n in range(max(1, -(-least // unit)), steps + 1) if not steps % n), 0)
        if not window % unit and found and unit * found * 12 <= window:
            return unit * found
    return window
