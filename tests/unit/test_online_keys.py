from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from support.wire import entity_of

from featurestore.errors import EntityKeyError, OnlineStoreError, ValueTypeError
from featurestore.online.interface import ViewLayout
from featurestore.online.records.keys import (
    BUCKETS,
    EntityEncoder,
    KeyEncoder,
    check_prefix,
    mark_key,
    project_prefix,
    view_prefix,
)
from featurestore.testing.online_store import ODD_ENTITIES
from featurestore.types import Bool, Bytes, Date, Int32, Int64, String
from featurestore.types.values import ValueType


def encoder(*kinds: ValueType, view: str = "v", generation: int = 1) -> KeyEncoder:
    join_keys = tuple((f"k{place}", kind) for place, kind in enumerate(kinds))
    return KeyEncoder(ViewLayout("p", view, generation, join_keys, (), None))


def test_prefixes_match_no_neighbour() -> None:
    names = [view_prefix("p", view, generation) for view in ("a", "ab", "a_b", "b") for generation in (1, 2, 3, 22)]
    names += [view_prefix("p2", "a"), view_prefix("p_", "a")]
    for one in names:
        assert [other for other in names if other.startswith(one)] == [one]
        assert one.startswith(project_prefix("p")) != one.startswith((b"fs:p2:", b"fs:p_:"))
    keys = encoder(String, view="a", generation=2)
    assert keys.namespace == view_prefix("p", "a", 2) == b"fs:p:a.2:"
    assert keys.prefix == b"fs:p:a.2:{"
    assert keys.schema_key(bytes(range(8))) == b"fs:p:a.2:schema:0001020304050607"
    assert not keys.schema_key(bytes(8)).startswith(keys.prefix)


def test_windowed_records_are_in_buckets() -> None:
    layout = ViewLayout("p", "v", 2, (("a", String), ("b", Int64)), (), None, has_buckets=True)
    keys = KeyEncoder(layout)
    assert keys.encode(["UA", 7]) == b"fs:p:v.2:{16}UA|7"
    assert keys.encode(["x" * 300, 7]).startswith(b"fs:p:v.2:{47}#")
    assert keys.keys([]) == []
    rows = [["é|{}", 1], ["", -5], ["a", 2**62]]
    for row, key in zip(rows, keys.keys(keys.entities.texts([*zip(*rows, strict=True)])), strict=True):
        assert key.startswith(keys.prefix)
        assert key.count(b"{") == key.count(b"}") == 1
        assert mark_key(keys.namespace, keys.bucket_of(key)) == b"fs:p:v.2:applied:{" + keys.bucket_of(key) + b"}"
        assert entity_of(layout, key) == tuple(row)
    numbered = keys.keys([f"x|{number}" for number in range(6_400)])
    counts = Counter(map(keys.bucket_of, numbered))
    assert set(counts) == set(BUCKETS)
    assert max(counts.values()) < 150


@pytest.mark.parametrize(("nodes", "most"), [(1, 64), (2, 32), (3, 22), (4, 16), (5, 14), (6, 12), (8, 8), (12, 7)])
def test_buckets_spread_over_the_nodes_of_a_cluster(nodes: int, most: int) -> None:
    """A node that had many more of them than others would have as many more records."""
    slots = list(map(key_slot, BUCKETS))
    assert len(set(slots)) == len(BUCKETS)
    counts = Counter(slot * nodes // REDIS_CLUSTER_HASH_SLOTS for slot in slots)
    assert (max(counts.values()), len(counts)) == (most, nodes)


@pytest.mark.parametrize("prefix", [b"", b"f", b"fs:", b"fs::", b"fs:p", b"fs:P:", b"fs:*:", b"x"])
def test_a_prefix_of_more_than_a_project_is_refused(prefix: bytes) -> None:
    with pytest.raises(OnlineStoreError, match="prefix"):
        check_prefix(prefix)


def test_the_declared_type_decides() -> None:
    assert encoder(Int32).encode([7]) == encoder(Int64).encode([7]) == encoder(String).encode(["7"]) == b"fs:p:v:{7}"
    assert encoder(Int64).encode([np.int32(7)]) == encoder(Int64).encode([7.0]) == b"fs:p:v:{7}"
    assert encoder(Bool).encode([np.True_]) == b"fs:p:v:{true}"
    assert encoder(Bytes).encode([bytearray(b"a|")]) == b"fs:p:v:{a%7C}"
    assert encoder(String).encode([np.str_("a")]) == b"fs:p:v:{a}"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Int64, True),
        (Int64, "7"),
        (Int64, 2**63),
        (Int32, 2**31),
        (Int32, -(2**31) - 1),
        (Int64, 1.5),
        (Int64, float("nan")),
        (String, 7),
        (String, b"a"),
        (String, "\ud800"),
        (Bool, 1),
        (Date, datetime(2013, 1, 1, tzinfo=UTC)),
        (Date, "2013-01-01"),
        (Bytes, "a"),
        (Int64, None),
        (String, None),
        (String, pd.NaT),
    ],
)
def test_ill_typed_values_name_join_key_row_and_value(kind: ValueType, value: object) -> None:
    good = {"Int64": 1, "Int32": 1, "String": "a", "Bool": True, "Date": date(2013, 1, 1), "Bytes": b"a"}[kind.name]
    with pytest.raises(EntityKeyError, match=r"'k0'.*row 2") as raised:
        encoder(kind).entities.texts([[good, good, value]])
    assert raised.value.details == {"join_key": "k0", "row": 2}


