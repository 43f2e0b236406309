"""What expectations of rows cost: a million rows of twenty features, with ten rules and without any."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from benchmarks.context import Context
from benchmarks.pairs import Pairs, measure
from benchmarks.projects import view_definition
from benchmarks.report import Row, Section, Target
from benchmarks.statistics import COLUMNS, Runs
from benchmarks.workload import WorkloadView, write_view
from featurestore import Between, Matches, NotNull, OneOf, Rows, Share
from featurestore.definitions.expectations import FieldRule

TARGET = Target(at_most=1.1)
"""A tenth of the run, its own time included."""
RULES: dict[str, list[FieldRule]] = {
    "rating_1": [Between(-100.0, 100.0), NotNull(max_share=0.5)],
    "distance_km_1": [Between(-100.0, None)],
    "trips_1": [Between(0, 10_000), NotNull(max_share=0.5)],
    "cancelled_1": [OneOf(range(100))],
    "segment_1": [Matches(".*")],
    "earnings_1": [Between(Decimal(-1_000_000), None)],
}
OF_VIEW = [Rows(at_least=1), Share("rating_2 > 1000", at_most=0.1)]
"""Ten rules that hold, of two kinds and five types."""


def run(context: Context) -> Iterator[Section]:
    """Measure first runs of a view with rules beside such without."""
    folder = context.place("checks")
    keys = 100 if context.is_quick else 10_000
    view = WorkloadView(
        "mixed", "driver_id", 1, tuple(COLUMNS), folder / "mixed.table.parquet", folder / "mixed.source.parquet"
    )
    write_view(view, COLUMNS, keys, 100, seed=5)
    section = Section(
        "Checks of runs",
        f"{keys * 100:,} rows of {len(COLUMNS)} mixed features of {keys:,} entities and ten rules that hold, published "
        "to LMDB or not at all; the floor is the same run without rules.",
    )
    fields = view_definition(view, with_ttl=False).stored
    checked = tuple(field.replaced(expect=tuple(RULES.get(field.name, ()))) for field in fields)
    for name, online in (("LMDB", True), ("offline only", False)):
        for how in ("warn", "quarantine"):
            with_rules = {"fields": checked, "expect": tuple(OF_VIEW), "on_failure": how, "online": online}
            ours = Runs(folder / f"{name} {how}", view, with_rules)
            floor = Runs(folder / f"{name} {how} without", view, {"online": online})
            section.rows.append(
                Row(f"a first run, {how}, {name}", "s", measure(ours, floor, count=context.pairs), TARGET)
            )
            pairs = tuple(zip(ours.cpu[-context.pairs :], floor.cpu[-context.pairs :], strict=True))
            section.rows.append(Row(f"its CPU time, {how}, {name}", "s", Pairs(pairs), TARGET))
    yield section
