"""One value all the way: source, offline log, training set, online store, HTTP; for every type and odd entity."""

from __future__ import annotations

import base64
import datetime as dt
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import log_rows
from support.projects import make_workspace
from support.serving import serving_here

from featurestore import Entity, FeatureView, Field, ParquetSource
from featurestore.materialization import materialize, materialize_incremental, succeeded
from featurestore.serving import get_online_features
from featurestore.training import get_historical_features, get_training_set
from featurestore.types import (
    Array,
    Bool,
    Bytes,
    Date,
    Decimal,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    ValueType,
)
from featurestore.types.arrow import arrow_type
from featurestore.types.times import to_instant
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

UTC = dt.UTC
NOW = "2024-02-01T00:00:00Z"
ASKED_AT = dt.datetime(2024, 1, 31, tzinfo=UTC)
MEGABYTE = "é🛬" * 174_763  # over 1 MB of UTF-8
NAN = math.nan


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=UTC)


def b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def same(*values: Any) -> list[tuple[Any, Any]]:
    """Values that JSON holds as they are."""
    return [(value, value) for value in values]


# By type each value, and what stands for it in JSON. A null belongs to every type.
CASES: list[tuple[ValueType, list[tuple[Any, Any]]]] = [
    (Int32, same(-(2**31), 2**31 - 1, 0)),
    (Int64, same(-(2**63), 2**63 - 1, 1_234_567_890_123_456_789, 2**53 + 1)),
    (Float32, [(NAN, None), (math.inf, None), (-math.inf, None), *same(-0.0, 2.0**-149, 0.5, 2.0**127)]),
    (Float64, [(NAN, None), (math.inf, None), (-math.inf, None), *same(-0.0, 5e-324, 0.1, 1.7976931348623157e308)]),
    (Bool, same(True, False)),
    (String, same("", MEGABYTE, "\0", 'it\'s "quoted" \\ \n\r\t', "🛬", "e\u0301", "é", "NULL", "null", " ")),
    (Bytes, [(value, b64(value)) for value in (b"", b"\0\xff|{}", MEGABYTE.encode())]),
    (
        Timestamp,
        [
            (utc(1969, 12, 31, 23, 59, 59, 999_999), "1969-12-31T23:59:59.999999Z"),
            (utc(1, 1, 1), "0001-01-01T00:00:00.000000Z"),
            (utc(1582, 10, 10, 12), "1582-10-10T12:00:00.000000Z"),
            (utc(9999, 12, 31, 23, 59, 59, 999_999), "9999-12-31T23:59:59.999999Z"),
        ],
    ),
    (Date, [(day, day.isoformat()) for day in (dt.date(1969, 12, 31), dt.date(1, 1, 1), dt.date(9999, 12, 31))]),
    (
        Decimal(38, 10),
        [
            (D(f"{'9' * 28}.{'9' * 10}"), f"{'9' * 28}.{'9' * 10}"),
            (D("-0.0000000001"), "-0.0000000001"),
            (D("0E-10"), "0.0000000000"),
        ],
    ),
    (Decimal(4), [(D(-9999), "-9999"), (D(7), "7")]),
    (Array(Int64), same([], [None, 2**63 - 1, -(2**63)])),
    (Array(Float64), [([NAN, math.inf, -0.0, None], [None, None, -0.0, None])]),
    (Array(Array(String)), same([], [[]], [["", None, "🛬'|"], None, []])),
    (Array(Timestamp), [([utc(1969, 7, 20, 20, 17), None], ["1969-07-20T20:17:00.000000Z", None])]),
    (Array(Date), [([dt.date(1815, 6, 18)], ["1815-06-18"])]),
    (Array(Bytes), [([b"\xff", b""], [b64(b"\xff"), ""])]),
    (Array(Decimal(5, 2)), [([D("-1.50"), None], ["-1.50", None])]),
    (Array(Bool), same([True, None, False])),
]
VALUES = [(f"f{place}", kind, [*values, (None, None)]) for place, (kind, values) in enumerate(CASES)]
ROWS = max(len(values) for _, _, values in VALUES)


def at(row: int) -> dt.datetime:
    """Return the event time of a row; half of them lie before 1970."""
    return utc(1965 + row, 3, 1, 0, 0, 0, 1)


def value_of(values: list[tuple[Any, Any]], row: int) -> tuple[Any, Any]:
    return values[row % len(values)]


