"""Consoles that lack characters, are as narrow as can be, or stand nowhere: every command says what it has to say."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.processes import plain_environment

from featurestore import FeatureStore
from featurestore.cli.main import COMMANDS, main
from featurestore.errors import SettingsError

pytestmark = pytest.mark.counts_processes

Run = Callable[[str, list[str]], tuple[int, str, str]]

NAMES = "Fahrer – nämlich → №1 … ✓ 司机"
FEATURES = f'''
from featurestore import Entity, FeatureService, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Float64, String

# {NAMES}
driver = Entity("driver", {{"driver": String}}, description="{NAMES}", owner="{NAMES}", tags={{"ä": "{NAMES}"}})
rides = PushSource("rides", ParquetSource("rides_source", "rides.parquet", "at"), description="{NAMES}")
stats = FeatureView("stats", entities=[driver], source=rides, description="{NAMES}",
                    schema=[Field("note", String, description="{NAMES}"), Field("km", Float64)])
'''
ONLINE = ["online", "--features", "stats:note", "--entity", f"driver={NAMES}"]
TRAINING = ["training-set", "--entities", "frame.parquet", "--features", "stats:note"]
NEED_A_SERVER = ("approve", "login", "logout")
RUNS = [
    ["apply", "--yes", "--message", NAMES],
    ["plan"],
    ["materialize"],
    ["accept", NAMES, "--reason", NAMES],
    ["list"],
    ["list", "features"],
    ["lineage", "stats", "--columns"],
    ["lineage", NAMES],
    ["profile", "rides.parquet"],
    ["catalog", "--port", NAMES],
    ["show", "driver"],
    ["show", "stats"],
    ["show", NAMES],
    ["status"],
    ["log"],
    ["peek", "stats"],
    ["peek", NAMES],
    ONLINE,
    [*ONLINE, "--entity", f"{NAMES}=1"],
    [*TRAINING, "--out", f"{NAMES}.parquet", "--save", "kept"],
    [*TRAINING, "--out", f"{NAMES}/x.parquet"],
    ["training-sets"],
    ["push", "rides", "rides.parquet"],
    ["push", NAMES, "rides.parquet"],
    ["optimize"],
    ["verify"],
    ["repair", "--dry-run"],
    ["gc", "--dry-run"],
    ["doctor"],
    ["token", "create", "--role", "reader", "--name", NAMES],
    ["token", "list"],
    ["consumer", "list"],
    ["diff", "1"],
    ["rollback", "1"],
    ["promote", NAMES, "--from", NAMES],
    ["audit"],
    ["registry", "upgrade"],
    *([name] for name in NEED_A_SERVER),
    ["policy", "show"],
    ["serve", "--host", NAMES],
    ["served", "list"],
    ["monitor", NAMES],
    ["quarantine", "list"],
    ["performance", NAMES, "--label", "a:b", "--horizon", "6h", "--prediction", "x"],
    ["parity", NAMES],
    ["teardown"],
    ["init", f"{NAMES}/new"],
    ["help", "list"],
    [NAMES],
]


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("FS_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "repo"
    root.mkdir()
    (root / "feature_store.yaml").write_text("project: shop\n")
    (root / "features.py").write_text(FEATURES, encoding="utf-8")
    at = pa.array([1_700_000_000_000_000], pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({"driver": [NAMES], "at": at, "note": [NAMES], "km": [1.5]}), root / "rides.parquet")
    pq.write_table(pa.table({"driver": [NAMES], "event_timestamp": at, "ä": [NAMES]}), root / "frame.parquet")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(encoding: str, arguments: list[str]) -> tuple[int, str, str]:
        """Return the exit code and both outputs of a command on a console that is strict about its encoding."""
        with monkeypatch.context() as patch:
            streams = [io.BytesIO(), io.BytesIO()]
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                patch.setattr(sys, name, io.TextIOWrapper(stream, encoding=encoding, write_through=True))
            with pytest.raises(SystemExit) as ended:
                main(arguments)
            assert isinstance(ended.value.code, int)
            written = "utf-8" if encoding == "ascii" else encoding  # what click writes to a console of ASCII
            return ended.value.code, streams[0].getvalue().decode(written), streams[1].getvalue().decode(written)

    return run


def test_every_command_is_among_those_that_run_here() -> None:
    assert {arguments[0] for arguments in RUNS} - {NAMES} == set(COMMANDS)


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_what_a_console_cannot_show_stops_nothing(repo: Path, run: Run, encoding: str) -> None:
    for arguments in RUNS:
        code, out, err = run(encoding, arguments)
        assert "defect" not in err, (arguments, err)
        assert code == expected_code(arguments), (arguments, out, err)
        if arguments == ["show", "driver"]:
            for plain in ("->", "\\u2116", "n\\xe4mlich" if encoding == "ascii" else "nämlich"):
                assert plain in out


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_json_is_the_same_on_every_console(repo: Path, run: Run, encoding: str) -> None:
    for arguments in (["apply", "--yes"], ["materialize"]):
        run("utf-8", arguments)
    for arguments in (["list"], ["show", "driver"], ["peek", "stats"], ONLINE, ["show", NAMES]):
        code, out, err = run(encoding, [*arguments, "--json"])
        assert json.loads(out or err) == json.loads((found := run("utf-8", [*arguments, "--json"]))[1] or found[2])
        assert code == found[0]
    assert NAMES in run("utf-8", ["list", "--json"])[1]  # as it is, where it can be


def expected_code(arguments: list[str]) -> int:
    if arguments == [NAMES] or f"{NAMES}=1" in arguments or arguments[0] == "catalog":
        return 2
    is_unknown = (
        arguments[0] in ("accept", "show", "lineage", "monitor", "parity", "peek", "performance", "push", "promote")
        and arguments[1] == NAMES
    )
    needs_more = arguments[0] in ("serve", "teardown", "policy", *NEED_A_SERVER)
    return 1 if is_unknown or needs_more or f"{NAMES}/x.parquet" in arguments else 0


ODD = [
    {"TERM": "dumb"},
    {"TERM": ""},
    {"COLUMNS": "1"},
    {"COLUMNS": "0"},
    {"COLUMNS": "wide"},
    {"HOME": "/nonexistent"},
    {"HOME": "/dev/null"},
    {"HOME": None},
    {"TMPDIR": "/nonexistent"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "nowhere"},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_odd_environments(repo: Path, run: Run, monkeypatch: pytest.MonkeyPatch, odd: dict[str, str | None]) -> None:
    for name, value in odd.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    for arguments in (["apply", "--yes"], ["materialize"], ["status"], ["peek", "stats"]):
        code, out, err = run("utf-8", arguments)
        assert (code, "defect" in err) == (0, False), (arguments, out, err)


GONE = "mkdir gone && cd gone && rmdir ../gone && "
IN_A_SHELL = [
    # Encodings that only a process gets, a reader that leaves, a disk that is full, a folder that is gone.
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {fs} plan", 0, "+ push source rides", ""),
    ("PYTHONIOENCODING=cp1252:strict {fs} list nämlich→", 1, "", "There is no kind"),
    ("PYTHONUNBUFFERED=1 {fs} list > /dev/full", 1, "", "standard output cannot be written"),
    ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {fs} init ünï", 1, "", "which Python does not read in this locale"),
    (GONE + "{fs} list --repo ..", 1, "", "The working directory was deleted."),
    (GONE + "{fs} serve", 1, "", "What to do: Change to a folder that exists."),
    (GONE + "{fs} init new --name shop", 1, "", "The working directory was deleted."),
    (GONE + "{fs} --help", 0, "Commands:", ""),
    ("{fs} list --repo features.py", 1, "", "There is no folder"),
]


@pytest.mark.parametrize(("line", "code", "out", "err"), IN_A_SHELL, ids=[line for line, *_ in IN_A_SHELL])
def test_odd_places(repo: Path, line: str, code: int, out: str, err: str) -> None:
    fs = f"{sys.executable} -c 'from featurestore.cli.main import main; main()'"
    command = ["bash", "-c", line.format(fs=fs)]
    done = subprocess.run(command, env=plain_environment(), capture_output=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    assert out.encode() in done.stdout
    assert err.encode() in done.stderr
    assert b"defect" not in done.stderr


def test_a_folder_that_is_gone_is_an_error_of_ours_in_python_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.rmtree(folder)
    for repo in (".", "..", tmp_path, {"project": "shop"}):
        with pytest.raises(SettingsError, match="The working directory was deleted"):
            FeatureStore(repo)
    monkeypatch.chdir(tmp_path)
