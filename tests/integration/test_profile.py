"""Profiles of views, sources, files and queries: what `fs profile` prints and a notebook draws."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import FeatureStore, FeatureView, Field, profile
from featurestore.cli.main import main
from featurestore.errors import EntityFrameError, InputError, NotFoundError, SourceFileError
from featurestore.statistics.profile import Profile, Profiles
from featurestore.types import Float64, Int64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repo as `fs init` makes it, of which nothing is applied."""
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(SystemExit):
            main(["init", "tour"])
    return folder / "tour"


@pytest.fixture(scope="module")
def store(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    """The same repo, materialized."""
    copy = tmp_path_factory.mktemp("materialized") / "tour"
    with FeatureStore(shutil.copytree(root, copy)) as made:
        made.apply()
        made.materialize_incremental()
        yield made


def one(found: Profile | Profiles) -> Profile:
    assert isinstance(found, Profile)
    return found


def test_what_is_not_applied_is_profiled_by_what_its_sources_hold(root: Path, tmp_path: Path) -> None:
    store = FeatureStore(shutil.copytree(root, tmp_path / "tour"))
    source = pd.read_parquet(root / "data" / "driver_stats.parquet").dropna(subset=["hour", "driver_id"])
    with pytest.raises(NotFoundError, match="'driver_stats' is not applied yet") as caught:
        store.profile("driver_stats")
    assert "`fs profile driver_stats --source`" in (caught.value.hint or "")
    found = one(store.profile("driver_stats", source=True))
    assert (found.name, found.rows, found.sampled) == ("the source of driver_stats", len(source), len(source))
    assert [column.name for column in found.columns] == ["driver_id", "trips", "rating"]
    assert (found["driver_id"].is_hidden, found["driver_id"].distinct) == (True, source["driver_id"].nunique())
    assert found.drawings["trips"].bars == tuple(source["trips"].value_counts().sort_index())
    assert found["rating"].mean == pytest.approx(source["rating"].mean())
    assert sum(found.drawings["rating"].bars) >= 0.98 * source["rating"].notna().sum()
    assert one(store.profile("driver_stats_source")).drawings["trips"] == found.drawings["trips"]
    tried = FeatureView(
        "tried",
        entities=[next(each for each in store.workspace.code if each.name == "driver")],  # type: ignore[list-item]
        source=next(each for each in store.workspace.code if each.name == "driver_stats_source"),  # type: ignore[arg-type]
        sql="SELECT driver_id, hour, created, trips * 2 AS doubled FROM driver_stats_source",
        ttl=timedelta(days=1),
    )
    assert one(store.profile(tried, source=True))["doubled"].maximum == 2 * source["trips"].max()
    assert store.list() == []
    store.apply()
    with pytest.raises(InputError, match="Nothing of view 'driver_stats' is materialized yet"):
        store.profile("driver_stats")
    store.close()


def test_what_is_materialized_is_profiled(store: FeatureStore) -> None:
    found = one(store.profile("driver_stats"))
    assert repr(found) == f"Profile(driver_stats: {found.rows:,} rows, 3 columns)"
    assert found.columns == one(store.profile("driver_stats", source=True)).columns
    windowed = one(store.profile("driver_recent"))
    assert [(column.name, column.role) for column in windowed.columns] == [("driver_id", "key"), ("trips", "input")]
    both = store.profile("trip_model_v1")
    assert isinstance(both, Profiles)
    assert [each.name for each in both] == ["driver_stats"]
    service = store.get("feature_service", "trip_model_v1")
    assert [each.columns for each in store.profile(service)] == [found.columns]  # type: ignore[arg-type, union-attr]
    counted = one(store.profile("SELECT driver_id, count(*) AS n, now() - now() AS took FROM driver_stats GROUP BY 1"))
    assert (counted.rows, counted["driver_id"].is_hidden) == (found["driver_id"].distinct, False)
    assert list(counted.left_out) == ["took"]
    view = store.get("feature_view", "driver_stats")
    assert isinstance(view, FeatureView)
    with pytest.raises(InputError, match="differs from what is applied"):
        store.profile(view.replaced(fields=(Field("trips", Int64), Field("rating", Float64, default=1.0))))


def test_files_are_profiled_as_sources_read_them(store: FeatureStore, tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / f"day={day}"
        folder.mkdir()
        pq.write_table(pa.table({"v": pa.array([day, None], pa.int32()), "<b>": ["x", None]}), folder / "part.parquet")
    found = one(store.profile(tmp_path))
    assert (found.rows, found["v"].nulls, found["<b>"].top) == (4, 2, (("x", 2),))
    assert found["day"].top == (("1", 2), ("2", 2))
    assert one(store.profile(str(tmp_path / "*" / "part.parquet"))).rows == 4
    page = found._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_files_and_frames_need_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"v": pa.array([1, 1, None], pa.int64())}), tmp_path / "retail.parquet")
    for what in ("retail.parquet", tmp_path / "retail.parquet", "*.parquet", ".", {"v": [1, 1, None]}):
        found = profile(what)
        assert (found.rows, found["v"].nulls, found["v"].top) == (3, 1, ((1, 2),))
    with pytest.raises(InputError, match="'retail' is no path"):
        profile("retail")
    with pytest.raises(InputError, match="'SELECT 1 FROM x' is no path"):
        profile("SELECT 1 FROM x")
    for what in ("retail.parquet", "*.parquet", "."):
        with pytest.raises(SystemExit) as ended:
            main(["profile", what])
        printed = capsys.readouterr()
        assert (ended.value.code, printed.err) == (0, "")
        assert printed.out.rstrip("\n") == str(profile(what))
        assert printed.out.splitlines()[0] == f"{what}: 3 rows"
    for arguments, words in (
        (["retail"], "There is no feature_store.yaml"),
        (["retail.parquet", "--repo", str(tmp_path)], "There is no feature_store.yaml"),
        (["retail.parquet", "--source"], "Only a view or a service has a source, not 'retail.parquet'"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["profile", *arguments])
        assert ended.value.code == 1
        assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["retail.parquet"]
    (tmp_path / "some.txt").write_text("nothing that Parquet begins with")
    for what, words in (("./some.txt", r"some\.txt cannot be read: "), ("no/*.parquet", r"^no/\*\.parquet matches no")):
        with pytest.raises(SourceFileError, match=words) as caught:
            profile(what)
        assert "source" not in f"{caught.value} {caught.value.hint}".lower()
    assert profile({"v": [1]}).title() == "the frame: 1 row"


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("driver_stat", NotFoundError, "'driver_stat'"),
        ("gone.parquet", SourceFileError, "gone.parquet"),
        ("features.py", SourceFileError, "features.py"),
        ("", NotFoundError, "''"),
        ("a" * 300, NotFoundError, "aaa"),
        ("data/" + "a" * 300 + ".parquet", SourceFileError, "aaa"),
        ("data/trips.csv", SourceFileError, "data/trips.csv is not a Parquet file"),
        ("driver", InputError, "'driver' is of kind entity"),
        ("trip_length", InputError, "'trip_length' computes its features"),
        ("SELECT gone FROM driver_stats_source", EntityFrameError, "The SQL of the profile fails: .*gone"),
        ("SELECT * FROM elsewhere", EntityFrameError, "'elsewhere'"),
        ("SELECT * FROM 'data/x.parquet'", EntityFrameError, "'data/x.parquet'.*Pass the path itself"),
        (
            "SELECT trip FROM driver_stats_source",
            EntityFrameError,
            "The SQL of the profile fails.*Did you mean 'trips'",
        ),
        (
            "SELECT trips_sum_1d FROM driver_recent",
            EntityFrameError,
            "'trips_sum_1d', a window of view 'driver_recent'.*'driver_recent:trips_sum_1d'.*reads trips of",
        ),
        ("SELECT d.Trips_Sum_1d FROM driver_recent d", EntityFrameError, "'trips_sum_1d', a window of"),
        ("SELECT * FROM read_parquet('x.parquet')", EntityFrameError, "The profile"),
    ],
)
def test_what_cannot_be_profiled_is_told(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, what: str, error: type[Exception], words: str
) -> None:
    monkeypatch.chdir(store.root)
    with pytest.raises(error, match=f"(?s){words}"):
        store.profile(what)


