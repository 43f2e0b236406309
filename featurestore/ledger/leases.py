"""Leases: one run of a view at a time, across processes and machines.

The newest ledger entry of kind ``lease`` and the view's name says who holds it. Every change is a compare-and-set on
the entry's version, so of two takers one wins. Clocks of machines differ and jump, so none of them decides: a waiter
takes the lease over when its entry has not changed for `LEASE_US` of the waiter's own monotonic clock, and at once if
the holder is a process of the same machine that has ended. The holder says which process it is in an entry of another
kind, because older versions refuse fields that they do not know. They go by ``expires_us``, which is still written.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.errors import LeaseHeldError, LedgerConflictError, RegistryError
from featurestore.ledger.processes import Process, own_process
from featurestore.registered.records import understood
from featurestore.steps import crash_point, reached, step
from featurestore.types.times import CLOCK_TOLERANCE_US, Clock, to_rfc3339

KIND = "lease"
PROCESS_KIND = "lease_process"
LEASE_US = 60_000_000
RENEW_SECONDS = 20.0
WAIT_SECONDS = 600.0
_LEASE_SECONDS = LEASE_US / 1_000_000
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 1.0
_SAID_LATELY = 20
"""At most so many of the newest `PROCESS_KIND` entries are searched: losers of a race for the lease write them too."""

TAKEN = crash_point("lease.taken", "the view's lease is held, nothing else has happened")
RELEASED = crash_point("lease.released", "the run is over and its lease given back")


class Timer(NamedTuple):
    """The clock and the sleep of a lease's holder and its waiters."""

    seconds: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


_TIMER = Timer()


@dataclass(frozen=True, slots=True)
class LeaseState:
    """What the ledger says about a view's lease."""

    holder: str
    """The id of the run."""
    host: str
    pid: int
    since_us: int
    expires_us: int
    """By the holder's clock; older versions go by it."""
    released: bool = False

    def is_held(self, now_us: int) -> bool:
        """Tell whether it seems held, by the wall clocks of two machines; ignores a clock that is far ahead."""
        return not self.released and now_us < self.expires_us <= now_us + LEASE_US + CLOCK_TOLERANCE_US

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {to_rfc3339(self.since_us)[:19]}Z"


def read_lease(ledger: LedgerReader, project: str, view: str) -> tuple[LeaseState | None, int]:
    """Return the newest state of a view's lease, None when nobody ever took it, and its version."""
    entry = ledger.latest(project, KIND, view)
    if entry is None:
        return None, 0
    with understood("a lease"):
        return LeaseState(**entry.document), entry.version


def running_holder(ledger: LedgerReader, project: str, view: str, *, now_us: int) -> str | None:
    """Return the id of the run that holds a view's lease, as far as one look can tell; None for a free lease."""
    state, _ = read_lease(ledger, project, view)
    if state is None or not state.is_held(now_us) or _is_gone(_process_of(ledger, project, view, state.holder)):
        return None
    return state.holder


def _process_of(ledger: LedgerReader, project: str, view: str, holder: str) -> Process | None:
    """Return the process that holds a lease; None where no entry says so, as with older versions."""
    for entry in ledger.scan(project, PROCESS_KIND, key=view, limit=_SAID_LATELY):
        if entry.document.get("holder") == holder:
            try:
                return Process(**{name: entry.document[name] for name in Process.__dataclass_fields__})
            except KeyError:
                return None  # a newer version identifies processes in another way
    return None


def _is_gone(process: Process | None) -> bool:
    return process is not None and process.is_gone()


class _Book:
    """The ledger's entries about the lease of one view."""

    def __init__(self, ledger: Ledger, project: str, view: str) -> None:
        self.ledger, self.project, self.view = ledger, project, view

    def read(self) -> tuple[LeaseState | None, int]:
        return read_lease(self.ledger, self.project, self.view)

    def append(self, state: LeaseState, version: int) -> int:
        return self.ledger.append(self.project, KIND, self.view, asdict(state), if_version=version)

    def introduce(self, holder: str) -> None:
        """Say which process will hold the lease, before it does: it may be killed right after."""
        process = own_process()
        if process is not None:
            self.ledger.append(self.project, PROCESS_KIND, self.view, {"holder": holder, **asdict(process)})

    def process(self, holder: str) -> Process | None:
        return _process_of(self.ledger, self.project, self.view, holder)


