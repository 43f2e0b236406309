"""Training sets end to end: exact rows, untouched columns, exact types, every way in and out."""

from __future__ import annotations

import datetime as dt
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.disks import small_files
from support.forked_fs import forked_fs
from support.projects import apply_records
from support.rows import commit_rows, cover
from support.small_project import (
    carrier_profile,
    delay_model,
    delay_now,
    dest_is_warm,
    dest_weather,
    open_small_project,
    origin_weather,
    route_stats,
    small_project,
)

from featurestore.definitions import OnDemandFeatureView, ParquetSource
from featurestore.engine.duck.join import DuckJoins
from featurestore.errors import (
    CodeMismatchError,
    DamagedFileError,
    DiskFullError,
    EngineError,
    InputError,
    IntervalError,
    NotFoundError,
    OutputNameClashError,
    TableVersionError,
    TrainingSetChangedError,
    TrainingSetError,
)
from featurestore.ledger.saved_sets import kept_blobs, list_sets, note_frame, pins
from featurestore.maintenance.gc import BEING_SAVED_US, collect_garbage
from featurestore.training import (
    TrainingSet,
    TrainingSetWarning,
    delete_training_set,
    get_historical_features,
    get_training_set,
)
from featurestore.workspace import Workspace

UTC = dt.UTC
BIG = 1_234_567_890_123_456_789


