"""fs lineage."""

from __future__ import annotations

import click
from featurestore_registry.lineage.graph import Lineage, LineageEdge, LineageNode

from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore

_WORDS = {"copied": "copied", "influences": "influences", "rows": "decides rows", "reads": "", "part": ""}
"""What each kind of edge is called."""


@click.command("lineage")
@click.argument("name")
@click.option("--upstream", is_flag=True, help="Only what it comes from.")
@click.option("--downstream", is_flag=True, help="Only what is made of it, and who reads it.")
@click.option("--columns", is_flag=True, help="With columns of sources and features of views.")
@click.option("--depth", type=click.IntRange(min=1), help="At most so many steps each way (default: all).")
@repo_command
def command(
    store: FeatureStore, output: Output, name: str, upstream: bool, downstream: bool, columns: bool, depth: int | None
) -> None:
    """Show what NAME comes from and who uses it: view, view:feature, source, source.column, service, kind:name."""
    both = upstream == downstream
    up, down = depth if both or upstream else 0, depth if both or downstream else 0
    found = store.lineage(name, up=up, down=down, columns=columns)
    output.emit(found.to_dict())
    (start,) = found.of
    output.say((start.name, "bold"), f"  {_kind(start)}")
    if up != 0:
        _Tree(output, found, is_up=True).show("comes from", "nothing")
    if down != 0:
        _Tree(output, found, is_up=False).show("is used by", "nothing")


def _kind(node: LineageNode) -> str:
    return node.kind.replace("_", " ").replace("on demand", "on-demand")


class _Tree:
    """One direction of a lineage, as lines; what was shown before is not gone into again."""

    def __init__(self, output: Output, found: Lineage, *, is_up: bool) -> None:
        self._output = output
        self._nodes = {node.id: node for node in found.nodes}
        self._start = found.of[0].id
        self._next: dict[str, dict[str, list[LineageEdge]]] = {}
        for edge in found.edges:
            here, there = (edge.target, edge.source) if is_up else (edge.source, edge.target)
            self._next.setdefault(here, {}).setdefault(there, []).append(edge)
        for node in found.nodes:
            if node.id.startswith(f"{self._start}."):  # a column of what was asked for
                self._next.get(node.id, {}).pop(self._start, None)
                if node.id in self._next:
                    self._next.setdefault(self._start, {}).setdefault(node.id, [])
        self._shown: set[str] = set()

    def show(self, title: str, nothing: str) -> None:
        """Print the tree below a title."""
        if self._next.get(self._start):
            self._output.say(title)
            self._show(self._start, "")
        else:
            self._output.say(f"{title}: {nothing}")

    def _show(self, key: str, indent: str) -> None:
        self._shown.add(key)
        others = list(self._next.get(key, {}).items())
        for place, (other, edges) in enumerate(others, start=1):
            is_last = place == len(others)
            again = other in self._shown and bool(self._next.get(other))
            words = dict.fromkeys(filter(None, (self._word(edge) for edge in edges)))
            told = ", ".join([_kind(self._nodes[other]), *words])
            name = self._nodes[other].name
            branch = "└─ " if is_last else "├─ "
            self._output.say(f"{indent}{branch}", (name, "bold"), f"  {told}{' …' if again else ''}")
            if not again:
                self._show(other, indent + ("   " if is_last else "│  "))

    @staticmethod
    def _word(edge: LineageEdge) -> str:
        return _WORDS[edge.kind] + ("" if edge.is_sure else " (or another reading of the SQL)")
