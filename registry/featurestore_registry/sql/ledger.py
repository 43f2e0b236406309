"""The ledger in SQL: versions of keys, of which the newest are kept."""

from __future__ import annotations

from sqlalchemy import Row, and_, bindparam, delete, insert, select, update
from typing_extensions import override

from featurestore_registry.errors import LedgerConflictError
from featurestore_registry.interface import Ledger
from featurestore_registry.records import Document, LedgerEntry, canonical_json, check_storable
from featurestore_registry.sql import tables
from featurestore_registry.sql.database import Database, load_json, utc_datetime

KEPT_VERSIONS = 1_000
"""How many of the newest versions of each key are kept."""

_NO_LIMIT = 2**63 - 1

# Statements that every command runs many times: to build one takes longer than to run it.
_of_key = (
    select(tables.ledger)
    .where(*(tables.ledger.c[name] == bindparam(name) for name in ("project", "kind", "key")))
    .order_by(tables.ledger.c.version.desc())
    .limit(bindparam("most"))
)
_of_kind = (
    select(tables.ledger)
    .select_from(
        tables.ledger_key.join(
            tables.ledger,
            and_(
                *(tables.ledger_key.c[name] == tables.ledger.c[name] for name in ("project", "kind", "key", "version"))
            ),
        )
    )
    .where(*(tables.ledger_key.c[name] == bindparam(name) for name in ("project", "kind")))
    .order_by(tables.ledger.c.sequence.desc())
    .limit(bindparam("most"))
)
_newest_version = select(tables.ledger_key.c.version).where(
    *(tables.ledger_key.c[name] == bindparam(name) for name in ("project", "kind", "key"))
)
_first_version = insert(tables.ledger_key)
# In an UPDATE, parameters may not have the names of columns.
_next_version = (
    update(tables.ledger_key)
    .where(*(tables.ledger_key.c[name] == bindparam(f"of_{name}") for name in ("project", "kind", "key")))
    .values(version=bindparam("next"))
)
_entry_of_version = insert(tables.ledger)


class SqlLedger(Ledger):
    """See `Ledger`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    def append(self, project: str, kind: str, key: str, document: Document, *, if_version: int | None = None) -> int:
        text = canonical_json(document)
        check_storable(project, kind, key, text)
        this_key = {"project": project, "kind": kind, "key": key}
        with self._database.writing(project) as connection:
            newest = connection.scalar(_newest_version, this_key) or 0
            if if_version is not None and newest != if_version:
                raise LedgerConflictError(
                    f"{kind} {key!r} of project {project!r} is at version {newest}, not at {if_version}: "
                    "another writer came first.",
                    hint="Read its newest entry and try again.",
                    **this_key,
                    newest=newest,
                    expected=if_version,
                )
            version = newest + 1
            if newest == 0:
                connection.execute(_first_version, {**this_key, "version": version})
            else:
                of_key = {f"of_{name}": value for name, value in this_key.items()}
                connection.execute(_next_version, {**of_key, "next": version})
            connection.execute(
                _entry_of_version,
                {**this_key, "version": version, "written_at_us": self._database.now_us(connection), "document": text},
            )
            if version > KEPT_VERSIONS:
                entries = tables.ledger
                is_entry = and_(*(entries.c[name] == value for name, value in this_key.items()))
                connection.execute(delete(entries).where(is_entry, entries.c.version <= version - KEPT_VERSIONS))
        return version

    @override
    def scan(self, project: str, kind: str, *, key: str | None = None, limit: int | None = None) -> list[LedgerEntry]:
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")
        check_storable(project, kind, key or "")
        asked = {"project": project, "kind": kind, "most": _NO_LIMIT if limit is None else limit}
        with self._database.reading() as connection:
            if key is None:
                return [_entry(row) for row in connection.execute(_of_kind, asked)]
            return [_entry(row) for row in connection.execute(_of_key, {**asked, "key": key})]


def _entry(row: Row[tuple[object, ...]]) -> LedgerEntry:
    return LedgerEntry(
        project=row.project,
        kind=row.kind,
        key=row.key,
        version=row.version,
        document=load_json(row.document),
        written_at=utc_datetime(row.written_at_us),
    )
