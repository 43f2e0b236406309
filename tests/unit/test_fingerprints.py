"""Fingerprints of results: one for each content, whatever its batches."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.training.fingerprints import fingerprint

COLUMNS: dict[pa.DataType, list[Any]] = {
    pa.bool_(): [True, False, None],
    pa.int32(): [0, 1, None],
    pa.int64(): [0, -1, None],
    pa.float32(): [0.0, -0.0, None],
    pa.float64(): [0.0, -0.0, None],
    pa.string(): ["", "a", "aa", None],
    pa.binary(): [b"", b"a", b"aa", None],
    pa.timestamp("us", "UTC"): [0, 1, None],
    pa.date32(): [0, 1, None],
    pa.decimal128(5, 2): [0, 1, None],
    pa.list_(pa.bool_()): [[], [None], [False], [True, None], None],
    pa.list_(pa.list_(pa.string())): [[], [[]], [None], [["a"], ["a"]], [["a", "a"]], [["aa"], []], None],
}


def of(column: pa.ChunkedArray) -> str:
    table = pa.table({"column": column})
    return fingerprint(table.schema, table.to_batches())


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", COLUMNS, ids=str)
@given(data=st.data())
def test_equal_where_the_values_are_however_they_are_cut(kind: pa.DataType, data: st.DataObject) -> None:
    values = st.lists(st.sampled_from(range(len(COLUMNS[kind]))), min_size=1, max_size=4)
    one, other = data.draw(values), data.draw(values)
    array = pa.array([COLUMNS[kind][place] for place in one], kind)
    cut = data.draw(st.integers(0, len(one)))
    assert of(pa.chunked_array([array[:cut], array[cut:]])) == of(pa.chunked_array([array]))
    assert (one == other) == (
        of(pa.chunked_array([[COLUMNS[kind][p] for p in other]], kind)) == of(pa.chunked_array([array]))
    )
