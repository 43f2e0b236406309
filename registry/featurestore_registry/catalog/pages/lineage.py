"""The page of lineage: what something comes from and who uses it, drawn, and as a table that says the same."""

from __future__ import annotations

from featurestore_registry.catalog.asking import Ask, NotThere
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.lanes import TALL, WIDE, draw
from featurestore_registry.catalog.project import SERVICE, SOURCES
from featurestore_registry.errors import RecordNotFoundError
from featurestore_registry.lineage.graph import Graph, Lineage, LineageEdge, LineageNode

PER_PAGE = 100
MOST_STEPS = 12
_MOST_NAME = 400
WORDS = {
    "copied": "is copied to",
    "influences": "influences",
    "rows": "decides which rows there are in",
    "reads": "is used by",
    "part": "contains",
}
"""How each kind of step is said."""


def lineage(ask: Ask) -> Page:
    """Return the page of ``?of=NAME&up=STEPS&down=STEPS&columns=1``."""
    graph = ask.site.lineage(ask.project, ask.state)
    name = next(iter(ask.query.get("of", ())), "")[:_MOST_NAME].strip()
    if not name:
        begins = {"services": ask.project.of_kind(SERVICE), "sources": ask.project.of_kind(*SOURCES)}
        return Page("lineage_of.html", begins)
    try:
        key = graph.find(name)
    except RecordNotFoundError as error:
        link = (ask.at("lineage"), "Lineage")
        raise NotThere("view, feature, source or column", name, link=link, hint=error.hint) from None
    up, down, columns = _steps(ask, "up"), _steps(ask, "down"), ask.text("columns") == "1"
    found = graph.lineage([key], up=up, down=down, columns=columns)
    (here,) = found.of
    shown = _without_coarse(found) if columns or here.kind in ("feature", "column") else found
    asked = {"of": key, "up": up, "down": down, "columns": "1" if columns else ""}
    page = ask.page_number()
    names = {node.id: node for node in found.nodes}
    return Page(
        "lineage.html",
        {
            "of": here,
            "page_of": page_of(ask, here),
            "drawing": draw(shown.nodes, shown.edges, [key]),
            "box": (WIDE, TALL),
            "kinds": [kind for kind in WORDS if any(edge.kind == kind for edge in shown.edges)],
            "unsure": any(not edge.is_sure for edge in shown.edges),
            "words": WORDS,
            "asked": asked,
            "columns": columns,
            "more_up": _more(graph, found, key, columns, up=up + 1),
            "more_down": _more(graph, found, key, columns, down=down + 1),
            "rows": [
                (names[edge.source], edge, names[edge.target])
                for edge in found.edges[(page - 1) * PER_PAGE : page * PER_PAGE]
            ],
            "count": len(found.edges),
            "page": page,
            "pages": -(-len(found.edges) // PER_PAGE),
        },
    )


def _steps(ask: Ask, name: str) -> int:
    found = ask.text(name)
    return min(int(found), MOST_STEPS) if found.isascii() and found.isdigit() and len(found) < 4 else 1


def _more(graph: Graph, found: Lineage, key: str, columns: bool, *, up: int = 0, down: int = 0) -> int:
    """Return how many nodes one more step would add."""
    if max(up, down) > MOST_STEPS:
        return 0
    known = {node.id for node in found.nodes}
    return sum(node.id not in known for node in graph.lineage([key], up=up, down=down, columns=columns).nodes)


def _without_coarse(found: Lineage) -> Lineage:
    """Leave out steps between objects where columns of theirs are joined, and objects that nothing joins then."""

    def owner(key: str) -> str:
        return key.partition(".")[0]

    def is_fine(edge: LineageEdge) -> bool:
        return "." in edge.source or "." in edge.target

    fine = {(owner(edge.source), owner(edge.target)) for edge in found.edges if is_fine(edge) and edge.kind != "part"}
    edges = [edge for edge in found.edges if is_fine(edge) or (edge.source, edge.target) not in fine]
    parts = {edge.target for edge in edges if edge.kind == "part"}
    for start in found.of:
        own = (node.id for node in found.nodes if node.id.startswith(f"{start.id}.") and node.id not in parts)
        edges += [LineageEdge(start.id, key, "part") for key in own]
    joined = {key for edge in edges for key in (edge.source, edge.target)} | {node.id for node in found.of}
    return Lineage(found.of, tuple(node for node in found.nodes if node.id in joined), tuple(edges))


def page_of(ask: Ask, node: LineageNode) -> str:
    """Return the address of a node's own page."""
    kind, _, name = node.id.partition(".")[0].partition(":")
    if node.kind == "feature":
        return ask.at("feature", kind, name, node.name.partition(":")[2])
    return ask.at(kind, name)
