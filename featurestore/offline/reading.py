"""Reading a table's Parquet files without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from featurestore.errors import DamagedFileError
from featurestore.offline.interface import DataFile, TableReader

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def read_groups(parquet: pq.ParquetFile, groups: Sequence[int], schema: pa.Schema) -> pa.Table:
    """Return row groups of a table's file in the columns of a schema; one that the file lacks is null."""
    import pyarrow as pa

    there = set(parquet.schema_arrow.names)
    table = parquet.read_row_groups(groups, columns=[name for name in schema.names if name in there])
    columns = [
        table.column(field.name).cast(field.type) if field.name in there else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


@contextmanager
def opened(offline: TableReader, file: DataFile | str) -> Iterator[pq.ParquetFile]:
    """Open a file of a table; raises DamagedFileError if it cannot be read, also within the block.

    A path names a file on this machine that belongs to no table: one of a direct training set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = file if isinstance(file, str) else file.path
    try:
        source = pa.OSFile(path) if isinstance(file, str) else offline.open(file)
        with source, pq.ParquetFile(source) as parquet:
            yield parquet
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> DamagedFileError:
    """Return the error for a file of the offline store that cannot be read."""
    reason = str(error).splitlines()[0].rstrip(".")
    return DamagedFileError(
        f"{path} of the offline store cannot be read: {reason}.", hint="Run `fs verify`.", path=path
    )
