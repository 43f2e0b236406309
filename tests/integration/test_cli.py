"""The command line: whole pages as people see them, JSON, exit codes, and never a traceback for a user's mistake.

The pages are in `tests/golden`; ``UPDATE_GOLDEN=1`` writes them anew, for reading before they are committed.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import warnings
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.disks import small_files

from featurestore import FeatureStore
from featurestore.cli.main import COMMANDS, main
from featurestore.errors import InputError, TableVersionError
from featurestore.maintenance.doctor import script_flaws
from featurestore.maintenance.gc import collect_garbage
from featurestore.types.times import system_clock

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
START = datetime(2013, 6, 1, tzinfo=UTC)

FEATURES = '''
from datetime import timedelta
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource, RequestSource
from featurestore import on_demand_feature_view
from featurestore.types import Float64, Int64, String

carrier = Entity("carrier", join_keys={"carrier": String}, description="Airline")
flights = ParquetSource("flights", "data/flights.parquet", "arrived_at", "recorded_at")
carrier_delays = FeatureView(
    "carrier_delays", entities=[carrier], source=flights, owner="ops", tags={"tier": "1"},
    schema=[Field("delay", Float64, description="minutes", tags={"unit": "min"}), Field("seats", Int64)],
)
trip = RequestSource("trip", schema=[Field("miles", Float64)])

@on_demand_feature_view(sources=[carrier_delays[["seats"]], trip], schema=[Field("miles_per_seat", Float64)])
def per_seat(inputs):
    """Miles for each seat."""
    return {"miles_per_seat": [m / s if m and s else None for m, s in zip(inputs["miles"], inputs["seats"])]}

delay_model = FeatureService("delay_model_v1", features=[carrier_delays, per_seat])
'''


def write_flights(repo: Path, rows: int = 6) -> None:
    at = [None if row == 4 else START + timedelta(hours=row) for row in range(rows)]
    table = pa.table(
        {
            "carrier": ["UA", "AA", "UA", None, "B6", "AA", "UA", "DL"][:rows],
            "arrived_at": pa.array(at, pa.timestamp("us", tz="UTC")),
            "recorded_at": pa.array(at, pa.timestamp("us", tz="UTC")),
            "delay": [1.5, -2.0, float(rows), 3.0, 0.0, None, 7.0, 8.0][:rows],
            "seats": pa.array([100, 150, 120, 1, 2, 160, 99, 98][:rows], pa.int64()),
        }
    )
    pq.write_table(table, repo / "data" / "flights.parquet")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small feature repo, which is also the working directory."""
    forget_settings(monkeypatch)
    root = make_repo(tmp_path / "repo")
    monkeypatch.chdir(root)
    return root


def forget_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)


def make_repo(root: Path) -> Path:
    (root / "data").mkdir(parents=True)
    (root / "feature_store.yaml").write_text("project: flights\n")
    (root / "features.py").write_text(FEATURES)
    write_flights(root)
    frame = {"carrier": ["AA", "UA", "XX"], "event_timestamp": [START + timedelta(days=1)] * 3, "miles": [300.0] * 3}
    pq.write_table(pa.table(frame), root / "data" / "frame.parquet")
    return root


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the repo as it is once it is applied, and once it is materialized: tests take copies."""
    folder = tmp_path_factory.mktemp("templates")
    with pytest.MonkeyPatch.context() as patch:
        forget_settings(patch)
        quietly(make_repo(folder / "applied"), "apply", "--yes")
        shutil.copytree(folder / "applied", folder / "materialized")
        quietly(folder / "materialized", "materialize")
    return folder


def quietly(root: Path, *arguments: str) -> None:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as caught:
        main([*arguments, "--repo", str(root)])
    assert caught.value.code == 0


class Shell:
    """Runs ``fs`` in this process and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *arguments: str, expect: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        self.out, self.err = self._capsys.readouterr()
        assert caught.value.code == expect, self.out + self.err
        assert "Traceback (most recent call last)" not in self.out + self.err
        return self.out

    def json(self, *arguments: str, expect: int = 0):
        return json.loads(self(*arguments, "--json", expect=expect))


