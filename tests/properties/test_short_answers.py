"""The short way to an HTTP answer says what the long way says, byte for byte in its values, or nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.serving import HOUR_US, Project

from featurestore.online.records import fresh
from featurestore.online.records.encoder import RecordEncoder
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import resolve
from featurestore.server.read.endpoints import _short_body, online_body
from featurestore.server.read.templates import Template
from featurestore.server.watch.metrics import Metrics
from featurestore.serving.compiled import CompiledRequest

NOW = 1_400_000_000_000_000
FEATURES = {
    "all": ["everything:an_int32", "everything:a_float64", "everything:a_string", "everything:an_instant"],
    "mixed": [
        "everything:a_date",
        "everything:numbers",
        "everything:a_float32",
        "fresh:score",
        "everything:some_bytes",
    ],
    "two": ["everything:a_float64", "everything:a_bool", "fresh:score"],
    "defaults": ["fresh:clicks", "fresh:score", "everything:a_decimal"],
}
floats = st.one_of(st.none(), st.floats(width=32), st.just(math.nan), st.just(math.inf), st.just(-0.0))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "an_int32": st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    "an_int64": st.none(),
    "a_float32": floats,
    "a_float64": floats,
    "a_bool": st.one_of(st.none(), st.booleans()),
    "a_string": st.one_of(st.none(), st.sampled_from(["", "null", "a null", '"', "é"])),
    "some_bytes": st.one_of(st.none(), st.binary(max_size=4)),
    "an_instant": st.one_of(st.none(), st.datetimes()),
    "a_date": st.one_of(st.none(), st.dates()),
    "a_decimal": st.none(),
    "numbers": st.one_of(st.none(), st.lists(floats, max_size=3)),
    "instants": st.none(),
    "clicks": st.one_of(st.none(), st.integers(-5, 5)),
    "score": floats,
}
ages = st.sampled_from([0, HOUR_US, HOUR_US + 1, 5 * HOUR_US])
"""The view ``fresh`` has a ttl of one hour."""


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    root: Path = tmp_path_factory.mktemp("short")
    return Project(root).workspace().snapshot()


@given(data=st.data())
def test_the_short_way_says_what_the_long_way_says(snapshot: Snapshot, data: st.DataObject) -> None:
    features = FEATURES[data.draw(st.sampled_from(sorted(FEATURES)))]
    compiled = CompiledRequest(snapshot, resolve(snapshot, features), form="json")
    template = Template(compiled)
    query = compiled.query({"customer_id": list(range(data.draw(st.integers(1, 4))))})
    records = [record_of(snapshot, read.view.name, data) for read in compiled.request.reads for _ in range(query.rows)]
    answer = compiled.answer(query, records, NOW)
    long = json.loads(online_body(template, answer, ["status"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "_MANY", data.draw(st.integers(1, 4)))
        rows = compiled.fresh_rows(query, records, NOW)
    statuses = Counter(status for row in long["status"] for status in row)
    for expects_nulls in (False, True):
        template.expects_nulls = expects_nulls
        short = None if rows is None else _short_body(template, rows)
        if short is None:
            assert set(statuses) - {"PRESENT"} or _is_shuffled(features)
            continue
        body, with_nulls = short
        assert json.loads(body) == long
        assert not statuses.keys() - {"PRESENT", "NULL_VALUE"}
        assert template.expects_nulls == bool(with_nulls) == ("NULL_VALUE" in statuses)
        by_short, by_long = Metrics(), Metrics()
        by_short.answered_fresh(template, query.rows, with_nulls)
        by_long.answered(template, answer)
        assert counted(by_short) == counted(by_long)
        assert sum(count for line, count in counted(by_short).items() if "NULL_VALUE" in line) == statuses["NULL_VALUE"]


def counted(metrics: Metrics) -> dict[str, float]:
    """Return how many values and rows were counted, as Prometheus reads it."""
    lines = [line.rsplit(" ", 1) for line in metrics.text().decode().splitlines()]
    names = ("featurestore_values_total", "featurestore_online_rows_total")
    return {name: float(count) for name, count in lines if name.startswith(names) and float(count)}


def _is_shuffled(features: list[str]) -> bool:
    """Features of one view on both sides of another's are put together the long way."""
    views = [feature.split(":")[0] for feature in features]
    return len([view for view, before in zip(views, [None, *views], strict=False) if view != before]) > len(set(views))


def record_of(snapshot: Snapshot, view: str, data: st.DataObject) -> bytes | None:
    if data.draw(st.integers(0, 9)) == 0:
        return None
    registered = snapshot.views[view]
    values = []
    for name, kind in registered.layout.fields:
        value = data.draw(VALUES[name])
        values.append(value.replace(tzinfo=UTC) if kind.name == "Timestamp" and value else value)
    encoder = RecordEncoder(registered.layout)
    return encoder.encode(b"key", NOW - data.draw(ages), None, values)


def test_most_answers_take_the_short_way(snapshot: Snapshot) -> None:
    compiled = CompiledRequest(snapshot, resolve(snapshot, FEATURES["two"]), form="json")
    template, query = Template(compiled), compiled.query({"customer_id": [1, 2]})
    records = []
    for read in compiled.request.reads:
        layout = read.registered.layout
        row = {"a_float64": math.nan, "a_bool": None, "score": 0.5}
        values = [row.get(name) for name, _ in layout.fields]
        records += [RecordEncoder(layout).encode(b"key", NOW, None, values)] * 2
    rows = compiled.fresh_rows(query, records, NOW)
    assert rows is not None
    short = _short_body(template, rows)
    assert short is not None
    assert json.loads(short[0]) == {
        "names": ["a_float64", "a_bool", "score"],
        "rows": [[None, None, 0.5]] * 2,
        "status": [["NULL_VALUE", "NULL_VALUE", "PRESENT"]] * 2,
    }


@pytest.mark.parametrize("rows", [1, 2])
def test_the_short_way_ends_with_the_ttl_to_the_microsecond(snapshot: Snapshot, rows: int) -> None:
    compiled = CompiledRequest(snapshot, resolve(snapshot, ["fresh:clicks", "fresh:score"]), form="json")
    query = compiled.query({"customer_id": list(range(rows))})
    encoder = RecordEncoder(snapshot.views["fresh"].layout)
    last, late = (encoder.encode(b"key", NOW - HOUR_US - past, None, [1, 0.5]) for past in (0, 1))
    assert compiled.fresh_rows(query, [last] * rows, NOW) == [[1, 0.5]] * rows
    assert compiled.fresh_rows(query, [last] * (rows - 1) + [late], NOW) is None
