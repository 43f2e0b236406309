"""Numbers, instants and durations as people read them, and texts that a page can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

MICROSECOND, SECOND = 1, 1_000_000
MINUTE, HOUR, DAY = 60 * SECOND, 3_600 * SECOND, 86_400 * SECOND
_UNITS = ((DAY, "d"), (HOUR, "h"), (MINUTE, "min"), (SECOND, "s"))
_LONG = ((365 * DAY, "year"), (30 * DAY, "month"), (DAY, "day"), (HOUR, "hour"), (MINUTE, "minute"), (SECOND, "second"))
_UNSEEN = re.compile(
    r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_KINDS = {
    "feature_view": ("feature view", "feature views"),
    "on_demand_feature_view": ("on-demand view", "on-demand views"),
    "feature_service": ("feature service", "feature services"),
    "entity": ("entity", "entities"),
    "source": ("source", "sources"),
    "push_source": ("push source", "push sources"),
    "request_source": ("request source", "request sources"),
    "training_set": ("training set", "training sets"),
    "consumer": ("consumer", "consumers"),
    "monitor": ("monitor", "monitors"),
    "feature": ("feature", "features"),
    "column": ("column", "columns"),
}


MOST_ASKED = 200
"""Characters of a query's value that are looked at, and of an owner or a tag that can be searched for."""
MOST_SHOWN = 4_000
"""At most so many characters of a text are on a page, unless its template says how many."""


class Brief(str):
    """A text of which a page shows no more than it should."""

    __slots__ = ()


def seen(value: Any) -> Any:
    """Return a value for a page: characters that nobody sees, or that turn text around, are written as escapes."""
    if type(value) is str:
        value = brief(value, MOST_SHOWN)
    if type(value) is not Brief or (value.isascii() and value.isprintable()):
        return value
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def brief(text: str, most: int = 240) -> Brief:
    """Return a text, or how it begins: nobody's description fills a list."""
    return Brief(text if len(text) <= most else f"{text[: most - 1]}…")


def kind_name(kind: str, count: int = 1) -> str:
    """Return what people call a kind of records; one that this version does not know by its own name."""
    one, many = _KINDS.get(kind, (kind.replace("_", " "), f"{kind.replace('_', ' ')}s"))
    return one if count == 1 else many


def counted(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun: ``1 row``, ``1,200 rows``."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def age(us: int | None) -> str:
    """Return how long something is ago in one unit, rounded down: ``3 days``, ``1 hour``, ``now``."""
    if us is None:
        return "never"
    for unit, name in _LONG:
        if abs(us) >= unit:
            return counted(abs(us) // unit, name)
    return "now"


def ago(then_us: int | None, now_us: int) -> str:
    """Return when something was, as seen from now: ``3 days ago``, ``in 2 hours``, ``never``."""
    if then_us is None:
        return "never"
    text = age(now_us - then_us)
    if text == "now":
        return "just now"
    return f"{text} ago" if then_us <= now_us else f"in {text}"


def duration(us: int | None) -> str:
    """Return a length of time exactly: ``7 days``, ``1 h 30 min``; ``no limit`` for None."""
    if us is None:
        return "no limit"
    if us < 0:
        return f"-{duration(-us)}"
    if us and us % DAY == 0:
        return counted(us // DAY, "day")
    parts, left = [], us
    for unit, name in _UNITS:
        count, left = divmod(left, unit)
        if count:
            parts.append(f"{count} {name}")
    if left or not parts:
        parts.append(f"{left / 1000:g} ms")
    return " ".join(parts)


def took(ms: int | None) -> str:
    """Return how long a run took."""
    if ms is None:
        return ""
    return f"{ms / 1000:.1f} s" if ms < 100_000 else duration(ms // 1000 * SECOND)


def instant(us: int | None) -> str:
    """Return an instant to the second, UTC; empty for none, a number for one that no calendar has."""
    if us is None:
        return ""
    try:
        return datetime.fromtimestamp(us / SECOND, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{us} µs"


def to_us(at: datetime) -> int:
    """Return an aware instant in UTC microseconds."""
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * SECOND)


def number(value: Any) -> str:
    """Return a figure with at most four significant decimals: counts whole, floats short, texts as they are."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else f"{value:.4g}"
    if isinstance(value, float):
        size = abs(value)
        if size and (size >= 1e9 or size < 1e-4):
            return f"{value:.3e}"
        return f"{value:,.4g}" if size < 10_000 else f"{value:,.0f}"
    return str(value)


def rule(told: Any) -> str:
    """Return what a view or a field expects, as its definition says it: ``Between(least=1, greatest=5)``."""
    if not isinstance(told, Mapping):
        return brief(str(told))
    names = sorted(told, key=lambda name: (name not in _LEADING, name))  # a record has them in the order of the letters
    values = {name: told[name] for name in names if name != "rule" and told[name] is not None}
    if isinstance(within := values.get("within"), int):
        values["within"] = duration(within)
    return brief(f"{told.get('rule')}({', '.join(f'{name}={_short(value)}' for name, value in values.items())})")


_LEADING = ("least", "where")


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return str(value)


def of_nulls(found: Any) -> str:
    """Return the share of nulls of a column, and beside it that of NaN and infinities where there are any."""
    nulls = share(found.nulls, found.rows)
    return f"{nulls} + {share(found.not_finite, found.rows)}\u00a0NaN/inf" if found.not_finite else nulls


def share(part: float, whole: float) -> str:
    """Return a share in percent, on one line: something is never 0 %, and not everything never 100 %."""
    if not whole:
        return "–"
    found = 100 * part / whole
    if 0 < found < 0.1:
        return "<\u00a00.1\u00a0%"
    if 99.9 < found < 100:
        return ">\u00a099.9\u00a0%"
    return f"{found:.0f}\u00a0%" if found in (0, 100) else f"{found:.1f}\u00a0%"
