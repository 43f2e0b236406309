"""The graph of lineage: names, steps, columns, and what a ledger adds; edges are compared with those written out."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from featurestore_registry.errors import RecordNotFoundError
from featurestore_registry.interface import LedgerReader
from featurestore_registry.lineage.columns import trace
from featurestore_registry.lineage.graph import Graph
from featurestore_registry.records import LedgerEntry, Record, RecordField

from featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    ParquetSource,
    PushSource,
    RequestSource,
    on_demand_feature_view,
)
from featurestore.project.loader import collect
from featurestore.registered.records import selection_document, to_record
from featurestore.types import Float64, Int64, String

shop = Entity("shop", {"shop": String})
sales = ParquetSource("sales", "sales.parquet", "sold_at", "known_at")
shops = ParquetSource("shops", "shops.parquet", "opened_at")
tills = PushSource("tills", sales)
trip = RequestSource("trip", [Field("miles", Float64), Field("stops", Int64)])
plain = FeatureView("plain", entities=[shop], source=shops, schema=[Field("city", String), Field("size", Float64)])
joined = FeatureView(
    "joined",
    entities=[shop],
    source=[sales, shops],
    schema=[Field("amount", Float64), Field("share", Float64), Field("city", String)],
    sql="""
        SELECT sales.shop, sold_at, known_at, sales.amount, sales.amount / shops.size AS share, shops.city
        FROM sales JOIN shops ON sales.shop = shops.shop WHERE sales.state = 'paid'
    """,
)
recent = FeatureView(
    "recent",
    entities=[shop],
    source=tills,
    schema=[Field("id", String), Field("amount", Float64), Field("state", String)],
    event_id="id",
    aggregations=[
        Aggregation("amount", "sum", [timedelta(days=1), None], where="state = 'paid'"),
        Aggregation("*", "count", [timedelta(hours=1)]),
    ],
)
pivoted = FeatureView(
    "pivoted",
    entities=[shop],
    source=sales,
    schema=[Field("paid", Float64)],
    sql="FROM (PIVOT sales ON state USING sum(amount) GROUP BY shop, sold_at, known_at)",
)


@on_demand_feature_view(sources=[trip, plain[["size"]].with_name("big")], schema=[Field("per_mile", Float64)])
def computed(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Size for each mile."""
    return {"per_mile": inputs["size"]}


model = FeatureService(
    "model", [joined[["share"]], computed, plain.with_name("here").with_join_keys({"shop": "other"})]
)
RECORDS = [to_record("p", found) for found in collect([model, recent, pivoted])]
REFERENCES = [selection_document(joined[["share"]]), {"on_demand": "computed", "features": ["per_mile"]}]
GRAPH = Graph(RECORDS, training_sets={"june": REFERENCES}, consumers={"app": ["model", "gone"]})


def told(name: str, graph: Graph = GRAPH, **how: Any) -> set[str]:
    """Return the edges of a lineage as texts: ``sales.amount copied joined:amount``."""
    found = graph.lineage([graph.find(name)], **how)
    names = {node.id: node.name for node in found.nodes}
    assert len(names) == len(found.nodes)
    return {f"{names[e.source]} {e.kind}{'' if e.is_sure else '?'} {names[e.target]}" for e in found.edges}


def test_objects_both_ways():
    assert told("joined") == {
        "shop reads joined",
        "sales reads joined",
        "shops reads joined",
        "joined reads model",
        "joined reads june",
        "model reads app",
    }
    assert told("sales", up=0) == {
        "sales reads joined",
        "sales reads tills",
        "sales reads pivoted",
        "tills reads recent",
        "joined reads model",
        "joined reads june",
        "model reads app",
    }
    assert told("app", down=0, up=2) == {
        "model reads app",
        *(f"{n} reads model" for n in ("joined", "computed", "plain")),
    }


def test_a_set_with_labels_is_still_of_its_service_and_of_the_labels_view():
    references = [*to_record("p", model).document["features"]]
    label = {**selection_document(pivoted[["paid"]]), "label": None, "horizon_us": 1}
    graph = Graph(RECORDS, training_sets={"march": [*references, label]})
    edges = told("march", graph, down=0, up=1)
    assert {"model reads march", "pivoted reads march"} <= edges


class Kept(LedgerReader):
    """What people named, and deleted."""

    def scan(self, project: str, kind: str, *, key: str | None = None, limit: int | None = None) -> list[LedgerEntry]:
        kept = {
            "training_set": {"june": {"references": REFERENCES}, "july": {"deleted": True}},
            "consumer": {"app": {"services": ["model"]}, "old": {"gone": True}},
        }
        return [LedgerEntry(project, kind, name, 1, told, datetime(2026, 1, 1)) for name, told in kept[kind].items()]


