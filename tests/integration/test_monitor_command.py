"""`fs monitor` where something fails beside it: an alarm is told, and does what follows it, all the same."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.command_line import CommandLine

from featurestore import FeatureStore

ENTITIES, END = 60, datetime(2024, 3, 20, tzinfo=UTC)
FEATURES = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64

driver = Entity("driver", join_keys={"driver_id": Int64})
rides = ParquetSource("rides", "rides.parquet", "at")
view = FeatureView("view", entities=[driver], source=rides, schema=[Field("value", Float64), Field("other", Float64)])
checks = [Drift(rows=100, entities=50)]
told = dict(view=view, baseline=timedelta(days=4), window=timedelta(days=2), checks=checks)
first, second = Monitor("first", **told), Monitor("second", **told)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two monitors in alarm: a value that shifted four days before the end."""
    root = tmp_path_factory.mktemp("watched") / "repo"
    root.mkdir()
    random = np.random.default_rng(3)
    at = [END - timedelta(hours=6 * n + 1) for n in range(40) for _ in range(ENTITIES)]
    value = random.normal(0, 1, len(at)) + [9 if END - each < timedelta(days=4) else 0 for each in at]
    keys = [*range(ENTITIES)] * 40
    frame = {"driver_id": keys, "at": at, "value": value, "other": random.normal(0, 1, len(at))}
    pd.DataFrame(frame).to_parquet(root / "rides.parquet")
    (root / "feature_store.yaml").write_text("project: taxi\n")
    (root / "features.py").write_text(FEATURES)
    with FeatureStore(root) as store:
        store.apply()
        store.materialize(END - timedelta(days=10), END)
    return root


@pytest.fixture
def repo(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "repo"))


@pytest.fixture
def fs(repo: Path, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(repo, capsys)


UNTIL = ("--until", END.isoformat())


def shell(repo: Path, *arguments: str, behind: str = "") -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment |= {"TMPDIR": str(repo.parent)}
    words = [sys.executable, "-c", "from featurestore.cli.main import main; main()", "monitor", *arguments]
    script = f"({shlex.join(words)}; echo $? > code) {behind}"
    return subprocess.Popen(["sh", "-c", script], cwd=repo, env=environment, text=True, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("behind", "told"),
    [("> /dev/full", "could not be printed: No space left"), ("| true", "could not be printed"), ("2>&1 | true", "")],
)
def test_an_alarm_acts_where_its_output_takes_nothing(repo: Path, behind: str, told: str) -> None:
    process = shell(repo, "first", *UNTIL, "--on-alarm", 'echo "$FS_ALARM_MONITOR" >> ran', behind=behind)
    _, said = process.communicate(timeout=60)
    assert (repo / "ran").read_text() == "first\n", said
    assert (repo / "code").read_text() == "3\n", said
    assert told in said
    assert "Traceback" not in said


def test_an_alarm_acts_and_is_printed_where_files_cannot_be_written(repo: Path, fs: CommandLine) -> None:
    os.mkfifo(repo / "pipe")
    command = f'echo "$FS_ALARM_MONITOR" >> {repo}/ran'
    files = ("--html", str(repo / "none/x.html"), "--metrics", str(repo / "pipe"))
    found = fs.json("monitor", *UNTIL, *files, "--on-alarm", command, expect=3)
    assert [each["state"] for each in found] == ["alarm", "alarm"]
    assert (repo / "ran").read_text() == "first\nsecond\n"
    assert "x.html is not written" in fs.err
    assert "is no file that can be replaced" in fs.err


def test_a_monitor_that_fails_loses_nothing_of_the_others(
    repo: Path, fs: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = FeatureStore.monitor

    def failing(self: FeatureStore, name: Any, until: Any = None) -> Any:
        if name == "first":
            raise TypeError("numbers of another kind")
        return whole(self, name, until)

    monkeypatch.setattr(FeatureStore, "monitor", failing)
    said = fs("monitor", *UNTIL, expect=3)
    assert "second: alarm" in said
    assert "first could not be run" in said
    assert "TypeError: numbers of another kind" in said
    assert "This is a defect" in said
    with pytest.raises(AssertionError):
        fs("monitor", "first", "second", "--until", "2024-03-10", expect=0)


def test_a_command_ends_with_the_process_that_waits_for_it_and_leaves_no_report(repo: Path) -> None:
    process = shell(repo, "first", *UNTIL, "--on-alarm", "echo $$ $PPID > ids; echo $FS_ALARM_REPORT; sleep 60; true")
    for _ in range(600):
        if (repo / "ids").exists() and (repo / "ids").read_text().endswith("\n"):
            break
        time.sleep(0.05)
    child, parent = map(int, (repo / "ids").read_text().split())
    os.kill(parent, signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (repo / "code").read_text() == "143\n", said
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert "featurestore-monitor-" in said
    assert not [*repo.parent.glob("featurestore-monitor-*")]


def test_a_look_back_changes_nothing(repo: Path, fs: CommandLine) -> None:
    """Not what is kept, not the alarms; and the monitor goes on from where it was."""
    command = f'echo "$FS_ALARM_IDS" >> {repo}/ran'
    acting = ("--cooldown", "0s", "--on-alarm", command)
    (first,) = fs.json("monitor", "first", *UNTIL, *acting, expect=3)
    assert first["kept"] is True
    for days, state, code in ((4, "ok", 0), (1, "alarm", 3)):
        back = (END - timedelta(days=days)).isoformat()
        (look,) = fs.json("monitor", "first", "--until", back, *acting, expect=code)
        assert (look["state"], look["kept"], look["alarms"]) == (state, False, [])
        assert "a look back" in fs("monitor", "first", "--until", back, *acting, expect=code)
    later = (END + timedelta(hours=1)).isoformat()
    for until in (END.isoformat(), later):
        (again,) = fs.json("monitor", "first", "--until", until, *acting, expect=3)
        assert again["kept"] is True
        assert [each["id"] for each in again["alarms"]] == [each["id"] for each in first["alarms"]]
    assert (repo / "ran").read_text() == " ".join(each["id"] for each in first["alarms"]) + "\n"


def test_an_until_in_the_future_makes_no_later_run_a_look_back(repo: Path, fs: CommandLine) -> None:
    (far,) = fs.json("monitor", "first", "--until", "2999-01-01T00:00:00Z")
    (now,) = fs.json("monitor", "first")
    assert (far["kept"], now["kept"]) == (True, True)


def test_a_finding_that_cannot_be_read_is_replaced_by_the_next_run(repo: Path, fs: CommandLine) -> None:
    fs("monitor", "first", *UNTIL, expect=3)
    with FeatureStore(repo) as store:
        ledger = store.workspace.ledger
        entry = ledger.latest("taxi", "monitor", "first")
        assert entry is not None
        ledger.append("taxi", "monitor", "first", {"features": "x"}, if_version=entry.version)
    said = fs("monitor", "first", *UNTIL, "--on-alarm", "true", expect=3)
    assert "It counts as nothing" in said
    said = fs("monitor", "first", *UNTIL, expect=3)
    assert "counts as nothing" not in said
    with FeatureStore(repo) as store:
        entries = store.workspace.ledger.scan("taxi", "monitor", key="first")
    assert {"features": "x"} in [json.loads(json.dumps(each.document)) for each in entries], "the ledger keeps it"
