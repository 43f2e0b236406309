"""Rules as they are written: fitted to their field, the same in every process, refused where they make no sense."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from featurestore import Between, Entity, FeatureView, Field, Fresh, NotNull, OneOf, ParquetSource, Rows, Share
from featurestore.engine.checks import CheckedRows, Failures, unmet_by_rows
from featurestore.errors import DefinitionError
from featurestore.registered.records import from_records, to_record
from featurestore.types import Date, Float32, Float64, Int64, String, Timestamp

NOON = datetime(2024, 2, 28, 12, tzinfo=UTC)


def of(kind: Any, *rules: Any) -> Field:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return Field("x", kind, expect=rules)


@pytest.mark.parametrize(
    ("kind", "given", "fitted"),
    [
        (Float32, Between(0.1, 0.3), Between(float(np.float32(0.1)), float(np.float32(0.3)))),
        (Float64, Between(0, 5), Between(0.0, 5.0)),
        (Int64, Between(np.int64(3), 5.0), Between(3, 5)),
        (Timestamp, Between(NOON.replace(tzinfo=None)), Between(NOON)),
        (Int64, OneOf([np.int64(3), 4.0]), OneOf([3, 4])),
    ],
)
def test_rules_have_values_of_their_fields_type(kind: Any, given: Any, fitted: Any) -> None:
    field = of(kind, given)
    assert field.expect == (fitted,)
    assert repr(field.expect[0]) == repr(fitted)
    driver, source = Entity("driver", {"driver_id": Int64}), ParquetSource("rides", "rides", "at")
    view = FeatureView("ratings", entities=[driver], source=source, schema=[field])
    records = [to_record("taxi", each) for each in (driver, source)] + [to_record("taxi", view, generation=1)]
    again = from_records(records)["feature_view", "ratings"]
    assert isinstance(again, FeatureView)
    assert again.stored[0].expect == (fitted,)  # as the registry holds it
    assert to_record("taxi", again, generation=1).fingerprint == records[-1].fingerprint


@pytest.mark.parametrize("ends", [(0, math.inf), (-math.inf, math.inf), (math.nan, 1), (-math.inf, None)])
@pytest.mark.parametrize("kind", [Float32, Float64])
def test_bounds_are_finite(kind: Any, ends: tuple[Any, Any]) -> None:
    with pytest.raises(DefinitionError, match="None, or leaving it out, leaves an end open"):
        of(kind, Between(*ends))


def test_a_set_of_values_is_one_rule_in_every_process() -> None:
    code = "from featurestore import OneOf; print(OneOf({'Bonn', 'Ulm', 'Kiel', 'Jena', 'Hof', 'Trier'}))"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(told) == 1
    assert OneOf({3, 1, 2}) == OneOf([1, 2, 3])
    assert OneOf(frozenset({"b", "a"})).values == ("a", "b")
    assert OneOf(["b", "a"]).values == ("b", "a")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: OneOf(5), "OneOf: must be a list of values, not 5"),  # type: ignore[arg-type]
        (lambda: OneOf(b"ab"), "must be a list of values"),
        (lambda: OneOf({"a": 1}), "must be a list of values"),
        (lambda: Rows(change_at_most="x"), "Rows: change_at_most: "),  # type: ignore[arg-type]
        (lambda: Rows(change_at_most="0.5"), "Rows: change_at_most: "),  # type: ignore[arg-type]
        (lambda: Rows(change_at_most=True), "Rows: change_at_most: "),
        (lambda: Rows(at_least=True), "Rows: at_least: "),
        (lambda: of(Date, Between("2024")), "expect: "),
    ],
)
def test_what_is_no_value_of_a_rule_is_refused(make: Any, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        make()
    assert Rows(change_at_most=2).change_at_most == 2.0


def test_shares_are_compared_as_they_are_written() -> None:
    """Every share of two digits of every number of rows up to a thousand: equal is not more."""
    for percent in range(101):
        share = float(f"0.{percent:02}") if percent < 100 else 1.0
        for rows in range(100, 1_001, 100):
            failed = percent * rows // 100
            found = CheckedRows(rows, None, (Failures(failed), Failures(failed), Failures(failed)))
            rules = [(None, Share("x", at_most=share)), (None, Share("x", at_least=share)), ("x", NotNull(share))]
            assert not list(unmet_by_rows(rules, found, ())), (share, rows)


def test_a_duration_is_told_as_people_write_it() -> None:
    told = {"seconds": 10_800, "minutes": 90, "days": 2, "hours": 25, "milliseconds": 1_500}
    assert [str(Fresh(within=timedelta(**{unit: count}))) for unit, count in told.items()] == [
        "Fresh(within=3 h)",
        "Fresh(within=1 h 30 min)",
        "Fresh(within=2 days)",
        "Fresh(within=1 day 1 h)",
        "Fresh(within=00:00:01.500000)",
    ]


def test_long_lists_are_told_short_and_stay_apart() -> None:
    one, other = OneOf(range(1_000)), OneOf([*range(999), 5_000])
    assert str(one) == str(other) == "OneOf([0, 1, 2, 3, 4, 5, 6, 7, ...]: 1,000 values)"
    assert one != other
    assert len({one, other}) == 2
    assert str(OneOf(range(8))) == "OneOf([0, 1, 2, 3, 4, 5, 6, 7])"
    assert of(String, OneOf(["a"])).expect == (OneOf(["a"]),)
