"""The published vectors of windowed records, read twice: by the code, and by a reader written from the page alone.

Nothing of `featurestore` is used on the second way, so a misprint in the page or in the code shows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.wire import entity_of

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.online.interface import ViewLayout
from featurestore.online.records.keys import KeyEncoder
from featurestore.online.records.windowed import decode, encode, encode_event, is_intact
from featurestore.online.records.windows_read import WindowRecords
from featurestore.online.records.windows_values import hash_of
from featurestore.types import parse_type
from featurestore.types.times import date_to_days, to_instant
from featurestore.types.values import ValueType
from featurestore.windows.layout import Layout, layout_of
from featurestore.windows.tiles import TileEvent, Tiles

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
VECTORS = json.loads((REFERENCE / "wire-format-vectors.json").read_text())["windowed"]
VIEWS = {view["view"]: view for view in VECTORS["views"]}
MICROSECOND = timedelta(microseconds=1)


# --- from the page alone -------------------------------------------------------------------------------------------


class Reader:
    """Takes numbers from bytes, one after the other."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, form: str) -> Any:
        (value,) = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return value

    def raw(self, length: int) -> bytes:
        self.at += length
        assert self.at <= len(self.data)
        return self.data[self.at - length : self.at]


def whole(key: bytes, part: bytes) -> bool:
    return zlib.crc32(key + part[:-4]) == int.from_bytes(part[-4:], "big")


