"""Processes of this machine: who this one is, and whether another has ended. Linux says so in ``/proc``."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_BOOT_ID = _PROC / "sys/kernel/random/boot_id"
_NAMESPACE = _PROC / "self/ns/pid"
_ENDED = ("Z", "X")
"""A zombie has been killed and waits for its parent to notice: it no longer runs."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process, distinct from all others on any machine at any time."""

    host: str
    boot_id: str
    """Changes with each start of the machine."""
    pid_namespace: str
    """Each container of a machine numbers its processes separately."""
    pid: int
    started_ticks: int
    """Clock ticks from the machine's start to the process's: tells apart processes that get the same number."""

    def is_gone(self) -> bool:
        """Tell whether it has certainly ended; False where this process cannot know."""
        own = own_process()
        if own is None or self.pid < 1 or _place(own) != _place(self):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's process: it exists
        try:
            _, started_ticks = _stat(_PROC / str(self.pid) / "stat")
            return started_ticks != self.started_ticks or all(state in _ENDED for state in _thread_states(self.pid))
        except (OSError, ValueError, IndexError):
            return False  # hidden from this user, or it ended just now: the next look will show


def own_process() -> Process | None:
    """Return this process; None where the system has no ``/proc``."""
    try:
        _, started_ticks = _stat(_PROC / "self/stat")
        return Process(
            socket.gethostname(),
            _BOOT_ID.read_text().strip(),
            str(_NAMESPACE.readlink()),
            os.getpid(),
            started_ticks,
        )
    except (OSError, ValueError, IndexError):
        return None


def _place(process: Process) -> tuple[str, str, str]:
    return process.host, process.boot_id, process.pid_namespace


def _thread_states(pid: int) -> Iterator[str]:
    """Yield the state of each thread: the first may have ended while another is still writing."""
    for folder in (_PROC / str(pid) / "task").iterdir():
        yield _stat(folder / "stat")[0]


def _stat(path: Path) -> tuple[str, int]:
    """Return state and start, in clock ticks since the machine's start; the name before them may hold blanks."""
    fields = path.read_bytes().rpartition(b") ")[2].split()
    return fields[0].decode(), int(fields[19])


def own_user() -> str:
    """Return who runs this process, for what people decide: user and machine."""
    user = ""
    with suppress(KeyError, OSError):  # a container's user may have no name
        user = getpass.getuser()
    return f"{user}@{socket.gethostname()}"
