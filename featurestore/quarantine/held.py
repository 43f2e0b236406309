"""Which rows of a view are held: those that runs set aside and nobody decided about."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from featurestore_registry.documents import QUARANTINE, QuarantineDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.engine.checks import FAILED, ROW_ID
from featurestore.offline.interface import BlobReader, OfflineReader, TableId
from featurestore.quarantine.files import KeptFile, files_of, ids_of, read, reader_of
from featurestore.registered.records import understood
from featurestore.registered.snapshot import generation_key
from featurestore.types.arrow import one_array

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class HeldRows:
    """The rows of one file that are held."""

    file: KeptFile
    rows: pa.Table


def held_rows(blobs: BlobReader, table: TableId, columns: Sequence[str] | None = None) -> list[HeldRows]:
    """Return the rows that are held, file by file in the order in which they were found. Raises DamagedFileError.

    ``columns`` has `ROW_ID`. Rows that two files hold, because a run died while it wrote, are told once.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    files = files_of(blobs)
    told = ids_of(blobs, table, [file for file in files if file.state != "held"]).column(ROW_ID)
    found = []
    for file in files:
        if file.state != "held":
            continue
        rows, _ = read(blobs, table, file, columns)
        rows = rows.filter(pc.invert(pc.is_in(rows.column(ROW_ID), value_set=one_array(told))))
        told = pa.chunked_array([*told.chunks, *rows.column(ROW_ID).chunks], pa.string())
        if rows.num_rows:
            found.append(HeldRows(file, rows))
    return found


def known_ids(blobs: BlobReader, table: TableId, first_us: int, last_us: int) -> pa.Table:
    """Return the rows that a run which reads a span of event time must neither commit nor set aside again."""
    files = files_of(blobs)
    return ids_of(blobs, table, [file for file in files if file.first_us <= last_us and file.last_us >= first_us])


def counts_by_rule(held: Sequence[HeldRows]) -> dict[str, int]:
    """Return how many held rows fail each rule, most first."""
    import pyarrow.compute as pc

    counts: dict[str, int] = {}
    for each in held:
        for entry in pc.value_counts(pc.list_flatten(each.rows.column(FAILED))).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda counted: (-counted[1], counted[0])))


def note_held(ledger: Ledger, offline: OfflineReader, table: TableId) -> None:
    """Let the registry know how many rows a generation holds, where that changed. Raises DamagedFileError."""
    blobs, key = reader_of(offline, table), generation_key(table.view, table.generation)
    names = sorted(file.name for file in files_of(blobs))
    known = ledger.latest(table.project, QUARANTINE, key)
    files = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] if names else ""
    if files == ("" if known is None else known.document.get("files")):
        return
    held = held_rows(blobs, table, [ROW_ID, FAILED])
    document = QuarantineDocument(sum(each.rows.num_rows for each in held), counts_by_rule(held), files)
    ledger.append(table.project, QUARANTINE, key, msgspec.to_builtins(document))


def noted_held(ledger: LedgerReader, project: str) -> Mapping[str, QuarantineDocument]:
    """Return what the registry knows to be held, by the key of the generation."""
    with understood("a quarantine"):
        return {e.key: msgspec.convert(e.document, QuarantineDocument) for e in ledger.scan(project, QUARANTINE)}
