"""Which Arrow types a declared type takes, and what it gives: what the page of the value types says, done."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.example import REPOSITORY
from support.projects import make_workspace

from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.errors import ValueTypeError
from featurestore.ingest.push import push
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.serving import get_online_features
from featurestore.training import get_historical_features
from featurestore.types import Array, Decimal, Float32, Float64, Int32, Int64, Timestamp, ValueType
from featurestore.types.arrow import arrow_type, cast_column
from featurestore.types.values import SCALARS
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

PAGE = (REPOSITORY / "docs" / "reference" / "types.md").read_text(encoding="utf-8").partition("## Arrow\n")[2]
NOW = "2024-02-01T00:00:00Z"
AT = datetime.fromisoformat("2024-01-31T00:00:00Z")
UNITS = [pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "Asia/Tokyo")]
NAMED = {
    **{f"float{bits}": getattr(pa, f"float{bits}")() for bits in (16, 32, 64)},
    **{name: getattr(pa, name)() for name in ("date32", "string", "large_string", "binary", "large_binary")},
    "fixed_size_binary": pa.binary(16),
    "bool": pa.bool_(),
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def taken() -> list[tuple[ValueType, pa.DataType]]:
    """Return each declared type of the page with each Arrow type that stands beside it."""
    found = []
    for name, cell, given in re.findall(r"^\| `(\w+)` \| (.*) \| `(.*)` \|$", PAGE, re.MULTILINE):
        assert NAMED.get(given, pa.timestamp("us", "UTC")) == arrow_type(SCALARS[name])
        kinds = UNITS if name == "Timestamp" else [NAMED[kind] for kind in re.findall("`([^`]*)`", cell)]
        found += [(SCALARS[name], kind) for kind in kinds]
    assert {declared for declared, _ in found} == set(SCALARS.values())
    found += [(Decimal(10, 2), pa.decimal128(4, 1)), (Decimal(10, 2), pa.decimal128(10, 2))]
    found += [(Array(Int64), make(pa.int32())) for make in (pa.list_, pa.large_list, lambda item: pa.list_(item, 1))]
    found += [(SCALARS["String"], pa.dictionary(pa.int32(), pa.string())), (Decimal(10, 2), pa.null())]
    return found


TAKEN = taken()


def value_of(kind: pa.DataType) -> Any:
    if pa.types.is_null(kind):
        return None
    if pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_nested(kind):
        return [7]
    if pa.types.is_timestamp(kind):
        return AT if kind.tz else AT.replace(tzinfo=None)
    if pa.types.is_date(kind):
        return AT.date()
    if "binary" in str(kind):
        return b"sixteen bytes it"
    return pa.scalar(1, pa.int8()).cast(kind).as_py()


def make_table() -> pa.Table:
    columns = {f"f{place}": pa.array([value_of(kind)], kind) for place, (_, kind) in enumerate(TAKEN)}
    return pa.table({"id": pa.array([1]), "at": pa.array([AT], pa.timestamp("us", "UTC")), **columns})


def made(tmp_path: Path, rows: pa.Table, fields: list[Field], way: str) -> Workspace:
    """Return a workspace with the rows materialized, or pushed; their one join key is ``id``, their time ``at``."""
    of_another = rows.set_column(0, "id", pa.array([2]))
    pq.write_table(rows if way == "source" else of_another, tmp_path / "rows.parquet")
    source = ParquetSource("rows", path=str(tmp_path / "rows.parquet"), timestamp_field="at")
    thing, events = Entity("thing", join_keys={"id": Int64}), PushSource("events", source)
    view = FeatureView("view", entities=[thing], source=events, schema=fields)
    workspace = make_workspace(tmp_path / "repo", [view], now_us=NOW)
    if way == "push":
        push(workspace, "events", rows)
    succeeded(materialize_incremental(workspace))
    return workspace


@pytest.mark.parametrize("way", ["source", "push"])
def test_what_the_page_says_is_taken_and_given(tmp_path: Path, way: str) -> None:
    rows = make_table()
    fields = [Field(f"f{place}", declared) for place, (declared, _) in enumerate(TAKEN)]
    features = [f"view:{field.name}" for field in fields]
    frame = pa.table({"id": [1], "event_timestamp": pa.array([AT])})
    with closing(made(tmp_path, rows, fields, way)) as workspace:
        given = get_historical_features(workspace, frame, features, as_of="event").to_arrow()
        online = get_online_features(workspace, features, {"id": [1]}).to_arrow()
    for field, (declared, kind) in zip(fields, TAKEN, strict=True):
        expected = cast_column(rows[field.name], declared, name=field.name).to_pylist()
        for answer in (given, online):
            assert answer.schema.field(field.name).type == arrow_type(declared), (declared, kind)
            assert answer[field.name].to_pylist() == expected, (declared, kind)


@pytest.mark.parametrize("way", ["source", "push"])
@pytest.mark.parametrize("nanoseconds", [1_001, -1_001])
def test_finer_instants_go_up_in_the_times_of_rows_and_down_everywhere_else(
    tmp_path: Path, way: str, nanoseconds: int
) -> None:
    fine = pa.array([nanoseconds], pa.timestamp("ns"))
    down, up = nanoseconds // 1000, -(-nanoseconds // 1000)
    rows = pa.table({"id": [1], "at": fine, "seen": fine})
    with closing(made(tmp_path, rows, [Field("seen", Timestamp)], way)) as workspace:
        frame = pa.table(
            {"id": [1, 1], "event_timestamp": pa.array([down * 1000 + 999, up * 1000], pa.timestamp("ns"))}
        )
        given = get_historical_features(workspace, frame, ["view:seen"], as_of="event").to_arrow()
        online = get_online_features(workspace, ["view:seen"], {"id": [1]}).to_arrow()
    seen = pa.scalar(down, pa.timestamp("us", "UTC")).as_py()
    assert given["seen"].to_pylist() == [None, seen]
    assert online["seen"].to_pylist() == [seen]


REFUSED = [
    pa.array([1], pa.uint64()),
    pa.array([1], pa.time64("us")),
    pa.array([1], pa.duration("us")),
    pa.array([{"a": 1}], pa.struct([("a", pa.int64())])),
    pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
]


@pytest.mark.parametrize("column", REFUSED, ids=lambda column: str(column.type))
def test_what_has_no_type_of_ours_is_refused_for_every_type(column: pa.Array) -> None:
    for declared in SCALARS.values():
        if declared in (Int32, Int64, Float32, Float64) and pa.types.is_integer(column.type):
            continue  # its values decide
        with pytest.raises(ValueTypeError, match="is of type"):
            cast_column(column, declared, name="x")


@pytest.mark.parametrize(
    ("declared", "most"), [(Int32, 2**31 - 1), (Int64, 2**63 - 1), (Float32, 2**24), (Float64, 2**53)]
)
@pytest.mark.parametrize("kind", [pa.uint64(), pa.uint32(), pa.int64()], ids=str)
def test_integers_of_any_width_are_taken_where_nothing_is_lost(
    declared: ValueType, most: int, kind: pa.DataType
) -> None:
    most = min(most, 2**32 - 1) if kind == pa.uint32() else most
    taken = cast_column(pa.array([most, None], kind), declared, name="x")
    assert taken.type == arrow_type(declared)
    assert taken.to_pylist() == [most, None]
    if most + 1 < 2 ** (kind.bit_width - (kind == pa.int64())):
        with pytest.raises(ValueTypeError, match="'x'"):
            cast_column(pa.array([most + 1], kind), declared, name="x")
