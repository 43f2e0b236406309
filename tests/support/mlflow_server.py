"""A real MLflow server of the test's own, on a SQLite file and a free loopback port, which also keeps the artifacts."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from support.example import REPOSITORY
from support.processes import plain_environment
from support.redis_server import WATCHED, is_alive
from support.serving import NO_TLS

COMPANIONS = REPOSITORY / "build" / "companions" / "bin"
START_SECONDS = 120.0


def companion(name: str) -> str:
    """Return the path of a program in the environment of the companions."""
    found = COMPANIONS / name
    if not found.exists():
        raise RuntimeError(f"There is no {found}: run `make test`, which makes it by tools/companions.sh.")
    return str(found)


class MlflowServer:
    """One server, gone when the test process is."""

    def __init__(self, directory: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = directory / "mlflow.log"
        places = [
            "--backend-store-uri",
            f"sqlite:///{directory}/mlflow.db",
            "--artifacts-destination",
            str(directory / "kept"),
        ]
        command = [companion("mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *places]
        environment = {
            **plain_environment(),
            "LOG_FILE": str(self._log),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a second process, for what no test asks
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        for name in ("PYTHONPATH", "MLFLOW_TRACKING_URI"):  # ours is not to be imported there
            environment.pop(name, None)
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", WATCHED, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
            env=environment,
        )
        assert self._shell.stdout is not None
        self.pid = int(self._shell.stdout.readline())

    def wait(self) -> None:
        """Wait until it answers: it takes some seconds, in which the test does something else."""
        give_up_s = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/health", verify=NO_TLS, timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass
            if time.monotonic() > give_up_s or not is_alive(self.pid):
                raise RuntimeError(f"{self._log.read_text()}\nthe server did not start")
            time.sleep(0.05)

    def stop(self) -> None:
        if self._shell.poll() is None:
            self._shell.communicate(timeout=60)  # closes its input

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
