"""Conditions on one row, users' SQL: what is wrong with them, told without a value of the rows."""

from __future__ import annotations

import duckdb

from featurestore.definitions.condition import columns_of
from featurestore.engine.duck.session import quote, reason_of
from featurestore.engine.duck.windowed import condition_sql


def problem_of(connection: duckdb.DuckDBPyConnection, condition: str) -> str:
    """Return what is wrong with a condition on ``events``, nothing for a sound one.

    The first of them is all nulls, the others, if any, are rows of the source.
    """
    try:
        (kind,) = connection.sql(f"SELECT ({condition}\n) FROM events").types
        if kind != "BOOLEAN":
            return f"is {kind}, and a condition is true or false"
    except duckdb.Error as error:
        return f"does not run: {reason_of(error)}"
    try:  # beside the columns, as it is used: what makes one value of many rows, or many of one, does not run so
        connection.sql(f"SELECT *, {condition_sql(condition)} FROM events").fetchall()
    except duckdb.Error as error:
        return f"cannot be computed of one event alone: {_told(connection, condition, error)}"
    nulls = " AND ".join(f"{quote(name)} IS NULL" for name in columns_of(condition))
    computed = f"TRY(coalesce(({condition}\n), false)) IS NOT NULL"
    tried = connection.sql(f"SELECT DISTINCT NOT ({nulls}), {computed} FROM events").fetchall()
    try:
        if not max(tried)[1]:  # of no row with values, or of nulls where there is none
            connection.sql(f"SELECT ({condition}\n) FROM events").fetchall()
    except duckdb.Error as error:
        return f"cannot be computed of any row: {_told(connection, condition, error)}"
    return ""


def kind_of(error: duckdb.Error) -> str:
    """Return what an error is about, without what it quotes of the rows: it might be anybody's."""
    return reason_of(error).partition(":")[0]


def _told(connection: duckdb.DuckDBPyConnection, condition: str, error: duckdb.Error) -> str:
    """Return an error whole where nulls raise it, too: then it is about the condition, not about values."""
    try:
        connection.sql(f"SELECT ({condition}\n) FROM (SELECT * FROM events LIMIT 0)").fetchall()
        connection.sql(f"SELECT ({condition}\n) FROM events WHERE rowid = 0").fetchall()
    except duckdb.Error as same:
        return reason_of(same)
    return f"{kind_of(error)}, of a value of the source"
