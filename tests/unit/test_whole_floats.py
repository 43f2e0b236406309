"""Whole floats where integers are declared: taken below the limit of their bits, refused with value and row from it on.

A float of 24 bits holds 2**24 for 2**24 + 1 too: from there on it would name another entity, without a word.
"""

from __future__ import annotations

import array
import datetime as dt
import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import INSTANT, day
from support.projects import make_workspace

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.client import _columns, _plain
from featurestore.errors import EntityKeyError, FeatureStoreError, ValueTypeError
from featurestore.ingest.rows import FEW, read_rows
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.request.features import resolve
from featurestore.serving.read import get_online_features
from featurestore.tables import as_arrow
from featurestore.training import get_historical_features
from featurestore.training.frames import check_frame, own_columns
from featurestore.types import Array, Float32, Int64
from featurestore.workspace import Workspace

LIMITS = {np.float16: 2**11, np.float32: 2**24, np.float64: 2**53}
ARROW = {np.float16: pa.float16(), np.float32: pa.float32(), np.float64: pa.float64()}
POLARS = {np.float16: pl.Float16, np.float32: pl.Float32, np.float64: pl.Float64}
WIDTHS = pytest.mark.parametrize("width", LIMITS)

COLUMNS: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {
    "numpy": lambda values: values,
    "numpy scalars": list,
    "pandas": pd.Series,
    "pandas objects": lambda values: pd.Series(list(values), dtype=object),
    "pandas nullable": lambda values: pd.Series(values, dtype=f"Float{values.itemsize * 8}"),
    "pandas on arrow": lambda values: pd.Series(pd.arrays.ArrowExtensionArray(pa.array(values))),
    "arrow": pa.array,
    "arrow chunks": lambda values: pa.chunked_array([values[:1], values[1:]]),
    "polars": pl.Series,
}
FORMS = pytest.mark.parametrize("form", COLUMNS)


def column(form: str, values: list[float], width: Any) -> Any:
    if form == "pandas nullable" and width is np.float16:
        return pd.Series(np.array(values, width))  # pandas has no nullable one of 16 bits
    return COLUMNS[form](np.array(values, width))


def cases(width: Any) -> list[tuple[int, bool]]:
    """Return integers that the width stores as they are, and whether they are certain."""
    limit = LIMITS[width]
    around = [*range(limit - 3, limit), limit, limit + 2, 2 * limit]
    return [(sign * number, number < limit) for number in around for sign in (1, -1)] + [(0, True)]


def as_text(number: int) -> str:
    return re.escape(str(float(number)))


VIEW = FeatureView(
    "view",
    entities=[Entity("thing", {"id": Int64})],
    source=PushSource("pushed", ParquetSource("source", "source.parquet", "at")),
    schema=[Field("count", Int64), Field("counts", Array(Int64)), Field("x", Float32)],
)


def pushed(name: str, given: Any, size: int) -> list[Any]:
    """Return what a push makes of a column."""
    columns = {"id": [1] * size, "at": [dt.datetime(2024, 1, 1)] * size}
    columns |= {"count": [None] * size, "counts": [None] * size, "x": [None] * size, name: given}
    rows = read_rows(columns).of_view(VIEW, now_us=day(9), until_us=day(9))
    found: list[Any] = rows.table()[name].to_pylist()
    return found


@pytest.mark.uncounted
@WIDTHS
@FORMS
def test_pushed_keys_and_features(form: str, width: Any) -> None:
    before = [1.0] * (FEW if form == "numpy scalars" else 1)  # many values of a list are looked at all at once
    for number, is_certain in cases(width):
        given = column(form, [*before, number], width)
        for name, error in (("id", EntityKeyError), ("count", ValueTypeError)):
            if is_certain:
                assert pushed(name, given, len(before) + 1) == [*before, number]
                continue
            with pytest.raises(error, match=rf"row {len(before)}: .*{as_text(number)}.* several integers") as caught:
                pushed(name, given, len(before) + 1)
            assert caught.value.details["row"] == len(before)
        assert pushed("x", given, len(before) + 1)[-1] == np.float32(number) if width is not np.float64 else True


