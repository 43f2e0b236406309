"""What others wrote obeys nobody's terminal: texts of a registry in what commands print, in warnings and in logs."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest
from rich.console import Console

from featurestore.cli.output import Output, show_error
from featurestore.cli.tables import table
from featurestore.errors import InputError
from featurestore.plan.changes import Line, columns_of
from featurestore.request.deprecated import _told
from featurestore.server.watch.logs import Lines
from featurestore.tables import visible

EVIL = "use x\x1b[1A\x1b[2K\nError: forged\x9b8m\r\u202edoog\u2028"
SHOWN = "use x\\x1b[1A\\x1b[2K\\nError: forged\\x9b8m\\r\\u202edoog\\u2028"


def logged() -> None:
    record = logging.LogRecord("registry", logging.WARNING, __file__, 1, "refused %s", (EVIL,), None)
    print(Lines().format(record))


SAYING: dict[str, Callable[[], None]] = {
    "line": lambda: Output(as_json=False).say("it says ", (EVIL, "red")),
    "table": lambda: Output(as_json=False).table(("name", "description"), [("x", EVIL)]),
    "plan": lambda: print(*columns_of(Line(2, f"note: {EVIL}"))),
    "deprecated": lambda: print(_told("view", "v", EVIL)),
    "log": logged,
}


@pytest.mark.parametrize("name", SAYING)
def test_a_foreign_text_is_shown_on_one_line_and_moves_no_cursor(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    SAYING[name]()
    out = capsys.readouterr().out
    assert SHOWN in out
    assert out.rstrip().replace("\n", "", 1).isprintable()  # a table has a head


def test_a_narrow_terminal_shows_rows_as_safely(capsys: pytest.CaptureFixture[str]) -> None:
    written = io.StringIO()
    table(Console(file=written, width=20, force_terminal=True, color_system=None), ("name", "says"), [("x", EVIL)])
    assert "\x1b[2K" not in written.getvalue()
    assert "\\x1b[2K" in written.getvalue()


def test_lines_of_an_error_do_not_pass_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        show_error(InputError(EVIL, hint=EVIL), as_json=as_json, debug=False)
        err = capsys.readouterr().err
        assert err.replace("\n", "").isprintable()
        assert [line for line in err.splitlines() if line.startswith("Error: forged")] == []
    assert json.loads(err)["error"]["message"].startswith(EVIL)
    Output(as_json=True).emit({"said": EVIL})
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == {"said": EVIL}


def test_other_writing_stays_as_it_is() -> None:
    for text in ("Verspätung", "الاتجاه", "می\u200cخواهم", "👩\u200d🔧", "1\u00a0000 €", "日本"):
        assert visible(text) == text
