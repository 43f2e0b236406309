"""Columns as arrays that become tensors, and what is refused. The tensors themselves: tests/compat/tensors.py."""

from __future__ import annotations

import math
import sys
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore.errors import InputError, NotFoundError
from featurestore.training.tensors import tensor_arrays, to_tensorflow, to_torch

COLUMNS = {
    "flag": pa.array([True, False, True]),
    "small": pa.array([1, 2, 3], pa.int8()),
    "whole": pa.array([1, 2, 2**62], pa.int64()),
    "half": pa.array([1.0, 2.0, 3.0], pa.float16()),
    "single": pa.array([1.5, None, math.inf], pa.float32()),
    "double": pa.array([0.1, None, math.nan], pa.float64()),
    "holes": pa.array([1, None, None]),
    "text": pa.array(["a", "b", "c"]),
    "at": pa.array([datetime(2024, 1, 1, tzinfo=UTC)] * 3),
    "list": pa.array([[1.0], [2.0], [3.0]]),
    "huge": pa.array([1, 2, 3], pa.uint64()),
}
NUMBERS = ["flag", "small", "whole", "half", "single", "double"]
TYPES = ["bool", "int8", "int64", "float16", "float32", "float64"]


def whole(pieces: int = 1) -> pa.Table:
    table = pa.table(COLUMNS)
    return pa.concat_tables([table.slice(at, 1) for at in range(3)]) if pieces > 1 else table


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("pieces", [1, 3])
def test_numbers_keep_their_type_and_place(pieces: int, copy: bool) -> None:
    table = whole(pieces)
    found = tensor_arrays(table, NUMBERS, copy=copy)
    assert list(found) == NUMBERS
    assert [str(array.dtype) for array in found.values()] == TYPES
    assert {array.shape for array in found.values()} == {(3,)}
    for name, array in found.items():
        for got, wanted in zip(array.tolist(), table.column(name).to_pylist(), strict=True):
            assert (math.isnan(got) and (wanted is None or math.isnan(wanted))) or got == wanted


def test_a_copy_is_ones_own_and_without_one_memory_is_shared() -> None:
    table = whole()
    at = table.column("whole").chunk(0).buffers()[1].address
    (shared,) = tensor_arrays(table, ["whole"], copy=False).values()
    assert shared.ctypes.data == at
    for name, array in tensor_arrays(table, NUMBERS, copy=True).items():
        array[:] = 0
        assert table.column(name).equals(pa.table(COLUMNS).column(name)) or name == "double"  # NaN equals nothing


@pytest.mark.parametrize(
    ("columns", "error", "told"),
    [
        (["text", "at", "flag"], InputError, r"no numbers or booleans.*: text \(string\), at \(timestamp"),
        ("list", InputError, "list"),
        (["huge"], InputError, "uint64"),
        (["holes"], InputError, "'holes' is int64 and has 2 nulls"),
        (["flug"], NotFoundError, "no column 'flug'"),
    ],
)
def test_what_makes_no_tensor_is_named(columns: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        tensor_arrays(whole(), columns, copy=True)


@pytest.mark.parametrize(("make", "package"), [(to_torch, "torch"), (to_tensorflow, "tensorflow")])
def test_without_the_package(make: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"to_{package}\(\) needs {package}") as caught:
        make({"a": np.zeros(3)})
    assert f"pip install {package}" in caught.value.hint
