from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as PythonDecimal
from typing import Any

import pyarrow as pa
import pytest

from featurestore.errors import DamagedRecordError, DefinitionError
from featurestore.online.interface import ViewLayout
from featurestore.online.records.codec import (
    expire_at_ms,
    msgpack_array_header,
    record_times,
    schema_document,
    schema_id,
)
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.fresh import RowRecords
from featurestore.online.records.reading import ViewReader, ViewRows
from featurestore.statuses import Status
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
)
from featurestore.types.arrow import arrow_type
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT, to_instant
from featurestore.types.values import ValueType

NOW = to_instant("2013-11-03T05:30:00Z")
DAY_US = 86_400_000_000
P, N, X, OLD = Status.PRESENT, Status.NULL_VALUE, Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE

ALL = (
    ("i32", Int32),
    ("i64", Int64),
    ("f32", Float32),
    ("f64", Float64),
    ("flag", Bool),
    ("text", String),
    ("raw", Bytes),
    ("at", Timestamp),
    ("day", Date),
    ("price", Decimal(10, 2)),
    ("list", Array(Int64)),
    ("days", Array(Date)),
    ("nested", Array(Array(Float32))),
)
_FIRST: dict[str, Any] = {
    "i32": -(2**31),
    "i64": 2**63 - 1,
    "f32": 0.5,
    "f64": 0.1,
    "flag": True,
    "text": "é\U0001f6eb",
    "raw": b"\x00\xff",
    "at": datetime(1969, 12, 31, 23, tzinfo=UTC),
    "day": date(1969, 12, 31),
    "price": PythonDecimal("-12.50"),
    "list": [1, None],
    "days": [date(2013, 1, 1), None],
    "nested": [[1.5, None], None],
}
_LAST: dict[str, Any] = {
    "i32": 0,
    "i64": -(2**63),
    "f32": -0.0,
    "f64": math.inf,
    "flag": False,
    "text": "",
    "raw": b"",
    "at": datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "day": date(9999, 12, 31),
    "price": PythonDecimal("0.00"),
    "list": [],
    "days": [],
    "nested": [],
}
ROWS: list[list[Any]] = [list(_FIRST.values()), [None] * len(ALL), list(_LAST.values())]


def layout(
    *features: tuple[str, ValueType], ttl_us: int | None = None, generation: int = 1, view: str = "v"
) -> ViewLayout:
    return ViewLayout("p", view, generation, (("id", Int64),), features, ttl_us)


def records(
    encoder: RecordEncoder, rows: Sequence[Sequence[Any]], event_us: int = NOW
) -> tuple[list[bytes], list[bytes]]:
    writes = [encoder.write([place], event_us, None, row) for place, row in enumerate(rows)]
    return [write.key for write in writes], [write.record for write in writes]


def test_a_status_is_a_text_that_says_what_feast_says() -> None:
    assert list(Status) == ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"]
    assert repr(Status.PRESENT) == "'PRESENT'"


def test_every_type_comes_back() -> None:
    view = layout(*ALL)
    keys, found = records(RecordEncoder(view), ROWS)
    rows = ViewReader(view, [name for name, _ in ALL]).read([*keys, b"k"], [*found, None], NOW)
    assert [list(map(repr, row)) for row in rows.values[:3]] == [list(map(repr, row)) for row in ROWS]
    assert rows.statuses is not None
    assert [set(row) for row in rows.statuses] == [{P}, {N}, {P}, {X}]
    assert times_of(rows) == [NOW, NOW, NOW, None]
    assert rows.columns()[1] == [2**63 - 1, None, -(2**63), None]
    assert rows.status_columns()[0] == [P, N, P, X]


def test_every_type_as_json() -> None:
    view = layout(*ALL)
    keys, found = records(RecordEncoder(view), ROWS)
    rows = ViewReader(view, [name for name, _ in ALL], form="json").read(keys, found, NOW)
    assert list(rows.values[0]) == [
        -(2**31),
        2**63 - 1,
        0.5,
        0.1,
        True,
        "é\U0001f6eb",
        "AP8=",
        "1969-12-31T23:00:00.000000Z",
        "1969-12-31",
        "-12.50",
        [1, None],
        ["2013-01-01", None],
        [[1.5, None], None],
    ]
    assert rows.statuses is not None
    assert rows.statuses[2][3] is N  # infinity
    assert rows.values[2][3] is None
    assert rows.statuses[2][2] is P


