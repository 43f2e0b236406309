"""Leases: one run of a view at a time, across processes and machines.

The newest ledger entry of kind ``lease`` and the view's name says who holds it and until when. Every change is a
compare-and-set on the entry's version, so of two takers one wins. A holder that died stops renewing and is
followed after `LEASE_US`.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from featurestore_registry.interface import Ledger

from featurestore.errors import LeaseHeldError, LedgerConflictError, RegistryError
from featurestore.metadata.records import understood
from featurestore.steps import crash_point, reached, step
from featurestore.types.times import Clock, to_rfc3339

KIND = "lease"
LEASE_US = 60_000_000
RENEW_SECONDS = 20.0
WAIT_SECONDS = 600.0
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 1.0

TAKEN = crash_point("lease.taken", "the view's lease is held, nothing else has happened")
RELEASED = crash_point("lease.released", "the run is over and its lease given back")


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What the ledger says of a view's lease."""

    holder: str
    """The id of the run."""
    host: str
    pid: int
    since_us: int
    expires_us: int
    released: bool = False

    def is_held(self, now_us: int) -> bool:
        """Tell whether it keeps others out."""
        return not self.released and now_us < self.expires_us

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {to_rfc3339(self.since_us)[:19]}Z"


def read_lease(ledger: Ledger, project: str, view: str) -> tuple[LeaseState | None, int]:
    """Return the newest state of a view's lease, None when nobody ever took it, and its version."""
    entry = ledger.latest(project, KIND, view)
    return (None, 0) if entry is None else (_lease_from(entry.document), entry.version)


@understood("a lease")
def _lease_from(document: Mapping[str, Any]) -> LeaseState:
    return LeaseState(**document)


class Lease:
    """A lease that this process holds; made by `holding`."""

    def __init__(self, ledger: Ledger, project: str, view: str, state: LeaseState, version: int, clock: Clock) -> None:
        self._ledger, self._project, self._view, self._clock = ledger, project, view, clock
        self._state, self._version = state, version
        self._lost = False
        self._lock = threading.Lock()

    def check(self) -> None:
        """Return while the lease is held; raises LeaseHeldError when it expired and another run took it."""
        with self._lock:
            if not self._lost and self._clock() >= self._state.expires_us:
                self._renew()
            if self._lost:
                state, _ = read_lease(self._ledger, self._project, self._view)
                raise LeaseHeldError(
                    f"The run of {self._view!r} lost its lease to {state}.",
                    hint="This machine may have slept. Run it again: what was committed is not done twice.",
                    view=self._view,
                )

    def renew_until(self, stopped: threading.Event) -> None:
        """Renew from time to time; runs in a thread of its own until ``stopped``."""
        pause = RENEW_SECONDS
        while not stopped.wait(pause):
            try:
                with self._lock:
                    self._renew()
                pause = RENEW_SECONDS
            except RegistryError:
                pause = _RETRY_SECONDS  # away for a moment: there are two thirds of the lease left to come back

    def _renew(self) -> None:
        if not self._lost:
            self._append(replace(self._state, expires_us=self._clock() + LEASE_US))

    def release(self) -> None:
        """Give it back; when it is lost, or the registry is away, it is left to expire."""
        try:
            with self._lock:
                if not self._lost:
                    self._append(replace(self._state, released=True))
        except RegistryError:
            return

    def _append(self, state: LeaseState) -> None:
        try:
            self._version = _append(self._ledger, self._project, self._view, state, self._version)
            self._state = state
        except LedgerConflictError:
            self._lost = True


@contextmanager
def holding(
    ledger: Ledger, project: str, view: str, *, holder: str, clock: Clock, wait_seconds: float = WAIT_SECONDS
) -> Iterator[Lease]:
    """Hold a view's lease during the block, renewing it in the background.

    Waits while another run holds it, and says who. Raises LeaseHeldError when that takes over ``wait_seconds``.
    """
    lease = _taken(ledger, project, view, holder, clock)
    if isinstance(lease, LeaseState):
        lease = _wait(ledger, project, view, holder, clock, wait_seconds, lease)
    stopped = threading.Event()
    renewing = threading.Thread(target=lease.renew_until, args=(stopped,), name=f"lease {view}", daemon=True)
    renewing.start()
    reached(TAKEN)
    try:
        yield lease
    finally:
        stopped.set()
        renewing.join()
        lease.release()
        reached(RELEASED)


def _wait(
    ledger: Ledger, project: str, view: str, holder: str, clock: Clock, wait_seconds: float, other: LeaseState
) -> Lease:
    deadline = time.monotonic() + wait_seconds
    with step("lease", f"wait for the run of {view} by {other}", unit="tries") as waiting:
        while time.monotonic() < deadline:
            time.sleep(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            found = _taken(ledger, project, view, holder, clock)
            if isinstance(found, Lease):
                return found
            other = found
            waiting.advance()
    raise LeaseHeldError(
        f"Another run of {view!r} is under way: {other}.",
        hint=f"Wait for it, or end it: its lease then expires within {LEASE_US // 1_000_000} seconds.",
        view=view,
        **asdict(other),
    )


def _taken(ledger: Ledger, project: str, view: str, holder: str, clock: Clock) -> Lease | LeaseState:
    """Return the lease if it could be taken, else the state that another one holds it with."""
    while True:
        state, version = read_lease(ledger, project, view)
        now_us = clock()
        if state is not None and state.is_held(now_us):
            return state
        mine = LeaseState(holder, socket.gethostname(), os.getpid(), now_us, now_us + LEASE_US)
        try:
            version = _append(ledger, project, view, mine, version)
        except LedgerConflictError:
            continue
        return Lease(ledger, project, view, mine, version, clock)


def _append(ledger: Ledger, project: str, view: str, state: LeaseState, version: int) -> int:
    return ledger.append(project, KIND, view, asdict(state), if_version=version)
