"""What becomes of rows that are set aside: they are listed, released into the log, or dropped."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from featurestore.engine.checks import ROW_ID
from featurestore.errors import FeatureStoreError, InputError, MaterializationError, NotFoundError, did_you_mean
from featurestore.ledger.leases import holding
from featurestore.ledger.processes import own_user
from featurestore.ledger.runs import RunResult
from featurestore.materialization.jobs import run_release, succeeded
from featurestore.offline.interface import BlobReader, TableId
from featurestore.quarantine.files import (
    Why,
    as_about,
    blobs_of,
    files_of,
    ids_of,
    reader_of,
    release_instant,
    tables_of,
    why_of,
    write,
)
from featurestore.quarantine.forgetting import held_among, replace_file, without_entity
from featurestore.quarantine.held import HeldRows, held_rows, lost_held, note_held
from featurestore.quarantine.listing import quarantine_of
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached
from featurestore.types.columns import EVENT
from featurestore.types.times import to_short_rfc3339
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

RELEASING = crash_point(
    "quarantine.releasing", "it is written which rows are to be released, none of them is in the log"
)
DROPPED = crash_point("quarantine.dropped", "it is written which rows are dropped, nobody has counted what is held")

LEAST_DIGITS = 6
"""So many digits of a row's id suffice where they are unique."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which held rows of a generation are meant: those of a run, some by their ids or the beginnings of these, all."""

    run: str | None = None
    rows: tuple[str, ...] = ()
    all: bool = False

    @classmethod
    def given(cls, run: str | None, rows: str | Sequence[str] | None, all: bool) -> Choice:
        """Return the choice of somebody's arguments."""
        return cls(run, (rows,) if isinstance(rows, str) else tuple(rows or ()), all)

    def check(self, reason: str) -> None:
        """Raise InputError unless it is one of them and there is a reason."""
        if (self.run is not None) + bool(self.rows) + self.all != 1:
            raise InputError(
                "Say which rows: those of a run, some by their ids, or all of them.",
                hint="Pass one of run=, rows= and all=True (`--run`, `--row`, `--all`).",
            )
        if not reason.strip():
            raise InputError("Deciding about rows that are set aside needs a reason.", hint="Say why; it is kept.")
        for row in self.rows:
            if len(row) < LEAST_DIGITS:
                raise InputError(
                    f"{row!r} is too short for the id of a row.", hint=f"Give at least {LEAST_DIGITS} of its digits."
                )

    def of(self, held: Sequence[HeldRows], view: str) -> pa.Table:
        """Return ids and event times of the rows that are meant. Raises NotFoundError and InputError."""
        import pyarrow as pa
        import pyarrow.compute as pc

        none = pa.table({ROW_ID: pa.array([], pa.string()), EVENT: pa.array([], pa.timestamp("us", "UTC"))})
        rows = [each for each in held if self.run is None or each.file.id == self.run]
        found = pa.concat_tables([none, *(each.rows.select([ROW_ID, EVENT]) for each in rows)])
        if self.run is not None and not rows:
            known = {each.file.id for each in held}
            hint = did_you_mean(self.run, known) or f"`fs quarantine list {view}` shows what is held."
            raise NotFoundError(f"No row of run {self.run!r} is held of {view}.", hint=hint, run_id=self.run)
        chosen = []
        for row in self.rows:
            of_it = found.filter(pc.starts_with(found.column(ROW_ID), row))
            exact = of_it.filter(pc.equal(of_it.column(ROW_ID), row))
            of_it = exact if exact.num_rows else of_it
            if not of_it.num_rows:
                hint = f"It may be released or dropped already: `fs quarantine list {view} --rows` shows what is held."
                raise NotFoundError(f"No row {row!r} is held of {view}.", hint=hint, row=row)
            if of_it.num_rows > 1:
                raise InputError(
                    f"{row!r} is the beginning of {of_it.num_rows:,} rows that are held of {view}.",
                    hint="Give more digits.",
                    row=row,
                )
            chosen.append(of_it)
        return pa.concat_tables([none, *chosen]).group_by([ROW_ID, EVENT]).aggregate([]) if self.rows else found


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a drop did."""

    view: str
    generation: int
    rows: int


def release(workspace: Workspace, view: str, choice: Choice, reason: str, generation: int | None = None) -> RunResult:
    """Bring held rows into the log and online. See `FeatureStore.release_quarantined`."""
    choice.check(reason)
    workspace.known_snapshot()
    table = quarantine_of(workspace, view, generation)
    _check_current(workspace, table)
    blobs = blobs_of(workspace.offline, table)
    is_under_way = any(file.state == "releasing" for file in files_of(blobs))  # then this finishes that first
    _chosen(workspace, table, choice, is_needed=not is_under_way)
    why = Why(own_user(), reason.strip())

    def begin(registered: RegisteredView) -> None:
        _check_current(workspace, table)
        rows = _chosen(workspace, table, choice, is_needed=False)
        if rows.num_rows:
            at_us = release_instant(files_of(blobs), workspace.clock())
            write(blobs, table, "releasing", rows, at_us=at_us, of=secrets.token_hex(8), **as_about(why))
            reached(RELEASING)

    refused: list[FeatureStoreError] = []

    def may(_: RegisteredView) -> None:
        is_under_way = any(file.state == "releasing" for file in files_of(blobs))
        if not is_under_way and not _chosen(workspace, table, choice, is_needed=False).num_rows:
            refused.append(_came_second(workspace, table))
            raise refused[0]

    done = run_release(workspace, view, begin, may)
    if refused:
        raise refused[0]
    succeeded([done])
    return done


def drop(workspace: Workspace, view: str, choice: Choice, reason: str, generation: int | None = None) -> Dropped:
    """Give held rows up. See `FeatureStore.drop_quarantined`."""
    choice.check(reason)
    workspace.known_snapshot()
    table = quarantine_of(workspace, view, generation)
    _chosen(workspace, table, choice)
    blobs, holder, why = blobs_of(workspace.offline, table), secrets.token_hex(8), Why(own_user(), reason.strip())
    with holding(workspace.ledger, workspace.project, view, holder=holder, clock=workspace.clock):
        rows = _chosen(workspace, table, choice, is_needed=False)
        if not rows.num_rows:
            raise _came_second(workspace, table)
        write(blobs, table, "dropped", rows, at_us=workspace.clock(), of=holder, **as_about(why))
        reached(DROPPED)
        note_held(workspace.ledger, workspace.offline, table)
    return Dropped(view, table.generation, rows.num_rows)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a `forget` did."""

    rows: int
    """Rows whose values are gone."""
    files: int
    """Files that were written again without them, or deleted."""