@pytest.fixture
def fs(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def applied(repo: Path, templates: Path) -> Path:
    return shutil.copytree(templates / "applied", repo, dirs_exist_ok=True)


@pytest.fixture
def materialized(repo: Path, templates: Path) -> Path:
    return shutil.copytree(templates / "materialized", repo, dirs_exist_ok=True)


def tidy(page: str, repo: Path) -> str:
    """Take out what differs from run to run: the machine, the clock, how long it took."""
    page = page.replace(str(repo), "REPO")
    page = (
        re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?(?=  )", "NOW", page) if "when" in page else page
    )
    page = re.sub(r"\b\d+\.\d s\b", "N.N s", page)
    page = re.sub(r"\b[0-9a-f]{32}\b", "HASH", page)
    return "\n".join(re.sub(r" +$", "", line) for line in page.splitlines()) + "\n"


def check_page(name: str, page: str, repo: Path) -> None:
    path = GOLDEN / f"{name}.txt"
    page = tidy(page, repo)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(page)
    assert page == path.read_text()


def test_help_lists_every_command(fs, repo):
    check_page("help", fs("--help"), repo)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_begins_as_the_list_says_what_it_does(fs, command):
    text = fs(command, "--help")
    assert "Usage: fs" in text
    assert len(text.splitlines()) > 5


@pytest.mark.parametrize("names", [[], *([name] for name in COMMANDS), ["token", "create"]], ids=" ".join)
def test_help_is_a_command_too(fs, names):
    assert fs("help", *names) == fs(*names, "--help")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["aply"], ["'aply'", "'apply'"]),
        (["token", "creat"], ["'creat'", "'create'"]),
        (["list", "feature-views"], ["fs list has no commands of its own", "'feature-views'"]),
    ],
)
def test_help_of_what_is_no_command_names_it(fs, names, words):
    fs("help", *names, expect=2)
    for word in words:
        assert word in fs.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--repo", "{}", "--json", "list"], 0, '"name": "carrier"'),
        (["--json", "list", "--repo", "{}"], 0, '"name": "carrier"'),
        (["--repo", "nowhere", "list", "--json", "--repo", "{}"], 0, '"name": "carrier"'),
        (["--repo", "{}", "--debug", "--json", "token", "list"], 0, "[]"),
        (["token", "--json", "--repo={}", "list"], 0, "[]"),
        (["--repo", "nowhere", "serve"], 1, "There is no folder"),
        (["--json", "serve"], 2, "fs serve has no option --json."),
        (["--repo", "{}", "init", "new"], 2, "fs init has no option --repo."),
        (["--repo", "{}", "aply"], 2, "Did you mean 'apply'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_shared_options_stand_before_the_command_or_after_it(fs, applied, monkeypatch, arguments, code, words):
    monkeypatch.chdir(applied.parent)
    page = fs(*(argument.format(applied) for argument in arguments), expect=code)
    assert words in page + fs.err


def test_the_version_is_told(fs):
    import featurestore

    assert fs("--version") == f"featurestore {featurestore.__version__}\n"


def test_plan_apply_list_show(fs, repo):
    check_page("plan_new", fs("plan"), repo)
    with FeatureStore(repo) as store:
        assert f"{store.plan()}\n" == fs("plan")
    check_page("apply_new", fs("apply", "--yes"), repo)
    check_page("plan_nothing", fs("plan"), repo)
    check_page("list", fs("list"), repo)
    check_page("list_views", fs("list", "feature-views"), repo)
    check_page("show_view", fs("show", "carrier_delays"), repo)
    check_page("show_on_demand", fs("show", "on_demand_feature_view:per_seat"), repo)


def test_lineage_of_one_column_and_in_one_direction(fs, applied):
    page = fs("lineage", "flights.seats", "--downstream")
    assert "comes from" not in page
    assert "`- carrier_delays:seats" in page or "─ carrier_delays:seats  feature, copied" in page
    document = fs.json("lineage", "carrier_delays:seats", "--upstream", "--depth", "1")
    assert document["of"] == ["feature_view:carrier_delays.seats"]
    assert document["edges"] == [
        {"from": source, "to": "feature_view:carrier_delays.seats", "kind": kind, "is_sure": True}
        for source, kind in (("source:flights.seats", "copied"), ("feature_view:carrier_delays", "part"))
    ]
    with FeatureStore(applied) as store:
        assert store.lineage("carrier_delays:seats", up=1, down=0).to_dict() == document
        with pytest.raises(InputError, match="cannot be negative"):
            store.lineage("carrier_delays", up=-1)
    fs("lineage", "carrier_delais", expect=1)
    assert "Did you mean 'carrier_delays'?" in fs.err


def test_durations_are_shown_as_people_read_them(fs, repo):
    (repo / "features.py").write_text(FEATURES.replace('owner="ops"', "ttl=timedelta(days=2, hours=3)"))
    fs("apply", "--yes")
    assert "  ttl: 2 days 03:00:00\n" in fs("show", "carrier_delays")
    assert "  allowed lateness: 1 day\n" in fs("show", "flights")
    (document,) = fs.json("show", "carrier_delays")
    assert document["definition"]["ttl_us"] == 51 * 3_600_000_000


def test_a_plan_that_breaks_and_destroys(fs, materialized):
    text = FEATURES.replace('Field("seats", Int64)', 'Field("seats", Float64)').replace("Airline", "An airline")
    (materialized / "features.py").write_text(text)
    write = (materialized / "data" / "flights.parquet").read_bytes()
    table = pq.read_table(materialized / "data" / "flights.parquet")
    pq.write_table(
        table.set_column(4, "seats", table["seats"].cast(pa.float64())), materialized / "data/flights.parquet"
    )
    check_page("plan_breaking", fs("plan"), materialized)
    fs("plan", "--check", expect=3)
    check_page("apply_breaking_refused", fs("apply", "--yes", expect=1) + fs.err, materialized)
    (materialized / "data" / "flights.parquet").write_bytes(write)
    only = "from featurestore import Entity\nfrom featurestore.types import String\n"
    only += 'carrier = Entity("carrier", {"carrier": String})'
    (materialized / "features.py").write_text(only)
    check_page("plan_destroying", fs("plan"), materialized)
    fs("apply", "--yes", "--allow-breaking", expect=1)
    assert "--allow-destroy" in fs.err
    done = fs("apply", "--yes", "--allow-breaking", "--allow-destroy")
    assert done.splitlines()[-1] == "Deleted with carrier_delays: 4 offline rows and 2 online rows."
    assert [found["kind"] for found in fs.json("list")] == ["entity"]


def test_materialize_status_log_peek(fs, applied):
    check_page("status_new", fs("status"), applied)
    check_page("peek_nothing", fs("peek", "carrier_delays"), applied)
    check_page("materialize_dry_run", fs("materialize", "--dry-run"), applied)
    check_page("materialize", fs("materialize"), applied)
    check_page("materialize_again", fs("materialize", "2013-06-01", "2013-06-02T00:00:00Z"), applied)
    check_page("peek", fs("peek", "carrier_delays", "-n", "2"), applied)
    check_page("profile", fs("profile", "carrier_delays"), applied)
    assert fs.json("profile", "delay_model_v1")[0] == fs.json("profile", "carrier_delays")
    page = fs("log")
    assert "apply revision 1" in page
    assert "4 rows appended, 2 published" in page
    assert len(fs.json("log", "--limit", "2")) == 2
    status = fs.json("status")[0]
    assert (status["view"], status["offline_rows"], status["online_rows"]) == ("carrier_delays", 4, 2)
    assert "2013-06-01 05:00:00" in fs("status")


def test_the_log_tells_what_is_new_from_what_changed_and_who_did_it(fs, repo):
    fs("apply", "--yes")
    (repo / "features.py").write_text(FEATURES.replace("Airline", "An airline"))
    fs("apply", "--yes", "--message", "words")
    (repo / "features.py").write_text(FEATURES.replace("Airline", "An airline").partition("delay_model")[0])
    fs("apply", "--yes", "--allow-breaking", "--allow-destroy")
    (repo / "features.py").write_text(FEATURES)
    fs("apply", "--yes")
    fs("materialize")
    *_, third, second, first = applies = [event for event in fs.json("log") if "apply" in event["what"]]
    assert first["about"].startswith("+entity:carrier, ")
    assert "~" not in first["about"]
    assert second["about"] == "words: ~entity:carrier"
    assert third["about"] == "-feature_service:delay_model_v1"
    assert set(applies[0]["about"].split(", ")) == {"~entity:carrier", "+feature_service:delay_model_v1"}
    assert [event["about"] for event in fs.json("log", "-n", "3") if "apply" in event["what"]] == [
        event["about"] for event in applies[:2]
    ]
    assert {event["by"].partition("@")[2] for event in fs.json("log")} == {socket.gethostname()}


def test_the_log_shows_a_killed_run_as_killed(fs, materialized):
    with FeatureStore(materialized) as store:
        ledger = store.workspace.ledger
        (entry, *_) = ledger.scan("flights", "run_start")
        started_us = entry.document["started_us"] + 60_000_000
        ledger.append("flights", "run_start", entry.key, {**entry.document, "run_id": "x", "started_us": started_us})
    event, before, *_ = fs.json("log")
    assert (event["state"], event["about"]) == ("killed", "killed")
    assert (before["state"], before["about"]) == ("done", "4 rows appended, 2 published")
    assert fs.json("log")[-1]["state"] == "done"
    page = fs("log", "-n", "1")
    assert "killed" in page
    assert "appended" not in page


def test_peek_marks_versions_that_a_later_one_supersedes(fs, materialized):
    assert "version" not in fs("peek", "carrier_delays")
    table = pq.read_table(materialized / "data" / "flights.parquet")
    delay = [9.0 if place == 2 else value for place, value in enumerate(table["delay"].to_pylist())]
    recorded = [None if at is None else at + timedelta(minutes=1) for at in table["recorded_at"].to_pylist()]
    table = table.set_column(3, "delay", pa.array(delay)).set_column(
        2, "recorded_at", pa.array(recorded, pa.timestamp("us", tz="UTC"))
    )
    pq.write_table(table, materialized / "data" / "flights.parquet")
    fs("materialize")
    rows = fs.json("peek", "carrier_delays")
    newest = {}
    for row in rows:
        newest.setdefault((row["carrier"], row["event_ts"]), row)
    assert [row["fs_superseded"] for row in rows] == [
        row is not newest[row["carrier"], row["event_ts"]] for row in rows
    ]
    superseded = [row for row in rows if row["fs_superseded"]]
    assert superseded
    status = fs.json("status")[0]
    assert (status["entities"], status["offline_rows"]) == (len({row["carrier"] for row in rows}), len(rows))
    page = fs("peek", "carrier_delays").splitlines()
    assert page[0].split()[-1] == "version"
    assert sum(line.rstrip().endswith("superseded") for line in page) == len(superseded)


def test_status_counts_entities_that_are_long_past_their_ttl_too(fs, repo):
    (repo / "features.py").write_text(FEATURES.replace('owner="ops"', "ttl=timedelta(days=1)"))
    fs("apply", "--yes")
    fs("materialize")
    (status,) = fs.json("status")
    assert (status["entities"], status["offline_rows"], status["online_rows"]) == (2, 4, 0)


def test_rows_that_runs_drop_are_listed_with_why(fs, applied):
    rows = fs.json("peek", "carrier_delays", "--dropped")
    assert [(row["fs_dropped"], row["carrier"]) for row in rows] == [("no event time", "B6"), ("null key", None)]
    assert fs("peek", "carrier_delays", "--dropped").split()[0] == "why"
    table = pq.read_table(applied / "data" / "flights.parquet")
    pq.write_table(table.slice(0, 2), applied / "data" / "flights.parquet")
    assert "Runs take every row of the source of carrier_delays." in fs("peek", "carrier_delays", "--dropped")


def test_warnings_are_notes_without_a_place_in_our_code(fs, applied):
    out = str(applied / "training.parquet")
    arguments = ["training-set", "--entities", "data/frame.parquet", "--service", "delay_model_v1", "--out", out]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        fs(*arguments)
        assert [line for line in fs.err.splitlines() if line.startswith("Note: 3 of 3 entity rows look past")]
        assert ".py" not in fs.err
        (applied / "features.py").write_text(FEATURES + "import warnings\nwarnings.warn('mine')\n")
        fs("plan")
        assert re.search(r"^Note: .*features\.py:\d+: mine$", fs.err, re.MULTILINE)


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("span", "read"),
    [
        (["-7d"], 4),  # until now
        (["-7d", "now"], 4),
        (["2013-06-01"], 4),
        (["-1.5d", "--view", "carrier_delays"], 3),
        (["--dry-run", "-31h", "-120m"], 2),
        (["-1d"], 2),
    ],
)
def test_a_span_may_be_told_by_how_long_ago_it_was(fs, applied, span, read):
    ages = [datetime.now(UTC) - timedelta(hours=hours) for hours in (40, 30, 12, 1)]
    column, file = pa.array(ages, pa.timestamp("us", tz="UTC")), applied / "data" / "flights.parquet"
    table = pq.read_table(file).slice(0, 4)
    pq.write_table(table.set_column(1, "arrived_at", column).set_column(2, "recorded_at", column), file)
    (run,) = fs.json("materialize", *span)
    assert run["read"] == read


