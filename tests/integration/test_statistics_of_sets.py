"""Statistics and samples of saved training sets, beside loops over their rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.documents import EDGES, STATISTICS, ColumnStatistics
from featurestore_registry.http import access
from support.clock import ManualClock
from support.materialized import INSTANT, day
from support.registry_server import serving_registry

from featurestore import (
    Aggregation,
    Entity,
    FeatureStore,
    FeatureView,
    Field,
    ParquetSource,
    RequestSource,
    TrainingSetWarning,
    on_demand_feature_view,
)
from featurestore.errors import AuthError, LedgerConflictError, NotFoundError, TrainingSetError
from featurestore.ledger.saved_sets import blob_of, kept_blobs, read_set, sample_of
from featurestore.ledger.statistics import read_edges
from featurestore.statistics import sets
from featurestore.statistics.sets import SALT, sampled_rows
from featurestore.types import Float64, Int64, String

SHOPS, ROWS = 40, 600
shop = Entity("shop", join_keys={"shop": Int64})
sales = ParquetSource("sales", "sales.parquet", "sold_at")
profile = FeatureView(
    "profile",
    entities=[shop],
    source=sales,
    schema=[Field("amount", Float64), Field("owner", String, tags={"personal": "yes"}), Field("kind", String)],
)
windows = FeatureView(
    "windows",
    entities=[shop],
    source=sales,
    schema=[Field("amount", Float64), Field("owner", String, tags={"personal": "yes"})],
    aggregations=[
        Aggregation("amount", "sum", windows=[timedelta(days=2)]),
        Aggregation("owner", "last", windows=[timedelta(days=2)]),
    ],
)


@on_demand_feature_view(
    sources=[profile[["amount", "owner"]]],
    schema=[Field("twice", Float64), Field("length", Int64, tags={"personal": "false"})],
)
def computed(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Computed of something personal: hidden, unless a feature says that it is not."""
    twice = [None if amount is None else 2 * amount for amount in inputs["amount"]]
    return {"twice": twice, "length": [None if owner is None else len(owner) for owner in inputs["owner"]]}


asked = RequestSource("asked", schema=[Field("called", String, tags={"personal": "yes"})])


