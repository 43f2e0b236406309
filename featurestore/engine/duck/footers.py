"""What the footers of a source's Parquet files say, and what the names of their folders say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from featurestore.definitions.base import twins
from featurestore.engine.duck.session import source_file_error
from featurestore.engine.interface import SourceColumn
from featurestore.errors import SourceSchemaError
from featurestore.tables import WHOLE_FLOAT_LIMITS
from featurestore.types import String
from featurestore.types.arrow import value_type_of
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT

PATH, _HIVE_NULL = "fs_path_of_file", "'__HIVE_DEFAULT_PARTITION__'"
"""The column of a read that holds the file's path."""


@dataclass(frozen=True, slots=True)
class Footer:
    """One file's footer."""

    path: str
    """Absolute."""
    state: str
    """As in `SourceFile`."""
    rows: int
    columns: tuple[SourceColumn, ...]
    """Hive partition columns included."""
    in_nanoseconds: frozenset[str]
    """Timestamp columns that may be finer than microseconds."""
    partitions: tuple[Partition, ...] = ()
    """The hive folders between the source and the file."""
    texts: tuple[str, ...] = ()
    """The value of each partition, as text."""

    @property
    def has_columns(self) -> bool:
        """Whether the file itself has a column."""
        return len(self.columns) > len(self.partitions) or any(found.stored for found in self.partitions)


@dataclass(frozen=True, slots=True)
class Partition:
    """A folder ``name=value`` below a source: a String column of its files."""

    name: str
    stored: str | None
    """The type of the files' own column of this name, if they have one."""
    value: str
    """The folder's value, as an expression over `PATH`."""


@lru_cache(maxsize=65536)
def read_footer(path: str, state: str, below: str) -> Footer:
    """Read one footer; remembered while the file's state stays. ``below`` is where hive partitions start."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            stored = [file.schema.column(number) for number in range(len(file.schema))]
    except (OSError, pa.ArrowException) as error:
        raise source_file_error(path, str(error).splitlines()[0].rstrip(".")) from None
    old = {column.path for column in stored if column.physical_type == "INT96"}
    own = [
        SourceColumn(field.name, f"{field.type}{' (INT96)' * (field.name in old)}", value_type_of(field.type))
        for field in schema
    ]
    found = _partitions(Path(path), Path(below), {column.name: column.native_type for column in own})
    partitions = tuple(partition for partition, _ in found)
    folders = [partition.name for partition in partitions]
    columns = [column for column in own if column.name not in folders]
    columns += [SourceColumn(name, "hive partition", String) for name in folders]
    if same := twins(column.name for column in columns):
        raise SourceSchemaError(f"{path}: {same[0]}.", hint="Rename one of them.", path=path)
    fine = {field.name for field in schema if pa.types.is_timestamp(field.type) and field.type.unit == "ns"}
    return Footer(path, state, rows, tuple(columns), frozenset(fine), partitions, tuple(text for _, text in found))


def _partitions(path: Path, below: Path, stored: Mapping[str, str]) -> list[tuple[Partition, str]]:
    folders = path.relative_to(below).parts[:-1] if path.is_relative_to(below) else ()
    partitions = []
    for number, folder in enumerate(folders, start=len(below.parts) + 1):
        key, equals, given = folder.partition("=")
        if key and equals:
            value = f"url_decode(substr(split_part({PATH}, '/', {number}), {len(key) + 2}))"
            partition = Partition(unquote(key), stored.get(unquote(key)), f"nullif({value}, {_HIVE_NULL})")
            partitions.append((partition, unquote(given)))
    return partitions


@dataclass(frozen=True, slots=True)
class Instants:
    """What a footer says of a column of instants."""

    first_us: int
    last_us: int
    has_null: bool


NO_INSTANTS = Instants(MAX_INSTANT, MIN_INSTANT, has_null=True)
_PER_SECOND = {"milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}


@lru_cache(maxsize=65536)
def instants_in(path: str, state: str, name: str) -> Instants | None:
    """Return between which instants, ceiled, those of a file's column are; None where its footer does not say."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        places = [number for number in range(len(file.schema)) if file.schema.column(number).path == name]
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        kind = json.loads(file.schema.column(places[0]).logical_type.to_json()) if places else {}
        per_second = _PER_SECOND.get(kind.get("timeUnit", ""))
        found = [group.column(places[0]).statistics for group in groups] if per_second is not None else []
    if per_second is None or any(each is None or not each.has_null_count for each in found):
        return None
    held = [each for each in found if each.num_values]  # nulls do not count
    if not held:
        return NO_INSTANTS
    if not all(each.has_min_max for each in held):
        return None
    first, last = min(each.min_raw for each in held), max(each.max_raw for each in held)
    has_null = any(each.null_count for each in found)
    return Instants(-(-first * 10**6 // per_second), -(-last * 10**6 // per_second), has_null)


@lru_cache(maxsize=65536)
def holds_nothing(path: str, state: str, name: str, nan_too: bool) -> bool:
    """Tell whether a column of a file holds only nulls, with ``nan_too`` only nulls and NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[name]):
            column = batch.column(name)
            if nan_too and pa.types.is_floating(column.type):
                column = pc.if_else(pc.is_nan(column), None, column)
            if column.null_count < len(column):
                return False
    return True


@lru_cache(maxsize=65536)
def holds_whole(path: str, state: str, name: str) -> bool:
    """Tell whether all floats of a file's column are whole and stand for one integer each; NaN is ignored."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=[name]):
            found = batch.column(name)
            column, limit = found.cast(pa.float64()), float(WHOLE_FLOAT_LIMITS[found.type.bit_width])
            whole = pc.and_(pc.equal(pc.trunc(column), column), pc.less(pc.abs(column), limit))
            if not pc.all(pc.or_kleene(whole, pc.is_nan(column)), min_count=0).as_py():
                return False
    return True


def has_nanoseconds(path: str, name: str) -> bool:
    """Tell whether an instant of an INT96 column has digits below microseconds."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    # An INT96 outside the years 1677 to 2262 overflows in nanoseconds, but to equal values if it has no such digits.
    with pq.ParquetFile(path) as file, pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as coarse:
        pairs = zip(file.iter_batches(columns=[name]), coarse.iter_batches(columns=[name]), strict=True)
        for batch, other in pairs:
            instants = batch.column(0).cast(pa.int64())
            whole = pc.multiply(other.column(0).cast(pa.int64()), 1000)
            if pc.any(pc.not_equal(instants, whole)).as_py():
                return True
    return False