def test_what_is_deleted_of_the_ledger_is_nowhere():
    graph = Graph.read(RECORDS, Kept(), "p")
    assert told("joined", graph) == told("joined")
    for name in ("training_set:july", "old"):
        with pytest.raises(RecordNotFoundError):
            graph.find(name)


def test_columns_of_sql_say_what_is_copied_and_what_decides_rows():
    assert told("joined", down=0, up=1, columns=True) == {
        "shop reads joined",
        "sales reads joined",
        "shops reads joined",
        "sales.amount copied joined:amount",
        "sales.amount influences joined:share",
        "shops.size influences joined:share",
        "shops.city copied joined:city",
        *(f"sales.{column} rows joined" for column in ("shop", "sold_at", "known_at", "state")),
        "shops.shop rows joined",
        *(f"joined part joined:{feature}" for feature in ("amount", "share", "city")),
    }


def test_one_feature_and_one_column_are_followed_alone():
    assert told("joined:city", down=0) == {
        "shops.city copied joined:city",
        "joined part joined:city",
        *told("joined", down=0, up=None),
        *(f"sales.{column} rows joined" for column in ("shop", "sold_at", "known_at", "state")),
        "shops.shop rows joined",
    }
    assert told("plain.size", up=0) == {
        "plain:size influences computed:per_mile",
        "plain:size reads model",
        "computed:per_mile reads model",
        "computed:per_mile reads june",
        "model reads app",
    }
    assert told("shops.city", up=0) == {
        "shops.city copied joined:city",
        "shops.city copied plain:city",
        "plain:city reads model",
        "model reads app",
    }
    # A column that decides rows may change every feature of the view.
    assert {"sales.state rows joined", "joined part joined:city"} <= told("sales.state", up=0)


def test_windows_read_their_column_and_their_condition_through_a_push_source():
    inputs = {"tills.amount", "tills.state"}
    assert told("recent:amount_sum_1d", down=0, up=1) == {
        *(f"{column} influences recent:amount_sum_1d" for column in inputs),
        "recent part recent:amount_sum_1d",
    }
    assert told("recent:count_1h", down=0, up=1) == {"recent part recent:count_1h"}
    assert told("recent", down=0, up=1, columns=True) > {
        *(f"tills.{column} rows recent" for column in ("shop", "sold_at", "known_at", "id"))
    }
    assert {"sales.state copied tills.state", "tills.state influences recent:amount_sum_all"} <= told(
        "sales.state", up=0
    )


def test_what_cannot_be_told_may_come_from_any_column():
    assert "sales.* influences pivoted:paid" in told("pivoted:paid", down=0)
    assert {"sales.amount influences? pivoted:paid", "sales.amount rows? pivoted"} <= told("sales.amount", up=0)
    assert {"sales.never_named influences? pivoted:paid"} <= told("sales.never_named", up=0)


def test_a_training_set_is_of_the_service_that_reads_the_same():
    same = [selection_document(found) for found in model.features if found is not model.features[1]]
    references = [same[0], {"on_demand": "computed", "features": ["per_mile"]}, same[1]]
    graph = Graph(RECORDS, training_sets={"whole": references})
    assert "model reads whole" in told("training_set:whole", graph)
    assert "model reads june" not in told("june")
    unnamed = [same[0], references[1], {**same[1], "name": "plain", "join_keys": {}}]
    assert "model reads other" not in told("other", Graph(RECORDS, training_sets={"other": unnamed}))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("plain", "feature_view:plain"),
        ("view:plain", "feature_view:plain"),
        ("feature-views:plain", "feature_view:plain"),
        ("plain.CITY", "feature_view:plain.city"),
        ("plain:city", "feature_view:plain.city"),
        ("entity:shop", "entity:shop"),
        ("training_set:june", "training_set:june"),
        ("training-set:june", "training_set:june"),
        ("consumer:app", "consumer:app"),
        ("trip.miles", "request_source:trip.miles"),
        ("computed:per_mile", "on_demand_feature_view:computed.per_mile"),
    ],
)
def test_names(name: str, key: str):
    assert GRAPH.find(name) == key


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jioned", ["Nothing is called 'jioned'", "'joined'"]),
        ("joined:shar", ["'joined' has no column or feature 'shar'", "'share'"]),
        ("shops.citty", ["'shops' has no column or feature 'citty'", "'city'"]),
        ("citi", ["Did you mean 'joined:city' or 'plain:city'?"]),
        ("Share", ["Did you mean 'joined:share'?"]),
        ("", ["Nothing is called ''"]),
        ("shop:", []),
        (":", []),
        ("nothing:plain", ["Nothing is called"]),
    ],
)
def test_wrong_names_get_the_closest(name: str, words: list[str]):
    with pytest.raises(RecordNotFoundError) as caught:
        GRAPH.find(name)
    for word in words:
        assert word in str(caught.value)


