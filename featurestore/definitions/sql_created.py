"""Whether the created times of a view's SQL show that a late source row changed earlier rows.

A row made from many rows is known only since the last of them was known. Its created time has to say so, by being the
greatest of theirs. Otherwise a late row changes values silently, also in training sets of the past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import cast

from sqlglot import exp

from featurestore.definitions.sql import parse


@lru_cache(maxsize=256)
def created_follows(sql: str, created: str, sources: tuple[tuple[str, str], ...]) -> bool:
    """Tell whether the created time of each output row is the greatest of the rows that it was made from.

    ``sources`` names the tables that declare a created column, each with that column. True only where the text shows
    it: the column unchanged, ``max(created)`` over the rows of every aggregate and window, ``greatest`` of such, one
    for each table of a join that has a created time, a group by the created time itself, each of them cast to a
    timestamp or with another column where it is null. Any other expression, such as a cast to a day or a difference,
    may make it earlier. False also where a late row can remove other rows or let them in.
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
    """Columns that the outer query compares with 1: it takes the first of ranked rows."""

    def within(self, query: exp.Expr) -> _Known:
        """Add what a query defines."""
        found = query.args.get("with_") or query.args.get("with")
        ctes = {} if found is None else {cte.alias.lower(): cte.this for cte in found.expressions}
        return replace(self, queries={**self.queries, **ctes})

    def without(self, name: str) -> _Known:
        """Take a name out, so that a recursive query ends."""
        return replace(self, queries={other: query for other, query in self.queries.items() if other != name})


def _follows(query: exp.Expr, created: str, known: _Known) -> bool:
    known = known.within(query)
    if isinstance(query, exp.Subquery | exp.Paren):
        return _follows(query.this, created, known)
    if isinstance(query, exp.Except | exp.Intersect):
        return False
    if isinstance(query, exp.SetOperation):
        return _follows(query.left, created, known) and _follows(query.right, created, known)
    if not isinstance(query, exp.Select) or _is_opaque(query):
        return False
    found = [output.unalias() for output in query.expressions if output.alias_or_name.lower() == created]
    made = found[0] if found else _starred(query, created)
    if made is None or not _is_greatest(made):
        return False
    speaking = _speaking(query, made, _bare(made), known.first_of)
    if speaking is None:
        return False
    tables, inside = _tables(query), replace(known, first_of=_compared_with_one(query))
    said = {
        (_owner(column, tables, known), column.name.lower())
        for part in speaking
        for column in part.find_all(exp.Column)
    }
    return all(_says(table, said, inside) for table in tables)


def _owner(column: exp.Column, tables: list[exp.Expr], known: _Known) -> str:
    """Return the name of the table that a column belongs to; empty where the text does not show it."""
    if column.table or len(tables) == 1:
        return (column.table or tables[0].alias_or_name).lower()
    owners = [table for table in tables if known.sources.get(table.name.lower()) == column.name.lower()]
    return owners[0].alias_or_name.lower() if len(owners) == 1 else ""


def _starred(query: exp.Select, created: str) -> exp.Expr | None:
    """Return the column that a star selects as the created time; None where several tables may have it."""
    stars = [output for output in query.expressions if output.is_star]
    table = stars[0].args.get("table") if stars and isinstance(stars[0], exp.Column) else None
    star = stars[0].this if table else stars[0] if stars else None
    if len(stars) != 1 or not isinstance(star, exp.Star) or star.args.get("ilike"):
        return None
    for replacing in star.args.get("replace") or ():
        if replacing.alias.lower() == created:
            return cast("exp.Expr", replacing.unalias())
    is_named = any(found.name.lower() == created for found in star.find_all(exp.Identifier))  # left out, or renamed
    return None if is_named else exp.column(created, table=table)


def _is_greatest(made: exp.Expr) -> bool:
    """Tell whether an expression is a column, the greatest of one, or the greatest of several such."""
    if isinstance(made, exp.Window | exp.Paren) or _is_timestamp_cast(made):
        return _is_greatest(made.this)
    if isinstance(made, exp.Max):
        return isinstance(_bare(made.this), exp.Column) and _is_greatest(made.this) and not made.expressions
    if isinstance(made, exp.Greatest | exp.Coalesce):
        return all(_is_greatest(each) for each in (made.this, *made.expressions))
    return isinstance(made, exp.Column)


def _bare(made: exp.Expr) -> exp.Expr:
    """Return an expression without casts to timestamps, and without what stands in for nulls."""

    def strip(node: exp.Expr) -> exp.Expr:
        while isinstance(node, exp.Coalesce) or _is_timestamp_cast(node):
            node = node.this
        return node

    return made.transform(strip)


def _is_timestamp_cast(made: exp.Expr) -> bool:
    """Tell whether an expression is a cast that keeps microseconds, and fails where it cannot."""
    kinds = ("TIMESTAMP", "TIMESTAMPNTZ", "TIMESTAMPTZ", "TIMESTAMP_NS")  # the second is DuckDB's TIMESTAMP
    return type(made) is exp.Cast and made.to.this.name in kinds


