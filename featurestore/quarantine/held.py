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
from featurestore.quarantine.files import KeptFile, State, files_of, ids_of, read, reader_of, what
from featurestore.registered.records import understood
from featurestore.registered.snapshot import generation_key
from featurestore.types.arrow import one_array
from featurestore.types.times import to_rfc3339

if TYPE_CHECKING:
    import pyarrow as pa

NOT_COUNTED = 50
"""At most so many files were written and not counted, because who wrote them died."""


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


def note_held(
    ledger: Ledger,
    offline: OfflineReader,
    table: TableId,
    run: str | None = None,
    *,
    read_again: Iterable[tuple[int, int]] = (),
    is_tidied: bool = False,
) -> None:
    """Let the registry know how many rows a generation holds, where that changed. Raises DamagedFileError.

    What ``run`` set aside is added to what is known, if nothing else changed: the other files are not read again. Rows
    of files that are gone count as lost, until the files are back or a run has ``read_again`` their span; not where the
    caller removed files that are no longer needed: it has let this look before.
    """
    blobs, key = reader_of(offline, table), generation_key(table.view, table.generation)
    files, known = files_of(blobs), _noted(ledger, table)
    names, lost = _hash(files), known.lost
    first_us, last_us = known.span_us or (0, 0)
    is_over = any(start <= first_us and last_us < end for start, end in read_again)
    if names == known.files and not (lost and is_over):
        return
    added = [file for file in files if file.state == "held" and file.id == run]
    if _hash(file for file in files if file not in added) == known.files:
        held = [HeldRows(file, read(blobs, table, file, [ROW_ID, FAILED])[0]) for file in added]
        before = known
    else:
        held, before = held_rows(blobs, table, [ROW_ID, FAILED]), QuarantineDocument()
        if not is_tidied and not _are_there(known.files, files):
            lost = max(lost + known.held - sum(each.rows.num_rows for each in held if each.file not in added), 0)
    lost = 0 if is_over else lost
    rules = dict(Counter(before.rules) + Counter(counts_by_rule(held)))
    rows = before.held + sum(each.rows.num_rows for each in held)
    spans = [(each.file.first_us, each.file.last_us) for each in held]
    spans += [known.span_us] if known.span_us is not None and (before is known or lost) else []
    span_us = (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None
    made = QuarantineDocument(rows, rules, names, lost, span_us)
    ledger.append(table.project, QUARANTINE, key, msgspec.to_builtins(made))


def lost_held(ledger: LedgerReader, offline: OfflineReader, table: TableId) -> str:
    """Return in words how many rows were held and are in no file any more; empty where none are.

    Files are read only where some are not those that the registry counted. Raises DamagedFileError.
    """
    blobs, known = reader_of(offline, table), _noted(ledger, table)
    lost = known.lost
    if not _are_there(known.files, files_of(blobs)):
        lost += known.held - sum(each.rows.num_rows for each in held_rows(blobs, table, [ROW_ID]))
    if lost <= 0:
        return ""
    again = ""
    if known.span_us is not None:
        span = f"{to_rfc3339(known.span_us[0])} {to_rfc3339(known.span_us[1] + 1)}"
        again = (
            f", or run `fs materialize {span} --view {table.view}`: it reads them from the source again, and sets "
            "aside those that still fail"
        )
    rows = "1 row is" if lost == 1 else f"{lost:,} rows are"
    return (
        f"{rows} missing from {what(table)}: the registry counted them, and no file holds them. Restore the files from "
        f"a backup of the offline store{again}."
    )


def _are_there(counted: str, files: Sequence[KeptFile]) -> bool:
    """Tell whether the files of a count are all there: then they are those that are, without the newest ones."""
    least = max(len(files) - NOT_COUNTED, 0)
    return not counted or any(_hash(files[:count]) == counted for count in range(len(files), least - 1, -1))


def _hash(files: Iterable[KeptFile]) -> str:
    names = sorted(file.name for file in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] if names else ""


def _noted(ledger: LedgerReader, table: TableId) -> QuarantineDocument:
    entry = ledger.latest(table.project, QUARANTINE, generation_key(table.view, table.generation))
    with understood("a quarantine"):
        return QuarantineDocument() if entry is None else msgspec.convert(entry.document, QuarantineDocument)


def noted_held(ledger: LedgerReader, project: str) -> Mapping[str, QuarantineDocument]:
    """Return what the registry knows to be held, by the key of the generation."""
    with understood("a quarantine"):
        return {e.key: msgspec.convert(e.document, QuarantineDocument) for e in ledger.scan(project, QUARANTINE)}
