"""What was measured, as rows beside their targets: for the terminal, and as Markdown."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.pairs import Pairs
from tests.support.redis_server import find_redis_server

COLUMNS = ("work", "ours", "floor", "ours : floor", "target", "")
LIBRARIES = (
    *("duckdb", "deltalake", "pyarrow", "lmdb", "redis", "hiredis", "msgspec"),
    *("starlette", "uvicorn", "uvloop", "httptools"),
)


@dataclass(frozen=True)
class Target:
    """What the speed table asks of a ratio, or of the difference in seconds."""

    at_most: float | None = None
    at_least: float | None = None
    of_difference: bool = False

    def __str__(self) -> str:
        if self.of_difference:
            return f"≤ + {self.at_most:g} s"
        limits = [f"≥ {self.at_least:g}"] if self.at_least is not None else []
        limits += [f"≤ {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(limits)

    def is_met(self, value: float) -> bool:
        """Tell whether a median is good enough; 1.05 counts as 1.0."""
        at_most = 1.05 if self.at_most == 1.0 and not self.of_difference else self.at_most
        return (at_most is None or value <= at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True)
class Row:
    """One line: a pair of measurements, or one alone."""

    work: str
    unit: str
    pairs: Pairs | None = None
    target: Target | None = None
    alone: float | None = None
    """What was measured where there is no floor."""
    note: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str, str, str]:
        """Texts for `COLUMNS`."""
        if self.pairs is None:
            return self.work, _number(self.alone or 0.0, self.unit), "", "", "", self.note
        is_difference = self.target is not None and self.target.of_difference
        values = self.pairs.differences if is_difference else self.pairs.ratios
        if is_difference:
            compared = f"+ {median(values):.3f} s ({min(values):.3f}-{max(values):.3f})"
        else:
            compared = f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
        verdict = "" if self.target is None else "met" if self.target.is_met(median(values)) else "MISSED"
        ours, floor = _number(self.pairs.ours, self.unit), _number(self.pairs.floor, self.unit)
        last = ", ".join(part for part in (verdict, self.note) if part)
        return self.work, ours, floor, compared, "" if self.target is None else str(self.target), last


@dataclass
class Section:
    """The rows of one benchmark, and what a reader has to know of it."""

    title: str
    about: str
    rows: list[Row] = field(default_factory=list)


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 0.1:
        value, unit = value * 1000, "ms"
    if unit == "ms" and value < 0.1:
        value, unit = value * 1000, "µs"
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def show(section: Section, console: Console) -> None:
    """Print one section."""
    table = Table(title=section.title, title_justify="left", caption=section.about, caption_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("work", "") else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*row.cells)
    console.print(table)


def markdown(sections: Sequence[Section], facts: Sequence[str], command: str, before: str = "") -> str:
    """Return the whole page: the sections that were measured, and those of the page ``before`` that were not."""
    when, *machine = facts
    parts = [
        "# Measured",
        "Written by `python -m benchmarks --markdown`: do not edit. Medians of alternating pairs, a whole section in "
        "one run, with the least and greatest ratio; a ratio says more than a time, which is this machine's. 1.05 "
        "counts as 1.0.",
        "\n".join(f"- {fact}" for fact in machine),
    ]
    kept = {part.partition("\n")[0]: part.strip() for part in before.split("\n## ")[1:]}
    for section in sections:
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---:|---|"]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.cells) + " |" for row in section.rows]
        measured = f"{when}, by `{command}`."
        kept[section.title] = "\n\n".join([section.title, section.about, "\n".join(lines), measured])
    return "\n\n".join([*parts, *(f"## {part}" for part in kept.values())]) + "\n"


def machine_facts(pairs: int) -> list[str]:
    """Return when, where and with what was measured."""
    processor = platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    memory = psutil.virtual_memory().total / 2**30
    wrk = shutil.which("wrk")
    tools = [_first_line(find_redis_server(), "--version"), _first_line(wrk, "-v") if wrk else "no wrk"]
    return [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {pairs} pairs, load average before: {os.getloadavg()[0]:.1f}",
        f"{os.cpu_count()} cores ({processor}), {memory:.0f} GiB memory, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}; " + ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        *tools,
    ]


def _first_line(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return (result.stdout or result.stderr).splitlines()[0].strip()
