"""The engines that are built, as their suites and properties open them."""

from __future__ import annotations

from pathlib import Path

from featurestore.engine.duck.engine import DuckEngine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import Engine


def open_duck(root: Path) -> Engine:
    """Open DuckDB with more threads than the machine may have cores: they find more orders of rows."""
    return DuckEngine(root, EngineSettings(threads=4))
