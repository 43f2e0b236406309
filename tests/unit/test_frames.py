"""Entity frames of every kind: what is taken from them, what is refused, and that nothing in them changes."""

from __future__ import annotations

import datetime as dt
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rows import commit_rows
from support.small_project import delay_now, small_project

from featurestore.errors import EntityFrameError, EntityKeyError, InputError, OutputNameClashError, ValueTypeError
from featurestore.request.features import Reference, resolve
from featurestore.tables import read_parquet
from featurestore.training.frames import TIME, EntityFrame, check_frame, own_columns
from featurestore.workspace import Workspace

UTC = dt.UTC


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = small_project(tmp_path_factory.mktemp("project"))
    rows = [{"carrier": name, "event_ts": f"2024-01-0{day}T00:00:00Z", "flights": day, "last_delay": 0.5}
            for day, name in enumerate(("UA", "AA", "UA"), start=1)]  # fmt: skip
    commit_rows(made, "carrier_profile", rows)
    table = pa.table({"origin": ["JFK", "EWR"], "hour": pa.array([0, 1], pa.timestamp("s"))})
    pq.write_table(table, made.root / "weather.parquet")
    return made


def read(
    workspace: Workspace,
    entity_df: Any,
    features: Reference = "carrier_profile:flights",
    timestamp_column: str = "event_timestamp",
) -> EntityFrame:
    snapshot = workspace.snapshot()
    return check_frame(own_columns(entity_df, workspace, snapshot), resolve(snapshot, features), timestamp_column)


def instants(frame: EntityFrame) -> list[int]:
    return list(map(int, frame.times))


