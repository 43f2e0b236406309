"""``store.get_online_features``: what comes in, what comes out, every status, and what is refused by name."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.rows import commit_rows, publish
from support.small_project import (
    airport_weather,
    carrier_profile,
    delay_model,
    delay_now,
    dest_is_warm,
    dest_weather,
    every_type,
    origin_weather,
    small_project,
)

from featurestore.definitions import OnDemandFeatureView
from featurestore.errors import (
    CodeMismatchError,
    DamagedRecordError,
    EntityKeyError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    OnlineStoreUnavailableError,
    OutputNameClashError,
    ValueTypeError,
)
from featurestore.online.records.encoder import RecordEncoder
from featurestore.serving import get_online_features
from featurestore.workspace import Workspace

UTC = dt.UTC
NOW = "2024-02-01T00:00:00Z"
BIG = 1_234_567_890_123_456_789


def day(number: int) -> dt.datetime:
    return dt.datetime(2024, 1, number, tzinfo=UTC)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    made = small_project(tmp_path_factory.mktemp("online"), now=NOW)
    commit_rows(
        made,
        "carrier_profile",
        [
            {"carrier": "UA", "event_ts": day(28), "created_ts": day(29), "last_delay": 1.5, "flights": BIG},
            {"carrier": "AA", "event_ts": day(30), "last_delay": math.nan, "flights": None},
            {"carrier": "DL", "event_ts": day(20), "last_delay": 4.0, "flights": 4},
            {"carrier": "B6", "event_ts": day(31), "last_delay": None, "flights": 6},
        ],
    )
    commit_rows(
        made,
        "airport_weather",
        [
            {"airport": "JFK", "event_ts": day(1), "temp": 25.0, "sky": "clear"},
            {"airport": "EWR", "event_ts": day(1), "temp": 5.0, "sky": None},
        ],
    )
    commit_rows(made, "route_stats", [{"origin": "JFK", "dest": "EWR", "event_ts": day(1), "distance": 17}])
    commit_rows(made, "every_type", [{"plane_id": 7, "event_ts": day(1), "i64": BIG, "day": dt.date(2024, 1, 1)}])
    for view in ("carrier_profile", "airport_weather", "route_stats", "every_type"):
        publish(made, view)
    yield made
    made.close()


CARRIERS = ["UA", "AA", "DL", "B6", "ZZ", None, "UA"]


def test_values_statuses_and_event_times_row_by_row(workspace: Workspace) -> None:
    answer = get_online_features(workspace, carrier_profile, {"carrier": CARRIERS})
    assert (len(answer), answer.names) == (7, ("last_delay", "flights"))
    columns = answer.to_dict(include_status=True, include_event_timestamps=True)
    assert list(columns) == [
        "carrier",
        "last_delay",
        "flights",
        "last_delay__status",
        "flights__status",
        "carrier_profile__event_timestamp",
    ]
    assert columns["carrier"] == CARRIERS
    assert math.isnan(columns["last_delay"].pop(1))
    assert columns["last_delay"] == [1.5, None, None, None, None, 1.5]
    # -1 is the declared default; the status stays true.
    assert columns["flights"] == [BIG, -1, -1, 6, -1, -1, BIG]
    gone = ["NOT_FOUND", "NOT_FOUND"]
    assert columns["last_delay__status"] == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE", "NULL_VALUE", *gone, "PRESENT"]
    assert columns["flights__status"] == ["PRESENT", "NULL_VALUE", "OUTSIDE_MAX_AGE", "PRESENT", *gone, "PRESENT"]
    times = [day(28), day(30), day(20), day(31), None, None, day(28)]
    assert columns["carrier_profile__event_timestamp"] == times


@pytest.mark.parametrize(
    "entity_rows",
    [
        {"carrier": ["UA", "ZZ"]},
        {"carrier": ("UA", "ZZ")},
        {"carrier": np.array(["UA", "ZZ"])},
        {"carrier": pd.Series(["UA", "ZZ"])},
        {"carrier": pa.array(["UA", "ZZ"])},
        [{"carrier": "UA"}, {"carrier": "ZZ"}],
        ({"carrier": "UA"}, {"carrier": "ZZ"}),
        pd.DataFrame({"carrier": ["UA", "ZZ"]}).to_dict("records"),
        {"carrier": pl.Series(["UA", "ZZ"])},
        {"carrier": pa.chunked_array([["UA"], ["ZZ"]])},
        pd.DataFrame({"carrier": ["UA", "ZZ"]}),
        pl.DataFrame({"carrier": ["UA", "ZZ"]}),
        pl.LazyFrame({"carrier": ["UA", "ZZ"]}),
        pa.table({"carrier": ["UA", "ZZ"]}),
        pa.record_batch({"carrier": ["UA", "ZZ"]}),
    ],
    ids=lambda rows: type(rows["carrier"] if isinstance(rows, dict) else rows).__name__,
)
def test_entity_rows_of_every_form(workspace: Workspace, entity_rows: Any) -> None:
    assert get_online_features(workspace, "carrier_profile:flights", entity_rows).to_dict() == {
        "carrier": ["UA", "ZZ"],
        "flights": [BIG, -1],
    }


@pytest.mark.parametrize("plane", [7, np.int32(7), 7.0, np.float64(7), np.uint8(7)])
def test_kindred_numbers_are_the_same_key(workspace: Workspace, plane: Any) -> None:
    assert get_online_features(workspace, "every_type:i64", {"plane_id": [plane]}).to_dict()["i64"] == [BIG]


def test_missing_values_of_pandas_are_null_keys(workspace: Workspace) -> None:
    planes = [7, None, math.nan, pd.NA, np.float64("nan")]
    answer = get_online_features(workspace, "every_type:i64", {"plane_id": planes})
    assert answer.to_dict()["i64"] == [BIG, None, None, None, None]
    assert [status.name for status in answer.statuses["i64"]] == ["PRESENT", *["NOT_FOUND"] * 4]

    frame = pd.DataFrame({"plane_id": pd.array([7, None], "Int64"), "at": pd.to_datetime(["2024-01-01", None])})
    answer = get_online_features(workspace, "every_type:i64", frame)
    assert answer.to_dict() == {"plane_id": [7, None], "at": [pd.Timestamp("2024-01-01"), None], "i64": [BIG, None]}


@pytest.mark.parametrize("entity_rows", [{"carrier": []}, [], (), pd.DataFrame({"carrier": []})])
def test_no_rows_have_no_answers(workspace: Workspace, entity_rows: Any) -> None:
    answer = get_online_features(workspace, carrier_profile, entity_rows)
    assert answer.to_dict() == {"carrier": [], "last_delay": [], "flights": []}
    assert answer.to_arrow().schema.field("flights").type == pa.int64()


@pytest.mark.parametrize(
    ("entity_rows", "words"),
    [
        ({"carrier": np.str_("UA")}, "is str_, not a list"),
        ({"carrier": np.int64(1)}, "is int64, not a list"),
        ({"carrier": np.array("UA")}, "is ndarray, not a list"),
        ({"carrier": ["UA", "AA"], "mine": [1]}, r"not equally long \(carrier: 2, mine: 1\)"),
        (pd.DataFrame([["UA", "AA"]], columns=["carrier", "carrier"]), "two columns called 'carrier'"),
        (pd.Series(["UA"]), "entity_rows is Series"),
    ],
)
def test_entity_rows_that_are_no_rows_are_refused(workspace: Workspace, entity_rows: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        get_online_features(workspace, "carrier_profile:flights", entity_rows)


def test_an_answer_shares_no_list_with_its_caller(workspace: Workspace) -> None:
    given = ["UA", "ZZ"]
    answer = get_online_features(workspace, "carrier_profile:flights", {"carrier": given})
    answer.to_dict()["carrier"].clear()
    given.append("AA")
    assert answer.to_dict()["carrier"] == ["UA", "ZZ"]


def test_a_view_twice_under_two_names_on_demand_features_and_a_service(workspace: Workspace) -> None:
    rows = [{"origin": "JFK", "dest": "EWR"}, {"origin": "EWR", "dest": "JFK"}, {"origin": "XXX", "dest": None}]
    answer = get_online_features(
        workspace, [origin_weather, dest_weather, dest_is_warm], rows, full_feature_names=True
    ).to_dict()
    assert answer == {
        "origin": ["JFK", "EWR", "XXX"],
        "dest": ["EWR", "JFK", None],
        "origin_weather__temp": [25.0, 5.0, None],
        "origin_weather__sky": ["clear", "unknown", "unknown"],
        "dest_weather__temp": [5.0, 25.0, None],
        "dest_weather__sky": ["unknown", "clear", "unknown"],
        "dest_is_warm__warm": [False, True, None],
    }
    asked = {"carrier": ["UA"], "origin": ["JFK"], "dest": ["EWR"], "scheduled": [day(3)], "factor": [2]}
    by_name = get_online_features(workspace, "delay_model", asked)
    assert by_name.to_dict() == get_online_features(workspace, delay_model, asked).to_dict()
    assert {name: by_name.to_dict()[name] for name in by_name.names} == {
        "last_delay": [1.5],
        "flights": [BIG],
        "distance": [17],
        "scaled_delay": [3.0],
        "hour": [0],
        "temp": [25.0],
        "sky": ["clear"],
    }


def test_frames_have_numpy_dtypes_where_nothing_is_null(workspace: Workspace) -> None:
    full = get_online_features(
        workspace, ["carrier_profile:flights", "carrier_profile:last_delay"], [{"carrier": "UA"}]
    )
    assert {name: str(kind) for name, kind in full.to_pandas().dtypes.items()} == {
        "carrier": str(pd.Series(["UA"]).dtype),  # pandas 3 has a type of its own for texts
        "flights": "int64",
        "last_delay": "float64",
    }
    nulls = get_online_features(workspace, "every_type:i64", {"plane_id": [7, 8]}).to_pandas()
    assert str(nulls["i64"].dtype) == "Int64"
    assert nulls["i64"].tolist() == [BIG, pd.NA]
    assert nulls["plane_id"].dtype == "int64"
    table = get_online_features(workspace, every_type, {"plane_id": [7.0]}).to_arrow()
    assert table.schema.field("plane_id").type == pa.int64()
    assert table.column("day").to_pylist() == [dt.date(2024, 1, 1)]


def test_what_a_notebook_shows_is_escaped(workspace: Workspace) -> None:
    answer = get_online_features(workspace, "carrier_profile:flights", {"carrier": ["<b>"] * 30})
    html = answer._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "10 more rows" in html
    assert repr(answer) == "OnlineResponse(30 rows, 1 features)"


def test_the_callers_rows_are_not_changed(workspace: Workspace) -> None:
    rows = [{"carrier": "UA", "extra": 1}]
    answer = get_online_features(workspace, "carrier_profile:flights", rows).to_dict()
    answer["carrier"].append("x")
    assert rows == [{"carrier": "UA", "extra": 1}]
    assert answer["extra"] == [1]


REFUSED: list[tuple[Any, Any, type[FeatureStoreError], list[str]]] = [
    ("carrier_profil:flights", {"carrier": ["UA"]}, NotFoundError, ["'carrier_profil'", "'carrier_profile'"]),
    ("carrier_profile:flight", {"carrier": ["UA"]}, NotFoundError, ["'flight'", "'flights'"]),
    ("delay_modl", {"carrier": ["UA"]}, NotFoundError, ["'delay_modl'", "'delay_model'"]),
    ([], {"carrier": ["UA"]}, InputError, ["feature"]),
    (carrier_profile, {"carier": ["UA"]}, EntityKeyError, ["'carrier' of carrier_profile is missing", "'carier'"]),
    (carrier_profile, {"carrier": [7]}, EntityKeyError, ["'carrier', row 0", "7 (int)", "String"]),
    (carrier_profile, {"carrier": ["UA", True]}, EntityKeyError, ["'carrier', row 1", "True"]),
    (carrier_profile, {"carrier": ["UA", "\ud800"]}, EntityKeyError, ["'carrier', row 1"]),
    ("every_type:i64", {"plane_id": [1, "7"]}, EntityKeyError, ["'plane_id', row 1", "'7' (str)", "Int64"]),
    ("every_type:i64", {"plane_id": [True]}, EntityKeyError, ["'plane_id', row 0", "True"]),
    ("every_type:i64", {"plane_id": [1.5]}, EntityKeyError, ["1.5"]),
    ("every_type:i64", {"plane_id": [2**63]}, EntityKeyError, [str(2**63)]),
    ("every_type:i64", {"plane_id": [2.0**53 + 2]}, EntityKeyError, ["'plane_id', row 0"]),
    ("every_type:i64", {"plane_id": 7}, InputError, ["'plane_id'", "int, not a list"]),
    ("every_type:i64", {"plane_id": "7"}, InputError, ["'plane_id'", "str, not a list"]),
    ("every_type:i64", "7", InputError, ["str", "list of dicts"]),
    ("every_type:i64", [7], InputError, ["list of dicts"]),
    ("every_type:i64", None, InputError, ["NoneType"]),
    (carrier_profile, [{"carrier": "UA"}, {}], EntityKeyError, ["Row 1", "'carrier'"]),
    (carrier_profile, {}, EntityKeyError, ["'carrier'"]),
    ("route_stats:distance", {"origin": ["JFK"], "dest": []}, InputError, ["origin: 1", "dest: 0"]),
    (delay_now, {"carrier": ["UA"], "factor": [1.0]}, InputError, ["'scheduled' of delay_now is missing"]),
    (
        delay_now,
        {"carrier": ["UA"], "factor": ["x"], "scheduled": [day(1)]},
        ValueTypeError,
        ["'factor', row 0", "'x'"],
    ),
    ("offline_only:secret", {"carrier": ["UA"]}, InputError, ["'offline_only'", "not online"]),
    ([carrier_profile, "route_stats:flights"], {"carrier": ["UA"]}, OutputNameClashError, ["'flights'"]),
    (carrier_profile, {"carrier": ["UA"], "flights": [1]}, OutputNameClashError, ["'flights'"]),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_answered_is_refused_by_name(workspace: Workspace, number: int) -> None:
    features, rows, error, words = REFUSED[number]
    with pytest.raises(error) as caught:
        get_online_features(workspace, features, rows)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_functions_that_are_not_what_was_applied_are_not_run(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    changed = OnDemandFeatureView(
        "delay_now",
        sources=list(delay_now.inputs),
        schema=list(delay_now.features),
        function=len,
        code="def other(): 0",
    )
    workspace.use_code([changed])
    asked = {"carrier": ["UA"], "factor": [1.0], "scheduled": [day(1)]}
    with pytest.raises(CodeMismatchError, match="'delay_now'"):
        get_online_features(workspace, delay_now, asked)
    assert get_online_features(workspace, airport_weather, {"airport": ["JFK"]}).to_dict()["temp"] == [None]
    workspace.close()


def test_a_damaged_record_is_an_error_and_never_a_value(tmp_path: Path) -> None:
    workspace = small_project(tmp_path, now=NOW)
    commit_rows(workspace, "airport_weather", [{"airport": "JFK", "event_ts": day(1), "temp": 25.0, "sky": "clear"}])
    publish(workspace, "airport_weather")
    encoder = RecordEncoder(workspace.snapshot().views["airport_weather"].layout)
    key = encoder.keys.encode(["JFK"])
    (record,) = workspace.online.mget([key])
    assert record is not None
    workspace.online.put(key, record[:-10] + bytes([record[-10] ^ 1]) + record[-9:])
    with pytest.raises(DamagedRecordError):
        get_online_features(workspace, airport_weather, {"airport": ["JFK"]})
    workspace.close()


def test_a_store_that_is_down_is_an_error_and_never_not_found(tmp_path: Path) -> None:
    workspace = small_project(tmp_path, online_url="redis://127.0.0.1:1")
    with pytest.raises(OnlineStoreUnavailableError, match=r"127\.0\.0\.1:1"):
        get_online_features(workspace, airport_weather, {"airport": ["JFK"]})
    workspace.close()


def test_an_object_is_compared_with_what_is_applied_once(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = carrier_profile.replaced(
        sql="SELECT carrier, arrived_at, recorded_at, flights * 100 AS flights FROM flights"
    )
    for features in ([changed[["flights"]]], changed):
        with pytest.raises(InputError, match="'carrier_profile' differs"):
            get_online_features(workspace, features, {"carrier": ["UA"]})
    again = carrier_profile.replaced(owner="ops")
    first = get_online_features(workspace, again, {"carrier": ["UA"]}).to_dict()

    def compared(*_: Any) -> None:
        raise AssertionError("compared again")

    monkeypatch.setattr("featurestore.request.features.check_as_applied", compared)
    assert get_online_features(workspace, again, {"carrier": ["UA"]}).to_dict() == first
