"""Every form of a table in every place that takes one: the same values, of the same types."""

from __future__ import annotations

import datetime as dt
import math
import sys
from collections.abc import Callable
from decimal import Decimal as D
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_project import small_project

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.client import OnlineResponse, OnlineRows, _columns
from featurestore.errors import FeatureStoreError, InputError
from featurestore.ingest.rows import read_rows
from featurestore.request.features import resolve
from featurestore.serving.read import get_online_features
from featurestore.tables import as_arrow, as_list, read_table
from featurestore.training import get_historical_features
from featurestore.training.frames import EntityFrame, check_frame, own_columns
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float64, Int64, String, Timestamp
from featurestore.types.arrow import arrow_type
from featurestore.workspace import Workspace

NEW_YORK = ZoneInfo("America/New_York")
LARGE = 1_234_567_890_123_456_789
MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC)

COLUMNS: dict[str, list[Any]] = {
    "plane_id": [LARGE, -LARGE, 0],
    "event_timestamp": [MOMENT, dt.datetime(2024, 1, 1, tzinfo=dt.UTC), dt.datetime(1969, 12, 31, tzinfo=dt.UTC)],
    "whole": [LARGE, None, 2**53 + 1],
    "real": [0.1, None, -0.0],
    "yes": [True, None, False],
    "text": ["é🛬", None, ""],
    "raw": [b"\x00\xff", None, b""],
    "day": [dt.date(1, 1, 1), None, dt.date(9999, 12, 31)],
    "money": [D("1234567890123456.0100"), None, D("-0.0001")],
    "seen": [MOMENT, None, dt.datetime(1, 1, 1, tzinfo=dt.UTC)],
    "longs": [[1, None, LARGE], None, []],
}
KINDS = {
    "plane_id": Int64, "event_timestamp": Timestamp, "whole": Int64, "real": Float64, "yes": Bool, "text": String,
    "raw": Bytes, "day": Date, "money": Decimal(20, 4), "seen": Timestamp, "longs": Array(Int64),
}  # fmt: skip


class Stream:
    """What offers itself as an Arrow stream and nothing else, and only once."""

    def __init__(self, table: pa.Table) -> None:
        self._reader = table.to_reader(max_chunksize=2)
        self.reads = 0

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        self.reads += 1
        assert self.reads == 1
        return self._reader.__arrow_c_stream__(requested_schema)


def table() -> pa.Table:
    return pa.table({name: pa.array(values, arrow_type(KINDS[name])) for name, values in COLUMNS.items()})


def dicts() -> list[dict[str, Any]]:
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def struct() -> pa.StructArray:
    return table().combine_chunks().to_struct_array().chunk(0)


def each(make: Callable[[Any], Any]) -> dict[str, Any]:
    return {column.name: make(column) for column in pl.DataFrame(table()).get_columns()}