def test_special_floats_are_present_in_python_and_null_in_json() -> None:
    view = layout(("a", Float64), ("b", Float32), ("c", Int64))
    encoder = RecordEncoder(view)
    plain = [[1.0, 2.0, 1], [1e308, 1.0, 2], [1e308, 3.0, 3]]  # their sum overflows, none of them is infinite
    keys, found = records(encoder, plain)
    rows = ViewReader(view, ["a", "b", "c"], form="json").read(keys, found, NOW)
    assert [list(row) for row in rows.values] == plain
    assert rows.statuses is None
    keys, found = records(encoder, [[math.nan, 1.0, 1], [1.0, -math.inf, 2], [None, 1.0, 3], [2.0, 3.0, 4]])
    rows = ViewReader(view, ["a", "b", "c"], form="json").read(keys, found, NOW)
    assert [list(row) for row in rows.values] == [[None, 1.0, 1], [1.0, None, 2], [None, 1.0, 3], [2.0, 3.0, 4]]
    assert rows.statuses is not None
    assert [list(row) for row in rows.statuses] == [[N, P, P], [P, N, P], [N, P, P], [P, P, P]]
    python = ViewReader(view, ["a", "b", "c"]).read(keys, found, NOW)
    assert math.isnan(python.values[0][0])
    assert python.values[1][1] == -math.inf
    assert python.statuses is not None
    assert [list(row) for row in python.statuses] == [[P, P, P], [P, P, P], [N, P, P], [P, P, P]]


@pytest.mark.parametrize("asked", [["b"], ["c", "a"], ["a", "b", "c"], ["b", "b", "a"], []])
def test_asked_features_in_the_order_asked(asked: list[str]) -> None:
    view = layout(("a", Int64), ("b", String), ("c", Timestamp))
    encoder = RecordEncoder(view)
    moment = datetime(2013, 1, 1, tzinfo=UTC)
    keys, found = records(encoder, [[1, "x", moment], [2, "y", moment + timedelta(1)]])
    full = [{"a": 1, "b": "x", "c": moment}, {"a": 2, "b": "y", "c": moment + timedelta(1)}]
    rows = ViewReader(view, asked).read(keys, found, NOW)
    assert [list(row) for row in rows.values] == [[row[name] for name in asked] for row in full]
    assert rows.statuses is None
    assert rows.status_columns() == [[P, P] for _ in asked]
    mixed = ViewReader(view, asked).read([keys[0], b"k"], [found[0], None], NOW)
    assert [list(row) for row in mixed.values] == [[full[0][name] for name in asked], [None] * len(asked)]
    assert mixed.statuses is not None
    assert [list(row) for row in mixed.statuses] == [[P] * len(asked), [X] * len(asked)]


def times_of(rows: ViewRows) -> list[int | None]:
    return list(RowRecords(layout(("a", Int64)), ["a"]).event_us(rows.records, 0))


def test_no_entities() -> None:
    view = layout(("a", Int64), ("b", Int64))
    rows = ViewReader(view, ["a", "b"]).read([], [], NOW)
    assert (rows.columns(), rows.status_columns(), times_of(rows)) == ([[], []], [[], []], [])


def test_an_unknown_feature_is_refused() -> None:
    with pytest.raises(DefinitionError, match="'x'"):
        ViewReader(layout(("a", Int64)), ["x"])


@pytest.mark.parametrize("company", [[], [None]])
def test_the_ttl_is_inclusive_and_so_is_now(company: list[None]) -> None:
    view = layout(("a", Int64), ttl_us=7 * DAY_US)
    encoder = RecordEncoder(view)
    for event_us, status in [
        (NOW - 7 * DAY_US, P),
        (NOW - 7 * DAY_US - 1, OLD),
        (NOW, P),
        (NOW + 1, X),
        (NOW + DAY_US, X),
        (-5, OLD),
    ]:
        keys, found = records(encoder, [[1]], event_us)
        rows = ViewReader(view, ["a"]).read([*keys, *[b"k"] * len(company)], [*found, *company], NOW)
        assert rows.status_columns()[0] == [status, *[X] * len(company)]
        assert rows.columns()[0][0] == (1 if status is P else None)
        assert times_of(rows)[0] == (None if status is X else event_us)


