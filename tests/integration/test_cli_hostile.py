"""What a stranger does wrong on a fresh `fs init` repo: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.cli.main import main
from featurestore.cli.output import show_error
from featurestore.engine.duck.session import translated
from featurestore.errors import OfflineStoreError

pytestmark = pytest.mark.uncounted

Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh repo, applied and materialized."""
    repo = tmp_path_factory.mktemp("hostile") / "shop"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FS_")]:
            patch.delenv(name)
        for command in (["init", str(repo)], ["apply", "--yes", f"--repo={repo}"], ["materialize", f"--repo={repo}"]):
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == 0
    return repo


@pytest.fixture
def repo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working directory."""
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)
    copied = tmp_path / "shop"
    shutil.copytree(made, copied)
    monkeypatch.chdir(copied)
    return copied


@pytest.fixture
def fs(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, expect: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert ended.value.code == expect, out + err
        assert "Traceback (most recent call last)" not in out + err
        assert "Internal error" not in out + err
        return out, err

    return run


TRAINING = ["training-set", "--entities", "data/trips.parquet", "--service", "trip_model_v1"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["log", "--limit", "9" * 30], 2, ["--limit"]),
        (["log", "--diff", "--commits", "driver_stats"], 2, ["give one of them"]),
        (["init", "/proc/nobody/may/write"], 1, ["/proc/nobody/may/write cannot be written", "another folder"]),
        (["init", "x" * 300, "--name", "shop"], 1, ["cannot be written", "name too long"]),
        (["online", "--features", "driver_stats:trips", "--entity", "driver_id=1_001"], 2, ["'1_001'", "Int64"]),
        (["online", "--features", "driver_stats:trips", "--entity", "driver_id= 1001"], 2, ["' 1001'", "Int64"]),
        (["online", "--features", "driver_stats:trips", "--entity", "driver_id=１００１"], 2, ["'１００１'", "Int64"]),
        (["online", "--features", "driver_stats:trips", "--entity", "driver_id=01001"], 2, ["'01001'", "Int64"]),
        (["online", "--features", "driver_stats:trips", "--entity", "driver_id=1001.0"], 2, ["'1001.0'", "Int64"]),
        (["online", "--features", "driver_stats", "--entity", "driver_id=1001"], 1, ["view:feature"]),
        (["online", "--features", "", "--entity", "driver_id=1001"], 1, ["view:feature"]),
        (["online", "--features", "driver_stat", "--entity", "driver_id=1001"], 1, ["no feature service"]),
        ([*TRAINING, "--out", "nowhere/training.parquet"], 1, ["there is no folder nowhere"]),
        ([*TRAINING, "--out", "/dev/null/x.parquet"], 1, ["/dev/null/x.parquet cannot be written"]),
    ],
)
def test_mistakes_are_told_in_a_line(repo: Path, fs: Run, arguments: list[str], code: int, words: list[str]) -> None:
    _, err = fs(*arguments, expect=code)
    for word in words:
        assert word in err
    assert ".partial" not in err


@pytest.mark.parametrize("mistake", [["--save", "No Name"], ["--save", "again", "--direct"]])
def test_a_set_that_cannot_be_saved_is_not_written_either(repo: Path, fs: Run, mistake: list[str]) -> None:
    fs(*TRAINING, "--out", "training.parquet", *mistake, expect=1)
    assert not (repo / "training.parquet").exists()


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_numbers_that_json_lacks_are_null_there_and_shown_to_people(repo: Path, fs: Run, number: str) -> None:
    arguments = ["online", "--service", "trip_model_v1", "--entity", "driver_id=1001", "--entity", f"trip_km={number}"]
    document = strict(fs(*arguments, "--json")[0])
    assert document["features"]["km_per_trip"] == [None]
    assert document["statuses"]["km_per_trip"] == ["NULL_VALUE"]  # as over HTTP
    assert document["statuses"]["trips"] == ["PRESENT"]
    shown = next(line for line in fs(*arguments)[0].splitlines() if line.startswith("km_per_trip"))
    assert shown.split()[1] == number


def test_bytes_are_base64_in_json_and_rows_of_a_view_are_json(repo: Path, fs: Run) -> None:
    (repo / "features.py").write_text(
        "from featurestore import Entity, FeatureView, Field, ParquetSource\n"
        "from featurestore.types import Bytes, Float64, String\n"
        'source = ParquetSource("photos", "data/photos.parquet", "at")\n'
        'photos = FeatureView("photo", entities=[Entity("shop", {"shop": String})], source=source,\n'
        '                     schema=[Field("raw", Bytes), Field("light", Float64)])\n'
    )
    at = pa.array([1_700_000_000_000_000], pa.timestamp("us", tz="UTC"))
    table = pa.table({"shop": ["a"], "at": at, "raw": [b"\x00\xff"], "light": [float("nan")]})
    pq.write_table(table, repo / "data" / "photos.parquet")
    fs("apply", "--yes", "--allow-breaking", "--allow-destroy")
    fs("materialize")
    (row,) = strict(fs("peek", "photo", "--json")[0])
    assert (row["raw"], row["light"]) == ("AP8=", None)
    assert "nan" in fs("peek", "photo")[0]
    answer = strict(fs("online", "--features", "photo:raw", "--entity", "shop=a", "--json")[0])
    assert answer["features"]["raw"] == ["AP8="]


BROKEN = {
    "def (": ["SyntaxError"],
    "x = 1\x00": ["null bytes"],
    "import sys; sys.exit(0)": ["SystemExit"],
    "class Odd(BaseException): pass\nraise Odd(3)": ["Odd: 3"],
    "def f(): f()\nf()": ["RecursionError"],
    'd = FeatureService("s", features=[driver])': ["must be FeatureSelection or OnDemandFeatureView", "features.0"],
    'd = FeatureService("s", features=["driver_stats:trips"])': ["features.0: must be"],
    'd = FeatureView("v", entities=["driver"], source=driver_stats_source)': ["entities.0: must be Entity"],
    'd = FeatureView("v", entities=driver, source=driver_stats_source)': ["entities: must be a list"],
    'd = FeatureView("v", entities=[driver], source=None)': ["sources.0: must be ParquetSource", "(got None)"],
    'd = FeatureView("v", entities=[driver], source=driver_stats_source, schema=["a"])': ["fields.0: must be Field"],
    'd = Entity("driver", join_keys={"x": Int64})': ["one Entity and another Entity"],
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_broken_features_file_shows_only_what_its_author_wrote(repo: Path, fs: Run, code: str) -> None:
    kept = (repo / "features.py").read_text()
    (repo / "features.py").write_text(f"{kept}\n{code}\n")
    _, err = fs("plan", expect=1)
    for word in BROKEN[code]:
        assert word in err
    for ours in ("pydantic", "function-after", "valid dictionary", "valid tuple"):
        assert ours not in err
    fs("list")  # what is applied can still be looked at


def test_an_interrupt_says_how_to_go_on(repo: Path, fs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("featurestore.store.FeatureStore.plan", interrupted)
    assert "Stopped; nothing more was changed." in fs("plan", expect=130)[1]
    monkeypatch.setattr("featurestore.materialization.jobs._attempt", interrupted)
    assert "same command again finishes" in fs("materialize", expect=130)[1]
    assert "failed: stopped before its end" in fs("log")[0]


def test_an_interrupt_in_the_engine_is_one() -> None:
    """DuckDB takes the signal, where it looks for one, and raises an error of another type."""
    with pytest.raises(KeyboardInterrupt), translated("count"):
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), translated("count"):
        raise RuntimeError("another")


COMMANDS = [
    ["plan"],
    ["apply", "--yes"],
    ["materialize"],
    ["materialize", "--dry-run"],
    [*TRAINING, "--out", "training.parquet"],
    ["online", "--features", "driver_stats:trips", "--entity", "driver_id=1001"],
    ["push", "nothing", "data/trips.parquet"],
    ["peek", "driver_stats"],
    ["serve", "--port", "0"],
    ["serve", "--port", "0", "--workers", "2"],
    ["token", "list"],
    ["list"],
    ["show", "driver_stats"],
    ["status"],
    ["log"],
    ["optimize"],
    ["verify"],
    ["gc"],
    ["teardown"],
    ["doctor"],
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_a_store_that_is_not_built_is_refused_by_every_command(
    repo: Path, fs: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    before = files_of(repo)
    for name, url, built in (
        ("online_store", "mysql://user:s3cret@x", "lmdb://, redis://, rediss://, redis+cluster://"),
        ("offline_store", "s4://user:s3cret@x", "a folder"),
        ("registry", "oracle://user:s3cret@x", "sqlite://"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(f"FS_{name.upper()}", url)
            out, err = fs(*arguments, expect=1)
        assert not out
        assert f"Error: {name}: the scheme '{url.partition(':')[0]}' is not built." in err
        assert f"What to do: Built are: {built}" in err
        assert "s3cret" not in err
    assert files_of(repo) == before


@pytest.mark.parametrize("arguments", [["materialize"], ["serve", "--port", "0"]], ids=" ".join)
@pytest.mark.parametrize("url", ["redis://:s3cret@h:port", "redis://[::1", "redis+cluster://h,g:x", "lmdb://"])
def test_an_online_store_whose_url_cannot_be_read_is_refused_early(
    repo: Path, fs: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], url: str
) -> None:
    before = files_of(repo)
    monkeypatch.setenv("FS_ONLINE_STORE", url)
    out, err = fs(*arguments, expect=1)
    assert not out
    assert "s3cret" not in err
    assert "What to do: Write it as " in err
    assert files_of(repo) == before


def test_an_online_store_that_may_not_be_written_is_told_with_what_to_do(
    repo: Path, fs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FS_ONLINE_STORE", "lmdb:///features.py/online")
    _, err = fs("online", "--features", "driver_stats:trips", "--entity", "driver_id=1001", expect=1)
    assert f"'{repo}/features.py/online' cannot be used: {repo}/features.py/online: Not a directory." in err
    assert "Errno" not in err
    assert f"What to do: Let this user read and write the folder '{repo}/features.py/online'" in err


def files_of(repo: Path) -> dict[Path, tuple[int, int]]:
    return {path: (found.st_mtime_ns, found.st_size) for path in repo.rglob("*") if (found := path.lstat())}


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("data/trips.parquet", ["data/trips.parquet is the entity frame"]),
        ("data/../data/trips.parquet", ["is the entity frame"]),
        ("data/driver_stats.parquet", ["is a file of source 'driver_stats_source'"]),
        ("features.py", ["features.py is not a Parquet file"]),
        ("/dev/null", ["/dev/null is not a Parquet file"]),
        ("data/offline/training.parquet", ["in the folder of offline_store"]),
        ("nowhere/training.parquet", ["there is no folder nowhere", "Make it"]),
    ],
)
def test_a_training_set_overwrites_nothing_but_a_training_set(repo: Path, fs: Run, out: str, words: list[str]) -> None:
    before = files_of(repo)
    _, err = fs(*TRAINING, "--out", out, "--save", "kept", expect=1)
    for word in [*words, "What to do: "]:
        assert word in err
    assert files_of(repo) == before
    assert Path("/dev/null").is_char_device()


def test_a_training_set_may_be_written_again(repo: Path, fs: Run) -> None:
    (repo / "training.parquet").touch()
    for _ in range(2):
        fs(*TRAINING, "--out", "training.parquet")
    assert pq.read_table(repo / "training.parquet").num_rows == 500


@pytest.mark.parametrize("option", ["--entities", "--out"])
def test_an_empty_path_is_a_usage_error(repo: Path, fs: Run, option: str) -> None:
    assert f"{option} is empty" in fs(*TRAINING, "--out", "training.parquet", option, "", expect=2)[1]


def test_features_may_be_given_in_several_options(repo: Path, fs: Run) -> None:
    asked = ["--features", "driver_stats:trips", "--features", "driver_stats:rating", "--json"]
    out, _ = fs("online", *asked, "--entity", "driver_id=1001")
    assert list(json.loads(out)["features"]) == ["driver_id", "trips", "rating"]
    fs("training-set", "--entities", "data/trips.parquet", *asked, "--out", "training.parquet")
    assert {"trips", "rating"} <= set(pq.read_table(repo / "training.parquet").column_names)


@pytest.mark.parametrize(
    ("folder", "line"), [("two words", "cd 'two words'"), ("-x", "cd ./-x"), ("plain", "cd plain")]
)
def test_the_next_step_of_init_can_be_pasted(
    tmp_path: Path, fs: Run, monkeypatch: pytest.MonkeyPatch, folder: str, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"\n  {line}\n" in fs("init", "--", folder)[0]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (
            "{temp_directory: /proc/nowhere}",
            ["engine.temp_directory: the folder /proc/nowhere cannot be made"],
        ),
        ("{temp_directory: features.py}", ["/features.py cannot be made", "Name a folder"]),
        ("{memory_limit: 1XB}", ["engine.memory_limit: '1XB' is not an amount of memory", "4GB"]),
    ],
)
def test_an_engine_that_cannot_start_names_its_setting(repo: Path, fs: Run, engine: str, words: list[str]) -> None:
    with (repo / "feature_store.yaml").open("a") as file:
        file.write(f"engine: {engine}\n")
    err = fs(*TRAINING, "--out", "training.parquet", expect=1)[1]
    told = fs("materialize", expect=1)[1]
    for word in words:
        assert word in err
        assert word in told


@pytest.mark.parametrize("command", [["doctor"], ["apply", "--yes"], ["status"]], ids=" ".join)
def test_a_redis_database_that_is_no_number_is_refused_before_anything_runs(
    repo: Path, fs: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setenv("FS_ONLINE_STORE", "redis://shop:s3cret@127.0.0.1:1/abc?password=s3cret")
    out, err = fs(*command, expect=1)
    assert "online_store: redis://…@127.0.0.1:1: the database is not a number" in err
    assert "s3cret" not in out + err


def test_serving_a_folder_that_is_no_repo_names_it(fs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ("serve", "status"):
        assert f"There is no feature_store.yaml in {tmp_path}.\n" in fs(command, expect=1)[1]


def test_a_kind_that_the_project_has_none_of_is_told(repo: Path, fs: Run) -> None:
    err = fs("push", "clicks", "data/trips.parquet", expect=1)[1]
    assert "There is no push source 'clicks'" in err
    assert "has none: declare one, and run `fs apply`" in err


def shell(command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    script = f'{shlex.quote(sys.executable)} -c "from featurestore.cli.main import main; main()" {command}'
    return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("command", ["list", "list --json", "--help", "materialize"])
def test_an_output_that_takes_nothing_is_told(repo: Path, command: str) -> None:
    done = shell(f"{command} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "Error: standard output cannot be written: No space left on device.",
        "What to do: Send it elsewhere. What the command did is done.",
    ]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("list", 0), ("materialize", 0), ("show nope", 1)])
def test_closed_streams_are_no_fault(repo: Path, closed: str, command: str, code: int) -> None:
    done = shell(f"{command} {closed}")
    assert done.returncode == code
    assert "Internal error" not in done.stderr


def test_a_reader_that_leaves_is_no_fault(repo: Path) -> None:
    assert shell("list | true").stderr == ""


def test_a_file_in_place_of_the_offline_folder_is_told(
    tmp_path: Path, fs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs("init", str(tmp_path / "fresh"))
    monkeypatch.chdir(tmp_path / "fresh")
    fs("apply", "--yes")
    monkeypatch.setenv("FS_OFFLINE_STORE", "features.py")
    told = fs("materialize", expect=1)[1]
    assert "features.py" in told
    assert "Something else is where a folder should be" in told


def test_a_cause_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    error = OfflineStoreError("Pushing failed offline: the disk is gone.")
    for cause, times in ((OfflineStoreError("the disk is gone."), 0), (OfflineStoreError("a cable is loose."), 1)):
        error.__cause__ = cause
        assert show_error(error, as_json=False, debug=False) == 1
        assert capsys.readouterr().err.count("because: ") == times
