"""Tables of the command line: no word is cut in two, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from featurestore.cli.output import Output
from featurestore.cli.tables import table

HEADS = ("view", "newest event", "read", "dropped", "last run")
ROWS = [
    ("driver_statistics_of_the_week", "2026-11-26 15:00:00", "14,400", "0", "incremental done"),
    ("airport", "never", "0", "12", ""),
]
WORDS = {word for row in ROWS for cell in row for word in cell.split()}


def shown(width: int, *, terminal: bool = True, droppable: tuple[str, ...] = ()) -> str:
    page = io.StringIO()
    console = Console(file=page, width=width, force_terminal=terminal, color_system=None, _environ={}, highlight=False)
    table(console, HEADS, ROWS, right=("read",), droppable=droppable)
    return page.getvalue()


@pytest.mark.parametrize("width", [200, 100, 80, 79, 70, 60, 40, 20])
@pytest.mark.parametrize("droppable", [(), ("dropped", "newest event")])
def test_no_word_is_cut_in_two(width: int, droppable: tuple[str, ...]) -> None:
    words = shown(width, droppable=droppable).split()
    left_out = {"12", "0"} | ({"2026-11-26", "15:00:00", "never"} if droppable else set())
    assert left_out >= WORDS - set(words)
    assert set(words) <= WORDS | {word for head in HEADS for word in head.split()}


def test_a_wide_table_has_a_line_for_each_row() -> None:
    assert len(shown(120).splitlines()) == 3


def test_cells_are_wrapped_at_their_blanks_within_the_width() -> None:
    lines = shown(80).splitlines()
    assert len(lines) > 3
    assert all(len(line) <= 80 for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("driver", "airport"))] == [ROWS[0][0], "airport"]


def test_columns_that_may_be_left_out_are_before_rows_are_stacked() -> None:
    assert "dropped" in shown(80, droppable=("dropped",))
    narrow = shown(70, droppable=("dropped",))
    assert "dropped" not in narrow
    assert narrow.split()[0] == "view"
    assert "  newest event  2026-11-26 15:00:00\n" in shown(40)


def test_what_goes_elsewhere_is_as_wide_as_it_is() -> None:
    assert len(shown(40, terminal=False).splitlines()) == 3


@pytest.mark.parametrize("text", ["carrier:key: of feature_view:star: [bold]late[/bold]", "a :smile: :key:"])
def test_what_a_command_says_is_printed_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.say(text)
    output.table(("what",), [(text,)])
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [text, "what", text]


def test_a_row_that_is_stacked_is_printed_as_it_is() -> None:
    page = io.StringIO()
    console = Console(file=page, width=8, force_terminal=True, color_system=None, _environ={}, emoji=False)
    table(console, ("head", "other"), [(":key:of-all", ":star:")])
    assert ":key:of-all" in page.getvalue()
