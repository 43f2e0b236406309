"""The SQL that users write: parsed and checked, never translated."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.errors import DefinitionError, did_you_mean


def check_view_sql(sql: str, sources: Sequence[str]) -> None:
    """Check that ``sql`` is one SELECT that reads each of ``sources`` by name, and nothing else.

    Raises DefinitionError with the parser's own position, or naming the table that is no source.
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
    import sqlglot
    from sqlglot import exp

    try:
        statements = [found for found in sqlglot.parse(sql, dialect="duckdb") if found is not None]
    except sqlglot.errors.SqlglotError as error:
        text = str(error).replace("\033[4m", "").replace("\033[0m", "")
        raise DefinitionError(f"The SQL cannot be parsed: {text}") from None
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise DefinitionError("The SQL must be one SELECT statement.", hint="Take out everything else.")
    statement = statements[0]
    defined = {cte.alias_or_name for cte in statement.find_all(exp.CTE)}
    tables = set()
    for table in statement.find_all(exp.Table):
        if not isinstance(table.this, exp.Identifier) or table.args.get("db"):
            raise DefinitionError(
                f"The SQL reads {table.sql(dialect='duckdb')!r}; only the view's sources can be, by name."
            )
        if table.name not in defined:
            tables.add(table.name)
    return sorted(tables)