def exact(value: Any) -> Any:
    """Return what is equal only where type, bits of floats and digits of decimals are."""
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else struct.pack(">d", value)
    if isinstance(value, list):
        return [exact(item) for item in value]
    return type(value).__name__, str(value) if isinstance(value, D) else value


@pytest.fixture(params=["lmdb", "redis"])
def online(request: pytest.FixtureRequest) -> Any:
    """The online store's settings; the usual 50 ms of a read can pass on a machine busy with other tests."""
    if request.param == "lmdb":
        return None
    return {"url": request.getfixturevalue("redis_url"), "read_timeout_ms": 5000}


def test_every_value_comes_through_every_store_as_it_is(tmp_path: Path, online: Any) -> None:
    view = FeatureView(
        "everything",
        entities=[Entity("thing", {"thing": Int64})],
        source=ParquetSource("things", "things.parquet", "at"),
        schema=[Field(name, kind) for name, kind, _ in VALUES],
    )
    columns: dict[str, Any] = {
        "thing": pa.array(range(ROWS), pa.int64()),
        "at": pa.array([at(row) for row in range(ROWS)], pa.timestamp("us", tz="UTC")),
    }
    for name, kind, values in VALUES:
        columns[name] = pa.array([value_of(values, row)[0] for row in range(ROWS)], arrow_type(kind))
    pq.write_table(pa.table(columns), tmp_path / "things.parquet")
    expected = {name: [exact(value_of(values, row)[0]) for row in range(ROWS)] for name, _, values in VALUES}

    workspace = make_workspace(tmp_path, [view], online_url=online, now_us=NOW)
    (run,) = succeeded(materialize_incremental(workspace))
    assert (run.appended, run.published.written) == (ROWS, ROWS)
    (again,) = succeeded(materialize_incremental(workspace))
    assert again.appended == 0
    (again,) = succeeded(materialize(workspace, to_instant(utc(1900, 1, 1)), to_instant(NOW)))
    assert (again.read, again.unchanged, again.appended) == (ROWS, ROWS, 0)

    offline = list(zip(*log_rows(workspace, "everything"), strict=True))[3:]
    frame = pa.table({"thing": range(ROWS), "event_timestamp": [ASKED_AT] * ROWS})
    features = [f"everything:{name}" for name in expected]
    training = get_historical_features(workspace, frame, features)
    written = pq.read_table(training.write_parquet(tmp_path / "out.parquet"))
    training.save("all")
    saved = get_training_set(workspace, "all")
    answer = get_online_features(workspace, features, {"thing": list(range(ROWS))})
    online_table, online_values = answer.to_arrow(), answer.to_dict()
    for place, (name, kind, values) in enumerate(VALUES):
        found = {
            "offline": list(offline[place]),
            "training set": training.to_arrow().column(name).to_pylist(),
            "Parquet": written.column(name).to_pylist(),
            "saved training set": saved.to_arrow().column(name).to_pylist(),
            "online": online_values[name],
            "online Arrow": online_table.column(name).to_pylist(),
        }
        for where, column in found.items():
            assert [exact(value) for value in column] == expected[name], f"{kind} in {where}"
        statuses = [status.name for status in answer.statuses[name]]
        assert statuses == ["NULL_VALUE" if value_of(values, row)[0] is None else "PRESENT" for row in range(ROWS)], (
            kind
        )
    assert training.certificate.recomputed_rows == ROWS
    assert answer.event_timestamps == {"everything": [at(row) for row in range(ROWS)]}

    with serving_here(workspace) as client:
        check_http(client)
    workspace.close()


def check_http(client: httpx.Client) -> None:
    body = {"features": [f"everything:{name}" for name, _, _ in VALUES], "entities": {"thing": list(range(ROWS))}}
    response = client.post("/v1/online-features", json=body)
    assert response.status_code == 200, response.text[:2000]
    document = response.json()
    for place, (_, kind, values) in enumerate(VALUES):
        wanted = [value_of(values, row)[1] for row in range(ROWS)]
        assert [exact(row[place]) for row in document["rows"]] == [exact(value) for value in wanted], kind
        statuses = [row[place] for row in document["status"]]
        assert statuses == ["NULL_VALUE" if value is None else "PRESENT" for value in wanted], kind


