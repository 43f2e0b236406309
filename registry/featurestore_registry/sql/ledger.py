"""The ledger in SQL: versions of keys, of which the newest are kept."""

from __future__ import annotations

from sqlalchemy import Row, and_, delete, insert, select, update
from typing_extensions import override

from featurestore_registry.errors import LedgerConflictError
from featurestore_registry.interface import Ledger
from featurestore_registry.records import Clock, Document, LedgerEntry, canonical_json
from featurestore_registry.sql import tables
from featurestore_registry.sql.database import Database, load_json, utc_datetime

KEPT_VERSIONS = 1_000
"""How many of the newest versions of each key are kept."""


class SqlLedger(Ledger):
    """See `Ledger`."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @override
    def append(self, project: str, kind: str, key: str, document: Document, *, if_version: int | None = None) -> int:
        text = canonical_json(document)
        heads, entries = tables.ledger_key, tables.ledger
        this_key = {"project": project, "kind": kind, "key": key}
        with self._database.writing() as connection:
            is_head = and_(*(heads.c[name] == value for name, value in this_key.items()))
            newest = connection.scalar(select(heads.c.version).where(is_head)) or 0
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
                connection.execute(insert(heads).values(**this_key, version=version))
            else:
                connection.execute(update(heads).where(is_head).values(version=version))
            connection.execute(
                insert(entries).values(**this_key, version=version, written_at_us=self._clock(), document=text)
            )
            if version > KEPT_VERSIONS:
                is_entry = and_(*(entries.c[name] == value for name, value in this_key.items()))
                connection.execute(delete(entries).where(is_entry, entries.c.version <= version - KEPT_VERSIONS))
        return version

    @override
    def scan(self, project: str, kind: str, *, key: str | None = None, limit: int | None = None) -> list[LedgerEntry]:
        if limit is not None and limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")
        heads, entries = tables.ledger_key, tables.ledger
        query = select(entries).limit(limit)
        if key is not None:
            query = query.where(entries.c.project == project, entries.c.kind == kind, entries.c.key == key).order_by(
                entries.c.version.desc()
            )
        else:
            same = (heads.c[name] == entries.c[name] for name in ("project", "kind", "key", "version"))
            query = (
                query.select_from(heads.join(entries, and_(*same)))
                .where(heads.c.project == project, heads.c.kind == kind)
                .order_by(entries.c.sequence.desc())
            )
        with self._database.reading() as connection:
            return [_entry(row) for row in connection.execute(query)]


def _entry(row: Row[tuple[object, ...]]) -> LedgerEntry:
    return LedgerEntry(
        project=row.project,
        kind=row.kind,
        key=row.key,
        version=row.version,
        document=load_json(row.document),
        written_at=utc_datetime(row.written_at_us),
    )