TIMES = {
    "naive": pd.to_datetime(["2024-01-01T00:00:00", "1969-12-31T23:59:59"]),
    "aware": pd.to_datetime(["2023-12-31T19:00:00-05:00", "1969-12-31T18:59:59-05:00"]).tz_convert("America/New_York"),
    "milliseconds": pd.to_datetime(["2024-01-01T00:00:00", "1969-12-31T23:59:59"]).astype("datetime64[ms]"),
    "objects": [dt.datetime(2024, 1, 1, tzinfo=UTC), dt.datetime(1969, 12, 31, 23, 59, 59)],
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_of_every_kind_are_instants(workspace: Workspace, kind: str) -> None:
    times = TIMES[kind]
    frame = pd.DataFrame({"carrier": ["UA", "AA"]})
    frame["event_timestamp"] = pd.Series(list(times), dtype=object) if kind == "objects" else times
    assert instants(read(workspace, frame)) == [1_704_067_200_000_000, -1_000_000]


def test_finer_times_are_floored_right_before_1970_too(workspace: Workspace) -> None:
    times = pa.array([1_999, -1, -1_000, -1_001, 0], pa.timestamp("ns"))
    frame = pa.table({"carrier": ["UA"] * 5, "event_timestamp": times})
    assert instants(read(workspace, frame)) == [1, -1, -1, -2, 0]


def test_dates_are_their_midnight(workspace: Workspace) -> None:
    frame = pd.DataFrame({"carrier": ["UA"], "event_timestamp": [dt.date(1970, 1, 2)]})
    assert instants(read(workspace, frame)) == [86_400_000_000]


def test_rows_in_summer_time_are_neither_lost_nor_merged(workspace: Workspace, process_time_zone: str) -> None:
    local = pd.date_range("2013-11-03T04:30:00Z", periods=4, freq="h").tz_convert("America/New_York")
    frame = pd.DataFrame({"carrier": ["UA"] * 4, "event_timestamp": local})
    first = 1_383_453_000_000_000
    assert instants(read(workspace, frame)) == [first + hour * 3_600_000_000 for hour in range(4)]


FRAME = pd.DataFrame(
    {"carrier": ["UA", None], "event_timestamp": pd.to_datetime(["2024-01-05", "2024-01-06"], utc=True)}
)


def forms(folder: Path) -> dict[str, Any]:
    table = pa.Table.from_pandas(FRAME, preserve_index=False)
    pq.write_table(table, folder / "frame.parquet")
    return {
        "pandas": FRAME,
        "table": table,
        "batch": table.to_batches()[0],
        "reader": table.to_reader(),
        "polars": pl.from_pandas(FRAME),
        "lazy": pl.from_pandas(FRAME).lazy(),
        "path": folder / "frame.parquet",
        "text path": str(folder / "frame.parquet"),
        "sql": "SELECT * FROM (SELECT 'UA' AS carrier, TIMESTAMPTZ '2024-01-05T00:00:00Z' AS event_timestamp "
        "UNION ALL SELECT NULL, TIMESTAMPTZ '2024-01-06T00:00:00Z') ORDER BY event_timestamp",
    }


@pytest.mark.parametrize("form", ["pandas", "table", "batch", "reader", "polars", "lazy", "path", "text path", "sql"])
def test_every_form_gives_the_same_keys_and_times(workspace: Workspace, tmp_path: Path, form: str) -> None:
    frame = read(workspace, forms(tmp_path)[form])
    assert frame.keys.column("carrier String").to_pylist() == ["UA", None]
    assert frame.keys.column(TIME).type == pa.timestamp("us", tz="UTC")
    assert instants(frame) == [1_704_412_800_000_000, 1_704_499_200_000_000]
    assert frame.own.names == ["carrier", "event_timestamp"]
    assert frame.own.to_arrow().num_rows == len(frame) == 2
    assert frame.own.to_pandas()["carrier"].isna().tolist() == [False, True]


def test_sql_reads_views_and_sources_by_name(workspace: Workspace) -> None:
    frame = read(workspace, "SELECT carrier, event_ts + INTERVAL 1 DAY AS event_timestamp FROM carrier_profile")
    assert sorted(frame.keys.column("carrier String").to_pylist()) == ["AA", "UA", "UA"]
    joined = "with w as (select * from weather) SELECT origin AS carrier, hour AS event_timestamp FROM w"
    assert instants(read(workspace, joined)) == [0, 1_000_000]
    empty = read(workspace, "SELECT carrier, event_ts AS event_timestamp FROM offline_only", "offline_only:secret")
    assert len(empty) == 0


@pytest.mark.parametrize(
    "sql",
    [
        "-- the newest\nSELECT {}",
        "  -- one\n\n-- two\n select {}",
        "/* a\n b */ SELECT {}",
        "(SELECT {})",
        "( -- why not\n(SELECT {}))",
        "(SELECT {} LIMIT 0) UNION ALL (SELECT {})",
        "\n\tWITH w AS (SELECT {}) FROM w",
        "SELECT {} -- at the end",
        "SELECT {};",
    ],
)
def test_sql_begins_as_people_write_it(workspace: Workspace, sql: str) -> None:
    query = sql.replace("{}", "carrier, event_ts AS event_timestamp FROM carrier_profile")
    assert sorted(read(workspace, query).keys.column("carrier String").to_pylist()) == ["AA", "UA", "UA"]


@pytest.mark.parametrize("path", ["select.parquet", "with", "-- from.parquet", "(select).parquet", "from/x.parquet"])
def test_paths_that_look_like_sql_are_paths(workspace: Workspace, path: str) -> None:
    with pytest.raises(EntityFrameError, match="there is no such file"):
        read(workspace, path)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT * FROM 'frame.parquet'", "frame.parquet"),
        ("SELECT * FROM read_parquet('/etc/passwd')", "only read the view's sources"),
        ("SELECT * FROM main.carrier_profile", "main"),
        ("SELECT * FROM carrier_profil", "'carrier_profil', which is not a source or view"),
        ("SELECT nothing FROM carrier_profile", "nothing"),
        ("SELECT 1; SELECT 2", "one SELECT"),
        ("SELECT FROM WHERE", "parsed"),
        ("SELECT error('boom') FROM carrier_profile", "boom"),
        ("SELECT (SELECT content FROM read_text('/etc/passwd')) FROM carrier_profile", "read_text"),
    ],
)
def test_sql_sees_nothing_else(workspace: Workspace, sql: str, message: str) -> None:
    with pytest.raises(EntityFrameError) as caught:
        read(workspace, sql)
    assert message.lower() in str(caught.value).lower()


