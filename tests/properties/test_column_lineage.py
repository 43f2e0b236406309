"""Column lineage of SQL against DuckDB itself: what is not named as an origin can change without any effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import duckdb
import pytest
from featurestore_registry.lineage.columns import Origin, Traced, trace
from hypothesis import given
from hypothesis import strategies as st
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


def known_columns(tables: Tables) -> tuple[tuple[str, frozenset[str]], ...]:
    return tuple((name, frozenset(map(str.lower, columns))) for name, columns in tables.items())


def test_no_origin_is_missed_whatever_the_syntax(odd: Oracle) -> None:
    wrong, without = {}, []
    for sql in QUERIES:
        rows = odd.rows(sql)
        assert rows, sql
        key = next(iter(rows[0]))
        for known in (known_columns(ODD), tuple((name, frozenset()) for name in ODD)):
            if found := faults(odd, sql, trace(sql, known, tuple(rows[0])), key):
                wrong[sql] = found
        if not any(odd.changes(sql, key, output, odd.columns()) for output in rows[0]):
            without.append(sql)
    assert wrong == {}
    assert without == ["SELECT x, y FROM (VALUES (1, 2), (3, 4)) v(x, y)"], "the test would not notice"


PLAIN: Tables = {
    "t": {
        "k": ("INT", NUMBERS),
        **{name: small([10 * at + 11, 10 * at + 12, 10 * at + 13, 10 * at + 12]) for at, name in enumerate("abc")},
    },
    "u": {
        "k": ("INT", ([1, 2, 2, 5], *NUMBERS[1:])),
        **{name: small([10 * at + 51, 10 * at + 52, 10 * at + 53, 10 * at + 54]) for at, name in enumerate("ade")},
    },
}
"""No value is in two columns besides the keys: a copy is known by its values."""
Truth = frozenset[tuple[str, str]]


@dataclass
class Made:
    """A query, and of each column which columns it copies, empty where it is computed."""

    sql: str
    columns: dict[str, Truth]


@dataclass
class Writer:
    """Writes queries that run: joins, unions, windows, groups, and subqueries of all kinds."""

    random: Random
    defined: dict[str, Made] = field(default_factory=dict)

    def one_in(self, count: int) -> bool:
        return self.random.randrange(count) == 0

    def table(self, depth: int) -> Made:
        if self.defined and self.one_in(3):
            name = self.random.choice(list(self.defined))
            return Made(name, self.defined[name].columns)
        if depth and self.one_in(2):
            made = self.query(depth - 1)
            return Made(f"({made.sql})", made.columns)
        name = self.random.choice(list(PLAIN))
        return Made(name, {column: frozenset({(name, column)}) for column in PLAIN[name]})

    def expression(self, names: list[str], depth: int) -> str:
        pick = lambda: self.random.choice(names)  # noqa: E731
        kinds = [
            lambda: f"{pick()} + {pick()}",
            lambda: f"CASE WHEN {self.condition(names, depth)} THEN {pick()} ELSE {pick()} END",
            lambda: f"coalesce(nullif({pick()}, {self.random.randrange(60)}), {pick()})",
            lambda: f"sum({pick()}) OVER (PARTITION BY {pick()})",
            lambda: f"lag({pick()}) OVER (ORDER BY {pick()}, {pick()}, {names[0]})",
        ]
        if depth:
            kinds.append(lambda: self.subquery(names, depth - 1))
        return self.random.choice(kinds)()

    def condition(self, names: list[str], depth: int) -> str:
        one, other = self.random.choice(names), self.random.choice(names)
        if depth and self.one_in(4):
            inner = self.query(depth - 1)
            return f"{one} IN (SELECT {self.random.choice(list(inner.columns))} FROM ({inner.sql}))"
        if depth and self.one_in(4):
            name = self.random.choice(list(PLAIN))
            column = self.random.choice(list(PLAIN[name]))
            return f"{'NOT ' * self.one_in(2)}EXISTS (SELECT * FROM {name} AS x WHERE x.{column} % 5 = {one} % 5)"
        return f"{one} % 3 {self.random.choice(['<', '<=', '<>', '='])} {other} % 4"

    def subquery(self, names: list[str], depth: int) -> str:
        inner = self.table(depth)
        column, other = (self.random.choice(list(inner.columns)) for _ in range(2))
        return f"(SELECT max(x.{column}) FROM {inner.sql} AS x WHERE x.{other} % 3 = {self.random.choice(names)} % 3)"

    def query(self, depth: int) -> Made:
        if depth and self.one_in(4):
            name = f"c{len(self.defined)}"
            made = self.query(depth - 1)
            before = dict(self.defined)
            self.defined[name] = made
            rest = self.select(depth - 1)
            self.defined = before
            return Made(f"WITH {name} AS ({made.sql}) {rest.sql}", rest.columns)
        if depth and self.one_in(5):
            left, right = self.select(depth - 1), self.select(depth - 1)
            count = min(len(left.columns), len(right.columns))
            sides = [f"SELECT {', '.join(list(side.columns)[:count])} FROM ({side.sql})" for side in (left, right)]
            pairs = list(zip(left.columns.values(), right.columns.values(), strict=False))[:count]
            truths = [one | other if one and other else frozenset() for one, other in pairs]
            names = list(left.columns)[:count]
            return Made(f" UNION{' ALL' * self.one_in(2)} ".join(sides), dict(zip(names, truths, strict=True)))
        return self.select(depth)

    def star(self, columns: dict[str, Truth], names: list[str], depth: int) -> tuple[str, dict[str, Truth]]:
        """Return a star, perhaps of changed columns, and what it gives."""
        one, way = self.random.choice(list(columns)), self.random.randrange(4)
        if way == 0 and one != next(iter(columns)):
            return f"* EXCLUDE ({one})", {name: truth for name, truth in columns.items() if name != one}
        if way == 1:
            return f"* REPLACE ({self.expression(names, depth)} AS {one})", {**columns, one: frozenset()}
        if way == 2 and "y" not in columns:
            return f"* RENAME ({one} AS y)", {("y" if name == one else name): truth for name, truth in columns.items()}
        return "*", columns

    def select(self, depth: int) -> Made:
        first, seen = self.table(depth), {}
        begin = f"{first.sql} AS r"
        if first.sql not in PLAIN and self.one_in(5):
            count = self.random.randrange(1, len(first.columns) + 1)
            begin += f"({', '.join(f'n{at}' for at in range(count))})"
            kept = list(first.columns.items())[count:]  # behind a star nobody knows which column is the first
            first = Made(first.sql, {**{f"n{at}": frozenset() for at in range(count)}, **dict(kept)})
        sources = [("r", first)]
        if self.one_in(2):
            second = self.table(depth)
            one, other = (
                f"{alias}.{self.random.choice(list(each.columns))}" for alias, each in (("r", first), ("s", second))
            )
            kind = self.random.choice(["JOIN", "LEFT JOIN", "FULL JOIN", "SEMI JOIN", "CROSS JOIN"])
            begin += f" {kind} {second.sql} AS s" + ("" if kind == "CROSS JOIN" else f" ON {one} % 3 = {other} % 3")
            sources += [] if kind == "SEMI JOIN" else [("s", second)]
        counts = [name for _, each in sources for name in each.columns]
        for alias, each in sources:
            for name, truth in each.columns.items():
                is_bare = counts.count(name) == 1 and self.one_in(2)
                seen[name if is_bare else f"{alias}.{name}"] = truth
        names = list(seen)
        where = f" WHERE {self.condition(names, depth)}" if self.one_in(3) else ""
        if len(sources) > 1 and self.one_in(4):
            begin = f"({begin})"
        if len(sources) == 1 and self.one_in(5):
            star, columns = self.star(first.columns, names, depth)
            return Made(f"SELECT {star} FROM {begin}{where}", columns)
        if self.one_in(5):
            key, (one, other) = names[0], (self.random.choice(names) for _ in range(2))
            having = f" HAVING count({other}) > 1" if self.one_in(2) else ""
            items = f"{key} AS x0, max({one}) FILTER (WHERE {self.condition(names, 0)}) AS x1, count({other}) AS x2"
            return Made(
                f"SELECT {items} FROM {begin}{where} GROUP BY {key}{having}",
                {"x0": seen[key], "x1": frozenset(), "x2": frozenset()},
            )
        columns: dict[str, Truth] = {"x0": seen[names[0]]}
        items = [f"{names[0]} AS x0"]
        for place in range(1, self.random.randrange(2, 4)):
            if self.one_in(2):
                name = self.random.choice(names)
                items.append(f"{name} AS x{place}")
                columns[f"x{place}"] = seen[name]
            else:
                items.append(f"{self.expression(names, depth)} AS x{place}")
                columns[f"x{place}"] = frozenset()
        over = f"row_number() OVER (PARTITION BY {self.random.choice(names)} ORDER BY {', '.join(names)})"
        qualify = f" QUALIFY {over} = 1" if self.one_in(6) else ""
        order = f" ORDER BY {self.random.choice(names)}, {', '.join(names)} LIMIT 3" if self.one_in(6) else ""
        distinct = "DISTINCT " if self.one_in(8) and not order else ""
        return Made(f"SELECT {distinct}{', '.join(items)} FROM {begin}{where}{qualify}{order}", columns)


@pytest.fixture(scope="module")
def even() -> Oracle:
    return Oracle(PLAIN)


@given(seed=st.integers(0, 2**48), is_known=st.booleans())
def test_generated_queries(even: Oracle, seed: int, is_known: bool) -> None:
    made = Writer(Random(seed)).query(3)
    try:
        even.rows(made.sql)
    except duckdb.Error as error:
        pytest.fail(f"{made.sql}\n{error}")
    known = known_columns(PLAIN) if is_known else tuple((name, frozenset()) for name in PLAIN)
    traced = trace(made.sql, known, tuple(made.columns))
    assert faults(even, made.sql, traced, "x0" if "x0" in made.columns else next(iter(made.columns))) == [], made.sql
    for name, truth in made.columns.items():
        found = {(origin.source, origin.column) for origin in traced.columns[name]}
        if is_known and truth:  # a copy is told, and nothing is named in vain
            assert found == truth, made.sql
            assert {(origin.kind, origin.is_sure) for origin in traced.columns[name]} == {("copied", True)}, made.sql
        assert found >= truth
