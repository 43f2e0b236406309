"""Named steps: people see their progress, tests kill the process in them, logs name them.

A step that leaves something durable behind calls `reached(name)` before and after the write. Setting
``FS_CRASH_AT=name`` (or ``name:3`` for its third passing) ends the process there without any clean-up, which is
how the tests walk every point a power cut could hit.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

logger = logging.getLogger("featurestore")

CRASH_POINTS: dict[str, str] = {}
"""Every durable point by name, and what has been written when it is passed."""

_passed: dict[str, int] = {}


def crash_point(name: str, what: str) -> str:
    """Declare a durable point at import time and return its name. A name is declared once."""
    assert name not in CRASH_POINTS, f"crash point {name!r} is declared twice"
    CRASH_POINTS[name] = what
    return name


def reached(name: str) -> None:
    """Pass a declared crash point; ends the process with status 137 when ``FS_CRASH_AT`` names it."""
    assert name in CRASH_POINTS, f"crash point {name!r} is not declared"
    wanted = os.environ.get("FS_CRASH_AT")
    if wanted is None:
        return
    target, _, count = wanted.partition(":")
    if target == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            os._exit(137)


@dataclass(frozen=True, slots=True)
class Event:
    """A moment of a step, as listeners get it."""

    phase: Literal["start", "advance", "finish", "fail"]
    step: str
    title: str
    """A phrase for people, for example ``publish carrier_profile``."""
    done: int = 0
    total: int | None = None
    """In the step's unit; None while unknown."""
    unit: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("featurestore_step_listeners", default=())


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` for every step that runs inside the block, in this thread or task."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


class RunningStep:
    """A running step: `advance` moves its progress, `note` adds facts that end up in the log line."""

    def __init__(self, name: str, title: str, total: int | None, unit: str) -> None:
        self.name, self.title, self.total, self.unit = name, title, total, unit
        self.done = 0
        self.facts: dict[str, Any] = {}

    def advance(self, amount: int = 1, *, total: int | None = None) -> None:
        """Move the progress by ``amount``; ``total`` may become known on the way."""
        self.done += amount
        if total is not None:
            self.total = total
        self._tell("advance")

    def note(self, **facts: Any) -> None:
        """Add facts that the end of the step reports."""
        self.facts.update(facts)

    def _tell(self, phase: Literal["start", "advance", "finish", "fail"]) -> None:
        event = Event(phase, self.name, self.title, self.done, self.total, self.unit, dict(self.facts))
        for listener in _listeners.get():
            listener(event)


@contextmanager
def step(name: str, title: str = "", *, total: int | None = None, unit: str = "rows") -> Iterator[RunningStep]:
    """Run a named step. Listeners get its start, progress and end, the log gets its end."""
    running = RunningStep(name, title or name, total, unit)
    running._tell("start")
    try:
        yield running
    except BaseException:
        running._tell("fail")
        raise
    running._tell("finish")
    logger.debug("%s finished %s", name, running.facts)
