"""Start-up: ``fs --help`` and ``import featurestore`` beside Python that does nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.context import Context
from benchmarks.pairs import measure, timed
from benchmarks.report import Row, Section, Target


def run(context: Context) -> Iterator[Section]:
    """Measure whole processes."""
    section = Section("Start-up", "Whole processes; the floor is python -c pass.")
    cases = (
        ("fs --help", [str(Path(sys.executable).parent / "fs"), "--help"], 0.1),
        ("import featurestore", [sys.executable, "-c", "import featurestore"], 0.05),
    )
    calls = 1 if context.is_quick else 5
    for name, command, most_s in cases:
        floor = timed(_run, [sys.executable, "-c", "pass"], calls=calls)
        pairs = measure(timed(_run, command, calls=calls), floor, count=context.pairs)
        section.rows.append(Row(name, "s", pairs, Target(at_most=most_s, of_difference=True)))
    yield section


def _run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
