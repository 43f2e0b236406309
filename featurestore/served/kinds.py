"""Predictions of one name that are of several kinds: most of them are read, the others stand beside them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from featurestore.served.shape import PREDICTED_AT, PREDICTION

if TYPE_CHECKING:
    import pyarrow as pa

_WORDS = {"double": "number", "string": "text", "bool": "boolean"}
"""What the kinds are called in the names of columns, by Arrow's."""


def apart(tables: Sequence[pa.Table], fitting: Collection[str] = ()) -> list[pa.Table]:
    """Return tables in which every column of predictions has one kind: that of most values, of equally many the first.

    What is of another kind is in a column of its own, such as ``prediction.delay.text``. ``fitting`` are the kinds,
    called as there, that go before others however few they are.
    """
    counts: dict[str, dict[str, int]] = {}
    for table in tables:
        for name in filter(is_prediction, table.column_names):
            column = table.column(name)
            if valid := len(column) - column.null_count:
                of_name, word = counts.setdefault(name, {}), word_of(column.type)
                of_name[word] = of_name.get(word, 0) + valid
    chosen = {}
    for name, kinds in counts.items():
        chosen[name] = max([kind for kind in kinds if kind in fitting] or kinds, key=kinds.__getitem__)
    return [table.rename_columns([_named(table, name, chosen) for name in table.column_names]) for table in tables]


def is_prediction(name: str) -> bool:
    """Tell whether a column holds predictions."""
    return name.startswith(PREDICTION)


def word_of(kind: pa.DataType) -> str:
    """Return what a kind of value is called."""
    return _WORDS.get(str(kind), str(kind))


def is_other(column: str, name: str | None = None) -> bool:
    """Tell whether a column holds what is of another kind than most of a prediction, or of any."""
    main, _, word = column.rpartition(".")
    return word in _WORDS.values() and (main == name or (name is None and is_prediction(main)))


def other_kind(table: pa.Table, name: str | None, start_us: int, end_us: int) -> int:
    """Return how many values of a prediction, or of any, in [start, end) are of another kind than most of it."""
    import pyarrow.compute as pc

    at_us = table.column(PREDICTED_AT).cast("int64")
    is_inside = pc.and_(pc.greater_equal(at_us, start_us), pc.less(at_us, end_us))
    return sum(
        pc.sum(pc.and_(is_inside, table.column(column).is_valid())).as_py() or 0
        for column in table.column_names
        if is_other(column, name)
    )


def _named(table: pa.Table, name: str, chosen: dict[str, str]) -> str:
    column = table.column(name)
    if name not in chosen or column.null_count == len(column) or word_of(column.type) == chosen[name]:
        return name
    return f"{name}.{word_of(column.type)}"
