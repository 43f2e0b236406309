"""Features added to a view that was materialized before, and views whose SQL changed: nothing lacks in silence."""

from __future__ import annotations

import shutil
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.clock import ManualClock
from support.command_line import CommandLine
from support.examples import examples
from support.materialized import day

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.maintenance.status import status
from featurestore.materialization import materialize, materialize_incremental, run, succeeded
from featurestore.plan.changes import explain
from featurestore.training import TrainingSetWarning
from featurestore.types import Int64, String

pytestmark = pytest.mark.uncounted

NOW = day(12)
COLUMNS = ("amount", "tips", "fees")


def source_rows(days: int = 10) -> list[tuple[str, int, dict[str, int | None]]]:
    """One sale a day of two shops: (shop, instant, values); shop b never gets tips."""
    return [
        (shop, day(number), {"amount": number, "tips": 10 * number if shop == "a" else None, "fees": -number})
        for number in range(1, days + 1)
        for shop in ("a", "b")
    ]


def write_source(root: Path, days: int = 10) -> None:
    rows = source_rows(days)
    at = pa.array([at for _, at, _ in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    values = {name: pa.array([found[name] for *_, found in rows], pa.int64()) for name in COLUMNS}
    pq.write_table(pa.table({"shop": [shop for shop, *_ in rows], "at": at, **values}), root / "sales.parquet")


def sales(*features: str, sql: str | None = None) -> FeatureView:
    source = ParquetSource("rows", "sales.parquet", "at")
    schema = [Field(name, Int64) for name in features]
    return FeatureView("sales", entities=[Entity("shop", {"shop": String})], source=source, schema=schema, sql=sql)


def make(root: Path, settings: str = "") -> FeatureStore:
    (root / "feature_store.yaml").write_text(f"project: shop\n{settings}")
    write_source(root)
    made = FeatureStore(root, clock=ManualClock(NOW))
    made.apply([sales("amount")])
    made.materialize_incremental()
    return made


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `store` is with the embedded online store, to be copied."""
    root = tmp_path_factory.mktemp("embedded")
    make(root).close()
    return root


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, embedded: Path) -> Iterator[FeatureStore]:
    if getattr(request, "param", "lmdb") == "redis":
        made = make(tmp_path, f"online_store: {request.getfixturevalue('redis_url')}\n")
    else:
        shutil.copytree(embedded, tmp_path, dirs_exist_ok=True)
        made = FeatureStore(tmp_path, clock=ManualClock(NOW))
    with made:
        yield made


def frame() -> pa.Table:
    rows = source_rows()
    at = pa.array([at for _, at, _ in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    return pa.table({"shop": [shop for shop, *_ in rows], "event_timestamp": at})


def read_all(store: FeatureStore, names: Sequence[str]) -> tuple[dict[str, list[int | None]], list[str]]:
    """Return the features' values at every sale, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TrainingSetWarning)
        training = store.get_historical_features(frame(), [f"sales:{name}" for name in names])
        found = training.to_arrow()
    return {name: found.column(name).to_pylist() for name in names}, [str(found.message) for found in caught]


def read(store: FeatureStore, name: str) -> tuple[list[int | None], list[str]]:
    """Return a feature's values at every sale, and what was warned of."""
    values, warned = read_all(store, [name])
    return values[name], warned


def lacks(store: FeatureStore) -> str:
    return " ".join(status(store.workspace)[0].lacks)


def of_source(name: str) -> list[int | None]:
    return [values[name] for *_, values in source_rows()]


@pytest.mark.parametrize("store", ["lmdb", "redis"], indirect=True)
def test_the_next_run_reads_what_an_added_feature_lacks(store: FeatureStore) -> None:
    plan = store.plan([sales("amount", "tips")])
    said = "\n".join(line.text for line in explain(plan))
    assert "tips: null for 2024-01-02T00:00:00Z to 2024-01-13T00:00:00Z, which was read before" in said
    assert "afterwards run `fs materialize --view sales`" in said
    store.apply_plan(plan)

    values, warned = read(store, "tips")
    assert values == [None] * 20
    assert len(warned) == 1
    assert "Feature 'tips' of view 'sales': null for 2024-01-02" in warned[0]
    assert "`fs materialize --view sales`" in warned[0]
    assert lacks(store) == warned[0]
    with pytest.warns(TrainingSetWarning):
        training = store.get_historical_features(frame(), "sales:tips")
    assert warned[0] in training.certificate.views[0].rests_on
    assert read(store, "amount") == (of_source("amount"), [])  # who does not ask for it is not bothered

    (ran,) = store.materialize_incremental()
    assert (ran.read, ran.appended) == (20, 10)  # shop b has no tips: there is nothing to correct
    assert read(store, "tips") == (of_source("tips"), [])
    assert lacks(store) == ""
    answer = store.get_online_features("sales:tips", {"shop": ["a"]})
    assert answer.to_dict()["tips"] == [100]
    (ran,) = store.materialize_incremental()
    assert (ran.read, ran.appended) == (0, 0)


def test_a_span_read_by_hand_is_missing_no_longer_and_the_rest_is(store: FeatureStore) -> None:
    store.apply([sales("amount", "tips")])
    succeeded(materialize(store.workspace, day(3), day(6)))
    values, warned = read(store, "tips")
    expected = [
        tips if 3 <= amount < 6 else None for amount, tips in zip(of_source("amount"), of_source("tips"), strict=True)
    ]
    assert values == expected
    assert "null for 2024-01-02T00:00:00Z to 2024-01-04" in warned[0]
    assert "and 2024-01-07T00:00:00Z to 2024-01-13" in warned[0]
    (ran,) = store.materialize_incremental()
    assert ran.read == 14
    assert read(store, "tips") == (of_source("tips"), [])


def test_a_run_that_dies_before_it_has_written_that_down_reads_it_once_more(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply([sales("amount", "tips")])

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "write_unread", dies)
        with pytest.raises(KeyboardInterrupt):
            store.materialize_incremental()
    assert "'tips'" in lacks(store)
    (ran,) = store.materialize_incremental()
    assert (ran.read, ran.appended) == (20, 0)
    assert (read(store, "tips"), lacks(store)) == ((of_source("tips"), []), "")


def test_a_run_says_what_its_view_still_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_source(tmp_path)
    fs = CommandLine(tmp_path, capsys)
    with FeatureStore(tmp_path) as store:
        store.apply([sales("amount")])
        assert "another source or SQL" not in fs("materialize")
        store.apply([sales("amount", sql="SELECT * REPLACE (2 * amount AS amount) FROM rows")])
        told = lacks(store)
        assert "holds rows of another source" in told
        assert told in " ".join(fs("materialize").split())
        assert [run["lacks"] for run in fs.json("materialize")] == [[told]]


def test_a_view_that_reads_by_other_sql_says_so_until_it_is_rebuilt(store: FeatureStore) -> None:
    store.apply([sales("amount", sql="SELECT * REPLACE (2 * amount AS amount) FROM rows WHERE shop = 'a'")])
    values, warned = read(store, "amount")
    assert values == of_source("amount")
    assert warned == [lacks(store)]
    assert "`fs materialize 2024-01-02T00:00:00Z 2024-01-13T00:00:00Z --rebuild --view sales`" in warned[0]
    store.materialize_incremental()
    succeeded(materialize(store.workspace, day(1), day(12)))
    assert lacks(store) == warned[0]  # what the SQL leaves out now is there still
    succeeded(materialize(store.workspace, day(1), day(12), rebuild=True, confirm=lambda *_: True))
    assert lacks(store) == ""
    assert read(store, "amount")[0] == [
        2 * v if s == "a" else None for (s, *_), v in zip(source_rows(), of_source("amount"), strict=True)
    ]


def test_a_renamed_source_and_a_new_description_lack_nothing(store: FeatureStore) -> None:
    source = ParquetSource("renamed", "sales.parquet", "at", description="the same file")
    view = FeatureView(
        "sales", entities=[Entity("shop", {"shop": String})], source=source, schema=[Field("amount", Int64)]
    )
    store.apply([view])
    assert lacks(store) == ""
    assert read(store, "amount") == (of_source("amount"), [])


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["incremental", "tips", "fees"]),
        st.tuples(st.integers(1, 10), st.integers(1, 4), st.booleans()),
    ),
    max_size=4,
)