FORMS: dict[str, Callable[[], Any]] = {
    "dict of lists": lambda: dict(COLUMNS),
    "dict of tuples": lambda: {name: tuple(values) for name, values in COLUMNS.items()},
    "dict of iterators": lambda: {name: iter(values) for name, values in COLUMNS.items()},
    "dict of numpy arrays": lambda: {name: np.array([*values, None], object)[:-1] for name, values in COLUMNS.items()},
    "dict of pandas series": lambda: {n: pd.Series(values, dtype=object) for n, values in COLUMNS.items()},
    "dict of polars series": lambda: each(lambda column: column),
    "dict of Arrow arrays": lambda: each(lambda column: column.to_arrow()),
    "dict of chunked arrays": lambda: dict(zip(COLUMNS, table().columns, strict=True)),
    "list of dicts": dicts,
    "tuple of dicts": lambda: tuple(dicts()),
    "generator of dicts": lambda: (row for row in dicts()),
    "dicts of pandas": lambda: pd.DataFrame(COLUMNS, dtype=object).to_dict("records"),
    "pandas": lambda: pd.DataFrame(COLUMNS, dtype=object),
    "pandas over Arrow": lambda: table().to_pandas(types_mapper=pd.ArrowDtype),
    "polars": lambda: pl.DataFrame(table()),
    "polars lazy": lambda: pl.LazyFrame(table()),
    "Table": table,
    "RecordBatch": lambda: table().combine_chunks().to_batches()[0],
    "RecordBatchReader": lambda: table().to_reader(),
    "StructArray": struct,
    "ChunkedArray": lambda: pa.chunked_array([struct()[:1], struct()[1:]]),
    "Arrow stream": lambda: Stream(table()),
    "DuckDB relation": lambda: duckdb.connect().from_arrow(table()),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return small_project(tmp_path_factory.mktemp("project"))


def as_frame(workspace: Workspace, given: Any) -> EntityFrame:
    snapshot = workspace.snapshot()
    return check_frame(own_columns(given, workspace, snapshot), resolve(snapshot, "every_type:i32"), "event_timestamp")


def entity_frame(workspace: Workspace, given: Any) -> dict[str, list[Any]]:
    frame = as_frame(workspace, given)
    assert frame.keys.column("plane_id Int64").to_pylist() == COLUMNS["plane_id"]
    return frame.own.to_arrow().to_pydict()


def entity_rows(workspace: Workspace, given: Any) -> dict[str, list[Any]]:
    found = get_online_features(workspace, "every_type:i32", given).to_dict()
    assert found.pop("i32") == [None] * 3
    return found


def pushed_rows(workspace: Workspace, given: Any) -> dict[str, list[Any]]:
    source = PushSource("pushed", ParquetSource("source", "source.parquet", "event_timestamp"))
    fields = [Field(name, kind) for name, kind in list(KINDS.items())[2:]]
    view = FeatureView("view", entities=[Entity("id", {"plane_id": Int64})], source=source, schema=fields)
    rows = read_rows(given).of_view(view, now_us=2**60, until_us=2**60).table().drop_columns("created_ts")
    return rows.rename_columns({"event_ts": "event_timestamp"}).to_pydict()


def to_a_server(_: Workspace, given: Any) -> dict[str, list[Any]]:
    return _columns(given, "entity_rows")


PLACES = [entity_frame, entity_rows, pushed_rows, to_a_server]


def plain(value: Any) -> Any:
    """Return a value with its type, naive instants in UTC, numpy's and pandas' scalars as Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, pd.Timestamp):
        assert value.nanosecond in (0, 1)
        value = value.to_pydatetime(warn=False) if not value.nanosecond else str(value)
    if isinstance(value, list | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, dt.datetime):
        value = value.replace(tzinfo=value.tzinfo or dt.UTC).astimezone(dt.UTC)
    return type(value).__name__, repr(value.normalize()) if isinstance(value, D) else repr(value)


@pytest.mark.uncounted
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_values_in_every_place(
    workspace: Workspace, form: str, place: Callable[[Workspace, Any], dict[str, list[Any]]]
) -> None:
    found = place(workspace, FORMS[form]())
    assert set(found) == set(COLUMNS)
    for name, values in COLUMNS.items():
        assert [plain(value) for value in found[name]] == [plain(value) for value in values], (form, name)


@pytest.mark.filterwarnings("ignore::featurestore.training.coverage.TrainingSetWarning")
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_training_set_is_a_table(workspace: Workspace, place: Callable[..., dict[str, list[Any]]]) -> None:
    made = get_historical_features(workspace, dict(COLUMNS), "every_type:i64")
    found = place(workspace, made)
    assert [plain(value) for value in found["whole"]] == [plain(value) for value in COLUMNS["whole"]]


@pytest.mark.parametrize("place", [entity_frame, pushed_rows], ids=lambda place: place.__name__)
@pytest.mark.parametrize("make", [str, Path])
def test_a_path_is_a_table_where_files_are_read(
    workspace: Workspace, tmp_path: Path, make: Callable[[Any], Any], place: Callable[..., dict[str, list[Any]]]
) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(table(), path)
    assert [plain(value) for value in place(workspace, make(path))["money"]] == list(map(plain, COLUMNS["money"]))
    with pytest.raises(InputError, match=r"nowhere\.parquet cannot be read: there is no such file"):
        place(workspace, make(tmp_path / "nowhere.parquet"))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "is int, not a table"),
        (None, "is NoneType, not a table"),
        ([7], "is list, not a table"),
        ([{"plane_id": 1}, 7], "is list, not a table"),
        (pd.Series([1], name="plane_id"), "is Series, not a table"),
        (pl.Series("plane_id", [1]), "is Series, not a table"),
        (pa.array([1]), "is Int64Array, not a table"),
        (pa.chunked_array([[1]]), "is ChunkedArray, not a table"),
        (np.array([[1]]), "is ndarray, not a table"),
        ({"plane_id": 1}, "'plane_id' of .* is int, not a list"),
        ({"plane_id": "7"}, "'plane_id' of .* is str, not a list"),
        ({"plane_id": b"7"}, "'plane_id' of .* is bytes, not a list"),
        ({"plane_id": {1}}, "'plane_id' of .* is set, not a list"),
        ({"plane_id": {1: 1}}, "'plane_id' of .* is dict, not a list"),
        ({"plane_id": np.array(1)}, "'plane_id' of .* is ndarray, not a list"),
        ({"plane_id": [1], "event_timestamp": []}, r"not equally long \(plane_id: 1, event_timestamp: 0\)"),
        ([{"plane_id": 1, "event_timestamp": MOMENT}, {"plane_id": 2}], "Row 1 of .* has no 'event_timestamp'"),
        (pd.DataFrame([[1, 1]], columns=["plane_id"] * 2), "two columns called 'plane_id'"),
        (pa.table([[1], [1]], ["plane_id"] * 2), "two columns called 'plane_id'"),
        ({7: [1], "7": [1]}, "two columns called '7'"),
    ],
)
def test_what_is_no_table_is_refused_in_every_place(
    workspace: Workspace, given: Any, message: str, place: Callable[..., object]
) -> None:
    with pytest.raises(InputError, match=message):
        place(workspace, given)


def test_what_can_be_read_once_is_read_once(workspace: Workspace) -> None:
    for place in PLACES:
        stream, rows = Stream(table()), (row for row in dicts())
        place(workspace, stream)
        place(workspace, rows)
        assert (stream.reads, next(rows, None)) == (1, None)


@pytest.mark.parametrize("names", [["iloc", "columns"], ["collect_schema", "get_columns"], ["to_pylist", "tolist"]])
def test_columns_may_have_any_name(names: list[str]) -> None:
    """A look at a pandas object finds its columns and labels where others have methods."""
    columns = {name: [1, 2] for name in names}
    for given in (pd.DataFrame(columns), columns, pl.DataFrame(columns), pa.table(columns)):
        assert {name: as_list(values) for name, values in read_table(given, "rows").columns.items()} == columns
    assert as_list(pd.Series([1, 2], index=names)) == [1, 2]


NAN = math.nan


@pytest.mark.parametrize(
    ("values", "kind", "kept"),
    [
        ([LARGE, None], pa.int64(), [LARGE, None]),
        ([2**64 - 1, None, 1], pa.uint64(), [2**64 - 1, None, 1]),
        ([np.uint64(2**64 - 1)], pa.uint64(), [2**64 - 1]),
        ([np.int64(LARGE), None, 3], pa.int64(), [LARGE, None, 3]),
        ([np.float32(0.1), None], pa.float32(), [float(np.float32(0.1)), None]),
        ([1, 2.5], pa.float64(), [1.0, 2.5]),
        ([NAN, None, 1.5], pa.float64(), [NAN, None, 1.5]),
        ([np.float32("nan"), None], pa.float32(), [NAN, None]),
        ([LARGE, NAN], pa.int64(), [LARGE, None]),
        (["a", NAN, pd.NA, None], pa.string(), ["a", None, None, None]),
        ([True, np.bool_(False), None], pa.bool_(), [True, False, None]),
        ([D("1.5"), D("1.25"), None], pa.decimal128(3, 2), [D("1.50"), D("1.25"), None]),
        ([MOMENT.astimezone(NEW_YORK), MOMENT], pa.timestamp("us", "America/New_York"), [MOMENT, MOMENT]),
        ([pd.NaT, MOMENT], pa.timestamp("us", "UTC"), [None, MOMENT]),
        ([pd.Timestamp(1, tz="UTC"), None], pa.timestamp("ns", "UTC"), [pd.Timestamp(1, tz="UTC"), None]),
        ([dt.datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1), MOMENT], pa.timestamp("us", "America/New_York"),
         [dt.datetime(2024, 11, 3, 6, 30, tzinfo=dt.UTC), MOMENT]),
        ([MOMENT, dt.datetime(2024, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1)], pa.timestamp("us", "UTC"),
         [MOMENT, dt.datetime(2024, 11, 3, 6, 30, tzinfo=dt.UTC)]),
        ([np.datetime64("2024-01-01T01", "us"), None], pa.timestamp("us"), [dt.datetime(2024, 1, 1, 1), None]),
        ([[np.array([1, 2])], None], pa.list_(pa.list_(pa.int64())), [[[1, 2]], None]),
        ([{"a": 1}, {"b": "x"}], pa.struct({"a": pa.int64(), "b": pa.string()}),
         [{"a": 1, "b": None}, {"a": None, "b": "x"}]),
        ([], pa.null(), []),
        ([None], pa.null(), [None]),
    ],
)  # fmt: skip
def test_a_list_becomes_arrow_without_a_change(values: list[Any], kind: pa.DataType, kept: list[Any]) -> None:
    for given in (values, tuple(values)):
        column = as_arrow(given)
        assert column.type == kind
        assert [plain(value) for value in column.to_pylist()] == [plain(value) for value in kept]


@pytest.mark.parametrize(
    "values",
    [
        [True, 1], [1, True], [True, 1.5], ["a", 1], [1, "a"], ["a", b"b"], [b"b", "a"], [["a"], [b"b"]],
        [dt.date(2024, 1, 1), MOMENT], [MOMENT, dt.date(2024, 1, 1)], [[dt.date(2024, 1, 1), MOMENT]],
        [2**53 + 1, 0.5], [2**63, -1], [2**64], [D("1.5"), 0.1], ["\ud800"], [object()],
        [dt.timedelta(1), pd.Timedelta(1, unit="ns")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [list, lambda values: pd.Series(values, dtype=object)], ids=["list", "pandas"])
def test_values_of_several_types_are_no_column(make: Callable[[Any], Any], values: list[Any]) -> None:
    """Arrow itself makes bytes of texts beside bytes, and drops the time of an instant beside a date."""
    with pytest.raises(ValueError, match=r"."):
        as_arrow(make(values))


def test_a_time_beside_a_date_keeps_its_hour(workspace: Workspace) -> None:
    """Of an object column pandas' users mix both; the hour was dropped in silence."""
    times = [dt.date(2024, 1, 1), dt.datetime(2024, 1, 1, 23, tzinfo=dt.UTC)]
    frame = pd.DataFrame({"plane_id": [1, 2], "event_timestamp": pd.Series(times, dtype=object)})
    with pytest.raises(FeatureStoreError, match=r"'event_timestamp'.* mixes types: .*23, 0"):
        as_frame(workspace, frame)


def test_nanoseconds_of_numpy_are_no_integers() -> None:
    whole = np.array(["2024-01-02T03:04:05.678901", "NaT"], "M8[ns]")
    assert as_list(whole) == [MOMENT.replace(tzinfo=None), None]
    with pytest.raises(InputError, match="finer than a microsecond"):
        as_list(whole + np.timedelta64(1, "ns"))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_a_query_that_fails_when_it_is_read_is_no_table(workspace: Workspace, place: Callable[..., object]) -> None:
    relation = duckdb.connect().sql("SELECT error('boom') AS plane_id FROM range(3)")
    lazy = pl.LazyFrame({"text": ["boom"]}).select(plane_id=pl.col("text").cast(pl.Int64))
    for given in (relation, lazy):
        with pytest.raises(InputError, match=rf"is {type(given).__name__}, not a table: .*"):
            place(workspace, given)


def test_an_online_answer_is_a_table(workspace: Workspace) -> None:
    answer = get_online_features(workspace, "every_type:i32", {"plane_id": [LARGE, None], "note": ["a", None]})
    assert read_table(answer, "rows").frame == answer.to_arrow() == pa.table(answer)
    there = OnlineResponse({"plane_id": [LARGE, None]}, OnlineRows(["x"], [["a"], [None]], []))
    assert read_table(there, "rows").frame == there.to_arrow()


def test_objects_of_polars_are_their_values(workspace: Workspace) -> None:
    """Of such a column polars itself gives Arrow the addresses of the objects."""
    frame = pl.DataFrame({"plane_id": [1, 2], "event_timestamp": [MOMENT, MOMENT]})
    amounts = pl.Series("amount", [D("1.5"), None], dtype=pl.Object)
    own = as_frame(workspace, frame.with_columns(amounts)).own
    assert own.to_arrow().column("amount").to_pylist() == [D("1.5"), None]
    mixed = as_frame(workspace, frame.with_columns(pl.Series("mixed", [1, "a"], dtype=pl.Object))).own
    with pytest.raises(InputError, match="'mixed' of the entity frame mixes types"):
        mixed.to_arrow()


def test_what_only_looks_like_a_frame_is_refused_or_read_as_a_stream() -> None:
    class Frame:
        iloc = columns = get_columns = collect_schema = collect = None

    class Streamed(Frame):
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return table().__arrow_c_stream__(requested_schema)

    with pytest.raises(InputError, match="rows is Frame, not a table"):
        read_table(Frame(), "rows")
    assert read_table(Streamed(), "rows").frame == table()

    class Own(pd.DataFrame):
        """A frame of a library on top of pandas."""

    assert read_table(Own({"a": [1]}), "rows").form == "pandas"


def test_without_pyarrow_a_stream_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="Stream, which only pyarrow reads: it is not installed"):
        read_table(stream, "rows")
    assert read_table([{"a": 1}], "rows").columns == {"a": [1]}
