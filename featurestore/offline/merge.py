"""Merging: a table's small files become one, so that reads do not get slower with the number of commits.

Merges the files of a size tier, and of the tiers below it, as soon as the tier holds too many. The result grows into
the next tier, so each row is written a few times, and not with every addition.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import ConcurrentCommitError, DamagedFileError, FeatureStoreError, OfflineStoreError
from featurestore.offline.interface import MAX_SEQUENCE, DataFile, OfflineStore, TableId, TableReader, TableVersion
from featurestore.offline.reading import opened
from featurestore.steps import crash_point, reached
from featurestore.types.arrow import arrow_type, value_type_of
from featurestore.types.columns import CREATED, EVENT, SEQUENCE

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("featurestore")

STAGED = crash_point("merge.staged", "several files are merged into one, which is in no version")
COMMITTED = crash_point("merge.committed", "a version in which one file replaced several is durable")

SMALL_BYTES, FACTOR = 64 << 10, 8
"""The file size of the lowest tier, and how much larger the files of the next are."""
MOST_SMALL, MOST_OF_TIER = 16, 8
"""With more files than that in the lowest tier, or in another, merge them."""
MOST_BYTES = 512 << 20
"""At most so much for all files of a merge together."""
TRIES = 20
"""How often to try to commit a merged file: a try takes as long as a push, and each process pushes once a second."""

_damaged: set[str] = set()
"""Files that were found damaged: they stay as they are, and cause one warning."""

Write = Callable[[Sequence[DataFile]], Sequence[Path]]
"""Writes the rows of files into fewer files in the table's staging place, each in the table's order."""


def due(files: Sequence[DataFile], *, most_bytes: int = MOST_BYTES, most_rows: int = MAX_SEQUENCE) -> list[DataFile]:
    """Return the files to merge now, up to these limits; an empty list while there are few enough."""
    sound = (file for file in files if file.path not in _damaged)
    by_size = sorted(sound, key=lambda file: (file.size_bytes, file.path))
    tiers = [_tier(file) for file in by_size]
    for tier in sorted(set(tiers), reverse=True):
        count = tiers.count(tier)
        if count <= (MOST_OF_TIER if tier else MOST_SMALL):
            continue
        chosen, size_bytes, rows = list[DataFile](), 0, 0
        for file in by_size[: len(tiers) - tiers[::-1].index(tier)]:
            size_bytes, rows = size_bytes + file.size_bytes, rows + file.rows
            if size_bytes > most_bytes or rows > most_rows:
                break
            chosen.append(file)
        # Otherwise small files would be written again with each large one that fits with them.
        if sum(_tier(file) == tier for file in chosen) >= MOST_OF_TIER // 2:
            return chosen
    return []


def _tier(file: DataFile) -> int:
    tier, size_bytes = 0, SMALL_BYTES
    while file.size_bytes >= size_bytes:
        tier, size_bytes = tier + 1, size_bytes * FACTOR
    return tier


def merge_quietly(offline: OfflineStore, version: TableVersion, files: Sequence[DataFile], write: Write) -> None:
    """Merge files to speed up later reads: a failure leaves the table as it is and writes a line to the log."""
    try:
        replace_files(offline, version, files, write)
    except ConcurrentCommitError as error:  # another writer merged them, or withdrew some
        logger.debug("files of %s are not merged: %s", version.table, error)
    except DamagedFileError as error:
        _damaged.add(str(error.details["path"]))
        logger.warning("a file of %s is left out of merges: %s", version.table, error)
    except FeatureStoreError as error:
        logger.warning("files of %s are not merged: %s", version.table, error)


def replace_files(
    offline: OfflineStore,
    version: TableVersion,
    files: Sequence[DataFile],
    write: Write,
    check: Callable[[], None] = lambda: None,
) -> TableVersion:
    """Replace several files of a version by fewer, after any commits since; returns the new version.

    ``write`` leaves nothing behind if it fails; ``check`` is called before each try and may raise. Raises
    DamagedFileError, and ConcurrentCommitError where one of the files is no longer in the table.
    """
    offline.verify(files, again=True)  # bad bytes with a new hash would look sound
    written = write(files)
    try:
        reached(STAGED)
        made = _commit(offline, version, files, written, check)
        reached(COMMITTED)
        return made
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def _commit(
    offline: OfflineStore,
    base: TableVersion,
    files: Sequence[DataFile],
    written: Sequence[Path],
    check: Callable[[], None],
) -> TableVersion:
    table, paths = base.table, {file.path for file in files}
    for last_try in (False,) * (TRIES - 1) + (True,):
        check()
        try:
            return offline.merge(table, base=base.number, add=written, remove=files)
        except ConcurrentCommitError:
            newest = offline.current(table)
            if last_try or newest is None or not paths <= {file.path for file in newest.files}:
                raise
            base = newest
    raise AssertionError("the last try returns or raises")


def write_in_memory(offline: OfflineStore, table: TableId, files: Sequence[DataFile]) -> tuple[Path]:
    """Write the rows of files as one, in memory: for few rows that is faster than starting an engine.

    Keeps every column of every file; a column is null in the rows of a file that lacks it.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    known = "fs_known_ts"
    try:
        rows = pa.concat_tables([_read(offline, file) for file in files], promote_options="permissive")
        # A null created time counts as the event time.
        rows = rows.append_column(known, pc.coalesce(rows[CREATED], rows[EVENT]))
        ordered = rows.sort_by([(name, "ascending") for name in (EVENT, known, SEQUENCE)]).drop_columns(known)
        return (offline.write(table, ordered),)
    except pa.ArrowException as error:
        raise OfflineStoreError(f"Files cannot be merged: {str(error).splitlines()[0]}.") from None


def _read(offline: TableReader, file: DataFile) -> pa.Table:
    """Read a file, its columns as we write them: DuckDB names the items of lists its own way."""
    import pyarrow as pa

    with opened(offline, file) as parquet:
        table = parquet.read()
    kinds = [(field.name, value_type_of(field.type), field.type) for field in table.schema]
    return table.cast(pa.schema([(name, arrow_type(kind) if kind else given) for name, kind, given in kinds]))
