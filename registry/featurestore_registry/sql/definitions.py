"""Definitions in SQL: versions of records, each valid for a span of revisions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, RowMapping, Select, and_, bindparam, insert, select, update
from typing_extensions import override

from featurestore_registry.errors import RecordNotFoundError, RevisionConflictError
from featurestore_registry.interface import Definitions
from featurestore_registry.records import (
    Chain,
    Change,
    Record,
    Revision,
    RevisionInfo,
    canonical_json,
    check_changes,
    check_storable,
    record_from,
    revision_hash,
)
from featurestore_registry.sql import tables
from featurestore_registry.sql.database import Database, load_json, utc_datetime

_TEXTS = frozenset({"document", "fields", "depends_on", "tags"})
"""Parts of a record that are kept as JSON texts."""


# Statements that every command runs many times: to build one takes longer than to run it.
_head = select(tables.project.c.revision).where(tables.project.c.project == bindparam("project"))
_later_revisions = (
    select(tables.revision)
    .where(tables.revision.c.project == bindparam("project"), tables.revision.c.number > bindparam("after"))
    .order_by(tables.revision.c.number)
)
_records = select(tables.record).where(
    tables.record.c.project == bindparam("project"),
    tables.record.c.valid_from <= bindparam("number"),
    tables.record.c.valid_to > bindparam("number"),
)


def _changes(*more: Any) -> Select[Any]:
    """Select the changes of some revisions, in order, each with ``more`` columns of the record that it put."""
    change, record = tables.change, tables.record
    is_put = and_(
        record.c.project == change.c.project,
        record.c.kind == change.c.kind,
        record.c.name == change.c.name,
        record.c.valid_from == change.c.number,
    )
    return (
        select(change.c.number, change.c.action, change.c.kind, change.c.name, *more)
        .select_from(change.outerjoin(record, is_put))
        .where(
            change.c.project == bindparam("project"),
            change.c.number.between(bindparam("first"), bindparam("last")),
        )
        .order_by(change.c.number, change.c.position)
    )


_hashed_changes = _changes(tables.record.c.fingerprint)
_whole_changes = _changes(tables.record)


class SqlDefinitions(Definitions):
    """See `Definitions`. Reads need no lock, because a revision never changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._chains: dict[str, tuple[Chain, tuple[Any, ...] | None]] = {}
        """Chains by project as they were last read, with the newest revision: only newer ones are hashed."""

    @override
    def head(self, project: str) -> int:
        check_storable(project)
        with self._database.reading() as connection:
            return connection.scalar(_head, {"project": project}) or 0

    @override
    def chain(self, project: str) -> Chain:
        check_storable(project)
        with self._database.reading() as connection:
            return self.chain_on(connection, project)

    @override
    def projects(self) -> list[str]:
        with self._database.reading() as connection:
            return sorted(connection.scalars(select(tables.project.c.project)))

    @override
    def read(self, project: str, revision: int | None = None) -> Revision:
        check_storable(project)
        with self._database.reading() as connection:
            chain = self.chain_on(connection, project)
            head = chain.number
            number = head if revision is None else revision
            if not 0 <= number <= head:
                raise RecordNotFoundError(
                    f"Project {project!r} has no revision {number}; its newest is {head}.",
                    hint="See `fs log` for the revisions there are.",
                    project=project,
                    revision=number,
                    head=head,
                )
            rows = connection.execute(_records, {"project": project, "number": number}).mappings()
            records = [_record(row) for row in rows]
        ordered = tuple(sorted(records, key=lambda each: (each.kind, each.name)))
        return Revision(project, number, ordered, Chain(chain.hashes[:number]))

    @override
    def history(self, project: str, *, limit: int = 50) -> list[RevisionInfo]:
        check_storable(project)
        if limit < 0:
            raise ValueError(f"limit must be 0 or more, not {limit}")
        revision, change = tables.revision, tables.change
        with self._database.reading() as connection:
            infos = connection.execute(
                select(revision).where(revision.c.project == project).order_by(revision.c.number.desc()).limit(limit)
            ).all()
            if not infos:
                return []
            # Both tables have kind and name; the change's are never null.
            within = {"project": project, "first": infos[-1].number, "last": infos[0].number}
            rows = connection.execute(_whole_changes, within).mappings()
            chain = self.chain_on(connection, project)
            changes: defaultdict[int, list[Change]] = defaultdict(list)
            for row in rows:
                action, kind, name = row[change.c.action], row[change.c.kind], row[change.c.name]
                put = _record(row) if action == "put" else None
                changes[row[change.c.number]].append(Change(action, kind, name, put))
        return [
            RevisionInfo(
                number=info.number,
                applied_at=utc_datetime(info.applied_at_us),
                author=info.author,
                message=info.message,
                commit=info.source_commit,
                changes=tuple(changes[info.number]),
                hash=chain.hashes[info.number - 1],
            )
            for info in infos
        ]

    @override
    def apply(
        self,
        project: str,
        expected: str,
        changes: Sequence[Change],
        *,
        author: str,
        message: str,
        commit: str,
    ) -> Chain:
        check_storable(project, author, message, commit)
        check_changes(project, changes)
        with self._database.writing(project) as connection:
            chain = self.chain_on(connection, project)
            if chain.head != expected:
                raise _conflict(project, chain, expected)
            new = chain.number + 1
            _move(connection, project, new)
            connection.execute(
                insert(tables.revision).values(
                    project=project,
                    number=new,
                    applied_at_us=self._database.now_us(connection),
                    author=author,
                    message=message,
                    source_commit=commit,
                )
            )
            for position, change in enumerate(changes):
                _apply_one(connection, project, new, change)
                connection.execute(
                    insert(tables.change).values(
                        project=project,
                        number=new,
                        position=position,
                        action=change.action,
                        kind=change.kind,
                        name=change.name,
                    )
                )
            return self.chain_on(connection, project)

    def chain_on(self, connection: Connection, project: str) -> Chain:
        """Return a project's chain as a connection sees it, continued from the one that was read last."""
        known, newest = self._chains.get(project, (Chain(), None))
        infos = connection.execute(_later_revisions, {"project": project, "after": max(0, known.number - 1)}).all()
        # A restored registry may have other content under the same numbers, but not of the same microsecond.
        if newest is not None and (not infos or tuple(infos[0]) != newest):
            known, infos = Chain(), connection.execute(_later_revisions, {"project": project, "after": 0}).all()
        hashes = list(known.hashes)
        new = [info for info in infos if info.number > known.number]
        changes = _hashed(connection, project, new)
        for info in new:
            hashes.append(
                revision_hash(
                    hashes[-1] if hashes else "",
                    project,
                    applied_at_us=info.applied_at_us,
                    author=info.author,
                    message=info.message,
                    commit=info.source_commit,
                    changes=changes[info.number],
                )
            )
        chain = Chain(tuple(hashes))
        self._chains[project] = chain, tuple(infos[-1]) if infos else None
        return chain


