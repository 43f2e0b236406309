"""The conditions of aggregations: parsed and checked, never translated."""

from __future__ import annotations

import re
from functools import lru_cache

from featurestore.definitions.sql import changing_call, parse
from featurestore.errors import DefinitionError

_HEAD = "SELECT 1 FROM events WHERE ("


@lru_cache(maxsize=256)
def columns_of(condition: str) -> tuple[str, ...]:
    """Return the columns that a condition on one row reads, each once, in their order.

    Raises ValueError for what is not one condition, or needs more than the row.
    """
    from sqlglot import exp

    sql = f"{_HEAD}{condition}\n)"
    try:
        statement = parse(sql)
    except DefinitionError as error:
        raise ValueError(f"where: {condition!r} cannot be parsed: {_fault(condition, error.message)}") from None
    found = statement.args.get("where")
    is_one = isinstance(statement, exp.Select) and {key for key, value in statement.args.items() if value} <= {
        "expressions",
        "from",
        "from_",
        "where",
        "kind",
    }
    if not is_one or found is None or not isinstance(found.this, exp.Paren):
        raise ValueError(f'where: must be one condition on an event, such as "amount < 0", not {condition!r}')
    tree = found.this
    for kinds, what in (
        ((exp.Query, exp.Subquery), "a query in it"),
        ((exp.AggFunc, exp.Window), "an aggregate"),
        ((exp.Star,), "*"),
        ((exp.Placeholder, exp.Parameter), "a parameter"),
        ((exp.Lambda,), "a lambda"),
    ):
        if tree.find(*kinds) is not None:
            raise ValueError(f"where: {condition!r} has {what}: it must be a condition on the columns of one event")
    if called := changing_call(sql):
        raise ValueError(
            f"where: {condition!r} calls {called}, whose result changes from call to call: training and serving would "
            "differ. Test a column instead, such as id % 100 < 10 for a share of the events"
        )
    columns = list(tree.find_all(exp.Column))
    if qualified := next((column for column in columns if column.table), None):
        raise ValueError(f"where: write {qualified.name!r} instead of {qualified.sql(dialect='duckdb')!r}")
    if not columns:
        raise ValueError(f"where: {condition!r} reads no column of the event")
    names: dict[str, str] = {}
    for column in columns:
        names.setdefault(column.name.lower(), column.name)
    return tuple(names.values())


def _fault(condition: str, told: str) -> str:
    """Return where a condition cannot be parsed, by the place that the parser told of the SQL around it."""
    found = re.search(r"Line (\d+), Col: (\d+)", told)
    if found is None:
        return "a quote or a comment in it does not end"
    lines = condition.split("\n")
    line, column = int(found[1]), int(found[2]) - (len(_HEAD) if found[1] == "1" else 0)
    if line > len(lines):
        return "something is missing at its end, or too much"
    read = "\n".join([*lines[: line - 1], lines[line - 1][:column]])
    return f"it makes no sense beyond {read!r}"
