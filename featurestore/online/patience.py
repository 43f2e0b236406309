"""Deadlines on a server's answer that count what the server takes, not what this process takes.

An event loop that is busy for 60 ms finds its timers due before it looks at its sockets, where the answers may have
lain for 55 ms.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from types import TracebackType
from typing import Self

MOST_NAPS = 10
"""A deadline ends after so many naps. One stall of the event loop, however long, counts as one nap."""

LEAST_NAP_SECONDS = 0.005
"""uvloop counts milliseconds."""

TURNS = 5
"""Of the event loop, before a wait is ended: first it reads its sockets, then what came is handed on."""


class Wait:
    """Something that a `Patience` ends."""

    begun = 0
    """How many naps there had been."""

    def end(self) -> None:
        """Do what is due when the deadline is over; each kind of wait has its own."""
        raise NotImplementedError


class Patience:
    """Ends what waits for longer than ``seconds``. For one event loop.

    One timer serves all that wait, and there is none while nothing does.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._enough = min(MOST_NAPS, max(2, int(seconds / LEAST_NAP_SECONDS)))
        self._naps = 0
        self._heard = 0
        self._waits: dict[Wait, None] = {}
        self._is_napping = False

    def begin(self, wait: Wait) -> None:
        """Count its time from now on."""
        self._waits[wait] = None
        if self._is_napping:
            wait.begun = self._naps + 1  # the nap under way began before it
        else:
            wait.begun = self._naps
            self._is_napping = True
            self._nap()

    def done(self, wait: Wait) -> None:
        """Forget it, ended or not."""
        self._waits.pop(wait, None)

    def limit(self) -> Limit:
        """Return a context that the task leaves with TimeoutError when its time is over."""
        return Limit(self)

    def heard(self) -> None:
        """Count the time of all that wait from now on: the server answers."""
        self._heard = self._naps + 1

    def _nap(self) -> None:
        asyncio.get_running_loop().call_later(self.seconds / self._enough, self._wake)

    def _is_late(self, wait: Wait) -> bool:
        return self._naps - max(wait.begun, self._heard) >= self._enough

    def _wake(self) -> None:
        self._naps += 1
        late = list(takewhile(self._is_late, self._waits))  # they stand in the order in which they began
        if late:
            self._turn(TURNS, late)
        self._is_napping = bool(self._waits)
        if self._is_napping:
            self._nap()

    def _turn(self, turns: int, late: list[Wait]) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._turn, turns - 1, late)
            return
        for wait in late:
            if wait in self._waits and self._is_late(wait):
                self.done(wait)
                wait.end()


class Limit(Wait):
    """`asyncio.timeout`, by a `Patience`."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._is_over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._patience.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patience.done(self)
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """Cancel what the task does."""
        self._is_over = True
        self._task.cancel()