def test_rebuild_withdraws_what_the_source_lost(fs, materialized):
    write_flights(materialized, rows=3)
    fs("materialize", "2013-06-01", "2013-06-02", "--rebuild", expect=2)
    assert "pass --yes" in fs.err
    page = fs("materialize", "2013-06-01", "2013-06-02", "--rebuild", "--yes")
    assert "withdrew 1 rows" in page
    assert fs.json("online", "--features", "carrier_delays:seats", "--entity", "carrier=AA")["features"]["seats"] == [
        150
    ]


def test_saved_training_sets_are_listed_and_deleted(fs, materialized):
    assert "No training set is saved" in fs("training-sets")
    build = ["training-set", "--entities", "data/frame.parquet", "--service", "delay_model_v1"]
    fs(*build, "--out", str(materialized / "training.parquet"), "--save", "spring")
    check_page("training_sets", fs("training-sets"), materialized)
    (listed,) = fs.json("training-sets")
    assert (listed["name"], listed["registry_revision"]) == ("spring", 1)
    fs("consumer", "add", "scorer", "--service", "delay_model_v1", "--owner", "ml")
    check_page("list_features", re.sub(r"\d+ d(?= )", "N d", fs("list", "features")), materialized)
    tags = {each["name"]: (each["tags"], each["own_tags"]) for each in fs.json("list", "features")}
    assert tags["carrier_delays:delay"] == ({"tier": "1", "unit": "min"}, {"unit": "min"})
    assert tags["carrier_delays:seats"] == ({"tier": "1"}, {})
    check_page("lineage", fs("lineage", "carrier_delays", "--columns"), materialized)
    fs("training-sets", "--delete", "spring", expect=2)
    assert "pass --yes" in fs.err
    fs("training-sets", "--delete", "sprong", "--yes", expect=1)
    assert "Did you mean 'spring'" in fs.err
    assert fs.json("training-sets", "--delete", "spring", "--yes") == {"name": "spring", "deleted": True}
    assert fs.json("training-sets") == []


