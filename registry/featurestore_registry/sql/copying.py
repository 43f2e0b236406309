"""A registry copied whole into another database, with the hashes of its revisions and the cursors of its journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, text

from featurestore_registry.errors import RegistryError, RegistryFormatError
from featurestore_registry.records import system_clock
from featurestore_registry.sql import tables
from featurestore_registry.sql.database import Database
from featurestore_registry.sql.registry import SqlRegistry, opened
from featurestore_registry.sql.schema import ensure_schema, version_of_schema
from featurestore_registry.sql.tables import SCHEMA_VERSION

ROWS = 500
"""How many rows are written by one statement."""

_SERIAL = "pg_get_serial_sequence('{0}', 'sequence')"


def copy_registry(
    source: str, target: str, *, credentials: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
) -> dict[str, int]:
    """Copy a registry into an empty one, and return how many rows of each table there are.

    Nobody writes to either meanwhile, and a copy that is cut off leaves nothing. ``credentials`` are of both URLs.
    Raises RegistryError for a target that holds anything, and what `open_registry` raises.
    """
    from_one = opened(source, credentials[0], create=False, clock=system_clock, busy_timeout_ms=30_000)
    try:
        to_other = opened(target, credentials[1], create=True, clock=system_clock, busy_timeout_ms=30_000)
        try:
            return _copied(from_one, to_other)
        finally:
            to_other.close()
    finally:
        from_one.close()


def _copied(source: Database, target: Database) -> dict[str, int]:
    ensure_schema(target, create=True)
    with target.looking() as connection:  # before any lock: both may be the same one
        _check_empty(target, connection)
    with source.migrating() as reading, target.migrating() as writing:
        for database, connection in ((source, reading), (target, writing)):
            if connection.scalar(version_of_schema) != SCHEMA_VERSION:
                raise RegistryFormatError(f"{database.name} was upgraded just now.", hint="Run the command again.")
        _check_empty(target, writing)
        counts = {table.name: _copy_table(reading, writing, table) for table in tables.metadata.sorted_tables}
        for table in (tables.ledger, tables.journal):
            _number_after(writing, table, _last_number(reading, table))
    with SqlRegistry(source) as one, SqlRegistry(target) as other:
        for project in one.definitions.projects():
            head = other.definitions.chain(project)
            if one.definitions.chain(project).hashes[: head.number] != head.hashes:  # one may have gone on by now
                raise RegistryFormatError(
                    f"The copy of project {project!r} is not what it was made of.",
                    hint=f"Do not use {target.name}; check the registry with `fs log`.",
                )
    return counts


def _check_empty(database: Database, connection: Connection) -> None:
    for table in tables.metadata.sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            raise RegistryError(
                f"{database.name} holds a registry: {table.name} has rows. Nothing was copied.",
                hint="Name an empty database, or a file that does not exist.",
                **database.details,
            )


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    count = 0
    for rows in reading.execute(select(table)).mappings().partitions(ROWS):
        values: list[dict[str, Any]] = [{column.name: row[column] for column in table.columns} for row in rows]
        writing.execute(insert(table), values)
        count += len(values)
    return count


def _last_number(connection: Connection, table: Table) -> int:
    """Return the greatest number that was ever given, that of an entry which was forgotten since included."""
    newest: int = connection.scalar(select(func.max(table.c.sequence))) or 0
    if connection.dialect.name == "postgresql":
        name = connection.scalar(text(f"SELECT {_SERIAL.format(table.name)}"))
        given = connection.scalar(text(f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {name}"))
    elif table is tables.journal:  # of the ledger the newest entry is never forgotten
        given = connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = :name"), {"name": table.name})
    else:
        given = newest
    return max(newest, given or 0)


def _number_after(connection: Connection, table: Table, last: int) -> None:
    """Let the numbers of new entries begin after ``last``."""
    if connection.dialect.name == "postgresql":
        set_last = text(f"SELECT setval({_SERIAL.format(table.name)}, :last, :is_called)")
        connection.execute(set_last, {"last": max(last, 1), "is_called": last > 0})
    elif table is tables.journal and last:
        named = {"name": table.name, "last": last}
        done = connection.execute(text("UPDATE sqlite_sequence SET seq = :last WHERE name = :name"), named)
        if not done.rowcount:
            connection.execute(text("INSERT INTO sqlite_sequence VALUES (:name, :last)"), named)
