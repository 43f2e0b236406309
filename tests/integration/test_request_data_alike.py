"""An on-demand function gets the same request data for a training set and for an online read of the same table."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurestore import FeatureStore, Field, RequestSource, on_demand_feature_view
from featurestore.types import Float64, Int64, String

NOW = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
FIELDS = [Field("half", Float64), Field("whole", Int64), Field("text", String)]
NAN = math.nan
ROWS = {"half": [1.5, NAN], "whole": [2.0, NAN], "text": ["a", None]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    root: Path = tmp_path_factory.mktemp("request-data")
    (root / "feature_store.yaml").write_text("project: shop\n")
    given = RequestSource("given", FIELDS)

    @on_demand_feature_view(sources=[given], schema=[Field("shown", String)])
    def see(inputs: dict[str, list[Any]]) -> dict[str, list[str]]:
        rows = zip(*(inputs[field.name] for field in FIELDS), strict=True)
        return {"shown": [repr(row) for row in rows]}

    with FeatureStore(root) as opened:
        opened.apply([given, see])
        yield opened


FORMS: dict[str, tuple[Callable[[], Any], str]] = {
    "pandas": (lambda: pd.DataFrame(ROWS).assign(at=NOW), "(None, None, None)"),
    "pandas of objects": (lambda: pd.DataFrame(ROWS, dtype=object).assign(at=NOW), "(None, None, None)"),
    "pandas, nullable": (lambda: pd.DataFrame(ROWS).convert_dtypes().assign(at=NOW), "(None, None, None)"),
    "series": (lambda: {n: pd.Series(v) for n, v in ROWS.items()} | {"at": [NOW] * 2}, "(None, None, None)"),
    "numpy": (
        lambda: {n: np.array(v, dtype=object if n == "text" else None) for n, v in ROWS.items()} | {"at": [NOW] * 2},
        "(None, None, None)",
    ),
    "lists": (lambda: {**ROWS, "at": [NOW] * 2}, "(nan, None, None)"),
    "dicts": (
        lambda: [{n: v[row] for n, v in ROWS.items()} | {"at": NOW} for row in range(2)],
        "(nan, None, None)",
    ),
    "polars": (lambda: pl.DataFrame(ROWS).with_columns(at=pl.lit(NOW)), "(nan, None, None)"),
    "arrow": (lambda: pa.table({**ROWS, "at": [NOW] * 2}), "(nan, None, None)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_nan_is_a_null_in_training_where_it_is_one_online(store: FeatureStore, form: str) -> None:
    make, second = FORMS[form]
    trained = store.get_historical_features(make(), ["see:shown"], timestamp_column="at").to_arrow()
    served = store.get_online_features(["see:shown"], make()).to_dict()
    expected = ["(1.5, 2, 'a')", second]
    assert trained.column("shown").to_pylist() == expected
    assert served["shown"] == expected