def test_a_set_whose_view_was_deleted_is_told(fs, materialized):
    build = ["training-set", "--entities", "data/frame.parquet", "--service", "delay_model_v1"]
    fs(*build, "--out", str(materialized / "training.parquet"), "--save", "spring")
    assert [found["lost"] for found in fs.json("training-sets")] == [None]
    (materialized / "features.py").write_text(FEATURES.partition("carrier_delays =")[0])
    fs("apply", "--yes", "--allow-breaking", "--allow-destroy")
    assert [found["lost"] for found in fs.json("training-sets")] == ["version 0 of flights/carrier_delays/1"]
    assert "spring cannot be built again: version 0 of flights/carrier_delays/1 is gone." in fs("training-sets")
    with FeatureStore(".") as store, pytest.raises(TableVersionError, match="Training set 'spring' cannot be built ag"):
        store.get_training_set("spring")
    fs("training-sets", "--delete", "spring", "--yes")


def test_republish(fs, materialized):
    runs = fs.json("materialize", "--republish", "--authoritative", "--view", "carrier_delays")
    assert [(run["kind"], run["state"], run["published"]["written"]) for run in runs] == [("republish", "done", 2)]


def test_training_set(fs, materialized):
    out = materialized / "training.parquet"
    arguments = [
        "--entities",
        "data/frame.parquet",
        "--service",
        "delay_model_v1",
        "--out",
        str(out),
        "--save",
        "first",
    ]
    page = fs("training-set", *arguments)
    assert "3 rows written" in page
    assert "from the future:      0" in page
    table = pq.read_table(out)
    assert table.column_names == ["carrier", "event_timestamp", "miles", "delay", "seats", "miles_per_seat"]
    assert table["seats"].to_pylist() == [160, 120, None]
    assert table["miles_per_seat"].to_pylist() == [300 / 160, 2.5, None]
    document = fs.json("training-set", *arguments[:-2], "--as-of", "event")
    assert document["certificate"]["rows"] == 3
    fs("training-set", "--entities", "data/frame.parquet", "--out", "x.parquet", expect=2)
    fs("training-set", *arguments[:4], "--features", "carrier_delays:delay", "--out", "x.parquet", expect=2)
    assert not (materialized / "x.parquet").exists()


