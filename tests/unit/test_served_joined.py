"""Rows of several revisions in one table."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import InputError
from featurestore.served.files import SERVED
from featurestore.served.joined import joined, without_others

INSTANT = pa.timestamp("us", "UTC")


def rows(at_us: list[int], values: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"served_at": pa.array(at_us, INSTANT), "value.x": pa.array(values, kind)})


def schema(kind: pa.DataType) -> pa.Schema:
    return pa.schema([("served_at", INSTANT), ("value.x", kind)])


@pytest.mark.parametrize(
    ("was", "values", "now", "read"),
    [
        (pa.int32(), [1], pa.int64(), pa.int64()),
        (pa.int64(), [1], pa.int32(), pa.int64()),
        (pa.int64(), [2**53], pa.float64(), pa.float64()),
        (pa.int64(), [2**53 + 1], pa.float64(), pa.int64()),
        (pa.int32(), [-5], pa.float64(), pa.float64()),
        (pa.string(), ["a"], pa.int64(), pa.string()),
        (pa.null(), [None], pa.int64(), pa.int64()),
    ],
)
def test_rows_of_one_type_are_read_in_it_or_in_a_wider_one(
    was: pa.DataType, values: list[Any], now: pa.DataType, read: pa.DataType
) -> None:
    found = joined(SERVED, [rows([1], values, was), rows([2], values, was)], schema(now))
    assert found.schema.field("value.x").type == read
    assert found.column("value.x").to_pylist() == values * 2


def test_numbers_widen_as_long_as_they_stay_what_they_are() -> None:
    tables = [rows([1], [7], pa.int64()), rows([2], [0.5], pa.float64())]
    assert joined(SERVED, tables, schema(pa.float64())).column("value.x").to_pylist() == [7.0, 0.5]
    tables[0] = rows([1], [2**53 + 1], pa.int64())
    with pytest.raises(InputError, match=r"is int64 until 1970-01-01T00:00:00.000001Z and double from 1970-01-01T00:0"):
        joined(SERVED, tables, schema(pa.float64()))
    assert without_others(tables[0], schema(pa.float64())).column("value.x").to_pylist() == [None]


def test_the_message_says_where_a_type_begins() -> None:
    tables = [rows([10, 20], ["a", "b"], pa.string()), rows([30], [1], pa.int64()), rows([40], [2], pa.int64())]
    for order in (tables, tables[::-1]):
        with pytest.raises(InputError, match=r"is string until .*\.000020Z and int64 from .*\.000030Z on") as told:
            joined(SERVED, order, schema(pa.int64()))
        assert "rows before 1970-01-01T00:00:00.000030Z, and from then on, apart" in told.value.hint


def test_types_of_two_servers_at_one_time_are_told_apart_all_the_same() -> None:
    tables = [rows([10, 50], ["a", "b"], pa.string()), rows([30, 70], [1, 2], pa.int64())]
    with pytest.raises(InputError, match=r"until .*\.000050Z and int64 already from .*\.000030Z") as told:
        joined(SERVED, tables, schema(pa.int64()))
    assert "rows before 1970-01-01T00:00:00.000030Z, and after 1970-01-01T00:00:00.000050Z" in told.value.hint
