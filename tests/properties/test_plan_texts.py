"""For any two different definitions, what a plan prints tells them apart, and so does its JSON."""

from __future__ import annotations

import json
import unicodedata
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import Entity, FeatureService, FeatureView, Field, OnDemandFeatureView, ParquetSource, PushSource
from featurestore.cli.output import jsonable
from featurestore.definitions import Definition
from featurestore.plan.classes import differences
from featurestore.plan.texts import difference_lines
from featurestore.registered.records import to_record
from featurestore.types import Array, Bool, Bytes, Float64, Int64, String

LONG = "SELECT carrier, at, known, delay FROM flights WHERE carrier IN ('UA', 'AA', 'DL') AND delay IS NOT NULL "
NEAR = ["", "none", "(empty)", "a", "A", " a", "a ", "a\u200b", "'a'", '"a"', "a -> b", "b -> a", "1", "1.0", "True"]
NEAR += [
    "é",
    "e\u0301",
    "[1]",
    "a\n",
    "a\nb",
    "a\r\nb",
    "\ta",
    "\t",
    "a\n\nb",
    LONG,
    LONG + "a",
    LONG + "a ",
    "x\n" * 9,
]
texts = st.sampled_from(NEAR) | st.text(max_size=5) | st.lists(st.sampled_from("pqrs"), max_size=30).map("\n".join)
names = st.sampled_from(["a", "b", "c", "d"])
kinds = {
    "text": st.none() | texts,
    "list": st.lists(st.sampled_from([*NEAR, *"pqrs"]), max_size=20),
    "mapping": st.dictionaries(texts, texts, max_size=3),
    "duration": st.none() | st.timedeltas(),
    "number": st.none() | st.integers() | st.booleans(),
}


def seen(text: str) -> str:
    """Return what can be seen of a line in a terminal."""
    return unicodedata.normalize("NFC", "".join(c for c in text if c.isprintable())).rstrip()


def printed(before: Any, after: Any) -> tuple[list[str], list[str]]:
    """Return what the lines show as old and as new."""
    first, *more = map(seen, difference_lines(before, after))
    if not more:
        old, arrow, new = first.partition(" -> ")
        assert arrow
        return [old], [new]
    assert first == ""
    return [line[2:] for line in more if line[:1] != "+"], [line[2:] for line in more if line[:1] != "-"]


@pytest.mark.parametrize("kind", kinds)
@given(data=st.data())
def test_two_different_values_never_print_alike(kind, data):
    before, one, other = (data.draw(kinds[kind]) for _ in range(3))
    if repr(before) != repr(one):
        old, new = printed(before, one)
        assert old != new
        if repr(one) != repr(other):
            assert difference_lines(before, one) != difference_lines(before, other)


SOURCES = [ParquetSource(name, "flights.parquet", "at", created) for name in "st" for created in (None, "known")]
SOURCES = [*SOURCES, PushSource("s", SOURCES[0]), PushSource("p", SOURCES[0])]
ENTITIES = [Entity("carrier", join_keys={"carrier": kind}) for kind in (String, Int64)]
DEFAULTS = [(String, t) for t in [None, "", "none", "NaN", "1", "a\nb"]] + [(Int64, 1), (Bool, True), (Bytes, b"1")]
DEFAULTS += [(Float64, v) for v in [None, 0.0, -0.0, 1.0, float("nan"), float("inf")]]
DEFAULTS += [(Array(Int64), v) for v in (None, [], [1], [1, 1])]
SQL = [None, "SELECT * FROM {}", "SELECT *  FROM {}", "SELECT\n*\nFROM {}", "SELECT\n*\nFROM {}\n"]
SQL += ["SELECT\n* \nFROM {}", "SELECT\n\t*\nFROM {}"]


@st.composite
def fields(draw: st.DrawFn) -> Field:
    kind, default = draw(st.sampled_from(DEFAULTS))
    described = draw(st.sampled_from(["", "none", "a "])), draw(st.sampled_from([{}, {"a": "b"}, {"a": ""}]))
    return Field(draw(names), kind, default=default, description=described[0], tags=described[1])


@st.composite
def views(draw: st.DrawFn) -> Definition:
    source, sql = draw(st.sampled_from(SOURCES)), draw(st.sampled_from(SQL))
    return FeatureView(
        "view",
        entities=[draw(st.sampled_from(ENTITIES))],
        source=source,
        schema=draw(st.lists(fields(), min_size=1, max_size=3, unique_by=lambda field: field.name)),
        sql=None if sql is None else sql.format(source.name),
        ttl=draw(st.sampled_from([None, timedelta(days=1), timedelta(hours=24, microseconds=1)])),
        online=draw(st.booleans()),
        description=draw(texts),
        owner=draw(texts),
        tags=draw(st.dictionaries(names, texts, max_size=2)),
    )


SHARED = [
    FeatureView(name, entities=ENTITIES[:1], source=SOURCES[0], schema=[Field(f, Int64) for f in "abc"])
    for name in "vw"
]


@st.composite
def selections(draw: st.DrawFn) -> Any:
    chosen = draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True))
    made = draw(st.sampled_from(SHARED))[chosen]
    made = made.with_name(draw(st.sampled_from(["v", "x"]))) if draw(st.booleans()) else made
    return made.with_join_keys({"carrier": draw(st.sampled_from(["m", "n"]))}) if draw(st.booleans()) else made


named_apart = st.lists(selections(), min_size=1, max_size=3, unique_by=lambda selection: selection.name)
services = st.builds(lambda read: FeatureService("model", read), named_apart)
on_demand = st.builds(
    lambda read, code, mode: OnDemandFeatureView(
        "computed", sources=[read], schema=[Field("y", Int64)], function=None, code=code, mode=mode
    ),
    selections(),
    st.sampled_from(["def f(): ...", "def f():\n    return 1", "def f():\n    return 1\n", "def f():\n\treturn 1"]),
    st.sampled_from(["pandas", "python"]),
)
sources = st.builds(
    lambda path, created, days: ParquetSource("s", path, "at", created, allowed_lateness=timedelta(days=days)),
    st.sampled_from(["a", "b", "b ", "none"]),
    st.sampled_from([None, "none", "known"]),
    st.integers(0, 2),
)


@pytest.mark.parametrize("kind", ["views", "services", "on demand", "sources"])
@given(data=st.data())
def test_two_different_definitions_never_print_alike(kind, data):
    made = {"views": views(), "services": services, "on demand": on_demand, "sources": sources}[kind]
    before, after = data.draw(made), data.draw(made)
    found = differences(before, after)
    assert found or to_record("shop", before).fingerprint == to_record("shop", after).fingerprint
    for each in found:
        old, new = printed(each.before, each.after)
        assert old != new
        assert json.dumps(jsonable(each.before)) != json.dumps(jsonable(each.after))


def test_a_push_source_of_the_same_name_is_another_source() -> None:
    entity = Entity("shop", {"shop": Int64})
    batch, other = (ParquetSource(name, f"{name}.parquet", "at") for name in ("sales", "till"))
    schema = [Field("n", Int64)]
    before, after = (
        FeatureView("v", entities=[entity], source=source, schema=schema)
        for source in (batch, PushSource("sales", other))
    )
    (found,) = differences(before, after)
    assert (found.what, found.change_class.name) == ("source", "REBUILD")
