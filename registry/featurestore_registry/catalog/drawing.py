"""What pages draw: shapes as SVG paths, each with the sentence that says the same. Numbers only, no markup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from featurestore_registry.catalog.words import DAY, HOUR, MINUTE, duration, instant, number
from featurestore_registry.documents import QUANTILES, BinsDocument, ColumnStatistics, Scalar

BARS = 24
SMALL = {"width": 96, "height": 22}
"""Of a histogram in a table."""
TIMES = ("Timestamp", "Date")


@dataclass(frozen=True, slots=True)
class Bars:
    """A histogram in a box of ``width`` by ``height``."""

    width: int
    height: int
    path: str
    points: str
    """Values with a bin of their own, in another colour."""
    low: str
    high: str
    text: str
    apart: tuple[str, ...] = ()
    """Values with a bin of their own that are not drawn: so far from all others that these would be pressed together,
    such as a sentinel of -999."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line over runs, oldest first, in a box of ``width`` by ``height``."""

    width: int
    height: int
    path: str
    dots: tuple[tuple[float, float, str], ...]
    low: str
    high: str
    text: str


def histogram(column: ColumnStatistics, bins: BinsDocument | None, *, width: int, height: int) -> Bars | None:
    """Return how the values lie; None where nothing was counted or nothing may show.

    Bins hold about as many rows each and differ in width, so their rows are spread over bars of equal width: between
    the first and the last percentile, so that a few outliers do not press all others into one bar.
    """
    if bins is None or column.is_hidden or column.bins != bins.version:
        return None
    if not all(map(math.isfinite, bins.edges)):
        return None
    if bins.edges and len(column.in_bins) != len(bins.edges) + 1:
        return None
    if len(bins.edges) < 2:
        return _named_bars(column, bins, width, height)
    pairs = zip(bins.points, column.at_points, strict=True) if len(bins.points) == len(column.at_points) else ()
    single, in_bins = [(place, count) for each, count in pairs if (place := place_of(each)) is not None], column.in_bins
    if column.distinct is not None and 1 < column.distinct <= len(column.top):  # all are known: none is spread
        single, in_bins = [(place, count) for each, count in column.top if (place := place_of(each)) is not None], ()
    low, high, apart = _axis(column, bins, single, in_bins)
    single = [(place, count) for place, count in single if place not in apart]
    step = (high - low) / BARS
    spread, points = [0.0] * BARS, [0.0] * BARS
    for (start, end), count in zip(pairwise(bins.edges), in_bins[1:-1], strict=False):
        for at in range(BARS):
            overlap = min(end, low + (at + 1) * step) - max(start, low + at * step)
            if overlap > 0 and end > start:
                spread[at] += count * overlap / (end - start)
    for place, count in single:
        if low <= place <= high:
            points[min(int((place - low) / step), BARS - 1)] += count
    most = max(a + b for a, b in zip(spread, points, strict=True)) or 1.0
    show = _as_time if column.type in TIMES else number
    left_out = tuple(show(place) for place in sorted(apart))
    return Bars(
        width,
        height,
        _bars(spread, [0.0] * BARS, most, width, height),
        _bars(points, spread, most, width, height),
        show(low),
        show(high),
        f"Histogram of {column.name} from {show(low)} to {show(high)}{_without(left_out)}. {_middle(column)}",
        left_out,
    )


def _named_bars(column: ColumnStatistics, bins: BinsDocument, width: int, height: int) -> Bars | None:
    """Return a bar for each value with a bin of its own, the most frequent first, and one for the others."""
    counts = sorted(column.at_points, reverse=True)
    if not counts or len(counts) != len(bins.points):
        return None
    others = [*[0] * len(counts), column.elsewhere] if column.elsewhere else [0] * len(counts)
    named = [*counts, 0] if column.elsewhere else counts
    most = max(*named, *others, 1)
    return Bars(
        width,
        height,
        _bars(others, [0.0] * len(others), most, width, height),
        _bars(named, [0.0] * len(named), most, width, height),
        "",
        "",
        f"The {len(counts)} most frequent values of {column.name}, and all others.",
    )


def _axis(
    column: ColumnStatistics, bins: BinsDocument, single: Sequence[tuple[float, float]], in_bins: Sequence[float]
) -> tuple[float, float, frozenset[float]]:
    """Return the ends of the axis, and which single values it leaves out.

    They lie farther from all other values than these lie from one another, and most rows are others'.
    """
    first, last = _inner(bins.edges, in_bins[1:-1])
    apart = {place: count for place, count in single if max(first - place, place - last) > last - first}
    rows = sum(in_bins) + sum(count for _, count in single)
    if not apart or not in_bins or first >= last or 2 * sum(apart.values()) >= rows:
        first, last, apart = bins.edges[0], bins.edges[-1], {}
    places = [place for place, _ in single if place not in apart]
    low, high = min(first, *places, last), max(last, *places, first)
    found = [place_of(value) for value in column.quantiles]
    if len(found) == len(QUANTILES) and found[0] is not None and found[-1] is not None and found[0] < found[-1]:
        low, high = max(low, found[0]), min(high, found[-1])
    if low >= high:
        low, high = bins.edges[0], bins.edges[-1] + (bins.edges[0] == bins.edges[-1])
    return low, high, frozenset(apart)


