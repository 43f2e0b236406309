"""Labels in training sets: what is left out and said, what certificates state, saving, splitting, and bad input."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.catalog_server import serving_catalog
from support.clock import ManualClock
from support.projects import make_workspace
from support.rows import commit_rows

from featurestore import (
    Aggregation,
    Entity,
    FeatureView,
    Field,
    Label,
    ParquetSource,
    TrainingSetWarning,
    on_demand_feature_view,
)
from featurestore.errors import (
    CertificateError,
    DefinitionError,
    EntityFrameError,
    InputError,
    NotFoundError,
    OutputNameClashError,
    TrainingSetError,
)
from featurestore.ledger.saved_sets import pins, read_set
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.training import TrainingSet, get_historical_features, get_training_set, joins
from featurestore.types import Bool, Float64, Int64
from featurestore.types.times import to_instant
from featurestore.workspace import Workspace

HOUR_US = 3_600_000_000
NOW = "2024-02-01T00:00:00Z"
BEGIN_US = to_instant("2024-01-31T00:00:00Z")
HORIZON = timedelta(hours=6)

driver = Entity("driver", {"driver": Int64})
stats = FeatureView(
    "stats", entities=[driver], source=ParquetSource("stats_file", "stats", "at"), schema=[Field("rides", Int64)]
)
outcomes = FeatureView(
    "outcomes",
    entities=[driver],
    source=ParquetSource("outcome_file", "outcomes", "at", "known_at"),
    schema=[Field("delay", Float64), Field("late", Bool)],
)
unstamped = FeatureView(
    "unstamped", entities=[driver], source=ParquetSource("plain", "plain", "at"), schema=[Field("delay", Float64)]
)
rides = FeatureView(
    "rides",
    entities=[driver],
    source=ParquetSource("ride_file", "rides", "at"),
    schema=[Field("km", Float64)],
    aggregations=[Aggregation("km", "sum", windows=[timedelta(hours=1), timedelta(days=1), None])],
)


@on_demand_feature_view(sources=[outcomes[["delay"]]], schema=[Field("double", Float64)])
def doubled(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {"double": [None if delay is None else 2 * delay for delay in inputs["delay"]]}


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """Drivers 0 to 4 with an outcome an hour after each hour, known half an hour later; committed up to now."""
    made = make_workspace(tmp_path, [stats, outcomes, unstamped, rides, doubled], now_us=NOW)
    hours = [(who, BEGIN_US + hour * HOUR_US) for hour in range(24) for who in range(5)]
    commit_rows(made, "stats", [{"driver": who, "rides": who, "event_ts": at} for who, at in hours])
    rows = [
        {"driver": who, "delay": float(who), "late": who > 2, "event_ts": at, "created_ts": at + HOUR_US // 2}
        for who, at in hours
    ]
    covers = (BEGIN_US - 24 * HOUR_US, to_instant(NOW) - 2 * HOUR_US)
    for view in ("outcomes", "unstamped"):
        commit_rows(made, view, rows, covers=covers)
    yield made
    made.close()


def frame_of(hours: int = 24, first: int = 0) -> pd.DataFrame:
    at = [BEGIN_US + (first + hour) * HOUR_US for hour in range(hours)]
    return pd.DataFrame(
        {"driver": [hour % 6 for hour in range(hours)], "event_timestamp": pd.to_datetime(at, unit="us", utc=True)},
        index=[f"row {hour}" for hour in range(hours)],
    )


def labelled(workspace: Workspace, entity_df: Any = None, **options: Any) -> TrainingSet:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingSetWarning)
        return get_historical_features(
            workspace,
            frame_of() if entity_df is None else entity_df,
            "stats:rides",
            **{"labels": Label("outcomes:delay", horizon=HORIZON), **options},
        )


def test_rows_without_a_label_yet_are_left_out_said_and_counted(workspace: Workspace) -> None:
    """Of 24 rows those of the last 5 hours end after now; 3 more look past what is committed."""
    with pytest.warns(TrainingSetWarning) as told:
        training = get_historical_features(
            workspace, frame_of(), "stats:rides", labels=[Label("outcomes:delay", horizon=HORIZON)]
        )
    (text,) = training.warnings
    assert text == str(told[0].message) == (
        "8 of 24 rows are left out, because their labels are not known at 2024-02-01T00:00:00.000000Z: of the 06:00:00 "
        "after the row for 'delay' 5 end after now and 3 are not all committed. Commit what is new with "
        "`fs materialize --view outcomes`."
    )  # fmt: skip
    made = training.to_pandas()
    assert list(made.index) == [f"row {hour}" for hour in range(16)]
    assert list(made.columns) == ["driver", "event_timestamp", "rides", "delay"]
    assert training.columns == tuple(made.columns)
    assert [None if pd.isna(value) else value for value in made["delay"][:6]] == [0, 1, 2, 3, 4, None]
    (facts,) = training.labels
    assert (facts.name, facts.feature, facts.horizon_us) == ("delay", "outcomes:delay", 6 * HOUR_US)
    assert (facts.not_matured, facts.not_committed) == (5, 3)
    assert training.features == ("rides",)
    assert len(training) == 16
    assert training.head(2).shape == (2, 4)


def test_an_early_outcome_does_not_bring_a_young_row_in(workspace: Workspace) -> None:
    """All outcomes come an hour after the row; with a horizon of six the last rows stay out all the same."""
    made = labelled(workspace, labels=Label("unstamped:delay", horizon=HORIZON)).to_pandas()
    assert made["event_timestamp"].max() == pd.Timestamp("2024-01-31T15:00:00Z")


def test_the_certificate_states_the_label_and_calls_it_no_leak(workspace: Workspace) -> None:
    labels = [Label("outcomes:delay", horizon=HORIZON), Label("unstamped:late", horizon=timedelta(hours=1))]
    with pytest.raises(NotFoundError, match="'unstamped' has no feature 'late'"):
        labelled(workspace, labels=labels)
    labels[1] = Label("unstamped:delay", horizon=timedelta(hours=1), name="soon")
    certificate = labelled(workspace, labels=labels).certificate
    assert certificate.left_out == 8
    assert [view.from_future for view in certificate.views] == [0]
    stamped, plain = certificate.labels
    assert (stamped.horizon_us, stamped.not_matured, stamped.not_committed) == (6 * HOUR_US, 5, 3)
    assert (stamped.without_label, stamped.recomputed_rows, stamped.view.from_future) == (2, 16, 0)
    assert (stamped.view.availability, plain.view.availability) == ("by created_ts", "not declared") or (
        stamped.view.availability == "by known_at"
    )
    assert (plain.not_matured, plain.not_committed) == (0, 3)
    text = str(certificate)
    assert "delay: outcomes:delay as known 06:00:00 after the row, of events after the row" in text
    assert "5 rows not matured, 3 rows not committed" in text
    assert "soon: unstamped:delay" in text
    assert "labels" not in get_historical_features(workspace, frame_of(), "stats:rides").certificate.to_dict()


def test_a_wrong_label_is_caught_by_the_certificate(workspace: Workspace) -> None:
    training = labelled(workspace)
    training.to_arrow()
    (label,) = training._rows.labels  # type: ignore[union-attr]
    wrong = pa.RecordBatch.from_arrays([pa.array([99.0] * 16)], ["delay"])
    label.observed._values["outcomes"] = [wrong]
    with pytest.raises(CertificateError, match="outcomes:delay"):
        _ = training.certificate


@pytest.mark.parametrize("form", ["pandas", "polars", "arrow", "parquet", "lists"])
def test_every_form_of_a_frame_loses_the_same_rows(workspace: Workspace, tmp_path: Path, form: str) -> None:
    table = pa.Table.from_pandas(frame_of(), preserve_index=False)
    pq.write_table(table, tmp_path / "frame.parquet")
    forms = {
        "pandas": frame_of(), "polars": pl.from_arrow(table), "arrow": table, "parquet": tmp_path / "frame.parquet",
        "lists": table.to_pydict(),
    }  # fmt: skip
    training = labelled(workspace, forms[form])
    made = training.to_arrow()
    assert made.column("driver").to_pylist() == table.column("driver").to_pylist()[:16]
    assert made.column("delay").to_pylist()[:6] == [0, 1, 2, 3, 4, None]
    if form == "polars":
        assert training.to_polars().columns == ["driver", "event_timestamp", "rides", "delay"]
    target = training.write_parquet(tmp_path / "out.parquet")
    assert pq.read_table(target).column("delay").to_pylist() == made.column("delay").to_pylist()


def test_a_saved_set_keeps_its_labels_and_pins_their_views(workspace: Workspace) -> None:
    labels = [
        Label("outcomes:delay", horizon=HORIZON, name="target"),
        Label("outcomes:late", horizon=timedelta(hours=2)),
    ]
    training = labelled(workspace, labels=labels).save("delays")
    table = workspace.snapshot().views["outcomes"].table
    assert pins(workspace)[table] == frozenset({0})
    late = [{"driver": 1, "delay": 77.0, "late": True, "event_ts": BEGIN_US + 3 * HOUR_US}]
    commit_rows(workspace, "outcomes", late)
    clock = workspace.clock
    assert isinstance(clock, ManualClock)
    clock.now_us += 100 * HOUR_US
    again = get_training_set(workspace, "delays")
    assert again.to_arrow().equals(training.to_arrow())
    assert again.labels == training.labels
    assert again.certificate == training.certificate
    assert again.fingerprint() == training.fingerprint()
    assert "target" in {each.feature.partition(":")[2] for each in again.statistics.columns} or again.statistics
    training.save("delays")  # the same set: nothing changes
    with pytest.raises(TrainingSetError, match="another training set called 'delays'"):
        labelled(workspace, labels=labels[:1]).save("delays")
    assert len(read_set(workspace.ledger, "shop", "delays").reads) == 3
    train, test, left_out = again.split("2024-01-31T10:00:00Z")
    assert (len(train), len(test), left_out) == (4, 6, 6)
    assert train.to_arrow().column("target").to_pylist() == training.to_arrow().column("target").to_pylist()[:4]
    assert again.sample().num_rows == 16
    assert again.profile() is not None


def test_the_catalog_shows_labels_and_what_was_left_out(workspace: Workspace) -> None:
    labelled(workspace).save("delays")
    with serving_catalog(workspace.registry) as url:
        page = httpx.get(f"{url}/p/shop/training_set/delays").text
    assert "<code>outcomes:delay</code> within 6 hours after the row; 12.5" in page
    assert "8 rows whose labels were not known" in page


def test_sets_read_their_sources_directly_too(workspace: Workspace) -> None:
    for name in ("stats", "outcomes"):
        hours = [BEGIN_US + hour * HOUR_US for hour in range(24)]
        at = pa.array(hours, pa.int64()).cast(pa.timestamp("us", "UTC"))
        table = pa.table(
            {"driver": [0] * 24, "at": at, "known_at": at, "rides": [1] * 24, "delay": [2.0] * 24, "late": [True] * 24}
        )
        pq.write_table(table, workspace.root / name)
    frame = frame_of().assign(driver=0)
    training = labelled(workspace, frame, direct=True, snapshot=workspace.snapshot())
    assert list(training.to_pandas()["delay"]) == [2.0] * 19  # nothing is committed: only the clock counts
    assert [(each.not_matured, each.not_committed) for each in training.labels] == [(5, 0)]


def test_materializing_brings_the_rows_in(workspace: Workspace) -> None:
    at = pa.array([BEGIN_US + hour * HOUR_US for hour in range(24)], pa.int64()).cast(pa.timestamp("us", "UTC"))
    table = pa.table({"driver": [0] * 24, "at": at, "known_at": at, "delay": [2.0] * 24, "late": [True] * 24})
    pq.write_table(table, workspace.root / "outcomes")
    frame = frame_of().assign(driver=0)
    assert len(labelled(workspace, frame)) == 16
    succeeded(materialize_incremental(workspace, None, ["outcomes"]))
    assert len(labelled(workspace, frame)) == 18  # what ends now is not committed: the end of a run's span is not in it


@pytest.mark.uncounted
def test_labels_stand_beside_their_rows_in_every_batch(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = labelled(workspace).to_arrow()
    monkeypatch.setattr(joins, "BATCH_ROWS", 3)
    training = labelled(workspace)
    assert len(list(training.batches())) > 3
    assert training.to_arrow().equals(whole)


def test_nothing_but_young_rows_is_an_empty_set(workspace: Workspace) -> None:
    training = labelled(workspace, frame_of(3, first=22))
    assert training.to_pandas().shape == (0, 4)
    assert training.certificate.left_out == 3
    assert "left out" in str(training.certificate)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"horizon": timedelta(0)}, "must be a length of time after the row's"),
        ({"horizon": timedelta(hours=-6)}, "must be a length of time after the row's"),
        ({"horizon": 6}, "horizon"),
        ({"feature": "outcomes"}, "a label is one feature"),
        ({"feature": "outcomes:*"}, "a label is one feature"),
        ({"feature": outcomes}, "a label is one feature"),
        ({"feature": 3}, "feature"),
        ({"name": "a b"}, "column name"),
        ({"name": "fs_label"}, "reserved"),
    ],
)
def test_a_label_that_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        Label(**{"feature": "outcomes:delay", "horizon": HORIZON, **options})


def test_labels_that_do_not_fit_are_refused(workspace: Workspace) -> None:
    cases: list[tuple[Any, type[Exception], str]] = [
        (Label("outcome:delay", horizon=HORIZON), NotFoundError, "no feature view 'outcome'"),
        (Label("outcomes:dealy", horizon=HORIZON), NotFoundError, "no feature 'dealy'"),
        (Label("doubled:double", horizon=HORIZON), InputError, "is not one stored feature"),
        (Label("rides:km_sum_1d", horizon=HORIZON), InputError, "looks back over 1 day"),
        (Label("rides:km_sum_all", horizon=HORIZON), InputError, "looks back over all of history"),
        (Label("stats:rides", horizon=HORIZON), OutputNameClashError, "Two output columns would be named 'rides'"),
        (Label("outcomes:delay", horizon=HORIZON, name="driver"), OutputNameClashError, "Give the label another name"),
        ([Label("outcomes:delay", horizon=HORIZON)] * 2, OutputNameClashError, "named 'delay'"),
        ("outcomes:delay", InputError, "'outcomes:delay' is not a Label"),
        (Label(outcomes[["delay"]].with_join_keys({"driver": "who"}), horizon=HORIZON), EntityFrameError, "'who'"),
    ]
    for given, error, told in cases:
        with pytest.raises(error, match=told):
            labelled(workspace, labels=given)
    with pytest.raises(InputError, match="Labels belong to the rows of an entity frame"):
        get_historical_features(
            workspace, None, "stats:rides", start=NOW, end=NOW, labels=Label("outcomes:delay", horizon=HORIZON)
        )


def test_a_split_leaves_an_embargo_between_its_parts(workspace: Workspace) -> None:
    training = labelled(workspace)
    train, test, left_out = training.split(datetime(2024, 1, 31, 10))
    times = frame_of()["event_timestamp"]
    at = pd.Timestamp("2024-01-31T10:00:00Z")
    known = times[:16]
    assert list(train.to_pandas().index) == list(known[known < at - HORIZON].index)
    assert list(test.to_pandas().index) == list(known[known >= at].index)
    assert left_out == 6
    whole = training.to_pandas()
    again = training.split(at, embargo=timedelta(hours=7))  # the rows are joined already
    assert len(again.train) == 3
    pd.testing.assert_frame_equal(again.test.to_pandas(), whole[whole["event_timestamp"] >= at], check_dtype=False)
    assert again.train.certificate.rows == 3
    assert again.train.certificate.labels[0].without_label == 0
    with pytest.raises(InputError, match="shorter than the horizon of the label 'delay', 06:00:00") as told:
        training.split(at, embargo=timedelta(hours=1))
    assert "allow_overlap=True" in told.value.hint
    assert training.split(at, embargo=timedelta(0), allow_overlap=True).left_out == 0
    for embargo in (timedelta(-1), 3):
        with pytest.raises(InputError, match="not a length of time"):
            training.split(at, embargo=embargo)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No row of the set is before 2024-01-30T18:00:00") as told:
        training.split(date(2024, 1, 31))
    assert "from 2024-01-31T00:00:00" in str(told.value)
    with pytest.raises(InputError, match="No row of the set is before 0001-01-01T00:00:00"):
        training.split(at, embargo=timedelta.max)
    with pytest.raises(InputError, match="No row of the set is from"):
        training.split("2024-02-02")
    with pytest.raises(InputError, match="is a number"):
        training.split(3)  # type: ignore[arg-type]
    plain = get_historical_features(workspace, frame_of(), "stats:rides").split(at)
    assert (len(plain.train), len(plain.test), plain.left_out) == (10, 14, 0)


def test_a_part_is_joined_for_its_rows_alone(workspace: Workspace, tmp_path: Path) -> None:
    part = labelled(workspace).split("2024-01-31T10:00:00Z").test
    assert [batch.num_rows for batch in part.batches()] == [6]
    assert pq.read_table(part.write_parquet(tmp_path / "test.parquet")).num_rows == 6
    assert part._table is None
    part.save("test_part")
    assert get_training_set(workspace, "test_part").fingerprint() == part.fingerprint()
