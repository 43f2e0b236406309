"""`fs catalog` as a process, and what its pages offer to copy: every snippet is run."""

from __future__ import annotations

import contextlib
import html
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from support.command_line import CommandLine
from support.serving import Project, serving_here, small_project

from featurestore.types.times import system_clock

pytestmark = pytest.mark.counts_processes

KEYS = {"origin": "JFK", "dest": "LAX"}
"""Keys that this project has; that of a customer is as pages have it."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return small_project(tmp_path_factory.mktemp("catalog") / "repo", system_clock())


@contextmanager
def fs_catalog(root: Path, *arguments: str) -> Iterator[str]:
    """Run `fs catalog` on a free port and give the address that it prints; Ctrl-C ends it with 0, silently."""
    command = [sys.executable, "-m", "featurestore", "catalog", "--repo", str(root), "--port", "0", "--no-browser"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    try:
        (address,) = re.findall(r"^The catalog is at (http://127\.0\.0\.1:\d+/p/\S+) until you press Ctrl-C\.$", line)
        yield address
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def snippets(page: str) -> dict[str, str]:
    found = re.findall(r'<figure class="code" id="use-(\w+)">.*?<code[^>]*>(.*?)</code>', page, re.DOTALL)
    texts = {name: html.unescape(text) for name, text in found}
    for key, value in KEYS.items():
        texts = {name: re.sub(rf"({key}\W+?)\.\.\.", rf"\g<1>{value}", text) for name, text in texts.items()}
    return texts


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("feature_view/fresh", {"clicks": 7, "score": 0.5}),
        ("feature/feature_view/fresh/clicks", {"clicks": 7}),
        ("feature_view/routes", {"miles": 2475}),
        ("feature_service/plain", {"clicks": 7, "score": 0.5, "miles": 2475}),
        ("feature_service/model_v1", {"clicks": 7, "miles": 2475, "amount_per_click": 1.5 / 7}),
        ("on_demand_feature_view/spending", {"amount_per_click": 1.5 / 7}),
        ("feature/on_demand_feature_view/spending/amount_per_click", {"amount_per_click": 1.5 / 7}),
    ],
)
def test_what_is_copied_from_a_page_works(
    project: Project, address: str, capsys: pytest.CaptureFixture[str], path: str, expected: dict[str, float]
) -> None:
    found = snippets(httpx.get(f"{address}/{path}").text)

    variables: dict[str, object] = {}
    with contextlib.chdir(project.root), contextlib.redirect_stdout(io.StringIO()):
        exec(found["python"], variables)
        answer = variables["answer"].to_dict()  # type: ignore[attr-defined]
    assert {name: answer[name][0] for name in expected} == expected
    variables["store"].close()  # type: ignore[attr-defined]
    # Each is copied alone: the frame is all that somebody adds.
    started, columns, last = re.split(r"# a row for each example: (.*), event_timestamp\n", found["training"])
    assert found["python"].startswith(started)
    assert all(f'"{column}": ' in found["python"] for column in columns.split(", "))
    assert last.startswith("frame = ...\ntraining = store.get_historical_features(")

    command, *arguments = shlex.split(found["cli"].replace("\\\n", " "))
    assert command == "fs"
    told = CommandLine(project.root, capsys).json(*arguments)["features"]
    assert {name: told[name][0] for name in expected} == expected

    with serving_here(project.workspace()) as client:
        url = str(client.base_url).rstrip("/")
        request = shlex.split(found["curl"].replace("http://localhost:6566", url).replace("\\\n", " "))
        done = subprocess.run([*request, "-s"], capture_output=True, text=True, check=True, env={**os.environ})
    body = json.loads(done.stdout)
    values = dict(zip(body["names"], body["rows"][0], strict=True))
    assert {name: values[name] for name in expected} == expected


@pytest.fixture(scope="module")
def address(project: Project) -> Iterator[str]:
    with fs_catalog(project.root) as address:
        yield address


def test_it_follows_and_answers_to_its_own_name_alone(project: Project, address: str) -> None:
    port = httpx.URL(address).port
    assert httpx.get(address, headers={"host": f"localhost:{port}"}).status_code == 200
    assert httpx.get(address, headers={"host": f"evil.example:{port}"}).status_code == 421
    assert httpx.get(f"{address}/feature_view/days").status_code == 200
    project.apply(without=["feature_view:days"])
    assert httpx.get(f"{address}/feature_view/days").status_code == 404
    project.apply()


@pytest.mark.parametrize(
    ("path", "current", "told"),
    [
        ("/p/%E2%82%AC", "http://[", "/p/%E2%82%AC?"),
        ("/p/a%0d%0aX-Planted:%20yes", "", "/p/a%0d%0aX-Planted:%20yes?"),
        ("/p/a%00b?q=1", "", "/p/a%00b?q=1"),
    ],
    ids=["no latin-1", "a line's end", "U+0000"],
)
def test_addresses_that_no_header_or_database_holds_are_not_found(
    address: str, path: str, current: str, told: str
) -> None:
    answer = httpx.get(
        f"http://127.0.0.1:{httpx.URL(address).port}{path}", headers={"hx-request": "true", "hx-current-url": current}
    )
    assert (answer.status_code, answer.headers["hx-push-url"]) == (404, told)
    assert "x-planted" not in answer.headers


def test_before_the_first_apply_it_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: new\n")
    with fs_catalog(tmp_path) as address:
        answer = httpx.get(address)
        assert (answer.status_code, "fs apply" in answer.text) == (404, True)
    assert not (tmp_path / "data").exists()  # it only looked


def test_a_port_that_is_taken_and_a_registry_that_is_away_are_told(
    project: Project, tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(httpx.URL(address).port)
    told = CommandLine(project.root, capsys)("catalog", "--port", port, "--no-browser", expect=1)
    assert "Choose another with --port" in told
    (tmp_path / "feature_store.yaml").write_text("project: far\nregistry: http://127.0.0.1:1\n")
    told = CommandLine(tmp_path, capsys)("catalog", "--port", "0", "--no-browser", expect=1)
    assert "The registry http://127.0.0.1:1 cannot be used" in told
