"""Locks that another thread may hold while a process forks."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet


class ForkLock:
    """A reentrant lock that is free in a child process: the parent's thread that held it does not exist there."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def acquire(self, most_seconds: float | None = None) -> bool:
        """Wait for it, at most so long; return whether it is held now, and `release` is due."""
        return self._lock.acquire(timeout=-1 if most_seconds is None else most_seconds)

    def release(self) -> None:
        """Give it back."""
        self._lock.release()

    def renew(self) -> None:
        """Forget who holds it."""
        self._lock = threading.RLock()


_locks: WeakSet[ForkLock] = WeakSet()


def _renew_all() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_renew_all)
