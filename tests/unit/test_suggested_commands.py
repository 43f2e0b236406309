"""Every `fs …` that a message, a help text or a page of ours writes can be run as it is written."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.exceptions import NoArgsIsHelpError

from featurestore.cli.main import fs

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("featurestore", "registry/featurestore_registry", "feature_repo")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

QUOTED = re.compile(r"`fs ([^`]*)`")
UNQUOTED = re.compile(
    r"(?:: |[Rr]un |until |by |with )fs ([a-z]+(?:-[a-z]+)*(?: (?:--?[a-z][a-z-]*|[A-Z]+(?:=[A-Z]+)?|‹[^›]+›))*)"
)
LINE = re.compile(r"^\s*fs ([a-z-]+ .*|[a-z-]+)$", re.MULTILINE)
FENCED = re.compile(r"```.*?```", re.DOTALL)

FILL = [
    (r"‹[^›]*span›", "2026-01-01 2026-01-02"),
    (r"‹[^›]*start[^›]*›|START", "2026-01-01"),
    (r"‹[^›]*end[^›]*›|END", "2026-01-02"),
    (r"‹option›", ""),
    (r"‹[^›]*generation›", "1"),
    (r"‹[^›]*›", "x"),
]
"""What stands for what: instants are no texts like others, and an option may be left out."""


def texts(path: Path) -> Iterator[str]:
    """Yield a module's texts; what an f-string fills in is ‹its expression›."""
    source = path.read_text(encoding="utf-8")
    if not re.search(r"\bfs\s", source):  # to parse is what takes long, in each process that collects the tests
        return
    tree = ast.parse(source)
    parts: set[int] = set()
    for node in ast.walk(tree):  # outer nodes first
        if isinstance(node, ast.JoinedStr):
            parts |= {id(part) for part in node.values}
            yield "".join(
                f"‹{ast.unparse(part.value)}›" if isinstance(part, ast.FormattedValue) else ast.literal_eval(part)
                for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def suggested() -> Iterator[tuple[str, str]]:
    """Yield a command, without its ``fs``, and one place where it stands."""
    for path in SOURCES:
        for text in texts(path):
            flat = " ".join(text.split())
            for command in (*QUOTED.findall(flat), *UNQUOTED.findall(flat), *LINE.findall(text)):
                yield command, path.name
    for path in PAGES:
        for command in QUOTED.findall(" ".join(FENCED.sub("", path.read_text(encoding="utf-8")).split())):
            yield command, path.name


SUGGESTED = dict(sorted(suggested(), key=lambda found: (found[0], not found[1].endswith(".md"))))
"""Each command and where it stands; in code where it stands there too."""


def filled(command: str) -> list[str]:
    for placeholder, value in FILL:
        command = re.sub(placeholder, value, command)
    return shlex.split(command)


def parse(arguments: list[str]) -> None:
    """Read a command line as `fs` does, and run nothing. Raises UsageError."""
    name, command, context = "fs", fs, None
    while True:
        context = command.make_context(name, arguments, parent=context)
        arguments = [*context._protected_args, *context.args]
        if not isinstance(command, click.Group) or not arguments:
            return
        found, command, arguments = command.resolve_command(context, arguments)
        assert found is not None
        assert command is not None
        name = found


def refusal(arguments: list[str], *, may_be_cut: bool = False) -> str | None:
    """Return why a command line is refused. Prose may leave out arguments that are needed, and names a bare command."""
    try:
        parse(arguments)
    except click.exceptions.Exit:  # --help, --version
        return None
    except click.MissingParameter as error:
        is_named = not any(each.startswith("-") for each in arguments)
        return None if may_be_cut or is_named else error.format_message()
    except NoArgsIsHelpError:
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("command", SUGGESTED)
def test_what_is_suggested_can_be_run_as_it_is_written(command: str) -> None:
    place = SUGGESTED[command]
    assert refusal(filled(command), may_be_cut=place.endswith(".md")) is None, place


def test_all_of_them_are_found_and_a_wrong_one_is_refused() -> None:
    assert {"--help", "apply", "materialize --view ‹view›", "token create --role reader", "repair"} <= set(SUGGESTED)
    assert any(command.startswith("training-set --entities data/") for command in SUGGESTED)  # of `fs init`
    for wrong in ("aply", "plan --chek", "token make", "training-set --save NAME", "list a b", "--json serve"):
        assert refusal(filled(wrong)), wrong
