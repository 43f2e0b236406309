"""Column lineage of SQL against DuckDB itself: what is not named as an origin can change without any effect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from featurestore_registry.lineage.columns import Origin, Traced, trace
from support.lineage_oracle import Oracle, Tables

pytestmark = pytest.mark.uncounted

QUERIES = (Path(__file__).parents[1] / "data" / "lineage.sql").read_text().strip().removesuffix(";").split(";\n")
NUMBERS = ([1, 2, 3, 4], [2, 2, 4, 1], [-5, 9, 3, 0])


def small(first: Sequence[int]) -> tuple[str, Sequence[Sequence[int]]]:
    return "INT", (first, first[1:] + first[:1], [first[0], first[0] + 1, first[0], first[2] * 3])


ODD: Tables = {
    "t": {
        "k": ("INT", NUMBERS),
        "a": small([10, 20, 30, 20]),
        "b": small([3, 1, 2, 5]),
        "c": small([7, 7, 8, 9]),
        "l": ("INT[]", ([[1, 2], [3], [4, 5], [6]], [[1], [], [2, 3, 4], [9]], [[7, 7], [7], None, [1]])),
        "s": ("STRUCT(x INT, y INT)", [[{"x": i, "y": i + by} for i in range(4)] for by in (1, 5, 7)]),
        "j": ("VARCHAR", (['{"a":1}', '{"a":[1,2]}', "5", '{"b":3}'], ["[]"] * 4, ['{"a":[1]}', "7", "8", None])),
        "ts": (
            "TIMESTAMP",
            (
                ["2020-01-05 03:00", "2020-02-03 01:00", "2020-03-03 09:00", "2021-03-03 00:00"],
                ["2022-07-07 11:11"] * 4,
                ["2021-01-05 03:00", "2020-01-03 01:00", "2020-01-13 09:00", None],
            ),
        ),
        "unit": ("VARCHAR", (["day", "month", "year", "day"], ["month"] * 4, ["hour", "year", "day", "day"])),
        "day": ("VARCHAR", (["year"] * 4, ["month"] * 4, ["hour", "year", "day", "day"])),
        "t": small([70, 71, 72, 73]),
    },
    "u": {
        "k": ("INT", ([1, 2, 2, 5], *NUMBERS[1:])),
        "a": small([100, 200, 300, 400]),
        "d": small([11, 12, 13, 14]),
        "e": small([5, 4, 3, 2]),
        "Odd.Name": small([1, 2, 3, 4]),
    },
}
"""Columns of one name in both tables, of the table's own name, with a dot, and named as a unit of time."""


def origins_of(origins: Sequence[Origin], oracle: Oracle) -> set[tuple[str, str]]:
    named = {(origin.source, origin.column.lower()) for origin in origins}
    return {(table, column) for table, column in oracle.columns() if {(table, column), (table, "*")} & named}


def faults(oracle: Oracle, sql: str, traced: Traced, key: str) -> list[str]:
    """Return what is wrong with the lineage of a query whose column ``key`` tells its rows apart."""
    rows, found = oracle.rows(sql), []
    always = origins_of([*traced.rows, *traced.columns[key]], oracle)
    for output, origins in traced.columns.items():
        other = oracle.columns() - always - origins_of(origins, oracle)
        if oracle.changes(sql, key, output, other):
            found += [f"{output} <- {'.'.join(each)}" for each in other if oracle.changes(sql, key, output, [each])]
        if origins and all(origin.kind == "copied" for origin in origins):
            values = {value for each in origins for value in oracle.values(each.source, each.column.lower())}
            found += [f"{output} is no copy" for row in rows if row[output] not in {*values, "None"}][:1]
    return found


@pytest.fixture(scope="module")
def odd() -> Oracle:
    return Oracle(ODD)


@pytest.mark.parametrize("is_known", [False, True])
def test_no_origin_is_missed_whatever_the_syntax(odd: Oracle, is_known: bool) -> None:
    known = tuple(
        (name, frozenset(map(str.lower, columns)) if is_known else frozenset()) for name, columns in ODD.items()
    )
    wrong, without = {}, []
    for sql in QUERIES:
        rows = odd.rows(sql)
        assert rows, sql
        key = next(iter(rows[0]))
        if found := faults(odd, sql, trace(sql, known, tuple(rows[0])), key):
            wrong[sql] = found
        if not any(odd.changes(sql, key, output, odd.columns()) for output in rows[0]):
            without.append(sql)
    assert wrong == {}
    assert without == ["SELECT x, y FROM (VALUES (1, 2), (3, 4)) v(x, y)"], "the test would not notice"