def test_online(fs, materialized):
    entities = ["--entity", "carrier=UA", "--entity", "carrier=XX", "--entity", "miles=60", "--entity", "miles=60"]
    check_page("online", fs("online", "--service", "delay_model_v1", *entities), materialized)
    document = fs.json("online", "--features", "carrier_delays:seats", "--entity", "carrier=UA", "--full-feature-names")
    assert document["features"]["carrier_delays__seats"] == [120]
    assert document["statuses"] == {"carrier_delays__seats": ["PRESENT"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--features", "carrier_delays:seats", "--service", "s", "--entity", "carrier=UA"], ["either"]),
        (["--features", "carrier_delays:seats", "--entity", "carrier"], ["KEY=VALUE"]),
        (["--service", "delay_model_v1", "--entity", "carrier=UA", "--entity", "miles=far"], ["miles", "Float64"]),
        (["--service", "delay_model_v1", "--entity", "carrier=UA", "--entity", "miles=6_0.5"], ["'6_0.5'", "Float64"]),
        (["--service", "delay_model_v1", "--entity", "carrier=UA", "--entity", "miles= 60"], ["' 60'", "Float64"]),
        (
            ["--service", "delay_model_v1", "--entity", "carrier=UA", "--entity", "carrier=B", "--entity", "miles=1"],
            ["equally many", "miles: 1"],
        ),
    ],
)
def test_online_usage_mistakes(fs, materialized, arguments, words):
    fs("online", *arguments, expect=2)
    for word in words:
        assert word in fs.err


def test_housekeeping(fs, materialized):
    write_flights(materialized, rows=8)
    fs("materialize")
    check_page("optimize", fs("optimize"), materialized)
    check_page("verify", fs("verify"), materialized)
    check_page("gc_dry_run", fs("gc", "--dry-run"), materialized)
    fs("gc")
    assert fs.json("gc", "--dry-run")["tables"] == []
    before = fs.json("peek", "carrier_delays")
    assert len(before) == 7  # the correction of one row is a row of its own
    assert fs.json("status")[0]["offline_rows"] == 7
    assert fs.json("doctor")[0]["name"] == "versions"