def forget(
    workspace: Workspace, entity: Mapping[str, Any], views: Sequence[str] | None = None, *, dry_run: bool = False
) -> Forgotten:
    """Remove the values of an entity's rows from quarantines, held or not. See `FeatureStore.forget_quarantined`."""
    workspace.known_snapshot()
    tables = tables_of(workspace.offline, workspace.project)
    if not entity:
        raise InputError("Say whose rows are to be forgotten.", hint="Pass join keys, such as {'driver_id': 7}.")
    known = {table.view for table in tables}
    for name in views or ():
        if name not in known:
            raise NotFoundError(f"No rows of {name!r} were ever set aside.", hint=did_you_mean(name, known), name=name)
    rows = files = 0
    for table in tables:
        if views is None or table.view in views:
            done = (_counted_in if dry_run else _forget_in)(workspace, table, entity)
            rows, files = rows + done.rows, files + done.files
    return Forgotten(rows, files)


def _counted_in(workspace: Workspace, table: TableId, entity: Mapping[str, Any]) -> Forgotten:
    """Count what `_forget_in` would remove."""
    reader = reader_of(workspace.offline, table)
    held = [each for each in files_of(reader) if each.state == "held"]
    parts = [part for each in held if (part := without_entity(reader, table, each, entity)) is not None]
    return Forgotten(sum(part.gone.num_rows for part in parts), len(parts))


