"""What the statistics of a run cost: a million rows of twenty features, materialized with and without them."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.pairs import Pairs, measure
from benchmarks.projects import PROJECT, view_definition
from benchmarks.report import Row, Section, Target
from benchmarks.workload import MIXED, Column, WorkloadView, write_view
from featurestore import FeatureStore

COLUMNS: dict[str, Column] = {f"{name}_{copy}": column for copy in (1, 2) for name, column in MIXED.items()}
"""Twenty features: floats, integers, bools, texts, instants and decimals."""
TARGET = Target(at_most=1.25)
"""A fifth of the run, its own time included."""


def run(context: Context) -> Iterator[Section]:
    """Measure first runs of a view, and runs that add a day, each with statistics beside one without."""
    folder = context.place("statistics")
    keys = 100 if context.is_quick else 10_000
    view = WorkloadView(
        "mixed", "driver_id", 1, tuple(COLUMNS), folder / "mixed.table.parquet", folder / "mixed.source.parquet"
    )
    write_view(view, COLUMNS, keys, 100, seed=5)
    section = Section(
        "Statistics of runs",
        f"{keys * 100:,} rows of {len(COLUMNS)} mixed features of {keys:,} entities, published to LMDB or not at all; "
        "the floor is the same run with `statistics=False`.",
    )
    for name, online in (("LMDB", True), ("offline only", False)):
        ours, floor = (
            Runs(folder / f"{name} {on}", view, {"online": online, "statistics": on}) for on in (True, False)
        )
        pairs = measure(ours, floor, count=context.pairs)
        section.rows.append(Row(f"a first run, {name}", "s", pairs, TARGET))
        cpu = Pairs(tuple(zip(ours.cpu[-context.pairs :], floor.cpu[-context.pairs :], strict=True)))
        section.rows.append(Row(f"its CPU time, {name}", "s", cpu, TARGET))
    yield section


@dataclass
class Runs:
    """Runs the view in a new project each time; returns the seconds, and remembers the CPU time."""

    folder: Path
    view: WorkloadView
    changes: Mapping[str, Any]
    """What the view is declared with besides its source and schema."""

    def __post_init__(self) -> None:
        self.cpu = list[float]()
        self._numbers = count()

    def __call__(self) -> float:
        root = self.folder / str(next(self._numbers))
        root.mkdir(parents=True)
        (root / "feature_store.yaml").write_text(f"project: {PROJECT}\nonline_store: {{url: 'lmdb:///data/online'}}\n")
        (root / "features.py").write_text("")
        defined = view_definition(self.view, with_ttl=False)
        with FeatureStore(root) as store:
            store.apply([defined.replaced(**self.changes)])
            gc.collect()
            begun_s, cpu_s = time.perf_counter(), time.process_time()
            store.materialize_incremental()
            taken_s = time.perf_counter() - begun_s
            self.cpu.append(time.process_time() - cpu_s)
        shutil.rmtree(root)
        return taken_s
