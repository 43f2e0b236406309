"""What every benchmark receives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import Workload, make


@dataclass(frozen=True)
class Context:
    folder: Path
    """For everything that is made on the way."""
    data: Path
    """For the workload, which all benchmarks share."""
    pairs: int
    is_quick: bool
    """The least that runs all code: its numbers say nothing."""
    redis_url: str

    @property
    def seconds(self) -> float:
        """How long one measurement under load takes."""
        return 0.2 if self.is_quick else 3.0

    def workload(self, scale: float = 1) -> Workload:
        """Return workload m or a multiple of it."""
        return make(self.data, 0.01 if self.is_quick else scale)

    def place(self, name: str) -> Path:
        """Return an own empty folder."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path
