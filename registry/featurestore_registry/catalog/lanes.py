"""Lineage as a drawing: lanes by kind from left to right, in each lane what belongs together side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from featurestore_registry.lineage.graph import LineageEdge, LineageNode

LANES = {
    "source": "Sources, entities",
    "column": "Columns",
    "push_source": "Push sources",
    "pushed": "Pushed columns",
    "feature_view": "Feature views",
    "feature": "Features",
    "on_demand_feature_view": "On-demand views",
    "computed": "On-demand features",
    "feature_service": "Services",
    "training_set": "Training sets",
    "consumer": "Consumers",
    "monitor": "Monitors",
    "": "Others",
}
"""From what comes first."""
_ALIKE = {"request_source": "source", "entity": "source"}
_OF_COLUMNS = {("push_source", "column"): "pushed", ("on_demand_feature_view", "feature"): "computed"}
MOST = 14
"""At most so many boxes in a lane; the last then stands for all others."""
WIDE, TALL, GAP, PITCH, PASS, HEAD = 168, 36, 56, 46, 14, 30
"""Pixels: of a box, between lanes, from box to box, for a line that passes a lane, above the lanes."""
LETTERS = 19
_SWEEPS = 8
_FINENESS = ("copied", "influences", "rows", "reads", "part")


class Box(NamedTuple):
    """A node, or with ``more`` so many that are not drawn."""

    x: float
    y: float
    node: LineageNode | None
    name: str
    under: str
    """What it is a column of."""
    more: int
    is_here: bool
    """Whether it was asked for."""


class Way(NamedTuple):
    """A line from one box to another."""

    path: str
    kind: str
    is_sure: bool


class Drawing(NamedTuple):
    """Boxes, lines behind them, and heads of lanes."""

    width: int
    height: int
    boxes: list[Box]
    ways: list[Way]
    heads: list[tuple[int, str]]


def draw(nodes: Sequence[LineageNode], edges: Iterable[LineageEdge], here: Iterable[str]) -> Drawing:
    """Place nodes: of a lane with too many the first, and one box for the others, where their lines end."""
    by_lane: dict[str, list[str]] = {lane: [] for lane in LANES}
    for node in nodes:
        by_lane[lane_of(node)].append(node.id)
    titles, lanes, stands_for, hidden = list[str](), list[list[str]](), dict[str, str](), dict[str, int]()
    for lane, keys in by_lane.items():
        shown = keys if len(keys) <= MOST else [*keys[: MOST - 1], f"more {lane}"]
        stands_for |= {key: key if at < len(shown) - (len(keys) > MOST) else shown[-1] for at, key in enumerate(keys)}
        if len(keys) > MOST:
            hidden[shown[-1]] = len(keys) - MOST + 1
        if shown:
            titles.append(LANES[lane])
            lanes.append(shown)
    joined: dict[tuple[str, str], LineageEdge] = {}
    for edge in edges:
        pair = stands_for[edge.source], stands_for[edge.target]
        if pair[0] != pair[1]:
            joined[pair] = min(joined.get(pair, edge), edge, key=lambda each: _FINENESS.index(each.kind))
    routes = _routes(lanes, list(joined))
    places = _placed(lanes, [step for route in routes for step in pairwise(route)])
    known, asked, height = {node.id: node for node in nodes}, {*here}, max(y for _, y in places.values()) + PITCH
    return Drawing(
        len(lanes) * (WIDE + GAP) - GAP,
        round(height),
        [_box(known.get(key), places[key], hidden.get(key, 0), key in asked) for key in places if isinstance(key, str)],
        [
            Way(_path([places[key] for key in route]), edge.kind, edge.is_sure)
            for route, edge in zip(routes, joined.values(), strict=True)
        ],
        [(at * (WIDE + GAP), title) for at, title in enumerate(titles)],
    )


def lane_of(node: LineageNode) -> str:
    """Return the lane of a node."""
    lane = _OF_COLUMNS.get((node.id.partition(":")[0], node.kind), _ALIKE.get(node.kind, node.kind))
    return lane if lane in LANES else ""


Key = str | tuple[str, int]
"""A box, or the place where lines from or to a box pass a lane."""


def _routes(lanes: list[list[str]], pairs: Sequence[tuple[str, str]]) -> list[list[Key]]:
    """Return the way of each line, with places in the lanes that it passes: lines of one box pass together."""
    lane_at = {key: at for at, lane in enumerate(lanes) for key in lane}
    far = Counter(key for pair in pairs if lane_at[pair[1]] - lane_at[pair[0]] > 1 for key in pair)
    ways = []
    for source, target in pairs:
        through = max(source, target, key=lambda key: far[key])
        passed: list[Key] = [(through, at) for at in range(lane_at[source] + 1, lane_at[target])]
        ways.append([source, *passed, target])
    return ways


def _placed(boxes: Sequence[Sequence[str]], steps: Sequence[tuple[Key, Key]]) -> dict[Key, tuple[float, float]]:
    """Return the place of everything: lanes in the order of what their keys are joined with, again and again."""
    before, after = defaultdict[Key, list[Key]](list), defaultdict[Key, list[Key]](list)
    lanes: list[list[Key]] = [list(lane) for lane in boxes]
    for source, target in steps:
        before[target].append(source)
        after[source].append(target)
        if isinstance(target, tuple) and target not in lanes[target[1]]:
            lanes[target[1]].append(target)
    y: dict[Key, float] = {}
    for sweep in range(_SWEEPS):
        near = (before, after)[sweep % 2]
        for lane in lanes if sweep % 2 == 0 else reversed(lanes):
            mean = {key: _mean([y[other] for other in near[key] if other in y], y.get(key, 0.0)) for key in lane}
            lane.sort(key=lambda key: (str(key).startswith("more "), mean[key]))
            at = -sum(PITCH if isinstance(key, str) else PASS for key in lane) / 2
            for key in lane:
                tall = PITCH if isinstance(key, str) else PASS
                y[key] = at + tall / 2
                at += tall
    top = min(y[key] - (PITCH if isinstance(key, str) else PASS) / 2 for key in y)
    return {
        key: (at * (WIDE + GAP), HEAD + y[key] - top - TALL / 2 + 5) for at, lane in enumerate(lanes) for key in lane
    }


def _mean(heights: Sequence[float], otherwise: float) -> float:
    return sum(heights) / len(heights) if heights else otherwise


def _box(node: LineageNode | None, place: tuple[float, float], more: int, is_here: bool) -> Box:
    if node is None:
        return Box(*place, None, f"and {more:,} more", "", more, is_here)
    owner, _, column = node.name.partition(":" if node.kind == "feature" else ".")
    name, under = (column, owner) if node.kind in ("feature", "column") else (node.name, "")
    return Box(*place, node, _short(name), _short(under), 0, is_here)


def _short(name: str) -> str:
    return name if len(name) <= LETTERS else f"{name[: LETTERS // 2]}…{name[-(LETTERS // 2) :]}"


def _path(places: Sequence[tuple[float, float]]) -> str:
    """Return a curve from the right of a box, straight through the lanes that it passes, to the left of another box."""
    (x, y), path = places[0], ""
    x, y = x + WIDE, y + TALL / 2
    path = f"M{x:g} {y:g}"
    for place in places[1:]:
        end_x, end_y = place[0], place[1] + TALL / 2
        bend = (end_x - x) / 2
        path += f"C{x + bend:g} {y:g} {end_x - bend:g} {end_y:g} {end_x:g} {end_y:g}"
        if place is not places[-1]:
            path += f"h{WIDE}"
        x, y = end_x + WIDE, end_y
    return path