def _says(table: exp.Expr, said: set[tuple[str, str]], known: _Known) -> bool:
    """Tell whether a table of a SELECT is covered by the created time, or has no created time."""
    columns = {name for alias, name in said if alias == table.alias_or_name.lower()}
    if not isinstance(table, exp.Table):
        return any(_follows(table, column, known) for column in columns)
    name = table.name.lower()
    if name in known.queries:
        return any(_follows(known.queries[name], column, known.without(name)) for column in columns)
    return name not in known.sources or known.sources[name] in columns


def _speaking(query: exp.Select, made: exp.Expr, bare: exp.Expr, first_of: frozenset[str]) -> list[exp.Expr] | None:
    """Return the parts of an output's created time that cover the rows which a SELECT makes its rows from.

    None where it leaves some of those rows uncovered. ``bare`` is what `_bare` leaves of ``made``.
    """
    windows = [
        found
        for output in query.expressions
        if not (_ranks(output.unalias()) and output.alias.lower() in first_of)
        for found in output.find_all(exp.Window)
    ]
    for condition in _all_of(query.args.get("qualify")):
        if not _takes_first(condition):
            windows += condition.find_all(exp.Window)
    spoken = [found for found in bare.find_all(exp.Window) if isinstance(found.this, exp.Max)]
    if others := [found for found in windows if found not in spoken]:
        holding = [one for one in spoken if all(_holds(one, other) for other in others)]
        return [one.this for one in holding] or None
    aggregates = [one for output in query.expressions for one in output.find_all(exp.AggFunc) if not _in_window(one)]
    if (query.args.get("group") is None and not aggregates) or _is_group_key(query, made):
        return [bare]
    return [found for found in bare.find_all(exp.Max) if not _in_window(found)] or None


def _in_window(aggregate: exp.Expr) -> bool:
    return aggregate.find_ancestor(exp.Window) is not None


def _holds(one: exp.Window, other: exp.Window) -> bool:
    """Tell whether a window holds all rows that a function over another one looks at."""

    def same(*parts: str) -> bool:
        return all(_text(one.args.get(part)) == _text(other.args.get(part)) for part in parts)

    if not same("partition_by", "alias"):
        return False
    if not one.alias and one.args.get("order") is None and one.args.get("spec") is None:
        return True  # the whole partition
    function = other.this.this if isinstance(other.this, exp.Filter | exp.IgnoreNulls) else other.this
    if isinstance(function, exp.RowNumber | exp.Rank | exp.DenseRank) or (
        isinstance(function, exp.Lag) and "-" not in _text(function.args.get("offset"))
    ):
        # These functions look at all rows before, in any frame; the other window does too if it has no frame.
        return not one.alias and one.args.get("spec") is None and same("order", "spec")
    looks_elsewhere = isinstance(function, exp.Lead | exp.Lag | exp.Ntile | exp.CumeDist | exp.PercentRank)
    return isinstance(function, exp.AggFunc) and not looks_elsewhere and same("order", "spec")


def _text(part: object) -> str:
    return ", ".join(map(_text, part)) if isinstance(part, list) else str(part or "")


def _is_group_key(query: exp.Select, made: exp.Expr) -> bool:
    """Tell whether rows are grouped by an expression: all rows of a group then became known at once."""
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
    return isinstance(output, exp.Window) and isinstance(output.this, exp.RowNumber)


def _takes_first(condition: exp.Expr) -> bool:
    """Tell whether a condition takes the first of ranked rows: that row has a created time of its own."""
    return isinstance(condition, exp.EQ) and _ranks(condition.this) and condition.expression.sql() == "1"


def _compared_with_one(query: exp.Select) -> frozenset[str]:
    return frozenset(
        found.this.name.lower()
        for found in _all_of(query.args.get("where"))
        if isinstance(found, exp.EQ) and isinstance(found.this, exp.Column) and found.expression.sql() == "1"
    )


def _all_of(clause: exp.Expr | None) -> list[exp.Expr]:
    """Return the conditions of a WHERE, HAVING or QUALIFY that all have to be true."""
    if clause is None:
        return []
    condition = clause.this.unnest()
    return [found.unnest() for found in condition.flatten()] if isinstance(condition, exp.And) else [condition]


def _tables(query: exp.Select) -> list[exp.Expr]:
    """Return what a SELECT reads: tables and queries."""
    begin = query.args.get("from_") or query.args.get("from")
    joins = [join.this for join in query.args.get("joins") or []]
    return joins if begin is None else [begin.this, *joins]


def _is_opaque(query: exp.Select) -> bool:
    """Tell whether a SELECT reads rows that its created time cannot cover."""
    parts = [*query.expressions, *(query.args.get(name) for name in ("where", "having", "qualify"))]
    nested = any(part is not None and part.find(exp.Query) is not None for part in parts)
    return nested or _may_lose(query) or any(table.find(exp.Pivot) is not None for table in _tables(query))


def _may_lose(query: exp.Select) -> bool:
    """Tell whether another row may take a group or a row out of a SELECT's output, or let it in."""
    is_cut = any(query.args.get(name) is not None for name in ("limit", "offset"))
    return is_cut or not all(
        isinstance(condition, exp.GT | exp.GTE) and isinstance(condition.this, exp.Count)
        for condition in _all_of(query.args.get("having"))
    )
