"""The order of a run: slow tests first, spread over the workers, so that none of them is what the others wait for."""

from __future__ import annotations

from itertools import groupby, islice

import pytest


def slow_seconds(item: pytest.Item) -> float:
    """Return about how long a test takes by its mark ``slow``, 0 without it."""
    mark = item.get_closest_marker("slow")
    return 0.0 if mark is None else float(mark.args[0])


def slow_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Return the tests so that each of as many contiguous parts as there are workers begins with its share of the slow.

    That is how work stealing deals them out at first. A function's tests stay together: they share what they made.
    """
    slow = [list(found) for _, found in groupby(filter(slow_seconds, items), key=_function)]
    slow.sort(key=lambda group: -sum(map(slow_seconds, group)))
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for group in slow:
        min(parts, key=lambda part: sum(map(slow_seconds, part))).extend(group)
    quick = (item for item in items if not slow_seconds(item))
    ordered: list[pytest.Item] = []
    for number, part in enumerate(parts):
        size = (len(items) - len(ordered)) // (workers - number)
        ordered += part
        ordered += islice(quick, max(0, size - len(part)))
    return [*ordered, *quick]


def _function(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]
