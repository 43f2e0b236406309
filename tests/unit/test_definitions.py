"""Definitions: frozen, validated when made, and their errors name object, field and value."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from featurestore import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    OnDemandFeatureView,
    ParquetSource,
    PushSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.errors import DefinitionError, NotFoundError
from featurestore.types import Bytes, Float64, Int64, String
from featurestore.types.times import MIN_INSTANT

carrier = Entity("carrier", join_keys={"carrier": String})
route = Entity("route", join_keys={"origin": String, "dest": String})
flights = ParquetSource("flights", "f.parquet", "arrived_at", "recorded_at")
planes = ParquetSource("planes", "p.parquet", "known_since")
delays = FeatureView(
    "delays",
    entities=[carrier],
    source=flights,
    ttl=timedelta(days=7),
    schema=[Field("delay", Float64), Field("n", Int64)],
)
request = RequestSource("request", schema=[Field("distance", Float64)])

SQL = "WITH a AS (SELECT * FROM flights) SELECT a.*, seats FROM a JOIN planes USING (tailnum)"

BAD = {
    "upper-case name": (lambda: Entity("Carrier", {"c": String}), ["Entity 'Carrier'", "name"]),
    "long name": (lambda: Entity("c" * 64, {"c": String}), ["name"]),
    "reserved name": (lambda: Entity("fs_c", {"c": String}), ["reserved"]),
    "name that is no text": (lambda: Entity(3, {"c": String}), ["name", "3"]),
    "no join key": (lambda: Entity("c", {}), ["join_keys", "at least one"]),
    "join keys as a list": (lambda: Entity("c", ["a"]), ["join_keys"]),
    "key of a bad type": (lambda: Entity("c", {"x": Float64}), ["'x'", "Float64"]),
    "key with a bad name": (lambda: Entity("c", {"a b": String}), ["column name"]),
    "keys that differ in case": (lambda: Entity("c", {"a": String, "A": String}), ["'a'", "'A'", "case"]),
    "unknown argument type": (lambda: Entity("c", {"x": "Int65"}), ["Int65"]),
    "empty path": (lambda: ParquetSource("s", "", "t"), ["path"]),
    "NUL in a path": (lambda: ParquetSource("s", "a\0b", "t"), ["path", "NUL"]),
    "one column for both times": (lambda: ParquetSource("s", "p", "t", "t"), ["two columns"]),
    "negative lateness": (lambda: ParquetSource("s", "p", "t", allowed_lateness=timedelta(-1)), ["allowed_lateness"]),
    "empty request": (lambda: RequestSource("r", []), ["schema"]),
    "request twice": (lambda: RequestSource("r", [Field("a", Int64), Field("a", Int64)]), ["columns are called 'a'"]),
    "default of another type": (lambda: Field("a", Int64, default="x"), ["Field 'a'", "default", "'x'", "Int64"]),
    "reserved feature": (lambda: Field("EVENT_TS", Int64), ["reserved"]),
    "feature named as a row number": (lambda: Field("File_Row_Number", Int64), ["reserved", "file_row_number"]),
    "key named as a file number": (lambda: Entity("c", {"file_index": Int64}), ["reserved", "file_index"]),
    "feature prefix": (lambda: Field("fs_a", Int64), ["reserved"]),
    "no entity": (lambda: FeatureView("v", entities=[], source=flights), ["entities"]),
    "entity not in a list": (lambda: FeatureView("v", entities=carrier, source=flights), ["entities"]),
    "two entities sharing a key": (
        lambda: FeatureView("v", entities=[carrier, Entity("b", {"carrier": String})], source=flights),
        ["two columns are called 'carrier'"],
    ),
    "ttl of zero": (lambda: FeatureView("v", entities=[carrier], source=flights, ttl=timedelta(0)), ["ttl"]),
    "ttl that is a number": (lambda: FeatureView("v", entities=[carrier], source=flights, ttl=7), ["ttl", "7"]),
    "empty schema": (lambda: FeatureView("v", entities=[carrier], source=flights, schema=[]), ["schema"]),
    "feature named as a key": (
        lambda: FeatureView("v", entities=[carrier], source=flights, schema=[Field("carrier", String)]),
        ["two columns are called 'carrier'"],
    ),
    "two sources without sql": (lambda: FeatureView("v", entities=[carrier], source=[flights, planes]), ["sql"]),
    "one source twice": (lambda: FeatureView("v", entities=[carrier], source=[flights, flights]), ["twice"]),
    "no source": (lambda: FeatureView("v", entities=[carrier], source=[]), ["source"]),
    "source of a wrong kind": (lambda: FeatureView("v", entities=[carrier], source=request), ["sources"]),
    "ill-formed sql": (lambda: view_with("SELECT FROM WHERE"), ["FeatureView 'v'", "sql"]),
    "two statements": (lambda: view_with("SELECT 1 FROM flights; SELECT 2"), ["one SELECT"]),
    "not a select": (lambda: view_with("DROP TABLE flights"), ["one SELECT"]),
    "file in sql": (lambda: view_with("SELECT * FROM flights, '/etc/passwd'"), ["/etc/passwd"]),
    "function in sql": (lambda: view_with("SELECT * FROM flights, read_csv('x')"), ["READ_CSV"]),
    "table with a schema": (lambda: view_with("SELECT * FROM flights, main.flights"), ["main.flights"]),
    "unknown table": (lambda: view_with("SELECT * FROM flihgts"), ["flihgts", "'flights'?"]),
    "unread source": (
        lambda: FeatureView("v", entities=[carrier], source=[flights, planes], sql="SELECT * FROM flights"),
        ["'planes'"],
    ),
    "empty selection": (lambda: delays[[]], ["at least one"]),
    "feature selected twice": (lambda: delays[["n", "n"]], ["each once"]),
    "unknown join key": (lambda: delays.with_join_keys({"carier": "x"}), ["'carier'", "carrier"]),
    "ill-formed key column": (lambda: delays.with_join_keys({"carrier": "a b"}), ["column name"]),
    "ill-formed alias": (lambda: delays.with_name("Ab"), ["name"]),
    "empty service": (lambda: FeatureService("s", []), ["at least one"]),
    "view twice in a service": (lambda: FeatureService("s", [delays, delays[["n"]]]), ["'delays'", "with_name"]),
    "text in a service": (lambda: FeatureService("s", ["delays:n"]), ["features"]),
    "on demand without inputs": (
        lambda: on_demand_feature_view(sources=[], schema=[Field("a", Int64)])(len),
        ["sources"],
    ),
    "on demand without outputs": (lambda: on_demand_feature_view(sources=[request], schema=[])(len), ["schema"]),
    "on demand with clashing inputs": (
        lambda: on_demand_feature_view(sources=[delays, delays.with_name("b")], schema=[Field("a", Int64)])(len),
        ["two columns are called 'delay'"],
    ),
    "on demand in an unknown mode": (
        lambda: on_demand_feature_view(sources=[request], schema=[Field("a", Int64)], mode="spark")(len),
        ["mode", "spark"],
    ),
}


def view_with(sql: str) -> FeatureView:
    return FeatureView("v", entities=[carrier], source=flights, sql=sql)


@pytest.mark.parametrize("case", BAD)
def test_bad_definitions_are_refused_by_name(case):
    make, words = BAD[case]
    with pytest.raises(DefinitionError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("given", ["delay", ["delay", 1], 1])
def test_statistics_are_a_switch_or_names(given):
    words = r'statistics: must be True, False or a list of names of fields, such as \["carrier"\] \(got '
    with pytest.raises(DefinitionError, match=words):
        FeatureView("v", entities=[carrier], source=flights, statistics=given)


@pytest.mark.parametrize(
    "make",
    [
        lambda tags: Entity("e", {"a": String}, tags=tags),
        lambda tags: ParquetSource("s", "s.parquet", "at", tags=tags),
        lambda tags: RequestSource("r", [Field("n", Int64)], tags=tags),
        lambda tags: Field("n", Int64, tags=tags),
        lambda tags: FeatureView("v", entities=[carrier], source=flights, tags=tags),
        lambda tags: FeatureService("s", [delays], tags=tags),
        lambda tags: on_demand_feature_view(sources=[delays], schema=[Field("a", Int64)], name="d", tags=tags)(len),
    ],
)
def test_tags_are_a_mapping(make):
    with pytest.raises(DefinitionError, match=r"tags: must be a dict \(got \['a'\]\)"):
        make(["a"])
    assert make(None).tags == {}


def test_unknown_features_are_refused_with_the_closest():
    with pytest.raises(NotFoundError, match="Did you mean 'delay'"):
        delays[["delai"]]


def test_definitions_are_frozen_and_compare_by_value():
    with pytest.raises(Exception, match="frozen"):
        carrier.name = "other"
    assert Entity("carrier", {"carrier": String}) == carrier
    assert hash(Entity("carrier", {"carrier": String})) == hash(carrier)
    assert Entity("carrier", {"carrier": Bytes}) != carrier


def test_sql_may_join_sources_and_define_its_own_tables():
    view = FeatureView("v", entities=[carrier], source=[flights, planes], sql=SQL)
    assert view.timestamp_field == "arrived_at"
    assert view.created_timestamp_field == "recorded_at"


def test_a_joined_source_may_bring_the_created_column():
    bare = ParquetSource("bare", "b.parquet", "t")
    view = FeatureView("v", entities=[carrier], source=[bare, flights], sql="SELECT * FROM bare, flights")
    assert view.created_timestamp_field == "recorded_at"


def test_a_view_without_a_schema_has_no_features_yet():
    with pytest.raises(DefinitionError, match="fs apply"):
        _ = FeatureView("v", entities=[carrier], source=flights).features


def test_selections_rename_views_and_keys():
    selection = delays[["n"]].with_name("other").with_join_keys({"carrier": "airline"})
    assert (selection.name, selection.join_key_columns) == ("other", {"carrier": "airline"})
    assert [field.name for field in selection.features] == ["n"]
    assert [field.name for field in delays["n"].features] == ["n"]
    assert delays.with_join_keys({"carrier": "c"}).features == delays.features
    composite = FeatureView("r", entities=[route], source=flights, schema=[Field("d", Float64)])
    assert composite.with_join_keys({"dest": "to"}).join_key_columns == {"origin": "origin", "dest": "to"}
    with pytest.raises(DefinitionError, match="two columns are called 'origin'"):
        composite.with_join_keys({"dest": "origin"})


def test_push_sources_stand_on_their_batch_source():
    push = PushSource("pushed", batch_source=flights)
    view = FeatureView("v", entities=[carrier], source=push, schema=[Field("d", Float64)])
    assert view.batch_sources == (flights,)


def test_a_plain_view_reaches_back_to_its_ttl():
    forever = FeatureView("v", entities=[carrier], source=flights, schema=[Field("d", Float64)])
    assert forever.ttl_us is forever.reach_us is None
    assert forever.reaches_back_to(0) == MIN_INSTANT
    assert delays.ttl_us == delays.reach_us == 7 * 86_400 * 1_000_000
    assert delays.reaches_back_to(0) == -delays.reach_us
    assert delays.reaches_back_to(MIN_INSTANT + 1) == MIN_INSTANT


@on_demand_feature_view(sources=[delays, request], schema=[Field("ratio", Float64)])
def ratio(inputs):
    """Delay for each mile."""
    return {"ratio": [d / m for d, m in zip(inputs["delay"], inputs["distance"], strict=True)]}


def test_on_demand_views_keep_their_text_from_def_on():
    assert isinstance(ratio, OnDemandFeatureView)
    assert ratio.name == "ratio"
    assert ratio.description == "Delay for each mile."
    assert ratio.code.startswith("def ratio(inputs):")
    assert "on_demand_feature_view" not in ratio.code
    assert [field.name for field in ratio.request_fields] == ["distance"]
    assert [selection.name for selection in ratio.selections] == ["delays"]
    assert ratio({"delay": [4.0], "distance": [2.0]}) == {"ratio": [2.0]}


def test_functions_without_a_text_have_none():
    made = on_demand_feature_view(sources=[request], schema=[Field("a", Int64)], name="bare")(len)
    assert made.code == ""
    doubled = on_demand_feature_view(sources=[request], schema=[Field("a", Int64)], name="doubled")(lambda i: i)
    assert "lambda" in doubled.code


def test_paths_may_be_path_objects():
    assert ParquetSource("s", Path("a/b.parquet"), "t").path == "a/b.parquet"
