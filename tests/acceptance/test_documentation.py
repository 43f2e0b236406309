"""The documentation says what is so: pages show what their commands print, links lead somewhere, tests exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from support.example import REPOSITORY
from support.shell_blocks import Shell, check_page

DOCS = REPOSITORY / "docs"


def test_the_readmes_tour_prints_what_it_shows(tmp_path: Path) -> None:
    def tour(text: str) -> str:
        return text.partition("<!-- tour:")[2].partition("<!-- end of the tour -->")[0]

    wrong = run_page(REPOSITORY / "README.md", Shell(tmp_path), tour)
    assert not wrong, "\n".join(wrong)


def run_page(page: Path, shell: Shell, part: Callable[[str], str] = str) -> list[str]:
    try:
        return check_page(page, shell, part)
    finally:
        shell.close()
