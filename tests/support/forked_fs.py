"""``fs`` and pieces of code in forks of a process that has imported everything: to start Python takes longer than most.

Run as a program it forks for each job of a line that it reads, in JSON, and answers when all have ended.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from support.processes import be_ready_to_fork, plain_environment


class ForkedFs:
    """The program below, running."""

    def __init__(self) -> None:
        paths = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.forked_fs"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**plain_environment(), "PYTHONPATH": os.pathsep.join(paths)},
        )

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], before: str) -> str:
        """Return what the command printed, errors included; ``before`` is Python code that it begins with."""
        ((_, output),) = self._run(
            [{"code": before, "folder": str(folder), "environment": dict(environment)}], arguments
        )
        return output

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

    def _run(self, jobs: list[dict[str, Any]], arguments: Sequence[str] | None) -> list[tuple[int, str]]:
        """Run ``fs`` with the arguments after the jobs' code, or nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.NamedTemporaryFile()) for _ in jobs]
            for job, output in zip(jobs, outputs, strict=True):
                job |= {"arguments": None if arguments is None else list(arguments), "output": output.name}
            self._process.stdin.write(json.dumps(jobs) + "\n")
            self._process.stdin.flush()
            codes = json.loads(self._process.stdout.readline())
            return [(code, output.read().decode()) for code, output in zip(codes, outputs, strict=True)]

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
        children = []
        for job in json.loads(line):
            child = os.fork()
            if child == 0:
                _run(functools.partial(_do, job, main))
            children.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


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
    output = os.open(job["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
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
