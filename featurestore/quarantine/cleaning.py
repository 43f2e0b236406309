"""What goes from quarantines: files whose rows are all released or dropped, and those of generations that are gone."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from featurestore.engine.checks import ROW_ID
from featurestore.errors import DamagedFileError
from featurestore.ledger.leases import holding
from featurestore.offline.interface import TableId
from featurestore.quarantine.files import blobs_of, files_of, reader_of, what
from featurestore.quarantine.held import held_rows, note_held
from featurestore.workspace import Readers, Workspace


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What goes of one generation."""

    table: TableId
    files: int
    held: int | None
    """Rows that were held still, of a generation that is gone; None where a file cannot be read. Of others 0."""
    is_gone: bool


def clean(workspace: Workspace, table: TableId, *, dry_run: bool = False) -> Cleaned | None:
    """Remove files of a generation that is in use, of which every row is released or dropped; their ids are kept.

    None where there are none. A damaged file stays, and those that depend on it.
    """
    blobs = blobs_of(workspace.offline, table)
    files = files_of(blobs)
    over = [file for file in files if file.state in ("released", "dropped")]
    if not over:
        return None
    try:  # what is being released is still needed
        held = {each.file for each in held_rows(blobs, table, [ROW_ID], over=("released", "dropped"))}
        old = [file.name for file in files if file.state == "held" and file not in held]
    except DamagedFileError:
        return None
    if old and not dry_run:
        holder = secrets.token_hex(8)
        with holding(workspace.ledger, table.project, table.view, holder=holder, clock=workspace.clock):
            try:
                note_held(workspace.ledger, workspace.offline, table)  # before: what is lost is not to look tidied
                for name in old:  # a run may just be reading them
                    blobs.delete(name, what(table))
                note_held(workspace.ledger, workspace.offline, table, is_tidied=True)
            except DamagedFileError:
                return None
    return Cleaned(table, len(old), 0, is_gone=False) if old else None


def clean_gone(workspace: Workspace, table: TableId, *, dry_run: bool = False) -> Cleaned | None:
    """Remove all files of a generation that is gone; None where there are none."""
    blobs = blobs_of(workspace.offline, table)
    names = [blob.name for blob in blobs.list()]
    if not names:
        return None
    held = held_count(workspace, table)
    if not dry_run:
        for name in names:
            blobs.delete(name, what(table))
        note_held(workspace.ledger, workspace.offline, table, is_tidied=True)
    return Cleaned(table, len(names), held, is_gone=True)


def held_count(workspace: Readers, table: TableId) -> int | None:
    """Return how many rows of a generation are held; None where a file cannot be read."""
    try:
        held = held_rows(reader_of(workspace.offline, table), table, [ROW_ID])
    except DamagedFileError:
        return None
    return sum(int(each.rows.num_rows) for each in held)
