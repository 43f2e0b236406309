"""The published vectors, read twice: by the code, and by a decoder written from the page alone.

Nothing of `featurestore.online` is used on the second way, so a misprint in the page or in the code shows.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import struct
from datetime import date
from pathlib import Path
from typing import Any, ClassVar

import pytest
from support.wire import entity_of, values_of

from featurestore.errors import DamagedRecordError
from featurestore.online.interface import ViewLayout
from featurestore.online.records.codec import is_intact, record_times
from featurestore.online.records.encoder import RecordEncoder
from featurestore.online.records.keys import KeyEncoder
from featurestore.types import parse_type
from featurestore.types.times import date_to_days, days_to_date, to_datetime, to_instant
from featurestore.types.values import PythonDecimal, ValueType

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
VECTORS = json.loads((REFERENCE / "wire-format-vectors.json").read_text())
SCHEMAS = {schema["schema_id"]: schema for schema in VECTORS["schemas"]}


# --- from the page alone -------------------------------------------------------------------------------------------


def percent(raw: bytes) -> str:
    kept = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
    return "".join(chr(byte) if byte in kept else f"%{byte:02X}" for byte in raw) or "%"


def entity_text(kind: str, value: Any) -> str:
    if kind == "Bool":
        return "true" if value else "false"
    if kind == "String":
        return percent(value.encode("utf-8"))
    if kind == "Bytes":
        return percent(base64.b64decode(value))
    return str(value)


def key_by_hand(vector: dict[str, Any]) -> str:
    pairs = sorted(zip(vector["join_keys"], vector["values"], strict=True), key=lambda pair: pair[0][0])
    entity = "|".join(entity_text(kind, value) for (_, kind), value in pairs)
    if len(entity) > 200:
        entity = "#" + hashlib.blake2b(entity.encode(), digest_size=32).hexdigest()
    view = vector["view"] if vector["generation"] == 1 else f"{vector['view']}.{vector['generation']}"
    return "fs:" + vector["project"] + ":" + view + ":{" + entity + "}"


class Msgpack:
    """What the page's table needs of msgpack, after its specification."""

    INTEGERS: ClassVar = {
        0xCC: ">B",
        0xCD: ">H",
        0xCE: ">I",
        0xCF: ">Q",
        0xD0: ">b",
        0xD1: ">h",
        0xD2: ">i",
        0xD3: ">q",
    }
    LENGTHS: ClassVar = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xDC: ">H", 0xDD: ">I"}

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.tags = data, 0, []

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def raw(self, length: int) -> bytes:
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self) -> Any:
        tag = self.take(">B")
        self.tags.append(tag)
        if tag <= 0x7F:
            return tag
        if tag >= 0xE0:
            return tag - 256
        if 0x90 <= tag <= 0x9F:
            return [self.value() for _ in range(tag - 0x90)]
        if 0xA0 <= tag <= 0xBF:
            return self.raw(tag - 0xA0).decode()
        if tag in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[tag]
        if tag in (0xCA, 0xCB):
            return self.take(">f" if tag == 0xCA else ">d")
        if tag in self.INTEGERS:
            return self.take(self.INTEGERS[tag])
        length = self.take(self.LENGTHS[tag])
        if tag in (0xD9, 0xDA, 0xDB):
            return self.raw(length).decode()
        if tag in (0xC4, 0xC5, 0xC6):
            return self.raw(length)
        return [self.value() for _ in range(length)]


def time_by_hand(raw: bytes) -> int:
    return int.from_bytes(raw, "big") - 2**63


