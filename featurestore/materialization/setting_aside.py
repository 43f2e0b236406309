"""What of a run's rows is committed: rows that fail are set aside, and rows that were before stay where they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.engine.checks import SplitRows, rules_of_single_rows
from featurestore.engine.interface import StagedRows
from featurestore.ledger.blocked import Acceptance
from featurestore.ledger.commits import bind_tables
from featurestore.ledger.runs import RunResult
from featurestore.materialization.expecting import accepted, checked, other_rows
from featurestore.quarantine.files import blobs_of, ids_of, reader_of, write
from featurestore.quarantine.held import known_ids
from featurestore.registered.snapshot import RegisteredView
from featurestore.steps import crash_point, reached, step
from featurestore.types.times import MAX_INSTANT
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

ASIDE = crash_point("quarantine.aside", "rows that fail are set aside, the others are in no version")

FILE_ROWS = 200_000
"""At most so many rows are a file, so that no more are held at once."""


def judge(
    workspace: Workspace,
    registered: RegisteredView,
    result: RunResult,
    staged: StagedRows,
    folder: Path,
    note: Callable[[RunResult], None] = lambda result: None,
    acceptance: Acceptance | None = None,
) -> tuple[RunResult, StagedRows]:
    """Return a run's result and the rows that it may commit; those that fail are set aside where the view says so.

    Rows that were set aside before, released and dropped ones too, are neither judged nor committed: they count as
    unchanged. ``folder`` is where files are written; those of ``staged`` that are not used any more are removed.
    ``note`` is told the result before it raises ExpectationError, where nothing may be committed; ``acceptance`` lets
    rows pass that were blocked. Raises DamagedFileError for a file of the quarantine.
    """
    if not staged.paths:
        if acceptance is not None:
            raise other_rows(registered.view.name)
        return result, staged
    view, files = registered.view, [str(path) for path in staged.paths]
    reader, first_us = reader_of(workspace.offline, registered.table), staged.min_event_us
    assert first_us is not None
    known = known_ids(reader, registered.table, first_us, MAX_INSTANT)
    parts = _split(workspace, registered, files, known, folder) if known.num_rows else None
    try:
        judged = files if parts is None else [str(path) for path in (*parts.paths, parts.failing) if path is not None]
        found = checked(workspace, registered, result, judged)
        note(found.result)
        result = accepted(workspace, registered, found, judged, acceptance)
        if parts is None and found.has_failing_rows and view.on_failure == "quarantine":
            none = ids_of(reader, registered.table, [])
            parts = _split(workspace, registered, files, none, folder)
        if parts is None:
            return result, staged
        known_before = parts.known - result.quarantined  # a second try finds what the first one has set aside
        if parts.failing is not None:
            if not result.dry_run:
                _set_aside(workspace, registered, result, parts.failing)
            result = replace(result, quarantined=result.quarantined + parts.failed)
    except BaseException:
        _remove([] if parts is None else parts.paths, but=staged.paths)
        raise
    finally:
        _remove([] if parts is None or parts.failing is None else [parts.failing])
    _remove(staged.paths, but=parts.paths)
    unchanged = staged.unchanged + known_before
    return result, replace(staged, paths=parts.paths, appended=parts.rows, unchanged=unchanged)


def _split(
    workspace: Workspace, registered: RegisteredView, files: Sequence[str], known: pa.Table, folder: Path
) -> SplitRows:
    view = registered.view
    rules = rules_of_single_rows(view) if view.on_failure == "quarantine" else []
    with step("split", f"look for rows of {view.name} that are set aside"):
        return workspace.engine.checks.split(view, files, rules, known, folder)


def _set_aside(workspace: Workspace, registered: RegisteredView, result: RunResult, failing: Path) -> None:
    """Keep the rows of a file, durably, in files of the quarantine."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = registered.table
    bind_tables(workspace.offline, registered)
    blobs = blobs_of(workspace.offline, table)
    about = {"project": registered.chain.identity, "revision": registered.chain.head}
    with pq.ParquetFile(failing) as opened:
        for number, batch in enumerate(opened.iter_batches(FILE_ROWS)):
            rows = pa.Table.from_batches([batch])
            write(blobs, table, "held", rows, at_us=result.started_us, of=result.run_id, number=number, **about)
            reached(ASIDE)


def _remove(paths: Sequence[Path], but: Sequence[Path] = ()) -> None:
    for path in paths:
        if path not in but:
            path.unlink(missing_ok=True)