TEMPTING = [
    "",
    " ",
    "it's",
    'say "hi"',
    "`x`",
    "a|b",
    "|",
    "50%",
    "%7C",
    "%",
    "{}",
    "{UA}",
    "a:b",
    "*",
    "?[a-z]",
    "a\nb",
    "a\r\nb\t",
    "\0",
    "🛬",
    "e\u0301",
    "é",
    "\u202eUA",
    "../../etc/passwd",
    "'; DROP TABLE flights; --",
    "NULL",
    "x" * 300,
    "x" * 299 + "y",
    "ß" * 300,
    "schema:00",
    "#abc",
    "ua",
    "UA",
]


@dataclass(frozen=True)
class Keyed:
    """Entities of one shape: the types of their join keys, the values of each, and the keys in JSON."""

    kinds: Mapping[str, ValueType]
    entities: list[tuple[Any, ...]]

    def json(self) -> dict[str, list[Any]]:
        columns = zip(self.kinds, zip(*self.entities, strict=True), strict=True)
        return {
            name: [b64(v) if isinstance(v, bytes) else v.isoformat() if isinstance(v, dt.date) else v for v in column]
            for name, column in columns
        }


SHAPES = {
    "text": Keyed({"name": String}, [(text,) for text in TEMPTING]),
    "bytes": Keyed({"raw": Bytes}, [(text.encode(),) for text in TEMPTING] + [(b"\xff\xfe",), (b"\0" * 300,)]),
    "two texts": Keyed(
        {"origin": String, "dest": String},
        [("a|b", "c"), ("a", "b|c"), ("c", "a|b"), ("b|c", "a"),
         ("", ""), ("", "a"), ("a", ""), ("%", "|"), ("%7C", ""), ("JFK", "LAX"),
         ("LAX", "JFK"), ("x" * 300, "y" * 300), ("x" * 300, "")],
    ),
    "numbers": Keyed(
        {"big": Int64, "small": Int32},
        [(-(2**63), -(2**31)), (2**63 - 1, 2**31 - 1), (0, 0), (1, 11), (11, 1), (2**53 + 1, 0), (2**53, 0)],
    ),
    "days": Keyed({"day": Date}, [(dt.date(1, 1, 1),), (dt.date(1969, 12, 31),), (dt.date(9999, 12, 31),)]),
    "flags": Keyed({"flag": Bool}, [(True,), (False,)]),
}  # fmt: skip


@pytest.fixture
def keyed(tmp_path: Path, online: Any) -> Iterator[Workspace]:
    """A view of each shape; the value of an entity is its number."""
    views = []
    for number, (shape, keyed) in enumerate(SHAPES.items()):
        columns: dict[str, Any] = {
            name: pa.array([entity[place] for entity in keyed.entities], arrow_type(kind))
            for place, (name, kind) in enumerate(keyed.kinds.items())
        }
        rows = len(keyed.entities)
        columns["at"] = pa.array([at(1)] * rows, pa.timestamp("us", tz="UTC"))
        columns["v"] = pa.array(range(rows), pa.int64())
        pq.write_table(pa.table(columns), tmp_path / f"source{number}.parquet")
        views.append(
            FeatureView(
                shape.replace(" ", "_"),
                entities=[Entity(f"entity{number}", keyed.kinds)],
                source=ParquetSource(f"source{number}", f"source{number}.parquet", "at"),
                schema=[Field("v", Int64)],
            )
        )
    workspace = make_workspace(tmp_path, views, online_url=online, now_us=NOW)
    succeeded(materialize_incremental(workspace))
    yield workspace
    workspace.close()


def test_every_entity_is_found_everywhere_and_taken_for_no_other(keyed: Workspace) -> None:
    with serving_here(keyed) as client:
        for shape, wanted in SHAPES.items():
            feature = f"{shape.replace(' ', '_')}:v"
            expected = list(range(len(wanted.entities)))
            columns = dict(zip(wanted.kinds, map(list, zip(*wanted.entities, strict=True)), strict=True))
            frame: dict[str, Any] = {
                name: pa.array(column, arrow_type(wanted.kinds[name])) for name, column in columns.items()
            }
            frame["event_timestamp"] = pa.array([ASKED_AT] * len(expected), pa.timestamp("us", tz="UTC"))
            training = get_historical_features(keyed, pa.table(frame), feature)
            assert training.to_arrow().column("v").to_pylist() == expected, shape
            assert training.to_pandas()["v"].tolist() == expected, shape
            assert get_online_features(keyed, feature, columns).to_dict()["v"] == expected, shape
            response = client.post("/v1/online-features", json={"features": [feature], "entities": wanted.json()})
            assert response.json()["rows"] == [[number] for number in expected], shape
