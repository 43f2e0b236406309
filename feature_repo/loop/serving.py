"""The feature server by a clock that is played, and the application beside it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from page import ENVIRONMENT

from featurestore.project.loader import load_definitions
from featurestore.project.settings import read_settings
from featurestore.server.app import create_app
from featurestore.workspace import Workspace

START_SECONDS = 30.0


class Clock:
    """The time that is played, in UTC microseconds."""

    def __init__(self, at: datetime) -> None:
        self.to(at)

    def to(self, at: datetime) -> None:
        """Move it."""
        self.at = at
        self._us = int(at.timestamp()) * 1_000_000

    def __call__(self) -> int:
        """Return it."""
        return self._us


@contextmanager
def feature_server(repo: Path, clock: Clock) -> Iterator[str]:
    """Serve a feature repo on loopback by a clock, and yield the address; what it kept is in files afterwards."""
    workspace = Workspace(repo, read_settings(repo), code=lambda: load_definitions(repo), clock=clock)
    server = uvicorn.Server(uvicorn.Config(create_app(workspace), port=0, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until_s = time.monotonic() + START_SECONDS
        while not server.started:
            if not thread.is_alive() or time.monotonic() > until_s:
                raise SystemExit("The feature server did not start.")
            time.sleep(0.02)
        (port,) = {socket.getsockname()[1] for each in server.servers for socket in each.sockets}
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)


@contextmanager
def application(repo: Path, features: str) -> Iterator[httpx.Client]:
    """Run `model_app.py` beside a feature server, and yield a client of it."""
    command = [sys.executable, "-m", "uvicorn", "model_app:app", "--port", "0", "--no-access-log"]
    process = subprocess.Popen(
        command, cwd=repo, env={**ENVIRONMENT, "FEATURES_URL": features}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = (line for line in process.stderr if "running on" in line)
        line = next(lines, None)
        if line is None:
            raise SystemExit("The application did not start.")
        url = next(word for word in line.split() if word.startswith("http://"))
        with httpx.Client(base_url=url, timeout=START_SECONDS) as client:
            yield client
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def ask(client: httpx.Client, flights: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask the application which flights will be late."""
    answer = client.post("/late", json=flights)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