def test_frames_are_profiled(store: FeatureStore) -> None:
    frame = pd.DataFrame({"v": [1.0, None, 3.0], 7: ["x", "x", None]})
    for given in (frame, pa.table({"v": frame["v"], "7": frame[7]}), {"v": [1.0, None, 3.0], "7": ["x", "x", None]}):
        found = one(store.profile(given))
        assert (found.name, found.rows, found["v"].nulls, found["v"].mean) == ("the frame", 3, 1, 2.0)
        assert found["7"].top == (("x", 2),)
    coded = pd.Categorical(["x", "y", "x", None])
    texts = {
        "category": coded,
        "enum": pa.array(coded),
        "large": pa.array(["x", "y", "x", None], pa.large_string()),
        "seen": pa.array(["x", "y", "x", None], pa.string_view()),
    }
    numbers = pd.DataFrame(
        {"number": pd.Categorical([1, 2, 1, None]), "bytes": pd.Categorical([b"x", b"y", b"x", None])}
    )
    found = one(store.profile(pa.table({**texts, "binary": pa.array([b"x", b"y", b"x", None], pa.large_binary())})))
    assert {name: found[name].top for name in texts} == dict.fromkeys(texts, (("x", 2), ("y", 1)))
    assert found["binary"].top == one(store.profile(numbers))["bytes"].top == (("eA==", 2), ("eQ==", 1))
    assert (one(store.profile(numbers))["number"].mean, found["enum"].nulls) == (pytest.approx(4 / 3), 1)
    one_of = one(store.profile("SELECT 'x'::ENUM('x', 'y') AS v FROM driver_stats_source LIMIT 3"))
    assert one_of["v"].top == (("x", 3),)
    for wrong in (None, 5, pd.DataFrame({"v": [1, "x"]}, dtype=object)):
        with pytest.raises(InputError):
            store.profile(wrong)


