"""A running `fs registry serve`, as a process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support.serving import ended_well, start_fs


@contextmanager
def registry_process(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None, fresh: bool = False
) -> Iterator[str]:
    """Serve the registry of a repo on a free port of loopback, and give its URL; it must stop by SIGTERM, with 0."""
    log = root.parent / f"{root.name}-registry.log"
    command = ["registry", "serve", "--repo", str(root), *(arguments or ("--port", "0"))]
    with ended_well(start_fs(command, log, environment or {}, fresh=fresh), log) as url:
        yield url
