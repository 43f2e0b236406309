"""Progress on standard error: a bar for anything over a second, plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from featurestore.steps import Event, listening

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SHOW_AFTER_S = 1.0
LINE_EVERY_S = 10.0


@contextmanager
def showing_progress(*, quiet: bool) -> Iterator[None]:
    """Show the steps that run inside the block."""
    if quiet:
        yield
        return
    shown = _Bars() if sys.stderr.isatty() else _Lines()
    try:
        with listening(shown):
            yield
    finally:
        shown.close()


class _Bars:
    """A rich bar for each step that takes over a second."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None

    def __call__(self, event: Event) -> None:
        if event.phase == "start":
            self._started[event.title] = time.monotonic()
        elif event.phase == "advance":
            if time.monotonic() - self._started.get(event.title, 0) >= SHOW_AFTER_S:
                self._show(event)
        else:
            self._end(event)

    def _show(self, event: Event) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        if event.title not in self._bars:
            self._bars[event.title] = self._progress.add_task(event.title, total=event.total)
        task = self._bars[event.title]
        self._progress.update(task, completed=event.done, total=event.total)

    def _end(self, event: Event) -> None:
        self._started.pop(event.title, None)
        task = self._bars.pop(event.title, None)
        if task is not None and self._progress is not None:
            self._progress.remove_task(task)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class _Lines:
    """A plain line every ten seconds of a step, and one at the end of a step that took over a second."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.phase == "start":
            self._started[event.title] = self._said[event.title] = now
        elif event.phase == "advance" and now - self._said.get(event.title, now) >= LINE_EVERY_S:
            self._said[event.title] = now
            of = f" of {event.total:,}" if event.total else ""
            click.echo(f"{event.title}: {event.done:,}{of} {event.unit}", err=True)
        elif event.phase == "finish":
            took_s = now - self._started.pop(event.title, now)
            if took_s >= SHOW_AFTER_S:
                click.echo(f"{event.title}: took {took_s:.1f} s", err=True)

    def close(self) -> None:
        """Nothing is held open."""
