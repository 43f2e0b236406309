"""Which rows of a view are held: those that runs set aside and nobody decided about."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from featurestore_registry.documents import QUARANTINE, QuarantineDocument
from featurestore_registry.interface import Ledger, LedgerReader

from featurestore.engine.checks import FAILED, ROW_ID
from featurestore.offline.interface import BlobReader, OfflineReader, TableId
from featurestore.quarantine.files import KeptFile, State, files_of, ids_of, read, reader_of
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


def held_rows(
    blobs: BlobReader,
    table: TableId,
    columns: Sequence[str] | None = None,
    *,
    over: Collection[State] = ("releasing", "released", "dropped"),
) -> list[HeldRows]:
    """Return the rows that are held, file by file in the order in which they were found. Raises DamagedFileError.

    ``columns`` has `ROW_ID`; rows in files of a state of ``over`` are held no more. Rows that two files hold, because a
    run died while it wrote, are told once.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    files = files_of(blobs)
    held = [HeldRows(file, read(blobs, table, file, columns)[0]) for file in files if file.state == "held"]
    if not held:
        return []
    ids = one_array(
        pa.chunked_array([chunk for each in held for chunk in each.rows.column(ROW_ID).chunks], pa.string())
    )
    decided = ids_of(blobs, table, [file for file in files if file.state in over]).column(ROW_ID)
    _, first = np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)
    is_first = np.zeros(len(ids), np.bool_)
    is_first[first] = True
    is_held = pc.and_(pa.array(is_first), pc.invert(pc.is_in(ids, value_set=one_array(decided))))
    found, begin = [], 0
    for each in held:
        rows = each.rows.filter(is_held.slice(begin, each.rows.num_rows))
        begin += each.rows.num_rows
        found += [HeldRows(each.file, rows)] if rows.num_rows else []
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


def note_held(ledger: Ledger, offline: OfflineReader, table: TableId, run: str | None = None) -> None:
    """Let the registry know how many rows a generation holds, where that changed. Raises DamagedFileError.

    What ``run`` set aside is added to what is known, if nothing else changed: the other files are not read again.
    """
    blobs, key = reader_of(offline, table), generation_key(table.view, table.generation)
    files = files_of(blobs)
    entry = ledger.latest(table.project, QUARANTINE, key)
    with understood("a quarantine"):
        known = QuarantineDocument() if entry is None else msgspec.convert(entry.document, QuarantineDocument)
    names = _hash(files)
    if names == known.files:
        return
    added = [file for file in files if file.state == "held" and file.id == run]
    if _hash(file for file in files if file not in added) == known.files:
        held = [HeldRows(file, read(blobs, table, file, [ROW_ID, FAILED])[0]) for file in added]
        before = known
    else:
        held, before = held_rows(blobs, table, [ROW_ID, FAILED]), QuarantineDocument()
    rules = dict(Counter(before.rules) + Counter(counts_by_rule(held)))
    rows = before.held + sum(each.rows.num_rows for each in held)
    ledger.append(table.project, QUARANTINE, key, msgspec.to_builtins(QuarantineDocument(rows, rules, names)))


def _hash(files: Iterable[KeptFile]) -> str:
    names = sorted(file.name for file in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] if names else ""


def noted_held(ledger: LedgerReader, project: str) -> Mapping[str, QuarantineDocument]:
    """Return what the registry knows to be held, by the key of the generation."""
    with understood("a quarantine"):
        return {e.key: msgspec.convert(e.document, QuarantineDocument) for e in ledger.scan(project, QUARANTINE)}