def _hashed(
    connection: Connection, project: str, infos: Sequence[Row[Any]]
) -> Mapping[int, list[tuple[str, str, str, str]]]:
    """Return the changes of revisions by their numbers, as `revision_hash` takes them."""
    changes: defaultdict[int, list[tuple[str, str, str, str]]] = defaultdict(list)
    if infos:
        within = {"project": project, "first": infos[0].number, "last": infos[-1].number}
        for number, action, kind, name, fingerprint in connection.execute(_hashed_changes, within):
            changes[number].append((action, kind, name, fingerprint or ""))
    return changes


def _move(connection: Connection, project: str, new: int) -> None:
    """Move the project's revision by one, to ``new``."""
    table = tables.project
    if new == 1:
        connection.execute(insert(table).values(project=project, revision=1))
    else:
        connection.execute(update(table).where(table.c.project == project).values(revision=new))


def _conflict(project: str, chain: Chain, expected: str) -> RevisionConflictError:
    if expected in chain or not expected:
        at = chain.hashes.index(expected) + 1 if expected else 0
        planned = f"not at {at}: another apply came first"
    else:
        planned = "and the one that this was planned on is not in its history"
    return RevisionConflictError(
        f"Project {project!r} is at revision {chain.number}, {planned}.",
        hint="Plan again and apply what it shows.",
        project=project,
        head=chain.number,
        expected=expected,
    )


def _apply_one(connection: Connection, project: str, new: int, change: Change) -> None:
    table = tables.record
    closed = connection.execute(
        update(table)
        .where(
            table.c.project == project,
            table.c.kind == change.kind,
            table.c.name == change.name,
            table.c.valid_to == tables.OPEN_END,
        )
        .values(valid_to=new)
    )
    if change.record is not None:
        connection.execute(insert(table).values(**_row(change.record), valid_from=new, valid_to=tables.OPEN_END))
    elif closed.rowcount == 0:
        raise RecordNotFoundError(
            f"Project {project!r} has no {change.kind} {change.name!r} to delete.",
            hint="Plan again and apply what it shows.",
            project=project,
            kind=change.kind,
            name=change.name,
        )


def _row(record: Record) -> dict[str, Any]:
    return {name: canonical_json(value) if name in _TEXTS else value for name, value in asdict(record).items()}


def _record(row: RowMapping) -> Record:
    columns = ((name, tables.record.c[name]) for name in Record.__dataclass_fields__)
    return record_from({name: load_json(row[column]) if name in _TEXTS else row[column] for name, column in columns})
