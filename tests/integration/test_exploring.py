"""``direct=True``: features of definitions that are not applied, by what they say now."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from featurestore import FeatureStore, FeatureView, Field
from featurestore.cli.main import main
from featurestore.errors import InputError, NotFoundError
from featurestore.types import Float64, Int64


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FeatureStore]:
    """A repo as `fs init` makes it, with nothing applied."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["init", "tour"])
    with FeatureStore(tmp_path / "tour") as store:
        yield store


def frame(store: FeatureStore) -> pd.DataFrame:
    return pd.read_parquet(store.workspace.root / "data" / "trips.parquet").head(50)


def test_the_repo_can_be_explored_before_anything_is_applied(store: FeatureStore) -> None:
    trips = frame(store)
    with pytest.raises(NotFoundError):
        store.get_historical_features(trips, ["driver_stats:trips"])
    explored = store.get_historical_features(trips, "trip_model_v1", direct=True).to_pandas()
    assert explored["trips"].notna().mean() > 0.5
    assert "km_per_trip" in explored
    assert store.list() == []
    assert not (store.workspace.root / "data" / "registry.db").exists()
    store.apply()
    store.materialize_incremental()
    pd.testing.assert_frame_equal(store.get_historical_features(trips, "trip_model_v1").to_pandas(), explored)


def test_a_view_is_tried_out_before_it_is_applied(store: FeatureStore) -> None:
    store.apply()
    store.materialize_incremental()
    trips = frame(store)
    applied = next(found for found in store.list("feature_view") if found.name == "driver_stats")
    assert isinstance(applied, FeatureView)
    tried = FeatureView(
        "driver_stats",
        entities=applied.entities,
        source=applied.sources[0],
        ttl=applied.ttl,
        sql="SELECT * REPLACE (trips * 100 AS trips) FROM driver_stats_source",
        schema=[Field("trips", Int64), Field("rating", Float64)],
    )
    with pytest.raises(InputError, match="differs from what is applied"):
        store.get_historical_features(trips, [tried[["trips"]]])
    found = store.get_historical_features(trips, [tried[["trips"]]], direct=True).to_pandas()["trips"]
    as_applied = store.get_historical_features(trips, ["driver_stats:trips"]).to_pandas()["trips"]
    assert as_applied.notna().any()
    pd.testing.assert_series_equal(found, as_applied * 100)
    assert store.plan().steps == ()


def test_lineage_of_what_is_not_applied_leads_to_apply(store: FeatureStore) -> None:
    def hint(name: str) -> str:
        with pytest.raises(NotFoundError) as caught:
            store.lineage(name)
        return caught.value.hint or ""

    assert hint("driver_stats") == "Lineage is of what is applied, and nothing is yet: run `fs apply`."
    store.apply(
        [each for each in store.workspace.code if each.name in ("driver", "driver_stats", "driver_stats_source")]
    )
    for name in ("driver_recent", "driver_recent:trips_sum_1d", "feature_view:driver_recent"):
        assert hint(name) == "'driver_recent' is in the feature repo, but not applied: run `fs apply`."
    assert hint("driver_stat") == "Did you mean 'driver_stats'?"
    assert "trips" in hint("driver_stats:trip")
    (store.root / "features.py").write_text("import nowhere\n")
    with FeatureStore(store.root) as broken, pytest.raises(NotFoundError, match="Nothing is called 'driver_recent'"):
        broken.lineage("driver_recent")
