"""Shares of a baseline beside those of a window: what is drawn, beside plain sums."""

from __future__ import annotations

import math
import random
import re

import pytest
from featurestore_registry.catalog.drawing import MOST_BESIDE, beside

WIDTH, HEIGHT = 460, 96


def heights(path: str) -> list[tuple[float, float]]:
    """Return where each bar of a path begins, and how tall it is."""
    found = re.findall(r"M([\d.]+) ([\d.]+)v-([\d.]+)h[\d.]+v\3z", path)
    assert "".join(f"M{x} {y}v-{tall}" for x, y, tall in found) == re.sub(r"h[\d.]+v[\d.]+z", "", path)
    assert all(float(y) == HEIGHT for _, y, _ in found)
    return [(float(x), float(tall)) for x, _, tall in found]


@pytest.mark.parametrize("count", [1, 2, MOST_BESIDE, MOST_BESIDE + 1, 57, 400])
def test_bars_are_as_tall_as_the_shares_that_they_stand_for(count: int) -> None:
    dice = random.Random(count)
    raw = [(dice.random(), dice.random()) for _ in range(count)]
    sums = [sum(pair[side] for pair in raw) for side in (0, 1)]
    bars = [(f"bin {at}", one / sums[0], other / sums[1]) for at, (one, other) in enumerate(raw)]
    drawn = beside("fare", bars, WIDTH, HEIGHT)
    assert drawn is not None
    together = math.ceil(count / MOST_BESIDE)
    pairs = []
    for start in range(0, count, together):
        one = other = 0.0
        for _, before, now in bars[start : start + together]:
            one, other = one + before, other + now
        pairs.append((one, other))
    assert len(pairs) <= MOST_BESIDE
    most = max(max(pair) for pair in pairs)
    for side, path in enumerate((drawn.before, drawn.after)):
        for (x, tall), pair, at in zip(heights(path), pairs, range(len(pairs)), strict=True):
            assert tall == pytest.approx(max(pair[side] / most * HEIGHT, 1.0), abs=0.06)
            assert at * WIDTH / len(pairs) <= x + 0.06 < (at + 1) * WIDTH / len(pairs)
    last = f"bin {count - 1}"
    assert (drawn.low.split()[1], drawn.high.endswith(last)) == ("0", True)
    (first,) = re.findall(r"What moved most: ([^:]*):", drawn.text)
    moved = max(range(len(pairs)), key=lambda at: abs(pairs[at][1] - pairs[at][0]))
    assert first.startswith(f"bin {moved * together}")


@pytest.mark.parametrize("share", [-0.5, math.inf, math.nan])
def test_shares_that_are_none_are_not_drawn(share: float) -> None:
    assert beside("fare", [("a", 0.5, 0.5), ("b", share, 0.5)], WIDTH, HEIGHT) is None
    assert beside("fare", [], WIDTH, HEIGHT) is None


def test_nothing_is_as_tall_as_nothing_and_little_is_seen() -> None:
    drawn = beside("fare", [("a", 0.0, 0.00001), ("b", 1.0, 0.99999)], WIDTH, HEIGHT)
    assert drawn is not None
    assert [tall for _, tall in heights(drawn.before)] == [HEIGHT]
    assert [tall for _, tall in heights(drawn.after)] == [1.0, HEIGHT]
    none = beside("fare", [("a", 0.0, 0.0)], WIDTH, HEIGHT)
    assert none is not None
    assert (none.before, none.after) == ("", "")


@pytest.mark.parametrize(
    ("labels", "ends", "told"),
    [
        (["-68 to -47", "-47 to -36", "86 to 184"], ("-68", "184"), "-68 to -47:"),
        (
            [f"{n / 3:.4g} to {(n + 1) / 3:.4g}" for n in range(2 * MOST_BESIDE)],
            ("0", f"{2 * MOST_BESIDE / 3:.4g}"),
            "0 to 0.6667:",
        ),
        ([*[f"{n} to {n + 1}" for n in range(2 * MOST_BESIDE - 1)], "47.5"], ("0", "47.5"), "0 to 2:"),
        (["-999", "0 to 5", "others"], ("-999", "others"), "-999:"),
        (["Berlin", "Lima", "Rome to Paris"], ("Berlin", "Rome to Paris"), "Berlin:"),
    ],
)
def test_numbers_at_the_ends_of_an_axis_are_two_numbers(labels: list[str], ends: tuple[str, str], told: str) -> None:
    drawn = beside("fare", [(label, 0.9 * (not at), 0.01) for at, label in enumerate(labels)], WIDTH, HEIGHT)
    assert drawn is not None
    assert (drawn.low, drawn.high) == ends
    assert f"What moved most: {told}" in drawn.text
