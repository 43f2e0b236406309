"""What really depends on what: DuckDB runs a query again where columns of its sources hold other values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb

Values = Sequence[Sequence[Any]]
"""What a column holds at first, and then what it holds where it is changed; equally many versions of each."""
Tables = Mapping[str, Mapping[str, tuple[str, Values]]]
"""By table and column: its type and values."""
Rows = list[dict[str, str]]


class Oracle:
    """Tables of which any columns can be changed at once."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.versions = len(next(iter(next(iter(tables.values())).values()))[1])
        self._found: dict[tuple[str, frozenset[tuple[str, str]], int], Rows] = {}
        self._views: dict[str, str] = {}
        self._connection = duckdb.connect()
        self._connection.execute("SET threads = 1")
        for name, columns in tables.items():
            made = [
                (f'"{column} {version}"', kind, each)
                for column, (kind, values) in columns.items()
                for version, each in enumerate(values)
            ]
            self._connection.execute(f"CREATE TABLE {name}_all ({', '.join(f'{c} {kind}' for c, kind, _ in made)})")
            rows = list(zip(*(each for _, _, each in made), strict=True))
            row = f"({', '.join('?' for _ in made)})"
            self._connection.execute(f"INSERT INTO {name}_all VALUES {', '.join([row] * len(rows))}", sum(rows, ()))

    def rows(self, sql: str, changed: Iterable[tuple[str, str]] = (), version: int = 0) -> Rows:
        """Return the rows of a query, values as text; raises duckdb.Error for what does not run."""
        wanted = frozenset(changed) if version else frozenset()
        if (sql, wanted, version) not in self._found:
            self._found[sql, wanted, version] = self._run(sql, wanted, version)
        return self._found[sql, wanted, version]

    def _run(self, sql: str, wanted: frozenset[tuple[str, str]], version: int) -> Rows:
        for name, columns in self.tables.items():
            chosen = [f'"{each} {version if (name, each.lower()) in wanted else 0}" AS "{each}"' for each in columns]
            view = f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT {', '.join(chosen)} FROM {name}_all"
            if self._views.get(name) != view:
                self._connection.execute(view)
                self._views[name] = view
        cursor = self._connection.execute(f"SELECT * FROM ({sql}\n)")
        names = [column[0].lower() for column in cursor.description]
        return [dict(zip(names, map(repr, row), strict=True)) for row in cursor.fetchall()]

    def columns(self) -> set[tuple[str, str]]:
        """Return every (table, column)."""
        return {(name, column.lower()) for name, columns in self.tables.items() for column in columns}

    def changes(self, sql: str, key: str, output: str, changed: Iterable[tuple[str, str]]) -> int:
        """Return how many versions of some columns give an output other values, each beside the key."""
        wanted, before, found = list(changed), _pairs(self.rows(sql), key, output), 0
        for version in range(1, self.versions):
            try:
                found += _pairs(self.rows(sql, wanted, version), key, output) != before
            except duckdb.Error:
                continue  # values that the query cannot compute with tell nothing
        return found

    def values(self, table: str, column: str) -> set[str]:
        """Return the values of a column, as `rows` has them; none of a column that the table does not have."""
        known = (table, column) in self.columns()
        return {row[column] for row in self.rows(f'SELECT "{column}" FROM {table}')} if known else set()


def _pairs(rows: Rows, key: str, output: str) -> Counter[tuple[str | None, str | None]]:
    return Counter((row.get(key), row.get(output)) for row in rows)