def test_a_ttl_longer_than_the_calendar() -> None:
    view = layout(("a", Int64), ttl_us=timedelta.max // timedelta(microseconds=1))
    keys, found = records(RecordEncoder(view), [[1]], MIN_INSTANT)
    assert ViewReader(view, ["a"]).read(keys, found, NOW).statuses is None


def test_a_null_does_not_hide_the_next() -> None:
    """Whether nulls are looked for is remembered from read to read; no order of reads may lose one."""
    view = layout(("a", Int64), ("b", Int64))
    encoder, reader = RecordEncoder(view), ViewReader(view, ["a", "b"])
    for row in [[1, 2], [None, 2], [1, None], [1, 2], [None, None], [1, 2], [1, 2], [None, 1]]:
        keys, found = records(encoder, [row, [5, 6]])
        rows = reader.read(keys, found, NOW)
        assert [list(values) for values in rows.values] == [row, [5, 6]]
        assert rows.status_columns() == [[N if value is None else P, P] for value in row]


def test_old_schemas_are_mapped_by_name() -> None:
    old = layout(("gone", String), ("wide", Int32), ("real", Float32), ("changed", Int64), ("same", Int64))
    new = layout(("same", Int64), ("new", Int64), ("real", Float64), ("wide", Int64), ("changed", String))
    encoder = RecordEncoder(old)
    keys, found = records(encoder, [["x", 7, 0.5, 1, None]])
    newer_keys, newer = records(RecordEncoder(new), [[1, 2, 3.0, 4, "five"]])
    fetched: list[bytes] = []

    def fetch(key: bytes) -> bytes | None:
        fetched.append(key)
        return encoder.schema_json if key == encoder.schema_key else None

    asked = ["wide", "new", "real", "changed", "same"]
    reader = ViewReader(new, asked, fetch=fetch)
    for _ in range(3):
        rows = reader.read([*keys, *newer_keys], [*found, *newer], NOW)
        assert [list(row) for row in rows.values] == [[7, None, 0.5, None, None], [4, 2, 3.0, "five", 1]]
        assert rows.statuses is not None
        assert [list(row) for row in rows.statuses] == [[P, X, P, X, N], [P] * 5]
    assert fetched == [encoder.schema_key]


def test_a_schema_that_is_gone_reads_not_found() -> None:
    encoder = RecordEncoder(layout(("a", Int64), ("b", Int64)))
    new = layout(("a", Int64))
    keys, found = records(encoder, [[1, 2]])
    for fetch in (None, lambda key: None):
        reader = ViewReader(new, ["a"], fetch=fetch)
        rows = reader.read(keys, found, NOW)
        assert (rows.columns(), rows.status_columns(), times_of(rows)) == ([[None]], [[X]], [None])
        unknown = reader.unknown([], [*found, None, b"x"], 0)
        assert set(unknown) == {encoder.schema_key}
        unknown[encoder.schema_key](encoder.schema_json)
        assert reader.unknown([], found, 0) == {}
        assert reader.read(keys, found, NOW).columns() == [[1]]
    with pytest.raises(DamagedRecordError, match="schema"):
        reader.learn(encoder.schema_id, encoder.schema_json + b" ")


@pytest.mark.parametrize("company", [[], [None]])
def test_damaged_records_are_named(company: list[None]) -> None:
    view = layout(("a", Int64), ("b", Int64))
    keys, found = records(RecordEncoder(view), [[1, 2], [3, 4]])
    head, tail = found[1][:25], found[1][-4:]
    bad = [b"", b"hello", b"\x02" + found[1][1:], head + b"\x91\x01" + tail, head + b"\xc1\x01\x01" + tail]
    for record in [*bad, head + b"\x92\x01" + tail, head + b"\x07" + tail, head + tail]:
        with pytest.raises(DamagedRecordError, match=r"fs:p:v:\{1\}.*--republish --authoritative"):
            ViewReader(view, ["a", "b"]).read([*keys, *[b"k"] * len(company)], [found[0], record, *company], NOW)


def test_damage_that_shifts_rows_is_found() -> None:
    view = layout(("a", Int64))
    keys, found = records(RecordEncoder(view), [[1], [2]])
    shifted = [record[:25] + body + record[-4:] for record, body in zip(found, (b"\x91\x01\x91\x02", b""), strict=True)]
    with pytest.raises(DamagedRecordError):
        ViewReader(view, ["a"]).read(keys, shifted, NOW)


@pytest.mark.uncounted
@pytest.mark.parametrize("width", [1, 2, 15, 16, 40])
@pytest.mark.parametrize("with_created", [True, False])
@pytest.mark.parametrize(
    "kinds", [[Float32], [Float64], [Float64, Int64, Float32, Float32, String], [*dict(ALL).values()]]
)
def test_bulk_encoding_equals_one_by_one(kinds: list[ValueType], width: int, with_created: bool) -> None:
    samples = dict(zip(dict(ALL).values(), zip(*ROWS, strict=True), strict=True))
    features = tuple((f"f{place}", kinds[place % len(kinds)]) for place in range(width))
    for rows in ([0, 2], [0, 1, 2]):  # without nulls, and with
        view = layout(*features, ttl_us=2 * DAY_US)
        columns = {name: pa.array([samples[kind][row] for row in rows], arrow_type(kind)) for name, kind in features}
        events = [NOW + row for row in rows]
        created = [NOW + 5, None, -1][: len(rows)]
        ids = [9, 1, 10][: len(rows)]
        columns["id"] = pa.array(ids, pa.int64())
        columns["event_ts"] = pa.array(events, pa.timestamp("us", "UTC"))
        if with_created:
            columns["created_ts"] = pa.array(created, pa.timestamp("us", "UTC"))
        encoder = RecordEncoder(view)
        table = pa.table(columns)
        expected = [
            encoder.write(
                [entity], event, known if with_created else None, [samples[kind][row] for _, kind in features]
            )
            for entity, row, event, known in zip(ids, rows, events, created, strict=True)
        ]
        expected.sort()  # in order of their keys
        assert list(encoder.encode_table(table)) == expected
        assert [write for batch in table.to_batches() for write in encoder.encode_table(batch)] == expected
        assert not encoder.encode_table(table.slice(0, 0))


@pytest.mark.parametrize("scale", [0, 1, 6, 7, 38])
def test_decimals_are_written_plainly_in_bulk(scale: int) -> None:
    encoder = RecordEncoder(layout(("a", Decimal(38, scale))))
    values = [PythonDecimal(digits).scaleb(-scale) for digits in (0, 1, -1, 10**9, -(10**37))]
    array = pa.array(values, arrow_type(Decimal(38, scale)))
    table = pa.table({"id": range(5), "a": array, "event_ts": pa.array([0] * 5, pa.timestamp("us", "UTC"))})
    assert list(encoder.encode_table(table)) == [
        encoder.write([i], 0, None, [v]) for i, v in enumerate(array.to_pylist())
    ]


def test_times_and_expiry() -> None:
    view = layout(("a", Int64), ttl_us=1500)
    encoder = RecordEncoder(view)
    instants = [MIN_INSTANT, -1, 0, 1, 999, NOW, MAX_INSTANT]
    table = pa.table(
        {
            "id": pa.array(range(len(instants))),
            "a": pa.array(range(len(instants))),
            "event_ts": pa.array(instants, pa.int64()).cast(pa.timestamp("us", "UTC")),
        }
    )
    writes = encoder.encode_table(table)
    assert [record_times(write.record) for write in writes] == [(instant, instant) for instant in instants]
    assert [write.record[1:9] for write in writes] == sorted(write.record[1:9] for write in writes)
    expected = [-(-(instant + 1500 + DAY_US) // 1000) for instant in instants]
    assert [write.expire_at_ms for write in writes] == [*expected[:-1], None]  # beyond the calendar: never
    assert [write.expire_at_ms for write in encoder.encode_table(table.slice(0, 5))] == expected[:5]
    assert expire_at_ms(0, None) is None
    assert expire_at_ms(0, 3 * DAY_US) == 6 * DAY_US // 1000
    assert expire_at_ms(1, 1000) == DAY_US // 1000 + 2
    assert {write.expire_at_ms for write in RecordEncoder(layout(("a", Int64))).encode_table(table)} == {None}
    nanoseconds = table.set_column(2, "event_ts", pa.array([1] * len(instants), pa.timestamp("ns")))
    assert {record_times(write.record)[0] for write in encoder.encode_table(nanoseconds)} == {1}


def test_float_bits_survive_in_bulk() -> None:
    patterns = [0x7FF0000000000001, 0x7FF8000000000001, 0xFFF8000000000000, 0x8000000000000000, 1]
    floats = [struct.unpack(">d", struct.pack(">Q", bits))[0] for bits in patterns]
    view = layout(("a", Float64))
    table = pa.table({"id": range(5), "a": floats, "event_ts": pa.array([0] * 5, pa.timestamp("us", "UTC"))})
    found = [write.record[27:-4] for write in RecordEncoder(view).encode_table(table)]
    assert found[1:] == [struct.pack(">Q", bits) for bits in patterns[1:]]


def test_schema_documents() -> None:
    features = (("a", Int64), ("b", Decimal(10, 2)), ("c", Array(Array(String))))
    assert schema_document(features) == b'[["a","Int64"],["b","Decimal(10,2)"],["c","Array(Array(String))"]]'
    assert len(schema_id(b"x")) == 8
    assert schema_id(schema_document(features)) != schema_id(schema_document(features[::-1]))


@pytest.mark.parametrize(
    ("length", "header"), [(0, b"\x90"), (15, b"\x9f"), (16, b"\xdc\x00\x10"), (65_536, b"\xdd\x00\x01\x00\x00")]
)
def test_array_headers(length: int, header: bytes) -> None:
    assert msgpack_array_header(length) == header
