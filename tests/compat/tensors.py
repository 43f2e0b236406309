"""Training sets as tensors of the real torch and TensorFlow: `make test-tensors` runs this in its own environment.

Without fixtures of the other tests: their libraries are not installed there.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import torch

from featurestore import Entity, FeatureService, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.errors import InputError
from featurestore.training import TrainingSet
from featurestore.types import Bool, Float32, Float64, Int32, Int64, String

BEGIN = datetime(2024, 3, 1, tzinfo=UTC)
ROWS = 40
TYPES = {"small": Int32, "whole": Int64, "single": Float32, "double": Float64, "flag": Bool}
NAMES = [*TYPES]


def value(name: str, row: int) -> Any:
    """Return what the source holds, by hand."""
    if name in ("single", "double") and row % 7 == 0:
        return None
    return {
        "small": row - 5,
        "whole": 2**62 + row,
        "single": row / 4,
        "double": row / 10,
        "flag": row % 3 == 0,
        "text": f"t{row}",
        "holes": row if row % 2 else None,
    }[name]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    root = tmp_path_factory.mktemp("shop")
    (root / "feature_store.yaml").write_text("project: shop\n")
    kinds = {
        "small": pa.int32(),
        "whole": pa.int64(),
        "single": pa.float32(),
        "double": pa.float64(),
        "flag": pa.bool_(),
    }
    kinds |= {"text": pa.string(), "holes": pa.int64()}
    columns = {name: pa.array([value(name, row) for row in range(ROWS)], kind) for name, kind in kinds.items()}
    times = pa.array([BEGIN] * ROWS, pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({"key": range(ROWS), "at": times, **columns}), root / "rows.parquet")
    view = FeatureView(
        "numbers",
        entities=[Entity("thing", join_keys={"key": Int64})],
        source=ParquetSource("rows", "rows.parquet", "at"),
        schema=[Field(name, kind) for name, kind in (TYPES | {"text": String, "holes": Int64}).items()],
    )
    store = FeatureStore(root)
    store.apply([view, FeatureService("numbers_v1", features=[view[NAMES]])])
    store.materialize_incremental()
    frame = pa.table(
        {"key": range(ROWS), "event_timestamp": [BEGIN + timedelta(hours=1)] * ROWS, "target": [0.5] * ROWS}
    )
    return store.get_historical_features(frame, [view])


def same(found: list[Any], name: str) -> bool:
    wanted = [value(name, row) for row in range(ROWS)]
    return all((b is None and math.isnan(a)) or a == b for a, b in zip(found, wanted, strict=True))


def test_torch(training: TrainingSet) -> None:
    for copy in (True, False):
        found = training.to_torch(NAMES, copy=copy)
        assert list(found) == NAMES
        kinds = [torch.int32, torch.int64, torch.float32, torch.float64, torch.bool]
        assert [tensor.dtype for tensor in found.values()] == kinds
        assert {tuple(tensor.shape) for tensor in found.values()} == {(ROWS,)}
        assert all(same(tensor.tolist(), name) for name, tensor in found.items())
    before = training.to_arrow()
    mine = training.to_torch(NAMES)
    for tensor in mine.values():
        tensor.zero_()  # what people do to their own
    assert training.to_arrow().select(["small", "whole", "flag"]).equals(before.select(["small", "whole", "flag"]))
    assert same(training.to_torch(["small"])["small"].tolist(), "small")
    stacked = torch.stack([*training.to_torch(["double", "target"]).values()], dim=1)
    assert tuple(stacked.shape) == (ROWS, 2)
    assert stacked[:, 1].tolist() == [0.5] * ROWS


def test_tensorflow(training: TrainingSet) -> None:
    found = training.to_tensorflow(NAMES)
    assert list(found) == NAMES
    assert [tensor.dtype for tensor in found.values()] == [tf.int32, tf.int64, tf.float32, tf.float64, tf.bool]
    assert {tuple(tensor.shape) for tensor in found.values()} == {(ROWS,)}
    assert all(same(tensor.numpy().tolist(), name) for name, tensor in found.items())


@pytest.mark.parametrize("make", ["to_torch", "to_tensorflow"])
def test_what_is_no_tensor(training: TrainingSet, make: str) -> None:
    with pytest.raises(InputError, match=r"no numbers or booleans.*: text \(string\)"):
        getattr(training, make)()
    with pytest.raises(InputError, match="'holes' is int64 and has 20 nulls"):
        getattr(training, make)(["small", "holes"])


def test_an_empty_set_has_empty_tensors(training: TrainingSet) -> None:
    empty = training.to_arrow().slice(0, 0)
    from featurestore.training.tensors import tensor_arrays, to_tensorflow, to_torch

    arrays = tensor_arrays(empty, NAMES, copy=False)
    assert [tuple(tensor.shape) for tensor in (*to_torch(arrays).values(), *to_tensorflow(arrays).values())] == [
        (0,)
    ] * 10


def test_the_memory_is_the_tables_own_without_a_copy(tmp_path: Path) -> None:
    from featurestore.training.tensors import tensor_arrays, to_torch

    table = pa.table({"whole": pa.array(range(100))})
    shared = to_torch(tensor_arrays(table, ["whole"], copy=False))["whole"]
    assert shared.data_ptr() == table.column("whole").chunk(0).buffers()[1].address
