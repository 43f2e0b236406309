"""What follows an alarm: a command in a real shell, a message to a real receiver; once for each alarm."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from featurestore_registry.findings import MonitorAlarm, MonitorDocument
from pydantic import SecretStr
from support.clock import ManualClock
from support.command_line import CommandLine

from featurestore import FeatureStore
from featurestore.cli.commands.monitor import command
from featurestore.errors import MaterializationError, SettingsError
from featurestore.ledger.monitors import newest_finding, write_finding
from featurestore.project.webhook import check_secret, check_url
from featurestore.quality.acting import Acted, act, told
from featurestore.quality.report import MonitorResult
from featurestore.quality.telling import CLAIM_US, send

REPOSITORY = Path(__file__).parents[2]
WORKFLOW = REPOSITORY / "deploy/ci/monitor.yml"
SECRET = "a secret of the receiver"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


class Receiver(HTTPServer):
    """Takes messages, or does not."""

    answer = 200
    pause_s = 0.0
    instead = b""
    """Sent again and again, where an answer should be."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        time.sleep(self.server.pause_s)
        try:
            for _ in range(200 if self.server.instead else 0):
                self.wfile.write(self.server.instead)
                time.sleep(0.05)
        except OSError:
            return
        self.send_response(self.server.answer)
        if self.server.answer == 302:
            self.send_header("Location", self.server.url + "2")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock("2024-03-01T00:00:00Z")


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock, receiver: Receiver) -> Iterator[FeatureStore]:
    root = tmp_path / "repo"
    root.mkdir()
    settings = f"monitor: {{webhook_url: '{receiver.url}', webhook_secret: {SECRET}}}"
    (root / "feature_store.yaml").write_text(f"project: taxi\n{settings}\n")
    (root / "features.py").write_text(
        "from featurestore import *\nfrom featurestore.types import Int64\n"
        "driver = Entity('driver', join_keys={'driver_id': Int64})\n"
    )
    with FeatureStore(root, clock=clock) as made:
        made.apply()
        yield made


def alarmed(store: FeatureStore, *ids: str, state: Any = "alarm", **marks: int) -> MonitorResult:
    """Keep what a monitor with open alarms found, and return it."""
    ledger, project = store.workspace.ledger, store.workspace.project
    before, version = newest_finding(ledger, project, "watch")
    known = {alarm.id: alarm for alarm in before.alarms} if before is not None else {}
    alarms = tuple(
        known.get(each) or MonitorAlarm(each, "trips", "psi", "PSI $(touch gone) <b>1</b>", 1, **marks) for each in ids
    )
    acted_us = 0 if before is None else before.acted_us
    document = MonitorDocument(
        "watch", "feature_service:model", state if ids else "ok", 1, 0, 1, "b", alarms=alarms, acted_us=acted_us
    )
    write_finding(ledger, project, document, if_version=version)
    return MonitorResult(document)


def test_a_command_runs_once_for_an_alarm_and_knows_it_by_its_environment(
    store: FeatureStore, clock: ManualClock, tmp_path: Path
) -> None:
    report = tmp_path / "told.json"
    said = 'echo "$FS_ALARM_MONITOR/$FS_ALARM_STATE/$FS_ALARM_IDS"'
    command = f'cp "$FS_ALARM_REPORT" {report}; {said} >> {tmp_path}/ran; exit 7'
    result = alarmed(store, "a1", "b2")
    assert act(store.workspace, result, command, cooldown=HOUR, timeout=MINUTE) == Acted("watch", ("a1", "b2"), 7)
    assert act(store.workspace, result, command, cooldown=HOUR, timeout=MINUTE) is None
    assert (tmp_path / "ran").read_text() == "watch/alarm/a1 b2\n"
    found = json.loads(report.read_text())
    assert [alarm["id"] for alarm in found["alarms"]] == ["a1", "b2"]
    assert found["alarms"][0]["told"] == "PSI $(touch gone) <b>1</b>"
    assert not Path("gone").exists()
    clock.advance(timedelta(minutes=59))
    third = alarmed(store, "a1", "b2", "c3")
    assert act(store.workspace, third, command, cooldown=HOUR, timeout=MINUTE) is None, "within the cooldown"
    clock.advance(timedelta(minutes=2))
    assert act(store.workspace, third, command, cooldown=HOUR, timeout=MINUTE) == Acted("watch", ("c3",), 7)
    alarmed(store)
    clock.advance(timedelta(minutes=30))
    fourth = alarmed(store, "d4")
    assert act(store.workspace, fourth, command, cooldown=HOUR, timeout=MINUTE) is None, "another alarm's cooldown"