@WIDTHS
def test_pushed_lists(width: Any) -> None:
    for number, is_certain in cases(width):
        array = np.array([1, number], width)
        for given in (
            [array],
            pa.array([array], pa.list_(ARROW[width])),
            pl.Series([list(array)], dtype=pl.List(POLARS[width])),
        ):
            if is_certain:
                assert pushed("counts", given, 1) == [[1, number]]
                continue
            with pytest.raises(ValueTypeError, match=r"row 0: "):
                pushed("counts", given, 1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return a project with one row for each integer around the limits, and its own value in ``count``."""
    numbers = sorted({near for width in LIMITS for near, _ in cases(width)} | {2**11 + 1, 2**24 + 1, 2**53 + 1})
    at = pa.array([day(1)] * len(numbers), INSTANT)
    lists = pa.nulls(len(numbers), pa.list_(pa.int64()))
    table = pa.table(
        {"id": numbers, "at": at, "count": numbers, "counts": lists, "x": pa.nulls(len(numbers), pa.float32())}
    )
    pq.write_table(table, tmp_path / "source.parquet")
    made = make_workspace(tmp_path, [VIEW], now_us=day(9))
    succeeded(materialize_incremental(made))
    return made


def answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except FeatureStoreError as error:
        return error


@pytest.mark.uncounted
def test_entity_frames_and_online_rows(workspace: Workspace) -> None:
    for width in LIMITS:
        for form in COLUMNS:
            certain = [number for number, is_certain in cases(width) if is_certain]
            given = column(form, certain, width)
            assert get_online_features(workspace, ["view:count"], {"id": given}).to_dict()["count"] == certain
            assert trained(workspace, form, given) == certain
            for number in (number for number, is_certain in cases(width) if not is_certain):
                given = column(form, [1, number], width)
                for call in (
                    lambda given=given: get_online_features(workspace, ["view:count"], {"id": given}),
                    lambda form=form, given=given: trained(workspace, form, given),
                ):
                    error = answer(call)
                    assert isinstance(error, EntityKeyError), (width, form, number, error)
                    assert str(float(number)) in error.message
                    assert "row 1" in error.message


def trained(workspace: Workspace, form: str, given: Any) -> list[int]:
    times = [dt.datetime(2024, 1, 5, tzinfo=dt.UTC)] * len(given)
    frame: Any
    if form.startswith("pandas"):
        frame = pd.DataFrame({"id": given, "event_timestamp": pd.to_datetime(times)})
    elif form == "polars":
        frame = pl.DataFrame({"id": given, "event_timestamp": times})
    else:
        frame = pa.table({"id": pa.array(given) if isinstance(given, list) else given, "event_timestamp": times})
    found: list[int] = get_historical_features(workspace, frame, "view:count").to_arrow()["count"].to_pylist()
    return found


def test_a_file_of_narrow_floats_is_an_entity_frame(workspace: Workspace, tmp_path: Path) -> None:
    for width, limit in LIMITS.items():
        at = pa.array([day(5)] * 2, INSTANT)
        path = tmp_path / "frame.parquet"
        for number in (limit - 1, limit):
            keys = pa.array(np.array([0, number], width))
            pq.write_table(pa.table({"id": keys, "own": keys, "event_timestamp": at}), path)
            made = answer(lambda path=path: get_historical_features(workspace, path, "view:count").to_arrow())
            if number < limit:
                assert made["count"].to_pylist() == [0, number]
                assert made["own"].to_pylist() == [0.0, number]
            else:
                assert isinstance(made, EntityKeyError)


def test_own_columns_of_16_bits_come_back(workspace: Workspace, tmp_path: Path) -> None:
    at = pd.to_datetime(["2024-01-05", "2024-01-06"], utc=True)
    frame = pd.DataFrame({"id": [0, 1], "event_timestamp": at, "own": np.array([0.5, np.nan], np.float16)})
    training = get_historical_features(workspace, frame, "view:count")
    pd.testing.assert_series_equal(training.to_pandas()["own"], frame["own"])
    assert training.to_arrow()["own"].type == pa.float16()
    training.write_parquet(tmp_path / "out.parquet")
    assert pq.ParquetFile(tmp_path / "out.parquet").read()["own"][0].as_py() == 0.5
    training.to_polars()


BESIDE = [7, 7.0, np.int64(7), np.float64(7), np.float32(7), np.nan, None]
OBJECTS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "pandas": lambda values: pd.Series(values, dtype=object),
    "numpy": lambda values: np.array(values, object),
    "polars": lambda values: pl.Series(values, dtype=pl.Object),
    "categories": lambda values: pd.Categorical(
        values, pd.Index([*dict.fromkeys(filter(pd.notna, values))], dtype=object)
    ),
}
NARROW: dict[str, Callable[[list[Any]], Any]] = {
    "categories": lambda values: pd.Categorical(np.array(values, np.float32)),
    "series of categories": lambda values: pd.Series(pd.Categorical(np.array(values, np.float32))),
    "array.array": lambda values: array.array("f", values),
    "arrow dictionary": lambda values: pa.array(np.array(values, np.float32)).dictionary_encode(),
}


def in_a_frame(workspace: Workspace, given: Any) -> list[Any]:
    times = [dt.datetime(2024, 1, 5, tzinfo=dt.UTC)] * len(given)
    snapshot = workspace.snapshot()
    request = resolve(snapshot, "view:count")
    own = own_columns({"id": given, "event_timestamp": times}, workspace, snapshot)
    frame = check_frame(own, request, "event_timestamp")
    return list(frame.keys.column("id Int64").to_pylist())


def in_rows(workspace: Workspace, given: Any) -> list[Any]:
    return list(get_online_features(workspace, ["view:count"], {"id": given}).to_dict()["count"])


def in_a_push(_: Workspace, given: Any) -> list[Any]:
    return pushed("id", given, len(given))


def in_a_request(_: Workspace, given: Any) -> list[Any]:
    return list(json.loads(json.dumps(_columns({"id": given}, "entity_rows"), default=_plain))["id"])


PLACES = pytest.mark.parametrize(
    "place", [in_a_frame, in_rows, in_a_push, in_a_request], ids=lambda place: place.__name__
)


@PLACES
def test_a_narrow_float_beside_another_value_stays_one(workspace: Workspace, place: Callable[..., Any]) -> None:
    """Arrow infers a wider type of such a column, where 2**24 is certain."""
    for form, other, width in product(OBJECTS, BESIDE, (np.float16, np.float32)):
        if form == "categories" and width is np.float16:
            continue  # pandas has none of 16 bits
        for number, turn in product((LIMITS[width] - 1, LIMITS[width]), (1, -1)):
            given = OBJECTS[form]([width(number), other][::turn])
            found = answer(lambda given=given: place(workspace, given))
            if number == LIMITS[width] or isinstance(found, FeatureStoreError):
                # Below the limit only null is no key, and Arrow makes no one type of 16 bits beside others of numpy.
                assert isinstance(found, FeatureStoreError), (form, other, width, number, found)
                is_null = other is None or other != other
                assert number == LIMITS[width] or is_null or width is np.float16, (form, other, width, found)
            else:
                assert number in found, (form, other, width, found)


@pytest.mark.uncounted
@PLACES
@pytest.mark.parametrize("form", NARROW)
def test_a_column_that_hides_its_narrow_type(workspace: Workspace, form: str, place: Callable[..., Any]) -> None:
    assert place(workspace, NARROW[form]([2**24 - 1, 0])) == [2**24 - 1, 0]
    assert isinstance(answer(lambda: place(workspace, NARROW[form]([2**24, 0]))), FeatureStoreError)


def test_beside_narrow_floats_no_value_becomes_another() -> None:
    for values in ([np.float16(2.5), 7], [np.float32(1), True], [np.float64(1), True], [np.True_, 3]):
        with pytest.raises(ValueError, match=r"in row \d would become"):
            as_arrow(values)
    for values in ([np.float32(2**24), 0.5], [np.float32(np.inf), 7], [[np.float32(2**24)], [0.5]]):
        assert as_arrow(values).to_pylist() == values
    for values in ([[np.float32(2**24)], [7]], [np.array([2**11], np.float16), np.array([7.0])]):
        with pytest.raises(ValueError, match="in row 0 may stand for several integers"):
            as_arrow(values)
