"""The same call reads the same from `FeatureStore` and from `FeatureClient`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.serving import Project, serving_here, small_project

from featurestore import FeatureStore, FeatureView, client
from featurestore.client import FeatureClient, OnlineRows
from featurestore.errors import EntityKeyError, FeatureStoreError, InputError, NotFoundError, OutputNameClashError
from featurestore.serving import OnlineResponse
from featurestore.types.times import system_clock

pytestmark = pytest.mark.uncounted

CLICKS = "fresh:clicks"
LARGE = 2**63 - 25
NOW_US = system_clock()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = small_project(tmp_path_factory.mktemp("alike") / "repo", NOW_US)
    row = {"an_int64": LARGE, "a_float64": 0.5, "a_bool": True, "a_string": "naïve ⛵", "numbers": [1.0, 2.5]}
    project.put("everything", {"customer_id": 1}, row, event_us=NOW_US)
    project.put("everything", {"customer_id": 3}, {"an_int64": -LARGE}, event_us=NOW_US - 1)
    return project


@pytest.fixture(scope="module")
def store(project: Project) -> Iterator[FeatureStore]:
    with FeatureStore(project.root) as store:
        yield store


@pytest.fixture(scope="module")
def remote(project: Project) -> Iterator[FeatureClient]:
    with serving_here(project.workspace()) as server, FeatureClient(str(server.base_url), timeout_s=20) as client:
        yield client


COLUMNS = {"customer_id": [1, 2, 3, 9, None], "label": ["a", None, "c", "d", "e"]}
FEATURES = [f"everything:{name}" for name in ("an_int64", "a_float64", "a_bool", "a_string", "numbers")]
FEATURES += ["fresh:clicks"]


def as_dicts(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_pandas(columns: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame({**columns, "customer_id": pd.array(columns["customer_id"], "Int64")})


def as_series(columns: dict[str, list[Any]]) -> dict[str, Any]:
    return dict(as_pandas(columns).items())


FORMS = [dict, as_dicts, tuple, as_pandas, as_series, pl.DataFrame, pl.LazyFrame, pa.table, pa.RecordBatch.from_pydict]


def rows_in(form: Callable[[Any], Any]) -> Any:
    return tuple(as_dicts(COLUMNS)) if form is tuple else form(COLUMNS)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.__module__}.{form.__qualname__}")
def test_entity_rows_of_every_form_are_answered_alike(
    store: FeatureStore, remote: FeatureClient, form: Callable[[Any], Any]
) -> None:
    here = store.get_online_features(FEATURES, rows_in(form))
    there = remote.get_online_features(FEATURES, rows_in(form), include_event_timestamps=True)
    everything = here.to_dict(include_status=True, include_event_timestamps=True)
    everything["label"] = [None if pd.isna(value) else value for value in everything["label"]]  # NaN in pandas' texts
    assert there.to_dict(include_status=True, include_event_timestamps=True) == everything
    assert list(there.to_dict()) == list(here.to_dict())
    assert everything["an_int64"] == [LARGE, None, -LARGE, None, None]
    assert everything["label"] == COLUMNS["label"]
    assert everything["clicks__status"] == ["PRESENT", "OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND", "NOT_FOUND"]
    present = datetime.fromtimestamp(NOW_US // 1_000_000, UTC).replace(microsecond=NOW_US % 1_000_000)
    assert there.event_timestamps["everything"][0] == present
    assert there.event_timestamps == here.event_timestamps
    assert (there.names, len(there), repr(there)) == (here.names, len(here), repr(here))
    names = {feature: [status.name for status in found] for feature, found in here.statuses.items()}
    assert {feature: [status.name for status in found] for feature, found in there.statuses.items()} == names


def test_frames_are_alike(store: FeatureStore, remote: FeatureClient) -> None:
    rows = {**COLUMNS, "at": [datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 6)], "amount": [0.5] * 5}
    for kept in (slice(0, 1), slice(None)):  # where nothing is null, and where much is
        asked = {name: values[kept] for name, values in rows.items()}
        here, there = store.get_online_features(FEATURES, asked), remote.get_online_features(FEATURES, asked)
        pd.testing.assert_frame_equal(there.to_pandas(), here.to_pandas())
        pd.testing.assert_frame_equal(there.to_df(), here.to_df())
        assert there.to_arrow() == here.to_arrow()
        assert there.to_polars().equals(here.to_polars())
        assert there.to_polars().schema == here.to_polars().schema
        assert here.to_polars().rows(named=True) == here.to_arrow().to_pylist()
    assert here.to_polars().schema["an_int64"] == pl.Int64
    assert here.to_polars()["an_int64"].to_list() == [LARGE, None, -LARGE, None, None]


def test_nulls_of_pandas_among_texts_are_null(store: FeatureStore, remote: FeatureClient) -> None:
    rows = pd.DataFrame({"origin": ["JFK", None], "dest": ["LAX", "LAX"], "note": ["a", None]})
    for reader in (store, remote):
        found = reader.get_online_features("routes:miles", rows)
        assert found.to_arrow().to_pylist() == [
            {"origin": "JFK", "dest": "LAX", "note": "a", "miles": 2475},
            {"origin": None, "dest": "LAX", "note": None, "miles": None},
        ]
        assert found.to_pandas()["miles"].tolist() == [2475, pd.NA]


def test_an_own_column_of_several_kinds_is_refused_where_a_column_has_one(
    store: FeatureStore, remote: FeatureClient
) -> None:
    rows = {"customer_id": [1, 2], "mixed": [1, "a"]}
    for reader in (store, remote):
        found = reader.get_online_features(CLICKS, rows)
        assert found.to_dict()["mixed"] == [1, "a"]
        with pytest.raises(InputError, match=r"mixes types: .*to_dict\(\)"):
            found.to_arrow()


@pytest.mark.parametrize("by_object", [True, False])
def test_a_service_by_object_or_name_with_request_data(
    store: FeatureStore, remote: FeatureClient, by_object: bool
) -> None:
    service = store.get("feature_service", "model_v1") if by_object else "model_v1"
    rows = [{"customer_id": 1, "origin": "JFK", "dest": "LAX", "amount": 14.0}]
    here = store.get_online_features(service, rows, full_feature_names=True).to_dict()
    assert remote.get_online_features(service, rows, full_feature_names=True).to_dict() == here
    assert here["spending__amount_per_click"] == [2.0]


def test_an_answer_shares_no_list_with_anyone(remote: FeatureClient) -> None:
    given = [1, 2]
    found = remote.get_online_features(CLICKS, {"customer_id": given}, include_event_timestamps=True)
    for values in (*found.to_dict(True, True).values(), *found.event_timestamps.values(), given):
        values.clear()
    assert found.to_dict()["customer_id"] == [1, 2]
    assert len(found.event_timestamps["fresh"]) == 2


def test_the_clients_arguments_begin_as_the_stores() -> None:
    stores = list(inspect.signature(FeatureStore.get_online_features).parameters.values())
    clients = list(inspect.signature(FeatureClient.get_online_features).parameters.values())
    assert [(each.name, each.kind) for each in clients[: len(stores)]] == [(each.name, each.kind) for each in stores]


def test_the_clients_answer_has_what_the_stores_has() -> None:
    public = {name for name in vars(OnlineResponse) if not name.startswith("_")}
    assert {
        name for name in public if not hasattr(client.OnlineResponse({}, OnlineRows([], [], [], {})), name)
    } == set()
    for name in ("to_dict", "to_arrow", "to_pandas", "to_polars"):
        ours = inspect.signature(getattr(client.OnlineResponse, name)).parameters
        assert list(ours.items()) == list(inspect.signature(getattr(OnlineResponse, name)).parameters.items())


REFUSED: list[tuple[Any, Any, type[FeatureStoreError], str]] = [
    ("fresh:click", {"customer_id": [1]}, NotFoundError, "'click'.*'clicks'"),
    ("model", {"customer_id": [1]}, NotFoundError, "feature service 'model'.*'model_v1'"),
    ([], {"customer_id": [1]}, InputError, "[Ff]eature"),
    ([7], {"customer_id": [1]}, InputError, "^7 is not a feature"),
    (7, {"customer_id": [1]}, InputError, "^7 is not a feature"),
    (CLICKS, {"customer": [1]}, EntityKeyError, "'customer_id' of fresh is missing"),
    (CLICKS, {"customer_id": [1, "x"]}, EntityKeyError, "'customer_id', row 1"),
    (CLICKS, [{"customer_id": 1}, {}], EntityKeyError, "Row 1 of .*'customer_id'"),
    (CLICKS, {"customer_id": [1, 2], "mine": [1]}, InputError, r"not equally long \(customer_id: 2, mine: 1\)"),
    (CLICKS, {"customer_id": 1}, InputError, "'customer_id'.* is .*not a list"),
    (CLICKS, pd.DataFrame([[1, 2]], columns=["customer_id"] * 2), InputError, "two columns called 'customer_id'"),
    (CLICKS, pa.table([[1], [2]], ["customer_id"] * 2), InputError, "two columns called 'customer_id'"),
    (CLICKS, "1", InputError, "entity_rows.* is str"),
    (CLICKS, [1], InputError, "entity_rows.* is list"),
    (CLICKS, None, InputError, "entity_rows.* is NoneType"),
    (CLICKS, {"customer_id": [1], "Clicks": [1]}, OutputNameClashError, "[Cc]licks"),
    ("spending:amount_per_click", {"customer_id": [1]}, InputError, "'amount' of spending is missing"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_refused_is_refused_alike(store: FeatureStore, remote: FeatureClient, number: int) -> None:
    features, rows, kind, words = REFUSED[number]
    for reader in (store, remote):
        with pytest.raises(kind, match=words) as raised:
            reader.get_online_features(features, rows)
        assert type(raised.value) is kind


def test_what_http_has_no_name_for_is_refused(store: FeatureStore, remote: FeatureClient) -> None:
    view = store.get("feature_view", "fresh")
    rows = {"customer_id": [1]}
    for features in (view, [view], [store.get("feature_service", "plain"), CLICKS]):
        with pytest.raises(InputError, match="not a feature that you can ask a server for"):
            remote.get_online_features(features, rows)
    with pytest.raises(InputError, match=r"with entity_rows.*Pass entity_rows alone"):
        remote.get_online_features(CLICKS, rows, request_data={"amount": [1]})
    with pytest.raises(InputError, match="features and feature_service="):
        remote.get_online_features("plain", rows, feature_service="model_v1")
    unasked = remote.get_online_features(CLICKS, rows)
    for read in (lambda: unasked.event_timestamps, lambda: unasked.to_dict(include_event_timestamps=True)):
        with pytest.raises(InputError, match="include_event_timestamps=True"):
            read()


def test_the_parts_of_the_http_body_are_answered_by_row(remote: FeatureClient) -> None:
    found = remote.get_online_features(
        feature_service="plain",
        entities={"customer_id": [1], "origin": ["JFK"], "dest": ["LAX"]},
        include_event_timestamps=True,
    )
    assert found.rows == [[7, 0.5, 2475]]
    assert repr(found.statuses) == "[['PRESENT', 'PRESENT', 'PRESENT']]"
    assert set(found.event_timestamps or ()) == {"fresh", "routes"}


def test_without_polars_it_says_what_to_install(
    store: FeatureStore, remote: FeatureClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [reader.get_online_features(CLICKS, {"customer_id": [1]}) for reader in (store, remote)]
    monkeypatch.setitem(sys.modules, "polars", None)
    for answer in answers:
        with pytest.raises(InputError, match=r"to_polars\(\) needs polars.*pip install '\.\[polars\]'"):
            answer.to_polars()
        assert len(answer.to_pandas()) == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_star_is_all_of_a_view_here_and_there(store: FeatureStore, remote: FeatureClient, full: bool) -> None:
    fresh = store.get("feature_view", "fresh")
    assert isinstance(fresh, FeatureView)
    names = tuple(f"fresh__{field.name}" if full else field.name for field in fresh.features)
    for asked in ("fresh:*", ["fresh:*"]):
        for reader in (store, remote):
            assert reader.get_online_features(asked, {"customer_id": [1]}, full_feature_names=full).names == tuple(
                names
            )
    for reader in (store, remote):
        with pytest.raises(NotFoundError, match=r"'fresch'.*'fresh'"):
            reader.get_online_features("fresch:*", {"customer_id": [1]})
        with pytest.raises(OutputNameClashError, match="Ask for it once"):
            reader.get_online_features(["fresh:*", "fresh:clicks"], {"customer_id": [1]})