class Record:
    """One record, all of it read."""

    def __init__(self, key: bytes, record: bytes, schema: dict[str, Any]) -> None:
        self.schema = schema
        reader = Reader(record)
        assert (reader.take("B"), reader.raw(3)) == (2, b"\0\0\0")
        end, self.base, self.newest = reader.take("I"), reader.take("q"), reader.take("q")
        self.schema_id = reader.raw(8).hex()
        assert whole(key, record[:end])
        counts = [reader.take("I") for _ in schema["resolutions"]]
        scales = Reader(reader.raw(reader.take("H")))
        texts: list[tuple[dict[str, Any], int]] = []
        self.starts: list[list[int]] = []
        self.entries: list[list[dict[tuple[int, str], Any]]] = []
        for count, (_, _, parts) in zip(counts, schema["resolutions"], strict=True):
            shape = []
            for group, partials in parts:
                for partial in partials:
                    limbs = [scales.take("h") for _ in range(scales.take("B"))] if partial in ("sum", "square") else []
                    shape.append((group, partial, limbs))
            self.starts.append([reader.take("q") for _ in range(count)])
            self.entries.append([self.entry(reader, shape, texts) for _ in range(count)])
        assert scales.at == len(scales.data)
        self.lasts: dict[int, list[Any]] = {}
        self.distinct: dict[int, dict[int, int]] = {}
        for place, (_, _, kind, last, distinct) in enumerate(schema["groups"]):
            if last:
                self.lasts[place] = [self.dated(reader, kind, texts) for _ in range(reader.take("H"))]
            if distinct:
                self.distinct[place] = {reader.take("q"): reader.take("q") for _ in range(reader.take("H"))}
        heap = reader.raw(reader.take("I"))
        for held, offset in texts:
            text = Reader(heap, offset)
            held["value"] = text.raw(text.take("H"))
        assert reader.at == end - 4
        self.events = []
        kinds = {group[0]: group[2] for group in schema["groups"] if group[2] != "none"}
        stored = [kinds.get(place, "none") for place in range(len(schema["columns"]) - schema["event_time"])]
        place = end
        while place < len(record):
            length = Reader(record, place).take("H")
            self.events.append(self.event(key, record[place : place + length], stored))
            place += length

    def number(self, reader: Reader, kind: str, texts: list[Any]) -> dict[str, Any]:
        if kind != "text":
            return {"value": reader.take("d" if kind == "float" else "q")}
        held: dict[str, Any] = {}
        texts.append((held, reader.take("q")))
        return held

    def dated(self, reader: Reader, kind: str, texts: list[Any]) -> dict[str, Any]:
        order = reader.take("q"), reader.take("q"), reader.take("q")
        held = self.number(reader, kind, texts)
        held["order"] = order
        return held

    def entry(self, reader: Reader, shape: list[Any], texts: list[Any]) -> dict[tuple[int, str], Any]:
        found: dict[tuple[int, str], Any] = {}
        for group, partial, exponents in shape:
            kind = self.schema["groups"][group][2]
            if partial == "count":
                found[group, partial] = reader.take("I")
            elif partial in ("sum", "square"):
                if partial == "sum":
                    found[group, "marks"] = reader.take("B") if kind == "float" else 0
                found[group, partial] = sum(reader.take("q") * Fraction(2) ** exponent for exponent in exponents)
            elif partial == "first":
                here: list[Any] = []
                found[group, partial] = self.dated(reader, kind, here)
                texts += here if found[group, "count"] else []
            else:
                found[group, partial] = self.number(reader, kind, texts)["value"]
        return found

    def event(self, key: bytes, entry: bytes, stored: list[str]) -> dict[str, Any]:
        assert whole(key, entry)
        reader = Reader(entry, 2)
        sequence, at, known = reader.take("q"), reader.take("q"), reader.take("q")
        conditions = len(self.schema["conditions"])
        bits = int.from_bytes(reader.raw(-(-(len(stored) + conditions) // 8)), "little")
        values: list[Any] = []
        for place, kind in enumerate(stored):
            if bits >> place & 1:
                values.append(None)
            elif kind == "text":
                values.append(reader.raw(reader.take("H")))
            else:
                values.append(reader.take("d" if kind == "float" else "q"))
        values += [at] if self.schema["event_time"] else []
        assert reader.at == len(entry) - 4
        true = [bool(bits >> (len(stored) + place) & 1) for place in range(conditions)]
        return {"order": (at, known, sequence), "values": values, "true": true}

    def value(self, feature: dict[str, Any], now: int) -> Any:
        names = [name for name, _ in self.schema["columns"]]
        column = None if feature["column"] == "*" else names.index(feature["column"])
        where = None if feature["where"] is None else self.schema["conditions"].index(feature["where"])
        (group,) = (n for n, g in enumerate(self.schema["groups"]) if g[:2] == [column, where])
        step, length = feature["resolution_us"], feature["window_us"]
        (place,) = (n for n, resolution in enumerate(self.schema["resolutions"]) if resolution[0] == step)
        begin = -(2**63) if length is None else (now - length) // step * step
        found = [entry for start, entry in zip(self.starts[place], self.entries[place], strict=True) if start >= begin]
        events = [
            (event["order"], 1 if column is None else event["values"][column])
            for event in self.events
            if event["order"][0] > begin
            and max(event["order"][:2]) <= now
            and (where is None or event["true"][where])
            and (column is None or event["values"][column] is not None)
        ]
        listed = [item for item in self.lasts.get(group, []) if item["order"][0] > begin]
        seen = {code for code, last in self.distinct.get(group, {}).items() if last > begin}
        entry = {name: value for (g, name), value in (found[0] if found else {}).items() if g == group}
        return computed(feature, entry, events, listed, seen, self.schema["groups"][group][2])


def rounded(exact: Fraction) -> float:
    try:
        return exact.numerator / exact.denominator  # Python divides integers exactly, and rounds once
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


def computed(
    feature: dict[str, Any], entry: dict[str, Any], events: list[Any], listed: list[Any], seen: set[int], kind: str
) -> Any:
    function, count = feature["function"], entry.get("count", 0) + len(events)
    values = [value for _, value in events]
    if function == "count":
        return count
    if function == "count_distinct":
        return min(feature["n"], len(seen | {hashed(value, kind) for value in values}))
    if function in ("last", "last_n"):
        ordered = sorted([*((i["order"], i["value"]) for i in listed), *events], key=lambda item: item[0], reverse=True)
        newest = [value for _, value in ordered]
        return (newest[: feature["n"]] or None) if function == "last_n" else (newest or [None])[0]
    if function == "first":
        first = [(entry["first"]["order"], entry["first"]["value"])] if entry.get("count") else []
        return min([*first, *events], key=lambda item: item[0])[1] if count else None
    if function in ("min", "max"):
        values += [entry[function]] if entry.get("count") else []
        if any(value != value for value in values):
            return math.nan
        best = (min if function == "min" else max)(values) if values else None
        return 0.0 if best == 0 and kind == "float" else best
    return added(function, entry, values, count, kind)


def added(function: str, entry: dict[str, Any], values: list[Any], count: int, kind: str) -> Any:
    finite = [Fraction(value) for value in values if math.isfinite(value)]
    marks = entry.get("marks", 0)
    for value in values:
        marks |= 0 if math.isfinite(value) else 1 if value != value else 2 if value > 0 else 4
    total = Fraction(entry.get("sum", 0)) + sum(finite)
    if count < (2 if function in ("var", "std") else 1):
        return None
    if function in ("var", "std"):
        squares = Fraction(entry.get("square", 0)) + sum(value * value for value in finite)
        variance = math.nan if marks else rounded((count * squares - total * total) / (count * (count - 1)))
        return math.sqrt(variance) if function == "std" else variance
    if function == "sum" and kind == "integer":
        return int(total) if -(2**63) <= total < 2**63 else None
    double = rounded(total) if not marks else {2: math.inf, 4: -math.inf}.get(marks, math.nan)
    return double / count if function == "mean" else double


def hashed(value: Any, kind: str) -> int:
    if kind == "integer":
        return int(value)
    if kind == "float":
        raw = bytes.fromhex("7ff8000000000000")[::-1] if value != value else struct.pack("<d", value or 0.0)
    else:
        raw = hashlib.blake2b(value, digest_size=8).digest()
    return int.from_bytes(raw, "little", signed=True)


def published(kind: str, value: Any) -> Any:
    """Return a value that was read from a record as the vectors write it."""
    if value is None:
        return None
    if kind.startswith("Array("):
        return [published(kind[6:-1], item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if kind == "Bool":
        return bool(value)
    if kind == "String":
        return value.decode()
    return base64.b64encode(value).decode() if kind == "Bytes" else value


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["about"][:20])
def test_windows_by_hand(vector: dict[str, Any]) -> None:
    view = VIEWS[vector["view"]]
    key, raw = vector["key"].encode(), bytes.fromhex(vector["record"])
    entity = str(vector["entity"][0])
    assert vector["key"] == f"fs:shops:{vector['view']}:{{{zlib.crc32(entity.encode()) % 64:02o}}}{entity}"
    record = Record(key, raw, json.loads(view["document"]))
    assert (record.schema_id, record.base) == (view["schema_id"], vector["base_sequence"])
    tiled = [event for event in vector["events"] if event["tiled"]]
    assert record.newest == max((event["at"] for event in tiled), default=-(2**63))
    assert len(record.events) == len(vector["events"]) - len(tiled)
    for read in vector["reads"]:
        for feature, value in zip(view["features"], read["values"], strict=True):
            found = published(feature["type"], record.value(feature, read["at"]))
            # json tells -0.0 from 0.0 and 1 from 1.0, == does not
            assert json.dumps(found) == json.dumps(value), (feature["name"], read["at"])


@pytest.mark.parametrize("view", VECTORS["views"], ids=lambda view: view["view"])
def test_schemas_of_windows_by_hand(view: dict[str, Any]) -> None:
    assert hashlib.blake2b(view["document"].encode(), digest_size=32).hexdigest()[:16] == view["schema_id"]
    assert view["key"] == f"fs:{view['project']}:{view['view']}:schema:{view['schema_id']}"
    assert json.dumps(json.loads(view["document"]), separators=(",", ":"), ensure_ascii=False) == view["document"]


def test_the_vectors_hold_every_function_and_every_kind_of_value() -> None:
    features = [feature for view in VECTORS["views"] for feature in view["features"]]
    assert len({feature["function"] for feature in features}) == 11
    assert None in {feature["window_us"] for feature in features}
    documents = [json.loads(view["document"]) for view in VECTORS["views"]]
    assert {group[2] for document in documents for group in document["groups"]} == {"none", "float", "integer", "text"}
    values = [value for record in VECTORS["records"] for read in record["reads"] for value in read["values"]]
    assert {"NaN", "Infinity", None, ""} <= {value for value in values if not isinstance(value, list)}
    for record in VECTORS["records"]:
        first = record["reads"][0]["at"]
        if any(max(event["at"], event["known"]) > first for event in record["events"]):
            break
    else:
        pytest.fail("no event waits")


def test_the_example_of_the_windowed_page() -> None:
    page = (REFERENCE / "wire-format.md").read_text()
    example = re.search(r"schema:([0-9a-f]{16})\n(\{.*\})\n", page)
    assert example is not None
    assert hashlib.blake2b(example[2].encode(), digest_size=32).hexdigest()[:16] == example[1]
    assert list(json.loads(example[2])) == ["format", "columns", "event_time", "conditions", "groups", "resolutions"]


# --- by the code ---------------------------------------------------------------------------------------------------


def layouts(view: dict[str, Any]) -> tuple[ViewLayout, FeatureView, Layout]:
    """Return a published view as the product has it."""
    columns = json.loads(view["document"])["columns"]
    aggregations = [
        Aggregation(
            each["column"],
            each["function"],
            windows=[None if each["window_us"] is None else each["window_us"] * MICROSECOND],
            name=each["name"].rpartition("_")[0],
            where=each["where"],
            n=each["n"],
            resolution=None if each["window_us"] is None else each["resolution_us"] * MICROSECOND,
        )
        for each in view["features"]
    ]
    made = FeatureView(
        view["view"],
        entities=[Entity("shop", join_keys={"shop": parse_type("Int64")})],
        source=ParquetSource("events", "events", view["event_time"], "known_at"),
        schema=[Field(name, parse_type(kind)) for name, kind in columns if name != view["event_time"]],
        aggregations=aggregations,
    )
    join_keys = (("shop", parse_type("Int64")),)
    keys = ViewLayout(view["project"], view["view"], view["generation"], join_keys, (), None, has_buckets=True)
    return keys, made, layout_of(made)[0]


def kept(kind: ValueType, value: Any) -> Any:
    """Return a raw value of the vectors as the product keeps it."""
    if value is None or kind.name in ("Float32", "Float64"):
        return None if value is None else float(value)
    if kind.name in ("String", "Bytes"):
        return value.encode() if kind.name == "String" else base64.b64decode(value)
    return int(value)


def events_of(vector: dict[str, Any], layout: Layout, event_time: str) -> list[TileEvent]:
    return [
        TileEvent(
            each["sequence"],
            each["at"],
            each["known"],
            tuple(
                each["at"] if name == event_time else kept(kind, each["values"][name]) for name, kind in layout.columns
            ),
            sum(holds << place for place, holds in enumerate(each["true"])),
        )
        for each in vector["events"]
    ]


def wired(kind: ValueType, value: Any) -> Any:
    """Return a value of the product as the vectors write it."""
    if value is None or kind.item is not None:
        return None if value is None else [wired(kind.item, item) for item in value if kind.item is not None]
    if kind.name in ("Timestamp", "Date"):
        return to_instant(value) if kind.name == "Timestamp" else date_to_days(value)
    return published(kind.name, value.encode() if kind.name == "String" else value)


@pytest.mark.parametrize("vector", VECTORS["records"], ids=lambda vector: vector["about"][:20])
def test_windows_by_the_code(vector: dict[str, Any]) -> None:
    view = VIEWS[vector["view"]]
    keys, definition, layout = layouts(view)
    assert (layout.document.decode(), layout.id.hex()) == (view["document"], view["schema_id"])
    assert KeyEncoder(keys).schema_key(layout.id).decode() == view["key"]
    key, record = KeyEncoder(keys).encode(vector["entity"]), bytes.fromhex(vector["record"])
    assert key.decode() == vector["key"]
    assert entity_of(keys, key) == tuple(vector["entity"])
    events = events_of(vector, layout, view["event_time"])
    is_tiled = [each["tiled"] for each in vector["events"]]
    tiles = Tiles(layout)
    tiles.base_sequence = vector["base_sequence"]
    tiles.add([event for event, is_in in zip(events, is_tiled, strict=True) if is_in], hashed=hash_of)
    newest = b"".join(
        encode_event(key, layout, event) for event, is_in in zip(events, is_tiled, strict=True) if not is_in
    )
    assert encode(key, tiles) + newest == record
    assert encode(key, decode(key, layout, record)) + newest == record
    asked = layout_of(definition)[1]
    found = [asked[feature["name"]] for feature in view["features"]]
    reader = WindowRecords(keys, layout, found)
    for read in vector["reads"]:
        (values,) = reader.read([key], [record], read["at"]).values
        kinds = [each.type for each in found]
        assert json.dumps(list(map(wired, kinds, values))) == json.dumps(read["values"])


def test_every_flipped_bit_of_a_windowed_record_is_caught() -> None:
    vector = min(VECTORS["records"], key=lambda record: len(record["record"]))
    key, record = vector["key"].encode(), bytes.fromhex(vector["record"])
    assert is_intact(key, record)
    for place in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[place // 8] ^= 1 << place % 8
        assert not is_intact(key, bytes(flipped)), place
