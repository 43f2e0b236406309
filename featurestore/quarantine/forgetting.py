"""Files of a quarantine without the rows of an entity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.engine.checks import FAILED, ROW_ID
from featurestore.errors import InputError
from featurestore.offline.interface import BlobReader, Blobs, TableId
from featurestore.quarantine.files import KeptFile, read, what, write
from featurestore.quarantine.held import held_rows
from featurestore.types.arrow import one_array
from featurestore.types.columns import EVENT

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Parts:
    """The rows of a file that stay, and ids and event times of those that go."""

    left: pa.Table
    gone: pa.Table


def without_entity(blobs: BlobReader, table: TableId, file: KeptFile, entity: Mapping[str, Any]) -> Parts | None:
    """Split a file of held rows; None where it has no row of the entity, or lacks one of the join keys.

    Raises InputError for a key of another type, and DamagedFileError.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows, _ = read(blobs, table, file)
    names = rows.column_names
    if not {*entity} <= {*names[names.index(FAILED) + 1 : names.index(EVENT)]}:
        return None
    is_gone: Any = pa.repeat(True, rows.num_rows)
    for name, given in entity.items():
        column = rows.column(name)
        try:
            value = pa.scalar(given, column.type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            raise InputError(f"Join key {name!r}: {given!r} is no {column.type}.", join_key=name) from None
        is_gone = pc.and_(is_gone, pc.fill_null(pc.equal(column, value), False))
    gone = rows.filter(is_gone).select([ROW_ID, EVENT])
    return Parts(rows.filter(pc.invert(is_gone)), gone) if gone.num_rows else None


def held_among(blobs: BlobReader, table: TableId, rows: Sequence[pa.Table]) -> pa.Table | None:
    """Return those of some rows that are held; None where none is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    held = held_rows(blobs, table, [ROW_ID, EVENT]) if rows else []
    if not held:
        return None
    wanted = one_array(pa.concat_tables(rows).column(ROW_ID))
    found = pa.concat_tables([each.rows.select([ROW_ID, EVENT]) for each in held])
    found = found.filter(pc.is_in(found.column(ROW_ID), value_set=wanted))
    return found if found.num_rows else None


def replace_file(blobs: Blobs, table: TableId, file: KeptFile, rows: pa.Table) -> None:
    """Put rows in the place of a file. If it dies in between, rows are there twice, which is told once."""
    if rows.num_rows:
        about = read(blobs, table, file, [ROW_ID])[1]
        more = {name: value for name, value in about.items() if name not in ("format", "view", "generation")}
        write(blobs, table, "held", rows, at_us=file.at_us, of=file.id, number=file.number, **more)
    blobs.delete(file.name, what(table))
