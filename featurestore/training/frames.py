"""Entity frames: any table becomes Arrow on its way in, and comes back unchanged.

Only keys, times and request fields are read. A frame's own columns stay as they are and are joined to the features by
position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    EntityFrameError,
    EntityKeyError,
    ValueTypeError,
    did_you_mean,
)
from featurestore.registered.snapshot import Snapshot
from featurestore.request.conversion import to_frame
from featurestore.request.features import FeatureRequest
from featurestore.request.select import is_sql, select
from featurestore.tables import Form, as_arrow, read_parquet, read_table
from featurestore.types.arrow import cast_column, one_array
from featurestore.types.times import instants_from_arrow
from featurestore.types.values import ValueType
from featurestore.workspace import Readers

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa

TIME = "at"
"""The time column of the engine's frame; names of key columns there contain a blank, so that none is equal."""


def engine_column(column: str, value_type: ValueType) -> str:
    """Return the name of a key column in the frame that the engine sees: one per column and declared type."""
    return f"{column} {value_type}"


@dataclass(frozen=True, slots=True)
class OwnColumns:
    """The caller's table, in its own form."""

    form: Form
    table: Any
    path: Path | None = None
    """The file that it was read from."""

    @property
    def names(self) -> list[str]:
        """The column names as text."""
        columns = self.table.column_names if self.form == "arrow" else self.table.columns
        return [str(name) for name in columns]

    def column(self, name: str) -> pa.Array | pa.ChunkedArray:
        """Return one column as Arrow; raises EntityFrameError if it mixes types."""
        if self.form == "arrow":
            return self.table.column(name)
        column = self.table[name] if self.form == "polars" else self.table.iloc[:, self.names.index(name)]
        return _typed(name, column)

    def to_arrow(self) -> pa.Table:
        """Return all columns as Arrow; a pandas index is not a column and is left out."""
        import pyarrow as pa

        if self.form == "arrow":
            return self.table
        if not self.names:
            return no_columns(len(self.table)).to_arrow()
        return pa.Table.from_arrays([self.column(name) for name in self.names], names=self.names)

    def to_pandas(self) -> pd.DataFrame:
        """Return all columns as pandas: the given frame's own, with its index, or Arrow's as numpy would hold them."""
        return self.table.copy(deep=False) if self.form == "pandas" else to_frame(self.to_arrow())


def no_columns(row_count: int) -> OwnColumns:
    """Return rows without a column."""
    import pyarrow as pa

    return OwnColumns("arrow", pa.table({"": pa.nulls(row_count)}).select([]))


@dataclass(frozen=True)
class EntityFrame:
    """An entity frame, checked."""

    own: OwnColumns
    timestamp_column: str
    keys: pa.Table
    """What the engine joins: `engine_column` for each key, and `TIME`."""
    request_data: Mapping[str, pa.Array]
    """Request fields in their declared types."""

    def __len__(self) -> int:
        return int(self.keys.num_rows)

    def first(self, n: int) -> EntityFrame:
        """Return the first rows."""
        data = {name: values.slice(0, n) for name, values in self.request_data.items()}
        table = self.own.table.slice(0, n) if self.own.form == "arrow" else self.own.table.head(n)
        return replace(self, own=replace(self.own, table=table), keys=self.keys.slice(0, n), request_data=data)

    def taken(self, places: npt.NDArray[np.int64]) -> EntityFrame:
        """Return some of the rows, by their places."""
        import pyarrow as pa

        own, chosen = self.own.table, pa.array(places)
        table = (
            own.take(chosen)
            if self.own.form == "arrow"
            else own.iloc[places]
            if self.own.form == "pandas"
            else own[places]
        )
        data = {name: values.take(chosen) for name, values in self.request_data.items()}
        keys = self.keys.take(chosen)
        return replace(self, own=replace(self.own, table=table), keys=keys, request_data=data)

    @cached_property
    def times(self) -> Any:
        """Each row's instant in UTC microseconds, as a numpy array."""
        import pyarrow as pa

        return self.keys.column(TIME).cast(pa.int64()).to_numpy()


