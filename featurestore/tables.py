"""Tables that callers pass, read by one reader, and tables and texts as a notebook or a terminal shows them.

Entity frames, entity rows and pushed rows come here, in process and on their way to a server.

It loads no library that the caller has not loaded, except pyarrow for objects with an Arrow stream.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurestore.errors import FeatureStoreError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

Form = Literal["pandas", "arrow", "polars", "python"]

_FORMS = "a pandas, polars or Arrow table, anything with __arrow_c_stream__, a dict of lists or a list of dicts"
_NO_COLUMNS = (str, bytes, bytearray, memoryview, Mapping, Set)
"""Types with a length but without an order of values: a set's order means nothing."""
SHOWN_ROWS = 20
"""At most so many rows are shown in a notebook."""
NULLS = frozenset({"NAType", "NaTType"})
"""The types of pandas' own nulls."""
WHOLE_FLOAT_LIMITS = {16: 2**11, 32: 2**24, 64: 2**53}
"""By bits: from here on a float may stand for several integers, such as 2**53 for 2**53 + 1 too."""
_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp"})
"""Categories of Unicode: controls, marks of direction, separators of lines and paragraphs."""
_JOINERS = "\u200c\u200d"
"""Persian and emoji are written with them."""
_NARROW_TYPE = re.compile(r"\b(?:(halffloat|float16)|float32|float)\b")


def float_bits(kind: object) -> int:
    """Return the bits of floats, 64 for all other types.

    ``kind`` is the type of a column, of its items, or of a scalar, as numpy, pandas, polars, Arrow or DuckDB name it.
    """
    narrow = _NARROW_TYPE.search(str(kind).lower())
    return 64 if narrow is None else 16 if narrow[1] else 32


@dataclass(frozen=True, slots=True)
class Table:
    """A caller's table: columns of one length by name, each as its library holds it."""

    form: Form
    frame: Any
    """The pandas or polars frame or the Arrow table; None for lists and dicts."""
    columns: dict[str, Any]
    has_names: bool = True
    """False for an empty list, which has neither rows nor columns."""


