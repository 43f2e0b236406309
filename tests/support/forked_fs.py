"""The command ``fs`` in forks of a process that has imported everything: to start Python takes longer than most.

Run as a program it forks for each line that it reads, a job in JSON, and answers when that has ended.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
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
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.NamedTemporaryFile() as output:
            job = {
                "arguments": list(arguments),
                "folder": str(folder),
                "environment": dict(environment),
                "before": before,
                "output": output.name,
            }
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "done\n"
            return output.read().decode()

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

    be_ready_to_fork("featurestore_registry", "featurestore")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
            _run(main)
        os.waitpid(child, 0)
        print("done", flush=True)


def _run(main: Callable[[], None]) -> None:
    """Run the command and end the process as Python would, but for taking its thousands of modules apart."""
    try:
        main()
    except SystemExit:
        pass
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # threads that are at work end first
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nobody reads the code


def _become(job: dict[str, Any]) -> None:
    output = os.open(job["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(job["folder"])
    os.environ.clear()
    os.environ.update(job["environment"])
    exec(job["before"], {})
    sys.path[:] = [path for path in sys.path if path not in ("", str(Path(__file__).parents[1]))]
    sys.argv = ["fs", *job["arguments"]]


if __name__ == "__main__":
    _serve()