@pytest.mark.counted_once
@pytest.mark.parametrize("damage", ["a bit", "half", "gone"])
def test_verify_tells_of_damage_and_of_a_command_that_repairs_it(fs, materialized, damage):
    read = ["online", "--features", "carrier_delays:delay", "--entity", "carrier=UA", "--entity", "carrier=AA"]
    before, answers = fs.json("peek", "carrier_delays"), fs.json(*read)
    file = next((materialized / "data" / "offline").rglob("*.parquet"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "a bit" else content[: len(content) // 2])
    if damage == "gone":
        file.unlink()
    fs("peek", "carrier_delays", expect=1)
    assert "is damaged" in fs.err
    page = fs("verify", expect=1)
    assert file.name in page
    (printed,) = re.findall(r"`fs (materialize [^`]+)`", page)
    command = printed.split()
    fs(*command, expect=2)
    assert "pass --yes" in fs.err
    fs("verify", expect=1)
    assert "left out damaged files with 4 rows" in fs(*command, "--yes")
    fs("verify")
    assert (fs.json("peek", "carrier_delays"), fs.json(*read)) == (before, answers)
    (status,) = fs.json("status")
    assert (status["offline_rows"], status["online_rows"]) == (4, 2)
    fs(*command)  # nothing is left to be asked about


def test_doctor_tells_what_is_wrong(fs, materialized):
    (materialized / "data" / "flights.parquet").unlink()
    (materialized / "features.py").write_text(FEATURES.replace("m / s", "s / m"))
    page = fs("doctor", expect=1)
    assert "flights.parquet" in page
    assert "per_seat" in page
    fs("doctor", expect=1)
    (materialized / "features.py").write_text("import nothing_like_it")
    assert "nothing_like_it" in fs("doctor", expect=1)


@pytest.mark.parametrize("name", ["registry", "offline", "online"])
def test_doctor_warns_of_a_folder_that_may_not_be_written(fs, materialized, monkeypatch, name):
    (materialized / "feature_store.yaml").write_text("project: flights\nregistry: sqlite:///data/reg/registry.db\n")
    (materialized / "data/reg").mkdir()
    (materialized / "data/registry.db").rename(materialized / "data/reg/registry.db")
    folder = materialized / "data" / {"registry": "reg"}.get(name, name)
    ask = os.access
    # The superuser may write everywhere: what the system says is replaced, for one folder.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and ask(path, mode))
    (told,) = [check for check in fs.json("doctor") if check["state"] == "warning" and "folder" in check["name"]]
    assert told["name"] == f"{name} folder"
    assert f"{folder} is not writable" in told["message"]
    assert str(folder) in told["hint"]


def test_doctor_warns_where_a_folder_could_not_be_made(fs, repo, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != repo)
    (repo / "feature_store.yaml").write_text("project: flights\noffline_store: new/offline\n")
    told = [check["message"] for check in fs.json("doctor") if check["name"] == "offline folder"]
    assert told == [f"{repo} is not writable for this user: commands that change something fail here"]


def test_doctor_warns_of_files_that_others_can_read(fs, materialized):
    root = materialized
    private = root / ".featurestore"
    private.mkdir(exist_ok=True)
    (private / "snapshot.json").touch(mode=0o600)
    names = ["data/registry.db", "data/online/data.mdb", "data/online/lock.mdb", ".featurestore/snapshot.json"]
    assert "file modes" not in fs("doctor")
    for name in names:
        (root / name).chmod(0o644)
        said = fs("doctor")
        assert f"every user of this machine can read {root / name}" in " ".join(said.split())
        (command,) = re.findall("`(chmod o= [^`]*)`", said)
        subprocess.run(command, shell=True, check=True)
        assert (root / name).stat().st_mode & 0o777 == 0o640
        assert "file modes" not in fs("doctor")


SERVERS = {
    "redis 6.0.16": True,
    "redis 6.2.19": True,
    "redis 6.2.20": False,
    "redis 7.0.15": True,
    "redis 7.2.10": True,
    "redis 7.2.11": False,
    "redis 7.4.5": True,
    "redis 7.4.6": False,
    "redis 8.0.3": True,
    "redis 8.0.4": False,
    "redis 8.2.1": True,
    "redis 8.2.2": False,
    "redis 8.4.0": False,
    "redis 10.0.0": False,
    "valkey 7.2.10": True,
    "valkey 7.2.11": False,
    "valkey 8.0.5": True,
    "valkey 8.0.6": False,
    "valkey 8.1.3": True,
    "valkey 8.1.4": False,
    "valkey 9.0.0": False,
    "lmdb 0.9.31": False,
    "redis unknown": False,
    "": False,
    "redis 8.2.2, redis 7.2.4, valkey 8.1.4": True,
}


@pytest.mark.parametrize("server", SERVERS)
def test_doctor_warns_of_servers_whose_scripts_are_known_to_be_unsafe(server):
    found = list(script_flaws(server))
    assert bool(found) == SERVERS[server]
    for check in found:
        assert "CVE-2025-49844" in check.message
        assert all(sound not in check.message for sound, is_unsafe in SERVERS.items() if sound and not is_unsafe)
        assert "7.2.11" in check.hint


def test_doctor_has_nothing_to_say_of_folders_that_may_be_written(fs, materialized):
    assert "folder" not in " ".join(check["name"] for check in fs.json("doctor"))


def test_doctor_on_a_new_project(fs, repo):
    assert "was never applied" in fs("doctor")


def test_gc_removes_what_a_new_generation_left(fs, materialized):
    text = FEATURES.replace('Field("delay", Float64, description="minutes", tags={"unit": "min"}), ', "")
    (materialized / "features.py").write_text(text)
    fs("apply", "--yes", "--allow-breaking")
    held = fs.json("gc")
    assert (held["tables"], held["records"], held["files"]) == ([], 0, 0)
    assert [kept["what"] for kept in held["kept"]] == [
        "offline table flights/carrier_delays/1",
        "online records of carrier_delays (generation 1)",
    ]
    (why,) = {kept["why"] for kept in held["kept"]}
    assert re.fullmatch(r"servers may read this generation until \S+:\d\dZ; run `fs gc` again then", why)
    assert f"offline table flights/carrier_delays/1 kept: {why}" in fs("gc", "--dry-run")
    with FeatureStore(materialized, clock=ManualClock(system_clock() + 60_000_000)) as later:
        garbage = collect_garbage(later.workspace, dry_run=True)
        assert [str(table) for table in garbage.tables] == ["flights/carrier_delays/1"]
        removed = collect_garbage(later.workspace)
    assert (removed.kept, removed.records, removed.files > 0) == ((), 4, True)  # two records, their schema, the marker
    assert list((materialized / "data/offline/flights/carrier_delays/1").iterdir()) == []


def test_a_mistyped_folder_of_the_online_store_is_not_made_and_told_of(fs, materialized, monkeypatch):
    read = ["online", "--features", "carrier_delays:seats", "--entity", "carrier=UA"]
    fs(*read)
    assert fs.err == ""
    monkeypatch.setenv("FS_ONLINE_STORE", "lmdb:///data/onlnie")
    assert fs.json(*read)["statuses"] == {"seats": ["NOT_FOUND"]}
    assert "lmdb:///data/onlnie, and nothing was ever written there" in fs.err
    assert "FS_ONLINE_STORE" in fs.err
    found = {check["name"]: check["message"] for check in fs.json("doctor")}
    assert found["online store"].endswith("data/onlnie: nothing was ever written there")
    assert "online" in fs("status")
    assert not (materialized / "data" / "onlnie").exists()


def test_init_that_finds_no_room_names_that_and_leaves_nothing(fs, repo):
    for folder in ("new", "deep/new", "empty"):
        Path("empty").mkdir(exist_ok=True)
        before = sorted(Path().rglob("*"))
        with small_files(4_000):
            fs("init", folder, "--name", "shop", expect=1)
        assert "cannot be written: File too large. Nothing was left there." in fs.err
        assert "Free some space" in fs.err
        assert sorted(Path().rglob("*")) == before


def test_teardown_needs_its_flag_and_spares_neighbours(fs, materialized, tmp_path):
    neighbour = tmp_path / "neighbour"
    neighbour.mkdir()
    for name in ("features.py", "data"):
        (neighbour / name).symlink_to(materialized / name)
    (neighbour / "feature_store.yaml").write_text("project: flights_2\n")
    fs("apply", "--yes", "--repo", str(neighbour))
    fs("materialize", "--repo", str(neighbour))
    fs("teardown", expect=1)
    assert "--allow-destroy" in fs.err
    assert fs.json("status")[0]["offline_rows"] == 4
    fs("teardown", "--allow-destroy")
    assert fs.json("list") == []
    assert not list((materialized / "data/offline/flights").rglob("*.parquet"))
    online = ["online", "--features", "carrier_delays:seats", "--entity", "carrier=UA"]
    assert fs.json(*online, "--repo", str(neighbour))["features"]["seats"] == [120]
    fs("teardown", "--allow-destroy")


MISTAKES = {
    "unknown command": (["aply"], 2, ["'aply'", "Did you mean 'apply'"]),
    "unknown option": (["plan", "--chekc"], 2, ["--chekc"]),
    "no repo": (["plan", "--repo", "/nowhere"], 1, ["feature_store.yaml", "fs init"]),
    "unknown view": (["peek", "carrier_delay"], 1, ["'carrier_delay'", "'carrier_delays'"]),
    "unknown view to materialize": (["materialize", "--view", "carrier_delay"], 1, ["'carrier_delays'"]),
    "unknown view to optimize": (["optimize", "--view", "carrier_delay"], 1, ["'carrier_delays'"]),
    "unknown kind": (["list", "featur-views"], 1, ["featur-views"]),
    "unknown kind, features": (["list", "nope"], 1, ["'nope'", "feature_view", "features"]),
    "unknown name": (["show", "carier"], 1, ["'carrier'"]),
    "interval backwards": (["materialize", "2013-06-02", "2013-06-01"], 1, ["2013-06-02"]),
    "interval in the future": (["materialize", "2013-06-02", "2999-06-01"], 1, ["future"]),
    "no instant": (["materialize", "yesterday", "today"], 2, ["START", "'yesterday'", "2013-11-03", "-7d"]),
    "no unit of time": (["materialize", "2013-06-01", "-7w"], 2, ["END", "'-7w'", "ms, s, m, h or d"]),
    "before all time": (["materialize", "-9999999d"], 2, ["'-9999999d'", "year 1"]),
    "relative interval backwards": (["materialize", "-6d", "-7d"], 1, ["is empty"]),
    "option like an instant": (["materialize", "-d7"], 2, ["-d"]),
    "rebuild of everything": (["materialize", "--rebuild"], 2, ["--rebuild needs"]),
    "authoritative alone": (["materialize", "--authoritative"], 2, ["--republish"]),
    "republish of a span": (["materialize", "2013-06-01", "2013-06-02", "--republish"], 2, ["--republish"]),
    "unknown service": (
        ["online", "--service", "delay_model_v2", "--entity", "carrier=UA"],
        1,
        ["'delay_model_v2'", "'delay_model_v1'"],
    ),
    "unknown feature": (
        ["online", "--features", "carrier_delays:seat", "--entity", "carrier=UA"],
        1,
        ["'seat'", "'seats'"],
    ),
    "missing key": (
        ["online", "--features", "carrier_delays:seats", "--entity", "carier=UA"],
        2,
        ["'carier'", "'carrier'"],
    ),
    "missing frame": (
        ["training-set", "--entities", "nowhere.parquet", "--service", "delay_model_v1", "--out", "o.parquet"],
        1,
        ["nowhere.parquet"],
    ),
    "apply unasked": (["apply"], 2, ["--yes"]),
    "less than no lines": (["log", "-n", "-1"], 2, ["-1"]),
    "lines with an underscore": (["log", "-n", "1_0"], 2, ["'1_0'", "plain"]),
    "rows in other digits": (["peek", "carrier_delays", "-n", "٣"], 2, ["'٣'", "plain"]),
    "a port with spaces": (["serve", "--repo", "/nowhere", "--port", " 80"], 2, ["' 80'", "plain"]),
    "workers with an underscore": (["serve", "--repo", "/nowhere", "--workers", "1_0"], 2, ["'1_0'", "plain"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_have_an_exit_code_and_say_what_to_do(fs, materialized, case):
    arguments, code, words = MISTAKES[case]
    if case == "apply unasked":
        (materialized / "features.py").write_text(FEATURES.replace("Airline", "An airline"))
    fs(*arguments, expect=code)
    for word in words:
        assert word in fs.err
    assert "Internal error" not in fs.err


def test_a_setting_that_is_given_twice_is_refused(fs, repo):
    (repo / "feature_store.yaml").write_text("project: flights\nregistry: sqlite:///a.db\nregistry: sqlite:///b.db\n")
    fs("plan", expect=1)
    for word in ("feature_store.yaml", "registry is given in line 2 and again in line 3"):
        assert word in fs.err


def test_errors_are_json_where_json_was_asked_for(fs, materialized):
    fs("show", "carier", "--json", expect=1)
    assert json.loads(fs.err)["error"]["type"] == "NotFoundError"
    (materialized / "features.py").write_text("1 / 0")
    fs("plan", "--json", expect=1)
    assert json.loads(fs.err)["error"]["details"]["traceback"].startswith("Traceback (your files only")


def test_a_repo_that_fails_to_import_shows_the_users_frames(fs, repo, capsys):
    (repo / "features.py").write_text("def inner():\n    return 1 / 0\n\ninner()\n")
    with pytest.raises(SystemExit) as caught:
        main(["plan"])
    error = capsys.readouterr().err
    assert caught.value.code == 1
    assert 'File "features.py", line 2, in inner' in error
    assert "ZeroDivisionError" in error
    assert "featurestore/" not in error


def test_debug_shows_the_whole_traceback(repo, capsys):
    with pytest.raises(SystemExit):
        main(["show", "x", "--debug"])
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_defect_of_ours_says_so(fs, repo, monkeypatch):
    from featurestore.store import FeatureStore

    def broken(*_, **__):
        raise RuntimeError("wires crossed")

    monkeypatch.setattr(FeatureStore, "plan", broken)
    fs("plan", expect=1)
    assert "Internal error" in fs.err
    assert "RuntimeError: wires crossed" in fs.err
    assert "--debug" in fs.err


def test_interrupts_are_told_apart(repo, monkeypatch, capsys):
    from featurestore.store import FeatureStore

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(FeatureStore, "plan", interrupted)
    with pytest.raises(SystemExit) as caught:
        main(["plan"])
    assert caught.value.code in (1, 130)
    assert "Stopped" in capsys.readouterr().err


def test_another_apply_meanwhile_is_exit_code_4(fs, repo, monkeypatch):
    from featurestore import Entity
    from featurestore.store import FeatureStore
    from featurestore.types import Int64

    apply_plan = FeatureStore.apply_plan

    def overtaken(self, plan, **values):
        monkeypatch.setattr(FeatureStore, "apply_plan", apply_plan)
        with FeatureStore(repo) as other:
            other.apply([Entity("other", {"x": Int64})])
        return apply_plan(self, plan, **values)

    monkeypatch.setattr(FeatureStore, "apply_plan", overtaken)
    fs("apply", "--yes", expect=4)
    assert "same command again" in fs.err


class TestInit:
    def test_a_new_repo_works_as_it_is(self, fs, repo, tmp_path, monkeypatch):
        check_page("init", fs("init", "../My Shop").replace("../", ""), repo)
        monkeypatch.chdir(tmp_path / "My Shop")
        fs("apply", "--yes")
        fs("materialize")
        out = ["--entities", "data/trips.parquet", "--service", "trip_model_v1", "--out", "training.parquet"]
        assert "500 rows written" in fs("training-set", *out)
        answer = fs.json("online", "--service", "trip_model_v1", "--entity", "driver_id=1001", "--entity", "trip_km=9")
        assert answer["statuses"] == {name: ["PRESENT"] for name in ("trips", "rating", "km_per_trip")}

    def test_folders_in_use_are_left_alone(self, fs, repo):
        fs("init", ".", expect=1)
        assert "not empty" in fs.err

    @pytest.mark.parametrize("name", ["9lives", "fs_x", "Ä"])
    def test_names_that_cannot_be_are_refused(self, fs, repo, name):
        fs("init", "new", "--name", name, expect=1)
        assert "--name" in fs.err
        assert not (repo / "new").exists()