def _forget_in(workspace: Workspace, table: TableId, entity: Mapping[str, Any]) -> Forgotten:
    """Remove rows of one generation: those that are held are dropped first, so that no run brings them again."""
    blobs, holder, rows = blobs_of(workspace.offline, table), secrets.token_hex(8), 0
    with holding(workspace.ledger, workspace.project, table.view, holder=holder, clock=workspace.clock):
        files = files_of(blobs)
        if any(file.state == "releasing" for file in files):
            raise MaterializationError(
                f"A release of {table.view} is not over.",
                hint=f"Run `fs materialize --view {table.view}` first: it finishes that.",
                view=table.view,
            )
        parts = {each: without_entity(blobs, table, each, entity) for each in files if each.state == "held"}
        gone = {each: part for each, part in parts.items() if part is not None}
        if ids := held_among(blobs, table, [part.gone for part in gone.values()]):
            why = Why(own_user(), "forgotten")
            write(blobs, table, "dropped", ids, at_us=workspace.clock(), of=holder, **as_about(why))
        reached(DROPPED)
        note_held(workspace.ledger, workspace.offline, table)  # before: what is lost is not to look tidied
        for each, part in gone.items():
            replace_file(blobs, table, each, part.left)
            rows += part.gone.num_rows
        note_held(workspace.ledger, workspace.offline, table, is_tidied=True)
    return Forgotten(rows, len(gone))


def _chosen(workspace: Readers, table: TableId, choice: Choice, *, is_needed: bool = True) -> pa.Table:
    """Return the rows that are meant; unless they are needed, without those that others decided about meanwhile.

    Raises NotFoundError for what never was held, too.
    """
    reader = reader_of(workspace.offline, table)
    held = held_rows(reader, table, [ROW_ID, EVENT])
    if is_needed and not held:
        _nothing_held(workspace, table)
    left = choice if is_needed else _undecided(reader, table, choice, held)
    return ids_of(reader, table, []) if left is None else left.of(held, table.view)


def _undecided(reader: BlobReader, table: TableId, choice: Choice, held: Sequence[HeldRows]) -> Choice | None:
    """Return a choice without what is decided; None where nothing is left of it."""
    files = files_of(reader)
    if choice.run is not None:
        was_held = any(file.state == "held" and file.id == choice.run for file in files)
        return None if was_held and all(each.file.id != choice.run for each in held) else choice
    if not choice.rows:
        return choice
    decided = ids_of(reader, table, [file for file in files if file.state != "held"]).column(ROW_ID).to_pylist()
    still = [one for each in held for one in each.rows.column(ROW_ID).to_pylist()]
    rows = tuple(
        row
        for row in choice.rows
        if any(each.startswith(row) for each in still) or not any(each.startswith(row) for each in decided)
    )
    return replace(choice, rows=rows) if rows else None


def _came_second(workspace: Readers, table: TableId) -> NotFoundError:
    """Return the error for rows about which somebody else decided while this waited."""
    reader = reader_of(workspace.offline, table)
    *_, last = [file for file in files_of(reader) if file.state in ("released", "dropped")]
    why = why_of(reader, table, last)
    return NotFoundError(
        f"Somebody else decided first: rows of {table.view} were {last.state} at {to_short_rfc3339(last.at_us)} by "
        f"{why.by}: {why.reason}. None of yours is held any more, and nothing was changed now.",
        hint=f"`fs quarantine list {table.view}` shows what is held, and what was decided.",
        view=table.view,
    )


def _nothing_held(workspace: Readers, table: TableId) -> NoReturn:
    others = [each for each in tables_of(workspace.offline, table.project) if each.view == table.view and each != table]
    held = [each for each in others if held_rows(reader_of(workspace.offline, each), each, [ROW_ID])]
    hint = " ".join(
        f"Generation {one.generation} holds some: `fs quarantine drop {table.view} --generation {one.generation} --all "
        "--reason TEXT`."
        for one in held
    )
    hint = lost_held(workspace.ledger, workspace.offline, table) or hint
    raise NotFoundError(
        f"No rows of {table.view} (generation {table.generation}) are held.",
        hint=hint or "Runs set rows aside where a view says on_failure='quarantine'.",
        name=table.view,
    )


def _check_current(workspace: Workspace, table: TableId) -> None:
    registered = workspace.snapshot().views.get(table.view)
    if registered is None or registered.generation != table.generation:
        now = "is gone" if registered is None else f"is at generation {registered.generation} now"
        raise InputError(
            f"Rows of generation {table.generation} of {table.view} cannot be released: the view {now}, and its table "
            "has other columns. Nothing was changed.",
            hint=f"Runs read them from the source again by the new definition. Give these up with `fs quarantine drop "
            f"{table.view} --generation {table.generation} --all --reason TEXT`.",
            view=table.view,
            generation=table.generation,
        )
