"""A running `fs registry serve`, as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def registry_process(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Serve the registry of a repo on a free port of loopback, and give its URL; it must stop by SIGTERM, with 0."""
    log = root.parent / f"{root.name}-registry.log"
    command = [str(Path(sys.executable).parent / "fs"), "registry", "serve", "--repo", str(root)]
    with log.open("a") as errors:
        process = subprocess.Popen(
            [*command, *(arguments or ("--port", "0"))],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert "http://" in line, log.read_text()
        yield line.split()[-1]
        process.terminate()
        assert process.wait(timeout=20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()
