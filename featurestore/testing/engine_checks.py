"""What every engine must say of rows and rules: counts against plain loops over the same rows.

See `featurestore.testing.engine_project` for the fixture that the suite takes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal as PythonDecimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import Between, FeatureView, Field, Matches, NotNull, OneOf, Share, Unique
from featurestore.definitions.expectations import FieldRule
from featurestore.engine.checks import CheckedRows, RowRule
from featurestore.errors import SourceSchemaError
from featurestore.testing.engine_project import EngineProject, EngineSuite, log_view, write_log
from featurestore.training.reference import ReferenceRow
from featurestore.types import Bool, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp, ValueType

NOON = datetime(2024, 2, 28, 12, tzinfo=UTC)
NAN = math.nan
COLUMNS: dict[str, tuple[ValueType, list[Any], list[FieldRule]]] = {
    "small": (Int32, [1, None, -5, 7, 7, 0], [Between(0, 6), Between(None, 0), OneOf([1, 7]), NotNull(), Unique()]),
    "large": (Int64, [2**62 + 1, 2**62, None, -(2**62), 3, 3], [Between(2**62), Between(-(2**62), 3), Unique()]),
    "wide": (Float64, [NAN, math.inf, -0.0, None, 0.1, -1.5], [Between(0.0), Between(None, 0.1), NotNull(0.5)]),
    "narrow": (Float32, [0.5, NAN, 3.0, None, -0.25, 0.5], [Between(-0.25, 0.5), Unique()]),
    "flag": (Bool, [True, None, False, True, True, True], [OneOf([True]), NotNull()]),
    "word": (String, ["é", "ab", None, "abc", "a\nb", ""], [Matches("[a-z]+"), Matches("ab|abc"), OneOf(["", "é"])]),
    "at": (Timestamp, [NOON, None, NOON.replace(year=1969), NOON, NOON, NOON], [Between(NOON, None), Unique()]),
    "day": (Date, [date(1, 1, 1), date(9999, 12, 31), None, NOON.date(), NOON.date(), None], [Between(NOON.date())]),
    "price": (Decimal(20, 4), [PythonDecimal("0.0001"), None, *map(PythonDecimal, (5, 6, 7, 8))], [Between(1, 7)]),
}


def fails(rule: FieldRule, value: Any) -> bool:
    """Tell whether one value fails a rule, in plain words of Python."""
    if isinstance(rule, NotNull):
        return value is None
    if value is None:
        return False
    if isinstance(rule, Between):
        is_nan = isinstance(value, float) and math.isnan(value)
        is_low = rule.least is not None and not value >= rule.least
        return is_nan or is_low or (rule.greatest is not None and not value <= rule.greatest)
    if isinstance(rule, OneOf):
        return value not in rule.values
    assert isinstance(rule, Matches)
    return re.fullmatch(rule.pattern, value, re.DOTALL) is None


def check(
    project: EngineProject, view: FeatureView, rows: Any, rules: Sequence[tuple[str | None, RowRule]]
) -> CheckedRows:
    """Check rows of a view."""
    return project.engine.checks.check(f"feature view {view.name!r}", view.stored_types, rows, rules)


class EngineChecksConformance(EngineSuite):
    """The suite."""

    @pytest.mark.parametrize("form", ["files", "table"])
    def test_rows_that_fail_are_counted_as_plain_loops_do(self, project: EngineProject, form: str) -> None:
        kinds = {name: kind for name, (kind, _, _) in COLUMNS.items()}
        view = log_view("checked", {"k": Int64}, kinds, None)
        expecting = [Field(name, kind, expect=rules) for name, (kind, _, rules) in COLUMNS.items()]
        view = view.replaced(fields=tuple(expecting))
        log = [
            ReferenceRow((row,), 1_000 + row, None, row, {name: held[row] for name, (_, held, _) in COLUMNS.items()})
            for row in range(6)
        ]
        parts = [write_log(project.root / f"{n}.parquet", view, part) for n, part in enumerate((log[:2], log[2:]))]
        rows: Any = [str(path) for path in parts]
        if form == "table":
            rows = pa.concat_tables(pa.parquet.read_table(path) for path in parts)
        rules = [(name, rule) for name, rule in view.rules if isinstance(rule, FieldRule)]
        found = check(project, view, rows, [*rules, (None, Share("small > 0", at_most=0.5))])
        assert (found.rows, found.greatest_event_us) == (6, 1_005)
        for (name, rule), failures in zip(rules, found.failures, strict=False):
            held = COLUMNS[name or ""][1]
            if isinstance(rule, Unique):
                counts = Counter(value for value in held if value is not None)
                assert failures.rows == sum(counts.values()) - len(counts), (name, rule)
                continue
            failing = [value for value in held if fails(rule, value)]
            assert failures.rows == len(failing), (name, rule)
            if failing and not isinstance(rule, NotNull) and not any(value != value for value in failing):
                assert (failures.least, failures.greatest) == (min(failing), max(failing)), (name, rule)
        assert found.failures[-1].rows == 3

    def test_rows_have_one_fingerprint_in_any_order_and_files(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": Float64}, None)

        def print_of(name: str, *parts: list[tuple[int, float | None]]) -> str:
            files, number = [], 0
            for place, part in enumerate(parts):
                rows = [ReferenceRow((k,), 5, None, number + n, {"v": v}) for n, (k, v) in enumerate(part)]
                number += len(part)
                files.append(str(write_log(project.root / f"{name}{place}.parquet", view, rows)))
            return project.engine.checks.fingerprint(view, files)

        whole = print_of("a", [(1, 0.5), (2, None), (2, None)])
        assert whole == print_of("b", [(2, None)], [(2, None), (1, 0.5)])
        others: list[list[tuple[int, float | None]]] = [
            [(1, 0.5), (2, None)],
            [(1, 0.5)],
            [(1, None), (2, 0.5), (2, None)],
            [(1, 0.5), (3, None), (3, None)],
        ]
        assert len({whole, *(print_of(f"o{n}", other) for n, other in enumerate(others))}) == 5

    def test_a_field_that_files_lack_is_null(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": Int64}, None)
        path = write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, None, 0, {"v": 1})])
        grown = view.replaced(fields=(*view.stored, Field("late", String, expect=[NotNull(), Matches("x")])))
        rules = [(name, rule) for name, rule in grown.rules if isinstance(rule, FieldRule)]
        found = check(project, grown, [str(path)], rules)
        assert [failures.rows for failures in found.failures] == [1, 0]

    @pytest.mark.parametrize("rule", [Share("nobody > 0", at_most=0.1), Share("v = 'x' || 1", at_most=0.1)])
    def test_a_condition_that_does_not_work_is_named(self, project: EngineProject, rule: Share) -> None:
        view = log_view("checked", {"k": Int64}, {"v": Int64}, None)
        path = write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, None, 0, {"v": 1})])
        if "nobody" not in rule.where:
            (found,) = check(project, view, [str(path)], [(None, rule)]).failures
            assert (found.rows, found.broken) == (0, 1)
            return
        with pytest.raises(SourceSchemaError, match="feature view 'checked' cannot be checked"):
            check(project, view, [str(path)], [(None, rule)])

    def test_rows_of_which_a_condition_cannot_be_computed_are_counted_apart(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": String}, None)
        held = ["1", "5", None, "b", "", "7"]
        rows = [ReferenceRow((n,), 5, None, n, {"v": value}) for n, value in enumerate(held)]
        path = str(write_log(project.root / "a.parquet", view, rows))
        one, other = Share("CAST(v AS INTEGER) > 3", at_most=0.5), Share("v IS NULL", at_least=0.1)
        found = check(project, view, [path], [(None, one), (None, other), (None, one)]).failures
        assert [(each.rows, each.broken) for each in found] == [(2, 2), (1, 0), (2, 2)]

    @pytest.mark.parametrize("where", ["v", "v || 'x'", "n", "k + 1"])
    def test_what_is_no_condition_is_refused_and_no_value_is_told(self, project: EngineProject, where: str) -> None:
        view = log_view("checked", {"k": Int64}, {"v": String, "n": Int64}, None)
        path = str(
            write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, None, 0, {"v": "817", "n": 817})])
        )
        with pytest.raises(SourceSchemaError, match="a condition is true or false") as error:
            check(project, view, [path], [(None, Share(where, at_most=0.1))])
        assert "817" not in str(error.value)
        with pytest.raises(SourceSchemaError, match="a condition is true or false"):
            project.engine.checks.check_rules(view.replaced(expect=(Share(where, at_most=0.1),)))

    def test_a_condition_that_can_be_computed_of_no_row_is_refused_beforehand(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": String}, None)
        with pytest.raises(SourceSchemaError, match="cannot be computed of any row"):
            project.engine.checks.check_rules(view.replaced(expect=(Share("regexp_matches(v, '(')", at_most=0),)))
        project.engine.checks.check_rules(view.replaced(expect=(Share("CAST(v AS INTEGER) > 3", at_most=0),)))

    def test_conditions_read_the_times_by_the_names_of_the_source(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": Int64}, None)
        rows = [ReferenceRow((n,), 10 * n, None, n, {"v": n}) for n in range(4)]
        path = str(write_log(project.root / "a.parquet", view, rows))
        rules = [(None, Share(f"epoch_us({name}) >= 20", at_most=0)) for name in ("event_ts", "happened_at")]
        name = f"feature view {view.name!r}"
        found = project.engine.checks.check(name, view.stored_types, [path], rules, times={"happened_at": "event_ts"})
        assert [each.rows for each in found.failures] == [2, 2]

    @pytest.mark.parametrize("pattern", [r"\Qa.b", "(a", "a\\"])
    def test_a_pattern_that_runs_and_pushes_would_not_take_alike_is_refused(
        self, project: EngineProject, pattern: str
    ) -> None:
        view = log_view("checked", {"k": Int64}, {"v": String}, None)
        with pytest.raises(SourceSchemaError, match="cannot be checked: the pattern"):
            project.engine.checks.check_rules(view.replaced(fields=(Field("v", String, expect=[Matches(pattern)]),)))

    def test_a_pattern_that_is_none_is_named(self, project: EngineProject) -> None:
        view = log_view("checked", {"k": Int64}, {"v": String}, None)
        path = write_log(project.root / "a.parquet", view, [ReferenceRow((1,), 5, None, 0, {"v": "1"})])
        with pytest.raises(SourceSchemaError, match="cannot be checked"):
            check(project, view, [str(path)], [("v", Matches("(a"))])
        with pytest.raises(SourceSchemaError, match="cannot be checked"):  # without any rows, too
            project.engine.checks.check_rules(view.replaced(fields=(Field("v", String, expect=[Matches("(a")]),)))