def frame_of(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"carrier": ["UA", "AA"], "event_timestamp": pd.to_datetime(["2024-01-05"] * 2), **columns})


@pytest.mark.parametrize(
    ("frame", "error", "message"),
    [
        (frame_of().rename(columns={"carrier": "carier"}), EntityFrameError,
         "no join key column 'carrier'. Did you mean 'carier'?"),
        (frame_of().set_index("carrier"), EntityFrameError, "It is in the frame's index: call reset_index() first."),
        (frame_of().rename(columns={"event_timestamp": "event_time"}), EntityFrameError,
         "no time column 'event_timestamp'. Did you mean 'event_time'? Another name is passed as timestamp_column="),
        (frame_of(event_timestamp=[pd.NaT, pd.Timestamp("2024-01-05")]), EntityFrameError,
         "'event_timestamp' is null in 1 rows; the first is row 0"),
        (frame_of(event_timestamp=["2024-01-05", "2024-01-06"]), EntityFrameError, "'event_timestamp'"),
        (frame_of(event_timestamp=[1, 2]), EntityFrameError, "int64 holds no instants"),
        (frame_of(carrier=[1, 2]), EntityKeyError, "'carrier' is of type int64, but String is declared"),
        (frame_of(carrier=["UA", 2]), EntityFrameError, "'carrier' of the entity frame mixes types"),
        (frame_of(flights=[1, 2]), OutputNameClashError, "'flights'"),
        (frame_of()["carrier"], EntityFrameError, "entity_df is Series, not a table"),
        (pl.Series([1]), EntityFrameError, "entity_df is Series, not a table"),
        (17, EntityFrameError, "entity_df is int, not a table"),
        ({"carrier": "UA"}, EntityFrameError, "Column 'carrier' of entity_df is str, not a list"),
        (Path("nowhere.parquet"), EntityFrameError, "nowhere.parquet cannot be read: there is no such file"),
        (pd.concat([frame_of(), frame_of()[["carrier"]]], axis=1), EntityFrameError, "two columns called 'carrier'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(workspace: Workspace, frame: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        read(workspace, frame)
    assert message in str(caught.value)


@pytest.mark.parametrize("closed", ["frame.parquet", "."])
def test_a_frame_that_may_not_be_read(tmp_path: Path, closed: str) -> None:
    path = tmp_path / "frame.parquet"
    frame_of().to_parquet(path)
    read_parquet(path, "The entity frame", EntityFrameError)  # loads all that it takes, while that can be read
    (tmp_path / closed).chmod(0o000)
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(EntityFrameError, match=r"frame.parquet cannot be read: Permission denied\.") as caught:
            read_parquet(path, "The entity frame", EntityFrameError)
    finally:
        os.seteuid(was)
        (tmp_path / closed).chmod(0o700)
    assert "rights" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"PAR1", b"carrier,event_timestamp\nUA,2024-01-01\n"])
def test_a_file_that_is_no_parquet_is_refused(workspace: Workspace, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "frame.parquet").write_bytes(content)
    with pytest.raises(EntityFrameError, match=r"frame\.parquet cannot be read"):
        read(workspace, tmp_path / "frame.parquet")


@pytest.mark.parametrize(
    "keys",
    [
        [1.0, None, 2.0**53 - 1],
        pa.array([1, None, 2**53 - 1], pa.int64()),
        pd.array([1, None, 2**53 - 1], dtype="Int64"),
        np.array([1, np.nan, 2**53 - 1]),
        pa.array([1, None, 2**53 - 1], pa.uint64()),
    ],
)
def test_whole_numbers_are_taken_for_integer_keys(workspace: Workspace, keys: Any) -> None:
    columns = {"plane_id": keys, "event_timestamp": pd.to_datetime(["2024-01-05"] * 3)}
    frame = pa.table(columns) if isinstance(keys, pa.Array) else pd.DataFrame(columns)
    assert read(workspace, frame, "every_type:i32").keys.column("plane_id Int64").to_pylist() == [1, None, 2**53 - 1]


@pytest.mark.parametrize("keys", [[1.5, 2.0], [2.0**53, 1.0], ["1", "2"], [True, False], [2**63, 1]])
def test_other_keys_are_refused_by_name(workspace: Workspace, keys: list[Any]) -> None:
    frame = pd.DataFrame({"plane_id": keys, "event_timestamp": pd.to_datetime(["2024-01-05"] * 2)})
    with pytest.raises(EntityKeyError, match="plane_id"):
        read(workspace, frame, "every_type:i32")


def test_categories_and_dictionaries_are_keys(workspace: Workspace) -> None:
    frame = read(workspace, frame_of(carrier=pd.Categorical(["UA", None])))
    assert frame.keys.column("carrier String").to_pylist() == ["UA", None]
    coded = pa.table(
        {"carrier": pa.array(["UA", "UA"]).dictionary_encode(), "event_timestamp": pa.array([0, 1], pa.timestamp("s"))}
    )
    assert read(workspace, coded).keys.column("carrier String").to_pylist() == ["UA", "UA"]


def test_request_fields_are_taken_in_their_types(workspace: Workspace) -> None:
    frame = read(workspace, frame_of(scheduled=pd.to_datetime(["2024-01-05T07:30"] * 2), factor=[1, 2]), delay_now)
    assert frame.request_data["factor"].to_pylist() == [1.0, 2.0]
    assert frame.request_data["scheduled"].type == pa.timestamp("us", tz="UTC")


def test_wrong_request_fields_are_named(workspace: Workspace) -> None:
    with pytest.raises(EntityFrameError, match="no request field 'scheduled'"):
        read(workspace, frame_of(factor=[1.0, 2.0]), delay_now)
    scheduled = pd.to_datetime(["2024-01-05"] * 2)
    for factor in (["a", "b"], [2**53 + 1, 1], [Decimal("1.5"), None]):
        with pytest.raises(ValueTypeError, match="'factor'"):
            read(workspace, frame_of(scheduled=scheduled, factor=factor), delay_now)


def test_the_callers_frame_is_not_changed_and_later_changes_do_not_show(workspace: Workspace) -> None:
    given = frame_of(label=[1, 2])
    before = given.copy(deep=True)
    frame = read(workspace, given)
    pd.testing.assert_frame_equal(given, before)
    given.loc[0, "label"] = 99
    given["new"] = 1
    pd.testing.assert_frame_equal(frame.own.to_pandas(), before)


def test_columns_without_names_of_text_are_carried(workspace: Workspace) -> None:
    given = frame_of()
    given[7] = [1, 2]
    own = read(workspace, given).own
    assert own.to_arrow().column_names == ["carrier", "event_timestamp", "7"]
    assert list(own.to_pandas().columns) == ["carrier", "event_timestamp", 7]


def test_an_empty_frame_has_no_rows(workspace: Workspace) -> None:
    frame = read(workspace, frame_of().iloc[:0])
    assert len(frame) == 0
    assert frame.keys.column("carrier String").type == pa.string()


@pytest.mark.parametrize("as_frame", [dict, pd.DataFrame])
def test_empty_columns_are_of_any_type(workspace: Workspace, as_frame: Any) -> None:
    frame = read(workspace, as_frame({"carrier": [], "event_timestamp": []}))
    assert (len(frame), list(frame.times)) == (0, [])
    with pytest.raises(EntityFrameError, match="'event_timestamp' is null in 2 rows; the first is row 0"):
        read(workspace, as_frame({"carrier": ["UA", "AA"], "event_timestamp": [None, None]}))


def test_an_object_column_of_several_types_is_told_when_it_must_be_arrow(workspace: Workspace) -> None:
    own = read(workspace, frame_of(mixed=[1, "a"])).own
    assert list(own.to_pandas()["mixed"]) == [1, "a"]
    with pytest.raises(InputError, match="'mixed' of the entity frame mixes types"):
        own.to_arrow()