def published(value: Any) -> Any:
    """Return a decoded value as the vectors write it."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return [published(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: vector["key"][:40].encode().hex())
def test_keys_by_hand(vector: dict[str, Any]) -> None:
    assert key_by_hand(vector) == vector["key"]


@pytest.mark.parametrize("schema", VECTORS["schemas"], ids=lambda schema: schema["schema_id"])
def test_schemas_by_hand(schema: dict[str, Any]) -> None:
    document = json.dumps(schema["features"], separators=(",", ":"))
    assert document == schema["document"]
    assert hashlib.blake2b(document.encode(), digest_size=32).hexdigest()[:16] == schema["schema_id"]
    assert schema["key"] == f"fs:{schema['project']}:{schema['view']}:schema:{schema['schema_id']}"


@pytest.mark.parametrize("vector", VECTORS["records"], ids=range(len(VECTORS["records"])))
def test_records_by_hand(vector: dict[str, Any]) -> None:
    record, key = bytes.fromhex(vector["record"]), vector["key"].encode()
    assert record[0] == VECTORS["format_version"] == 1
    assert time_by_hand(record[1:9]) == vector["event_ts"]
    created = vector["event_ts"] if vector["created_ts"] is None else vector["created_ts"]
    assert time_by_hand(record[9:17]) == created
    assert record[17:25].hex() == vector["schema_id"]
    assert int.from_bytes(record[-4:], "big") == binascii.crc32(key + record[:-4])
    msgpack = Msgpack(record[25:-4])
    values = msgpack.value()
    assert msgpack.at == len(record) - 29
    # json tells -0.0 from 0.0 and 1 from 1.0, == does not
    assert json.dumps(published(values)) == json.dumps(vector["values"])
    kinds = [kind for _, kind in SCHEMAS[vector["schema_id"]]["features"]]
    if kinds == ["Float32"]:
        assert msgpack.tags == [0x91, 0xCA]
    if kinds == ["Float64"] and vector["values"] != [None]:
        assert msgpack.tags == [0x91, 0xCB]


def test_times_sort_as_bytes() -> None:
    pairs = {(bytes.fromhex(r["record"])[1:9], r["event_ts"]) for r in VECTORS["records"]}
    assert [instant for _, instant in sorted(pairs)] == sorted(instant for _, instant in pairs)
    assert len(pairs) > 4


# --- by the code ---------------------------------------------------------------------------------------------------


def canonical(value_type: ValueType, value: Any) -> Any:
    """Return a published value as the canonical Python value."""
    if value is None:
        return None
    if value_type.item is not None:
        return [canonical(value_type.item, item) for item in value]
    if value_type.name in ("Float32", "Float64"):
        return float(value)
    if value_type.name == "Bytes":
        return base64.b64decode(value)
    if value_type.name == "Timestamp":
        return to_datetime(value)
    if value_type.name == "Date":
        return days_to_date(value)
    return PythonDecimal(value) if value_type.name == "Decimal" else value


@pytest.mark.parametrize("vector", VECTORS["keys"], ids=lambda vector: vector["key"][:40].encode().hex())
def test_keys_by_the_code(vector: dict[str, Any]) -> None:
    join_keys = tuple((name, parse_type(kind)) for name, kind in vector["join_keys"])
    layout = ViewLayout(vector["project"], vector["view"], vector["generation"], join_keys, (), None)
    values = [
        date.fromisoformat(value) if kind.name == "Date" else canonical(kind, value)
        for (_, kind), value in zip(join_keys, vector["values"], strict=True)
    ]
    encoder = KeyEncoder(layout)
    assert encoder.encode(values).decode() == vector["key"]
    decoded = entity_of(layout, vector["key"].encode())
    assert decoded == (None if "{#" in vector["key"] else tuple(values))


def layout_of(schema: dict[str, Any]) -> ViewLayout:
    features = tuple((name, parse_type(kind)) for name, kind in schema["features"])
    join_keys = (("carrier", parse_type("String")),)
    return ViewLayout(schema["project"], schema["view"], schema["generation"], join_keys, features, None)


@pytest.mark.parametrize("vector", VECTORS["records"], ids=range(len(VECTORS["records"])))
def test_records_by_the_code(vector: dict[str, Any]) -> None:
    schema = SCHEMAS[vector["schema_id"]]
    layout = layout_of(schema)
    encoder = RecordEncoder(layout)
    assert encoder.schema_json.decode() == schema["document"]
    assert encoder.schema_key.decode() == schema["key"]
    key, record = vector["key"].encode(), bytes.fromhex(vector["record"])
    values = [canonical(kind, value) for (_, kind), value in zip(layout.fields, vector["values"], strict=True)]
    assert encoder.encode(key, vector["event_ts"], vector["created_ts"], values) == record
    assert is_intact(key, record)
    assert (record_times(record)[0], encoder.schema_id.hex()) == (vector["event_ts"], vector["schema_id"])
    assert list(map(repr, values_of(layout, key, record))) == list(map(repr, values))
    for kind, value, wire in zip(dict(layout.fields).values(), values, vector["values"], strict=True):
        if kind.name == "Timestamp" and value is not None:
            assert to_instant(value) == wire
        if kind.name == "Date" and value is not None:
            assert date_to_days(value) == wire


def test_every_flipped_bit_is_caught() -> None:
    vector = VECTORS["records"][-1]
    key, record = vector["key"].encode(), bytes.fromhex(vector["record"])
    for place in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[place // 8] ^= 1 << place % 8
        assert not is_intact(key, bytes(flipped))
    assert not is_intact(key + b"x", record)
    assert not is_intact(key, record[:-1])
    assert not is_intact(key, b"")


def test_records_that_are_none_are_refused() -> None:
    vector = VECTORS["records"][0]
    key, record = vector["key"].encode(), bytes.fromhex(vector["record"])
    layout = layout_of(SCHEMAS[vector["schema_id"]])
    bad = [b"", b"x", b"\x02" + record[1:], record[:25] + b"\xc1" + record[-4:], record[:25] + b"\x90" + record[-4:]]
    for value in [*bad, record[:25] + b"\x07" + record[-4:]]:
        with pytest.raises(DamagedRecordError, match=r"carrier_profile:\{UA\}.*--republish --authoritative"):
            values_of(layout, key, value)


def test_the_example_of_the_page() -> None:
    page = (REFERENCE / "wire-format.md").read_text()
    example = re.search(r"schema:([0-9a-f]{16})\n(\[\[.*\]\])\n", page)
    assert example is not None
    assert hashlib.blake2b(example[2].encode(), digest_size=32).hexdigest()[:16] == example[1]
