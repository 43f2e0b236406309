"""What a plan says of views and sources that do not fit each other: the true cause, of all of them at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.errors import SourceError, SourceFileError, SourceSchemaError
from featurestore.types import Float64, Int64, String

NOW = datetime(2013, 6, 1, tzinfo=UTC)
carrier = Entity("carrier", join_keys={"carrier": String})
flights = ParquetSource("flights", "flights.parquet", "ts", "known")
GOOD = "SELECT carrier, ts, known, delay FROM flights"


def view(name: str = "delays", **changes) -> FeatureView:
    return FeatureView(name, **{"entities": [carrier], "source": flights, "sql": GOOD, **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    (tmp_path / "features.py").write_text("")
    times = pa.array([NOW], pa.timestamp("us", tz="UTC"))
    rows = pa.table({"carrier": ["UA"], "ts": times, "known": times, "delay": [1.5], "at": [1]})
    pq.write_table(rows, tmp_path / "flights.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "flights.parquet").read_bytes()[:100])
    return tmp_path


@pytest.fixture
def store(root: Path):
    with FeatureStore(root, clock=ManualClock(NOW)) as opened:
        yield opened


gone = ParquetSource("gone", "nowhere/*.parquet", "ts", "known")
torn = ParquetSource("torn", "torn.parquet", "ts", "known")

MISTAKES = {
    "a column": (
        {"sql": "SELECT carrier, ts, known,\n  dela\nFROM flights"},
        ["'delays'", '"dela"', "LINE 2:   dela", "Did you mean 'delay'?"],
    ),
    "a column on line 1": (
        {"sql": "SELECT carrier, ts, known, dela FROM flights"},
        ["'delays'", "LINE 1: SELECT carrier, ts, known, dela FROM flights\n" + " " * 35 + "^^^^", "'delay'"],
    ),
    "a function": ({"sql": GOOD.replace("delay", "summ(delay) AS d")}, ["'delays'", "summ", 'Did you mean "sum"']),
    "a column of a table": ({"sql": GOOD.replace("delay", "flights.dely")}, ["'delays'", "dely"]),
    "a reserved word": ({"sql": GOOD.replace("delay", "at")}, ["'delays'", "syntax error", '"at"']),
    "a forgotten GROUP BY": ({"sql": GOOD.replace("delay", "avg(delay) AS d")}, ["'delays'", "GROUP BY"]),
    "no event time": ({"sql": GOOD.replace("ts, ", "")}, ["'delays'", "event time 'ts' is missing"]),
    "no created time": ({"sql": GOOD.replace("known, ", "")}, ["'delays'", "created time 'known' is missing"]),
    "neither time, no feature": (
        {"sql": "SELECT carrier FROM flights"},
        ["'delays'", "event time 'ts' is missing", "created time 'known' is missing"],
    ),
    "another key": (
        {"sql": GOOD.replace("carrier,", "carrier AS carr,")},
        ["'delays'", "join key 'carrier' is missing. Did you mean 'carr'?"],
    ),
    "a key of another type": (
        {"entities": [Entity("carrier", join_keys={"carrier": Int64})]},
        ["'delays'", "'carrier' is declared Int64, found"],
    ),
    "an entity with another key": (
        {"entities": [Entity("airline", join_keys={"airline": String})]},
        ["'delays'", "join key 'airline' is missing"],
    ),
    "a type that no feature has": ({"sql": GOOD.replace("delay", "INTERVAL 1 DAY AS i")}, ["'delays'", "'i'"]),
    "no feature": ({"sql": GOOD.replace(", delay", "")}, ["'delays'", "its SQL selects no column besides"]),
    "a missing path": ({"source": gone, "sql": GOOD.replace("flights", "gone")}, ["'gone'", "nowhere/*.parquet"]),
    "a torn file": ({"source": torn, "sql": GOOD.replace("flights", "torn")}, ["torn.parquet cannot be read"]),
    "a source without its time column": (
        {"source": ParquetSource("flights", "flights.parquet", "when"), "sql": "SELECT carrier, delay FROM flights"},
        ["'delays'", "event time 'when' is missing"],
    ),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("applied", ["new", "applied with SQL", "applied without SQL"])
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_told_with_its_true_cause(store, case, applied):
    changes, words = MISTAKES[case]
    if applied != "new":
        store.apply([view() if applied == "applied with SQL" else view(sql=None)])
    with pytest.raises(SourceError) as caught:
        store.plan([view(**changes)])
    told = str(caught.value)
    assert [word for word in words if word not in told] == []
    # Nothing is said of what only follows.
    assert "no column besides" not in told or case == "no feature"
    assert "DESCRIBE" not in told


def test_all_faulty_views_and_sources_are_told_at_once(store):
    store.apply([view("delays"), view("sound")])
    given = [view(name, **changes) for name, (changes, _) in [*zip("abc", list(MISTAKES.values())[:3], strict=True)]]
    both = [gone, flights, torn]
    joined = view("joined", source=both, sql="SELECT g.* FROM gone g, flights f, torn t")
    wide = [Field("delay", String), Field("more", Float64)]
    declared = view("declared", sql=None, schema=wide)
    broken = view("delays", sql="SELECT carrier, ts, known, dela FROM flights")
    again = view("again", source=gone, sql="SELECT * FROM gone")
    with pytest.raises(SourceError) as caught:
        store.plan([*given, joined, declared, broken, again, view("sound")])
    told = str(caught.value)
    names = ["'a'", "'b'", "'c'", "'declared'", "'delays'"]
    for words in [*names, "'more' is missing", "declared String", "torn.parquet"]:
        assert words in told
    assert told.count("Source 'gone'") == 1  # two views read it
    assert "sound" not in told
    assert told.startswith("7 faults")
    faults = caught.value.details["faults"]
    assert len(faults) == told.count("\n- ") == 7
    assert sorted(fault["view"] for fault in faults if "view" in fault) == ["a", "b", "c", "declared", "delays"]
    assert all(fault["message"] for fault in faults)


def test_faults_of_one_kind_keep_their_class(store):
    with pytest.raises(SourceSchemaError, match="2 faults"):
        store.plan([view("a", sql=GOOD + " WHERE x"), view("b", sql=GOOD + " WHERE y")])
    with pytest.raises(SourceFileError, match="2 faults"):
        store.plan([view("a", source=gone, sql="SELECT * FROM gone"), view("b", source=torn, sql=None)])
    with pytest.raises(SourceFileError, match="'gone'") as caught:
        store.plan([view("a", source=gone, sql="SELECT * FROM gone"), view("b", source=gone, sql=None)])
    assert "2 faults" not in str(caught.value)


def test_a_broken_source_of_what_is_applied_as_it_stands_is_a_notice_each(store, root):
    store.apply([view("one"), view("two", sql=None)])
    (root / "flights.parquet").unlink()
    plan = store.plan([view("one"), view("two", sql=None)])
    assert plan.steps == ()
    assert [notice.partition(":")[0] for notice in plan.notices] == ["one", "two"]
    with pytest.raises(SourceFileError):
        store.plan([view("one"), view("two", sql=GOOD)])