def read_table(
    given: Any, what: str, *, error: type[InputError] = InputError, row_error: type[InputError] | None = None
) -> Table:
    """Return any table that a caller passes; reads one that can be read only once a single time.

    ``what`` names it in messages. Raises ``error`` for anything that is not a table, two columns with the same name,
    and columns that are not lists or not equally long, and ``row_error`` (``error`` unless given) for a dict that lacks
    a key of another.
    """
    if isinstance(given, Iterator) and not hasattr(given, "__arrow_c_stream__"):
        given = list(given)
    form: Form = "python"
    frame = None
    kind = type(given)  # asked of the class, because a frame's columns are attributes too and may have any name
    if isinstance(given, Mapping):
        pairs = [(name, _column(name, values, what, error)) for name, values in given.items()]
    elif isinstance(given, list | tuple) and all(isinstance(row, Mapping) for row in given):
        pairs = _turned(given, what, row_error or error)
    elif _is_of(kind, "pandas") and hasattr(kind, "columns"):
        form, frame = "pandas", given
        pairs = [(name, given.iloc[:, place]) for place, name in enumerate(given.columns)]
    elif _is_of(kind, "polars") and hasattr(kind, "collect_schema"):
        with _told(given, what, error):
            form, frame = "polars", given.lazy().collect()
        pairs = [(column.name, column) for column in frame.get_columns()]
    else:
        form, frame = "arrow", _arrow_table(given, what, error)
        pairs = list(zip(frame.column_names, frame.columns, strict=True))
    columns = {str(name): values for name, values in pairs}
    if len(columns) < len(pairs):
        names = [str(name) for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise error(f"{what} has two columns called {twice!r}.", hint="Rename one of them.", column=twice)
    if form == "python":
        check_lengths(columns, what, error)
    return Table(form, frame, columns, has_names=bool(columns) or not isinstance(given, list | tuple) or bool(given))


def read_parquet(path: str | Path, what: str, error: type[InputError] = InputError) -> pa.Table:
    """Return the rows of a Parquet file; raises ``error`` for one that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
            stored = [file.schema.column(place) for place in range(len(file.schema))]
        old = [column.path for column in stored if column.physical_type == "INT96"]
        return table if not old else _without_overflow(table, path, old)
    except (OSError, pa.ArrowException) as cause:
        hint = "Pass the path of a Parquet file."
        if isinstance(cause, FileNotFoundError):
            reason = "there is no such file"
        elif isinstance(cause, OSError) and cause.errno:
            reason, hint = os.strerror(cause.errno), "Check the rights of the file and of its folder."
        else:
            reason = str(cause).splitlines()[0].rstrip(".")
        raise error(f"{what} {path} cannot be read: {reason}.", hint=hint, path=str(path)) from None


def parquet_fault(path: str | Path) -> str | None:
    """Return why a Parquet file cannot be read completely, or None when it can."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for _ in file.iter_batches():
                pass
    except (OSError, pa.ArrowException) as error:
        return str(error).splitlines()[0].rstrip(".")
    return None


def _without_overflow(table: pa.Table, path: str | Path, names: Iterable[str]) -> pa.Table:
    """Return a table whose instants of the old type INT96 are in microseconds if nanoseconds cannot hold them.

    Arrow silently reads 9999-12-31 as a day in 1816.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    reach_us = pa.scalar((2**63 - 1) // 1000)
    with pq.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
        for name in set(names) & set(table.column_names):
            coarse = file.read(columns=[name]).column(0)
            if pc.any(pc.greater(pc.abs(coarse.cast(pa.int64())), reach_us)).as_py():
                table = table.set_column(table.column_names.index(name), name, coarse)
    return table


def check_lengths(columns: Mapping[str, Any], what: str, error: type[InputError] = InputError) -> int:
    """Return how many rows there are; raises ``error`` for columns that are not equally long."""
    lengths = {name: len(values) for name, values in columns.items()}
    first = next(iter(lengths.items()), ("", 0))
    for name, length in lengths.items():
        if length != first[1]:
            raise error(
                f"The columns of {what} are not equally long ({first[0]}: {first[1]}, {name}: {length}).", column=name
            )
    return first[1]


def as_list(values: Any) -> list[Any]:
    """Return a column as a new list of Python values; pandas' nulls become None, NaN among floats stays.

    Raises InputError for numpy's instants that Python would truncate.
    """
    if isinstance(values, list | tuple):
        return [*values]
    kind = type(values)  # a series may have a label of any name
    if hasattr(kind, "to_pylist"):  # Arrow
        return list(values.to_pylist())
    if hasattr(kind, "to_list"):  # pandas and polars
        has_floats = getattr(values.dtype, "kind", "f") == "f"
        listed = values.tolist() if hasattr(kind, "tolist") else values.to_list()
        return [_plain(v) if has_floats or not isinstance(v, float) or v == v else None for v in listed]
    return [_plain(value) for value in (instants_as_list(values) if hasattr(kind, "tolist") else values)]


def without_null_nan(values: Any, listed: list[Any]) -> list[Any]:
    """Return a column's Python values with None for each NaN that is pandas' null, by the rule of `as_arrow`."""
    kind = type(values)
    keeps = hasattr(kind, "to_pylist") or hasattr(kind, "to_arrow")  # Arrow and polars have nulls of their own
    if keeps or (isinstance(values, list | tuple) and all(value is None or _is_float(value) for value in values)):
        return listed
    return [None if isinstance(value, float) and value != value else value for value in listed]


def import_polars() -> Any:
    """Return the optional module polars; raises InputError where it is not installed."""
    try:
        import polars
    except ImportError as error:
        raise InputError(
            f"to_polars() needs polars: {error}.",
            hint="Install it (`pip install '.[polars]'` in a checkout), or use to_arrow() or to_pandas().",
        ) from None
    return polars


def visible(text: str) -> str:
    """Return a text as one line that moves no cursor, hides nothing and turns no writing around.

    What a registry holds was written by others, who may not write into a terminal or a log.
    """
    if text.isprintable():
        return text
    return "".join(
        ascii(each)[1:-1] if unicodedata.category(each) in _UNSEEN and each not in _JOINERS else each for each in text
    )


def visible_lines(text: str) -> str:
    """Return a text of several lines as `visible` ones, all after the first indented: none passes for another's."""
    return "\n  ".join(map(visible, text.expandtabs().split("\n")))


def html_table(rows: Iterable[Iterable[Any]], heads: Iterable[Any] = ()) -> str:
    """Return rows as an HTML table with every text escaped."""
    kept = "text-align:left;white-space:pre-wrap"
    head = "".join(f"<th style='{kept}'>{escape(str(name))}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td style='{kept}'>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def html_columns(columns: Mapping[str, Sequence[Any]], row_count: int) -> str:
    """Return the first rows of some columns as an HTML table, and how many more there are."""
    shown = zip(*(values[:SHOWN_ROWS] for values in columns.values()), strict=True)
    more = f"<p>{row_count - SHOWN_ROWS:,} more rows</p>" if row_count > SHOWN_ROWS else ""
    return html_table(shown, columns) + more


def library_type(values: Any) -> Any:
    """Return the type of a column, of its categories or of a scalar as its library names it, "" for Python's own."""
    kind = getattr(values, "type", None) or getattr(values, "dtype", "")
    if getattr(values, "typecode", "") == "f":  # array.array
        return "float32"
    return getattr(getattr(kind, "categories", None), "dtype", kind)  # pandas' categories are values


def instants_as_list(values: Any) -> Any:
    """Return numpy's values as Python's; numpy itself would turn instants finer than a microsecond into integers."""
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", "") != "M" or str(dtype) == "datetime64[D]":  # days become dates
        return values.tolist()
    rounded = values.astype("datetime64[us]")
    if ((rounded != values) & (values == values)).any():  # NaT is not itself
        raise InputError(
            "Some instants are finer than a microsecond.", hint="Round event and created times up and all others down."
        )
    return rounded.tolist()


def as_arrow(values: Any) -> pa.Array | pa.ChunkedArray:
    """Return a column as Arrow without changing a value; raises ValueError if it mixes types."""
    import pyarrow as pa

    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if hasattr(type(values), "to_arrow"):  # polars, which would return the addresses of Python objects
        if str(values.dtype) != "Object":
            return values.to_arrow()
        values = values.to_list()
    try:
        if getattr(values, "typecode", "") == "f":  # array.array, whose items are Python floats
            return pa.array(values, pa.float32())
        if isinstance(values, list | tuple) or str(getattr(values, "dtype", "object")) == "object":
            return _inferred(values)
        if str(library_type(values)) == "object" and _has(_NARROW, values.dtype.categories):
            return _inferred(values)
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(str(error).splitlines()[0].rstrip(".")) from None


def _inferred(values: Any) -> pa.Array:
    """Return Python values in the type that Arrow infers. NaN among values that are not floats is a null."""
    import pyarrow as pa

    is_list = isinstance(values, list | tuple)
    from_pandas = not (is_list and all(value is None or _is_float(value) for value in values))
    try:
        column = pa.array(values, from_pandas=from_pandas)
    except OverflowError:  # beyond Int64
        return pa.array(values, pa.uint64(), from_pandas=from_pandas)
    kind = column.type
    if pa.types.is_timestamp(kind) and any(getattr(value, "nanosecond", 0) > 0 for value in values):
        column = pa.array(values, pa.timestamp("ns", kind.tz), from_pandas=from_pandas)
    # When types are mixed, Arrow turns texts next to bytes into bytes, instants next to dates into dates, bools next to
    # numpy numbers into numbers, and narrow floats into integers. Other types keep what they take.
    is_mixed = not pa.types.is_boolean(kind) and _has((*_NARROW, "bool", "bool_"), values)
    if is_mixed or pa.types.is_binary(kind) or pa.types.is_temporal(kind) or pa.types.is_nested(kind):
        listed = column.to_pylist()
        for row, (value, kept) in enumerate(zip(values, listed, strict=True)):
            if not _is_same(value, kept):
                raise ValueError(f"{value!r} in row {row} would become {kept!r}")
        _check_certain(values, listed, str(kind))
    return column


_NARROW = {"float16": "halffloat", "float32": "float"}
"""Numpy's types, and what Arrow calls them."""


def _has(names: Iterable[str], values: Iterable[Any]) -> bool:
    """Tell whether a value's type has one of the names."""
    return not {kind.__name__ for kind in set(map(type, values))}.isdisjoint(names)


def _check_certain(values: Iterable[Any], kept: list[Any], kind: str) -> None:
    """Refuse a float that may stand for several integers, before a wider type hides it; raises ValueError.

    In a column with a fraction nothing is an integer.
    """
    if not all(map(_is_whole, _leaves(kept))):
        return
    found = re.findall(r"\w+", kind)
    wider = {name: WHOLE_FLOAT_LIMITS[float_bits(name)] for name, arrow in _NARROW.items() if arrow not in found}
    for row, value in enumerate(values):
        for leaf in _leaves(value):
            limit = wider.get(type(leaf).__name__)
            if limit is not None and limit <= abs(leaf) < math.inf:
                raise ValueError(f"{leaf!r} in row {row} may stand for several integers")


def _leaves(value: Any) -> Iterator[Any]:
    """Return the values in lists, arrays and dicts."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0:
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _is_whole(value: Any) -> bool:
    return not isinstance(value, float) or value != value or value.is_integer()


def _is_float(value: Any) -> bool:
    return isinstance(value, float) or getattr(getattr(value, "dtype", None), "kind", "") == "f"


def _is_same(given: Any, kept: Any) -> bool:
    """Tell whether Arrow kept a value. Naive instants are UTC; nulls of any library are None."""
    if kept is None:
        return _plain(given) is None or bool(given != given)
    if type(given).__name__ in ("bool", "bool_") and not isinstance(kept, bool):
        return False
    if isinstance(kept, list):
        items = given.tolist() if hasattr(given, "tolist") else list(given)
        return len(items) == len(kept) and all(map(_is_same, items, kept))
    if isinstance(kept, dict):
        return all(_is_same(given.get(name), value) for name, value in kept.items())
    if isinstance(given, datetime) and isinstance(kept, datetime):
        # By difference: an instant in an hour that occurs twice never compares equal to one of another zone.
        return not (_aware(given) - _aware(kept))
    if isinstance(given, date) and isinstance(given, datetime) != isinstance(kept, datetime):
        return False
    return bool(given == kept or given != given)


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _plain(value: Any) -> Any:
    return None if type(value).__name__ in NULLS else value


def _is_of(kind: type, library: str) -> bool:
    return any(base.__module__.partition(".")[0] == library for base in kind.__mro__)


def _column(name: Any, values: Any, what: str, error: type[InputError]) -> Any:
    """Return one value of a dict of columns, an iterator as a list; raises ``error`` for anything but a column."""
    if isinstance(values, Iterator):
        return list(values)
    try:
        len(values)  # fails for an array of no dimension
    except TypeError:
        is_column = False
    else:
        is_column = isinstance(values, Iterable) and not isinstance(values, _NO_COLUMNS)
    if not is_column:
        raise error(
            f"Column {name!r} of {what} is {type(values).__name__}, not a list of values.",
            hint="Pass one value per row.",
            column=str(name),
        )
    return values


def _turned(rows: Any, what: str, error: type[InputError]) -> list[tuple[Any, list[Any]]]:
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return [(name, [row[name] for row in rows]) for name in names]
    except KeyError:
        place, name = next((p, n) for n in names for p, row in enumerate(rows) if n not in row)
        hint = "Pass None where there is none."
        raise error(f"Row {place} of {what} has no {name!r}.", hint=hint, row=place) from None


def _arrow_table(given: Any, what: str, error: type[InputError]) -> pa.Table:
    if not (hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__")):
        raise error(f"{what} is {type(given).__name__}, not a table.", hint=f"Pass {_FORMS}.")
    try:
        import pyarrow as pa
    except ImportError:
        raise error(
            f"{what} is {type(given).__name__}, which only pyarrow reads: it is not installed.",
            hint="Install it, or pass a dict of lists.",
        ) from None
    if isinstance(given, pa.Table):
        return given
    with _told(given, what, error):
        if isinstance(given, pa.Array | pa.ChunkedArray):
            return pa.Table.from_struct_array(given)  # respects slices
        return pa.table(given)


@contextmanager
def _told(given: Any, what: str, error: type[InputError]) -> Iterator[None]:
    """Raise ``error`` for any exception of another library while it hands over its rows."""
    try:
        yield
    except FeatureStoreError:
        raise  # raised by our own training set
    except Exception as cause:  # the object is a single column, or a query that runs only now, in any library
        reason = (str(cause).splitlines() or [type(cause).__name__])[0].rstrip(".")
        raise error(f"{what} is {type(given).__name__}, not a table: {reason}.", hint=f"Pass {_FORMS}.") from cause
