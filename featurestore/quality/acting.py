"""What a person lets follow an alarm: a command in their own shell, once for each alarm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from featurestore_registry.findings import MonitorDocument

from featurestore.errors import MaterializationError
from featurestore.ledger.monitors import change_alarms
from featurestore.project.settings import ALARM_VARIABLES
from featurestore.quality.report import MonitorResult
from featurestore.quality.telling import marked
from featurestore.types.times import CLOCK_TOLERANCE_US, MICROSECOND
from featurestore.workspace import Workspace

STANDARD_ERROR = 2
"""The descriptor that commands write to."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Acted:
    """How a command ended."""

    monitor: str
    alarms: tuple[str, ...]
    exit_code: int | None
    """None where it was ended because it took too long."""
    lacks: str = ""
    """Why it had no report."""


def act(
    workspace: Workspace, result: MonitorResult, command: str, *, cooldown: timedelta, timeout: timedelta
) -> Acted | None:
    """Run a shell command for alarms that none has run for; None where there are none, or one ran a moment ago.

    The alarms are marked before it begins, so that nobody runs it twice, also where it dies. Nothing is put into the
    command: ``FS_ALARM_MONITOR``, ``FS_ALARM_STATE``, ``FS_ALARM_IDS`` (with spaces between) and ``FS_ALARM_REPORT`` (a
    JSON file, there while it runs; empty where none could be written) are in its environment. It writes to standard
    error. Raises MaterializationError where it could not be started: the next run tries again.
    """
    if not result.is_kept:
        return None
    name, cooldown_us = result.document.monitor, cooldown // MICROSECOND

    def taken(document: MonitorDocument, now_us: int) -> tuple[MonitorDocument, tuple[str, ...]]:
        since_us = now_us - document.acted_us
        is_soon = document.acted_us and -CLOCK_TOLERANCE_US <= since_us < cooldown_us
        if document.state != "alarm" or is_soon:
            return document, ()
        ids = tuple(alarm.id for alarm in document.alarms if not alarm.acted_us)
        return replace(marked(document, ids, acted_us=now_us), acted_us=now_us), ids

    ids = change_alarms(workspace, name, taken)
    if not ids:
        return None
    report, lacks = _report(result)
    told = dict(zip(ALARM_VARIABLES, (name, result.state, " ".join(ids), report), strict=True))
    try:
        return Acted(name, ids, _Running().run(command, told, timeout), lacks)
    except OSError as error:
        change_alarms(
            workspace, name, lambda document, _: (replace(marked(document, ids, acted_us=0), acted_us=0), ids)
        )
        raise MaterializationError(
            f"The command for {', '.join(ids)} of {name} could not be started: {error.strerror}.",
            hint="The next run tries again.",
        ) from None
    finally:
        _remove(report)


def _report(result: MonitorResult) -> tuple[str, str]:
    """Return the path of a new file that says what was found; without one, why: an alarm is told all the same."""
    path = ""
    try:
        descriptor, path = tempfile.mkstemp(prefix="featurestore-monitor-", suffix=".json")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(result.to_dict(), file)
    except OSError as error:
        _remove(path)
        return "", error.strerror or type(error).__name__
    return path, ""


def _remove(path: str) -> None:
    if path:
        with suppress(OSError):
            Path(path).unlink()


class _Running:
    """A command in a process group of its own, which a signal to this process ends: then this process ends, too.

    A handler that raised could do so within Popen, before anybody knows the group.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._signal = 0

    def run(self, command: str, told: dict[str, str], timeout: timedelta) -> int | None:
        """Return the exit code of a command, None where it took too long: then its group is ended."""
        with self._signals():
            self._process = process = subprocess.Popen(  # noqa: S602 - the person's own command, in their own shell
                command, shell=True, env={**os.environ, **told}, stdout=STANDARD_ERROR, start_new_session=True
            )
            if self._signal:
                self._kill()
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout.total_seconds())
            if process.returncode is None:
                self._kill()
                process.wait()
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signal:
            raise SystemExit(128 + self._signal)
        return code

    @contextmanager
    def _signals(self) -> Iterator[None]:
        is_main = threading.current_thread() is threading.main_thread()
        wanted = [each for each in _ENDING if is_main and signal.getsignal(each) not in (signal.SIG_IGN, None)]
        before = {each: signal.signal(each, self._end) for each in wanted}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _end(self, number: int, _: object) -> None:
        self._signal = number
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)


def told(acted: Acted) -> str:
    """Return how a command ended, in words."""
    if acted.exit_code is None:
        end = "was ended: it took too long"
    elif acted.exit_code:
        end = f"failed: it ended with {acted.exit_code}"
    else:
        end = "ended with 0"
    again = " It counts as run: run it yourself if that is needed." if acted.exit_code != 0 else ""
    lacks = f" It had no report: {acted.lacks}." if acted.lacks else ""
    return f"{acted.monitor}: the command for {', '.join(acted.alarms)} {end}.{again}{lacks}"
