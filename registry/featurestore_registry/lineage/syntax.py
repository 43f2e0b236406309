"""What the trees of sqlglot say of an expression, as DuckDB reads it."""

from __future__ import annotations

from sqlglot import exp

_MAKING_ROWS = ("generate_subscripts", "regexp_split_to_table")
"""DuckDB's macros with an ``unnest`` in them."""


def places(clause: exp.Expr) -> list[int]:
    """Return the places that ORDER BY and GROUP BY name by number, from 0."""
    found = [node for node in clause.find_all(exp.Literal) if not node.is_string]
    direct = (exp.Order, exp.Ordered, exp.Group, exp.Paren, exp.Tuple, exp.GroupingSets, exp.Cube, exp.Rollup)
    return [int(node.name) - 1 for node in found if node.name.isdecimal() and isinstance(node.parent, direct)]


def is_starred(node: exp.Expr | None) -> bool:
    """Tell whether an expression is ``t.*``."""
    return isinstance(node, exp.Column) and isinstance(node.this, exp.Star)


def holds_tables(node: exp.Expr) -> bool:
    """Tell whether parentheses stand around tables, such as ``(t JOIN u ON …)``, not around a query."""
    inner = node.this if isinstance(node, exp.Subquery) else None
    return isinstance(inner, exp.Table) or (
        isinstance(inner, exp.Subquery) and bool(inner.args.get("joins") or inner.args.get("alias"))
    )


def parts_of(column: exp.Expr) -> list[str]:
    """Return the parts of a name with dots, in lower case."""
    parts = [column.args.get(part) for part in ("catalog", "db", "table", "this")]
    return [part.name.lower() for part in parts if part is not None]


def dotted(node: exp.Expr) -> list[str]:
    """Return the name in front of a call such as ``a.b.upper()``: the parser makes no column of it."""
    if not isinstance(node, exp.Dot) or not isinstance(node.this, exp.Identifier):
        return []
    dot: exp.Expr | None = node
    names = [node.this.name.lower()]
    while isinstance(dot, exp.Dot) and isinstance(dot.expression, exp.Identifier):
        names.append(dot.expression.name.lower())
        dot = dot.parent
    return names


def bound(node: exp.Expr) -> list[str]:
    """Return the names that a lambda or a list comprehension gives its elements."""
    if isinstance(node, exp.Comprehension):
        return [node.expression.name.lower()]
    return [name.name.lower() for name in node.expressions] if isinstance(node, exp.Lambda) else []


def taken_for_bound(node: exp.Expr) -> list[str]:
    """Return the columns that the parser took for names of a lambda: ``->`` also reads JSON."""
    names = bound(node)
    if isinstance(node, exp.Comprehension):
        return names  # [x FOR x IN x]
    used = {each.name.lower() for each in node.this.find_all(exp.Identifier)} if names else set()
    return [] if used & {*names} else names


def name_of(item: exp.Expr) -> str | None:
    """Return the name of an output, None where the text does not show it."""
    if isinstance(item, exp.Alias):
        return item.alias.lower()
    while isinstance(item, exp.Paren):
        item = item.this
    return item.name.lower() if isinstance(item, exp.Column) and not is_starred(item) else None


def is_by_all(clause: exp.Expr) -> bool:
    """Tell whether a clause is ORDER BY ALL or ORDER BY *."""
    return any(
        isinstance(each.unalias(), exp.Ordered) and isinstance(each.this, exp.Var | exp.Star | exp.Columns)
        for each in clause.expressions
    )


def aggregates(item: exp.Expr) -> bool:
    """Tell whether an expression has an aggregate outside of its subqueries."""
    walked = item.walk(prune=lambda node: isinstance(node, exp.Query))
    return any(isinstance(node, exp.AggFunc) for node in walked)


def makes_rows(item: exp.Expr) -> bool:
    """Tell whether an expression makes several rows of one."""
    made = item.find_all(exp.Explode, exp.Unnest, exp.Anonymous)
    return any(not isinstance(node, exp.Anonymous) or node.name.lower() in _MAKING_ROWS for node in made)


def is_wild(item: exp.Expr) -> bool:
    """Tell whether an output may be several columns whose names the text does not show."""
    return item.find(exp.Columns) is not None or isinstance(item.unalias(), exp.Explode | exp.Unnest)


def star_in(item: exp.Expr) -> exp.Expr | None:
    """Return the star, or the column ``t.*``, that an output is, perhaps with a pattern for names."""
    while isinstance(item, exp.Binary | exp.Not | exp.Paren):
        item = item.this
    return item if isinstance(item, exp.Star) or is_starred(item) else None
