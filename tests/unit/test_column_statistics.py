"""Totals that pass in batches, and how many different values a sample tells of, beside plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal as PythonDecimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.engine.profiles import ColumnTotals
from featurestore.statistics.columns import Column, of_view, statistics_of
from featurestore.statistics.counting import count
from featurestore.statistics.totals import Totals
from featurestore.types import Decimal, Float64, Int32, Int64, String, ValueType
from featurestore.types.arrow import arrow_type

FAR = 9_223_372_036_854_770_000


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Int64, [FAR + row % 7 + 1_000 * (row > 30) for row in range(70)]),
        (Int64, [-(2**63), 2**63 - 1, 0, 5] * 9),
        (Int32, [-5, 5, 5]),
        (Decimal(15, 6), [PythonDecimal(700_000_000) + PythonDecimal(row % 3).scaleb(-6) for row in range(60)]),
        (Decimal(38, 0), [PythonDecimal(10**38 - 1 - row % 5) for row in range(60)]),
        (Decimal(38, 38), [PythonDecimal(f"{'-' * (row % 2)}0.{'9' * 38}") for row in range(9)]),
        (Float64, [1e9 + row % 5 / 1024 for row in range(70)]),
        (Float64, [-1.7e308, 1.7e308, 0.25] * 9),
        (Float64, [1e300, 1.0, -1e300]),
        (Float64, [-0.0, -0.0]),
    ],
)
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_have_the_totals_of_all_rows(kind: ValueType, values: Sequence[Any], batch: int) -> None:
    totals = Totals(kind)
    for begin in range(0, len(values), batch):
        totals.see(pa.array([None, *values[begin : begin + batch]], arrow_type(kind)))
    found = totals.found(None)
    exact = [Fraction(value) for value in values]
    mean = sum(exact) / len(exact)
    spread = max(abs(value - mean) for value in exact) or 1
    squares = sum(((value - mean) / spread) ** 2 for value in exact) / len(exact)
    assert (found.minimum, found.maximum) == (min(values), max(values))
    assert found.nulls == -(-len(values) // batch)
    assert found.mean is not None
    assert math.isclose(found.mean, mean, rel_tol=1e-15, abs_tol=1e-15 * float(spread))
    assert found.deviation == pytest.approx(math.sqrt(squares) * float(spread), rel=1e-12, abs=0)


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda row, chance: row, 0.001),
        (lambda row, chance: row // 2, 0.05),
        (lambda row, chance: row if chance() < 0.5 else -1, 0.02),
        (lambda row, chance: row if chance() < 0.001 else -1, 0.05),  # the sample has a few of the rare ones
        (lambda row, chance: int(chance() ** 3 * 9_000), 0.05),
        (lambda row, chance: row % 40, 0.0),
    ],
    ids=["each its own", "pairs", "half", "rare", "skewed", "few"],
)
def test_different_values_are_told_within_a_few_percent(
    made: Callable[[int, Callable[[], float]], int], error: float
) -> None:
    chance = random.Random(4)
    values = [made(row, chance.random) for row in range(200_000)]
    chance.shuffle(values)
    true, sample = len(set(values)), values[:20_000]
    counted = count(Int64, pa.array(sample))
    for within in (None, (len(set(sample)), min(4 * true, len(values)))):  # as footers bound it
        totals = ColumnTotals(0, distinct=round(true * 1.04), distinct_within=within)  # as the engine counts
        found = statistics_of(Column("x", Int64), len(values), counted, totals).distinct
        assert found == pytest.approx(true, rel=max(error, 1e-9))


def test_of_keys_and_ids_of_events_and_personal_fields_nothing_shows() -> None:
    told = {"a": "yes", "b": "true", "c": "", "d": "false", "e": "False"}
    view = FeatureView(
        "orders",
        entities=[Entity("customer", join_keys={"customer_id": Int64})],
        source=ParquetSource("shop", path="shop.parquet", timestamp_field="at"),
        schema=[Field("id", Int64), *(Field(name, Int64, tags={"personal": value}) for name, value in told.items())],
        event_id="id",
        aggregations=[Aggregation(name, "sum", windows=[timedelta(days=1)]) for name in told],
    )
    hidden = {column.name for column in of_view(view) if column.is_hidden}
    assert hidden == {"customer_id", "id", "a", "b", "c"}


@pytest.mark.parametrize(("different", "is_shown"), [(100, True), (101, False)])
def test_texts_show_up_to_a_hundred_different_ones(different: int, is_shown: bool) -> None:
    counted = count(String, pa.array([f"{row:03}" for row in range(different)]))
    totals = ColumnTotals(0, distinct=different, minimum="000", maximum=f"{different - 1:03}")
    found = statistics_of(Column("x", String), different, counted, totals)
    assert (found.minimum == "000", len(found.top) == 10, found.top == ()) == (is_shown, is_shown, not is_shown)
    asked = statistics_of(Column("x", String, shows_all=True), different, counted, totals)
    assert (asked.minimum, len(asked.top)) == ("000", 10)
