"""The journal in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Row, delete, insert, select
from typing_extensions import override

from featurestore_registry.interface import Journal
from featurestore_registry.records import Document, JournalEntry, canonical_json, check_storable
from featurestore_registry.sql.database import EPOCH, Database, load_json, utc_datetime
from featurestore_registry.sql.schema import version_of_schema
from featurestore_registry.sql.tables import EARLIER_VERSIONS, journal

_columns = journal.c
_new_entry = insert(journal)


class SqlJournal(Journal):
    """See `Journal`. Cursors are the sequence: a project's writers wait for each other, so they are given in order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @override
    def exists(self) -> bool:
        with self._database.reading() as connection:
            return connection.scalar(version_of_schema) not in EARLIER_VERSIONS

    @override
    def append(self, project: str, kind: str, entries: Sequence[tuple[str, Document]]) -> list[int]:
        rows = [{"project": project, "kind": kind, "key": key, "document": canonical_json(of)} for key, of in entries]
        check_storable(*(text for row in rows for text in row.values()))
        if not rows:
            return []
        self._database.bring_up()
        with self._database.writing(project) as connection:
            now_us = self._database.now_us(connection)
            # One by one: of many rows at once not every database returns the numbers in their order.
            done = [connection.execute(_new_entry, {**row, "written_at_us": now_us}) for row in rows]
            return [int(one.inserted_primary_key[0]) for one in done if one.inserted_primary_key is not None]

    @override
    def scan(
        self,
        project: str,
        kind: str,
        *,
        key: str | None = None,
        after: int = 0,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 1_000,
    ) -> list[JournalEntry]:
        within = [*_of(project, kind, key), _columns.sequence > after]
        if since is not None:
            within.append(_columns.written_at_us >= _instant(since))
        if until is not None:
            within.append(_columns.written_at_us < _instant(until))
        return self._found(within, _columns.sequence.asc(), limit)

    @override
    def newest(self, project: str, kind: str, *, key: str | None = None, limit: int = 50) -> list[JournalEntry]:
        return self._found(_of(project, kind, key), _columns.sequence.desc(), limit)

    @override
    def forget(self, project: str, kind: str, before: datetime) -> int:
        old = delete(journal).where(*_of(project, kind, None), _columns.written_at_us < _instant(before))
        self._database.bring_up()
        with self._database.writing(project) as connection:
            return connection.execute(old).rowcount

    def _found(
        self, within: Sequence[ColumnElement[bool]], order: ColumnElement[int], limit: int
    ) -> list[JournalEntry]:
        if limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")
        with self._database.reading() as connection:
            if connection.scalar(version_of_schema) in EARLIER_VERSIONS:
                return []  # it has no journal
            return [
                _entry(row) for row in connection.execute(select(journal).where(*within).order_by(order).limit(limit))
            ]


def _of(project: str, kind: str, key: str | None) -> list[ColumnElement[bool]]:
    check_storable(project, kind, key or "")
    within = [_columns.project == project, _columns.kind == kind]
    return within if key is None else [*within, _columns.key == key]


def _instant(at: datetime) -> int:
    if at.tzinfo is None:
        raise ValueError(f"{at} has no time zone")
    return (at - EPOCH) // timedelta(microseconds=1)


def _entry(row: Row[tuple[object, ...]]) -> JournalEntry:
    return JournalEntry(
        project=row.project,
        kind=row.kind,
        key=row.key,
        cursor=row.sequence,
        document=load_json(row.document),
        written_at=utc_datetime(row.written_at_us),
    )