class Lease:
    """A lease that this process holds; made by `holding`."""

    def __init__(
        self, book: _Book, state: LeaseState, version: int, clock: Clock, timer: Timer, since_s: float
    ) -> None:
        self._book, self._clock, self._timer = book, clock, timer
        self._state, self._version = state, version
        self._moved_s = since_s
        self._lost = False
        self._lock = threading.Lock()

    @property
    def fence(self) -> int:
        """The version of its entry: who takes it over has greater ones, so what is written late can be told."""
        return self._version

    def check(self) -> None:
        """Return while the lease is held; raises LeaseHeldError when it ran out and another run took it."""
        with self._lock:
            if not self._lost and self._may_be_followed():
                self._renew()
            if self._lost:
                state, _ = self._book.read()
                raise LeaseHeldError(
                    f"The run of {self._book.view!r} lost its lease to {state}.",
                    hint="This machine may have slept. Run it again: committed work is not done twice.",
                    view=self._book.view,
                )

    def _may_be_followed(self) -> bool:
        """Tell whether another run may have taken it; after a jump of the clock one more question does no harm."""
        silent_s = self._timer.seconds() - self._moved_s
        return silent_s >= _LEASE_SECONDS or self._clock() >= self._state.expires_us

    def renew_until(self, stopped: threading.Event) -> None:
        """Renew from time to time; runs in a thread of its own until ``stopped``."""
        pause = RENEW_SECONDS
        while not stopped.wait(pause):
            try:
                with self._lock:
                    self._renew()
                pause = RENEW_SECONDS
            except RegistryError:
                pause = _RETRY_SECONDS  # down for a moment: two thirds of the lease are left for it to come back

    def _renew(self) -> None:
        if not self._lost:
            self._append(replace(self._state, expires_us=self._clock() + LEASE_US))

    def release(self) -> None:
        """Give it back; if it is lost, or the registry is down, the next run finds out by itself."""
        try:
            with self._lock:
                if not self._lost:
                    self._append(replace(self._state, released=True))
        except RegistryError:
            return

    def _append(self, state: LeaseState) -> None:
        moved_s = self._timer.seconds()  # before others can see it, so that they start to count later
        try:
            self._version = self._book.append(state, self._version)
            self._state, self._moved_s = state, moved_s
        except LedgerConflictError:
            self._lost = True


@contextmanager
def holding(
    ledger: Ledger,
    project: str,
    view: str,
    *,
    holder: str,
    clock: Clock,
    wait_seconds: float = WAIT_SECONDS,
    timer: Timer = _TIMER,
) -> Iterator[Lease]:
    """Hold a view's lease during the block, renewing it in the background.

    Waits while another run holds it, and says which one and when it will be taken over. Raises LeaseHeldError after
    ``wait_seconds``.
    """
    lease = _Wait(_Book(ledger, project, view), holder, clock, timer).until_taken(wait_seconds)
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


class _Wait:
    """One run that waits for a lease: the holder's entry as it last saw it, and since when."""

    def __init__(self, book: _Book, holder: str, clock: Clock, timer: Timer) -> None:
        self._book, self._holder, self._clock, self._timer = book, holder, clock, timer
        self._is_introduced = False
        self._seen_version: int | None = None
        self._moved_s = 0.0
        self._process: Process | None = None

    def until_taken(self, wait_seconds: float) -> Lease:
        deadline_s = self._timer.seconds() + wait_seconds
        lease, other = self._try()
        if lease is not None:
            return lease
        view, end = self._book.view, self._end()
        with step("lease", f"wait for the run of {view} by {other}; it is taken over {end}", unit="tries") as waiting:
            while (left_s := deadline_s - self._timer.seconds()) > 0:
                self._timer.sleep(min(_POLL_SECONDS, left_s))
                lease, other = self._try()
                if lease is not None:
                    return lease
                waiting.advance()
        assert other is not None
        raise LeaseHeldError(
            f"Another run of {self._book.view!r} is under way: {other}.",
            hint=f"Wait for it, or end it: its lease is taken over {self._end()}.",
            view=self._book.view,
            **asdict(other),
        )

    def _end(self) -> str:
        silent = f"{_LEASE_SECONDS:.0f} seconds after its last sign of life"
        return silent if self._process is None else f"when that process ends, or {silent}"

    def _try(self) -> tuple[Lease | None, LeaseState | None]:
        """Return the lease if it could be taken, else the state of the holder."""
        while True:
            before_s = self._timer.seconds()
            state, version = self._book.read()
            if state is not None and not self._is_free(state, version, before_s):
                return None, state
            if not self._is_introduced:
                self._book.introduce(self._holder)
                self._is_introduced = True
            since_s, now_us = self._timer.seconds(), self._clock()
            mine = LeaseState(self._holder, socket.gethostname(), os.getpid(), now_us, now_us + LEASE_US)
            try:
                version = self._book.append(mine, version)
            except LedgerConflictError:  # another run was first
                continue
            return Lease(self._book, mine, version, self._clock, self._timer, since_s), None

    def _is_free(self, state: LeaseState, version: int, before_s: float) -> bool:
        """Tell whether a lease that was read after ``before_s`` may be taken."""
        if state.released:
            return True
        # Counted from after the read that first saw the version to before this read: both err on the waiting side.
        if version != self._seen_version:
            self._seen_version, self._moved_s = version, self._timer.seconds()
            self._process = self._book.process(state.holder)
        return _is_gone(self._process) or before_s - self._moved_s >= _LEASE_SECONDS