def test_a_large_frame_may_have_any_names_and_values() -> None:
    columns = {"a": range(60_000), "A": range(1, 60_001), "": range(2, 60_002), "'><script>": [*range(59_999), 10**12]}
    found = profile(pa.table(columns))
    ends = [(each.name, each.minimum, each.maximum) for each in found.columns]
    assert ends == [("a", 0, 59_999), ("A", 1, 60_000), ("", 2, 60_001), ("'><script>", 0, 10**12)]
    assert (
        found.title()
        == f"the frame: 60,000 rows; quantiles and frequent values from {found.sampled:,} of them, distinct estimated"
    )
    assert found.sampled == pytest.approx(51_500, rel=0.02)
    bars = found.drawings["'><script>"].bars  # the outlier does not press all others into one
    assert max(bars) == pytest.approx(found.sampled / len(bars), rel=0.1)
    labels = {svg.get("aria-label") for svg in ElementTree.fromstring(f"<div>{found._repr_html_()}</div>").iter("svg")}
    assert labels == {f"histogram of {name}" for name in columns}


def test_a_query_hides_what_it_makes_of_personal_fields(store: FeatureStore, root: Path, tmp_path: Path) -> None:
    with FeatureStore(shutil.copytree(root, tmp_path / "tour")) as made:
        text = (made.root / "features.py").read_text()
        told = 'Field("rating", Float64, tags={"personal": "true"}, '
        (made.root / "features.py").write_text(text.replace('Field("rating", Float64, ', told))
    with FeatureStore(made.root) as made:
        made.apply()
        made.materialize_incremental()
        for sql, hidden in (
            ("SELECT * FROM driver_stats", {"rating"}),
            ("SELECT 2 * RATING AS doubled, trips FROM driver_stats AS d", {"doubled"}),
            (
                "WITH d AS (SELECT max(rating) AS m, trips FROM driver_stats GROUP BY trips) SELECT m, trips FROM d",
                {"m"},
            ),
            ("SELECT trips, rating AS TRIPS FROM driver_stats", {"TRIPS_1"}),
            ("SELECT trips AS rating, 1 AS rating_1, rating FROM driver_stats", {"rating_2"}),
            ("SELECT to_json(d)::VARCHAR AS row, trips FROM driver_stats AS d", {"row"}),
            ("SELECT rating, trips FROM driver_stats_source", set()),
        ):
            found = one(made.profile(sql))
            assert {column.name for column in found.columns if column.is_hidden} == hidden
            assert all(found[name].minimum is None and not found[name].top for name in hidden)
            assert not any(found.drawings[name].bars for name in hidden)
        with pytest.raises(InputError, match="driver_stats:rating, tagged personal"):
            made.profile("SELECT * FROM (PIVOT driver_stats ON rating USING count(*))")
        assert len(one(made.profile("SELECT * FROM (PIVOT driver_stats_source ON rating USING count(*))")).columns) > 9


