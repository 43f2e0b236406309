"""The page of the loop, and what is told in the terminal meanwhile."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console

mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "loop", "savefig.transparent": True, "font.size": 9})
for part in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"):
    mpl.rcParams[part] = "#777777"  # can be read on white and on black
FS = Path(sys.executable).with_name("fs")
# The loop stands for itself: settings of the caller's own store must not leak into it.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("FS_")}
console = Console(highlight=False, width=max(120, Console().width))


@dataclass
class Step:
    """What was done, and what came of it: pieces of HTML."""

    title: str
    why: str
    pieces: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Page:
    """Tells each step when it is done, and writes all of them as a page."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._steps: list[Step] = []
        self._since_s = time.monotonic()
        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(template)

    def step(self, title: str, why: str) -> None:
        """Begin a step."""
        self._end()
        self._steps.append(Step(title, why))
        console.print(f"\n[bold cyan]{len(self._steps)}.[/bold cyan] [bold]{title}.[/bold] {why}")

    def text(self, text: str) -> None:
        """Show lines of text."""
        console.print(text, markup=False, soft_wrap=True)
        self._add("<pre>{{ text }}</pre>", text=text)

    def show(self, found: Any, *, told: bool = True) -> None:
        """Show what the store returned as a notebook shows it, and its text in the terminal."""
        if told:
            console.print(str(found), markup=False)
        self._steps[-1].pieces.append(f'<div class="found">{found._repr_html_()}</div>')

    def link(self, text: str, file: str) -> None:
        """Point to a file beside the page."""
        self._add('<p><a href="{{ file }}">{{ text }}</a></p>', text=text, file=file)

    def picture(self, figure: Figure, told: str) -> None:
        """Show a figure on the page."""
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
        svg = re.sub(r"^.*?(?=<svg)", "", written.getvalue(), flags=re.DOTALL)
        self._steps[-1].pieces.append(f"<figure>{svg}</figure>")
        self._add("<p>{{ text }}</p>", text=told)

    def fs(self, *arguments: Any, code: int = 0, environment: dict[str, str] | None = None) -> str:
        """Run a command of the feature store and show what it printed; end the loop unless it exits with ``code``."""
        texts = list(map(str, arguments))
        told = shlex.join(["fs", *texts])
        console.print(f"[dim]$ {told}[/dim]")
        done = subprocess.run(
            [str(FS), *texts],
            cwd=self._folder,
            env={**ENVIRONMENT, "COLUMNS": "118", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            check=False,
        )
        console.print(done.stdout.rstrip(), markup=False, soft_wrap=True)
        self._add("<pre><b>$ {{ told }}</b>\n{{ text }}</pre>", told=told, text=done.stdout.rstrip())
        if done.returncode != code:
            console.print(f"[red]This step failed: exit code {done.returncode} in place of {code}.[/red]")
            sys.exit(1)
        return done.stdout

    def write(self, path: Path) -> None:
        """Write the page: one file, with nothing from elsewhere."""
        self._end()
        path.write_text(self._template.render(steps=self._steps), encoding="utf-8")

    def _add(self, template: str, **values: str) -> None:
        self._steps[-1].pieces.append(jinja2.Environment(autoescape=True).from_string(template).render(values))

    def _end(self) -> None:
        now_s = time.monotonic()
        if self._steps:
            self._steps[-1].seconds = now_s - self._since_s
            console.print(f"[dim]took {self._steps[-1].seconds:.1f} s[/dim]")
        self._since_s = now_s