def test_a_name_of_several_kinds_needs_its_kind():
    records = [to_record("p", found) for found in (shop, ParquetSource("shop", "x", "t"))]
    with pytest.raises(RecordNotFoundError, match=r"'entity:shop', 'source:shop'"):
        Graph(records).find("shop")


def test_documents_of_other_versions_have_no_columns_and_stop_nothing():
    odd = [
        Record(kind, "p", "odd", {"sources": 3, "features": [7, {}], "inputs": None}, "f")
        for kind in ("feature_view", "on_demand_feature_view", "feature_service", "push_source", "new_kind")
    ]
    graph = Graph([*RECORDS, *odd], training_sets={"odd_set": [{"view": 3}]}, consumers={"c": ["odd"]})
    for record in odd:
        graph.lineage([record.key], columns=True)
    assert told("joined", graph) == told("joined") - {"joined reads june", "model reads app"}


@pytest.mark.parametrize(
    ("sql", "column", "expected"),
    [
        ("SELECT c AS a, a + 1 AS y FROM t", "y", "~t.a"),  # DuckDB takes the column before the alias
        ("SELECT b AS x, x + 1 AS y FROM t", "y", "~t.b? ~t.x?"),
        ("SELECT -b AS a FROM t GROUP BY ALL", "a", "~t.b"),
        ("SELECT k FROM t FULL JOIN u USING (k)", "k", "=t.k =u.k"),
        ("SELECT z FROM t JOIN u ON t.a = u.k", "z", "=t.z? =u.z?"),
        ("SELECT k FROM t", "absent", "~t.* ~u.*"),
        ("SELECT a, a FROM t", "a", "=t.a"),
        ("SELECT a AS q, b AS q FROM t", "q", "=t.a"),  # the first of two, as DuckDB names the other one q_1
        ("SELECT x FROM (SELECT b AS x FROM t) UNION ALL SELECT z FROM u", "x", "=t.b =u.z"),
        ("SELECT z AS x FROM u UNION ALL SELECT b FROM t UNION ALL SELECT z FROM t, u", "x", "=t.b =t.z? =u.z"),
        ("SELECT b AS x FROM t UNION ALL SELECT 0", "x", "~t.b"),
        ("SELECT b AS x FROM t UNION ALL SELECT NULL", "x", "=t.b"),
        ("SELECT * FROM t", "Any Name", "=t.Any Name"),
        ("SELECT 'not", "k", "~t.* ~u.*"),
        (f"SELECT {'(' * 3000}a{')' * 3000} AS x FROM t", "x", "~t.* ~u.*"),
        ("SELECT EXISTS (SELECT b FROM t WHERE a > 1) AS x FROM u", "x", "~t.a"),  # whether there are rows, not which
        ("SELECT 1 AS x", "x", ""),
        ("SELECT * RENAME ORDER (a AS z) FROM t", "z", "~t.* ~u.*"),  # the parser makes a tree of it
        (f"SELECT a AS x FROM t -- {'.' * 100_000}", "x", "~t.* ~u.*"),
        ("", "x", "~t.* ~u.*"),
    ],
)
def test_columns_exactly(sql: str, column: str, expected: str):
    known = (("t", frozenset({"k", "a", "b", "c"})), ("u", frozenset({"d"})))
    origins = trace(sql, known, (column,)).columns[column]
    signs = {"copied": "=", "influences": "~"}
    assert " ".join(f"{signs[o.kind]}{o.source}.{o.column}{'' if o.is_sure else '?'}" for o in origins) == expected


def test_a_view_of_another_version_may_come_from_anything_that_it_needs():
    fields = (RecordField("new", "Float64"),)
    later = Record("feature_view", "p", "later", {"sources": "?"}, "f", fields, ("source:sales", "entity:shop"))
    found = told("later:new", Graph([*RECORDS, later]), up=1)
    assert found == {"sales.* influences? later:new", "later part later:new"}


def test_sql_is_read_once():
    before = trace.cache_info().misses
    for _ in range(3):
        told("joined", columns=True)
    assert trace.cache_info().misses == before