def test_the_command_of_an_alarm_may_open_the_store(store: FeatureStore, tmp_path: Path) -> None:
    """What it is told is no setting that the store would refuse, or warn of."""
    command = f"{sys.executable} -m featurestore --repo {store.root} list services > {tmp_path}/said 2>&1"
    acted = act(store.workspace, alarmed(store, "a1"), command, cooldown=HOUR, timeout=MINUTE)
    said = (tmp_path / "said").read_text()
    assert acted == Acted("watch", ("a1",), 0), said
    assert "not a setting" not in said


def test_a_command_that_takes_too_long_is_ended_with_all_that_it_started(store: FeatureStore, tmp_path: Path) -> None:
    command = f"(sleep 30; touch {tmp_path}/late) & echo $! > {tmp_path}/child; wait"
    began = time.monotonic()
    acted = act(store.workspace, alarmed(store, "a1"), command, cooldown=HOUR, timeout=timedelta(seconds=1))
    assert acted == Acted("watch", ("a1",), None)
    assert time.monotonic() - began < 15
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("what the command started goes on")


def test_of_two_at_once_one_runs(store: FeatureStore, tmp_path: Path, clock: ManualClock) -> None:
    result = alarmed(store, "a1")
    command = f"echo x >> {tmp_path}/ran; sleep 0.3"

    def run() -> None:
        with FeatureStore(tmp_path / "repo", clock=clock) as own:
            act(own.workspace, result, command, cooldown=HOUR, timeout=MINUTE)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "ran").read_text() == "x\n"


