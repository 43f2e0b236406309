"""What people see of rows that are set aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.engine.checks import FAILED, ROW_ID
from featurestore.errors import DamagedFileError, NotFoundError, did_you_mean
from featurestore.offline.interface import TableId
from featurestore.quarantine.files import files_of, reader_of, tables_of, why_of
from featurestore.quarantine.held import HeldRows, counts_by_rule, held_rows, lost_held, noted_held
from featurestore.types.arrow import arrow_schema
from featurestore.types.columns import CREATED, EVENT, LOG_COLUMNS
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import pyarrow as pa

RUN_ID, FOUND = "fs_run", "fs_found_ts"
"""Columns of held rows: the run that set them aside, and when it began."""


@dataclass(frozen=True, slots=True)
class HeldRun:
    """What is held of the rows that one run set aside."""

    view: str
    generation: int
    is_applied: bool
    """Whether it is the generation that is applied."""
    run: str
    found_us: int
    rows: int
    entities: int
    rules: Mapping[str, int]
    """How many of the rows fail each rule, most first."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What somebody decided about rows."""

    view: str
    generation: int
    what: str
    """``released``, ``dropped``, or ``releasing`` for a release that is not over."""
    at_us: int
    rows: int
    by: str
    reason: str


def quarantine_of(workspace: Readers, view: str, generation: int | None = None) -> TableId:
    """Return the generation of a view whose rows are meant: by default the one that is applied.

    Of a view that is gone the newest that holds rows. Raises NotFoundError.
    """
    registered = workspace.snapshot().views.get(view)
    known = tables_of(workspace.offline, workspace.project)
    of_view = [table.generation for table in known if table.view == view]
    if registered is None and not of_view:
        names = {*workspace.snapshot().views, *(table.view for table in known)}
        raise NotFoundError(f"There is no feature view {view!r}.", hint=did_you_mean(view, names), name=view)
    current = of_view[-1] if registered is None else registered.generation
    wanted = current if generation is None else generation
    if wanted != current and wanted not in of_view:
        raise NotFoundError(
            f"No rows of generation {wanted} of {view} were ever set aside.",
            hint=f"`fs quarantine list {view}` shows what is held.",
            generation=wanted,
        )
    return TableId(workspace.project, view, wanted)


def held_runs(workspace: Readers, view: str | None = None, run: str | None = None) -> list[HeldRun]:
    """Return what is held, by view, generation and run. Raises NotFoundError for an unknown view."""
    found = []
    for table in _tables(workspace, view):
        by_run: dict[str, list[HeldRows]] = {}
        for each in held_rows(reader_of(workspace.offline, table), table):
            if run in (None, each.file.id):
                by_run.setdefault(each.file.id, []).append(each)
        registered = workspace.snapshot().views.get(table.view)
        is_applied = registered is not None and registered.generation == table.generation
        for of_run in by_run.values():
            rows, first = sum(each.rows.num_rows for each in of_run), of_run[0].file
            entities, rules = _entities(of_run), counts_by_rule(of_run)
            found.append(
                HeldRun(table.view, table.generation, is_applied, first.id, first.at_us, rows, entities, rules)
            )
    return found


def decisions(workspace: Readers, view: str | None = None) -> Iterator[Decision]:
    """Yield what was decided, by view and generation, oldest first."""
    for table in _tables(workspace, view):
        reader = reader_of(workspace.offline, table)
        for file in files_of(reader):
            if file.state != "held":
                why = why_of(reader, table, file)
                yield Decision(table.view, table.generation, file.state, file.at_us, file.rows, why.by, why.reason)


def lost_rows(workspace: Readers, view: str | None = None) -> dict[str, str]:
    """Return in words which rows were held and are in no file any more, by the key of the generation."""
    found = {}
    for key in noted_held(workspace.ledger, workspace.project):
        name, _, generation = key.rpartition(".")
        if view in (None, name):
            with suppress(DamagedFileError):  # reading the file tells that
                table = TableId(workspace.project, name, int(generation))
                if told := lost_held(workspace.ledger, workspace.offline, table):
                    found[key] = told
    return found


def held_table(workspace: Readers, view: str, generation: int | None = None, *, run: str | None = None) -> pa.Table:
    """Return held rows of a generation in the order in which they were found. See `FeatureStore.quarantined`."""
    import pyarrow as pa

    table = quarantine_of(workspace, view, generation)
    instant, text = pa.timestamp("us", "UTC"), pa.string()
    head = [(ROW_ID, text), (RUN_ID, text), (FOUND, instant), (FAILED, pa.list_(text))]
    registered = workspace.snapshot().views.get(view)
    parts = []
    for each in held_rows(reader_of(workspace.offline, table), table):
        if run in (None, each.file.id):
            rows = each.rows.set_column(
                each.rows.column_names.index(FAILED), FAILED, each.rows.column(FAILED).cast(pa.list_(text))
            )
            rows = rows.add_column(1, RUN_ID, pa.repeat(each.file.id, rows.num_rows))
            parts.append(rows.add_column(2, FOUND, pa.repeat(pa.scalar(each.file.at_us, instant), rows.num_rows)))
    if registered is None or registered.generation != table.generation:
        if not parts:
            return pa.schema(head).empty_table()
        return pa.concat_tables(parts, promote_options="permissive")
    columns = {
        n: k for n, k in registered.table_schema.columns.items() if n in (EVENT, CREATED) or n not in LOG_COLUMNS
    }
    schema = pa.schema([*pa.schema(head), *arrow_schema(columns)])
    return pa.concat_tables([schema.empty_table(), *(_as(part, schema) for part in parts)])


def _as(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows in the columns of a schema: a feature that was added since is null."""
    import pyarrow as pa

    columns = [
        rows.column(field.name).cast(field.type)
        if field.name in rows.column_names
        else pa.nulls(rows.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _tables(workspace: Readers, view: str | None) -> list[TableId]:
    tables = tables_of(workspace.offline, workspace.project)
    if view is None:
        return tables
    if view not in workspace.snapshot().views:
        quarantine_of(workspace, view)
    return [table for table in tables if table.view == view]


def _entities(held: list[HeldRows]) -> int:
    """Return how many entities rows are about: their keys come before the event time."""
    import pyarrow as pa

    names = held[0].rows.column_names
    keys = names[names.index(FAILED) + 1 : names.index(EVENT)]
    found = pa.concat_tables([each.rows.select(keys) for each in held]).group_by(keys).aggregate([])
    return int(found.num_rows)


def shown_columns(table: pa.Table, hidden: set[str]) -> list[dict[str, Any]]:
    """Return rows without columns of which no value shows."""
    shown: list[dict[str, Any]] = table.drop_columns([n for n in table.column_names if n in hidden]).to_pylist()
    return shown
