"""Which columns of its sources each column of a SELECT comes from, as far as the text shows. Nothing is run.

Nobody knows here which columns a source has. So a name that may belong to two tables belongs to both, and what cannot
be told comes from all columns of what is read: too many are named rather than too few.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from featurestore_registry.lineage.origins import ALL, Has, Origins, Source

MOST_SQL = 100_000
"""Characters. What is longer is not read."""
Kind = Literal["copied", "influences"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A column of a source that a column of a query comes from."""

    source: str
    column: str
    """As the SQL writes it; ``*`` for any."""
    kind: Kind
    is_sure: bool
    """Whether the text shows that the name is a column of this source."""


@dataclass(frozen=True, slots=True)
class Traced:
    """Where the columns of one query come from."""

    columns: Mapping[str, tuple[Origin, ...]]
    """By the names that were asked for."""
    rows: tuple[Origin, ...]
    """What decides which rows there are: conditions, joins, groups, limits."""


@lru_cache(maxsize=4096)
def trace(sql: str, sources: tuple[tuple[str, frozenset[str]], ...], wanted: tuple[str, ...]) -> Traced:
    """Return where the ``wanted`` columns of a SELECT come from; ``sources`` are each with the columns known of it.

    Known columns are in lower case. The columns of SQL that cannot be read come from all columns.
    """
    import sqlglot
    from sqlglot import exp

    from featurestore_registry.lineage.queries import Tables, relation_of

    tables = Tables({name.lower(): Source(name.lower(), known) for name, known in sources}, {}, sql.lower())
    anything = Origins({(name, ALL): True for name in tables.sources})
    spelled: dict[str, str] = {}
    try:
        tree = sqlglot.parse_one(sql if len(sql) <= MOST_SQL else "", dialect="duckdb")
        for identifier in tree.find_all(exp.Identifier):
            spelled.setdefault(identifier.name.lower(), identifier.name)
        relation = relation_of(tree, tables, None, is_whole=True)
        found = {name: relation.find(name.lower()) for name in wanted}
        rows = relation.rows
    except (sqlglot.errors.SqlglotError, RecursionError, AttributeError, TypeError, ValueError, LookupError):
        # Also a tree of a form that no version of the parser made so far: to name all columns is never wrong.
        found, rows = dict.fromkeys(wanted, (anything, Has.MAYBE)), anything
    names = {name.lower(): name for name, _ in sources}

    def listed(origins: Origins, name: str = "") -> tuple[Origin, ...]:
        kind: Kind = "copied" if origins.is_copy else "influences"
        made = (
            Origin(names[source], spelled.get(column, name if column == name.lower() else column), kind, is_sure)
            for (source, column), is_sure in origins.found.items()
        )
        return tuple(sorted(made, key=lambda origin: (origin.source, origin.column)))

    columns = {name: anything if has is Has.NO else origins for name, (origins, has) in found.items()}
    return Traced({name: listed(origins, name) for name, origins in columns.items()}, listed(rows.influencing()))
