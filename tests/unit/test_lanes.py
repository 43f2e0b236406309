"""The drawing of lineage: nothing lies on anything else, lines end at boxes, and many nodes become few boxes."""

from __future__ import annotations

import re
from itertools import combinations
from random import Random

import pytest
from featurestore_registry.catalog.lanes import GAP, LANES, MOST, TALL, WIDE, Box, Drawing, draw, lane_of
from featurestore_registry.lineage.graph import LineageEdge, LineageNode

ORDER = list(LANES)


def node(kind: str, number: int) -> LineageNode:
    if kind == "feature":
        return LineageNode(f"feature_view:v.f{number}", "feature", f"v:f{number}")
    if kind == "column":
        return LineageNode(f"source:s.c{number}", "column", f"s.c{number}")
    return LineageNode(f"{kind}:n{number}", kind, f"n{number}")


def random_graph(seed: int, count: int) -> tuple[list[LineageNode], list[LineageEdge]]:
    random = Random(seed)
    kinds = [
        "source",
        "column",
        "push_source",
        "entity",
        "feature_view",
        "feature",
        "feature_service",
        "consumer",
        "odd",
    ]
    nodes = [node(random.choice(kinds), number) for number in range(count)]
    edges = []
    for _ in range(count * 2):
        one, other = random.sample(nodes, 2)
        first, last = sorted((one, other), key=lambda each: ORDER.index(lane_of(each)))
        if lane_of(first) != lane_of(last):
            edges.append(LineageEdge(first.id, last.id, random.choice(["copied", "influences", "rows", "reads"])))
    return nodes, edges


def numbers(path: str) -> list[float]:
    return [float(text) for text in re.findall(r"-?[\d.]+", path)]


def passes(path: str, box: Box) -> bool:
    """Tell whether a line that goes straight through a lane goes through a box of it."""
    x = y = 0.0
    for sign, text in re.findall(r"([MCh])([^MCh]*)", path):
        values = numbers(text)
        if sign == "h":
            if x <= box.x < x + values[0] and box.y < y < box.y + TALL:
                return True
            x += values[0]
        else:
            x, y = values[-2:]
    return False


@pytest.mark.parametrize(("seed", "count"), [(1, 8), (2, 40), (3, 300)])
def test_everything_has_a_place_of_its_own(seed: int, count: int):
    nodes, edges = random_graph(seed, count)
    drawing: Drawing = draw(nodes, edges, [nodes[0].id])
    assert [each.node.id for each in drawing.boxes if each.is_here and each.node] in ([nodes[0].id], [])
    drawn = {each.node.id for each in drawing.boxes if each.node}
    assert len(drawn) + sum(each.more for each in drawing.boxes) == len(nodes)
    lanes: dict[float, list[Box]] = {}
    for box in drawing.boxes:
        lanes.setdefault(box.x, []).append(box)
        assert 0 <= box.x <= drawing.width - WIDE
        assert 0 <= box.y <= drawing.height - TALL
    heads = dict(drawing.heads)
    assert sorted(lanes) == sorted(heads)
    for x, boxes in lanes.items():
        assert x % (WIDE + GAP) == 0
        assert len(boxes) <= MOST
        assert {LANES[lane_of(each.node)] for each in boxes if each.node} <= {heads[x]}
        assert all(abs(a.y - b.y) >= TALL for a, b in combinations(boxes, 2))
        assert all(each.more == 0 or each.y == max(other.y for other in boxes) for each in boxes)
    at = {(each.x, each.y) for each in drawing.boxes}
    for way in drawing.ways:
        values = numbers(way.path)
        assert (values[0] - WIDE, values[1] - TALL / 2) in at
        assert (values[-2], values[-1] - TALL / 2) in at
        assert not any(passes(way.path, box) for box in drawing.boxes)


def test_the_finest_of_several_steps_is_drawn():
    nodes = [node("column", 1), node("feature", 2)]
    edges = [LineageEdge(nodes[0].id, nodes[1].id, kind) for kind in ("rows", "copied", "reads")]
    assert [(way.kind, way.is_sure) for way in draw(nodes, edges, []).ways] == [("copied", True)]


def test_neighbours_lie_side_by_side():
    nodes = [*(node("feature_view", at) for at in range(6)), *(node("feature_service", at) for at in range(6))]
    edges = [LineageEdge(f"feature_view:n{at}", f"feature_service:n{5 - at}", "reads") for at in range(6)]
    for way in draw(nodes, edges, []).ways:
        values = numbers(way.path)
        assert values[1] == values[-1]  # no two lines cross: each is straight


def test_long_names_are_cut_in_their_middle():
    (box,) = draw([LineageNode("source:x", "source", "a" * 30 + "b" * 30)], [], []).boxes
    assert re.fullmatch("a{9}…b{9}", box.name)