@pytest.mark.parametrize("entity", ODD_ENTITIES)
def test_odd_texts_come_back(entity: str) -> None:
    keys = encoder(String, Int64)
    key = keys.encode([entity, -5])
    text = key.removeprefix(b"fs:p:v:{").removesuffix(b"}")
    assert not set(text) & set(b"{}:*\n\x00 ")
    assert entity_of(keys.layout, key) == (None if text.startswith(b"#") else (entity, -5))


def test_bulk_and_single_agree() -> None:
    columns: dict[ValueType, list[object]] = {
        Int64: [0, -1, 2**63 - 1],
        Int32: [0, -1, 2**31 - 1],
        String: ["", "a b", "x" * 300],
        Bool: [True, False, True],
        Date: [date(1, 1, 1), date(1969, 12, 31), date(9999, 12, 31)],
        Bytes: [b"", b"\x00", b"abc"],
    }
    keys = encoder(*columns)
    kinds = {"Int64": pa.int64(), "Int32": pa.int32(), "Date": pa.date32()}
    table = {
        f"k{place}": pa.chunked_array(
            [pa.array(values[:1], kinds.get(kind.name)), pa.array(values[1:], kinds.get(kind.name))]
        )
        for place, (kind, values) in enumerate(columns.items())
    }
    assert keys.encode_columns(table) == [keys.encode(row) for row in zip(*columns.values(), strict=True)]
    assert keys.keys(keys.entities.texts(list(columns.values()))) == keys.encode_columns(table)
    assert encoder(Int64).encode_columns({"k0": pa.array([7], pa.int16())}) == [b"fs:p:v:{7}"]
    assert encoder(Int64).encode_columns({"k0": pa.array([], pa.int64())}) == []
    with pytest.raises(EntityKeyError, match="'k0' is null in row 1"):
        encoder(Int64).encode_columns({"k0": pa.array([7, None])})
    with pytest.raises(EntityKeyError, match="'k0' is null in row 0"):
        encoder(Bytes).encode_columns({"k0": pa.array([None, b""], pa.binary())})
    with pytest.raises(ValueTypeError, match="k0"):
        encoder(Int64).encode_columns({"k0": pa.array(["7"])})


def test_views_share_the_text_of_an_entity() -> None:
    texts = EntityEncoder((("k0", String),)).texts([["a", "b/c"]])
    assert encoder(String, view="x").keys(texts) == [b"fs:p:x:{a}", b"fs:p:x:{b%2Fc}"]
    assert encoder(String, view="y").keys(texts) == [b"fs:p:y:{a}", b"fs:p:y:{b%2Fc}"]
    assert encoder(String).keys([]) == []


def test_only_the_longest_entities_are_hashed() -> None:
    keys = encoder(String).keys(encoder(String).entities.texts([["x" * 200, "x" * 201, "é" * 33, "é" * 34]]))
    assert [key.startswith(b"fs:p:v:{#") for key in keys] == [False, True, False, True]
    assert {len(key) for key in keys} == {9 + 200, 9 + 65, 9 + 198}