def check_frame(own: OwnColumns, request: FeatureRequest, timestamp_column: str) -> EntityFrame:
    """Check a table that is an entity frame, and take the columns that the join needs.

    Raises EntityFrameError for a missing column and null times (with count and first row), EntityKeyError for a key
    column that does not fit its declared type, OutputNameClashError.
    """
    import pyarrow as pa

    request.check_own_columns(own.names)
    _require(own, timestamp_column, "time column")
    columns = {TIME: _times(own.column(timestamp_column), timestamp_column)}
    for name, types in request.key_types.items():
        _require(own, name, "join key column")
        for value_type in types:
            columns[engine_column(name, value_type)] = _key(own.column(name), name, value_type)
    data = {}
    for name, field in request.request_fields.items():
        _require(own, name, "request field")
        data[name] = one_array(cast_column(own.column(name), field.type, name=name))
    return EntityFrame(own, timestamp_column, pa.table(columns), data)


def _require(own: OwnColumns, name: str, what: str) -> None:
    if name not in own.names:
        hint = did_you_mean(name, own.names)
        if own.form == "pandas" and name in own.table.index.names:
            hint = "It is in the frame's index: call reset_index() first."
        if what == "time column":
            hint = f"{hint} Another name is passed as timestamp_column= (or --timestamp-column).".strip()
        raise EntityFrameError(f"The entity frame has no {what} {name!r}.", hint=hint, column=name)


def _times(column: pa.Array | pa.ChunkedArray, name: str) -> pa.Array | pa.ChunkedArray:
    try:
        times = instants_from_arrow(column, "floor")
    except ValueTypeError as error:
        raise EntityFrameError(
            f"The time column {name!r} of the entity frame: {error.message}",
            hint="Pass timestamps, for example by pandas.to_datetime(..., utc=True).",
            column=name,
        ) from None
    if times.null_count:
        first = times.is_null().to_pylist().index(True)
        raise EntityFrameError(
            f"The time column {name!r} is null in {times.null_count:,} rows; the first is row {first}.",
            hint="Leave these rows out: without a time there is no answer.",
            column=name,
            rows=times.null_count,
            first_row=first,
        )
    return times


def _key(column: pa.Array | pa.ChunkedArray, name: str, value_type: ValueType) -> pa.Array | pa.ChunkedArray:
    try:
        return cast_column(column, value_type, name=name)
    except ValueTypeError as error:
        raise EntityKeyError(f"Join key: {error.message}", hint=error.hint, join_key=name) from None


def own_columns(entity_df: Any, workspace: Readers, snapshot: Snapshot) -> OwnColumns:
    """Return a caller's table in its own form, safe from the caller's later changes.

    Raises EntityFrameError for anything that is neither a table, nor a file of one, nor SQL that gives one.
    """
    import pyarrow as pa

    path = None
    if isinstance(entity_df, str) and is_sql(entity_df):
        entity_df = select(entity_df, workspace, snapshot, "the entity frame")
    elif isinstance(entity_df, str | Path):
        path = Path(entity_df).absolute()  # the working directory may be another when the set is written
        entity_df = read_parquet(entity_df, "The entity frame", EntityFrameError)
    given = read_table(entity_df, "entity_df", error=EntityFrameError)
    if given.form == "pandas":
        import pandas as pd

        # pandas 3 and later copy when either side is written to; before, a caller's later write would show.
        return OwnColumns("pandas", given.frame.copy(deep=int(pd.__version__.partition(".")[0]) < 3))
    if given.form == "polars":
        return OwnColumns("polars", given.frame.clone())
    if given.form == "python":
        return OwnColumns("arrow", pa.table({name: _typed(name, values) for name, values in given.columns.items()}))
    return OwnColumns("arrow", given.frame, path)


def _typed(name: str, values: Any) -> pa.Array | pa.ChunkedArray:
    try:
        return as_arrow(values)
    except ValueError as error:
        raise EntityFrameError(f"Column {name!r} of the entity frame mixes types: {error}.", column=name) from None
