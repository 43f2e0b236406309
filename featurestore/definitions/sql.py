"""The SQL that users write: parsed and checked, never translated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from featurestore.errors import DefinitionError, did_you_mean

if TYPE_CHECKING:
    from sqlglot import exp

_CHANGING = re.compile(
    "rand|random|setseed|uuid|gen_random_uuid|uuidv4|uuidv7|now|get_current_timestamp|transaction_timestamp|"
    "current_(timestamp|timestamp_l_t_z|datetime|date|time|localtime|localtimestamp)|today|get_current_time|"
    "localtime|localtimestamp|ago|current_(connection_id|query|query_id|transaction_id|setting)|txid_current|"
    "currval|nextval|setval|getvariable"
)
"""DuckDB's functions, and sqlglot's names for them, whose result changes from call to call."""
_LACKING = re.compile(r"Required keyword: '\w+' missing for <class '[^']*'>")
"""What sqlglot says of an operator or a function with too few operands."""


def check_view_sql(sql: str, sources: Sequence[str]) -> None:
    """Check that ``sql`` is one SELECT that reads each of ``sources`` by name, and nothing else.

    Raises DefinitionError with the parser's own position, or naming the table that is not a source.
    """
    tables = read_tables(sql)
    for table in tables:
        if table not in sources:
            raise DefinitionError(
                f"The SQL reads table {table!r}, which is not among the view's sources.",
                hint=did_you_mean(table, sources),
            )
    unread = [name for name in sources if name not in tables]
    if unread:
        raise DefinitionError(
            f"The SQL does not read source {unread[0]!r}.", hint="Read it, or take it out of source=."
        )


def read_tables(sql: str) -> list[str]:
    """Return the names of the tables that one SELECT reads, sorted.

    Raises DefinitionError for ill-formed SQL, for several statements, for anything that is not a SELECT, and
    for tables that are files, functions or have a schema before their name.
    """
    from sqlglot import exp

    statement = parse(sql)
    defined = {cte.alias_or_name for cte in statement.find_all(exp.CTE)}
    tables = set()
    for table in statement.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) or table.args.get("db"):
            raise DefinitionError(
                f"The SQL reads {table.sql(dialect='duckdb')!r}; it can only read the view's sources, by name."
            )
        if table.name not in defined:
            tables.add(table.name)
    return sorted(tables)


def names_columns_by_values(sql: str) -> bool:
    """Tell whether a SELECT has a PIVOT."""
    from sqlglot import exp

    return any(not pivot.args.get("unpivot") for pivot in parse(sql).find_all(exp.Pivot))


@lru_cache(maxsize=256)
def parse(sql: str) -> exp.Query:
    """Return one SELECT as a tree, which callers must not change. Raises DefinitionError for anything else."""
    import sqlglot
    from sqlglot import exp

    try:
        statements = [found for found in sqlglot.parse(sql, dialect="duckdb") if found is not None]
    except sqlglot.errors.SqlglotError as error:
        text = _LACKING.sub("something is missing", str(error)).replace("\033[4m", "").replace("\033[0m", "")
        raise DefinitionError(f"The SQL cannot be parsed: {text}") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise DefinitionError("The SQL must be one SELECT statement.", hint="Take out everything else.")
    return statements[0]


@lru_cache(maxsize=256)
def depends_on_order(sql: str) -> bool:
    """Tell whether the values of a SELECT may depend on the order in which its rows are read.

    Sums of floats do in their last bits, ``first`` and ``LIMIT`` entirely. A function that the parser does not know
    may be such an aggregate.
    """
    from sqlglot import exp

    kinds = (exp.AggFunc, exp.Window, exp.Group, exp.Distinct, exp.Limit, exp.Fetch, exp.Offset, exp.Pivot)
    return any(
        isinstance(node, (*kinds, exp.Anonymous)) or (isinstance(node, exp.Join) and bool(node.args.get("method")))
        for node in parse(sql).walk()
    )


def stands_in(sql: str, column: str) -> bool:
    """Tell whether a SELECT gives a value for a column where it is null."""
    from sqlglot import exp

    return any(
        found.name.lower() == column.lower()
        for choice in parse(sql).find_all(exp.Coalesce, exp.Case, exp.If)
        for found in choice.find_all(exp.Column)
    )


def changing_call(sql: str) -> str | None:
    """Return a call in a SELECT whose result changes from call to call, None when there is none."""
    from sqlglot import exp

    statement = parse(sql)
    if statement.find(exp.TableSample) is not None:
        return "a sample"
    for function in statement.find_all(exp.Func):
        name = function.name if isinstance(function, exp.Anonymous) else function.sql_name()
        # age(t) is the time from t to today; age(t, u) depends on nothing else.
        if _CHANGING.fullmatch(name.lower()) or (name.lower() == "age" and len(function.expressions) == 1):
            written = re.search(rf"\b({_CHANGING.pattern})(?=\s*\()", sql, re.IGNORECASE)  # sqlglot has other names
            return f"{(written[0] if written else name).lower()}()"
    return None
