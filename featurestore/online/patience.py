"""Deadlines on a server's answer that count the server's time, not this process's.

An event loop that was busy for 60 ms runs its due timers before it reads its sockets, where the answers may have been
waiting for 55 ms.
"""

from __future__ import annotations

import asyncio
from itertools import takewhile
from types import TracebackType
from typing import Self

MOST_NAPS = 10
"""A deadline ends after so many naps. A stall of the event loop, of any length, counts as one nap."""

LEAST_NAP_SECONDS = 0.005
"""The shortest nap: uvloop counts milliseconds."""

TURNS = 5
"""Turns of the event loop before a wait is ended: one to read its sockets, one to hand on what came."""


class Wait:
    """A wait that a `Patience` ends."""

    begun = 0
    """The number of naps when it began."""

    def end(self) -> None:
        """Do what is due at the deadline; each kind of wait defines it."""
        raise NotImplementedError


class Patience:
    """Ends waits that last longer than ``seconds``. For one event loop.

    One timer serves all waits; there is no timer while nothing waits.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._enough = min(MOST_NAPS, max(2, int(seconds / LEAST_NAP_SECONDS)))
        self._naps = 0
        self._heard = 0
        self._waits: dict[Wait, None] = {}
        self._is_napping = False

    def begin(self, wait: Wait) -> None:
        """Start counting a wait's time."""
        self._waits[wait] = None
        if self._is_napping:
            wait.begun = self._naps + 1  # the nap under way began before it
        else:
            wait.begun = self._naps
            self._is_napping = True
            self._nap()

    def done(self, wait: Wait) -> None:
        """Forget a wait, ended or not."""
        self._waits.pop(wait, None)

    def limit(self) -> Limit:
        """Return a context that raises TimeoutError in the task when its time is over."""
        return Limit(self)

    def heard(self) -> None:
        """Restart the time of all waits, because the server answers."""
        self._heard = self._naps + 1

    def _nap(self) -> None:
        asyncio.get_running_loop().call_later(self.seconds / self._enough, self._wake)

    def _is_late(self, wait: Wait) -> bool:
        return self._naps - max(wait.begun, self._heard) >= self._enough

    def _wake(self) -> None:
        self._naps += 1
        late = list(takewhile(self._is_late, self._waits))  # they are in the order in which they began
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
        """Cancel the task's work."""
        self._is_over = True
        self._task.cancel()
