"""Bringing released rows into the log: they are known from the instant of their release on.

Which rows are to be released, and at which instant, is written down first. A release that died is finished by the next
one or by the next run of the view, which first writes down its own instant, for nobody had the rows before: rows of
one of these instants are in the log, all of them or none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from featurestore.engine.checks import ROW_ID
from featurestore.errors import ConcurrentCommitError, MaterializationError
from featurestore.ledger.commits import RUN, bind_tables, facts_of, held_by
from featurestore.ledger.runs import RunResult
from featurestore.ledger.watermarks import Watermark
from featurestore.offline.interface import OfflineReader, TableVersion
from featurestore.quarantine.files import (
    KeptFile,
    blobs_of,
    files_of,
    ids_of,
    instants_of,
    move_release,
    read,
    release_instant,
    settle,
    what,
    why_of,
)
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached, step
from featurestore.types.arrow import arrow_schema, one_array
from featurestore.types.columns import CREATED, EVENT, ORIGIN, SEQUENCE
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

IN_LOG = crash_point("quarantine.in_log", "released rows are in the log and online, nothing says that it is over")
SETTLED = crash_point("quarantine.settled", "it is written that the release is over, nobody has counted what is held")

RELEASE: Final = "release"
"""The origin of released rows, and of the commits that bring them."""
TRIES = 20


@dataclass(frozen=True, slots=True)
class Brought:
    """What a release did."""

    rows: int
    """Rows that came into the log by it, now."""
    version: TableVersion | None
    why: str
    settle: Callable[[], None]
    """Writes down that it is over; the caller first publishes the version."""


def releases_under_way(workspace: Workspace, registered: RegisteredView) -> Iterator[KeptFile]:
    """Yield the releases that began and are not over, oldest first."""
    blobs = blobs_of(workspace.offline, registered.table)
    yield from [file for file in files_of(blobs) if file.state == "releasing"]


def bring_released(
    workspace: Workspace,
    registered: RegisteredView,
    release: KeptFile,
    result: RunResult,
    watermark: Watermark,
    check: Callable[[], None],
    *,
    is_new: bool,
) -> Brought:
    """Commit the rows of a release, unless they are in the log. Raises as the store, and DamagedFileError.

    Unless it ``is_new``, begun a moment ago by the same run, its rows are known from now on.
    """
    table = registered.table
    blobs = blobs_of(workspace.offline, table)
    why = why_of(blobs, table, release)
    instants = instants_of(blobs, table, release)

    def over() -> None:
        reached(IN_LOG)
        settle(blobs, table, release)
        reached(SETTLED)

    told = f"{why.reason} ({why.by})"
    rows = None
    with step("release", f"bring rows of {registered.view.name} back", total=release.rows):
        for _ in range(TRIES):
            version = workspace.offline.current(table)
            if version is not None and _has(workspace.offline, version, instants):
                return Brought(0, version, told, over)
            rows = _rows(workspace, registered, release) if rows is None else rows
            new = _new_events(workspace, registered, rows, version)
            if not new.num_rows:
                return Brought(0, version, told, over)
            if not is_new:
                release = move_release(blobs, table, release, release_instant(files_of(blobs), workspace.clock()))
                instants.append(release.at_us)
            new = _known_from(new, release.at_us)
            try:
                version = _append(workspace, registered, new, version, result, watermark, check)
            except ConcurrentCommitError:
                continue
            return Brought(new.num_rows, version, told, over)
    raise MaterializationError(
        f"Other writers committed to {table} first, {TRIES} times in a row.",
        hint="Run it again when there are fewer of them: it goes on where it was.",
    )


def _has(offline: OfflineReader, version: TableVersion, instants: Sequence[int]) -> bool:
    """Tell whether the rows of a release are in the log: no other rows have its origin and one of its instants."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    known = pa.array(instants, pa.timestamp("us", "UTC"))
    for file in version.files:
        if file.max_created_us is None or file.max_created_us < min(instants):
            continue
        with offline.open(file) as opened:
            rows = pq.ParquetFile(opened).read(columns=[CREATED, ORIGIN])
        of_it = pc.and_(
            pc.is_in(rows[CREATED].cast(known.type), value_set=known), pc.equal(rows[ORIGIN].cast("string"), RELEASE)
        )
        if pc.any(of_it).as_py():
            return True
    return False


def _rows(workspace: Workspace, registered: RegisteredView, release: KeptFile) -> pa.Table:
    """Return the rows of a release, in the order in which they were found, in the log's columns but the number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = registered.table
    blobs = blobs_of(workspace.offline, table)
    wanted = one_array(ids_of(blobs, table, [release]).column(ROW_ID))
    columns = {n: k for n, k in registered.table_schema.columns.items() if n not in (SEQUENCE, ORIGIN)}
    schema, parts = arrow_schema(columns), []
    for file in files_of(blobs):
        if file.state == "held" and file.first_us <= release.last_us and file.last_us >= release.first_us:
            rows, _ = read(blobs, table, file)
            rows = rows.filter(pc.is_in(rows.column(ROW_ID), value_set=wanted))
            wanted = wanted.filter(pc.invert(pc.is_in(wanted, value_set=one_array(rows.column(ROW_ID)))))
            arrays = [
                rows.column(field.name).cast(field.type)
                if field.name in rows.column_names
                else pa.nulls(rows.num_rows, field.type)
                for field in schema
            ]
            parts.append(pa.table(arrays, schema=schema))
    if len(wanted):
        raise MaterializationError(
            f"{len(wanted):,} of {release.rows:,} rows that are to be released are in no file of {what(table)}; "
            "nothing was changed.",
            hint="Restore the files from a backup, and run it again.",
            view=registered.view.name,
        )
    return _known_from(pa.concat_tables([schema.empty_table(), *parts]), release.at_us)


def _known_from(rows: pa.Table, at_us: int) -> pa.Table:
    import pyarrow as pa

    known = pa.repeat(pa.scalar(at_us, pa.timestamp("us", "UTC")), rows.num_rows)
    return rows.set_column(rows.column_names.index(CREATED), CREATED, known)


def _new_events(
    workspace: Workspace, registered: RegisteredView, rows: pa.Table, version: TableVersion | None
) -> pa.Table:
    """Return rows without the events whose id the log has: the first that came in counts."""
    import pyarrow as pa

    view = registered.view
    if view.event_id is None or version is None:
        return rows
    files = [file.path for file in version.files]
    return rows.filter(pa.array(workspace.engine.log.judge(view, files, rows).is_new))


def _append(
    workspace: Workspace,
    registered: RegisteredView,
    rows: pa.Table,
    base: TableVersion | None,
    result: RunResult,
    watermark: Watermark,
    check: Callable[[], None],
) -> TableVersion:
    import pyarrow as pa

    offline, table, first = workspace.offline, registered.table, 0 if base is None else base.next_sequence
    place = rows.column_names.index(CREATED) + 1
    numbers = pa.array(range(first, first + rows.num_rows), pa.int64())
    rows = rows.add_column(place, SEQUENCE, numbers)
    rows = rows.add_column(place + 1, ORIGIN, pa.repeat(RELEASE, rows.num_rows))
    path = offline.write(table, rows.sort_by([(name, "ascending") for name in (EVENT, CREATED, SEQUENCE)]))
    try:
        check()
        bind_tables(offline, registered)
        return offline.commit(
            table,
            registered.table_schema,
            base=None if base is None else base.number,
            add=[path],
            facts=facts_of(registered, held_by(watermark), RELEASE, **{RUN: result.run_id}),
        )
    finally:
        path.unlink(missing_ok=True)
