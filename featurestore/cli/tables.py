"""Tables that fit the terminal and never break a word: nobody can copy a name that is broken over two lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.tables import visible

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2
"""Blanks that each column takes besides its width."""

Cells = Sequence[Sequence[str]]


def table(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    right: Sequence[str] = (),
    droppable: Sequence[str] = (),
) -> None:
    """Print rows under column heads; columns named in ``right`` are aligned to the right.

    A terminal that is too narrow first wraps cells at their blanks, then loses the columns in ``droppable``, in that
    order, then shows each row as a list of lines. Output that goes elsewhere is as wide as it needs to be.
    """
    cells = [["" if cell is None else visible(str(cell)) for cell in row] for row in rows]
    for count in range(len(droppable) + 1):
        kept = [place for place, name in enumerate(columns) if name not in droppable[:count]]
        heads, shown = [columns[place] for place in kept], [[row[place] for place in kept] for row in cells]
        widths = _widths(heads, shown, console.width if console.is_terminal else None)
        if widths is not None:
            _print_table(console, heads, shown, widths, right)
            return
    _print_stacked(console, columns, cells)


def _widths(heads: Sequence[str], cells: Cells, available: int | None) -> list[int] | None:
    """Return the width of each column, None where not even the longest words fit next to each other."""
    from rich.cells import cell_len

    texts = [[head, *(row[place] for row in cells)] for place, head in enumerate(heads)]
    widths = [max(cell_len(line) for text in column for line in text.splitlines() or [""]) for column in texts]
    if available is None:
        return widths
    least = [max(cell_len(word) for text in column for word in text.split() or [""]) for column in texts]
    excess = sum(widths) + _GAP * len(widths) - available
    while excess > 0:
        place = max(range(len(widths)), key=lambda place: widths[place] - least[place])
        if widths[place] <= least[place]:
            return None
        widths[place] -= 1
        excess -= 1
    return widths


def _print_table(
    console: Console, heads: Sequence[str], cells: Cells, widths: Sequence[int], right: Sequence[str]
) -> None:
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    if all(
        cell_len(cell) <= width and "\n" not in cell
        for row in (heads, *cells)
        for cell, width in zip(row, widths, strict=True)
    ):
        # Nothing to wrap, and thousands of rows may follow: a table of rich takes a millisecond for each.
        lines = [
            _line(row, [width - cell_len(cell) for cell, width in zip(row, widths, strict=True)], heads, right)
            for row in (heads, *cells)
        ]
        console.print(Text(lines[0], style="bold"), soft_wrap=True)
        console.out("\n".join(lines[1:]), highlight=False)
        return
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name, width in zip(heads, widths, strict=True):
        made.add_column(name, justify="right" if name in right else "left", width=width)
    for row in cells:
        made.add_row(*map(Text, row))
    if not console.is_terminal:
        console.width = max(console.width, sum(widths) + _GAP * len(widths))
    console.print(made)


def _line(row: Sequence[str], blanks: Sequence[int], heads: Sequence[str], right: Sequence[str]) -> str:
    parts = zip(row, blanks, heads, strict=True)
    padded = (" " * count + cell if head in right else cell + " " * count for cell, count, head in parts)
    return (" " * _GAP).join(padded).rstrip()


def _print_stacked(console: Console, heads: Sequence[str], cells: Cells) -> None:
    """Print each row as lines of a head and a value; the terminal wraps what is longer than a line."""
    indent = max(map(len, heads))
    for row in cells:
        console.print(row[0], markup=False, style="bold", soft_wrap=True)
        for head, cell in zip(heads[1:], row[1:], strict=True):
            console.print(f"  {head:{indent}}  {cell}".rstrip(), markup=False, soft_wrap=True)