def _inner(edges: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """Return between which values all but a percent at each end lie of those that are counted between edges."""
    parts = [(start, end, count) for (start, end), count in zip(pairwise(edges), counts, strict=False) if count > 0]
    most, found = sum(count for _, _, count in parts), list[float]()
    for share in (0.01, 0.99):
        seen = 0.0
        for start, end, count in parts:
            if seen + count >= share * most:
                found.append(start + (end - start) * (share * most - seen) / count)
                break
            seen += count
    return (found[0], found[1]) if len(found) == 2 else (edges[0], edges[-1])


def _without(values: Sequence[str]) -> str:
    return f", without {' and '.join(values)}" if values else ""


def _middle(column: ColumnStatistics) -> str:
    if len(column.quantiles) != len(QUANTILES):
        return ""
    return f"Half of the values lie from {value(column.quantiles[2])} to {value(column.quantiles[4])}."


def _bars(heights: Sequence[float], floors: Sequence[float], most: float, width: int, height: int) -> str:
    step = width / len(heights)
    parts = []
    for at, (count, floor) in enumerate(zip(heights, floors, strict=True)):
        if count > 0:
            tall, wide = max(count / most * height, 1.0), max(step - 1, 0.5)
            top = max(height - floor / most * height - tall, 0)
            parts.append(f"M{at * step:.1f} {top:.1f}h{wide:.1f}v{tall:.1f}h{-wide:.1f}z")
    return "".join(parts)


def line(
    values: Sequence[float | None], labels: Sequence[str], *, name: str, width: int, height: int, is_share: bool = False
) -> Line | None:
    """Return a line over values, oldest first; a gap where one is missing. None for fewer than two."""
    known = [each for each in values if each is not None and math.isfinite(each)]
    if len(known) < 2:
        return None
    low, high = min(known), max(known)
    if is_share:
        low, high = 0.0, max(high, 0.05)
    room, step = (high - low) or 1.0, (width - 8) / (len(values) - 1)
    places: list[tuple[float, float] | None] = []
    for at, each in enumerate(values):
        is_known = each is not None and math.isfinite(each)
        rise = (each - low) / room if is_known and each is not None else 0
        places.append((4 + at * step, height - 4 - rise * (height - 8)) if is_known else None)
    path, is_down = "", False
    for place in places:
        if place is None:
            is_down = False
            continue
        path += f"{'L' if is_down else 'M'}{place[0]:.1f} {place[1]:.1f}"
        is_down = True
    say = _percent if is_share else number
    dots = tuple(
        (round(place[0], 1), round(place[1], 1), f"{label}: {say(each)}")
        for place, each, label in zip(places, values, labels, strict=True)
        if place is not None and each is not None
    )
    told = f"{say(known[0])} first, {say(known[-1])} last, {say(min(known))} at least, {say(max(known))} at most"
    text = f"{name} over {len(values)} runs: {told}."
    return Line(width, height, path, dots, say(low), say(high), text)


@dataclass(frozen=True, slots=True)
class RunBar:
    """A run as a bar."""

    x: float
    y: float
    height: float
    state: str
    text: str


def run_bars(counts: Sequence[tuple[int, str, str]], *, width: int, height: int) -> tuple[RunBar, ...]:
    """Return a bar for each run (rows, state, text), oldest first: its height is the logarithm of its rows."""
    most = math.log1p(max((rows for rows, _, _ in counts), default=0)) or 1.0
    step = min(width / max(len(counts), 1), 18.0)
    made = []
    for at, (rows, state, text) in enumerate(counts):
        tall = max(math.log1p(max(rows, 0)) / most * (height - 4), 3.0)
        made.append(RunBar(round(at * step, 1), round(height - tall, 1), round(tall, 1), state, text))
    return tuple(made)


_TICKS = (
    (MINUTE, "1 min"), (10 * MINUTE, "10 min"), (HOUR, "1 h"), (6 * HOUR, "6 h"), (DAY, "1 d"), (7 * DAY, "7 d"),
    (30 * DAY, "30 d"), (365 * DAY, "1 y"),
)  # fmt: skip


_NOW = 46
"""Pixels at the right end that "now" and half of another label take."""


@dataclass(frozen=True, slots=True)
class Span:
    """A window on an axis whose right end is now: longer ones reach further to the left, by the logarithm."""

    x: float
    width: float
    is_endless: bool
    text: str


def spans(lengths_us: Sequence[int | None], *, width: int) -> tuple[list[Span], list[tuple[float, str]]]:
    """Return the windows, and the axis: places of its ticks and their labels."""
    known = [length for length in lengths_us if length]
    greatest, least = max(known, default=DAY) * 1.6, min(known, default=DAY) / 6

    def place(length: float) -> float:
        return width * (1 - math.log(max(length / least, 1)) / math.log(greatest / least))

    made = [
        Span(0.0, width, True, "all of history")
        if not length
        else Span(round(place(length), 1), round(width - place(length), 1), False, f"the last {duration(length)}")
        for length in lengths_us
    ]
    ticks = [(round(place(length), 1), label) for length, label in _TICKS if least < length < greatest]
    ticks = [(at, label) for at, label in ticks if at < width - _NOW]  # a label there would lie on "now"
    return made, ticks


MOST_TEXT = 200
"""How many characters show of a text: what another program wrote into the ledger may have any length."""


def value(scalar: Scalar) -> str:
    """Return a value of a column as a page shows it; a text of which nothing is seen in quotes."""
    if isinstance(scalar, str):
        shown = scalar if len(scalar) <= MOST_TEXT else f"{scalar[:MOST_TEXT]}…"
        return shown if scalar.strip() else f'"{shown}"'
    return number(scalar)


def short(scalar: Scalar, kind: str) -> str:
    """Return a value for a narrow place: of an instant the minute, or the day where that is all."""
    place = place_of(scalar) if kind in TIMES and isinstance(scalar, str) else None
    return value(scalar) if place is None else instant(int(place))[:16].removesuffix(" 00:00")


def place_of(scalar: Scalar) -> float | None:
    """Return where a value lies on an axis: a number, or an instant in UTC microseconds."""
    if isinstance(scalar, bool) or scalar is None:
        return None
    if isinstance(scalar, int | float):
        return float(scalar) if math.isfinite(scalar) else None
    try:
        return float(scalar)  # a decimal
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(scalar)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1_000_000


def _as_time(us: float) -> str:
    return instant(int(us))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2g} %"


