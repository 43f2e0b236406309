"""Figures of a column over several runs, beside plain loops over the rows of all of them."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from dataclasses import asdict, replace
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from featurestore_registry.catalog.drawing import histogram, short, value
from featurestore_registry.catalog.named import SavedSet
from featurestore_registry.catalog.statistics import Profile, in_training_sets, profile_of
from featurestore_registry.catalog.words import of_nulls
from featurestore_registry.documents import (
    QUANTILES,
    BinsDocument,
    ColumnStatistics,
    SavedFrame,
    SavedRead,
    SavedSetDocument,
    StatisticsDocument,
)
from featurestore_registry.interface import LedgerReader
from featurestore_registry.records import LedgerEntry

BINS = BinsDocument(1, points=(0.0,), edges=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0))


def counted(rows: list[float | None], *, sampled: int) -> StatisticsDocument:
    """Count some rows as a run does: totals of all, bins of the first ``sampled``, which lie like the others."""
    known = [each for each in rows if each is not None and each == each]
    sample = [each for each in rows[:sampled] if each is not None and each == each]
    edges = BINS.edges
    in_bins = [sum(each < edges[0] and each != 0 for each in sample)]
    for low, high in pairwise(edges):
        in_bins.append(sum(low <= each < high for each in sample))
    in_bins.append(sum(each >= edges[-1] for each in sample))
    column = ColumnStatistics(
        "fare", "Float64", rows=len(rows), nulls=rows.count(None), not_finite=sum(each != each for each in rows),
        distinct=len({*known}), minimum=min(known), maximum=max(known), mean=statistics.fmean(known),
        deviation=statistics.pstdev(known), bins=1, at_points=(sample.count(0.0),), in_bins=tuple(in_bins),
    )  # fmt: skip
    return StatisticsDocument(1, len(rows), len(rows[:sampled]), (column,))


def some(dice: random.Random, count: int, low: float, high: float) -> list[float | None]:
    zeros = [0.0 if number % 10 else float("nan") if number % 100 == 0 else None for number in range(count // 2)]
    made = [*zeros, *(dice.uniform(low, high) for _ in range(count - count // 2))]
    dice.shuffle(made)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_run_of_few_late_rows_does_not_stand_for_the_feature(seed: int) -> None:
    dice = random.Random(seed)
    runs: list[list[float | None]] = [
        some(dice, 6_000, 1, 30),
        some(dice, 2_000, 5, 9),
        [float(dice.uniform(20, 31)) for _ in range(50)],
    ]
    documents = [counted(rows, sampled=3_000) for rows in reversed(runs)]
    found = Profile(documents, {("fare", 1): BINS}).sum_of("fare")
    rows = [each for run in runs for each in run]
    known = sorted(each for each in rows if each is not None and each == each)
    assert found is not None
    column = found.column
    assert (column.rows, column.nulls, found.runs, found.binned) == (8_050, rows.count(None), 3, 8_050)
    assert column.not_finite == sum(each != each for each in rows)
    assert (column.minimum, column.maximum) == (known[0], known[-1])
    assert column.mean == pytest.approx(statistics.fmean(known))
    assert column.deviation == pytest.approx(statistics.pstdev(known))
    assert column.distinct == len({each for each in runs[0] if each is not None and each == each})
    # From a sample of half of the first run: within a few percent of what a sort of all rows finds.
    for share, at in zip(QUANTILES, column.quantiles, strict=True):
        assert isinstance(at, float)
        before, after = sum(each < at - 1e-9 for each in known), sum(each <= at + 1e-9 for each in known)
        assert before / len(known) - 0.04 <= share <= after / len(known) + 0.04
    assert found.most is not None
    assert found.most[0] == 0.0
    assert found.most[1] == pytest.approx(rows.count(0.0) / len(rows), abs=0.02)
    bars = histogram(column, BINS, width=100, height=10)
    assert bars is not None
    assert bars.low == "0"
    assert found.last.rows == 50
    assert found.quantiles_of == "the bins of all counted runs"


def test_what_does_not_add_up_is_not_added() -> None:
    dice = random.Random(7)
    first, second = counted(some(dice, 400, 1, 9), sampled=400), counted(some(dice, 100, 1, 9), sampled=100)
    (old,) = first.columns
    rebinned = replace(first, columns=(replace(old, bins=2),))
    found = Profile([second, rebinned], {("fare", 1): BINS}).sum_of("fare")
    assert found is not None
    assert (found.column.rows, found.binned, sum(found.column.in_bins)) == (500, 100, sum(second.columns[0].in_bins))
    # One run is in the bins of today: what it found itself is nearer than what they tell.
    exact = replace(second, columns=(replace(second.columns[0], quantiles=(1.5,) * len(QUANTILES)),))
    alone = Profile([exact, rebinned], {("fare", 1): BINS}).sum_of("fare")
    assert alone is not None
    assert (alone.column.quantiles, alone.quantiles_of) == ((1.5,) * len(QUANTILES), "the last run")
    two = Profile([second, first, rebinned], {("fare", 1): BINS}).sum_of("fare")
    assert two is not None
    assert two.quantiles_of == "the bins of 2 of 3 runs"
    hidden = replace(second, columns=(replace(second.columns[0], is_hidden=True, minimum=None, mean=None),))
    kept = Profile([hidden, first], {("fare", 1): BINS}).sum_of("fare")
    assert kept is not None
    assert (kept.column.rows, kept.column.mean, kept.frequent) == (500, None, ())
    assert Profile([], {}).sum_of("fare") is None
    texts = [
        StatisticsDocument(
            1, 10, 10, (ColumnStatistics("c", "String", rows=10, distinct=len(top), top=tuple(top.items())),)
        )
        for top in (Counter({"": 7, "a": 3}), Counter({"": 6, "b": 4}))
    ]
    words = Profile(texts, {}).sum_of("c")
    assert words is not None
    assert words.column.distinct == 3
    assert dict(words.frequent) == {"": 0.65, "a": 0.15, "b": 0.2}
    assert words.most == ("", 0.65)


def test_the_ends_of_runs_are_those_of_all_or_none() -> None:
    def ends(*told: tuple[str, Any, Any, int], least: Any) -> None:
        columns = [ColumnStatistics("c", kind, rows=9, nulls=n, minimum=a, maximum=b) for kind, a, b, n in told]
        found = Profile([StatisticsDocument(1, 9, 9, (each,)) for each in columns], {}).sum_of("c")
        assert found is not None
        assert (found.column.minimum, found.column.maximum) == least

    ends(("Decimal(9, 1)", "9.5", "9.5", 0), ("Decimal(9, 1)", "10.0", "100.0", 0), least=("9.5", "100.0"))
    ends(("Int64", None, None, 9), ("Int64", 3, 4, 0), least=(3, 4))  # nulls alone
    # Of a text with too many values a run tells no end: those of the others are not the ends of all.
    ends(("String", "a", "b", 0), ("String", None, None, 0), least=(None, None))
    ends(("String", None, None, 0), ("String", "a", "b", 0), least=(None, None))
    # The type changed: runs before are of other values.
    ends(("Int64", 3, 4, 0), ("String", "1", "2", 0), least=(3, 4))


def test_a_value_is_named_that_has_more_than_a_fifth_of_the_rows() -> None:
    for count, named in ((20, None), (21, ("a", 0.21))):
        column = ColumnStatistics("c", "String", rows=100, distinct=2, top=(("a", count),))
        found = Profile([StatisticsDocument(1, 100, 100, (column,))], {}).sum_of("c")
        assert found is not None
        assert found.most == named


def test_training_sets_of_other_views_hide_none_of_a_views_own() -> None:
    def saved(name: str, view: str) -> SavedSet:
        read = SavedRead(view, view, 1, 1, "available")
        frame = SavedFrame("pandas", "f", "s", "t")
        return SavedSet(name, datetime(2026, 1, 1), SavedSetDocument(name, 1, (), False, (read,), frame, "x", {}), None)

    class Kept(LedgerReader):
        def scan(
            self, project: str, kind: str, *, key: str | None = None, limit: int | None = None
        ) -> list[LedgerEntry]:
            column = ColumnStatistics("f", "Int64", rows=1, feature="v.1:f")
            told = asdict(StatisticsDocument(1, 1, 1, (column,)))
            return [LedgerEntry(project, kind, str(key), 1, told, datetime(2026, 1, 1))]

    sets = [*(saved(f"other{number}", "other") for number in range(20)), saved("newer", "v"), saved("older", "v")]
    found = in_training_sets(Kept(), "p", sets, "v.1", ["f"])
    assert found["f"].training_set == "newer"


def test_values_are_written_so_that_they_are_seen() -> None:
    assert [value(each) for each in ("", " ", "a", 0, None)] == ['""', '" "', "a", "0", "–"]
    assert short("2026-01-02T03:04:05.678+00:00", "Timestamp") == "2026-01-02 03:04"
    assert short("2026-01-02T00:00:00+00:00", "Timestamp") == "2026-01-02"
    assert short("2026-01-02T03:04:05", "String") == "2026-01-02T03:04:05"
    assert of_nulls(ColumnStatistics("a", "Float64", rows=100, not_finite=1)) == "0\u00a0% + 1.0\u00a0%\u00a0NaN/inf"


def test_what_was_counted_before_a_deletion_is_told_no_more() -> None:
    class Kept(LedgerReader):
        def scan(
            self, project: str, kind: str, *, key: str | None = None, limit: int | None = None
        ) -> list[LedgerEntry]:
            told = [counted([1.0] * rows, sampled=rows) for rows in (3, 2)]
            documents = [told[0], StatisticsDocument(0, 0, 0, ()), told[1]] if kind == "statistics" else []
            return [LedgerEntry(project, kind, "v.1", 1, asdict(each), datetime(2026, 1, 1)) for each in documents]

    found = profile_of(Kept(), "p", "v.1", runs=9)
    assert [document.rows for document in found.documents] == [3]


def test_a_run_that_appended_nothing_tells_nothing() -> None:
    older = counted([1.0, 2.0], sampled=2)
    nothing = replace(older, rows=0, columns=(replace(older.columns[0], rows=0, nulls=0),))
    found = Profile([nothing, older], {})
    assert (found.newest, found.column("fare"), found.counted) == (older, older.columns[0], (2, 1))