def test_a_message_is_signed_sent_once_and_sent_again_where_it_was_not_taken(
    store: FeatureStore, receiver: Receiver, clock: ManualClock
) -> None:
    result = alarmed(store, "a1")
    receiver.answer = 500
    with pytest.raises(MaterializationError, match="did not take the message: 500"):
        send(store.workspace, result)
    receiver.answer = 204
    assert send(store.workspace, result) == ("a1",)
    (path, headers, body) = receiver.got[-1]
    at_s, signature = (part.partition("=")[2] for part in headers["X-Featurestore-Signature"].split(","))
    assert int(at_s) == clock() // 1_000_000
    expected = hmac.new(SECRET.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(signature, expected)
    message = json.loads(body)
    assert (path, message["timestamp"], message["monitor"]["alarms"][0]["id"]) == ("/hook", int(at_s), "a1")
    assert message["new"] == ["a1"]
    assert SECRET not in body.decode()
    again = MonitorResult(newest_finding(store.workspace.ledger, "taxi", "watch")[0])  # type: ignore[arg-type]
    assert send(store.workspace, again) == ()
    assert len(receiver.got) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_message_whose_sender_died_was_not_taken(
    store: FeatureStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = alarmed(store, "a1")
    with monkeypatch.context() as patch:
        patch.setattr(HTTPConnection, "connect", lambda _: {}["memory"])
        with pytest.raises(MaterializationError, match="did not take the message: it broke off"):
            send(store.workspace, result)
    assert (send(store.workspace, result), len(receiver.got)) == (("a1",), 1)


def test_redirects_are_not_followed(store: FeatureStore, receiver: Receiver) -> None:
    receiver.answer = 302
    with pytest.raises(MaterializationError, match="302"):
        send(store.workspace, alarmed(store, "a1"))
    assert [path for path, _, _ in receiver.got] == ["/hook"]


def test_a_receiver_that_hangs_is_given_up(
    store: FeatureStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurestore.quality.telling.ANSWER_SECONDS", 0.3)
    receiver.pause_s = 4.0
    began = time.monotonic()
    with pytest.raises(MaterializationError, match="timed out"):
        send(store.workspace, alarmed(store, "a1"))
    assert time.monotonic() - began < 3.5


@pytest.mark.parametrize("instead", [b"x", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_receiver_that_answers_without_end_is_given_up(
    store: FeatureStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, instead: bytes
) -> None:
    monkeypatch.setattr("featurestore.quality.telling.ANSWER_SECONDS", 0.5)
    receiver.instead = instead
    began = time.monotonic()
    with pytest.raises(MaterializationError, match="timed out"):
        send(store.workspace, alarmed(store, "a1"))
    assert time.monotonic() - began < 3


def test_no_proxy_of_the_environment_gets_the_message(
    store: FeatureStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert send(store.workspace, alarmed(store, "a1")) == ("a1",)
    assert [path for path, _, _ in receiver.got] == ["/hook"]


@pytest.mark.parametrize("state", ["not judged", "ok", "watch"])
def test_an_alarm_that_stays_open_is_sent_once_whatever_the_next_windows_are(
    store: FeatureStore, receiver: Receiver, state: str
) -> None:
    result = alarmed(store, "a1", state=state)
    assert send(store.workspace, result) == ("a1",)
    assert send(store.workspace, result) == ()
    assert len(receiver.got) == 1


def test_of_two_at_once_one_sends_and_a_claim_of_a_dead_one_ends(
    store: FeatureStore, receiver: Receiver, tmp_path: Path, clock: ManualClock
) -> None:
    result, receiver.pause_s = alarmed(store, "a1"), 0.5
    sent = list[tuple[str, ...]]()

    def run() -> None:
        with FeatureStore(tmp_path / "repo", clock=clock) as own:
            sent.append(send(own.workspace, result))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [(), (), ("a1",)]
    assert len(receiver.got) == 1
    receiver.pause_s = 0.0
    claimed = alarmed(store, "b2", sending_us=clock() - CLAIM_US + 1_000_000)
    assert send(store.workspace, claimed) == ()
    clock.advance(timedelta(seconds=1))
    assert send(store.workspace, claimed) == ("b2",)


def test_a_look_back_sends_and_starts_nothing(store: FeatureStore, receiver: Receiver, tmp_path: Path) -> None:
    result = MonitorResult(alarmed(store, "a1").document, is_kept=False)
    assert send(store.workspace, result) == ()
    assert act(store.workspace, result, f"touch {tmp_path}/ran", cooldown=HOUR, timeout=MINUTE) is None
    assert not receiver.got
    assert not (tmp_path / "ran").exists()


def test_a_command_runs_first_whatever_the_cooldown_and_fails_aloud_and_without_a_report(
    store: FeatureStore, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    for_ever = timedelta(days=100_000_000)
    command = f'test -z "$FS_ALARM_REPORT" && touch {tmp_path}/ran; no-such-command-here'
    acted = act(store.workspace, alarmed(store, "a1"), command, cooldown=for_ever, timeout=MINUTE)
    assert acted == Acted("watch", ("a1",), 127, "No such file or directory")
    assert (tmp_path / "ran").exists()
    assert "a1 failed: it ended with 127. It counts as run" in told(acted)
    assert "It had no report: No such file" in told(acted)
    ledger = store.workspace.ledger
    document, version = newest_finding(ledger, "taxi", "watch")
    assert document is not None
    ahead = replace(document, acted_us=clock() + 10**15, alarms=(MonitorAlarm("b2", "trips", "psi", "PSI 1", 1),))
    write_finding(ledger, "taxi", ahead, if_version=version)
    assert act(store.workspace, MonitorResult(ahead), "true", cooldown=HOUR, timeout=MINUTE), "a clock was ahead once"


WRONG: list[dict[str, Any]] = [
    {},
    {"features": "x"},
    {"acted_us": 2**62},
    {"monitor": "other"},
    {"alarms": [{"id": "a\0", "feature": "f", "line": "psi", "told": "t", "opened_us": 1}]},
    {"alarms": [{"id": "a" * 300_000, "feature": "f", "line": "psi", "told": "t", "opened_us": 1}]},
    {"alarms": [{"id": "a1\nb", "feature": "f", "line": "psi", "told": "t", "opened_us": 1}]},
    {"alarms": [{"id": "a1", "feature": "f", "line": "psi", "told": "t", "opened_us": 2**62}]},
]


def test_a_finding_that_no_version_wrote_counts_as_nothing_with_a_warning(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    good = msgspec.to_builtins(alarmed(store, "a1").document)
    ledger = store.workspace.ledger
    for version, wrong in enumerate(WRONG, start=1):
        ledger.append("taxi", "monitor", "watch", {**good, **wrong} if wrong else {}, if_version=version)
        assert newest_finding(ledger, "taxi", "watch") == (None, version + 1), wrong
        assert "It counts as nothing" in caplog.text
        caplog.clear()
    assert act(store.workspace, alarmed(store, "c3"), "true", cooldown=HOUR, timeout=MINUTE)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://u:LEAK@localhost/LEAK", "user and password"),
        ("https://LEAK@hooks.invalid/LEAK", "user and password"),
        ("https://hooks.invalid:LEAK/x", "no URL"),
        ("http://localhost:7701/LEAK x", "holds a character"),
        ("http://localhost:7701/LEAK\n", "holds a character"),
        ("https://hooks.invalid/LEAKä", "holds a character"),
        ("https:///LEAK", "names no host"),
        ("https://[::1/LEAK", "no URL"),
        ("LEAK", "names no host"),
        ("ftp://hooks.invalid/LEAK", "not https"),
    ],
)
def test_a_url_that_is_none_is_told_when_settings_are_read_and_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        check_url(SecretStr(url))
    monkeypatch.setenv("FS_MONITOR__WEBHOOK_URL", url)
    (tmp_path / "feature_store.yaml").write_text("project: taxi\n")
    said = CommandLine(tmp_path, capsys)("doctor", expect=1)
    assert why in said
    assert "FS_MONITOR__WEBHOOK_URL" in said
    assert "LEAK" not in said


def test_a_secret_of_blanks_is_none() -> None:
    with pytest.raises(ValueError, match="shorter than 16 characters"):
        check_secret(SecretStr(" " * 20))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("{}", "no webhook"),
        ("{webhook_url: 'https://example.com/x'}", "no webhook_secret"),
        ("{webhook_url: 'http://example.com/x', webhook_secret: 'long enough to be one'}", "not https"),
        ("{webhook_url: 'file:///etc/passwd', webhook_secret: 'long enough to be one'}", "names no host"),
        ("{webhook_url: 'https://example.com/x', webhook_secret: short}", "shorter than 16 characters"),
    ],
)
def test_webhooks_that_are_not_safe_are_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, told: str
) -> None:
    (tmp_path / "feature_store.yaml").write_text(f"project: taxi\nmonitor: {settings}\n")
    (tmp_path / "features.py").write_text("from featurestore import *\n")
    fs = CommandLine(tmp_path, capsys)
    assert told in fs("monitor", "--webhook", expect=1)
    document = MonitorDocument("m", "t", "alarm", 1, 0, 1, "b", alarms=(MonitorAlarm("a", "f", "l", "t", 1),))
    with pytest.raises(SettingsError, match=told), FeatureStore(tmp_path) as store:
        send(store.workspace, MonitorResult(document))


def test_files_that_cannot_be_written_and_durations_that_are_none_are_said(
    store: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fs = CommandLine(tmp_path / "repo", capsys)
    assert "cannot be written" in fs("monitor", "--html", str(tmp_path / "none" / "x.html"), expect=1)
    assert "write a duration" in fs("monitor", "--cooldown", "soon", expect=2)
    assert "Nothing is monitored" in fs("monitor")


def examples() -> list[str]:
    """Return the `fs monitor` commands of the workflow and of the page."""
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["monitor"]["steps"]
    (run,) = [step["run"] for step in steps if "fs monitor" in step.get("run", "")]
    page = (REPOSITORY / "docs/how-to/monitors.md").read_text()
    lines = [line[line.index("fs monitor") :] for line in page.splitlines() if re.search(r"^[^`]*fs monitor ", line)]
    return [run, *(line.partition("  #")[0] for line in lines)]


@pytest.mark.parametrize("line", examples())
def test_the_commands_of_the_examples_are_commands(line: str) -> None:
    words = shlex.split(line)
    assert words[:2] == ["fs", "monitor"]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_workflow_starts_the_training_for_the_alarms(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n')
    gh.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    words = shlex.split(examples()[0])
    on_alarm = words[words.index("--on-alarm") + 1]
    act(store.workspace, alarmed(store, "a1", "b2"), on_alarm, cooldown=HOUR, timeout=MINUTE)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["workflow", "run", "train.yml", "--field", "alarms=a1 b2"]
