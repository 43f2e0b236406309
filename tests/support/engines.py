"""The engines that are built, as their suites and properties open them. A further engine goes into both tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st

from featurestore.engine.duck import choose, join, newest
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import Engine
from featurestore.testing.engine_project import EngineProject, OpenEngine

Variant = Callable[[Path], AbstractContextManager[EngineProject]]


def open_duck(root: Path) -> Engine:
    """Open DuckDB with more threads than the machine may have cores: they find more orders of rows."""
    return open_engine(root, EngineSettings(threads=4))


@contextmanager
def _duck(
    rows_at_once: int, most_rows: int, composite_limit: int, part_rows: int, threads: int, root: Path
) -> Iterator[EngineProject]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "ROWS_AT_ONCE", rows_at_once)
        patch.setattr(choose, "MOST_ROWS", most_rows)
        patch.setattr(join, "PART_ROWS", part_rows)
        patch.setattr(newest, "COMPOSITE_LIMIT", composite_limit)
        yield EngineProject(root, lambda folder: open_engine(folder, EngineSettings(threads=threads)))


ENGINES: dict[str, OpenEngine] = {"duckdb": open_duck}
VARIANTS: dict[str, st.SearchStrategy[Variant]] = {
    "duckdb": st.builds(
        partial,
        st.just(_duck),
        rows_at_once := st.sampled_from([2, 16_000_000]),
        st.sampled_from([0, 1000]) | rows_at_once,
        st.sampled_from([12, 2**62]),
        st.sampled_from([2, 1 << 20]),
        st.integers(1, 4),
    )
}
"""Ways to open each engine that must not change an answer: its threads, and sizes at which it works in other ways."""