@given(steps=STEPS)
@settings(max_examples=examples(6), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_null_that_the_source_does_not_hold_is_always_told(
    steps: list[str | tuple[int, int, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("shop")
    (root / "feature_store.yaml").write_text("project: shop\n")
    write_source(root)
    features = ["amount"]
    with FeatureStore(root, clock=ManualClock(NOW)) as store:
        store.apply([sales(*features)])
        succeeded(materialize_incremental(store.workspace, day(5)))
        for step in steps:
            if step == "incremental":
                store.materialize_incremental()
            elif isinstance(step, str):
                features = list(dict.fromkeys([*features, step]))
                store.apply([sales(*features)])
            else:
                start, length, rebuild = step
                end = min(day(start + length), NOW)
                succeeded(materialize(store.workspace, day(start), end, rebuild=rebuild, confirm=lambda *_: True))
        (found,) = status(store.workspace)
        told, committed = " ".join(found.lacks), found.intervals
        read_values, _ = read_all(store, features)
        for name, values in read_values.items():
            # Every sale of its own instant: the row is there where its span is committed.
            wrong = [
                at
                for (_, at, sold), value in zip(source_rows(), values, strict=True)
                if sold[name] != value and any(start <= at < end for start, end in committed)
            ]
            assert bool(wrong) <= (f"'{name}'" in told)
        store.materialize_incremental()
        assert lacks(store) == ""
        assert read_all(store, features)[0] == {name: of_source(name) for name in features}


def forget(root: Path) -> None:
    """Leave the registry as an earlier release does: it wrote nothing of what a view has not read."""
    with closing(sqlite3.connect(root / "data" / "registry.db")) as registry, registry:
        for table in ("registry_ledger", "registry_ledger_key"):
            assert registry.execute(f"DELETE FROM {table} WHERE kind = 'unread'").rowcount


@pytest.mark.parametrize("by_interval", [False, True])
def test_what_was_added_under_an_earlier_release_is_told_and_read(tmp_path: Path, by_interval: bool) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_source(tmp_path)

    def bring(store: FeatureStore, until: int) -> None:
        if by_interval:
            succeeded(materialize(store.workspace, day(1), until))
        else:
            succeeded(materialize_incremental(store.workspace, until))

    clock = ManualClock(NOW)
    with FeatureStore(tmp_path, clock=clock) as store:
        store.apply([sales("amount")])
        bring(store, day(5))
        clock.advance(timedelta(seconds=1))
        assert store.apply([sales("amount", "tips")]).steps
        clock.advance(timedelta(seconds=1))
        succeeded(materialize(store.workspace, day(5), day(7)))
        forget(tmp_path)
        told = lacks(store)
        assert "Feature 'tips' of view 'sales': null for 2024-01-02T00:00:00Z to 2024-01-06T00:00:00Z" in told
        dates = "2024-01-02T00:00:00Z 2024-01-06T00:00:00Z " if by_interval else ""
        assert f"Run `fs materialize {dates}--view sales`" in told
        assert read(store, "tips")[1][-1].startswith("Feature 'tips'")
        if by_interval:
            succeeded(materialize(store.workspace, day(1), day(5)))
        else:
            (ran,) = store.materialize_incremental()
            assert ran.read == 8 + 8  # what it lacks, and what is new
        assert lacks(store) == ""
        assert read(store, "tips")[0][:8] == of_source("tips")[:8]


def test_where_the_entries_of_that_time_are_gone_the_oldest_that_is_left_tells(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write_source(tmp_path)
    clock = ManualClock(NOW)
    with FeatureStore(tmp_path, clock=clock) as store:
        store.apply([sales("amount")])
        succeeded(materialize_incremental(store.workspace, day(5)))
        clock.advance(timedelta(seconds=1))
        store.apply([sales("amount", "tips")])
        clock.advance(timedelta(seconds=1))
        succeeded(materialize(store.workspace, day(5), day(7)))
        forget(tmp_path)
        with closing(sqlite3.connect(tmp_path / "data" / "registry.db")) as registry, registry:
            of_marks = "FROM registry_ledger WHERE kind = 'watermark'"
            registry.execute(f"DELETE {of_marks} AND version < (SELECT max(version) {of_marks})")
        assert "Feature 'tips' of view 'sales': null for 2024-01-02T00:00:00Z to 2024-01-08T00:00:00Z" in lacks(store)


def test_what_an_earlier_release_read_with_all_features_is_not_read_again(store: FeatureStore) -> None:
    forget(store.root)
    assert lacks(store) == ""
    (ran,) = store.materialize_incremental()
    assert ran.read == 0
