"""Whether a view's SQL tells when a late source row changes rows that were there before.

A row that is made of many is known as it is only since the last of them was. Its created time has to say so: be the
greatest of theirs. Where it is not, a late row changes values without a word, in training sets of the past as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from featurestore.definitions.sql import parse

if TYPE_CHECKING:
    from sqlglot import exp


@lru_cache(maxsize=256)
def created_follows(sql: str, created: str, sources: tuple[tuple[str, str], ...]) -> bool:
    """Tell whether the created time of each output row is the greatest of the rows that it was made of.

    ``sources`` names the tables that declare a created column, each with that column. True only where the text shows
    it: ``max(created)`` over the same rows as every aggregate and window, ``greatest`` of the created times of a join,
    a group by the created time itself, or nothing of the kind at all.
    """
    known = _Known({name.lower(): column.lower() for name, column in sources}, {}, frozenset())
    return _follows(parse(sql), created.lower(), known)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the names in a query stand for; all in lower case."""

    sources: Mapping[str, str]
    """Created column by source that has one."""
    queries: Mapping[str, exp.Expr]
    """Common table expressions."""
    first_of: frozenset[str]
    """Columns that the query around this one compares with 1: of ranked rows it takes the first."""

    def within(self, query: exp.Expr) -> _Known:
        """Add what a query defines."""
        found = query.args.get("with_") or query.args.get("with")
        ctes = {} if found is None else {cte.alias.lower(): cte.this for cte in found.expressions}
        return replace(self, queries={**self.queries, **ctes})

    def without(self, name: str) -> _Known:
        """Take a name out, so that a recursive query ends."""
        return replace(self, queries={other: query for other, query in self.queries.items() if other != name})


def _follows(query: exp.Expr, created: str, known: _Known) -> bool:
    from sqlglot import exp

    known = known.within(query)
    if isinstance(query, exp.Subquery | exp.Paren):
        return _follows(query.this, created, known)
    if isinstance(query, exp.SetOperation):
        return _follows(query.left, created, known) and _follows(query.right, created, known)
    if not isinstance(query, exp.Select) or _is_opaque(query):
        return False
    found = [output.unalias() for output in query.expressions if output.alias_or_name.lower() == created]
    made: exp.Expr = found[0] if found else exp.column(created)  # a star brings it as it is
    if not _covers_rows(query, made, known.first_of):
        return False
    said = {(column.table.lower(), column.name.lower()) for column in made.find_all(exp.Column)}
    inside = replace(known, first_of=_compared_with_one(query))
    return all(_says(table, said, inside) for table in _tables(query))


def _says(table: exp.Expr, said: set[tuple[str, str]], known: _Known) -> bool:
    """Tell whether one of the tables of a SELECT has its say in the created time, or nothing to say."""
    from sqlglot import exp

    columns = {name for alias, name in said if alias in (table.alias_or_name.lower(), "")}
    if not isinstance(table, exp.Table):
        return any(_follows(table, column, known) for column in columns)
    name = table.name.lower()
    if name in known.queries:
        return any(_follows(known.queries[name], column, known.without(name)) for column in columns)
    return name not in known.sources or known.sources[name] in columns


def _covers_rows(query: exp.Select, made: exp.Expr, first_of: frozenset[str]) -> bool:
    """Tell whether an output's created time covers the rows that one SELECT makes its rows of."""
    from sqlglot import exp

    aggregates = [one for output in query.expressions for one in output.find_all(exp.AggFunc) if not _in_window(one)]
    if query.args.get("group") is not None or aggregates:
        greatest = [found for found in made.find_all(exp.Max) if not _in_window(found)]
        is_greatest = any(not isinstance(found.parent, exp.Filter) for found in greatest)
        if not is_greatest and not _is_group_key(query, made):
            return False
    windows = [
        found
        for output in query.expressions
        if not (_ranks(output.unalias()) and output.alias.lower() in first_of)
        for found in output.find_all(exp.Window)
    ]
    qualify = query.args.get("qualify")
    if qualify is not None and not _takes_first(qualify.this):
        windows += qualify.find_all(exp.Window)
    spoken = [found for found in made.find_all(exp.Window) if isinstance(found.this, exp.Max)]
    return all(any(_holds(one, other) for one in spoken) for other in windows)


def _in_window(aggregate: exp.Expr) -> bool:
    from sqlglot import exp

    return aggregate.find_ancestor(exp.Window) is not None


def _holds(one: exp.Window, other: exp.Window) -> bool:
    """Tell whether a window holds all rows that another one does."""
    from sqlglot import exp

    def same(*parts: str) -> bool:
        return all(_text(one.args.get(part)) == _text(other.args.get(part)) for part in parts)

    is_whole = not one.alias and one.args.get("order") is None and one.args.get("spec") is None
    looks_ahead = other.find(exp.Lead, exp.LastValue) is not None
    return same("partition_by", "alias") and (is_whole or (same("order", "spec") and not looks_ahead))


def _text(part: object) -> str:
    return ", ".join(map(_text, part)) if isinstance(part, list) else str(part or "")


def _is_group_key(query: exp.Select, made: exp.Expr) -> bool:
    """Tell whether rows are grouped by an expression: those of one group are then all known at once."""
    from sqlglot import exp

    group = query.args.get("group")
    if group is None or made.find(exp.AggFunc, exp.Window) is not None:
        return False
    names = {made.sql().lower(), made.name.lower()}
    for place, output in enumerate(query.expressions, start=1):
        if output.unalias() is made:
            names |= {str(place), output.alias_or_name.lower()}
    keys = {key.name.lower() if isinstance(key, exp.Column) else key.sql().lower() for key in group.expressions}
    return bool(group.args.get("all")) or bool(names & keys)


def _ranks(output: exp.Expr) -> bool:
    from sqlglot import exp

    return isinstance(output, exp.Window) and isinstance(output.this, exp.RowNumber)


def _takes_first(condition: exp.Expr) -> bool:
    """Tell whether a condition takes the first of ranked rows: what it takes has a created time of its own."""
    from sqlglot import exp

    return isinstance(condition, exp.EQ) and _ranks(condition.this) and condition.expression.sql() == "1"


def _compared_with_one(query: exp.Select) -> frozenset[str]:
    from sqlglot import exp

    where = query.args.get("where")
    return frozenset(
        found.this.name.lower()
        for found in (where.find_all(exp.EQ) if where is not None else ())
        if isinstance(found.this, exp.Column) and found.expression.sql() == "1"
    )


def _tables(query: exp.Select) -> list[exp.Expr]:
    """Return what a SELECT reads: tables and queries."""
    begin = query.args.get("from_") or query.args.get("from")
    joins = [join.this for join in query.args.get("joins") or []]
    return joins if begin is None else [begin.this, *joins]


def _is_opaque(query: exp.Select) -> bool:
    """Tell whether a SELECT reads rows of which its created time cannot say anything."""
    from sqlglot import exp

    parts = [*query.expressions, *(query.args.get(name) for name in ("where", "having", "qualify"))]
    nested = any(part is not None and part.find(exp.Query) is not None for part in parts)
    return nested or any(table.find(exp.Pivot) is not None for table in _tables(query))