def day(number: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2024, 1, number, hour, tzinfo=UTC)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with rows, to copy."""
    made = small_project(tmp_path_factory.mktemp("made"))
    commit_rows(
        made,
        "carrier_profile",
        [
            {"carrier": "UA", "event_ts": day(1), "created_ts": day(2), "last_delay": 1.5, "flights": BIG},
            {"carrier": "UA", "event_ts": day(5), "created_ts": day(5, 1), "last_delay": math.nan, "flights": None},
            {"carrier": "AA", "event_ts": day(3), "last_delay": None, "flights": 3},
            {"carrier": "AA", "event_ts": day(3), "last_delay": -0.0, "flights": 4},
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
    commit_rows(
        made, "route_stats", [{"origin": "JFK", "dest": "EWR", "event_ts": day(1), "distance": 17, "flights": 1}]
    )
    made.close()
    return made.root


@pytest.fixture
def workspace(made_once: Path, tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(made_once, tmp_path / "project")
    opened = open_small_project(tmp_path / "project")
    yield opened
    opened.close()


def frame(**columns: Any) -> pd.DataFrame:
    """Seven entity rows: answers, a null, an unknown key, nothing before, expired, a twin of the first."""
    return pd.DataFrame(
        {
            "carrier": ["UA", "UA", "AA", None, "ZZ", "UA", "UA"],
            "event_timestamp": pd.to_datetime([day(3), day(5), day(4), day(4), day(4), day(20), day(3)]),
            **columns,
        }
    )


def same(found: list[Any], wanted: list[Any]) -> bool:
    """Tell whether values are equal, NaN and the sign of zero included."""
    return found == wanted or (
        len(found) == len(wanted)
        and all(
            one == other
            or (isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other))
            for one, other in zip(found, wanted, strict=True)
        )
    )


def rows_of(training_set: Any, *names: str) -> list[Any]:
    table = training_set.to_arrow()
    columns = [table.column(name).to_pylist() for name in names]
    return columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))


def test_rows_and_values_are_those_of_the_rule(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    assert rows_of(made, "carrier", "flights", "last_delay") == [
        ("UA", BIG, 1.5),
        ("UA", BIG, 1.5),
        ("AA", 4, 0.0),
        (None, None, None),
        ("ZZ", None, None),
        ("UA", None, None),
        ("UA", BIG, 1.5),
    ]
    assert math.copysign(1, rows_of(made, "last_delay")[2]) == -1
    assert len(made) == 7


def test_as_of_event_ignores_when_values_became_known(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), "carrier_profile:last_delay", as_of="event")
    values = rows_of(made, "last_delay")
    assert math.isnan(values[1])
    assert values[0] == 1.5
    with pytest.raises(InputError, match="as_of='later'"):
        get_historical_features(workspace, frame(), carrier_profile, as_of="later")


def test_the_frames_columns_index_and_order_come_back_untouched(workspace: Workspace) -> None:
    local = pd.to_datetime([day(number) for number in (3, 5, 4, 4, 4, 20, 3)]).tz_convert("America/New_York")
    own = frame(
        category=pd.Categorical(list("abcabca"), categories=list("cba"), ordered=True),
        duration=pd.to_timedelta(range(7), unit="ns"),
        local=local,
        nullable=pd.array([1, None, BIG, 4, 5, 6, 7], dtype="Int64"),
        mixed=[1, "a", None, 2.5, (1, 2), {}, b"x"],
        period=pd.period_range("2024-01", periods=7, freq="M"),
    ).set_index(pd.MultiIndex.from_arrays([list("xxyyzzx"), [1, 1, 2, 2, 3, 3, 1]], names=["letter", None]))
    own.columns.name = "columns"
    own.attrs["source"] = "test"
    before = own.copy(deep=True)
    made = get_historical_features(
        workspace, own, [carrier_profile, origin_weather.with_join_keys({"airport": "carrier"})]
    )
    back = made.to_pandas()
    pd.testing.assert_frame_equal(own, before)
    pd.testing.assert_frame_equal(back[list(own.columns)], own)
    assert list(back.columns) == [*own.columns, "last_delay", "flights", "temp", "sky"]
    assert back.columns.name == "columns"
    assert back.attrs == {"source": "test"}
    assert made.to_df()["mixed"].tolist() == before["mixed"].tolist()


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_frames_of_any_length_give_as_many_rows(workspace: Workspace, tmp_path: Path, rows: int) -> None:
    made = get_historical_features(workspace, frame().iloc[:rows], carrier_profile)
    assert len(made) == len(made.to_pandas()) == made.to_arrow().num_rows == made.to_polars().height == rows
    assert pq.read_table(made.write_parquet(tmp_path / "out.parquet")).num_rows == rows
    assert str(made.to_arrow().schema.field("flights").type) == "int64"


VALUES: dict[str, list[Any]] = {
    "i32": [-(2**31), None, 2**31 - 1],
    "i64": [-(2**63), None, 2**63 - 1],
    "f32": [0.1, None, math.inf],
    "f64": [math.nan, None, -0.0],
    "flag": [True, None, False],
    "text": ["", None, "x" * 1_000_000],
    "raw": [b"", None, b"\x00\xff"],
    "moment": [dt.datetime(1, 1, 1, tzinfo=UTC), None, dt.datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)],
    "day": [dt.date(1, 1, 1), None, dt.date(1969, 12, 31)],
    "money": [Decimal("-9999999999999999.9999"), None, Decimal("0.0001")],
    "longs": [[], None, [2**63 - 1, None]],
    "nested": [[[]], None, [["a", None], None, ["", "emoji 🛫"]]],
}


def test_every_type_comes_back_as_it_is(workspace: Workspace, tmp_path: Path) -> None:
    rows = [
        {"plane_id": n, "event_ts": day(1), **{name: values[n] for name, values in VALUES.items()}} for n in range(3)
    ]
    commit_rows(workspace, "every_type", rows)
    asked = pa.table({"plane_id": [2, 1, 0, 7, 0], "event_timestamp": [day(2)] * 5})
    made = get_historical_features(workspace, asked, ["every_type:i32", "every_type"][0])
    assert rows_of(made, "i32") == [2**31 - 1, None, -(2**31), None, -(2**31)]
    made = get_historical_features(workspace, asked, [f"every_type:{name}" for name in VALUES])
    expected = {name: [values[2], values[1], values[0], None, values[0]] for name, values in VALUES.items()}
    expected["f32"] = [math.inf, None, float(np.float32(0.1)), None, float(np.float32(0.1))]
    written = pq.read_table(made.write_parquet(tmp_path / "out.parquet"))
    for table in (made.to_arrow(), written):
        for name, values in expected.items():
            assert same(table.column(name).to_pylist(), values), name
    assert made.certificate.recomputed_rows == 5
    polars = made.to_polars()
    assert polars["i64"].to_list() == expected["i64"]
    assert polars["longs"].to_list() == expected["longs"]
    pandas = made.to_pandas()
    assert pandas["i64"].tolist() == [2**63 - 1, pd.NA, -(2**63), pd.NA, -(2**63)]
    assert pandas["longs"].tolist() == [[2**63 - 1, None], None, [], None, []]
    assert {name: str(pandas[name].dtype) for name in ("i32", "i64", "f32", "f64", "flag", "moment", "text")} == {
        "i32": "Int32",
        "i64": "Int64",
        "f32": "Float32",
        "f64": "Float64",
        "flag": "boolean",
        "moment": "datetime64[us, UTC]",
        "text": "string",
    }
    is_nan = pandas["f64"].array
    assert [value is pd.NA for value in is_nan] == [False, True, False, True, False]
    assert math.isnan(is_nan[2])


def test_numpy_dtypes_where_nothing_is_null(workspace: Workspace) -> None:
    rows = [{"plane_id": 1, "event_ts": day(1), **{name: values[0] for name, values in VALUES.items()}}]
    commit_rows(workspace, "every_type", rows)
    asked = pd.DataFrame({"plane_id": [1], "event_timestamp": [day(2)]})
    made = get_historical_features(workspace, asked, [f"every_type:{name}" for name in VALUES]).to_pandas()
    assert {name: str(made[name].dtype) for name in ("i32", "i64", "f32", "f64", "flag")} == {
        "i32": "int32",
        "i64": "int64",
        "f32": "float32",
        "f64": "float64",
        "flag": "bool",
    }


def test_an_integer_of_nineteen_digits_beside_nulls_is_that_integer(workspace: Workspace) -> None:
    column = get_historical_features(workspace, frame(), "carrier_profile:flights").to_pandas()["flights"]
    assert column.dtype == "Int64"
    assert column[0] == BIG


def test_views_are_read_twice_by_composite_and_renamed_keys(workspace: Workspace) -> None:
    asked = pd.DataFrame({"origin": ["JFK", "EWR"], "dest": ["EWR", "JFK"], "at": [day(2)] * 2})
    made = get_historical_features(
        workspace,
        asked,
        [origin_weather, dest_weather, "route_stats:distance", dest_is_warm],
        timestamp_column="at",
        full_feature_names=True,
    )
    assert rows_of(
        made, "origin_weather__temp", "dest_weather__temp", "route_stats__distance", "dest_is_warm__warm"
    ) == [(25.0, 5.0, 17, False), (5.0, 25.0, None, True)]


def test_a_service_with_on_demand_features(workspace: Workspace) -> None:
    own = frame(
        origin="JFK", dest="EWR", scheduled=pd.to_datetime([day(2, 7)] * 6 + [None], utc=True), factor=[2] * 6 + [None]
    )
    made = get_historical_features(workspace, own, "delay_model")
    assert made.features == ("last_delay", "flights", "distance", "scaled_delay", "hour", "temp", "sky")
    assert rows_of(made, "scaled_delay", "hour")[0] == (3.0, 7)
    assert rows_of(made, "scaled_delay", "hour")[6] == (None, None)
    by_object = get_historical_features(workspace, own, delay_model)
    assert by_object.to_arrow().equals(made.to_arrow())


def test_features_of_the_request_alone_need_no_view(tmp_path: Path) -> None:
    from support.projects import make_workspace

    from featurestore.definitions import Field, RequestSource, on_demand_feature_view
    from featurestore.types import Int64

    @on_demand_feature_view(sources=[RequestSource("r", [Field("x", Int64)])], schema=[Field("y", Int64)])
    def next_one(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"y": [x + 1 for x in inputs["x"]]}

    with make_workspace(tmp_path, [next_one], now_us=day(30)).registry:
        workspace = make_workspace(tmp_path, [next_one], now_us=day(30))
        made = get_historical_features(
            workspace, pd.DataFrame({"x": [1, 2], "event_timestamp": [day(1)] * 2}), next_one
        )
        assert rows_of(made, "y") == [2, 3]
        assert made.certificate.views == ()
        workspace.close()


@pytest.mark.parametrize("direct", [False, True])
def test_a_changed_object_is_not_answered_with_what_is_applied(workspace: Workspace, direct: bool) -> None:
    changed = carrier_profile.replaced(ttl=dt.timedelta(days=1))
    with pytest.raises(InputError, match=r"'carrier_profile' differs from what is applied \(revision 1\) in ttl"):
        get_historical_features(workspace, frame(), [changed[["flights"]]], direct=direct)


def test_own_columns_may_not_be_named_like_features(workspace: Workspace) -> None:
    with pytest.raises(OutputNameClashError, match="'flights'"):
        get_historical_features(workspace, frame(flights=1), carrier_profile)
    made = get_historical_features(workspace, frame(flights=1), carrier_profile, full_feature_names=True)
    assert rows_of(made, "flights", "carrier_profile__flights")[0] == (1, BIG)


def test_all_ways_out_hold_the_same(workspace: Workspace, tmp_path: Path) -> None:
    made = get_historical_features(workspace, frame(label=range(7)), carrier_profile)
    arrow = made.to_arrow()
    again = get_historical_features(workspace, frame(label=range(7)), carrier_profile)
    written = again.write_parquet(str(tmp_path / "out.parquet"))  # streamed: nothing was joined before
    assert pq.read_table(written).equals(arrow)
    assert made.write_parquet(tmp_path / "cached.parquet").read_bytes() == written.read_bytes()
    assert again.to_arrow().equals(arrow)
    assert made.to_polars().to_arrow().column("flights").to_pylist() == arrow.column("flights").to_pylist()
    assert sorted(path.name for path in tmp_path.glob("*parquet*")) == ["cached.parquet", "out.parquet"]
    from_polars = get_historical_features(workspace, pl.from_pandas(frame(label=range(7))), carrier_profile)
    assert from_polars.to_polars().columns == arrow.column_names
    assert from_polars.to_pandas()["flights"].tolist() == made.to_pandas()["flights"].tolist()


def test_a_file_appears_whole_or_not_at_all(workspace: Workspace, tmp_path: Path) -> None:
    made = get_historical_features(workspace, frame(mixed=[1, "a", 2, 3, 4, 5, 6]), carrier_profile)
    target = tmp_path / "out.parquet"
    target.write_bytes(b"PAR1 before")
    with pytest.raises(InputError, match="'mixed'"):
        made.write_parquet(target)
    assert target.read_bytes() == b"PAR1 before"
    assert [path.name for path in tmp_path.glob("*.partial")] == []
    with pytest.raises(InputError, match=r"nowhere.*cannot be written: "):
        get_historical_features(workspace, frame(), carrier_profile).write_parquet(tmp_path / "nowhere" / "out.parquet")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("entities.parquet", "is the entity frame"),
        ("link/entities.parquet", "is the entity frame"),
        ("flights.parquet", "is a file of source 'flights'"),
        ("link/flights.parquet", "is a file of source 'flights'"),
        ("to_flights.parquet", "is a file of source 'flights'"),
        ("weather.parquet", "is read by source 'weather'"),  # not there yet
        ("days/12/new.parquet", "is read by source 'folder'"),
        ("link/months/2024/part_7.parquet", "is read by source 'glob'"),
        ("linked_months/2024/part_7.parquet", "is read by source 'glob'"),
        ("data/registry.db", "is the registry"),
        ("data/offline/new.parquet", "is in the folder of offline_store"),
        ("data/online/new.parquet", "is in the folder of online_store"),
        ("features.py", "is not a Parquet file"),
        ("days", "is not a Parquet file"),
    ],
)
def test_a_training_set_is_written_over_nothing_that_matters(tmp_path: Path, path: str, words: str) -> None:
    workspace = project_with_folders(tmp_path)
    training = get_historical_features(workspace, tmp_path / "entities.parquet", "carrier_profile:flights")
    before = {found: found.stat().st_mtime_ns for found in tmp_path.rglob("*") if found.is_file()}
    with pytest.raises(InputError, match=words) as refused:
        training.write_parquet(tmp_path / path)
    assert str(tmp_path / path) in refused.value.message
    assert "another path" in refused.value.hint
    assert {found: found.stat().st_mtime_ns for found in tmp_path.rglob("*") if found.is_file()} == before


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "path",
    ["new.parquet", "data/new.parquet", "days/new.csv", "days/_hidden.parquet", "months/part_7.parquet"],
)
def test_a_training_set_is_written_beside_sources_again_and_again(tmp_path: Path, path: str) -> None:
    workspace = project_with_folders(tmp_path)
    training = get_historical_features(workspace, frame(), "carrier_profile:flights")
    for _ in range(2):
        assert pq.read_table(training.write_parquet(tmp_path / path)).num_rows == 7


def test_files_of_the_offline_store_stay_what_was_committed(workspace: Workspace) -> None:
    training = get_historical_features(workspace, frame(), "carrier_profile:flights")
    version = workspace.offline.current(workspace.snapshot().views["carrier_profile"].table)
    assert version is not None
    with pytest.raises(InputError, match="in the folder of offline_store"):
        training.write_parquet(version.files[0].path)
    workspace.offline.verify(version.files, again=True)


def project_with_folders(folder: Path) -> Workspace:
    """Return a small project with sources of every kind, a link to itself, and an entity frame in a file."""
    sources = [ParquetSource("folder", "days", "at"), ParquetSource("glob", "months/*/part_*.parquet", "at")]
    workspace = small_project(folder)
    apply_records(workspace, sources)
    cover(workspace, "carrier_profile", day(1), day(31))
    for name in ("days/12", "months/2024", "data/offline", "data/online"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    frame().to_parquet(folder / "entities.parquet")
    frame().to_parquet(folder / "flights.parquet")
    (folder / "link").symlink_to(folder)
    (folder / "linked_months").symlink_to(folder / "months")
    (folder / "to_flights.parquet").symlink_to(folder / "flights.parquet")
    (folder / "features.py").write_text("# definitions")
    return workspace


def test_a_full_disk_is_told(workspace: Workspace, tmp_path: Path) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    made.to_arrow()
    with small_files(100), pytest.raises(DiskFullError, match=r"out\.parquet"):
        made.write_parquet(tmp_path / "out.parquet")
    assert not list(tmp_path.glob("*out.parquet*"))
    # The registry notes the frame first: there is room for that.
    large = frame(noise=[os.urandom(100_000).hex() for _ in range(7)])
    made = get_historical_features(workspace, large, carrier_profile)
    made.fingerprint()
    with small_files(500_000), pytest.raises(DiskFullError, match="entity frame of training set 'first'"):
        made.save("first")
    assert not list((workspace.root / "data/offline/shop/_training_sets").iterdir())
    assert list_sets(workspace.ledger, "shop") == []


def test_the_sql_gives_the_same_rows_in_another_engine_run(workspace: Workspace) -> None:
    """`.sql` is for reading, but true: run as it stands over the tables it gives the joined features."""
    own = frame(origin="JFK", dest="EWR", row=range(7))
    made = get_historical_features(workspace, own, [carrier_profile, "route_stats:distance"])
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # In microseconds: pandas 2 has nanoseconds, which DuckDB subtracts no interval from.
        moments = own["event_timestamp"].astype("datetime64[us, UTC]")
        connection.register("entity_df", pa.Table.from_pandas(own.assign(event_timestamp=moments)))
        for name in ("carrier_profile", "route_stats"):
            version = workspace.offline.current(workspace.snapshot().views[name].table)
            assert version is not None
            connection.execute(f"CREATE VIEW {name} AS FROM read_parquet({[file.path for file in version.files]})")
        by_sql = connection.sql(f"SELECT * FROM ({made.sql}) ORDER BY row").to_arrow_table()
    for name in made.features:
        assert repr(by_sql.column(name).to_pylist()) == repr(rows_of(made, name))
    computed = get_historical_features(
        workspace, frame(scheduled=pd.to_datetime([day(1)] * 7), factor=1.0), [delay_now, carrier_profile]
    )
    assert '-- "hour": computed by on-demand view delay_now' in computed.sql
    assert "version 0" in computed.sql


# What the user is told


def test_rows_past_what_was_committed_are_told_with_the_command(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    with pytest.warns(TrainingSetWarning, match=r"7 of 7 entity rows .* `fs materialize --view carrier_profile`"):
        made = get_historical_features(workspace, frame(), carrier_profile)
    assert rows_of(made, "flights") == [None] * 7
    assert made.certificate.views[0].not_covered == 7
    assert made.certificate.views[0].table_version is None
    commit_rows(workspace, "carrier_profile", [{"carrier": "UA", "event_ts": day(2)}], covers=(day(1), day(4)))
    with pytest.warns(TrainingSetWarning, match="5 of 7 entity rows look past"):
        made = get_historical_features(workspace, frame(), carrier_profile)
    assert made.warnings[0].endswith("Fill the gap with `fs materialize --view carrier_profile`.")
    cover(workspace, "carrier_profile", day(4), day(21))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert get_historical_features(workspace, frame(), carrier_profile).warnings == []
    workspace.close()


def test_rows_of_now_right_after_a_run_are_in_the_certificate_alone(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    now = pd.Timestamp(workspace.clock(), unit="us", tz="UTC")
    for name in ("carrier_profile", "route_stats"):
        cover(workspace, name, day(1), (now - pd.Timedelta(minutes=5)).to_pydatetime())
    route = {"origin": "A", "dest": "B"}
    rows = frame(**route, event_timestamp=[now] * 6 + [now - pd.Timedelta(days=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = get_historical_features(workspace, rows, [carrier_profile, route_stats[["distance"]]])
    assert [view.not_covered for view in made.certificate.views] == [6, 6]
    workspace.clock.advance(dt.timedelta(hours=2))
    later = frame(**route, event_timestamp=[now + pd.Timedelta(hours=2)] * 7)
    with pytest.warns(TrainingSetWarning, match="--view carrier_profile --view route_stats`"):
        made = get_historical_features(workspace, later, [carrier_profile, route_stats[["distance"]]])
    assert len(made.warnings) == 1
    workspace.close()


def test_warnings_point_at_the_users_line_each_time(tmp_path: Path) -> None:
    small_project(tmp_path).close()
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    script = tmp_path / "train.py"
    script.write_text(
        "import pandas as pd\n"
        "from featurestore import FeatureStore\n"
        "store = FeatureStore('.')\n"
        "frame = pd.DataFrame({'carrier': ['UA'], 'event_timestamp': [pd.Timestamp('2024-01-02', tz='UTC')]})\n"
        "for _ in range(3):\n"
        "    store.get_historical_features(frame, 'carrier_profile:flights')\n"
    )
    ((code, said),) = forked_fs().run_code(f"import runpy; runpy.run_path({str(script)!r})", tmp_path)
    told = [line for line in said.splitlines() if "TrainingSetWarning" in line]
    assert (code, len(told)) == (0, 3), said
    assert {line.partition(": ")[0] for line in told} == {f"{script}:6"}


def test_what_is_found_late_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    rows = [{"carrier": "UA", "event_ts": day(n), "created_ts": day(25), "flights": n} for n in range(1, 9)]
    commit_rows(workspace, "carrier_profile", rows)
    own = pd.DataFrame({"carrier": ["UA"] * 4, "event_timestamp": [day(n) for n in (2, 3, 4, 26)]})
    for asked in ("to_pandas", "to_arrow", "to_polars", "certificate"):
        made = get_historical_features(workspace, own, "carrier_profile:flights")
        with pytest.warns(TrainingSetWarning, match="have no value") as told:
            made.certificate if asked == "certificate" else getattr(made, asked)()
        assert {warning.filename for warning in told} == {__file__}, asked
    workspace.close()


def test_rows_after_now_are_answered_counted_and_told(workspace: Workspace) -> None:
    own = pd.DataFrame({"carrier": ["AA"], "event_timestamp": [dt.datetime(2030, 1, 1, tzinfo=UTC)]})
    with pytest.warns(TrainingSetWarning, match="1 of 1 entity rows are after now"):
        made = get_historical_features(
            workspace, own, "airport_weather:temp".replace("airport_weather:temp", "carrier_profile:flights")
        )
    assert rows_of(made, "flights") == [None]
    assert made.certificate.rows_after_now == 1


def test_a_backfilled_source_does_not_give_nulls_in_silence(tmp_path: Path) -> None:
    workspace = small_project(tmp_path)
    commit_rows(
        workspace,
        "carrier_profile",
        [{"carrier": "UA", "event_ts": day(n), "created_ts": day(25), "flights": n} for n in range(1, 9)],
    )
    own = pd.DataFrame({"carrier": ["UA"] * 4, "event_timestamp": [day(n) for n in (2, 3, 4, 26)]})
    made = get_historical_features(workspace, own, "carrier_profile:flights")
    with pytest.warns(TrainingSetWarning, match=r"75% of the entity rows have no value .* pass as_of='event'"):
        assert rows_of(made, "flights") == [None, None, None, None]
    told = get_historical_features(workspace, own, "carrier_profile:flights", as_of="available")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows_of(told, "flights") == [None] * 4  # asked for by name: no surprise
        assert rows_of(
            get_historical_features(workspace, own, "carrier_profile:flights", as_of="event"), "flights"
        ) == [
            2,
            3,
            4,
            None,
        ]
    workspace.close()


def test_what_a_notebook_shows_is_escaped(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    made.warnings.append("<script>")
    page = made._repr_html_()
    assert "7 rows" in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert repr(made) == "TrainingSet(7 rows, 2 features)"


@pytest.mark.counted_once
@pytest.mark.parametrize("form", ["pandas", "arrow", "empty", "span", "asked for"])
def test_a_set_is_read_in_batches(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr("featurestore.training.joins.BATCH_ROWS", 3)
    monkeypatch.setattr("featurestore.training.training_set.BATCH_ROWS", 3)
    given = frame().assign(label=range(7))

    def made() -> TrainingSet:
        if form == "span":
            return get_historical_features(workspace, None, carrier_profile, start=day(1), end=day(9))
        rows = {"arrow": pa.Table.from_pandas(given), "empty": given.iloc[:0]}.get(form, given)
        return get_historical_features(workspace, rows, "carrier_profile:*")

    whole, batched = made(), made()
    if form == "asked for":
        batched.to_arrow()
    batches = list(batched.batches())
    assert {batch.schema for batch in batches} <= {whole.to_arrow().schema}
    rows = pa.Table.from_batches(batches, whole.to_arrow().schema).to_pylist()
    assert repr(rows) == repr(whole.to_arrow().to_pylist())  # NaN is not itself
    assert len(batches) == {"empty": 0, "span": 1}.get(form, 3)
    assert whole.columns == tuple(whole.to_arrow().column_names) == made().columns
    assert whole.shape == (len(whole), len(whole.columns)) == (whole.to_arrow().num_rows, whole.to_arrow().num_columns)
    if form not in ("span", "empty"):
        assert batched.certificate.rows == 7


# Versions


def test_versions_are_pinned_when_the_set_is_made(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), "carrier_profile:flights")
    commit_rows(workspace, "carrier_profile", [{"carrier": "ZZ", "event_ts": day(1), "flights": 9}])
    assert rows_of(made, "flights")[4] is None
    assert rows_of(get_historical_features(workspace, frame(), "carrier_profile:flights"), "flights")[4] == 9


def test_files_cleaned_away_meanwhile_are_opened_again_once(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), "carrier_profile:flights")
    registered = workspace.snapshot().views["carrier_profile"]
    table, schema = registered.table, registered.table_schema
    old = workspace.offline.current(table)
    assert old is not None
    place = workspace.offline.staging(table) / "compacted.parquet"
    pq.write_table(pq.read_table(old.files[0].path), place)
    workspace.offline.commit(table, schema, base=old.number, add=[place], remove=old.files)
    Path(old.files[0].path).unlink()
    with pytest.warns(TrainingSetWarning, match="cleaned away"):
        assert next(made.batches()).column("flights")[0].as_py() == BIG
    assert rows_of(made, "flights")[0] == BIG
    assert made.certificate.views[0].table_version == old.number + 1


def test_a_file_that_is_gone_or_damaged_is_an_error(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), "carrier_profile:flights")
    version = workspace.offline.current(workspace.snapshot().views["carrier_profile"].table)
    assert version is not None
    path = Path(version.files[0].path)
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        made.to_arrow()
    path.unlink()
    with pytest.raises(DamagedFileError):  # and no warning: there is no newer version to open
        made.to_arrow()


# A view's own rows in a span


def test_without_a_frame_a_views_rows_of_a_span(workspace: Workspace) -> None:
    made = get_historical_features(workspace, None, carrier_profile, start="2024-01-01", end=day(5))
    assert made.to_arrow().to_pylist() == [
        {"carrier": "UA", "event_timestamp": day(1), "last_delay": 1.5, "flights": BIG},
        {"carrier": "AA", "event_timestamp": day(3), "last_delay": -0.0, "flights": 4},
    ]
    assert len(made) == 2
    assert made.to_pandas()["carrier"].tolist() == ["UA", "AA"]
    renamed = get_historical_features(
        workspace, features=carrier_profile["flights"].with_join_keys({"carrier": "airline"}),
        start=day(5), end=day(5, 1), timestamp_column="at",
    )  # fmt: skip
    assert renamed.to_polars().to_dicts() == [{"airline": "UA", "at": day(5), "flights": None}]
    for method in (lambda: made.certificate, lambda: made.save("span")):
        with pytest.raises(TrainingSetError, match="in a span are not a training set"):
            method()


def test_a_span_is_written_as_it_is_read(workspace: Workspace, tmp_path: Path) -> None:
    made = get_historical_features(workspace, None, carrier_profile, start=day(1), end=day(9))
    assert repr(made) == "TrainingSet(a span, 2 features)"
    assert pq.read_table(made.write_parquet(tmp_path / "span.parquet")).num_rows == 3
    assert "entity_df" in made.sql
    assert (
        get_historical_features(workspace, None, "offline_only:secret", start=day(1), end=day(2)).to_arrow().num_rows
        == 0
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"features": carrier_profile}, InputError, "no entity frame"),
        ({"features": carrier_profile, "start": day(1)}, InputError, "no entity frame"),
        ({"features": [carrier_profile, "route_stats:distance"], "start": day(1), "end": day(2)}, InputError,
         "one view"),
        ({"features": delay_now, "start": day(1), "end": day(2)}, InputError, "one view"),
        ({"features": carrier_profile, "start": day(1), "end": day(2), "direct": True}, InputError, "reads source"),
        ({"features": carrier_profile, "start": day(2), "end": day(2)}, IntervalError, "is empty"),
        ({"features": carrier_profile, "start": day(3), "end": day(2)}, IntervalError, "is empty"),
        ({"features": carrier_profile, "start": day(1), "end": day(2), "timestamp_column": "carrier"},
         OutputNameClashError, "'carrier' has the name of a join key"),
        ({"features": carrier_profile, "start": day(1), "end": day(2), "timestamp_column": "flights"},
         OutputNameClashError, "'flights'"),
        ({"entity_df": frame(), "features": carrier_profile, "start": day(1)}, InputError, "start and end"),
        ({"entity_df": frame(), "features": "carrier_profil:x"}, NotFoundError, "carrier_profil"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(workspace: Workspace, arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        get_historical_features(workspace, **arguments)


# Straight from the sources


def test_direct_reads_the_sources_before_anything_is_committed(tmp_path: Path) -> None:
    workspace = small_project(tmp_path, now=day(6))
    source = {
        "carrier": ["UA", "UA", "UA", None],
        "arrived_at": pa.array([day(1), day(5), day(7), day(1)], pa.timestamp("us", tz="UTC")),
        "recorded_at": pa.array([day(1), day(5), day(7), day(1)], pa.timestamp("us", tz="UTC")),
        "last_delay": [1.0, 2.0, 3.0, 4.0],
        "flights": [1, 2, 3, 4],
    }
    pq.write_table(pa.table(source), tmp_path / "flights.parquet")
    with pytest.warns(TrainingSetWarning, match="after now"):
        made = get_historical_features(workspace, frame(), [carrier_profile], direct=True)
    folder = Path(made.joined("").pins[0].files[0]).parent.parent
    assert rows_of(made, "flights") == [1, 2, None, None, None, None, 1]
    assert made.certificate.views[0].table_version is None
    assert made.certificate.recomputed_rows == 7
    assert "staged from its source" in made.sql
    with pytest.raises(TrainingSetError, match="direct training set cannot be saved"):
        made.save("direct")
    assert workspace.offline.tables("shop") == []
    empty = get_historical_features(workspace, frame().iloc[:0], carrier_profile, direct=True)
    assert rows_of(empty, "flights") == []
    assert folder.exists()
    del made
    assert not folder.exists()
    workspace.close()


def test_a_direct_set_whose_source_is_missing_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.errors import SourceFileError

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    workspace = small_project(tmp_path)
    with pytest.raises(SourceFileError):
        get_historical_features(workspace, frame(), carrier_profile, direct=True)
    assert list((tmp_path / "temporary").glob("featurestore-direct-*")) == []
    workspace.close()


# Saved sets


def saved_frame() -> pd.DataFrame:
    return frame(
        label=pd.Categorical(list("abcabca")),
        duration=pd.to_timedelta(range(7), unit="ns"),
        scheduled=pd.to_datetime([day(2, 7)] * 7, utc=True),
        factor=[2.0] * 6 + [None],
    ).set_index(pd.Index([3, 3, 1, 5, 6, 7, 8], name="flight"))


@pytest.mark.parametrize("form", ["pandas", "arrow", "polars"])
def test_a_saved_set_is_built_again_identical(workspace: Workspace, form: str) -> None:
    own: Any = saved_frame()
    own = {"pandas": lambda: own, "arrow": lambda: pa.Table.from_pandas(own), "polars": lambda: pl.from_pandas(own)}[
        form
    ]()
    made = get_historical_features(workspace, own, [carrier_profile, delay_now], full_feature_names=True)
    assert made.save("first") is made
    commit_rows(workspace, "carrier_profile", [{"carrier": "ZZ", "event_ts": day(1), "flights": 9}])
    again = get_training_set(workspace, "first")
    assert again.to_arrow().equals(made.to_arrow())
    assert again.certificate == made.certificate
    assert repr(again) == "TrainingSet(first: 7 rows, 4 features)"
    if form == "pandas":
        pd.testing.assert_frame_equal(again.to_pandas(), made.to_pandas())
    if form == "polars":
        assert again.to_polars().equals(made.to_polars())
        assert again.to_polars().schema == made.to_polars().schema


@pytest.mark.uncounted
def test_saving_again_changes_nothing_and_another_set_is_refused(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    made.save("first")
    get_historical_features(workspace, frame(), carrier_profile).save("first")
    others = [
        get_historical_features(workspace, frame().iloc[:3], carrier_profile),
        get_historical_features(workspace, frame(), "carrier_profile:flights"),
        get_historical_features(workspace, frame(), carrier_profile, as_of="event"),
        get_historical_features(workspace, frame(label=1), carrier_profile),
        get_historical_features(workspace, pl.from_pandas(frame()), carrier_profile),
    ]
    for other in others:
        with pytest.raises(TrainingSetError, match="another training set called 'first'"):
            other.save("first")
    assert [saved.name for saved in list_sets(workspace.ledger, "shop")] == ["first"]
    assert len(list((workspace.root / "data/offline/shop/_training_sets").glob("*.arrow"))) == 1


def test_a_deleted_set_is_gone_and_its_name_free(workspace: Workspace) -> None:
    get_historical_features(workspace, frame(), carrier_profile).save("first")
    get_historical_features(workspace, frame(), carrier_profile).save("second")
    delete_training_set(workspace, "first")
    assert [saved.name for saved in list_sets(workspace.ledger, "shop")] == ["second"]
    assert [blob.name.partition("-")[0] for blob in kept_blobs(workspace).list()] == ["second"] * 3
    for name in ("first", "frist"):
        with pytest.raises(NotFoundError, match=rf"no saved training set '{name}'"):
            get_training_set(workspace, name)
        with pytest.raises(NotFoundError, match=rf"no saved training set '{name}'"):
            delete_training_set(workspace, name)
    commit_rows(workspace, "carrier_profile", [{"carrier": "ZZ", "event_ts": day(1), "flights": 9}])
    other = get_historical_features(workspace, frame(), "carrier_profile:flights")
    other.save("first")
    assert get_training_set(workspace, "first").to_arrow().equals(other.to_arrow())
    assert len(get_training_set(workspace, "second")) == 7
    table = workspace.snapshot().views["carrier_profile"].table
    assert pins(workspace)[table] == {0, 1}
    delete_training_set(workspace, "second")
    assert pins(workspace)[table] == {1}


def test_frames_that_no_set_names_go_when_they_are_old(workspace: Workspace) -> None:
    get_historical_features(workspace, frame(), carrier_profile).save("first")
    folder = workspace.root / "data/offline/shop/_training_sets"
    kept, document, sample = sorted(folder.iterdir())
    being_saved, left, unknown = (kept.with_name(f"{name}-0.arrow") for name in ("new", "left", "unknown"))
    partial, earlier = left.with_name("cut.arrow-partial"), left.with_suffix(".partial")
    cut_off = document.with_name(f"{document.name}-partial")
    for path in (being_saved, left, unknown, partial, earlier, cut_off):
        path.write_bytes(b"")
    for path in (being_saved, left):
        note_frame(workspace.ledger, "shop", f"shop/_training_sets/{path.name}")
    hours_ago = (workspace.clock() - 2 * BEING_SAVED_US) // 1_000_000
    for path in (kept, document, sample, left, unknown, partial, earlier, cut_off):
        os.utime(path, (hours_ago, hours_ago))
    assert collect_garbage(workspace).files == 4
    assert set(folder.iterdir()) == {kept, document, sample, being_saved, unknown}
    assert len(get_training_set(workspace, "first")) == 7


@pytest.mark.parametrize("name", ["", "First", "a/b", "../x", "fs_x", "a" * 64, "1st"])
def test_ill_formed_names_are_refused(workspace: Workspace, name: str) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    with pytest.raises(InputError, match="is not a name for a training set"):
        made.save(name)


def test_unknown_sets_get_the_closest_name(workspace: Workspace) -> None:
    with pytest.raises(NotFoundError, match=r"\.save\(name\)"):
        get_training_set(workspace, "first")
    get_historical_features(workspace, frame(), carrier_profile).save("first")
    with pytest.raises(NotFoundError, match="Did you mean 'first'"):
        get_training_set(workspace, "frist")


def test_what_saved_sets_need_is_known(workspace: Workspace) -> None:
    get_historical_features(workspace, frame(), carrier_profile).save("one")
    commit_rows(workspace, "carrier_profile", [{"carrier": "ZZ", "event_ts": day(1), "flights": 9}])
    get_historical_features(workspace, frame(), carrier_profile).save("two")
    get_historical_features(workspace, frame(airport="JFK"), "airport_weather:temp").save("three")
    with pytest.warns(TrainingSetWarning):
        get_historical_features(workspace, frame(), "offline_only:secret").save("four")
    tables = {registered.table: name for name, registered in workspace.snapshot().views.items()}
    pinned = {tables[table]: versions for table, versions in pins(workspace).items()}
    assert pinned == {"carrier_profile": {0, 1}, "airport_weather": {0}}
    assert rows_of(get_training_set(workspace, "four"), "secret") == [None] * 7


def test_a_set_whose_version_or_frame_is_gone_is_refused_by_name(workspace: Workspace) -> None:
    get_historical_features(workspace, frame(), carrier_profile).save("first")
    (kept,) = (workspace.root / "data/offline/shop/_training_sets").glob("*.arrow")
    content = kept.read_bytes()
    kept.write_bytes(content[:-1])
    with pytest.raises(DamagedFileError, match="entity frame of training set 'first'"):
        get_training_set(workspace, "first")
    kept.write_bytes(content)
    get_training_set(workspace, "first")
    version = workspace.offline.current(workspace.snapshot().views["carrier_profile"].table)
    assert version is not None
    Path(version.files[0].path).unlink()
    with pytest.raises(TableVersionError):
        get_training_set(workspace, "first")


def test_changed_on_demand_code_is_refused_by_name(workspace: Workspace) -> None:
    own = saved_frame()
    get_historical_features(workspace, own, delay_now).save("first")
    get_historical_features(workspace, own, carrier_profile).save("plain")

    def delay_now_changed(inputs: Any) -> Any:
        return {"scaled_delay": inputs["factor"], "hour": inputs["factor"]}

    changed = OnDemandFeatureView(
        "delay_now", sources=delay_now.inputs, schema=delay_now.fields, function=delay_now_changed
    )
    workspace.use_code([changed])
    with pytest.raises(
        CodeMismatchError, match=r"'first' cannot be built again: .*'delay_now' is not what was applied"
    ):
        get_training_set(workspace, "first")
    assert len(get_training_set(workspace, "plain")) == 7
    with pytest.raises(CodeMismatchError, match="'delay_now' is not what was applied"):
        get_historical_features(workspace, own, delay_now)


def test_a_function_that_is_not_deterministic_is_found_out(workspace: Workspace, tmp_path: Path) -> None:
    own = saved_frame()
    made = get_historical_features(workspace, own, delay_now)
    made.save("first")
    state = {"calls": 0}

    def unstable(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
        state["calls"] += 1
        return {"scaled_delay": [float(state["calls"])] * len(inputs["factor"]), "hour": [1] * len(inputs["factor"])}

    again = get_training_set(workspace, "first")
    object.__setattr__(again.joined("").functions[0], "_function", unstable)
    for get in (again.to_arrow, lambda: again.write_parquet(tmp_path / "out.parquet")):
        with pytest.raises(TrainingSetChangedError, match="'first' does not build to the rows that were saved"):
            get()
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("column", "named"),
    [
        ([1, "a", 2, 3, 4, 5, 6], "mixed"),
        ([dt.time(1)] * 7, None),
        ([(1, 2)] * 7, "column 'mixed'"),
    ],
)
def test_frames_that_would_not_come_back_are_refused(workspace: Workspace, column: Any, named: str | None) -> None:
    made = get_historical_features(workspace, frame(mixed=column), carrier_profile)
    if named is None:
        made.save("first")
        pd.testing.assert_frame_equal(get_training_set(workspace, "first").to_pandas(), made.to_pandas())
        return
    with pytest.raises(TrainingSetError, match=named):
        made.save("first")
    assert list_sets(workspace.ledger, "shop") == []


SAVE_IN_ANOTHER_PROCESS = """
from pathlib import Path
import pandas as pd
from featurestore.workspace import Workspace
from featurestore.project.settings import make_settings
from featurestore.training import get_historical_features
from support.clock import ManualClock
workspace = Workspace(Path.cwd(), make_settings({"project": "shop"}), clock=ManualClock("2024-02-01T00:00:00Z"))
frame = pd.DataFrame({"carrier": ["UA"], "event_timestamp": pd.to_datetime(["2024-01-03"])})
get_historical_features(workspace, frame, "carrier_profile:flights").save("first")
"""


@pytest.mark.parametrize(("point", "is_saved"), [("training_set.frame_kept", False), ("training_set.saved", True)])
def test_a_killed_save_leaves_a_set_or_none(workspace: Workspace, point: str, is_saved: bool) -> None:
    ((code, said),) = forked_fs().run_code(SAVE_IN_ANOTHER_PROCESS, workspace.root, [{"FS_CRASH_AT": point}])
    assert code == 137, said
    assert [saved.name for saved in list_sets(workspace.ledger, "shop")] == (["first"] if is_saved else [])
    own = pd.DataFrame({"carrier": ["UA"], "event_timestamp": pd.to_datetime(["2024-01-03"])})
    get_historical_features(workspace, own, "carrier_profile:flights").save("first")
    assert rows_of(get_training_set(workspace, "first"), "flights") == [BIG]


def test_two_savers_of_one_name_do_not_overwrite_each_other(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other saver comes between the look and the entry."""
    import featurestore.training.saving as saving

    ours = get_historical_features(workspace, frame(), carrier_profile)
    theirs = get_historical_features(workspace, frame().iloc[:2], carrier_profile)
    kept = saving._keep

    def keep_after_the_other(*arguments: Any) -> Any:
        monkeypatch.setattr(saving, "_keep", kept)
        theirs.save("first")
        return kept(*arguments)

    monkeypatch.setattr(saving, "_keep", keep_after_the_other)
    with pytest.raises(TrainingSetError, match="another training set called 'first'"):
        ours.save("first")
    assert len(get_training_set(workspace, "first")) == 2


def test_a_join_that_gives_other_rows_is_an_error(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = get_historical_features(workspace, frame(), carrier_profile)
    joined = DuckJoins.join

    def one_row_less(joins: DuckJoins, keys: Any, *arguments: Any, **options: Any) -> Any:
        return joined(joins, keys.slice(1), *arguments, **options)

    monkeypatch.setattr(DuckJoins, "join", one_row_less)
    with pytest.raises(EngineError, match="6 rows for the entity frame's 7"):
        made.to_arrow()
