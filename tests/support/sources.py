"""What DuckDB's own tests share: staging with settings of that engine. Sources and views are those of the suites."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featurestore.definitions import FeatureView
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import StagedRows
from featurestore.testing.engine_project import (
    ALWAYS,
    EngineProject,
    instants,
    paths_of,
    read_file,
    table_of,
    view_of,
)
from featurestore.testing.engine_project import write_parquet as write

__all__ = ["ALWAYS", "instants", "paths_of", "read_file", "stage", "staged_rows", "table_of", "view_of", "write"]


def stage(root: Path, view: FeatureView, *, settings: EngineSettings | None = None, **options: Any) -> StagedRows:
    """Stage a view's rows into ``root/staging``."""
    return EngineProject(root, lambda folder: open_engine(folder, settings)).stage(view, **options)


def staged_rows(
    root: Path, view: FeatureView, *, settings: EngineSettings | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Stage and return what was written, in the table's order."""
    return EngineProject(root, lambda folder: open_engine(folder, settings)).rows(view, **options)