MOST_BESIDE = 20
"""At most so many pairs of bars; neighbours are put together where there are more."""
_MOST_LABEL = 40


@dataclass(frozen=True, slots=True)
class Beside:
    """Shares of a baseline, and of what is compared with it, as pairs of bars."""

    width: int
    height: int
    before: str
    after: str
    low: str
    high: str
    text: str


def beside(name: str, bars: Sequence[tuple[str, float, float]], width: int, height: int) -> Beside | None:
    """Return pairs of bars (label, share before, share now); None where there are none that can be drawn."""
    if not bars or not all(0 <= each < math.inf for _, *shares in bars for each in shares):
        return None
    size = -(-len(bars) // MOST_BESIDE)
    groups = [bars[at : at + size] for at in range(0, len(bars), size)]
    labels = [_label(group[0][0], group[-1][0] if len(group) > 1 else "") for group in groups]
    shares = [(min(sum(each[1] for each in group), 1.0), min(sum(each[2] for each in group), 1.0)) for group in groups]
    most = max(max(pair) for pair in shares) or 1.0
    step = width / len(groups)
    paths = ["", ""]
    for at, pair in enumerate(shares):
        for side, each in enumerate(pair):
            if each > 0:
                tall, left = max(each / most * height, 1.0), (at + (0.06, 0.5)[side]) * step
                paths[side] += f"M{left:.1f} {height:g}v{-tall:.1f}h{0.42 * step:.1f}v{tall:.1f}z"
    moved = sorted(range(len(shares)), key=lambda at: -abs(shares[at][1] - shares[at][0]))[:3]
    told = "; ".join(f"{labels[at]}: {_percent(shares[at][1])}, before {_percent(shares[at][0])}" for at in moved)
    text = f"Shares of the values of {name[:MOST_TEXT]}, the baseline beside the window. What moved most: {told}."
    return Beside(width, height, paths[0], paths[1], *_ends(bars[0][0], bars[-1][0]), text)


def _label(first: str, last: str) -> str:
    """Return what a bar of one or several labels is called: spans of numbers as one span."""
    spans = [_span(each) for each in (first, last) if each]
    if last and spans[0] is not None and spans[1] is not None:
        return f"{number(spans[0][0])} to {number(spans[1][1])}"
    return " … ".join(value(each[:_MOST_LABEL]) for each in (first, last) if each)


def _ends(first: str, last: str) -> tuple[str, str]:
    """Return the ends of an axis: of numbers the least and the greatest."""
    spans = _span(first), _span(last)
    if spans[0] is not None and spans[1] is not None:
        return number(spans[0][0]), number(spans[1][1])
    return value(first[:_MOST_LABEL]), value(last[:_MOST_LABEL])


def _span(label: str) -> tuple[float, float] | None:
    """Return the numbers of a label such as ``3 to 4.5``, or of one number; None of a text."""
    parts = label.split(" to ")
    try:
        low, high = float(parts[0]), float(parts[-1])
    except ValueError:
        return None
    return (low, high) if len(parts) <= 2 and math.isfinite(low) and math.isfinite(high) else None