def test_a_notebook_draws_it_without_scripts(store: FeatureStore) -> None:
    found = one(store.profile("driver_stats_source"))
    page = found._repr_html_()
    assert not re.search(r"<script|javascript:|\bon\w+=", page)
    tree = ElementTree.fromstring(f"<div>{page}</div>")
    drawings = {svg.get("aria-label"): svg for svg in tree.iter("svg")}
    bars = [float(bar.get("height", "")) for bar in drawings["histogram of trips"]]
    counts = found.drawings["trips"].bars
    assert bars == pytest.approx([30 * count / max(counts) for count in counts], abs=0.06)
    table = found.to_pandas()
    assert list(table.index) == [column.name for column in found.columns]
    assert table.loc["trips", "maximum"] == found["trips"].maximum
    assert found.to_dict()["columns"][0]["name"] == found.columns[0].name
    assert Profiles([found, found])._repr_html_() == page * 2


def test_lines_say_what_a_column_holds(tmp_path: Path, store: FeatureStore) -> None:
    columns = {
        "flat": pa.array([1.0] * 4, pa.float64()),
        "rise": pa.array([1, 2, 2, 3], pa.int64()),
        "word": pa.array(["a\x1b[31m", "b", "b", None]),
        "nothing": pa.array([None] * 4, pa.float64()),
        "flag": pa.array([True, True, True, False]),
        "hole": pa.array([None, float("nan"), float("inf"), 1.0]),
        "list": pa.array([[1], None, [], [2]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "some.parquet")
    lines = {cells[0]: cells for cells in one(store.profile(tmp_path / "some.parquet")).cells()}
    assert lines["flat"] == ("flat", "Float64", "", "1", "1", "1", "1", "1", "█")
    assert lines["rise"][-1] == "▄█▄"
    assert lines["word"][2:4] == ("25.0 %", "2")
    assert lines["word"][-1] == "b 50.0 %, a\x1b[31m 25.0 %"  # as the catalog says it: of all rows
    assert lines["hole"][2:4] == ("25.0 %, 50.0 % NaN/inf", "1")
    assert lines["nothing"][2:] == ("100.0 %", "0", "", "", "", "", "")
    assert lines["flag"][-1] == "true 75.0 %, false 25.0 %"
    assert lines["list"] == ("list", "Array(Int64)", "25.0 %", "", "", "", "", "", "")
    blank = {"text": [" ", "", " ", "a"]}
    assert next(profile(blank).cells())[4:] == ('""', "", "a", "", '" " 50.0 %, "" 25.0 %, a 25.0 %')
    plain = [cells[-1] for cells in one(store.profile(tmp_path / "some.parquet")).cells(blocks=False)]
    assert plain[:2] == ["@", "=@="]


@pytest.mark.parametrize("sentinel", [-999.0, 1e9])
def test_a_number_far_from_all_others_stands_beside_the_drawing(sentinel: float) -> None:
    others = [float(place) for place in range(2_000)]
    bars = profile({"v": others}).drawings["v"].bars
    assert max(bars) < 2 * min(bars)
    for count in (25, 2_000):
        found = profile({"v": [*others, *[sentinel * 10] * count]})
        assert found.drawings["v"].bars == bars
        assert found.drawings["v"].apart == ((sentinel * 10, count),)
        share = f"{100 * count / (2_000 + count):.1f} %"
        assert str(found).endswith(f", {sentinel * 10:.5g} {share}")
        assert f"</svg>{sentinel * 10:.5g} {share}</td>" in found._repr_html_()
    near = profile({"v": [*others, *[sentinel / abs(sentinel) * 1_500.0] * 500]})
    assert near.drawings["v"].apart == ()
    assert sum(near.drawings["v"].bars) > 2_400
    few = profile({"v": [*others, *[sentinel * 10] * 3]})  # an outlier is no spike
    assert (few.drawings["v"].apart, sum(few.drawings["v"].bars) > 1_900) == ((), True)