@on_demand_feature_view(sources=[windows[["owner_last_2d"]]], schema=[Field("initial", String)])
def initials(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Computed of a window over something personal."""
    return {"initial": [None if owner is None else owner[:1] for owner in inputs["owner_last_2d"]]}


@on_demand_feature_view(sources=[asked, profile[["amount"]]], schema=[Field("greeting", String)])
def greetings(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Computed of something personal that the caller brings."""
    return {"greeting": [f"hello {name}" for name in inputs["called"]]}


FEATURES = ["profile:amount", "profile:owner", "profile:kind", "windows:amount_sum_2d", "windows:owner_last_2d"]


def event(number: int) -> dict[str, Any]:
    amount = math.nan if number % 50 == 7 else number % 97 + number / 7
    return {
        "shop": number % SHOPS,
        "sold_at": day(number / 60),
        "amount": amount,
        "owner": f"person {number % 9}",
        "kind": "abc"[number % 3],
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    """Views of rows and of windows over the same source, materialized."""
    rows = [event(number) for number in range(ROWS)]
    schema = pa.schema(
        [
            ("shop", pa.int64()),
            ("sold_at", INSTANT),
            ("amount", pa.float64()),
            ("owner", pa.string()),
            ("kind", pa.string()),
        ]
    )
    pq.write_table(pa.Table.from_pylist(rows, schema), tmp_path / "sales.parquet")
    (tmp_path / "features.py").write_text("")
    (tmp_path / "feature_store.yaml").write_text("project: shop\nonline_store: {url: 'lmdb:///data/online'}\n")
    with FeatureStore(tmp_path, clock=ManualClock(day(30))) as made:
        made.apply([profile, windows, computed, initials, greetings])
        made.materialize_incremental()
        yield made


def frame(rows: int = 300) -> pa.Table:
    times = pa.array([day(9.5) + 1] * rows).cast(INSTANT)
    return pa.table({"shop": [n % (SHOPS + 2) for n in range(rows)], "event_timestamp": times})


def test_a_saved_set_keeps_statistics_of_every_feature(store: FeatureStore) -> None:
    made = store.get_historical_features(frame(), [*FEATURES, "computed:twice", "computed:length"]).save("first")
    kept = store.get_training_set("first").statistics
    assert kept is not None
    assert (kept.rows, kept.sampled, kept.run_id) == (300, 300, "")
    assert kept.revision == store.workspace.snapshot().chain.head
    assert kept.code_hash == store.workspace.snapshot().on_demand["computed"].code_hash
    columns = {column.name: column for column in kept.columns}
    assert list(columns) == ["amount", "owner", "kind", "amount_sum_2d", "owner_last_2d", "twice", "length"]
    for name, column in columns.items():
        values = made.to_arrow()[name].to_pylist()
        held = [value for value in values if value is not None and value == value]
        assert (column.rows, column.nulls) == (300, values.count(None))
        assert column.not_finite == 300 - column.nulls - len(held)
        assert column.distinct == len(set(held))
        if name in ("owner", "owner_last_2d", "twice"):
            assert column.is_hidden
            assert column.minimum is column.maximum is column.mean is None
            assert column.top == column.quantiles == column.at_points == ()
            continue
        assert (column.minimum, column.maximum) == (min(held), max(held))
        if name != "kind":
            assert column.mean == pytest.approx(math.fsum(held) / len(held))
        assert sum(column.at_points) + sum(column.in_bins) + column.elsewhere == len(held)
    assert columns["amount_sum_2d"].feature == "windows.1:amount_sum_2d"
    assert columns["length"].feature == "computed.0:length"


def test_sets_share_bins_with_views_and_make_those_that_no_run_makes(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def conflict(*_: object, **__: object) -> None:
        raise LedgerConflictError("a run wrote others")

    def bins(key: str) -> dict[str, tuple[int, int]]:
        found, _ = read_edges(store.workspace.ledger, store.project, key)
        return {name: (each.version, each.rows) for name, each in found.columns.items()}

    before = bins("profile.1")
    assert (before, bins("windows.1")) == ({"amount": (1, 600), "kind": (1, 600)}, {"amount": (1, 600)})
    assert bins("computed.0") == {}
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(sets, "write_edges", conflict)
        store.get_historical_features(frame(), FEATURES).save("lost")
    lost = {c.name: (c.bins, sum(c.at_points) + sum(c.in_bins) > 0) for c in statistics(store, "lost")}
    assert lost["kind"] == lost["amount"] == (1, True)
    assert lost["amount_sum_2d"] == (None, False)
    store.get_historical_features(frame(), [*FEATURES, "computed:length"], full_feature_names=True).save("first")
    assert {c.name: c.feature for c in statistics(store, "first")}[
        "windows__amount_sum_2d"
    ] == "windows.1:amount_sum_2d"
    assert bins("profile.1") == before
    assert bins("windows.1") == {"amount": (1, 600), "amount_sum_2d": (1, 300)}
    assert bins("computed.0") == {"length": (1, 300)}
    store.get_historical_features(frame(599), FEATURES).save("second")
    assert bins("windows.1")["amount_sum_2d"] == (1, 300)
    store.get_historical_features(frame(600), FEATURES).save("third")
    assert bins("windows.1")["amount_sum_2d"] == (2, 600)
    (column,) = [c for c in statistics(store, "third") if c.name == "amount_sum_2d"]
    assert column.bins == 2


def statistics(store: FeatureStore, name: str) -> tuple[ColumnStatistics, ...]:
    kept = store.get_training_set(name).statistics
    assert kept is not None
    return kept.columns


def test_a_sample_has_hashed_keys_and_nothing_personal(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "KEPT_ROWS", 100)
    made = store.get_historical_features(frame(), [*FEATURES, "computed:twice"]).save("first")
    saved = store.get_training_set("first")
    why = (
        "'twice' is left out: it may be made of profile:owner, tagged personal. If its values may show, tag it "
        '`personal: "false"`, or let it select fewer inputs, such as profile[["amount"]].'
    )
    with pytest.warns(TrainingSetWarning) as warned:
        sample = saved.sample()
    assert [str(each.message) for each in warned] == [why]
    last = (
        "'owner_last_2d' is left out: it may be made of windows:owner, tagged personal. If its values may show, tag it "
    )
    assert dict(saved.left_out) == {
        "owner": "'owner' is left out: it is tagged personal.",
        "owner_last_2d": last + '`personal: "false"`.',
        "twice": why,
    }
    assert made.left_out == saved.left_out
    assert sample.column_names == ["shop", "event_timestamp", "amount", "kind", "amount_sum_2d"]
    places = sampled_rows(300, 100).tolist()
    assert len(set(places)) == sample.num_rows == 100
    rows = made.to_arrow().take(places)
    for name in ("event_timestamp", "amount", "kind", "amount_sum_2d"):
        assert repr(sample[name].to_pylist()) == repr(rows[name].to_pylist())
    salt = bytes.fromhex(sample.schema.metadata[SALT].decode())
    assert len(salt) == 32
    hashes = [
        blake2b(json.dumps(key).encode(), digest_size=16, key=salt).hexdigest() for key in rows["shop"].to_pylist()
    ]
    assert sample["shop"].to_pylist() == hashes
    other = store.get_historical_features(frame(), FEATURES).save("second")
    assert other.to_arrow()["shop"].equals(made.to_arrow()["shop"])
    assert store.get_training_set("second").sample()["shop"].to_pylist() != hashes


def test_statistics_and_sample_go_with_their_set(store: FeatureStore) -> None:
    made = store.get_historical_features(frame(), FEATURES)
    with pytest.raises(TrainingSetError, match="Only a saved set"):
        made.sample()
    assert made.statistics is None
    made.save("first")
    saved = read_set(store.workspace.ledger, store.project, "first")
    blobs, name = kept_blobs(store.workspace), sample_of(blob_of(saved.frame))
    blobs.delete(name, "")  # as an earlier release would have saved it
    again = store.get_training_set("first")
    with pytest.raises(TrainingSetError, match="'first' has no sampled rows"):
        again.sample()
    made.save("first")
    assert again.sample().num_rows == 300
    store.delete_training_set("first")
    assert name not in [blob.name for blob in blobs.list()]
    with pytest.raises(NotFoundError):
        store.get_training_set("first")
    assert sets.statistics_of_set(store.workspace, "first") is None


def test_a_set_that_cannot_be_counted_is_saved_all_the_same(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no more")

    for part, name in ((sets._Bins, "fitting"), (sets.Totals, "see")):
        monkeypatch.setattr(part, name, fail)
        store.get_historical_features(frame(), FEATURES).save(name)
        assert f"training set {name} has no statistics: no more" in caplog.text
        assert store.get_training_set(name).to_arrow().num_rows == 300


def test_a_server_of_an_earlier_release_that_keeps_no_statistics_stops_nothing(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        access, "LEDGER", {kind: needs for kind, needs in access.LEDGER.items() if kind not in (STATISTICS, EDGES)}
    )
    token, _ = create_token(store.workspace.ledger, None, Role.OPERATOR, expires_at_us=None, now_us=0)
    with serving_registry(store.workspace.registry) as url:
        monkeypatch.setenv("FS_REGISTRY", url)
        monkeypatch.setenv("FS_REGISTRY_TOKEN", token)
        with FeatureStore(store.root, clock=ManualClock(day(30))) as far:
            for _ in range(2):
                far.get_historical_features(frame(), FEATURES).save("first")
            assert "Its server may be of an earlier version than this program" in caplog.text
            with pytest.raises(AuthError, match="no entries of kind 'statistics'"):
                _ = far.get_training_set("first").statistics
            far.delete_training_set("first")
    assert kept_blobs(store.workspace).list() == []


def test_any_set_is_profiled(store: FeatureStore) -> None:
    rows = frame().append_column("called", pa.array(["Ada"] * 300))
    hidden = store.get_historical_features(rows, ["initials:initial", "greetings:greeting"])
    assert [each.is_hidden for each in hidden.profile().columns] == [True, True]
    assert "windows:owner, tagged personal" in hidden.left_out["initial"]
    assert "request:called, tagged personal" in hidden.left_out["greeting"]
    found = store.get_historical_features(frame(), FEATURES).profile()
    assert [column.name for column in found.columns] == ["amount", "owner", "kind", "amount_sum_2d", "owner_last_2d"]
    assert (found["kind"].top[0][1], found["owner"].is_hidden, found.rows) == (100, True, 300)
