"""``fs`` and pieces of code in forks of a process that has imported everything: to start Python takes longer than most.

Run as a program it forks for each job of a line that it reads, in JSON, and answers when all have ended; of a job that
is to go on, at once. It tells how that has ended when it is asked.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from support.processes import be_ready_to_fork, plain_environment


@dataclass(frozen=True)
class Started:
    """A fork that goes on until it is told to end."""

    pid: int
    stdin: TextIO
    stdout: TextIO
    _wait: Callable[[int], int | None]
    """Asks for its exit status, with the options of ``waitpid``; None while it goes on."""

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def poll(self) -> int | None:
        """Return its exit status if it has ended."""
        return self._wait(os.WNOHANG)

    def wait(self) -> int:
        """Give it no more input, and return its exit status when it has ended."""
        self.stdin.close()
        with self.stdout:
            self.stdout.read()
        code = self._wait(0)
        assert code is not None
        return code


class ForkedFs:
    """The program below, running."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        paths = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked_fs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**plain_environment(), "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], before: str
    ) -> tuple[int, str]:
        """Return the command's exit status and what it printed, errors included.

        ``before`` is Python code that it begins with.
        """
        job = {"code": before, "folder": str(folder), "environment": dict(environment)}
        (ended,) = self._run([job], arguments)
        return ended

    def run_code(
        self, code: str, folder: Path, environments: Sequence[Mapping[str, str]] = ({},)
    ) -> list[tuple[int, str]]:
        """Run Python code in processes of its own, at once one for each of ``environments``, in ``folder``.

        Returns each one's exit status and what it printed, errors included.
        """
        plain = plain_environment()
        return self._run(
            [{"code": code, "folder": str(folder), "environment": {**plain, **more}} for more in environments], None
        )

    def start(
        self, code: str, arguments: Sequence[str] | None, folder: Path, environment: Mapping[str, str], errors: str
    ) -> Started:
        """Begin with Python code, then ``fs`` if it gets arguments, in a process that goes on beside this one.

        ``errors`` is the file that its standard error goes to, or nothing: then it goes where the output goes.
        """
        job: dict[str, Any] = {"code": code, "arguments": None if arguments is None else list(arguments)}
        job |= {"folder": str(folder), "environment": dict(environment), "errors": errors, "stays": True}
        with tempfile.TemporaryDirectory() as pipes:
            for name in ("input", "output"):
                job[name] = f"{pipes}/{name}"
                os.mkfifo(job[name])
            to_it = os.open(job["input"], os.O_RDWR)  # which waits for nobody
            (pid,) = self._ask([job])

            def wait(options: int) -> int | None:
                found: int | None = self._ask({"pid": pid, "options": options})
                return found

            return Started(pid, os.fdopen(to_it, "w"), Path(job["output"]).open(), wait)

    def _run(self, jobs: list[dict[str, Any]], arguments: Sequence[str] | None) -> list[tuple[int, str]]:
        """Run ``fs`` with the arguments after the jobs' code, or nothing."""
        with ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in jobs]
            for job, output in zip(jobs, outputs, strict=True):
                job |= {"arguments": None if arguments is None else list(arguments), "output": output.name}
            codes = self._ask(jobs)
            return [(code, output.read().decode()) for code, output in zip(codes, outputs, strict=True)]

    def _ask(self, asked: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@functools.cache
def forked_fs() -> ForkedFs:
    """Return the one of this process."""
    started = ForkedFs()
    atexit.register(started.close)
    return started


def _serve() -> None:
    from featurestore.cli.main import main

    importlib.import_module("support.crash_scenario")  # is run some two hundred times
    be_ready_to_fork("featurestore_registry", "featurestore")
    for line in sys.stdin:
        asked = json.loads(line)
        answer: Any = _waited(**asked) if isinstance(asked, dict) else [_started(job, main) for job in asked]
        if isinstance(asked, list) and not any("stays" in job for job in asked):
            answer = [_waited(child) for child in answer]
        print(json.dumps(answer), flush=True)


def _started(job: dict[str, Any], main: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        _run(functools.partial(_do, job, main))
    return child


def _waited(pid: int, options: int = 0) -> int | None:
    ended, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if ended else None


def _run(do: Callable[[], None]) -> None:
    """Do it and end the process as Python would, but for taking its thousands of modules apart."""
    code: object = 0
    try:
        do()
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # threads that are at work end first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def _do(job: dict[str, Any], main: Callable[[], None]) -> None:
    os.dup2(os.open(job.get("input", os.devnull), os.O_RDONLY), 0)
    output = os.open(job["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(os.open(job["errors"], os.O_WRONLY | os.O_APPEND) if job.get("errors") else output, 2)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    exec(job["code"], {})
    if job["arguments"] is not None:
        sys.path[:] = [path for path in sys.path if path not in ("", str(Path(__file__).parents[1]))]
        sys.argv = ["fs", *job["arguments"]]
        main()


if __name__ == "__main__":
    _serve()
